r"""From parameter values to certified roots: which engine, retries, proofs of failure, and policy.

    θ --engine--> (x, y) --polish--> u --certify--> accept, or try the next engine
                                                    or prove that there is nothing to find

All of it happens outside autograd, in `_Solve`, whose derivative is zero: what carries derivatives is
`implicit.attach`, on the root that comes out here.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayer import certify, polish
from optlayer.cones import Cone
from optlayer.declare.admissible import Admissible
from optlayer.engines import Answer, ConeProgram, FunctionEngine, MatrixEngine
from optlayer.engines.clarabel import Clarabel
from optlayer.engines.cvxpy import Cvxpy
from optlayer.engines.proof import Proof
from optlayer.engines.table import Engine
from optlayer.errors import InaccurateError
from optlayer.forms import Point
from optlayer.forms.smooth import SmoothForm, kkt_matrix
from optlayer.linsolve import solve as solve_linear
from optlayer.report import Failure, explain
from optlayer.solution import Residuals, Status

BORDERLINE = 10.0  # a constraint must be violated by this many tolerances to count as unsatisfiable
PRECISION = 10.0  # units in the last place forgiven when a value is checked against an attribute


class Outcome(NamedTuple):
    """Certified roots, one row per sample; rows that are not SOLVED hold zeros in u."""

    u: Float64[Tensor, "B N"]
    tau: Float64[Tensor, "B m"]
    status: Int64[Tensor, " B"]
    iterations: Int64[Tensor, " B"]
    residuals: Float64[Tensor, "B 4"]  # in the order of `Residuals`
    flags: Bool[Tensor, "B 3"]  # in the order of `Flags`


@dataclass(frozen=True, eq=False)
class Plan:
    """All that is settled before the first call; immutable, shared by threads and copies."""

    form: SmoothForm
    engines: tuple[Engine, ...]
    proof: Proof
    admissible: tuple[Admissible, ...]
    tolerance: float
    raises: bool  # on_failure="raise": stop at the first batch with a failed sample
    nonunique: str = "warn"
    warned: list[bool] = field(default_factory=list)  # whether the one warning was given

    def __deepcopy__(self, memo: dict[int, object]) -> "Plan":
        return self


@dataclass(frozen=True)
class Call:
    """What one call adds: the batch's shape, the inputs' precision, and a place for its errors."""

    batch: tuple[int, ...]
    eps: tuple[float, ...]  # of each parameter's own dtype
    errors: list[Exception] = field(default_factory=list)

    def batched(self, size: int) -> "Call":
        """The same call with one more leading dimension."""
        return Call((size, *self.batch), self.eps, self.errors)


def solve(plan: Plan, call: Call, theta: tuple[Tensor, ...]) -> Outcome:
    """The roots at θ; batched and unbatched under vmap alike, with zero derivative.

    Raises:
        InputError: where a value is not finite or not admissible, unless failures are kept.
        SolveError: where a sample has no certified answer, unless failures are kept.
    """
    return Outcome(*_Solve.apply(plan, call, *(t.detach() for t in theta)))


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(plan: Plan, call: Call, *theta: Tensor) -> tuple[Tensor, ...]:
        # Inference tensors may not be met by an autograd graph later on: leave that mode, and copy.
        with torch.inference_mode(False), torch.no_grad():
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
        unfolded = tuple(o.reshape(size, -1, *o.shape[1:]) for o in outcome)
        return unfolded, (0,) * len(unfolded)


# --------------------------------------------------------------------------------------- the pipeline


class _State:
    """The rows found so far."""

    def __init__(self, form: SmoothForm, size: int) -> None:
        self.u = torch.zeros(size, form.size, dtype=torch.float64)
        self.tau = torch.ones(size, form.m, dtype=torch.float64)
        self.iterations = torch.zeros(size, dtype=torch.int64)
        self.residuals = torch.full((size, 4), torch.nan, dtype=torch.float64)
        self.kink = torch.zeros(size, dtype=torch.bool)

    def take(self, rows: Tensor, attempt: "_Attempt") -> None:
        for mine, theirs in zip(self.rows(), attempt[:5], strict=True):
            mine[rows] = theirs[rows]

    def rows(self) -> tuple[Tensor, ...]:
        return self.u, self.tau, self.iterations, self.residuals, self.kink


class _Attempt(NamedTuple):
    """What one engine's answer became, for the whole batch; rows it was not asked for are NaN."""

    u: Tensor
    tau: Tensor
    iterations: Tensor
    residuals: Tensor
    kink: Tensor
    point: Point
    claims: dict[int, Status]
    words: dict[int, str]


