"""A stand-in for `cvxpylayers.torch.CvxpyLayer`: its constructor and its call, on `OptLayer.from_problem`.

What differs on purpose, and what each name in `solver_args` becomes: docs/coming-from-cvxpylayers.md.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from optlayer.compat.options import Settings, translate
from optlayer.compat.words import batch_size, check_leaves, refusal, said, solver_name, their_error
from optlayer.errors import (
    DeclarationError,
    InaccurateError,
    InfeasibleError,
    InputError,
    SolveError,
    UnboundedError,
)
from optlayer.layer import OptLayer
from optlayer.solution import Solution

CANON_BACKENDS = (None, "SCIPY", "CPP", "COO", "RUST", "diffcp", "cuclarabel")

# --------------------------------------------------------------------------------------- the problem


@dataclass(frozen=True, eq=False)
class _Declared:
    """What the user handed in. Not his `cp.Problem`: one that was solved need not pickle."""

    objective: Any
    constraints: tuple[Any, ...]
    parameters: tuple[cp.Parameter, ...]
    variables: tuple[Any, ...]
    gp: bool

    def compile(self, settings: Settings) -> OptLayer:
        """One layer; that of the default engines says itself what an inaccurate answer is worth."""
        problem = cp.Problem(self.objective, list(self.constraints))
        return OptLayer.from_problem(
            problem,
            list(self.parameters),
            list(self.variables),
            solver=settings.solver,
            gp=self.gp,
            on_failure=_warn_or_raise if settings == settings.plain else "raise",
            smoothing=settings.smoothing,
            **dict(settings.options),
        )

    def refusal(self, settings: Settings, error: DeclarationError) -> DeclarationError:
        """The error in cvxpylayers' words where the problem is refused, as it is where the settings are."""
        problem = cp.Problem(self.objective, list(self.constraints))
        if settings != settings.plain:
            try:
                self.compile(settings.plain)
            except DeclarationError as of_problem:
                return refusal(problem, self.gp, of_problem)
            return error
        return refusal(problem, self.gp, error)


