"""Copies of a problem on private leaves, with the attributes of variables kept or written out as rows."""

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
from scipy import sparse

from optlayer.declare import leaves as leaf
from optlayer.declare.posed import Posed, Row, identity, rewritten
from optlayer.declare.rewriting import Rewriting

SMOOTH_ONLY = ("PSD", "NSD", "sparsity")  # attributes that cannot be written out as smooth rows


def private(
    problem: cp.Problem,
    parameters: tuple[cp.Parameter, ...],
    constants: tuple[tuple[cp.Parameter, cp.Expression], ...],
    names: tuple[str, ...],
    gp: bool,
) -> tuple[Posed, Rewriting]:
    """The problem as it stands on leaves without values that nobody else holds, and the way there.

    Args:
        problem: The user's.
        parameters: The user's that stay parameters.
        constants: The others, each with what takes its place.
        names: How errors call the constraints.
        gp: Constants become one number each: cvxpy would take the logarithm of their every part.
    """
    ours = tuple(leaf.private_copy(p) for p in parameters)
    made: dict[int, Any] = {id(p): twin for p, twin in zip(parameters, ours, strict=True)}
    made |= {id(p): constant for p, constant in constants}

    def substitute(e: Any) -> Any:
        if id(e) in made:
            return made[id(e)]
        return cp.Constant(e.value) if gp and _is_composite_constant(e) else None

    rewriting = Rewriting(substitute)
    variables = tuple(_with_bounds(v, _rewritten_bounds(v, rewriting)) for v in problem.variables())
    made |= {id(v): twin for v, twin in zip(problem.variables(), variables, strict=True)}
    pairs = enumerate(zip(problem.constraints, names, strict=True))
    rows = tuple(Row(rewriting.constraint(c), i, name) for i, (c, name) in pairs)
    objective = rewriting.objective(problem.objective)
    twin = cp.Problem(objective, [row.constraint for row in rows])
    return Posed(twin, variables, ours, rows, identity, isinstance(objective, cp.Maximize)), rewriting


def settled(posed: Posed, attributes: bool, rows: bool) -> Posed:
    """A minimization whose variables keep their attributes, or are bare, or have rows for them, or both.

    Bounds that are expressions become rows always: cvxpy takes a parameter in a bound and another in the
    cost for a problem that is not DPP.

    Raises:
        DeclarationError: for a PSD, NSD or sparse variable that is to be bare.
    """
    twins = tuple(_with_bounds(v, _numeric_bounds(v)) if attributes else _bare(v) for v in posed.variables)
    made = {id(v): twin for v, twin in zip(posed.variables, twins, strict=True)}
    rewriting = Rewriting(lambda e: made.get(id(e)))
    expression = rewriting.of(posed.problem.objective.expr)
    settled_rows = list(rewritten(posed.rows, rewriting))
    for original, twin in zip(posed.variables, twins, strict=True):
        settled_rows += _expression_bounds(original, twin, rewriting)
        if rows:
            settled_rows += _written_out(original, twin)
    objective = cp.Minimize(-expression if posed.maximize else expression)
    problem = cp.Problem(objective, [row.constraint for row in settled_rows])
    return replace(posed, problem=problem, variables=twins, rows=tuple(settled_rows))


def _is_composite_constant(e: Any) -> bool:
    return bool(e.args) and not e.variables() and not e.parameters()


def _bare(variable: cp.Variable) -> cp.Variable:
    leaf.check_attributes(variable, SMOOTH_ONLY, "variable")
    return cp.Variable(variable.shape, name=variable.name())


def _with_bounds(variable: cp.Variable, bounds: list[Any] | None) -> cp.Variable:
    """A copy that keeps every other attribute."""
    attributes: dict[str, Any] = {
        k: v for k, v in variable.attributes.items() if v is not None and v is not False
    }
    attributes["bounds"] = bounds
    if "sparsity" in attributes:
        attributes["sparsity"] = variable.sparse_idx
    return cp.Variable(variable.shape, name=variable.name(), **attributes)


def _bounds(variable: cp.Variable) -> list[Any]:
    bounds: Any = variable.bounds
    return [] if bounds is None else list(bounds)


def _rewritten_bounds(variable: cp.Variable, rewriting: Rewriting) -> list[Any] | None:
    return [rewriting.of(b) if isinstance(b, cp.Expression) else b for b in _bounds(variable)] or None


def _numeric_bounds(variable: cp.Variable) -> list[Any] | None:
    """Bounds that are numbers; infinity in the place of expressions."""
    bounds = _bounds(variable)
    if all(isinstance(b, cp.Expression) for b in bounds):
        return None
    infinite = (-np.inf, np.inf)
    return [i if isinstance(b, cp.Expression) else b for b, i in zip(bounds, infinite, strict=True)]


def _expression_bounds(variable: cp.Variable, twin: cp.Variable, rewriting: Rewriting) -> list[Row]:
    lower, upper = _bounds(variable) or (None, None)
    rows = []
    if isinstance(lower, cp.Expression):
        rows.append(Row(rewriting.of(lower) <= twin, None, f"lower bound of {variable.name()!r}"))
    if isinstance(upper, cp.Expression):
        rows.append(Row(twin <= rewriting.of(upper), None, f"upper bound of {variable.name()!r}"))
    return rows


def _written_out(variable: cp.Variable, twin: cp.Variable) -> list[Row]:
    """Sign, bounds that are numbers, symmetry and diagonality as rows."""
    dense = [b.toarray() if sparse.issparse(b) else b for b in _numeric_bounds(variable) or []]
    model = _with_bounds(variable, dense or None)
    inequalities = [Row(of(twin) <= 0, None, name) for name, of in leaf.attribute_inequalities(model)]
    return inequalities + [Row(of(twin) == 0, None, name) for name, of in leaf.attribute_equalities(model)]
