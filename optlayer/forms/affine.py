"""Maps that hold no cvxpy: data that are affine in θ, and values that are read off x or y."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

DENSE = 2**22  # entries up to which the constant part is also kept as a dense array


@dataclass(frozen=True, eq=False)
class AffineMap:
    """θ -> constant + Σ_t coefficient_t · θ[position_t] · e(entry_t), an array of the given shape.

    Only entries that can differ from 0 are kept: `places` are their positions in C order, ascending, and
    `entry` counts within them. `values` gives them alone, calling the map the whole dense array.
    """

    shape: tuple[int, ...]
    places: Int64[Tensor, "nnz"]
    constant: Float64[Tensor, "nnz"]
    entry: Int64[Tensor, "terms"]
    position: Int64[Tensor, "terms"]
    coefficient: Float64[Tensor, "terms"]
    target: Int64[Tensor, "terms"]  # places[entry]
    base: Float64[Tensor, "*shape"] | None  # the constant as a dense array, where that is small

    @classmethod
    def of(cls, shape: tuple[int, ...], matrix: Any) -> "AffineMap":
        """From a sparse (entries in C order) x (k + 1) matrix whose last column is the constant."""
        matrix = sp.csr_array(matrix)  # sums what shares a place
        matrix.eliminate_zeros()
        k, coo = matrix.shape[1] - 1, matrix.tocoo()
        places, entry = np.unique(coo.row, return_inverse=True)
        fixed = coo.col == k
        constant = np.zeros(len(places))
        constant[entry[fixed]] = coo.data[fixed]
        base = np.zeros(prod(shape) if prod(shape) <= DENSE else 0)
        if prod(shape) <= DENSE:
            base[places] = constant
        return cls(
            shape=shape,
            places=_integers(places),
            constant=_floats(constant),
            entry=_integers(entry[~fixed]),
            position=_integers(coo.col[~fixed]),
            coefficient=_floats(coo.data[~fixed]),
            target=_integers(places[entry[~fixed]]),
            base=_floats(base).reshape(shape) if prod(shape) <= DENSE else None,
        )

    @property
    def is_constant(self) -> bool:
        return not len(self.entry)

    @property
    def pattern(self) -> Bool[np.ndarray, "*shape"]:
        """Which entries can differ from 0."""
        found = np.zeros(prod(self.shape), dtype=bool)
        found[self.places.numpy()] = True
        return found.reshape(self.shape)

    def values(self, theta: Float64[Tensor, "*batch k"]) -> Float64[Tensor, "*batch nnz"]:
        """The entries at `places` only."""
        constant = self.constant.to(theta.device).expand(*theta.shape[:-1], -1)
        if self.is_constant:
            return constant
        return constant.index_add(-1, self.entry.to(theta.device), self._terms(theta))

    def __call__(self, theta: Float64[Tensor, "*batch k"]) -> Float64[Tensor, "..."]:
        """The whole array; a view to be read only, where the map is constant."""
        batch, base = theta.shape[:-1], self._base().to(theta.device)
        if self.is_constant:
            return base.expand((*batch, *self.shape))
        flat = base.reshape(-1).expand(*batch, -1)
        return flat.index_add(-1, self.target.to(theta.device), self._terms(theta)).reshape(
            (*batch, *self.shape)
        )

    def _terms(self, theta: Tensor) -> Float64[Tensor, "*batch terms"]:
        coefficient = self.coefficient.to(theta.device)
        return theta.index_select(-1, self.position.to(theta.device)) * coefficient

    def _base(self) -> Float64[Tensor, "*shape"]:
        if self.base is not None:
            return self.base
        flat = torch.zeros(prod(self.shape), dtype=torch.float64)
        return flat.index_add(0, self.places, self.constant).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Gather:
    """v -> coefficient · v[index], reshaped: each entry is a multiple of one entry of v, or 0."""

    index: Int64[Tensor, "size"]
    coefficient: Float64[Tensor, "size"]
    shape: tuple[int, ...]
    empty: bool  # every coefficient is 0; v itself may then be empty

    @classmethod
    def of(cls, index: Array, coefficient: Array) -> "Gather":
        """From two arrays of the result's shape."""
        index = np.where(coefficient == 0, 0, index)
        return cls(
            index=_integers(index.ravel()),
            coefficient=_floats(coefficient.ravel()),
            shape=tuple(index.shape),
            empty=not coefficient.any(),
        )

    @classmethod
    def run(cls, start: int, shape: tuple[int, ...]) -> "Gather":
        """The entries from `start` on, in C order."""
        size = prod(shape)
        return cls.of(np.arange(start, start + size).reshape(shape), np.ones(shape))

    def __call__(self, v: Float64[Tensor, "*batch n"]) -> Float64[Tensor, "..."]:
        batch = v.shape[:-1]
        if self.empty:
            return v.new_zeros((*batch, *self.shape))
        picked = v.index_select(-1, self.index.to(v.device)) * self.coefficient.to(v.device)
        return picked.reshape((*batch, *self.shape))


def _integers(a: Array) -> Int64[Tensor, "..."]:
    return torch.tensor(np.asarray(a, dtype=np.int64))


def _floats(a: Array) -> Float64[Tensor, "..."]:
    return torch.tensor(np.asarray(a, dtype=np.float64))
