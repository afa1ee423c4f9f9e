"""The user's callables: called once on cvxpy leaves, judged, and named in every complaint.

One that cannot be evaluated on them is taken for written in torch only, see `opaque`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from optlayer.declare.bounds import check_depth
from optlayer.declare.opaque import Learned, Weight, torch_only
from optlayer.errors import DeclarationError

UserCallable = Callable[..., Any]


def name_of(role: str, function: UserCallable) -> str:
    """ "inequality 0 'lower'": the role, and the function's own name where it has one."""
    called = function.module if isinstance(function, Learned) else function
    own = (
        type(called).__name__
        if isinstance(called, torch.nn.Module)
        else getattr(called, "__name__", "<lambda>")
    )
    return role if own == "<lambda>" else f"{role} {own!r}"


def express(
    name: str,
    function: Any,
    leaves: Sequence[Any],
    theirs: Sequence[Any],
    weights: Sequence[Weight] = (),
    affine: bool = False,
) -> cp.Expression:
    """The expression a callable makes of private leaves.

    Args:
        name: What to call it in an error.
        function: The user's callable.
        leaves: Private copies, variables first.
        theirs: The user's own leaves, to tell one closed over from one never declared.
        weights: Leaves that stand for the weights of a module.
        affine: It is an equality.

    Raises:
        DeclarationError: if what comes back is not an expression of the leaves.
    """
    if isinstance(function, Learned):
        return torch_only(name, function, leaves, weights, affine)
    if not callable(function):
        raise DeclarationError(f"{name} is a {type(function).__name__}, expected a callable{_hint(function)}")
    try:
        result = function(*leaves)
    except DeclarationError:
        raise
    except Exception as error:
        if _runs_in_torch(function, leaves):
            return torch_only(name, function, leaves, (), affine)
        shapes = ", ".join(f"{leaf.name()}: {leaf.shape}" for leaf in leaves)
        raise DeclarationError(
            f"{name} raised {type(error).__name__} on cvxpy leaves of shapes ({shapes}): {error}"
        ) from error
    if not _is_numeric(result) and not isinstance(result, cp.Constraint) and _runs_in_torch(function, leaves):
        return torch_only(name, function, leaves, (), affine)
    return _as_expression(name, result, leaves, theirs)


def _runs_in_torch(function: UserCallable, leaves: Sequence[Any]) -> bool:
    """In float64 or, to complain of that later, in float32."""
    for dtype in (torch.float64, torch.float32):
        try:
            if isinstance(function(*(torch.rand(leaf.shape, dtype=dtype) for leaf in leaves)), Tensor):
                return True
        except Exception:
            continue
    return False


def _as_expression(name: str, result: Any, leaves: Sequence[Any], theirs: Sequence[Any]) -> cp.Expression:
    if isinstance(result, cp.Constraint) or not _is_numeric(result):
        raise DeclarationError(
            f"{name} returned a {type(result).__name__}, expected an expression{_hint(result)}"
        )
    expression = cp.Expression.cast_to_const(result)
    check_depth(name, expression)
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
    if result is None or isinstance(result, list | tuple | str | bool | dict | Tensor):
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
