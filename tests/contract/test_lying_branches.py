"""Callables whose torch branch does not say what their cvxpy branch says: eleven mutants of a right one."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import DeclarationError, OptLayer

DOUBLE = torch.float64


def objective(z, Q, x, y):
    if isinstance(z, cp.Variable):
        return cp.sum_squares(Q @ z - x) + y @ z
    return (Q @ z - x).square().sum() + y @ z


def bound(z, Q, x, y):
    if isinstance(z, cp.Variable):
        return Q @ z - 1 - y
    return Q @ z - 1 - y


def swapped(Q):
    return Q[[1, 0, 2]]


def overwritten(z, Q, x, y):
    x += 1.0
    return (Q @ z - x).square().sum() + y @ z


def overwritten_afterwards(z, Q, x, y):
    value = (Q @ z - x).square().sum() + y @ z
    x.zero_()
    return value


HARMFUL = {  # of the objective
    "scaled": lambda z, Q, x, y: 1.01 * ((Q @ z - x).square().sum() + y @ z),
    "shifted": lambda z, Q, x, y: (Q @ z - x).square().sum() + y @ z + 1e-3,
    "transposed": lambda z, Q, x, y: (Q.mT @ z - x).square().sum() + y @ z,
    "a row swapped": lambda z, Q, x, y: (swapped(Q) @ z - x).square().sum() + y @ z,
    "a sign": lambda z, Q, x, y: (Q @ z + x).square().sum() + y @ z,
    "a dropped term": lambda z, Q, x, y: (Q @ z - x).square().sum(),
    "a wrong parameter": lambda z, Q, x, y: (Q @ z - y).square().sum() + y @ z,
    "a constant": lambda z, Q, x, y: torch.tensor(3.0, dtype=z.dtype),
    "an in-place write": overwritten,
    "an in-place write after the last read": overwritten_afterwards,
    "a detached parameter": lambda z, Q, x, y: (Q @ z - x.detach()).square().sum() + y @ z,
}
HARMLESS = {
    "written otherwise": lambda z, Q, x, y: (z @ Q.mT - x).pow(2).sum() + torch.dot(y, z),
    "in place, on a value of its own": lambda z, Q, x, y: (Q @ z - x).square_().sum().add_(y @ z),
}
CONSTRAINTS = {
    "an extra constraint": lambda z, Q, x, y: torch.cat([Q @ z - 1 - y, z[:1]]),
    "a constraint of another side": lambda z, Q, x, y: 1 + y - Q @ z,
}


def layer(f=None, g=None):
    """With other torch branches of the objective and the constraint."""
    z, Q, x, y = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(3), cp.Parameter(3)

    def either(given, torch_branch):
        if torch_branch is None:
            return given
        return lambda z, *theta: (given if isinstance(z, cp.Variable) else torch_branch)(z, *theta)

    return OptLayer([z], [Q, x, y], either(objective, f), [either(bound, g)])


def data(seed=0):
    r = torch.Generator().manual_seed(seed)
    shapes = (4, 3, 3), (4, 3), (4, 3)
    return tuple(torch.randn(*s, generator=r, dtype=DOUBLE).requires_grad_() for s in shapes)


@pytest.mark.parametrize("mutant", HARMFUL.values(), ids=HARMFUL)
def test_a_harmful_mutant_of_the_objective_is_caught(mutant):
    with pytest.raises(DeclarationError, match="objective"):
        layer(f=mutant)


@pytest.mark.parametrize("mutant", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_a_harmful_mutant_of_a_constraint_is_caught(mutant):
    with pytest.raises(DeclarationError, match="inequality 0"):
        layer(g=mutant)


def answers(built, seed=0):
    theta = data(seed)
    z = built(*theta)
    return z, torch.autograd.grad(z.square().sum(), theta)


@pytest.mark.parametrize("mutant", HARMLESS.values(), ids=HARMLESS)
def test_a_harmless_one_is_not(mutant):
    """What is solved and differentiated is the cvxpy branch, whatever the other one looks like."""
    z, slopes = answers(layer(f=mutant))
    expected, right = answers(layer())
    torch.testing.assert_close(z, expected, rtol=0, atol=0)
    for slope, exact in zip(slopes, right, strict=True):
        torch.testing.assert_close(slope, exact, rtol=0, atol=0)


def test_a_write_is_named():
    with pytest.raises(DeclarationError, match=r"objective .*writes into its argument .* in place"):
        layer(f=overwritten_afterwards)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's, of the very thing
def test_constants_of_numpy_make_no_torch_branch():
    """A tensor less an array is an array, which has no derivative: what is meant is the cvxpy branch."""
    capacity = np.array([0.5, 2.0, 2.0])
    layer = OptLayer(
        [cp.Variable(3)],
        [cp.Parameter(3)],
        lambda z, x: cp.sum_squares(z - x),
        inequalities=[lambda z, x: z - capacity],
    )
    found = layer(torch.ones(3, dtype=DOUBLE))
    assert torch.allclose(found, torch.tensor([0.5, 1.0, 1.0], dtype=DOUBLE))
