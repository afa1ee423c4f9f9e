r"""The conic form: what cvxpy makes of any disciplined convex problem.

    min ½xᵀPx + qᵀx + d   s.t.   Ax + s = b,   s ∈ {0}ᵖ × K

It is the programme h = Ax - b on the first p rows and g = Ax - b on the others. x holds the variables of the
user and those that stand for the value of a norm, an eigenvalue, a logarithm.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import vmap

from optlayer.forms import Function
from optlayer.forms.affine import Gather
from optlayer.forms.programme import Programme


@dataclass(frozen=True, eq=False)
class Stated:
    """The user's own objective and curved constraints, to compare a point with; what torch can evaluate.

    Attributes:
        variables: x -> the value of each variable.
        objective: (*variables, *theta) -> f, one sample; None where it has an atom without a rule.
        constraints: The two sides of l <= r, likewise.
    """

    variables: tuple[Gather, ...]
    objective: Function | None
    constraints: tuple[tuple[Function, Function], ...]

    def gap(self, x: Float64[Tensor, "B n"], value: Tensor, floor: Tensor, *theta: Tensor) -> Tensor:
        """The largest relative difference between what is stated and what the cones made of it, (B,).

        `value` is the optimal value by the cone programme; differences below `floor` are rounding.
        """
        variables = [gather(x) for gather in self.variables]
        worst = torch.zeros_like(value)
        if self.objective is not None:
            f = vmap(self.objective)(*variables, *theta).reshape(-1)
            worst = _relative((f - value).abs(), f.abs() + value.abs(), floor)
        for left, right in self.constraints:
            lhs, rhs = (vmap(side)(*variables, *theta).reshape(len(x), -1) for side in (left, right))
            excess = _relative((lhs - rhs).clamp_min(0.0), lhs.abs() + rhs.abs(), floor.unsqueeze(1))
            worst = torch.maximum(worst, excess.amax(1))
        return worst


def _relative(difference: Tensor, size: Tensor, floor: Tensor) -> Tensor:
    """difference / size, 0 where the difference is rounding; what is no number disagrees."""
    return torch.where(difference <= floor, 0.0, difference / size).nan_to_num(torch.inf)


@dataclass(frozen=True, eq=False)
class ConicForm(Programme):
    """A cone programme whose data are affine in θ; x holds auxiliary variables."""

    owners: tuple[
        str, ...
    ] = ()  # the constraint each row of (h, g) comes from; "" for an atom's or an attribute's
    stated: Stated = Stated((), None, ())
    auxiliary: bool = True
