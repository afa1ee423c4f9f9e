"""Any solver cvxpy has installed, on a cone programme given as matrices."""

from typing import Any

import cvxpy as cp
import numpy as np

from optlayer.cones import (
    ConvexCone,
    Exponential,
    GeneralizedPower,
    Nonnegative,
    Power,
    SecondOrder,
    Semidefinite,
)
from optlayer.cones.orderings import smat_matrix, svec
from optlayer.engines import Answer, Array, ConeProgram, chain
from optlayer.engines.cvxpy import CLAIMS, check_options
from optlayer.errors import DeclarationError
from optlayer.solution import Status


class CvxpyMatrices:
    """A `MatrixEngine`; options are the solver's, as `cp.Problem.solve` takes them."""

    quick = False

    def __init__(self, solver: str, options: dict[str, Any]) -> None:
        self.name = solver.upper()
        self._options = options
        check_options(self.name, options)

    def check_suits(self, K: Any) -> None:
        """Whether the solver takes this kind of cones.

        Raises:
            DeclarationError: if it does not.
        """
        x = cp.Variable(K.dim)
        problem = cp.Problem(cp.Minimize(cp.sum(x)), [c for c, _ in _memberships(K.cones, x)])
        try:
            problem.get_problem_data(self.name)
        except cp.error.SolverError as error:
            raise DeclarationError(f"solver {self.name!r} does not suit this problem: {error}") from error

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """Every sample in turn; see `MatrixEngine`."""
        solved = [self._solve_one(program, i) for i in range(len(program.q))]
        x, y, claims, words, iterations = zip(*solved, strict=True)
        return Answer(np.stack(x), np.stack(y), claims, words, np.array(iterations, dtype=np.int64))

    def _solve_one(self, program: ConeProgram, i: int) -> tuple[Array, Array, Status, str, int]:
        P, q, A, b = program.P[i], program.q[i], program.A[i], program.b[i]
        x = cp.Variable(len(q))
        equality = program.A[i][: program.zero] @ x == b[: program.zero]
        members = _memberships(program.K.cones, b[program.zero :] - A[program.zero :] @ x)
        quadratic = 0.5 * cp.quad_form(x, cp.psd_wrap(P)) if P.any() else 0.0
        constraints = [*([equality] if program.zero else []), *(c for c, _ in members)]
        problem = cp.Problem(cp.Minimize(quadratic + q @ x), constraints)
        nowhere = np.full_like(q, np.nan), np.full_like(b, np.nan)
        try:
            solution = chain.run(problem, self.name, self._options, ignore_dpp=False)
        except Exception as error:
            return *nowhere, Status.FAILED, f"{self.name} raised {type(error).__name__}: {error}", 0
        claim, words = CLAIMS.get(solution.status, Status.FAILED), f"{self.name}: {solution.status}"
        iterations = int(solution.attr.get("num_iters") or 0)
        if not solution.primal_vars or claim not in (Status.SOLVED, Status.INACCURATE):
            return *nowhere, claim, words, iterations
        problem.unpack(solution)
        parts = [equality.dual_value] if program.zero else []
        y = np.concatenate([np.ravel(part) for part in [*parts, *(dual(c) for c, dual in members)]])
        return np.asarray(x.value), y, claim, words, iterations


def _memberships(cones: tuple[ConvexCone, ...], s: Any) -> list[tuple[Any, Any]]:
    """s ∈ K as constraints, each with how to read its multiplier in the order of the rows."""
    ends = np.cumsum([cone.dim for cone in cones])
    parts = [s[end - cone.dim : end] for cone, end in zip(cones, ends, strict=True) if cone.dim]
    return [_membership(cone, part) for cone, part in zip([c for c in cones if c.dim], parts, strict=True)]


def _membership(cone: ConvexCone, s: Any) -> tuple[Any, Any]:
    match cone:
        case Nonnegative():
            return s >= 0, lambda c: c.dual_value
        case SecondOrder():
            return cp.SOC(s[0], s[1:]), _stacked
        case Semidefinite(n):
            matrix = cp.reshape(smat_matrix(n) @ s, (n, n), order="F")
            return matrix >> 0, lambda c: svec(c.dual_value)
        case Exponential():
            return cp.ExpCone(s[0], s[1], s[2]), _stacked
        case Power(alpha):
            return cp.PowCone3D(s[0], s[1], s[2], alpha), _stacked
        case GeneralizedPower(alphas, 1):
            return cp.PowConeND(s[:-1], s[-1], np.array(alphas)), _stacked
    raise DeclarationError(f"cvxpy has no cone {cone!r}")


def _stacked(constraint: Any) -> Array:
    return np.concatenate([np.ravel(value) for value in constraint.dual_value])
