r"""The conic form: what cvxpy makes of any disciplined convex problem.

    min ½xᵀPx + qᵀx + d   s.t.   Ax + s = b,   s ∈ {0}ᵖ × K

P, q, d, A, b are affine in θ. It is the case f = ½xᵀPx + qᵀx + d, h = Ax - b on the first p rows and
g = Ax - b on the others of the system in `kkt`. x holds the variables of the user and those that stand
for the value of a norm, an eigenvalue, a logarithm.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import vmap

from optlayer.cones import Product
from optlayer.forms import Curvature, Function, Local, Point, Reference
from optlayer.forms.affine import AffineMap, Gather
from optlayer.forms.kkt import KKTForm
from optlayer.linsolve import matvec


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
class ConicForm(KKTForm):
    """A cone programme whose data are affine in θ, the parameters flattened and concatenated."""

    n: int
    m: int
    p: int
    P: AffineMap  # (n, n)
    q: AffineMap  # (n,)
    d: AffineMap  # ()
    A: AffineMap  # (p + m, n)
    b: AffineMap  # (p + m,)
    dual: Product  # K*
    seen: Bool[Tensor, " n"]  # coordinates of x that are part of a variable of the user's
    owners: tuple[str, ...]  # the constraint each row of A comes from; "" for an atom's or an attribute's
    reference: Reference
    stated: Stated
    quadratic: bool = True

    def __deepcopy__(self, memo: dict[int, object]) -> "ConicForm":
        return self  # immutable

    @property
    def patterns(self) -> tuple[np.ndarray, np.ndarray]:
        """Where P and A may be nonzero."""
        return self.P.pattern, self.A.pattern

    def rows(self, point: Point, *theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Px + q + Aᵀy, and Ax - b, batched and differentiable."""
        x, flat = point.x, self._flat(point.x, theta)
        A, y = self.A(flat), torch.cat([point.nu, point.lam], 1)
        h, g = self._split(matvec(A, x) - self.b(flat))
        return matvec(self.P(flat), x) + self.q(flat) + matvec(A.mT, y), g, h

    def curvature(self, point: Point, *theta: Tensor) -> Curvature:
        """P and the two parts of A."""
        flat = self._flat(point.x, theta)
        A, G = self._split(self.A(flat))
        return Curvature(self.P(flat), G, A)

    def local(self, point: Point, *theta: Tensor) -> Local:
        """The problem to second order at a point; it has no more."""
        flat = self._flat(point.x, theta)
        P, G, A = self.curvature(point, *theta)
        h, g = self._split(matvec(self.A(flat), point.x) - self.b(flat))
        return Local(matvec(P, point.x) + self.q(flat), P, g, G, h, A, self.dual, auxiliary=True)

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """½xᵀPx + qᵀx + d, batched."""
        flat = self._flat(x, theta)
        return (x * (0.5 * matvec(self.P(flat), x) + self.q(flat))).sum(1) + self.d(flat)

    def _flat(self, x: Tensor, theta: tuple[Tensor, ...]) -> Float64[Tensor, "B k"]:
        return torch.cat([x[:, :0], *(t.reshape(t.shape[0], -1) for t in theta)], 1)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the zero cone, and the others."""
        zero, others = rows.split([self.p, self.m], 1)
        return zero, others
