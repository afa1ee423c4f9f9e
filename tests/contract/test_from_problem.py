"""OptLayer.from_problem: an unchanged cp.Problem becomes a layer; its duals are those of cvxpy."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import DeclarationError, InputError, OptLayer, Solution, Status

from .cone_problems import (
    as_duals,
    assign,
    cvxpy_solve,
    draw_symmetric,
    duals_of,
    plant_mixed,
    primal_of,
)
from .problems import F64, all_of, as_tuple, close, leaves, normal, plant_qp, sparsemax, uniform

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = pytest.mark.parametrize("method", ["cone", "smooth"])


def scalar(value):
    return torch.tensor(value, dtype=F64)


def matches_cvxpy(problem, parameters, data, tolerance=2e-6, gp=False, **options):
    """Primal, value and every dual, in shape and number; and duals again through `variables`."""
    variables = problem.variables()
    layer = OptLayer.from_problem(problem, parameters, variables, gp=gp, **options)
    solution = layer.solve(*data)
    value = cvxpy_solve(problem, parameters, data, gp=gp)
    for mine, variable in zip(solution.primal, variables, strict=True):
        assert mine.shape == variable.shape
        close(mine, primal_of(variable), tolerance, variable.name())
    close(solution.value, value, tolerance, "value")
    flat = []
    for constraint in problem.constraints:
        duals, expected = as_duals(solution.dual(constraint)), duals_of(constraint)
        for index, (dual, right) in enumerate(zip(duals, expected, strict=True)):
            assert dual.shape == right.shape
            close(dual, right, tolerance, f"dual {index} of {constraint}")
        flat += duals
    dual_variables = [dual for constraint in problem.constraints for dual in constraint.dual_variables]
    only_duals = OptLayer.from_problem(problem, parameters, dual_variables, gp=gp, **options)
    for mine, same in zip(as_tuple(only_duals(*data)), flat, strict=True):
        close(mine, same, 1e-9)
    return layer, solution


def gradcheck(layer, constraints, data):
    def outputs(*data):
        solution = layer.solve(*data)
        duals = itertools.chain(*(as_duals(solution.dual(constraint)) for constraint in constraints))
        return (*solution.primal, *duals, solution.value)

    return torch.autograd.gradcheck(outputs, leaves(data), check_forward_ad=True)


# ------------------------------ a small problem to ask questions of


def simplex(n=4):
    """Projection onto the simplex, with a price: min |z - x|² + c sum(z[:2])."""
    z = cp.Variable(n, name="z")
    x, c = cp.Parameter(n, name="x"), cp.Parameter(name="c")
    constraints = [cp.sum(z) == 1, z >= 0]
    return cp.Problem(cp.Minimize(cp.sum_squares(z - x) + c * cp.sum(z[:2])), constraints), z, x, c


def simplex_truth(x, c):
    return sparsemax(x - torch.cat([c.expand(2), torch.zeros(2, dtype=F64)]) / 2)


POINT = (torch.tensor([0.9, 0.1, 0.5, -0.3], dtype=F64), scalar(0.4))


# ------------------------------ arguments and outputs


@BOTH
def test_given_order_of_parameters_and_variables(method, rng):
    problem, z, x, c = simplex()
    for parameters, data in (([x, c], POINT), ([c, x], POINT[::-1])):
        layer = OptLayer.from_problem(problem, parameters, [z], method=method)
        close(layer(*data), simplex_truth(*POINT))
        assert [id(leaf) for leaf in layer.inputs] == [id(leaf) for leaf in parameters]


@BOTH
def test_order_of_the_problem_by_default(method):
    problem, *_ = simplex()
    layer = OptLayer.from_problem(problem, method=method)
    data = [POINT[0] if parameter.name() == "x" else POINT[1] for parameter in problem.parameters()]
    answer = layer(*data)
    assert isinstance(answer, torch.Tensor)
    close(answer, simplex_truth(*POINT))

    u, w, p = cp.Variable(2, name="u"), cp.Variable(3, name="w"), cp.Parameter(name="p")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(w - p) + cp.sum_squares(u + p)))
    answers = OptLayer.from_problem(problem, method=method)(scalar(2.0))
    assert isinstance(answers, tuple)
    for variable, answer in zip(problem.variables(), answers, strict=True):
        close(answer, torch.full(variable.shape, 2.0 if variable.name() == "w" else -2.0, dtype=F64))


@BOTH
def test_parameters_by_name(method):
    problem, z, x, c = simplex()
    layer = OptLayer.from_problem(problem, [x, c], [z], method=method)
    close(layer(c=POINT[1], x=POINT[0]), simplex_truth(*POINT))
    close(layer(POINT[0], c=POINT[1]), simplex_truth(*POINT))


@BOTH
def test_several_variables_and_subsets(method, rng):
    a, b, p = cp.Variable(3, name="a"), cp.Variable((2, 2), name="b"), cp.Parameter(3, name="p")
    objective = cp.sum_squares(a - p) + cp.sum_squares(b - cp.reshape(cp.hstack([p, 0]), (2, 2), order="C"))
    problem = cp.Problem(cp.Minimize(objective), [a >= 0])
    data = normal(rng, 3)
    first, second = data.relu(), torch.cat([data, torch.zeros(1, dtype=F64)]).reshape(2, 2)
    both = OptLayer.from_problem(problem, variables=[b, a], method=method)(data)
    assert isinstance(both, tuple)
    close(both, (second, first))
    close(OptLayer.from_problem(problem, variables=[a], method=method)(data), first)
    close(OptLayer.from_problem(problem, variables=[b], method=method)(data), second)
    close(OptLayer.from_problem(problem, variables=[b, b], method=method)(data), (second, second))


@BOTH
def test_expressions_as_outputs(method):
    problem, z, x, c = simplex()
    matrix = np.arange(8.0).reshape(2, 4)
    outputs = [matrix @ z, z[1:3], cp.sum(z[:2]) - 3, cp.reshape(z, (2, 2), order="C"), 2 * z + z[::-1], z]
    layer = OptLayer.from_problem(problem, [x, c], outputs, method=method)

    def truth(x, c):
        z = simplex_truth(x, c)
        return torch.as_tensor(matrix) @ z, z[1:3], z[:2].sum() - 3, z.reshape(2, 2), 2 * z + z.flip(0), z

    solution = layer.solve(*POINT)
    for mine, expected in zip(solution.primal, truth(*POINT), strict=True):
        assert mine.shape == expected.shape
        close(mine, expected)
    for mine, expected in zip(
        torch.func.jacrev(layer)(*POINT), torch.func.jacrev(truth)(*POINT), strict=True
    ):
        close(mine, expected)
    close(OptLayer.from_problem(problem, [x, c], [cp.sum(z)], method=method)(*POINT), scalar(1.0))


@BOTH
def test_dual_variables_as_outputs(method):
    problem, z, x, c = simplex()
    equation, inequality = problem.constraints
    outputs = [inequality.dual_variables[0], z, equation.dual_variables[0]]
    layer = OptLayer.from_problem(problem, [x, c], outputs, method=method)
    excess, primal, level = layer(*POINT)
    solution = OptLayer.from_problem(problem, [x, c], [z], method=method).solve(*POINT)
    close(excess, solution.dual(inequality), 1e-10)
    close(level, solution.dual(equation), 1e-10)
    close(primal, simplex_truth(*POINT))
    # 2(z - x) + (c, c, 0, 0) - excess + level = 0
    price = torch.tensor([0.4, 0.4, 0, 0], dtype=F64)
    close(2 * (primal - POINT[0]) + price - excess + level, torch.zeros(4, dtype=F64))
    assert torch.autograd.gradcheck(layer, leaves(POINT), check_forward_ad=True)
    assert layer(torch.stack([POINT[0]] * 3), POINT[1])[2].shape == (3,)


@BOTH
def test_duals_by_kind(method):
    """`inequality_duals` and `equality_duals` hold those of the problem's constraints, in its order."""
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    constraints = [z[0] <= 0.1, cp.sum(z) == 1, z >= -1, z[1] - z[2] == 0.5]
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(z - x)), constraints), method=method)
    solution = layer.solve(torch.tensor([2.0, -1, 3], dtype=F64))
    assert isinstance(solution, Solution)
    assert len(solution.inequality_duals) == len(solution.equality_duals) == 2
    for mine, constraint in zip(solution.inequality_duals, constraints[::2], strict=True):
        close(mine, solution.dual(constraint), 1e-12)
    for mine, constraint in zip(solution.equality_duals, constraints[1::2], strict=True):
        close(mine, solution.dual(constraint), 1e-12)
    assert solution.inequality_duals[0] > 0.1


