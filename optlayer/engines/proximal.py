r"""The proximal method of multipliers: from any point to a solution beside it, however degenerate.

A proximal step leads from (x̄, ȳ) to the saddle point of

    ½xᵀPx + qᵀx + yᵀ(Ax - b) + ½ρ|x - x̄|² - ½μ|y - ȳ|²        y >= 0 for inequalities.

There is one, and only one, however many rows of A depend on each other (Rockafellar 1976). Its x minimizes

    φ(x) = ½xᵀPx + qᵀx + ½ρ|x - x̄|² + |r₊|² / 2μ,        r = Ax - b + μȳ, for equalities without ₊,

strongly convex and piecewise quadratic, so that Newton's method with an exact line search arrives after
finitely many steps (Hermans, Themelis & Patrinos, arXiv:1911.02934),

    ⎡ P + ρ   Mᵀ ⎤ ⎡ẋ⎤     ⎡∇φ⎤
    ⎢            ⎥ ⎢ ⎥ = - ⎢  ⎥        M the equalities, and the inequalities with r > 0.
    ⎣ M      -μ  ⎦ ⎣ẏ⎦     ⎣ 0⎦

There y = r₊/μ + ẏ; r/μ alone would be its own rounding, divided by μ. The smaller ρ and μ, the farther a
step goes, and the more steps of Newton's it takes: they become smaller while these arrive.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy import sparse

from optlayer.engines import Array
from optlayer.sparse_saddle import factored

STEPS = 60  # proximal steps
NEWTON = 500  # Newton steps in each
ALL = 2500  # and together
PATIENCE = 6  # proximal steps without progress, where there is little left to gain
FIRST, LAST = 1e-1, 1e-10  # μ
NEAR, FREE = 1e-6, 1e-13  # ρ
REFINEMENTS = 2
ROUNDING = 1e-14  # of a multiplier or a slack
DONE = 1e-15  # residual with nothing left to gain
CLOSE = 1e-14  # and with little
MEASURE = 1e9  # |y| in units of |Px + q|, beyond which it says nothing
LOST = 1e12  # x or y, in units of the start: there is no solution, or none to be found from here


class Sample(NamedTuple):
    """½xᵀPx + qᵀx over Ax + s = b, the first rows equalities, s >= 0 in the others."""

    P: sparse.csc_matrix
    q: Float64[Array, " n"]
    A: sparse.csr_matrix
    b: Float64[Array, " m"]
    zero: int

    @property
    def equal(self) -> Bool[Array, " m"]:
        """Which rows are equalities."""
        return np.arange(len(self.b)) < self.zero

    def slack(self, x: Array) -> Float64[Array, " m"]:
        """s = b - Ax."""
        slack: Array = self.b - self.A @ x
        return slack

    def admissible(self, y: Array) -> Float64[Array, " m"]:
        """y, 0 where an inequality's is negative."""
        return np.where(self.equal, y, y.clip(min=0.0))

    def slope(self, x: Array, y: Array) -> Float64[Array, " n"]:
        """Px + q + Aᵀy."""
        slope: Array = self.P @ x + self.q + self.A.T @ y
        return slope

    def in_units(self, x: float, y: float) -> "Sample":
        """For x and y in these units; A is what it was."""
        return self._replace(P=(x / y) * self.P, q=self.q / y, b=self.b / x)


class Place(NamedTuple):
    """Where the method is."""

    x: Float64[Array, " n"]
    y: Float64[Array, " m"]
    active: Bool[Array, " m"]  # rows of M
    arrived: bool  # whether Newton's method has
    primal: float  # largest violation, of a constraint or of complementarity
    dual: float  # |Px + q + Aᵀy|
    newton: int  # steps that led here from the place before

    @property
    def residual(self) -> float:
        """The larger of the two."""
        return max(self.primal, self.dual)

    @property
    def is_lost(self) -> bool:
        """Whether it is too far out, or nowhere."""
        return not max(np.abs(self.x).max(initial=0.0), np.abs(self.y).max(initial=0.0)) < LOST


def solution(sample: Sample, x: Array, y: Array) -> Place:
    """A solution beside (x, y), or the best that was found; the sample is equilibrated.

    Its residuals are in units of x and y. Multipliers without measure, which cancel each other, are no start.
    """
    y = y if size(y) <= MEASURE * size(sample.P @ x + sample.q) else np.zeros_like(y)
    ux, uy = size(x, sample.b), size(y, sample.q)
    best = _best(sample.in_units(ux, uy), x / ux, sample.admissible(y) / uy)
    return best._replace(x=best.x * ux, y=best.y * uy)


def size(*parts: Array) -> float:
    """max |a| of the first part where that is something; 1 where all are nothing."""
    return next((peak for a in parts if (peak := float(np.abs(a).max(initial=0.0)))), 1.0)


