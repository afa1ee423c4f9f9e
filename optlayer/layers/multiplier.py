"""The number that makes a sum come out right: exactly where it is piecewise linear, else by Newton."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.implicit import attach
from optlayer.layers.fast import everywhere

MOST = 200  # steps; bisection alone needs about 60
SETTLED = 4 * torch.finfo(torch.float64).eps


class Slope(NamedTuple):
    """An increasing function of each entry of t, and its derivative there."""

    value: Float64[Tensor, "B k"]
    slope: Float64[Tensor, "B k"]


Increasing = Callable[..., Slope]  # of (t, *data), each entry of t in an equation of its own


def multiplier(
    function: Increasing, low: Float64[Tensor, "B k"], high: Float64[Tensor, "B k"], *data: Tensor
) -> Float64[Tensor, "B k"]:
    """t with function(t, *data) = 0 between low and high, with its derivatives in the data.

    Args:
        function: Increasing in each t; differentiable torch.
        low, high: Ends of an interval that holds the root.
        data: What the root depends on; tensors with leading B.
    """
    with torch.no_grad():
        t = bracketed_root(function, low.detach(), high.detach(), *(d.detach() for d in data))
    return attach(_Balance(function), t, data)


def level(
    x: Float64[Tensor, "B n"], u: Float64[Tensor, "B n"], total: Float64[Tensor, "B 1"]
) -> Float64[Tensor, "B 1"]:
    """τ with Σ clip(xᵢ − τ, 0, uᵢ) = total, NaN where there is none.

    As τ falls the sum grows, with a slope that rises by one at every xᵢ and falls by one at every xᵢ − uᵢ.
    Sorted, these kinks tell between which two it is the total.
    """
    kinks, order = torch.cat([x, x - u], -1).sort(-1, descending=True)
    turns = torch.cat([torch.ones_like(x), -torch.ones_like(x)], -1).gather(-1, order)
    slope = turns.cumsum(-1)
    gaps = kinks[:, :-1] - kinks[:, 1:]
    sums = torch.cat([torch.zeros_like(x[:, :1]), (slope[:, :-1] * gaps).cumsum(-1)], -1)
    last = (sums < total).sum(-1, keepdim=True) - 1
    kink, reached, slope = (t.gather(-1, last) for t in (kinks, sums, slope))
    return torch.where(slope > 0, kink - (total - reached) / slope, torch.nan)


def bracketed_root(function: Increasing, low: Tensor, high: Tensor, *data: Tensor) -> Tensor:
    """Newton's method, or bisection where Newton would leave the interval or does not halve its step.

    Press et al., Numerical Recipes, section 9.4.
    """
    t, last = (low + high) / 2, high - low
    settled = torch.zeros_like(t, dtype=torch.bool)
    for _ in range(MOST):
        value, slope = function(t, *data)
        low, high = torch.where(value < 0, t, low), torch.where(value > 0, t, high)
        newton = t - value / slope
        trusted = (newton >= low) & (newton <= high) & ((newton - t).abs() <= last.abs() / 2)
        new = torch.where(settled | (value == 0), t, torch.where(trusted, newton, (low + high) / 2))
        t, last = new, new - t
        settled = settled | (last.abs() <= SETTLED * t.abs())  # and stays, whatever its neighbours need
        if everywhere(settled):
            break
    return t


@dataclass(frozen=True)
class _Balance:
    """function(t, *data) = 0 as a `Root`; its Jacobian is diagonal."""

    function: Increasing

    def residual(self, u: Tensor, *data: Tensor) -> Tensor:
        return self.function(u, *data).value

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Tensor:
        """0 where the function is flat to the last digit: there the data do not move what depends on t."""
        del transposed
        slope = self.function(u, *data).slope
        return torch.where(slope > 0, b / slope, 0.0)
