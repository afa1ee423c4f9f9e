r"""Polish: semismooth Newton on the normal map, batched, from whatever point an engine returned.

    J (Δx, Δv, Δν) = -(∇f + Gᵀλ + Aᵀν,  g - v + Π(v),  h)

It repairs wrong active sets and turns a solver's 1e-4 into rounding error in a few steps. The residual
may rise before it falls, so the *best* iterate is kept, never one worse than the engine's.

Where K is singular and that step solves nothing, it is the proximal point method's, weighted by the
residual.

Where f is defined on an open domain, z > 0 for an entropy, steps are taken in the logarithm of the distance
to the border (`borders`). Whatever else leaves the domain is halved until it does not.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.certify import FLOOR, Scales, extent, numbers, over, scales, sizes, stationarity
from optlayer.forms import Local, Point
from optlayer.forms.elimination import least_step
from optlayer.forms.kkt import Instance, Reduction, Step
from optlayer.matrix import or_one
from optlayer.saddle import CLOSE, ROUGH

TARGET = 2e-14  # relative residual at which there is nothing left to gain
ROUNDED = 1e-12  # and at which a step of Newton's is worth more than a smaller one
SHARED = 1e-6  # at which a K serves more than one step
CHORDS = 3  # and how many more
PATIENCE = 4  # steps without progress
LONG = 12  # the same, from far away
MAX_STEPS = 40
HALVINGS = 30
AT_REST = 1e-11  # relative change of a coordinate, or of a cone's v, that is none
NOISE = 1e-15  # and relative to the largest length of the data: rounding
KINK = 1e-10  # λ and g both below KINK times their scales are a tie
NEAR = 0.999  # of the way to a border that a start may go


class Polished(NamedTuple):
    """The best point, u = (x, v, ν) with kinks snapped to v = 0, and all that was evaluated there."""

    point: Point
    u: Float64[Tensor, "B N"]
    kink: Bool[Tensor, " B"]
    at: Local
    scale: Scales
    reduced: Reduction  # K at u, which the backward pass needs once more
    merit: Float64[Tensor, " B"]  # worst relative row of the normal map, as far as Newton's method came
    ahead: Step | None = None  # the step that Newton's method would take from here, where that is known

    @property
    def tau(self) -> Float64[Tensor, "B m"]:
        """τ, the unit of v."""
        return self.reduced.tau


class _Iterate(NamedTuple):
    x: Tensor
    v: Tensor
    nu: Tensor
    projected: Tensor  # Π(v) = τλ
    merit: Float64[Tensor, " B"]  # worst relative row of the normal map; inf where undefined


def polish(problem: Instance, start: Point, patience: int = PATIENCE) -> Polished:
    """Newton from `start` to rounding error; samples that are NaN stay NaN.

    It stops after `patience` steps without progress, or one where rounding is reached.
    """
    search, at, now = _begin(problem, start)
    best, stalled = now, torch.zeros_like(now.merit)
    for _ in range(MAX_STEPS):
        enough = torch.where(best.merit <= ROUNDED, 1, patience)
        running = (best.merit > TARGET) & (stalled < enough) & now.merit.isfinite()
        if not running.any():
            break
        now, at = search.step(now, at, running)
        better = now.merit < best.merit
        stalled = torch.where(now.merit < 0.5 * best.merit, 0.0, stalled + 1)
        best = _where(better, now, best)
    found = settle(problem, search.point(best))._replace(merit=best.merit)
    return _to_rest(search, best, found) if at.auxiliary else found


def _to_rest(search: "_Search", best: _Iterate, found: Polished) -> Polished:
    """A last step where the merit has nothing left to say, but the step would still move something.

    A cone's rows are judged together, and what is small among them, x² in (1 + x², 1 - x², 2x), is right
    only at a root. The step is taken with the K of the settled point, which is at hand.
    """
    ahead = _ahead(search.problem, found)
    moving = (best.merit <= ROUNDED) & ahead.sound & _moves(search.problem, found, ahead)
    if not moving.any():
        return found._replace(ahead=ahead)
    last = search.after(found, ahead)
    best = _where(moving & (last.merit <= ROUNDED), last, best)
    return settle(search.problem, search.point(best))._replace(merit=best.merit)


def _ahead(problem: Instance, found: Polished) -> Step:
    """The Newton step from the settled point."""
    at, (_, lam, nu) = found.at, found.point
    v = problem.form.split(found.u)[1]
    return found.reduced.solve(-stationarity(at, lam, nu), v - found.tau * lam - at.g, -at.h)


def _moves(problem: Instance, found: Polished, step: Step) -> Bool[Tensor, " B"]:
    """Whether a step changes some coordinate of x, or v on some cone, by more than rounding."""
    x, v, _ = problem.form.split(found.u)
    of_x = torch.maximum(AT_REST * x.abs(), NOISE * extent(found.at, x))
    of_v = AT_REST * found.at.dual.over_blocks(v.abs())
    return torch.cat([step.x.abs() > of_x, step.v.abs() > of_v], 1).any(1)


def start(problem: Instance) -> Point:
    """A point to set out from where no engine is needed.

    1 inside of a coordinate's border or midway between two, 0 where there is none; from there to the
    nearest point with h = 0, as far as the borders allow.
    """
    point, borders = problem.nowhere, problem.borders
    if borders.stops:
        point = point._replace(x=borders.box.inside())
    if problem.form.p:
        x, dx = point.x, least_step(problem.at(point))
        point = point._replace(x=borders.box.towards(x, dx, NEAR) if borders.stops else x + dx)
    return point


def restlessness(problem: Instance, found: Polished) -> Float64[Tensor, " B"]:
    """How far one more Newton step would move the user's x, relative to x; near 0 at an attained minimum."""
    at, x, seen = found.at, found.point.x, problem.form.seen
    step = found.ahead or _ahead(problem, found)
    size = x[:, seen].abs().amax(1)
    if at.auxiliary:
        size = torch.maximum(size, FLOOR * extent(at, x).squeeze(1))
    return step.x[:, seen].abs().amax(1) / size


