"""The nonnegative orthant, {v : v >= 0}: self-dual, Π(v) = max(v, 0); a tie counts as inactive."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones.cone import ConvexCone


@dataclass(frozen=True, slots=True)
class Nonnegative(ConvexCone):
    """ℝ₊^dim."""

    dim: int

    @property
    def dual(self) -> "Nonnegative":
        return self

    @property
    def atoms(self) -> tuple[ConvexCone, ...]:
        return (Nonnegative(1),) * self.dim

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        """Written with `where` because torch's clamp has derivative 1 at the kink and maximum 1/2."""
        return torch.where(v > 0, v, 0.0)

    def jvp(self, v: Tensor, dv: Tensor) -> Float64[Tensor, "*batch dim"]:
        return torch.where(v > 0, dv, 0.0)

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, None]:
        v = v.detach()
        return (v > 0).to(v.dtype), None

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        v = v.detach()
        tie = v.abs() <= tolerance.unsqueeze(-1)
        return torch.where(tie, 0.0, v), tie.any(-1)
