"""Which engines solve which problem, in the order in which they are tried.

    what the patterns say                          first           then
    inequalities only, dense, up to a few hundred  Moreau          Clarabel, in units of the data, SCS
      (where the extra `fast` is installed)
    inequalities only, H diagonal and few rows     interior        the same
    inequalities only, small                       interior        the same
    inequalities only, up to a few thousand        PIQP            the same
    inequalities only, sparse, and fills in        SCS             Clarabel, or SCS again   (`large`)
    inequalities only, larger and sparse           OSQP            Clarabel
    inequalities only, larger and dense            SCS             the same
    inequalities only, each of the above           then            PIQP closely, PROXIMAL from its answer
    other cones                                    Clarabel        in units of the data, SCS
    not quadratic                                  Clarabel by cvxpy, SCS by cvxpy

Measured in docs/performance.md. A failed sample is solved again by the next one. PROXIMAL, the proximal
method of multipliers, goes on from the answer before it: it follows whatever solver is asked for by name to
solve a quadratic programme.
"""

from typing import Any

from optlayer.engines.clarabel import Clarabel
from optlayer.engines.cvxpy import Cvxpy
from optlayer.engines.face import CLARABEL_CLOSELY, Face, closely
from optlayer.engines.interior import Interior
from optlayer.engines.large import LARGE, large_engines
from optlayer.engines.matrices import CvxpyMatrices
from optlayer.engines.moreau import Moreau, is_installed
from optlayer.engines.native import CLOSELY, InteriorQP
from optlayer.engines.osqp import OSQP
from optlayer.engines.piqp import PIQP
from optlayer.engines.scs import SCS
from optlayer.errors import DeclarationError
from optlayer.forms import Reference
from optlayer.forms.blocks import AffineObjective, AffineRows
from optlayer.forms.conic import ConicForm
from optlayer.forms.kkt import KKTForm
from optlayer.forms.programme import Programme

Solver = InteriorQP | Interior | Clarabel | OSQP | SCS | PIQP | Moreau | Cvxpy | CvxpyMatrices
Engine = Solver | Face

BY_NAME = {"INTERIOR": InteriorQP, "CLARABEL": Clarabel, "OSQP": OSQP, "PIQP": PIQP, "MOREAU": Moreau}

SMALL = 64  # unknowns that dense batched factors take in their stride
DENSE = 200  # unknowns up to which Moreau was measured to be the quickest with dense inequalities


def engines_for(form: KKTForm, solver: str | None, options: dict[str, Any]) -> tuple[Engine, ...]:
    """The engines of a layer, best first; a solver asked for by name is the only solver.

    Options without a solver are Clarabel's. What torch alone can evaluate goes to our own interior point.

    Raises:
        DeclarationError: for a solver that is not installed, does not suit the problem, or lacks an option.
    """
    if solver is not None and not isinstance(solver, str):
        raise DeclarationError(f"solver is a {type(solver).__name__}, expected a name such as 'CLARABEL'")
    if form.unproven:
        return (_by_torch(form, solver, options),)
    if solver is not None:
        return _named(form, solver.upper(), options)
    if not isinstance(form, Programme):
        return _by_cvxpy(form, "CLARABEL", options), _by_cvxpy(form, "SCS", {})
    clarabel = Clarabel(options), Clarabel(options, rescale=True)
    if options or not form.dual.is_orthant:
        return *clarabel, SCS({})
    return _for_orthant(form, (*closely(), *clarabel, SCS({})))


def _for_orthant(form: Programme, always: tuple[Engine, ...]) -> tuple[Engine, ...]:
    """For a programme with inequalities only."""
    if _general_rows(form) and form.size <= DENSE and _is_dense(form) and is_installed():
        return Moreau({}), *always
    if form.size <= SMALL or (_is_separable(form) and _general_rows(form) <= SMALL):
        return InteriorQP({}), *always
    first = PIQP({}) if form.size <= LARGE else SCS({})
    return large_engines(form) or (first, *always)


def _is_dense(form: Programme) -> bool:
    """Whether its inequalities are."""
    return not (isinstance(form.inequality, AffineRows) and form.inequality.M.pattern.is_sparse)


def _is_separable(form: Programme) -> bool:
    """Whether P is diagonal."""
    objective = form.objective
    return isinstance(objective, AffineObjective) and objective.P.pattern.is_diagonal


def _general_rows(form: Programme) -> int:
    """Rows that are no bounds on one coordinate."""
    bounds = 0
    if isinstance(form.inequality, AffineRows) and form.inequality.M.pattern.is_sparse:
        bounds = len(form.inequality.M.pattern.bounds.rows)
    return form.m + form.p - bounds


def _named(form: KKTForm, name: str, options: dict[str, Any]) -> tuple[Engine, ...]:
    if isinstance(form, Programme) and name in BY_NAME:
        engine: Any = BY_NAME[name](options)
        engine.check_suits(form.dual.dual)
        return engine, *_following(form, engine, options)
    if name == Interior.name:
        return (_by_torch(form, name, options),)
    if name in ("PIQP", "MOREAU"):
        raise DeclarationError(f"solver {name!r} does not suit this problem: it is not a quadratic programme")
    other = _by_cvxpy(form, name, options)
    if isinstance(other, Cvxpy):
        other.check_suits(_reference(form).build())
    else:
        other.check_suits(form.dual.dual)
    return other, *_following(form, other, options)


def _following(form: KKTForm, engine: Engine, options: dict[str, Any]) -> tuple[Engine, ...]:
    """What comes after an engine that was asked for by name: the solution beside its answer, first of all."""
    if not (isinstance(form, Programme) and form.dual.is_orthant):
        return ()
    if isinstance(engine, InteriorQP):
        return Face(), InteriorQP(options, CLOSELY), Face()
    if isinstance(engine, PIQP) and not options:
        return Face(), *closely()
    if isinstance(engine, Clarabel) and not options:
        return Face(), Clarabel(CLARABEL_CLOSELY), Face()
    return (Face(),)


def _by_torch(form: KKTForm, solver: str | None, options: dict[str, Any]) -> Interior:
    """The interior point that needs nothing but f, g, h and their derivatives."""
    if solver is not None and solver.upper() != Interior.name:
        raise DeclarationError(
            f"{solver} needs the problem in cvxpy's terms, and some callable is written for torch only; "
            "leave solver=None"
        )
    if not form.dual.is_orthant:
        raise DeclarationError("INTERIOR solves smooth problems; this one takes the cone route")
    return Interior(options)


def _by_cvxpy(form: KKTForm, solver: str, options: dict[str, Any]) -> Cvxpy | CvxpyMatrices:
    """On the user's own problem, or on the matrices where cvxpy has written it anew already."""
    if isinstance(form, ConicForm):
        return CvxpyMatrices(solver, options)
    return Cvxpy(_reference(form), solver, options)


def _reference(form: KKTForm) -> Reference:
    assert form.reference is not None
    return form.reference
