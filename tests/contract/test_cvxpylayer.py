"""Moving over from cvxpylayers is the import: every behaviour its users rely on, and what we do instead."""

import copy
import pickle
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from optlayer import CvxpyLayer, DeclarationError, InfeasibleError, InputError, UnboundedError
from optlayer.compat.options import IDLE, NAMES, translate

from .test_module import fresh_python

F64 = torch.float64
TIGHT = {"solver": "CLARABEL", "tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}


def tensor(values, grad=True):
    return torch.tensor(np.asarray(values, dtype=float), dtype=F64, requires_grad=grad)


def randn(rng, *shape):
    return torch.randn(shape, generator=rng, dtype=F64).requires_grad_()


def cvxpy_values(problem, parameters, values, outputs, gp=False):
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value = np.asarray(value.detach()).reshape(parameter.shape)
    problem.solve(gp=gp, **TIGHT)
    assert problem.status == "optimal"
    return [np.asarray(v.value, dtype=float).reshape(v.shape) for v in outputs]


def agrees(layer, problem, parameters, values, outputs, gp=False, atol=1e-5):
    """The layer's answer is cvxpy's, in value and shape."""
    found = layer(*values)
    assert isinstance(found, tuple)
    assert len(found) == len(outputs)
    expected = cvxpy_values(problem, parameters, values, outputs, gp)
    for ours, theirs in zip(found, expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-5, atol=atol)


def sym(M):
    return (M + M.mT) / 2


# ------------------------------------------------------------------------- the problems of this file


def nearest(n=3, **options):
    """min |x - b|² over x >= 0: max(b, 0)."""
    x, b = cp.Variable(n, name="x"), cp.Parameter(n, name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    return CvxpyLayer(problem, parameters=[b], variables=[x], **options)


def absolute_regression(m=3, n=2):
    x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
    return cp.Problem(cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1)), [x >= 0]), [A, b], [x]


def ridge(m=7, n=4):
    x, F, g = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(F @ x - g) + cp.sum_squares(x)))
    return problem, [F, g], [x]


def ridge_answer(F, g):
    return torch.linalg.solve(F.mT @ F + torch.eye(F.shape[-1], dtype=F64), (F.mT @ g.unsqueeze(-1)))[..., 0]


def box_volume():
    """A box of largest volume: a geometric programme with one minimizer."""
    x, y, z = (cp.Variable(pos=True, name=name) for name in "xyz")
    wall, floor, ratio = (cp.Parameter(pos=True, name=name) for name in ("wall", "floor", "ratio"))
    constraints = [2 * (x * y + x * z) <= wall, y * z <= floor, x >= ratio * y]
    return cp.Problem(cp.Minimize(1 / (x * y * z)), constraints), [wall, floor, ratio], [x, y, z]


# -------------------------------------------------------------------------------- moving is the import

THEIR_CODE = """
import cvxpy as cp, torch
from cvxpylayers.torch import CvxpyLayer

x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
problem = cp.Problem(cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1)), [x >= 0])
assert problem.is_dpp()
layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])

A_tensor = torch.tensor([[1.0, 0.2], [0.1, 1.5], [0.7, -0.4]], requires_grad=True)
b_tensor = torch.tensor([1.0, 2.0, 0.1], requires_grad=True)
(solution,) = layer(A_tensor, b_tensor, solver_args={"eps": 1e-8, "max_iters": 10000})
solution.sum().backward()
"""


def test_only_the_import_changes():
    names = {}
    exec(THEIR_CODE.replace("from cvxpylayers.torch import", "from optlayer import"), names)
    values = names["A_tensor"], names["b_tensor"]
    (expected,) = cvxpy_values(names["problem"], [names["A"], names["b"]], values, [names["x"]])
    assert names["solution"].dtype == torch.float32
    np.testing.assert_allclose(names["solution"].detach(), expected, rtol=1e-5, atol=1e-6)
    assert names["A_tensor"].grad.abs().sum() > 0


def test_absolute_regression(rng):
    problem, parameters, variables = absolute_regression()
    layer = CvxpyLayer(problem, parameters, variables)
    values = randn(rng, 3, 2), randn(rng, 3)
    agrees(layer, problem, parameters, values, variables)
    layer(*values)[0].sum().backward()
    assert all(v.grad.isfinite().all() for v in values)


# ---------------------------------------------------------------------------------- values and gradients


def test_ridge_regression_value_and_gradient(rng):
    problem, parameters, variables = ridge()
    layer = CvxpyLayer(problem, parameters, variables)
    F, g = randn(rng, 7, 4), randn(rng, 7)
    (x,) = layer(F, g, solver_args={"eps": 1e-10})
    expected = ridge_answer(F, g)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-10)
    weights = torch.arange(1.0, 5.0, dtype=F64)
    ours = torch.autograd.grad(weights @ x, (F, g))
    theirs = torch.autograd.grad(weights @ expected, (F, g))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_batched_second_order_cone(rng):
    """min cᵀx over |Fx| <= r, three at once: -r G⁻¹c / sqrt(cᵀG⁻¹c) with G = FᵀF."""
    x, c, F, r = cp.Variable(3), cp.Parameter(3), cp.Parameter((3, 3)), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(c @ x), [cp.norm(F @ x, 2) <= r])
    layer = CvxpyLayer(problem, [c, F, r], [x])
    values = (
        randn(rng, 3, 3),
        (torch.eye(3, dtype=F64) * 2 + 0.3 * randn(rng, 3, 3, 3)).detach(),
        tensor([1, 2, 3]),
    )
    c, F, r = values[0], values[1].requires_grad_(), values[2]
    direction = torch.linalg.solve(F.mT @ F, c.unsqueeze(-1))[..., 0]
    expected = -r[:, None] * direction / (c * direction).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(layer(c, F, r)[0], expected, rtol=0, atol=1e-8)
    assert gradcheck(lambda *v: layer(*v)[0], (c, F, r))


