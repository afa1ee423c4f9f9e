"""Clarabel on matrices: an interior point method for cone programmes (arXiv:2405.12762)."""

from dataclasses import replace
from typing import Any

import clarabel
import numpy as np
from scipy import sparse

from optlayer.engines import Answer, Array, ConeProgram
from optlayer.errors import DeclarationError
from optlayer.solution import Status

CLAIMS = {
    "Solved": Status.SOLVED,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "NumericalError": Status.FAILED,
    "CallbackTerminated": Status.FAILED,
}  # anything else (AlmostSolved, MaxIterations, MaxTime, InsufficientProgress): a point, inaccurate

SAID = {Status.INFEASIBLE: "infeasible", Status.UNBOUNDED: "unbounded"}  # cvxpy's words for them


class Clarabel:
    """A `MatrixEngine`; options are Clarabel's settings by name."""

    name = "CLARABEL"

    def __init__(self, options: dict[str, Any], rescale: bool = False) -> None:
        self._rescale = rescale
        self._options = {"verbose": False, "max_threads": 1, **options}
        self._settings()  # fail at construction, not at the first call

    def _settings(self) -> Any:
        settings = clarabel.DefaultSettings()
        for option, value in self._options.items():
            if not hasattr(settings, option):
                known = ", ".join(a for a in dir(settings) if not a.startswith("_"))
                raise DeclarationError(f"CLARABEL has no option {option!r}; it has {known}")
            try:
                setattr(settings, option, value)
            except TypeError as error:
                raise DeclarationError(f"CLARABEL refuses {option}={value!r}: {error}") from error
        return settings

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """Every sample in turn; see `MatrixEngine`."""
        if not self._rescale:
            return self._solve(program)
        scaled, unit_x, unit_y = program.rescaled()
        answer = self._solve(scaled)
        return replace(answer, x=answer.x * unit_x, y=answer.y * unit_y)

    def _solve(self, program: ConeProgram) -> Answer:
        P, A = _Csc(np.triu(program.P_pattern)), _Csc(program.A_pattern)
        cones = [clarabel.ZeroConeT(program.K.zero), clarabel.NonnegativeConeT(program.K.nonnegative)]
        P_data, A_data, settings = P.data(program.P), A.data(program.A), self._settings()
        samples = zip(P_data, program.q, A_data, program.b, strict=True)
        return _collect(
            [_solve_one(P.at(p), q, A.at(a), b, cones, settings) for p, q, a, b in samples], program
        )


class _Csc:
    """A sparsity pattern, shared by every sample of a batch."""

    def __init__(self, pattern: Array) -> None:
        self.columns, self.rows = np.nonzero(pattern.T)
        self.shape = pattern.shape
        self.indptr = np.searchsorted(self.columns, np.arange(pattern.shape[1] + 1))

    def data(self, dense: Array) -> Array:
        """(B, rows, columns) -> the stored entries, (B, nnz)."""
        return np.ascontiguousarray(dense[:, self.rows, self.columns])

    def at(self, data: Array) -> sparse.csc_matrix:
        return sparse.csc_matrix((data, self.rows, self.indptr), shape=self.shape)


def _solve_one(P: Any, q: Array, A: Any, b: Array, cones: Any, settings: Any) -> Any:
    try:
        return clarabel.DefaultSolver(P, q, A, b, cones, settings).solve()
    except BaseException as error:  # a panic in the extension does not derive from Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return error


def _collect(solutions: list[Any], program: ConeProgram) -> Answer:
    x, y = np.full_like(program.q, np.nan), np.full_like(program.b, np.nan)
    iterations = np.zeros(len(solutions), dtype=np.int64)
    claims, words = [], []
    for i, solution in enumerate(solutions):
        if isinstance(solution, BaseException):
            claims.append(Status.FAILED)
            words.append(f"CLARABEL raised {type(solution).__name__}: {solution}")
            continue
        status = str(solution.status)
        claims.append(CLAIMS.get(status, Status.INACCURATE))
        words.append(f"CLARABEL: {SAID.get(claims[-1], status)}")
        iterations[i] = solution.iterations
        if claims[-1] in (Status.SOLVED, Status.INACCURATE, Status.FAILED):
            x[i], y[i] = solution.x, solution.z
    return Answer(x, y, tuple(claims), tuple(words), iterations)
