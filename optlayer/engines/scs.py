"""SCS on matrices: operator splitting for cone programmes (arXiv:1312.3039, arXiv:2004.02177)."""

from typing import Any

import numpy as np
import scs
from scipy import sparse

from optlayer.columns import to_csc
from optlayer.cones import ConvexCone, Exponential, Nonnegative, Power, Product, SecondOrder, Semidefinite
from optlayer.cones.orderings import house_to_scs
from optlayer.engines import Answer, Array, ConeProgram
from optlayer.engines.order import by_kind, check_kinds, of_kind
from optlayer.engines.pool import Pool
from optlayer.engines.sheet import Sheet, fill
from optlayer.errors import DeclarationError
from optlayer.solution import Status

CLAIMS = {
    scs.SOLVED: Status.SOLVED,
    scs.INFEASIBLE: Status.INFEASIBLE,
    scs.INFEASIBLE_INACCURATE: Status.INFEASIBLE,
    scs.UNBOUNDED: Status.UNBOUNDED,
    scs.UNBOUNDED_INACCURATE: Status.UNBOUNDED,
    scs.SOLVED_INACCURATE: Status.INACCURATE,
}  # anything else (failed, indeterminate, interrupted): FAILED

DEFAULTS = {"verbose": False, "eps_abs": 1e-9, "eps_rel": 1e-9, "eps_infeas": 1e-9, "max_iters": 20_000}
KNOWN = (
    *("indirect", "linear_solver", "max_iters", "eps_abs", "eps_rel", "eps_infeas", "time_limit_secs"),
    *("alpha", "rho_x", "scale", "adaptive_scale", "normalize", "acceleration_lookback"),
    *("acceleration_interval", "verbose", "log_csv_filename", "write_data_filename"),
)
KINDS = (Nonnegative, SecondOrder, Semidefinite, Exponential, Power)  # in the order of SCS's rows
LARGE = 1000  # unknowns from which on another factorization than SCS's own is worth its threads


class SCS:
    """A `MatrixEngine`; options are SCS's settings by name, and `indirect`, where no factorization fits.

    Every sample has an object of its own: an updated one keeps the step size it has come to.
    """

    name = "SCS"
    quick = False

    def __init__(self, options: dict[str, Any]) -> None:
        indirect = {"linear_solver": "cpu_indirect"} if options.get("indirect") else {}
        named = {option: value for option, value in options.items() if option != "indirect"}
        self._options = {**DEFAULTS, **indirect, **named}
        self._pool = Pool()
        _check(self._options)

    def check_suits(self, K: Product) -> None:
        """Whether it takes these cones.

        Raises:
            DeclarationError: where it does not have one.
        """
        check_kinds(self.name, K, KINDS)

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """See `MatrixEngine`."""
        work = _Workspace(program, self._options)
        return fill(Sheet(self.name, program), len(program.q), lambda: work, self._pool)


def _check(options: dict[str, Any]) -> None:
    """Let the solver judge the options, on min x s.t. x >= 0.

    Raises:
        DeclarationError: for one that it does not have or refuses.
    """
    data = {"A": sparse.csc_matrix([[-1.0]]), "b": np.zeros(1), "c": np.ones(1)}
    for option, value in options.items():
        if option not in KNOWN:
            raise DeclarationError(f"SCS has no option {option!r}; it has {', '.join(KNOWN)}")
        try:
            scs.SCS(data, {"l": 1}, **{"verbose": False, option: value})
        except (TypeError, ValueError, ImportError) as error:
            raise DeclarationError(f"SCS refuses {option}={value!r}: {error}") from error


class _Workspace:
    """A batch as SCS wants it; nothing is changed by a solve, so all threads share it."""

    def __init__(self, program: ConeProgram, options: dict[str, Any]) -> None:
        self._order = by_kind(program.zero, program.K, KINDS, _within)
        self._P, self._A = to_csc(program.P).upper(), to_csc(program.A).reordered(self._order)
        self._q, self._b = program.q.numpy(), program.b.numpy()[:, self._order]
        self._cones = _cones(program.zero, program.K)
        unknowns = self._q.shape[1] + self._b.shape[1]
        self._options = {"linear_solver": "auto" if unknowns >= LARGE else "qdldl", **options}

    def solve(self, i: int, sheet: Sheet) -> bool:
        data = {"P": self._P.matrix(i), "A": self._A.matrix(i), "b": self._b[i], "c": self._q[i]}
        found = scs.SCS(data, self._cones, **self._options).solve(warm_start=False)
        info, y = found["info"], np.empty_like(found["y"])
        y[self._order] = found["y"]
        claim = CLAIMS.get(info["status_val"], Status.FAILED)
        sheet.write(i, claim, info["status"], found["x"], y, info["iter"])
        return True


def _within(cone: ConvexCone) -> Array:
    """The order of a cone's own rows."""
    return house_to_scs(cone.n) if isinstance(cone, Semidefinite) else np.arange(cone.dim)


def _cones(zero: int, K: Product) -> dict[str, Any]:
    """SCS's names for them."""
    return {
        "z": zero,
        "l": sum(cone.dim for cone in of_kind(K, Nonnegative)),
        "q": [cone.dim for cone in of_kind(K, SecondOrder)],
        "s": [cone.n for cone in K.cones if isinstance(cone, Semidefinite)],
        "ep": len(of_kind(K, Exponential)),
        "p": [cone.alpha for cone in K.cones if isinstance(cone, Power)],
    }