def _begin(problem: Instance, start: Point) -> tuple["_Search", Local, _Iterate]:
    """Units for the search, and v = τλ - s with s = Π_K(-g) at its start."""
    start = start._replace(x=problem.borders.project(start.x))
    at = problem.at(start)
    scale = scales(at, start, problem.unit)
    tau, handed = scale.tau, scale.stationarity if at.auxiliary else torch.zeros_like(start.x)
    search = _Search(problem, tau, scale.length, handed)
    v = tau * start.lam + at.g - at.dual.nearest(at.g)
    now = _Iterate(start.x, v, start.nu, at.dual.nearest(v), torch.full_like(start.x[:, 0], torch.inf))
    return search, at, now._replace(merit=search.merit(at, now))


class _Search(NamedTuple):
    """What stays the same from step to step."""

    problem: Instance
    tau: Float64[Tensor, "B m"]
    length: Float64[Tensor, "B n"]  # of each coordinate: a floor under rows of zeros
    handed: Float64[Tensor, "B n"]  # size of the rows of auxiliary variables, which hold multipliers only

    def step(self, now: _Iterate, at: Local, running: Bool[Tensor, " B"]) -> tuple[_Iterate, Local]:
        """One Newton step for the running samples; where it came close, a few more with the same K.

        DΠ of a curved cone changes with v, as far as that has moved: a K that brought the residual from ε to
        ε² brings it on by factors of ε, each for a fraction of what a new one costs.
        """
        reduced = self.problem.reduced(at, now.v, self.tau)
        now, at = self._step(now, at, running, reduced)
        for _ in range(CHORDS if reduced.spectrum.turns else 0):
            close = running & (now.merit > TARGET) & (now.merit <= SHARED)
            if not close.any():
                break
            again, _ = self._step(now, at, close, reduced)
            now = _where(again.merit < now.merit, again, now)
            at = self.problem.at(self.point(now))
        return now, at

    def _step(
        self, now: _Iterate, at: Local, running: Bool[Tensor, " B"], reduced: Reduction
    ) -> tuple[_Iterate, Local]:
        """A step for the running samples, halved until it stays in the domain."""
        dx, v, nu = self._newton(now, at, reduced)
        target = _Iterate(now.x, v, nu, at.dual.nearest(v), now.merit)
        t = torch.where(running, 1.0, 0.0)
        for _ in range(HALVINGS):
            full = _where(running, target._replace(x=self.problem.borders.move(now.x, t[:, None] * dx)), now)
            new_at = self.problem.at(self.point(full))
            merit = self.merit(new_at, full)
            if (merit.isfinite() | ~running).all():
                break
            t = torch.where(merit.isfinite(), t, 0.5 * t)
        return full._replace(merit=torch.where(running, merit, now.merit)), new_at

    def merit(self, at: Local, now: _Iterate) -> Float64[Tensor, " B"]:
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

    def after(self, found: Polished, ahead: Step) -> _Iterate:
        """One step on from a settled point, whose v = τλ - s has another τ than the search's."""
        _, v, _ = self.problem.form.split(found.u)
        v = v + ahead.v
        projected = found.at.dual.nearest(v)
        lam = self.tau / found.tau * projected
        x, nu = found.point.x + ahead.x, found.point.nu + ahead.nu
        now = _Iterate(x, lam - (projected - v), nu, lam, found.merit)
        return now._replace(merit=self.merit(self.problem.at(self.point(now)), now))

    def point(self, now: _Iterate) -> Point:
        """x, λ, ν."""
        return Point(now.x, now.projected / self.tau, now.nu)

    def _newton(self, now: _Iterate, at: Local, reduced: Reduction) -> tuple[Tensor, Tensor, Tensor]:
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


