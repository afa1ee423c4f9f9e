"""No answer, solvers that stop early, data that is no number: named, and no harm to others."""

import functools

import cvxpy as cp
import pytest
import torch

from optlayer import (
    InaccurateError,
    InfeasibleError,
    InputError,
    OptLayer,
    OptLayerError,
    Solution,
    SolveError,
    SolverFailedError,
    Status,
    UnboundedError,
)

from .problems import (
    PLANE,
    QP,
    SMALL_QP,
    SOFTMAX,
    SPARSEMAX,
    TABLE,
    TRANSPORT_REDUCED,
    all_of,
    build_qp,
    build_softmax,
    build_sparsemax,
    build_transport_reduced,
    close,
    layer_of,
    leaves,
    normal,
    one,
    outputs_of,
    plant_qp,
)

INFEASIBLE = [problem for problem in TABLE if problem.infeasible]
UNBOUNDED = [problem for problem in TABLE if problem.unbounded]


# ------------------------------ a layer whose samples can fail in every way


def distance(z, c, x, lo, hi):
    """Bounded by the box if sum_squares has weight c = 1; with c = 0 linear."""

    return c * cp.sum_squares(z) - 2 * x @ z


def lower(z, c, x, lo, hi):
    return lo - z


def upper(z, c, x, lo, hi):
    return z[:2] - hi


def build_fragile(**options):
    """min c |z|^2 - 2 x'z over lo <= z, z[:2] <= hi. c = 0 and x[2] > 0: unbounded. lo > hi: infeasible."""
    parameters = [
        cp.Parameter(nonneg=True, name="c"),
        cp.Parameter(3, name="x"),
        cp.Parameter(3, name="lo"),
        cp.Parameter(2, name="hi"),
    ]
    return OptLayer([cp.Variable(3, name="z")], parameters, distance, [lower, upper], **options)


def good(rng, *batch):
    lo = normal(rng, *batch, 3) - 1
    return [one(*batch), normal(rng, *batch, 3), lo, lo[..., :2] + normal(rng, *batch, 2).abs() + 1]


def truth(c, x, lo, hi):
    z = torch.maximum(x, lo)
    return torch.cat([torch.minimum(z[..., :2], hi), z[..., 2:]], -1)


def spoil(data, row, how):
    data = [tensor.clone() for tensor in data]
    c, x, lo, hi = data
    if how == "infeasible":
        lo[row] = 1
        hi[row] = -1
    elif how == "unbounded":
        c[row] = 0
        x[row] = torch.tensor([0.0, 0.0, 1.0])
    elif how == "nan":
        x[(*row, 1) if isinstance(row, tuple) else (row, 1)] = float("nan")
    elif how == "inf":
        hi[(*row, 0) if isinstance(row, tuple) else (row, 0)] = float("inf")
    return data


STATUS = {
    "infeasible": Status.INFEASIBLE,
    "unbounded": Status.UNBOUNDED,
    "nan": Status.INVALID,
    "inf": Status.INVALID,
}
ERROR = {"infeasible": InfeasibleError, "unbounded": UnboundedError, "nan": InputError, "inf": InputError}


# ------------------------------ every problem of the table


@pytest.mark.parametrize("problem", INFEASIBLE, ids=repr)
def test_infeasible_twin(problem):
    layer, data = problem.infeasible()
    with pytest.raises(InfeasibleError, match="infeasible") as caught:
        layer(*data)
    assert caught.value.indices == ()
    with pytest.raises(InfeasibleError, match=all_of("2 of 2", "infeasible")) as caught:
        layer(*(tensor.expand(2, *tensor.shape) for tensor in data))
    assert caught.value.indices == (0, 1)
    assert tuple(caught.value.statuses) == (Status.INFEASIBLE,) * 2


@pytest.mark.parametrize("problem", UNBOUNDED, ids=repr)
def test_unbounded_twin(problem):
    layer, data = problem.unbounded()
    with pytest.raises(UnboundedError, match="unbounded") as caught:
        layer(*data)
    assert caught.value.indices == ()
    with pytest.raises(UnboundedError, match=all_of("2 of 2", "unbounded")) as caught:
        layer(*(tensor.expand(2, *tensor.shape) for tensor in data))
    assert caught.value.indices == (0, 1)
    assert tuple(caught.value.statuses) == (Status.UNBOUNDED,) * 2


