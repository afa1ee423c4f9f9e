"""What the layer does beyond the contract's letter: zeros that are zeros, warm starts, devices."""

import cvxpy as cp
import pytest
import torch

from optlayer import (
    DeclarationError,
    InaccurateError,
    InfeasibleError,
    InputError,
    OptLayer,
    SolveError,
    Status,
)

DOUBLE = torch.float64


def sparsemax(n=8, **options):
    return OptLayer(
        [cp.Variable(n, name="z")],
        [cp.Parameter(n, name="x")],
        lambda z, x: cp.sum_squares(z - x),
        [lambda z, x: -z],
        [lambda z, x: cp.sum(z) - 1],
        **options,
    )


def weighted(n=3, **options):
    """min ½|Lz|² - qᵀz: the parameter L enters nonlinearly."""
    return OptLayer(
        [cp.Variable(n)],
        [cp.Parameter((n, n)), cp.Parameter(n)],
        lambda z, L, q: 0.5 * cp.sum_squares(L @ z) - q @ z,
        [lambda z, L, q: z - 1],
        **options,
    )


def test_active_bounds_hold_exactly():
    """Whoever asks a sparsemax which classes are left compares with 0."""
    x = 3 * torch.randn(500, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    solution = sparsemax().solve(x)
    (z,), (lam,) = solution.primal, solution.inequality_duals
    assert ((z == 0) == (lam > 0)).all()


def test_a_failed_sample_of_a_nonlinear_parameter_has_zero_gradient():
    L = torch.eye(3, dtype=DOUBLE).expand(3, 3, 3).clone()
    L[1, 0, 0] = torch.nan
    q = torch.tensor([0.5, -0.5, 0.1], dtype=DOUBLE)
    L.requires_grad_()
    q.requires_grad_()
    z = weighted(on_failure="nan")(L, q)
    assert z[1].isnan().all()
    z[[0, 2]].sum().backward()
    assert (L.grad[1] == 0).all()
    assert torch.allclose(q.grad, torch.full_like(q, 2.0))


def test_a_warm_start_needs_no_engine(monkeypatch):
    layer = sparsemax()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    previous = layer.solve(x)

    def poisoned(*args):
        raise AssertionError("an engine was asked")

    monkeypatch.setattr("optlayer.solve.ask", poisoned)
    again = layer.solve(x + 1e-3, warm_start=previous)
    assert (again.status == Status.SOLVED).all()
    assert torch.allclose(again.primal[0], previous.primal[0], atol=1e-12)  # a common shift changes nothing


def test_a_warm_start_of_another_shape_is_refused():
    layer = sparsemax()
    previous = layer.solve(torch.zeros(5, 8))
    with pytest.raises(ValueError, match=r"warm_start holds a root of shape \(5, 17\), expected \(4, 17\)"):
        layer.solve(torch.zeros(4, 8), warm_start=previous)


def test_a_large_parameter_costs_little_to_declare():
    """Neither a parameter tensor nor a Jacobian of a million columns is built at construction."""
    n = 600
    layer = OptLayer(
        [cp.Variable(n)],
        [cp.Parameter((n, n))],
        lambda z, G: cp.sum_squares(z),
        [lambda z, G: G @ z - 1],
    )
    stored = layer._plan.form.inequality.M
    assert len(stored.entry) == n * n
    assert stored.base is None or stored.base.numel() == n * n


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_outputs_are_on_the_inputs_device():
    x = torch.randn(5, 8, device="cuda", requires_grad=True)
    y = sparsemax()(x)
    assert y.device == x.device
    assert y.dtype == x.dtype
    y[:, 0].sum().backward()
    on_cpu = x.detach().cpu().requires_grad_()
    sparsemax()(on_cpu)[:, 0].sum().backward()
    assert torch.allclose(x.grad.cpu(), on_cpu.grad, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1e8, 1e12])
