"""Dual variables as outputs of a `CvxpyLayer`: cvxpy's values and signs, with gradients, for every cone."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from optlayer import CvxpyLayer

from .test_cvxpylayer import agrees, randn, sym, tensor


def duals(*constraints):
    return [dual for constraint in constraints for dual in constraint.dual_variables]


def flat(layer, *values):
    return torch.cat([output.reshape(-1) for output in layer(*values)])


# ----------------------------------------------------------------------- one problem for each kind of row


def equality():
    """One row."""
    x, c, b = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    row = cp.sum(x) == b
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [row])
    return problem, [c, b], [x], duals(row), lambda rng: (randn(rng, 3), tensor(1.5))


def equalities():
    """Several rows, their matrix a parameter."""
    x, A, b = cp.Variable(4), cp.Parameter((2, 4)), cp.Parameter(2)
    rows = A @ x == b
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [rows])
    return problem, [A, b], [x], duals(rows), lambda rng: (randn(rng, 2, 4), randn(rng, 2))


def inequality():
    """Active and inactive rows."""
    x, c, u = cp.Variable(4), cp.Parameter(4), cp.Parameter(4)
    rows = x <= u
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [rows])
    values = tensor([-4, 4, -1, 0.5]), tensor([0.5, 0.5, 0.1, 1])
    return problem, [c, u], [x], duals(rows), lambda rng: values


def lower_bound():
    """The other sense."""
    x, c, l = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    rows = x >= l
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [rows])
    return problem, [c, l], [x], duals(rows), lambda rng: (tensor([1, -3, 2]), tensor([0.5, 0.2, -0.4]))


def linear_programme():
    """A vertex: duals of both kinds."""
    x, c, b = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    total, sign = cp.sum(x) == b, x >= 0
    problem = cp.Problem(cp.Minimize(c @ x), [total, sign])
    return problem, [c, b], [x], duals(sign, total), lambda rng: (tensor([3, 1, 2]), tensor(2))


def mixed():
    """Equalities and inequalities at once, asked for out of order."""
    x, c, b, u = cp.Variable(3), cp.Parameter(3), cp.Parameter(), cp.Parameter(3)
    total, upper, lower = cp.sum(x) == b, x <= u, x >= -1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [total, upper, lower])
    values = tensor([-3, 5, 0.4]), tensor(0.2), tensor([0.7, 0.7, 0.7])
    return problem, [c, b, u], [x], duals(lower, total, upper), lambda rng: values


def maximized():
    """A concave objective: the multiplier keeps its sign."""
    x, b = cp.Variable(2), cp.Parameter()
    row = cp.sum(x) <= b
    problem = cp.Problem(cp.Maximize(cp.sum(cp.log(x)) + x[0]), [row])
    return problem, [b], [x], duals(row), lambda rng: (tensor(1.7),)


def norm():
    """norm(x) <= t: one multiplier."""
    x, c, t = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    ball = cp.norm(x) <= t
    return (
        cp.Problem(cp.Minimize(c @ x), [ball]),
        [c, t],
        [x],
        duals(ball),
        lambda rng: (randn(rng, 3), tensor(2)),
    )


def second_order_cone():
    """SOC(t, x): a scalar and a vector."""
    x, t, c, r = cp.Variable(3), cp.Variable(), cp.Parameter(3), cp.Parameter(nonneg=True)
    cone, cap = cp.SOC(t, x), t <= r
    problem = cp.Problem(cp.Minimize(c @ x - 0.5 * t + 0.1 * cp.sum_squares(x)), [cone, cap])
    values = tensor([0.5, 0.3, -0.9]), tensor(2)
    return problem, [c, r], [x, t], duals(cone, cap), lambda rng: values


def exponential_cone():
    """y exp(x / y) <= z: three multipliers."""
    x, y, z, a, b = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter(), cp.Parameter()
    cone, second, third = cp.ExpCone(x, y, z), y == a, z <= b
    problem = cp.Problem(cp.Minimize(cp.square(z) - 3 * x), [cone, second, third])
    return problem, [a, b], [x, y, z], duals(cone, second, third), lambda rng: (tensor(1.2), tensor(0.8))


def power_cone():
    """x^α y^(1-α) >= |z|; the original skips this gradient, which its solver does not have."""
    x, y, z, a, b = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter(), cp.Parameter()
    cone, budget = cp.PowCone3D(x, y, z, 0.3), a * x + y <= b
    problem = cp.Problem(cp.Minimize(cp.square(z) - 4 * z), [cone, budget])
    return problem, [a, b], [x, y, z], duals(cone, budget), lambda rng: (tensor(1.4), tensor(2.1))


def semidefinite():
    """The multiplier of X >> 0 is the whole symmetric matrix C - λ I."""
    X, C, r = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True), cp.Parameter()
    cone, trace = X >> 0, cp.trace(X) == r
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [cone, trace])
    return problem, [C, r], [X], duals(cone, trace), lambda rng: (randn(rng, 3, 3), tensor(1))


KINDS = [
    equality,
    equalities,
    inequality,
    lower_bound,
    linear_programme,
    mixed,
    maximized,
    norm,
    second_order_cone,
    exponential_cone,
    power_cone,
    semidefinite,
]


def symmetric_where_declared(parameters, values):
    pairs = zip(parameters, values, strict=True)
    return tuple(sym(v) if p.attributes["symmetric"] else v for p, v in pairs)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_values(kind, rng):
    """Primal and dual together, as cvxpy gives them."""
    problem, parameters, primal, dual, draw = kind()
    outputs = [*dual, *primal]
    layer = CvxpyLayer(problem, parameters, outputs)
    values = symmetric_where_declared(parameters, draw(rng))
    agrees(layer, problem, parameters, values, outputs, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_gradients(kind, rng):
    """At torch's own tolerances, duals alone and with the primal; two of these the original fails."""
    problem, parameters, primal, dual, draw = kind()
    values = draw(rng)
    for outputs in (dual, [*primal, *dual]):
        layer = CvxpyLayer(problem, parameters, outputs)
        assert gradcheck(lambda *v: flat(layer, *symmetric_where_declared(parameters, v)), values)  # noqa: B023


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_batch_is_its_samples(kind, rng):
    problem, parameters, primal, dual, draw = kind()
    layer = CvxpyLayer(problem, parameters, [*primal, *dual])
    one = symmetric_where_declared(parameters, draw(rng))
    scales = torch.tensor([1.0, 1.1, 0.95], dtype=torch.float64)
    batch = [torch.stack([v.detach() * s for s in scales]) for v in one]
    together = layer(*batch)
    for i in range(3):
        for whole, part in zip(together, layer(*(v[i] for v in batch)), strict=True):
            torch.testing.assert_close(whole[i], part, rtol=0, atol=1e-8)


