"""What layer.solve returns: primal, multipliers and value, status, iterations, residuals and flags."""

import dataclasses
import warnings

import cvxpy as cp
import pytest
import torch

from optlayer import OptLayer, OptLayerError, Solution, Status

from .problems import (
    BALL,
    BLOCKS,
    BOX,
    QP,
    RELU,
    SPARSEMAX,
    TABLE,
    as_tuple,
    build_qp,
    build_relu,
    close,
    layer_of,
    leaves,
    normal,
    one,
    plant_qp,
    uniform,
)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("problem", TABLE, ids=repr)
def test_everything_has_the_batchs_shape(problem, batch, rng):
    data = problem.parameters(rng, *batch)
    layer = layer_of(problem)
    solution = layer.solve(*data)
    assert isinstance(solution, Solution)
    for primal, output in zip(solution.primal, as_tuple(layer(*data)), strict=True):
        assert torch.equal(primal, output)
    assert [primal.shape for primal in solution.primal] == [batch + tuple(v.shape) for v in layer.variables]
    assert solution.value.shape == batch
    assert solution.status.shape == batch
    assert solution.status.dtype == torch.int64
    assert (solution.status == Status.SOLVED).all()
    assert solution.iterations.shape == batch
    assert (solution.iterations >= 0).all()
    for name in ("stationarity", "primal", "dual", "complementarity", "worst"):
        residual = getattr(solution.residuals, name)
        assert residual.shape == batch
        assert residual.dtype == torch.float64
        assert (residual >= 0).all()
        assert (residual < 1e-9).all()
        assert (solution.residuals.worst >= residual).all()
    for name in ("kink", "degenerate", "nonunique"):
        flag = getattr(solution.flags, name)
        assert flag.shape == batch
        assert flag.dtype == torch.bool
    for tensor in (solution.status, solution.iterations, solution.residuals.worst, solution.flags.kink):
        assert not tensor.requires_grad


def test_multipliers_have_the_shape_of_their_constraints(rng):
    layer = OptLayer(
        [cp.Variable((2, 3), name="W")],
        [cp.Parameter((2, 3), name="M"), cp.Parameter((2, 3), name="U")],
        objective=lambda W, M, U: cp.sum_squares(W - M),
        inequalities=[lambda W, M, U: W - U, lambda W, M, U: cp.sum(cp.square(W)) - 1000],
        equalities=[lambda W, M, U: W[0, 0] + W[1, 2] - 1, lambda W, M, U: W[:, 1:2] - M[:, 1:2] / 2],
    )
    M, U = normal(rng, 4, 2, 3), normal(rng, 4, 2, 3) + 4
    U[:, 0, 1:] -= 6  # these bind often, with W[:, 1] held by an equality away from it
    U[:, :, 1] = M[:, :, 1].abs() + 1
    solution = layer.solve(M, U)
    first, second = solution.inequality_duals
    assert first.shape == (4, 2, 3)
    assert second.shape == (4,)
    assert [dual.shape for dual in solution.equality_duals] == [(4,), (4, 2, 1)]
    W = solution.primal[0]
    close(first[:, 0, 2], 2 * (M - U)[:, 0, 2].relu())
    close(solution.equality_duals[1].squeeze(-1), 2 * (M - W)[:, :, 1])
    close(solution.equality_duals[0], 2 * (M - W)[:, 0, 0])
    assert first[:, 0, 2].max() > 0.1
    assert (second == 0).all()


def test_multipliers_of_matrices_are_not_transposed(rng):
    """min |W - M|^2, W <= U elementwise: every entry has its own multiplier."""
    for shape in ((2, 3), (2, 3, 2)):
        layer = OptLayer(
            [cp.Variable(shape)],
            [cp.Parameter(shape), cp.Parameter(shape)],
            objective=lambda W, M, U: cp.sum_squares(W - M),
            inequalities=[lambda W, M, U: W - U],
        )
        M, U = normal(rng, 2, *shape), normal(rng, 2, *shape)
        solution = layer.solve(M, U)
        close(solution.primal[0], torch.minimum(M, U))
        close(solution.inequality_duals[0], 2 * (M - U).relu())


