"""Objectives and constraints that several layers share; functions of a module, so that layers pickle."""

from typing import Any

import cvxpy as cp


def half_squared_distance(z: Any, x: Any, *_: Any) -> Any:
    """½|z − x|²."""
    return cp.sum_squares(z - x) / 2


def nonnegative(z: Any, *_: Any) -> Any:
    """z ≥ 0."""
    return -z


def sums_to_one(z: Any, *_: Any) -> Any:
    """1ᵀz = 1."""
    return cp.sum(z) - 1


def at_most(z: Any, _x: Any, u: Any) -> Any:
    """z ≤ u."""
    return z - u


def minus_score_and_entropy(z: Any, x: Any, *_: Any) -> Any:
    """−xᵀz − H(z), with H(z) = −Σ zᵢ log zᵢ."""
    return -x @ z - cp.sum(cp.entr(z))


def minus_score_and_binary_entropy(z: Any, x: Any) -> Any:
    """−xᵀz − H(z) − H(1 − z)."""
    return minus_score_and_entropy(z, x) - cp.sum(cp.entr(1 - z))