@BOTH
def test_a_left_out_parameter_is_a_constant(method):
    problem, z, x, c = simplex()
    c.value = 0.4
    layer = OptLayer.from_problem(problem, [x], [z], method=method)
    close(layer(POINT[0]), simplex_truth(*POINT))
    c.value = 7.0
    close(layer(POINT[0]), simplex_truth(*POINT))
    assert len(layer.inputs) == 1


def test_a_left_out_parameter_without_a_value():
    problem, z, x, _ = simplex()
    for method in ("auto", "cone", "smooth"):
        with pytest.raises(DeclarationError, match=all_of(r"\bc\b", "(?i:value)")):
            OptLayer.from_problem(problem, [x], [z], method=method)


def test_a_constant_where_a_product_would_not_be_disciplined(rng):
    """With one factor left out the problem is DPP."""
    z, x = cp.Variable(3), cp.Parameter(3)
    scale = cp.Parameter(nonneg=True, value=2.0)
    weight = cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) / 2 + scale * weight * cp.norm1(z)))
    layer = OptLayer.from_problem(problem, [x, weight], method="cone")
    data = normal(rng, 3)
    close(layer(data, scalar(0.3)), data.sign() * (data.abs() - 0.6).relu())


@BOTH
def test_no_parameters(method):
    z = cp.Variable(3, name="z")
    constraint = cp.sum(z) == 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z)), [constraint])
    layer = OptLayer.from_problem(problem, method=method)
    close(layer().double(), torch.full((3,), 1 / 3, dtype=F64), 1e-6)
    solution = layer.solve()
    close(solution.value.double(), scalar(1 / 3), 1e-6)
    close(solution.dual(constraint).double(), scalar(-2 / 3), 1e-6)


