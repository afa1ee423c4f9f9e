r"""The certificate: relative KKT residuals of the user's own f, g, h at a primal-dual point.

A solver's word is never enough. Every row is divided by the size of the terms that make it,

    stationarity  |∇f + Gᵀλ + Aᵀν|   against   |H||x| + |∇f| + |G|ᵀ|λ| + |A|ᵀ|ν|
    primal        Π(g), |h|          against   |G||x| + |g - Gx|,  |A||x| + |h - Ax|
    dual          λ - Π(λ)           against   the size at which λ would matter
    complementarity  λ - Π(λ + g)    each in its own unit: zero iff λ ∈ K*, -g ∈ K and ⟨λ, g⟩ = 0

so that neither the scale of the objective, nor of a row, nor of a coordinate can turn a wrong answer
into a right one or the reverse: max(1, ·) appears nowhere, and no row is excused by the size of
another: the coordinate that runs away along an unattained infimum must not hide behind its neighbours.
A row made of nothing, 0/0, passes. Π is the projection onto K*, max(·, 0) for inequalities; the rows
of one cone share one scale, the largest of theirs, since a cone knows no unit of its parts.

Where x* = 0 the terms of a row may vanish with its residual although the data do not. Rows that fail
are therefore judged once more, against what a relative change of the data could make of them,
|∂F/∂θ||θ|: the componentwise backward error of Oettli & Prager (1964).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones import Product
from optlayer.forms import Local, Point
from optlayer.matrix import largest, or_one
from optlayer.solution import Residuals

FLOOR = 1e-7  # of a row's reach: rounding in a row of zeros
ROOM = 10.0  # how much rounding auxiliary variables may gather
PASSES = 3  # constraints that a scale is handed on through
LARGEST = 1e4  # multiples of the terms of f that multipliers may bring to a row
ROUNDING = 5e-17  # of the largest multipliers: rounding in the others
NOTHING = 1e-15  # of what a row could hold: the rounding of other rows


class Sizes(NamedTuple):
    """How large the terms of each row are, in the row's own unit."""

    stationarity: Float64[Tensor, "B n"]  # |H||x| + |∇f| + |G|ᵀ|λ| + |A|ᵀ|ν|
    inequality: Float64[Tensor, "B m"]  # |G||x| + |g - Gx|
    equality: Float64[Tensor, "B p"]  # |A||x| + |h - Ax|
    objective: Float64[Tensor, "B n"]  # |H||x| + |∇f|, the share of f in the first
    g0: Float64[Tensor, "B m"]  # |g - Gx|
    h0: Float64[Tensor, "B p"]  # |h - Ax|


class Scales(NamedTuple):
    """What could make each row, in the row's own unit; constant on each cone."""

    stationarity: Float64[Tensor, "B n"]
    inequality: Float64[Tensor, "B m"]
    equality: Float64[Tensor, "B p"]
    multiplier: Float64[Tensor, "B m"]  # the size at which λ_i would matter to some row it enters
    slack: Float64[Tensor, "B m"]  # the size of -g_i that an x as long as its coordinates are makes
    rounding: Float64[Tensor, "B m"]  # a λ_i below this is noise of the largest multipliers
    length: Float64[Tensor, "B n"]  # of each coordinate of x, where x_j = 0 too
    price: Float64[Tensor, "B m"]  # |λ| itself in cones of several rows
    most: Float64[Tensor, "B 1"]  # that a row of stationarity may have

    @property
    def tau(self) -> Float64[Tensor, "B m"]:
        """τ, a power of two that brings λ and g to one size; 1 where either has no scale.

        Where a cone's λ is far larger than matters to any row, parts of it cancel: beside τλ no digit of g
        may be lost.
        """
        ratio = self.slack / torch.maximum(self.multiplier, self.price)
        return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0).log2().round().exp2()

    def plus(self, data: Float64[Tensor, "B N"], alone: Float64[Tensor, "B N"], dual: Product) -> "Scales":
        """With the rows' sensitivity to the data, |∂F/∂θ||θ|, added.

        Multipliers far beyond f excuse nothing here either: `alone` is the same without them.
        """
        sizes = [part.shape[1] for part in self[:3]]
        x, g, h = data.split(sizes, 1)
        most = torch.maximum(self.most, LARGEST * largest(alone[:, : sizes[0]]))
        return self._replace(
            stationarity=self.stationarity + torch.minimum(x, most),
            inequality=self.inequality + dual.over_blocks(g),
            equality=self.equality + h,
        )


