"""Where the interior point for smooth problems sets out: well inside of the bounds, near to h = 0."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.engines.interior_rows import Rows, State, Units
from optlayer.forms import Local, Point
from optlayer.forms.borders import Box
from optlayer.forms.elimination import least_step
from optlayer.matrix import largest, or_one

CLEAR = 1e-6  # of the unit of its row: a start with -g above it is taken for s as it is
NEAR = 0.9  # of the way to a bound that a start may go
ELSEWHERE = (1.0, 0.5, 0.1, 0.01, -0.1, -1.0, 10.0)  # where to look for a point with a finite f


def start(rows: Rows) -> tuple[State, Local, Units]:
    """Well inside of the bounds, near to h = 0, s∘λ of one size."""
    form, zeros = rows.problem.form, rows.zeros
    none = State(zeros, *(zeros.new_zeros(len(zeros), k) for k in (rows.m, rows.m, form.p)))
    at = rows.local(none)
    x = _with_finite_f(rows, _nearest(_box(at), rows, none))
    now = none._replace(x=x)
    at = rows.local(now)
    units = _units(at, x)
    slack = -at.g
    clear = slack > CLEAR * units.g
    s = torch.where(clear, slack, units.g)
    now = now._replace(s=s, lam=units.f / s)
    return now, rows.local(now), units


def _box(at: Local) -> Box:
    """Sides as far as rows with one entry give them, g_i + G_ij x_j <= 0 at x = 0."""
    G = at.G.dense().expand(len(at.g), -1, -1)
    slope = torch.where(at.G.is_single & at.g.isfinite(), -G.sum(2), 0.0)
    column = G.abs().argmax(2) if G.shape[1] else G.new_zeros(G.shape[:2], dtype=torch.int64)
    return Box.of(slope, -at.g, column, G.shape[2])


def _nearest(box: Box, rows: Rows, none: State) -> Float64[Tensor, "B n"]:
    """From inside of the box towards the nearest point with h = 0."""
    x = box.inside()
    if not none.nu.shape[1]:
        return x
    dx = least_step(rows.local(none._replace(x=x)))
    return box.towards(x, torch.where(dx.isfinite(), dx, 0.0), NEAR)


def _with_finite_f(rows: Rows, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:
    """x, or where f is not defined there the first constant vector at which it is."""
    evaluate = rows.problem.form
    none = Point(x, *(x.new_zeros(len(x), k) for k in (evaluate.m, evaluate.p)))

    def defined(x: Tensor) -> Bool[Tensor, "B 1"]:
        left = evaluate.rows(none._replace(x=x), *rows.problem.theta)[0]
        finite = left.isfinite().all(1, keepdim=True) & rows.value(x).isfinite()
        return finite & rows.holds(x)

    fine = defined(x)
    for constant in ELSEWHERE if not bool(fine.all()) else ():
        other = torch.full_like(x, constant)
        x, fine = torch.where(fine, x, other), fine | defined(other)
    return x


def _units(at: Local, x: Float64[Tensor, "B n"]) -> Units:
    """A length of x from where the rows stand and x itself; slopes from ∇f and what H makes of that."""
    rows = [(at.g, at.G), (at.h, at.A)]
    away = [largest(r.abs() / or_one(M.peaks)) for r, M in rows]
    length = or_one(torch.maximum(torch.maximum(*away), largest(x)))
    slope = or_one(largest(at.gradient) + largest(at.hessian.diagonal()) * length)
    g, h = (or_one(M.peaks) * length for _, M in rows)
    return Units(length, slope, g, h)
