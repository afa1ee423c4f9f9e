"""Maps that hold no cvxpy: data that are affine in θ, and values that are read off x or y."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayer.matrix import Dense, Matrix, Pattern, Sparse

Array = np.ndarray[Any, np.dtype[Any]]

DENSE = 2**22  # entries up to which the constant part is also kept as a dense array


class Parts:
    """θ flattened sample by sample, its parameters side by side; copied together only when asked for."""

    def __init__(self, parts: Sequence[Float64[Tensor, "B k_i"]], size: int, device: torch.device) -> None:
        self._parts, self.device = tuple(parts), device
        self._starts = list(accumulate((part.shape[1] for part in parts), initial=0))
        self.shape = (size, self._starts[-1])

    @cached_property
    def whole(self) -> Float64[Tensor, "B k"]:
        """All of it."""
        return torch.cat(
            [torch.zeros(self.shape[0], 0, dtype=torch.float64, device=self.device), *self._parts], 1
        )

    def run(self, start: int, size: int) -> Float64[Tensor, "B size"]:
        """Some of it; a view where that is one parameter."""
        for first, part in zip(self._starts, self._parts, strict=False):
            if first == start and part.shape[1] == size:
                return part
        return self.whole[:, start : start + size]

    def first(self) -> "Parts":
        """One sample alone."""
        return Parts([part[:1] for part in self._parts], 1, self.device)


Theta = Tensor | Parts  # (*batch, k)


def whole(theta: Theta) -> Float64[Tensor, "*batch k"]:
    """θ as one tensor."""
    return theta.whole if isinstance(theta, Parts) else theta


def run_of(theta: Theta, start: int, size: int) -> Float64[Tensor, "*batch size"]:
    """θ[start : start + size]."""
    return theta.run(start, size) if isinstance(theta, Parts) else theta[..., start : start + size]


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

    @cached_property
    def pattern(self) -> Pattern:
        """Which entries of a matrix can differ from 0."""
        r, c = self.shape
        return Pattern.of_places((r, c), self.places)

    def matrix(self, theta: Parts) -> Matrix:
        """A map to matrices, as one: with one sample where it is constant, sparse where that pays."""
        if not self.is_constant:
            return Sparse(self.values(theta), self.pattern) if self.pattern.is_sparse else Dense(self(theta))
        if theta.device == self.constant.device:
            return self._constant
        return (
            Sparse(self.values(theta.first()), self.pattern.to(theta.device))
            if self.pattern.is_sparse
            else Dense(self(theta.first()))
        )

    @cached_property
    def _constant(self) -> Matrix:
        """Itself, where nothing moves it."""
        return (
            Sparse(self.constant[None], self.pattern) if self.pattern.is_sparse else Dense(self._base()[None])
        )

    def part(self, start: int, stop: int) -> "AffineMap":
        """Rows start to stop."""
        width = prod(self.shape[1:])
        inside = (self.places >= start * width) & (self.places < stop * width)
        kept = inside[self.entry]
        renumbered = inside.cumsum(0) - 1
        return AffineMap(
            shape=(stop - start, *self.shape[1:]),
            places=self.places[inside] - start * width,
            constant=self.constant[inside],
            entry=renumbered[self.entry[kept]],
            position=self.position[kept],
            coefficient=self.coefficient[kept],
            target=self.target[kept] - start * width,
            base=None if self.base is None else self.base[start:stop],
        )

    def leading(self, n: int) -> "AffineMap":
        """The first n rows and columns of a square matrix that has entries nowhere else."""
        width = self.shape[1]
        places = self.places // width * n + self.places % width
        base = None if self.base is None else self.base[:n, :n]
        return replace(self, shape=(n, n), places=places, target=places[self.entry], base=base)

    def on_diagonal(self) -> "AffineMap":
        """The same, with a place for every entry of the diagonal, if it has none but there."""
        n, width = self.shape
        whole = torch.arange(n) * (width + 1)
        if n != width or not torch.isin(self.places, whole).all():
            return self
        new = torch.searchsorted(whole, self.places)
        constant = torch.zeros(n, dtype=torch.float64).index_copy(0, new, self.constant)
        return replace(self, places=whole, constant=constant, entry=new[self.entry])

    def times(self, factor: float) -> "AffineMap":
        """A multiple."""
        return replace(
            self,
            constant=factor * self.constant,
            coefficient=factor * self.coefficient,
            base=None if self.base is None else factor * self.base,
        )

    def values(self, theta: "Theta") -> Float64[Tensor, "*batch nnz"]:
        """The entries at `places` only; the map's one constant, where it has no other."""
        constant = self.constant.to(theta.device)
        if self.is_constant:
            return constant.expand(*theta.shape[:-1], -1)
        if self._run is not None:
            start, coefficient = self._run
            taken = run_of(theta, start, len(self.entry))
            return taken if coefficient == 1.0 else coefficient * taken
        if self._is_once:
            return self._terms(theta) if not self.constant.any() else constant + self._terms(theta)
        constant = constant.expand(*theta.shape[:-1], -1)
        return constant.index_add(-1, self.entry.to(theta.device), self._terms(theta))

    def __call__(self, theta: "Theta") -> Float64[Tensor, "..."]:
        """The whole array; a view to be read only, where the map is constant."""
        batch, size = tuple(theta.shape[:-1]), prod(self.shape)
        if not self.is_constant and len(self.places) == size:
            return self.values(theta).reshape((*batch, *self.shape))
        base = self._base().to(theta.device)
        if self.is_constant:
            return base.expand((*batch, *self.shape))
        flat = base.reshape(-1).expand(*batch, -1)
        return flat.index_add(-1, self.target.to(theta.device), self._terms(theta)).reshape(
            (*batch, *self.shape)
        )

    @cached_property
    def _is_once(self) -> bool:
        """Each entry takes one term: nothing to add up."""
        return len(self.entry) == len(self.places) and bool(
            (self.entry == torch.arange(len(self.entry))).all()
        )

    @cached_property
    def _run(self) -> tuple[int, float] | None:
        """Start and coefficient where the entries are a multiple of a run of θ: a whole parameter, say."""
        if not self._is_once or self.constant.any() or not len(self.entry):
            return None
        start, coefficient = int(self.position[0]), self.coefficient[0]
        running = torch.equal(self.position, torch.arange(start, start + len(self.entry)))
        return (start, float(coefficient)) if running and (self.coefficient == coefficient).all() else None

    def _terms(self, theta: "Theta") -> Float64[Tensor, "*batch terms"]:
        coefficient = self.coefficient.to(theta.device)
        return whole(theta).index_select(-1, self.position.to(theta.device)) * coefficient

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

    def symmetric(self) -> "Gather":
        """A square matrix whose lower triangle reads what its upper one does."""
        square = (part.reshape(self.shape) for part in (self.index, self.coefficient))
        index, coefficient = ((torch.triu(part) + torch.triu(part, 1).mT).reshape(-1) for part in square)
        return Gather(index, coefficient, self.shape, self.empty)

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
