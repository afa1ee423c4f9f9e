r"""Whether f is a sum of functions of one coordinate of x each, so that its Hessian is diagonal.

    f(x, θ) = Σ_j φ_j(x_j, θ) + c(θ)ᵀx        for every x and θ

The expression is read once, from its leaves up. Of every subexpression it is noted which one coordinate each
of its entries depends on, if it is one, and whether the entries are sums of functions of one coordinate.
What holds no variable enters as random numbers, 0 only where its own expression makes it so: whatever it
turns out to be in a call, no more of x is reached. Linear atoms are then followed by what they do to numbers
that say from which coordinate they come. In doubt the answer is no.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import cvxpy as cp
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayer.declare import terms
from optlayer.declare.atoms_parametric import PARAMETRIC
from optlayer.declare.operation import Operation
from optlayer.declare.recovery import iota, located, ones, random
from optlayer.declare.sparse_products import is_large
from optlayer.declare.translate import RULES, constant_tensor

ELEMENTWISE = frozenset(
    ("exp", "xexp", "log", "log1p", "entr", "rel_entr", "kl_div", "logistic", "huber", "Power", "PowerApprox")
)
NONE, SEVERAL = -1, -2  # coordinates of x that an entry depends on, where it is not one
LABELS, WEIGHTS, VALUES = 10, 10**6, 10**7  # seeds: no two draws are the same


def separable_hessian(
    expression: cp.Expression, variables: Sequence[cp.Variable], parameters: Sequence[cp.Parameter]
) -> bool:
    """Whether the structure of a scalar expression makes its Hessian in x diagonal.

    Args:
        expression: Translated already: its atoms are known, its leaves declared.
        variables: The coordinates of x, flattened in C order and concatenated.
        parameters: Its other leaves.
    """
    return _Reading(variables, parameters).of(expression) is not None


@dataclass(frozen=True)
class _Value:
    """What is known of an expression whose entries are sums of functions of one coordinate of x each."""

    generic: Float64[Tensor, "*shape"] | None  # without variables: numbers that are 0 only where it is
    which: Int64[Tensor, "*shape"]  # the coordinate that an entry depends on, or NONE, or SEVERAL

    @property
    def is_free(self) -> bool:
        """Of x."""
        return self.generic is not None


class _Reading:
    """What is known of each subexpression; None where entries are not sums of such functions."""

    def __init__(self, variables: Sequence[cp.Variable], parameters: Sequence[cp.Parameter]) -> None:
        sizes = [v.size for v in variables]
        self._labels = random(sum(sizes), LABELS)
        self._drawn = 0
        self._known: dict[int, _Value | None] = {}
        for v, own in zip(variables, torch.arange(sum(sizes)).split(sizes), strict=True):
            self._known[id(v)] = _Value(None, own.reshape(v.shape))
        for p in parameters:
            self._known[id(p)] = self._anything(p.shape)

    def of(self, e: Any) -> _Value | None:
        """An expression, each of its parts once."""
        if id(e) not in self._known:
            self._known[id(e)] = self._read(e)
        return self._known[id(e)]

    def _read(self, e: Any) -> _Value | None:
        if not e.variables() and not e.parameters():
            return None if is_large(e) else _free(constant_tensor(e))
        name = type(e).__name__
        rule = (RULES | PARAMETRIC).get(name)
        if rule is None:
            return None
        operation = rule(e)
        operands = [self.of(operand) for operand in (*e.args, *operation.hidden)]
        known = [operand for operand in operands if operand is not None]
        return self._atom(name, e, operation, known) if len(known) == len(operands) else None

    def _atom(self, name: str, e: Any, operation: Operation, operands: list[_Value]) -> _Value | None:
        moving = [operand for operand in operands if not operand.is_free]
        bilinear = operation.terms in (terms.multiplied, terms.divided)
        if operation.terms is terms.union or (bilinear and len(moving) <= 1):
            return self._linear(e, operation, operands)
        if not moving:
            return self._anything(e.shape)
        if name in ELEMENTWISE:
            return _elementwise(e, moving)
        x, P = operands[0].which.reshape(-1), operands[-1].generic
        if name == "quad_over_lin" and P is not None:
            return _total(e, bool((x != SEVERAL).all()))
        if name == "QuadForm" and P is not None:
            return _total(e, _pairs_itself(x, P))
        return None

    def _linear(self, e: Any, operation: Operation, operands: list[_Value]) -> _Value | None:
        """What is linear in those operands that hold variables, a quotient in its numerator alone.

        What is not finite passes for a dependence on several coordinates.
        """
        if all(operand.is_free for operand in operands):
            return _free(operation.apply(*[operand.generic for operand in operands]))
        if operation.terms is terms.divided and operands[0].is_free:
            return None
        return _Value(None, _followed(operation, operands, self._labels).reshape(e.shape))

    def _anything(self, shape: tuple[int, ...]) -> _Value:
        """Something without variables of which nothing is known."""
        self._drawn += 1
        return _free(random(prod(shape), VALUES + self._drawn).reshape(shape))


def _free(generic: Tensor) -> _Value:
    return _Value(generic, torch.full(generic.shape, NONE))


def _elementwise(e: Any, moving: list[_Value]) -> _Value | None:
    """Any function, of entries that depend on one coordinate."""
    which = reduce(_joined, [operand.which.expand(e.shape) for operand in moving])
    return None if (which == SEVERAL).any() else _Value(None, which)


def _total(e: Any, separable: bool) -> _Value | None:
    """A sum over entries, if what is summed are functions of one coordinate."""
    return _Value(None, torch.full(e.shape, SEVERAL)) if separable else None


def _followed(operation: Operation, operands: list[_Value], labels: Tensor) -> Int64[Tensor, " size"]:
    """Where the entries of a linear atom come from.

    Every entry sends a random weight, times 1, the number or the label of its coordinate; what arrives is
    of one coordinate if the three agree on one.
    """

    def arriving(numbers: Tensor, several: float = 0.0) -> Float64[Tensor, " size"]:
        return operation.apply(*_weighed(operation, operands, numbers, several)).reshape(-1)

    sent = (ones(len(labels)), iota(len(labels)), labels)
    c, moved, value = (arriving(numbers) for numbers in sent)
    j, found = located(c, moved, value, labels)
    which = torch.where(found, j, torch.where((c == 0) & (value == 0), NONE, SEVERAL))
    return torch.where(arriving(torch.zeros_like(labels), several=1.0) == 0, which, SEVERAL)


def _weighed(operation: Operation, operands: list[_Value], numbers: Tensor, several: float) -> list[Tensor]:
    """What the entries of each operand send; a factor without variables stays what it is."""
    sent = []
    for i, (generic, which) in enumerate((operand.generic, operand.which) for operand in operands):
        if generic is not None and operation.terms is not terms.union:
            sent.append(generic)
            continue
        own = torch.where(which >= 0, numbers[which.clamp_min(0)], torch.where(which == NONE, 0.0, several))
        sent.append(random(which.numel(), WEIGHTS + i).reshape(which.shape) * own)
    return sent


def _joined(a: Int64[Tensor, "*shape"], b: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """What two entries depend on together."""
    return torch.where((a == b) | (b == NONE), a, torch.where(a == NONE, b, SEVERAL))


def _pairs_itself(which: Int64[Tensor, " n"], P: Float64[Tensor, "n n"]) -> bool:
    """Whether xᵀP x multiplies only entries that depend on one and the same coordinate."""
    i, j = P.nonzero(as_tuple=True)
    return not bool((_joined(which[i], which[j]) == SEVERAL).any())
