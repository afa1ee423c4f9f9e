r"""Interior point for whatever is smooth and convex, batched, on the device the parameters are on.

    min f(x)   s.t.   g(x) + s = 0,  s >= 0,  h(x) = 0

Newton's method on the perturbed KKT conditions, with Mehrotra's choice of the target μ:

    ∇f + Gᵀλ + Aᵀν = 0,   g + s = 0,   h = 0,   s∘λ = μ

After elimination of s and λ it solves with M = H + GᵀDG, D = λ/s, scaled to a diagonal of ones and shifted by
δ, and with A M⁻¹Aᵀ: Cholesky factors only. Where f or g is curved, a step is as long as the best of a few
lengths that lower the merit of the barrier problem or the residual; where none does, δ grows (Levenberg),
and falls again afterwards.

Rows are added for z > 0 under a logarithm or an entropy; they are no part of what is returned. Every sample
goes its own way and rests where it has arrived. The one thing the host asks in an iteration is whether all
have: everything else stays on the device.

Mehrotra, SIAM J. Optim. 2 (1992); Nocedal & Wright, Numerical Optimization (2006), chapter 19.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import vmap

from optlayer.certify import sizes
from optlayer.cones import Nonnegative, Product
from optlayer.engines import Answer
from optlayer.errors import DeclarationError
from optlayer.forms import Local, Point
from optlayer.forms.borders import Box
from optlayer.forms.elimination import least_step
from optlayer.forms.kkt import Instance
from optlayer.matrix import Dense, Matrix, Pattern, Sparse, diagonal, largest, or_one, stacked
from optlayer.solution import Status

TOLERANCE = 1e-8  # relative; polish does the rest
CENTRED = 0.1  # of the tolerance: the least target for s∘λ, relative. Below it entropies run aground
MAX_STEPS = 200
TO_BORDER = 0.995  # of the way to s = 0 or λ = 0 that a step may go
LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3, 1e-4)  # of a step that are tried side by side
ROUNDING = 1e-13  # a relative change of the barrier's merit that is none
NOT_WORSE = 1e-9  # the same that a smaller residual may cost: without a limit it runs off to where f is flat
ARMIJO = 1e-4  # part of the promised decrease that a step must keep
SHIFT, LARGEST_SHIFT = 1e-13, 1e10  # δ, relative to the scaled diagonal
RAISED, LOWERED = 30.0, 0.1  # what a failed step and a long one make of δ
LEAST_RAISED = 1e-8
GRAM_SHIFT = 1e-13  # the same of the scaled A M⁻¹Aᵀ
CLEAR = 1e-6  # of the unit of its row: a start with -g above it is taken for s as it is
NEAR = 0.9  # of the way to a bound that a start may go
ELSEWHERE = (1.0, 0.5, 0.1, 0.01, -0.1, -1.0, 10.0)  # where to look for a point with a finite f
FAR = 1e3  # lengths of the start from which on the objective seems to fall for ever
SAME = 1e-6  # relative difference of the distances to a bound and to a border that are one
VIOLATED = 1e-5  # relative violation that looks like infeasibility


class Interior:
    """The engine; needs nothing but the form's own functions."""

    name, quick = "INTERIOR", True

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        if options:
            raise DeclarationError(f"INTERIOR has no option {', '.join(map(repr, options))}")

    def solve_instance(self, problem: Instance) -> Answer:
        """Points and claims for the whole batch; it raises for no sample."""
        found = interior(problem)
        claims = tuple(CLAIMS[i] for i in found.claim.tolist())
        return Answer(
            x=found.point.x.cpu().numpy(),
            y=torch.cat([found.point.lam, found.point.nu], 1).cpu().numpy(),
            claims=claims,
            words=tuple(f"INTERIOR: {WORDS[claim]}" for claim in claims),
            iterations=found.iterations.cpu().numpy(),
        )


CLAIMS = (Status.SOLVED, Status.INACCURATE, Status.INFEASIBLE, Status.UNBOUNDED)
WORDS = {
    Status.SOLVED: "solved",
    Status.INACCURATE: f"no convergence in {MAX_STEPS} steps",
    Status.INFEASIBLE: "the violation of the constraints does not go away",
    Status.UNBOUNDED: "the variables go on growing",
}