def test_no_parameters_with_a_cone():
    X = cp.Variable((3, 3), PSD=True)
    cost = np.diag([3.0, 1.0, 2.0])
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.trace(cost @ X)), [cp.trace(X) == 2]))
    close(layer().double(), torch.diag(torch.tensor([0.0, 2, 0], dtype=F64)), 1e-6)


@BOTH
def test_maximize(method):
    """The value is the maximum; duals as in cvxpy, those of the minimum of the negative."""
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    constraints = [z <= 1, cp.sum(z) == 2]
    problem = cp.Problem(cp.Maximize(x @ z - cp.sum_squares(z) / 2 + 3), constraints)
    data = (torch.tensor([2.0, 1.0, -0.5], dtype=F64),)
    layer, solution = matches_cvxpy(problem, [x], data, method=method)
    assert solution.value > 0
    free = leaves(data)
    (gradient,) = torch.autograd.grad(layer.solve(*free).value, free)
    close(gradient, solution.primal[0])
    assert gradcheck(layer, constraints, data)


@BOTH
def test_constant_and_parametric_offsets_of_the_objective(method, rng):
    z, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) + 2 * cp.sum(x) + 5))
    layer = OptLayer.from_problem(problem, method=method)
    (data,) = leaves((normal(rng, 3),))
    solution = layer.solve(data)
    close(solution.value, 2 * data.sum() + 5)
    close(torch.autograd.grad(solution.value, data)[0], torch.full((3,), 2.0, dtype=F64))


@BOTH
def test_a_feasibility_problem(method):
    z, x = cp.Variable(2), cp.Parameter(2)
    matrix = np.array([[2.0, 1], [1, 3]])
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(0), [matrix @ z == x]), method=method)
    data = torch.tensor([1.0, -2], dtype=F64)
    close(layer(data), torch.linalg.solve(torch.as_tensor(matrix), data))
    close(torch.func.jacrev(layer)(data), torch.linalg.inv(torch.as_tensor(matrix)))


@BOTH
def test_arrays_of_three_dimensions(method, rng):
    W, A = cp.Variable((2, 3, 2), name="W"), cp.Parameter((2, 3, 2), name="A")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(W - A)), [W[0] >= 0, cp.sum(W[1]) == 1])
    data = normal(rng, 2, 3, 2)
    answer = OptLayer.from_problem(problem, method=method)(data)
    close(answer, torch.stack([data[0].relu(), data[1] + (1 - data[1].sum()) / 6]))


# ------------------------------ refused


def test_outputs_that_do_not_belong():
    problem, z, x, c = simplex()
    other = cp.Variable(3, name="stranger")
    for output in (other, cp.sum(other), z[0] + other[0]):
        with pytest.raises(DeclarationError, match="stranger"):
            OptLayer.from_problem(problem, [x, c], [output])
    foreign = cp.sum(other) == 1
    with pytest.raises(DeclarationError, match=r"(?i:dual|constraint|variable)"):
        OptLayer.from_problem(problem, [x, c], [foreign.dual_variables[0]])
    with pytest.raises(DeclarationError, match=r"(?i:affine)"):
        OptLayer.from_problem(problem, [x, c], [cp.square(z)])
    with pytest.raises(DeclarationError, match=r"(?i:parameter|variable)"):
        OptLayer.from_problem(problem, [z, c], [z])


def test_a_dual_of_another_problem():
    problem, z, x, c = simplex()
    solution = OptLayer.from_problem(problem, [x, c], [z], method="cone").solve(*POINT)
    with pytest.raises((KeyError, ValueError), match=r"(?i:constraint)"):
        solution.dual(z <= 5)


def test_what_is_no_problem():
    problem, z, x, c = simplex()
    with pytest.raises(DeclarationError, match=r"(?i:problem)"):
        OptLayer.from_problem(problem.objective, [x, c], [z])
    with pytest.raises(DeclarationError, match="max_itre"):
        OptLayer.from_problem(problem, [x, c], [z], max_itre=3)
    with pytest.raises(DeclarationError, match=all_of("method", "conic", "cone")):
        OptLayer.from_problem(problem, [x, c], [z], method="conic")


@BOTH
def test_wrong_tensors(method):
    problem, z, x, c = simplex()
    layer = OptLayer.from_problem(problem, [x, c], [z], method=method)
    with pytest.raises(InputError, match=r"\b2\b"):
        layer(POINT[0])
    with pytest.raises(InputError, match=all_of(r"\bx\b", "4")):
        layer(torch.zeros(3, dtype=F64), POINT[1])


# ------------------------------ the user's objects stay the user's


