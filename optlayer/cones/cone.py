"""What every cone can do, and the spectrum of the derivative of its projection."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor


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

    def nearest(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch dim"]:
        """Π(v), a number: without the expansion that only derivatives need."""
        return self.project(v.detach())

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
        return torch.linalg.vector_norm(v - self.nearest(v), dim=-1) <= tolerance


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

    def __getitem__(self, rows: Tensor) -> "Spectrum":
        """That of some samples of a batch."""
        turns = tuple(replace(turn, W=turn.W[rows]) for turn in self.turns)
        return replace(self, d=self.d[rows], turns=turns)

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