def _solve(plan: Plan, call: Call, theta: tuple[Tensor, ...]) -> Outcome:
    size = theta[0].shape[0] if theta else 1
    failures = _inadmissible(plan, call, theta)
    if failures and plan.raises:
        raise explain(failures, size, call.batch)
    theta = tuple(a.read(t) for a, t in zip(plan.admissible, theta, strict=True))
    state, pending = _State(plan.form, size), torch.ones(size, dtype=torch.bool)
    pending[list(failures)] = False
    last: _Attempt | None = None
    for engine in plan.engines:
        if not pending.any():
            break
        last = _attempt(plan, engine, theta, pending)
        certified = pending & (last.residuals.amax(1) <= plan.tolerance)
        state.take(certified, last)
        pending = pending & ~certified
        _prove(plan, theta, last, pending, failures, claimed_only=True)
    if last is not None and pending.any():
        _prove(plan, theta, last, pending, failures, claimed_only=False)
        _give_up(plan, theta, last, pending, failures)
    if failures:
        error = explain(failures, size, call.batch)
        if plan.raises:
            raise error
        call.errors.append(error)
    return _outcome(plan, theta, state, failures)


def _attempt(plan: Plan, engine: Engine, theta: tuple[Tensor, ...], rows: Tensor) -> _Attempt:
    """One engine on some rows, then polish and certificate on all, so that rows stay independent."""
    form = plan.form
    index = rows.nonzero().squeeze(1)
    answer = _ask(form, engine, tuple(t[index] for t in theta))
    x, y = (torch.full((len(rows), k), torch.nan, dtype=torch.float64) for k in (form.n, form.m + form.p))
    x[index], y[index] = torch.from_numpy(answer.x), torch.from_numpy(answer.y)
    lam, nu = y.split([form.m, form.p], 1)
    polished = polish.polish(form, Point(x, lam.clamp_min(0.0), nu), theta)
    at = form.local(*theta)(polished.point)
    found = certify.residuals(at, polished.point, certify.scales(at, polished.point))
    iterations = torch.zeros(len(rows), dtype=torch.int64)
    iterations[index] = torch.from_numpy(answer.iterations)
    residuals = torch.stack([found.stationarity, found.primal, found.dual, found.complementarity], 1)
    named = index.tolist()
    return _Attempt(
        polished.u,
        polished.tau,
        iterations,
        residuals,
        polished.kink,
        polished.point,
        dict(zip(named, answer.claims, strict=True)),
        dict(zip(named, answer.words, strict=True)),
    )


def _ask(form: SmoothForm, engine: MatrixEngine | FunctionEngine, theta: tuple[Tensor, ...]) -> Answer:
    """The engine's answer with duals ordered (λ, ν)."""
    if not isinstance(engine, Clarabel):
        assert isinstance(engine, Cvxpy)
        return engine.solve_problem(tuple(t.numpy() for t in theta))
    answer = engine.solve_matrices(_cone_program(form, theta))
    nu, lam = np.split(answer.y, [form.p], axis=1)
    return Answer(answer.x, np.hstack([lam, nu]), answer.claims, answer.words, answer.iterations)


def _cone_program(form: SmoothForm, theta: tuple[Tensor, ...]) -> ConeProgram:
    """[A; G] x + s = -[h₀; g₀] with s = 0 for the equalities, s >= 0 for the inequalities."""
    P, q, G, g0, A, h0 = (block.numpy() for block in form.matrices(*theta))
    return ConeProgram(
        P=P,
        q=q,
        A=np.concatenate([A, G], axis=1),
        b=-np.concatenate([h0, g0], axis=1),
        K=Cone(zero=form.p, nonnegative=form.m),
        P_pattern=_pattern(form.constants.P, form.n, form.n),
        A_pattern=np.vstack(
            [_pattern(form.constants.A, form.p, form.n), _pattern(form.constants.G, form.m, form.n)]
        ),
    )


def _pattern(constant: Tensor | None, rows: int, columns: int) -> np.ndarray:
    """Where a block may be nonzero, whatever the parameters are."""
    return np.ones((rows, columns), dtype=bool) if constant is None else constant.numpy() != 0


def _outcome(
    plan: Plan, theta: tuple[Tensor, ...], state: _State, failures: dict[int, Failure]
) -> Outcome:
    status = torch.full_like(state.iterations, Status.SOLVED)
    for i, failure in failures.items():
        status[i] = failure.status
    singular, free = _uniqueness(plan.form, state, theta)
    solved = status == Status.SOLVED
    flags = torch.stack([state.kink, singular & ~free, free], 1) & solved[:, None]
    _judge_uniqueness(plan, flags[:, 2])
    return Outcome(state.u, state.tau, status, state.iterations, state.residuals, flags)


