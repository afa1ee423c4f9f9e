"""Why a sample has no answer: examined before the solve, proven after it."""

import torch
from torch import Tensor

from optlayer import certify, polish
from optlayer.forms import Point
from optlayer.forms.smooth import Instance
from optlayer.plan import Call, Plan
from optlayer.report import Failure
from optlayer.solution import Residuals, Status

BORDERLINE = 10.0  # a constraint must be violated by this many tolerances to count as unsatisfiable
PRECISION = 10.0  # units in the last place forgiven when a value is checked against an attribute
RESTLESS = 1e-3  # a relative Newton step that says "not a minimum"


def inadmissible(plan: Plan, call: Call, theta: tuple[Tensor, ...]) -> dict[int, Failure]:
    """Samples whose data are not finite, or break an attribute of their parameter."""
    found: dict[int, Failure] = {}
    for spec, value, eps in zip(plan.admissible, theta, call.eps, strict=True):
        bad = ~value.isfinite().reshape(value.shape[0], -1)
        for i in _samples(bad.any(1)):
            what = f"has {int(bad[i].sum())} NaN or infinite entries of {bad.shape[1]}"
            found.setdefault(i, Failure(Status.INVALID, f"parameter {spec.name!r} {what}"))
        for attribute, rows in spec.offences(value, PRECISION * eps):
            for i in _samples(rows):
                what = f"is declared {attribute}, which its value is not"
                found.setdefault(i, Failure(Status.INVALID, f"parameter {spec.name!r} {what}"))
    return found


def proven(plan: Plan, sample: Instance, claim: Status, words: str) -> Failure | None:
    """Infeasible or unbounded beyond the solver's claim; None where it cannot be shown."""
    failure = _infeasible(plan, sample, words)
    if failure is None and claim != Status.INFEASIBLE:
        failure = _unbounded(plan, sample, words)
    return failure


def _infeasible(plan: Plan, sample: Instance, words: str) -> Failure | None:
    elastic = plan.proof.least_violation(tuple(t[0].numpy() for t in sample.theta))
    if elastic is None or not elastic.violations:
        return None
    x = torch.from_numpy(elastic.x)[None]
    point = Point(x, x.new_zeros(1, sample.form.m), x.new_zeros(1, sample.form.p))
    at = sample.at(point)
    relative = certify.residuals(at, point, certify.scales(at, point)).primal.item()
    if not relative > BORDERLINE * plan.tolerance:
        return None
    worst = max(elastic.violations, key=lambda name: elastic.violations[name])
    why = f"{words}; {worst} violated by {elastic.violations[worst]:.3g} at best"
    return Failure(Status.INFEASIBLE, why, relative)


def _unbounded(plan: Plan, sample: Instance, words: str) -> Failure | None:
    if not plan.proof.falls_without_limit(tuple(t[0].numpy() for t in sample.theta)):
        return None
    return Failure(Status.UNBOUNDED, f"{words}; the objective keeps falling as the variables grow")


def unexplained(plan: Plan, sample: Instance, point: Point, rows: Tensor, words: str) -> Failure:
    """A point that fails the certificate, or no point at all. rows: the four residuals."""
    if not rows.isfinite().all():
        return Failure(Status.FAILED, words)
    worst = list(Residuals.__dataclass_fields__)[int(rows.argmax())]
    why = f"{words}; relative residual {worst} {rows.max():.1e} exceeds the tolerance {plan.tolerance:.0e}"
    restless = polish.restlessness(sample, point).item()
    if restless > RESTLESS:
        why += (
            f"; one more Newton step would move x by {100 * restless:.0f} %: "
            "the solver stopped early, or the infimum is not attained"
        )
    return Failure(Status.INACCURATE, why, rows.max().item())


def _samples(rows: Tensor) -> list[int]:
    indices: list[int] = rows.nonzero().flatten().tolist()
    return indices
