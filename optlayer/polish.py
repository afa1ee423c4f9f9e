r"""Polish: semismooth Newton on the normal map, batched, from whatever point an engine returned.

    J (Δx, Δv, Δν) = -(∇f + Gᵀλ + Aᵀν,  g - v + Π(v),  h)

It repairs wrong active sets and turns a solver's 1e-4 into rounding error in a few steps. The residual
may rise before it falls, so the *best* iterate is kept, never one worse than the engine's.

Where K is singular and that step solves nothing, it is the proximal point method's, weighted by the
residual.

Where f is defined on an open domain, z > 0 for an entropy, a step is taken in the logarithm of the
distance to the border, z exp(Δz / z): for log z + c = 0 that is the exact solution from any start.
Whatever else leaves the domain is halved until it does not.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import jacrev, vmap

from optlayer.certify import FLOOR, Scales, extent, over, scales, stationarity
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance, Step, reduce
from optlayer.linsolve import matvec

TARGET = 1e-14  # relative residual at which there is nothing left to gain
ROUNDED = 1e-12  # and at which a step of Newton's is worth more than a smaller one
PATIENCE = 4  # steps without progress
MAX_STEPS = 40
HALVINGS = 30
APEX = 1e-7  # a norm below this part of |x| is at its apex, where it has no derivative
CONSISTENT = 1e-6  # relative residual up to which a Newton step solves its system
KINK = 1e-10  # λ and g both below KINK times their scales are a tie
DEEPEST, HIGHEST = -300.0, 50.0  # exponents of one logarithmic step


class Polished(NamedTuple):
    """The best point, where it was evaluated, and u = (x, v, ν) with kinks snapped to v = 0."""

    point: Point
    u: Float64[Tensor, "B N"]
    tau: Float64[Tensor, "B m"]
    kink: Bool[Tensor, " B"]


class _Iterate(NamedTuple):
    x: Tensor
    v: Tensor
    nu: Tensor
    projected: Tensor  # Π(v) = τλ
    merit: Float64[Tensor, " B"]  # worst relative row of the normal map; inf where undefined


def polish(problem: Instance, start: Point) -> Polished:
    """Newton from `start` to rounding error; samples that are NaN stay NaN."""
    domain = _Domain(problem, start.x)
    start = Point(domain.project(start.x), start.lam, start.nu)
    at = problem.at(start)
    scale = scales(at, start, problem.unit).floored
    tau = scale.tau
    now = _begin(at, start, tau)
    inside = domain.holds(now.x)
    now = now._replace(merit=torch.where(inside, _merit(at, now, tau, scale), torch.inf))
    best, stalled = now, torch.zeros_like(now.merit)
    for _ in range(MAX_STEPS):
        running = (best.merit > TARGET) & (stalled < PATIENCE) & now.merit.isfinite()
        if not running.any():
            break
        now, at, scale = _step(problem, domain, now, at, scale, tau, running)
        better = now.merit < best.merit
        stalled = torch.where(now.merit < 0.5 * best.merit, 0.0, stalled + 1)
        best = _where(better, now, best)
    if at.auxiliary:
        best = _once_more(problem, domain, best, tau)
    return _settle(problem, best, tau)


def _once_more(problem: Instance, domain: "_Domain", best: _Iterate, tau: Tensor) -> _Iterate:
    """A last step where the merit has nothing left to say: a cone's rows are judged together, and what
    is small among them, x² in (1 + x², 1 - x², 2x), is right only at a root."""
    point = _point(best, tau)
    at = problem.at(point)
    ready = best.merit <= ROUNDED
    last, _, _ = _step(problem, domain, best, at, scales(at, point, problem.unit).floored, tau, ready)
    return _where(ready & (last.merit <= ROUNDED), last, best)


def in_domain(problem: Instance, x: Float64[Tensor, "B n"]) -> Bool[Tensor, " B"]:
    """Whether every logarithm, root and reciprocal is defined at x, and no norm at its apex."""
    spec = problem.form.domain
    if spec is None:
        return torch.ones_like(x[:, 0], dtype=torch.bool)
    norms = vmap(spec.norms)(x, *problem.theta)
    smooth = (norms > APEX * x.abs().amax(1, keepdim=True)).all(1)
    return _Domain(problem, x).holds(x) & smooth


def restlessness(problem: Instance, point: Point) -> Float64[Tensor, " B"]:
    """How far one more Newton step would move the user's x, relative to x; near 0 at an attained minimum."""
    at = problem.at(point)
    tau = scales(at, point, problem.unit).tau
    dx, _, _ = _newton(_begin(at, point, tau), at, tau)
    seen = problem.form.seen
    size = point.x[:, seen].abs().amax(1)
    if at.auxiliary:
        size = torch.maximum(size, FLOOR * extent(at, point.x).squeeze(1))
    return dx[:, seen].abs().amax(1) / size


