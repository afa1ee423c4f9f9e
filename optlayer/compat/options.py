"""What each name in `solver_args` becomes: an engine's option, nothing, or a refusal. A table, mostly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optlayer.errors import DeclarationError

DEFAULTS = ("DIFFCP", "MOREAU", "CUCLARABEL", "MPAX")  # their engines, for all of which ours stand in
SOLVE_METHODS = {"SCS": "SCS", "ECOS": "CLARABEL", "CLARABEL": "CLARABEL"}

SCS_ONLY = {"acceleration_lookback", "acceleration_interval", "acceleration_type_1"}
SCS_ONLY |= {"acceleration_regularization", "acceleration_relaxation", "adaptive_scale", "alpha"}
SCS_ONLY |= {"rho_x", "scale", "normalize", "use_indirect", "linear_solver", "gpu", "mkl"}
SCS_ONLY |= {"log_csv_filename", "write_data_filename"}  # an option of this kind asks for SCS

_GAPS, _BOTH = ("tol_gap_abs", "tol_gap_rel", "tol_feas"), ("eps_abs", "eps_rel")
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "CLARABEL": {
        "eps": _GAPS,
        "tol": _GAPS,
        "eps_abs": ("tol_gap_abs", "tol_feas"),
        "eps_rel": ("tol_gap_rel",),
        "eps_infeas": ("tol_infeas_abs", "tol_infeas_rel"),
        "abstol": ("tol_gap_abs",),
        "reltol": ("tol_gap_rel",),
        "feastol": ("tol_feas",),
        "max_iters": ("max_iter",),
        "iteration_limit": ("max_iter",),
        "time_limit_secs": ("time_limit",),
    },
    "SCS": {
        "eps": _BOTH,
        "tol": _BOTH,
        "tol_gap_abs": ("eps_abs",),
        "tol_gap_rel": ("eps_rel",),
        "tol_feas": _BOTH,
        "max_iter": ("max_iters",),
        "iteration_limit": ("max_iters",),
        "time_limit": ("time_limit_secs",),
    },
    "OSQP": {
        "eps": _BOTH,
        "tol": _BOTH,
        "max_iters": ("max_iter",),
        "iteration_limit": ("max_iter",),
        "time_limit_secs": ("time_limit",),
    },
}  # engine -> their name -> that engine's; any other name goes to the engine, which knows or refuses it

_LPGD = (
    "LPGD is a finite difference of the solution, and optlayer's derivative is the exact one; where that is "
    "0, as in a linear programme, add a small strictly convex term such as 1e-2 * cp.sum_squares(x)"
)
_ALGORITHMS = "it chooses among Moreau's own algorithms"
_NO_GRAD = "call the layer under torch.no_grad()"
_YOLO = "every answer is certified; max_iter limits the iterations"
ANY = None
IDLE: dict[str, tuple[tuple[Any, ...] | None, str]] = {
    "mode": (("lsqr", "lsmr", "dense"), _LPGD),
    "derivative_kwargs": ((None, {}), _LPGD),
    "n_jobs_forward": (ANY, ""),
    "n_jobs_backward": (ANY, ""),
    "device": (ANY, ""),
    "device_id": (ANY, ""),
    "batch_size": (ANY, ""),
    "auto_tune": (ANY, ""),
    "solver": (("auto", "ipm", "active_set"), _ALGORITHMS),
    "direct_solve_method": (ANY, ""),
    "warm_start_no_retry": (ANY, ""),
    "enable_grad": ((True,), _NO_GRAD),
    "yolo": ((False,), _YOLO),
    "yolo_num_iters": (ANY, ""),
}  # how their layer computes what ours computes another way: the accepted values, and why no others

RESERVED = {"problem", "parameters", "variables", "gp"}
RESERVED |= {"method", "on_failure", "nonunique", "tolerance", "smoothing"}  # of OptLayer.from_problem


@dataclass(frozen=True)
class Settings:
    """What `solver` and `solver_args` ask of `OptLayer.from_problem`."""

    solver: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    smoothing: float | None = None

    @property
    def plain(self) -> "Settings":
        """The same problem and derivative, by the engines optlayer takes by itself."""
        return Settings(smoothing=self.smoothing)

    @property
    def key(self) -> str:
        """For a cache: values of options need not hash."""
        return repr(self)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options)
        return (self.solver or "default engines") + (f" with {options}" if options else "")


def translate(solver: str | None, arguments: Mapping[str, Any]) -> Settings:
    """The settings for a solver's name and `solver_args`.

    Raises:
        DeclarationError: for an option that cannot be honoured, naming it and the way out.
    """
    given = _flat(arguments)
    smoothing = _smoothing(given)
    _drop_idle(given)
    for name in sorted(RESERVED & given.keys()):
        raise DeclarationError(
            f"solver_args holds {name!r}, which is no solver's option; OptLayer.from_problem takes it"
        )
    if not given.get("verbose", True):
        del given["verbose"]
    engine = _engine(solver, given.pop("solve_method", None), given)
    return Settings(engine, tuple(sorted(_renamed(engine, given).items())), smoothing)


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Moreau's nested settings beside the others."""
    given = dict(arguments)
    for nest in ("ipm_settings", "active_set_settings"):
        inner = given.pop(nest, None)
        if hasattr(inner, "model_dump"):  # a settings object of Moreau's: what the user set of it
            inner = inner.model_dump(exclude_unset=True)
        if not isinstance(inner, Mapping | None):
            raise DeclarationError(f"solver_args {nest} is a {type(inner).__name__}, expected a dict")
        given.update(inner or {})
    return given


def _smoothing(given: dict[str, Any]) -> float | None:
    """Moreau's smoothed differentiation is our `smoothing`."""
    method, mu = given.pop("diff_method", "exact"), given.pop("diff_smoothing_mu", 1e-4)
    if method not in ("exact", "smoothed"):
        raise DeclarationError(f"solver_args diff_method={method!r}, expected 'exact' or 'smoothed'")
    return float(mu) if method == "smoothed" else None


def _drop_idle(given: dict[str, Any]) -> None:
    for name in [name for name in given if name in IDLE]:
        accepted, why = IDLE[name]
        if accepted is not ANY and given[name] not in accepted:
            raise DeclarationError(f"solver_args {name}={given[name]!r} is refused: {why}")
        del given[name]


def _engine(solver: str | None, solve_method: Any, given: Mapping[str, Any]) -> str | None:
    """The engine asked for, by name or by an option that only it has; None for the default ones."""
    if solver not in (None, *DEFAULTS):
        if solve_method is not None:
            raise DeclarationError(
                f"solve_method={solve_method!r} beside solver={solver!r}: name one of them"
            )
        return solver
    if solve_method is not None:
        name = SOLVE_METHODS.get(str(solve_method).upper())
        if name is None:
            raise DeclarationError(
                f"solver_args solve_method={solve_method!r}, expected 'SCS', 'ECOS' or 'Clarabel'; "
                "any other solver goes by solver=..."
            )
        return name
    if SCS_ONLY & given.keys():
        return "SCS"
    return "CLARABEL" if given else None


def _renamed(engine: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Their names in the engine's; a specific name beats a general one."""
    names = NAMES.get(engine or "", {})
    options: dict[str, Any] = {}
    for name in sorted(given, key=lambda name: -len(names.get(name, (name,)))):
        options |= dict.fromkeys(names.get(name, (name,)), given[name])
    return options
