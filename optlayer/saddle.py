r"""Symmetric saddle-point systems by block elimination: the fast path of every Newton step and adjoint.

        ⎡ H    (sE)ᵀ ⎤          H >= 0, often diagonal;  s >= 0 scales the rows of E, 0 drops one;
    K = ⎢            ⎥          D >= 0 diagonal
        ⎣ sE    -D   ⎦

With both diagonals shifted by ±δ, K is quasidefinite (Vanderbei 1995), and

    S = sE (H + δ)⁻¹ (sE)ᵀ + D + δ        S μ = sE (H + δ)⁻¹ a - c,    x = (H + δ)⁻¹ (a - (sE)ᵀμ)

needs Cholesky factors only; those of a chain of blocks where H is diagonal and the rows of E come in stages
(`banded`). The answer is refined against the matrix *without* the shift, and its residual
says whether it can be trusted; whoever asks must have another way for the samples where it cannot.

H and E usually stay while s, D and the set of fixed coordinates change from step to step: `Base` keeps what
belongs to them. A fixed coordinate, x_j = a_j, is one whose row and column of H and E are struck out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayer.banded import Chain, Tridiagonal, chain_of
from optlayer.fill import factor_work
from optlayer.matrix import Matrix, Sparse, largest, or_one

SWEEPS = 3  # of equilibration where H is 0
SHIFT = 1e-12  # δ, relative to the equilibrated matrix
LIFT = 1e-8  # what a diagonal H gets instead where it is below FLAT: 1 / δ is then a number in S
FLAT = 1e-4
REFINEMENTS = 5
LEAST, ALWAYS = 2, 8  # of them, where K decides and not the right-hand side
EXACT = 1e-15  # residual, relative to the terms it is made of, at which there is nothing left to refine
ROUGH = 1e-11  # and at which a step of Newton's method is as good as any that others follow
CLOSE = 1e-13  # and one that is exact, where only rounding makes another necessary
HELPED = 0.25  # a refinement that leaves more of the residual was the last
CONSISTENT = 1e-10  # |b - Ky| / |b| that passes
ROUNDING = 1e-14  # or |b - Ky| / |y|, when |y| / |b| is below GROWTH
GROWTH = 1e8
MANY = 192  # rows of E from which on each sample's dropped rows are left out of its S


class Solved(NamedTuple):
    """K (x, μ) = (a, c), and whether the residual says so."""

    x: Float64[Tensor, "B n"]
    mu: Float64[Tensor, "B k"]
    sound: Bool[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Base:
    """H and E, equilibrated: diag(u) H diag(u) and diag(w) E diag(u) have entries up to 1."""

    H: Matrix
    E: Matrix
    u: Float64[Tensor, "#B n"]
    w: Float64[Tensor, "#B k"]
    given: Matrix  # E as it came

    @classmethod
    def of(cls, H: Matrix, E: Matrix) -> "Base":
        u, w = _equilibrate(H, E)
        return cls(H.scaled(u, u), E.scaled(w, u), u, w, E)

    @cached_property
    def diagonal(self) -> Float64[Tensor, "#B n"] | None:
        """H + δ, where that is diagonal."""
        if not _is_diagonal(self.H):
            return None
        diagonal = self.H.diagonal()
        return torch.where(diagonal < FLAT, diagonal + LIFT, diagonal)

    @cached_property
    def factor_work(self) -> float:
        """Operations of a sparse factorization of K, where both are sparse."""
        assert isinstance(self.H, Sparse)
        assert isinstance(self.E, Sparse)
        return factor_work(self.H.pattern, self.E.pattern)

    @cached_property
    def chain(self) -> Chain | None:
        """The stages of S, where it has some that save work."""
        if self.diagonal is None or not isinstance(self.E, Sparse):
            return None
        return self.E.pattern.once(chain_of)

    @cached_property
    def staged(self) -> Float64[Tensor, "#B T 2b c"]:
        """E by stages."""
        assert self.chain is not None
        assert isinstance(self.E, Sparse)
        return self.chain.blocks(self.E)

    @cached_property
    def rows(self) -> Float64[Tensor, "#B k n"]:
        """E."""
        return self.E.dense()

    @cached_property
    def free(self) -> tuple[Tensor, Tensor, Tensor]:
        """The factor of H + δ, (H + δ)⁻¹Eᵀ and E(H + δ)⁻¹Eᵀ with every coordinate free."""
        return self.eliminate(None)

    def eliminate(self, fixed: Bool[Tensor, "B n"] | None) -> tuple[Tensor, Tensor, Tensor]:
        """The same with some coordinates fixed; a diagonal's factor is its inverse."""
        E = self.rows
        if self.diagonal is not None:
            weights = self.weights(fixed)
            V = weights.unsqueeze(2) * E.mT
            return weights, V, E @ V
        H = self.H.dense()
        H = H + SHIFT * torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
        if fixed is not None:
            E = torch.where(fixed.unsqueeze(1), 0.0, E)
            H = torch.where(fixed.unsqueeze(2) | fixed.unsqueeze(1), 0.0, H) + torch.diag_embed(
                fixed.to(H.dtype)
            )
        L, info = torch.linalg.cholesky_ex(H)
        L = torch.where((info == 0)[:, None, None], L, torch.nan)
        V = cholesky_solve(L, E.mT)
        return L, V, E @ V

    def weights(self, fixed: Bool[Tensor, "B n"] | None) -> Float64[Tensor, "#B n"]:
        """(H + δ)⁻¹ of a diagonal H, 0 where a coordinate is fixed."""
        assert self.diagonal is not None
        inverse = 1.0 / self.diagonal
        return inverse if fixed is None else torch.where(fixed, 0.0, inverse)


