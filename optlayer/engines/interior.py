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
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import vmap

from optlayer.certify import sizes
from optlayer.engines import Answer
from optlayer.engines.interior_newton import System
from optlayer.engines.interior_rows import Residual, Rows, State, Units, residual
from optlayer.engines.interior_start import start
from optlayer.errors import DeclarationError
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance
from optlayer.matrix import largest
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
FAR = 1e3  # lengths of the start from which on the objective seems to fall for ever
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


def interior(problem: Instance) -> Found:
    """The search; read it from here."""
    search = _Search.begin(problem)
    while not search.done():
        search.step()
    return search.found()


@dataclass
class _Search:
    """One call: the iterates of all samples, and what each has learnt about its step."""

    rows: Rows
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
        rows = Rows(problem)
        now, at, units = start(rows)
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
        running, system = self.running, System(self.at, self.now, self.shift)
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

    def _target(self, system: System) -> tuple[Tensor, Tensor]:
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


# ---------------------------------------------------------------------------------------------- helpers


def _sum(a: Float64[Tensor, "B k"]) -> Float64[Tensor, "B 1"]:
    return a.sum(1, keepdim=True)


def _to_border(a: Tensor, da: Tensor, longest: float = 1.0) -> Float64[Tensor, "B 1"]:
    """The largest t <= longest with a + t Δa >= 0."""
    if not a.shape[1]:
        return a.new_full((len(a), 1), longest)
    t = torch.where(da < 0, -a / da, torch.inf).amin(1, keepdim=True)
    return t.clamp_max(longest)


def _finite(by: State) -> State:
    """0 for what is not a number: it is multiplied by a length of 0."""
    return State(*(torch.where(part.isfinite(), part, 0.0) for part in by))
