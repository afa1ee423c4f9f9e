"""Callables that bring a torch branch, beside their cvxpy branch, at the solutions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer.declare.branches import pulled_back, torch_branch
from optlayer.declare.opaque import is_opaque
from optlayer.declare.posed import Posed
from optlayer.declare.translate import translate
from optlayer.diagnostics.data import Branch
from optlayer.errors import DeclarationError
from optlayer.layer import OptLayer

Function = Callable[..., Tensor]
Point = tuple[Tensor, ...]

LEAST = 1e-3  # size of values that are compared as they are, not relative to themselves


def branches(layer: OptLayer, points: Sequence[Point]) -> tuple[Branch, ...]:
    """The callables with two branches, compared at points (*variables, *parameters) of one sample each."""
    if not points or not any(layer._declaration.functions):
        return ()
    posed = layer._declaration.build(attributes=True, rows=False)
    return () if is_opaque(posed.problem) else tuple(_compared(layer, posed, points))


def _compared(layer: OptLayer, posed: Posed, points: Sequence[Point]) -> Iterator[Branch]:
    declared = layer._declaration
    names = [declared.objective_name, *(row.name for row in posed.rows)]
    expressions = [posed.problem.objective.expr, *(row.constraint.args[0] for row in posed.rows)]
    for name, function, expression in zip(names, declared.functions, expressions, strict=False):
        branch = function and torch_branch(function, points[0])
        if branch is not None:
            for truth, smooth in _translated(expression, posed):
                yield Branch(name, max(gap(branch, truth, point, smooth) for point in points))


def _translated(expression: Any, posed: Posed) -> Iterator[tuple[Function, bool]]:
    """The cvxpy branch in torch, and whether it has a derivative; nothing where torch has no such atom."""
    for values_only in (False, True):
        try:
            found = translate(expression, posed.variables, posed.parameters, values_only=values_only)
        except DeclarationError:
            continue
        yield found.function, not values_only
        return


def gap(branch: Function, truth: Function, point: Point, smooth: bool) -> float:
    """The largest relative difference, in values and, of smooth functions, in derivatives."""
    pairs = [(branch(*point), truth(*point))]
    if smooth:
        pairs += zip(pulled_back(branch, point), pulled_back(truth, point), strict=True)
    return max(_relative(mine, theirs) for mine, theirs in pairs)


def _relative(mine: Tensor, theirs: Tensor) -> float:
    mine, theirs = mine.detach().reshape(-1).double(), theirs.detach().reshape(-1).double()
    if mine.shape != theirs.shape:
        return torch.inf
    difference, size = (mine - theirs).abs(), torch.maximum(mine.abs(), theirs.abs())
    return (difference.max() / size.max().clamp_min(LEAST)).item() if len(mine) else 0.0
