r"""K⁺b for symmetric K too large for an eigendecomposition, from products with K alone.

Started at 0, the iterates of LSMR (Fong & Saunders 2011) lie in the range of K, so that they converge to
the least-squares solution of least norm. A second run on what is left, b - K x, takes the rounding out of the
first. Of a generic vector the least-squares residual is the part in the null space: which coordinates
it moves is read off there.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from optlayer.linsolve import Solved

Array = np.ndarray

TOLERANCE = 1e-13  # relative residual that is aimed at
REACHED = 1e-7  # and what has to be reached: else the answer is NaN
SWEEPS = 4000  # iterations of one run
FREE = 1e-6  # part of a generic vector in the null space that moves a coordinate


def least_norm(product: Callable[[Tensor], Tensor], b: Float64[Tensor, "B N"], n: int) -> Solved:
    """K⁺b, as `linsolve.solve` has it; NaN where the iteration does not get there.

    Args:
        product: y -> K y, batched.
        b: The right-hand side.
        n: Primal rows, which come first.
    """
    x, left = torch.empty_like(b), torch.empty_like(b)
    generic = np.cos(np.arange(b.shape[1], dtype=float) ** 2)
    for i in range(len(b)):
        K = _operator(product, i, b)
        x[i] = torch.from_numpy(_least_squares(K, b[i].numpy()))
        left[i] = torch.from_numpy(generic - K @ _least_squares(K, generic))
    free = ~(left.abs() <= FREE)  # where nothing arrived, anything may be
    return Solved(x, free.any(1), free[:, :n])


def _operator(product: Callable[[Tensor], Tensor], i: int, like: Tensor) -> LinearOperator:
    """K of one sample."""

    def apply(y: Array) -> Array:
        stacked = torch.zeros_like(like)
        stacked[i] = torch.from_numpy(y.reshape(-1))
        result: Array = product(stacked)[i].numpy()
        return result

    return LinearOperator((like.shape[1],) * 2, matvec=apply, rmatvec=apply, dtype=float)


def _least_squares(K: LinearOperator, b: Array) -> Array:
    """K⁺b of one sample; NaN where two runs do not get there."""
    x = np.zeros_like(b)
    for _ in range(2):
        step, _, _, left, gradient, norm, *_ = lsmr(
            K, b - K @ x, atol=TOLERANCE, btol=TOLERANCE, conlim=0, maxiter=SWEEPS
        )
        x += step
    arrived = left <= REACHED * np.linalg.norm(b) or gradient <= REACHED * norm * left
    return x if arrived else np.full_like(b, np.nan)
