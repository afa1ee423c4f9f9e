"""Atoms that are not smooth, of parameters alone: data to the problem, where torch's own derivatives do.

At their kinks torch hands out one subgradient.
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from optlayer.declare.operation import Atom, Operation, Rule, along, curved


def norm_inf(atom: Atom) -> Operation:
    """The largest absolute value along the axes of the atom."""
    return curved(along(atom, lambda x, axis: x.abs().amax(axis)))


def p_norm(atom: Atom) -> Operation:
    """torch's own norm, whose derivative at 0 is 0."""
    p = float(atom.p)
    return curved(along(atom, lambda x, axis: torch.linalg.vector_norm(x, p, axis)))


def sum_largest(atom: Atom) -> Operation:
    """The sum of the k largest entries."""
    return curved(lambda x: x.reshape(-1).topk(int(atom.k)).values.sum().reshape(atom.shape))


def singular_values(reduction: str) -> Rule:
    """Of the largest, or of all."""
    return lambda atom: curved(lambda X: getattr(_of_numbers(torch.linalg.svdvals, X), reduction)())


def largest_eigenvalue(X: Tensor) -> Tensor:
    """λ_max of the symmetric part."""
    return _of_numbers(torch.linalg.eigvalsh, (X + X.mT) / 2)[-1]


def _of_numbers(spectrum: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    """NaN of a matrix that is none: LAPACK raises there, for a whole batch."""
    finite = X.isfinite().all()
    return torch.where(finite, spectrum(torch.where(finite, X, 0.0)), torch.nan)


PARAMETRIC: dict[str, Rule] = {
    "abs": lambda atom: curved(torch.abs),
    "norm1": lambda atom: curved(along(atom, lambda x, axis: x.abs().sum(axis))),
    "norm_inf": norm_inf,
    "Pnorm": p_norm,
    "PnormApprox": p_norm,
    "max": lambda atom: curved(along(atom, torch.amax)),
    "min": lambda atom: curved(along(atom, torch.amin)),
    "maximum": lambda atom: curved(lambda *operands: reduce(torch.maximum, operands)),
    "minimum": lambda atom: curved(lambda *operands: reduce(torch.minimum, operands)),
    "sum_largest": sum_largest,
    "sigma_max": singular_values("max"),
    "normNuc": singular_values("sum"),
    "lambda_max": lambda atom: curved(largest_eigenvalue),
}
