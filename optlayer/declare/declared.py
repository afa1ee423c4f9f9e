"""What every way of declaring a problem offers to the routes."""

from typing import Protocol

import cvxpy as cp

from optlayer.declare.callables import UserCallable
from optlayer.declare.outputs import Output
from optlayer.declare.posed import Posed


class Declared(Protocol):
    """A problem as somebody declared it, by callables or as a cp.Problem."""

    @property
    def variables(self) -> tuple[cp.Variable, ...]:
        """The user's."""
        ...

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """The user's, in the order of the call."""
        ...

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the layer returns."""
        ...

    @property
    def objective_name(self) -> str:
        """How errors call f."""
        ...

    @property
    def constraint_ids(self) -> tuple[int, ...]:
        """By which the user may ask for multipliers."""
        ...

    @property
    def functions(self) -> tuple[UserCallable | None, ...]:
        """The callable of the objective, then of each constraint, where there is one."""
        ...

    def build(self, attributes: bool, rows: bool) -> Posed:
        """A private copy of the problem as a minimization, deterministic.

        Args:
            attributes: Whether private variables keep theirs.
            rows: Whether sign, bounds, symmetry and diagonality follow as rows.

        Raises:
            DeclarationError: where something cannot be expressed.
        """
        ...

    def check_convex(self) -> None:
        """Raise a DeclarationError for what is not convex by cvxpy's rules."""
        ...
