"""Which route a declaration takes, and what comes out of it.

    smooth   f, g, h as torch functions, their own KKT conditions; no DPP needed
    cone     cvxpy's canonical cone programme, for whatever is convex but not smooth

"auto" takes the smooth route where every atom, attribute and constraint allows it, the cone route
otherwise: a norm may be at its apex, an eigenvalue may be double, and the canonical form does not mind.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import cvxpy as cp
from torch.func import vmap

from optlayer.declare import discipline
from optlayer.declare.branches import check_values
from optlayer.declare.canonical import NotDPP, canonicalize
from optlayer.declare.copied import without_copies
from optlayer.declare.declared import Declared
from optlayer.declare.opaque import is_opaque
from optlayer.declare.outputs import Dual, Expressed, Output, Primal
from optlayer.declare.parametric import lowered
from optlayer.declare.posed import Lift, Posed, with_exact_powers
from optlayer.declare.refusals import NotSmooth
from optlayer.declare.smooth import SmoothCompiler
from optlayer.declare.translate import translate
from optlayer.errors import DeclarationError
from optlayer.forms import Function, Reference, ReferenceProblem
from optlayer.forms.affine import Gather
from optlayer.forms.blocks import AffineRows
from optlayer.forms.conic import ConicForm, Stated
from optlayer.forms.kkt import KKTForm
from optlayer.forms.readout import Output as Reader
from optlayer.forms.readout import Readout

Method = Literal["auto", "smooth", "cone"]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A declaration compiled; immutable, shared by threads and copies of the layer."""

    form: KKTForm
    readout: Readout
    lift: Lift  # the user's parameter values to those of the form
    route: str
    problem: cp.Problem  # for the repr
    inequalities: tuple[int, ...]  # which constraints are g <= 0
    equalities: tuple[int, ...]  # and which h = 0

    def __deepcopy__(self, memo: dict[int, object]) -> "Compiled":
        return self


def compile_declaration(declaration: Declared, method: Method) -> Compiled:
    """The form of a declaration, and the way back to the user's terms.

    Raises:
        DeclarationError: naming the callable, the expression or the attribute that cannot be
            honoured, and the way out.
    """
    declaration.check_convex()
    if method == "cone":
        return _cone(declaration)
    try:
        return _smooth(declaration, apex=method == "smooth")
    except NotSmooth as obstacle:
        if method == "smooth":
            raise
        try:
            return _cone(declaration)
        except DeclarationError as error:
            raise DeclarationError(f"{error} (the smooth route does not take it: {obstacle})") from error


# ------------------------------------------------------------------------------------------- smooth


def _smooth(declaration: Declared, apex: bool) -> Compiled:
    compiler = SmoothCompiler(declaration, apex)
    opaque = is_opaque(compiler.posed.problem)
    form = compiler.form(None if opaque else _reference(declaration, compiler.posed, compiler.attributes))
    kind = "quadratic" if form.quadratic else "general"
    return _compiled(
        declaration, compiler.posed, form, compiler.variables(), compiler.duals(), f"smooth ({kind})"
    )


# --------------------------------------------------------------------------------------------- cone


def _cone(declaration: Declared) -> Compiled:
    declared = declaration.build(attributes=True, rows=False)
    if is_opaque(declared.problem):
        raise DeclarationError(
            "the cone route goes through cvxpy, which cannot see into callables written for torch only; "
            "write the others with atoms that are smooth"
        )
    _check_values(declaration, declared)  # as long as the parameters are those of the callables
    posed = with_exact_powers(lowered(declared))
    names = tuple(row.name for row in posed.rows)
    try:
        canonical = canonicalize(posed.problem, posed.variables, posed.parameters, posed.constraints)
    except NotDPP as error:
        explained = discipline.explain_not_dpp(posed.problem, names)
        raise DeclarationError(explained) from error
    except Exception as error:
        raise DeclarationError(f"cvxpy cannot write the problem as a cone programme: {error!r}") from error
    canonical, objective = without_copies(canonical)
    p, rows = canonical.zero, canonical.m
    offset = canonical.b.times(-1.0)
    form = ConicForm(
        n=canonical.n,
        m=rows - p,
        p=p,
        objective=objective,
        inequality=AffineRows(canonical.A.part(p, rows), offset.part(p, rows)),
        equality=AffineRows(canonical.A.part(0, p), offset.part(0, p)),
        dual=canonical.cone.dual,
        seen=canonical.seen,
        owners=tuple(names[i] if i >= 0 else "" for i in canonical.rows.tolist()),
        stated=_stated(posed, canonical.variables),
    )
    duals = tuple(
        tuple(replace(gather, shape=dual.shape) for gather, dual in zip(gathers, constraint.dual_variables))
        for gathers, constraint in zip(canonical.duals, posed.constraints, strict=True)
    )  # in the shapes that are declared; the values cvxpy hands out have others at times
    return _compiled(declaration, posed, form, canonical.variables, duals, "cone")


