"""The affine atoms of cvxpy and their torch functions: one line each.

cvxpy flattens column by column unless an atom says otherwise, torch row by row. The functions of
cvxpy that are missing here (bmat, diff, einsum, mean, outer, partial_trace, partial_transpose,
squeeze, stack, swapaxes, vdot, vec, vec_to_upper_tri, ...) are built by cvxpy from these atoms.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from optlayer.declare import terms
from optlayer.declare.operation import (
    Atom,
    Function,
    Operation,
    Rule,
    along,
    entries,
    linear,
    multilinear,
    same,
)


def add(*operands: Tensor) -> Tensor:
    """The sum of the operands."""
    return reduce(torch.add, operands)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """cvxpy's `@`, which also scales by a scalar."""
    return left * right if left.ndim == 0 or right.ndim == 0 else left @ right


def stacked(join: Callable[[list[Tensor]], Tensor]) -> Function:
    """A torch function of a list, as a function of its members."""
    return lambda *operands: join(list(operands))


def concatenated(axis: int | None) -> Function:
    """Along an axis, or end to end and row by row."""
    if axis is None:
        return lambda *operands: torch.cat([operand.reshape(-1) for operand in operands])
    return stacked(partial(torch.cat, dim=axis))


def convolution(atom: Atom) -> Operation:
    """c_k = sum_i a_i b_{k-i}: windows of b, with zeros around it, against a read backwards."""
    m, n = (arg.size for arg in atom.args)
    windows = torch.arange(m + n - 1)[:, None] + torch.arange(m)

    def convolved(a: Tensor, b: Tensor) -> Tensor:
        padded = pad(b.reshape(-1), (m - 1, m - 1))
        return (padded[windows.to(b.device)] @ a.reshape(-1).flip(0)).reshape(atom.shape)

    return multilinear(convolved)


def cumulated(axis: int | None) -> Function:
    """Running sums along an axis, or over the array read row by row."""
    if axis is None:
        return lambda x: x.reshape(-1).cumsum(0)
    return lambda x: x.cumsum(axis)


def reversed_axes(x: Tensor) -> Tensor:
    """The transpose, of an array with any number of axes."""
    return x.permute(tuple(reversed(range(x.ndim))))


def reshaped(shape: tuple[int, ...], order: str) -> Function:
    """Column by column ("F") or row by row ("C")."""
    if order == "C":
        return lambda x: x.reshape(shape)
    return lambda x: reversed_axes(reversed_axes(x).reshape(shape[::-1]))


def permuted(axes: Any) -> Function:
    """Axes in the given order, or reversed."""
    return reversed_axes if axes is None else lambda x: x.permute(tuple(axes))


def indexed(atom: Atom) -> Operation:
    """`x[key]`, as a view unless a slice runs backwards, which torch has not."""
    key = atom.get_data()[-1]
    slices = [k for k in (key if isinstance(key, tuple) else (key,)) if isinstance(k, slice)]
    if any(s.step is not None and s.step < 0 for s in slices):
        return linear(entries(atom.args[0].shape, key))
    return linear(lambda x: x[key])


def strict_upper_triangle(atom: Atom) -> Operation:
    """Above the diagonal, row by row: (..., n, n) -> (..., n (n - 1) / 2, 1)."""
    shape = atom.args[0].shape
    above = entries(shape, (..., *np.triu_indices(shape[-1], k=1)))
    return linear(lambda x: above(x).reshape(atom.shape))


def unchanged(atom: Atom) -> Operation:
    """What only asserts a property, or concerns complex numbers."""
    return linear(same)


AFFINE: dict[str, Rule] = {
    "AddExpression": lambda atom: linear(add),
    "NegExpression": lambda atom: linear(torch.neg),
    # products and quotients
    "MulExpression": lambda atom: multilinear(matmul),
    "multiply": lambda atom: multilinear(torch.mul),
    "DivExpression": lambda atom: Operation(torch.div, terms.divided),
    "kron": lambda atom: multilinear(torch.kron),
    "conv": convolution,
    "convolve": convolution,
    # sums
    "Sum": lambda atom: linear(along(atom, torch.sum)),
    "Trace": lambda atom: linear(lambda x: x.diagonal(dim1=-2, dim2=-1).sum(-1)),
    "cumsum": lambda atom: linear(cumulated(atom.axis)),
    # shapes
    "reshape": lambda atom: linear(reshaped(atom.shape, atom.order)),
    "transpose": lambda atom: linear(permuted(atom.axes)),
    "Promote": lambda atom: linear(lambda x: x.reshape(()).expand(atom.shape)),
    "broadcast_to": lambda atom: linear(lambda x: x.expand(atom.shape)),
    # pieces
    "index": indexed,
    "special_index": lambda atom: linear(entries(atom.args[0].shape, atom.key)),
    "diag_vec": lambda atom: linear(partial(torch.diag_embed, offset=atom.k)),
    "diag_mat": lambda atom: linear(partial(torch.diagonal, offset=atom.k)),
    "upper_tri": strict_upper_triangle,
    # several into one
    "Vstack": lambda atom: linear(stacked(torch.vstack)),
    "Hstack": lambda atom: linear(stacked(torch.hstack)),
    "Concatenate": lambda atom: linear(concatenated(atom.axis)),
    # of real numbers
    "real": unchanged,
    "conj": unchanged,
    "imag": lambda atom: linear(torch.zeros_like),
    # assertions
    "psd_wrap": unchanged,
    "nsd_wrap": unchanged,
    "nonneg_wrap": unchanged,
    "nonpos_wrap": unchanged,
    "symmetric_wrap": unchanged,
    "hermitian_wrap": unchanged,
    "skew_symmetric_wrap": unchanged,
}