def _begin(at: Local, point: Point, tau: Tensor) -> _Iterate:
    """v = τλ - s with s = Π_K(-g) at a point, not judged yet."""
    v = tau * point.lam + at.g - at.dual.project(at.g)
    unknown = torch.full_like(point.x[:, 0], torch.inf)
    return _Iterate(point.x, v, point.nu, at.dual.project(v), unknown)


def _step(
    problem: Instance,
    domain: "_Domain",
    now: _Iterate,
    at: Local,
    scale: Scales,
    tau: Tensor,
    running: Tensor,
) -> tuple[_Iterate, Local, Scales]:
    """One Newton step for the running samples, halved until it stays in the domain."""
    dx, v, nu = _newton(now, at, tau)
    projected = at.dual.project(v)
    t = torch.where(running, 1.0, 0.0)
    for _ in range(HALVINGS):
        moved = _Iterate(domain.move(now.x, t[:, None] * dx), v, nu, projected, now.merit)
        full = _where(running, moved, now)
        point = _point(full, tau)
        new_at = problem.at(point)
        new_scale = scales(new_at, point, problem.unit).floored
        merit = torch.where(domain.holds(full.x), _merit(new_at, full, tau, new_scale), torch.inf)
        if (merit.isfinite() | ~running).all():
            break
        t = torch.where(merit.isfinite(), t, 0.5 * t)
    return full._replace(merit=torch.where(running, merit, now.merit)), new_at, new_scale


