"""Pooling that outliers do not move far: the mean, and two robust means."""

from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.errors import DeclarationError
from optlayer.layers.fast import FastLayer, positive, size
from optlayer.layers.multiplier import Slope, level, multiplier

TIE = 1e-10  # a point that is α away but for this part of it is neither near nor far


class RobustPooling(FastLayer):
    """argmin_y Σᵢ φ(y − xᵢ): one number of n, (*batch, n) to (*batch,).

    With d, x is (*batch, n, d) and y (*batch, d), each coordinate for itself.

        "quadratic"      φ(r) = ½r², the mean
        "pseudo-huber"   φ(r) = α² (√(1 + (r/α)²) − 1)
        "huber"          φ(r) = ½r² up to |r| = α, and α(|r| − ½α) beyond

    Args:
        n: Number of points.
        d: Number of their coordinates; None: they are numbers.
        penalty: φ.
        alpha: α, the distance from which points count as outliers, in units of x.
        fast: Call the mean, find Huber's by sorting, pseudo-Huber's by Newton's method.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number, another penalty, an α that is not
            positive.

    Reference: Gould, Hartley & Campbell, Deep declarative networks, IEEE TPAMI 44 (2022), arXiv:1909.04866,
    section 5.
    """

    def __init__(
        self,
        n: int,
        d: int | None = None,
        *,
        penalty: str = "huber",
        alpha: float = 1.0,
        fast: bool = False,
        **options: Any,
    ) -> None:
        if penalty not in PENALTIES:
            raise DeclarationError(f"penalty={penalty!r}, expected one of {', '.join(map(repr, PENALTIES))}")
        n, own = size("n", n), () if d is None else (size("d", d),)
        self._penalty, self._alpha = penalty, positive("alpha", alpha)
        y, x = cp.Variable(own, name="y"), cp.Parameter((n, *own), name="x")
        super().__init__([y], [x], partial(PENALTIES[penalty], self._alpha), fast=fast, **options)

    def closed_form(self, x: Float64[Tensor, "B n ..."]) -> Float64[Tensor, "B ..."]:  # type: ignore[override]
        """Each coordinate alone; far from the origin digits are kept by measuring from the middle."""
        low, high = (ends.detach() for ends in x.aminmax(dim=1))
        middle = (low + high) / 2
        mean = MEANS[self._penalty](self._alpha, x - middle.unsqueeze(1), low - middle, high - middle)
        return middle + mean


# -------------------------------------------------------------------------------------------- the penalties


def _quadratic(alpha: float, y: Any, x: Any) -> Any:
    del alpha
    return cp.sum_squares(_away(y, x)) / 2


def _pseudo_huber(alpha: float, y: Any, x: Any) -> Any:
    """√(1 + s²) − 1 in the form that keeps the digits of small s."""
    s2 = ((y - x) / alpha) ** 2
    return alpha**2 * (s2 / (torch.sqrt(1 + s2) + 1)).sum()


def _huber(alpha: float, y: Any, x: Any) -> Any:
    """cvxpy's is twice ours."""
    M: Any = alpha
    return cp.sum(cp.huber(_away(y, x), M)) / 2


def _away(y: Any, x: Any) -> Any:
    """y − xᵢ; cvxpy compiles a product with ones quicker than a broadcast."""
    return y - x if y.ndim == 0 else np.ones((x.shape[0], 1)) @ cp.reshape(y, (1, y.size), order="C") - x


PENALTIES = {"quadratic": _quadratic, "pseudo-huber": _pseudo_huber, "huber": _huber}


# ------------------------------------------------------------------------------------------------ the means


def _mean(alpha: float, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    del alpha, low, high
    return x.mean(1)


def _pseudo_huber_mean(alpha: float, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return multiplier(partial(_pseudo_huber_pull, alpha), low, high, x)


def _huber_mean(alpha: float, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The mean of the points that are near, moved by α for every one that is far.

    Σ clip(y − xᵢ, −α, α) = 0 tells which. Where no point is nearer than α, the minimizer is not unique: NaN.
    """
    del low, high
    points = x.detach().movedim(1, -1)  # clip(y − x, −α, α) = clip((α − x) − (−y), 0, 2α) − α
    flat = points.reshape(-1, x.shape[1])
    half = torch.full_like(flat[:, :1], alpha)
    y = -level(alpha - flat, 2 * half.expand_as(flat), x.shape[1] * half)
    away = points - y.reshape(points.shape[:-1]).unsqueeze(-1)
    near = (away.abs() <= alpha).movedim(-1, 1)
    far = torch.where(away.abs() <= alpha, 0.0, away.sign()).sum(-1)
    mean = (torch.where(near, x, 0.0).sum(1) + alpha * far) / near.sum(1)
    return torch.where((away.abs() < (1 - TIE) * alpha).any(-1), mean, torch.nan)


def _pseudo_huber_pull(alpha: float, y: Tensor, x: Tensor) -> Slope:
    """Σ φ′ and Σ φ″."""
    r = y.unsqueeze(1) - x
    length = (1 + (r / alpha) ** 2).sqrt()
    return Slope((r / length).sum(1), length.pow(-3).sum(1))


MEANS = {"quadratic": _mean, "pseudo-huber": _pseudo_huber_mean, "huber": _huber_mean}