def test_feasible_problems_of_extreme_size_are_not_called_infeasible(rng):
    """A box scaled by 1e8: a solver that calls it infeasible is not believed."""
    layer = build_fragile()
    c, x, lo, hi = good(rng, 3)
    for scale in (1e8, 1e-8):
        data = (c, scale * x, scale * lo, scale * hi)
        close(layer(*data) / scale, truth(c, x, lo, hi), 1e-7)


# ------------------------------ indices and texts


def test_unbatched_failure(rng):
    data = good(rng)
    data[2], data[3] = one(3), -one(2)
    with pytest.raises(
        InfeasibleError, match=all_of("infeasible", "inequality [01]", "'(?:lower|upper)'")
    ) as caught:
        build_fragile()(*data)
    assert caught.value.indices == ()


def test_the_model_message(rng):
    data = spoil(good(rng, 8), 3, "infeasible")
    parts = [
        r"1 of 8 samples has no solution",
        r"sample 3 is infeasible",
        "inequality [01] '(?:lower|upper)' violated by "
        r"[0-9]",
        r"The other 7 solved",
        r'on_failure="nan" keeps them',
    ]
    with pytest.raises(InfeasibleError, match=all_of(*parts)) as caught:
        build_fragile()(*data)
    error = caught.value
    assert error.indices == (3,)
    assert tuple(error.statuses) == (Status.INFEASIBLE,)
    assert all(isinstance(index, int) for index in error.indices)
    assert error.residuals is not None
    assert isinstance(error, SolveError)
    assert isinstance(error, OptLayerError)
    assert isinstance(error, RuntimeError)


def test_the_solver_is_named(rng):
    data = spoil(good(rng, 4), 1, "infeasible")
    with pytest.raises(InfeasibleError, match=all_of("CLARABEL")):
        build_fragile(solver=cp.CLARABEL)(*data)


@pytest.mark.parametrize("how", ["infeasible", "unbounded"])
def test_several_failures_of_one_kind(how, rng):
    data = good(rng, 6)
    for row in (1, 4):
        data = spoil(data, row, how)
    with pytest.raises(ERROR[how], match=all_of("2 of 6", r"\b1\b", r"\b4\b", how)) as caught:
        build_fragile()(*data)
    assert caught.value.indices == (1, 4)
    assert tuple(caught.value.statuses) == (STATUS[how],) * 2


def test_failures_of_several_kinds(rng):
    data = spoil(spoil(good(rng, 6), 4, "infeasible"), 2, "unbounded")
    with pytest.raises(SolveError, match=all_of("2 of 6", "infeasible", "unbounded")) as caught:
        build_fragile()(*data)
    assert caught.value.indices == (2, 4)
    assert tuple(caught.value.statuses) == (Status.UNBOUNDED, Status.INFEASIBLE)


def test_several_batch_dimensions(rng):
    data = spoil(spoil(good(rng, 2, 3), (0, 1), "infeasible"), (1, 2), "infeasible")
    with pytest.raises(InfeasibleError, match=all_of("2 of 6", r"\(0, 1\)", r"\(1, 2\)")) as caught:
        build_fragile()(*data)
    assert caught.value.indices == ((0, 1), (1, 2))
    assert len(caught.value.statuses) == 2


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_data_that_is_not_finite(how, rng):
    name = {"nan": "x", "inf": "hi"}[how]
    with pytest.raises(InputError, match=all_of(rf"\b{name}\b", r"\b2\b")) as caught:
        build_fragile()(*spoil(good(rng, 5), 2, how))
    assert caught.value.indices == (2,)
    assert tuple(caught.value.statuses) == (Status.INVALID,)
    with pytest.raises(InputError, match=rf"\b{name}\b") as caught:
        build_fragile()(*(tensor[2] for tensor in spoil(good(rng, 5), 2, how)))
    assert caught.value.indices == ()
    with pytest.raises(InputError, match=rf"\b{name}\b") as caught:
        build_fragile()(*spoil(good(rng, 2, 2), (1, 0), how))
    assert caught.value.indices == ((1, 0),)


