"""Attributes and bounds of leaves, both ways: as an attribute, and as the constraint it stands for.

cvxpy turns some constraints into bounds of variables, and some attributes into constraints or changes of
variables; none may be lost on the way, neither in the argmin nor in its gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import DeclarationError, InputError, OptLayer

from .cone_problems import as_duals, cvxpy_solve, draw_symmetric, duals_of, primal_of
from .problems import F64, all_of, close, normal

pytestmark = pytest.mark.usefixtures("one_thread")

LOWER, UPPER = np.array([-0.4, -0.1, 0.2]), np.array([0.3, 0.5, 0.6])
BOUNDS = np.linspace(-0.6, 0.2, 9).reshape(3, 3)
PATTERN = [(0, 0, 1, 2), (0, 2, 1, 0)]


def zeros_outside(V, pattern):
    """V is 0 where the pattern has no entry."""
    outside = [ij for ij in itertools.product(range(3), range(3)) if ij not in zip(*pattern, strict=True)]
    return cp.hstack([V[i, j] for i, j in outside]) == 0


def upper(V):
    """Each entry of a symmetric matrix once, so that no constraint is said twice."""
    return cp.hstack([cp.diag(V), cp.vec(cp.upper_tri(V), order="F")])


def symmetric(V):
    return cp.hstack([V[0, 1] - V[1, 0], V[0, 2] - V[2, 0], V[1, 2] - V[2, 1]]) == 0


DIAGONAL = [(0, 1, 2), (0, 1, 2)]


@dataclass(frozen=True)
class Attribute:
    name: str
    attributes: dict
    explicit: Callable  # variable -> constraints
    shape: tuple = (3,)
    base: tuple = ()  # attributes that the explicit twin keeps

    def __repr__(self):
        return self.name


MATRIX = (3, 3)
ATTRIBUTES = [
    Attribute("nonneg", {"nonneg": True}, lambda v: [v >= 0]),
    Attribute("nonpos", {"nonpos": True}, lambda v: [v <= 0]),
    Attribute("pos", {"pos": True}, lambda v: [v >= 0]),
    Attribute("neg", {"neg": True}, lambda v: [v <= 0]),
    Attribute("bounds", {"bounds": [-0.5, 0.25]}, lambda v: [v >= -0.5, v <= 0.25]),
    Attribute("bound_arrays", {"bounds": [LOWER, UPPER]}, lambda v: [v >= LOWER, v <= UPPER]),
    Attribute("lower_bound", {"bounds": [LOWER, None]}, lambda v: [v >= LOWER]),
    Attribute("upper_bound", {"bounds": [None, 0.1]}, lambda v: [v <= 0.1]),
    Attribute(
        "infinite_bounds",
        {"bounds": [np.array([-np.inf, -0.1, -np.inf]), np.array([0.1, np.inf, np.inf])]},
        lambda v: [v[1] >= -0.1, v[0] <= 0.1],
    ),
    Attribute(
        "matrix_bounds",
        {"bounds": [BOUNDS, BOUNDS + 0.7]},
        lambda v: [v >= BOUNDS, v <= BOUNDS + 0.7],
        MATRIX,
    ),
    Attribute("matrix_nonneg", {"nonneg": True}, lambda v: [v >= 0], MATRIX),
    Attribute("scalar_nonneg", {"nonneg": True}, lambda v: [v >= 0], ()),
    Attribute("symmetric", {"symmetric": True}, lambda v: [symmetric(v)], MATRIX),
    Attribute("PSD", {"PSD": True}, lambda v: [v >> 0], MATRIX, ("symmetric",)),
    Attribute("NSD", {"NSD": True}, lambda v: [v << 0], MATRIX, ("symmetric",)),
    Attribute("diag", {"diag": True}, lambda v: [zeros_outside(v, DIAGONAL)], MATRIX),
    Attribute("sparsity", {"sparsity": PATTERN}, lambda v: [zeros_outside(v, PATTERN)], MATRIX),
    Attribute("nonneg_bounds", {"nonneg": True, "bounds": [None, 0.2]}, lambda v: [v >= 0, v <= 0.2]),
    Attribute(
        "symmetric_nonneg",
        {"symmetric": True, "nonneg": True},
        lambda v: [upper(v) >= 0],
        MATRIX,
        ("symmetric",),
    ),
    Attribute(
        "PSD_nonneg",
        {"PSD": True, "nonneg": True},
        lambda v: [v >> 0, cp.upper_tri(v) >= 0],
        MATRIX,
        ("symmetric",),
    ),
    Attribute(
        "PSD_bounds",
        {"PSD": True, "bounds": [-0.4, 0.5]},
        lambda v: [v >> 0, upper(v) >= -0.4, upper(v) <= 0.5],
        MATRIX,
        ("symmetric",),
    ),
    Attribute("diag_nonneg", {"diag": True, "nonneg": True}, lambda v: [cp.diag(v) >= 0], MATRIX, ("diag",)),
]


def declare(case, explicit, norm=False):
    """min |V - X|² + w'V (+ |V - X|)  s.t.  sum(V) <= s."""
    kept = dict.fromkeys(case.base, True) if explicit else case.attributes
    V, X = cp.Variable(case.shape, name="V", **kept), cp.Parameter(case.shape, name="X")
    s = cp.Parameter(name="s")
    weight = np.linspace(-0.2, 0.3, max(int(np.prod(case.shape)), 1)).reshape(case.shape)
    objective = cp.sum_squares(V - X) + cp.sum(cp.multiply(weight, V))
    if norm:
        objective = objective + cp.norm(cp.vec(V - X, order="F"))
    total = cp.sum(V) <= s
    constraints = [total, *(case.explicit(V) if explicit else [])]
    return cp.Problem(cp.Minimize(objective), constraints), [X, s], [V], total