def sizes(at: Local, point: Point) -> Sizes:
    """The terms of every row, added up without their signs."""
    x = point.x.abs()
    of_f = at.hessian.abs @ x + at.gradient.abs()
    g0, h0 = (at.g - at.G @ point.x).abs(), (at.h - at.A @ point.x).abs()
    return Sizes(
        of_f + at.G.abs.mT(point.lam.abs()) + at.A.abs.mT(point.nu.abs()),
        at.G.abs @ x + g0,
        at.A.abs @ x + h0,
        of_f,
        g0,
        h0,
    )


def scales(at: Local, point: Point, unit: float = 0.0) -> Scales:
    """The scale of every row at a point; `unit` is a length to fall back on where x* = 0."""
    x, over_blocks, size = point.x.abs(), at.dual.over_blocks, sizes(at, point)
    terms, inequality, equality = size[:3]
    if at.auxiliary:
        longest = extent(at, point.x)
        lengths = _reached(at, x, over_blocks(inequality), equality, longest)
        reach, widest = torch.maximum(lengths, _alone(at, point.x)), torch.maximum(lengths, ROOM * longest)
        terms = terms + _passed_on(at, point.x, lengths)
    else:
        lengths = reach = widest = _lengths(at, x, size).clamp_min(unit)
        idle = _idle(at, point.x)
        if idle.any():
            terms = torch.where(idle, terms + FLOOR * _passed_on(at, point.x, lengths), terms)
    most = _balanced(at, lengths)
    terms = numbers(torch.minimum(terms, most))
    return Scales(
        terms + unit * FLOOR * (at.hessian.abs @ torch.ones_like(x)) if unit else terms,
        over_blocks(inequality + FLOOR * (at.G.abs @ widest)),
        equality + FLOOR * (at.A.abs @ widest),
        -over_blocks(-at.G.least(terms)),  # λ_i counts in the row where it weighs most
        over_blocks(inequality + at.G.abs @ reach),
        over_blocks(ROUNDING * largest(terms) / at.G.peaks),
        widest,
        torch.where(at.dual.alone, 0.0, over_blocks(point.lam.abs())),
        most,
    )


def without_empty_rows(at: Local, point: Point, scale: Scales) -> Scales:
    """The scales, ∞ in rows that hold nothing but rounding: 0 = 1e-17, in data as in answers.

    Such a row's terms are lost beside those that coordinates, or multipliers, as large as the others' would
    bring. No residual of it can be less.
    """
    size, (x, lam, nu) = sizes(at, point), point
    longest, dearest = largest(x).expand_as(x), torch.maximum(largest(lam), largest(nu))
    reach = (
        at.hessian.abs @ longest + at.G.abs.mT(dearest.expand_as(lam)) + at.A.abs.mT(dearest.expand_as(nu)),
        at.dual.over_blocks(at.G.abs @ longest),
        at.A.abs @ longest,
    )
    kept = (torch.where(s <= NOTHING * r, torch.inf, t) for s, r, t in zip(size, reach, scale))
    return scale._replace(**dict(zip(("stationarity", "inequality", "equality"), kept)))


def _balanced(at: Local, lengths: Float64[Tensor, "B n"]) -> Float64[Tensor, "B 1"]:
    """The largest scale that a row of stationarity may have: multipliers far beyond f excuse nothing.

    Where there is no feasible point, or no multiplier, they grow until any ∇f is lost beside them.
    """
    of_f = largest(at.hessian.abs @ lengths + at.gradient.abs())
    return torch.where(of_f > 0, LARGEST * of_f, torch.inf)


def _lengths(at: Local, x: Float64[Tensor, "B n"], size: Sizes) -> Float64[Tensor, "B n"]:
    """A length for each coordinate that survives x* = 0: |x_j|, or s_j / H_jj where f curves; x >= 0.

    Where it does not, one for all: the largest of |x|, |g - Gx| / |G|, |h - Ax| / |A|.
    """
    curvature, across = at.hessian.diagonal(), largest(x)
    for M, offset in ((at.G, size.g0), (at.A, size.h0)):
        if M.shape[0]:
            across = torch.maximum(across, (largest(offset) / M.peak).nan_to_num(0.0, 0.0, 0.0))
    own = torch.where(curvature > 0, size.objective / curvature, across)
    return torch.maximum(x, own.nan_to_num(0.0, 0.0, 0.0))