def test_shared_data_that_is_not_finite(rng):
    c, x, _lo, hi = good(rng, 3)
    with pytest.raises(InputError, match=r"\blo\b"):
        build_fragile()(c, x, torch.tensor([0.0, float("nan"), 0.0]), hi)


def test_under_vmap_too(rng):
    data = spoil(good(rng, 4), 2, "infeasible")
    with pytest.raises(InfeasibleError, match="infeasible"):
        torch.func.vmap(build_fragile())(*data)
    with pytest.raises(InfeasibleError, match="infeasible"):
        torch.func.vmap(torch.func.jacrev(build_fragile(), argnums=1))(*data)


def test_a_layer_survives_its_failures(rng):
    layer, data = build_fragile(), good(rng, 4)
    expected = layer(*data)
    for how in ERROR:
        with pytest.raises(ERROR[how]):
            layer(*spoil(data, 1, how))
    assert torch.equal(layer(*data), expected)
    close(expected, truth(*data))


# ------------------------------ on_failure


def hears(error, solution):
    """A policy that neither raises nor does anything."""


KEEPING = {"nan": "nan", "callable": hears}  # the policies under which the rest of a batch comes back


@pytest.mark.parametrize("policy", KEEPING.values(), ids=KEEPING.keys())
@pytest.mark.parametrize("how", ERROR)
def test_good_rows_are_unharmed(how, policy, rng):
    """Bitwise equal to the batch where that row is another good one; to 1e-12 the batch without it."""
    layer, data = build_fragile(on_failure=policy), good(rng, 8)
    keep = [0, 1, 2, 4, 5, 6, 7]
    w = normal(rng, 8, 3)
    results = []
    for batch, cotangent in (
        (data, w),
        (spoil(data, 3, how), w),
        ([tensor[keep] for tensor in data], w[keep]),
    ):
        batch = leaves(batch)
        y = layer(*batch)
        results.append((y.detach(), *torch.autograd.grad(y, batch, cotangent)))
    for index, (intact, spoilt, shorter) in enumerate(zip(*results, strict=True)):
        assert torch.equal(spoilt[keep], intact[keep])
        close(shorter, spoilt[keep], 1e-12)
        bad = spoilt[3]
        assert bad.isnan().all() if index == 0 else (bad == 0).all()


@pytest.mark.parametrize("how", ERROR)
def test_one_bad_row_of_many_is_raised_by_its_number(how, rng):
    """And whoever leaves it out then gets what the batch without it gives."""
    layer, data = build_fragile(), good(rng, 8)
    spoilt = spoil(data, 3, how)
    with pytest.raises(ERROR[how]) as caught:
        layer(*spoilt)
    assert caught.value.indices == (3,)
    assert tuple(caught.value.statuses) == (STATUS[how],)
    keep = [row for row in range(8) if row not in caught.value.indices]
    close(layer(*(tensor[keep] for tensor in spoilt)), layer(*data)[keep], 1e-12)


