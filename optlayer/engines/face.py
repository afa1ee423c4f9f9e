r"""Degenerate quadratic programmes: a solver closely, then the nearest point of the face it has found.

Where active constraints depend on each other K is singular, and Newton's method, which changes its mind about
them in every step, need not settle. A central path ends inside the optimal face, primal and dual, so that
there λ > s tells for each inequality whether it holds with equality. With that kept fixed

    Px + q + Mᵀy = 0,   Mx = c         M, c the equalities and the active inequalities

is consistent, however many rows of M are too many, and the proximal point method on it,

    ⎡ P + δ   Mᵀ ⎤ ⎡ẋ⎤     ⎡ Px + q + Mᵀy ⎤
    ⎢            ⎥ ⎢ ⎥ = - ⎢              ⎥
    ⎣ M      -δ  ⎦ ⎣ẏ⎦     ⎣ Mx - c       ⎦

goes to a solution beside its start, with one factorization. Few inequalities that come out on the wrong
side are changed, and it is done again.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy import sparse

from optlayer.columns import to_csc
from optlayer.engines import Answer, Array, ConeProgram
from optlayer.engines.clarabel import Clarabel
from optlayer.engines.piqp import PIQP
from optlayer.sparse_saddle import factored

TIGHT = 1e-12
PIQP_CLOSELY = {
    **{f"eps_{kind}": TIGHT for kind in ("abs", "duality_gap_abs")},
    **{f"eps_{kind}": TIGHT / 100 for kind in ("rel", "duality_gap_rel")},
    **{"check_duality_gap": True, "max_iter": 300, "preconditioner_iter": 10},
}
CLARABEL_CLOSELY = {
    **{"tol_gap_abs": TIGHT, "tol_gap_rel": TIGHT, "tol_feas": TIGHT},
    **{"max_iter": 300, "equilibrate_enable": True},
}
SHIFT = 1e-7  # δ, relative to the equilibrated matrix
SWEEPS = 30  # proximal steps
ROUNDS = 4  # faces
WRONG = 1e-9  # relative size of a multiplier or a slack with the wrong sign that is no rounding


class Face:
    """A `MatrixEngine` for quadratic programmes, cones orthants, that the others leave unsettled."""

    quick = True

    def __init__(self, interior: PIQP | Clarabel | None = None) -> None:
        self._interior = interior or PIQP(PIQP_CLOSELY, afresh=True)
        self.name = self._interior.name

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """See `MatrixEngine`."""
        answer = self._interior.solve_matrices(program)
        P, A, x, y = to_csc(program.P), to_csc(program.A), answer.x.copy(), answer.y.copy()
        for i in np.flatnonzero(np.isfinite(x).all(1)).tolist():
            q, b = program.q[i].numpy(), program.b[i].numpy()
            sample = _Sample(P.matrix(i), q, A.matrix(i).tocsr(), b, program.zero)
            x[i], y[i] = sample.landed(x[i], y[i])
        return replace(answer, x=x, y=y)


class _Sample(NamedTuple):
    """½xᵀPx + qᵀx over Ax + s = b, the first rows equalities."""

    P: sparse.csc_matrix
    q: Float64[Array, " n"]
    A: sparse.csr_matrix
    b: Float64[Array, " m"]
    zero: int

    def landed(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The nearest solution on the face of (x, y), or on one beside it."""
        kept = y * _size(x) / _size(self.q) > self.b - self.A @ x
        kept[: self.zero] = True
        for _ in range(ROUNDS):
            found, multipliers = self._on_face(kept, x, y)
            wrong = self._wrong(kept, found, multipliers)
            if not wrong.any():
                break
            kept = kept ^ wrong
        return found, multipliers

    def _on_face(self, kept: Bool[Array, " m"], x: Array, y: Array) -> tuple[Array, Array]:
        """The proximal point method from (x, y), other multipliers 0; what a bound holds is not moved."""
        single = kept & (np.diff(self.A.indptr) == 1)
        rows, held = kept & ~single, self._held(single, x)
        free = np.isnan(held)
        x, mu = np.where(free, x, held), y[rows]
        P, M, c = self.P[:, free], self.A[rows], self.b[rows]
        u, w = _units(P[free], M[:, free])
        solve, n = factored(_shifted(P[free], M[:, free], u, w)), len(u)
        for _ in range(SWEEPS):
            left = self.P @ x + self.q + M.T @ mu
            step = solve(-np.concatenate([u * left[free], w * (M @ x - c)]))
            x[free], mu = x[free] + u * step[:n], mu + w * step[n:]
        multipliers = self._balance(single, self.P @ x + self.q + M.T @ mu)
        multipliers[rows] = mu
        return x, multipliers

    def _held(self, single: Bool[Array, " m"], x: Array) -> Array:
        """x where a row of one coordinate holds it, NaN elsewhere."""
        entry, held = self.A.indptr[:-1][single], np.full_like(x, np.nan)
        held[self.A.indices[entry]] = self.b[single] / self.A.data[entry]
        return held

    def _balance(self, single: Bool[Array, " m"], left: Array) -> Array:
        """The multipliers of single rows, that cancel what is left of their coordinate's stationarity.

        Of several rows that hold one coordinate the one that pushes the right way takes it all.
        """
        rows = np.flatnonzero(single)
        entry = self.A.indptr[rows]
        multipliers = -left[self.A.indices[entry]] / self.A.data[entry]
        order = np.lexsort([(multipliers < 0) & (rows >= self.zero), self.A.indices[entry]])
        _, first = np.unique(self.A.indices[entry][order], return_index=True)
        y = np.zeros(len(single))
        y[rows[order[first]]] = multipliers[order[first]]
        return y

    def _wrong(self, kept: Bool[Array, " m"], x: Array, y: Array) -> Bool[Array, " m"]:
        """Inequalities whose multiplier or slack is negative, beyond rounding."""
        slack, reach = self.b - self.A @ x, np.abs(self.b) + abs(self.A) @ np.full(len(x), _size(x))
        wrong = np.where(kept, y < -WRONG * _size(self.q), slack < -WRONG * reach)
        wrong[: self.zero] = False
        return wrong


def _size(a: Array) -> float:
    """max |a|, 1 where that is nothing."""
    return float(np.abs(a).max(initial=0.0)) or 1.0


def _units(P: sparse.csc_matrix, M: sparse.csr_matrix) -> tuple[Array, Array]:
    """u, w that bring the entries of uPu and wMu to 1 and less."""
    u = 1.0 / np.sqrt(_peaks(sparse.vstack([P, M])))
    return u, 1.0 / _peaks((M @ sparse.diags_array(u)).T)


def _peaks(M: sparse.spmatrix) -> Array:
    """The largest |entry| of each column, 1 where there is none."""
    peaks = abs(M).max(axis=0).toarray().ravel() if M.shape[0] else np.zeros(M.shape[1])
    return np.where(peaks > 0, peaks, 1.0)


def _shifted(P: sparse.csc_matrix, M: sparse.csr_matrix, u: Array, w: Array) -> sparse.csc_matrix:
    """The matrix of a proximal step, equilibrated."""
    U, W = sparse.diags_array(u), sparse.diags_array(w)
    H, E = U @ P @ U + SHIFT * sparse.eye_array(len(u)), W @ M @ U
    return sparse.block_array([[H, E.T], [E, -SHIFT * sparse.eye_array(len(w))]], format="csc")
