"""The root of an increasing function on an interval, batched: numbers only, and vmap goes through."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
STEPS = 40  # 30 find every root of the cones here; the others bisect towards an end of the domain
FIRST_STEPS = 8  # enough for nine in ten; only the rest go on
SOLVED = 1e-10  # size of a Newton step, relative to the room around it, that leaves the next one nothing

Function = Callable[..., tuple[Tensor, Tensor]]  # (x, *data) -> value, slope > 0


class _Search(NamedTuple):
    x: Float64[Tensor, "*batch 1"]
    low: Float64[Tensor, "*batch 1"]  # the bracket
    high: Float64[Tensor, "*batch 1"]
    first: Float64[Tensor, "*batch 1"]  # the domain
    last: Float64[Tensor, "*batch 1"]
    done: Bool[Tensor, "*batch 1"]


def increasing_root(
    function: Function,
    low: Float64[Tensor, "*batch 1"],
    high: Float64[Tensor, "*batch 1"],
    start: Float64[Tensor, "*batch 1"],
    *data: Float64[Tensor, "*batch _"],
) -> Float64[Tensor, "*batch 1"]:
    """Newton; where it would leave the bracket, Newton in the logarithm of the distance to the end of
    the domain (exact for a logarithmic singularity there); where that would too, bisection.
    """
    shape = start.shape
    start, low, high, *rows = (a.reshape(-1, a.shape[-1]) for a in (start, low, high, *data))
    now = _Search(start, low, high, low, high, torch.zeros_like(start, dtype=torch.bool))
    now = _run(function, now, rows, FIRST_STEPS)
    running = _known(~now.done.squeeze(-1))
    if running is None:
        return _run(function, now, rows, STEPS - FIRST_STEPS).x.reshape(shape)
    rest = _Search(*(field[running] for field in now))
    rest = _run(function, rest, [row[running] for row in rows], STEPS - FIRST_STEPS)
    return now.x.index_put((running,), rest.x).reshape(shape)


def _run(function: Function, now: _Search, data: list[Tensor], steps: int) -> _Search:
    for _ in range(steps):
        known = _known(now.done)
        if known is not None and known.all():
            break
        now = _step(now, *function(now.x, *data))
    return now


def _step(now: _Search, value: Tensor, slope: Tensor) -> _Search:
    """What is done stays as it is, so that no answer depends on its neighbours."""
    x, low, high, first, last, done_before = now
    low, high = torch.where(value < 0, x, low), torch.where(value > 0, x, high)
    step = -value / slope
    to_end = torch.where(step < 0, x - first, last - x)
    cautious = torch.where(to_end.isfinite(), -step.sign() * to_end * torch.expm1(-step.abs() / to_end), step)
    middle = torch.where(low.isfinite() & high.isfinite(), 0.5 * (low + high), x + cautious)
    rounding = 4 * EPS * x.abs()
    room = torch.minimum(x - first, last - x).clamp_max(1.0)
    done = (value == 0) | (step.abs() <= torch.maximum(SOLVED * room, rounding))
    new = torch.where(_between(low, x + cautious, high), x + cautious, middle)
    new = torch.where(done, x, new)
    new = torch.where(_between(low, x + step, high), x + step, new)
    done = done | (new == x) | (high - low <= rounding) | value.isnan() | done_before
    return _Search(torch.where(done_before, x, new), low, high, first, last, done)


def _between(low: Tensor, x: Tensor, high: Tensor) -> Bool[Tensor, "*batch 1"]:
    return (low < x) & (x < high)


def _known(mask: Bool[Tensor, "*batch"]) -> Bool[Tensor, "*batch"] | None:
    """The mask, if its values can be asked for: under vmap they cannot, and all steps are taken."""
    try:
        bool(mask.any())
    except RuntimeError:
        return None
    return mask
