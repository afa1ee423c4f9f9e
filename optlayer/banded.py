r"""Schur complements of problems in stages: S = E W Eᵀ + D, W and D diagonal, as a chain of blocks.

Rows of E meet in S where they share a column. In a problem over time, those of a stage meet those of the
stages beside it alone: ordered by stages, and each column of E given to the first stage that it is in,

        ⎡ F₁            ⎤          ⎡ S₁  C₁ᵀ        ⎤      S_t = F_t W_t F_tᵀ + G_t₋₁ W_t₋₁ G_t₋₁ᵀ + D_t
    E = ⎢ G₁  F₂        ⎥      S = ⎢ C₁  S₂  C₂ᵀ    ⎥
        ⎣     G₂  F₃  … ⎦          ⎣     C₂  S₃   … ⎦      C_t = G_t W_t F_tᵀ

and S = L Lᵀ in blocks of the same places: with S₁ = L₁L₁ᵀ,

    X_t = C_t L_t⁻ᵀ,       L_t₊₁ L_t₊₁ᵀ = S_t₊₁ - X_t X_tᵀ
    y_t₊₁ = L_t₊₁⁻¹ (b_t₊₁ - X_t y_t),     μ_t = L_t⁻ᵀ (y_t - X_tᵀ μ_t₊₁).

All samples take a step at once; what does not wait for the stage before is done for all stages at once. That
leaves L_t⁻¹X_t₋₁ and L_t⁻ᵀX_tᵀ to multiply with, one product a stage and direction.

The stages are found in the pattern of E alone. Whatever the order of the rows is, let reach(p) be the end of
all that the first p meet: stages that end at p₁, p₂ >= reach(p₁), p₃ >= reach(p₂), … are a chain, the finer
the better. Tried are the order as declared and that of the distance from one end (George & Liu 1981, chapter
4). All blocks have the width of the widest; the places that are left over are rows μ = 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy import sparse
from scipy.sparse.csgraph import dijkstra, reverse_cuthill_mckee
from torch import Tensor

from optlayer.matrix import Pattern, Sparse, picked

Array = np.ndarray

SLOWER = 30.0  # an operation in small blocks, in those of large ones
STEP = 4000.0  # what one more stage costs whatever its width is, in the former
MEETINGS = 1e7  # pairs of entries in one column up to which the rows that meet are looked for
NARROW = 16  # width up to which stages are tried, where the rows would do with less


@dataclass(frozen=True, eq=False)
class Chain:
    """The stages of a pattern, and where its entries go."""

    shape: tuple[int, int, int]  # stages, width of each, columns given to each at most
    rows: Int64[Tensor, " T*b"]  # the row of E in each place, k where there is none
    places: Int64[Tensor, " k"]  # and the place of each row
    columns: Int64[Tensor, " T*c"]  # likewise, n where there is none
    entries: Int64[Tensor, " nnz"]  # of E, in all [F_t; G_t] one after the other

    @property
    def work(self) -> float:
        """Operations of assembly and factor."""
        return _work(*self.shape)

    def blocks(self, E: Sparse) -> Float64[Tensor, "B T 2b c"]:
        """All [F_t; G_t]."""
        stages, width, slots = self.shape
        flat = E.values.new_zeros(len(E.values), stages * 2 * width * slots)
        return flat.index_copy(1, self.entries, E.values).reshape(-1, stages, 2 * width, slots)

    def of_rows(self, values: Float64[Tensor, "B k"], left_over: float) -> Float64[Tensor, "B T b"]:
        """By stages."""
        return _taken(values, self.rows, left_over, self.shape[0])

    def of_columns(self, values: Float64[Tensor, "B n"]) -> Float64[Tensor, "B T c"]:
        return _taken(values, self.columns, 0.0, self.shape[0])

    def joined(self, values: Float64[Tensor, "B T b"]) -> Float64[Tensor, "B k"]:
        """Row by row again."""
        return picked(values.reshape(len(values), -1), self.places)


class Tridiagonal:
    """S, factored; NaN where it is not definite.

    Args:
        chain: The stages.
        blocks: Those of E.
        W: The weights of the columns.
        s: Scale of the rows of E; None: 1.
        D: The diagonal, > 0.
    """

    def __init__(
        self,
        chain: Chain,
        blocks: Float64[Tensor, "#B T 2b c"],
        W: Float64[Tensor, "#B n"],
        s: Float64[Tensor, "B k"] | None,
        D: Float64[Tensor, "B k"],
    ) -> None:
        self._chain, b = chain, chain.shape[1]
        if s is not None:
            own = chain.of_rows(s, 1.0)
            following = torch.cat([own[:, 1:], own[:, :1]], 1)  # the last has no rows to scale
            blocks = torch.cat([own, following], 2).unsqueeze(3) * blocks
        products = (blocks * chain.of_columns(W).unsqueeze(2)) @ blocks.mT.contiguous()
        diagonal = products[:, :, :b, :b] + torch.diag_embed(chain.of_rows(D, 1.0))
        diagonal[:, 1:] += products[:, :-1, b:, b:]
        L, X = _factored(diagonal, products[:, :-1, b:, :b].expand(len(D), -1, -1, -1))
        identity = torch.eye(b, dtype=D.dtype, device=D.device)
        # All L_t⁻¹; in the order of rows: how a product is rounded depends on it, and a slice of a batch
        # of one would else keep another one than that of many.
        self._inverse = torch.linalg.solve_triangular(L, identity, upper=False).contiguous()
        self._down = self._inverse[:, 1:] @ X
        self._up = (X @ self._inverse[:, :-1]).mT

    def solve(self, b: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        """S⁻¹b."""
        right = self._chain.of_rows(b, 0.0).unsqueeze(3)
        y = _substituted(self._inverse @ right, self._down)
        mu = _substituted((self._inverse.mT @ y).flip(1), self._up.flip(1)).flip(1)
        return self._chain.joined(mu.squeeze(3))


def _factored(
    diagonal: Float64[Tensor, "B T b b"], below: Float64[Tensor, "B T-1 b b"]
) -> tuple[Tensor, Tensor]:
    """All L_t and X_t."""
    L, failed = torch.linalg.cholesky_ex(diagonal[:, 0])
    factors, couplings = [L], []
    for S, C in zip(diagonal[:, 1:].unbind(1), below.unbind(1), strict=True):
        X = torch.linalg.solve_triangular(L, C.mT, upper=False).mT
        L, info = torch.linalg.cholesky_ex(torch.baddbmm(S, X, X.mT, alpha=-1.0))
        factors.append(L)
        couplings.append(X)
        failed = failed | info
    L = torch.where((failed == 0)[:, None, None, None], torch.stack(factors, 1), torch.nan)
    return L, torch.stack(couplings, 1) if couplings else L[:, :0]


def _substituted(b: Float64[Tensor, "B T b 1"], M: Float64[Tensor, "B T-1 b b"]) -> Tensor:
    """y₁ = b₁, y_t₊₁ = b_t₊₁ - M_t y_t."""
    first, *others = b.unbind(1)
    y = [first]
    for right, coupling in zip(others, M.unbind(1), strict=True):
        y.append(torch.baddbmm(right, coupling, y[-1], alpha=-1.0))
    return torch.stack(y, 1)


def _taken(values: Float64[Tensor, "B r"], index: Tensor, left_over: float, stages: int) -> Tensor:
    """values[:, index] by stages; the index behind the last means a place that is left over."""
    padded = torch.nn.functional.pad(values, (0, 1), value=left_over)
    return picked(padded, index).reshape(len(values), stages, -1)


# ------------------------------------------------------------------------------------ the stages


def chain_of(E: Pattern) -> Chain | None:
    """The stages of E's rows, where S takes less work in them than as a whole."""
    k, n = E.shape
    whole = (n * k * k + k**3 / 3) / SLOWER
    if whole < STEP or float(torch.bincount(E.columns).double().square().sum()) > MEETINGS:
        return None
    meets = _meetings(E)
    cuts = [(order, _cut(_reach(meets, order), n)) for order in (np.arange(k), _from_the_far_end(meets))]
    order, ends = min(cuts, key=lambda cut: _expected(cut[1], n))
    chain = _chained(E, order, ends)
    return chain if chain.work < whole else None


