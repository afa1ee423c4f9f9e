"""What the package uses of cvxpy beyond its documented methods. A failure here names what moved."""

import cvxpy as cp
import numpy as np
import pytest

from optlayer.engines import chain
from optlayer.forms import ReferenceProblem


def problem() -> ReferenceProblem:
    z, unused, x = cp.Variable((2, 3)), cp.Variable(2), cp.Parameter((2, 3))
    g, h = [z - 1 <= 0], [cp.sum(z, axis=1) - 1 == 0]
    return ReferenceProblem(cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [*g, *h]), [z, unused], [x], g, h)


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "OSQP"])
def test_the_chain_solves_and_maps_back(solver):
    reference, x = problem(), np.arange(6.0).reshape(2, 3)
    chain.assign(reference.parameters, [x])
    solution = chain.run(reference.problem, solver, {}, ignore_dpp=False)
    assert solution.status == cp.OPTIMAL, "Solution.status or chain.invert moved"
    values = chain.values(reference, solution)
    assert values.shape == (8,), "Solution.primal_vars moved"
    # Both rows are the projection of (0, 1, 2) onto {z : sum z = 1, z <= 1}, moved by a constant.
    assert np.abs(values[:6] - np.tile([-0.5, 0.5, 1.0], 2)).max() < 1e-3, "values are not in C order"
    assert (values[6:] == 0).all(), "a variable that the problem does not mention is 0"


def test_multipliers_come_in_c_order():
    """A 2 x 3 inequality with one active row; cvxpy hands multipliers out in Fortran order."""
    reference = problem()
    x = np.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    chain.assign(reference.parameters, [x])
    solution = chain.run(reference.problem, "CLARABEL", {}, ignore_dpp=False)
    lam = chain.multiplier(reference.inequalities[0], solution)
    assert lam.shape == (6,)
    assert np.argmax(lam) == 0
    assert lam[0] > 1.0
    assert np.abs(lam[1:]).max() < 1e-4, "Solution.dual_vars changed its order"


def test_a_stopped_solver_is_reported_and_does_not_raise():
    reference = problem()
    chain.assign(reference.parameters, [np.arange(6.0).reshape(2, 3)])
    solution = chain.run(reference.problem, "CLARABEL", {"max_iter": 1}, ignore_dpp=False)
    assert solution.status in (cp.USER_LIMIT, cp.OPTIMAL_INACCURATE, cp.SOLVER_ERROR)


def test_values_are_assigned_without_cvxpys_own_tolerance():
    """A float32 Gram matrix is positive semidefinite to its own precision only."""
    P = cp.Parameter((2, 2), PSD=True)
    slightly_indefinite = np.array([[1.0, 1.0], [1.0, 1.0 - 1e-6]])
    with pytest.raises(ValueError, match="must be positive semidefinite"):
        P.value = slightly_indefinite
    chain.assign([P], [slightly_indefinite])
    assert np.array_equal(P.value, slightly_indefinite)
