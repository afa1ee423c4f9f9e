r"""Degenerate quadratic programmes: the solution beside an engine's answer, put exactly on its face.

Where active constraints depend on each other K is singular, and Newton's method, which changes its mind about
them in every step, need not settle. The proximal method of multipliers does (`proximal`), and tells which
rows hold with equality. With these kept fixed

    Px + q + Mᵀy = 0,   Mx = c         M, c the active rows

is consistent, however many rows of M are too many. What a bound holds is put there to the last bit, and a few
more proximal steps, with one factorization,

    ⎡ P + δ   Mᵀ ⎤ ⎡ẋ⎤     ⎡ Px + q + Mᵀy ⎤
    ⎢            ⎥ ⎢ ⎥ = - ⎢              ⎥
    ⎣ M      -δ  ⎦ ⎣ẏ⎦     ⎣ Mx - c       ⎦

bring the rest there.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy import sparse

from optlayer.columns import to_csc
from optlayer.engines import Answer, Array, ConeProgram
from optlayer.engines.piqp import PIQP
from optlayer.engines.proximal import Place, Sample, size, solution
from optlayer.engines.scaling import equilibrated
from optlayer.solution import Status
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
SOLVED = 1e-9  # residual, in units of x and y, beyond which an answer is none, whatever the engine said
ROUNDS = 4  # faces
FLOOR = 1e-7  # of a row's reach: rounding in a row of zeros
ROUNDING = 1e-15  # of the largest multiplier
NOTHING = 1e-30  # of the largest coordinate: what is left of 0 after many steps
WRONG = 1e-9  # relative size of a multiplier or a slack with the wrong sign that is no rounding


class Face:
    """Goes on from the answer of the engine before, where that has one, and from 0 where that has broken off.

    For quadratic programmes whose cones are orthants.
    """

    name = "PROXIMAL"
    quick = True

    def improved(self, program: ConeProgram, answer: Answer) -> Answer:
        """The answers of the samples that have one, on the face beside them; the others are as they were."""
        scaled, units = equilibrated(program)
        P, A, x, y = to_csc(scaled.P), to_csc(scaled.A), answer.x / units.x, answer.y / units.y
        claims = list(answer.claims)
        broken = np.array([claim == Status.INACCURATE for claim in claims]) & ~np.isfinite(x).all(1)
        x[broken], y[broken] = 0.0, 0.0
        for i in np.flatnonzero(np.isfinite(x).all(1) & np.isfinite(y).all(1)).tolist():
            q, b = scaled.q[i].numpy(), scaled.b[i].numpy()
            sample = Sample(P.matrix(i), q, A.matrix(i).tocsr(), b, scaled.zero)
            found = solution(sample, x[i], y[i])
            x[i], y[i] = _landed(sample, found)
            claims[i] = claims[i] if found.residual <= SOLVED else Status.INACCURATE
        return replace(answer, x=x * units.x, y=y * units.y, claims=tuple(claims), first=answer.x)


def closely() -> tuple[PIQP, Face]:
    """An interior point method to its last digits, and the face that it ends in."""
    return PIQP(PIQP_CLOSELY, afresh=True), Face()


def _landed(sample: Sample, place: Place) -> tuple[Array, Array]:
    """x and y on the face, or on one beside it; as they were, where that is the better solution."""
    kept, best = place.active | (place.y > 0), _solution(sample, place.x, place.y)
    for _ in range(ROUNDS):
        x, y = _on_face(sample, kept, place.x, place.y)
        best = min(best, _solution(sample, x, y), key=lambda found: found.error)
        wrong = _wrong(sample, kept, x, y)
        if not wrong.any():
            break
        kept = kept ^ wrong
    return best.x, best.y


class _Solution(NamedTuple):
    """What might be one."""

    x: Float64[Array, " n"]
    y: Float64[Array, " m"]
    error: float  # of its worst row, relative to the terms


def _solution(sample: Sample, x: Array, y: Array) -> _Solution:
    """With multipliers that are no rounding, and not negative; judged row by row."""
    x = np.where(np.abs(x) <= NOTHING * size(x), 0.0, x)
    y = _without_rounding(sample, sample.admissible(y))
    P, A, slack = abs(sample.P), abs(sample.A), sample.slack(x)
    length, price = np.abs(x) + FLOOR * size(x), np.abs(y) + FLOOR * size(y)
    rows = (
        (sample.slope(x, y), P @ length + np.abs(sample.q) + A.T @ price),
        (np.where(sample.equal, slack, slack.clip(max=0.0)), A @ length + np.abs(sample.b)),
    )
    errors = np.concatenate([np.abs(row) / np.where(terms > 0, terms, 1.0) for row, terms in rows])
    return _Solution(x, y, float(np.nan_to_num(errors, nan=np.inf).max()))


def _without_rounding(sample: Sample, y: Array) -> Float64[Array, " m"]:
    """y without multipliers that are nothing but rounding in a row that holds only such: 0, not 1e-17.

    The row of a slack variable, which is in no objective, holds multipliers alone, and these may all be 0.
    """
    rounding = np.abs(y) <= ROUNDING * size(y)
    touched = abs(sample.A).T @ np.where(rounding, 0.0, 1.0) + abs(sample.P) @ np.ones(len(sample.q))
    idle = (sample.q == 0) & (touched == 0)
    return np.where(rounding & (abs(sample.A) @ idle > 0), 0.0, y)


def _on_face(
    sample: Sample, kept: Bool[Array, " m"], x: Float64[Array, " n"], y: Float64[Array, " m"]
) -> tuple[Array, Array]:
    """The proximal point method from (x, y), other multipliers 0; what a bound holds is not moved."""
    single = kept & (np.diff(sample.A.indptr) == 1)
    rows, held = kept & ~single, _held(sample, single, x)
    free = np.isnan(held)
    x, mu = np.where(free, x, held), y[rows]
    P, M, c = sample.P[:, free], sample.A[rows], sample.b[rows]
    u, w = _units(P[free], M[:, free])
    solve, n = factored(_shifted(P[free], M[:, free], u, w)), len(u)
    for _ in range(SWEEPS):
        left = sample.P @ x + sample.q + M.T @ mu
        step = solve(-np.concatenate([u * left[free], w * (M @ x - c)]))
        x[free], mu = x[free] + u * step[:n], mu + w * step[n:]
    multipliers = _balance(sample, single, sample.P @ x + sample.q + M.T @ mu)
    multipliers[rows] = mu
    return x, multipliers


def _held(sample: Sample, single: Bool[Array, " m"], x: Array) -> Float64[Array, " n"]:
    """x where a row of one coordinate holds it, NaN elsewhere."""
    A, entry, held = sample.A, sample.A.indptr[:-1][single], np.full_like(x, np.nan)
    held[A.indices[entry]] = sample.b[single] / A.data[entry]
    return held


def _balance(sample: Sample, single: Bool[Array, " m"], left: Array) -> Float64[Array, " m"]:
    """The multipliers of single rows, that cancel what is left of their coordinate's stationarity.

    Of several rows that hold one coordinate the one that pushes the right way takes it all.
    """
    A, rows = sample.A, np.flatnonzero(single)
    entry = A.indptr[rows]
    multipliers = -left[A.indices[entry]] / A.data[entry]
    order = np.lexsort([(multipliers < 0) & (rows >= sample.zero), A.indices[entry]])
    _, first = np.unique(A.indices[entry][order], return_index=True)
    y = np.zeros(len(single))
    y[rows[order[first]]] = multipliers[order[first]]
    return y


def _wrong(sample: Sample, kept: Bool[Array, " m"], x: Array, y: Array) -> Bool[Array, " m"]:
    """Inequalities whose multiplier or slack is negative, beyond rounding, or no number."""
    slack, reach = sample.slack(x), np.abs(sample.b) + abs(sample.A) @ np.full(len(x), size(x))
    right: Bool[Array, " m"] = np.where(kept, y >= -WRONG * size(sample.q), slack >= -WRONG * reach)
    return ~(right | sample.equal)


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