class _Layers:
    """The problem compiled for each of the settings in use; shared by copies and threads."""

    KEPT = 8  # beside the first

    def __init__(self, declared: _Declared, first: Settings) -> None:
        self.declared, self.first = declared, first
        self._lock = threading.Lock()
        self._compiled = {first.key: declared.compile(first)}

    def get(self, settings: Settings) -> OptLayer:
        with self._lock:
            if settings.key not in self._compiled:
                layer = self.declared.compile(settings)
                if len(self._compiled) > self.KEPT:
                    del self._compiled[list(self._compiled)[1]]  # the oldest but the first
                self._compiled[settings.key] = layer
            return self._compiled[settings.key]

    def __getstate__(self) -> dict[str, Any]:
        first = {self.first.key: self._compiled[self.first.key]}
        return {"declared": self.declared, "first": self.first, "_compiled": first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Layers":
        return self


def _warn_or_raise(error: Exception, solution: Solution) -> None:
    """Their layer raises where there is no solution and warns where it is inaccurate; NaN in ours."""
    del solution
    if not isinstance(error, InaccurateError):
        raise error
    warnings.warn(f"Solved/Inaccurate: {said(error).rstrip('.')}. It is NaN in the answer.", stacklevel=2)


# ----------------------------------------------------------------------------------------- the layer


class CvxpyLayer(torch.nn.Module):
    """`cvxpylayers.torch.CvxpyLayer`, answered by optlayer: moving over is the import.

    Args:
        problem: Any convex cp.Problem; it need not be DPP where optlayer can do without.
        parameters: Exactly those of the problem, in the order of the call.
        variables: What a call returns: the problem's variables, or `constraint.dual_variables[i]`.
        solver: None, "DIFFCP", "MOREAU", "CUCLARABEL" or "MPAX" take the best engine there is; any
            solver cvxpy has installed is taken by name.
        gp: Whether the problem is a geometric programme.
        verbose: Whether the engine prints.
        canon_backend: Accepted; it changes how fast cvxpy canonicalizes, never the answer.
        solver_args: Options by the names of SCS, ECOS, Clarabel, diffcp or Moreau; the defaults of
            every call.

    Raises:
        DeclarationError: (a ValueError) with cvxpylayers' text where it refuses the same, and the reason.

    Example:
        >>> import cvxpy as cp, torch
        >>> x, b = cp.Variable(3), cp.Parameter(3)
        >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0]), [b], [x])
        >>> layer(torch.tensor([-1.0, 0.5, 2.0]))
        (tensor([0.0000, 0.5000, 2.0000]),)
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[Any],
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_leaves(problem, parameters, variables)
        if canon_backend not in CANON_BACKENDS:
            raise DeclarationError(f"canon_backend={canon_backend!r}, expected one of {CANON_BACKENDS}")
        self._solver = solver_name(solver)
        self._solver_args = ({"verbose": True} if verbose else {}) | dict(solver_args or {})
        settings = translate(self._solver, self._solver_args)
        declared = _Declared(
            problem.objective, tuple(problem.constraints), tuple(parameters), tuple(variables), gp
        )
        try:
            self._layers = _Layers(declared, settings)
        except DeclarationError as error:
            raise declared.refusal(settings, error) from error
        self._shapes = tuple((p.name(), tuple(p.shape)) for p in parameters)
        self._last: Solution | None = None  # of the last call with warm_start=True

    @property
    def optlayer(self) -> OptLayer:
        """The layer underneath: `solve` gives status, residuals and flags of every sample."""
        return self._layers.get(self._layers.first)

    @torch.compiler.disable
    def forward(
        self, *params: Tensor, solver_args: dict[str, Any] | None = None, warm_start: bool = False
    ) -> tuple[Tensor, ...]:
        """The optimal values of `variables`, in that order.

        Args:
            params: For each parameter a tensor of its shape, or with one batch dimension in front; the
                batched ones agree in it.
            solver_args: Options for this call, over the constructor's. Options not used before compile
                the problem again.
            warm_start: Start from the last call's solution; only with solver="MOREAU".

        Returns:
            A tuple of tensors (*batch, *shape).

        Raises:
            InputError: (a ValueError) for tensors of wrong count, shape or batch, or not admissible.
            SolveError: where a sample is infeasible or unbounded; a `diffcp.SolverError`, too, for
                code that imports diffcp. An answer that stays inaccurate is NaN, with a warning.
        """
        if warm_start and self._solver != "MOREAU":
            raise InputError(
                "warm_start=True is only supported with solver='MOREAU'. "
                f"Current solver is '{self._solver or 'DIFFCP'}'."
            )
        size = self._check(params)
        solve = self._warm_call(size) if warm_start else _call
        try:
            found = self._answer(self._merged(solver_args), lambda layer: solve(layer, params))
        except SolveError as error:
            raise their_error(error) from None
        return (found,) if isinstance(found, Tensor) else found

    # ------------------------------------------------------------------------------------- the steps

    def _merged(self, solver_args: dict[str, Any] | None) -> Settings:
        if not solver_args:
            return self._layers.first
        try:
            return translate(self._solver, {**self._solver_args, **solver_args})
        except DeclarationError as error:
            raise InputError(str(error)) from error

    def _answer(self, settings: Settings, solve: Callable[[OptLayer], Any]) -> Any:
        """By the settings; what they leave inaccurate, once more by the default engines."""
        try:
            layer = self._layers.get(settings)
        except DeclarationError as error:
            raise InputError(f"solver_args: {error}") from error
        if settings == settings.plain:
            return solve(layer)
        try:
            return solve(layer)
        except (InfeasibleError, UnboundedError):
            raise
        except SolveError as error:
            warnings.warn(
                f"Solved/Inaccurate by {settings}: {said(error)} Solved again by optlayer's default engines.",
                stacklevel=2,
            )
        return solve(self._layers.get(settings.plain))

    def _warm_call(self, size: int) -> Callable[[OptLayer, tuple[Tensor, ...]], Any]:
        """From the last solution, if it had as many samples; under a transform it is left alone."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return _call
        last = self._last
        start = last if last is not None and last.status.numel() == size else None

        def solve(layer: OptLayer, params: tuple[Tensor, ...]) -> Any:
            solution = layer.solve(*params, warm_start=start)
            self._last = _detached(solution)
            return solution.primal

        return solve

    def _check(self, params: Sequence[Any]) -> int:
        """Count, shapes, one batch dimension at most: cvxpylayers' rules and words."""
        if len(params) != len(self._shapes):
            raise InputError(
                "A tensor must be provided for each CVXPY parameter; "
                f"received {len(params)} tensors, expected {len(self._shapes)}"
            )
        sizes = [batch_size(i, *slot, value) for i, (slot, value) in enumerate(zip(self._shapes, params))]
        batched = {size for size in sizes if size is not None}
        if len(batched) > 1:
            raise InputError(
                "Inconsistent batch sizes. Expected all batched parameters to have the same batch size, "
                f"but got: {[size or 0 for size in sizes]}"
            )
        return batched.pop() if batched else 1

    # --------------------------------------------------------------------------------- as a good module

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def extra_repr(self) -> str:
        """The problem as the layer underneath shows it, and what was asked of the solver."""
        asked = f"solver: {self._solver or 'default'}, run by {self._layers.first}"
        return f"{self.optlayer.extra_repr()}\n{asked}"


def _call(layer: OptLayer, params: tuple[Tensor, ...]) -> Any:
    return layer(*params)


def _detached(solution: Solution) -> Solution:
    """Without the graph of the call it came from."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, dict):
            return {key: cut(part) for key, part in value.items()}
        return tuple(cut(part) for part in value) if type(value) is tuple else value

    return replace(solution, **{f.name: cut(getattr(solution, f.name)) for f in fields(solution) if f.init})
