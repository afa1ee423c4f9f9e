"""Any solver cvxpy has installed, on the problem as the user stated it: the reference engine."""

from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.error import SolverError

from optlayer.engines import Answer, Array, chain
from optlayer.engines.per_thread import PerThread
from optlayer.errors import DeclarationError
from optlayer.forms import Reference, ReferenceProblem
from optlayer.solution import Status

CLAIMS = {
    cp.OPTIMAL: Status.SOLVED,
    cp.OPTIMAL_INACCURATE: Status.INACCURATE,
    cp.USER_LIMIT: Status.INACCURATE,
    cp.INFEASIBLE: Status.INFEASIBLE,
    cp.INFEASIBLE_INACCURATE: Status.INFEASIBLE,
    cp.UNBOUNDED: Status.UNBOUNDED,
    cp.UNBOUNDED_INACCURATE: Status.UNBOUNDED,
}  # anything else: FAILED
SMALL = 10_000  # parameter entries above which cvxpy's parametrized form costs more than it saves


def check_options(solver: str, options: dict[str, Any]) -> None:
    """Let the solver itself judge its options, on min x² s.t. x >= 1, at construction.

    Raises:
        DeclarationError: for a solver that is not installed, or an option that it refuses.
    """
    if solver not in cp.installed_solvers():
        installed = ", ".join(cp.installed_solvers())
        raise DeclarationError(f"solver {solver!r} is not installed; cvxpy finds {installed}")
    if not options:
        return
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(x)), [x >= 1])
    try:
        chain.run(problem, solver, options, ignore_dpp=False)
    except Exception as error:
        named = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise DeclarationError(f"{solver} refuses the options {named}: {error}") from error


class Cvxpy:
    """A `FunctionEngine`; options are the solver's, as `cp.Problem.solve` takes them."""

    quick = False

    def __init__(self, reference: Reference, solver: str, options: dict[str, Any]) -> None:
        self.name = solver.upper()
        self._options = options
        self._workspace = PerThread(reference.build)
        check_options(self.name, options)

    def check_suits(self, reference: ReferenceProblem) -> None:
        """Whether the solver takes this class of problem, found out by handing it one.

        Raises:
            DeclarationError: if it does not.
        """
        halves = [p.project(np.full(p.shape, 0.5)) for p in reference.parameters]
        chain.assign(reference.parameters, halves)
        try:
            reference.problem.get_problem_data(self.name, ignore_dpp=True)
        except SolverError as error:
            raise DeclarationError(f"solver {self.name!r} does not suit this problem: {error}") from error

    def solve_problem(self, theta: tuple[Array, ...], size: int) -> Answer:
        """Every sample in turn; see `FunctionEngine`."""
        reference = self._workspace.get()
        ignore_dpp = sum(t[0].size for t in theta) > SMALL or not reference.problem.is_dpp()
        samples = zip(*theta, strict=True) if theta else [()] * size
        solved = [self._solve_one(reference, sample, ignore_dpp) for sample in samples]
        x, y, claims, words, iterations = zip(*solved, strict=True)
        return Answer(np.stack(x), np.stack(y), claims, words, np.array(iterations, dtype=np.int64))

    def _solve_one(
        self, reference: ReferenceProblem, theta: tuple[Array, ...], ignore_dpp: bool
    ) -> tuple[Array, Array, Status, str, int]:
        constraints = [*reference.inequalities, *reference.equalities]
        nowhere = (_nans(reference.variables), _nans(constraints))
        try:
            chain.assign(reference.parameters, theta)
            solution = chain.run(reference.problem, self.name, self._options, ignore_dpp)
        except Exception as error:
            return *nowhere, Status.FAILED, f"{self.name} raised {type(error).__name__}: {error}", 0
        claim = CLAIMS.get(solution.status, Status.FAILED)
        words = f"{self.name}: {solution.status}"
        iterations = int(solution.attr.get("num_iters") or 0)
        if not solution.primal_vars or claim not in (Status.SOLVED, Status.INACCURATE):
            return *nowhere, claim, words, iterations
        y = [chain.multiplier(c, solution) for c in constraints]
        return chain.values(reference, solution), np.concatenate([*y, []]), claim, words, iterations


def _nans(parts: Any) -> Array:
    return np.full(sum(part.size for part in parts), np.nan)
