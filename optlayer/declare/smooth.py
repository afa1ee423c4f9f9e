"""The smooth route: a posed problem as torch functions f, g, h."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, combinations
from math import prod
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from optlayer.cones import Nonnegative, Product
from optlayer.declare import leaves as leaf
from optlayer.declare.blocks import Blocks, Polynomial, affine_blocks
from optlayer.declare.bounds import check_size
from optlayer.declare.branches import check_branch, torch_branch
from optlayer.declare.callables import UserCallable
from optlayer.declare.composite import composite
from optlayer.declare.declared import Declared
from optlayer.declare.opaque import Chord, TorchFunction, check, is_opaque
from optlayer.declare.points import Point, domain_points
from optlayer.declare.posed import Row
from optlayer.declare.recovery import Affine, Entries, entries
from optlayer.declare.refusals import NotSmooth
from optlayer.declare.separable import separable_hessian
from optlayer.declare.translate import Translation, translate
from optlayer.errors import DeclarationError
from optlayer.forms import Domain, Reference
from optlayer.forms.affine import AffineMap, Gather
from optlayer.forms.blocks import (
    AffineObjective,
    AffineRows,
    FunctionObjective,
    FunctionRows,
    Objective,
    jacobian,
)
from optlayer.forms.curved import Curved, FunctionCurved
from optlayer.forms.kkt import KKTForm
from optlayer.forms.programme import Programme
from optlayer.forms.smooth import SmoothForm

FEWER = "declare fewer variables, or write it as a sum of functions of single coordinates"
BESIDE = 1e-12  # of a border at 0
COORDINATES, STRIDE = 20, 0.3  # along which a chord is drawn from each probe, of this part of its size
PROBES = 3  # random points at which a declaration is examined
AFFINE, QUADRATIC = 1, 2


@dataclass(frozen=True)
class _Piece:
    """One callable or attribute constraint: its name, its expression, its meaning in torch."""

    name: str
    expression: cp.Expression
    torch: Translation
    function: UserCallable | None = None  # the user's own, where there is one

    @property
    def opaque(self) -> TorchFunction | None:
        """The atom it is, or has on its left, where it is written for torch only."""
        root: Any = self.expression
        return next((atom for atom in [root, *root.args] if isinstance(atom, TorchFunction)), None)


class SmoothCompiler:
    """The steps from a declaration to a smooth form; lives only while a layer is constructed.

    Args:
        declaration: What is compiled.
        apex: Norms are admitted: the user knows that their apex is avoided.

    Raises:
        DeclarationError: naming the callable, the expression or the attribute that cannot be
            honoured, and the way out.
    """

    def __init__(self, declaration: Declared, apex: bool) -> None:
        self.declaration, self.apex = declaration, apex
        for variable in declaration.variables:
            leaf.check_smooth(variable)
        # Without attributes on the variables every multiplier belongs to an explicit row; only where
        # cvxpy needs a sign to see convexity do its own copies keep them.
        bare = declaration.build(attributes=False, rows=True)
        self.attributes = not bare.problem.is_dcp()
        self.posed = declaration.build(attributes=True, rows=True) if self.attributes else bare
        self._refuse_cones()

    def form(self, reference: Reference | None) -> KKTForm:
        """The compiled programme; the reference is the same problem as cvxpy states it."""
        objective, inequalities, equalities = self.pieces
        self._check_branches()
        self._check_opaque()
        variables = self.posed.variables
        n, flat = sum(v.size for v in variables), partial(_on_flat, [v.shape for v in variables])
        f, g, h = (
            _polynomial(variables, [p.torch for p in pieces])
            for pieces in ([objective], inequalities, equalities)
        )
        blocks = self._blocks(f, g, h, n)
        rows = _constraint(g, blocks.G, blocks.g0), _constraint(h, blocks.A, blocks.h0)
        if f.degree <= QUADRATIC and g.degree <= AFFINE and h.degree <= AFFINE:
            dual, seen = Product((Nonnegative(g.size),)), torch.ones(n, dtype=torch.bool)
            return Programme(
                n,
                g.size,
                h.size,
                _objective(f, blocks, n),
                *rows,
                dual,
                seen,
                reference,
                domain=self._domain(flat),
            )
        curved = self._curved(f)
        if not curved.separable:
            check_size(f"the Hessian of {self.declaration.objective_name}", n, n, FEWER)
        if g.degree > AFFINE:
            check_size("the Jacobian of the inequalities", g.size, n, FEWER)
        return SmoothForm(
            n=n,
            m=g.size,
            p=h.size,
            objective=curved,
            inequality=rows[0],
            equality=rows[1],
            reference=reference,
            domain=self._domain(flat),
            unproven=is_opaque(self.posed.problem),
            owners=tuple(p.name for p in (*inequalities, *equalities) for _ in range(p.expression.size)),
        )

    def _curved(self, f: Polynomial) -> Curved:
        """An objective that is no quadratic."""
        expression, leaves = self.pieces[0].expression, (self.posed.variables, self.posed.parameters)
        theta = self._on_flat_point(self.points[0])[1] if self.points else None
        found = None if theta is None else composite(f.scalar, expression, *leaves, theta, _polynomial)
        return found or FunctionCurved(f.scalar, separable_hessian(expression, *leaves))

    def _blocks(self, f: Polynomial, g: Polynomial, h: Polynomial, n: int) -> Blocks:
        """The blocks that are affine in the parameters; none where no point is known to evaluate them at."""
        if not self.points:
            return Blocks(*[None] * 7)
        return affine_blocks(f, g, h, n, self._on_flat_point(self.points[0])[1])

    def variables(self) -> tuple[Gather, ...]:
        """x -> the value of each variable, symmetric ones so to the last bit: one triangle is read."""
        models = self.declaration.variables
        runs = _runs([v.shape for v in self.posed.variables])
        return tuple(
            Gather.run(*run).symmetric() if leaf.is_symmetric(model) else Gather.run(*run)
            for model, run in zip(models, runs, strict=True)
        )

    def duals(self) -> tuple[tuple[Gather, ...], ...]:
        """(ν, λ) -> the multiplier of each of the user's constraints."""
        rows = [*self.posed.equalities, *self.posed.inequalities]
        runs = _runs([row.constraint.shape for row in rows])
        found = {row.position: (Gather.run(*run),) for row, run in zip(rows, runs, strict=True)}
        return tuple(found[row.position] for row in self.posed.rows if row.position is not None)

    @cached_property
    def pieces(self) -> tuple[_Piece, list[_Piece], list[_Piece]]:
        """The objective, g and h, translated; attribute constraints follow the declared ones."""
        posed, own = self.posed, self.declaration
        objective = self._piece(own.objective_name, posed.problem.objective.expr, own.functions[0])
        inequalities, equalities = (
            [self._piece(row.name, row.constraint.expr, self._function(row)) for row in rows]
            for rows in (posed.inequalities, posed.equalities)
        )
        return objective, inequalities, equalities

    def _function(self, row: Row) -> UserCallable | None:
        """The user's own callable for a row, if there is one."""
        return None if row.position is None else self.declaration.functions[1 + row.position]

    def _piece(self, name: str, expression: cp.Expression, function: UserCallable | None) -> _Piece:
        variables, parameters = self.posed.variables, self.posed.parameters
        try:
            translation = translate(expression, variables, parameters, apex=self.apex)
        except DeclarationError as error:
            raise type(error)(f"{name}: {error}") from error
        return _Piece(name, expression, translation, function)

    def _refuse_cones(self) -> None:
        for row in self.posed.cones:
            kind = type(row.constraint).__name__
            raise NotSmooth(f'{row.name} is a {kind} constraint; leave method="auto", or pass "cone"')

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
        return [*self.posed.variables, *self.posed.parameters]

    def _on_flat_point(self, point: Point) -> tuple[Tensor, Point]:
        """(*variables, *theta) -> x, theta."""
        k = len(self.posed.variables)
        return torch.cat([value.reshape(-1) for value in point[:k]]), point[k:]

    def _check_branches(self) -> None:
        objective, inequalities, equalities = self.pieces
        if not self.points:
            return
        for piece in [objective, *inequalities, *equalities]:
            if piece.function is None or piece.opaque:
                continue
            branch = torch_branch(piece.function, self.points[0])
            if branch is not None:
                names = [leaf.name() for leaf in self.leaves]
                check_branch(piece.name, branch, piece.torch.function, self.points, names)

    def _check_opaque(self) -> None:
        """What cvxpy cannot see into, along chords between points with the attributes of the variables."""
        objective, inequalities, equalities = self.pieces
        shapes = [v.shape for v in self.posed.variables]
        for piece in [objective, *inequalities, *equalities]:
            if piece.opaque:
                check(piece.opaque.opaque, _on_flat(shapes, _stack([piece.torch.function])), self._chords)

    @cached_property
    def _chords(self) -> list[Chord]:
        """Between the probes, and from each along some coordinates."""
        points = [self._on_flat_point(self._within(point)) for point in self.points]
        chords = [Chord(a, b, theta) for (a, theta), (b, _) in combinations(points, 2)]
        for point in self.points:
            a, theta = self._on_flat_point(self._within(point))
            for j in torch.linspace(0, len(a) - 1, min(len(a), COORDINATES)).long():
                moved = a.index_add(0, j, STRIDE * a.abs().max().reshape(1))
                chords.append(Chord(a, self._on_flat_point(self._within(self._apart(moved)))[0], theta))
        return chords

    def _apart(self, x: Tensor) -> Point:
        """x -> the variables."""
        shapes = [v.shape for v in self.posed.variables]
        return tuple(p.reshape(s) for p, s in zip(x.split([prod(s) for s in shapes]), shapes, strict=True))

    def _within(self, point: Point) -> Point:
        """With variables that have their attributes."""
        k = len(self.declaration.variables)
        pairs = zip(self.declaration.variables, point[:k], strict=True)
        return *(torch.as_tensor(np.array(v.project(z.numpy()))) for v, z in pairs), *point[k:]

    def _domain(self, flat: Callable[..., Callable[..., Tensor]]) -> Domain | None:
        """The borders of f, g and h together, and which of them stop a single coordinate."""
        objective, inequalities, equalities = self.pieces
        pieces = [objective, *inequalities, *equalities]
        stops = self._stops(flat)
        borders = _with_coordinates(flat(_stack([p.torch.borders for p in pieces])), stops)
        norms = flat(_stack([p.torch.norms for p in pieces]))
        zeros = tuple(torch.zeros(z.shape, dtype=torch.float64) for z in self.leaves)
        x, theta = self._on_flat_point(zeros)
        size = borders(x, *theta).numel()
        if not size:
            return None
        single = _single_borders([self._slopes(borders, size, point) for point in self.points], n=len(x))
        return Domain(borders, norms, *single, size)

    def _slopes(self, borders: Callable[..., Tensor], size: int, point: Point) -> Entries:
        """∂borders at a point."""
        x, theta = self._on_flat_point(point)

        def product(weights: Tensor, *theta: Tensor) -> Tensor:
            return grad(lambda x: weights @ borders(x, *theta))(x)

        return entries(Affine((size, len(x)), size, len(x), product), *theta)

    def _stops(self, flat: Callable[..., Callable[..., Tensor]]) -> list[int]:
        """Coordinates that must stay positive for what cvxpy cannot see into: below 0 it is not a number."""
        objective, inequalities, equalities = self.pieces
        opaque = [p.torch.function for p in [objective, *inequalities, *equalities] if p.opaque]
        if not opaque or not self.points:
            return []
        function, stopped = flat(_stack(opaque)), []
        for x, theta in map(self._on_flat_point, self.points):
            sides = (torch.where(torch.eye(len(x), dtype=torch.bool), side, x) for side in (BESIDE, -BESIDE))
            inside, outside = (
                torch.stack([function(row, *theta).isfinite().all() for row in rows]) for rows in sides
            )
            stopped.append(inside & ~outside)
        return torch.stack(stopped).all(0).nonzero().flatten().tolist()


