r"""What holds the answer to a quadratic programme: the sum of the stationarity rows, weighted with x.

    xᵀPx + qᵀx + λᵀGx + νᵀAx = 0,    and with complementarity    xᵀPx = -(qᵀx - λᵀg₀ - νᵀh₀) = N

-qᵀx > 0 pulls x outwards. The constraints hold it with -λᵀg₀ - νᵀh₀; what is left, N, is for the curvature
to hold. Along a direction d with Pd = 0, Gd <= 0, Ad = 0 and qᵀd < 0 there is nothing to hold x: far out on
it N is all of the pull, and xᵀPx is either not there, though every row passes relative to its own terms, or
made of rounding: P changed within its own last digits would be flat along d. No unit of a coordinate, a row or
the objective enters.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.forms import Local, Point

SHARE = 0.5  # of the pull that the constraints leave to the curvature
NOISE = 1e-6  # of the terms of N: left over by residuals and multipliers that nearly cancel
CANCELLED = 1e-12  # of the terms of a sum: what is left of them is rounding


def unheld(at: Local, point: Point, terms: Float64[Tensor, "B n"]) -> Bool[Tensor, " B"]:
    """Whether nothing but rounding holds x.

    Args:
        at: The programme at x = 0.
        point: Where its conditions hold as far as can be told.
        terms: The size of the terms of each stationarity row, |P||x| + |q| + |G|ᵀ|λ| + |A|ᵀ|ν|.
    """
    pulls = at.gradient * point.x
    held = torch.cat([point.lam * at.g, point.nu * at.h], 1)
    pull = -pulls.sum(1)
    left = pull + held.sum(1)
    open_ended = (left > SHARE * pull) & (left > NOISE * (pulls.abs().sum(1) + held.abs().sum(1)))
    curved = (point.x * (at.hessian @ point.x)).sum(1)
    rounding = CANCELLED * (point.x.abs() * terms).sum(1)
    return open_ended & (pull > 0) & ((curved < SHARE * left) | (curved <= rounding))
