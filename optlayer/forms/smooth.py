r"""The smooth form: min f(x, θ)  s.t.  g(x, θ) <= 0,  h(x, θ) = 0  with f, g, h torch functions.

One sample of f, g, h is what the user declared; torch.func differentiates and batches it. What is quadratic
goes the way of `programme`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import grad, jacrev, vmap

from optlayer.cones import Nonnegative, Product
from optlayer.forms import Domain, Function, Local, Point, Reference
from optlayer.forms.blocks import AffineRows, FunctionRows, flatten
from optlayer.forms.kkt import KKTForm
from optlayer.matrix import Dense, Matrix, diagonal

Constraint = AffineRows | FunctionRows


@dataclass(frozen=True, eq=False)
class SmoothForm(KKTForm):
    """A compiled smooth programme in x ∈ ℝⁿ, all variables flattened in C order and concatenated."""

    n: int
    m: int  # rows of g, those that stand for variable attributes included
    p: int  # rows of h, likewise
    objective: Function  # f: () or one element
    inequality: Constraint  # g: (m,)
    equality: Constraint  # h: (p,)
    reference: Reference | None
    separable: bool = False  # f is a sum of functions of one coordinate each, g affine: H is diagonal
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
        stationarity = vmap(grad(self._f))(x, *theta)
        for constraint, multiplier in ((self.inequality, point.lam), (self.equality, point.nu)):
            if multiplier.shape[1]:
                stationarity = stationarity + constraint.pulled(multiplier, x, theta, flat)
        return stationarity, self.inequality.value(x, theta, flat), self.equality.value(x, theta, flat)

    def local(self, point: Point, *theta: Tensor) -> Local:
        """f, g, h to second order at a point."""
        x, flat = point.x, flatten(point.x, theta)
        gradient, hessian = self._curvature(point, *theta)
        return Local(
            gradient=gradient,
            hessian=hessian,
            g=self.inequality.value(x, theta, flat),
            G=self.inequality.matrix(x, theta, flat),
            h=self.equality.value(x, theta, flat),
            A=self.equality.matrix(x, theta, flat),
            dual=self.dual,
        )

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """f(x, θ), batched."""
        return vmap(self._f)(x, *theta)

    # ------------------------------------------------------------------------ one sample of f, g, h

    def _f(self, x: Tensor, *theta: Tensor) -> Float64[Tensor, ""]:
        return self.objective(x, *theta).reshape(())

    def _lagrangian(self, x: Tensor, lam: Tensor, *theta: Tensor) -> Float64[Tensor, ""]:
        """f + λᵀg; h is affine."""
        if isinstance(self.inequality, AffineRows):
            return self._f(x, *theta)
        return self._f(x, *theta) + lam @ self.inequality.function(x, *theta)

    def _curvature(self, point: Point, *theta: Tensor) -> tuple[Tensor, Matrix]:
        """∇f and ∇²f + Σ λ_i ∇²g_i."""
        if self.separable:
            gradient, curvature = self._diagonal(point.x, *theta)
            return gradient, diagonal(curvature)
        hessian = vmap(jacrev(grad(self._lagrangian)))(point.x, point.lam, *theta)
        return vmap(grad(self._f))(point.x, *theta), Dense(hessian)

    def _diagonal(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> tuple[Tensor, Tensor]:
        """∇f and the diagonal of ∇²f, where that is all there is: two gradients of sums."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(vmap(self._f)(x, *theta).sum(), x, create_graph=True)
            if not gradient.requires_grad:  # f is affine
                return gradient, torch.zeros_like(x)
            (curvature,) = torch.autograd.grad(gradient.sum(), x)
        return gradient.detach(), curvature
