"""A declaration, and how it becomes a `SmoothForm`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor
from torch.func import grad, jacrev

from optlayer.declare import leaves as leaf
from optlayer.declare.branches import check_branch, torch_branch
from optlayer.declare.callables import UserCallable, express, name_of
from optlayer.declare.points import Point, domain_points
from optlayer.declare.translate import Translation, translate
from optlayer.errors import DeclarationError
from optlayer.forms import Reference, ReferenceProblem
from optlayer.forms.smooth import Constants, Domain, SmoothForm, jacobian

PROBES = 3  # random points at which a declaration is examined
AFFINE, QUADRATIC = 1, 2


@dataclass(frozen=True, eq=False)
class Declaration:
    """The user's variables, parameters and callables, in the tutorial's order.

    Compiling it is deterministic, so that a pickled declaration is all a layer needs to keep.
    """

    variables: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    objective: UserCallable
    inequalities: tuple[UserCallable, ...]
    equalities: tuple[UserCallable, ...]
    apex: bool = False  # norm2 and pnorm are admitted: the user knows that their apex is avoided

    def __post_init__(self) -> None:
        leaf.check(self.variables, cp.Variable, "variable")
        leaf.check(self.parameters, cp.Parameter, "parameter")
        if not self.variables:
            raise DeclarationError("no variables: a layer needs at least one cvxpy.Variable")
        for variable in self.variables:
            leaf.check_attributes(variable, leaf.REFUSED, "variable")
        for parameter in self.parameters:
            leaf.check_attributes(parameter, ("complex", "imag", "hermitian"), "parameter")

    def compile(self) -> SmoothForm:
        """Translate, check and recognise the problem.

        Raises:
            DeclarationError: naming the callable, the expression or the attribute that cannot be
                honoured, and the way out.
        """
        return _Compiler(self).form()


@dataclass(frozen=True)
class _Piece:
    """One callable or attribute constraint: its name, its expression, its meaning in torch."""

    name: str
    expression: cp.Expression
    torch: Translation
    function: UserCallable | None = None  # the user's own, where there is one


class _Compiler:
    """The steps from callables to a form; lives only while a layer is constructed."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        # Without attributes on the variables every multiplier belongs to an explicit row; only where
        # cvxpy needs a sign to see convexity do its own copies keep them.
        bare = _build(declaration, attributes=False)
        self.attributes = not cp.Problem(bare.problem.objective, bare.problem.constraints).is_dcp()
        self.reference = _build(declaration, self.attributes) if self.attributes else bare
        self.names = _names(declaration)
        self._check_convex()

    def form(self) -> SmoothForm:
        objective, inequalities, equalities = self.pieces
        self._check_branches()
        flat = partial(_on_flat, [v.shape for v in self.declaration.variables])
        f = flat(objective.torch.function)
        g, h = (flat(_stack([p.torch.function for p in ps])) for ps in (inequalities, equalities))
        n_inequalities, n_equalities = len(self.declaration.inequalities), len(self.declaration.equalities)
        quadratic = _degree([objective]) <= QUADRATIC and _degree(inequalities + equalities) <= AFFINE
        return SmoothForm(
            variable_shapes=tuple(v.shape for v in self.declaration.variables),
            inequality_shapes=tuple(p.expression.shape for p in inequalities[:n_inequalities]),
            equality_shapes=tuple(p.expression.shape for p in equalities[:n_equalities]),
            m=_rows(inequalities),
            p=_rows(equalities),
            objective=f,
            inequality=g,
            equality=h,
            reference=Reference(
                partial(_build, self.declaration, self.attributes),
                tuple(p.name for p in inequalities),
                tuple(p.name for p in equalities),
            ),
            quadratic=quadratic,
            constants=self._constants(f, g, h) if quadratic else Constants(),
            domain=self._domain(flat),
        )

    @cached_property
    def pieces(self) -> tuple[_Piece, list[_Piece], list[_Piece]]:
        """The objective, g and h, translated; attribute constraints follow the declared ones."""
        problem, own = self.reference, self.declaration
        objective = self._piece(self.names[0], problem.problem.objective.expr, own.objective)
        inequalities = self._constraints(self.names[1], problem.inequalities, own.inequalities)
        equalities = self._constraints(self.names[2], problem.equalities, own.equalities)
        return objective, inequalities, equalities

    def _constraints(self, names: Sequence[str], constraints: Any, functions: Any) -> list[_Piece]:
        own = [*functions, *[None] * (len(constraints) - len(functions))]
        triples = zip(names, constraints, own, strict=True)
        return [self._piece(name, constraint.expr, function) for name, constraint, function in triples]

    def _piece(self, name: str, expression: cp.Expression, function: UserCallable | None) -> _Piece:
        reference = self.reference
        try:
            translation = translate(
                expression, reference.variables, reference.parameters, apex=self.declaration.apex
            )
        except DeclarationError as error:
            raise DeclarationError(f"{name}: {error}") from error
        return _Piece(name, expression, translation, function)

    def _check_convex(self) -> None:
        objective, *_ = self.names
        expression = self.reference.problem.objective.expr
        if not expression.is_convex():
            hint = "; to maximise f, minimise -f" if expression.is_concave() else _psd_hint(expression)
            raise DeclarationError(f"{objective} is not convex by cvxpy's rules: {_short(expression)}{hint}")
        for name, constraint in zip(self.names[1], self.reference.inequalities, strict=True):
            if not constraint.expr.is_convex():
                raise DeclarationError(
                    f"{name} is not convex by cvxpy's rules, so g <= 0 is not a convex set: "
                    f"{_short(constraint.expr)}{_psd_hint(constraint.expr)}"
                )
        for name, constraint in zip(self.names[2], self.reference.equalities, strict=True):
            if not constraint.expr.is_affine():
                raise DeclarationError(f"{name} is not affine in the variables: {_short(constraint.expr)}")

    # -------------------------------------------------------------------------- probes at random points

    @cached_property
    def points(self) -> list[Point]:
        objective, inequalities, equalities = self.pieces

        def inside(point: Point) -> bool:
            return all(
                bool((p.torch.borders(*point) > 0).all() and p.torch.function(*point).isfinite().all())
                for p in [objective, *inequalities, *equalities]
            )

        return domain_points(self.leaves, inside, PROBES)

    @property
    def leaves(self) -> list[Any]:
        return [*self.declaration.variables, *self.declaration.parameters]

    def _on_flat_point(self, point: Point) -> tuple[Tensor, Point]:
        """(*variables, *theta) -> x, theta."""
        k = len(self.declaration.variables)
        return torch.cat([value.reshape(-1) for value in point[:k]]), point[k:]

    def _check_branches(self) -> None:
        objective, inequalities, equalities = self.pieces
        if not self.points:
            return
        for piece in [objective, *inequalities, *equalities]:
            if piece.function is None:
                continue
            branch = torch_branch(piece.function, self.points[0])
            if branch is not None:
                names = [leaf.name() for leaf in self.leaves]
                check_branch(piece.name, branch, piece.torch.function, self.points, names)

    def _constants(self, f: Any, g: Any, h: Any) -> Constants:
        """The blocks of a quadratic programme that hold no parameter, evaluated once and for all."""
        if not self.points:
            return Constants()
        objective, inequalities, equalities = self.pieces
        x, theta = self._on_flat_point(self.points[0])

        def scalar(x: Tensor) -> Tensor:
            value: Tensor = f(x, *theta).reshape(())
            return value

        return Constants(
            P=None if _moves([objective], QUADRATIC) else jacrev(grad(scalar))(x),
            G=None if _moves(inequalities, AFFINE) else _jacobian(g, x, theta),
            A=None if _moves(equalities, AFFINE) else _jacobian(h, x, theta),
        )

    def _domain(self, flat: Callable[..., Callable[..., Tensor]]) -> Domain | None:
        """The borders of f, g and h together, and which of them stop a single coordinate."""
        objective, inequalities, equalities = self.pieces
        pieces = [objective, *inequalities, *equalities]
        borders = flat(_stack([p.torch.borders for p in pieces]))
        norms = flat(_stack([p.torch.norms for p in pieces]))
        zeros = tuple(torch.zeros(z.shape, dtype=torch.float64) for z in self.leaves)
        x, theta = self._on_flat_point(zeros)
        if not borders(x, *theta).numel():
            return None
        if not self.points:
            return Domain(borders, norms, (), ())
        slopes = torch.stack([_jacobian(borders, *self._on_flat_point(p)) for p in self.points])
        affine = (slopes - slopes[0]).abs().amax((0, 2)) == 0  # slopes that no probe saw move
        alone = (slopes[0] != 0).sum(1) == 1
        row = (affine & alone).nonzero().squeeze(1)
        column = (slopes[0] != 0).to(torch.int8).argmax(1)[row]
        return Domain(borders, norms, tuple(row.tolist()), tuple(column.tolist()))


