"""cvxpylayers' own checks and errors: the same rules, the same words, then ours."""

import sys
from functools import cache
from typing import Any

import cvxpy as cp

from optlayer.compat.options import DEFAULTS
from optlayer.errors import DeclarationError, InputError, SolveError


class NotATensor(InputError, AttributeError):
    """A parameter's value has no shape; cvxpylayers' own error for None is an AttributeError."""


class Unsupported(DeclarationError, NotImplementedError):
    """What cvxpylayers refuses with a NotImplementedError, and optlayer likewise."""


def check_leaves(problem: Any, parameters: Any, variables: Any) -> None:
    if not isinstance(problem, cp.Problem):
        raise DeclarationError(f"problem is a {type(problem).__name__}, expected a cvxpy.Problem")
    for name, given in (("parameters", parameters), ("variables", variables)):
        if not isinstance(given, list | tuple):
            raise DeclarationError(f"The layer's {name} must be provided as a list or tuple")
    theirs = {id(p): p for p in problem.parameters()}
    if theirs.keys() != {id(p) for p in parameters} or len(parameters) != len(theirs):
        expected = ", ".join(repr(p.name()) for p in theirs.values()) or "none"
        raise DeclarationError(
            "The layer's parameters must exactly match problem.parameters, "
            f"each given once; the problem has {expected}"
        )
    if not variables:
        raise DeclarationError("The layer's variables are empty; name at least one variable to return")
    known = {id(v) for v in problem.variables()}
    known |= {id(d) for constraint in problem.constraints for d in constraint.dual_variables}
    for variable in variables:
        if id(variable) not in known:
            raise DeclarationError(
                f"Variable {variable} must be a subset of problem.variables or a constraint dual variable"
            )


def solver_name(solver: Any) -> str | None:
    """cvxpy's name of the solver.

    Raises:
        DeclarationError: for anything but the name of a solver that is here.
    """
    if solver is None:
        return None
    if not isinstance(solver, str):
        raise DeclarationError(
            f"solver is a {type(solver).__name__}: a SolverInterface of one's own is not supported; "
            "name a solver, or leave it None"
        )
    name = solver.upper()
    if name not in DEFAULTS and name not in cp.installed_solvers():
        known = ", ".join([*DEFAULTS, *cp.installed_solvers()])
        raise DeclarationError(f"Unknown solver {solver!r}; known here are {known}")
    return name


def batch_size(i: int, name: str, shape: tuple[int, ...], value: Any) -> int | None:
    """The batch dimension of a parameter's value, None where it has none."""
    if not hasattr(value, "shape"):
        raise NotATensor(f"parameter {i} ({name!r}) is a {type(value).__name__}, expected a tensor")
    came = tuple(value.shape)
    if came == shape:
        return None
    if len(came) == len(shape):
        raise InputError(f"Invalid parameter shape for parameter {i}. Expected: {shape}, Got: {came}")
    if len(came) != len(shape) + 1:
        raise InputError(
            f"Invalid parameter dimensionality for parameter {i}. "
            f"Expected {len(shape)} or {len(shape) + 1} dimensions, Got: {len(came)} dimensions"
        )
    if came[1:] != shape:
        batched = ", ".join(map(str, ("batch_size", *shape)))
        raise InputError(
            f"Invalid parameter shape for parameter {i}. Expected batched shape: ({batched}), Got: {came}"
        )
    return came[0]


def refusal(problem: cp.Problem, gp: bool, error: DeclarationError) -> DeclarationError:
    """The error in their words, where they have words for it, then in ours."""
    leaves = [*problem.variables(), *problem.parameters()]
    if any(leaf.is_complex() for leaf in leaves):
        return Unsupported(f"Complex variables are not yet supported. {error}")
    disciplined: Any = problem  # cvxpy's decorator hides the argument of is_dpp
    if gp and not disciplined.is_dpp("dgp"):
        return DeclarationError(f"Problem must be DPP for geometric programming. {error}")
    if not gp and not disciplined.is_dpp("dcp"):
        note = ""
        if any(_has_parametric_quad_form(constraint) for constraint in problem.constraints):
            note = (
                " Note: quad_form(x, P) with parametric P is only supported in the objective, "
                "not in constraints."
            )
        return DeclarationError(f"Problem must be DPP.{note} {error}")
    for p in problem.parameters():
        reducing = [a for a in ("diag", "sparsity") if p.attributes.get(a) not in (None, False)]
        if reducing:
            return Unsupported(
                f"Parameter {p.name()} has a dimension-reducing attribute ({reducing[0]}). {error}"
            )
    return error


def _has_parametric_quad_form(expression: Any) -> bool:
    if isinstance(expression, cp.QuadForm) and expression.args[1].parameters():
        return True
    return any(_has_parametric_quad_form(argument) for argument in expression.args)


def said(error: Exception) -> str:
    """The message, with the option it recommends where that option is to be had."""
    return str(error).replace("on_failure=", "OptLayer.from_problem with on_failure=")


def their_error(error: SolveError) -> SolveError:
    """The same error; also a `diffcp.SolverError` once somebody has imported diffcp."""
    again = _rebuilt(type(error), said(error), error.indices, error.statuses, error.residuals)
    return again.with_traceback(error.__traceback__)


def _rebuilt(ours: Any, *arguments: Any) -> SolveError:
    theirs = getattr(sys.modules.get("diffcp"), "SolverError", None)
    error: SolveError = (ours if theirs is None else _both(ours, theirs))(*arguments)
    return error


@cache
def _both(ours: Any, theirs: Any) -> Any:
    """A class that either `except` catches; pickled as ours, since diffcp need not be everywhere."""

    def reduce(self: Any) -> tuple[Any, ...]:
        return _rebuilt, (ours, str(self), self.indices, self.statuses, self.residuals)

    return type(ours.__name__, (ours, theirs), {"__reduce__": reduce, "__doc__": ours.__doc__})