Shifted = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (a, c) -> (x, μ) of the shifted K


class Factor:
    """K, factored.

    Args:
        base: H and E.
        s: Scale of the rows of E; None: 1.
        D: The lower right block is -diag(D).
        fixed: Coordinates with x_j = a_j, if any.
        shifted: Another way than dense blocks to solve with the shifted K of these four, D equilibrated.
    """

    def __init__(
        self,
        base: Base,
        s: Tensor | None,
        D: Float64[Tensor, "B k"],
        fixed: Tensor | None = None,
        shifted: Callable[[Base, Tensor | None, Tensor, Tensor | None], Shifted] | None = None,
    ) -> None:
        self._base, self._s, self._fixed = base, s, fixed
        self._D = base.w * base.w * D
        if shifted is not None:
            self._shifted = shifted(base, s, self._D, fixed)
            return
        self._shifted = self._by_blocks
        self._is_diagonal = base.diagonal is not None
        self._S: _Definite | _EachDefinite | Tridiagonal | None = None
        if base.chain is not None:
            self._H_factor = base.weights(fixed)
            self._S = Tridiagonal(base.chain, base.staged, self._H_factor, s, self._D + SHIFT)
            return
        self._H_factor, self._V, M = base.free if fixed is None else base.eliminate(fixed)
        k = D.shape[1]
        if k > MANY and s is not None:
            self._S = _EachDefinite(M, s, self._D + SHIFT)
        elif k:
            self._S = _Definite(M, s, self._D + SHIFT)

    @property
    def regular(self) -> Bool[Tensor, " B"]:
        """Whether K is regular, as far as this can tell: it solves a generic system, without blowing it up.

        This depends on K alone, so that the answer stays linear in the right-hand side.
        """
        return self._generic[0]

    @property
    def _sweeps(self) -> Int64[Tensor, " B"]:
        """What is left falls by the same factor in each: twice as many as to ROUGH go beyond rounding."""
        return self._generic[1]

    @cached_property
    def _generic(self) -> tuple[Bool[Tensor, " B"], Int64[Tensor, " B"]]:
        """Both, from the same system."""
        B, k = self._D.shape
        size = self._base.u.shape[1]
        generic = torch.cos(torch.arange(size + k, dtype=torch.float64, device=self._D.device) ** 2).expand(
            B, -1
        )
        x, mu, sound, sweeps = self._refined(generic[:, :size], generic[:, size:], ROUGH)
        return sound & (_largest(x, mu) <= GROWTH), (LEAST * (1 + sweeps)).clamp_max(ALWAYS)

    def solve(self, a: Float64[Tensor, "B n"], c: Float64[Tensor, "B k"], enough: float = EXACT) -> Solved:
        """K (x, μ) = (a, c) to a relative residual; a fixed coordinate's a is its value."""
        x, mu, sound, _ = self._refined(*self._scaled(a, c), enough)
        return Solved(self._base.u * x, self._base.w * mu, sound)

    def solve_always(self, a: Float64[Tensor, "B n"], c: Float64[Tensor, "B k"]) -> tuple[Tensor, Tensor]:
        """The same where K is `regular`, refined as often as a generic system needs it to get to rounding."""
        a, c = self._scaled(a, c)
        x, mu = self._shifted(a, c)
        for sweep in range(int(self._sweeps.max()) if len(a) else 0):
            r, t = self._residual(a, c, x, mu)
            rough = _largest(r, t) > EXACT * torch.maximum(_largest(a, c), _largest(x, mu))
            x, mu = self._corrected(x, mu, r, t, rough & (sweep < self._sweeps))
        return self._base.u * x, self._base.w * mu

    def _scaled(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The right-hand side of the equilibrated system."""
        u, w = self._base.u, self._base.w
        return u * a if self._fixed is None else torch.where(self._fixed, a / u, u * a), w * c

    def _refined(self, a: Tensor, c: Tensor, enough: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Refined as long as that helps, and how often: that does not depend on the other samples."""
        x, mu = self._shifted(a, c)
        size = _largest(a, c)
        last, sweeps = torch.full_like(size, torch.inf), torch.zeros_like(size, dtype=torch.int64)
        for sweep in range(REFINEMENTS + 1):
            r, t = self._residual(a, c, x, mu)
            miss, terms = _largest(r, t), torch.maximum(size, _largest(x, mu))
            rough = (miss > enough * size) & (miss > EXACT * terms) & (miss < HELPED * last)
            if sweep == REFINEMENTS or not rough.any():
                break
            x, mu, sweeps = *self._corrected(x, mu, r, t, rough), sweeps + rough
            last = torch.where(rough, miss, 0.0)
        small = miss <= max(enough, CONSISTENT) * size
        return x, mu, small | ((miss <= ROUNDING * terms) & (terms <= GROWTH * size)), sweeps

    def _corrected(self, x: Tensor, mu: Tensor, r: Tensor, t: Tensor, rough: Tensor) -> tuple[Tensor, Tensor]:
        """Some samples moved by what is left of their residual."""
        dx, dmu = self._shifted(r, t)
        some = rough.unsqueeze(1)
        return torch.where(some, x + dx, x), torch.where(some, mu + dmu, mu)

    def _by_blocks(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The shifted system, by block elimination."""
        x = self._over_H(a)
        if self._S is None:
            return x, c
        mu = self._S.solve(self._rows(x) - c)
        scaled = mu if self._s is None else self._s * mu
        if self._is_diagonal:
            return x - self._H_factor * self._base.E.mT(scaled), mu
        return x - (self._V @ scaled.unsqueeze(2)).squeeze(2), mu

    def _over_H(self, a: Tensor) -> Tensor:
        if not self._is_diagonal:
            return cholesky_solve(self._H_factor, a.unsqueeze(2)).squeeze(2)
        x = self._H_factor * a
        return x if self._fixed is None else torch.where(self._fixed, a, x)

    def _rows(self, x: Tensor) -> Tensor:
        """sEx, over the free coordinates."""
        x = x if self._fixed is None else torch.where(self._fixed, 0.0, x)
        Ex = self._base.E @ x
        return Ex if self._s is None else self._s * Ex

    def _residual(self, a: Tensor, c: Tensor, x: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """(a, c) - K (x, μ)."""
        scaled = mu if self._s is None else self._s * mu
        if self._fixed is None:
            r = a - self._base.H @ x - self._base.E.mT(scaled)
        else:
            inner = torch.where(self._fixed, 0.0, x)
            r = torch.where(self._fixed, a - x, a - self._base.H @ inner - self._base.E.mT(scaled))
        return r, c - self._rows(x) + self._D * mu


class _Definite:
    """S = s M s + diag(D), factored for the whole batch."""

    def __init__(self, M: Tensor, s: Tensor | None, D: Tensor) -> None:
        S = M if s is None else s.unsqueeze(2) * M * s.unsqueeze(1)
        L, info = torch.linalg.cholesky_ex(S + torch.diag_embed(D))
        self._L = torch.where((info == 0)[:, None, None], L, torch.nan)

    def solve(self, b: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        return cholesky_solve(self._L, b.unsqueeze(2)).squeeze(2)


class _EachDefinite:
    """The same sample by sample, without the rows that s drops: those are D μ = b."""

    def __init__(self, M: Tensor, s: Tensor, D: Tensor) -> None:
        self._D = D
        self._kept = [row.nonzero().squeeze(1) for row in s != 0]
        self._L = [self._factor(M[min(i, len(M) - 1)], s[i], D[i], kept) for i, kept in enumerate(self._kept)]

    @staticmethod
    def _factor(M: Tensor, s: Tensor, D: Tensor, kept: Tensor) -> Tensor:
        S = s[kept, None] * M[kept][:, kept] * s[kept] + torch.diag(D[kept])
        L, info = torch.linalg.cholesky_ex(S)
        return L if info == 0 else torch.full_like(L, torch.nan)

    def solve(self, b: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        mu = b / self._D
        for row, right, L, kept in zip(mu, b, self._L, self._kept, strict=True):
            row[kept] = torch.cholesky_solve(right[kept].unsqueeze(1), L).squeeze(1)
        return mu


def cholesky_solve(L: Float64[Tensor, "#B n n"], R: Float64[Tensor, "B n c"]) -> Float64[Tensor, "B n c"]:
    """(L Lᵀ)⁻¹ R; one factor for all samples solves them side by side."""
    if len(L) == len(R):
        return torch.cholesky_solve(R, L)
    B, n, c = R.shape
    side_by_side = R.transpose(0, 1).reshape(n, B * c)
    return torch.cholesky_solve(side_by_side, L[0]).reshape(n, B, c).transpose(0, 1)


def _is_diagonal(H: Matrix) -> bool:
    return isinstance(H, Sparse) and (H.pattern.is_diagonal or H.pattern.nnz == 0)


def _equilibrate(H: Matrix, E: Matrix) -> tuple[Tensor, Tensor]:
    """Powers of two u, w that bring the entries of uHu and wEu to about 1 and less, the largest to about 1.

    Of H only the diagonal is looked at: where H >= 0, |H_ij| <= √(H_ii H_jj). Where that is 0, the rows of
    E and its columns take turns: a coordinate's unit must not depend on those of the rows.
    """
    rows = H.diagonal().abs()
    if not E.shape[0]:
        return _root(rows), rows[:, :0]
    flat = rows == 0
    u = _root(torch.where(flat, E.column_largest(), rows))
    w = _root(E.largest(u).square())
    for _ in range(SWEEPS if flat.any() else 0):
        u = torch.where(flat, _root(E.column_largest(w).square()), u)
        w = _root(E.largest(u).square())
    return u, w


def _root(rows: Tensor) -> Tensor:
    """1/√rows to a power of two, which rounds nothing; 1 where there is nothing."""
    return or_one(rows).log2().mul(-0.5).round().exp2()


def _largest(a: Tensor, c: Tensor) -> Float64[Tensor, " B"]:
    """max |·| of both."""
    return largest(torch.cat([a, c], 1) if c.shape[1] else a).squeeze(1)
