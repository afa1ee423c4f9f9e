"""Rays prove what they prove, and nothing else."""

import cvxpy as cp
import pytest
import torch

from optlayer import InfeasibleError, OptLayer, UnboundedError, farkas
from optlayer.cones import (
    DualExponential,
    DualGeneralizedPower,
    DualPower,
    Exponential,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Semidefinite,
)
from optlayer.engines.elastic import contrary, inside
from optlayer.forms import Point
from optlayer.forms.kkt import Instance

DOUBLE = torch.float64
CONES = (
    *(Nonnegative(3), SecondOrder(4), Semidefinite(3), Exponential(), DualExponential()),
    *(Power(0.3), DualPower(0.8), DualGeneralizedPower((0.2, 0.3, 0.5), 2)),
)


def instance(problem, *theta):
    layer = OptLayer.from_problem(problem, method="cone")
    theta = tuple(torch.as_tensor(t, dtype=DOUBLE)[None] for t in theta)
    return Instance(layer._plan.form, theta, 1)


def ray(x=(), lam=(), nu=()):
    return Point(*(torch.tensor([part], dtype=DOUBLE) for part in (x, lam, nu)))


def interval(lower, upper):
    """min |z| s.t. lower <= z <= upper."""
    z, a, b = cp.Variable(), cp.Parameter(), cp.Parameter()
    return instance(cp.Problem(cp.Minimize(cp.square(z)), [z >= a, z <= b]), lower, upper)


def multipliers(problem, *first):
    """A ray with these multipliers of the inequalities."""
    form = problem.form
    return ray([0.0] * form.n, [*first, *[0.0] * (form.m - len(first))], [0.0] * form.p)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_contradiction_is_seen_at_every_scale(scale):
    empty, sound = interval(scale, -scale), interval(-scale, scale)
    assert farkas.excludes(empty, multipliers(empty, 1.0, 1.0))
    assert farkas.excludes(empty, multipliers(empty, 1e6, 1e6))
    assert not farkas.excludes(sound, multipliers(sound, 1.0, 1.0))


@pytest.mark.parametrize(
    "first",
    [(1.0, 0.5), (-1.0, -1.0), (0.0, 0.0), (torch.nan, torch.nan)],
    ids=["out_of_balance", "out_of_the_cone", "nothing", "no_number"],
)
def test_rays_that_prove_nothing(first):
    problem = interval(1.0, -1.0)
    assert not farkas.excludes(problem, multipliers(problem, *first))


def test_a_direction_of_recession():
    z, q = cp.Variable(2), cp.Parameter(2)
    problem = instance(cp.Problem(cp.Minimize(q @ z), [z >= 0, cp.norm2(z[:1]) <= 1]), [1.0, -1.0])
    free = [1.0 if v else 0.0 for v in (problem.origin.gradient[0] < 0).tolist()]
    assert farkas.recedes(problem, ray(free, [0.0] * problem.form.m))
    assert not farkas.recedes(problem, ray([-f for f in free], [0.0] * problem.form.m))
    assert not farkas.recedes(problem, ray([1.0] * problem.form.n, [0.0] * problem.form.m))
    assert not farkas.recedes(problem, ray([torch.nan] * problem.form.n, [0.0] * problem.form.m))


@pytest.mark.parametrize("cone", CONES, ids=lambda cone: type(cone).__name__)
def test_the_point_inside_of_a_cone_is_inside(cone):
    """Some way off the border: y'e > 0 for every y of the dual cone, by a part of |y|."""
    K = Product((cone, Nonnegative(2), cone))
    e = inside(K)
    y = K.dual.nearest(torch.randn(2000, K.dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))
    assert K.over_blocks(e.abs()).tolist() == pytest.approx([1.0] * K.dim)
    for rows in (slice(0, cone.dim), slice(cone.dim, cone.dim + 2), slice(cone.dim + 2, None)):
        part = y[:, rows]
        assert (part @ e[rows] > 0.1 * part.norm(dim=1))[part.norm(dim=1) > 0].all()


def test_a_programme_that_overflows_has_no_multipliers():
    """LAPACK would raise."""
    z, b = cp.Variable(2), cp.Parameter()
    problem = instance(cp.Problem(cp.Minimize(cp.norm(z)), [cp.sum(z) == 2 * b, cp.norm(z) <= 1]), 1e308)
    assert problem.origin.h.isinf().any()
    assert not list(contrary(problem))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e8])
def test_a_feasible_box_is_never_called_infeasible(scale):
    """Clarabel says so of this one at 1e8."""
    z, c, r = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.norm1(z - c)), [z >= -r, z <= r, cp.sum(z) == r])
    layer = OptLayer.from_problem(problem, [c, r])
    data = torch.tensor([3.0, -0.5], dtype=DOUBLE) * scale, torch.tensor(scale, dtype=DOUBLE)
    assert torch.allclose(layer(*data), torch.tensor([1.0, 0.0], dtype=DOUBLE) * scale, atol=1e-9 * scale)


def test_the_message_names_what_excludes_what():
    z, r = cp.Variable(3), cp.Parameter(name="r")
    ball, half, idle = cp.norm2(z) <= r, cp.sum(z) >= 3, z[0] <= 100
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(cp.norm1(z)), [ball, half, idle]))
    with pytest.raises(InfeasibleError, match=r"constraint 0.*constraint 1.*exclude each other") as caught:
        layer(torch.tensor([1.0, 2.0], dtype=DOUBLE))
    assert caught.value.indices == (0,)
    assert "constraint 2" not in str(caught.value)


def test_unbounded_needs_a_feasible_point():
    z, a = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(-z[1] + cp.abs(z[0])), [z[0] >= 1, z[0] <= a])
    layer = OptLayer.from_problem(problem)
    with pytest.raises(UnboundedError):
        layer(torch.tensor(2.0, dtype=DOUBLE))
    with pytest.raises(InfeasibleError):
        layer(torch.tensor(0.0, dtype=DOUBLE))
