r"""Objectives that are no quadratics: ∇f and ∇²f of a batch of samples.

Most of them are sums of elementwise functions of affine expressions, beside a quadratic,

    f(x) = ½xᵀPx + qᵀx + d + Σ_k w_k φ_k(y_k),    y = Jx + c,

entropies, logarithms and logistic losses among them. Then, with D = diag(w_k φ_k''(y_k)),

    ∇f = Px + q + Jᵀ(w ∘ φ'(y)),    ∇²f = P + JᵀDJ,

and a call costs a few products and three elementary functions. Whatever else f is, torch.func differentiates
and batches the function itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import grad, jacrev, vmap

from optlayer.forms import Function
from optlayer.forms.affine import AffineMap, Parts
from optlayer.forms.blocks import Theta
from optlayer.matrix import Dense, Matrix, Sparse, diagonal


class Curved(Protocol):
    """f, batched; see `blocks` for `theta` and `flat`."""

    @property
    def separable(self) -> bool:
        """Whether f is a sum of functions of one coordinate each, and ∇²f diagonal."""
        ...

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, " B"]:
        """f, differentiable."""
        ...

    def gradient(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B n"]:
        """∇f, differentiable."""
        ...

    def second(
        self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts
    ) -> tuple[Float64[Tensor, "B n"], Matrix]:
        """∇f and ∇²f."""
        ...


@dataclass(frozen=True, eq=False)
class FunctionCurved:
    """f as a function of one sample."""

    f: Function
    separable: bool = False  # a sum of functions of one coordinate each: ∇²f is diagonal

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, " B"]:
        """f."""
        return vmap(self.f)(x, *theta)

    def gradient(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B n"]:
        """∇f."""
        gradient: Tensor = vmap(grad(self.f))(x, *theta)
        return gradient

    def second(
        self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts
    ) -> tuple[Float64[Tensor, "B n"], Matrix]:
        """∇f and ∇²f."""
        if self.separable:
            gradient, curvature = self._diagonal(x, theta)
            return gradient, diagonal(curvature)
        hessian, gradient = vmap(jacrev(self._twice, has_aux=True))(x, *theta)
        return gradient, Dense(hessian)

    def _twice(self, x: Float64[Tensor, " n"], *theta: Tensor) -> tuple[Tensor, Tensor]:
        gradient = grad(self.f)(x, *theta)
        return gradient, gradient

    def _diagonal(self, x: Float64[Tensor, "B n"], theta: Theta) -> tuple[Tensor, Tensor]:
        """∇f and the diagonal of ∇²f, where that is all there is: two gradients of sums."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(vmap(self.f)(x, *theta).sum(), x, create_graph=True)
            if not gradient.requires_grad:  # f is affine
                return gradient, torch.zeros_like(x)
            (curvature,) = torch.autograd.grad(gradient.sum(), x)
        return gradient.detach(), curvature


@dataclass(frozen=True)
class Curve:
    """φ with its first two derivatives, elementwise; NaN or infinite where φ is not defined."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Composite:
    """½xᵀPx + qᵀx + d + Σ w_k φ_k(y_k), whose data are affine in θ; d may not be, and comes from f then."""

    f: Function
    P: AffineMap
    q: AffineMap
    d: AffineMap | None
    J: AffineMap
    c: AffineMap
    w: AffineMap
    curves: tuple[Curve, ...]
    sizes: tuple[int, ...]  # how many of the y belong to each

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, " B"]:
        """f."""
        if self.d is None:
            return vmap(self.f)(x, *theta)
        y = self.J.matrix(flat) @ x + self.c(flat)
        of_curves = (self.w(flat) * self._each("value", y)).sum(1)
        return (x * (0.5 * (self.P.matrix(flat) @ x) + self.q(flat))).sum(1) + self.d(flat) + of_curves

    def gradient(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B n"]:
        """∇f."""
        J = self.J.matrix(flat)
        return self._slope(x, J @ x + self.c(flat), J, self.w(flat), flat)

    def second(
        self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts
    ) -> tuple[Float64[Tensor, "B n"], Matrix]:
        """∇f and ∇²f."""
        J, w = self.J.matrix(flat), self.w(flat)
        y = J @ x + self.c(flat)
        return self._slope(x, y, J, w, flat), self._hessian(w * self._each("curvature", y), J, flat)

    def _slope(self, x: Tensor, y: Tensor, J: Matrix, w: Tensor, flat: Parts) -> Float64[Tensor, "B n"]:
        gradient = J.mT(w * self._each("slope", y)) + self.q(flat)
        return gradient + self.P.matrix(flat) @ x if len(self.P.places) else gradient

    def _each(self, derivative: str, y: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        """φ, φ' or φ'' of every entry."""
        if len(self.curves) == 1:
            return getattr(self.curves[0], derivative)(y)
        parts = zip(self.curves, y.split(self.sizes, 1), strict=True)
        return torch.cat([getattr(curve, derivative)(part) for curve, part in parts], 1)

    def _hessian(self, D: Float64[Tensor, "B k"], J: Matrix, flat: Parts) -> Matrix:
        """P + JᵀDJ."""
        P = self.P.matrix(flat)
        if self.separable and isinstance(J, Sparse):
            return diagonal(P.diagonal() + J.squared.mT(D))
        rows = J.dense()
        return Dense(P.dense() + rows.mT @ (D.unsqueeze(2) * rows))

    @cached_property
    def separable(self) -> bool:
        """Whether each y_k depends on one coordinate, and P is diagonal: then ∇²f is."""
        P = self.P.pattern
        return bool((self.J.pattern.count <= 1).all() and (P.rows == P.columns).all())
