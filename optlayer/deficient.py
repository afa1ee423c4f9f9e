r"""K⁺b for symmetric singular K of some hundred rows and more, without all of its eigenvectors.

K̂ = SKS, equilibrated and shifted by ±δ, is quasidefinite and has an LDLᵀ factorization, sparse where K is:
F ≈ (K̂ + δJ)⁻¹, J = diag(1, -1). F blows up what K̂ takes to 0, so that a few steps of subspace iteration
(Rutishauser 1969) find its null space, in a basis that grows until half of it and more is none of it, or
until the eigenvectors cost less;

    K⁺b = Q K̃ Q b,    Q = 1 - ZZᵀ,  Z an orthonormal basis of S null(K̂) = null(K)

where K̃ solves with K̂ by F, refined against the matrix without the shift: each refinement takes the error
along an eigenvector of σ ≠ 0 to δ / (|σ| + δ) of itself. Along the few with |σ| near δ, Y, it is solved with
YᵀK̂Y instead. Rows with nothing but their diagonal, those of constraints that do not hold, are divided by it.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from scipy import linalg, sparse

from optlayer.linsolve import RUIZ_SWEEPS
from optlayer.sparse_saddle import Solve, factored, factored_lu

Array = np.ndarray

SHIFT = 1e-10  # δ
NULL = 1e-12  # |σ| that is 0, K̂ being of size 1
NEAR = 10 * SHIFT  # |σ| of Y
EXACT = 1e-12  # residual of a factor, relative to the solution, that is one
DENSE = 0.1  # entries from which on K is met as a dense matrix
STEPS = 2  # of subspace iteration
FIRST = 8  # size of its first basis
ROOM = 0.5  # of a basis that must not be null for all of the null space to be in it
GROWTH = 4  # of the basis, where it is too small
PART = 0.3  # of N that a basis may have, beyond which the eigenvectors cost less
REFINEMENTS = 20
HELPED = 0.5  # a refinement that leaves more of a generic residual was the last
FREE = 1e-8  # squared length of a coordinate's row of Z that moves it


class Deficient:
    """The pseudo-inverse of one symmetric matrix.

    Args:
        K: The matrix, n primal rows first; positive semidefinite there and negative semidefinite below.
        n: How many.
    """

    def __init__(self, K: sparse.csc_matrix, n: int) -> None:
        K = K.copy()
        K.eliminate_zeros()
        self._coupled, self._diagonal = _coupled(K), np.where(K.diagonal() != 0, K.diagonal(), 1.0)
        K, primal = K[self._coupled][:, self._coupled], self._coupled < n
        self._s = _ruiz(K)
        scale = sparse.diags_array(self._s)
        self._K = sparse.csc_matrix(scale @ K @ scale)
        shift = sparse.diags_array(np.where(primal, SHIFT, -SHIFT))
        self._solve = _factored(sparse.csc_matrix(self._K + shift))
        null, self._near = self._small()
        self._ritz = self._near.T @ (self._K @ self._near)
        self._null = _orthonormal(self._s[:, None] * null)
        self._sweeps = self._needed()
        self.free: Bool[Array, " n"] = np.zeros(n, dtype=bool)
        self.free[self._coupled[primal]] = np.square(self._null[primal]).sum(1) > FREE

    @property
    def singular(self) -> bool:
        """Whether it is."""
        return self._null.shape[1] > 0

    @property
    def nearly(self) -> bool:
        """Or nearly so: some eigenvalue is as small as the shift."""
        return self.singular or self._near.shape[1] > 0

    def __call__(self, b: Float64[Array, " N"]) -> Float64[Array, " N"]:
        """K⁺b."""
        x, rhs = b / self._diagonal, self._s * self._off_null(b[self._coupled])
        y = self._inverse(rhs)
        for _ in range(self._sweeps):
            y = y + self._inverse(rhs - self._K @ y)
        x[self._coupled] = self._off_null(self._s * y)
        return x

    def _off_null(self, a: Array) -> Array:
        return a - self._null @ (self._null.T @ a)

    def _inverse(self, r: Float64[Array, " N"]) -> Float64[Array, " N"]:
        """K̃r, before it is refined."""
        near = self._near.T @ r
        rest: Array = self._solve(r - self._near @ near)
        return rest + self._near @ np.linalg.solve(self._ritz, near)

    def _small(self) -> tuple[Float64[Array, "N k"], Float64[Array, "N l"]]:
        """Orthonormal bases of null(K̂), and of what F hardly solves for."""
        N, size = self._K.shape[0], FIRST
        while size <= PART * N:
            X = np.random.default_rng(0).standard_normal((N, size))
            for _ in range(STEPS):
                X = self._cleaned(_orthonormal(self._apply(X)))
            sizes, turned = _singular(self._K @ X)
            if (sizes <= SHIFT).sum() <= ROOM * size:
                return _split(X @ turned.T, sizes)
            size *= GROWTH
        values, W = np.linalg.eigh(self._K.toarray())
        null, near = _split(W, np.abs(values))
        return self._cleaned(null), near

    def _cleaned(self, X: Float64[Array, "N k"]) -> Float64[Array, "N k"]:
        """Off with what is in the range: F rounds, and so do eigenvectors."""
        return _orthonormal(X - self._apply(self._K @ X)) if X.shape[1] else X

    def _apply(self, X: Float64[Array, "N k"]) -> Float64[Array, "N k"]:
        """FX."""
        return np.column_stack([self._solve(x) for x in X.T])

    def _needed(self) -> int:
        """Refinements until a generic system is solved, so that the right-hand side decides nothing."""
        rhs = self._s * self._off_null(_generic(len(self._s)))
        y, last = self._inverse(rhs), np.inf
        for sweep in range(REFINEMENTS):
            left = rhs - self._K @ y
            size = np.abs(left).max(initial=0.0)
            if not size <= HELPED * last:
                return sweep
            y, last = y + self._inverse(left), size
        return REFINEMENTS


def _factored(K: sparse.csc_matrix) -> Solve:
    """K⁻¹ of a quasidefinite K; with pivots, where without them rounding is as large as δ."""
    if K.nnz >= DENSE * K.shape[0] ** 2:
        return _factored_dense(K)
    solve, b = factored(K), K @ _generic(K.shape[0])
    x = solve(b)
    is_inverse = np.abs(K @ x - b).max(initial=0.0) <= EXACT * np.abs(x).max(initial=1.0)
    return solve if is_inverse else factored_lu(K)


def _factored_dense(K: sparse.csc_matrix) -> Solve:
    factor, pivots = torch.linalg.ldl_factor(torch.from_numpy(K.toarray()))

    def solve(b: Array) -> Array:
        y: Array = torch.linalg.ldl_solve(factor, pivots, torch.from_numpy(b)[:, None])[:, 0].numpy()
        return y

    return solve


def _generic(N: int) -> Float64[Array, " N"]:
    """A vector without any structure."""
    return np.cos(np.arange(1.0, N + 1) ** 2)


def _split(X: Float64[Array, "N k"], sizes: Float64[Array, " k"]) -> tuple[Array, Array]:
    """The columns whose |σ| is 0, and those where it is near δ."""
    return X[:, sizes <= NULL], X[:, (sizes > NULL) & (sizes <= NEAR)]


def _coupled(K: sparse.csc_matrix) -> Int[Array, " k"]:
    """Rows with more than a diagonal, or with nothing at all."""
    return np.flatnonzero((np.diff(K.indptr) > 1) | (K.diagonal() == 0))


def _ruiz(K: sparse.csc_matrix) -> Float64[Array, " N"]:
    """s > 0 such that the rows of diag(s) K diag(s) have largest entry about 1 (Ruiz 2001)."""
    s, sizes = np.ones(K.shape[0]), abs(K).tocsr()
    for _ in range(RUIZ_SWEEPS if len(s) else 0):
        scale = sparse.diags_array(s)
        largest = (scale @ sizes @ scale).max(axis=1).toarray().ravel()
        s = s / np.sqrt(np.where(largest > 0, largest, 1.0))
    return s


def _singular(A: Float64[Array, "N k"]) -> tuple[Array, Array]:
    """σ and Vᵀ, by QR iteration where divide and conquer does not converge."""
    try:
        _, sizes, turned = linalg.svd(A, full_matrices=False)
    except linalg.LinAlgError:
        _, sizes, turned = linalg.svd(A, full_matrices=False, lapack_driver="gesvd")
    return sizes, turned


def _orthonormal(X: Float64[Array, "N k"]) -> Float64[Array, "N k"]:
    basis: Array = linalg.qr(X, mode="economic")[0] if X.shape[1] else X
    return basis