def sample(case, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return normal(rng, *case.shape), torch.tensor(0.3 if seed % 2 else 4.0, dtype=F64)


@pytest.mark.parametrize("case", ATTRIBUTES, ids=repr)
def test_cvxpy_says_the_same_of_both(case):
    """The comparison itself: the attribute binds, and its twin has the same argmin."""
    for seed in range(2):
        answers = []
        for explicit in (False, True):
            problem, parameters, (V,), _ = declare(case, explicit)
            cvxpy_solve(problem, parameters, sample(case, seed))
            answers.append(primal_of(V))
        close(*answers, 1e-5)
    if case.shape:
        free, parameters, (V,), _ = declare(Attribute("none", {}, lambda v: [], case.shape), True)
        cvxpy_solve(free, parameters, sample(case, 1))
        assert (primal_of(V) - answers[0]).abs().max() > 1e-2


def everything(layer, total):
    def function(X, s):
        solution = layer.solve(X, s)
        return (*solution.primal, solution.dual(total), solution.value)

    return function


@pytest.mark.parametrize("method", ["cone", "auto"])
@pytest.mark.parametrize("case", ATTRIBUTES, ids=repr)
def test_attribute_equals_constraint(case, method):
    results = []
    for explicit in (False, True):
        problem, parameters, variables, total = declare(case, explicit)
        layer = OptLayer.from_problem(problem, parameters, variables, method=method)
        function = everything(layer, total)
        results.append([])
        for seed in (0, 1) if method == "cone" else (1,):
            data = sample(case, seed)
            results[-1] += [*function(*data), *itertools.chain(*torch.func.jacrev(function, (0, 1))(*data))]
    for attribute, constraint in zip(*results, strict=True):
        close(attribute, constraint)


@pytest.mark.parametrize("case", ATTRIBUTES, ids=repr)
def test_attribute_on_the_cone_route_equals_cvxpy(case):
    problem, parameters, variables, total = declare(case, explicit=False)
    layer = OptLayer.from_problem(problem, parameters, variables, method="cone")
    for seed in range(2):
        data = sample(case, seed)
        solution = layer.solve(*data)
        value = cvxpy_solve(problem, parameters, data)
        close(solution.primal[0], primal_of(variables[0]), 1e-5)
        close(solution.dual(total), duals_of(total)[0], 1e-5)
        close(solution.value, value, 1e-6)


@pytest.mark.parametrize("case", ATTRIBUTES, ids=repr)
def test_attribute_with_an_objective_that_is_not_smooth(case):
    """auto takes the cone route."""
    results = []
    for explicit in (False, True):
        problem, parameters, variables, total = declare(case, explicit, norm=True)
        layer = OptLayer.from_problem(problem, parameters, variables)
        assert "route: cone" in repr(layer)
        data = sample(case, 1)
        function = everything(layer, total)
        results.append([*function(*data), *itertools.chain(*torch.func.jacrev(function, (0, 1))(*data))])
    cvxpy_solve(problem, parameters, data)
    close(results[0][0], primal_of(variables[0]), 1e-4)
    for attribute, constraint in zip(*results, strict=True):
        close(attribute, constraint)


CLAMPED = {
    "nonneg": ({"nonneg": True}, lambda x: x.relu()),
    "nonpos": ({"nonpos": True}, lambda x: -(-x).relu()),
    "pos": ({"pos": True}, lambda x: x.relu()),
    "neg": ({"neg": True}, lambda x: -(-x).relu()),
    "bounds": ({"bounds": [-0.5, 0.25]}, lambda x: x.clamp(-0.5, 0.25)),
    "bound_arrays": ({"bounds": [LOWER, UPPER]}, lambda x: x.clamp(*map(torch.tensor, (LOWER, UPPER)))),
}


@pytest.mark.parametrize("method", ["cone", "auto"])
@pytest.mark.parametrize("name", CLAMPED)
def test_clamps(name, method, rng):
    attributes, truth = CLAMPED[name]
    z, x = cp.Variable(3, **attributes), cp.Parameter(3)
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(z - x))), method=method)
    data = normal(rng, 4, 3)
    close(layer(data), truth(data))
    close(torch.func.vmap(torch.func.jacrev(layer))(data), torch.func.vmap(torch.func.jacrev(truth))(data))


