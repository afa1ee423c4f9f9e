r"""Closed convex cones, one file each: the projection Π and its derivative, batched, in float64.

    Π(v) = argmin_p { ½|p - v|² : p ∈ K },     v = Π_K(v) - Π_{K*}(-v)   (Moreau, the two orthogonal)

Π is positively homogeneous and nonexpansive; where it is differentiable, DΠ(v) is a symmetric matrix
with eigenvalues in [0, 1], and Π(v) = DΠ(v) v (Euler).

**How a projection is differentiated.** Eigenvectors and roots are found on v₀ = v.detach(), as numbers;
what is returned is the expansion of Π at v₀ in e = v - v₀, which is zero in value and v in every
derivative. With D(v) any function that equals DΠ to first order at v₀,

    Π(v) = Π(v₀) + ½ (D(v₀) + D(v)) e + O(e³)                                               (1)

so reverse mode, forward mode and every nesting of torch.func are right through second order, without a
rule of our own and without differentiating an eigendecomposition.

**Kinks.** Where Π is not differentiable, the derivative is the least element, the one that follows from
"the derivative of max(·, 0) at 0 is 0": on the boundary of K the normal direction gets 0 and the others
1; on the boundary of the polar cone, and at 0, DΠ = 0. Every cone follows it, dual cones too: D_{K*}(v)
is I - D_K(-v) with the *largest* element of K. On the boundary means up to rounding, a few units in the
last place of |v|: a point that `snap` has put there is found there.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class Cone:
    """K = {0}^zero × ℝ₊^nonnegative, in this order: what the rows of Ax + s = b live in."""

    zero: int
    nonnegative: int


class ConvexCone(ABC):
    """What every cone can do. Implementations are frozen dataclasses: equal cones are one group."""

    __slots__ = ()

    dim: int

    @property
    @abstractmethod
    def dual(self) -> "ConvexCone":
        """K* = {y : yᵀx >= 0 for all x ∈ K}."""

    @property
    def atoms(self) -> "tuple[ConvexCone, ...]":
        """The irreducible cones it is a product of."""
        return (self,)

    @abstractmethod
    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        """Π(v), the nearest point of K; differentiable twice, in every mode and nesting."""

    @abstractmethod
    def jvp(
        self, v: Float64[Tensor, "*batch dim"], dv: Float64[Tensor, "*batch dim"]
    ) -> Float64[Tensor, "*batch dim"]:
        """DΠ(v) dv; differentiable once more."""

    @abstractmethod
    def eigen(
        self, v: Float64[Tensor, "*batch dim"]
    ) -> tuple[Float64[Tensor, "*batch dim"], Float64[Tensor, "*batch dim dim"] | None]:
        """d and W with DΠ(v) = W diag(d) Wᵀ, as numbers; None for W = I."""

    @abstractmethod
    def snap(
        self, v: Float64[Tensor, "*batch dim"], tolerance: Float64[Tensor, "*batch"]
    ) -> tuple[Float64[Tensor, "*batch dim"], Bool[Tensor, "*batch"]]:
        """v moved onto a kink of Π that is within `tolerance` of it, and whether there was one.

        Numbers. What is not near a kink comes back bit for bit.
        """

    def vjp(
        self, v: Float64[Tensor, "*batch dim"], w: Float64[Tensor, "*batch dim"]
    ) -> Float64[Tensor, "*batch dim"]:
        """DΠ(v)ᵀ w, which is DΠ(v) w: DΠ is symmetric."""
        return self.jvp(v, w)

    def derivative(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim dim"]:
        """DΠ(v), explicitly; differentiable once more."""
        return self.jvp(v.unsqueeze(-2), torch.eye(self.dim, dtype=v.dtype, device=v.device))

    def spectrum(self, v: Float64[Tensor, "*batch dim"]) -> "Spectrum":
        """DΠ(v) = W diag(d) Wᵀ, as numbers."""
        d, W = self.eigen(v)
        if W is None:
            return Spectrum(d)
        rows = torch.arange(self.dim, device=v.device)
        return Spectrum(d, (Turn(rows[None], W.unsqueeze(-3)),), rows)

    def contains(
        self, v: Float64[Tensor, "*batch dim"], tolerance: float | Float64[Tensor, "*batch"]
    ) -> Bool[Tensor, "*batch"]:
        """Whether v is within `tolerance` of K."""
        v = v.detach()
        return torch.linalg.vector_norm(v - self.project(v), dim=-1) <= tolerance


# ------------------------------------------------------------------------------------------ spectra


@dataclass(frozen=True, eq=False)
class Turn:
    """The rows of g blocks of one size k, and the orthogonal matrix of each."""

    rows: Int64[Tensor, "g k"]
    W: Float64[Tensor, "*batch g k k"]

    def of(self, M: Tensor, transposed: bool) -> Float64[Tensor, "*batch gk c"]:
        W = self.W.mT if transposed else self.W
        return (W @ M[..., self.rows, :]).flatten(-3, -2)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """DΠ(v) = W diag(d) Wᵀ. W is block diagonal, and the identity outside of `turns`."""

    d: Float64[Tensor, "*batch dim"]
    turns: tuple[Turn, ...] = ()
    place: Int64[Tensor, " dim"] | None = None  # of each row in (turn, turn, ..., the rest)
    rest: Int64[Tensor, " r"] | None = None  # rows that no turn touches; None: there are none

    def into(self, M: Float64[Tensor, "*batch_dim_c"]) -> Float64[Tensor, "*batch_dim_c"]:
        """WᵀM, the coordinates of a vector or of a matrix's columns in the eigenbasis."""
        return self._turned(M, transposed=True)

    def out(self, M: Float64[Tensor, "*batch_dim_c"]) -> Float64[Tensor, "*batch_dim_c"]:
        """W M, the way back."""
        return self._turned(M, transposed=False)

    def matrix(self) -> Float64[Tensor, "*batch dim dim"]:
        """DΠ(v) itself."""
        identity = torch.eye(self.d.shape[-1], dtype=self.d.dtype, device=self.d.device)
        return self.out(self.d.unsqueeze(-1) * self.into(identity.expand(*self.d.shape, -1)))

    def _turned(self, M: Tensor, transposed: bool) -> Tensor:
        if M.ndim == self.d.ndim:
            return self._turned(M.unsqueeze(-1), transposed).squeeze(-1)
        if not self.turns:
            return M
        parts = [turn.of(M, transposed) for turn in self.turns]
        if self.rest is not None:
            parts.append(M[..., self.rest, :].expand(*self.d.shape[:-1], -1, -1))
        return torch.cat(parts, -2)[..., self.place, :]


