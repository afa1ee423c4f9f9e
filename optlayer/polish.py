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

from optlayer.certify import FLOOR, Scales, extent, numbers, over, scales, sizes, stationarity
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance, Reduction
from optlayer.matrix import diagonal
from optlayer.saddle import Base, Factor

TARGET = 2e-14  # relative residual at which there is nothing left to gain
ROUNDED = 1e-12  # and at which a step of Newton's is worth more than a smaller one
PATIENCE = 4  # steps without progress
LONG = 12  # the same, from far away
MAX_STEPS = 40
HALVINGS = 30
APEX = 1e-7  # a norm below this part of |x| is at its apex, where it has no derivative
KINK = 1e-10  # λ and g both below KINK times their scales are a tie
NEAR = 0.999  # of the way to a border that a start may go
DEEPEST, HIGHEST = -300.0, 50.0  # exponents of one logarithmic step


class Polished(NamedTuple):
    """The best point, u = (x, v, ν) with kinks snapped to v = 0, and all that was evaluated there."""

    point: Point
    u: Float64[Tensor, "B N"]
    kink: Bool[Tensor, " B"]
    at: Local
    scale: Scales
    reduced: Reduction  # K at u, which the backward pass needs once more
    merit: Float64[Tensor, " B"]  # worst relative row of the normal map, as far as Newton's method came

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
    if at.auxiliary:
        best = _once_more(search, best)
    return settle(problem, search.point(best))._replace(merit=best.merit)


def _once_more(search: "_Search", best: _Iterate) -> _Iterate:
    """A last step where the merit has nothing left to say: a cone's rows are judged together, and what
    is small among them, x² in (1 + x², 1 - x², 2x), is right only at a root."""
    ready = best.merit <= ROUNDED
    if not ready.any():
        return best
    last, _ = search.step(best, search.problem.at(search.point(best)), ready)
    return _where(ready & (last.merit <= ROUNDED), last, best)


def start(problem: Instance) -> Point:
    """A point to set out from where no engine is needed.

    1 inside of a coordinate's border or midway between two, 0 where there is none; from there to the
    nearest point with h = 0, as far as the borders allow.
    """
    form = problem.form
    device = problem.theta[0].device if problem.theta else None
    x, lam, nu = (
        torch.zeros(problem.size, k, dtype=torch.float64, device=device) for k in (form.n, form.m, form.p)
    )
    domain = _Domain(problem, x)
    x = domain.inside()
    if form.p:
        at = problem.at(Point(x, lam, nu))
        nearest = Factor(Base.of(diagonal(torch.ones_like(x[:1])), at.A), None, torch.zeros_like(nu))
        x = domain.towards(x, nearest.solve(torch.zeros_like(x), -at.h).x)
    return Point(x, lam, nu)


def in_domain(problem: Instance, x: Float64[Tensor, "B n"]) -> Bool[Tensor, " B"]:
    """Whether every logarithm, root and reciprocal is defined at x, and no norm at its apex."""
    spec = problem.form.domain
    if spec is None:
        return torch.ones_like(x[:, 0], dtype=torch.bool)
    norms = vmap(spec.norms)(x, *problem.theta)
    smooth = (norms > APEX * x.abs().amax(1, keepdim=True)).all(1)
    return _Domain(problem, x).holds(x) & smooth


def restlessness(problem: Instance, found: Polished) -> Float64[Tensor, " B"]:
    """How far one more Newton step would move the user's x, relative to x; near 0 at an attained minimum."""
    at, (x, lam, nu), seen = found.at, found.point, problem.form.seen
    v = problem.form.split(found.u)[1]
    step = found.reduced.solve(-stationarity(at, lam, nu), v - found.tau * lam - at.g, -at.h)
    size = x[:, seen].abs().amax(1)
    if at.auxiliary:
        size = torch.maximum(size, FLOOR * extent(at, x).squeeze(1))
    return step.x[:, seen].abs().amax(1) / size


def _begin(problem: Instance, start: Point) -> tuple["_Search", Local, _Iterate]:
    """Units for the search, and v = τλ - s with s = Π_K(-g) at its start."""
    domain = _Domain(problem, start.x)
    start = Point(domain.project(start.x), start.lam, start.nu)
    at = problem.at(start)
    scale = scales(at, start, problem.unit)
    handed = scale.stationarity if at.auxiliary else torch.zeros_like(start.x)
    search = _Search(problem, domain, scale.tau, scale.length, handed)
    v = scale.tau * start.lam + at.g - at.dual.project(at.g)
    now = _Iterate(start.x, v, start.nu, at.dual.project(v), torch.full_like(start.x[:, 0], torch.inf))
    return search, at, now._replace(merit=search.merit(at, now))


