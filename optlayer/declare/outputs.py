"""What a layer returns of a problem: variables, multipliers, affine expressions."""

from dataclasses import dataclass
from typing import Any

import cvxpy as cp

from optlayer.declare.posed import Posed
from optlayer.declare.refusals import shortened
from optlayer.declare.rewriting import Rewriting
from optlayer.errors import DeclarationError


@dataclass(frozen=True, eq=False)
class Primal:
    """A variable, by its position among the problem's."""

    position: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Dual:
    """`constraints[constraint].dual_variables[index]`."""

    constraint: int
    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Expressed:
    """An affine function of the variables; parameters may be among its coefficients.

    Attributes:
        expression: On `variables` and `parameters`, private leaves aligned with the declaration's: the
            user's own quantities, not their logarithms.
    """

    expression: cp.Expression
    variables: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    shape: tuple[int, ...]


Output = Primal | Dual | Expressed


def read_outputs(given: Any, problem: cp.Problem, posed: Posed, rewriting: Rewriting) -> tuple[Output, ...]:
    """The record of each output.

    Args:
        given: The user's list, or None for all variables.
        problem: The user's problem.
        posed: A private copy in the user's own quantities.
        rewriting: From the one to the other.

    Raises:
        DeclarationError: naming what is no variable, dual variable or affine expression of the problem.
    """
    if given is None:
        return tuple(Primal(i, v.shape) for i, v in enumerate(problem.variables()))
    if not isinstance(given, list | tuple):
        raise DeclarationError(f"variables is a {type(given).__name__}, expected a list or tuple")
    if not given:
        raise DeclarationError("variables is empty: name what the layer is to return")
    return tuple(
        _leaf(wanted, problem) or _expressed(f"output {i}", wanted, problem, posed, rewriting)
        for i, wanted in enumerate(given)
    )


def _leaf(wanted: Any, problem: cp.Problem) -> Primal | Dual | None:
    for position, variable in enumerate(problem.variables()):
        if wanted is variable:
            return Primal(position, variable.shape)
    for position, constraint in enumerate(problem.constraints):
        for index, dual in enumerate(constraint.dual_variables):
            if wanted is dual:
                return Dual(position, index, dual.shape)
    return None


def _expressed(name: str, wanted: Any, problem: cp.Problem, posed: Posed, rewriting: Rewriting) -> Expressed:
    if not isinstance(wanted, cp.Expression):
        raise DeclarationError(
            f"{name} is a {type(wanted).__name__}, expected a variable, a dual variable or an affine "
            f"expression{_hint(wanted)}"
        )
    _check_affine(f"{name}, {shortened(wanted)},", wanted, problem)
    return Expressed(rewriting.of(wanted), posed.variables, posed.parameters, wanted.shape)


def _check_affine(name: str, wanted: cp.Expression, problem: cp.Problem) -> None:
    for kind, leaves, own in (
        ("variable", wanted.variables(), problem.variables()),
        ("parameter", wanted.parameters(), problem.parameters()),
    ):
        for leaf in leaves:
            if not any(leaf is one for one in own):
                raise DeclarationError(f"{name} has a {kind} {leaf.name()!r} that is not in the problem")
    if not wanted.variables():
        raise DeclarationError(f"{name} does not depend on the variables")
    if not wanted.is_affine() or wanted.is_complex():
        raise DeclarationError(
            f"{name} is not a real affine expression of the variables; return those, and compute it in torch"
        )


def _hint(wanted: Any) -> str:
    return ": name its dual_variables[0]" if isinstance(wanted, cp.Constraint) else ""
