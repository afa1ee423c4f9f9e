"""From a root to what the user asked for: variables, multipliers, expressions, the optimal value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.forms import Point
from optlayer.forms.affine import Gather
from optlayer.forms.kkt import KKTForm

Theta = tuple[Tensor, ...]
Output = Callable[[tuple[Tensor, ...], tuple[tuple[Tensor, ...], ...], Theta], Tensor]


class Reading(NamedTuple):
    """What was found, batched."""

    outputs: tuple[Float64[Tensor, "B ..."], ...]
    duals: tuple[tuple[Float64[Tensor, "B ..."], ...], ...]  # of each constraint, one or several


@dataclass(frozen=True, eq=False)
class Readout:
    """How to read a point of the form in the user's terms.

    Attributes:
        variables: x -> the value of each variable.
        duals: (ν, λ) -> the multipliers of each constraint.
        outputs: (variables, duals, θ) -> what the layer returns, batched each.
        maximize: The user maximizes: the value is minus that of the form.
        gp: The form is written in logarithms: variables and value are exponentials.
    """

    variables: tuple[Gather, ...]
    duals: tuple[tuple[Gather, ...], ...]
    outputs: tuple[Output, ...]
    maximize: bool = False
    gp: bool = False

    def __deepcopy__(self, memo: dict[int, object]) -> "Readout":
        return self  # immutable

    def read(self, point: Point, theta: Theta) -> Reading:
        """Values of the outputs and multipliers at a point; θ as the user gave it."""
        variables = tuple(gather(point.x) for gather in self.variables)
        if self.gp:
            variables = tuple(v.exp() for v in variables)
        y = torch.cat([point.nu, point.lam], 1)
        duals = tuple(tuple(gather(y) for gather in gathers) for gathers in self.duals)
        return Reading(tuple(output(variables, duals, theta) for output in self.outputs), duals)

    def value(self, form: KKTForm, x: Tensor, theta: Theta) -> Float64[Tensor, " B"]:
        """The optimal value as the user wrote it; θ as the form knows it."""
        if not len(x):
            return x.sum(1)
        value = form.value(x, *theta)
        value = -value if self.maximize else value
        return value.exp() if self.gp else value
