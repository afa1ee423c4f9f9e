"""Products of cones, evaluated by groups of equal ones."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayer.cones.cone import ConvexCone, Spectrum, Turn
from optlayer.cones.nonnegative import Nonnegative


@dataclass(frozen=True, eq=False)
class _Group:
    """Equal irreducible cones: one batched evaluation."""

    cone: ConvexCone
    rows: Int64[Tensor, "g k"]


@dataclass(frozen=True)
class Product(ConvexCone):
    """K₁ × K₂ × …, rows concatenated in this order. Equal cones are evaluated together."""

    cones: tuple[ConvexCone, ...]
    dim: int = field(init=False, repr=False)
    block: Int64[Tensor, " dim"] = field(init=False, repr=False, compare=False)  # which one a row is in
    blocks: int = field(init=False, repr=False)  # irreducible ones
    groups: tuple[_Group, ...] = field(init=False, repr=False, compare=False)
    place: Int64[Tensor, " dim"] = field(init=False, repr=False, compare=False)  # in the groups' order

    def __post_init__(self) -> None:
        atoms = [atom for cone in self.cones for atom in cone.atoms]
        sizes = [atom.dim for atom in atoms]
        first: dict[ConvexCone, list[int]] = {}
        for atom, start in zip(atoms, accumulate(sizes, initial=0)):
            first.setdefault(atom, []).append(start)
        groups = tuple(
            _Group(atom, torch.tensor(starts)[:, None] + torch.arange(atom.dim))
            for atom, starts in first.items()
        )
        order = torch.cat([torch.zeros(0, dtype=torch.int64), *(group.rows.flatten() for group in groups)])
        block = torch.arange(len(atoms)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        values = {"cones": tuple(self.cones), "dim": sum(sizes), "blocks": len(atoms)}
        values |= {"groups": groups, "place": order.argsort(), "block": block}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @cached_property
    def dual(self) -> "Product":
        return Product(tuple(cone.dual for cone in self.cones))

    @cached_property
    def is_orthant(self) -> bool:
        """Inequalities and nothing else."""
        return all(isinstance(group.cone, Nonnegative) for group in self.groups)

    @property
    def atoms(self) -> tuple[ConvexCone, ...]:
        return tuple(atom for cone in self.cones for atom in cone.atoms)

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        if self.is_orthant:
            return Nonnegative(self.dim).project(v)
        return self.gathered(v, [group.cone.project(v[..., group.rows]) for group in self.groups])

    def nearest(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        if self.is_orthant:
            return Nonnegative(self.dim).nearest(v)
        return self.gathered(v, [group.cone.nearest(v[..., group.rows]) for group in self.groups])

    def jvp(
        self, v: Float64[Tensor, "*batch dim"], dv: Float64[Tensor, "*batch dim"]
    ) -> Float64[Tensor, "*batch dim"]:
        v, dv = torch.broadcast_tensors(v, dv)
        parts = [group.cone.jvp(v[..., group.rows], dv[..., group.rows]) for group in self.groups]
        return self.gathered(v, parts)

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor]:
        spectrum = self.spectrum(v)
        identity = torch.eye(self.dim, dtype=v.dtype, device=v.device)
        return spectrum.d, spectrum.out(identity.expand(*v.shape, -1))

    def spectrum(self, v: Float64[Tensor, "*batch dim"]) -> Spectrum:
        if self.is_orthant:
            return Spectrum(Nonnegative(self.dim).eigen(v)[0])
        parts = [group.cone.eigen(v[..., group.rows]) for group in self.groups]
        d = self.gathered(v, [part for part, _ in parts])
        turns = tuple(Turn(group.rows, W) for group, (_, W) in zip(self.groups, parts) if W is not None)
        return Spectrum(d, turns, *self.layout)

    @cached_property
    def layout(self) -> tuple[Tensor, Tensor | None]:
        """Where each row is among the turned ones, and which are not turned."""
        still = [group.rows.flatten() for group in self.groups if group.cone.dim <= 1]
        turned = [group.rows.flatten() for group in self.groups if group.cone.dim > 1]
        empty = torch.zeros(0, dtype=torch.int64)
        return torch.cat([empty, *turned, *still]).argsort(), torch.cat(still) if still else None

    @cached_property
    def alone(self) -> Bool[Tensor, " dim"]:
        """Rows that are a block by themselves: inequalities."""
        return torch.bincount(self.block)[self.block] == 1

    def snap(
        self, v: Float64[Tensor, "*batch dim"], tolerance: Float64[Tensor, "*batch dim"]
    ) -> tuple[Float64[Tensor, "*batch dim"], Bool[Tensor, "*batch dim"]]:
        """Row by row: `tolerance` is constant on a block, and so is the answer."""
        tolerance = tolerance.expand(v.shape)
        if self.is_orthant:
            kink = v.abs() <= tolerance
            return torch.where(kink, 0.0, v), kink
        moved, kinks = [], []
        for group in self.groups:
            new, kink = group.cone.snap(v[..., group.rows], tolerance[..., group.rows[:, 0]])
            moved.append(new)
            kinks.append(kink.unsqueeze(-1).expand_as(new))
        return self.gathered(v, moved), self.gathered(v.new_zeros(v.shape, dtype=torch.bool), kinks)

    def over_blocks(
        self, a: Float64[Tensor, "*batch dim"], reduce: Literal["amax", "sum"] = "amax"
    ) -> Float64[Tensor, "*batch dim"]:
        """The largest value or the sum of a over each block, spread back to its rows."""
        if self.blocks == self.dim:
            return a
        result = a.new_zeros(*a.shape[:-1], self.blocks)
        index = self.block.expand(a.shape)
        return result.scatter_reduce(-1, index, a, reduce, include_self=False)[..., self.block]

    def gathered(self, like: Tensor, parts: list[Tensor]) -> Tensor:
        """The groups' results, back in the order of the rows."""
        return torch.cat([like[..., :0], *(part.flatten(-2) for part in parts)], -1)[..., self.place]
