"""Engines: how numbers are found. One file a solver; none of them knows about derivatives.

An engine is trusted with nothing: its answers are polished and certified by others, its claims of
infeasibility verified. It loops over the samples; everything after it is batched.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from optlayer.cones import Product
from optlayer.solution import Status

Array = np.ndarray


class ConeProgram(NamedTuple):
    """min ½xᵀPx + qᵀx  s.t.  Ax + s = b, s ∈ {0}^zero × K; float64, a batch of B, one sparsity pattern.

    The patterns come from the declaration, not from the data: a sample's answer must not depend
    on its neighbours.
    """

    P: Array  # (B, n, n)
    q: Array  # (B, n)
    A: Array  # (B, m, n)
    b: Array  # (B, m)
    zero: int
    K: Product
    P_pattern: Array  # (n, n) bool
    A_pattern: Array  # (m, n) bool

    def rescaled(self) -> tuple["ConeProgram", Array, Array]:
        """The same programme in units of its own data, with the unit of x (B, 1) and of y (B, m).

        With x = ℓx̃, the rows of each cone divided by their largest entry and the objective by the size of
        its terms, the solver's absolute tolerances mean the same at every scale of the data. Not for every
        programme, though: a bound of 1e8 that stands for "none" would set the unit.
        """
        row = np.abs(self.A).max(2, initial=0.0)
        row[:, self.zero :] = self.K.over_blocks(torch.from_numpy(row[:, self.zero :])).numpy()
        row = _positive(row)
        q, P = np.abs(self.q).max(1, keepdims=True), np.abs(self.P).max((1, 2))[:, None]
        length = np.abs(self.b / row).max(1, keepdims=True, initial=0.0)
        length = np.where(length > 0, length, _positive(q / _positive(P)))
        size = _positive(np.maximum(q * length, P * length**2))
        program = self._replace(
            P=self.P * (length**2 / size)[:, :, None],
            q=self.q * length / size,
            A=self.A / row[:, :, None],
            b=self.b / row / length,
        )
        return program, length, size / (row * length)


def _positive(a: Array) -> Array:
    return np.where(a > 0, a, 1.0)


@dataclass(frozen=True)
class Answer:
    """What an engine says of each sample; rows without a point are NaN.

    Duals are those of the engine's own problem: y of Ax + s = b for a matrix engine, (λ, ν) stacked
    for a function engine. Where a matrix engine claims that there is no solution, `rays` holds the
    directions (x, y) it claims this on.
    """

    x: Array  # (B, n)
    y: Array  # (B, rows)
    claims: tuple[Status, ...]
    words: tuple[str, ...]  # the solver's own, "CLARABEL: PrimalInfeasible"
    iterations: Array  # (B,)
    rays: tuple[Array, Array] | None = None  # like x and y


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