@BOTH
def test_the_leaves_are_left_alone(method):
    problem, z, x, c = simplex()
    x.value, z.value = np.ones(4), np.full(4, 7.0)
    layer = OptLayer.from_problem(problem, [x, c], [z], method=method)
    layer.solve(*POINT)
    assert (x.value == 1).all()
    assert (z.value == 7).all()
    assert c.value is None
    assert problem.status is None
    assert problem.value is None
    assert all(constraint.dual_value is None for constraint in problem.constraints)
    assert layer.inputs[0] is x
    assert layer.variables[0] is z


@BOTH
def test_the_user_solves_it_too(method):
    """Before, between and after; by another solver."""
    problem, z, x, c = simplex()
    assign([x, c], (POINT[0] + 1, POINT[1]))
    problem.solve(cp.OSQP)
    before = z.value.copy()
    layer = OptLayer.from_problem(problem, [x, c], [z], method=method)
    close(layer(*POINT), simplex_truth(*POINT))
    assert (z.value == before).all()
    cvxpy_solve(problem, [x, c], POINT)
    close(primal_of(z), layer(*POINT), 1e-6)
    close(layer(*POINT), simplex_truth(*POINT))
    close(pickle.loads(pickle.dumps(layer))(*POINT), simplex_truth(*POINT))


@BOTH
def test_a_parameter_shared_by_two_layers(method):
    problem, z, x, c = simplex()
    first = OptLayer.from_problem(problem, [x, c], [z], method=method)
    w = cp.Variable(4, name="w")
    second = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(w - x)), [w >= 0.2]), method=method)
    close(second(first(*POINT)), simplex_truth(*POINT).clamp(min=0.2))
    assert torch.autograd.gradcheck(lambda x, c: second(first(x, c)), leaves(POINT), check_forward_ad=True)


@BOTH
@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(method, copy_of):
    problem, z, x, c = simplex()
    layer = OptLayer.from_problem(problem, [x, c], [z, cp.sum(z[:2])], method=method)
    layer(*POINT)
    twin = copy_of(layer)
    close(twin(*POINT), layer(*POINT), 1e-12)
    close(torch.func.jacrev(twin)(*POINT), torch.func.jacrev(layer)(*POINT), 1e-10)
    assert len(twin.solve(*POINT).equality_duals) == 1
    assert layer.state_dict() == {}


def test_copy_of_a_layer_with_cones():
    planted = plant_mixed(0)
    twin = pickle.loads(pickle.dumps(planted.programme.layer))
    close(twin(*planted.data), planted.primal[0])
    close(copy.deepcopy(planted.programme.layer)(*planted.data), planted.primal[0])


# ------------------------------ batches, types, transforms


@BOTH
def test_batches(method, rng):
    problem, z, x, c = simplex()
    layer = OptLayer.from_problem(problem, [x, c], [z], method=method)
    xs, cs = normal(rng, 2, 3, 4), uniform(rng, 3)
    answer = layer(xs, cs)
    assert answer.shape == (2, 3, 4)
    for i, j in itertools.product(range(2), range(3)):
        close(answer[i, j], simplex_truth(xs[i, j], cs[j]))
    solution = layer.solve(xs, cs)
    assert solution.dual(problem.constraints[0]).shape == (2, 3)
    assert solution.dual(problem.constraints[1]).shape == (2, 3, 4)
    assert solution.value.shape == solution.status.shape == solution.residuals.worst.shape == (2, 3)
    assert solution.flags.kink.shape == solution.iterations.shape == (2, 3)
    assert (solution.status == Status.SOLVED).all()
    assert solution.residuals.worst.max() < 1e-8
    assert layer(xs[:0], cs).shape == (0, 3, 4)
    assert layer(xs[:1, 0], cs[0]).shape == (1, 4)


def test_a_batch_of_cones(rng):
    """The gradient of what is not batched is the sum; rows do not see their neighbours."""
    planted = plant_mixed(0)
    layer = planted.programme.layer
    q, rest = planted.data[0], planted.data[1:]
    qs = q + 0.05 * normal(rng, 3, len(q))
    (free,) = leaves((rest[0],))
    together = torch.autograd.grad(layer(qs, free, *rest[1:]).sum(), free)[0]
    alone = [torch.autograd.grad(layer(row, free, *rest[1:]).sum(), free)[0] for row in qs]
    close(together, sum(alone))
    duals = layer.solve(qs, *rest)
    for constraint in planted.programme.problem.constraints:
        for dual, variable in zip(as_duals(duals.dual(constraint)), constraint.dual_variables, strict=True):
            assert dual.shape == (3, *variable.shape)
    changed = qs.clone()
    changed[1] += 0.1
    kept = [0, 2]
    assert torch.equal(layer(qs, *rest)[kept], layer(changed, *rest)[kept])
    close(layer(qs[kept], *rest), layer(qs, *rest)[kept], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@BOTH
def test_types(method, dtype):
    problem, z, x, c = simplex()
    layer = OptLayer.from_problem(problem, [x, c], [z], method=method)
    data = [tensor.to(dtype).requires_grad_() for tensor in POINT]
    solution = layer.solve(*data)
    outputs = (*solution.primal, *(solution.dual(constraint) for constraint in problem.constraints))
    for output in (*outputs, solution.value):
        assert output.dtype == dtype
    gradients = torch.autograd.grad(outputs[0][0], data)
    assert all(gradient.dtype == dtype for gradient in gradients)
    close(outputs[0].double(), simplex_truth(*POINT), 1e-6 if dtype == torch.float32 else 1e-9)


def test_float32_cones(rng):
    """A projection onto semidefinite matrices in single precision; float32 symmetry is symmetry enough."""
    X = cp.Variable((3, 3), PSD=True)
    S = cp.Parameter((3, 3), symmetric=True)
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(X - S))))
    A = draw_symmetric(rng, k=3).float()
    A = A @ A.mT - torch.eye(3)
    answer = layer(A)
    assert answer.dtype == torch.float32
    values, Q = torch.linalg.eigh(A)
    close(answer, Q @ torch.diag(values.relu()) @ Q.mT, 1e-5)


