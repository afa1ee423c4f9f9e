r"""The smooth form: min f(x, θ)  s.t.  g(x, θ) <= 0,  h(x, θ) = 0  with f, g, h torch functions.

What the user declared is one sample of f, g, h. `curved` knows how f is differentiated and batched;
torch.func does it with a curved g. What is quadratic goes the way of `programme`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import grad, jacrev, vmap

from optlayer.cones import Nonnegative, Product
from optlayer.forms import Domain, Local, Point, Reference
from optlayer.forms.affine import Parts
from optlayer.forms.blocks import AffineRows, FunctionRows, flatten
from optlayer.forms.curved import Curved
from optlayer.forms.kkt import KKTForm
from optlayer.matrix import Dense, Matrix

Constraint = AffineRows | FunctionRows


@dataclass(frozen=True, eq=False)
class SmoothForm(KKTForm):
    """A compiled smooth programme in x ∈ ℝⁿ, all variables flattened in C order and concatenated."""

    n: int
    m: int  # rows of g, those that stand for variable attributes included
    p: int  # rows of h, likewise
    objective: Curved  # f
    inequality: Constraint  # g: (m,)
    equality: Constraint  # h: (p,)
    reference: Reference | None
    domain: Domain | None = None
    quadratic: bool = False
    unproven: bool = False  # that f and g are convex, h affine, is somebody's word
    owners: tuple[str, ...] = ()  # the constraint each row of g and h belongs to

    def __deepcopy__(self, memo: dict[int, object]) -> "SmoothForm":
        return self  # immutable

    @cached_property
    def dual(self) -> Product:  # type: ignore[override]
        """λ >= 0."""
        return Product((Nonnegative(self.m),))

    @cached_property
    def seen(self) -> Bool[Tensor, " n"]:  # type: ignore[override]
        """All of them."""
        return torch.ones(self.n, dtype=torch.bool)

    # ------------------------------------------------------------------------------------ batched

    def rows(self, point: Point, *theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∇f + Gᵀλ + Aᵀν, g and h, batched and differentiable."""
        x, flat = point.x, flatten(point.x, theta)
        stationarity = self.objective.gradient(x, theta, flat)
        for constraint, multiplier in ((self.inequality, point.lam), (self.equality, point.nu)):
            if multiplier.shape[1]:
                stationarity = stationarity + constraint.pulled(multiplier, x, theta, flat)
        return stationarity, self.inequality.value(x, theta, flat), self.equality.value(x, theta, flat)

    def local(self, point: Point, *theta: Tensor) -> Local:
        """f, g, h to second order at a point."""
        x, flat = point.x, flatten(point.x, theta)
        gradient, hessian = self._curvature(point, theta, flat)
        g, G = self.inequality.local(x, theta, flat)
        h, A = self.equality.local(x, theta, flat)
        return Local(
            gradient=gradient,
            hessian=hessian,
            g=g,
            G=G,
            h=h,
            A=A,
            dual=self.dual,
        )

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """f(x, θ), batched."""
        return self.objective.value(x, theta, flatten(x, theta))

    def _curvature(self, point: Point, theta: tuple[Tensor, ...], flat: Parts) -> tuple[Tensor, Matrix]:
        """∇f and ∇²f + Σ λ_i ∇²g_i; h is affine."""
        gradient, hessian = self.objective.second(point.x, theta, flat)
        if isinstance(self.inequality, AffineRows) or not self.m:
            return gradient, hessian
        of_g = vmap(jacrev(grad(self._weighed)))(point.x, point.lam, *theta)
        return gradient, Dense(hessian.dense() + of_g)

    def _weighed(self, x: Float64[Tensor, " n"], lam: Float64[Tensor, " m"], *theta: Tensor) -> Tensor:
        """λᵀg, one sample."""
        assert isinstance(self.inequality, FunctionRows)
        return lam @ self.inequality.function(x, *theta)
