r"""What can be proven of a problem without an answer by problems of our own, solved by the interior point.

    phase I    min t   s.t.   g(x) <= w t,   |h(x)| <= w t,   t >= -ℓ

with w the size of each row's slope, so that t and ℓ are lengths. Its multipliers, λ >= 0 for g and ν, the
difference of the two for h, make

    λᵀg(x) + νᵀh(x)   convex in x, stationary at x̂, and positive there:

it is positive everywhere, and no x has g(x) <= 0 and h(x) = 0 (Farkas's lemma; Boyd & Vandenberghe, Convex
Optimization, section 5.8). What a multiplier that balances to rounding only leaves over could be made up for
by an x far away: the proof holds within FAR of the lengths at x̂.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.engines import Array
from optlayer.engines.interior import interior
from optlayer.engines.proof import RADII, Elastic
from optlayer.forms import Function, Point
from optlayer.forms.blocks import AffineRows, FunctionRows, flatten
from optlayer.forms.curved import FunctionCurved
from optlayer.forms.kkt import Instance
from optlayer.forms.smooth import SmoothForm
from optlayer.polish import polish

FAR = 1e5  # how far out, in lengths of x̂ and of the rows, a feasible point would have to lie
VISIBLE = 1e-7  # least relative size of λᵀg + νᵀh
EXACTLY = 1e-12  # the same where λ and ν balance to the last digits


class PhaseOne:
    """A `Proof` for problems that no modelling language can state; one sample at a time."""

    def least_violation(self, sample: Instance, visible: float = VISIBLE) -> Elastic | None:
        """The least violated point, where its multipliers prove that there is no feasible one.

        They prove it by a relative size of λᵀg + νᵀh of more than `visible`.
        """
        base = sample.form
        if not isinstance(base, SmoothForm) or not base.m + base.p:
            return None
        form, weights = _elastic(base, sample)
        problem = replace(sample, form=form)
        found = polish(problem, interior(problem).point)
        y, lam = found.point.x, found.point.lam
        x, t = y[:, :-1], y[0, -1]
        if not (y.isfinite().all() and t > 0 and _proves(sample, x, lam, weights, visible)):
            return None
        return Elastic(x[0].numpy(), _violations(base, sample, x))

    def boxed_minimizers(self, sample: Instance) -> list[Array]:
        """argmin f over the feasible x with |x| <= R for R = r, r², r³; fewer where none is found."""
        base, found = sample.form, []
        assert isinstance(base, SmoothForm)
        size = max([1.0, *(float(t.abs().max()) for t in sample.theta if t.numel())])
        for radius in RADII:
            problem = replace(sample, form=_boxed(base, radius * size))
            x = polish(problem, interior(problem).point).point.x
            if x.isfinite().all():
                found.append(x[0].numpy())
        return found


def _proves(sample: Instance, x: Tensor, lam: Float64[Tensor, "1 k"], w: Tensor, visible: float) -> bool:
    """Whether λᵀg + νᵀh is stationary at x, and positive."""
    m, p = sample.form.m, sample.form.p
    own, above, below, _ = lam.clamp_min(0.0).split([m, p, p, 1], 1)
    nu = above - below
    at = sample.at(Point(x, own, nu))
    shares = torch.cat([own * at.g, nu * at.h], 1)
    left_over = (at.G.mT(own) + at.A.mT(nu)).abs()
    lengths = torch.maximum(x.abs().amax(), (torch.cat([at.g, at.h], 1).abs() / w).amax())
    gap = shares.sum() - FAR * lengths * left_over.sum()
    return bool(gap > visible * shares.abs().sum())


def _violations(base: SmoothForm, sample: Instance, x: Tensor) -> dict[str, float]:
    zeros = Point(x, x.new_zeros(1, base.m), x.new_zeros(1, base.p))
    _, g, h = base.rows(zeros, *sample.theta)
    amounts: dict[str, float] = {}
    for name, amount in zip(base.owners, [*g[0].tolist(), *h[0].abs().tolist()], strict=True):
        amounts[name] = max(amount, amounts.get(name, 0.0))
    return amounts


# ------------------------------------------------------------------------------------- the problems


def _elastic(base: SmoothForm, sample: Instance) -> tuple[SmoothForm, Float64[Tensor, "1 m+p"]]:
    """Phase I in y = (x, t), and the weights of its rows."""
    peaks = torch.cat([sample.origin.G.peaks, sample.origin.A.peaks], 1)
    w = torch.where((peaks > 0) & peaks.isfinite(), peaks, 1.0)[:1]
    g, h = _function(base.inequality), _function(base.equality)
    slope_g, slope_h = w[0].split([base.m, base.p])

    def rows(y: Tensor, *theta: Tensor) -> Tensor:
        x, t = y[:-1], y[-1]
        up, right = g(x, *theta), h(x, *theta)
        return torch.cat([up - slope_g * t, right - slope_h * t, -right - slope_h * t, (-t - 1.0)[None]])

    form = _general(
        base.n + 1, lambda y, *theta: y[-1], rows, base.m + 2 * base.p + 1, FunctionRows(_none, 0)
    )
    return form, w


def _boxed(base: SmoothForm, radius: float) -> SmoothForm:
    g = _function(base.inequality)

    def rows(x: Tensor, *theta: Tensor) -> Tensor:
        return torch.cat([g(x, *theta), x - radius, -x - radius])

    m = base.m + 2 * base.n
    return replace(base, inequality=FunctionRows(rows, m), m=m)


def _general(n: int, f: Function, g: Function, m: int, equality: FunctionRows) -> SmoothForm:
    return SmoothForm(n, m, equality.rows, FunctionCurved(f), FunctionRows(g, m), equality, None)


def _none(x: Tensor, *theta: Tensor) -> Tensor:
    return x[:0]


def _function(rows: AffineRows | FunctionRows) -> Function:
    """One sample of the rows."""
    if isinstance(rows, FunctionRows):
        return rows.function if rows.rows else _none
    return partial(_one, rows)


def _one(rows: AffineRows, x: Tensor, *theta: Tensor) -> Tensor:
    one: Sequence[Tensor] = [t.unsqueeze(0) for t in theta]
    x = x.unsqueeze(0)
    return rows.value(x, tuple(one), flatten(x, tuple(one))).squeeze(0)