@functools.cache
def smoothed_norm():
    z, x, c = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) / 2 + c * cp.norm(z)), [z[0] <= 1])
    return OptLayer.from_problem(problem, [x, c], [z], method="cone")


def test_transforms(rng):
    layer = smoothed_norm()
    xs, c = 2 * normal(rng, 4, 3), scalar(0.5)
    close(torch.func.vmap(layer, (0, None))(xs, c), layer(xs, c), 1e-10)
    reverse = torch.func.vmap(torch.func.jacrev(layer), (0, None))(xs, c)
    forward = torch.func.vmap(torch.func.jacfwd(layer), (0, None))(xs, c)
    close(forward, reverse, 1e-9)
    close(torch.func.jacrev(layer)(xs[1], c), reverse[1], 1e-9)
    hessian = torch.func.hessian(lambda x: layer.solve(x, c).value)(xs[0])
    close(hessian, torch.eye(3, dtype=F64) - reverse[0], 1e-7)  # the value's gradient is x - z


def test_no_graph_when_nobody_asks():
    with torch.no_grad():
        assert not smoothed_norm()(torch.ones(3, dtype=F64, requires_grad=True), scalar(0.5)).requires_grad
    assert not smoothed_norm()(torch.ones(3, dtype=F64), scalar(0.5)).requires_grad


def test_warm_start():
    layer = smoothed_norm()
    x = torch.tensor([3.0, 1, -2], dtype=F64)
    first = layer.solve(x, scalar(0.5))
    again = layer.solve(x + 0.01, scalar(0.5), warm_start=first)
    close(again.primal[0], layer(x + 0.01, scalar(0.5)), 1e-10)


# ------------------------------ both routes say the same


def outputs_of(problem, layer, data):
    solution = layer.solve(*data)
    return (*solution.primal, *(solution.dual(c) for c in problem.constraints), solution.value)


def routes_agree(problem, parameters, data, second=False):
    results = []
    for method in ("cone", "smooth"):
        layer = OptLayer.from_problem(problem, parameters, method=method)
        free = leaves(data)
        outputs = outputs_of(problem, layer, free)
        rng = torch.Generator().manual_seed(8)
        weights = [normal(rng, *output.shape) for output in outputs]
        gradients = torch.autograd.grad(outputs, free, weights, create_graph=second)
        results.append([*outputs, *gradients])
        if second:
            total = sum((normal(rng, *g.shape) * g).sum() for g in gradients)
            results[-1] += torch.autograd.grad(total, free)
    for one, two in zip(*results, strict=True):
        close(one, two, 1e-7 if second else 1e-8)


def test_a_quadratic_programme_by_both_routes(rng):
    L, q, G, h, A, b = plant_qp(rng, 5, 4, 2).parameters
    z = cp.Variable(5, name="z")
    data = (L, q, G, h, A, b)
    parameters = [cp.Parameter(tensor.shape) for tensor in data]
    pL, pq, pG, ph, pA, pb = parameters
    problem = cp.Problem(cp.Minimize(cp.sum_squares(pL @ z) / 2 + pq @ z), [pG @ z <= ph, pA @ z == pb])
    routes_agree(problem, parameters, data, second=True)


def test_a_logistic_regression_by_both_routes(rng):
    w, X, y = cp.Variable(3, name="w"), cp.Parameter((12, 3), name="X"), np.sign(normal(rng, 12).numpy())
    l2 = cp.Parameter(nonneg=True, name="l2")
    loss = cp.sum(cp.logistic(-cp.multiply(y, X @ w))) / 12 + l2 * cp.sum_squares(w)
    problem = cp.Problem(cp.Minimize(loss), [w[0] + w[1] <= 0.1])
    routes_agree(problem, [X, l2], (normal(rng, 12, 3), scalar(0.05)), second=True)


def test_an_entropy_by_both_routes(rng):
    z, x = cp.Variable(4, name="z"), cp.Parameter(4, name="x")
    problem = cp.Problem(cp.Minimize(-x @ z - cp.sum(cp.entr(z))), [cp.sum(z) == 1, z[0] <= 0.2])
    routes_agree(problem, [x], (torch.tensor([1.5, 0.1, -0.4, 0.3], dtype=F64),), second=True)


# ------------------------------ quadratic forms


