"""Any solver cvxpy has installed, on a cone programme given as matrices."""

from typing import Any

import cvxpy as cp
import numpy as np

from optlayer.columns import to_csc
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
from optlayer.engines.pool import Pool
from optlayer.engines.sheet import Sheet, fill
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
        data, pool = _Data(program), Pool(1)  # cvxpy is not made for threads
        sheet = Sheet(self.name, program)
        return fill(sheet, len(program.q), lambda: _Workspace(data, self.name, self._options), pool)


class _Data:
    """A batch as scipy matrices."""

    def __init__(self, program: ConeProgram) -> None:
        self.P, self.A = to_csc(program.P), to_csc(program.A)
        self.q, self.b = program.q.numpy(), program.b.numpy()
        self.zero, self.cones = program.zero, program.K.cones


class _Workspace:
    """Sample after sample as a problem of its own."""

    def __init__(self, data: _Data, name: str, options: dict[str, Any]) -> None:
        self._data, self._name, self._options = data, name, options

    def solve(self, i: int, sheet: Sheet) -> bool:
        problem, x, parts = self._stated(i)
        solution = chain.run(problem, self._name, self._options, ignore_dpp=False)
        claim = CLAIMS.get(solution.status, Status.FAILED)
        iterations = int(solution.attr.get("num_iters") or 0)
        if not solution.primal_vars or claim not in (Status.SOLVED, Status.INACCURATE):
            sheet.silent(i, claim, solution.status, iterations)
            return True
        problem.unpack(solution)
        y = np.concatenate([np.ravel(dual(constraint)) for constraint, dual in parts] or [self._data.b[i]])
        sheet.write(i, claim, solution.status, np.asarray(x.value), y, iterations)
        return True

    def _stated(self, i: int) -> tuple[cp.Problem, cp.Variable, list[tuple[Any, Any]]]:
        """The problem, its variable, and its constraints, each with how to read its multiplier."""
        P, q, A, b = self._data.P.matrix(i), self._data.q[i], self._data.A.matrix(i), self._data.b[i]
        x, p = cp.Variable(len(q)), self._data.zero
        equality = [(A[:p] @ x == b[:p], lambda c: c.dual_value)] if p else []
        parts = [*equality, *_memberships(self._data.cones, b[p:] - A[p:] @ x)]
        quadratic = 0.5 * cp.quad_form(x, cp.psd_wrap(P)) if P.nnz and P.data.any() else 0.0
        problem = cp.Problem(cp.Minimize(quadratic + q @ x), [c for c, _ in parts])
        return problem, x, parts


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
