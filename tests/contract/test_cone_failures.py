"""The cone route without an answer: named with its constraint, verified, and no harm to other samples."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import (
    InaccurateError,
    InfeasibleError,
    InputError,
    OptLayer,
    OptLayerError,
    SolveError,
    Status,
    UnboundedError,
)

from .cone_problems import assign, cvxpy_solve, plant_mixed
from .problems import F64, all_of, close, leaves

pytestmark = pytest.mark.usefixtures("one_thread")


def scalar(value):
    return torch.tensor(value, dtype=F64)


# ------------------------------ one problem of each cone
#
# Each set is empty for t < 0, and unbounded in the direction that c = -1 rewards; c = 1 has a unique minimum.


def linear():
    z, t, c = cp.Variable(2, name="stock"), cp.Parameter(name="t"), cp.Parameter(name="c")
    return c * z[0] + z[1], [z >= 0, z[1] + 1 <= t + 1], z, t, c


def second_order():
    z, t, c = cp.Variable(3, name="stock"), cp.Parameter(name="t"), cp.Parameter(name="c")
    return c * z[0] + z[1] / 2, [cp.SOC(z[0], z[1:] - 1), cp.norm(z[1:]) <= t], z, t, c


def semidefinite():
    X = cp.Variable((2, 2), symmetric=True, name="stock")
    t, c = cp.Parameter(name="t"), cp.Parameter(name="c")
    return c * X[0, 0] + X[0, 1] + X[1, 1], [X >> 0, X[1, 1] == t, X[0, 0] >= 0.1], X, t, c


def exponential():
    z, t, c = cp.Variable(3, name="stock"), cp.Parameter(name="t"), cp.Parameter(name="c")
    constraints = [cp.ExpCone(z[0], z[1], z[2]), z[1] == 1, z[1] <= t + 1]
    return c * z[2] - z[0], constraints, z, t, c


def power():
    z, t, c = cp.Variable(3, name="stock"), cp.Parameter(name="t"), cp.Parameter(name="c")
    return c * (z[0] + z[1]) - z[2], [cp.PowCone3D(z[0], z[1], z[2], 0.3), z[2] >= 0.5, z[2] <= t], z, t, c


CONES = {
    "linear": linear,
    "second_order": second_order,
    "semidefinite": semidefinite,
    "exponential": exponential,
    "power": power,
}


def build(name, **options):
    objective, constraints, z, t, c = CONES[name]()
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return problem, [t, c], OptLayer.from_problem(problem, [t, c], [z], method="cone", **options)


GOOD, EMPTY, ENDLESS = (1.5, 1.0), (-0.5, 1.0), (1.5, -1.0)


@pytest.mark.parametrize("name", CONES)
def test_cvxpy_says_so_too(name):
    objective, constraints, _, t, c = CONES[name]()
    problem = cp.Problem(cp.Minimize(objective), constraints)
    for (limit, tilt), status in ((GOOD, "optimal"), (EMPTY, "infeasible"), (ENDLESS, "unbounded")):
        assign([t, c], (scalar(limit), scalar(tilt)))
        problem.solve(cp.CLARABEL)
        assert problem.status == status


@pytest.mark.parametrize("name", CONES)
def test_infeasible(name):
    *_, layer = build(name)
    layer(*map(scalar, GOOD))
    with pytest.raises(InfeasibleError, match="infeasible") as caught:
        layer(*map(scalar, EMPTY))
    assert caught.value.indices == ()
    with pytest.raises(InfeasibleError, match=all_of("1 of 3", "sample 1", "infeasible")) as caught:
        layer(torch.tensor([GOOD[0], EMPTY[0], 2.0], dtype=F64), scalar(1.0))
    assert caught.value.indices == (1,)
    assert tuple(caught.value.statuses) == (Status.INFEASIBLE,)


@pytest.mark.parametrize("name", CONES)
def test_unbounded(name):
    *_, layer = build(name)
    with pytest.raises(UnboundedError, match="unbounded") as caught:
        layer(*map(scalar, ENDLESS))
    assert caught.value.indices == ()
    with pytest.raises(UnboundedError, match=all_of("2 of 3", "unbounded")) as caught:
        layer(scalar(1.5), torch.tensor([-1.0, 1.0, -1.0], dtype=F64))
    assert caught.value.indices == (0, 2)
    assert tuple(caught.value.statuses) == (Status.UNBOUNDED,) * 2


@pytest.mark.parametrize("name", CONES)
def test_bad_samples_cost_the_others_nothing(name):
    """An infeasible and an unbounded row between good ones: NaN rows, no gradient; the others untouched."""
    *_, layer = build(name, on_failure="nan")
    t = torch.tensor([1.5, -0.5, 1.2, 1.5], dtype=F64, requires_grad=True)
    c = torch.tensor([1.0, 1.0, 1.1, -1.0], dtype=F64, requires_grad=True)
    solution = layer.solve(t, c)
    assert solution.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.SOLVED, Status.UNBOUNDED]
    (answer,) = solution.primal
    assert answer[[1, 3]].isnan().all()
    assert not answer[[0, 2]].isnan().any()
    assert solution.value.isnan().tolist() == [False, True, False, True]
    gradients = torch.autograd.grad(answer[[0, 2]].sum() + 0 * answer.nan_to_num().sum(), (t, c))
    for row in (0, 2):
        free = leaves((t[row], c[row]))
        alone = layer(*free)
        close(answer[row], alone, 1e-10)
        expected = torch.autograd.grad(alone.sum(), free)
        for gradient, right in zip(gradients, expected, strict=True):
            close(gradient[row], right)
    for gradient in gradients:
        assert (gradient[[1, 3]] == 0).all()


def test_a_callable_for_failures():
    seen = []
    *_, layer = build("second_order", on_failure=lambda error, solution: seen.append((error, solution)))
    answer = layer(torch.tensor([1.5, -0.5], dtype=F64), scalar(1.0))
    ((error, solution),) = seen
    assert isinstance(error, InfeasibleError)
    assert error.indices == (1,)
    assert solution.status.tolist() == [Status.SOLVED, Status.INFEASIBLE]
    assert not answer[0].isnan().any()


# ------------------------------ the constraint is named


def bounded_stock(kind):
    stock, demand = cp.Variable(3, name="stock"), cp.Parameter(3, name="demand")
    cap = {
        "inequality": lambda: stock <= 2,
        "norm": lambda: cp.norm(stock) <= 2,
        "soc": lambda: cp.SOC(cp.Constant(2.0), stock),
        "norm1": lambda: cp.norm1(stock) <= 2,
        "psd": lambda: np.eye(3) * 2 - cp.diag(stock) >> 0,
    }[kind]()
    return stock, demand, cap


KINDS = ["inequality", "norm", "soc", "norm1", "psd"]


@pytest.mark.parametrize("method", ["cone", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_violated_constraint_is_named(kind, method):
    """By its own text where it has no label."""
    stock, demand, cap = bounded_stock(kind)
    problem = cp.Problem(cp.Minimize(cp.sum(stock)), [stock >= demand, cap])
    layer = OptLayer.from_problem(problem, method=method)
    layer(torch.tensor([0.1, 0.2, 0.3], dtype=F64))
    with pytest.raises(InfeasibleError, match=all_of("infeasible", "stock")):
        layer(torch.tensor([0.1, 5.0, 0.3], dtype=F64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_violated_constraint_is_named_by_its_label(kind):
    stock, demand, cap = bounded_stock(kind)
    floor = stock >= demand
    floor.set_label("the floor")
    cap.set_label("the cap")
    problem = cp.Problem(cp.Minimize(cp.sum(stock)), [floor, cap])
    layer = OptLayer.from_problem(problem, method="cone")
    with pytest.raises(InfeasibleError, match=r"the (floor|cap)"):
        layer(torch.tensor([0.1, 5.0, 0.3], dtype=F64))


def test_a_contradiction_with_an_attribute():
    """A bound that lives on the variable can be the one that is violated."""
    stock, demand = cp.Variable(2, name="stock", bounds=[0, 1]), cp.Parameter(name="demand")
    problem = cp.Problem(cp.Minimize(cp.norm(stock)), [cp.sum(stock) == demand])
    layer = OptLayer.from_problem(problem)
    close(layer(scalar(1.0)), torch.full((2,), 0.5, dtype=F64))
    with pytest.raises(InfeasibleError, match="stock"):
        layer(scalar(3.0))


def test_a_semidefinite_attribute_that_cannot_hold():
    X, trace = cp.Variable((2, 2), PSD=True, name="X"), cp.Parameter(name="trace")
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(X)), [cp.trace(X) == trace]))
    close(layer(scalar(1.0)), torch.eye(2, dtype=F64) / 2)
    with pytest.raises(InfeasibleError, match="X"):
        layer(scalar(-1.0))


def test_maximize_without_a_maximum():
    z, x = cp.Variable(2, name="z"), cp.Parameter(2, name="x")
    layer = OptLayer.from_problem(cp.Problem(cp.Maximize(x @ z), [cp.norm1(z[0]) <= 1]), nonunique="ignore")
    close(layer.solve(torch.tensor([3.0, 0.0], dtype=F64)).value, scalar(3.0))
    with pytest.raises(UnboundedError, match="unbounded"):
        layer(torch.tensor([3.0, 1.0], dtype=F64))


# ------------------------------ neither, but no answer


def test_an_infimum_that_is_not_attained():
    """inf { x : x y >= 1 } in the form of a semidefinite constraint: 0, for no x."""
    x, y, p = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="p")
    problem = cp.Problem(cp.Minimize(p * x), [cp.bmat([[x, 1], [1, y]]) >> 0])
    layer = OptLayer.from_problem(problem)
    with pytest.raises(SolveError):
        layer(scalar(1.0))
    kept = OptLayer.from_problem(problem, on_failure="nan").solve(scalar(1.0))
    assert kept.status != Status.SOLVED
    assert all(primal.isnan().all() for primal in kept.primal)


def test_a_solver_stopped_early_never_returns_a_wrong_number():
    planted = plant_mixed(0)
    programme = planted.programme
    for solver, options in ((cp.CLARABEL, {"max_iter": 2}), (cp.SCS, {"max_iters": 2})):
        layer = OptLayer.from_problem(
            programme.problem, programme.parameters, method="cone", solver=solver, **options
        )
        try:
            answer = layer(*planted.data)
        except InaccurateError:
            continue
        except SolveError as error:
            assert not isinstance(error, InfeasibleError | UnboundedError)  # noqa: PT017
            continue
        close(answer, planted.primal[0])


@pytest.mark.parametrize("solver", [cp.CLARABEL, cp.SCS])
def test_solvers_of_cones(solver):
    """Whatever the solver's own tolerance, the answer is polished."""
    planted = plant_mixed(1)
    programme = planted.programme
    layer = OptLayer.from_problem(programme.problem, programme.parameters, method="cone", solver=solver)
    solution = layer.solve(*planted.data)
    close(solution.primal[0], planted.primal[0], 1e-10)
    assert solution.residuals.worst < 1e-11


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_data_are_not_called_infeasible(scale):
    """min |z - x| + |z|²/2 in units of 1e6 and 1e-6: feasible is feasible, and the answer relative."""
    z, x, r = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [cp.norm(z) <= r]))
    data = torch.tensor([[3.0, 0, 4], [0.3, 0.2, 0.1]], dtype=F64)
    truth = torch.stack([data[0] / 5, data[1]])
    close(layer(scale * data, scalar(scale)) / scale, truth)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_are_no_numbers(bad):
    _, _, layer = build("second_order")
    with pytest.raises(InputError, match=all_of(r"\bt\b", "(?i:nan|inf|finite)")) as caught:
        layer(torch.tensor([1.5, bad], dtype=F64), scalar(1.0))
    assert caught.value.indices == (1,)
    _, _, layer = build("second_order", on_failure="nan")
    solution = layer.solve(torch.tensor([1.5, bad], dtype=F64), scalar(1.0))
    assert solution.status.tolist() == [Status.SOLVED, Status.INVALID]
    assert solution.primal[0][1].isnan().all()


