r"""Smoothed derivatives: those of a point on the central path instead of the argmin's.

The argmin of a linear programme is a vertex: it stays where it is when the cost moves a little, and jumps
when it moves more, so that its derivative is 0 almost everywhere and says nothing. The minimizer of

    f(x) + μ b(-g(x)),    λ ∘ s = μe  in place of  λ ∘ s = 0,

b the logarithmic barrier, moves smoothly from face to face, and tends to the argmin with μ. Its conditions
are those of `kkt` with the projection Π_μ of `cones.barrier` for Π,

    F_μ(u) = (∇f + Gᵀλ + Aᵀν,  g - v + Π_μ(v),  h),    λ = Π_μ(v)/τ,

with μτ for μ, row by row, so that λ ∘ s = μe in the units of the objective. Newton's method goes there from
the argmin, and the implicit function theorem holds for F_μ as it does for F. Values stay exact.

Vlastelica et al. (arXiv:1912.02175) describe the problem; Mandi & Guns (arXiv:2010.13943) this way out of it.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.certify import scales
from optlayer.cones import Product
from optlayer.cones.barrier import SYMMETRIC, Smoothed
from optlayer.errors import DeclarationError
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance, KKTForm, Reduction
from optlayer.newton import Iterate, Search, chosen

ARRIVED = 1e-10  # relative residual of F_μ that is a root
EXACT = 1e-13  # and at which there is nothing left to gain
STEPS = 60
HALVINGS = 30
DECREASE = 1e-4  # of the residual, that a step of length 1 must bring


@dataclass(frozen=True)
class SmoothedRoot:
    """The system F_μ(u; θ, τ) = 0, for `implicit.attach`."""

    form: KKTForm
    mu: float

    def cone(self, tau: Float64[Tensor, "B m"]) -> Smoothed:
        """K* with Π_μ."""
        return Smoothed(self.form.dual, self.mu * tau)

    def recover(self, u: Float64[Tensor, "B N"], tau: Float64[Tensor, "B m"]) -> Point:
        """u -> x, λ, ν."""
        x, v, nu = self.form.split(u)
        return Point(x, self.cone(tau).project(v) / tau, nu)

    def residual(self, u: Float64[Tensor, "B N"], *data: Tensor) -> Float64[Tensor, "B N"]:
        """F_μ(u; θ, τ)."""
        *theta, tau = data
        point, v = self.recover(u, tau), self.form.split(u)[1]
        stationarity, g, h = self.form.rows(point, *theta)
        return torch.cat([stationarity, g - v + tau * point.lam, h], 1)

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Float64[Tensor, "B N"]:
        """J⁻¹ b, or J⁻ᵀ b."""
        *theta, tau = data
        at, cone = self.form.local(self.recover(u, tau), *theta), self.cone(tau)
        reduced = Reduction(_with(at, cone), cone.spectrum(self.form.split(u)[1]), tau)
        return reduced.inverse(b, transposed)


def check_smooth(dual: Product) -> None:
    """Whether all cones are symmetric.

    Raises:
        DeclarationError: naming one that is not.
    """
    for cone in dual.atoms:
        if not isinstance(cone, SYMMETRIC):
            raise DeclarationError(
                f"smoothing does not know the cone {type(cone).__name__}: it is for zero, nonnegative, "
                "second-order and semidefinite ones. Leave it None, or declare smooth atoms with "
                'method="smooth"'
            )


@dataclass(frozen=True)
class _Smoothed(Instance):
    """A problem with a smoothed cone."""

    cone: Smoothed

    def at(self, point: Point) -> Local:
        return _with(super().at(point), self.cone)


def _with(at: Local, cone: Smoothed) -> Local:
    """The same with a smoothed cone, which is a product as far as Newton's method looks at it."""
    return at._replace(dual=cast(Product, cone))


def smoothed_roots(
    problem: Instance, mu: float, u: Float64[Tensor, "B N"], tau: Float64[Tensor, "B m"]
) -> tuple[Float64[Tensor, "B N"], Bool[Tensor, " B"]]:
    """The roots of F_μ, by Newton's method from those of F, and which samples have arrived."""
    root = SmoothedRoot(problem.form, mu)
    soft = _Smoothed(problem.form, problem.theta, problem.size, root.cone(tau))
    search, at, now = _begin(soft, problem, u, tau)
    for _ in range(STEPS):
        running = (now.merit > EXACT) & now.merit.isfinite()
        before = now.merit
        now, at = _step(search, now, at, running)
        if not (now.merit < before).any():
            break
    return torch.cat([now.x, now.v, now.nu], 1), now.merit <= ARRIVED


def _begin(soft: _Smoothed, problem: Instance, u: Tensor, tau: Tensor) -> tuple[Search, Local, Iterate]:
    """At the argmin, with its units."""
    x, v, nu = problem.form.split(u)
    point = problem.form.recover(u, tau)
    scale = scales(problem.at(point), point, problem.unit)
    search = Search(soft, tau, scale.length, scale.stationarity)
    now = Iterate(x, v, nu, soft.cone.nearest(v), torch.full_like(x[:, 0], torch.inf))
    at = soft.at(search.point(now))
    return search, at, now._replace(merit=search.merit(at, now))


def _step(search: Search, now: Iterate, at: Local, running: Bool[Tensor, " B"]) -> tuple[Iterate, Local]:
    """A Newton step, halved until it lowers the residual; samples that it does not bring on stay."""
    problem, found = search.problem, now
    dx, v, nu = search.direction(now, at, problem.reduced(at, now.v, search.tau))
    t = torch.ones_like(now.merit)
    for _ in range(HALVINGS):
        part = t[:, None]
        x, v_there = problem.borders.move(now.x, part * dx), now.v + part * (v - now.v)
        there = Iterate(x, v_there, now.nu + part * (nu - now.nu), at.dual.nearest(v_there), now.merit)
        there = there._replace(merit=search.merit(problem.at(search.point(there)), there))
        lower = running & (there.merit <= (1.0 - DECREASE * t) * now.merit)
        found, running = chosen(lower, there, found), running & ~lower
        if not running.any():
            break
        t = torch.where(running, 0.5 * t, t)
    return found, problem.at(search.point(found))