def test_a_dual_alone_and_its_shape_in_a_batch(rng):
    problem, parameters, _, dual, draw = equality()
    layer = CvxpyLayer(problem, parameters, dual)
    c, b = draw(rng)
    assert layer(c, b)[0].shape == ()
    assert layer(c.expand(5, 3), b)[0].shape == (5,)
    assert layer(c, b.expand(5))[0].shape == (5,)
    torch.testing.assert_close(layer(c, b)[0], -(2 * b + c.sum()) / 3, rtol=0, atol=1e-9)


def test_vector_duals_have_their_rows_shape(rng):
    problem, parameters, _, dual, draw = equalities()
    assert CvxpyLayer(problem, parameters, dual)(*draw(rng))[0].shape == (2,)


def test_a_semidefinite_dual_is_a_whole_matrix(rng):
    problem, parameters, (X,), dual, draw = semidefinite()
    C, r = symmetric_where_declared(parameters, draw(rng))
    found, primal = CvxpyLayer(problem, parameters, [dual[0], X])(C, r)
    least = torch.linalg.eigvalsh(C)[0]
    torch.testing.assert_close(found, C - least * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-12)
    assert (found @ primal).abs().max() < 1e-7


def test_matrix_rows_keep_their_order(rng):
    """A multiplier of a matrix constraint, entry by entry: no transposition on the way."""
    X, B = cp.Variable((2, 3)), cp.Parameter((2, 3))
    rows = X >= B
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X)), [rows])
    B = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3)
    (found,) = CvxpyLayer(problem, problem.parameters(), duals(rows))(B)
    torch.testing.assert_close(found, 2 * B, rtol=0, atol=1e-8)


def test_dual_of_another_problem_is_refused():
    x, b = cp.Variable(2), cp.Parameter(2)
    stranger = x <= 3
    with pytest.raises(
        ValueError, match=r"must be a subset of problem\.variables or a constraint dual variable"
    ):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0]), [b], [x, *duals(stranger)])


# --------------------------------------------------------------------------------- geometric programmes


