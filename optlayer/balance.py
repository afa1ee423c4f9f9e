r"""What holds the answer to a quadratic programme: its stationarity rows added up, weighted with x.

    xᵀPx + qᵀx + λᵀGx + νᵀAx = 0,    and with complementarity    xᵀPx = -qᵀx + λᵀg₀ + νᵀh₀

-qᵀx pulls x outwards, the constraints hold it, and what they leave is for the curvature to hold. Along a
direction d with Pd = 0, Gd <= 0, Ad = 0 and qᵀd < 0 nothing holds x. Every row may pass far out on it,
relative to its own terms; but xᵀPx is either too small to balance the others, or it is the rounding of
|x|ᵀ|P||x|: P changed within its last digits would be flat along d. That rounding may be negative, too, and
x then where f is largest along d: all signs are the other way round. No unit of a coordinate, of a row or of
the objective enters.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.forms import Local, Point

OPEN = 1e-5  # of the terms of the balance: what is left open of it where rows hold relative to their terms
SHARE = 0.5  # of the pull that the constraints leave to the curvature
CANCELLED = 1e-13  # of the terms of a sum: what is left of them is rounding
FAR = 1e3  # how much larger than the data that bound them the terms of some row are far out


def unheld(at: Local, point: Point, terms: Float64[Tensor, "B n"]) -> Bool[Tensor, " B"]:
    """Whether x is far out, and nothing but rounding holds it there.

    Args:
        at: The programme at x = 0.
        point: Where its conditions hold as far as can be told.
        terms: The size of the terms of each stationarity row, |P||x| + |q| + |G|ᵀ|λ| + |A|ᵀ|ν|.
    """
    pulls, held = at.gradient * point.x, torch.cat([point.lam * at.g, point.nu * at.h], 1)
    pull, curved = -pulls.sum(1), (point.x * (at.hessian @ point.x)).sum(1)
    left = pull + held.sum(1)
    rounding = CANCELLED * (point.x.abs() * terms).sum(1)
    open_share = OPEN * (pulls.abs().sum(1) + held.abs().sum(1) + curved)
    unbalanced = (left - curved).abs() > open_share + rounding
    suspect = unbalanced | ((left * pull > SHARE * pull.square()) & (curved <= rounding))
    return suspect & far(at, point.x, FAR) if suspect.any() else suspect


def far(at: Local, x: Float64[Tensor, "B n"], times: float) -> Bool[Tensor, " B"]:
    """Whether the data of some row are so many times smaller than its terms, |g₀| << |G||x|. at: at x = 0."""
    x = x.abs()
    made = torch.cat([at.hessian.abs @ x, at.G.abs @ x, at.A.abs @ x], 1)
    given = torch.cat([at.gradient, at.g, at.h], 1).abs()
    return (torch.where(given > 0, made, 0.0) > times * given).any(1)
