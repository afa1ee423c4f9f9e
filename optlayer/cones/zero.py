"""The zero cone, {0}, and its dual, the whole space: Π(v) = 0 and Π(v) = v. Neither has a kink."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones.cone import ConvexCone


@dataclass(frozen=True, slots=True)
class Zero(ConvexCone):
    """{0} in ℝ^dim."""

    dim: int

    @property
    def dual(self) -> "Free":
        return Free(self.dim)

    @property
    def atoms(self) -> tuple[ConvexCone, ...]:
        return (Zero(1),) * self.dim

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        return torch.where(torch.zeros_like(v, dtype=torch.bool), v, 0.0)  # zero, and still a function of v

    def jvp(self, v: Tensor, dv: Tensor) -> Float64[Tensor, "*batch dim"]:
        return torch.where(torch.zeros_like(v, dtype=torch.bool), dv, 0.0)

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, None]:
        return torch.zeros_like(v.detach()), None

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        del tolerance
        return v.detach(), torch.zeros_like(v.detach()[..., 0], dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class Free(ConvexCone):
    """ℝ^dim."""

    dim: int

    @property
    def dual(self) -> "Zero":
        return Zero(self.dim)

    @property
    def atoms(self) -> tuple[ConvexCone, ...]:
        return (Free(1),) * self.dim

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        return v

    def jvp(self, v: Tensor, dv: Tensor) -> Float64[Tensor, "*batch dim"]:
        return dv.expand(torch.broadcast_shapes(v.shape, dv.shape))

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, None]:
        return torch.ones_like(v.detach()), None

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        del tolerance
        return v.detach(), torch.zeros_like(v.detach()[..., 0], dtype=torch.bool)