@pytest.mark.parametrize("policy", KEEPING.values(), ids=KEEPING.keys())
@pytest.mark.parametrize("how", ERROR)
def test_every_row_fails(how, policy, rng):
    """NaN in every row, a gradient of zero, and nothing raised."""
    layer, data = build_fragile(on_failure=policy), good(rng, 3)
    for row in range(3):
        data = spoil(data, row, how)
    data = leaves(data)
    solution = layer.solve(*data)
    assert solution.status.tolist() == [STATUS[how]] * 3
    assert all(output.isnan().all() for output in outputs_of(solution))
    gradients = torch.autograd.grad(solution.primal[0].square().sum(), data)
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("how", ERROR)
def test_a_nan_row_in_the_loss_does_no_harm(how, rng):
    """The loss hands NaN cotangents back to the failed row; nothing of them reaches any gradient."""
    layer = build_fragile(on_failure="nan")
    c, x, lo, hi = spoil(good(rng, 5), 2, how)
    keep = [0, 1, 3, 4]
    shift = torch.full((3,), 0.25, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(
        layer(c[keep], x[keep] + shift, lo[keep], hi[keep]).square().sum(), shift
    )
    inputs = leaves((c, x, lo, hi))
    y = layer(inputs[0], inputs[1] + shift, inputs[2], inputs[3])
    assert y[2].isnan().all()
    y.square().sum().backward()
    close(shift.grad, expected, 1e-12)
    for tensor in inputs:
        assert (tensor.grad[2] == 0).all()
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("how", ["infeasible", "nan"])
def test_higher_derivatives_of_good_rows(how, rng):
    layer, data = build_fragile(on_failure="nan"), spoil(good(rng, 3), 1, how)
    keep = [0, 2]
    weights = torch.arange(1.0, 4.0, dtype=torch.float64)
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):

        def per_sample(c, x, lo, hi):
            return (layer(c, x, lo, hi) * weights).sum()

        spoilt = torch.func.vmap(transform(per_sample, argnums=(0, 1)))(*data)
        intact = torch.func.vmap(transform(per_sample, argnums=(0, 1)))(*(tensor[keep] for tensor in data))
        for a, e in zip(
            torch.utils._pytree.tree_leaves(spoilt), torch.utils._pytree.tree_leaves(intact), strict=True
        ):
            close(a[keep], e, 1e-12)


def test_nan_policy_in_the_solution(rng):
    data = good(rng, 5)
    for row, how in enumerate(["infeasible", "unbounded", "nan"]):
        data = spoil(data, row + 1, how)
    solution = build_fragile(on_failure="nan").solve(*data)
    assert solution.status.tolist() == [
        Status.SOLVED,
        Status.INFEASIBLE,
        Status.UNBOUNDED,
        Status.INVALID,
        Status.SOLVED,
    ]
    for output in outputs_of(solution):
        assert output[1:4].isnan().all()
        assert output[[0, 4]].isfinite().all()
    assert solution.residuals.worst[[0, 4]].max() < 1e-8


def test_nan_policy_unbatched(rng):
    data = good(rng)
    data[2], data[3] = one(3), -one(2)
    y = build_fragile(on_failure="nan")(*data)
    assert y.shape == (3,)
    assert y.isnan().all()


def test_nan_policy_still_refuses_wrong_shapes(rng):
    c, x, lo, _hi = good(rng, 3)
    with pytest.raises(InputError, match=r"\bhi\b"):
        build_fragile(on_failure="nan")(c, x, lo, lo)


def test_a_callable_is_told(rng):
    told = []
    layer = build_fragile(on_failure=lambda error, solution: told.append((error, solution)))
    data = good(rng, 4)
    close(layer(*data), truth(*data))
    assert not told
    y = layer(*spoil(data, 2, "infeasible"))
    ((error, solution),) = told
    assert isinstance(error, InfeasibleError)
    assert error.indices == (2,)
    assert isinstance(solution, Solution)
    assert solution.status[2] == Status.INFEASIBLE
    close(y[[0, 1, 3]], truth(*data)[[0, 1, 3]])
    assert y[2].isnan().all()


def test_a_callable_may_raise(rng):
    class Mine(Exception):
        pass

    def on_failure(error, solution):
        raise Mine(f"{error.indices}") from error

    with pytest.raises(Mine, match=r"\(2,\)"):
        build_fragile(on_failure=on_failure)(*spoil(good(rng, 4), 2, "unbounded"))


# ------------------------------ answers that are not accurate

