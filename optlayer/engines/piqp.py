"""PIQP on matrices: a proximal interior point method for quadratic programmes (arXiv:2304.00290).

An optional dependency.
"""

from importlib import import_module
from typing import Any

import numpy as np

from optlayer.columns import to_csc
from optlayer.cones import Nonnegative, Product
from optlayer.engines import Answer, Array, ConeProgram, Units
from optlayer.engines.options import assign
from optlayer.engines.order import check_kinds
from optlayer.engines.pool import Pool
from optlayer.engines.scaling import equilibrated
from optlayer.engines.sheet import Sheet, fill
from optlayer.errors import DeclarationError
from optlayer.matrix import Dense
from optlayer.solution import Status

CLAIMS = {
    "PIQP_SOLVED": Status.SOLVED,
    "PIQP_MAX_ITER_REACHED": Status.INACCURATE,
    "PIQP_PRIMAL_INFEASIBLE": Status.INFEASIBLE,
    "PIQP_DUAL_INFEASIBLE": Status.UNBOUNDED,
}  # anything else (numerics, unsolved): FAILED

DEFAULTS = {
    "verbose": False,
    "preconditioner_iter": 0,
    "max_iter": 100,
    "infeasibility_threshold": 0.5,  # at its own 0.9 plain contradictions are missed; rays are verified
}
UNHARMED = set(CLAIMS)  # after these an object is as good as new
AS_THEY_ARE = Units(np.ones((1, 1)), np.ones((1, 1)))
SMALL = 1000  # entries up to which the dense solver is the quicker one, whatever they are


class PIQP:
    """A `MatrixEngine` for quadratic programmes; options are PIQP's settings by name.

    It holds the interpreter's lock while it solves, so a second thread would only wait. Ours is
    the preconditioner: it makes an updated object the same as a new one. With `afresh` every sample has an
    object to itself, and PIQP's own preconditioner. The rays it claims on are its last iterates, which grow
    along them.
    """

    name = "PIQP"
    quick = True

    def __init__(self, options: dict[str, Any], afresh: bool = False) -> None:
        self._piqp, self._afresh = _imported(), afresh
        self._options = {**DEFAULTS, **options}
        self._pool = Pool(1)
        for solver in (self._piqp.DenseSolver(), self._piqp.SparseSolver()):
            assign(self.name, solver.settings, self._options)

    def check_suits(self, K: Product) -> None:
        """Whether it takes these cones.

        Raises:
            DeclarationError: where one is not an orthant.
        """
        check_kinds(self.name, K, (Nonnegative,))

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """See `MatrixEngine`."""
        scaled, units = (program, AS_THEY_ARE) if self._afresh else equilibrated(program)
        dense = _dense(program)
        data = _DenseData(scaled) if dense else _SparseData(scaled)
        kind = self._piqp.DenseSolver if dense else self._piqp.SparseSolver

        def workspace() -> _Workspace:
            solver = kind()
            assign(self.name, solver.settings, self._options)
            return _Workspace(data, solver, self._afresh)

        return units.restored(fill(Sheet(self.name, program), len(program.q), workspace, self._pool))


def _imported() -> Any:
    try:
        return import_module("piqp")
    except ImportError as error:
        raise DeclarationError("solver 'PIQP' is not installed: pip install piqp") from error


def _dense(program: ConeProgram) -> bool:
    """Whether the dense solver is the quicker one."""
    (m, n), both = program.A.shape, (program.P, program.A)
    return (m + n) * n <= SMALL or all(isinstance(M, Dense) for M in both)


class _DenseData:
    """A batch as PIQP's dense solver wants it: Ax = b and Gx <= h apart."""

    def __init__(self, program: ConeProgram) -> None:
        self._P, self._A = program.P.dense().numpy(), program.A.dense().numpy()
        self._q, self._b, self.zero = program.q.numpy(), program.b.numpy(), program.zero

    def of(self, i: int) -> dict[str, Any]:
        P, A = (M[0 if len(M) == 1 else i] for M in (self._P, self._A))
        b, p = self._b[i], self.zero
        return {"P": P.T, "c": self._q[i], "A": A[:p], "b": b[:p], "G": A[p:], "h_u": b[p:]}


class _SparseData:
    """The same for its sparse solver."""

    def __init__(self, program: ConeProgram) -> None:
        self._P = to_csc(program.P)
        self._A, self._G = to_csc(program.A).split(program.zero)
        self._q, self._b, self.zero = program.q.numpy(), program.b.numpy(), program.zero

    def of(self, i: int) -> dict[str, Any]:
        P, A, G = (M.matrix(i) for M in (self._P, self._A, self._G))
        b, p = self._b[i], self.zero
        return {"P": P, "c": self._q[i], "A": A, "b": b[:p], "G": G, "h_u": b[p:]}


class _Workspace:
    """One solver object; it is told all the data each time, which keeps an update the same as a setup."""

    def __init__(self, data: _DenseData | _SparseData, solver: Any, once: bool) -> None:
        self._data, self._solver, self._load, self._once = data, solver, solver.setup, once

    def solve(self, i: int, sheet: Sheet) -> bool:
        self._load(**self._data.of(i))
        self._load = self._solver.update
        word = self._solver.solve().name
        found = self._solver.result
        y: Array = np.concatenate([found.y, found.z_u])
        claim = CLAIMS.get(word, Status.FAILED)
        sheet.write(i, claim, word, found.x, y, found.info.iter)
        return word in UNHARMED and not self._once
