"""What every way of declaring a problem offers to the routes."""

from typing import Protocol

import cvxpy as cp

from optlayer.declare.callables import UserCallable
from optlayer.declare.outputs import Output
from optlayer.declare.posed import Posed


class Declared(Protocol):
    """A problem as somebody declared it, by callables or as a cp.Problem."""

    variables: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    outputs: tuple[Output, ...]
    objective_name: str
    constraint_ids: tuple[int, ...]  # by which the user may ask for multipliers
    functions: tuple[UserCallable | None, ...]  # the objective's, then each constraint's, where there is one

    def build(self, attributes: bool, rows: bool, lowered: bool = False) -> Posed:
        """A private copy of the problem as a minimization, deterministic.

        Args:
            attributes: Whether private variables keep theirs.
            rows: Whether sign, bounds, symmetry and diagonality follow as rows.
            lowered: Whether what is not DPP is rewritten so that it is.

        Raises:
            DeclarationError: where something cannot be expressed.
        """
        ...

    def check_convex(self, posed: Posed) -> None:
        """Raise a DeclarationError for what is not convex by cvxpy's rules."""
        ...
