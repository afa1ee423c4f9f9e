"""Where f, g and h are defined, for one call: distances of coordinates to the border of the domain.

Borders that stop a single coordinate are affine in it and make a box. Newton's method steps in the logarithm
of the distance to the nearer side: for log z + c = 0 that is the exact solution from any start.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import vmap

from optlayer.forms import Domain

DEEPEST, HIGHEST = -300.0, 50.0  # exponents of one logarithmic step
APEX = 1e-7  # a norm below this part of |x| is at its apex, where it has no derivative


class Box(NamedTuple):
    """Sides that single coordinates have; -inf and inf elsewhere."""

    lower: Float64[Tensor, "B n"]
    upper: Float64[Tensor, "B n"]

    @classmethod
    def of(
        cls, slope: Float64[Tensor, "#B k"], offset: Float64[Tensor, "B k"], column: Tensor, n: int
    ) -> "Box":
        """slope z + offset >= 0, z the coordinate in a column; a slope of 0 is no side."""
        side, everywhere = -(offset / slope), offset.new_full((len(offset), n), torch.inf)
        column = column.expand(side.shape)
        lower, upper = torch.where(slope > 0, side, -torch.inf), torch.where(slope < 0, side, torch.inf)
        return cls(
            (-everywhere).scatter_reduce(1, column, lower, "amax"),
            everywhere.scatter_reduce(1, column, upper, "amin"),
        )

    def inside(self) -> Float64[Tensor, "B n"]:
        """Midway between two sides, 1 inside of one, 0 where there is none."""
        below, above = self.lower.isfinite(), self.upper.isfinite()
        one = torch.where(below, self.lower + 1.0, torch.where(above, self.upper - 1.0, 0.0))
        return torch.where(below & above, 0.5 * (self.lower + self.upper), one)

    def towards(self, x: Tensor, dx: Tensor, part: float) -> Float64[Tensor, "B n"]:
        """x + Δx, no farther than some part of the way to a side."""
        return x + dx.clamp(-part * (x - self.lower).clamp_min(0.0), part * (self.upper - x).clamp_min(0.0))


class Borders:
    """The domain at given parameter values; all of space where there is none."""

    def __init__(self, domain: Domain | None, theta: tuple[Tensor, ...], origin: Tensor) -> None:
        self._domain, self._theta, self._origin = domain, theta, origin

    @property
    def stops(self) -> bool:
        """Whether any coordinate is stopped by itself."""
        return self._domain is not None and len(self._domain.row) > 0

    @cached_property
    def columns(self) -> Tensor:
        """The coordinate that each of the affine borders stops."""
        assert self._domain is not None
        return self._domain.column.to(self._origin.device)

    @cached_property
    def affine(self) -> tuple[Float64[Tensor, "B k"], Float64[Tensor, "B k"]]:
        """Slopes and offsets of those: slope z + offset > 0."""
        assert self._domain is not None
        row, slope = (part.to(self._origin.device) for part in (self._domain.row, self._domain.slope))
        offset = self._values(self._origin)[:, row]
        return slope.expand_as(offset), offset

    @cached_property
    def box(self) -> Box:
        """The same as sides."""
        return Box.of(*self.affine, self.columns, self._origin.shape[1])

    def holds(self, x: Float64[Tensor, "B n"]) -> Bool[Tensor, " B"]:
        """Whether every logarithm, root and reciprocal is defined at x."""
        if self._domain is None:
            return torch.ones_like(x[:, 0], dtype=torch.bool)
        if len(self._domain.row) == self._domain.size:
            slope, offset = self.affine
            return (slope * x[:, self.columns] + offset > 0).all(1)
        return (self._values(x) > 0).all(1)

    def smooth(self, x: Float64[Tensor, "B n"]) -> Bool[Tensor, " B"]:
        """And whether no norm is at its apex there."""
        if self._domain is None:
            return torch.ones_like(x[:, 0], dtype=torch.bool)
        norms = vmap(self._domain.norms)(x, *self._theta)
        return self.holds(x) & (norms > APEX * x.abs().amax(1, keepdim=True)).all(1)

    def project(self, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:
        """Engines return z = -1e-12 where z > 0 is meant: put it just inside."""
        if not self.stops:
            return x
        floor = 1e-12 * x.abs().amax(1, keepdim=True)
        floor = torch.where(floor > 0, floor, 1e-12)
        below, above = x - self.box.lower, self.box.upper - x
        x = x + (floor - below).clamp_min(0.0)
        return x - (floor - above).clamp_min(0.0)

    def move(self, x: Float64[Tensor, "B n"], dx: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:
        """x + Δx, stepping in the logarithm of the distance to the nearer side.

        The distance is multiplied, not added to: it may shrink from 1e-9 to 1e-80 in two steps.
        """
        if not self.stops:
            return x + dx
        below, above = x - self.box.lower, self.box.upper - x
        nearer, farther = torch.minimum(below, above), torch.maximum(below, above)
        inward = torch.where(below <= above, 1.0, -1.0)  # the direction away from the nearer side
        exponent = (inward * dx / nearer).clamp(DEEPEST, HIGHEST)
        distance = torch.minimum(nearer * exponent.exp(), nearer + 0.9 * farther)
        moved = (x - inward * nearer) + inward * distance
        return torch.where(nearer.isfinite(), moved, x + dx)

    def _values(self, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B k"]:
        assert self._domain is not None
        return vmap(self._domain.borders)(x, *self._theta)
