r"""Projections smoothed by the cone's logarithmic barrier, for symmetric cones.

    Π_μ(v) = argmin_p { ½|p - v|² + μ b(p) },    p ∘ (p - v) = μe

with b = -log p, -½ log(t² - |x|²), -log det P, whose gradient is -p⁻¹ in the cone's Jordan algebra. With
v = τλ - s these are the points p = τλ, p - v = s of the central path: s ∘ τλ is μe instead of 0. Π_μ acts on
the eigenvalues of v, as Π does, by

    φ(a) = ½(a + r_a),    r_a = √(a² + 4μ),    φ'(a) = ½(1 + a/r_a) ∈ (0, 1)

in place of max(a, 0), which it tends to with μ. Its divided differences have no singular case,

    φ[a, b] = ½(1 + (a + b)/(r_a + r_b))
    φ[a, c, b] = ½(r_c + ½(S - σ²/S) - cσ/S) / ((r_a + r_c)(r_c + r_b)),    S = r_a + r_b, σ = a + b

so that nothing is lost where eigenvalues meet. Chen & Tseng, Math. Program. 95 (2003).
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.cones.cone import ConvexCone, Spectrum, Turn
from optlayer.cones.nonnegative import Nonnegative
from optlayer.cones.orderings import smat, svec
from optlayer.cones.product import Product
from optlayer.cones.second_order import SecondOrder, frame
from optlayer.cones.semidefinite import Semidefinite, eigenbasis, eigh
from optlayer.cones.zero import Free, Zero

SYMMETRIC = (Nonnegative, SecondOrder, Semidefinite, Free, Zero)


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A product of symmetric cones with Π_μ for its projection.

    Args:
        cone: The product.
        mu: μ > 0 for each row, constant on a block.
    """

    cone: Product
    mu: Float64[Tensor, "*batch dim"]
    is_orthant: bool = False  # no row is either active or not

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        """Π_μ(v), differentiable twice, in every mode and nesting."""
        return self.cone.gathered(
            v, [smoothed(group.cone, *self._of(group.rows, v)) for group in self.cone.groups]
        )

    def nearest(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        """Π_μ(v), a number."""
        return self.project(v.detach())

    def spectrum(self, v: Float64[Tensor, "*batch dim"]) -> Spectrum:
        """DΠ_μ(v) = W diag(d) Wᵀ, as numbers."""
        parts = [eigen(group.cone, *self._of(group.rows, v.detach())) for group in self.cone.groups]
        d = self.cone.gathered(v, [part for part, _ in parts])
        pairs = zip(self.cone.groups, parts, strict=True)
        turns = tuple(Turn(group.rows, W) for group, (_, W) in pairs if W is not None)
        return Spectrum(d, turns, *self.cone.layout) if turns else Spectrum(d)

    def over_blocks(self, a: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        """The largest value of a over each block, spread back to its rows."""
        return self.cone.over_blocks(a)

    def _of(self, rows: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return v[..., rows], self.mu[..., rows[:, 0]].unsqueeze(-1)


@singledispatch
def smoothed(cone: ConvexCone, v: Float64[Tensor, "*batch dim"], mu: Float64[Tensor, "*batch 1"]) -> Tensor:
    """Π_μ(v) of one kind of cone."""
    raise NotImplementedError(type(cone).__name__)


@singledispatch
def eigen(
    cone: ConvexCone, v: Float64[Tensor, "*batch dim"], mu: Float64[Tensor, "*batch 1"]
) -> tuple[Tensor, Tensor | None]:
    """d and W with DΠ_μ(v) = W diag(d) Wᵀ, as numbers; None for W = I."""
    raise NotImplementedError(type(cone).__name__)


@smoothed.register
def _(cone: Free | Zero, v: Tensor, mu: Tensor) -> Tensor:
    """Neither has a kink."""
    return cone.project(v)


@eigen.register
def _(cone: Free | Zero, v: Tensor, mu: Tensor) -> tuple[Tensor, Tensor | None]:
    return cone.eigen(v)


# ------------------------------------------------------------------------------------------- the orthant


@smoothed.register
def _(cone: Nonnegative, v: Tensor, mu: Tensor) -> Tensor:
    """φ(v), as 2μ/(r - v) where v + r would cancel."""
    r, below = _root(v, mu), v < 0
    return torch.where(below, 2.0 * mu / (r - torch.where(below, v, 0.0)), 0.5 * (v + r))


@eigen.register
def _(cone: Nonnegative, v: Tensor, mu: Tensor) -> tuple[Tensor, Tensor | None]:
    return _slope(v, mu), None


def _root(a: Tensor, mu: Tensor) -> Tensor:
    """r_a."""
    return torch.sqrt(a * a + 4.0 * mu)


def _slope(a: Tensor, mu: Tensor) -> Tensor:
    """φ'(a), as 2μ/(r(r - a)) where 1 + a/r would cancel."""
    r = _root(a, mu)
    return torch.where(a < 0, 2.0 * mu / (r * (r + a.abs())), 0.5 * (1.0 + a / r))


# ------------------------------------------------------------------------------- the second-order cone
#
# v = (t, x) has the eigenvalues a, b = t ± |x|, and Π_μ(v) = (½(φ(a) + φ(b)), φ[a, b] x). In terms of |x|²,
# which is smooth where |x| is not, with S = r_a + r_b:
#
#     ½(φ(a) + φ(b)) = ½t + ¼S,    φ[a, b] = ½(1 + 2t/S),    S² = 2(t² + |x|²) + 8μ + 2 r_a r_b,
#     r_a² r_b² = (t² - |x|²)² + 8μ(t² + |x|²) + 16μ²


@smoothed.register
def _(cone: SecondOrder, v: Tensor, mu: Tensor) -> Tensor:
    t, x = v[..., :1], v[..., 1:]
    S = _sum_of_roots(t, (x * x).sum(-1, keepdim=True), mu)
    return torch.cat([0.5 * t + 0.25 * S, (0.5 + t / S) * x], -1)


@eigen.register
def _(cone: SecondOrder, v: Tensor, mu: Tensor) -> tuple[Tensor, Tensor | None]:
    t, x = v[..., :1], v[..., 1:]
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    apex = torch.cat([torch.ones_like(x[..., :1]), torch.zeros_like(x[..., 1:])], -1)
    direction = torch.where(length > 0, x / torch.where(length > 0, length, 1.0), apex)
    S = _sum_of_roots(t, length.square(), mu)
    middle = (0.5 + t / S).expand_as(v[..., 2:])
    return torch.cat([_slope(t + length, mu), _slope(t - length, mu), middle], -1), frame(direction)


def _sum_of_roots(t: Tensor, square: Tensor, mu: Tensor) -> Tensor:
    """S = r_a + r_b."""
    q = t * t + square
    product = torch.sqrt((t * t - square).square() + 8.0 * mu * q + 16.0 * mu * mu)
    return torch.sqrt(2.0 * q + 8.0 * mu + 2.0 * product)


# ------------------------------------------------------------------------------- semidefinite matrices


@smoothed.register
def _(cone: Semidefinite, v: Tensor, mu: Tensor) -> Tensor:
    """The expansion at v as it is, through second order: see `cones`."""
    at = _spectral(v.detach(), mu)
    E = at.W.mT @ smat(v - v.detach()) @ at.W
    value = torch.diag_embed(0.5 * (at.eigenvalues + at.r))
    return svec(at.W @ (value + at.first * E + at.second(E)) @ at.W.mT)


@eigen.register
def _(cone: Semidefinite, v: Tensor, mu: Tensor) -> tuple[Tensor, Tensor | None]:
    at = _spectral(v, mu)
    return eigenbasis(cone.n, at.first, at.W)


class _Spectral(NamedTuple):
    """V = W diag(λ) Wᵀ as numbers, with r and the divided differences of φ."""

    W: Float64[Tensor, "*batch n n"]
    eigenvalues: Float64[Tensor, "*batch n"]
    r: Float64[Tensor, "*batch n"]
    gap: Float64[Tensor, "*batch n n"]  # 1/(r_i + r_j)
    first: Float64[Tensor, "*batch n n"]  # φ[λᵢ, λⱼ]

    def second(self, E: Tensor) -> Tensor:
        """Σₖ φ[λᵢ, λₖ, λⱼ] Êᵢₖ Êₖⱼ."""
        F, total = self.gap * E, self.eigenvalues.unsqueeze(-1) + self.eigenvalues.unsqueeze(-2)
        by_r = (F * self.r.unsqueeze(-2)) @ F
        by_eigenvalue = (F * self.eigenvalues.unsqueeze(-2)) @ F
        half = 0.5 * (1.0 / self.gap - total.square() * self.gap)
        return 0.5 * (by_r + half * (F @ F) - total * self.gap * by_eigenvalue)


def _spectral(v: Float64[Tensor, "*batch dim"], mu: Float64[Tensor, "*batch 1"]) -> _Spectral:
    eigenvalues, W = eigh(smat(v))
    r = _root(eigenvalues, mu)
    gap = 1.0 / (r.unsqueeze(-1) + r.unsqueeze(-2))
    first = 0.5 * (1.0 + (eigenvalues.unsqueeze(-1) + eigenvalues.unsqueeze(-2)) * gap)
    return _Spectral(W, eigenvalues, r, gap, first)