def test_a_feasible_box_of_any_size_is_solved(scale):
    """At 1e8 Clarabel called some of these unbounded, and inaccurate points nearly proved it right."""
    layer = OptLayer(
        [cp.Variable(2)],
        [cp.Parameter(2), cp.Parameter(2), cp.Parameter(2)],
        lambda z, x, lower, upper: cp.sum_squares(z - x),
        [lambda z, x, lower, upper: lower - z, lambda z, x, lower, upper: z - upper],
    )
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    one = torch.ones(2, dtype=DOUBLE)
    z = layer(scale * x, -scale * one, scale * one)
    assert torch.allclose(z / scale, x.clamp(-1, 1), rtol=1e-12, atol=1e-12)


def test_falling_points_that_do_not_run_away_prove_nothing():
    """Three feasible points with falling values are any solver's three guesses."""
    from optlayer import failures
    from optlayer.forms.kkt import Instance

    layer = sparsemax(2)

    class Guesses:
        def __init__(self, *points):
            self.points = points

        def boxed_minimizers(self, theta):
            return [torch.tensor(p, dtype=DOUBLE).numpy() for p in self.points]

    class Plan:
        proof = Guesses([1.0, 0.0], [0.9, 0.1], [0.7, 0.3])

    problem = Instance(layer._plan.form, (torch.zeros(1, 2, dtype=DOUBLE),), 1)
    assert failures._unbounded(Plan(), problem, "SOLVER: unbounded") is None


def test_a_layer_built_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        layer = sparsemax()
    x = torch.randn(3, 8, dtype=DOUBLE, requires_grad=True)
    layer(x)[:, 0].sum().backward()
    assert x.grad.isfinite().all()


def smooth(objective, inequalities=(), n=2, shape=(2,), **options):
    return OptLayer([cp.Variable(n)], [cp.Parameter(shape)], objective, inequalities, **options)


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        (lambda z, c: c @ z - cp.sum(cp.log(z)), [1.0, 0.0]),
        (lambda z, c: cp.square(z[0] - c[0]) - cp.log(z[1]), [1.0, 0.0]),
        (lambda z, c: cp.square(z[0] - c[0]) + cp.inv_pos(z[1]), [1.0, 0.0]),
    ],
)
def test_one_coordinate_cannot_run_away_behind_another(objective, data):
    """These passed once, with z of 1e14, when rows shared a scale."""
    with pytest.raises(SolveError):
        smooth(objective)(torch.tensor(data))


def test_tiny_multipliers_beside_large_ones():
    """A ReLU of (1, -1e-12), and of (1e14, -1): the tie is judged in the row's own unit."""
    layer = smooth(lambda z, x: cp.sum_squares(z - x), [lambda z, x: -z])
    low = torch.tensor([0.0, 1e-15, 1e-14, 1e-12, 1e-10, 1e-9], dtype=DOUBLE)
    assert torch.equal(layer(torch.stack([torch.ones(6), -low], 1))[:, 1], torch.zeros(6, dtype=DOUBLE))
    x = torch.tensor([[1e6, -1.0], [1e10, -1.0], [1e14, -1.0]], dtype=DOUBLE, requires_grad=True)
    solution = layer.solve(x)
    assert torch.equal(solution.inequality_duals[0][:, 1], torch.full((3,), 2.0, dtype=DOUBLE))
    assert not solution.flags.kink.any()
    (g,) = torch.autograd.grad(solution.primal[0][:, 1].sum(), x)
    assert g.abs().max() < 1e-30


def test_a_singular_newton_step_without_constraints():
    """log Σ exp z - pᵀz with Σp = 1 is constant along (1, 1, 1)."""
    layer = smooth(lambda z, p: cp.log_sum_exp(z) - p @ z, n=3, shape=(3,), nonunique="ignore")
    p = torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)
    assert torch.allclose(torch.softmax(layer(p), 0), p, atol=1e-12)


def test_degenerate_multipliers_have_one_derivative():
    """Forward and reverse mode choose the same, minimum-norm, derivative."""
    layer = OptLayer(
        [cp.Variable(3)],
        [cp.Parameter(3)],
        lambda z, a: cp.sum_squares(z - torch.arange(3.0).numpy()),
        (),
        [lambda z, a: a @ z - 1, lambda z, a: 100 * (a @ z) - 100],
    )
    a = torch.tensor([0.5, -0.3, 0.8], dtype=DOUBLE)

    def duals(a):
        return torch.stack(layer.solve(a).equality_duals)

    reverse, forward = torch.func.jacrev(duals)(a), torch.func.jacfwd(duals)(a)
    assert torch.allclose(reverse, forward, atol=1e-12)
    assert torch.allclose(reverse[1], 100 * reverse[0], atol=1e-9)


