"""What holds an answer is judged in no unit; directions along which nothing does are found, and examined."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import InfeasibleError, OptLayer, UnboundedError, certify
from optlayer.balance import unheld
from optlayer.engines.recession import feasible, recedes
from optlayer.forms import Point
from optlayer.forms.kkt import Instance

DOUBLE = torch.float64
UNITS = [(1.0, 1.0, 1.0), (1e-6, 1e5, 1e4), (1e7, 1e-3, 1e-8)]


def programme(L, q, G, h, **options):
    """min ½|Lz|² + qᵀz s.t. Gz <= h."""
    (k, n), m = np.shape(L), len(h)
    z, Lp, qp = cp.Variable(n), cp.Parameter((k, n)), cp.Parameter(n)
    Gp, hp = cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(Lp @ z) / 2 + qp @ z), [Gp @ z <= hp])
    layer = OptLayer.from_problem(problem, [Lp, qp, Gp, hp], **options)
    return layer, tuple(torch.as_tensor(np.array(t), dtype=DOUBLE) for t in (L, q, G, h))


def instance(*data):
    layer, theta = programme(*data)
    return Instance(layer._plan.form, tuple(t[None] for t in theta), 1)


def in_units(unit, L, q, G, h):
    """z = Dz̃ with D = (1, unit 0), the rows of G in unit 1, the objective in unit 2."""
    D, row, f = np.array([1.0, unit[0]]), unit[1], unit[2]
    L, q, G, h = (np.array(t, dtype=float) for t in (L, q, G, h))
    return np.sqrt(f) * L / D, f * q / D, row * G / D, row * h


def point(unit, x, lam):
    """In those units."""
    x, lam = torch.tensor([x], dtype=DOUBLE), torch.tensor([lam], dtype=DOUBLE)
    D = torch.tensor([1.0, unit[0]], dtype=DOUBLE)
    return Point(x * D, lam * unit[2] / unit[1], torch.zeros(1, 0, dtype=DOUBLE))


def judged(problem, at):
    return unheld(problem.origin, at, certify.scales(problem.at(at), at).stationarity).item()


FLAT = ([[1.0, -1.0]], [-1.0, 0.0], [[-1.0, 0.0]], [1.0])  # nothing holds (1, 1)
STEEP = ([[1.0, -1.0], [1e-5, 1e-5]], [-1.0, 0.0], [[-1.0, 0.0]], [1.0])  # a curvature of 1e-10 does
WALL = ([[1.0, -1.0]], [-1.0, 0.0], [[1.0, 0.0]], [1e9])  # and here a constraint far out
CONE = ([[0.0, 0.0]], [1.0, 1.0], [[-1.0, -2.0], [-2.0, -1.0]], [0.0, 0.0])  # a vertex at 0, no length at all


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_holds_a_point_far_out_on_a_flat_direction(unit):
    problem = instance(*in_units(unit, *FLAT))
    assert judged(problem, point(unit, [1e10, 1e10], [0.0]))
    assert judged(problem, point(unit, [1e16, 1e16 - 2.0], [0.0]))


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_held_is_let_pass(unit):
    steep, wall, cone = (instance(*in_units(unit, *data)) for data in (STEEP, WALL, CONE))
    assert not judged(steep, point(unit, [2.5e9 + 0.5, 2.5e9 - 0.5], [0.0]))
    assert not judged(wall, point(unit, [1e9, 1e9], [1.0]))
    assert not judged(cone, point(unit, [1e-17, -2e-17], [1 / 3, 1 / 3]))


@pytest.mark.parametrize("unit", UNITS)
def test_flat_directions_are_found_in_any_unit(unit):
    assert recedes(instance(*in_units(unit, *FLAT)).origin)
    assert not recedes(instance(*in_units(unit, *STEEP)).origin)
    assert not recedes(instance(*in_units(unit, *WALL)).origin)
    assert not recedes(instance(*in_units(unit, *CONE)).origin)


@pytest.mark.parametrize("unit", UNITS)
def test_a_feasible_point_is_found_in_any_unit(unit):
    G, h = [[1.0, 1.0], [-1.0, -1.0]], [1.0, -1.0 + 1e-3]
    data = in_units(unit, FLAT[0], FLAT[1], G, h)
    x = feasible(instance(*data).origin)
    assert (data[2] @ x <= data[3] + 1e-9 * np.abs(data[3])).all()
    assert feasible(instance(*in_units(unit, FLAT[0], FLAT[1], G, [1.0, -1.001])).origin) is None


@pytest.mark.parametrize("solver", [None, "PIQP", "CLARABEL", "SCS"])
def test_multipliers_without_measure_hold_nothing(solver):
    """Two lines, the same but for the last digits: where they cross is rounding, and λ there was 1e80."""
    q = [9.99702455994525, 2487.869999228881]
    G = [
        [-216.57093753105468, 11946.970117690929],
        [0.031348793464986313, 7.7146843778374805],
        [-0.071121271960158605, -17.502369471915991],
    ]
    h = [2.6127922178913243, 0.0019112977651236183, -0.0043361773492822889]
    z, *leaves = cp.Variable(2), cp.Parameter(2), cp.Parameter((3, 2)), cp.Parameter(3)
    layer = OptLayer([z], leaves, lambda z, q, G, h: q @ z, [lambda z, q, G, h: G @ z - h], solver=solver)
    with pytest.raises(UnboundedError, match="keeps falling along a feasible direction"):
        layer(*(torch.tensor(part, dtype=DOUBLE) for part in (q, G, h)))


def test_constraints_that_meet_by_rounding_hold_nothing():
    """Along a direction f falls, and rows change in their last digits only: they meet at 6e16."""
    q = [-2.0403610194078916, 0.0009267568699753765, -0.09415910943035263]
    G = [
        [21.305660857315992, 0.03177515449441353, -1.4037739158297735],
        [4.095710980037049, 0.0011750477187148281, 0.014197373778583322],
        [-1.5152154740854622, 0.0007897373170167063, -0.07575484057346121],
        [-4.041254988897166e-05, -4.3269368909365853e-07, -1.4979381915096606e-05],
    ]
    h = [21.199576201488874, 2.3924265334310477, 0.4324562328175143, 0.000333909189431444]
    E, e = [[2.8972426287455404, -0.004157711473905039, 0.2973001029627127]], [-2.0360109458262783]
    L = [[-1.123061010699787, -0.00020886296223630423, -0.010418982864311773]]
    z = cp.Variable(3)
    leaves = [cp.Parameter(np.shape(part)) for part in (q, G, h, E, e, L)]
    objective = lambda z, q, G, h, E, e, L: cp.sum_squares(L @ z) / 2 + q @ z
    rows = [lambda z, q, G, h, E, e, L: G @ z - h], [lambda z, q, G, h, E, e, L: E @ z - e]
    with pytest.raises(UnboundedError, match="keeps falling along a feasible direction"):
        OptLayer([z], leaves, objective, *rows)(*(torch.tensor(p, dtype=DOUBLE) for p in (q, G, h, E, e, L)))


@pytest.mark.parametrize("method", ["smooth", "cone"])
def test_unbounded_is_proven_where_rounding_has_curved_a_direction(method):
    """L has two columns that are the same but for a unit; LᵀL is definite by its last digits."""
    column = np.array([0.1, 0.7, -0.3])
    L = np.stack([column, 1e3 * column / 7, [1.0, 2.0, 3.0]], 1)
    layer, data = programme(L, [1.0, 0.0, 0.0], [[0.0, 0.0, 1.0]], [1.0], method=method)
    with pytest.raises(UnboundedError, match="keeps falling along a feasible direction"):
        layer(*data)


def test_a_flat_direction_proves_nothing_without_a_feasible_point():
    layer, data = programme(FLAT[0], FLAT[1], [[1.0, -1.0], [-1.0, 1.0]], [1.0, -2.0])
    assert recedes(instance(FLAT[0], FLAT[1], [[1.0, -1.0], [-1.0, 1.0]], [1.0, -2.0]).origin)
    with pytest.raises(InfeasibleError):
        layer(*data)
