r"""From parameter values to certified roots: which engine, retries, proofs of failure, and policy.

    θ --engine--> (x, λ, ν) --polish--> u --certify--> accept, or ask the next engine,
                                                       or prove that there is nothing to find

All of it happens outside autograd, in `_Solve`, whose derivative is zero: what carries derivatives is
`implicit.attach`, on the root that comes out here.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayer import certify, failures
from optlayer.convexity import least_curvature
from optlayer.doubts import is_doubtful
from optlayer.engines import Answer
from optlayer.engines.ask import ask, improve, some
from optlayer.engines.face import Face
from optlayer.engines.table import Engine
from optlayer.forms import Point
from optlayer.forms.kkt import Factored, Instance, KKTForm, Reduction
from optlayer.modes import without_saved_tensor_hooks
from optlayer.plan import Call, Outcome, Plan
from optlayer.polish import LONG, PATIENCE, Polished, polish, start
from optlayer.report import Failure, explain
from optlayer.smoothing import smoothed_roots
from optlayer.solution import Status


def solve(plan: Plan, call: Call, theta: tuple[Tensor, ...]) -> Outcome:
    """The roots at θ, batched, under vmap or not; their derivative is zero.

    Raises:
        InputError: where a value is not finite or not admissible, unless failures are kept.
        SolveError: where a sample has no certified answer, unless failures are kept.
    """
    return Outcome(*_Solve.apply(plan, call, *(t.detach() for t in theta)))


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(plan: Plan, call: Call, *theta: Tensor) -> tuple[Tensor, ...]:
        # Inference tensors may not be met by an autograd graph later on: leave that mode, and copy.
        with torch.inference_mode(False), torch.no_grad(), without_saved_tensor_hooks():
            return tuple(_solve(plan, call, tuple(t.clone() for t in theta)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], plan: Plan, call: Call, *theta: Tensor) -> Any:
        """Fold the new dimension into the batch: one call, one pool of samples."""
        size, dims = info.batch_size, in_dims[2:]
        front = [
            t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(theta, dims, strict=True)
        ]
        folded = (t.reshape(size * t.shape[1], *t.shape[2:]) for t in front)
        outcome = _Solve.apply(plan, call.batched(size), *folded)
        unfolded = tuple(o.reshape(size, len(o) // size, *o.shape[1:]) for o in outcome)
        return unfolded, (0,) * len(unfolded)


# --------------------------------------------------------------------------------------- the pipeline


class _Attempt(NamedTuple):
    """What one engine's answer became, for the whole batch; rows it was not asked for are NaN."""

    asked: Int64[Tensor, " k"]  # the rows that it was asked for
    answer: Answer
    polished: Polished
    residuals: Float64[Tensor, "B 4"]
    iterations: Tensor
    claims: dict[int, Status]
    words: dict[int, str]
    rays: dict[int, Point]

    def of(self, rows: Int64[Tensor, " r"]) -> Answer:
        """The answer for some of the rows that were asked for."""
        return some(self.answer, torch.searchsorted(self.asked, rows))


def _solve(plan: Plan, call: Call, theta: tuple[Tensor, ...]) -> Outcome:
    size = theta[0].shape[0] if theta else 1
    failed = failures.inadmissible(plan, call, theta)
    theta = plan.lift(tuple(a.read(t) for a, t in zip(plan.admissible, theta, strict=True)))
    failed = failures.undefined(theta, size) | failed
    if failed and plan.raises:
        raise explain(failed, size, call.batch)
    problem = Instance(plan.form, theta, size)
    outcome = Outcome.of_nothing(plan.form, size)
    pending = torch.ones(size, dtype=torch.bool)
    pending[list(failed)] = False
    attempt: _Attempt | None = None
    reduced: Reduction | None = None
    for answer, settle in _answers(plan, call, problem, pending):
        attempt = _examine(problem, answer(attempt), pending, plan.tolerance)
        certified = pending & (attempt.residuals.amax(1) <= plan.tolerance)
        failed |= _saddles(problem, attempt, certified)
        pending[list(failed)] = False
        certified &= pending
        _take(outcome, certified, attempt)
        pending &= ~certified
        reduced = attempt.polished.reduced if certified.all() else None
        if settle:
            _explain_claims(plan, problem, attempt, pending, failed)
    if attempt and pending.any():
        _explain_rest(plan, problem, attempt, pending, failed)
    failed |= _smooth(plan, problem, outcome, pending)
    _report(plan, call, failed, size)
    for i, failure in failed.items():
        outcome.status[i] = failure.status
    reduced = reduced or _reduced_at(problem, outcome)
    _flag_uniqueness(plan, call, problem, outcome, reduced)
    if not failed:
        call.factored.append(Factored(outcome.u, outcome.tau, reduced))
    return outcome


