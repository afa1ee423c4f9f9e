"""Products with a large sparse constant, C X, X C and xᵀC x: as many operations as C has entries.

They are gathers and sums, which torch.func batches and differentiates like anything else; torch's own
sparse matrices it does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy import sparse
from torch import Tensor

from optlayer.declare import terms
from optlayer.declare.operation import Atom
from optlayer.declare.refusals import complex_valued

LARGE = 2**20  # entries, zeros included, up to which a constant is better dense
FULL = 0.2  # part of them that are not 0 from which on it is in any case


@dataclass(frozen=True, eq=False)
class _Constant:
    """C by its entries."""

    shape: tuple[int, int]
    rows: Int64[Tensor, " nnz"]
    columns: Int64[Tensor, " nnz"]
    values: Float64[Tensor, " nnz"]

    @classmethod
    def of(cls, expression: Any) -> "_Constant":
        entries = sparse.coo_array(expression.value)
        if np.iscomplexobj(entries.data):
            raise complex_valued(expression)
        rows, columns = (torch.tensor(places.astype(np.int64)) for places in (entries.row, entries.col))
        return cls(entries.shape, rows, columns, torch.tensor(entries.data, dtype=torch.float64))

    @property
    def transposed(self) -> "_Constant":
        return _Constant(self.shape[::-1], self.columns, self.rows, self.values)

    def times(self, x: Tensor) -> Tensor:
        """C x, for a vector or a matrix x."""
        rows, columns = self.rows.to(x.device), self.columns.to(x.device)
        values = self.values.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        nothing = x.new_zeros(self.shape[0], *x.shape[1:])
        return nothing.index_add(0, rows, values * x.index_select(0, columns))


@dataclass(frozen=True)
class Product:
    """An atom with a large sparse factor, as a function of its other operand alone."""

    function: Callable[[Tensor], Tensor]
    operands: tuple[Any, ...]
    terms: Callable[[terms.Terms], terms.Terms]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


def large_factor(atom: Atom) -> Product | None:
    """The atom as a product with a large sparse constant, if it is one."""
    name = type(atom).__name__
    if name not in ("MulExpression", "QuadForm"):
        return None
    left, right = atom.args
    if name == "QuadForm":
        return _quadratic(left, _Constant.of(right)) if is_large(right) else None
    if is_large(left) and right.ndim:
        return Product(_Constant.of(left).times, (right,), terms.union)
    if is_large(right) and left.ndim:
        transposed = _Constant.of(right).transposed
        return Product(
            lambda X: transposed.times(X.mT).mT if X.ndim > 1 else transposed.times(X), (left,), terms.union
        )
    return None


def _quadratic(x: Any, C: _Constant) -> Product:
    """xᵀC x."""

    def form(x: Tensor) -> Tensor:
        x = x.reshape(-1)
        return x @ C.times(x)

    return Product(form, (x,), lambda x: terms.multiplied(x, x))


def is_large(expression: Any) -> bool:
    """Whether it is a constant matrix that is better not met dense."""
    if expression.variables() or expression.parameters() or expression.ndim != 2 or expression.size <= LARGE:
        return False
    value = expression.value
    return bool(sparse.issparse(value) and value.nnz <= FULL * expression.size)