def test_logistic_regression(rng):
    w, X, lam = cp.Variable(2), cp.Parameter((5, 2)), cp.Parameter(nonneg=True)
    y = np.array([1.0, -1, 1, 1, -1])
    loss = cp.sum(cp.logistic(-cp.multiply(y, X @ w)))
    problem = cp.Problem(cp.Minimize(loss + lam * cp.sum_squares(w)))
    layer = CvxpyLayer(problem, [X, lam], [w])
    values = randn(rng, 5, 2), tensor(0.3)
    agrees(layer, problem, [X, lam], values, [w])
    assert gradcheck(lambda *v: layer(*v)[0], values)


def test_entropy_maximization(rng):
    x, A, b, F, g = (
        cp.Variable(4),
        cp.Parameter((1, 4)),
        cp.Parameter(1),
        cp.Parameter((3, 4)),
        cp.Parameter(3),
    )
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x))), [A @ x == b, F @ x <= g])
    parameters = [A, b, F, g]
    layer = CvxpyLayer(problem, parameters, [x])
    A, F, inside = randn(rng, 1, 4), randn(rng, 3, 4), torch.tensor([0.2, 0.5, 0.4, 0.3], dtype=F64)
    b, g = (A @ inside).detach().requires_grad_(), (F @ inside + 0.05).detach().requires_grad_()
    agrees(layer, problem, parameters, (A, b, F, g), [x])
    assert gradcheck(lambda *v: layer(*v)[0], (A, b, F, g))


def test_limited_multi_label_projection(rng):
    y, x = cp.Variable(4), cp.Parameter(4)
    objective = -x @ y - cp.sum(cp.entr(y)) - cp.sum(cp.entr(1 - y))
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(y) == 2])
    layer = CvxpyLayer(problem, [x], [y])
    values = (randn(rng, 4),)
    agrees(layer, problem, [x], values, [y])
    assert gradcheck(lambda *v: layer(*v)[0], values)


def test_semidefinite_programme(rng):
    """One of the three gradchecks that the original fails at its default tolerance."""
    X, C = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3))
    A = np.diag([1.0, 2.0, 4.0])
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [cp.trace(X) == 1, cp.trace(A @ X) == 2])
    layer = CvxpyLayer(problem, [C], [X])
    values = (randn(rng, 3, 3),)
    agrees(layer, problem, [C], (sym(values[0]),), [X], atol=1e-4)
    assert gradcheck(lambda C: layer(sym(C))[0], values)


def test_equality_constraints(rng):
    x, c, A, b = cp.Variable(3), cp.Parameter(3), cp.Parameter((1, 3)), cp.Parameter(1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [A @ x == b])
    layer = CvxpyLayer(problem, [c, A, b], [x])
    values = randn(rng, 3), randn(rng, 1, 3), randn(rng, 1)
    agrees(layer, problem, [c, A, b], values, [x])
    assert gradcheck(lambda *v: layer(*v)[0], values)


def test_one_parameter_in_two_layers(rng):
    shared, x, y, A = cp.Parameter(3), cp.Variable(3), cp.Variable(3), cp.Parameter((3, 3))
    first = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ x - shared) + cp.sum_squares(x))), [A, shared], [x]
    )
    second = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - shared)), [y >= -0.1]), [shared], [y])

    def composed(A, b):
        return second(first(A, b)[0])[0]

    assert gradcheck(composed, (randn(rng, 3, 3), randn(rng, 3)))


def test_variable_of_three_dimensions(rng):
    x, p = cp.Variable((2, 3, 2)), cp.Parameter((2, 3, 2))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0])
    layer = CvxpyLayer(problem, [p], [x])
    value = randn(rng, 2, 3, 2)
    torch.testing.assert_close(layer(value)[0], value.clamp_min(0), rtol=0, atol=1e-9)
    assert layer(torch.stack([value, -value]))[0].shape == (2, 2, 3, 2)


def test_several_variables_in_the_order_asked_for(rng):
    x, y, b = cp.Variable(2), cp.Variable((3, 1)), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + cp.sum_squares(y - 7)))
    value = randn(rng, 2)
    found = CvxpyLayer(problem, (b,), (y, x, y))(value)
    assert [tuple(f.shape) for f in found] == [(3, 1), (2,), (3, 1)]
    torch.testing.assert_close(found[1], value, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[2], torch.full((3, 1), 7.0, dtype=F64), rtol=0, atol=1e-9)