def _single_borders(slopes: Sequence[Entries], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and slope of the borders that stop one coordinate, with a slope that no point saw move."""
    if not slopes:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0).double()
    places = torch.cat([found.places for found in slopes]).unique()
    values = torch.stack([found.at(places) for found in slopes])
    row, constant = places // n, (values == values[0]).all(0)
    alone = torch.bincount(row)[row] == 1 if len(row) else constant
    kept = alone & constant
    return row[kept], places[kept] % n, values[0, kept]


def _with_coordinates(borders: Callable[..., Tensor], columns: list[int]) -> Callable[..., Tensor]:
    """The borders, and some coordinates of x."""
    if not columns:
        return borders
    return lambda x, *theta: torch.cat([borders(x, *theta), *(x[j : j + 1] for j in columns)])


def _runs(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """Where arrays laid end to end begin, with their shapes."""
    return list(zip(accumulate(map(prod, shapes), initial=0), shapes))


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


def _polynomial(variables: Sequence[cp.Variable], translations: Sequence[Translation]) -> Polynomial:
    """Several expressions as one function of x and θ."""
    function = _on_flat([v.shape for v in variables], _stack([t.function for t in translations]))
    monomials = frozenset().union(*(t.monomials for t in translations))
    return Polynomial(function, sum(prod(t.shape) for t in translations), monomials)


def _objective(f: Polynomial, blocks: Blocks, n: int) -> Objective:
    if blocks.P is None or blocks.q is None:
        return FunctionObjective(f.scalar, n)
    return AffineObjective(blocks.P.on_diagonal(), blocks.q, blocks.d, f.scalar)


def _constraint(g: Polynomial, M: AffineMap | None, r0: AffineMap | None) -> AffineRows | FunctionRows:
    return FunctionRows(g.flat, g.size) if M is None or r0 is None else AffineRows(M, r0)
