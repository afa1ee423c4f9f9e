"""Forms: what is solved, and what must vanish at the solution.

A form is compiled once from a declaration, immutable, and shared by threads and copies. It offers

    residual(u, *data)             F(u, d), the normal map of the KKT conditions (see `kkt`)
    inverse(b, u, *data)           J⁻¹ b and J⁻ᵀ b with J = ∂F/∂u, what `implicit.attach` needs
    local(point, *theta)           f, g, h to second order, what polish and certificate need
    recover(u, tau)                primal values and multipliers

and knows neither cvxpy nor any solver: what it holds of a `Reference` it never looks into.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float64, Int64
from torch import Tensor

from optlayer.cones import Product
from optlayer.matrix import Matrix

Function = Callable[..., Tensor]  # one sample: (x (n,), *theta) -> Tensor


class Local(NamedTuple):
    """The problem to second order at a point, batched: what Newton and the certificate look at."""

    gradient: Float64[Tensor, "B n"]  # ∇f
    hessian: Matrix  # H = ∇²f + Σ λ_i ∇²g_i
    g: Float64[Tensor, "B m"]
    G: Matrix  # ∂g
    h: Float64[Tensor, "B p"]
    A: Matrix  # ∂h
    dual: Product  # K*, the cone of the multipliers of -g ∈ K
    auxiliary: bool = False  # x holds variables that are not the user's, and have no scale of their own

    def some(self, rows: Tensor) -> "Local":
        """That of some samples."""
        return self._replace(**{name: getattr(self, name)[rows] for name in self._fields[:6]})

    @property
    def has_finite_constraints(self) -> bool:
        """Whether no number in g, G, h and A has overflown, in any sample."""
        parts = (self.g, self.h, self.G.values, self.A.values)
        return all(bool(part.isfinite().all()) for part in parts)


class Point(NamedTuple):
    """A primal-dual point in the user's own scale: λ ∈ K* belongs to -g ∈ K, ν to h = 0."""

    x: Float64[Tensor, "B n"]
    lam: Float64[Tensor, "B m"]
    nu: Float64[Tensor, "B p"]


@dataclass(frozen=True, eq=False)
class Domain:
    """Where f, g, h are defined: `borders(x, *theta) > 0`, such as the arguments of logarithms.

    Rows `row` of the borders are affine in one coordinate `column` of x alone, with a constant slope, z >= 0
    for an entropy: there Newton can step in the logarithm of the distance.
    """

    borders: Function
    norms: Function  # those of the borders that are norms, without derivative at 0
    row: Int64[Tensor, " k"]
    column: Int64[Tensor, " k"]
    slope: Float64[Tensor, " k"]
    size: int  # how many borders there are


@dataclass(frozen=True)
class ReferenceProblem:
    """The same problem as a modelling language states it; opaque to everything but its engine."""

    problem: Any
    variables: Sequence[Any]
    parameters: Sequence[Any]
    inequalities: Sequence[Any]  # constraints, whose expression is <= 0
    equalities: Sequence[Any]  # constraints, whose expression is == 0


@dataclass(frozen=True)
class Reference:
    """How to build a private copy of the user's problem, as often as threads need one."""

    build: Callable[[], ReferenceProblem]
    inequality_names: tuple[str, ...]  # as the user reads them: "inequality 0 'lower'"
    equality_names: tuple[str, ...]