def test_maximize_and_no_parameters():
    x = cp.Variable(2)
    layer = CvxpyLayer(cp.Problem(cp.Maximize(-cp.sum_squares(x - 1)), [x <= 0.5]), [], [x])
    torch.testing.assert_close(layer()[0].to(F64), torch.full((2,), 0.5, dtype=F64), rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batched", ["F", "g", "both"])
def test_an_unbatched_parameter_is_shared(batched, rng):
    problem, parameters, variables = ridge()
    layer = CvxpyLayer(problem, parameters, variables)
    F = randn(rng, *([3] if batched != "g" else []), 7, 4)
    g = randn(rng, *([3] if batched != "F" else []), 7)
    (x,) = layer(F, g)
    expected = ridge_answer(F.expand(3, 7, 4), g.expand(3, 7))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
    ours = torch.autograd.grad(x.sum(), (F, g))
    torch.testing.assert_close(ours, torch.autograd.grad(expected.sum(), (F, g)), rtol=0, atol=1e-8)


def test_a_batch_of_one_stays_one(rng):
    assert nearest()(randn(rng, 1, 3))[0].shape == (1, 3)
    assert nearest()(randn(rng, 3))[0].shape == (3,)


def test_an_empty_batch():
    assert nearest()(torch.zeros(0, 3))[0].shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_answer_has_the_dtype_of_the_input(dtype):
    """The original's is float64 whatever comes in."""
    assert nearest()(torch.ones(3, dtype=dtype))[0].dtype == dtype


def test_no_gradient_where_none_is_asked_for(rng):
    layer, b = nearest(), randn(rng, 3)
    with torch.no_grad():
        assert not layer(b)[0].requires_grad
    assert not layer(b.detach())[0].requires_grad
    assert layer(b)[0].requires_grad


WRONG = {
    "one too few": ([(3, 2)], "A tensor must be provided for each CVXPY parameter; received 1.*expected 2"),
    "one too many": ([(3, 2), (3,), (3,)], "A tensor must be provided for each CVXPY parameter.*received 3"),
    "shape": ([(2, 3), (3,)], r"Invalid parameter shape for parameter 0. Expected: \(3, 2\), Got: .*2, 3"),
    "second shape": ([(3, 2), (2,)], "Invalid parameter shape for parameter 1"),
    "batched shape": (
        [(5, 3, 3), (3,)],
        r"Invalid parameter shape for parameter 0. Expected batched shape: \(batch_size, 3, 2\)",
    ),
    "too few dimensions": (
        [(2,), (3,)],
        "Invalid parameter dimensionality for parameter 0. Expected 2 or 3 dimensions, Got: 1",
    ),
    "two batch dimensions": ([(5, 4, 3, 2), (3,)], "Invalid parameter dimensionality for parameter 0"),
    "two batch sizes": ([(5, 3, 2), (4, 3)], r"Inconsistent batch sizes.*\[5, 4\]"),
    "no broadcasting": ([(1, 3, 2), (4, 3)], r"Inconsistent batch sizes.*\[1, 4\]"),
    "an empty batch and a full one": ([(0, 3, 2), (4, 3)], r"Inconsistent batch sizes"),
}


@pytest.mark.parametrize(("shapes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_tensors(shapes, message):
    problem, parameters, variables = absolute_regression()
    layer = CvxpyLayer(problem, parameters, variables)
    with pytest.raises(ValueError, match=message) as caught:
        layer(*(torch.ones(shape) for shape in shapes))
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("value", [None, [1.0, 2.0, 3.0], 1.0])
def test_none_for_a_parameter_is_an_attribute_error(value):
    with pytest.raises(AttributeError, match=r"parameter 0 \('b'\) is a .*expected a tensor"):
        nearest()(value)


# ------------------------------------------------------------------------------------- geometric programmes


@pytest.mark.parametrize("shape", [(), (1,)])
def test_geometric_programme(shape):
    problem, parameters, variables = box_volume()
    layer = CvxpyLayer(problem, parameters, variables, gp=True)
    values = [tensor(v).reshape(shape).detach().requires_grad_() for v in (20.0, 3.0, 2.0)]
    found = layer(*values)
    assert all(f.shape == shape for f in found)
    expected = cvxpy_values(problem, parameters, values, variables, gp=True)
    np.testing.assert_allclose([f.item() for f in found], expected, rtol=1e-5)
    assert gradcheck(lambda *v: torch.stack(layer(*v)), values)


def test_geometric_programmes_in_a_batch():
    problem, parameters, variables = box_volume()
    layer = CvxpyLayer(problem, parameters, variables, gp=True)
    values = [tensor([20.0, 18, 30, 22]), tensor([3.0, 2.5, 5, 3]), tensor([2, 2, 1.8, 1.9])]
    found = layer(*values)
    for i in range(4):
        sample = [v[i] for v in values]
        expected = cvxpy_values(problem, parameters, sample, variables, gp=True)
        np.testing.assert_allclose([f[i].item() for f in found], expected, rtol=1e-5)


def test_geometric_programme_keeps_the_order_of_parameters():
    """And needs no parameter values at construction."""
    problem, parameters, variables = box_volume()
    assert all(p.value is None for p in parameters)
    values = [tensor(v, grad=False) for v in (20.0, 3.0, 2.0)]
    forth = CvxpyLayer(problem, parameters, variables, gp=True)(*values)
    back = CvxpyLayer(problem, parameters[::-1], variables[::-1], gp=True)(*values[::-1])
    torch.testing.assert_close(torch.stack(forth), torch.stack(back[::-1]), rtol=1e-9, atol=0)


# ------------------------------------------------------------------------- quadratic forms with a parameter


def quadratic(build, constraints=lambda x: [], attributes=("PSD",), sense=cp.Minimize):
    """A problem of build(x, *matrices) + qᵀx, the matrices parameters with the attributes given."""
    x, q = cp.Variable(3), cp.Parameter(3)
    matrices = [cp.Parameter((3, 3), **{attribute: True}) for attribute in attributes]
    linear = q @ x if sense is cp.Minimize else -q @ x
    return cp.Problem(sense(build(x, *matrices) + linear), constraints(x)), [*matrices, q], [x]


def positive(rng, *batch):
    R = torch.randn(*batch, 3, 3, generator=rng, dtype=F64)
    return R @ R.mT + torch.eye(3, dtype=F64)


FORMS = {
    "one": (quadratic(lambda x, P: 0.5 * cp.quad_form(x, P)), lambda P: P),
    "sum": (
        quadratic(lambda x, P, R: 0.5 * cp.quad_form(x, P + R), attributes=("PSD", "PSD")),
        lambda P, R: P + R,
    ),
    "two": (
        quadratic(lambda x, P, R: cp.quad_form(x, P) + 0.5 * cp.quad_form(x, R), attributes=("PSD", "PSD")),
        lambda P, R: 2 * P + R,
    ),
    "negated": (quadratic(lambda x, N: -0.5 * cp.quad_form(x, N), attributes=("NSD",)), lambda N: -N),
    "maximized": (
        quadratic(lambda x, N: 0.5 * cp.quad_form(x, N), attributes=("NSD",), sense=cp.Maximize),
        lambda N: -N,
    ),
    "product of parameters": (
        quadratic(lambda x, P: 0.5 * cp.quad_form(x, P @ P, assume_PSD=True)),
        lambda P: P @ P,
    ),
}  # the problem, and the Hessian of its objective; x = -H⁻¹q


@pytest.mark.parametrize(("form", "hessian"), FORMS.values(), ids=FORMS.keys())
def test_quad_form_with_a_parameter(form, hessian, rng):
    """By the default solver, which the original refuses; without a DPP scope around the problem."""
    problem, parameters, variables = form
    layer = CvxpyLayer(problem, parameters, variables)
    for _ in range(2):  # another matrix, the same layer
        q = randn(rng, 3)
        signs = [-1.0 if p.attributes["NSD"] else 1.0 for p in parameters[:-1]]
        matrices = [(sign * positive(rng)).requires_grad_() for sign in signs]
        expected = -torch.linalg.solve(hessian(*matrices), q)
        torch.testing.assert_close(layer(*matrices, q)[0], expected, rtol=0, atol=1e-8)
    assert gradcheck(lambda *v: layer(*map(sym, v[:-1]), v[-1])[0], (*matrices, q))


def test_quad_form_in_a_batch_and_with_constraints(rng):
    problem, parameters, variables = quadratic(
        lambda x, P: cp.quad_form(x, P), lambda x: [x >= 0, cp.sum(x) == 1]
    )
    layer = CvxpyLayer(problem, parameters, variables, solver="MOREAU")
    P, q = positive(rng, 4).requires_grad_(), randn(rng, 3)
    (x,) = layer(P, q)
    for i in range(4):
        (expected,) = cvxpy_values(problem, parameters, (P[i], q), variables)
        np.testing.assert_allclose(x[i].detach(), expected, atol=1e-6)
    x.square().sum().backward()
    assert P.grad.isfinite().all()
    assert q.grad.isfinite().all()


def test_quad_form_keeps_a_constant_linear_term(rng):
    x, P = cp.Variable(3), cp.Parameter((3, 3), PSD=True)
    c = np.array([1.0, -2.0, 0.5])
    layer = CvxpyLayer(cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P) + c @ x)), [P], [x])
    P = positive(rng)
    torch.testing.assert_close(layer(P)[0], -torch.linalg.solve(P, tensor(c, False)), rtol=0, atol=1e-8)


