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
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.certify import scales, stationarity
from optlayer.cones import Product
from optlayer.cones.barrier import SYMMETRIC, Smoothed
from optlayer.errors import DeclarationError
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance, KKTForm, Reduction
from optlayer.matrix import or_one
from optlayer.newton import Iterate, Search, chosen

ARRIVED = 1e-10  # relative residual of F_μ that is a root
ROUNDED = 1e-12  # and at which it may rise again
EXACT = 1e-13  # and at which there is nothing left to gain
STEPS = 60
HALVINGS = 30
DECREASE = 1e-4  # of |DF_μ|, that a step of length 1 must bring


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
) -> tuple[Float64[Tensor, "B N"], Float64[Tensor, "B m"], Bool[Tensor, " B"]]:
    """The roots of F_μ by Newton's method from those of F, their own τ, and which samples have arrived."""
    search = _Search.begin(problem, mu, u, tau)
    for _ in range(STEPS):
        if not search.step():
            break
    now = search.now
    return torch.cat([now.x, now.v, now.nu], 1), search.newton.tau, now.merit <= ARRIVED


class Units(NamedTuple):
    """D⁻¹, of the rows of F_μ."""

    stationarity: Float64[Tensor, "B n"]
    inequality: Float64[Tensor, "B m"]
    equality: Float64[Tensor, "B p"]


@dataclass
class _Search:
    """One call. F_μ is smooth: a short Newton step lowers every |DF_μ| with a fixed diagonal D > 0."""

    newton: Search
    units: Units
    now: Iterate
    at: Local

    @classmethod
    def begin(cls, problem: Instance, mu: float, u: Tensor, tau: Tensor) -> "_Search":
        """At the argmin, in units in which μ counts: where s is as long as x allows, λ = μ/s."""
        form, point = problem.form, problem.form.recover(u, tau)
        at = problem.at(point)
        scale = scales(at, point, problem.unit)
        least = mu / or_one(scale.slack)
        s = tau * point.lam - form.split(u)[1]
        tau = scale._replace(multiplier=scale.multiplier + least).tau
        terms = scale.stationarity + at.G.abs.mT(least)
        units = terms, scale.slack + (mu * tau).sqrt(), scale.equality + at.A.abs @ scale.length
        soft = _Smoothed(form, problem.theta, problem.size, Smoothed(form.dual, mu * tau))
        v = tau * point.lam - s
        newton = Search(soft, tau, scale.length, terms)
        now = Iterate(point.x, v, point.nu, soft.cone.nearest(v), torch.full_like(u[:, 0], torch.inf))
        search = cls(newton, Units(*map(or_one, units)), now, soft.at(newton.point(now)))
        search.now = now._replace(merit=newton.merit(search.at, now))
        return search

    def step(self) -> bool:
        """A Newton step, halved until |DF_μ| falls; whether it moved a sample that had not arrived."""
        newton, now, at = self.newton, self.now, self.at
        running = (now.merit > EXACT) & now.merit.isfinite()
        dx, v, nu = newton.direction(now, at, newton.problem.reduced(at, now.v, newton.tau))
        size, t, found = self._size(now, at), torch.ones_like(now.merit), now
        waiting = running
        for _ in range(HALVINGS):
            there, at = self._there(dx, v - now.v, nu - now.nu, t[:, None])
            lower = waiting & (self._size(there, at) <= (1.0 - DECREASE * t) * size)
            lower |= waiting & (there.merit <= ROUNDED) & (there.merit <= now.merit)
            found, waiting = chosen(lower, there, found), waiting & ~lower
            if not waiting.any():
                break
            t = torch.where(waiting, 0.5 * t, t)
        self.now, self.at = found, newton.problem.at(newton.point(found))
        return bool((running & ~waiting & (now.merit > ARRIVED)).any())

    def _there(self, dx: Tensor, dv: Tensor, dnu: Tensor, t: Float64[Tensor, "B 1"]) -> tuple[Iterate, Local]:
        """Part of the way."""
        now, problem = self.now, self.newton.problem
        x, v = problem.borders.move(now.x, t * dx), now.v + t * dv
        there = Iterate(x, v, now.nu + t * dnu, self.at.dual.nearest(v), now.merit)
        at = problem.at(self.newton.point(there))
        return there._replace(merit=self.newton.merit(at, there)), at

    def _size(self, now: Iterate, at: Local) -> Float64[Tensor, " B"]:
        """|DF_μ|."""
        rows = stationarity(at, now.projected / self.newton.tau, now.nu), at.g - now.v + now.projected, at.h
        scaled = torch.cat([row / unit for row, unit in zip(rows, self.units, strict=True)], 1)
        return torch.linalg.vector_norm(scaled, dim=1)
