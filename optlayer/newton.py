r"""Newton's method on the normal map, batched: units, merit, and steps that stay in the domain.

    J (Δx, Δv, Δν) = -(∇f + Gᵀλ + Aᵀν,  g - v + Π(v),  h)

Where K is singular and that step solves nothing, it is the proximal point method's, weighted by the
residual. Where f is defined on an open domain, z > 0 for an entropy, steps are taken in the logarithm of the
distance to the border (`borders`). Whatever else leaves the domain is halved until it does not.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.certify import FLOOR, numbers, over, scales, sizes, stationarity
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance, Reduction
from optlayer.matrix import or_one
from optlayer.saddle import CLOSE, ROUGH

TARGET = 2e-14  # relative residual at which there is nothing left to gain
HALVINGS = 30


class Iterate(NamedTuple):
    x: Tensor
    v: Tensor
    nu: Tensor
    projected: Tensor  # Π(v) = τλ
    merit: Float64[Tensor, " B"]  # worst relative row of the normal map; inf where undefined


def begin(problem: Instance, start: Point) -> tuple["Search", Local, Iterate]:
    """Units for the search, and v = τλ - s with s = Π_K(-g) at its start."""
    start = start._replace(x=problem.borders.project(start.x))
    at = problem.at(start)
    scale = scales(at, start, problem.unit)
    tau, handed = scale.tau, scale.stationarity if at.auxiliary else torch.zeros_like(start.x)
    search = Search(problem, tau, scale.length, handed)
    v = tau * start.lam + at.g - at.dual.nearest(at.g)
    now = Iterate(start.x, v, start.nu, at.dual.nearest(v), torch.full_like(start.x[:, 0], torch.inf))
    return search, at, now._replace(merit=search.merit(at, now))


class Search(NamedTuple):
    """What stays the same from step to step."""

    problem: Instance
    tau: Float64[Tensor, "B m"]
    length: Float64[Tensor, "B n"]  # of each coordinate: a floor under rows of zeros
    handed: Float64[Tensor, "B n"]  # size of the rows of auxiliary variables, which hold multipliers only

    def step(self, now: Iterate, at: Local, running: Bool[Tensor, " B"]) -> tuple[Iterate, Local, Reduction]:
        """One Newton step for the running samples, halved until it stays in the domain; and its K."""
        reduced = self.problem.reduced(at, now.v, self.tau)
        dx, v, nu = self.direction(now, at, reduced)
        target = Iterate(now.x, v, nu, at.dual.nearest(v), now.merit)
        t = torch.where(running, 1.0, 0.0)
        for _ in range(HALVINGS):
            full = chosen(running, target._replace(x=self.problem.borders.move(now.x, t[:, None] * dx)), now)
            new_at = self.problem.at(self.point(full))
            merit = self.merit(new_at, full)
            if (merit.isfinite() | ~running).all():
                break
            t = torch.where(merit.isfinite(), t, 0.5 * t)
        return full._replace(merit=torch.where(running, merit, now.merit)), new_at, reduced

    def merit(self, at: Local, now: Iterate) -> Float64[Tensor, " B"]:
        """The worst row of F(u), relative; inf outside of the domain.

        Where g is curved an inactive v is simply read off g.
        """
        lam = now.projected / self.tau
        terms, inequality, equality = sizes(at, Point(now.x, lam, now.nu))[:3]
        terms = terms + self.handed + FLOOR * terms.amax(1, keepdim=True)
        rows = [over(stationarity(at, lam, now.nu), numbers(terms))]
        if at.g.shape[1]:
            unit = at.dual.over_blocks(inequality + FLOOR * (at.G.abs @ self.length))
            rows.append(over(at.g - now.v + now.projected, unit))
        if at.h.shape[1]:
            rows.append(over(at.h, equality + FLOOR * (at.A.abs @ self.length)))
        worst = torch.cat(rows, 1).abs().amax(1)
        return torch.where(self.problem.borders.holds(now.x) & ~worst.isnan(), worst, torch.inf)

    def point(self, now: Iterate) -> Point:
        """x, λ, ν."""
        return Point(now.x, now.projected / self.tau, now.nu)

    def direction(self, now: Iterate, at: Local, reduced: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """Δx, v⁺, ν⁺."""
        left = stationarity(at, now.projected / self.tau, now.nu)
        residual = (-left, now.v - now.projected - at.g, -at.h)
        dx, dv, dnu, sound = reduced.solve(*residual, CLOSE if self.problem.form.quadratic else ROUGH)
        lost = (~sound).nonzero().squeeze(1)
        if len(lost):
            some = reduced[lost]
            primal, dual = _shifts(some.at, now.merit[lost])
            r1, r2, r3 = (r[lost] for r in residual)
            proximal = some.proximal(r1, r2, r3, primal, dual)
            dx, dv, dnu = (
                step.index_copy(0, lost, other) for step, other in zip((dx, dv, dnu), proximal, strict=True)
            )
        return dx, now.v + dv, now.nu + dnu


def _shifts(at: Local, merit: Tensor) -> tuple[Float64[Tensor, "B 1"], Float64[Tensor, "B 1"]]:
    """δ for the primal and the dual diagonal, in the units of H and of GH⁻¹Gᵀ: the residual."""
    delta = merit.clamp(1e-12, 1e-2)[:, None]
    H, E = or_one(at.hessian.peak), or_one(torch.maximum(at.G.peak, at.A.peak))
    return (delta * H).expand_as(at.gradient[:, :1]), (delta * E**2 / H).expand_as(at.gradient[:, :1])


def chosen(choose: Tensor, a: Iterate, b: Iterate) -> Iterate:
    pick = choose[:, None]
    return Iterate(
        torch.where(pick, a.x, b.x),
        torch.where(pick, a.v, b.v),
        torch.where(pick, a.nu, b.nu),
        torch.where(pick, a.projected, b.projected),
        torch.where(choose, a.merit, b.merit),
    )
