r"""Every order and scaling of the rows of a cone, ours and the solvers', and the maps between them.

A symmetric matrix as a vector, n = 3, s = √2 (so that the inner product is the matrices'):

    house, Clarabel   upper triangle, column by column    X₁₁ sX₁₂ X₂₂ sX₁₃ sX₂₃ X₃₃
    SCS               lower triangle, column by column    X₁₁ sX₂₁ sX₃₁ X₂₂ sX₃₂ X₃₃
    cvxpy             the full matrix, column by column   X₁₁ X₂₁ X₃₁ X₁₂ X₂₂ X₃₂ X₁₃ X₂₃ X₃₃

The exponential cone y e^{x/y} <= z is (x, y, z) for us, cvxpy, SCS and Clarabel, and (z, y, x) for MOSEK.
The second-order cone |x| <= t is (t, x) for all of them.
"""

from functools import cache
from math import isqrt, sqrt
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

Indices = NDArray[np.int64]
A = TypeVar("A", Tensor, NDArray[np.float64])

EXPONENTIAL_TO_MOSEK = (2, 1, 0)  # mosek = house[EXPONENTIAL_TO_MOSEK], and its own inverse


def triangle(n: int) -> int:
    """Rows of an n x n symmetric matrix: n(n + 1)/2."""
    return n * (n + 1) // 2


def side(rows: int) -> int:
    """The inverse of `triangle`."""
    n = (isqrt(8 * rows + 1) - 1) // 2
    if triangle(n) != rows:
        raise ValueError(f"{rows} is no n(n + 1)/2: these are not the rows of a symmetric matrix")
    return n


# ----------------------------------------------------------------------------------- index tables


@cache
def house_pairs(n: int) -> tuple[Indices, Indices]:
    """i, j of each row, i <= j: the upper triangle, column by column."""
    j, i = np.tril_indices(n)
    return i.astype(np.int64), j.astype(np.int64)


@cache
def scs_pairs(n: int) -> tuple[Indices, Indices]:
    """i, j of each row, i >= j: the lower triangle, column by column."""
    j, i = np.triu_indices(n)
    return i.astype(np.int64), j.astype(np.int64)


@cache
def scaling(n: int) -> NDArray[np.float64]:
    """In the house order: 1 on the diagonal, √2 off it. SCS's is `scaling(n)[house_to_scs(n)]`."""
    i, j = house_pairs(n)
    return np.where(i == j, 1.0, sqrt(2.0))


@cache
def _row_of(n: int) -> Indices:
    """(n, n): the house row of each entry."""
    i, j = house_pairs(n)
    table = np.zeros((n, n), dtype=np.int64)
    table[i, j] = table[j, i] = np.arange(triangle(n))
    return table


@cache
def house_to_scs(n: int) -> Indices:
    """scs = house[house_to_scs(n)]."""
    return _row_of(n)[scs_pairs(n)]


@cache
def scs_to_house(n: int) -> Indices:
    """house = scs[scs_to_house(n)]."""
    return np.argsort(house_to_scs(n))


# ---------------------------------------------------------------------------- vectors and matrices


def smat(v: A) -> A:
    """(*batch, rows) -> (*batch, n, n): the symmetric matrix of a vector in the house order."""
    n = side(v.shape[-1])
    return (v / _like(scaling(n), v))[..., _like(_row_of(n), v)]


def svec(M: A) -> A:
    """(*batch, n, n) -> (*batch, rows), in the house order; of M the upper triangle is read."""
    n = M.shape[-1]
    i, j = house_pairs(n)
    return M[..., _like(i, M), _like(j, M)] * _like(scaling(n), M)


def _like(table: NDArray[Any], v: Any) -> Any:
    """As a tensor beside v if that is one."""
    return torch.from_numpy(table).to(v.device) if isinstance(v, torch.Tensor) else table


def svec_matrix(n: int) -> sparse.csr_array:
    """(rows, n²): from cvxpy's full matrix, its symmetric part, to the house order."""
    i, j = house_pairs(n)
    rows = np.tile(np.arange(triangle(n)), 2)
    columns = np.concatenate([i + n * j, j + n * i])
    values = np.tile(scaling(n) / 2, 2)
    return sparse.csr_array((values, (rows, columns)), shape=(triangle(n), n * n))


def smat_matrix(n: int) -> sparse.csr_array:
    """(n², rows): from the house order to cvxpy's full matrix."""
    columns = _row_of(n).ravel(order="F")
    values = 1 / scaling(n)[columns]
    return sparse.csr_array((values, (np.arange(n * n), columns)), shape=(n * n, triangle(n)))
