"""OSQP on matrices: operator splitting for quadratic programmes (arXiv:1711.08013).

Cheap and rough, which is enough: Newton's method repairs its active sets. One factorization serves
as long as P and A stay and OSQP does not change its step size ρ.
"""

from typing import Any

import numpy as np
import osqp
from scipy import sparse

from optlayer.columns import to_csc
from optlayer.cones import Nonnegative, Product
from optlayer.engines import Answer, ConeProgram
from optlayer.engines.order import check_kinds
from optlayer.engines.pool import Pool
from optlayer.engines.scaling import equilibrated
from optlayer.engines.sheet import Sheet, fill
from optlayer.errors import DeclarationError
from optlayer.solution import Status

CLAIMS = {
    "solved": Status.SOLVED,
    "primal infeasible": Status.INFEASIBLE,
    "primal infeasible inaccurate": Status.INFEASIBLE,
    "dual infeasible": Status.UNBOUNDED,
    "dual infeasible inaccurate": Status.UNBOUNDED,
    "problem non convex": Status.FAILED,
}  # anything else (solved inaccurate, maximum iterations reached, ...): a point, inaccurate

UNHARMED = {"solved", "primal infeasible", "dual infeasible", "maximum iterations reached"}
# after these an object is as good as new, but for its step size

DEFAULTS = {
    "verbose": False,
    "eps_abs": 1e-5,
    "eps_rel": 1e-5,
    "eps_prim_inf": 1e-8,  # rays are verified
    "eps_dual_inf": 1e-8,
    "max_iter": 10_000,
    "check_dualgap": False,
    "warm_starting": False,
    "scaling": 0,
    "rho": 0.1,
}


class OSQP:
    """A `MatrixEngine` for quadratic programmes; options are OSQP's settings by name.

    It holds the interpreter's lock while it solves: a second thread would only wait. Its own scaling
    survives an update, so it is off and ours comes before it; asked for, it costs a new object each time.
    `warm_starting` would start a sample at the one before.
    """

    name = "OSQP"
    quick = True

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = {**DEFAULTS, **options}
        self._pool = Pool(1)
        _check(self._options)

    def check_suits(self, K: Product) -> None:
        """Whether it takes these cones.

        Raises:
            DeclarationError: where one is not an orthant.
        """
        check_kinds(self.name, K, (Nonnegative,))

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """See `MatrixEngine`."""
        scaled, units = equilibrated(program, keep_shared=True)
        data, sheet = _Data(scaled, self._options), Sheet(self.name, program)
        answer = fill(sheet, len(program.q), lambda: _Workspace(data), self._pool)
        return units.restored(answer)


def _check(options: dict[str, Any]) -> None:
    """Let the solver judge each option, on min x² s.t. x <= 1.

    Raises:
        DeclarationError: for one that it does not have or refuses.
    """
    known = [name for name in dir(osqp.OSQP().ext.OSQPSettings) if not name.startswith("_")]
    for option in options:
        if option not in known:
            raise DeclarationError(f"OSQP has no option {option!r}; it has {', '.join(known)}")
    if options["warm_starting"]:
        raise DeclarationError("OSQP refuses warm_starting=True: a sample would depend on the one before")
    one, unit = sparse.csc_matrix([[1.0]]), np.ones(1)
    for option, value in options.items():
        try:
            osqp.OSQP().setup(one, unit, one, -unit, unit, **{"verbose": False, option: value})
        except (TypeError, ValueError, osqp.OSQPException) as error:
            raise DeclarationError(f"OSQP refuses {option}={value!r}: {error}") from error


class _Data:
    """A batch as OSQP wants it: l <= Ax <= u, where l = u for the equalities and l = -∞ for the others."""

    def __init__(self, program: ConeProgram, options: dict[str, Any]) -> None:
        self.P, self.A = to_csc(program.P).upper(), to_csc(program.A)
        self.q, self.u = program.q.numpy(), program.b.numpy()
        self.l = self.u.copy()
        self.l[:, program.zero :] = -np.inf
        self.constant = self.P.constant and self.A.constant
        self.options = options

    def solver(self, i: int) -> Any:
        solver = osqp.OSQP()
        solver.setup(self.P.matrix(i), self.q[i], self.A.matrix(i), self.l[i], self.u[i], **self.options)
        return solver

    def update(self, solver: Any, i: int) -> None:
        solver.update(q=self.q[i], l=self.l[i], u=self.u[i])
        if not self.constant:
            solver.update(Px=self.P.at(i), Ax=self.A.at(i))


class _Workspace:
    """One solver object, updated as long as nothing but the data tells it from a new one."""

    def __init__(self, data: _Data) -> None:
        self._data = data
        self._solver: Any = None
        self._moved = False  # whether the last solve has changed ρ

    def solve(self, i: int, sheet: Sheet) -> bool:
        self._solver = self._loaded(i)
        found = self._solver.solve(raise_error=False)
        claim = CLAIMS.get(found.info.status, Status.INACCURATE)
        match claim:
            case Status.INFEASIBLE:
                x, y = np.full_like(found.x, np.nan), found.prim_inf_cert
            case Status.UNBOUNDED:
                x, y = found.dual_inf_cert, np.full_like(found.y, np.nan)
            case _:
                x, y = found.x, found.y
        sheet.write(i, claim, found.info.status, x, y, found.info.iter)
        self._moved = found.info.rho_updates > 0
        return found.info.status in UNHARMED

    def _loaded(self, i: int) -> Any:
        if self._solver is None or self._data.options["scaling"]:
            return self._data.solver(i)
        if self._moved:
            self._solver.update_settings(rho=self._data.options["rho"])
        self._data.update(self._solver, i)
        return self._solver