@pytest.mark.parametrize("method", ["cone", "auto"])
@pytest.mark.parametrize("how", ["attribute", "constraints", "mixed"])
def test_a_linear_objective_over_a_box(how, method, rng):
    """A bound that gets lost leaves the problem unbounded."""
    bounds = {"attribute": [LOWER, UPPER], "constraints": None, "mixed": [LOWER, None]}[how]
    z, c = cp.Variable(3, bounds=bounds), cp.Parameter(3)
    constraints = {
        "attribute": [],
        "constraints": [z >= LOWER, z <= UPPER],
        "mixed": [z[:2] <= UPPER[:2], z[2] <= UPPER[2]],
    }[how]
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(c @ z), constraints), method=method)
    data = normal(rng, 4, 3)
    close(layer(data), torch.where(data > 0, torch.tensor(LOWER), torch.tensor(UPPER)))
    value = layer.solve(data.requires_grad_()).value
    close(torch.autograd.grad(value.sum(), data)[0], layer(data).detach())  # the envelope


@pytest.mark.parametrize("method", ["cone", "auto"])
def test_bounds_that_are_parameters(method, rng):
    lower, upper = cp.Parameter(3, name="lower"), cp.Parameter(name="upper")
    z, x = cp.Variable(3, bounds=[lower, upper], name="z"), cp.Parameter(3, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x)))
    layer = OptLayer.from_problem(problem, [x, lower, upper], method=method)
    data = (normal(rng, 3), torch.tensor(LOWER) - 0.3, torch.tensor(0.25, dtype=F64))

    def truth(x, lower, upper):
        return torch.minimum(torch.maximum(x, lower), upper)

    close(layer(*data), truth(*data))
    for mine, right in zip(
        torch.func.jacrev(layer, (0, 1, 2))(*data), torch.func.jacrev(truth, (0, 1, 2))(*data), strict=True
    ):
        close(mine, right)


@pytest.mark.parametrize("method", ["cone", "auto"])
def test_duals_of_bounds_written_as_constraints(method, rng):
    """cvxpy may move each of these onto the variable; their multipliers are still asked for."""
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    constraints = [z >= LOWER, z <= UPPER, z[0] >= -10, -z <= 10, z[1:] <= 7]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) + cp.norm(z)), constraints)
    layer = OptLayer.from_problem(problem, method="cone")
    for _ in range(3):
        data = (normal(rng, 3),)
        solution = layer.solve(*data)
        cvxpy_solve(problem, problem.parameters(), data)
        for index, constraint in enumerate(constraints):
            close(solution.dual(constraint), duals_of(constraint)[0], 1e-5, str(constraint))
            close(solution.inequality_duals[index], solution.dual(constraint), 1e-12)


def test_symmetric_answers_are_symmetric(rng):
    for attribute in ("symmetric", "PSD", "NSD", "diag"):
        case = Attribute(attribute, {attribute: True}, None, MATRIX)
        problem, parameters, variables, _ = declare(case, explicit=False)
        layer = OptLayer.from_problem(problem, parameters, variables, method="cone")
        V = layer(normal(rng, 3, 3, 3), torch.tensor(0.5, dtype=F64))
        close(V, V.mT, 1e-14)
        if attribute == "diag":
            assert V[:, ~np.eye(3, dtype=bool)].abs().max() == 0


def test_several_attributed_variables_in_one_problem(rng):
    """Blocks are told apart, and each is found again."""
    X = cp.Variable((2, 2), PSD=True, name="X")
    D = cp.Variable((2, 2), diag=True, name="D")
    u = cp.Variable(2, nonneg=True, name="u")
    w = cp.Variable((2, 3), bounds=[-0.3, 0.4], name="w")
    A, B = cp.Parameter((2, 2), name="A"), cp.Parameter((2, 3), name="B")
    objective = (
        cp.sum_squares(X - A) + cp.sum_squares(D + A) + cp.sum_squares(w - B) + cp.sum_squares(u - A[0])
    )
    constraints = [cp.sum(X) + cp.trace(D) + cp.sum(u) == 1, cp.norm(w[0]) <= 0.6]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    layer = OptLayer.from_problem(problem, [A, B], [w, u, D, X], method="cone")
    data = (normal(rng, 2, 2), normal(rng, 2, 3))
    solution = layer.solve(*data)
    value = cvxpy_solve(problem, [A, B], data)
    for mine, leaf in zip(solution.primal, [w, u, D, X], strict=True):
        close(mine, primal_of(leaf), 1e-5, leaf.name())
    for constraint in constraints:
        close(as_duals(solution.dual(constraint)), duals_of(constraint), 1e-5)
    close(solution.value, value, 1e-6)
    free = tuple(tensor.requires_grad_() for tensor in data)
    assert torch.autograd.gradcheck(layer, free, check_forward_ad=True)