def definite(rng, n):
    half = normal(rng, n, n)
    return half @ half.T / n + torch.eye(n, dtype=F64) / 2


@pytest.mark.parametrize("method", ["auto", "cone", "smooth"])
def test_a_quadratic_form_with_a_parameter(method, rng):
    """min z'Pz/2 + q'z: -inv(P) q; the gradient of P is symmetric."""
    z, q = cp.Variable(3, name="z"), cp.Parameter(3, name="q")
    P = cp.Parameter((3, 3), PSD=True, name="P")
    problem = cp.Problem(cp.Minimize(cp.quad_form(z, P) / 2 + q @ z))
    layer = OptLayer.from_problem(problem, [P, q], method=method)
    matrix, vector = definite(rng, 3), normal(rng, 3)

    def truth(P, q):
        return -torch.linalg.solve((P + P.mT) / 2, q)

    close(layer(matrix, vector), truth(matrix, vector))
    for mine, right in zip(
        torch.func.jacrev(layer, (0, 1))(matrix, vector), torch.func.jacrev(truth, (0, 1))(matrix, vector)
    ):
        close(mine, right)
    batch = torch.stack([definite(rng, 3) for _ in range(2)])
    close(layer(batch, vector)[1], truth(batch[1], vector))


@pytest.mark.parametrize(
    "objective",
    [
        lambda z, P, Q: cp.Minimize(cp.quad_form(z, P + Q) - cp.sum(z)),
        lambda z, P, Q: cp.Minimize(cp.quad_form(z, P) + cp.quad_form(z - 1, Q)),
        lambda z, P, Q: cp.Maximize(cp.sum(z) - cp.quad_form(z, P) - cp.quad_form(z, Q)),
    ],
    ids=["sum", "two", "maximize"],
)
def test_more_quadratic_forms(objective, rng):
    z = cp.Variable(3, name="z", nonneg=True)
    P, Q = (cp.Parameter((3, 3), PSD=True, name=name) for name in "PQ")
    problem = cp.Problem(objective(z, P, Q), [z[0] <= 0.05])
    data = (definite(rng, 3), definite(rng, 3))
    layer, _ = matches_cvxpy(problem, [P, Q], data)
    D, E = draw_symmetric(rng, 2, k=3)

    def along(t):
        return layer(data[0] + t[0] * D, data[1] + t[1] * E)

    assert torch.autograd.gradcheck(along, leaves((torch.zeros(2, dtype=F64),)), check_forward_ad=True)


def test_a_quadratic_form_in_a_constraint(rng):
    """min q'z  s.t.  z'Pz <= 1: the smooth route takes it."""
    z, q = cp.Variable(3, name="z"), cp.Parameter(3, name="q")
    P = cp.Parameter((3, 3), PSD=True, name="P")
    problem = cp.Problem(cp.Minimize(q @ z), [cp.quad_form(z, P) <= 1])
    layer = OptLayer.from_problem(problem, [P, q])
    matrix, vector = definite(rng, 3), normal(rng, 3)

    def truth(P, q):
        step = torch.linalg.solve((P + P.mT) / 2, q)
        return -step / (q @ step).sqrt()

    close(layer(matrix, vector), truth(matrix, vector))
    for mine, right in zip(
        torch.func.jacrev(layer, (0, 1))(matrix, vector), torch.func.jacrev(truth, (0, 1))(matrix, vector)
    ):
        close(mine, right)


# ------------------------------ duals equal cvxpy's


