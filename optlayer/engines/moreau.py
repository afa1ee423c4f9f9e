"""Moreau on matrices: a compiled solver for batches of cone programmes. Optional, the extra `fast`."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float64

from optlayer.columns import Columns, to_csc
from optlayer.cones import (
    Exponential,
    GeneralizedPower,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Semidefinite,
)
from optlayer.engines import Answer, Array, ConeProgram
from optlayer.engines.order import by_kind, check_kinds, of_kind
from optlayer.engines.sheet import Sheet
from optlayer.errors import DeclarationError
from optlayer.matrix import Sparse
from optlayer.solution import Status

CLAIMS = {
    "Solved": Status.SOLVED,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "NumericalError": Status.FAILED,
    "CallbackTerminated": Status.FAILED,
    "Unsolved": Status.FAILED,
}  # anything else (AlmostSolved, MaxIterations, MaxTime, InsufficientProgress): a point, inaccurate

KINDS = (Nonnegative, SecondOrder, Semidefinite, Exponential, Power, GeneralizedPower)  # in its rows' order
TINY = 30  # variables
OURS = ("batch_size", "enable_grad", "yolo", "yolo_num_iters", "ipm_settings", "active_set_settings")


Options = dict[str, Any]


class Moreau:
    """A `MatrixEngine`; options are the fields of Moreau's Settings, IPMSettings or ActiveSetSettings.

    It takes the batch as a whole and divides it among threads of its own. It may panic on a sample, and
    then says nothing of the others: they are asked for once more, one by one.
    """

    name = "MOREAU"
    quick = True

    def __init__(self, options: dict[str, Any]) -> None:
        self._moreau = _imported()
        self._options = {"device": "cpu", **options}
        self._kinds = self._moreau.Settings, self._moreau.IPMSettings, self._moreau.ActiveSetSettings
        self._check()

    def _check(self) -> None:
        """Fail at construction, not at the first call."""
        for option, value in self._options.items():
            owners = [kind for kind in self._kinds if option in kind.model_fields and option not in OURS]
            if not owners:
                known = ", ".join(sorted({f for kind in self._kinds for f in kind.model_fields} - set(OURS)))
                raise DeclarationError(f"MOREAU has no option {option!r}; it has {known}")
            try:
                owners[0](**{option: value})
            except (TypeError, ValueError) as error:
                raise DeclarationError(f"MOREAU refuses {option}={value!r}: {error}") from error

    def _settings(self, size: int, method: Options) -> Any:
        options = {**method, **self._options}
        top, ipm, active_set = (
            {k: v for k, v in options.items() if k in K.model_fields} for K in self._kinds
        )
        Settings, Ipm, ActiveSet = self._kinds
        return Settings(
            **top, batch_size=size, ipm_settings=Ipm(**ipm), active_set_settings=ActiveSet(**active_set)
        )

    def check_suits(self, K: Product) -> None:
        """Whether it takes these cones.

        Raises:
            DeclarationError: where it does not have one.
        """
        check_kinds(self.name, K, KINDS)

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """See `MatrixEngine`."""
        data, sheet, size = _Data(program, self._moreau), Sheet(self.name, program), len(program.q)
        method = _method(program)
        if self._asked(data, range(size), method, sheet) is not None:
            for i in range(size):
                error = self._asked(data, range(i, i + 1), method, sheet)
                if error is not None:
                    sheet.fail(i, error)
        return sheet.answer()

    def _asked(self, data: "_Data", rows: range, method: Options, sheet: Sheet) -> BaseException | None:
        """Write down what it says of some samples, or return what it threw."""
        try:
            solver = data.solver(rows, self._settings(len(rows), method))
            found = solver.solve(data.q[rows.start : rows.stop], data.b[rows.start : rows.stop])
            x, y = np.asarray(found.x), np.empty_like(found.z)
            y[:, data.order] = found.z
            iterations = np.broadcast_to(solver.info.iterations, len(rows))
            for k, (i, status) in enumerate(zip(rows, solver.info.status, strict=True)):
                claim = CLAIMS.get(status.name, Status.INACCURATE)
                sheet.write(i, claim, status.name, x[k], y[k], int(iterations[k]))
        except BaseException as error:  # a panic in the extension does not derive from Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return error
        return None


def is_installed() -> bool:
    """Whether the extra `fast` is here."""
    return find_spec("moreau") is not None


def _imported() -> Any:
    try:
        return import_module("moreau")
    except ImportError as error:
        raise DeclarationError("solver 'MOREAU' is not installed: pip install optlayer[fast]") from error


def _method(program: ConeProgram) -> Options:
    """Its active set method is dense inside: where a programme is sparse, and not tiny, not that one."""
    sparse = isinstance(program.A, Sparse) and program.A.shape[1] > TINY
    return {"solver": "ipm"} if sparse else {}


class _Data:
    """A batch as Moreau wants it, in compressed rows; those of a symmetric matrix are its columns."""

    def __init__(self, program: ConeProgram, moreau: Any) -> None:
        self.order = by_kind(program.zero, program.K, KINDS)
        self._P, self._A = to_csc(program.P), to_csc(program.A).reordered(self.order).transposed()
        self.q, self.b = program.q.numpy(), program.b.numpy()[:, self.order]
        self._moreau, self._cones = moreau, _cones(moreau, program.zero, program.K)

    def solver(self, rows: range, settings: Any) -> Any:
        """Set up for these samples."""
        solver = self._moreau.CompiledSolver(
            n=self.q.shape[1],
            m=self.b.shape[1],
            P_row_offsets=self._P.starts,
            P_col_indices=self._P.rows,
            A_row_offsets=self._A.starts,
            A_col_indices=self._A.rows,
            cones=self._cones,
            settings=settings,
        )
        solver.setup(_entries(self._P, rows), _entries(self._A, rows))
        return solver


def _entries(matrix: Columns, rows: range) -> Float64[Array, "B nnz"]:
    values = matrix.values if matrix.constant else matrix.values[rows.start : rows.stop]
    return np.broadcast_to(values, (len(rows), len(matrix.rows)))


def _cones(moreau: Any, zero: int, K: Product) -> Any:
    """Moreau's names for them; its orderings are the house's own."""
    return moreau.Cones(
        num_zero_cones=zero,
        num_nonneg_cones=sum(cone.dim for cone in of_kind(K, Nonnegative)),
        so_cone_dims=[cone.dim for cone in of_kind(K, SecondOrder)],
        psd_dims=[cone.n for cone in K.cones if isinstance(cone, Semidefinite)],
        num_exp_cones=len(of_kind(K, Exponential)),
        power_alphas=[cone.alpha for cone in K.cones if isinstance(cone, Power)],
        gen_power_cone_params=[(list(c.alphas), c.k) for c in K.cones if isinstance(c, GeneralizedPower)],
    )