# ------------------------------ answers that are not unique


def test_an_answer_that_is_not_unique_is_flagged():
    """min |z|_1 over sum(z) = b: every split of b is as good."""
    z, b = cp.Variable(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.norm1(z)), [cp.sum(z) == b])
    layer = OptLayer.from_problem(problem, nonunique="ignore")
    solution = layer.solve(scalar(1.0))
    assert solution.flags.nonunique
    close(solution.value, scalar(1.0))
    close(solution.primal[0].sum(), scalar(1.0))
    with pytest.warns(Warning, match=r"(?i:unique)"):
        OptLayer.from_problem(problem)(scalar(1.0))
    with pytest.raises(OptLayerError, match=r"(?i:unique)"):
        OptLayer.from_problem(problem, nonunique="raise")(scalar(1.0))


def test_an_equation_given_twice():
    """The argmin and its derivative are unique, the multipliers are not."""
    z, x = cp.Variable(3), cp.Parameter(3)
    constraints = [cp.sum(z) == 1, 2 * cp.sum(z) == 2, cp.norm(z) <= 0.8]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x)), constraints)
    twice = OptLayer.from_problem(problem, nonunique="ignore")
    once = OptLayer.from_problem(cp.Problem(problem.objective, constraints[::2]))
    data = torch.tensor([2.0, -1.0, 0.4], dtype=F64)
    solution = twice.solve(data)
    close(solution.primal[0], once(data))
    assert solution.flags.degenerate
    assert not solution.flags.nonunique
    close(torch.func.jacrev(twice)(data), torch.func.jacrev(once)(data))