class Found(NamedTuple):
    """Where the search ended, and what that looks like: an index into `CLAIMS`."""

    point: Point
    claim: Tensor  # (B,)
    iterations: Tensor  # (B,)


class State(NamedTuple):
    """x, s, λ, ν; s and λ of the rows for the domain come last."""

    x: Float64[Tensor, "B n"]
    s: Float64[Tensor, "B m"]
    lam: Float64[Tensor, "B m"]
    nu: Float64[Tensor, "B p"]

    def moved(self, by: "State", primal: Tensor, dual: Tensor) -> "State":
        """x, s and ν by one length (B, 1), λ by another."""
        return State(
            self.x + primal * by.x, self.s + primal * by.s, self.lam + dual * by.lam, self.nu + primal * by.nu
        )


class Residual(NamedTuple):
    """The rows of the KKT conditions, complementarity apart."""

    stationarity: Float64[Tensor, "B n"]
    g: Float64[Tensor, "B m"]  # g + s
    h: Float64[Tensor, "B p"]


class Units(NamedTuple):
    """What things are measured in; set at the start, so that neither a unit of x nor one of f matters."""

    x: Float64[Tensor, "B 1"]
    slope: Float64[Tensor, "B 1"]  # of ∇f
    g: Float64[Tensor, "B m"]
    h: Float64[Tensor, "B p"]

    @property
    def f(self) -> Float64[Tensor, "B 1"]:
        """Of f, and of every s_i λ_i."""
        return self.x * self.slope


def interior(problem: Instance) -> Found:
    """The search; read it from here."""
    search = _Search.begin(problem)
    while not search.done():
        search.step()
    return search.found()


