r"""The second-order cone, {(t, x) : |x| <= t}, self-dual.

(t, x) has the eigenvalues λ± = t ± |x| with eigenvectors (1, ±x̂)/√2, and Π takes max(·, 0) of them:
(t, x) itself where λ₋ > 0, 0 where λ₊ <= 0, and otherwise, λ₋ <= 0 < λ₊,

    Π(t, x) = ½λ₊ (1, x̂)

    DΠ(t, x) (ṫ, ẋ) = ½ (ṫ + x̂ᵀẋ,  ṫ x̂ + (1 + t/|x|) ẋ - (t/|x|) x̂ x̂ᵀẋ)

with eigenvalues 1 and 0 in the directions (1, ±x̂)/√2, and λ₊/(λ₊ - λ₋) = ½(1 + t/|x|) in (0, ẋ ⊥ x̂).
In that case |x| > 0, so the formulas are smooth and are differentiated as they stand.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones.cone import ConvexCone
from optlayer.cones.nonnegative import Nonnegative

ROUNDING = 4 * torch.finfo(torch.float64).eps  # of an eigenvalue, relative to |v|


@dataclass(frozen=True, slots=True)
class SecondOrder(ConvexCone):
    """(t, x) in ℝ × ℝ^(dim - 1) with |x| <= t."""

    dim: int

    @property
    def dual(self) -> "SecondOrder":
        return self

    @property
    def atoms(self) -> tuple[ConvexCone, ...]:
        return (self,) if self.dim > 1 else (Nonnegative(1),)

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"a second-order cone has at least one row, not {self.dim}")

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        inside, mixed = _case(v)
        t, length, direction = _polar(v, mixed)
        face = 0.5 * (t + length) * torch.cat([torch.ones_like(t), direction], -1)
        return torch.where(inside, v, torch.where(mixed, face, 0.0))

    def jvp(self, v: Tensor, dv: Tensor) -> Float64[Tensor, "*batch dim"]:
        inside, mixed = _case(v)
        t, length, direction = _polar(v, mixed)
        dt, dx = dv[..., :1], dv[..., 1:]
        slope, along = t / length, (direction * dx).sum(-1, keepdim=True)
        d_face = torch.cat([dt + along, dt * direction + dx + slope * (dx - along * direction)], -1)
        return torch.where(inside, dv, torch.where(mixed, 0.5 * d_face, 0.0))

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor]:
        v = v.detach()
        inside, mixed = _case(v)
        t, length, direction = _polar(v, mixed)
        middle = (0.5 * (1 + t / length)).expand_as(v[..., 2:])
        d = torch.cat([torch.ones_like(t), torch.zeros_like(v[..., 1:2]), middle], -1)[..., : self.dim]
        d = torch.where(inside, 1.0, torch.where(mixed, d, 0.0))
        return d, frame(direction)

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        v, tolerance = v.detach(), tolerance.unsqueeze(-1)
        length = torch.linalg.vector_norm(v[..., 1:], dim=-1, keepdim=True)
        high, low = v[..., :1] + length, v[..., :1] - length
        tie = (high.abs() <= tolerance) | (low.abs() <= tolerance)
        high, low = (torch.where(a.abs() <= tolerance, 0.0, a) for a in (high, low))
        direction = v[..., 1:] / torch.where(length > 0, length, 1.0)
        moved = 0.5 * torch.cat([high + low, (high - low) * direction], -1)
        return torch.where(tie, moved, v), tie.squeeze(-1)


def _case(v: Float64[Tensor, "*batch dim"]) -> tuple[Bool[Tensor, "*batch 1"], Bool[Tensor, "*batch 1"]]:
    """λ₋ > 0;  λ₋ <= 0 < λ₊: each up to rounding."""
    v = v.detach()
    t, length = v[..., :1], torch.linalg.vector_norm(v[..., 1:], dim=-1, keepdim=True)
    rounding = ROUNDING * (t.abs() + length)
    inside = t - length > rounding
    return inside, ~(inside | (t + length <= rounding) | (length == 0))  # NaN is mixed, and stays NaN


def _polar(v: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t, |x| and x̂ where they are needed; elsewhere x = (1, 1, …), so that no derivative is NaN."""
    x = torch.where(mixed, v[..., 1:], 1.0)
    ray = 1.0 if x.shape[-1] == 0 else 0.0
    length = torch.sqrt((x * x).sum(-1, keepdim=True) + ray)
    return v[..., :1], length, x / length


def frame(direction: Float64[Tensor, "*batch k"]) -> Float64[Tensor, "*batch dim dim"]:
    """Columns (1, x̂)/√2, (1, -x̂)/√2 and (0, q), the q an orthonormal basis of x̂'s complement.

    The q are columns 2, 3, … of the Householder reflection that takes the first unit vector to ∓x̂.
    """
    k = direction.shape[-1]
    half = torch.full_like(direction[..., :1], 0.5**0.5)
    if k == 0:
        return direction.new_ones(*direction.shape[:-1], 1, 1)
    plus, minus = torch.cat([half, half * direction], -1), torch.cat([half, -half * direction], -1)
    identity = torch.eye(k, dtype=direction.dtype, device=direction.device)
    u = direction + torch.where(direction[..., :1] < 0, -1.0, 1.0) * identity[0]
    reflection = identity - 2 * u[..., :, None] * u[..., None, :] / (u * u).sum(-1)[..., None, None]
    rest = torch.cat([torch.zeros_like(reflection[..., :1, 1:]), reflection[..., :, 1:]], -2)
    return torch.cat([plus[..., None], minus[..., None], rest], -1)
