"""What the numbers mean, and what to do about it: a table of rules."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from optlayer.diagnostics.data import Branch, Finding, Sample
from optlayer.solution import Status

ILL = 1e10  # condition of the scaled K that costs digits one can feel
APART = 1e6  # how much of a condition number may be the units
STEEP = 1e3  # relative gradient that a learner will feel
NEAR = 1e-6  # relative distance to a kink that noise in the data crosses
DISAGREE = 1e-6  # of two branches
EPS = 2e-16  # rounding in float64


class Facts(NamedTuple):
    """All that was measured."""

    samples: tuple[Sample, ...]
    branches: tuple[Branch, ...]
    sizes: dict[str, float]  # the largest entry of each parameter
    dtype: torch.dtype
    smoothing: float | None


class Rule(NamedTuple):
    """A finding about samples: when it holds, what is said of the first such sample, what to do."""

    kind: str
    holds: Callable[[Sample], bool]
    says: Callable[[Sample], str]
    advice: str


def find(facts: Facts) -> tuple[Finding, ...]:
    """All findings, failures first."""
    rules = [*FAILURES, *STRUCTURE, *(SMOOTHED if facts.smoothing else EXACT)]
    of_samples = (_apply(rule, facts) for rule in rules)
    return (*(finding for finding in of_samples if finding), *_of_all(facts))


def _apply(rule: Rule, facts: Facts) -> Finding | None:
    samples = [sample for sample in facts.samples if rule.holds(sample)]
    if not samples:
        return None
    indices = tuple(s.index for s in samples if s.index != ())
    return Finding(rule.kind, rule.says(samples[0]), rule.advice.format(sizes=_sizes(facts.sizes)), indices)


def _of_all(facts: Facts) -> Iterator[Finding]:
    """What concerns the call, not a sample."""
    for branch in facts.branches:
        if not branch.gap <= DISAGREE:
            text = f"the two branches of {branch.name} differ by {branch.gap:.1e} relative at a solution"
            advice = "the cvxpy branch is what is solved; make the torch branch the same"
            yield Finding("branches", text, advice)
    if facts.dtype != torch.float64:
        given, eps = str(facts.dtype).removeprefix("torch."), torch.finfo(facts.dtype).eps
        text = f"the input is {given}: outputs and gradients are rounded at {eps:.0e}"
        advice = "nothing, to train; pass float64 to compare digits, for gradcheck, or near a kink"
        yield Finding("dtype", text, advice)


def _sizes(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {size:.0e}" for name, size in sizes.items()) or "there are none"


# ------------------------------------------------------------------------------------------ failures


def _failure(status: Status, advice: str) -> Rule:
    return Rule(status.name.lower(), lambda s: s.status == status, lambda s: s.message, advice)


FAILURES = (
    _failure(
        Status.INFEASIBLE,
        "relax a constraint, or let a slack variable with a price in the objective violate it; "
        'on_failure="nan" keeps the other samples',
    ),
    _failure(Status.UNBOUNDED, "bound the variables, or add a strictly convex term to the objective"),
    _failure(
        Status.INACCURATE,
        "bring data and variables to sizes near 1 (largest parameters: {sizes}); try another solver=; "
        "look whether the minimum is attained",
    ),
    _failure(Status.FAILED, "try another solver=, or bring data and variables to sizes near 1"),
    _failure(Status.INVALID, "look where these values come from; they must be finite and as declared"),
)


# ------------------------------------------------------------------------- what holds at the solution


def _kink(s: Sample) -> str:
    names = ", ".join(f"'{name}' row {', '.join(map(str, r[:6]))}" for name, r in s.weakly_active.items())
    return f"x sits on a kink of {names or 'a cone'}: active, with a zero multiplier{_sides(s)}"


def _near(s: Sample) -> str:
    if s.margin < NEAR:
        return f"'{s.nearest}' is {s.margin:.0e} of its size from a kink{_sides(s)}"
    return f"a kink is nearer than a finite difference reaches{_sides(s)}"


def _sides(s: Sample) -> str:
    if s.slopes is None or not s.one_sided:
        return ""
    left, right, taken = s.slopes.backward, s.slopes.forward, s.slopes.vjp
    return f"; one-sided derivatives differ, {left:.3g} and {right:.3g}, the layer's is {taken:.3g}"


def _singular(s: Sample) -> bool:
    return s.nonunique or s.degenerate


def _condition(s: Sample) -> str:
    scaled = s.scaled or 1.0
    return f"K has condition {scaled:.0e} in its best units: expect x to {EPS * scaled:.0e}"


STRUCTURE = (
    Rule(
        "nonunique",
        lambda s: s.nonunique,
        lambda s: "K is singular: the minimizer is not unique, its derivative the one of minimum norm",
        "make the objective strictly convex, for instance by adding 1e-3 * cp.sum_squares(z)",
    ),
    Rule(
        "degenerate",
        lambda s: s.degenerate,
        lambda s: "K is singular: active constraints depend on each other, multipliers are not unique",
        "x is not affected; if you use multipliers, leave out constraints that others imply",
    ),
    Rule(
        "kink",
        lambda s: s.kink,
        _kink,
        "nothing, if it is rare; else smoothing=mu, or move the constraint",
    ),
    Rule(
        "near kink",
        lambda s: s.regular and (s.margin < NEAR or s.one_sided),
        _near,
        "finite differences see both sides here, the layer one; compare elsewhere, or pass smoothing=mu",
    ),
    Rule(
        "condition",
        lambda s: not _singular(s) and (s.scaled or 1.0) > ILL,
        _condition,
        "add a strictly convex term, or leave out constraints that are nearly dependent",
    ),
    Rule(
        "units",
        lambda s: not _singular(s) and (s.condition or 1.0) > max(ILL, APART * (s.scaled or 1.0)),
        lambda s: f"K has condition {s.condition:.0e}, but {s.scaled:.0e} in its best units",
        "the layer rescales, a learner does not: rescale parameters to sizes near 1 (largest: {sizes})",
    ),
    Rule(
        "steep",
        lambda s: not s.nonunique and s.gain > STEEP,
        lambda s: f"the gradient is huge: outputs move {s.gain:.0e} times as fast as parameters, relatively",
        "add a strictly convex term to the objective, or clip gradients",
    ),
)


# -------------------------------------------------------------------------------------- the gradient


def _flat(s: Sample) -> bool:
    """A gradient of 0 that is the derivative."""
    return s.flat and not (s.kink or s.nonunique or s.one_sided)


def _wrong(s: Sample) -> bool:
    """Where the derivative exists and the differences could be taken, do they disagree?"""
    if s.slopes is None or s.kink or s.nonunique or s.one_sided:
        return False
    return s.slopes.known and not s.slopes.agree


def _apart(s: Sample) -> str:
    said = f"derivatives and differences are {s.slopes.error if s.slopes else 0.0:.0e} apart, relatively"
    return said + (": K is singular, the derivative the one of minimum norm" if s.degenerate else "")


EXACT = (
    Rule(
        "vertex",
        lambda s: _flat(s) and s.vertex,
        lambda s: "x is a vertex: active constraints that do not move hold all of it, its derivative is 0",
        "pass smoothing=mu, about a tenth of the differences in the objective",
    ),
    Rule(
        "flat",
        lambda s: _flat(s) and not s.vertex,
        lambda s: "the gradient is 0: no parameter moves what the loss sees",
        "look at the active constraints, and whether the loss depends on the output here",
    ),
    Rule(
        "gradient",
        _wrong,
        _apart,
        "leave out constraints that are nearly dependent; another seed= tells whether a kink is near; if "
        "neither helps, this is worth reporting as a bug",
    ),
)

SMOOTHED = (
    Rule(
        "smoothed",
        lambda s: s.solved,
        lambda s: "derivatives are those of smoothing=mu; differences of values say nothing of them",
        "smoothing=None gives the exact derivative",
    ),
)