def test_tuples_even_when_empty(rng):
    solution = layer_of(RELU).solve(*RELU.parameters(rng))
    assert isinstance(solution.primal, tuple)
    assert len(solution.primal) == 1
    assert isinstance(solution.inequality_duals, tuple)
    assert len(solution.inequality_duals) == 1
    assert solution.equality_duals == ()
    assert len(layer_of(BLOCKS).solve(*BLOCKS.parameters(rng)).primal) == 3


def test_frozen(rng):
    solution = layer_of(RELU).solve(*RELU.parameters(rng))
    for owner, name in ((solution, "value"), (solution.residuals, "primal"), (solution, "status")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, name, None)


def test_the_value_is_the_users_objective(rng):
    """Constants and parameters-only terms included: not the value of some reduced problem."""
    layer = OptLayer(
        [cp.Variable(3)],
        [cp.Parameter(3)],
        objective=lambda z, x: cp.sum_squares(z - x) + cp.sum(x) + 7,
        inequalities=[lambda z, x: z],
    )
    x = normal(rng, 5, 3)
    close(layer.solve(x).value, x.relu().square().sum(-1) + x.sum(-1) + 7)


def test_envelope_theorem(rng):
    """dvalue/dh = -multiplier, dvalue/db = -multiplier, dvalue/dq = z."""
    L, q, G, h, A, b = data = leaves(plant_qp(rng, 6, 3, 2, batch=(3,)).parameters)
    del L, G, A
    solution = build_qp(6, 3, 2).solve(*data)
    dq, dh, db = torch.autograd.grad(solution.value.sum(), (q, h, b))
    close(dq, solution.primal[0].detach())
    close(dh, -solution.inequality_duals[0].detach())
    close(db, -solution.equality_duals[0].detach())
    assert dh.abs().max() > 0.1


def test_multipliers_are_nonnegative_and_complementary(rng):
    z, x = layer_of(BOX).solve(*BOX.parameters(rng, 50)), None
    del x
    for dual in z.inequality_duals:
        assert (dual >= 0).all()
    assert ((z.inequality_duals[0] > 0) != (z.inequality_duals[1] > 0)).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_warm_start_changes_nothing(scale, rng):
    data = QP.parameters(rng, 4)
    cold = layer_of(QP).solve(*data)
    warm = layer_of(QP).solve(*data, warm_start=cold)
    close(warm.primal[0], cold.primal[0], 1e-9)
    other = QP.parameters(rng, 4)
    right = layer_of(QP).solve(*other)
    misled = layer_of(QP).solve(
        *other, warm_start=dataclasses.replace(cold, primal=tuple(scale * primal for primal in cold.primal))
    )
    close(misled.primal[0], right.primal[0], 1e-9)
    close(misled.inequality_duals[0], right.inequality_duals[0], 1e-8)


def test_warm_start_is_no_path_for_gradients(rng):
    data = leaves(SPARSEMAX.parameters(rng, 2))
    previous = layer_of(SPARSEMAX).solve(*data)
    fresh = leaves(SPARSEMAX.parameters(rng, 2))
    solution = layer_of(SPARSEMAX).solve(*fresh, warm_start=previous)
    (gradient,) = torch.autograd.grad(solution.primal[0].square().sum(), data, allow_unused=True)
    assert gradient is None or (gradient == 0).all()


