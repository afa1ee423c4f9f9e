r"""The dual of a cone that is not self-dual, by Moreau's decomposition:

    Π_{K*}(v) = v + Π_K(-v),        DΠ_{K*}(v) = I - DΠ_K(-v)

At a kink the least element for K* is I minus the largest for K, so K is asked for that one.
"""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones.cone import ConvexCone


class CurvedCone(ConvexCone):
    """A cone that can also say the largest element of its derivative at a kink."""

    __slots__ = ()

    @abstractmethod
    def project(self, v: Tensor, largest: bool = False) -> Float64[Tensor, "*batch dim"]: ...

    @abstractmethod
    def nearest(self, v: Tensor, largest: bool = False) -> Float64[Tensor, "*batch dim"]: ...

    @abstractmethod
    def jvp(self, v: Tensor, dv: Tensor, largest: bool = False) -> Float64[Tensor, "*batch dim"]: ...

    @abstractmethod
    def eigen(self, v: Tensor, largest: bool = False) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def outer_normals(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch c dim"]:
        """For v inside K: a few unit vectors of the polar cone, the nearest face's among them."""

    @abstractmethod
    def rays(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch c dim"]:
        """For v inside the polar cone: a few unit vectors of K, the nearest face's normal among them."""

    def to_boundary(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        """Onto the boundary of K, or of its polar, or onto 0 where both are near.

        A half-space that contains K, its normal n a vector of the polar cone, is touched by K: from
        v in K the boundary of K is no farther than that of the half-space.
        """
        v = v.detach()
        p = self.nearest(v)
        y = v - p
        outward = _nearest(v, self.outer_normals(v))
        inward = _nearest(v, self.rays(v))
        inside, polar = (y == 0).all(-1, keepdim=True), (p == 0).all(-1, keepdim=True)
        # once more from the boundary: the error is then relative to its own size, not to that of v
        on_cone = self.nearest(torch.where(inside, v + outward, p))
        on_polar = torch.where(polar, v + inward, y)
        on_polar = on_polar - self.nearest(on_polar)
        to_cone, to_polar = torch.where(inside, outward, y), torch.where(polar, inward, p)
        near_cone, near_polar = (
            torch.linalg.vector_norm(a, dim=-1) <= tolerance for a in (to_cone, to_polar)
        )
        apex = (near_cone & near_polar) | (torch.linalg.vector_norm(v, dim=-1) <= tolerance)
        moved = torch.where(
            near_cone.unsqueeze(-1), on_cone, torch.where(near_polar.unsqueeze(-1), on_polar, v)
        )
        return torch.where(apex.unsqueeze(-1), 0.0, moved), near_cone | near_polar | apex


def _nearest(v: Float64[Tensor, "*batch dim"], normals: Tensor) -> Float64[Tensor, "*batch dim"]:
    """The shortest of the steps -(nᵀv) n, onto the hyperplanes."""
    height = (normals * v.unsqueeze(-2)).sum(-1)
    height = torch.where(height.isnan(), torch.inf, height)
    best = height.abs().argmin(-1, keepdim=True).unsqueeze(-1)
    steps = -height.unsqueeze(-1) * normals
    return steps.gather(-2, best.expand(*best.shape[:-1], v.shape[-1])).squeeze(-2)


class DualCone(ConvexCone):
    """K* of a cone K = `dual`."""

    __slots__ = ()

    @property
    @abstractmethod
    def dual(self) -> CurvedCone: ...

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        return v + self.dual.project(-v, largest=True)

    def nearest(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        return v.detach() + self.dual.nearest(-v, largest=True)

    def jvp(self, v: Tensor, dv: Tensor) -> Float64[Tensor, "*batch dim"]:
        return dv - self.dual.jvp(-v, dv, largest=True)

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor]:
        d, W = self.dual.eigen(-v, largest=True)
        return 1 - d, W

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        """The kinks of Π_{K*} are those of Π_K, mirrored."""
        moved, kink = self.dual.snap(-v, tolerance)
        return torch.where(kink.unsqueeze(-1), -moved, v.detach()), kink