def geometric():
    """Both rows active; the multipliers are those of the problem in logarithms."""
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    a, b, c = (cp.Parameter(pos=True) for _ in range(3))
    budget, ratio = a * x + y <= b, y <= c * x
    problem = cp.Problem(cp.Minimize(1 / (x * y**3)), [budget, ratio])
    return problem, [a, b, c], [x, y], duals(budget, ratio)


def test_geometric_programme_values():
    problem, parameters, primal, dual = geometric()
    outputs = [*primal, *dual]
    layer = CvxpyLayer(problem, parameters, outputs, gp=True)
    values = tensor(2.0), tensor(1.0), tensor(1.5)
    agrees(layer, problem, parameters, values, outputs, gp=True)
    batch = [torch.stack([v, v * 1.1]) for v in values]
    assert all(found.shape == (2,) for found in layer(*batch))


def test_geometric_programme_gradients():
    problem, parameters, primal, dual = geometric()
    values = tensor(2.0), tensor(1.0), tensor(1.5)
    for outputs in (dual, [*dual, *primal]):
        layer = CvxpyLayer(problem, parameters, outputs, gp=True)
        assert gradcheck(lambda *v: flat(layer, *v), values)  # noqa: B023


@pytest.mark.filterwarnings("ignore:the minimizer of")
def test_geometric_programme_whose_dual_alone_is_unique():
    """min 1/(xy) over a xy <= b: x and y are free against each other, the multiplier is 1."""
    x, y, a, b = (kind(pos=True) for kind in (cp.Variable, cp.Variable, cp.Parameter, cp.Parameter))
    row = a * (x * y) <= b
    layer = CvxpyLayer(cp.Problem(cp.Minimize(1 / (x * y)), [row]), [a, b], duals(row), gp=True)
    values = tensor(2.0), tensor(1.0)
    torch.testing.assert_close(layer(*values)[0], torch.ones((), dtype=torch.float64), rtol=0, atol=1e-7)
    assert gradcheck(lambda *v: layer(*v)[0], values)


# ----------------------------------------------------------------------------------- every cone at once


def every_cone():
    """Seven small problems in one, so that any mix-up in the order of the rows shows."""
    x, u, s = cp.Variable(2, name="x"), cp.Variable(2, name="u"), cp.Variable(2, name="s")
    t, e1, e2, e3, p1, p2, p3 = (cp.Variable(name=name) for name in ["t", "e1", "e2", "e3", "p1", "p2", "p3"])
    X = cp.Variable((2, 2), symmetric=True, name="X")
    b, upper, r = cp.Parameter(2), cp.Parameter(2), cp.Parameter(nonneg=True)
    equal, below, cone = x == b, u <= upper, cp.SOC(t, s)
    exponential, power, definite = cp.ExpCone(e1, e2, e3), cp.PowCone3D(p1, p2, p3, 0.5), X >> np.eye(2)
    rest = [t <= r, e2 == 1, e3 <= 2, p1 + p2 <= 3, cp.trace(X) <= 5]
    objective = (
        cp.sum_squares(x) - u @ np.array([1.0, 2.0]) + cp.sum_squares(u)
        + s @ np.array([1.0, -0.5]) + cp.sum_squares(s) - 3 * e1 + cp.square(e3) - 2 * p3
        + cp.square(p3) / 4 + cp.square(p1 - 1) / 10 + cp.trace(np.array([[2.0, 0.7], [0.7, 1.0]]) @ X)
    )  # fmt: skip
    constraints = [definite, power, equal, exponential, below, cone, *rest]
    primal = [x, u, s, t, e1, e2, e3, p1, p2, p3, X]
    outputs = [*primal, *duals(equal, below, cone, exponential, power, definite)]
    return cp.Problem(cp.Minimize(objective), constraints), [b, upper, r], outputs


def test_every_cone_at_once(rng):
    problem, parameters, outputs = every_cone()
    layer = CvxpyLayer(problem, parameters, outputs)
    values = tensor([0.3, -0.8]), tensor([0.2, 0.4]), tensor(0.25)
    agrees(layer, problem, parameters, values, outputs, atol=1e-4)


def test_every_cone_at_once_gradients(rng):
    problem, parameters, outputs = every_cone()
    layer = CvxpyLayer(problem, parameters, outputs)
    values = tensor([0.3, -0.8]), tensor([0.2, 0.4]), tensor(0.25)
    assert gradcheck(lambda *v: flat(layer, *v), values)