OUT_OF_TIME = [
    (cp.CLARABEL, {"time_limit": 1e-9}),
    (cp.SCS, {"time_limit_secs": 1e-9}),
    (cp.OSQP, {"time_limit": 1e-9}),
]


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (cp.CLARABEL, {"max_iter": 1}),
        (cp.CLARABEL, {"max_iter": 3}),
        (cp.SCS, {"max_iters": 1}),
        (cp.SCS, {"max_iters": 20}),
        (cp.OSQP, {"max_iter": 1}),
        (cp.OSQP, {"max_iter": 25}),
        *OUT_OF_TIME,
    ],
    ids=[
        *("clarabel-1", "clarabel-3", "scs-1", "scs-20", "osqp-1", "osqp-25"),
        *("clarabel-time", "scs-time", "osqp-time"),
    ],
)
@pytest.mark.parametrize(
    ("build", "planted"),
    [
        (build_qp, lambda rng: plant_qp(rng, batch=(4,))),
        (build_sparsemax, None),
    ],
    ids=["qp", "sparsemax"],
)
def test_a_stopped_solver_yields_the_answer_or_an_error(solver, options, build, planted, rng):
    """Polishing may rescue a poor point; a wrong number never leaves."""
    if planted:
        planted = planted(rng)
        data, expected = planted.parameters, planted.primal
    else:
        data = SPARSEMAX.parameters(rng, 4)
        (expected,) = SPARSEMAX.truth(*data)
    try:
        close(build(solver=solver, **options)(*data), expected, 1e-7)
    except (InaccurateError, SolverFailedError) as error:
        assert error.indices  # noqa: PT017
        assert str(error)  # noqa: PT017
    y = build(solver=solver, on_failure="nan", **options)(*data)
    for row, right in zip(y, expected, strict=True):
        assert row.isnan().all() or (row - right).abs().max() < 1e-7


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_stopped_solver_on_exponentials(iterations, rng):
    data = TRANSPORT_REDUCED.parameters(rng, 3)
    (expected,) = TRANSPORT_REDUCED.truth(*data)
    y = build_transport_reduced(solver=cp.SCS, max_iters=iterations, on_failure="nan")(*data)
    for row, right in zip(y, expected, strict=True):
        assert row.isnan().all() or (row - right).abs().max() < 1e-7
    x = 10 * normal(rng, 3, 5)
    y = build_softmax(solver=cp.CLARABEL, max_iter=iterations, on_failure="nan")(x)
    for row, right in zip(y, x.softmax(-1), strict=True):
        assert row.isnan().all() or (row - right).abs().max() < 1e-7


@pytest.mark.parametrize(("solver", "options"), OUT_OF_TIME, ids=["clarabel", "scs", "osqp"])
def test_a_time_limit_reaches_the_solver(solver, options, rng):
    """Else the tests above would show nothing; what it leaves is finished by Newton's method, or refused."""
    planted = plant_qp(rng, batch=(4,))
    free = build_qp(solver=solver).solve(*planted.parameters)
    stopped = build_qp(solver=solver, on_failure="nan", **options).solve(*planted.parameters)
    assert (stopped.iterations < free.iterations).all()
    solved = stopped.status == Status.SOLVED
    close(stopped.primal[0][solved], planted.primal[solved], 1e-7)
    assert stopped.primal[0][~solved].isnan().all()


@pytest.mark.parametrize(("solver", "options"), OUT_OF_TIME[:2], ids=["clarabel", "scs"])
def test_out_of_time_on_a_cone(solver, options, rng):
    """A norm and an entropy: Newton's method alone may not get there."""
    z, x = cp.Variable(5), cp.Parameter(5)
    objective = cp.Minimize(cp.norm(z - x) - cp.sum(cp.entr(z)))
    data = normal(rng, 3, 5)
    right = OptLayer.from_problem(cp.Problem(objective))(data)
    y = OptLayer.from_problem(cp.Problem(objective), solver=solver, on_failure="nan", **options)(data)
    for row, truth in zip(y, right, strict=True):
        assert row.isnan().all() or (row - truth).abs().max() < 1e-7


# ------------------------------ infeasible by next to nothing


def crossed_box(gap, **options):
    """Bounds that cross by the gap in one coordinate of sample 1."""
    c, x, lo, hi = good(torch.Generator().manual_seed(3), 3)
    hi[1, 0] = lo[1, 0] - gap
    return build_fragile(**options), (c, x, lo, hi)


def contrary_equations(gap, **options):
    L, q, G, h, A, b = plant_qp(torch.Generator().manual_seed(4), batch=(3,)).parameters
    A[1, 1], b[1, 1] = A[1, 0], b[1, 0] + gap
    return build_qp(**options), (L, q, G, h, A, b)