@dataclass
class _Search:
    """One call: the iterates of all samples, and what each has learnt about its step."""

    rows: "_Rows"
    units: Units
    now: State
    at: Local
    shift: Float64[Tensor, "B 1"]  # δ
    lengths: Float64[Tensor, "k 1 1"]  # `LENGTHS`
    eager: Bool[Tensor, "B 1"]  # the last step was long: Mehrotra's corrector is worth trying
    iterations: Tensor
    steps: int = 0

    @classmethod
    def begin(cls, problem: Instance) -> "_Search":
        rows = _Rows(problem)
        now, at, units = _start(rows)
        shift, eager = torch.full_like(units.x, SHIFT), torch.ones_like(units.x, dtype=torch.bool)
        lengths = torch.tensor(LENGTHS, dtype=torch.float64, device=now.x.device)[:, None, None]
        none = torch.zeros_like(units.x[:, 0], dtype=torch.int64)
        return cls(rows, units, now, at, shift, lengths, eager, none)

    # ------------------------------------------------------------------------------- where it stands

    def residual(self) -> Residual:
        """That of the current point."""
        return residual(self.at, self.now)

    @property
    def errors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Relative: stationarity, violation, complementarity; (B, 1) each."""
        at, now, r = self.at, self.now, self.residual()
        terms = sizes(at, Point(now.x, now.lam, now.nu)).stationarity
        slope = torch.maximum(largest(terms), TOLERANCE * self.units.slope)
        x = torch.maximum(self.units.x, largest(now.x))
        violation = torch.maximum(largest(r.g / self.units.g), largest(r.h / self.units.h)) * (
            self.units.x / x
        )
        return largest(r.stationarity) / slope, violation, largest(now.s * now.lam) / (slope * x)

    @property
    def running(self) -> Bool[Tensor, "B 1"]:
        """Samples that have not arrived; one that is not a number never will, and rests too."""
        worst = torch.stack(self.errors).amax(0)
        return (worst > TOLERANCE) & worst.isfinite() & (self.shift < LARGEST_SHIFT)

    def done(self) -> bool:
        """The stopping test: all that the host asks for."""
        return self.steps == MAX_STEPS or not bool(self.running.any())

    def found(self) -> Found:
        """Without the rows that were added; no point with a claim that there is none."""
        stationarity, violation, gap = self.errors
        solved = torch.stack([stationarity, violation, gap]).amax(0) <= TOLERANCE
        claim = torch.where(largest(self.now.x) > FAR * self.units.x, 3, 1)
        claim = torch.where(violation > VIOLATED, 2, claim)
        claim = torch.where(solved, 0, claim).squeeze(1)
        lam = self.rows.without_domain(self.now.lam[:, : self.rows.problem.form.m], self.at)
        reached = (claim < 2).unsqueeze(1)
        point = Point(*(torch.where(reached, part, torch.nan) for part in (self.now.x, lam, self.now.nu)))
        return Found(point, claim, self.iterations)

    # ----------------------------------------------------------------------------------- one iteration

    def step(self) -> None:
        """Predictor, corrector, length; then the new point, and δ for the next."""
        running, system = self.running, _System(self.at, self.now, self.shift)
        target, correction = self._target(system)
        r = self.residual()
        by = system.direction(r, self.now.s * self.now.lam + correction - target)
        primal, dual = self._lengths(by)
        if not self.rows.problem.form.quadratic:
            fits = self._search(by, target, primal, dual, r)
            self.eager = fits > 0.4 * primal
            primal = fits
            dual = torch.where(fits > 0, dual, 0.0)
        moves = running & system.sound
        primal, dual = torch.where(moves, primal, 0.0), torch.where(moves, dual, 0.0)
        self._adapt(running, primal)
        self.now = self.now.moved(_finite(by), primal, dual)  # by 0 where it rests
        self.at = self.rows.local(self.now)
        self.iterations = self.iterations + running.squeeze(1)
        self.steps += 1

    def _target(self, system: "_System") -> tuple[Tensor, Tensor]:
        """μ by Mehrotra's rule, from what Newton's step towards μ = 0 would reach, and its second order."""
        now, m = self.now, self.now.s.shape[1]
        if not m:
            return torch.zeros_like(self.units.x), now.s
        product = now.s * now.lam
        mean = product.mean(1, keepdim=True)
        by = system.direction(self.residual(), product)
        primal, dual = _to_border(now.s, by.s), _to_border(now.lam, by.lam)
        reached = ((now.s + primal * by.s) * (now.lam + dual * by.lam)).mean(1, keepdim=True)
        centring = (reached / mean).clamp(0.0, 1.0).nan_to_num(1.0) ** 3
        least = (
            CENTRED
            * TOLERANCE
            * largest(self.at.gradient).clamp_min(TOLERANCE * self.units.slope)
            * self.units.x
        )
        target = torch.maximum(centring * mean, least)
        return target, torch.where(self.eager, by.s * by.lam, 0.0)

    def _lengths(self, by: State) -> tuple[Tensor, Tensor]:
        """How far s and λ may go; together where a curvature ties x to λ."""
        primal = TO_BORDER * _to_border(self.now.s, by.s, 1.0 / TO_BORDER)
        dual = TO_BORDER * _to_border(self.now.lam, by.lam, 1.0 / TO_BORDER)
        if self.rows.problem.form.quadratic:
            both, linear = torch.minimum(primal, dual), self.at.hessian.peak == 0
            primal, dual = torch.where(linear, primal, both), torch.where(linear, dual, both)
        return primal, dual

    def _search(self, by: State, target: Tensor, primal: Tensor, dual: Tensor, r: Residual) -> Tensor:
        """The longest of the lengths at which one of two merits falls; 0 where none does."""
        now, penalty = self.now, self._penalty(by)
        here = self.rows.value(now.x), r
        lengths = self.lengths
        tried = vmap(lambda t: now.moved(by, t * primal, torch.where(t == 1.0, dual, t * dual)))(lengths)
        there = vmap(self.rows.evaluate)(tried)
        promised = self._slope(by, target, penalty, r)
        before = self._barrier(now, here, target, penalty)
        after = vmap(lambda state, e: self._barrier(state, e, target, penalty))(tried, there)
        falls = after <= before + ARMIJO * lengths * primal * promised + ROUNDING * before.abs()
        nearer = vmap(lambda state, e: self._norm(state, e[1], target))(tried, there)
        nearer = nearer <= (1.0 - ARMIJO * lengths * primal) * self._norm(now, r, target)
        nearer = nearer & (after <= before + NOT_WORSE * before.abs())
        defined = vmap(self.rows.holds)(tried.x) & after.isfinite()
        fits = defined & ((falls & (promised < 0)) | nearer)
        return torch.where(fits, lengths * primal, 0.0).amax(0)

    def _penalty(self, by: State) -> tuple[Tensor, Tensor]:
        """A weight on violated rows above every multiplier: then the step lowers the merit."""
        lam, nu = self.now.lam + by.lam, self.now.nu + by.nu
        return 1.1 * largest(lam * self.units.g), 1.1 * largest(nu * self.units.h)

    def _barrier(self, now: State, e: tuple[Tensor, Residual], target: Tensor, penalty: Any) -> Tensor:
        """f - μ Σ log s + ρ |g + s|₁ + ρ' |h|₁."""
        f, r = e
        violation = penalty[0] * _sum((r.g / self.units.g).abs()) + penalty[1] * _sum(
            (r.h / self.units.h).abs()
        )
        return f - target * _sum(now.s.log()) + violation

    def _slope(self, by: State, target: Tensor, penalty: Any, r: Residual) -> Tensor:
        """Its derivative along the step."""
        violation = penalty[0] * _sum((r.g / self.units.g).abs()) + penalty[1] * _sum(
            (r.h / self.units.h).abs()
        )
        return _sum(self.at.gradient * by.x) - target * _sum(by.s / self.now.s) - violation

    def _norm(self, now: State, r: Residual, target: Tensor) -> Tensor:
        """The size of all rows, each in its unit."""
        units = self.units
        rows = (
            r.stationarity / units.slope,
            r.g / units.g,
            r.h / units.h,
            (now.s * now.lam - target) / units.f,
        )
        return torch.cat(rows, 1).square().sum(1, keepdim=True).sqrt()

    def _adapt(self, running: Tensor, primal: Tensor) -> None:
        """δ up where no step was found, down where it was long."""
        up = torch.where(primal > 0, self.shift, (RAISED * self.shift).clamp_min(LEAST_RAISED))
        shift = torch.where(primal > 0.3, (LOWERED * self.shift).clamp_min(SHIFT), up)
        short = (primal > 0) & (primal < 0.05)
        if not self.rows.problem.form.quadratic:
            shift = torch.where(short, (3.0 * self.shift).clamp_min(LEAST_RAISED), shift)
        self.shift = torch.where(running, shift, self.shift)


