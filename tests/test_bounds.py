"""What is too deep or too large is refused by name, before stack or memory are used up."""

import tracemalloc

import cvxpy as cp
import pytest
import torch

from optlayer import DeclarationError, OptLayer
from optlayer.declare.bounds import DEEPEST, LARGEST

DOUBLE = torch.float64


def nested(e, times):
    for _ in range(times):
        e = -e
    return e


def test_what_is_nested_too_deeply():
    z, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(nested(z - x, 200))))
    with pytest.raises(DeclarationError, match=f"the objective nests 20. atoms, expected at most {DEEPEST}"):
        OptLayer.from_problem(problem)
    with pytest.raises(DeclarationError, match="constraint 0 nests"):
        OptLayer.from_problem(cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [nested(z, 200) <= 1]))
    with pytest.raises(DeclarationError, match="inequality 0"):
        OptLayer([z], [x], lambda z, x: cp.sum_squares(z - x), [lambda z, x: nested(z, 200)])


def test_what_is_as_deep_as_allowed():
    z, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(nested(z - x, DEEPEST - 8))))
    layer = OptLayer.from_problem(problem)
    data = torch.tensor([0.5, -2.0], dtype=DOUBLE)
    torch.testing.assert_close(layer(data), data)


def test_a_hessian_that_would_not_fit():
    n = 2 * int(LARGEST**0.5)
    z, x = cp.Variable(n), cp.Parameter(n)
    tracemalloc.start()
    with pytest.raises(DeclarationError, match=r"the Hessian of objective is a dense .* 8 GiB"):
        OptLayer([z], [x], lambda z, x: cp.log_sum_exp(z - x) + cp.sum_squares(z))
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_what_is_separable_may_be_as_large():
    """A softmax of 50,000: no matrix is dense, neither at construction nor in a call."""
    n = 50_000
    z, x = cp.Variable(n), cp.Parameter(n)
    simplex = [lambda z, x: cp.sum(z) - 1]
    layer = OptLayer([z], [x], lambda z, x: -x @ z - cp.sum(cp.entr(z)), equalities=simplex)
    logits = torch.randn(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = layer(logits)
    torch.testing.assert_close(y, logits.softmax(0), rtol=1e-12, atol=1e-18)
    weights = torch.linspace(-1, 1, n, dtype=DOUBLE)
    (slope,) = torch.autograd.grad((weights * y).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((weights * logits.softmax(0)).sum(), logits)
    torch.testing.assert_close(slope, exact, rtol=1e-10, atol=1e-18)