def _reached(
    at: Local, x: Tensor, inequality: Tensor, equality: Tensor, longest: Tensor
) -> Float64[Tensor, "B n"]:
    """A length for each coordinate, auxiliary ones included: what the rows it stands in allow for.

    x̂_k = max(|x_k|, min_i r_i / |A_ik|) with r_i = |A||x| + |b|, and no less than rounding in the largest.
    """
    least = torch.minimum(at.A.column_least(_or_none(equality)), at.G.column_least(_or_none(inequality)))
    return torch.maximum(torch.maximum(x, _finite(least)), FLOOR * longest)


def _alone(at: Local, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:
    """|q_j| / P_jj, where f alone would lead a coordinate; 0 where f does not curve."""
    return ((at.gradient - at.hessian @ x).abs() / at.hessian.diagonal()).nan_to_num(0.0, 0.0, 0.0)


def extent(at: Local, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B 1"]:
    """The largest length that the data hold: max |b_i| / |A_ij|, and |q_j| / |P_jj|.

    1 where they hold none: the problem is then homogeneous, its solution 0, and the unit the user's own.
    """
    ratios = [
        (at.h - at.A @ x).abs() / at.A.smallest,
        (at.g - at.G @ x).abs() / at.G.smallest,
        _alone(at, x),
    ]
    return or_one(torch.cat(ratios, 1).nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True))


def _passed_on(at: Local, x: Tensor, lengths: Tensor) -> Float64[Tensor, "B n"]:
    """The size of each stationarity row, handed from row to row by the constraints they share.

    The row of an auxiliary variable, or of one that is seen through auxiliary ones alone, holds nothing
    but multipliers, which may all be 0. Their natural size is that of the rows they have to balance:

        ŝ_k = |P|x̂ + |q|,    ŷ_i = min_k ŝ_k / |A_ik|,    ŝ_k = max(ŝ_k, max_i |A_ik| ŷ_i),   and again
    """
    size = at.hessian.abs @ lengths + (at.gradient - at.hessian @ x).abs()
    for _ in range(PASSES):
        some = _or_none(size)
        equality, inequality = _finite(at.A.least(some)), at.dual.over_blocks(_finite(at.G.least(some)))
        handed = torch.maximum(at.A.column_largest(equality), at.G.column_largest(inequality))
        size = torch.maximum(size, handed)
    return torch.maximum(size, FLOOR * largest(size))


def _idle(at: Local, x: Float64[Tensor, "B n"]) -> Bool[Tensor, "B n"]:
    """Rows in which f has no part, a slack variable's: they too hold nothing but multipliers."""
    constant = at.gradient - at.hessian @ x
    return (at.hessian.abs @ torch.ones_like(x) == 0) & (constant == 0)


def _or_none(sizes: Tensor) -> Tensor:
    """Sizes of 0 say nothing: no bound."""
    return torch.where(sizes > 0, sizes, torch.inf)


def _finite(sizes: Tensor) -> Tensor:
    """0 where there was none."""
    return torch.where(sizes.isfinite(), sizes, 0.0)


def residuals(at: Local, point: Point, scale: Scales) -> Residuals:
    """The certificate's four numbers per sample; NaN where the point is not a number."""
    lam, g = over(point.lam, scale.multiplier), over(at.g, scale.inequality)
    violation, nearest, natural = at.dual.nearest(torch.stack([g, lam, lam + g]))
    return Residuals(
        stationarity=_worst(over(stationarity(at, point.lam, point.nu), scale.stationarity)),
        primal=_worst(torch.cat([violation, over(at.h, scale.equality)], 1)),
        dual=_worst(lam - nearest),
        complementarity=_worst(lam - natural),
    )


def stationarity(at: Local, lam: Tensor, nu: Tensor) -> Float64[Tensor, "B n"]:
    """∇f + Gᵀλ + Aᵀν."""
    return at.gradient + at.G.mT(lam) + at.A.mT(nu)


def over(r: Tensor, scale: Tensor) -> Tensor:
    """r / scale with 0 / 0 = 0."""
    return torch.where(r == 0.0, 0.0, r / scale)


def numbers(scale: Tensor) -> Tensor:
    """NaN where a scale has overflown: it would excuse anything."""
    return torch.where(scale.isinf(), torch.nan, scale)


def _worst(rows: Float64[Tensor, "B k"]) -> Float64[Tensor, " B"]:
    return largest(rows).squeeze(1)