# ------------------------------------------------- what the original refuses as not DPP, and we solve


def test_quad_form_in_a_constraint(rng):
    """min cᵀx over xᵀPx <= 1: -P⁻¹c / sqrt(cᵀP⁻¹c)."""
    x, P, c = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(c @ x), [cp.quad_form(x, P) <= 1])
    layer = CvxpyLayer(problem, [P, c], [x])
    P, c = positive(rng).requires_grad_(), randn(rng, 3)
    direction = torch.linalg.solve(P, c)
    torch.testing.assert_close(layer(P, c)[0], -direction / (c @ direction).sqrt(), rtol=0, atol=1e-8)
    assert gradcheck(lambda P, c: layer(sym(P), c)[0], (P, c))


def test_quad_form_of_variable_plus_parameter(rng):
    x, p, P = cp.Variable(3), cp.Parameter(3), cp.Parameter((3, 3), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x + p, P)), [cp.sum(x) == 1])
    layer = CvxpyLayer(problem, [p, P], [x])
    p, P = randn(rng, 3), positive(rng).requires_grad_()
    towards = torch.linalg.solve(P, torch.ones(3, dtype=F64))
    expected = -p + towards * (1 + p.sum()) / towards.sum()
    torch.testing.assert_close(layer(p, P)[0], expected, rtol=0, atol=1e-8)
    assert gradcheck(lambda p, P: layer(p, sym(P))[0], (p, P))


def test_product_of_parameters(rng):
    x, a, b = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - cp.multiply(a, b))), [x <= 1])
    assert not problem.is_dpp()
    layer = CvxpyLayer(problem, [a, b], [x])
    values = randn(rng, 3), randn(rng, 3)
    torch.testing.assert_close(layer(*values)[0], (values[0] * values[1]).clamp_max(1), rtol=0, atol=1e-8)
    assert gradcheck(lambda *v: layer(*v)[0], values)


# ---------------------------------------------------------------------------------- what is refused


def test_not_convex_has_their_words_and_ours():
    problem, parameters, variables = quadratic(lambda x, P: cp.quad_form(x, P), attributes=("symmetric",))
    with pytest.raises(ValueError, match=r"Problem must be DPP\. .+") as caught:
        CvxpyLayer(problem, parameters, variables)
    assert isinstance(caught.value, DeclarationError)


