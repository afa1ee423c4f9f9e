r"""The blocks of f, g and h as sparse affine maps of the parameters, settled at construction.

    f = ½ xᵀP x + qᵀx + d        g = G x + g₀        h = A x + h₀

The monomials of a declaration say which of them are affine in θ; `recovery` says what they are.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import grad

from optlayer.declare.points import Point
from optlayer.declare.recovery import Affine, Unsettled, recovered
from optlayer.declare.terms import Terms
from optlayer.forms import Function
from optlayer.forms.affine import AffineMap


@dataclass(frozen=True)
class Blocks:
    """Each block as a map of θ, which is flattened in C order and concatenated as declared.

    None: it is not affine in θ, or nothing cheap says how; or x is not polynomial enough for it to exist.
    """

    P: AffineMap | None  # (n, n)
    q: AffineMap | None  # (n,)
    d: AffineMap | None  # ()
    G: AffineMap | None  # (m, n)
    g0: AffineMap | None  # (m,)
    A: AffineMap | None  # (p, n)
    h0: AffineMap | None  # (p,)


@dataclass(frozen=True)
class Polynomial:
    """A function (x, *theta) -> `size` values, of any shape, and the monomials it may hold."""

    function: Function
    size: int
    monomials: Terms

    @property
    def degree(self) -> float:
        """In x."""
        return max((degree for degree, _ in self.monomials), default=0)

    def flat(self, x: Float64[Tensor, " n"], *theta: Tensor) -> Float64[Tensor, " size"]:
        """Its values as a vector."""
        return self.function(x, *theta).reshape(-1)

    def scalar(self, x: Float64[Tensor, " n"], *theta: Tensor) -> Float64[Tensor, ""]:
        """Its one value."""
        return self.function(x, *theta).reshape(())

    def block(self, B: Affine, degree: int, theta: Point) -> AffineMap | None:
        """The block that the monomials of one degree in x make; None where it is not affine in θ."""
        degrees = {parametric for own, parametric in self.monomials if own == degree}
        if max(degrees, default=0) > 1:
            return None
        try:
            return recovered(B, theta, constant=0 in degrees, parametric=1 in degrees)
        except Unsettled:
            return None


def affine_blocks(f: Polynomial, g: Polynomial, h: Polynomial, n: int, theta: Point) -> Blocks:
    """The blocks of a problem in x ∈ ℝⁿ; those of affine g and h also where f is not quadratic.

    Args:
        f: The objective.
        g: The inequalities, stacked.
        h: The equalities, stacked.
        n: Coordinates of x.
        theta: Parameter values at which f, g and h are defined.
    """
    P, q, d = objective_blocks(f, n, theta)
    G, g0 = constraint_blocks(g, n, theta)
    A, h0 = constraint_blocks(h, n, theta)
    return Blocks(P, q, d, G, g0, A, h0)


def objective_blocks(
    f: Polynomial, n: int, theta: Point
) -> tuple[AffineMap | None, AffineMap | None, AffineMap | None]:
    """P = ∂²f, q = ∂f and d = f at x = 0."""
    if f.degree > 2:
        return None, None, None
    zero = torch.zeros(n, dtype=torch.float64)

    def P(u: Tensor, *theta: Tensor) -> Tensor:
        return grad(lambda x: u @ grad(f.scalar)(x, *theta))(zero)

    def q(one: Tensor, *theta: Tensor) -> Tensor:
        return one * grad(f.scalar)(zero, *theta)

    def d(one: Tensor, *theta: Tensor) -> Tensor:
        return one * f.flat(zero, *theta)

    return (
        f.block(Affine((n, n), n, n, P, symmetric=True), 2, theta),
        f.block(Affine((n,), 1, n, q), 1, theta),
        f.block(Affine((), 1, 1, d), 0, theta),
    )


def constraint_blocks(g: Polynomial, n: int, theta: Point) -> tuple[AffineMap | None, AffineMap | None]:
    """G = ∂g and g₀ = g at x = 0."""
    if g.degree > 1:
        return None, None
    zero, m = torch.zeros(n, dtype=torch.float64), g.size

    def G(lam: Tensor, *theta: Tensor) -> Tensor:
        return grad(lambda x: lam @ g.flat(x, *theta))(zero)

    def g0(one: Tensor, *theta: Tensor) -> Tensor:
        return one * g.flat(zero, *theta)

    return g.block(Affine((m, n), m, n, G), 1, theta), g.block(Affine((m,), 1, m, g0), 0, theta)