def _build(declaration: Declaration, attributes: bool) -> ReferenceProblem:
    """A private copy of the problem, on leaves that nobody else holds."""
    variables = [leaf.private_copy(v, keep=attributes) for v in declaration.variables]
    parameters = [leaf.private_copy(p) for p in declaration.parameters]
    own, theirs = [*variables, *parameters], [*declaration.variables, *declaration.parameters]
    objective, inequality_names, equality_names = _names(declaration)
    f = express(objective, declaration.objective, own, theirs)
    if f.size != 1:
        raise DeclarationError(f"{objective} has shape {f.shape}, expected a scalar or one element")
    g = [express(n, c, own, theirs) for n, c in zip(inequality_names, declaration.inequalities, strict=False)]
    h = [express(n, c, own, theirs) for n, c in zip(equality_names, declaration.equalities, strict=False)]
    pairs = list(zip(declaration.variables, variables, strict=True))
    g += [build(z) for v, z in pairs for _, build in leaf.attribute_inequalities(v)]
    h += [build(z) for v, z in pairs for _, build in leaf.attribute_equalities(v)]
    inequalities, equalities = [e <= 0 for e in g], [e == 0 for e in h]
    problem = cp.Problem(cp.Minimize(f), [*inequalities, *equalities])
    return ReferenceProblem(problem, variables, parameters, inequalities, equalities)


