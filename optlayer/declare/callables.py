"""The user's callables: called once on cvxpy leaves, judged, and named in every complaint."""

from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from optlayer.errors import DeclarationError

UserCallable = Callable[..., Any]


def name_of(role: str, function: UserCallable) -> str:
    """ "inequality 0 'lower'": the role, and the function's own name where it has one."""
    own = getattr(function, "__name__", "<lambda>")
    return role if own == "<lambda>" else f"{role} {own!r}"


def express(name: str, function: Any, leaves: Sequence[Any], theirs: Sequence[Any]) -> cp.Expression:
    """The expression a callable makes of private leaves.

    Args:
        name: What to call it in an error.
        function: The user's callable.
        leaves: Private copies, variables first.
        theirs: The user's own leaves, to tell one closed over from one never declared.

    Raises:
        DeclarationError: if what comes back is not an expression of the leaves.
    """
    if isinstance(function, torch.nn.Module):
        raise DeclarationError(
            f"{name} is an nn.Module ({type(function).__name__}); the smooth route takes functions written "
            "with cvxpy atoms or plain arithmetic, and passes learnable tensors in as parameters"
        )
    if not callable(function):
        raise DeclarationError(f"{name} is a {type(function).__name__}, expected a callable{_hint(function)}")
    try:
        result = function(*leaves)
    except DeclarationError:
        raise
    except Exception as error:
        raise DeclarationError(_why_it_raised(name, function, leaves, error)) from error
    return _as_expression(name, result, leaves, theirs)


def _why_it_raised(name: str, function: UserCallable, leaves: Sequence[Any], error: Exception) -> str:
    if _runs_on_torch_only(function, leaves):
        return (
            f"{name} is written for torch only ({type(error).__name__} on cvxpy variables: {error}); "
            "write it with cvxpy atoms or plain arithmetic, or add a branch: "
            "`if isinstance(z, cp.Expression): ...`"
        )
    shapes = ", ".join(f"{leaf.name()}: {leaf.shape}" for leaf in leaves)
    return f"{name} raised {type(error).__name__} on cvxpy leaves of shapes ({shapes}): {error}"


def _runs_on_torch_only(function: UserCallable, leaves: Sequence[Any]) -> bool:
    try:
        result = function(*(torch.rand(leaf.shape, dtype=torch.float64) for leaf in leaves))
    except Exception:
        return False
    return isinstance(result, Tensor)


def _as_expression(name: str, result: Any, leaves: Sequence[Any], theirs: Sequence[Any]) -> cp.Expression:
    if isinstance(result, Tensor):
        raise DeclarationError(
            f"{name} returned a torch tensor for cvxpy leaves: it is written for torch only, or does not "
            "depend on its arguments; write it with cvxpy atoms or plain arithmetic"
        )
    if isinstance(result, cp.Constraint) or not _is_numeric(result):
        raise DeclarationError(
            f"{name} returned a {type(result).__name__}, expected an expression{_hint(result)}"
        )
    expression = cp.Expression.cast_to_const(result)
    if expression.is_complex():
        raise DeclarationError(f"{name} is complex; only real expressions can be differentiated here")
    for leaf in [*expression.variables(), *expression.parameters()]:
        if not any(leaf is declared for declared in leaves):
            raise DeclarationError(_undeclared(name, leaf, theirs))
    return expression


def _undeclared(name: str, leaf: Any, theirs: Sequence[Any]) -> str:
    kind = "variable" if isinstance(leaf, cp.Variable) else "parameter"
    if any(leaf is declared for declared in theirs):
        return f"{name} uses the {kind} {leaf.name()!r} from outside; use the callable's argument instead"
    return (
        f"{name} depends on the {kind} {leaf.name()!r}, which was not declared: "
        f"add it to the layer's {kind}s and to the callable's arguments, or use a constant"
    )


def _is_numeric(result: Any) -> bool:
    if isinstance(result, cp.Expression):
        return True
    if result is None or isinstance(result, list | tuple | str | bool | dict):
        return False
    try:
        cp.Constant(result)
    except Exception:
        return False
    return True


def _hint(result: Any) -> str:
    if isinstance(result, cp.Constraint):
        return (
            ": a constraint is declared by its left side, g for g <= 0 or h for h == 0 "
            "(write `x - z` in inequalities for `z >= x`)"
        )
    if isinstance(result, list | tuple):
        return ": give one callable for each constraint, or join the rows with cp.hstack"
    if result is None:
        return ": the callable has no return value"
    return ""
