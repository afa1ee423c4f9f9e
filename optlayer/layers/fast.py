"""The fast path of a declared layer: a closed form for the numbers and derivatives of `forward`.

A closed form says where it has no answer by NaN. Then, and for inputs that are not finite, the whole
call goes the declared way, so that failures are the same errors and policies on both paths.
"""

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.batch import bind, enter
from optlayer.declare.callables import UserCallable
from optlayer.errors import DeclarationError
from optlayer.layer import OptLayer


class FastLayer(OptLayer):
    """A declaration, and beside it a closed form that `fast=True` calls.

    Args:
        fast: Whether a call takes the closed form; `solve` is the declared problem always.
        declaration, options: As in `OptLayer`.

    Raises:
        DeclarationError: for `fast=True` together with `smoothing`, whose derivatives are others.
    """

    fast = False

    def __init__(
        self,
        variables: Sequence[cp.Variable],
        parameters: Sequence[cp.Parameter],
        objective: UserCallable,
        inequalities: Sequence[UserCallable] = (),
        equalities: Sequence[UserCallable] = (),
        *,
        fast: bool,
        **options: Any,
    ) -> None:
        super().__init__(variables, parameters, objective, inequalities, equalities, **options)
        check_flag("fast", fast)
        if fast and self._smoothing is not None:
            raise DeclarationError(
                f"fast=True with smoothing={self._smoothing}: the closed form has the argmin's own "
                "derivatives; leave one of the two away"
            )
        self.fast = fast

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """The minimizer, as `OptLayer.forward` gives it; by the closed form where `fast` is set."""
        if not self.fast:
            return super().forward(*args, **kwargs)
        batch = self._prepared(enter(self._slots, bind(self._slots, args, kwargs), at_home=False))
        if batch.size and everywhere(*(t.isfinite() for t in batch.theta)):
            answer = self.closed_form(*batch.theta)
            if everywhere(answer.isfinite()):
                return batch.leave(answer, tuple(answer.shape[1:]))
        return super().forward(*args, **kwargs)

    def closed_form(self, *theta: Float64[Tensor, "B ..."]) -> Float64[Tensor, "B ..."]:
        """The minimizer with its derivatives; NaN where there is no answer, or not one."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The declaration, and whether it is what a call solves."""
        return super().extra_repr() + ("\nfast: by its closed form" if self.fast else "")


def everywhere(*conditions: Bool[Tensor, "..."]) -> bool:
    """Whether all entries of all samples hold, those that torch.func's transforms hide included."""
    return all(bool(plain(condition).all()) for condition in conditions)


def plain(tensor: Tensor) -> Tensor:
    """The numbers, with all the dimensions that vmap hides."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


# ------------------------------------------------------------------------------------- what is handed in


def size(name: str, given: Any, least: int = 1) -> int:
    """A whole number of at least `least`.

    Raises:
        DeclarationError: for anything else.
    """
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise DeclarationError(f"{name}={given!r}, expected a whole number of at least {least}")
    return given


def positive(name: str, given: Any) -> float:
    """A positive, finite number.

    Raises:
        DeclarationError: for anything else.
    """
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < float("inf"):
        raise DeclarationError(f"{name}={given!r}, expected a positive number")
    return float(given)


def check_flag(name: str, given: Any) -> None:
    """True or False.

    Raises:
        DeclarationError: for anything else.
    """
    if not isinstance(given, bool):
        raise DeclarationError(f"{name}={given!r}, expected True or False")
