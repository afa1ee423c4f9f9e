r"""Saddle-point systems too large and too sparse for dense blocks: the same K, met sample by sample.

        ⎡ H + δ    (sE)ᵀ  ⎤        rows of E that s drops, and coordinates that are fixed, are left out
    K = ⎢                 ⎥
        ⎣ sE    -(D + δ)  ⎦

Quasidefinite, K has an LDLᵀ factorization in any order of its rows (Vanderbei 1995), so that the order may
be chosen for little fill alone: `qdldl` (Stellato et al. 2020), which brings AMD. Three ways, chosen from
the patterns and never from numbers, so that a sample takes the same one whatever its neighbours are:

    H diagonal     S = sE (H + δ)⁻¹ (sE)ᵀ + D + δ   in LDLᵀ, where it is as sparse as K
    any H          K itself in LDLᵀ
    else           where that fills in too much, conjugate gradients on S or, where H is not diagonal,
                   MINRES on K (Paige & Saunders 1975), both preconditioned by diagonals

`saddle.Factor` refines whatever they return against the matrix without δ and judges it. Numpy inside,
tensors at the border.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import qdldl
import torch
from jaxtyping import Bool, Float64, Int64
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg, minres, splu
from torch import Tensor

from optlayer.columns import to_csc
from optlayer.fill import WORK
from optlayer.matrix import Sparse
from optlayer.saddle import FLAT, LIFT, SHIFT, Base, Factor

Array = np.ndarray
Solve = Callable[[Array], Array]

LARGE = 2000  # rows and columns of K from which on it may be met sparsely
BYTES = 2**28  # what the dense blocks of one sample may take
SLOWER = 30.0  # a sparse operation, in dense ones
SCHUR = 8.0  # entries of S, in those of E, up to which it is preferred to K
TOLERANCE = 1e-11  # relative residual of one iterative solve
SWEEPS = 2000  # iterations of it


def factor(base: Base, s: Tensor | None, D: Float64[Tensor, "B k"], fixed: Tensor | None = None) -> Factor:
    """K, factored as its patterns suggest: in dense blocks, sparsely, or not at all."""
    return Factor(base, s, D, fixed, Shifted if is_sparse(base) else None)


def is_sparse(base: Base) -> bool:
    """Whether K is met sparsely: its dense blocks do not fit, or a sparse factor takes less time."""
    (k, n), H = base.E.shape, base.H
    if not (isinstance(H, Sparse) and isinstance(base.E, Sparse)) or n + k <= LARGE:
        return False
    curved = base.diagonal is None
    numbers, dense = (
        2.0 * n * k + k * k + curved * n * n,
        n * k * k + k**3 / 3 + curved * (n**3 / 3 + k * n * n),
    )
    return 8 * numbers > BYTES or SLOWER * base.factor_work < dense


class Shifted:
    """K with its diagonals shifted by ±δ, ready to be solved with; arguments and units of `saddle.Factor`."""

    def __init__(
        self, base: Base, s: Tensor | None, D: Float64[Tensor, "B k"], fixed: Bool[Tensor, "B n"] | None
    ) -> None:
        assert isinstance(base.E, Sparse)
        H, E, way = to_csc(base.H), to_csc(base.E), _way(base)
        self._D, self._samples = D + SHIFT, []
        for i in range(len(D)):
            scale = np.ones(D.shape[1]) if s is None else s[i].numpy()
            kept, free = np.flatnonzero(scale), _free(fixed, i, H.shape[0])
            Ei = (sparse.diags_array(scale[kept]) @ E.matrix(i).tocsr()[kept])[:, free]
            blocks = _Blocks(H.matrix(i)[free][:, free].tocsc(), Ei.tocsr(), self._D[i].numpy()[kept])
            self._samples.append((way(blocks), kept, free))

    def __call__(self, a: Float64[Tensor, "B n"], c: Float64[Tensor, "B k"]) -> tuple[Tensor, Tensor]:
        """x and μ; what is fixed is a itself, what is dropped -c / D."""
        x, mu = a.clone(), -c / self._D
        for (solve, kept, free), *row in zip(self._samples, a.numpy(), c.numpy(), x.numpy(), mu.numpy()):
            ai, ci, xi, mui = row
            xi[free], mui[kept] = solve(ai[free], ci[kept])
        return x, mu


class _Blocks(NamedTuple):
    """One sample, without what is fixed or dropped."""

    H: sparse.csc_matrix
    E: sparse.csr_matrix  # sE
    D: Float64[Array, " k"]  # D + δ

    @property
    def diagonal(self) -> Float64[Array, " n"]:
        """That of H + δ, where H is diagonal."""
        own = self.H.diagonal()
        return np.where(own < FLAT, own + LIFT, own)

    def whole(self) -> sparse.csc_matrix:
        """K."""
        shifted = self.H + LIFT * sparse.eye_array(self.H.shape[0])
        return sparse.block_array([[shifted, self.E.T], [self.E, -sparse.diags_array(self.D)]], format="csc")


Way = Callable[[_Blocks], Callable[[Array, Array], tuple[Array, Array]]]


def _way(base: Base) -> Way:
    """How K is solved with, by its patterns."""
    assert isinstance(base.E, Sparse)
    if base.factor_work > WORK:
        return _Iterated if base.diagonal is None else partial(_Schur, inverse=_conjugate_gradients)
    meetings = torch.bincount(base.E.pattern.columns).double().square().sum()
    sparse_too = base.diagonal is not None and meetings <= SCHUR * max(base.E.pattern.nnz, 1)
    return partial(_Schur, inverse=_factored_schur) if sparse_too else _Whole


def _free(fixed: Tensor | None, i: int, n: int) -> Int64[Array, " f"]:
    return np.arange(n) if fixed is None else np.flatnonzero(~fixed[i].numpy())


# ------------------------------------------------------------------------------------------ the ways


class _Schur:
    """S μ = sE (H + δ)⁻¹ a - c,   x = (H + δ)⁻¹ (a - (sE)ᵀμ),   H diagonal."""

    def __init__(self, blocks: _Blocks, inverse: Callable[[_Blocks, Array], Solve]) -> None:
        self._E, self._weights = blocks.E, 1.0 / blocks.diagonal
        self._S = inverse(blocks, self._weights)

    def __call__(self, a: Array, c: Array) -> tuple[Array, Array]:
        mu = self._S(self._E @ (self._weights * a) - c) if len(c) else c
        return self._weights * (a - self._E.T @ mu), mu


class _Whole:
    """K in LDLᵀ."""

    def __init__(self, blocks: _Blocks) -> None:
        self._n, self._solve = blocks.H.shape[0], factored(blocks.whole())

    def __call__(self, a: Array, c: Array) -> tuple[Array, Array]:
        y = self._solve(np.concatenate([a, c]))
        return y[: self._n], y[self._n :]


class _Iterated:
    """K by MINRES, with the diagonals of H and of S for a preconditioner."""

    def __init__(self, blocks: _Blocks) -> None:
        self._n, self._K = blocks.H.shape[0], blocks.whole().tocsr()
        schur = _schur_diagonal(blocks, 1.0 / blocks.diagonal)
        self._weights = 1.0 / np.concatenate([blocks.diagonal, schur])

    def __call__(self, a: Array, c: Array) -> tuple[Array, Array]:
        b, M = np.concatenate([a, c]), _scaling(self._weights)
        y, _ = minres(self._K, b, M=M, rtol=TOLERANCE, maxiter=SWEEPS)
        return y[: self._n], y[self._n :]


def _factored_schur(blocks: _Blocks, weights: Array) -> Solve:
    """S⁻¹ by LDLᵀ."""
    scaled = blocks.E @ sparse.diags_array(np.sqrt(weights))
    return factored((scaled @ scaled.T + sparse.diags_array(blocks.D)).tocsc())


def _conjugate_gradients(blocks: _Blocks, weights: Array) -> Solve:
    """S⁻¹ by conjugate gradients; S is met through its products alone."""
    E, D, transposed = blocks.E, blocks.D, blocks.E.T.tocsr()
    S = LinearOperator((len(D), len(D)), lambda y: E @ (weights * (transposed @ y)) + D * y, dtype=float)
    M = _scaling(1.0 / _schur_diagonal(blocks, weights))

    def solve(b: Array) -> Array:
        y: Array = cg(S, b, rtol=TOLERANCE, maxiter=SWEEPS, M=M)[0]
        return y

    return solve


def _schur_diagonal(blocks: _Blocks, weights: Array) -> Float64[Array, " k"]:
    """That of S, H taken for its diagonal."""
    return blocks.E.power(2) @ weights + blocks.D


def _scaling(weights: Array) -> Any:
    return LinearOperator((len(weights), len(weights)), lambda y: weights * y, dtype=float)


def factored(K: sparse.csc_matrix) -> Solve:
    """K⁻¹ of a quasidefinite K by LDLᵀ, or by LU where a pivot is lost; NaN where both are."""
    if not K.shape[0]:
        return lambda b: b
    if not np.isfinite(K.data).all():
        return lambda b: np.full_like(b, np.nan)
    try:
        solve: Solve = qdldl.Solver(sparse.csc_matrix(sparse.triu(K, format="csc")), upper=True).solve
    except (RuntimeError, ValueError):
        return factored_lu(K)
    return solve


def factored_lu(K: sparse.csc_matrix) -> Solve:
    """K⁻¹ by LU with pivots; NaN where one is lost."""
    try:  # COLAMD bounds the fill whatever the pivots
        solve: Solve = splu(sparse.csc_matrix(K), permc_spec="COLAMD").solve
    except RuntimeError:  # singular to the last bit
        return lambda b: np.full_like(b, np.nan)
    return solve