# ------------------------------------------------------------------------------------------ product


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

    @property
    def dual(self) -> "Product":
        return Product(tuple(cone.dual for cone in self.cones))

    @property
    def atoms(self) -> tuple[ConvexCone, ...]:
        return tuple(atom for cone in self.cones for atom in cone.atoms)

    def project(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        return self._gather(v, [group.cone.project(v[..., group.rows]) for group in self.groups])

    def jvp(
        self, v: Float64[Tensor, "*batch dim"], dv: Float64[Tensor, "*batch dim"]
    ) -> Float64[Tensor, "*batch dim"]:
        v, dv = torch.broadcast_tensors(v, dv)
        parts = [group.cone.jvp(v[..., group.rows], dv[..., group.rows]) for group in self.groups]
        return self._gather(v, parts)

    def eigen(self, v: Float64[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor]:
        spectrum = self.spectrum(v)
        identity = torch.eye(self.dim, dtype=v.dtype, device=v.device)
        return spectrum.d, spectrum.out(identity.expand(*v.shape, -1))

    def spectrum(self, v: Float64[Tensor, "*batch dim"]) -> Spectrum:
        parts = [group.cone.eigen(v[..., group.rows]) for group in self.groups]
        d = self._gather(v, [part for part, _ in parts])
        turns = tuple(Turn(group.rows, W) for group, (_, W) in zip(self.groups, parts) if W is not None)
        return Spectrum(d, turns, *self._layout)

    @cached_property
    def _layout(self) -> tuple[Tensor, Tensor | None]:
        """Where each row is among the turned ones, and which are not turned."""
        still = [group.rows.flatten() for group in self.groups if group.cone.dim <= 1]
        turned = [group.rows.flatten() for group in self.groups if group.cone.dim > 1]
        empty = torch.zeros(0, dtype=torch.int64)
        return torch.cat([empty, *turned, *still]).argsort(), torch.cat(still) if still else None

    def snap(
        self, v: Float64[Tensor, "*batch dim"], tolerance: Float64[Tensor, "*batch dim"]
    ) -> tuple[Float64[Tensor, "*batch dim"], Bool[Tensor, "*batch dim"]]:
        """Row by row: `tolerance` is constant on a block, and so is the answer."""
        tolerance = tolerance.expand(v.shape)
        moved, kinks = [], []
        for group in self.groups:
            new, kink = group.cone.snap(v[..., group.rows], tolerance[..., group.rows[:, 0]])
            moved.append(new)
            kinks.append(kink.unsqueeze(-1).expand_as(new))
        return self._gather(v, moved), self._gather(v.new_zeros(v.shape, dtype=torch.bool), kinks)

    def over_blocks(
        self, a: Float64[Tensor, "*batch dim"], reduce: Literal["amax", "sum"] = "amax"
    ) -> Float64[Tensor, "*batch dim"]:
        """The largest value or the sum of a over each block, spread back to its rows."""
        result = a.new_zeros(*a.shape[:-1], self.blocks)
        index = self.block.expand(a.shape)
        return result.scatter_reduce(-1, index, a, reduce, include_self=False)[..., self.block]

    def _gather(self, like: Tensor, parts: list[Tensor]) -> Tensor:
        """The groups' results, back in the order of the rows."""
        return torch.cat([like[..., :0], *(part.flatten(-2) for part in parts)], -1)[..., self.place]