def test_not_convex_in_a_constraint_has_their_note():
    x, P = cp.Variable(3), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.quad_form(x, P) <= 1])
    with pytest.raises(ValueError, match=r"Problem must be DPP\. Note: .*only supported in the objective"):
        CvxpyLayer(problem, [P], [x])


def test_not_geometric_has_their_words():
    x, a = cp.Variable(pos=True), cp.Parameter()
    with pytest.raises(ValueError, match="Problem must be DPP for geometric programming"):
        CvxpyLayer(cp.Problem(cp.Minimize(1 / x), [a * x <= 1]), [a], [x], gp=True)


def test_the_engine_is_not_blamed_on_the_problem():
    """A bad option of a problem that is not DPP, but solved, is reported as what it is."""
    x, a, b = cp.Variable(), cp.Parameter(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(x - a * b)))
    with pytest.raises(ValueError, match="no_such_option") as caught:
        CvxpyLayer(problem, [a, b], [x], solver_args={"no_such_option": 1})
    assert "DPP" not in str(caught.value)


def built(build):
    """A layer, or the text of a refusal of the original's type that is also ours."""
    try:
        return build(), ""
    except NotImplementedError as error:
        refusal = error
    assert isinstance(refusal, DeclarationError)
    return None, str(refusal)


def test_complex_is_solved_or_refused_by_name():
    x, b = cp.Variable(2, complex=True), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)))
    layer, refusal = built(lambda: CvxpyLayer(problem, [b], [x]))
    if layer is None:
        assert "Complex variables are not yet supported" in refusal
    else:
        torch.testing.assert_close(layer(tensor([1, 2]))[0].real, tensor([1, 2], False), rtol=0, atol=1e-8)


@pytest.mark.parametrize("attribute", ["diag", "sparsity"])
def test_reduced_parameters_are_solved_or_refused_by_name(attribute):
    """cvxpylayers refuses them."""
    option = {"diag": True} if attribute == "diag" else {"sparsity": [(0, 1), (0, 1)]}
    x, D = cp.Variable((2, 2)), cp.Parameter((2, 2), name="D", **option)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - D)), [x <= 1])
    layer, refusal = built(lambda: CvxpyLayer(problem, [D], [x]))
    if layer is None:
        assert "Parameter D has a dimension-reducing attribute" in refusal
    else:
        value = tensor([[0.5, 0], [0, 3]], False)
        torch.testing.assert_close(layer(value)[0], value.clamp_max(1), rtol=0, atol=1e-8)


def leaves():
    x, a, b = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - a) + cp.sum_squares(x - b))), x, a, b


@pytest.mark.parametrize(
    ("parameters", "variables", "message"),
    [
        (lambda x, a, b: [a], lambda x: [x], "must exactly match problem.parameters"),
        (lambda x, a, b: [a, b, cp.Parameter(2)], lambda x: [x], "must exactly match problem.parameters"),
        (lambda x, a, b: [a, a], lambda x: [x], "must exactly match problem.parameters"),
        (lambda x, a, b: [a, b, b], lambda x: [x], "must exactly match problem.parameters"),
        (lambda x, a, b: {a, b}, lambda x: [x], "parameters must be provided as a list or tuple"),
        (lambda x, a, b: a, lambda x: [x], "parameters must be provided as a list or tuple"),
        (lambda x, a, b: [a, b], lambda x: x, "variables must be provided as a list or tuple"),
        (lambda x, a, b: [a, b], lambda x: {x}, "variables must be provided as a list or tuple"),
        (
            lambda x, a, b: [a, b],
            lambda x: [x, cp.Variable(2)],
            "Variable .* must be a subset of problem.variables",
        ),
        (
            lambda x, a, b: [a, b],
            lambda x: [x + 1],
            "must be a subset of problem.variables or a constraint dual",
        ),
        (lambda x, a, b: [a, b], lambda x: [], "name at least one variable"),
    ],
)
def test_wrong_leaves(parameters, variables, message):
    problem, x, a, b = leaves()
    with pytest.raises(ValueError, match=message):
        CvxpyLayer(problem, parameters(x, a, b), variables(x))


def test_a_problem_without_variables_is_refused():
    p, Q = cp.Parameter(2), cp.Parameter((2, 2), PSD=True)
    with pytest.raises(ValueError, match="variables are empty"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.quad_form(p, Q))), [p, Q], [])


# ------------------------------------------------------------------------------------------- failures


@pytest.fixture
def diffcp(monkeypatch):
    """A module of that name, as code has that catches its errors."""

    class SolverError(Exception):
        pass

    module = types.ModuleType("diffcp")
    module.SolverError = SolverError
    monkeypatch.setitem(sys.modules, "diffcp", module)
    return module


def infeasible():
    x, b = cp.Variable(), cp.Parameter()
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - 3)), [x >= b, x <= 1]), [b], [x])


def unbounded():
    x, c = cp.Variable(2), cp.Parameter(2)
    return CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [x >= 0]), [c], [x])


FAILURES = [(infeasible, 2.0, InfeasibleError), (unbounded, [-1.0, 1.0], UnboundedError)]


@pytest.mark.parametrize(("build", "value", "error"), FAILURES)
def test_no_solution_is_their_error(build, value, error, diffcp):
    with pytest.raises(diffcp.SolverError) as caught:
        build()(tensor(value))
    assert isinstance(caught.value, error)
    assert isinstance(caught.value, RuntimeError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, diffcp.SolverError)
    assert isinstance(again, error)
    assert (str(again), again.indices) == (str(caught.value), caught.value.indices)


