"""Clarabel on matrices: an interior point method for cone programmes (arXiv:2405.12762)."""

from typing import Any

import clarabel

from optlayer.columns import to_csc
from optlayer.cones import (
    ConvexCone,
    Exponential,
    GeneralizedPower,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Semidefinite,
)
from optlayer.engines import Answer, ConeProgram
from optlayer.engines.options import assign
from optlayer.engines.pool import Pool
from optlayer.engines.scaling import equilibrated
from optlayer.engines.sheet import Sheet, fill
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

UNHARMED = {"Solved", "AlmostSolved", "PrimalInfeasible", "DualInfeasible", "MaxIterations"}
# after these an object is as good as new; one that has met a NaN never is again

DEFAULTS = {"verbose": False, "max_threads": 1, "presolve_enable": False, "equilibrate_enable": False}
LIGHT = 300  # entries of a sample below which Python's part of the work leaves nothing for a second thread


class Clarabel:
    """A `MatrixEngine`; options are Clarabel's settings by name.

    One object serves many samples. An updated one keeps the scales of its first sample, so Clarabel's own
    equilibration is off and ours comes before it; asked for, it costs a new object each time.
    """

    name = "CLARABEL"
    quick = True

    def __init__(self, options: dict[str, Any], rescale: bool = False) -> None:
        self._rescale = rescale
        self._options = {**DEFAULTS, **options}
        self._pool = Pool()
        self._settings()  # fail at construction, not at the first call

    def _settings(self) -> Any:
        settings = clarabel.DefaultSettings()
        assign(self.name, settings, self._options)
        return settings

    def check_suits(self, K: Product) -> None:
        """Whether it takes these cones: it has all of ours."""

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """See `MatrixEngine`."""
        if not self._rescale:
            return self._solve(program)
        scaled, units = program.rescaled()
        return units.restored(self._solve(scaled))

    def _solve(self, program: ConeProgram) -> Answer:
        scaled, units = equilibrated(program)
        data = _Data(scaled, self._settings(), reusable=not self._options["equilibrate_enable"])
        sheet = Sheet(self.name, program)
        answer = fill(sheet, len(program.q), lambda: _Workspace(data), self._pool, data.entries < LIGHT)
        return units.restored(answer)


class _Data:
    """A batch as Clarabel wants it."""

    def __init__(self, program: ConeProgram, settings: Any, reusable: bool) -> None:
        self.P, self.A = to_csc(program.P).upper(), to_csc(program.A)
        self.q, self.b, self.K = program.q.numpy(), program.b.numpy(), program.K
        self.cones = [clarabel.ZeroConeT(program.zero), *(_cone(cone) for cone in program.K.cones)]
        self.settings, self.reusable = settings, reusable

    @property
    def entries(self) -> int:
        """Of one sample, and of the scaling of its semidefinite cones, which is dense."""
        scaling = sum(cone.dim**2 for cone in self.K.cones if isinstance(cone, Semidefinite))
        return len(self.P.rows) + len(self.A.rows) + self.q.shape[1] + self.b.shape[1] + scaling

    def solver(self, i: int) -> Any:
        P, A = self.P.matrix(i), self.A.matrix(i)
        return clarabel.DefaultSolver(P, self.q[i], A, self.b[i], self.cones, self.settings)

    def changes(self, i: int) -> dict[str, Any]:
        """What `update` needs to know of sample i."""
        matrices = {} if self.P.constant else {"P": self.P.at(i)}
        matrices |= {} if self.A.constant else {"A": self.A.at(i)}
        return {**matrices, "q": self.q[i], "b": self.b[i]}


class _Workspace:
    """One solver object, updated where Clarabel allows it: not where it decomposes a semidefinite cone."""

    def __init__(self, data: _Data) -> None:
        self._data = data
        self._solver: Any = None

    def solve(self, i: int, sheet: Sheet) -> bool:
        solution = self._loaded(i).solve()
        status = str(solution.status)
        claim = CLAIMS.get(status, Status.INACCURATE)
        sheet.write(i, claim, status, solution.x, solution.z, solution.iterations)
        return status in UNHARMED

    def _loaded(self, i: int) -> Any:
        if self._solver is None:
            solver = self._data.solver(i)
            self._solver = solver if self._data.reusable and solver.is_data_update_allowed() else None
            return solver
        self._solver.update(**self._data.changes(i))
        return self._solver


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