def missed_ball(gap, method, **options):
    """A plane that passes the unit ball at a distance of the gap."""
    z, p, d = cp.Variable(3), cp.Parameter(3), cp.Parameter(name="d")
    ball = cp.sum_squares(z) <= 1 if method == "smooth" else cp.norm(z) <= 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - p)), [ball, z[0] == d])
    distance = torch.tensor([0.5, 1 + gap, -0.5], dtype=torch.float64)
    return OptLayer.from_problem(problem, [p, d], method=method, **options), (one(3, 3), distance)


BARELY = {
    "box": crossed_box,
    "equations": contrary_equations,
    "ball": functools.partial(missed_ball, method="smooth"),
    "norm": functools.partial(missed_ball, method="cone"),
}


@pytest.mark.parametrize("gap", [1e-9, 1e-5])
@pytest.mark.parametrize("build", BARELY.values(), ids=BARELY.keys())
def test_infeasible_by_next_to_nothing(build, gap):
    """It is said, or there is an answer that passes the certificate; never a NaN that was not announced."""
    layer, data = build(gap)
    try:
        solution = layer.solve(*data)
    except InfeasibleError as error:
        assert error.indices == (1,)  # noqa: PT017
    else:
        assert solution.residuals.worst.max() <= 1e-8
        assert all(output.isfinite().all() for output in outputs_of(solution))
    layer, _ = build(gap, on_failure="nan")
    kept = layer.solve(*data)
    assert kept.status[[0, 2]].tolist() == [Status.SOLVED] * 2
    failed = kept.status != Status.SOLVED
    assert torch.equal(kept.primal[0].isnan().any(-1), failed)


@pytest.mark.parametrize("big", [1e308, -1e308])
@pytest.mark.parametrize("constrained", [False, True])
def test_numbers_that_overflow_are_one_sample_s_trouble(constrained, big):
    """2q, or q times what a proof multiplies it with, is no number any more."""
    z, q = cp.Variable(3), cp.Parameter(3, name="q")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - q)), [z <= -q] * constrained)
    data = torch.ones(3, 3, dtype=torch.float64)
    data[1, 0] = big
    layer = OptLayer.from_problem(problem, [q], [z], on_failure="nan")
    solution = layer.solve(data)
    assert solution.status[[0, 2]].tolist() == [Status.SOLVED] * 2
    assert solution.primal[0][1].isnan().all() or solution.status[1] == Status.SOLVED
    with pytest.raises(SolveError, match="sample 1"):
        OptLayer.from_problem(problem, [q], [z])(data)


def test_bounds_that_cross_by_1e_5_are_proven_infeasible():
    layer, data = crossed_box(1e-5)
    with pytest.raises(InfeasibleError, match="violated by 5e-06 at best") as caught:
        layer(*data)
    assert caught.value.indices == (1,)


UNATTAINED = {
    "exp": lambda z, x: cp.sum(cp.exp(z)) + 0 * cp.sum(x),
    "separable": lambda z, x: cp.logistic(-x @ z),
    "inverse": lambda z, x: cp.sum(cp.inv_pos(z)) + 0 * cp.sum(x),
}


@pytest.mark.parametrize("objective", UNATTAINED.values(), ids=UNATTAINED.keys())
def test_an_infimum_that_is_not_attained(objective):
    layer = OptLayer([cp.Variable(2)], [cp.Parameter(2)], objective=objective)
    with pytest.raises(InaccurateError, match=r"attain|infimum") as caught:
        layer(one(3, 2))
    assert caught.value.indices == (0, 1, 2)
    assert tuple(caught.value.statuses) == (Status.INACCURATE,) * 3