def dual_cases():
    z, x = cp.Variable(4, name="z"), cp.Parameter(4, name="x")
    W, M = cp.Variable((2, 3), name="W"), cp.Parameter((2, 3), name="M")
    X, C = cp.Variable((3, 3), symmetric=True, name="X"), cp.Parameter((3, 3), symmetric=True, name="C")
    t = cp.Variable(name="t")
    point = torch.tensor([0.9, -0.7, 1.4, 0.3], dtype=F64)
    matrix = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.2, -1.0]], dtype=F64)
    symmetric = torch.tensor([[1.0, -2.0, 0.5], [-2.0, 0.2, -1.0], [0.5, -1.0, 0.4]], dtype=F64)
    near = cp.sum_squares(z - x)
    near_W = cp.sum_squares(W - M)
    near_X = cp.sum_squares(X - C)
    vectors = {
        "scalar_equality": [cp.sum(z) == 1],
        "vector_equality": [z[:2] == np.array([0.3, 0.4]), z[3] - z[2] == 1],
        "scalar_inequality": [z[0] + z[1] <= -1],
        "vector_inequality": [z <= np.array([0.5, 0.5, 0.2, 5])],
        "greater": [z >= np.array([0.5, -5, 2, 0]), z[0] + z[1] >= 1],
        "norm": [cp.norm(z - 1) <= 0.7],
        "norm_epigraph": [cp.norm(z[:2]) <= z[2] - 1],
        "norms_of_rows": [cp.norm(cp.reshape(z, (2, 2), order="C"), axis=1) <= 0.5],
        "norm1": [cp.norm1(z) <= 1],
        "norm_inf": [cp.norm_inf(z) <= 0.8],
        "sum_squares": [cp.sum_squares(z) <= 1],
        "soc": [cp.SOC(z[2] - 1, z[:2])],
        "soc_fixed_radius": [cp.SOC(cp.Constant(0.6), z - 1)],
        "exponential_atom": [cp.sum(cp.exp(z)) <= 3],
        "log_sum_exp": [cp.log_sum_exp(z) <= 1],
        "log": [cp.log(z[0]) + cp.log(z[2]) >= 1],
        "entropy": [cp.sum(cp.entr(z)) >= 1.2],
        "exp_cone": [cp.ExpCone(z[0], z[1] + 2, z[2])],
        "exp_cones": [cp.ExpCone(z[:2], np.ones(2), z[2:])],
        "pow_cone": [cp.PowCone3D(z[0], z[3] + 0.2, z[2], 0.4)],
        "pow_cones": [cp.PowCone3D(z[:2] + 1, np.ones(2), z[2:] + 0.5, np.array([0.4, 0.7]))],
        "two_sided": [z <= 0.5, z >= -0.5, cp.sum(z) == 0.3],
    }
    cases = {name: (cp.Minimize(near), constraints, x, point) for name, constraints in vectors.items()}
    concave = cp.Maximize(x @ z - cp.sum_squares(z) / 2)
    for name in ("scalar_equality", "vector_inequality", "greater", "norm", "soc", "exp_cone", "pow_cone"):
        cases[f"maximize_{name}"] = (concave, vectors[name], x, point)
    bounded = {
        "matrix_inequality": [W - np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]) <= 0],
        "matrix_equality": [W[:, :2] == np.array([[1.0, 2.0], [3.0, 4.0]])],
        "rows_and_columns": [cp.sum(W, axis=1) == np.array([1.0, 2.0]), cp.sum(W, axis=0) <= 1.2],
        "soc_columns": [cp.SOC(np.array([0.5, 1.0, 0.3]), W, axis=0)],
        "soc_rows": [cp.SOC(np.array([0.5, 1.0]), W, axis=1)],
        "sigma_max": [cp.sigma_max(W) <= 2],
        "nuclear_norm": [cp.normNuc(W) <= 2],
    }
    cases |= {name: (cp.Minimize(near_W), c, M, matrix) for name, c in bounded.items()}
    semidefinite = {
        "psd": [X >> 0],
        "psd_shifted": [X - 0.1 * np.eye(3) >> 0, cp.trace(X) == 1],
        "nsd": [X << np.eye(3)],
        "both_sides": [X >> 0, X << np.diag([0.5, 1.5, 2.5])],
        "psd_block": [X[:2, :2] >> 0],
        "lambda_max": [cp.lambda_max(X) <= 1],
        "linear_matrix_inequality": [cp.bmat([[X, np.ones((3, 1))], [np.ones((1, 3)), 2 * np.eye(1)]]) >> 0],
    }
    cases |= {name: (cp.Minimize(near_X), c, C, symmetric) for name, c in semidefinite.items()}
    cases["maximize_psd"] = (cp.Maximize(cp.trace(C @ X)), [X >> 0, cp.trace(X) == 1], C, symmetric)
    cases["psd_with_slack"] = (
        cp.Minimize(near_X + t),
        [X + t * np.eye(3) >> 0, t >= 0.2],
        C,
        symmetric,
    )
    return cases


DUAL_CASES = dual_cases()


@pytest.mark.parametrize("name", DUAL_CASES)
def test_duals_equal_those_of_cvxpy(name):
    objective, constraints, parameter, data = DUAL_CASES[name]
    problem = cp.Problem(objective, constraints)
    layer, solution = matches_cvxpy(problem, [parameter], (data,), 1e-5, method="cone")
    sizes = [dual.abs().max() for c in constraints for dual in as_duals(solution.dual(c)) if dual.numel()]
    assert max(sizes) > 1e-3  # something binds
    rng = torch.Generator().manual_seed(3)
    D = draw_symmetric(rng, 1, k=3) if parameter.attributes["symmetric"] else normal(rng, 1, *data.shape)

    def outputs(t):
        solution = layer.solve(data + torch.tensordot(t, D, 1))
        return tuple(itertools.chain(*(as_duals(solution.dual(c)) for c in constraints)))

    t = torch.zeros(1, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (t,), check_forward_ad=True)


@pytest.mark.parametrize(
    "name",
    ["scalar_equality", "vector_inequality", "greater", "matrix_inequality", "rows_and_columns", "psd"],
)
def test_duals_on_the_route_it_takes_itself(name):
    objective, constraints, parameter, data = DUAL_CASES[name]
    matches_cvxpy(cp.Problem(objective, constraints), [parameter], (data,), 1e-5)


def test_duals_of_a_semidefinite_constraint_are_symmetric():
    for name in ("psd", "nsd", "both_sides", "linear_matrix_inequality"):
        objective, constraints, parameter, data = DUAL_CASES[name]
        layer = OptLayer.from_problem(cp.Problem(objective, constraints), [parameter], method="cone")
        solution = layer.solve(data)
        for constraint in constraints:
            dual = solution.dual(constraint)
            close(dual, dual.mT, 1e-13)
            assert torch.linalg.eigvalsh(dual).min() > -1e-9