def _answers(
    plan: Plan, call: Call, problem: Instance, pending: Tensor
) -> Iterator[tuple[Callable[[_Attempt | None], Answer], bool]]:
    """A start for Newton's method, then engine after engine, as long as samples are pending.

    Each is a function of the attempt before. With each, whether a claim of its is to be proven before the
    next engine is asked: not where that engine is quicker than a proof.
    """
    if call.start is not None and call.start.x.shape[0] == problem.size and pending.any():
        previous = call.start
        yield lambda _: _from(previous, pending, "the previous solution"), False
    if plan.cold and pending.any():
        yield lambda _: replace(_from(start(problem), pending, "Newton's method"), far=True), False
    for engine, following in zip(plan.engines, (*plan.engines[1:], None), strict=True):
        if pending.any():
            settle = following is None or not following.quick
            yield partial(_by, engine, problem, _indices(pending)), settle


def _by(engine: Engine, problem: Instance, rows: Tensor, before: _Attempt | None) -> Answer:
    """An engine's own answer, or the answer before, improved."""
    if isinstance(engine, Face):
        assert before is not None
        return improve(engine, problem, rows, before.of(rows))
    return ask(engine, problem, rows)


def _from(point: Point, rows: Tensor, words: str) -> Answer:
    """A point as if an engine had returned it."""
    x, lam, nu = (part[rows].numpy() for part in point)
    k = len(x)
    claims = (Status.INACCURATE,) * k
    return Answer(x, np.hstack([lam, nu]), claims, (words,) * k, np.zeros(k, dtype=np.int64))


def _examine(problem: Instance, answer: Answer, rows: Tensor, tolerance: float) -> _Attempt:
    """Polish and certificate on the whole batch: a sample must not feel who else is pending."""
    form, index = problem.form, _indices(rows)
    x, y = (torch.full((len(rows), k), torch.nan, dtype=torch.float64) for k in (form.n, form.m + form.p))
    iterations = torch.zeros(len(rows), dtype=torch.int64)
    x[index], y[index] = torch.from_numpy(answer.x), torch.from_numpy(answer.y)
    iterations[index] = torch.from_numpy(answer.iterations)
    lam, nu = y.split([form.m, form.p], 1)
    polished = polish(problem, Point(x, form.dual.nearest(lam), nu), LONG if answer.far else PATIENCE)
    residuals = _certificate(problem, polished, tolerance)
    named, doubted = index.tolist(), torch.ones(len(rows), dtype=torch.bool)
    doubted[index] = torch.tensor([claim != Status.SOLVED for claim in answer.claims], dtype=torch.bool)
    first = x if answer.first is None else x.index_copy(0, index, torch.from_numpy(answer.first))
    residuals[is_doubtful(problem, polished, residuals, first, doubted, tolerance)] = torch.inf
    claims, words = (dict(zip(named, said, strict=True)) for said in (answer.claims, answer.words))
    rays = _rays(form, answer, named)
    return _Attempt(index, answer, polished, residuals, iterations, claims, words, rays)


def _rays(form: KKTForm, answer: Answer, named: list[int]) -> dict[int, Point]:
    """The directions that come with claims."""
    if answer.rays is None:
        return {}
    none = (Status.INFEASIBLE, Status.UNBOUNDED)
    claimed = [k for k, claim in enumerate(answer.claims) if claim in none]
    x, y = (torch.from_numpy(part) for part in answer.rays)
    lam, nu = y.split([form.m, form.p], 1)
    return {named[k]: Point(*(part[k : k + 1] for part in (x, lam, nu))) for k in claimed}


def _certificate(problem: Instance, found: Polished, tolerance: float) -> Float64[Tensor, "B 4"]:
    """The four residuals; samples that fail are judged once more against the size of the data."""
    rows = certify.residuals(found.at, found.point, found.scale).stacked
    failing = _indices(rows.amax(1) > tolerance)
    if len(failing):
        some, u, tau = problem.rows(failing), found.u[failing], found.tau[failing]
        point = problem.form.recover(u, tau)
        at = some.at(point)
        alone = torch.cat([point.x, torch.zeros_like(u[:, problem.form.n :])], 1)  # λ = 0, ν = 0
        moved, of_f = some.sensitivity(u, tau), some.sensitivity(alone, tau)
        scale = certify.scales(at, point, some.unit).plus(moved, of_f, at.dual)
        rows[failing] = certify.residuals(at, point, scale).stacked
    rows[~problem.borders.smooth(found.point.x)] = torch.inf
    return rows