def _meetings(E: Pattern) -> sparse.csr_matrix:
    """Which rows meet, each of them itself included."""
    rows, columns = E.rows.cpu().numpy(), E.columns.cpu().numpy()
    M = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=E.shape)
    return sparse.csr_matrix(M @ M.T + sparse.eye_array(E.shape[0]))


def _from_the_far_end(meets: sparse.csr_matrix) -> Int64[Array, " k"]:
    """By the distance from the last stage, which is what lies farthest from one row of the first."""
    order = reverse_cuthill_mckee(meets, symmetric_mode=True)
    distance = dijkstra(meets, indices=order[-1], unweighted=True)
    farthest = np.flatnonzero(distance == distance[np.isfinite(distance)].max())
    distance = dijkstra(meets, indices=farthest, unweighted=True, min_only=True)
    return order[np.argsort(distance[order], kind="stable")]


def _reach(meets: sparse.csr_matrix, order: Array) -> Int64[Array, " k"]:
    """reach(1), …, reach(k) of rows in that order."""
    place = np.argsort(order)
    last = np.maximum.reduceat(place[meets.indices], meets.indptr[:-1])
    return np.maximum.accumulate(last[order]) + 1


def _cut(reach: Array, n: int) -> Int64[Array, " T"]:
    """Where stages end, with the least work: the first stage's width decides, none is narrower."""
    widest = int((reach - np.arange(len(reach))).max())
    firsts = range(1, min(len(reach), max(widest, NARROW)) + 1)
    return min((_ends(reach, first) for first in firsts), key=lambda ends: _expected(ends, n))