class TestFlags:
    def test_an_exact_kink(self):
        """At the tie the constraint counts as inactive: relu's derivative at 0 is 1 here, and flagged."""
        x = torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
        layer = build_relu(3)
        solution = layer.solve(x)
        assert solution.flags.kink.tolist() == [True, False]
        close(solution.primal[0], x.detach().relu())
        solution.primal[0].sum().backward()
        close(x.grad, torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64))

    def test_a_kink_has_one_derivative_in_every_mode(self):
        x = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
        layer = build_relu(3)
        close(torch.func.jacfwd(layer)(x), torch.func.jacrev(layer)(x), 1e-12)

    @pytest.mark.parametrize("method", ["smooth", "cone"])
    @pytest.mark.parametrize("unit", [1e-6, 1.0, 1e9])
    def test_ties_among_rounding(self, method, unit):
        """At a vertex that is its own projection the multipliers are 1e-16, as is all beside them."""
        layer, r = self.projection(method), torch.tensor(unit, dtype=torch.float64)
        x = torch.tensor([[1, 0, 0, 0], [0.7, 0.1, 0.2, 0], [0.3, -0.7, -0.7, -0.7]], dtype=torch.float64)
        assert layer.solve(r * x, r).flags.kink.all()
        near = torch.tensor(
            [[1 + 1e-9, 0, 0, 0], [0.7, 0.1, 0.2, 1e-9], [1e-9, 0, 0, 0]], dtype=torch.float64
        )
        assert not layer.solve(r * near, r).flags.kink.any()

    @staticmethod
    def projection(method):
        """Onto the simplex whose edges meet at r."""
        return OptLayer(
            [cp.Variable(4)],
            [cp.Parameter(4), cp.Parameter()],
            objective=lambda z, x, r: cp.sum_squares(z - x),
            inequalities=[lambda z, x, r: -z],
            equalities=[lambda z, x, r: cp.sum(z) - r],
            method=method,
        )

    def test_the_border_of_a_ball(self):
        x = torch.tensor([0.6, 0.0, 0.8, 0.0], dtype=torch.float64)
        solution = layer_of(BALL).solve(x, torch.tensor(1.0, dtype=torch.float64))
        assert solution.flags.kink
        assert not layer_of(BALL).solve(x / 2, one()).flags.kink

    def test_nothing_is_flagged_without_reason(self, rng):
        for problem in (QP, SPARSEMAX, RELU, BALL, BLOCKS):
            flags = layer_of(problem).solve(*problem.parameters(rng, 4)).flags
            assert not (flags.kink | flags.degenerate | flags.nonunique).any(), problem

    @staticmethod
    def redundant(**options):
        return OptLayer(
            [cp.Variable(4)],
            [cp.Parameter(4)],
            objective=lambda z, x: cp.sum_squares(z - x),
            equalities=[lambda z, x: cp.sum(z) - 1, lambda z, x: 2 * cp.sum(z) - 2],
            **options,
        )

    def test_redundant_rows(self, rng):
        """The primal and its derivative are right, the multipliers are not unique: flagged."""
        layer, x = self.redundant(nonunique="ignore"), normal(rng, 3, 4)
        solution = layer.solve(x)
        expected = x - (x.sum(-1, keepdim=True) - 1) / 4
        close(solution.primal[0], expected)
        assert (solution.flags.degenerate | solution.flags.nonunique).all()
        close(torch.func.jacrev(layer)(x[0]), torch.eye(4, dtype=torch.float64) - 1 / 4)
        nu, mu = solution.equality_duals
        close(nu + 2 * mu, (x.sum(-1) - 1) / 2)

    @staticmethod
    def flat(**options):
        """Only the sum of z is determined."""
        return OptLayer(
            [cp.Variable(3)],
            [cp.Parameter()],
            objective=lambda z, x: cp.square(cp.sum(z) - x),
            inequalities=[lambda z, x: z - 5, lambda z, x: -z - 5],
            **options,
        )

    def test_an_answer_that_is_not_unique(self):
        layer = self.flat()
        with pytest.warns(Warning, match="unique"):
            solution = layer.solve(one())
        assert solution.flags.nonunique
        close(solution.primal[0].sum(), one())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer.solve(one())  # once per layer
            self.flat(nonunique="ignore").solve(one())

    def test_an_answer_that_must_be_unique(self):
        with pytest.raises(OptLayerError, match="unique"):
            self.flat(nonunique="raise").solve(one())


def test_tolerance_is_what_is_accepted_not_what_is_aimed_at(rng):
    """A loose tolerance still gives polished answers."""
    planted = plant_qp(rng, batch=(3,))
    close(build_qp(tolerance=1e-3)(*planted.parameters), planted.primal, 1e-9)


def test_certified_in_the_users_scale(rng):
    """Residuals are relative: the same whether objective and data are small or large."""
    x = uniform(rng, 4, 5, low=0.5, high=1.5)
    for scale in (1e-8, 1.0, 1e8):
        solution = layer_of(RELU).solve(scale * x)
        assert solution.residuals.worst.max() < 1e-9
        close(solution.primal[0] / scale, x)
