"""What one atom of cvxpy means in torch: the record that the tables of rules are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayer.declare import terms

Atom = Any  # a cvxpy atom: each class has its own attributes, which only its rule knows
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Operation:
    """One atom, with its axis, exponent, ... already read.

    Attributes:
        apply: The values of the operands, in the shapes cvxpy declares, to the value of the atom.
        terms: The terms of the operands to the terms of the atom.
        borders: Position of an operand -> the function of it that must stay positive.
        hidden: Operands that cvxpy keeps outside `atom.args`; they follow the arguments.
        apex: Whether the derivative is lost at a point inside the domain, as that of a norm at 0.
    """

    apply: Function
    terms: Callable[..., terms.Terms]
    borders: Mapping[int, Function] = field(default_factory=dict)
    hidden: tuple[cp.Expression, ...] = ()
    apex: bool = False


Rule = Callable[[Atom], Operation]

linear = partial(Operation, terms=terms.union)
multilinear = partial(Operation, terms=terms.multiplied)
curved = partial(Operation, terms=terms.composed)


def same(x: Tensor) -> Tensor:
    """The operand itself."""
    return x


def along(atom: Atom, reduction: Function) -> Function:
    """`reduction(x, axis)` over the axes the atom names, in the atom's shape (keepdims or not)."""
    shape = atom.shape
    if atom.axis is None or atom.args[0].ndim == 0:
        return lambda x: reduction(x.reshape(-1), 0).reshape(shape)
    return lambda x: reduction(x, atom.axis).reshape(shape)


def entries(shape: tuple[int, ...], key: Any) -> Function:
    """`x[key]` for any key that numpy understands, of an x of the given shape."""
    positions = torch.tensor(np.arange(np.prod(shape, dtype=int)).reshape(shape)[key].copy())
    return lambda x: x.reshape(-1)[positions.to(x.device)]
