r"""How much a sparse factorization would fill in, at most, read off the patterns alone.

        ⎡ H  Eᵀ ⎤         eliminated in the order of reverse Cuthill and McKee, all of the fill of a row
    K = ⎢       ⎥         lies between its first entry and the diagonal: in the *envelope*
        ⎣ E  ·  ⎦         (George & Liu 1981, chapter 4)

A band keeps its width, a grid of N points has √N a row, a random pattern of N points some part of N. Rows
and columns that meet nearly all others, a budget for instance, say nothing of the rest: eliminated last,
each adds one full row.

A better order than this one makes less of a grid: its factor costs about as much as that of its separator,
a dense matrix of the envelope's mean width w, so that of N w² and 5 w³ operations the smaller is expected
(George 1973), and never less than (entries)²/N.
"""

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee

from optlayer.matrix import Pattern

Array = np.ndarray

WORK = 2e10  # operations of a factorization that is not tried
DENSE = 10.0  # a row with more than DENSE √N entries is eliminated last


def factor_work(H: Pattern, E: Pattern) -> float:
    """Operations of a sparse factorization of K, about; E has as many columns as H."""
    K = graph(H, E)
    N = max(K.shape[0], 1)
    width = envelope(K) / N
    return float(max(K.nnz**2 / N, min(N * width**2, 5 * width**3)))


def envelope(K: sparse.csr_matrix) -> float:
    """The most entries that L of K = L D Lᵀ can have."""
    count = np.diff(K.indptr)
    dense = count > DENSE * np.sqrt(max(K.shape[0], 1))
    inside = np.flatnonzero(~dense)
    return float(_profile(K[inside][:, inside]) + dense.sum() * K.shape[0])


def graph(H: Pattern, E: Pattern) -> sparse.csr_matrix:
    """Which rows and columns of K meet, the diagonal included."""
    n, size = H.shape[0], H.shape[0] + E.shape[0]
    everything = torch.arange(size)
    rows = torch.cat([everything, H.rows.cpu(), n + E.rows.cpu(), E.columns.cpu()]).numpy()
    columns = torch.cat([everything, H.columns.cpu(), E.columns.cpu(), n + E.rows.cpu()]).numpy()
    ones = np.ones(len(rows), dtype=np.int8)
    return sparse.csr_matrix((ones, (rows.astype(np.int32), columns.astype(np.int32))), shape=(size, size))


def _profile(K: sparse.csr_matrix) -> int:
    """Entries between the first one of each row and its diagonal."""
    order = reverse_cuthill_mckee(K, symmetric_mode=True)
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=order.dtype)
    if not len(order):
        return 0
    first = np.minimum.reduceat(place[K.indices], K.indptr[:-1])  # no row is empty: the diagonal is there
    return int((place - first).sum(dtype=np.int64))
