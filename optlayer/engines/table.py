"""Which engines solve which problem, in the order in which they are tried."""

from typing import Any

from optlayer.engines.clarabel import Clarabel
from optlayer.engines.cvxpy import Cvxpy
from optlayer.engines.matrices import CvxpyMatrices
from optlayer.errors import DeclarationError
from optlayer.forms.conic import ConicForm
from optlayer.forms.kkt import KKTForm

Engine = Clarabel | Cvxpy | CvxpyMatrices

FALLBACKS = ("CLARABEL", "SCS")  # interior point, then operator splitting


def engines_for(form: KKTForm, solver: str | None, options: dict[str, Any]) -> tuple[Engine, ...]:
    """The engines of a layer, best first.

    A quadratic or cone programme goes to Clarabel as matrices, then in units of its own data; anything
    else through cvxpy; a failed sample is solved again by the next. A solver asked for by name is the
    only one.

    Raises:
        DeclarationError: for a solver that is not installed, does not suit the problem, or lacks an option.
    """
    if solver is not None and not isinstance(solver, str):
        raise DeclarationError(f"solver is a {type(solver).__name__}, expected a name such as 'CLARABEL'")
    name = solver.upper() if solver else FALLBACKS[0]
    matrices = form.quadratic and name == "CLARABEL"
    first = Clarabel(options) if matrices else _through_cvxpy(form, name, options)
    if solver is not None:
        if isinstance(first, Cvxpy):
            first.check_suits(form.reference.build())
        if isinstance(first, CvxpyMatrices):
            first.check_suits(form.dual.dual)
        return (first,)
    second_opinion = _through_cvxpy(form, FALLBACKS[1], {})
    rescaled = (Clarabel(options, rescale=True),) if form.quadratic else ()
    return (first, *rescaled, second_opinion)


def _through_cvxpy(form: KKTForm, solver: str, options: dict[str, Any]) -> Engine:
    """On the user's own problem, or on the matrices where cvxpy has written it anew already."""
    if isinstance(form, ConicForm):
        return CvxpyMatrices(solver, options)
    return Cvxpy(form.reference, solver, options)