@pytest.mark.parametrize(("build", "value", "error"), FAILURES)
def test_no_solution_without_diffcp_is_ours(build, value, error, monkeypatch):
    monkeypatch.delitem(sys.modules, "diffcp", raising=False)
    with pytest.raises(error):
        build()(tensor(value))


@pytest.mark.parametrize("options", [None, {"eps": 1e-6}])
def test_one_infeasible_sample_is_named(options):
    with pytest.raises(InfeasibleError, match="sample 1 is infeasible") as caught:
        infeasible()(tensor([-1.0, 2.0, -3.0]), solver_args=options)
    assert caught.value.indices == (1,)


def test_the_way_out_is_named_where_it_exists():
    with pytest.raises(InfeasibleError, match=r"OptLayer\.from_problem with on_failure="):
        infeasible()(tensor([-1.0, 2.0]))


def test_an_infimum_not_attained_is_a_warning_and_nan():
    """The original warns, and returns where its solver stopped."""
    x, c = cp.Variable(), cp.Parameter(nonneg=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c * cp.exp(-x))), [c], [x])
    with pytest.warns(UserWarning, match="Solved/Inaccurate"):
        (found,) = layer(tensor(1.0))
    assert found.isnan()


def test_not_a_number_is_refused():
    with pytest.raises(InputError):
        nearest()(tensor([1.0, float("nan"), 0.0]))


# ------------------------------------------------------------------------------------------- solvers


@pytest.mark.parametrize(
    "solver", [None, "DIFFCP", "MOREAU", "CUCLARABEL", "MPAX", "CLARABEL", "SCS", "OSQP", "scs"]
)
def test_solvers_by_name(solver):
    layer = nearest(solver=solver)
    torch.testing.assert_close(layer(tensor([-1, 0.5, 2]))[0], tensor([0, 0.5, 2], False), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["NO_SUCH_SOLVER", object(), cp.Variable])
def test_unknown_solvers_are_refused(solver):
    with pytest.raises(DeclarationError, match=r"Unknown solver|SolverInterface of one's own"):
        nearest(solver=solver)


@pytest.mark.parametrize("backend", [None, "SCIPY", "CPP"])
def test_canonicalization_backends(backend):
    assert nearest(canon_backend=backend)(torch.ones(3))[0].shape == (3,)


def test_an_unknown_canonicalization_backend_is_refused():
    with pytest.raises(DeclarationError, match="canon_backend='FORTRAN'"):
        nearest(canon_backend="FORTRAN")


SOLVER_ARGS = [
    {"solve_method": "SCS"},
    {"solve_method": "SCS", "eps": 1e-9, "max_iters": 20000},
    {"solve_method": "ECOS", "abstol": 1e-9, "reltol": 1e-9, "feastol": 1e-9, "max_iters": 300},
    {"solve_method": "Clarabel", "tol_gap_abs": 1e-9, "max_iter": 300},
    {"eps": 1e-8, "max_iters": 10000, "acceleration_lookback": 0},
    {"eps_abs": 1e-7, "eps_rel": 1e-7, "acceleration_lookback": 10, "acceleration_interval": 10},
    {"tol": 1e-9},
    {"mode": "lsqr"},
    {"mode": "lsmr", "n_jobs_forward": 1, "n_jobs_backward": 4},
    {"mode": "dense", "derivative_kwargs": {}},
    {"verbose": False},
    {
        "max_iter": 400,
        "time_limit": 60.0,
        "device": "cpu",
        "ipm_settings": {"tol_feas": 1e-9, "diff_method": "exact"},
    },
    {"solver": "active_set", "enable_grad": True, "active_set_settings": None, "yolo": False},
]


