"""Which engines solve which problem, in the order in which they are tried."""

from typing import Any

from optlayer.engines.clarabel import Clarabel
from optlayer.engines.cvxpy import Cvxpy
from optlayer.errors import DeclarationError
from optlayer.forms import Reference

Engine = Clarabel | Cvxpy

FALLBACKS = ("CLARABEL", "SCS")  # through cvxpy: interior point, then operator splitting


def engines_for(
    quadratic: bool, reference: Reference, solver: str | None, options: dict[str, Any]
) -> tuple[Engine, ...]:
    """The engines of a layer, best first.

    A quadratic programme goes to Clarabel as matrices, then in units of its own data; anything else
    through cvxpy; a failed sample is solved again by the next. A solver asked for by name is the only one.

    Raises:
        DeclarationError: for a solver that is not installed, or an option that it does not have.
    """
    if solver is not None and not isinstance(solver, str):
        raise DeclarationError(f"solver is a {type(solver).__name__}, expected a name such as 'CLARABEL'")
    name = solver.upper() if solver else FALLBACKS[0]
    first: Engine
    first = Clarabel(options) if quadratic and name == "CLARABEL" else Cvxpy(reference, name, options)
    if solver is not None:
        if isinstance(first, Cvxpy):
            first.check_suits(reference.build())
        return (first,)
    second_opinion = Cvxpy(reference, FALLBACKS[1], {})
    return (first, Clarabel(options, rescale=True), second_opinion) if quadratic else (first, second_opinion)
