"""What the engines use of cvxpy beyond its public methods, all of it here.

Its counterpart for `declare`, which the engines never meet, is `declare/cvxpy_internals.py`.
`get_problem_data` is public; what it returns beside the data, the chain of reductions, is used to
solve and to map the answer back without `Problem.solve`'s warnings, exceptions and written values.
`tests/test_cvxpy_internals.py` says what moved when a new cvxpy breaks either.
"""

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np

from optlayer.engines import Array
from optlayer.forms import ReferenceProblem


def run(problem: cp.Problem, solver: str, options: dict[str, Any], ignore_dpp: bool) -> Any:
    """The cvxpy `Solution` of a problem: status, primal_vars and dual_vars by id, attr.

    Raises:
        Exception: whatever the solver or its interface raises.
    """
    verbose = bool(options.get("verbose", False))
    options = {k: v for k, v in options.items() if k != "verbose"}
    data, chain, inverse = problem.get_problem_data(solver, ignore_dpp=ignore_dpp, solver_opts=options)
    raw = chain.solve_via_data(problem, data, False, verbose, options)
    answer = chain.solver.invert(raw, inverse[-1])
    # Without a point there is nothing to map back, and some reductions fail on it.
    return chain.invert(raw, inverse) if answer.primal_vars else answer


def assign(parameters: Sequence[Any], values: Sequence[Array]) -> None:
    """Set parameters without cvxpy's own checks, whose tolerance is not the input dtype's."""
    for parameter, value in zip(parameters, values, strict=True):
        if parameter.attributes["diag"] or parameter.sparse_idx is not None:
            parameter.value = value
        else:
            parameter.save_value(value)


def values(reference: ReferenceProblem, solution: Any) -> Array:
    """x in C order; a variable that the problem does not mention is 0."""
    parts = [np.ravel(solution.primal_vars.get(v.id, np.zeros(v.shape))) for v in reference.variables]
    return np.concatenate(parts)


def multiplier(constraint: Any, solution: Any) -> Array:
    """A constraint's multiplier in C order; cvxpy hands out Fortran order, or nothing at all."""
    value = solution.dual_vars.get(constraint.id)
    if value is None:
        return np.zeros(constraint.size)
    return np.ravel(np.reshape(value, constraint.shape, order="F"))