def test_a_kink_is_flagged():
    """A soft threshold exactly at its corner."""
    z, x = cp.Variable(2), cp.Parameter(2)
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(z - x) / 2 + cp.norm1(z))))
    solution = layer.solve(torch.tensor([[1.0, 3.0], [0.5, 3.0]], dtype=F64))
    assert solution.flags.kink.tolist() == [True, False]
    close(solution.primal[0], torch.tensor([[0.0, 2.0], [0.0, 2.0]], dtype=F64))


def test_the_same_from_a_call_and_from_cvxpy_after_a_failure():
    """A failure leaves nothing behind in the layer."""
    problem, parameters, layer = build("semidefinite")
    before = layer(*map(scalar, GOOD))
    for bad in (EMPTY, ENDLESS):
        with pytest.raises(SolveError):
            layer(*map(scalar, bad))
    assert torch.equal(layer(*map(scalar, GOOD)), before)
    value = cvxpy_solve(problem, parameters, tuple(map(scalar, GOOD)))
    close(layer.solve(*map(scalar, GOOD)).value, value, 1e-6)


# ------------------------------ eigenvalues and singular values of what is no number


SPECTRA = {
    "lambda_max": (lambda X: cp.lambda_max(X), True),
    "normNuc": (lambda X: cp.normNuc(X), False),
    "sigma_max": (lambda X: cp.sigma_max(X), False),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_a_matrix_without_a_solution_leaves_the_others_theirs(name):
    """LAPACK raises for a batch in which one matrix holds NaN."""
    atom, symmetric = SPECTRA[name]
    X, t = cp.Variable((3, 3), symmetric=symmetric), cp.Parameter(name="t")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - np.eye(3))), [atom(X) <= t, X[0, 0] >= 0.1])
    layer = OptLayer.from_problem(problem, [t], [X], on_failure="nan")
    solution = layer.solve(torch.tensor([0.5, -1.0, 0.7], dtype=F64))
    assert solution.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.SOLVED]


