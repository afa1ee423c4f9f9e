"""What solvers want of matrices: compressed columns."""

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64
from scipy import sparse

from optlayer.matrix import Dense, Matrix

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Columns:
    """Compressed columns of a batch: one structure, ascending rows, entries that are 0 included."""

    shape: tuple[int, int]
    rows: Int32[Array, " nnz"]
    starts: Int32[Array, " c+1"]
    values: Float64[Array, "B nnz"]  # B = 1: shared by all samples

    @classmethod
    def of_places(cls, shape: tuple[int, int], rows: Array, columns: Array, values: Array) -> "Columns":
        """From places in any order, none twice."""
        order = np.lexsort((rows, columns))
        starts = np.searchsorted(columns[order], np.arange(shape[1] + 1))
        entries = np.ascontiguousarray(values[:, order])
        return cls(shape, rows[order].astype(np.int32), starts.astype(np.int32), entries)

    @property
    def constant(self) -> bool:
        """Shared by all samples."""
        return len(self.values) == 1

    @property
    def columns(self) -> Int64[Array, " nnz"]:
        """The column of each entry."""
        return np.repeat(np.arange(self.shape[1]), np.diff(self.starts))

    def at(self, i: int) -> Float64[Array, " nnz"]:
        """The entries of one sample."""
        return self.values[0 if self.constant else i]

    def matrix(self, i: int) -> Any:
        """One sample as scipy has it; its structure, checked once, is shared with all others."""
        matrix = copy(self._first)
        matrix.data = self.at(i)
        return matrix

    @cached_property
    def _first(self) -> Any:
        return sparse.csc_matrix((self.at(0), self.rows, self.starts), shape=self.shape)

    def upper(self) -> "Columns":
        """The upper triangle, all that solvers read of a symmetric matrix."""
        return self._where(self.rows <= self.columns)

    def split(self, row: int) -> tuple["Columns", "Columns"]:
        """The rows above `row`, and those from there on."""
        above, (r, c) = self.rows < row, self.shape
        lower = self._where(~above)
        shifted = Columns((r - row, c), lower.rows - np.int32(row), lower.starts, lower.values)
        return self._where(above, (row, c)), shifted

    def reordered(self, order: Int64[Array, " r"]) -> "Columns":
        """The rows `order` of it, a permutation."""
        return Columns.of_places(self.shape, np.argsort(order)[self.rows], self.columns, self.values)

    def transposed(self) -> "Columns":
        """Compressed columns of the transpose, which are its compressed rows."""
        r, c = self.shape
        return Columns.of_places((c, r), self.columns, self.rows, self.values)

    def _where(self, kept: Array, shape: tuple[int, int] | None = None) -> "Columns":
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts].astype(np.int32)
        return Columns(
            shape or self.shape, self.rows[kept], starts, np.ascontiguousarray(self.values[:, kept])
        )


def to_csc(matrix: Matrix) -> Columns:
    """The columns of a batch of matrices: a sparse one's own pattern, of a dense one every place."""
    r, c = matrix.shape
    if isinstance(matrix, Dense):
        rows, starts = np.tile(np.arange(r, dtype=np.int32), c), np.arange(c + 1, dtype=np.int32) * r
        values = np.ascontiguousarray(matrix.values.mT.flatten(1).numpy())
        return Columns(matrix.shape, rows, starts.astype(np.int32), values)
    flipped, order = matrix.pattern.transposed
    starts = np.searchsorted(flipped.rows.numpy(), np.arange(c + 1)).astype(np.int32)
    values = np.ascontiguousarray(matrix.values[:, order].numpy())
    return Columns(matrix.shape, flipped.columns.numpy().astype(np.int32), starts, values)
