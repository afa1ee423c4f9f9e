"""Random points of the domain, at which a declaration is probed when it is compiled."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayer.declare.opaque import Weight

TRIES = 60

Point = tuple[Tensor, ...]


def domain_points(leaves: Sequence[Any], inside: Callable[[Point], bool], count: int) -> list[Point]:
    """Up to `count` points, fixed by the shapes alone, at which every callable is defined."""
    found = []
    for point in _candidates(leaves):
        if inside(point):
            found.append(point)
        if len(found) == count:
            break
    return found


def _candidates(leaves: Sequence[Any]) -> Iterator[Point]:
    rng = np.random.default_rng(0)
    draws = (_gaussian, _positive, _fraction, _definite, _small)
    for attempt in range(TRIES):
        draw = draws[attempt % len(draws)]
        yield tuple(_admissible(leaf, draw(rng, leaf.shape)) for leaf in leaves)


def _admissible(leaf: Any, value: np.ndarray) -> Tensor:
    """The value, moved into the leaf's attributes where it is a parameter; a weight's own."""
    if isinstance(leaf, Weight):
        return leaf.tensor
    if isinstance(leaf, cp.Parameter) and leaf.num_attributes:
        with warnings.catch_warnings():  # cvxpy complains of its own way with sparse leaves
            warnings.filterwarnings("ignore", "Accessing a sparse CVXPY expression", RuntimeWarning)
            value = leaf.project(value)
        value = value.toarray() if hasattr(value, "toarray") else value
    return torch.as_tensor(np.array(value, dtype=float))


def _gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.exp(rng.standard_normal(shape))


def _fraction(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 0.9, shape)


def _small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1e-2 * rng.uniform(0.1, 0.9, shape)


def _definite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A positive definite matrix where the shape allows, positive entries elsewhere."""
    if len(shape) == 2 and shape[0] == shape[1]:
        root = rng.standard_normal(shape)
        return root @ root.T + np.eye(shape[0])
    return _positive(rng, shape)
