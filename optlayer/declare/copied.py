r"""Coordinates of a cone programme that are copies of others, taken out of it.

cvxpy writes |z - θ|² as |y|² with y = z - θ for a new variable y. A row of equalities with two constant
entries, a y + b x_k = r(θ), makes of y

    y = c x_k + t(θ),        c = -b/a,    t = r/a

and where y stands in no other row, and in the objective by its own square alone, that is put in its place:

    x = Tx' + t, one entry in every row of T        ½xᵀPx + qᵀx = ½x'ᵀTᵀPTx' + (q + Pt)ᵀTx' + …

P is then as sparse as before, and diagonal if it was. What is left out does not depend on x', but is
quadratic in θ: the value comes from the objective as it was (`Expanded`). Rows whose multiplier is asked for
stay, and so do the coordinates of the user's variables.
"""

from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from optlayer.declare.canonical import Canonical
from optlayer.forms.affine import AffineMap, Array, Gather
from optlayer.forms.blocks import AffineObjective, Expanded


class _Copies(NamedTuple):
    """x[coordinate] = factor · x[of] + share · b[row]."""

    coordinate: Array
    of: Array
    factor: Array
    row: Array
    share: Array


def without_copies(canonical: Canonical) -> tuple[Canonical, AffineObjective]:
    """The programme in fewer coordinates and rows, and its objective, which d is then no part of.

    Both are the given ones where nothing is a copy.
    """
    whole = AffineObjective(canonical.P.on_diagonal(), canonical.q, canonical.d)
    copies = _copies(canonical)
    if not len(copies.row):
        return canonical, whole
    m, width = canonical.m, _width(canonical)
    T = _replacement(canonical.n, copies)
    shares = sp.coo_array((copies.share, (copies.coordinate, copies.row)), shape=(canonical.n, m))
    t = shares @ _matrix(canonical.b, width)
    rows, n = np.delete(np.arange(m), copies.row), T.shape[1]
    P, q = _in_its_place(canonical, T, t, width)
    reduced = replace(
        canonical,
        n=n,
        m=len(rows),
        zero=canonical.zero - len(copies.row),
        P=P,
        q=q,
        A=_part(canonical.A, rows, T, width),
        b=AffineMap.of((len(rows),), _matrix(canonical.b, width).tocsr()[rows]),
        variables=tuple(_renumbered(gather, T.indices) for gather in canonical.variables),
        duals=tuple(
            tuple(_renumbered(gather, np.searchsorted(rows, np.arange(m))) for gather in gathers)
            for gathers in canonical.duals
        ),
        rows=canonical.rows[rows],
    )
    value = Expanded(whole, Gather.of(T.indices, T.data), AffineMap.of((canonical.n,), t))
    return reduced, AffineObjective(P.on_diagonal(), q, None, value)


def _copies(canonical: Canonical) -> _Copies:
    """One coordinate for every row that is nothing but its definition."""
    A, n, m = canonical.A, canonical.n, canonical.m
    i, j = np.divmod(A.places.numpy(), n)
    moves = np.bincount(A.entry.numpy(), minlength=len(i)) > 0
    defines = (np.arange(m) < canonical.zero) & (canonical.rows.numpy() < 0)
    defines &= (np.bincount(i, minlength=m) == 2) & (np.bincount(i[moves], minlength=m) == 0)
    replaced = (np.bincount(j, minlength=n) == 1) & ~canonical.seen.numpy() & _squared_alone(canonical.P)
    row, first = np.unique(i[defines[i] & replaced[j]], return_index=True)
    entry = np.flatnonzero(defines[i] & replaced[j])[first]
    other = 2 * np.searchsorted(i, row) + 1 - entry  # a row's two entries are neighbours
    a, b = A.constant.numpy()[entry], A.constant.numpy()[other]
    return _Copies(j[entry], j[other], -b / a, row, 1.0 / a)


def _squared_alone(P: AffineMap) -> Array:
    """Coordinates that P holds on its diagonal only, and constant, or not at all."""
    i, j = np.divmod(P.places.numpy(), P.shape[0])
    moves = np.bincount(P.entry.numpy(), minlength=len(i)) > 0
    return np.bincount(i[(i != j) | moves], minlength=P.shape[0]) == 0


def _replacement(n: int, copies: _Copies) -> sp.csr_array:
    """T."""
    left = np.delete(np.arange(n), copies.coordinate)
    column, weight = np.searchsorted(left, np.arange(n)), np.ones(n)
    column[copies.coordinate], weight[copies.coordinate] = column[copies.of], copies.factor
    return sp.csr_array((weight, column, np.arange(n + 1)), shape=(n, len(left)))


def _in_its_place(
    canonical: Canonical, T: sp.csr_array, t: sp.csr_array, width: int
) -> tuple[AffineMap, AffineMap]:
    """TᵀPT and Tᵀ(q + Pt); where t is not 0, P is constant."""
    n, P, q = T.shape[1], _matrix(canonical.P, width), _matrix(canonical.q, width)
    i, j = np.divmod(P.row, canonical.n)
    places = T.indices[i].astype(np.int64) * n + T.indices[j]
    new = sp.coo_array((P.data * T.data[i] * T.data[j], (places, P.col)), shape=(n * n, width))
    fixed = np.divmod(canonical.P.places.numpy(), canonical.n)
    constant = sp.coo_array((canonical.P.constant.numpy(), fixed), shape=canonical.P.shape)
    return AffineMap.of((n, n), new), AffineMap.of((n,), T.T @ (q + constant @ t))


def _part(A: AffineMap, rows: Array, T: sp.csr_array, width: int) -> AffineMap:
    """Some rows of A, none of which holds a copy."""
    n, old = T.shape[1], _matrix(A, width)
    i, j = np.divmod(old.row, A.shape[1])
    stays = np.isin(i, rows)
    places = np.searchsorted(rows, i[stays]) * n + T.indices[j[stays]]
    new = sp.coo_array((old.data[stays], (places, old.col[stays])), shape=(len(rows) * n, width))
    return AffineMap.of((len(rows), n), new)


def _matrix(a: AffineMap, width: int) -> sp.coo_array:
    """Entries x (θ, 1): what the map was made of."""
    places, constant = a.places.numpy(), np.full(len(a.places), width - 1)
    rows, columns = np.concatenate([places, a.target.numpy()]), np.concatenate([constant, a.position.numpy()])
    data = np.concatenate([a.constant.numpy(), a.coefficient.numpy()])
    return sp.coo_array((data, (rows, columns)), shape=(prod(a.shape), width))


def _width(canonical: Canonical) -> int:
    """Columns that hold every entry of θ, and the constant."""
    maps = (canonical.P, canonical.q, canonical.A, canonical.b)
    return 2 + max(int(a.position.max()) if len(a.position) else -1 for a in maps)


def _renumbered(gather: Gather, new: Array) -> Gather:
    """The same of what its numbers have become."""
    index, coefficient = gather.index.numpy(), gather.coefficient.numpy()
    return Gather.of(
        np.where(coefficient == 0, 0, new[index]).reshape(gather.shape), coefficient.reshape(gather.shape)
    )