def _best(sample: Sample, x: Array, y: Array) -> Place:
    """Proximal steps from (x, y)."""
    here = best = _judged(sample, x, y, sample.equal, False)
    rho, mu, idle, left = NEAR, FIRST, 0, ALL
    for _ in range(STEPS):
        there = _Step(sample, here.x, here.y, rho, mu).taken()
        idle, left = 0 if there.residual < 0.5 * best.residual else idle + 1, left - there.newton
        best = min(best, there, key=lambda place: place.residual)
        done = best.residual <= DONE or (idle >= PATIENCE and best.residual <= CLOSE)
        if done or there.is_lost or left <= 0:
            break
        rho, mu = _weights(rho, mu, here, there)
        here = there
    return best


def _weights(rho: float, mu: float, here: Place, there: Place) -> tuple[float, float]:
    """ρ and μ of the next step: smaller where this one has arrived, but not come far; larger where not."""
    if not there.arrived:
        return min(10 * rho, NEAR), min(10 * mu, FIRST)
    rho = max(rho / 10, FREE) if there.dual > 0.1 * here.residual else rho
    return rho, max(mu / 10, LAST) if there.primal > 0.1 * here.residual else mu


def _judged(sample: Sample, x: Array, y: Array, active: Array, arrived: bool, newton: int = 0) -> Place:
    slack = sample.slack(x)
    violation = np.where(sample.equal, slack, np.minimum(y, slack))
    primal, dual = (float(np.abs(part).max(initial=0.0)) for part in (violation, sample.slope(x, y)))
    return Place(x, y, active, arrived, primal, dual, newton)


class _Step(NamedTuple):
    """One proximal step."""

    sample: Sample
    x: Float64[Array, " n"]  # x̄
    y: Float64[Array, " m"]  # ȳ
    rho: float
    mu: float

    def taken(self) -> Place:
        """The saddle point, by Newton's method; or how far that has come."""
        x = self.x
        for step in range(1, NEWTON + 1):
            r = self._pushed(x)
            active = self._active(r)
            dx, y = self._newton(x, r, active)
            if self._stays(x + dx, y, active):
                return self._at(x + dx, y, active, True, step)
            length = self._length(x, dx, r)
            if not np.isfinite(length):
                break
            x = x + length * dx
        r = self._pushed(x)
        active = self._active(r)
        return self._at(x, np.where(active, r, 0.0) / self.mu, active, False, step)

    def _at(self, x: Array, y: Array, active: Array, arrived: bool, newton: int) -> Place:
        return _judged(self.sample, x, self.sample.admissible(y), active, arrived, newton)

    def _pushed(self, x: Array) -> Float64[Array, " m"]:
        """r."""
        r: Array = self.sample.A @ x - self.sample.b + self.mu * self.y
        return r

    def _active(self, r: Array) -> Bool[Array, " m"]:
        return self.sample.equal | (r > 0)

    def _newton(self, x: Array, r: Array, active: Array) -> tuple[Array, Array]:
        """ẋ and the y that it leads to."""
        sample, n = self.sample, len(x)
        y = np.where(active, r, 0.0) / self.mu
        slope = sample.slope(x, y) + self.rho * (x - self.x)
        M, k = sample.A[active], int(active.sum())
        H, D = sample.P + self.rho * sparse.eye_array(n), -self.mu * sparse.eye_array(k)
        K = sparse.block_array([[H, M.T], [M, D]], format="csc")
        step = _refined(K, np.concatenate([-slope, np.zeros(k)]))
        y[active] += step[n:]
        return step[:n], y

    def _stays(self, x: Array, y: Array, active: Array) -> bool:
        """Whether a full step has changed no row's mind, but for rounding."""
        r = self._pushed(x)
        if (self._active(r) == active).all():
            return True
        idle, kept = ~active, active & ~self.sample.equal
        return bool((r[idle] <= ROUNDING).all() and (y[kept] >= -ROUNDING).all())

    def _length(self, x: Array, dx: Array, r: Array) -> float:
        """argmin φ(x + tẋ).

        Its slope is a + ct + Σ s_i (r_i + t s_i) / μ over the rows with r_i + t s_i > 0, s = Aẋ. It grows, in
        straight pieces that end where a row enters the sum, s_i > 0, or leaves it.
        """
        sample, s = self.sample, self.sample.A @ dx
        a = dx @ (sample.P @ x + sample.q + self.rho * (x - self.x))
        c = dx @ (sample.P @ dx) + self.rho * (dx @ dx)
        ends = np.divide(-r, s, out=np.full_like(r, np.inf), where=s != 0)
        changing = np.flatnonzero(~sample.equal & (ends > 0) & (ends < np.inf))
        changing = changing[np.argsort(ends[changing])]
        active, sign = self._active(r), np.sign(s[changing])
        start, slope = (
            base + (part[active].sum() + np.concatenate([[0.0], np.cumsum(sign * part[changing])])) / self.mu
            for base, part in ((a, s * r), (c, s * s))
        )
        zeros = -start / slope
        within = zeros <= np.concatenate([ends[changing], [np.inf]])
        return float(zeros[within.argmax()]) if within.any() else np.nan


def _refined(K: sparse.csc_matrix, b: Array) -> Array:
    """K⁻¹b."""
    solve = factored(K)
    x = solve(b)
    for _ in range(REFINEMENTS):
        x = x + solve(b - K @ x)
    return x