def test_a_matrix_forgiven_for_its_rounding_is_read_as_semidefinite():
    """Else the stationary point of a matrix with eigenvalue -5e-8 could be a saddle."""
    layer = OptLayer(
        [cp.Variable(2)],
        [cp.Parameter((2, 2), PSD=True), cp.Parameter(2)],
        lambda z, P, q: cp.quad_form(z, P) / 2 + q @ z,
        [lambda z, P, q: z - 10, lambda z, P, q: -10 - z],
        nonunique="ignore",
    )
    P = torch.tensor([[1, 1], [1, 1 - 1e-7]], dtype=torch.float32)
    q = torch.tensor([0.0, 1e-4])
    assert layer.solve(P, q).value.item() < -9e-4


def test_a_norm_at_its_apex_is_refused():
    layer = smooth(lambda z, x: cp.norm(z - x), [lambda z, x: z - 9], method="smooth", nonunique="ignore")
    with pytest.raises(InaccurateError, match="a norm is 0"):
        layer(torch.tensor([0.3, 0.2]))


def test_data_outside_the_domain_of_an_atom_are_refused():
    layer = smooth(
        lambda z, w: cp.inv_pos(w[0]) * cp.sum_squares(z) + cp.sum(z),
        [lambda z, w: z - 1, lambda z, w: -2 - z],
    )
    with pytest.raises(SolveError):
        layer(torch.tensor([-1.0, 0.0]))


def test_nonunique_raises_with_indices_of_the_batch():
    layer = smooth(lambda z, x: cp.square(z[0] - x[0]), nonunique="raise")
    with pytest.raises(InaccurateError, match="no unique solution") as caught:
        layer(torch.ones(2, 3, 2))
    assert caught.value.indices == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    assert len(caught.value.residuals) == 6
    with pytest.raises(InaccurateError) as caught:
        layer(torch.ones(2))
    assert caught.value.indices == ()


def test_names_and_warm_starts_that_cannot_work_are_refused():
    with pytest.raises(DeclarationError, match="may not be named 'warm_start'"):
        OptLayer([cp.Variable()], [cp.Parameter(name="warm_start")], lambda z, x: cp.square(z - x))
    with pytest.raises(InputError, match="warm_start is a Tensor"):
        sparsemax().solve(torch.zeros(8), warm_start=torch.zeros(8))


@pytest.mark.parametrize(
    "objective",
    [
        lambda z, x: cp.sum_squares(z - x),
        lambda z, x: cp.sum(cp.exp(z)) + cp.sum_squares(z - x),
        lambda z, x: x @ z - cp.sum(cp.entr(z)),
    ],
)
def test_equalities_that_exclude_each_other_are_never_certified(objective):
    """Newton's method alone would send x or the multipliers to 1e270, where relative tests pass."""
    equalities = [lambda z, x: cp.sum(z) - 1, lambda z, x: z[0] + z[1] - 1, lambda z, x: cp.sum(z) - 3]
    layer = OptLayer([cp.Variable(3)], [cp.Parameter(3)], objective, equalities=equalities)
    with pytest.raises(InfeasibleError):
        layer(torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE))


def test_rounding_is_no_curvature():
    """An unbounded programme whose LᵀL is singular but for rounding came back solved, with z = 1e15."""
    z, L, q = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ z) / 2 + q @ z), [z[2] <= 1])
    rows = torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    rows[:, :, 1] = rows[:, :, 0]
    units = 2.0 ** torch.tensor([7.0, -5.0, 3.0], dtype=DOUBLE)
    layer = OptLayer.from_problem(problem, [L, q], on_failure="nan", nonunique="ignore")
    solution = layer.solve(rows / units, torch.tensor([1.0, 2.0, 0.0], dtype=DOUBLE) / units)
    assert (solution.status != Status.SOLVED).all()
