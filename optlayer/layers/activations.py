"""Nonlinearities of neural networks as argmins: each maps scores x (*batch, n) to z (*batch, n)."""

from functools import partial
from typing import Any

import cvxpy as cp
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.errors import DeclarationError
from optlayer.layers.fast import FastLayer, size
from optlayer.layers.multiplier import Slope, level, multiplier
from optlayer.layers.terms import (
    at_most,
    half_squared_distance,
    minus_score_and_binary_entropy,
    minus_score_and_entropy,
    nonnegative,
    sums_to_one,
)

TIE = 4 * torch.finfo(torch.float64).eps  # a bound missed by less, relative to the scores, is met


def _leaves(n: Any, *parameters: str) -> tuple[list[cp.Variable], list[cp.Parameter]]:
    """z, and parameters of its size."""
    n = size("n", n)
    return [cp.Variable(n, name="z")], [cp.Parameter(n, name=name) for name in parameters]


class ReLU(FastLayer):
    """argmin ½|z − x|² : z ≥ 0, which is max(x, 0).

    At x = 0 the constraint is active with multiplier 0, and counts as inactive: the derivative there is 1.

    Args:
        n: Number of entries of x.
        fast: Call the closed form.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.

    Reference: Amos, Differentiable optimization-based modeling for machine learning, PhD thesis, CMU (2019),
    chapter 2.
    """

    def __init__(self, n: int, *, fast: bool = False, **options: Any) -> None:
        super().__init__(*_leaves(n, "x"), half_squared_distance, [nonnegative], fast=fast, **options)

    def closed_form(self, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:  # type: ignore[override]
        """x where it is not negative."""
        return torch.where(x >= 0, x, 0.0)


class Sigmoid(FastLayer):
    """argmin −xᵀz − H(z) − H(1 − z), which is 1 / (1 + exp(−x)); H(z) = −Σ zᵢ log zᵢ.

    Args:
        n: Number of entries of x.
        fast: Call the closed form.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.

    Reference: Amos, Differentiable optimization-based modeling for machine learning, PhD thesis, CMU (2019),
    chapter 2.
    """

    def __init__(self, n: int, *, fast: bool = False, **options: Any) -> None:
        super().__init__(*_leaves(n, "x"), minus_score_and_binary_entropy, fast=fast, **options)

    def closed_form(self, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:  # type: ignore[override]
        """torch's own."""
        return x.sigmoid()


class Softmax(FastLayer):
    """argmin −xᵀz − H(z) : 1ᵀz = 1, which is exp(x) / Σ exp(xᵢ); H(z) = −Σ zᵢ log zᵢ.

    Args:
        n: Number of entries of x.
        fast: Call the closed form.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.

    Reference: Boyd & Vandenberghe, Convex Optimization (2004), example 3.25: the entropy is the conjugate
    of log-sum-exp, whose gradient this is.
    """

    def __init__(self, n: int, *, fast: bool = False, **options: Any) -> None:
        super().__init__(
            *_leaves(n, "x"), minus_score_and_entropy, equalities=[sums_to_one], fast=fast, **options
        )

    def closed_form(self, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:  # type: ignore[override]
        """torch's own."""
        return x.softmax(-1)


class Sparsemax(FastLayer):
    """argmin ½|z − x|² : z ≥ 0, 1ᵀz = 1, which is max(x − τ, 0) with the τ that makes it sum to one.

    Args:
        n: Number of entries of x.
        fast: Find τ by sorting.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.

    Reference: Martins & Astudillo, From softmax to sparsemax, ICML 2016, arXiv:1602.02068.
    """

    def __init__(self, n: int, *, fast: bool = False, **options: Any) -> None:
        super().__init__(
            *_leaves(n, "x"), half_squared_distance, [nonnegative], [sums_to_one], fast=fast, **options
        )

    def closed_form(self, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:  # type: ignore[override]
        """Sorted scores tell how many of them stay positive."""
        ordered = x.detach().sort(-1, descending=True).values
        count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        tau = (ordered.cumsum(-1) - 1) / count  # were exactly the `count` largest positive
        largest = tau.amax(-1, keepdim=True)  # the right one: the others leave a sum above one
        return _simplex_face(x, x >= largest - _tie(x))


class ConstrainedSoftmax(FastLayer):
    """argmin −xᵀz − H(z) : 1ᵀz = 1, z ≤ u, which is min(exp(x − τ), u) with the τ that makes it sum to one.

    It is called with x and u, both (*batch, n), 0 ≤ u and 1ᵀu ≥ 1.

    Args:
        n: Number of entries of x.
        fast: Find τ by sorting.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.
        InfeasibleError: in a call, where 1ᵀu < 1.

    Reference: Martins & Kreutzer, Learning what's easy: fully differentiable neural easy-first taggers,
    EMNLP 2017, doi:10.18653/v1/D17-1036.
    """

    def __init__(self, n: int, *, fast: bool = False, **options: Any) -> None:
        super().__init__(
            *_leaves(n, "x", "u"), minus_score_and_entropy, [at_most], [sums_to_one], fast=fast, **options
        )

    def closed_form(  # type: ignore[override]
        self, x: Float64[Tensor, "B n"], u: Float64[Tensor, "B n"]
    ) -> Float64[Tensor, "B n"]:
        """The entries at their bounds first; the others share what is left in proportion to exp(x)."""
        capped = _capped_by_softmax(x.detach(), u.detach())
        left = 1 - torch.where(capped, u, 0.0).sum(-1, keepdim=True)
        share = torch.where(capped, -torch.inf, x).softmax(-1)
        return _where_feasible(u, ~capped, torch.where(capped, u, left * share))


class ConstrainedSparsemax(FastLayer):
    """argmin ½|z − x|² : 1ᵀz = 1, 0 ≤ z ≤ u: x − τ cut to [0, u], with the τ that makes it sum to one.

    It is called with x and u, both (*batch, n), 0 ≤ u and 1ᵀu ≥ 1.

    Args:
        n: Number of entries of x.
        fast: Find τ by sorting.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.
        InfeasibleError: in a call, where 1ᵀu < 1 or an entry of u is negative.

    Reference: Malaviya, Ferreira & Martins, Sparse and constrained attention for neural machine translation,
    ACL 2018, doi:10.18653/v1/P18-2059.
    """

    def __init__(self, n: int, *, fast: bool = False, **options: Any) -> None:
        super().__init__(
            *_leaves(n, "x", "u"),
            half_squared_distance,
            [nonnegative, at_most],
            [sums_to_one],
            fast=fast,
            **options,
        )

    def closed_form(  # type: ignore[override]
        self, x: Float64[Tensor, "B n"], u: Float64[Tensor, "B n"]
    ) -> Float64[Tensor, "B n"]:
        """The sum is piecewise linear in τ; its kinks, sorted, tell between which two it is one."""
        tau, tie = level(x.detach(), u.detach(), torch.ones_like(x[:, :1])), _tie(x)
        capped = x - u > tau + tie
        free = ~capped & (x >= tau - tie)
        at_bounds = torch.where(capped, u, 0.0)
        z = at_bounds + _simplex_face(x, free, at_bounds.sum(-1, keepdim=True))
        return _where_feasible(u, free, z)


class LML(FastLayer):
    """argmin −xᵀz − H(z) − H(1 − z) : 1ᵀz = k, a soft choice of the k largest: z = sigmoid(x − τ).

    H(z) = −Σ zᵢ log zᵢ; all entries are strictly between 0 and 1. (LML: limited multi-label projection.)

    Args:
        n: Number of entries of x.
        k: What they sum to, 0 < k < n; whole or not.
        fast: Find τ by a safeguarded Newton method.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number, or a k that is not between 0 and n.

    Reference: Amos, Koltun & Kolter, The limited multi-label projection layer, arXiv:1906.08707.
    """

    def __init__(self, n: int, k: float, *, fast: bool = False, **options: Any) -> None:
        leaves = _leaves(n, "x")
        if isinstance(k, bool) or not isinstance(k, int | float) or not 0 < k < n:
            raise DeclarationError(f"k={k!r}, expected a number between 0 and n={n}, neither of them")
        self._k = float(k)
        sums_to_k = partial(_sum_minus, self._k)
        super().__init__(
            *leaves, minus_score_and_binary_entropy, equalities=[sums_to_k], fast=fast, **options
        )

    def closed_form(self, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:  # type: ignore[override]
        """Were all scores the same, t = −τ would be logit(k / n) − x."""
        n, k = x.shape[-1], self._k
        middle = torch.logit(torch.tensor(k / n, dtype=x.dtype, device=x.device))
        low = middle - x.amax(-1, keepdim=True) - 1
        high = middle - x.amin(-1, keepdim=True) + 1
        return (x + multiplier(partial(_chosen_minus, k), low, high, x)).sigmoid()


# ------------------------------------------------------------------------------------------ the equations


def _sum_minus(k: float, z: Any, *_: Any) -> Any:
    return cp.sum(z) - k


def _chosen_minus(k: float, t: Float64[Tensor, "B 1"], x: Float64[Tensor, "B n"]) -> Slope:
    """Σ sigmoid(xᵢ + t) − k."""
    z = (x + t).sigmoid()
    return Slope(z.sum(-1, keepdim=True) - k, (z * (1 - z)).sum(-1, keepdim=True))


def _tie(x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B 1"]:
    return TIE * x.detach().abs().amax(-1, keepdim=True)


def _where_feasible(u: Tensor, free: Tensor, z: Tensor) -> Tensor:
    """NaN where a bound is negative, or where they sum to less than one and leave no entry free."""
    return torch.where((u >= 0).all(-1, keepdim=True) & free.any(-1, keepdim=True), z, torch.nan)


def _simplex_face(
    x: Float64[Tensor, "B n"], free: Bool[Tensor, "B n"], held: Tensor | float = 0.0
) -> Float64[Tensor, "B n"]:
    """x − τ on the free entries, 0 elsewhere, that sums with what the others hold to one."""
    top = x.detach().amax(-1, keepdim=True)  # keeps the digits of a sum of large scores
    below = torch.where(free, x - top, 0.0)
    tau = (below.sum(-1, keepdim=True) + held - 1) / free.sum(-1, keepdim=True)
    return torch.where(free, below - tau, 0.0)


def _capped_by_softmax(x: Float64[Tensor, "B n"], u: Float64[Tensor, "B n"]) -> Bool[Tensor, "B n"]:
    """Which entries are at their bounds. They are the first in the order of x − log u, which is where they
    meet it as τ falls; the right number of them is the first whose τ leaves the next one below its bound."""
    meets, tie = x - u.log(), _tie(x) + TIE
    order = meets.argsort(-1, descending=True)
    x, u, meets = (t.gather(-1, order) for t in (x, u, meets))
    left = 1 - u.cumsum(-1) + u  # when all before are at their bounds
    tau = x.flip(-1).logcumsumexp(-1).flip(-1) - left.clamp_min(0.0).log()
    held = (tau < meets - tie).to(x.dtype).cumprod(-1)
    return torch.zeros_like(x).scatter(-1, order, held) > 0