def _judge_uniqueness(plan: Plan, nonunique: Bool[Tensor, " B"]) -> None:
    samples = nonunique.nonzero().flatten().tolist()
    if not samples or plan.nonunique == "ignore":
        return
    message = (
        f"the minimizer is not unique for {len(samples)} of {len(nonunique)} samples (first: sample "
        f"{samples[0]}); its derivative there is the minimum-norm one. Make the objective strictly "
        'convex, or pass nonunique="ignore"'
    )
    if plan.nonunique == "raise":
        raise InaccurateError(message, samples, [Status.SOLVED] * len(samples))
    if not plan.warned:
        plan.warned.append(True)
        warnings.warn(message, stacklevel=2)


def _uniqueness(form: SmoothForm, state: _State, theta: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Whether K is singular at the root, and whether x itself could move: K y = b for a generic b."""
    point = form.recover(state.u, state.tau)
    at = form.local(*theta)(point)
    K = kkt_matrix(at.hessian, at.G, at.A, state.u[:, form.n : form.n + form.m] > 0)
    generic = torch.cos(torch.arange(form.size, dtype=torch.float64) ** 2)
    _, singular, free = solve_linear(K, generic.expand(K.shape[0], -1), form.n)
    return singular, free


# ------------------------------------------------------------------------------------------ failures


def _inadmissible(plan: Plan, call: Call, theta: tuple[Tensor, ...]) -> dict[int, Failure]:
    """Samples whose data are not finite or break an attribute of their parameter."""
    failures: dict[int, Failure] = {}
    for spec, value, eps in zip(plan.admissible, theta, call.eps, strict=True):
        bad = ~value.isfinite().reshape(value.shape[0], -1)
        for i in bad.any(1).nonzero().flatten().tolist():
            what = f"parameter {spec.name!r} has {int(bad[i].sum())} NaN or infinite entries of {bad.shape[1]}"
            failures.setdefault(i, Failure(Status.INVALID, what))
        for attribute, rows in spec.offences(value, PRECISION * eps):
            for i in rows.nonzero().flatten().tolist():
                what = f"parameter {spec.name!r} is declared {attribute}, which its value is not"
                failures.setdefault(i, Failure(Status.INVALID, what))
    return failures


def _prove(
    plan: Plan,
    theta: tuple[Tensor, ...],
    attempt: _Attempt,
    pending: Tensor,
    failures: dict[int, Failure],
    claimed_only: bool,
) -> None:
    """Settle the pending rows that are provably infeasible or unbounded."""
    for i in pending.nonzero().flatten().tolist():
        claim = attempt.claims[i]
        if claimed_only and claim not in (Status.INFEASIBLE, Status.UNBOUNDED):
            continue
        sample = tuple(t[i : i + 1] for t in theta)
        failure = _infeasible(plan, sample, attempt.words[i])
        if failure is None and claim != Status.INFEASIBLE:
            failure = _unbounded(plan, sample, attempt.words[i])
        if failure is not None:
            failures[i], pending[i] = failure, False


def _infeasible(plan: Plan, sample: tuple[Tensor, ...], words: str) -> Failure | None:
    elastic = plan.proof.least_violation(tuple(t[0].numpy() for t in sample))
    if elastic is None or not elastic.violations:
        return None
    form, x = plan.form, torch.from_numpy(elastic.x)[None]
    point = Point(x, x.new_zeros(1, form.m), x.new_zeros(1, form.p))
    at = form.local(*sample)(point)
    relative = certify.residuals(at, point, certify.scales(at, point)).primal.item()
    if not relative > BORDERLINE * plan.tolerance:
        return None
    worst = max(elastic.violations, key=lambda name: elastic.violations[name])
    amount = elastic.violations[worst]
    return Failure(Status.INFEASIBLE, f"{words}; {worst} violated by {amount:.3g} at best", relative)


def _unbounded(plan: Plan, sample: tuple[Tensor, ...], words: str) -> Failure | None:
    if not plan.proof.falls_without_limit(tuple(t[0].numpy() for t in sample)):
        return None
    return Failure(Status.UNBOUNDED, f"{words}; the objective keeps falling as the variables grow")


def _give_up(
    plan: Plan,
    theta: tuple[Tensor, ...],
    attempt: _Attempt,
    pending: Tensor,
    failures: dict[int, Failure],
) -> None:
    """What is left has a point that fails the certificate, or no point at all."""
    restless = polish.restlessness(plan.form, attempt.point, theta)
    for i in pending.nonzero().flatten().tolist():
        words, rows = attempt.words[i], attempt.residuals[i]
        if not rows.isfinite().all():
            failures[i] = Failure(Status.FAILED, words)
            continue
        name = list(Residuals.__dataclass_fields__)[int(rows.argmax())]
        what = f"{words}; relative residual {name} {rows.max():.1e} exceeds the tolerance {plan.tolerance:.0e}"
        if restless[i] > 1e-3:
            what += (
                f"; one more Newton step would move x by {100 * restless[i]:.0f} %: "
                "the solver stopped early, or the infimum is not attained"
            )
        failures[i] = Failure(Status.INACCURATE, what, rows.max().item())