def _ends(reach: Array, first: int) -> Int64[Array, " T"]:
    ends = [first]
    while ends[-1] < len(reach):
        ends.append(min(len(reach), max(int(reach[ends[-1] - 1]), ends[-1] + first)))
    return np.array(ends)


def _expected(ends: Array, n: int) -> float:
    """Work, if all stages have as many of the n columns."""
    return _work(len(ends), _widest(ends), n / len(ends))


def _widest(ends: Array) -> int:
    return int(np.diff(ends, prepend=0).max())


def _work(stages: int, width: int, slots: float) -> float:
    return stages * (3.0 * width**3 + 4.0 * width**2 * slots + STEP)


def _chained(E: Pattern, order: Array, ends: Array) -> Chain:
    """Places for all rows and columns."""
    n, stages, width = E.shape[1], len(ends), _widest(ends)
    rows, columns = E.rows.cpu().numpy(), E.columns.cpu().numpy()
    own = np.searchsorted(ends, np.argsort(order), side="right")
    given = np.full(n, stages)  # to none
    np.minimum.at(given, columns, own[rows])
    rank, slot = _ranks(own), _ranks(given)
    slots = int(slot[columns].max(initial=0)) + 1
    places = own * width + rank
    entries = ((own[rows] + given[columns]) * width + rank[rows]) * slots + slot[columns]
    in_places = _inverse(places, stages * width)
    in_slots = _inverse(np.minimum(given * slots + slot, stages * slots), stages * slots)
    indices = (torch.from_numpy(index).to(E.rows.device) for index in (in_places, places, in_slots, entries))
    return Chain((stages, width, slots), *indices)


def _ranks(group: Int64[Array, " r"]) -> Int64[Array, " r"]:
    """The number of each within its group."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def _inverse(places: Int64[Array, " r"], size: int) -> Array:
    """Who is in each of `size` places, and r where nobody is; a place behind them is none."""
    found = np.full(size + 1, len(places))
    found[places] = np.arange(len(places))
    return found[:size]
