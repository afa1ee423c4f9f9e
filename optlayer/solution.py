"""What a solve returns, and the sentences that say how it went."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayer.errors import InputError


class Status(IntEnum):
    """How the solve of one sample ended; `status.sentence` is what the user reads.

    An integer underneath, so that a whole batch of them is a tensor:
    `(solution.status == Status.SOLVED).all()`.
    """

    sentence: str

    SOLVED = 0, "solved: the answer passes the certificate"
    INFEASIBLE = 1, "infeasible: no point satisfies the constraints"
    UNBOUNDED = 2, "unbounded: the objective falls without limit on the feasible set"
    INACCURATE = 3, "inaccurate: a point was found, but it fails the certificate"
    FAILED = 4, "failed: no engine returned a point"
    INVALID = 5, "invalid: the data of this sample are not admissible"

    def __new__(cls, code: int, sentence: str) -> "Status":
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member


@dataclass(frozen=True)
class Residuals:
    """The relative KKT residuals of the user's own f, g, h; dimensionless, of the batch's shape.

    Each row is divided by the size of the terms that make it, then the worst row is kept.
    """

    stationarity: Float64[Tensor, "*batch"]  # ∇f + (∂g)ᵀλ + (∂h)ᵀν
    primal: Float64[Tensor, "*batch"]  # max(g, 0) and |h|
    dual: Float64[Tensor, "*batch"]  # max(-λ, 0)
    complementarity: Float64[Tensor, "*batch"]  # min(λ, -g)

    @property
    def stacked(self) -> Float64[Tensor, "*batch 4"]:
        """The four, in the order above."""
        return torch.stack([self.stationarity, self.primal, self.dual, self.complementarity], -1)

    @property
    def worst(self) -> Float64[Tensor, "*batch"]:
        """The largest of the four."""
        return self.stacked.amax(-1)


@dataclass(frozen=True)
class Flags:
    """Where the derivative is an element of choice rather than *the* derivative."""

    kink: Bool[Tensor, "*batch"]  # an inequality is weakly active: λ = g = 0
    degenerate: Bool[Tensor, "*batch"]  # duals not unique: dependent active constraints
    nonunique: Bool[Tensor, "*batch"]  # primal not unique: the minimum-norm derivative is returned


@dataclass(frozen=True)
class Solution:
    """A certified answer. Primal values, duals and the value carry every derivative.

    The leading dimensions of each tensor are those of the call (`*batch`). Inequality duals are
    >= 0, equality duals have the sign of L = f + λᵀg + νᵀh: cvxpy's convention.
    """

    primal: tuple[Tensor, ...]
    inequality_duals: tuple[Tensor, ...]
    equality_duals: tuple[Tensor, ...]
    value: Tensor
    status: Int64[Tensor, "*batch"]
    iterations: Int64[Tensor, "*batch"]
    residuals: Residuals
    flags: Flags
    duals: dict[int, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)  # by constraint.id
    root: Float64[Tensor, "B N"] | None = field(default=None, repr=False)  # (x, λ, ν), for warm_start

    def dual(self, constraint: Any) -> Tensor | tuple[Tensor, ...]:
        """The multiplier of a constraint of the problem, in cvxpy's sign and shape.

        Args:
            constraint: A constraint of the cp.Problem the layer was made from.

        Returns:
            (*batch, *shape); a tuple of them where cvxpy has several dual variables, as for a
            second-order or an exponential cone.

        Raises:
            InputError: for a constraint that is not one of the problem's.
        """
        parts = self.duals.get(getattr(constraint, "id", None))  # type: ignore[arg-type]
        if parts is None:
            raise InputError(
                f"{constraint} is not a constraint of this layer's problem; pass one of problem.constraints"
            )
        return parts[0] if len(parts) == 1 else parts
