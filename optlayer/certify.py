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
from jaxtyping import Float64
from torch import Tensor

from optlayer.cones import Product
from optlayer.forms import Local, Point
from optlayer.linsolve import matvec
from optlayer.solution import Residuals

FLOOR = 1e-7  # of a row's reach: rounding in a row of zeros
ROOM = 10.0  # how much rounding auxiliary variables may gather
PASSES = 3  # constraints that a scale is handed on through
ROUNDING = 5e-17  # of the largest multipliers: rounding in the others


class Scales(NamedTuple):
    """What could make each row, in the row's own unit; constant on each cone."""

    stationarity: Float64[Tensor, "B n"]
    inequality: Float64[Tensor, "B m"]
    equality: Float64[Tensor, "B p"]
    multiplier: Float64[Tensor, "B m"]  # the size at which λ_i would matter to some row it enters
    slack: Float64[Tensor, "B m"]  # the size of -g_i that an x as long as its coordinates are makes
    rounding: Float64[Tensor, "B m"]  # a λ_i below this is noise of the largest multipliers

    @property
    def tau(self) -> Float64[Tensor, "B m"]:
        """τ, which brings λ and g to one size; 1 where either has no scale."""
        ratio = self.slack / self.multiplier
        return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)

    @property
    def floored(self) -> "Scales":
        """With a floor under rows of zeros, for the search; the certificate has none."""
        return self._replace(stationarity=self.stationarity + FLOOR * _largest(self.stationarity))

    def plus(self, data: Float64[Tensor, "B N"], dual: Product) -> "Scales":
        """With the rows' sensitivity to the data, |∂F/∂θ||θ|, added."""
        sizes = [part.shape[1] for part in self[:3]]
        x, g, h = data.split(sizes, 1)
        return self._replace(
            stationarity=self.stationarity + x,
            inequality=self.inequality + dual.over_blocks(g),
            equality=self.equality + h,
        )


def scales(at: Local, point: Point, unit: float = 0.0) -> Scales:
    """The scale of every row at a point; `unit` is a length to fall back on where x* = 0."""
    x, lam, nu = (a.abs() for a in point)
    H, G, A = at.hessian.abs(), at.G.abs(), at.A.abs()
    terms = matvec(H, x) + at.gradient.abs() + matvec(G.mT, lam) + matvec(A.mT, nu)
    if at.auxiliary:
        lengths = _reached(at, point.x)
        widest = torch.maximum(lengths, ROOM * extent(at, point.x))
        terms = terms + _passed_on(at, point.x, lengths)
    else:
        lengths = widest = _lengths(at, point, terms).clamp_min(unit)
    inequality, reach = _row_scale(at.G, at.g, point.x), matvec(G, lengths)
    # λ_i counts in the row where it weighs most: the least of s_j / |G_ij|.
    weights = torch.where(G > 0, terms.unsqueeze(1) / G, torch.inf)
    least = weights.amin(2) if weights.shape[1] else weights[:, :, 0]
    largest = at.dual.over_blocks
    return Scales(
        terms + unit * FLOOR * H.sum(2),
        largest(inequality + FLOOR * matvec(G, widest)),
        _row_scale(at.A, at.h, point.x) + FLOOR * matvec(A, widest),
        -largest(-least),
        largest(inequality + reach),
        largest(ROUNDING * _largest(terms) / _largest(G, keepdim=False)),
    )


def _row_scale(G: Tensor, g: Tensor, x: Tensor) -> Tensor:
    """|G||x| + |g - Gx|."""
    return matvec(G.abs(), x.abs()) + (g - matvec(G, x)).abs()


def _lengths(at: Local, point: Point, terms: Tensor) -> Float64[Tensor, "B n"]:
    """A length for each coordinate that survives x* = 0: |x_j|, or s_j / H_jj where it curves."""
    curvature = at.hessian.diagonal(dim1=1, dim2=2)
    across = _length(at, point).expand_as(point.x)
    own = torch.where(curvature > 0, terms / curvature, across)
    return torch.maximum(point.x.abs(), own.nan_to_num(0.0, 0.0, 0.0))


def _length(at: Local, point: Point) -> Float64[Tensor, "B 1"]:
    """One for all: the largest of |x|, |g - Gx| / |G|, |h - Ax| / |A|."""
    lengths = [_largest(point.x)]
    for G, g in ((at.G, at.g), (at.A, at.h)):
        lengths.append(_ratio(_largest(g - matvec(G, point.x)), _largest(G.flatten(1))))
    return torch.cat(lengths, 1).nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True)