# --------------------------------------------------------------------------------------- the functions


class _Rows:
    """f, g and h of one call, with a row for every coordinate that a domain stops."""

    def __init__(self, problem: Instance) -> None:
        self.problem, self.zeros = problem, problem.nowhere.x
        self._patterns: dict[str, Pattern] = {}
        self.extra: Sparse | None = None
        if problem.borders.stops:
            slopes, offsets = problem.borders.affine
            columns = problem.borders.columns
            shape = (len(columns), problem.form.n)
            rows = torch.arange(len(columns), device=columns.device)
            self.extra, self.offset = Sparse(-slopes, Pattern(shape, rows, columns)), -offsets

    @property
    def m(self) -> int:
        """All rows of g."""
        return self.problem.form.m + (self.extra.shape[0] if self.extra else 0)

    @cached_property
    def dual(self) -> Product:
        """λ >= 0."""
        return Product((Nonnegative(self.m),))

    def local(self, now: State) -> Local:
        """f, g, h to second order, with the rows that were added."""
        m = self.problem.form.m
        at = self.problem.at(Point(now.x, now.lam[:, :m], now.nu))
        if self.extra is not None:
            G = stacked(at.G, self.extra) if m else self.extra
            at = at._replace(g=torch.cat([at.g, self.extra @ now.x + self.offset], 1), G=G, dual=self.dual)
        same = self._same
        return at._replace(hessian=same("hessian", at.hessian), G=same("G", at.G), A=same("A", at.A))

    def _same(self, name: str, M: Matrix) -> Matrix:
        """With the pattern it had at the start, which knows already what it is."""
        if isinstance(M, Dense):
            return M
        return Sparse(M.values, self._patterns.setdefault(name, M.pattern))

    def without_domain(self, lam: Float64[Tensor, "B m"], at: Local) -> Float64[Tensor, "B m"]:
        """λ = 0 for bounds that say again what the domain says: x keeps away from those by itself."""
        if self.extra is None or not lam.shape[1]:
            return lam
        g, G = at.g, at.G
        m, columns = lam.shape[1], self.extra.pattern.columns
        border = torch.full_like(at.gradient, torch.inf)
        border[:, columns] = (-g / G.peaks)[:, m:]
        column = G.dense()[:, :m].abs().argmax(2).expand(len(g), -1)
        same = G.is_single[:, :m] & ((-g / G.peaks)[:, :m] >= (1.0 - SAME) * border.gather(1, column))
        return torch.where(same, 0.0, lam)

    def value(self, x: Tensor) -> Float64[Tensor, "B 1"]:
        """f."""
        return self.problem.form.value(x, *self.problem.theta).unsqueeze(1)

    def evaluate(self, now: State) -> tuple[Tensor, Residual]:
        """f and the residual; batched once more by `vmap`."""
        m = self.problem.form.m
        point = Point(now.x, now.lam[:, :m], now.nu)
        left, g, h = self.problem.form.rows(point, *self.problem.theta)
        if self.extra is not None:
            left = left + self.extra.mT(now.lam[:, m:])
            g = torch.cat([g, self.extra @ now.x + self.offset], 1)
        return self.value(now.x), Residual(left, g + now.s, h)

    def holds(self, x: Tensor) -> Bool[Tensor, "B 1"]:
        """Whether x is inside of the domain."""
        return self.problem.borders.holds(x).unsqueeze(1)