def _names(declaration: Declaration) -> tuple[str, list[str], list[str]]:
    """How errors call the objective, each inequality, each equality."""
    inequalities = [name_of(f"inequality {i}", g) for i, g in enumerate(declaration.inequalities)]
    equalities = [name_of(f"equality {i}", h) for i, h in enumerate(declaration.equalities)]
    for variable in declaration.variables:
        inequalities += [name for name, _ in leaf.attribute_inequalities(variable)]
        equalities += [name for name, _ in leaf.attribute_equalities(variable)]
    return name_of("objective", declaration.objective), inequalities, equalities


def _on_flat(shapes: Sequence[tuple[int, ...]], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """function(*variables, *theta) as a function of (x, *theta), x all variables in C order."""
    sizes = [prod(shape) for shape in shapes]

    def of_flat(x: Tensor, *theta: Tensor) -> Tensor:
        parts = zip(x.split(sizes), shapes, strict=True)
        return function(*(part.reshape(shape) for part, shape in parts), *theta)

    return of_flat


def _stack(functions: Sequence[Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """The values of several functions as one vector."""

    def stacked(*arguments: Tensor) -> Tensor:
        rows = [function(*arguments).reshape(-1) for function in functions]
        return torch.cat(rows) if rows else arguments[0].new_zeros(0)

    return stacked


def _jacobian(function: Callable[..., Tensor], x: Tensor, theta: Point) -> Tensor:
    return jacobian(function, function(x, *theta).numel())(x, *theta)


def _rows(pieces: Sequence[_Piece]) -> int:
    return sum(piece.expression.size for piece in pieces)


def _degree(pieces: Sequence[_Piece]) -> float:
    return max((degree for piece in pieces for degree, _ in piece.torch.terms), default=0)


def _moves(pieces: Sequence[_Piece], degree: int) -> bool:
    """Whether a parameter enters the monomials of this degree."""
    return any((degree, True) in piece.torch.terms for piece in pieces)


def _short(expression: cp.Expression, length: int = 120) -> str:
    text = str(expression)
    return text if len(text) <= length else text[: length - 3] + "..."


def _psd_hint(expression: cp.Expression) -> str:
    if any(type(atom).__name__ == "QuadForm" for atom in _atoms(expression)):
        return "; in quad_form(x, P) declare P as cp.Parameter(..., PSD=True)"
    return ""


def _atoms(expression: Any) -> list[Any]:
    return [expression, *(atom for argument in expression.args for atom in _atoms(argument))]
