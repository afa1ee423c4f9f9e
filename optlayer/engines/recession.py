r"""Quadratic programmes without a solution, shown by linear ones. A direction along which f falls for ever,

    min qᵀd   s.t.   Pd = 0,   Gd <= 0,   Ad = 0,   -1 <= d <= 1,

and a feasible point to set out from; or multipliers that leave none (Farkas's lemma), however small the gap,

    max λᵀg₀ + νᵀh₀   s.t.   Gᵀλ + Aᵀν = 0,   λ >= 0,   Σ λ_i + Σ |ν_i| <= 1.

Rows and coordinates are brought to size 1 first, so that no unit enters; what solves Pd = 0 up to the
rounding of P's own entries solves it. The direction is examined, not believed; the point and the multipliers
are left for whoever knows how to judge them.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog

from optlayer.engines import Array
from optlayer.forms import Local

LARGEST = 500  # unknowns: P is decomposed
ROUNDS = 8  # of the equilibration
ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of an entry of P, times n
EXACT = 1e-9  # largest violation of a row of size 1 that is rounding
VISIBLE = 1e-6  # least relative size of -qᵀd
CLOSELY = 1e7  # scale of an objective of which a billionth counts
DIGITS = 2.0**-40  # of multipliers: rows that are equal contradict each other by ½ and -½ without rounding


class _Rows(NamedTuple):
    """Those of P, A and G, divided by their size, and of coordinates likewise."""

    P: Array
    A: Array
    G: Array
    q: Array


def recedes(at: Local) -> bool:
    """Whether f falls for ever along some direction that no constraint minds. at: one sample, at x = 0."""
    if not _is_numbers(at):
        return False
    rows = _rows(at)
    flat = _null_space(rows.P)
    if not flat.shape[1]:
        return False
    nothing = np.zeros(len(rows.G) + len(rows.A))
    d = _least(rows.q, rows.G, rows.A, nothing, flat)
    return d is not None and _falls(rows, d)


def feasible(at: Local) -> Array | None:
    """A point that satisfies the constraints of one sample, as far as a solver can tell."""
    if not _is_numbers(at):
        return None
    D, _, rows, b = _constraints(at)
    length = np.abs(b).max(initial=0.0) or 1.0
    G, A = np.split(rows, [at.g.shape[1]])
    x = _least(np.zeros(len(D)), G, A, -b / length)
    return None if x is None else length * D * x


def contradiction(at: Local) -> tuple[Array, Array] | None:
    """λ and ν that leave no feasible point of one sample, as far as a solver can tell."""
    if not _is_numbers(at) or not at.g.shape[1] + at.h.shape[1]:
        return None
    _, E, rows, b = _constraints(at)
    rows, m, p = rows.T, at.g.shape[1], at.h.shape[1]
    both = np.hstack([rows, -rows[:, m:]])  # ν is the difference of two parts
    gain = CLOSELY * (np.concatenate([b, -b[m:]]) / (np.abs(b).max(initial=0.0) or 1.0))
    y = linprog(-gain, np.ones((1, m + 2 * p)), [1.0], both, np.zeros(len(rows)), bounds=(0, None)).x
    if y is None:
        return None
    y = np.concatenate([y[:m], y[m : m + p] - y[m + p :]])
    y = min(y, np.rint(y / DIGITS) * DIGITS, key=lambda y: np.abs(rows @ y).max(initial=0.0))
    return E[:m] * y[:m], E[m:] * y[m:]


def _is_numbers(at: Local) -> bool:
    """Whether there are few enough of them, none overflown."""
    of_f = at.gradient.isfinite().all() and at.hessian.values.isfinite().all()
    return at.gradient.shape[1] <= LARGEST and at.has_finite_constraints and bool(of_f)


def _constraints(at: Local) -> tuple[Array, Array, Array, Array]:
    """Scales D of the coordinates and E of the rows; [G; A] and (g₀, h₀) in them."""
    M = np.vstack([part.dense()[0].numpy() for part in (at.G, at.A)])
    D, E = _equilibrated(M)
    return D, E, E[:, None] * M * D, E * torch.cat([at.g, at.h], 1)[0].numpy()


def _rows(at: Local) -> _Rows:
    P, A, G = (M.dense()[0].numpy() for M in (at.hessian, at.A, at.G))
    stacked = np.vstack([P, A, G])
    D, E = _equilibrated(stacked)
    q = D * at.gradient[0].numpy()
    P, A, G = np.split(E[:, None] * stacked * D, [len(P), len(P) + len(A)])
    return _Rows(P, A, G, q / (np.abs(q).max() or 1.0))


def _equilibrated(M: Array) -> tuple[Array, Array]:
    """Scales of the columns and of the rows, powers of two (Ruiz, 2001)."""
    size, D, E = np.abs(M), np.ones(M.shape[1]), np.ones(M.shape[0])
    for _ in range(ROUNDS):
        scaled = E[:, None] * size * D
        D, E = D / _root(scaled.max(0, initial=0.0)), E / _root(scaled.max(1, initial=0.0))
    return np.exp2(np.rint(np.log2(D))), np.exp2(np.rint(np.log2(E)))


def _root(size: Array) -> Array:
    """1 for what is no size."""
    return np.sqrt(np.where((size > 0) & np.isfinite(size), size, 1.0))


def _null_space(P: Array) -> Array:
    """What P takes to the rounding of its entries, as columns; they are of size 1."""
    _, values, directions = np.linalg.svd(P)
    null: Array = directions[values <= ROUNDING * len(P)].T
    return null


def _least(c: Array, G: Array, A: Array, b: Array, span: Array | None = None) -> Array | None:
    """argmin cᵀx s.t. Gx <= b, Ax = b; of a `span` the x of it with |x| <= 1; None where there is none."""
    g, h = np.split(b, [len(G)])
    if span is not None:
        one = np.ones(2 * len(span))
        c, G, A, g = c @ span, np.vstack([G @ span, span, -span]), A @ span, np.concatenate([g, one])
    found = linprog(c, G, g, A, h, bounds=(None, None)).x
    return found if found is None or span is None else span @ found


def _falls(rows: _Rows, d: Array) -> bool:
    """Whether d is what it was asked to be."""
    fall, left_over = -rows.q * d, np.concatenate([rows.P @ d, rows.A @ d, np.maximum(rows.G @ d, 0.0)])
    return bool(fall.sum() > VISIBLE * np.abs(fall).sum()) and bool(np.abs(left_over).max() <= EXACT)