@pytest.mark.parametrize("seed", range(2))
def test_duals_with_a_cone_of_every_kind(seed):
    planted = plant_mixed(seed)
    matches_cvxpy(planted.programme.problem, planted.programme.parameters, planted.data, 1e-5, method="cone")


def test_the_value_has_the_duals_for_gradient():
    """The price of a constraint: d value / d bound = - dual, and + for what is maximized."""
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    r, b = cp.Parameter(name="r"), cp.Parameter(name="b")
    for sign in (1, -1):
        cost = cp.sum_squares(z - x)
        objective = cp.Minimize(cost) if sign > 0 else cp.Maximize(-cost)
        norm, equation = cp.norm(z) <= r, z[0] - z[1] == b
        layer = OptLayer.from_problem(cp.Problem(objective, [norm, equation]), [x, r, b], method="cone")
        data = leaves((torch.tensor([2.0, 1, -1], dtype=F64), scalar(1.0), scalar(0.3)))
        solution = layer.solve(*data)
        _, by_r, by_b = torch.autograd.grad(solution.value, data, retain_graph=True)
        assert solution.dual(norm) > 0.1
        close(by_r, -sign * solution.dual(norm))
        close(by_b, -sign * solution.dual(equation))


# ------------------------------ geometric programmes


def geometric():
    x, y, z = (cp.Variable(pos=True, name=name) for name in "xyz")
    a, b, c = (cp.Parameter(pos=True, name=name) for name in "abc")
    constraints = [a * (x * y + x * z + y * z) <= b, x >= y**0.5 * c]
    return cp.Problem(cp.Minimize(1 / (x * y * z)), constraints), [a, b, c], [x, y, z]


GEOMETRIC = (scalar(2.0), scalar(1.0), scalar(1.5))


def test_a_geometric_programme():
    """Values as the user means them, duals of the problem in logarithms, both as cvxpy gives them."""
    problem, parameters, _ = geometric()
    layer, solution = matches_cvxpy(problem, parameters, GEOMETRIC, 1e-5, gp=True)
    assert all(primal > 0 for primal in solution.primal)
    assert gradcheck(layer, problem.constraints, GEOMETRIC)


def test_a_geometric_programme_in_closed_form():
    """min x + q / x."""
    x, q = cp.Variable(pos=True), cp.Parameter(pos=True)
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(x + q / x)), gp=True)
    data = torch.tensor([0.25, 1.0, 9.0], dtype=F64, requires_grad=True)
    solution = layer.solve(data)
    close(solution.primal[0], data.sqrt())
    close(solution.value, 2 * data.sqrt())
    close(torch.autograd.grad(solution.primal[0].sum(), data, retain_graph=True)[0], 0.5 / data.sqrt())
    close(torch.autograd.grad(solution.value.sum(), data)[0], 1 / data.sqrt())


def test_a_maximal_monomial():
    """max x y² under a budget; shares 1/3 and 2/3."""
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    p, w = cp.Parameter(pos=True), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Maximize(x * y**2), [p * x + y <= w])
    layer = OptLayer.from_problem(problem, [p, w], [x, y], gp=True)
    data = (scalar(2.0), scalar(3.0))
    close(layer(*data), (scalar(0.5), scalar(2.0)))
    close(layer.solve(*data).value, scalar(2.0))
    close(layer.solve(*data).dual(problem.constraints[0]), scalar(3.0))  # d log value / d log budget
    assert gradcheck(layer, problem.constraints, data)


def test_geometric_order_batch_and_subsets(rng):
    problem, (a, b, c), (x, _, z) = geometric()
    layer = OptLayer.from_problem(problem, [c, b, a], [z, x], gp=True)
    assert a.value is None
    cs = uniform(rng, 3, low=1, high=2)
    zs, xs = layer(cs, GEOMETRIC[1], GEOMETRIC[0])
    for row in range(3):
        cvxpy_solve(problem, [a, b, c], (GEOMETRIC[0], GEOMETRIC[1], cs[row]), gp=True)
        close(zs[row], primal_of(z), 1e-5)
        close(xs[row], primal_of(x), 1e-5)


def test_a_geometric_programme_declared_as_a_convex_one():
    problem, parameters, _ = geometric()
    with pytest.raises(DeclarationError, match="gp"):
        OptLayer.from_problem(problem, parameters)


def test_gp_of_what_is_no_geometric_programme():
    problem, z, x, c = simplex()
    with pytest.raises(DeclarationError, match=r"(?i:gp|geometric|dgp|positive)"):
        OptLayer.from_problem(problem, [x, c], [z], gp=True)


def test_values_a_geometric_programme_does_not_admit():
    problem, parameters, _ = geometric()
    layer = OptLayer.from_problem(problem, parameters, gp=True)
    with pytest.raises(InputError, match=all_of(r"\ba\b", "(?i:pos)")):
        layer(-GEOMETRIC[0], *GEOMETRIC[1:])
