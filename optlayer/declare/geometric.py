"""Geometric programmes, written in the logarithms of their variables and parameters.

cvxpy's own reduction does it. A parameter in an exponent stays as it is; one that stands in both places
enters the new problem twice.
"""

from typing import Any

import cvxpy as cp

from optlayer.declare import cvxpy_internals
from optlayer.declare.parametric import Computed
from optlayer.declare.posed import Lift, Posed, Row, Theta, composed, rewritten
from optlayer.declare.rewriting import Rewriting
from optlayer.errors import DeclarationError

REFUSED = ("diag", "PSD", "NSD", "sparsity")


def check_attributes(leaf: Any, word: str) -> None:
    """Positive leaves have no zeros and no eigenvalues to speak of.

    Raises:
        DeclarationError: naming the attribute.
    """
    for attribute in REFUSED:
        if leaf.attributes.get(attribute):
            raise DeclarationError(
                f"{word} {leaf.name()!r} is declared {attribute}, which a geometric programme cannot honour; "
                "declare it with pos=True and state the rest as constraints"
            )


def gathered(posed: Posed) -> Posed:
    """Sums of parameters and the like as one positive parameter each.

    cvxpy takes them for constants, whose logarithm exists if their value is positive. Ours have no
    values: what makes these positive is that their log-log curvature is known.
    """
    computed = Computed(posed.parameters)

    def substitute(e: Any) -> Any:
        if e.variables() or not e.parameters() or not e.is_dgp() or e.is_log_log_affine():
            return None
        return computed.parameter(e, pos=True)

    rewriting = Rewriting(substitute)
    rows = rewritten(posed.rows, rewriting)
    return computed.completed(posed, rewriting.objective(posed.problem.objective), rows)


def logarithmic(posed: Posed) -> Posed:
    """The log-log convex problem as a convex one, on new leaves."""
    problem, variables, logarithms, twins = cvxpy_internals.logarithmic(posed.problem)
    plain = {id(p) for p in problem.parameters()}
    as_log = [(i, logarithms[p]) for i, p in enumerate(posed.parameters) if p in logarithms]
    as_is = [(i, p) for i, p in enumerate(posed.parameters) if id(p) in plain]
    return Posed(
        problem=problem,
        variables=tuple(variables[v] for v in posed.variables),
        parameters=tuple(p for _, p in as_log + as_is),
        rows=_rows(posed, problem, twins),
        lift=composed(_logarithms([i for i, _ in as_log], [i for i, _ in as_is]), posed.lift),
        maximize=posed.maximize,
        gp=True,
    )


def _rows(posed: Posed, problem: cp.Problem, twin_of: dict[int, int]) -> tuple[Row, ...]:
    """The user's rows, then those that define the variables cvxpy introduces."""
    constraints = {c.id: c for c in problem.constraints}
    own = [Row(constraints.pop(twin_of[r.constraint.id]), r.position, r.name) for r in posed.rows]
    added = [Row(c, None, "a definition cvxpy introduces") for c in constraints.values()]
    return (*own, *added)


def _logarithms(as_log: list[int], as_is: list[int]) -> Lift:
    def lift(theta: Theta) -> Theta:
        return (*(theta[i].log() for i in as_log), *(theta[i] for i in as_is))

    return lift