def residual(at: Local, now: State) -> Residual:
    """∇f + Gᵀλ + Aᵀν, g + s, h."""
    return Residual(at.gradient + at.G.mT(now.lam) + at.A.mT(now.nu), at.g + now.s, at.h)


# ------------------------------------------------------------------------------------------- the system


class _System:
    r"""The Newton system of one iteration, factored.

    ⎡ M   Aᵀ ⎤ ⎡ẋ⎤   ⎡ -r - Gᵀ((λ∘r_g - r_c)/s) ⎤        ṡ = -r_g - Gẋ
    ⎣ A   0  ⎦ ⎣ν̇⎦ = ⎣ -h                       ⎦        λ̇ = -(r_c + λ∘ṡ)/s
    """

    def __init__(self, at: Local, now: State, shift: Float64[Tensor, "B 1"]) -> None:
        self._at, self._now = at, now
        M = _normal(at, now.lam / now.s)
        d = M.diagonal() if isinstance(M, Dense) else M.values
        d = d.expand(len(now.x), -1)
        self._u = torch.where(d > 0, d, or_one(largest(d))).rsqrt()
        self._L, self.sound = self._factor(M, shift)
        if at.A.shape[0]:
            self._V = self._half(self._u.unsqueeze(2) * at.A.dense().mT)
            S = self._V.mT @ self._V
            self._w = or_one(S.diagonal(dim1=1, dim2=2)).rsqrt()
            S = self._w.unsqueeze(2) * S * self._w.unsqueeze(1)
            self._gram, info = torch.linalg.cholesky_ex(_shifted(S, torch.full_like(shift, GRAM_SHIFT)))
            self.sound = self.sound & (info == 0).unsqueeze(1)

    def _factor(self, M: Matrix, shift: Tensor) -> tuple[Tensor, Tensor]:
        """uMu + δ = LLᵀ; of a diagonal, √ of it."""
        if isinstance(M, Sparse):
            L = (M.values * self._u.square() + shift).sqrt()
            return L, L.isfinite().all(1, keepdim=True)
        scaled = self._u.unsqueeze(2) * M.values * self._u.unsqueeze(1)
        L, info = torch.linalg.cholesky_ex(_shifted(scaled, shift))
        return L, (info == 0).unsqueeze(1)

    def _half(self, R: Float64[Tensor, "B n c"]) -> Float64[Tensor, "B n c"]:
        """L⁻¹R."""
        if self._L.ndim == 2:
            return R / self._L.unsqueeze(2)
        return torch.linalg.solve_triangular(self._L, R, upper=False)

    def _other_half(self, R: Float64[Tensor, "B n c"]) -> Float64[Tensor, "B n c"]:
        """L⁻ᵀR."""
        if self._L.ndim == 2:
            return R / self._L.unsqueeze(2)
        return torch.linalg.solve_triangular(self._L.mT, R, upper=True)

    def direction(self, r: Residual, product: Float64[Tensor, "B m"]) -> State:
        """Newton's step; `product` is what s∘λ has too much."""
        at, (_, s, lam, _) = self._at, self._now
        x, nu = self._solve(-r.stationarity - at.G.mT((lam * r.g - product) / s), -r.h)
        ds = -r.g - at.G @ x
        return State(x, ds, -(product + lam * ds) / s, nu)

    def _solve(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(ẋ, ν̇), with y = L⁻¹ua:  S ν̇ = Vᵀy - c,  ẋ = uL⁻ᵀ(y - Vν̇)."""
        y, nu = self._half((self._u * a).unsqueeze(2)), c
        if c.shape[1]:
            right = self._w.unsqueeze(2) * (self._V.mT @ y - c.unsqueeze(2))
            solved = self._w.unsqueeze(2) * torch.cholesky_solve(right, self._gram)
            y, nu = y - self._V @ solved, solved.squeeze(2)
        return self._u * self._other_half(y).squeeze(2), nu


def _normal(at: Local, D: Float64[Tensor, "B m"]) -> Matrix:
    """H + GᵀDG, diagonal where H is and G holds bounds only."""
    if isinstance(at.G, Sparse):
        bounds = at.G.pattern.bounds
        weights = D[:, bounds.rows] * at.G.values[:, bounds.entries].square()
        own = torch.zeros_like(at.gradient).index_add(1, bounds.columns, weights)
        if isinstance(at.hessian, Sparse) and at.hessian.pattern.is_diagonal and not len(bounds.other_rows):
            return diagonal(at.hessian.values + own)
        others = Sparse(at.G.values[:, bounds.other_entries], bounds.others).dense()
        M = _shifted(at.hessian.dense(), own)
        return Dense(M + (others.mT * D[:, bounds.other_rows].unsqueeze(1)) @ others)
    G = at.G.dense()
    M = at.hessian.dense().expand(len(D), -1, -1)
    return Dense(M + (G.mT * D.unsqueeze(1)) @ G) if G.shape[1] else Dense(M)


# -------------------------------------------------------------------------------------------- the start


def _start(rows: _Rows) -> tuple[State, Local, Units]:
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
    none = torch.full_like(at.gradient, torch.inf)
    if not at.G.shape[0]:
        return Box(-none, none)
    G = at.G.dense().expand(len(none), -1, -1)
    slope, column = G.sum(2), G.abs().argmax(2)
    end = torch.where(at.G.is_single, -at.g / slope, torch.nan)
    upper = torch.where(slope > 0, end, torch.inf).nan_to_num(torch.inf, torch.inf, -torch.inf)
    lower = torch.where(slope < 0, end, -torch.inf).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return Box(
        (-none).scatter_reduce(1, column, lower, "amax"), none.scatter_reduce(1, column, upper, "amin")
    )


def _nearest(box: Box, rows: _Rows, none: State) -> Float64[Tensor, "B n"]:
    """From inside of the box towards the nearest point with h = 0."""
    x = box.inside()
    if not none.nu.shape[1]:
        return x
    dx = least_step(rows.local(none._replace(x=x)))
    return box.towards(x, torch.where(dx.isfinite(), dx, 0.0), NEAR)


def _with_finite_f(rows: _Rows, x: Float64[Tensor, "B n"]) -> Float64[Tensor, "B n"]:
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


# ---------------------------------------------------------------------------------------------- helpers


def _sum(a: Float64[Tensor, "B k"]) -> Float64[Tensor, "B 1"]:
    return a.sum(1, keepdim=True)


def _to_border(a: Tensor, da: Tensor, longest: float = 1.0) -> Float64[Tensor, "B 1"]:
    """The largest t <= longest with a + t Δa >= 0."""
    if not a.shape[1]:
        return a.new_full((len(a), 1), longest)
    t = torch.where(da < 0, -a / da, torch.inf).amin(1, keepdim=True)
    return t.clamp_max(longest)


def _shifted(M: Float64[Tensor, "B n n"], by: Tensor) -> Float64[Tensor, "B n n"]:
    """M + diag(by)."""
    return M + torch.diag_embed(by.expand(len(by), M.shape[-1]))


def _finite(by: State) -> State:
    """0 for what is not a number: it is multiplied by a length of 0."""
    return State(*(torch.where(part.isfinite(), part, 0.0) for part in by))