@pytest.mark.parametrize("at", ["construction", "call"])
@pytest.mark.parametrize("arguments", SOLVER_ARGS, ids=str)
def test_solver_args(arguments, at):
    before = copy.deepcopy(arguments)
    if at == "construction":
        layer, per_call = nearest(solver_args=arguments), None
    else:
        layer, per_call = nearest(), arguments
    b = tensor([-1, 0.5, 2])
    (x,) = layer(b, solver_args=per_call)
    torch.testing.assert_close(x, b.clamp_min(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(x.sum(), b)[0], tensor([0, 1, 1], False), rtol=0, atol=1e-9
    )
    assert arguments == before  # the dict is the caller's own


REFUSED = [
    ({"mode": "lpgd"}, "mode='lpgd' is refused: LPGD"),
    ({"mode": "lpgd_left"}, "add a small strictly convex term"),
    ({"mode": "lpgd_right", "derivative_kwargs": {"tau": 0.1, "rho": 0.1}}, "LPGD"),
    ({"mode": "qr"}, "mode='qr'"),
    ({"derivative_kwargs": {"tau": 0.1}}, "derivative_kwargs"),
    ({"solve_method": "MOSEK"}, "expected 'SCS', 'ECOS' or 'Clarabel'"),
    ({"solver": "cuopt"}, "Moreau's own algorithms"),
    ({"enable_grad": False}, "torch.no_grad"),
    ({"yolo": True}, "certified"),
    ({"diff_method": "approximate"}, "expected 'exact' or 'smoothed'"),
    ({"ipm_settings": 3}, "ipm_settings is a int"),
    ({"tolerance": 1e-3}, "no solver's option; OptLayer.from_problem takes it"),
    ({"no_such_option": 1}, "no_such_option"),
    ({"solve_method": "Clarabel", "acceleration_lookback": 0}, "acceleration_lookback"),
    ({"solve_method": "SCS", "no_such_option": 1}, "no_such_option"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value))
def test_solver_args_are_refused_never_dropped(arguments, message):
    with pytest.raises(DeclarationError, match=message):
        nearest(solver_args=arguments)
    with pytest.raises(InputError, match=message):
        nearest()(torch.ones(3), solver_args=arguments)


def test_solve_method_beside_a_solver_is_refused():
    with pytest.raises(DeclarationError, match="name one of them"):
        nearest(solver="SCS", solver_args={"solve_method": "Clarabel"})


TRANSLATED = [
    (None, {}, None, {}),
    (None, {"mode": "dense", "verbose": False}, None, {}),
    (None, {"verbose": True}, "CLARABEL", {"verbose": True}),
    (None, {"eps": 1e-6}, "CLARABEL", {"tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-6}),
    ("DIFFCP", {"max_iters": 7}, "CLARABEL", {"max_iter": 7}),
    (None, {"max_iters": 7, "acceleration_lookback": 0}, "SCS", {"max_iters": 7, "acceleration_lookback": 0}),
    (None, {"solve_method": "SCS", "eps": 1e-6}, "SCS", {"eps_abs": 1e-6, "eps_rel": 1e-6}),
    (None, {"solve_method": "ECOS", "feastol": 1e-6}, "CLARABEL", {"tol_feas": 1e-6}),
    ("SCS", {"max_iter": 9, "tol": 1e-5}, "SCS", {"max_iters": 9, "eps_abs": 1e-5, "eps_rel": 1e-5}),
    ("OSQP", {"max_iters": 9, "polish": True}, "OSQP", {"max_iter": 9, "polish": True}),
    ("HIGHS", {"anything": 9}, "HIGHS", {"anything": 9}),
    (
        "MOREAU",
        {"ipm_settings": {"tol_feas": 1e-6, "direct_solve_method": "qdldl"}},
        "CLARABEL",
        {"tol_feas": 1e-6},
    ),
    (
        None,
        {"tol_feas": 1e-3, "eps": 1e-6},
        "CLARABEL",
        {"tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-3},
    ),
]


@pytest.mark.parametrize(("solver", "arguments", "engine", "options"), TRANSLATED)
def test_translation_of_solver_args(solver, arguments, engine, options):
    settings = translate(solver, arguments)
    assert settings.solver == engine
    assert dict(settings.options) == options


def test_smoothed_differentiation_is_our_smoothing():
    settings = translate("MOREAU", {"ipm_settings": {"diff_method": "smoothed", "diff_smoothing_mu": 1e-3}})
    assert settings.smoothing == 1e-3
    assert settings.plain.smoothing == 1e-3
    assert translate("MOREAU", {"diff_method": "smoothed"}).smoothing == 1e-4


def test_a_settings_object_of_moreau_is_read():
    class Settings:
        def model_dump(self, exclude_unset):
            assert exclude_unset
            return {"tol_feas": 1e-7}

    assert dict(translate("MOREAU", {"ipm_settings": Settings()}).options) == {"tol_feas": 1e-7}


def test_the_table_of_options_has_no_loops():
    """A name that an engine has itself is not translated to another of its names, except to a group."""
    for names in NAMES.values():
        for name, ours in names.items():
            assert name not in ours or len(ours) > 1
            assert name not in IDLE


@pytest.mark.filterwarnings("ignore:Solved/Inaccurate by")
@pytest.mark.parametrize("arguments", [{"max_iters": 1}, {"max_iters": 1, "solve_method": "SCS"}])
def test_one_iteration_does_not_raise_and_is_still_exact(arguments, rng):
    """The original returns the worse point; here it is polished, or solved again by the default engines."""
    problem, parameters, variables = ridge()
    layer = CvxpyLayer(problem, parameters, variables)
    F, g = randn(rng, 7, 4), randn(rng, 7)
    (x,) = layer(F, g, solver_args=arguments)
    torch.testing.assert_close(x, ridge_answer(F, g), rtol=0, atol=1e-9)
    problem, parameters, variables = absolute_regression()
    layer = CvxpyLayer(problem, parameters, variables, solver_args=arguments)
    agrees(layer, problem, parameters, (F[:3, :2], g[:3]), variables)


def test_options_reach_the_engine(capfd):
    nearest(verbose=True)(torch.ones(3))
    assert capfd.readouterr().out
    nearest()(torch.ones(3), solver_args={"verbose": True})
    assert capfd.readouterr().out
    nearest()(torch.ones(3))
    assert not capfd.readouterr().out
    assert "run by SCS with alpha=1.5" in repr(nearest(solver_args={"alpha": 1.5}))


def test_a_calls_options_are_merged_over_the_constructors():
    layer = nearest(solver_args={"solve_method": "SCS", "eps": 1e-6})
    layer(torch.ones(3), solver_args={"eps": 1e-7})
    merged = layer._merged({"eps": 1e-7})
    assert merged.solver == "SCS"
    assert dict(merged.options) == {"eps_abs": 1e-7, "eps_rel": 1e-7}
    assert dict(layer._merged(None).options) == {"eps_abs": 1e-6, "eps_rel": 1e-6}


def test_an_option_is_compiled_once_and_not_without_end(monkeypatch):
    layer, compiled = nearest(), []
    compile = type(layer._layers.declared).compile
    monkeypatch.setattr(
        type(layer._layers.declared),
        "compile",
        lambda self, settings: compiled.append(settings) or compile(self, settings),
    )
    for _ in range(3):
        layer(torch.ones(3), solver_args={"max_iters": 50})
    assert len(compiled) == 1
    for k in range(30):
        layer(torch.ones(3), solver_args={"max_iters": 60 + k})
    assert len(layer._layers._compiled) <= layer._layers.KEPT + 1
    layer(torch.ones(3))
    assert len(compiled) == 31  # the constructor's own stays


def test_threads_with_options_of_their_own(rng):
    layer, b = nearest(), torch.randn(40, 3, generator=rng, dtype=F64)

    def solve(i):
        return layer(b[i], solver_args={"max_iters": 40 + i % 3} if i % 4 else None)[0]

    with ThreadPoolExecutor(4) as pool:
        found = torch.stack(list(pool.map(solve, range(len(b)))))
    torch.testing.assert_close(found, b.clamp_min(0), rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------ warm start


def test_warm_start_is_moreaus():
    for solver in (None, "DIFFCP", "SCS"):
        with pytest.raises(ValueError, match="warm_start=True is only supported with solver='MOREAU'"):
            nearest(solver=solver)(torch.ones(3), warm_start=True)


def test_warm_start(rng):
    layer = nearest(solver="MOREAU")
    for shape in [(3,), (3,), (1, 3), (5, 3), (5, 3), (2, 3)]:  # the batch may change in between
        b = randn(rng, *shape)
        (x,) = layer(b, warm_start=True)
        torch.testing.assert_close(x, b.clamp_min(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(torch.autograd.grad(x.sum(), b)[0], (b > 0).to(F64), rtol=0, atol=1e-9)
    assert not layer._last.root.requires_grad
    assert not any(p.requires_grad for p in layer._last.primal)


# ------------------------------------------------------------------------------------- as a good module


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(copied, rng):
    layer = nearest(solver="MOREAU", solver_args={"max_iter": 300})
    b = randn(rng, 3)
    layer(b, warm_start=True)
    layer(b, solver_args={"max_iters": 44})
    twin = copied(torch.nn.Sequential(layer))[0]
    torch.testing.assert_close(twin(b), layer(b), rtol=0, atol=0)
    torch.testing.assert_close(twin(b, solver_args={"max_iters": 45}), layer(b), rtol=0, atol=1e-9)
    assert repr(twin) == repr(layer)
    assert layer._last is not None
    assert twin._last is None  # a warm start is no part of the model


@pytest.mark.parametrize("solver", ["OSQP", "CLARABEL"])
def test_a_problem_solved_before_does_not_keep_the_layer_from_being_pickled(solver):
    x, b = cp.Variable(2), cp.Parameter(2, value=[1.0, 2.0])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)))
    problem.solve(solver=solver)
    layer = pickle.loads(pickle.dumps(CvxpyLayer(problem, [b], [x])))
    torch.testing.assert_close(layer(tensor([3, 4]))[0], tensor([3, 4], False), rtol=0, atol=1e-9)


WRITE = """
import pickle, sys, cvxpy as cp
from optlayer import CvxpyLayer
x, b, P = cp.Variable(3), cp.Parameter(3), cp.Parameter((3, 3), PSD=True)
ball = cp.norm1(x) <= 1
problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + b @ x), [ball])
pickle.dump(CvxpyLayer(problem, [b, P], [x, ball.dual_variables[0]]), open(sys.argv[1], "wb"))
"""
READ = """
import pickle, sys, torch
layer = pickle.load(open(sys.argv[1], "rb"))
values = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
for options in (None, {"max_iters": 77}):
    x, price = layer(*values, solver_args=options)
    assert (x - torch.tensor([-0.25, -0.75, 0.0])).abs().max() < 1e-9, x
    assert abs(price - 0.5) < 1e-9, price
"""


def test_a_pickle_serves_in_a_fresh_process(tmp_path):
    """There, cvxpy's ids start anew: what is compiled for new options must not be confused by that."""
    for code in (WRITE, READ):
        fresh_python(code, tmp_path, str(tmp_path / "layer"))


def test_under_torch_func(rng):
    layer, b = nearest(solver="MOREAU"), randn(rng, 4, 3).detach()
    mapped = torch.func.vmap(lambda b: layer(b, warm_start=True)[0])(b)
    torch.testing.assert_close(mapped, layer(b)[0], rtol=0, atol=1e-9)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        found = jacobian(lambda b: layer(b)[0])(b[0])
        torch.testing.assert_close(found, torch.diag((b[0] > 0).to(F64)), rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, after a graph break
def test_in_a_compiled_model(rng):
    layer, b = nearest(), randn(rng, 4, 3)
    model = torch.compile(lambda b: 2 * layer(b)[0], backend="eager")
    torch.testing.assert_close(model(b), 2 * b.clamp_min(0), rtol=0, atol=1e-9)


def test_no_state():
    """The original's state_dict holds its canonical matrices."""
    layer = nearest()
    assert not layer.state_dict()
    assert not list(layer.parameters())
    layer.load_state_dict({})


def test_repr():
    assert "solver: DIFFCP, run by default engines" in repr(nearest(solver="DIFFCP"))
    assert "x (3,)" in repr(nearest())


def test_the_layer_underneath():
    layer = nearest()
    solution = layer.optlayer.solve(torch.ones(3))
    assert solution.residuals.worst <= 1e-8


def test_the_users_parameters_are_left_alone(rng):
    x, b = cp.Variable(3), cp.Parameter(3, value=np.ones(3))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b))), [b], [x])
    layer(randn(rng, 3))
    np.testing.assert_array_equal(b.value, np.ones(3))
    assert x.value is None