def _reached(at: Local, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:
    """A length for each coordinate, auxiliary ones included: what the rows it stands in allow for.

    x̂_k = max(|x_k|, min_i r_i / |A_ik|) with r_i = |A||x| + |b|, and no less than rounding in the largest.
    """
    A = torch.cat([at.A, at.G], 1)
    rows = torch.cat([_row_scale(at.A, at.h, x), at.dual.over_blocks(_row_scale(at.G, at.g, x))], 1)
    reached = _least((rows.unsqueeze(2) / A.abs()).mT)
    return torch.maximum(torch.maximum(x.abs(), reached), FLOOR * extent(at, x))


def extent(at: Local, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B 1"]:
    """The largest length that the data hold: max |b_i| / |A_ij|, and |q_j| / |P_jj|.

    1 where they hold none: the problem is then homogeneous, its solution 0, and the unit the user's own.
    """
    A = torch.cat([at.A, at.G], 1).abs()
    b = torch.cat([at.h - matvec(at.A, x), at.g - matvec(at.G, x)], 1).abs()
    q = (at.gradient - matvec(at.hessian, x)).abs()
    ratios = [(b.unsqueeze(2) / A).flatten(1), q / at.hessian.diagonal(dim1=1, dim2=2)]
    largest = torch.cat(ratios, 1).nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


def _passed_on(at: Local, x: Tensor, lengths: Tensor) -> Float64[Tensor, "B n"]:
    """The size of each stationarity row, handed from row to row by the constraints they share.

    The row of an auxiliary variable, or of one that is seen through auxiliary ones alone, holds nothing
    but multipliers, which may all be 0. Their natural size is that of the rows they have to balance:

        ŝ_k = |P|x̂ + |q|,    ŷ_i = min_k ŝ_k / |A_ik|,    ŝ_k = max(ŝ_k, max_i |A_ik| ŷ_i),   and again
    """
    A = torch.cat([at.A, at.G], 1).abs()
    p = at.A.shape[1]
    size = matvec(at.hessian.abs(), lengths) + (at.gradient - matvec(at.hessian, x)).abs()
    for _ in range(PASSES if A.shape[1] else 0):
        balanced = _least(size.unsqueeze(1) / A)
        balanced = torch.cat([balanced[:, :p], at.dual.over_blocks(balanced[:, p:])], 1)
        size = torch.maximum(size, (A * balanced.unsqueeze(2)).amax(1))
    return torch.maximum(size, FLOOR * _largest(size))


def _least(ratios: Float64[Tensor, "B r c"]) -> Float64[Tensor, "B r"]:
    """The least positive finite one of each row, 0 where there is none."""
    if not ratios.shape[2]:
        return ratios[:, :, :0].sum(2)
    sound = (ratios > 0) & ratios.isfinite()
    least = torch.where(sound, ratios, torch.inf).amin(2)
    return torch.where(least.isfinite(), least, 0.0)


def residuals(at: Local, point: Point, scale: Scales) -> Residuals:
    """The certificate's four numbers per sample; NaN where the point is not a number."""
    lam, g = over(point.lam, scale.multiplier), over(at.g, scale.inequality)
    violation, nearest, natural = at.dual.project(torch.stack([g, lam, lam + g]))
    return Residuals(
        stationarity=_worst(over(stationarity(at, point.lam, point.nu), scale.stationarity)),
        primal=_worst(torch.cat([violation, over(at.h, scale.equality)], 1)),
        dual=_worst(lam - nearest),
        complementarity=_worst(lam - natural),
    )


def stationarity(at: Local, lam: Tensor, nu: Tensor) -> Float64[Tensor, "B n"]:
    """∇f + Gᵀλ + Aᵀν."""
    return at.gradient + matvec(at.G.mT, lam) + matvec(at.A.mT, nu)


def over(r: Tensor, scale: Tensor) -> Tensor:
    """r / scale with 0 / 0 = 0."""
    return torch.where(r == 0.0, 0.0, r / scale)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 0.0)


def _worst(rows: Float64[Tensor, "B k"]) -> Float64[Tensor, " B"]:
    return _largest(rows).squeeze(1)


def _largest(a: Tensor, keepdim: bool = True) -> Tensor:
    """max |a| over the last dimension, 0 where it is empty."""
    if a.shape[-1] == 0:
        return a.new_zeros(a.shape[:-1] + ((1,) if keepdim else ()))
    return a.abs().amax(-1, keepdim=keepdim)
