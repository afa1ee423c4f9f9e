"""A problem on private leaves, ready for a solver: what every stage of a declaration hands on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
from torch import Tensor

from optlayer.declare.rewriting import Rewriting

SHORT = (-1.0, 0.0, 0.5, 1.0, 2.0)  # powers of one second-order cone

Theta = tuple[Tensor, ...]
Lift = Callable[[Theta], Theta]


@dataclass(frozen=True, eq=False)
class Row:
    """One constraint: an `Inequality` (`expr <= 0`), an `Equality` (`expr == 0`) or a cone.

    Attributes:
        constraint: On private leaves. Its multiplier is the one cvxpy gives the user's constraint.
        position: Of the user's constraint it stands for; None for what an attribute or a lowering adds.
        name: How errors call it.
    """

    constraint: Any
    position: int | None
    name: str


@dataclass(frozen=True, eq=False)
class Posed:
    """A problem nobody else holds.

    Attributes:
        problem: A minimization, with the rows in their order.
        variables: Aligned with the declaration's. In a geometric programme they are the logarithms.
        parameters: What the problem is written in; their values are `lift` of the user's.
        rows: The user's constraints in their order, then what attributes and lowerings add.
        lift: The declaration's parameter values, float64 (B, *shape) each, to those of `parameters`,
            (B, *inner shape) each; differentiable, and batchable by torch.func.
        maximize: The user maximizes, so that the value is minus this problem's.
        gp: A geometric programme: primal values are exp of `variables`, the value is exp of this
            problem's, after the sign. Multipliers are those of the logarithmic problem, as cvxpy's are.
    """

    problem: cp.Problem
    variables: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    rows: tuple[Row, ...]
    lift: Lift
    maximize: bool
    gp: bool = False

    @property
    def constraints(self) -> tuple[Any, ...]:
        """The twins of the user's constraints, in their order."""
        return tuple(row.constraint for row in self.rows if row.position is not None)

    @property
    def inequalities(self) -> tuple[Row, ...]:
        """The rows g <= 0."""
        return tuple(row for row in self.rows if type(row.constraint).__name__ == "Inequality")

    @property
    def equalities(self) -> tuple[Row, ...]:
        """The rows h == 0."""
        return tuple(row for row in self.rows if type(row.constraint).__name__ == "Equality")

    @property
    def cones(self) -> tuple[Row, ...]:
        """The other rows: second-order, semidefinite, exponential, power cones."""
        elementwise = {*self.inequalities, *self.equalities}
        return tuple(row for row in self.rows if row not in elementwise)

    @property
    def auxiliary(self) -> tuple[cp.Variable, ...]:
        """Variables of the problem that stand for none of the user's."""
        own = {id(v) for v in self.variables}
        return tuple(v for v in self.problem.variables() if id(v) not in own)


def rewritten(rows: tuple[Row, ...], rewriting: Rewriting) -> tuple[Row, ...]:
    """The same rows, each constraint rewritten."""
    return tuple(Row(rewriting.constraint(r.constraint), r.position, r.name) for r in rows)


def with_exact_powers(posed: Posed) -> Posed:
    """The problem with power cones for powers that cvxpy would write as towers of second-order cones.

    The towers collapse where the power vanishes: at 0 they leave Newton's method no direction.
    """

    def substitute(e: Any) -> Any:
        if type(e).__name__ != "PowerApprox" or isinstance(e.p, cp.Parameter) or not e.variables():
            return None
        p = float(e.p.value)
        return None if p in SHORT else cp.power(rewriting.of(e.args[0]), p, approx=False)

    rewriting = Rewriting(substitute)
    rows = rewritten(posed.rows, rewriting)
    objective = rewriting.objective(posed.problem.objective)
    return replace(posed, problem=cp.Problem(objective, [row.constraint for row in rows]), rows=rows)


def composed(outer: Lift, inner: Lift) -> Lift:
    """`outer` after `inner`."""
    return lambda theta: outer(inner(theta))


def identity(theta: Theta) -> Theta:
    """The lift of a problem written in the user's own parameters."""
    return theta