class _Search(NamedTuple):
    """What stays the same from step to step."""

    problem: Instance
    domain: "_Domain"
    tau: Float64[Tensor, "B m"]
    length: Float64[Tensor, "B n"]  # of each coordinate: a floor under rows of zeros
    handed: Float64[Tensor, "B n"]  # size of the rows of auxiliary variables, which hold multipliers only

    def step(self, now: _Iterate, at: Local, running: Bool[Tensor, " B"]) -> tuple[_Iterate, Local]:
        """One Newton step for the running samples, halved until it stays in the domain."""
        dx, v, nu = self._newton(now, at)
        target = _Iterate(now.x, v, nu, at.dual.project(v), now.merit)
        t = torch.where(running, 1.0, 0.0)
        for _ in range(HALVINGS):
            full = _where(running, target._replace(x=self.domain.move(now.x, t[:, None] * dx)), now)
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
        terms, inequality, equality = sizes(at, Point(now.x, lam, now.nu))
        terms = terms + self.handed + FLOOR * terms.amax(1, keepdim=True)
        rows = [over(stationarity(at, lam, now.nu), numbers(terms))]
        if at.g.shape[1]:
            unit = at.dual.over_blocks(inequality + FLOOR * (at.G.abs @ self.length))
            rows.append(over(at.g - now.v + now.projected, unit))
        if at.h.shape[1]:
            rows.append(over(at.h, equality + FLOOR * (at.A.abs @ self.length)))
        worst = torch.cat(rows, 1).abs().amax(1)
        return torch.where(self.domain.holds(now.x) & ~worst.isnan(), worst, torch.inf)

    def point(self, now: _Iterate) -> Point:
        """x, λ, ν."""
        return Point(now.x, now.projected / self.tau, now.nu)

    def _newton(self, now: _Iterate, at: Local) -> tuple[Tensor, Tensor, Tensor]:
        """Δx, v⁺, ν⁺."""
        left = stationarity(at, now.projected / self.tau, now.nu)
        residual = (-left, now.v - now.projected - at.g, -at.h)
        reduced = self.problem.reduced(at, now.v, self.tau)
        dx, dv, dnu, sound = reduced.solve(*residual)
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
    H, E = _or_one(at.hessian.peak), _or_one(torch.maximum(at.G.peak, at.A.peak))
    return (delta * H).expand_as(at.gradient[:, :1]), (delta * E**2 / H).expand_as(at.gradient[:, :1])


def _or_one(size: Float64[Tensor, "B 1"]) -> Float64[Tensor, "B 1"]:
    return torch.where(size > 0, size, 1.0)


def settle(problem: Instance, point: Point) -> Polished:
    """Put x on its active bounds, form v in the scale of the point, snap ties to the kink."""
    at = problem.at(point)
    held = _on_bounds(at, point)
    if held is not point.x:
        point = point._replace(x=held)
        at = problem.at(point)
    scale = scales(at, point, problem.unit)
    tau = scale.tau
    v, kink = at.dual.snap(_settled(at, point, tau), _negligible(at, point, scale))
    point = point._replace(lam=at.dual.project(v) / tau)
    u = torch.cat([point.x, v, point.nu], 1)
    unknown = torch.zeros_like(point.x[:, 0])
    return Polished(point, u, kink.any(1), at, scale, problem.reduced(at, v, tau), unknown)


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


class _Domain:
    """Distances of coordinates to the border of the domain, for one call."""

    def __init__(self, problem: Instance, x: Tensor) -> None:
        self.theta, self.spec = problem.theta, problem.form.domain
        self._x = x

    @cached_property
    def _coordinates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row, column, slope and offset of the borders that stop one coordinate, each affine in it."""
        assert self.spec is not None
        row, column = torch.tensor(self.spec.row), torch.tensor(self.spec.column)
        origin = torch.zeros_like(self._x)
        slopes = vmap(jacrev(self.spec.borders))(origin, *self.theta)
        return row, column, slopes[:, row, column], self._borders(origin)[:, row]

    def _borders(self, x: Tensor) -> Float64[Tensor, "B k"]:
        assert self.spec is not None
        return vmap(self.spec.borders)(x, *self.theta)

    def holds(self, x: Tensor) -> Bool[Tensor, " B"]:
        if self.spec is None:
            return torch.ones_like(x[:, 0], dtype=torch.bool)
        if len(self.spec.row) == self.spec.size:
            _, column, slope, offset = self._coordinates
            return (slope * x[:, column] + offset > 0).all(1)
        return (self._borders(x) > 0).all(1)

    def _distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far each coordinate may fall, and rise; inf where nothing stops it."""
        _, column, slope, offset = self._coordinates
        distance = x[:, column] + offset / slope
        free = torch.full_like(x, torch.inf)
        column = column.expand(x.shape[0], -1)
        falling = torch.where(slope > 0, distance, torch.inf)
        rising = torch.where(slope < 0, -distance, torch.inf)
        return tuple(free.scatter_reduce(1, column, d, "amin") for d in (falling, rising))  # type: ignore[return-value]

    def inside(self) -> Tensor:
        """The point 1 inside of a coordinate's border, or midway between two; 0 where there is none."""
        if self.spec is None or not self.spec.row:
            return self._x
        below, above = self._distances(self._x)
        lower, upper = self._x - below, self._x + above
        one_sided = torch.where(
            lower.isfinite(), lower + 1.0, torch.where(upper.isfinite(), upper - 1.0, self._x)
        )
        return torch.where(lower.isfinite() & upper.isfinite(), 0.5 * (lower + upper), one_sided)

    def towards(self, x: Tensor, dx: Tensor) -> Tensor:
        """x + Δx, but no farther than NEAR of the way to a border."""
        if self.spec is None or not self.spec.row:
            return x + dx
        below, above = self._distances(x)
        return x + torch.maximum(torch.minimum(dx, NEAR * above), -NEAR * below)

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
