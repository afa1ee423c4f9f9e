"""Any solver cvxpy has installed, on the problem as the user stated it: the reference engine."""

from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.error import SolverError

from optlayer.engines import Answer, Array
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


class Cvxpy:
    """A `FunctionEngine`; options are the solver's, as `cp.Problem.solve` takes them."""

    def __init__(self, reference: Reference, solver: str, options: dict[str, Any]) -> None:
        self.name = solver.upper()
        if self.name not in cp.installed_solvers():
            installed = ", ".join(cp.installed_solvers())
            raise DeclarationError(f"solver {solver!r} is not installed; cvxpy finds {installed}")
        self._options = options
        self._workspace = PerThread(reference.build)
        self._try_options()

    def check_suits(self, reference: ReferenceProblem) -> None:
        """Whether the solver takes this class of problem, found out by handing it one.

        Raises:
            DeclarationError: if it does not.
        """
        for parameter in reference.parameters:
            parameter.save_value(parameter.project(np.full(parameter.shape, 0.5)))
        try:
            reference.problem.get_problem_data(self.name, ignore_dpp=True)
        except SolverError as error:
            raise DeclarationError(f"solver {self.name!r} does not suit this problem: {error}") from error

    def _try_options(self) -> None:
        """Let the solver itself judge its options, on min x² s.t. x >= 1, at construction."""
        if not self._options:
            return
        x = cp.Variable()
        problem = cp.Problem(cp.Minimize(cp.square(x)), [x >= 1])
        try:
            data, chain, _ = problem.get_problem_data(self.name)
            self._call(chain, problem, data)
        except Exception as error:
            options = ", ".join(f"{k}={v!r}" for k, v in self._options.items())
            raise DeclarationError(f"{self.name} refuses the options {options}: {error}") from error

    def solve_problem(self, theta: tuple[Array, ...]) -> Answer:
        """Every sample in turn; see `FunctionEngine`."""
        reference = self._workspace.get()
        ignore_dpp = sum(t[0].size for t in theta) > SMALL or not reference.problem.is_dpp()
        solved = [self._solve_one(reference, sample, ignore_dpp) for sample in zip(*theta, strict=True)]
        if not theta:
            solved = [self._solve_one(reference, (), ignore_dpp)]
        x, y, claims, words, iterations = zip(*solved, strict=True)
        return Answer(np.stack(x), np.stack(y), claims, words, np.array(iterations, dtype=np.int64))

    def _solve_one(
        self, reference: ReferenceProblem, theta: tuple[Array, ...], ignore_dpp: bool
    ) -> tuple[Array, Array, Status, str, int]:
        constraints = [*reference.inequalities, *reference.equalities]
        nowhere = (_nans(reference.variables), _nans(constraints))
        try:
            assign(reference, theta)
            solution = self._run(reference.problem, ignore_dpp)
        except Exception as error:
            return *nowhere, Status.FAILED, f"{self.name} raised {type(error).__name__}: {error}", 0
        claim = CLAIMS.get(solution.status, Status.FAILED)
        words = f"{self.name}: {solution.status}"
        iterations = int(solution.attr.get("num_iters") or 0)
        if not solution.primal_vars or claim not in (Status.SOLVED, Status.INACCURATE):
            return *nowhere, claim, words, iterations
        x = [np.ravel(solution.primal_vars[v.id]) for v in reference.variables]
        y = [_dual(c, solution.dual_vars.get(c.id)) for c in constraints]
        return _concatenate(x), _concatenate(y), claim, words, iterations

    def _run(self, problem: cp.Problem, ignore_dpp: bool) -> Any:
        """`problem.solve` without its warnings, and without writing values into the problem."""
        data, chain, inverse = problem.get_problem_data(
            self.name, ignore_dpp=ignore_dpp, solver_opts=self._options
        )
        raw = self._call(chain, problem, data)
        answer = chain.solver.invert(raw, inverse[-1])
        return chain.invert(raw, inverse) if answer.primal_vars else answer

    def _call(self, chain: Any, problem: cp.Problem, data: Any) -> Any:
        options = {k: v for k, v in self._options.items() if k != "verbose"}
        return chain.solve_via_data(problem, data, False, bool(self._options.get("verbose")), options)


def assign(reference: ReferenceProblem, theta: tuple[Array, ...]) -> None:
    """Set the parameters of a private copy; what may enter was checked against the attributes."""
    for parameter, value in zip(reference.parameters, theta, strict=True):
        if parameter.attributes["diag"] or parameter.sparse_idx is not None:
            parameter.value = value
        else:
            parameter.save_value(value)


def _dual(constraint: Any, value: Any) -> Array:
    """A constraint's multiplier in C order; cvxpy hands out Fortran order, or nothing at all."""
    if value is None:
        return np.zeros(constraint.size)
    return np.ravel(np.reshape(value, constraint.shape, order="F"))


def _nans(parts: Any) -> Array:
    return np.full(sum(part.size for part in parts), np.nan)


def _concatenate(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0)