def _stated(posed: Posed, variables: tuple[Gather, ...]) -> Stated:
    """The objective and the curved constraints as functions, as far as torch has their atoms.

    Nothing is stated in the variables that lowering adds: they are not read off x.
    """
    if posed.auxiliary:
        return Stated(variables, None, ())

    def function(expression: Any) -> Function | None:
        try:
            return translate(expression, posed.variables, posed.parameters, values_only=True).function
        except DeclarationError:
            return None

    curved = [row.constraint.args for row in posed.inequalities if not row.constraint.expr.is_affine()]
    sides = [(function(left), function(right)) for left, right in curved]
    return Stated(
        variables=variables,
        objective=function(posed.problem.objective.expr),
        constraints=tuple((left, right) for left, right in sides if left is not None and right is not None),
    )


def _check_values(declaration: Declared, posed: Posed) -> None:
    """Torch branches of callables against the expressions they give in cvxpy."""
    names = [declaration.objective_name, *(row.name for row in posed.rows)]
    expressions = [posed.problem.objective.expr, *(row.constraint.args[0] for row in posed.rows)]
    for name, function, expression in zip(names, declaration.functions, expressions):
        if function is not None:
            check_values(name, function, expression, [*posed.variables, *posed.parameters])


# ------------------------------------------------------------------------------------------- shared


def _compiled(
    declaration: Declared,
    posed: Posed,
    form: KKTForm,
    variables: tuple[Gather, ...],
    duals: tuple[tuple[Gather, ...], ...],
    route: str,
) -> Compiled:
    return Compiled(
        form=form,
        readout=Readout(
            variables=variables,
            duals=duals,
            outputs=tuple(_reader(output) for output in declaration.outputs),
            maximize=posed.maximize,
            gp=posed.gp,
        ),
        lift=posed.lift,
        route=route,
        problem=posed.problem,
        inequalities=tuple(row.position for row in posed.inequalities if row.position is not None),
        equalities=tuple(row.position for row in posed.equalities if row.position is not None),
    )


def _reader(output: Output) -> Reader:
    """How to read an output off the values of the variables, the multipliers and θ."""
    match output:
        case Primal(position=i):
            return lambda variables, duals, theta: variables[i]
        case Dual(constraint=i, index=k):
            return lambda variables, duals, theta: duals[i][k]
        case Expressed():
            function = translate(output.expression, output.variables, output.parameters).function
            return lambda variables, duals, theta: vmap(function)(*variables, *theta)
    raise TypeError(output)


def _reference(declaration: Declared, posed: Posed, attributes: bool) -> Reference:
    """How to build the problem again, for engines that take it as cvxpy states it."""
    return Reference(
        build=partial(_reference_problem, declaration, attributes),
        inequality_names=tuple(row.name for row in posed.inequalities),
        equality_names=tuple(row.name for row in posed.equalities),
    )


def _reference_problem(declaration: Declared, attributes: bool) -> ReferenceProblem:
    posed = declaration.build(attributes=attributes, rows=True)
    return ReferenceProblem(
        posed.problem,
        posed.variables,
        posed.parameters,
        [row.constraint for row in posed.inequalities],
        [row.constraint for row in posed.equalities],
    )
