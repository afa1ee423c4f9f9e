"""The nonnegative orthant, {v : v >= 0}: self-dual, Π(v) = max(v, 0)."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor


def project(v: Float64[Tensor, "*batch m"]) -> Float64[Tensor, "*batch m"]:
    """Π(v) = max(v, 0). At the kink its derivative is 0: a tie counts as inactive.

    Written with `where` because torch's clamp has derivative 1 at the kink and maximum 1/2.
    """
    return torch.where(v > 0, v, 0.0)


def active(v: Float64[Tensor, "*batch m"]) -> Bool[Tensor, "*batch m"]:
    """The diagonal of DΠ(v), which is 0 or 1."""
    return v > 0