def settle(problem: Instance, point: Point) -> Polished:
    """Put x on its active bounds, form v in the scale of the point, snap ties to the kink."""
    at = problem.at(point)
    held = _on_bounds(at, point)
    if held is not point.x:
        point = point._replace(x=held)
        at = problem.at(point)
    scale = scales(at, point, problem.unit)
    tau = scale.tau
    v, kink = at.dual.snap(_settled(at, point, tau), _negligible(at, point, scale, tau))
    point = point._replace(lam=at.dual.nearest(v) / tau)
    u = torch.cat([point.x, v, point.nu], 1)
    unknown = torch.zeros_like(point.x[:, 0])
    return Polished(point, u, kink.any(1), at, scale, problem.reduced(at, v, tau), unknown)


def _settled(at: Local, point: Point, tau: Tensor) -> Float64[Tensor, "B m"]:
    """v = τλ - s; an inequality has one of the two, not both with rounding."""
    alone = at.dual.alone
    slack = torch.where(alone & (point.lam > 0), 0.0, at.g - torch.where(alone, at.dual.nearest(at.g), 0.0))
    return tau * point.lam + slack


def _negligible(at: Local, point: Point, scale: Scales, tau: Tensor) -> Float64[Tensor, "B m"]:
    """The size of v below which it is a tie; an inequality must have λ and g small, each in its unit."""
    tie = KINK * scale.slack
    lam = tau * torch.maximum(KINK * scale.multiplier, scale.rounding)
    return torch.where(at.dual.alone & (point.lam > 0), torch.where(at.g.abs() <= tie, lam, 0.0), tie)


def _on_bounds(at: Local, point: Point) -> Float64[Tensor, "B n"]:
    """x with rounding removed where an active inequality holds one coordinate: 0, not 1e-27."""
    bound = at.dual.alone & at.G.is_single & (point.lam > 0)
    if not bound.any():
        return point.x
    return point.x - at.G.mT(torch.where(bound, at.g / at.G.peaks**2, 0.0))


def _where(choose: Tensor, a: _Iterate, b: _Iterate) -> _Iterate:
    pick = choose[:, None]
    return _Iterate(
        torch.where(pick, a.x, b.x),
        torch.where(pick, a.v, b.v),
        torch.where(pick, a.nu, b.nu),
        torch.where(pick, a.projected, b.projected),
        torch.where(choose, a.merit, b.merit),
    )
