"""Objectives as a quadratic beside elementwise functions of affine expressions, against torch.func."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import grad, jacrev, vmap

from optlayer import OptLayer
from optlayer.declare.composite import CURVES, _power, composite
from optlayer.declare.smooth import _polynomial
from optlayer.declare.translate import translate
from optlayer.forms.blocks import flatten
from optlayer.forms.curved import FunctionCurved
from optlayer.matrix import Sparse

DOUBLE = torch.float64
B = 4
RNG = np.random.default_rng(0)
M, R = RNG.standard_normal((5, 4)), RNG.random((5, 4)) + 0.1

COMPOSITE = {  # in z (4,) > 0, y (2, 2), p (4,) > 0, s () > 0, W (5, 4)
    "entropy": lambda z, y, p, s, W: -cp.sum(cp.entr(z)) - p @ z,
    "weighted by data": lambda z, y, p, s, W: p @ cp.exp(z),
    "scaled, twice": lambda z, y, p, s, W: s * cp.sum(cp.exp(z)) - 2 * cp.sum(cp.log(3 * z)),
    "logistic with data": lambda z, y, p, s, W: cp.sum(cp.logistic(-W @ z)) + s * cp.sum_squares(z),
    "beside a quadratic": lambda z, y, p, s, W: cp.sum_squares(M @ z - M @ p) - cp.sum(cp.log(R @ z)),
    "two variables": lambda z, y, p, s, W: (
        cp.sum(cp.exp(y @ p[:2] + s * z[:2])) + cp.sum(cp.logistic(z)) + p[0]
    ),
    "powers": lambda z, y, p, s, W: cp.sum(cp.power(z, 4)) + cp.sum(cp.power(z, 2.5)) + cp.sum(cp.inv_pos(z)),
    "roots": lambda z, y, p, s, W: -cp.sum(cp.multiply(p, cp.sqrt(z))) - cp.sum(cp.log1p(z)),
    "shared argument": lambda z, y, p, s, W: cp.sum(cp.exp(z)) + cp.sum(cp.xexp(z)) + cp.sum(cp.square(z)),
    "matrices": lambda z, y, p, s, W: cp.sum(cp.exp(y)) - cp.trace(y) * s + cp.sum(cp.entr(z)),
    "inside a sum of rows": lambda z, y, p, s, W: cp.sum(cp.sum(cp.exp(y), axis=0)[:1]) + cp.sum(z) * 1.0,
}
FUNCTION = {
    "not elementwise": lambda z, y, p, s, W: cp.log_sum_exp(z) + cp.sum(cp.exp(z)),
    "a square of a curve": lambda z, y, p, s, W: cp.square(cp.sum(cp.exp(z))),
    "a curve of a curve": lambda z, y, p, s, W: cp.sum(cp.exp(cp.exp(z))),
    "data that are not affine": lambda z, y, p, s, W: (s * s) * cp.sum(cp.exp(z)),
    "an exponent that moves": lambda z, y, p, s, W: cp.sum(cp.exp(z)) + cp.sum(cp.power(z, s)),
}


def declared(make):
    z, y = cp.Variable(4, pos=True), cp.Variable((2, 2))
    p, s, W = cp.Parameter(4, pos=True), cp.Parameter(pos=True), cp.Parameter((5, 4))
    return make(z, y, p, s, W), [z, y], [p, s, W]


def data(seed, *batch):
    generator = torch.Generator().manual_seed(seed)
    shapes = (8,), (4,), (), (5, 4)
    x, p, s, W = (torch.rand((*batch, *shape), generator=generator, dtype=DOUBLE) + 0.3 for shape in shapes)
    return x, (p, s, W - 0.8)


def found(make):
    expression, variables, parameters = declared(make)
    f = _polynomial(variables, [translate(expression, variables, parameters)]).scalar
    return composite(f, expression, variables, parameters, data(0)[1], _polynomial)


@pytest.mark.parametrize("make", COMPOSITE.values(), ids=COMPOSITE)
def test_is_the_function_it_was_found_in(make):
    expression, variables, parameters = declared(make)
    f = _polynomial(variables, [translate(expression, variables, parameters)]).scalar
    x, theta = data(1, B)
    objective = found(make)
    assert objective is not None
    flat = flatten(x, theta)
    gradient, hessian = objective.second(x, theta, flat)
    exact = vmap(grad(f))(x, *theta)
    torch.testing.assert_close(objective.value(x, theta, flat), vmap(f)(x, *theta), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, exact, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(objective.gradient(x, theta, flat), exact, rtol=1e-13, atol=1e-13)
    curvature = vmap(jacrev(grad(f)))(x, *theta)
    torch.testing.assert_close(hessian.dense().expand(B, -1, -1), curvature, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", FUNCTION.values(), ids=FUNCTION)
def test_is_not_found_where_it_is_not(make):
    assert found(make) is None


@pytest.mark.parametrize("name", ["entropy", "weighted by data", "scaled, twice", "roots", "shared argument"])
def test_a_diagonal_hessian_is_kept_as_one(name):
    x, theta = data(1, B)
    _, hessian = found(COMPOSITE[name]).second(x, theta, flatten(x, theta))
    assert isinstance(hessian, Sparse)
    assert hessian.pattern.is_diagonal


@pytest.mark.parametrize("name", ["logistic with data", "beside a quadratic", "two variables"])
def test_its_gradient_is_differentiable_in_everything(name):
    x, theta = data(2, B)
    objective = found(COMPOSITE[name])
    inputs = tuple(t.requires_grad_() for t in (x, *theta))

    def gradient(x, *theta):
        return objective.gradient(x, theta, flatten(x, theta))

    assert torch.autograd.gradcheck(gradient, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(gradient, inputs)


@pytest.mark.parametrize("name", [*CURVES, 2.5, -1.0, 4.0, 0.5])
def test_slopes_and_curvatures_are_derivatives(name):
    curve = _power(name) if isinstance(name, float) else CURVES[name]
    y = torch.cat([torch.logspace(-8, 2, 60, dtype=DOUBLE), torch.tensor([300.0], dtype=DOUBLE)])
    y = y.requires_grad_()
    (slope,) = torch.autograd.grad(curve.value(y).sum(), y, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), y)
    torch.testing.assert_close(curve.slope(y), slope, rtol=1e-14, atol=0)
    torch.testing.assert_close(curve.curvature(y), curvature, rtol=1e-7, atol=0)  # torch's σ(1 - σ) cancels


@pytest.mark.parametrize("name", ["exp", "logistic", "xexp"])
def test_the_same_below_zero(name):
    curve, y = CURVES[name], -torch.logspace(-6, 2, 40, dtype=DOUBLE)
    y = y.requires_grad_()
    (slope,) = torch.autograd.grad(curve.value(y).sum(), y, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), y)
    torch.testing.assert_close(curve.slope(y), slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(curve.curvature(y), curvature, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", ["log", "entr", "log1p"])
def test_outside_of_its_domain_a_curve_is_no_number(name):
    curve, y = CURVES[name], torch.tensor([-2.0], dtype=DOUBLE)
    assert not curve.value(y).isfinite().any()


def test_the_layer_takes_it():
    """And the general function where a constraint or the objective asks for it."""
    z, x = cp.Variable(3), cp.Parameter(3)
    layer = OptLayer(
        [z], [x], lambda z, x: -x @ z - cp.sum(cp.entr(z)), equalities=[lambda z, x: cp.sum(z) - 1]
    )
    assert not isinstance(layer._plan.form.objective, FunctionCurved)
    other = OptLayer([z], [x], lambda z, x: cp.log_sum_exp(z - x) + cp.sum_squares(z))
    assert isinstance(other._plan.form.objective, FunctionCurved)
    logits = torch.randn(5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(logits), logits.softmax(1), rtol=1e-13, atol=1e-14)
