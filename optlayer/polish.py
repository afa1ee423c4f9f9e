r"""Polish: semismooth Newton on the normal map, batched, from whatever point an engine returned.

It repairs wrong active sets and turns a solver's 1e-4 into rounding error in a few steps (`newton`). The
residual may rise before it falls, so the *best* iterate is kept, never one worse than the engine's. There x
is put on its active bounds, and what is a tie made one (`settle`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.certify import FLOOR, Scales, extent, scales, stationarity
from optlayer.forms import Local, Point
from optlayer.forms.elimination import least_step
from optlayer.forms.kkt import Instance, Reduction, Step
from optlayer.matrix import largest
from optlayer.newton import TARGET, Iterate, Search, begin, chosen
from optlayer.ties import ties

ROUNDED = 1e-12  # and at which a step of Newton's is worth more than a smaller one
PATIENCE = 4  # steps without progress
LONG = 12  # the same, from far away
MAX_STEPS = 40
AT_REST = 1e-11  # relative change of a coordinate, or of a cone's v, that is none
NOISE = 1e-15  # and relative to the largest length of the data: rounding
NOTHING = 1e-40  # of the largest coordinate: what is left of 0 after many steps
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


def polish(problem: Instance, start: Point, patience: int = PATIENCE) -> Polished:
    """Newton from `start` to rounding error; samples that are NaN stay NaN.

    It stops after `patience` steps without progress, or one where rounding is reached.
    """
    search, at, now = begin(problem, start)
    best, stalled = now, torch.zeros_like(now.merit)
    seen: Local | None = at
    reduced: Reduction | None = None
    for _ in range(MAX_STEPS):
        enough = torch.where(best.merit <= ROUNDED, 1, patience)
        running = (best.merit > TARGET) & (stalled < enough) & now.merit.isfinite()
        if not running.any():
            break
        now, at, reduced = search.step(now, at, running)
        better = now.merit < best.merit
        stalled = torch.where(now.merit < 0.5 * best.merit, 0.0, stalled + 1)
        seen = at if (now.merit <= best.merit).all() else None
        best = chosen(better, now, best)
    tau = search.tau if problem.form.quadratic else None
    found = settle(problem, search.point(best), tau, seen, reduced)._replace(merit=best.merit)
    return _to_rest(search, best, found) if at.auxiliary else found


def _to_rest(search: Search, best: Iterate, found: Polished) -> Polished:
    """A last step where the merit has nothing left to say, but the step would still move something.

    A cone's rows are judged together, and what is small among them, x² in (1 + x², 1 - x², 2x), is right
    only at a root. The step is taken with the K of the settled point, which is at hand.
    """
    ahead = _ahead(search.problem, found)
    moving = (best.merit <= ROUNDED) & ahead.sound & _moves(search.problem, found, ahead)
    if not moving.any():
        return found._replace(ahead=ahead)
    last = _after(search, found, ahead)
    best = chosen(moving & (last.merit <= ROUNDED), last, best)
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


def _after(search: Search, found: Polished, ahead: Step) -> Iterate:
    """One step on from a settled point, whose v = τλ - s has another τ than the search's."""
    _, v, _ = search.problem.form.split(found.u)
    v = v + ahead.v
    projected = found.at.dual.nearest(v)
    lam = search.tau / found.tau * projected
    x, nu = found.point.x + ahead.x, found.point.nu + ahead.nu
    now = Iterate(x, lam - (projected - v), nu, lam, found.merit)
    return now._replace(merit=search.merit(search.problem.at(search.point(now)), now))


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


def settle(
    problem: Instance,
    point: Point,
    tau: Float64[Tensor, "B m"] | None = None,
    seen: Local | None = None,
    before: Reduction | None = None,
) -> Polished:
    """Put x on its active bounds, form v in its unit, snap ties to the kink.

    Args:
        problem: Whose point it is.
        point: Newton's last.
        tau: The unit of v; None: the one that the scale of the point gives.
        seen: What is known of the problem there.
        before: The K of Newton's last step, which may be that of the point.
    """
    at = problem.at(point) if seen is None else seen
    held = _on_bounds(at, point, problem.form.quadratic and problem.form.dual.is_orthant)
    if held is not point.x:
        point = point._replace(x=held)
        at = problem.at(point)
    scale = scales(at, point, problem.unit)
    tau = scale.tau if tau is None else tau
    v, kink = at.dual.snap(_settled(at, point, tau), _negligible(at, point, scale, tau))
    tie = kink.any(1) | ties(at, point, v, scale)
    point = point._replace(lam=at.dual.nearest(v) / tau)
    u = torch.cat([point.x, v, point.nu], 1)
    unknown = torch.zeros_like(point.x[:, 0])
    return Polished(point, u, tie, at, scale, problem.reduced(at, v, tau, before), unknown)


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


def _on_bounds(at: Local, point: Point, polyhedral: bool) -> Float64[Tensor, "B n"]:
    """x with rounding removed: 0, not 1e-27, where an active inequality holds one coordinate.

    Nor 1e-50, but in quadratic programmes over polyhedra alone: an exponential may be that small.
    """
    x, bound = point.x, at.dual.alone & at.G.is_single & (point.lam > 0)
    if bound.any():
        x = x - at.G.mT(torch.where(bound, at.g / at.G.peaks**2, 0.0))
    if not polyhedral:
        return x
    nothing = (x != 0) & (x.abs() <= NOTHING * largest(x))
    return torch.where(nothing, 0.0, x) if nothing.any() else x
