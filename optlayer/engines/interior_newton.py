"""Newton's direction of the interior point for smooth problems, by Cholesky factors."""

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.engines.interior_rows import Residual, State
from optlayer.forms import Local
from optlayer.matrix import Dense, Matrix, Sparse, diagonal, largest, or_one

GRAM_SHIFT = 1e-13  # δ of the scaled A M⁻¹Aᵀ


class System:
    r"""The Newton system of one iteration, factored.

    ⎡ M   Aᵀ ⎤ ⎡ẋ⎤   ⎡ -r - Gᵀ((λ∘r_g - r_c)/s) ⎤        ṡ = -r_g - Gẋ
    ⎣ A   0  ⎦ ⎣ν̇⎦ = ⎣ -h                       ⎦        λ̇ = -(r_c + λ∘ṡ)/s
    """

    def __init__(self, at: Local, now: State, shift: Float64[Tensor, "B 1"]) -> None:
        self._at, self._now = at, now
        M = _normal(at, now.lam / now.s)
        d = M.diagonal() if isinstance(M, Dense) else M.values
        d = d.expand(len(now.x), -1)
        self._u = torch.where(d > 0, d, or_one(largest(d))).rsqrt()
        self._L, self.sound = self._factor(M, shift)
        if at.A.shape[0]:
            self._V = self._half(self._u.unsqueeze(2) * at.A.dense().mT)
            S = self._V.mT @ self._V
            self._w = or_one(S.diagonal(dim1=1, dim2=2)).rsqrt()
            S = self._w.unsqueeze(2) * S * self._w.unsqueeze(1)
            self._gram, info = torch.linalg.cholesky_ex(_shifted(S, torch.full_like(shift, GRAM_SHIFT)))
            self.sound = self.sound & (info == 0).unsqueeze(1)

    def _factor(self, M: Matrix, shift: Tensor) -> tuple[Tensor, Tensor]:
        """uMu + δ = LLᵀ; of a diagonal, √ of it."""
        if isinstance(M, Sparse):
            L = (M.values * self._u.square() + shift).sqrt()
            return L, L.isfinite().all(1, keepdim=True)
        scaled = self._u.unsqueeze(2) * M.values * self._u.unsqueeze(1)
        L, info = torch.linalg.cholesky_ex(_shifted(scaled, shift))
        return L, (info == 0).unsqueeze(1)

    def _half(self, R: Float64[Tensor, "B n c"]) -> Float64[Tensor, "B n c"]:
        """L⁻¹R."""
        if self._L.ndim == 2:
            return R / self._L.unsqueeze(2)
        return torch.linalg.solve_triangular(self._L, R, upper=False)

    def _other_half(self, R: Float64[Tensor, "B n c"]) -> Float64[Tensor, "B n c"]:
        """L⁻ᵀR."""
        if self._L.ndim == 2:
            return R / self._L.unsqueeze(2)
        return torch.linalg.solve_triangular(self._L.mT, R, upper=True)

    def direction(self, r: Residual, product: Float64[Tensor, "B m"]) -> State:
        """Newton's step; `product` is what s∘λ has too much."""
        at, (_, s, lam, _) = self._at, self._now
        x, nu = self._solve(-r.stationarity - at.G.mT((lam * r.g - product) / s), -r.h)
        ds = -r.g - at.G @ x
        return State(x, ds, -(product + lam * ds) / s, nu)

    def _solve(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(ẋ, ν̇), with y = L⁻¹ua:  S ν̇ = Vᵀy - c,  ẋ = uL⁻ᵀ(y - Vν̇)."""
        y, nu = self._half((self._u * a).unsqueeze(2)), c
        if c.shape[1]:
            right = self._w.unsqueeze(2) * (self._V.mT @ y - c.unsqueeze(2))
            solved = self._w.unsqueeze(2) * torch.cholesky_solve(right, self._gram)
            y, nu = y - self._V @ solved, solved.squeeze(2)
        return self._u * self._other_half(y).squeeze(2), nu


def _normal(at: Local, D: Float64[Tensor, "B m"]) -> Matrix:
    """H + GᵀDG, diagonal where H is and G holds bounds only."""
    if isinstance(at.G, Sparse):
        bounds = at.G.pattern.bounds
        weights = D[:, bounds.rows] * at.G.values[:, bounds.entries].square()
        own = torch.zeros_like(at.gradient).index_add(1, bounds.columns, weights)
        if isinstance(at.hessian, Sparse) and at.hessian.pattern.is_diagonal and not len(bounds.other_rows):
            return diagonal(at.hessian.values + own)
        others = Sparse(at.G.values[:, bounds.other_entries], bounds.others).dense()
        M = _shifted(at.hessian.dense(), own)
        return Dense(M + (others.mT * D[:, bounds.other_rows].unsqueeze(1)) @ others)
    G = at.G.dense()
    M = at.hessian.dense().expand(len(D), -1, -1)
    return Dense(M + (G.mT * D.unsqueeze(1)) @ G) if G.shape[1] else Dense(M)


def _shifted(M: Float64[Tensor, "B n n"], by: Tensor) -> Float64[Tensor, "B n n"]:
    """M + diag(by)."""
    return M + torch.diag_embed(by.expand(len(by), M.shape[-1]))
