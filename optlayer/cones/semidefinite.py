r"""The cone of positive semidefinite matrices, as vectors in the house order (`orderings`), self-dual.

Π takes f = max(·, 0) of the eigenvalues, V = W diag(λ) Wᵀ. Its derivatives are Löwner's, by divided
differences of f, and need no derivative of the eigenvectors; with Ê = WᵀEW,

    Π(V + E) = Π(V) + W (f[λᵢ, λⱼ] Êᵢⱼ)ᵢⱼ Wᵀ + W (Σₖ f[λᵢ, λₖ, λⱼ] Êᵢₖ Êₖⱼ)ᵢⱼ Wᵀ + O(E³)

For f these are rational: f[a, b] is 1 if both are positive, 0 if neither is, a/(a - b) for a > 0 >= b;
f[a, b, c] is 0 for one sign, -c/((a - c)(b - c)) for a, b > 0 >= c, and a/((a - b)(a - c)) for
a > 0 >= b, c. So only differences of eigenvalues of opposite sign divide, and repeated eigenvalues are
no exception. With Gᵢⱼ = 1/|λᵢ - λⱼ| for opposite signs and 0 for equal ones, F = G∘Ê, and Ê split into
its blocks Ê₊ (both positive), Ê₋ (neither) and the rest, the sum over k is three products of matrices:

    F |Λ| F + T + Tᵀ,       T = G ∘ (Ê₊ F Λ₋ + Λ₊ F Ê₋)  on rows i positive, columns j not

An eigenvalue that is zero up to rounding counts as zero: not positive.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones import orderings
from optlayer.cones.cone import ConvexCone
from optlayer.cones.nonnegative import Nonnegative
from optlayer.cones.orderings import smat, svec

ROUNDING = 4 * torch.finfo(torch.float64).eps  # of an eigenvalue, relative to n times the largest


@dataclass(frozen=True, slots=True)
class Semidefinite(ConvexCone):
    """Symmetric n x n matrices X ⪰ 0."""

    n: int
    dim: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"a semidefinite matrix has at least one row, not {self.n}")
        object.__setattr__(self, "dim", orderings.triangle(self.n))

    @property
    def dual(self) -> "Semidefinite":
        return self

    @property
    def atoms(self) -> tuple[ConvexCone, ...]:
        return (self,) if self.n > 1 else (Nonnegative(1),)

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        at = _spectral(v)
        E = at.into(smat(v - v.detach()))
        return at.projected(v.detach()) + svec(at.out(at.first * E + at.second(E, E)))

    def nearest(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        return _spectral(v).projected(v.detach())

    def jvp(self, v: Tensor, dv: Tensor) -> Float64[Tensor, "*batch dim"]:
        at = _spectral(v)
        E, H = at.into(smat(v - v.detach())), at.into(smat(dv))
        return svec(at.out(at.first * H + at.second(E, H) + at.second(H, E)))

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor]:
        at = _spectral(v)
        return eigenbasis(self.n, at.first, at.W)

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        v = v.detach()
        eigenvalues, W = eigh(smat(v))
        small = eigenvalues.abs() <= tolerance.unsqueeze(-1)
        tie = small.any(-1)
        moved = svec((W * torch.where(small, 0.0, eigenvalues).unsqueeze(-2)) @ W.mT)
        return torch.where(tie.unsqueeze(-1), moved, v), tie


def eigenbasis(
    n: int, first: Float64[Tensor, "*batch n n"], W: Float64[Tensor, "*batch n n"]
) -> tuple[Float64[Tensor, "*batch dim"], Float64[Tensor, "*batch dim dim"]]:
    """The eigenvalues of E -> W (fᵢⱼ Êᵢⱼ)ᵢⱼ Wᵀ, and its eigenvectors svec(½(wᵢwⱼᵀ + wⱼwᵢᵀ)), normed."""
    i, j = (torch.from_numpy(index).to(W.device) for index in orderings.house_pairs(n))
    wi, wj = W.mT[..., i, :], W.mT[..., j, :]  # (*batch, dim, n): one pair a row
    pairs = wi.unsqueeze(-1) * wj.unsqueeze(-2)
    norm = torch.where(i == j, W.new_tensor(0.5), W.new_tensor(0.5**0.5))[:, None]
    return first[..., i, j], (norm * svec(pairs + pairs.mT)).mT


class _Spectral(NamedTuple):
    """V = W diag(λ) Wᵀ as numbers, with what the formulas above need of it."""

    W: Float64[Tensor, "*batch n n"]
    high: Float64[Tensor, "*batch n"]  # Λ₊
    low: Float64[Tensor, "*batch n"]  # -Λ₋
    both: Float64[Tensor, "*batch n n"]  # 1 where both eigenvalues are positive
    neither: Float64[Tensor, "*batch n n"]
    gap: Float64[Tensor, "*batch n n"]  # G
    first: Float64[Tensor, "*batch n n"]  # f[λᵢ, λⱼ]

    def into(self, M: Tensor) -> Tensor:
        return self.W.mT @ M @ self.W

    def out(self, M: Tensor) -> Tensor:
        return self.W @ M @ self.W.mT

    def projected(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        """W Λ₊ Wᵀ; bit for bit V where V ⪰ 0."""
        inside = (self.low == 0).all(-1, keepdim=True)
        return torch.where(inside, v, svec((self.W * self.high.unsqueeze(-2)) @ self.W.mT))

    def second(self, E: Tensor, H: Tensor) -> Tensor:
        """Σₖ f[λᵢ, λₖ, λⱼ] Êᵢₖ Ĥₖⱼ, for E = H; its symmetric part in (E, H) is the bilinear form."""
        F, K = self.gap * E, self.gap * H
        middle = (F * (self.high + self.low).unsqueeze(-2)) @ K
        T = (self.both * E) @ K * self.low.unsqueeze(-2) + self.high.unsqueeze(-1) * (F @ (self.neither * H))
        T = self.gap * (self.high > 0).to(T.dtype).unsqueeze(-1) * T
        return middle + T + T.mT


def _spectral(v: Float64[Tensor, "*batch dim"]) -> _Spectral:
    eigenvalues, W = eigh(smat(v.detach()))
    rounding = ROUNDING * W.shape[-1] * eigenvalues.abs().amax(-1, keepdim=True)
    eigenvalues = torch.where(eigenvalues.abs() <= rounding, 0.0, eigenvalues)
    high, low = (
        torch.where(eigenvalues > 0, eigenvalues, 0.0),
        torch.where(eigenvalues < 0, -eigenvalues, 0.0),
    )
    positive = (high > 0).to(v.dtype)
    both = positive.unsqueeze(-1) * positive.unsqueeze(-2)
    neither = (1 - positive).unsqueeze(-1) * (1 - positive).unsqueeze(-2)
    mixed = 1 - both - neither
    size = eigenvalues.abs()
    gap = mixed / torch.where(mixed > 0, size.unsqueeze(-1) + size.unsqueeze(-2), 1.0)
    first = both + gap * (high.unsqueeze(-1) + high.unsqueeze(-2))
    return _Spectral(W, high, low, both, neither, gap, first)


def eigh(V: Float64[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor]:
    """eigh refuses a whole batch for one NaN: those samples alone are NaN here. Subnormal ones are 0."""
    finite = V.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    tiny = V.abs().amax((-2, -1), keepdim=True) < torch.finfo(V.dtype).tiny
    eigenvalues, W = torch.linalg.eigh(torch.where(finite & ~tiny, V, 0.0))
    return torch.where(finite.squeeze(-1), eigenvalues, torch.nan), W
