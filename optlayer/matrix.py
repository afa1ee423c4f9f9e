r"""Batched matrices of one shape and one structure: what a programme's P, G and A are made of.

    Dense    (B, r, c) entries
    Sparse   (B, nnz) entries at places all samples share: a diagonal, bounds, a banded matrix

A constant block has one sample, B = 1, and broadcasts. Both answer the few questions that Newton's method
and the certificate ask, so that neither ever sees which of the two it holds: products, and the largest or
least of something over the entries of each row or column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

T = TypeVar("T")

FULL = 0.2  # part of the entries from which on a matrix is better kept dense
SMALL = 1024  # entries up to which it is in any case


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a sparse matrix has entries: C order, none twice."""

    shape: tuple[int, int]
    rows: Int64[Tensor, " nnz"]
    columns: Int64[Tensor, " nnz"]

    @classmethod
    def of_places(cls, shape: tuple[int, int], places: Int64[Tensor, " nnz"]) -> "Pattern":
        """From ascending positions in C order."""
        width = max(shape[1], 1)
        return cls(shape, places // width, places % width)

    @property
    def nnz(self) -> int:
        return len(self.rows)

    @cached_property
    def is_diagonal(self) -> bool:
        """Square, all of the diagonal and nothing else."""
        r, c = self.shape
        return r == c == self.nnz and bool((self.rows == self.columns).all())

    @cached_property
    def is_row_each(self) -> bool:
        """Exactly one entry in every row: bounds."""
        return torch.equal(self.rows, torch.arange(self.shape[0], device=self.rows.device))

    @cached_property
    def is_sparse(self) -> bool:
        """Worth keeping so."""
        size = self.shape[0] * self.shape[1]
        return self.is_diagonal or self.is_row_each or (size > SMALL and self.nnz <= FULL * size)

    @cached_property
    def count(self) -> Int64[Tensor, " r"]:
        """Entries of each row."""
        return torch.bincount(self.rows, minlength=self.shape[0])

    @cached_property
    def bounds(self) -> "Bounds":
        """Rows with one entry apart from the others."""
        single = self.count == 1
        of_bound = single[self.rows]
        renumbered = (~single).cumsum(0) - 1
        others = Pattern(
            (int((~single).sum()), self.shape[1]), renumbered[self.rows[~of_bound]], self.columns[~of_bound]
        )
        rows = single.nonzero().squeeze(1), (~single).nonzero().squeeze(1)
        entries = of_bound.nonzero().squeeze(1), (~of_bound).nonzero().squeeze(1)
        order = torch.cat(rows).argsort()
        return Bounds(rows[0], self.columns[of_bound], entries[0], rows[1], entries[1], others, order)

    @cached_property
    def transposed(self) -> tuple["Pattern", Int64[Tensor, " nnz"]]:
        """The pattern of the transpose, and the order its entries have here."""
        order = (self.columns * max(self.shape[0], 1) + self.rows).argsort()
        return Pattern((self.shape[1], self.shape[0]), self.columns[order], self.rows[order]), order

    def once(self, find: Callable[["Pattern"], T]) -> T:
        """find(self), kept; a pattern lives as long as the layer it belongs to."""
        if find not in self._found:
            self._found[find] = find(self)
        found: T = self._found[find]
        return found

    @cached_property
    def _found(self) -> dict[Callable[["Pattern"], Any], Any]:
        return {}

    def above(self, lower: "Pattern") -> "Pattern":
        """That of [M; lower]; the same one again, so that what is once found out about it stays known."""
        if lower not in self._above:
            rows = torch.cat([self.rows, lower.rows + self.shape[0]])
            columns = torch.cat([self.columns, lower.columns])
            self._above[lower] = Pattern((self.shape[0] + lower.shape[0], self.shape[1]), rows, columns)
        return self._above[lower]

    @cached_property
    def _above(self) -> WeakKeyDictionary["Pattern", "Pattern"]:
        return WeakKeyDictionary()

    def to(self, device: torch.device) -> "Pattern":
        """The same on a device."""
        if self.rows.device == device:
            return self
        return Pattern(self.shape, self.rows.to(device), self.columns.to(device))

    def __deepcopy__(self, memo: dict[int, object]) -> "Pattern":
        return self  # immutable


class Bounds(NamedTuple):
    """The rows of a sparse matrix that hold one coordinate each, and the others as a matrix of their own."""

    rows: Int64[Tensor, " b"]
    columns: Int64[Tensor, " b"]  # the coordinate of each
    entries: Int64[Tensor, " b"]  # and its place among the values
    other_rows: Int64[Tensor, " k"]
    other_entries: Int64[Tensor, " nnz"]
    others: Pattern
    order: Int64[Tensor, " r"]  # of all rows in (bounds, others)


class _Peaks:
    """What follows from the largest entries, however they are found."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """One sample's."""
        raise NotImplementedError

    def largest(self, x: Tensor | None = None) -> Float64[Tensor, "B r"]:
        """max_j |M_ij| x_j, 0 where there is nothing; x >= 0."""
        raise NotImplementedError

    @cached_property
    def peaks(self) -> Float64[Tensor, "B r"]:
        """The largest |entry| of each row, 0 where there is none."""
        return self.largest()

    @cached_property
    def peak(self) -> Float64[Tensor, "B 1"]:
        """The largest of all."""
        return (
            self.peaks.amax(1, keepdim=True) if self.shape[0] else self.values.new_zeros(len(self.values), 1)
        )


@dataclass(frozen=True, eq=False)
class Dense(_Peaks):
    """A batch of matrices with all their entries."""

    values: Float64[Tensor, "B r c"]

    @property
    def shape(self) -> tuple[int, int]:
        """One sample's."""
        return self.values.shape[1], self.values.shape[2]

    def dense(self) -> Float64[Tensor, "B r c"]:
        return self.values

    def __getitem__(self, index: Any) -> "Dense":
        return self if len(self.values) == 1 else Dense(self.values[index])

    def scaled(self, left: Tensor | float, right: Tensor | float) -> "Dense":
        """diag(left) M diag(right)."""
        left = left.unsqueeze(2) if isinstance(left, Tensor) else left
        right = right.unsqueeze(1) if isinstance(right, Tensor) else right
        return Dense(left * self.values * right)

    @cached_property
    def abs(self) -> "Dense":
        return Dense(self.values.abs())

    def __matmul__(self, x: Float64[Tensor, "B c"]) -> Float64[Tensor, "B r"]:
        if not self.shape[0]:
            return x[:, :0]
        if len(self.values) == 1:
            return x @ self.values[0].mT
        return torch.bmm(self.values, x.unsqueeze(2)).squeeze(2)

    def mT(self, y: Float64[Tensor, "B r"]) -> Float64[Tensor, "B c"]:
        """Mᵀy."""
        if not self.shape[0]:
            return y.new_zeros(len(y), self.shape[1])
        if len(self.values) == 1:
            return y @ self.values[0]
        return torch.bmm(y.unsqueeze(1), self.values).squeeze(1)

    def diagonal(self) -> Float64[Tensor, "B n"]:
        return self.values.diagonal(dim1=1, dim2=2)

    @cached_property
    def is_single(self) -> Bool[Tensor, "#B r"]:
        """Rows with one entry that is not 0."""
        return (self.values != 0).sum(2) == 1

    def largest(self, x: Tensor | None = None) -> Float64[Tensor, "B r"]:
        """max_j |M_ij| x_j, 0 where there is nothing; x >= 0."""
        if not self.shape[1]:
            return self.values.sum(2)
        a = self.abs.values
        return (a if x is None else a * x.unsqueeze(1)).amax(2)

    def column_largest(self, y: Tensor | None = None) -> Float64[Tensor, "B c"]:
        """max_i |M_ij| y_i."""
        if not self.shape[0]:
            return self.values.sum(1)
        a = self.abs.values
        return (a if y is None else a * y.unsqueeze(2)).amax(1)

    @cached_property
    def smallest(self) -> Float64[Tensor, "B r"]:
        """min_j |M_ij| over entries that are not 0; inf where there is none."""
        if not self.shape[1]:
            return self.values.sum(2) + torch.inf
        a = self.abs.values
        return torch.where(a > 0, a, torch.inf).amin(2)

    def least(self, x: Float64[Tensor, "B c"]) -> Float64[Tensor, "B r"]:
        """min_j x_j / |M_ij| over entries that are not 0; inf where there is none."""
        if not self.shape[1]:
            return self.values.sum(2) + torch.inf
        a = self.abs.values
        return torch.where(a > 0, x.unsqueeze(1) / a, torch.inf).amin(2)

    def column_least(self, y: Float64[Tensor, "B r"]) -> Float64[Tensor, "B c"]:
        """min_i y_i / |M_ij|."""
        if not self.shape[0]:
            return self.values.sum(1) + torch.inf
        a = self.abs.values
        return torch.where(a > 0, y.unsqueeze(2) / a, torch.inf).amin(1)


@dataclass(frozen=True, eq=False)
class Sparse(_Peaks):
    """A batch of matrices whose entries are at the same places."""

    values: Float64[Tensor, "B nnz"]
    pattern: Pattern

    @property
    def shape(self) -> tuple[int, int]:
        """One sample's."""
        return self.pattern.shape

    def dense(self) -> Float64[Tensor, "B r c"]:
        r, c = self.shape
        flat = self.values.new_zeros(len(self.values), r * c)
        return (
            flat.index_copy(1, self.pattern.rows * c + self.pattern.columns, self.values).reshape(-1, r, c)
            if r * c
            else flat.reshape(len(flat), r, c)
        )

    def __getitem__(self, index: Any) -> "Sparse":
        return self if len(self.values) == 1 else Sparse(self.values[index], self.pattern)

    def scaled(self, left: Tensor | float, right: Tensor | float) -> "Sparse":
        """diag(left) M diag(right)."""
        left = picked(left, self.pattern.rows) if isinstance(left, Tensor) else left
        right = picked(right, self.pattern.columns) if isinstance(right, Tensor) else right
        return Sparse(left * self.values * right, self.pattern)

    @property
    def squared(self) -> "Sparse":
        """Entry by entry."""
        return Sparse(self.values.square(), self.pattern)

    @cached_property
    def abs(self) -> "Sparse":
        return Sparse(self.values.abs(), self.pattern)

    def __matmul__(self, x: Float64[Tensor, "B c"]) -> Float64[Tensor, "B r"]:
        return self._over_rows(self._by_column(x), "sum", 0.0)

    def mT(self, y: Float64[Tensor, "B r"]) -> Float64[Tensor, "B c"]:
        """Mᵀy."""
        return self._over_columns(self._by_row(y), "sum", 0.0)

    def diagonal(self) -> Float64[Tensor, "B n"]:
        if self.pattern.is_diagonal:
            return self.values
        on = self.pattern.rows == self.pattern.columns
        return self.values.new_zeros(len(self.values), self.shape[0]).index_copy(
            1, self.pattern.rows[on], self.values[:, on]
        )

    @cached_property
    def is_single(self) -> Bool[Tensor, "#B r"]:
        """Rows with one entry that is not 0."""
        return self._over_rows((self.values != 0).to(self.values.dtype), "sum", 0.0) == 1

    def largest(self, x: Tensor | None = None) -> Float64[Tensor, "B r"]:
        """max_j |M_ij| x_j, 0 where there is nothing; x >= 0."""
        return self._over_rows(self.abs.values if x is None else self.abs._by_column(x), "amax", 0.0)

    def column_largest(self, y: Tensor | None = None) -> Float64[Tensor, "B c"]:
        """max_i |M_ij| y_i."""
        return self._over_columns(self.abs.values if y is None else self.abs._by_row(y), "amax", 0.0)

    @cached_property
    def smallest(self) -> Float64[Tensor, "B r"]:
        """min_j |M_ij| over entries that are not 0; inf where there is none."""
        a = self.abs.values
        return self._over_rows(torch.where(a > 0, a, torch.inf), "amin", torch.inf)

    def least(self, x: Float64[Tensor, "B c"]) -> Float64[Tensor, "B r"]:
        """min_j x_j / |M_ij| over entries that are not 0; inf where there is none."""
        return self._over_rows(_ratio(picked(x, self.pattern.columns), self.abs.values), "amin", torch.inf)

    def column_least(self, y: Float64[Tensor, "B r"]) -> Float64[Tensor, "B c"]:
        """min_i y_i / |M_ij|."""
        return self._over_columns(_ratio(picked(y, self.pattern.rows), self.abs.values), "amin", torch.inf)

    def _by_column(self, x: Tensor) -> Float64[Tensor, "B nnz"]:
        """M_ij x_j."""
        return self.values * (x if self.pattern.is_diagonal else picked(x, self.pattern.columns))

    def _by_row(self, y: Tensor) -> Float64[Tensor, "B nnz"]:
        """M_ij y_i."""
        return self.values * (y if self.pattern.is_row_each else picked(y, self.pattern.rows))

    def _over_rows(self, terms: Float64[Tensor, "B nnz"], how: Any, start: float) -> Float64[Tensor, "B r"]:
        if self.pattern.is_row_each:
            return terms
        return _reduced(terms, self.pattern.rows, self.shape[0], how, start)

    def _over_columns(self, terms: Tensor, how: Any, start: float) -> Float64[Tensor, "B c"]:
        if self.pattern.is_diagonal:
            return terms
        return _reduced(terms, self.pattern.columns, self.shape[1], how, start)


Matrix = Dense | Sparse


def largest(a: Float64[Tensor, "*batch k"]) -> Float64[Tensor, "*batch 1"]:
    """max_i |a_i|, 0 where there is none."""
    return a.abs().amax(-1, keepdim=True) if a.shape[-1] else a.sum(-1, keepdim=True)


def picked(x: Float64[Tensor, "B c"], index: Int64[Tensor, " k"]) -> Float64[Tensor, "B k"]:
    """x[:, index], for which gather takes a third of the time."""
    return x.gather(1, index.expand(len(x), -1))


def or_one(a: Tensor) -> Tensor:
    """a as a unit to divide by: 1 where it is 0."""
    return torch.where(a > 0, a, 1.0)


def diagonal(values: Float64[Tensor, "B n"]) -> Sparse:
    """diag(values)."""
    n = torch.arange(values.shape[1], device=values.device)
    return Sparse(values, Pattern((len(n), len(n)), n, n))


def plus_diagonal(M: Matrix, values: Float64[Tensor, "B n"]) -> Matrix:
    """M + diag(values)."""
    if isinstance(M, Sparse) and M.pattern.is_diagonal:
        return Sparse(M.values + values, M.pattern)
    return Dense(M.dense() + torch.diag_embed(values))


def stacked(upper: Matrix, lower: Matrix) -> Matrix:
    """[upper; lower]: sparse where either is, constant where both are."""
    if not (upper.shape[0] and lower.shape[0]):
        return upper if upper.shape[0] else lower
    B = max(len(upper.values), len(lower.values))
    if isinstance(upper, Dense) and isinstance(lower, Dense):
        return Dense(torch.cat([M.values.expand(B, -1, -1) for M in (upper, lower)], 1))
    above, below = _sparse(upper), _sparse(lower)
    values = torch.cat([M.values.expand(B, -1) for M in (above, below)], 1)
    return Sparse(values, above.pattern.above(below.pattern))


def compact(matrix: Matrix) -> Matrix:
    """Dense where places without an entry are too few to pay for being left out."""
    if isinstance(matrix, Dense) or matrix.pattern.is_sparse:
        return matrix
    return Dense(matrix.dense())


def _sparse(matrix: Matrix) -> Sparse:
    """With an entry in every place, where it was dense."""
    if isinstance(matrix, Sparse):
        return matrix
    r, c = matrix.shape
    places = torch.arange(r * c, device=matrix.values.device)
    return Sparse(matrix.values.flatten(1), Pattern.of_places((r, c), places))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, inf where b is 0: what has no entry is no bound."""
    return torch.where(b > 0, a / b, torch.inf)


def _reduced(terms: Tensor, index: Tensor, size: int, how: Any, start: float) -> Tensor:
    out = terms.new_full((len(terms), size), start)
    if how == "sum":
        return out.index_add(1, index, terms)
    return out.scatter_reduce(1, index.expand(terms.shape), terms, how)
