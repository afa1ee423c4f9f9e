"""Engines: how numbers are found. One file a solver; none of them knows about derivatives.

An engine is trusted with nothing: its answers are polished and certified by others, its claims of
infeasibility verified. Solvers loop over the samples, divided among the cores; everything after is batched.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayer.cones import Product
from optlayer.matrix import Matrix, Pattern, Sparse, largest, or_one
from optlayer.solution import Status

Array = np.ndarray


class ConeProgram(NamedTuple):
    """min ½xᵀPx + qᵀx s.t. Ax + s = b, s ∈ {0}^zero × K; float64 on the CPU, a batch of B.

    The patterns come from the declaration, not from the data: a sample's answer must not depend
    on its neighbours.
    """

    P: Matrix  # (n, n), symmetric; B samples, or 1 that all share
    q: Float64[Tensor, "B n"]
    A: Matrix  # (zero + m, n), likewise
    b: Float64[Tensor, "B zero+m"]
    zero: int
    K: Product

    @property
    def without_objective(self) -> "ConeProgram":
        """Any feasible point."""
        n, none = self.q.shape[1], torch.zeros(0, dtype=torch.int64)
        nothing = Sparse(self.q.new_zeros(1, 0), Pattern((n, n), none, none))
        return self._replace(P=nothing, q=torch.zeros_like(self.q))

    def rescaled(self) -> tuple["ConeProgram", "Units"]:
        """The same programme in units of its own data, and the way back.

        With x = ℓx̃, the rows of each cone divided by their largest entry and the objective by the size of
        its terms, the solver's absolute tolerances mean the same at every scale of the data. Not for every
        programme, though: a bound of 1e8 that stands for "none" would set the unit.
        """
        row = self.A.largest()
        row = or_one(torch.cat([row[:, : self.zero], self.K.over_blocks(row[:, self.zero :])], 1))
        q, P = largest(self.q), largest(self.P.largest())
        length = largest(self.b / row)
        length = torch.where(length > 0, length, or_one(q / or_one(P)))
        size = or_one(torch.maximum(q * length, P * length**2))
        program = self._replace(
            P=self.P.scaled((length**2 / size).expand_as(self.q), 1.0),
            q=self.q * length / size,
            A=self.A.scaled(1.0 / row, 1.0),
            b=self.b / row / length,
        )
        return program, Units(length.numpy(), (size / (row * length)).numpy())


class Units(NamedTuple):
    """What to multiply the answer to a scaled programme with."""

    x: Float64[Array, "#B #n"]
    y: Float64[Array, "#B #zero+m"]

    def restored(self, answer: "Answer") -> "Answer":
        """The answer to the programme as it was."""
        rays = answer.rays and (answer.rays[0] * self.x, answer.rays[1] * self.y)
        return replace(answer, x=answer.x * self.x, y=answer.y * self.y, rays=rays)


@dataclass(frozen=True)
class Answer:
    """What an engine says of each sample; rows without a point are NaN.

    Duals are those of the engine's own problem: y of Ax + s = b for a matrix engine, (λ, ν) stacked
    for a function engine. Where a matrix engine claims that there is no solution, `rays` holds the
    directions (x, y) it claims this on.
    """

    x: Float64[Array, "B n"]
    y: Float64[Array, "B rows"]
    claims: tuple[Status, ...]
    words: tuple[str, ...]  # the solver's own, "CLARABEL: PrimalInfeasible"
    iterations: Int64[Array, " B"]
    rays: tuple[Array, Array] | None = None  # like x and y, NaN where nothing is claimed on them
    far: bool = False  # no answer at all, but a point to set out from
    first: Float64[Array, "B n"] | None = None  # x of the answer that this one goes on from


class MatrixEngine(Protocol):
    """Solves cone programmes given as matrices."""

    name: str
    quick: bool  # quicker than a proof of infeasibility

    def solve_matrices(self, program: ConeProgram) -> Answer:
        """Never raises for a sample: a solver that throws is a claim of FAILED."""
        ...


class FunctionEngine(Protocol):
    """Solves the problem as the user stated it, at given parameter values."""

    name: str
    quick: bool

    def solve_problem(self, theta: tuple[Array, ...]) -> Answer:
        """theta: (B, *shape) each. Never raises for a sample."""
        ...