def _saddles(problem: Instance, attempt: _Attempt, certified: Tensor) -> dict[int, Failure]:
    """Certified points that are no minima, where convexity is but the user's word."""
    if not problem.form.unproven or not certified.any():
        return {}
    curvature = least_curvature(attempt.polished.at, attempt.polished.point)
    worst = attempt.residuals.amax(1)
    found = failures.samples(certified & (curvature < 0))
    return {i: failures.saddle(curvature[i].item(), worst[i].item()) for i in found}


def _smooth(plan: Plan, problem: Instance, outcome: Outcome, missing: Tensor) -> dict[int, Failure]:
    """Roots to differentiate instead of the exact ones; where none is found a sample has failed."""
    if plan.smoothing is None:
        return {}
    roots, tau, arrived = smoothed_roots(problem, plan.smoothing, outcome.u, outcome.tau)
    outcome.smoothed.copy_(roots)
    outcome.smoothed_tau.copy_(tau)
    worst = outcome.residuals.amax(1)
    lost = ~arrived & ~missing & worst.isfinite()
    return {i: failures.not_smoothed(plan.smoothing, worst[i].item()) for i in failures.samples(lost)}


def _take(outcome: Outcome, rows: Tensor, attempt: _Attempt) -> None:
    outcome.u[rows], outcome.tau[rows] = attempt.polished.u[rows], attempt.polished.tau[rows]
    outcome.iterations[rows], outcome.residuals[rows] = attempt.iterations[rows], attempt.residuals[rows]
    outcome.flags[rows, 0] = attempt.polished.kink[rows]


# ------------------------------------------------------------------------------------------ failures


def _explain_claims(
    plan: Plan, problem: Instance, attempt: _Attempt, pending: Tensor, failed: dict[int, Failure]
) -> None:
    """Settle the rows whose engine claims that there is no solution, where that can be proven."""
    for i in failures.samples(pending):
        claim = attempt.claims[i]
        if claim in (Status.INFEASIBLE, Status.UNBOUNDED):
            sample, ray = problem.rows(torch.tensor([i])), attempt.rays.get(i)
            failure = failures.proven(plan, sample, claim, attempt.words[i], ray)
            if failure is not None:
                failed[i], pending[i] = failure, False


def _explain_rest(
    plan: Plan, problem: Instance, attempt: _Attempt, pending: Tensor, failed: dict[int, Failure]
) -> None:
    """No engine has an answer, and none was proven to be missing: say what is known."""
    for i in failures.samples(pending):
        sample, words, claim = problem.rows(torch.tensor([i])), attempt.words[i], attempt.claims[i]
        failure = None
        if claim not in (Status.INFEASIBLE, Status.UNBOUNDED):
            failure = failures.proven(plan, sample, claim, words, None)
        if failure is None:
            point = Point(*(part[i : i + 1] for part in attempt.polished.point))
            failure = failures.unexplained(plan, sample, point, attempt.residuals[i], claim, words)
        failed[i] = failure


def _report(plan: Plan, call: Call, failed: dict[int, Failure], size: int) -> None:
    if not failed:
        return
    error = explain(failed, size, call.batch)
    if plan.raises:
        raise error
    call.errors.append(error)


def _indices(rows: Tensor) -> Tensor:
    return rows.nonzero().squeeze(1)


# ---------------------------------------------------------------------------------------- uniqueness


def _flag_uniqueness(plan: Plan, call: Call, problem: Instance, outcome: Outcome, reduced: Reduction) -> None:
    """Flags: duals not unique (degenerate), or the minimizer itself."""
    singular, free = reduced.singular
    free = (free & problem.form.seen).any(1)
    solved = outcome.status == Status.SOLVED
    outcome.flags[:, 1], outcome.flags[:, 2] = solved & singular & ~free, solved & free
    _judge_uniqueness(plan, call, outcome)


def _reduced_at(problem: Instance, outcome: Outcome) -> Reduction:
    """K at the roots, where they come from several attempts."""
    form = problem.form
    at = problem.at(form.recover(outcome.u, outcome.tau))
    return problem.reduced(at, form.split(outcome.u)[1], outcome.tau)


def _judge_uniqueness(plan: Plan, call: Call, outcome: Outcome) -> None:
    nonunique = failures.samples(outcome.flags[:, 2])
    if not nonunique or plan.nonunique == "ignore":
        return
    why = "not unique to working precision; its derivative is the minimum-norm one"
    if plan.nonunique == "raise":
        worst = outcome.residuals.amax(1).tolist()
        found = {i: Failure(Status.SOLVED, why, worst[i]) for i in nonunique}
        raise explain(found, len(outcome.status), call.batch)
    if not plan.warned:
        plan.warned.append(True)
        message = f"the minimizer of {len(nonunique)} of {len(outcome.status)} samples is {why}. "
        way_out = 'Make the objective strictly convex, or pass nonunique="ignore"'
        warnings.warn(message + way_out, stacklevel=2)