def test_separable_logistic_regression(rng):
    layer = OptLayer(
        [cp.Variable(2, name="w")],
        [cp.Parameter((8, 2), name="X")],
        objective=lambda w, X: cp.sum(cp.logistic(-X @ w)),
    )
    X = normal(rng, 3, 8, 2)
    X[1, :, 0] = X[1, :, 0].abs() + 0.1  # this one is separated by (1, 0)
    X[0, :, :] = torch.cat([X[0, :4], -X[0, :4]])  # these two are not
    X[2, :, :] = torch.cat([X[2, :4], -2 * X[2, :4]])
    with pytest.raises(InaccurateError, match=all_of("1 of 3", "sample 1", "attain|infimum")) as caught:
        layer(X)
    assert caught.value.indices == (1,)
    close(layer(X[0]), torch.zeros(2, dtype=torch.float64))


def test_solver_that_is_not_installed_or_cannot():
    from optlayer import DeclarationError

    with pytest.raises(DeclarationError, match="NO_SUCH_SOLVER"):
        build_sparsemax(solver="NO_SUCH_SOLVER")
    with pytest.raises((DeclarationError, SolverFailedError), match="OSQP"):
        build_softmax(solver=cp.OSQP)(
            one(5)
        )  # entropies are no quadratics; nothing about the problem is wrong


def test_infeasible_rows_do_not_spoil_a_quadratic_programme(rng):
    data = [tensor.clone() for tensor in plant_qp(rng, batch=(5,)).parameters]
    expected = layer_of(QP)(*data)
    L, _, G, h, A, b = data
    A[2, 1], b[2, 1] = A[2, 0], b[2, 0] + 1
    L[4], G[4] = 0, 0
    h[4] = 1
    solution = build_qp(on_failure="nan").solve(*data)
    assert solution.status.tolist() == [
        Status.SOLVED,
        Status.SOLVED,
        Status.INFEASIBLE,
        Status.SOLVED,
        Status.UNBOUNDED,
    ]
    assert torch.equal(solution.primal[0][[0, 1, 3]], expected[[0, 1, 3]])
    with pytest.raises(SolveError, match=all_of("2 of 5", "sample 2 is infeasible", "unbounded")):
        layer_of(QP)(*data)


def test_errors_form_one_family():
    from optlayer import DeclarationError

    for error in (InfeasibleError, UnboundedError, InaccurateError, SolverFailedError):
        assert issubclass(error, SolveError)
        assert issubclass(error, RuntimeError)
    for error in (SolveError, DeclarationError, InputError):
        assert issubclass(error, OptLayerError)
    assert issubclass(DeclarationError, ValueError)
    assert issubclass(InputError, ValueError)
    assert not issubclass(DeclarationError, SolveError)
    assert not issubclass(InputError, SolveError)


def test_statuses_are_sentences():
    assert {"SOLVED", "INFEASIBLE", "UNBOUNDED", "INACCURATE", "FAILED", "INVALID"} == set(Status.__members__)
    sentences = [status.sentence for status in Status]
    assert all(isinstance(sentence, str) and " " in sentence for sentence in sentences)
    assert len(set(sentences)) == len(sentences)


def test_errors_survive_pickling(rng):
    """Data loaders and worker processes hand exceptions over by pickle."""
    import pickle

    with pytest.raises(InfeasibleError) as caught:
        build_fragile()(*spoil(good(rng, 4), 2, "infeasible"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is InfeasibleError
    assert str(again) == str(caught.value)
    assert again.indices == (2,)


def test_one_bad_row_of_a_softmax(rng):
    x = normal(rng, 4, 5)
    x[1, 2] = float("nan")
    y = build_softmax(on_failure="nan")(x)
    assert y[1].isnan().all()
    close(y[[0, 2, 3]], x[[0, 2, 3]].softmax(-1))
    with pytest.raises(InputError, match=all_of(r"\bx\b", r"\b1\b")) as caught:
        layer_of(SOFTMAX)(x)
    assert caught.value.indices == (1,)


@pytest.mark.parametrize("problem", [SMALL_QP, PLANE], ids=repr)
def test_indices_are_python_integers(problem, rng):
    data = [tensor.clone() for tensor in problem.parameters(rng, 3)]
    data[0][1] = float("nan")
    with pytest.raises(InputError) as caught:
        layer_of(problem)(*data)
    assert caught.value.indices == (1,)
    assert type(caught.value.indices[0]) is int
