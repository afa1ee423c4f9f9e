"""What is settled before the first call, and what a call adds to it."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayer.declare.admissible import Admissible
from optlayer.declare.posed import Lift
from optlayer.engines.proof import Proof
from optlayer.engines.table import Engine
from optlayer.forms import Point
from optlayer.forms.kkt import Factored, KKTForm
from optlayer.solution import Status


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled layer; immutable, shared by threads and copies."""

    form: KKTForm
    lift: Lift  # the user's parameter values to those of the form
    cold: bool  # Newton's method finds the root from anywhere, as a rule: no engine is asked first
    engines: tuple[Engine, ...]
    proof: Proof | None  # None: by certificate
    admissible: tuple[Admissible, ...]
    tolerance: float
    raises: bool  # on_failure="raise": stop at the first batch with a failed sample
    nonunique: Literal["warn", "raise", "ignore"]
    smoothing: float | None = None  # μ of the smoothed derivatives
    warned: list[bool] = field(default_factory=list)  # whether the one warning was given

    def __deepcopy__(self, memo: dict[int, object]) -> "Plan":
        return self


@dataclass(frozen=True)
class Call:
    """One call: the batch's shape, the inputs' precision, a warm start; places for what comes out beside
    the numbers: errors, and K factored at the roots."""

    batch: tuple[int, ...]
    eps: tuple[float, ...]  # of each parameter's own dtype
    start: Point | None = None
    errors: list[Exception] = field(default_factory=list)
    factored: list[Factored] = field(default_factory=list)

    def batched(self, size: int) -> "Call":
        """The same call under vmap, with one more leading dimension."""
        return Call((size, *self.batch), self.eps, None, self.errors)


class Outcome(NamedTuple):
    """Certified roots, one row per sample; rows that are not SOLVED hold zeros in u."""

    u: Float64[Tensor, "B N"]
    tau: Float64[Tensor, "B m"]
    status: Int64[Tensor, " B"]
    iterations: Int64[Tensor, " B"]
    residuals: Float64[Tensor, "B 4"]  # in the order of `Residuals`
    flags: Bool[Tensor, "B 3"]  # in the order of `Flags`
    smoothed: Float64[Tensor, "B N"]  # roots of the smoothed conditions, and their τ; 0 without smoothing
    smoothed_tau: Float64[Tensor, "B m"]

    @staticmethod
    def of_nothing(form: KKTForm, size: int) -> "Outcome":
        """Before anything is found."""
        return Outcome(
            u=torch.zeros(size, form.size, dtype=torch.float64),
            tau=torch.ones(size, form.m, dtype=torch.float64),
            status=torch.full((size,), Status.SOLVED),
            iterations=torch.zeros(size, dtype=torch.int64),
            residuals=torch.full((size, 4), torch.nan, dtype=torch.float64),
            flags=torch.zeros(size, 3, dtype=torch.bool),
            smoothed=torch.zeros(size, form.size, dtype=torch.float64),
            smoothed_tau=torch.ones(size, form.m, dtype=torch.float64),
        )