@pytest.mark.parametrize("name", SPECTRA)
def test_a_matrix_of_nan_is_refused_by_its_name(name):
    atom, symmetric = SPECTRA[name]
    z, M = cp.Variable(2), cp.Parameter((3, 3), symmetric=symmetric, name="M")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z)), [cp.sum(z) >= atom(M)])
    data = torch.eye(3, dtype=F64).repeat(3, 1, 1)
    data[1, 1, 1] = torch.nan
    layer = OptLayer.from_problem(problem, [M], [z])
    with pytest.raises(InputError, match=all_of("sample 1", "'M'", "1 NaN")):
        layer(data)


# ------------------------------ infeasible by next to nothing


def barely(name):
    """Constraints that miss each other where a exceeds the number that is returned, and the variable."""
    a = cp.Parameter(name="a")
    X, Y, z = cp.Variable((2, 2), symmetric=True), cp.Variable((3, 3), symmetric=True), cp.Variable(3)
    diagonal, M = np.ones(3) / np.sqrt(3), np.sqrt([[2.0, 3.0, 5.0], [7.0, 11.0, 13.0]])
    constraints, variable, limit = {
        "semidefinite": ([X >> 0, X[0, 0] == 1, X[1, 1] == 1, X[0, 1] == a], X, 1.0),
        "eigenvalue": ([cp.lambda_max(Y) <= 1, Y[0, 0] >= a], Y, 1.0),
        "exponential": ([cp.exp(z[0]) <= 3, z[0] >= a], z, np.log(3)),
        "logarithm": ([cp.log(z[0]) >= 0, z[0] <= 2 - a], z, 1.0),
        "power": ([cp.power(z[0], 1.5) <= 1, z[0] >= a], z, 1.0),
        "power cone": ([cp.PowCone3D(z[0], z[1], z[2], 0.3), z[:2] <= 1, z[2] >= a], z, 1.0),
        "balls": ([cp.norm(z - a * diagonal) <= 1, cp.norm(z + a * diagonal) <= 1], z, 1.0),
        "norm1": ([cp.norm1(z) <= 1, cp.sum(z) >= a], z, 1.0),
        "equations": ([M @ z == M.sum(1), M.sum(0) @ z == a, cp.norm(z) <= 10], z, M.sum()),
    }[name]
    size = cp.norm(variable - 1, "fro") if variable.ndim == 2 else cp.norm(variable - 1)
    problem = cp.Problem(cp.Minimize(size), constraints)
    return OptLayer.from_problem(problem, [a], [variable], method="cone", nonunique="ignore"), limit


BARELY = (
    *("semidefinite", "eigenvalue", "exponential", "logarithm", "power"),
    *("power cone", "balls", "norm1", "equations"),
)


@pytest.mark.parametrize("gap", [1e-5, 1e-9])
@pytest.mark.parametrize("name", BARELY)
def test_cones_that_miss_each_other_by_next_to_nothing_are_infeasible(name, gap):
    """By 1e-8 in exponential cones, of whose projection not every digit is right."""
    layer, limit = barely(name)
    gap = max(gap, 1e-8) if name in ("exponential", "logarithm") else gap
    with pytest.raises(InfeasibleError):
        layer(scalar(limit * (1 + gap)))


@pytest.mark.parametrize("name", BARELY)
@pytest.mark.parametrize("room", [0.0, 1e-9])
def test_cones_that_just_meet_are_not_called_infeasible(name, room):
    """They are solved, or refused as inaccurate."""
    layer, limit = barely(name)
    if name == "equations" and room:
        return  # these meet nowhere else
    try:
        layer(scalar(limit * (1 - room)))
    except SolveError as error:
        assert isinstance(error, InaccurateError), error  # noqa: PT017
        assert room
