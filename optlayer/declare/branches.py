"""A callable may bring a torch branch of its own; it must be the same function as the cvxpy one.

What is solved and differentiated is the cvxpy branch, translated: one source of truth, batchable by
construction and guarded at the borders of its domain. The torch branch is checked against it when
the layer is built, values and derivatives, so that neither can say what the other does not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayer.declare.callables import UserCallable
from optlayer.declare.opaque import closed_over
from optlayer.declare.points import domain_points
from optlayer.errors import DeclarationError

POINTS = 3
TOLERANCE = 1e-6  # largest relative disagreement of values and of derivatives


class _CvxpyOnly(Exception):
    """A tensor met a cvxpy expression or a numpy array: the callable has no torch branch."""


class _Probe(Tensor):
    """A tensor that notices when it is combined with a cvxpy expression, or taken for a numpy array."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(a, cp.Expression) for a in args):
            raise _CvxpyOnly
        return super().__torch_function__(func, types, args, kwargs or {})

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise _CvxpyOnly  # an array has no derivative: numpy's constants are meant for cvxpy


def torch_branch(function: UserCallable, point: Sequence[Tensor]) -> Callable[..., Tensor] | None:
    """The callable as a function of torch tensors, or None where it has no torch branch.

    A cvxpy result is the mark of a callable written in cvxpy only. So is an exception: cvxpy atoms
    refuse many tensors, and the cvxpy branch is then the whole declaration.
    """
    try:
        result = function(*(p.clone().as_subclass(_Probe) for p in point))
    except Exception:
        return None
    return function if isinstance(result, Tensor) else None


def check_branch(
    name: str,
    branch: Callable[..., Tensor],
    truth: Callable[..., Tensor],
    points: Sequence[Sequence[Tensor]],
    arguments: Sequence[str],
) -> None:
    """The torch branch equals the translated cvxpy branch at the points; `arguments` names them.

    Raises:
        DeclarationError: naming the callable, the argument and the amount.
    """
    for point in points:
        expected, got = truth(*point), _values(name, branch, point, arguments)
        if got.numel() != expected.numel():
            raise DeclarationError(
                f"the two branches of {name} disagree: cvxpy gives shape {tuple(expected.shape)}, "
                f"torch {tuple(got.shape)}"
            )
        _compare(f"the two branches of {name} disagree in their values", got, expected)
        pairs = zip(pulled_back(branch, point), pulled_back(truth, point), arguments, strict=True)
        for mine, theirs, argument in pairs:
            what = f"the two branches of {name} disagree in the derivative with respect to {argument!r}"
            _compare(what, mine, theirs)


def check_values(name: str, function: UserCallable, expression: cp.Expression, leaves: Sequence[Any]) -> None:
    """The torch branch, if there is one, has the values of the cvxpy expression at three points.

    For what is not smooth: there is no translation to compare derivatives with.

    Args:
        name: What to call the callable in an error.
        function: The user's callable.
        expression: What it gives in cvxpy.
        leaves: Private ones, whose values are overwritten, in the order of the arguments.

    Raises:
        DeclarationError: naming the callable and the amount.
    """
    for point in domain_points(leaves, lambda point: True, POINTS):
        branch = torch_branch(function, point)
        if branch is None:
            return
        got = _values(name, branch, point, [leaf.name() for leaf in leaves])
        for leaf, value in zip(leaves, point, strict=True):
            leaf.save_value(value.numpy())
        expected = torch.as_tensor(np.asarray(expression.value, dtype=float))
        if expected.isfinite().all():
            _compare(f"the two branches of {name} disagree in their values", got, expected)


def _values(
    name: str, branch: Callable[..., Tensor], point: Sequence[Tensor], arguments: Sequence[str]
) -> Tensor:
    """Of the torch branch, which must depend on its arguments alone, and leave them as they are."""
    given = [p.clone() for p in point]
    got = branch(*given)
    if got.requires_grad:
        raise DeclarationError(closed_over(name))
    for argument, now, before in zip(arguments, given, point, strict=True):
        if not torch.equal(now, before):
            raise DeclarationError(
                f"{name} writes into its argument {argument!r} in place; compute a new tensor instead"
            )
    return got


def pulled_back(function: Callable[..., Tensor], point: Sequence[Tensor]) -> list[Tensor]:
    """wᵀ∂f for a generic w, by argument: it sees any difference, and is no larger than the arguments."""
    arguments = [p.clone().requires_grad_() for p in point]
    value = function(*arguments).reshape(-1).double()
    if not value.requires_grad:
        return [torch.zeros_like(a) for a in arguments]
    w = torch.cos(torch.arange(value.numel(), dtype=torch.float64) + 1.0)
    pulled = torch.autograd.grad(value, arguments, w, allow_unused=True)
    return [torch.zeros_like(a) if p is None else p for a, p in zip(arguments, pulled, strict=True)]


def _compare(message: str, got: Tensor, expected: Tensor) -> None:
    got, expected = got.detach().reshape(-1), expected.detach().reshape(-1)
    if not expected.numel():
        return
    gap = (got - expected).abs().max().item()
    scale = expected.abs().max().clamp_min(1e-3).item()
    if not gap <= TOLERANCE * scale:
        raise DeclarationError(
            f"{message} by {gap:.3g} ({gap / scale:.1e} relative); they must be one function"
        )
