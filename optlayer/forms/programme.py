r"""The quadratic programme over a cone, its blocks settled when a layer is constructed.

    min ½xᵀPx + qᵀx + d   s.t.   -(Gx + g₀) ∈ K,   Ax + h₀ = 0

It is the case f = ½xᵀPx + qᵀx + d, g = Gx + g₀, h = Ax + h₀ of the system in `kkt`: a declared quadratic
programme with K the orthant, or what cvxpy makes of any disciplined convex problem (`conic`).
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones import Product
from optlayer.forms import Domain, Local, Point, Reference
from optlayer.forms.blocks import Objective, Rows, flatten
from optlayer.forms.kkt import KKTForm


@dataclass(frozen=True, eq=False)
class Programme(KKTForm):
    """P, q, G, g₀, A, h₀ as functions of θ."""

    n: int
    m: int
    p: int
    objective: Objective
    inequality: Rows
    equality: Rows
    dual: Product  # K*
    seen: Bool[Tensor, " n"]  # coordinates of x that are part of a variable of the user's
    reference: Reference | None = None
    auxiliary: bool = False  # x holds variables that are not the user's, and have no scale of their own
    quadratic: bool = True
    domain: Domain | None = None  # of the parameters: 1/θ

    def __deepcopy__(self, memo: dict[int, object]) -> "Programme":
        return self  # immutable

    def rows(self, point: Point, *theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Px + q + Gᵀλ + Aᵀν, Gx + g₀ and Ax + h₀, batched and differentiable."""
        x, flat = point.x, flatten(point.x, theta)
        stationarity = self.objective.gradient(x, theta, flat)
        if self.m:
            stationarity = stationarity + self.inequality.pulled(point.lam, x, theta, flat)
        if self.p:
            stationarity = stationarity + self.equality.pulled(point.nu, x, theta, flat)
        return stationarity, self.inequality.value(x, theta, flat), self.equality.value(x, theta, flat)

    def local(self, point: Point, *theta: Tensor) -> Local:
        """The programme to second order at a point; it has no more."""
        x, flat = point.x, flatten(point.x, theta)
        g, G = self.inequality.local(x, theta, flat)
        h, A = self.equality.local(x, theta, flat)
        return Local(
            gradient=self.objective.gradient(x, theta, flat),
            hessian=self.objective.hessian(theta, flat),
            g=g,
            G=G,
            h=h,
            A=A,
            dual=self.dual,
            auxiliary=self.auxiliary,
        )

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """½xᵀPx + qᵀx + d, batched."""
        return self.objective.value(x, theta, flatten(x, theta))