def _newton(now: _Iterate, at: Local, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Δx, v⁺, ν⁺."""
    residual = (-stationarity(at, now.projected / tau, now.nu), now.v - now.projected - at.g, -at.h)
    reduced = reduce(at, at.dual.spectrum(now.v), tau)
    step = reduced.solve(*residual)
    inconsistent = (step.miss > CONSISTENT).squeeze(1)
    if inconsistent.any():
        proximal = reduced.solve(*residual, shift=_proximal(at, reduced.spectrum.d, now.merit))
        pick = inconsistent[:, None]
        step = Step(*(torch.where(pick, p, s) for p, s in zip(proximal, step, strict=True)))
    return step.x, now.v + step.v, now.nu + step.nu


def _proximal(at: Local, d: Tensor, merit: Tensor) -> Float64[Tensor, "B N"]:
    """(δ, -δd, -δ), in the units of H and GH⁻¹Gᵀ, with δ the residual: a proximal point step.

    Where too many constraints are held active K is singular and the step would be a compromise
    that moves nothing; this one lets go of the constraints that fight each other.
    """
    delta = merit.clamp(1e-12, 1e-2)[:, None]
    primal = delta * _size(at.hessian)
    dual = delta * _size(torch.cat([at.G, at.A], 1)) ** 2 / _size(at.hessian)
    return torch.cat([primal.expand_as(at.gradient), -dual * d, -dual.expand_as(at.h)], 1)


def _size(blocks: Float64[Tensor, "B r c"]) -> Float64[Tensor, "B 1"]:
    """The largest entry of each sample, 1 where all are 0."""
    if not blocks[0].numel():
        return blocks.new_ones(blocks.shape[0], 1)
    largest = blocks.flatten(1).abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


def _merit(at: Local, now: _Iterate, tau: Tensor, scale: Scales) -> Tensor:
    """The worst row of F(u), relative; where g is curved an inactive v is simply read off g."""
    rows = [
        (stationarity(at, now.projected / tau, now.nu), scale.stationarity),
        (at.g - now.v + now.projected, scale.inequality),
        (at.h, scale.equality),
    ]
    worst = torch.cat([over(r, s).abs() for r, s in rows], 1).amax(1)
    return torch.where(worst.isnan(), torch.inf, worst)


def _settle(problem: Instance, best: _Iterate, tau: Tensor) -> Polished:
    """Put x on its active bounds, read λ, form v anew in the final scale, snap ties to the kink."""
    point = _point(best, tau)
    point = point._replace(x=_on_bounds(problem.at(point), point))
    at = problem.at(point)
    scale = scales(at, point, problem.unit)
    tau = scale.tau
    v, kink = at.dual.snap(_settled(at, point, tau), _negligible(at, point, scale))
    point = point._replace(lam=at.dual.project(v) / tau)
    return Polished(point, torch.cat([point.x, v, point.nu], 1), tau, kink.any(1))


def _settled(at: Local, point: Point, tau: Tensor) -> Float64[Tensor, "B m"]:
    """v = τλ - s; an inequality has one of the two, not both with rounding."""
    alone = at.dual.alone
    slack = torch.where(alone & (point.lam > 0), 0.0, at.g - torch.where(alone, at.dual.project(at.g), 0.0))
    return tau * point.lam + slack


def _negligible(at: Local, point: Point, scale: Scales) -> Float64[Tensor, "B m"]:
    """The size of v below which it is a tie; an inequality must have λ and g small, each in its unit."""
    tie = KINK * scale.slack
    lam = scale.tau * torch.maximum(KINK * scale.multiplier, scale.rounding)
    return torch.where(at.dual.alone & (point.lam > 0), torch.where(at.g.abs() <= tie, lam, 0.0), tie)


def _on_bounds(at: Local, point: Point) -> Float64[Tensor, "B n"]:
    """x with rounding removed where an active inequality holds one coordinate: 0, not 1e-27."""
    bound = at.dual.alone & ((at.G != 0).sum(2) == 1) & (point.lam > 0)
    correction = torch.where(bound, at.g / (at.G**2).sum(2), 0.0)
    return point.x - matvec(at.G.mT, correction)


def _point(now: _Iterate, tau: Tensor) -> Point:
    return Point(now.x, now.projected / tau, now.nu)


def _where(choose: Tensor, a: _Iterate, b: _Iterate) -> _Iterate:
    pick = choose[:, None]
    return _Iterate(
        torch.where(pick, a.x, b.x),
        torch.where(pick, a.v, b.v),
        torch.where(pick, a.nu, b.nu),
        torch.where(pick, a.projected, b.projected),
        torch.where(choose, a.merit, b.merit),
    )


class _Domain:
    """Distances of coordinates to the border of the domain, for one call."""

    def __init__(self, problem: Instance, x: Tensor) -> None:
        self.theta, self.spec = problem.theta, problem.form.domain
        self._x = x

    @cached_property
    def _coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and slope of the borders that stop one coordinate; constant in x."""
        assert self.spec is not None
        row, column = torch.tensor(self.spec.row), torch.tensor(self.spec.column)
        slopes = vmap(jacrev(self.spec.borders))(self._x, *self.theta)
        return row, column, slopes[:, row, column]

    def _borders(self, x: Tensor) -> Float64[Tensor, "B k"]:
        assert self.spec is not None
        return vmap(self.spec.borders)(x, *self.theta)

    def holds(self, x: Tensor) -> Bool[Tensor, " B"]:
        if self.spec is None:
            return torch.ones_like(x[:, 0], dtype=torch.bool)
        return (self._borders(x) > 0).all(1)

    def _distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far each coordinate may fall, and rise; inf where nothing stops it."""
        row, column, slope = self._coordinates
        distance = self._borders(x)[:, row] / slope.abs()
        free = torch.full_like(x, torch.inf)
        column = column.expand(x.shape[0], -1)
        falling = torch.where(slope > 0, distance, torch.inf)
        rising = torch.where(slope < 0, distance, torch.inf)
        return tuple(free.scatter_reduce(1, column, d, "amin") for d in (falling, rising))  # type: ignore[return-value]

    def project(self, x: Tensor) -> Tensor:
        """Engines return z = -1e-12 where z > 0 is meant: put it just inside."""
        if self.spec is None or not self.spec.row:
            return x
        floor = 1e-12 * x.abs().amax(1, keepdim=True)
        floor = torch.where(floor > 0, floor, 1e-12)
        below, above = self._distances(x)
        x = x + (floor - below).clamp_min(0.0)
        return x - (floor - above).clamp_min(0.0)

    def move(self, x: Tensor, dx: Tensor) -> Tensor:
        """x + Δx, stepping in the logarithm of the distance to the nearer border.

        The distance is multiplied, not added to: it may shrink from 1e-9 to 1e-80 in two steps.
        """
        if self.spec is None or not self.spec.row:
            return x + dx
        below, above = self._distances(x)
        nearer, farther = torch.minimum(below, above), torch.maximum(below, above)
        inward = torch.where(below <= above, 1.0, -1.0)  # the direction away from the nearer border
        exponent = (inward * dx / nearer).clamp(DEEPEST, HIGHEST)
        distance = torch.minimum(nearer * exponent.exp(), nearer + 0.9 * farther)
        moved = (x - inward * nearer) + inward * distance
        return torch.where(nearer.isfinite(), moved, x + dx)
