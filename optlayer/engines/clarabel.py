"""Clarabel on matrices: an interior point method for cone programmes (arXiv:2405.12762)."""

from dataclasses import replace
from typing import Any

import clarabel
import numpy as np
from scipy import sparse

from optlayer.cones import (
    ConvexCone,
    Exponential,
    GeneralizedPower,
    Nonnegative,
    Power,
    SecondOrder,
    Semidefinite,
)
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
    quick = True

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
        assert answer.rays is not None
        rays = answer.rays[0] * unit_x, answer.rays[1] * unit_y
        return replace(answer, x=answer.x * unit_x, y=answer.y * unit_y, rays=rays)

    def _solve(self, program: ConeProgram) -> Answer:
        P, A = _Csc(np.triu(program.P_pattern), program.P), _Csc(program.A_pattern, program.A)
        cones = [clarabel.ZeroConeT(program.zero), *(_cone(cone) for cone in program.K.cones)]
        settings = self._settings()
        solutions = [
            _solve_one(P.at(i), q, A.at(i), b, cones, settings)
            for i, (q, b) in enumerate(zip(program.q, program.b, strict=True))
        ]
        return _collect(solutions, program)


def _cone(cone: ConvexCone) -> Any:
    """Clarabel's name for a cone; its orderings are the house's own."""
    match cone:
        case Nonnegative(dim):
            return clarabel.NonnegativeConeT(dim)
        case SecondOrder(dim):
            return clarabel.SecondOrderConeT(dim)
        case Semidefinite(n):
            return clarabel.PSDTriangleConeT(n)
        case Exponential():
            return clarabel.ExponentialConeT()
        case Power(alpha):
            return clarabel.PowerConeT(alpha)
        case GeneralizedPower(alphas, k):
            return clarabel.GenPowerConeT(list(alphas), k)
    raise TypeError(f"CLARABEL has no cone {cone!r}")


class _Csc:
    """One sparse matrix, filled with one sample of a batch after the other."""

    def __init__(self, pattern: Array, dense: Array) -> None:
        columns, rows = np.nonzero(pattern.T)
        indptr = np.searchsorted(columns, np.arange(pattern.shape[1] + 1))
        self._entries = np.ascontiguousarray(dense[:, rows, columns])  # (B, nnz)
        self._matrix = sparse.csc_matrix((np.zeros(len(rows)), rows, indptr), shape=pattern.shape)

    def at(self, i: int) -> sparse.csc_matrix:
        self._matrix.data = self._entries[i]
        return self._matrix


def _solve_one(P: Any, q: Array, A: Any, b: Array, cones: Any, settings: Any) -> Any:
    try:
        return clarabel.DefaultSolver(P, q, A, b, cones, settings).solve()
    except BaseException as error:  # a panic in the extension does not derive from Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return error


def _collect(solutions: list[Any], program: ConeProgram) -> Answer:
    x, y = np.full_like(program.q, np.nan), np.full_like(program.b, np.nan)
    rays = np.full_like(x, np.nan), np.full_like(y, np.nan)
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
        else:
            rays[0][i], rays[1][i] = solution.x, solution.z
    return Answer(x, y, tuple(claims), tuple(words), iterations, rays)