# ------------------------------ attributes of parameters


@pytest.mark.parametrize("method", ["cone", "auto"])
@pytest.mark.parametrize("attribute", ["symmetric", "PSD", "NSD"])
def test_gradient_of_a_symmetric_parameter(attribute, method, rng):
    """It is symmetric: half of what a plain parameter's two entries get goes to each."""
    layers = []
    for attributes in ({attribute: True}, {}):
        z, S = cp.Variable(3, name="z"), cp.Parameter((3, 3), name="S", **attributes)
        objective = cp.sum_squares(S @ z - np.arange(3)) + cp.sum_squares(z)
        problem = cp.Problem(cp.Minimize(objective), [cp.trace(S) * z[0] <= S[0, 1]])
        layers.append(OptLayer.from_problem(problem, method=method))
    half = normal(rng, 3, 3)
    S = half @ half.T + torch.eye(3, dtype=F64)
    S = {"symmetric": draw_symmetric(rng, k=3), "PSD": S, "NSD": -S}[attribute]
    ours, plain = (torch.func.jacrev(layer)(S) for layer in layers)
    close(layers[0](S), layers[1](S))
    close(ours, (plain + plain.mT) / 2)


@pytest.mark.parametrize("method", ["cone", "auto"])
@pytest.mark.parametrize(
    ("attributes", "pattern"),
    [({"diag": True}, DIAGONAL), ({"sparsity": PATTERN}, PATTERN)],
    ids=["diag", "sparsity"],
)
def test_parameters_with_few_entries(attributes, pattern, method, rng):
    """Entries count where they may be; the rest is 0."""
    z, D = cp.Variable(3, name="z"), cp.Parameter((3, 3), name="D", **attributes)
    layer = OptLayer.from_problem(
        cp.Problem(cp.Minimize(cp.sum_squares(z - D @ np.array([1.0, 2.0, 3.0])))), method=method
    )
    data = torch.zeros(3, 3, dtype=F64)
    data[tuple(pattern)] = normal(rng, len(pattern[0]))
    vector = torch.tensor([1.0, 2, 3], dtype=F64)
    close(layer(data), data @ vector)
    jacobian = torch.func.jacrev(layer)(data)
    expected = torch.func.jacrev(lambda D: D @ vector)(data)
    close(jacobian[:, *pattern], expected[:, *pattern])


@pytest.mark.parametrize(
    ("attributes", "bad"),
    [
        ({"nonneg": True}, [1.0, -0.5]),
        ({"nonpos": True}, [-1.0, 0.5]),
        ({"pos": True}, [1.0, -1.0]),
        ({"bounds": [0, 1]}, [0.5, 1.5]),
    ],
    ids=["nonneg", "nonpos", "pos", "bounds"],
)
def test_values_that_a_parameter_does_not_admit(attributes, bad):
    z, price = cp.Variable(2), cp.Parameter(2, name="price", **attributes)
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(z - price) + cp.norm1(z))))
    good = torch.tensor([[0.5, 0.5], [0.25, 1.0]], dtype=F64)
    good = -good if "nonpos" in attributes else good
    layer(good)
    data = torch.stack([good[0], torch.tensor(bad, dtype=F64)])
    with pytest.raises(InputError, match=all_of("price", next(iter(attributes)))) as caught:
        layer(data)
    assert caught.value.indices == (1,)


# ------------------------------ complex leaves: right, or refused by name


@pytest.mark.parametrize("attribute", ["complex", "hermitian", "imag"])
def test_complex_variables(attribute):
    V = cp.Variable((2, 2), name="wave", **{attribute: True})
    x = cp.Parameter(name="x")
    problem = cp.Problem(
        cp.Minimize(cp.norm(V - np.array([[1, 1j], [-1j, 2]]), "fro")), [cp.real(V[0, 0]) <= x]
    )
    try:
        layer = OptLayer.from_problem(problem)
    except DeclarationError as error:
        assert "wave" in str(error)  # noqa: PT017
        assert attribute in str(error)  # noqa: PT017
    else:
        cvxpy_solve(problem, [x], [0.5])
        close(layer(torch.tensor(0.5, dtype=F64)), torch.as_tensor(V.value), 1e-5)
