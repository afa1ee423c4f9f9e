"""Why a sample has no answer: examined before the solve, proven after it."""

import numpy as np
import torch
from torch import Tensor

from optlayer import certify, farkas, polish
from optlayer.convexity import least_curvature
from optlayer.engines.ask import cone_program, turned
from optlayer.engines.clarabel import Clarabel
from optlayer.engines.elastic import contrary
from optlayer.engines.phase_one import EXACTLY, PhaseOne
from optlayer.engines.recession import contradiction, feasible, recedes
from optlayer.forms import Point
from optlayer.forms.conic import ConicForm
from optlayer.forms.kkt import Instance
from optlayer.plan import Call, Plan
from optlayer.report import Failure
from optlayer.solution import Residuals, Status

SOLVED_TO = 1e-7  # violation that may be the elastic problem's own solver at work, absolute or beside |x|
CLAIMED, UNCLAIMED = 1e-6, 1e-3  # least relative violation that proves what an engine said, or did not
PRECISION = 10.0  # units in the last place forgiven when a value is checked against an attribute
FEASIBLE = 1e-6  # relative violation forgiven in a point that shows the objective to be unbounded
OUTWARD = 10.0  # how much farther out each of those points must lie than the one before
VISIBLE = 1e-3  # a smaller relative fall is noise
UNABATED = 0.9  # f must go on falling at this part of its slope: a convex f then falls forever
SHARE = 1e-3  # of the largest part in a contradiction that is worth naming
UNSETTLED = 1e-3  # a relative Newton step that is worth a word
FALLS = "the objective keeps falling along a feasible direction"


def inadmissible(plan: Plan, call: Call, theta: tuple[Tensor, ...]) -> dict[int, Failure]:
    """Samples whose data are not finite, or break an attribute of their parameter."""
    found: dict[int, Failure] = {}
    for spec, value, eps in zip(plan.admissible, theta, call.eps, strict=True):
        bad = ~value.isfinite().reshape(value.shape[0], -1)
        for i in samples(bad.any(1)):
            what = f"has {int(bad[i].sum())} NaN or infinite entries of {bad.shape[1]}"
            found.setdefault(i, Failure(Status.INVALID, f"parameter {spec.name!r} {what}"))
        for attribute, rows in spec.offences(value, PRECISION * eps):
            for i in samples(rows):
                what = f"is declared {attribute}, which its value is not"
                found.setdefault(i, Failure(Status.INVALID, f"parameter {spec.name!r} {what}"))
    return found


def undefined(lifted: tuple[Tensor, ...], size: int) -> dict[int, Failure]:
    """Samples at which some function of the parameters alone, 1/p at p = 0, is not a number."""
    finite = torch.ones(size, dtype=torch.bool)
    for value in lifted:
        finite &= value.isfinite().reshape(size, -1).all(1)
    why = "a function of the parameters alone, a quotient or a logarithm, is not finite there"
    return {i: Failure(Status.INVALID, why) for i in samples(~finite)}


def proven(plan: Plan, sample: Instance, claim: Status, words: str, ray: Point | None) -> Failure | None:
    """Infeasible or unbounded beyond the solver's claim; None where it cannot be shown.

    A cone programme is judged by the ray that came with the claim, then by multipliers of our own; anything
    else by problems of our own.
    """
    if sample.form.quadratic and sample.form.dual.is_orthant and _recedes(sample):
        return Failure(Status.UNBOUNDED, f"{words}; {FALLS}")
    if isinstance(sample.form, ConicForm):
        failure = None if ray is None else _by_ray(sample, sample.form, claim, words, ray)
        return failure or _by_little(sample, sample.form, words)
    least = CLAIMED if claim == Status.INFEASIBLE else UNCLAIMED
    failure = _infeasible(plan, sample, words, least)
    if failure is None and _contradicts(sample):
        failure = Failure(Status.INFEASIBLE, f"{words}; the constraints contradict each other, if by little")
    if failure is None and claim == Status.UNBOUNDED:
        failure = _unbounded(plan, sample, words)
    return failure


def _recedes(sample: Instance) -> bool:
    """Whether a quadratic programme falls for ever from a feasible point."""
    point = feasible(sample.origin) if recedes(sample.origin) else None
    return point is not None and _violation(sample, point) <= FEASIBLE


def _contradicts(sample: Instance) -> bool:
    """Whether the constraints leave no point, by however little."""
    if not sample.form.quadratic:
        return PhaseOne().least_violation(sample, EXACTLY) is not None
    found = contradiction(sample.origin)
    if found is None:
        return False
    lam, nu = (torch.from_numpy(part)[None] for part in found)
    return farkas.excludes(sample, sample.nowhere._replace(lam=lam, nu=nu), EXACTLY)


def _by_ray(sample: Instance, form: ConicForm, claim: Status, words: str, ray: Point) -> Failure | None:
    """An objective that falls along a ray says nothing before there is a feasible point to set out from."""
    if claim == Status.UNBOUNDED and farkas.recedes(sample, ray):
        feasible, contrary = _feasibility(sample)
        if feasible:
            return Failure(Status.UNBOUNDED, f"{words}; {FALLS}")
        ray = contrary or ray
    if farkas.excludes(sample, ray):
        return Failure(Status.INFEASIBLE, f"{words}; {_contradiction(sample, form, ray)}")
    return None


def _by_little(sample: Instance, form: ConicForm, words: str) -> Failure | None:
    """Constraints that miss each other by less than a solver's ray can show."""
    for ray in contrary(sample):
        if farkas.excludes(sample, ray, EXACTLY):
            return Failure(Status.INFEASIBLE, f"{words}; {_contradiction(sample, form, ray)}, if by little")
    return None


def _contradiction(sample: Instance, form: ConicForm, ray: Point) -> str:
    """Which constraints take part in it, as far as they can be told."""
    names = [form.owners[i] for i in _involved(sample, ray) if form.owners[i]]
    *others, last = [""] * (not names) + list(dict.fromkeys(names))
    if not last:
        return "no point satisfies the constraints"
    return f"{', '.join(others)} and {last} exclude each other" if others else f"{last} cannot hold"


def _involved(sample: Instance, ray: Point) -> list[int]:
    """The rows whose share in the contradiction is worth naming."""
    at = sample.origin
    shares = torch.cat([ray.nu.abs() * at.A.peaks, ray.lam.abs() * at.G.peaks], 1)[0]
    return samples(shares > SHARE * shares.max())


def _feasibility(sample: Instance) -> tuple[bool, Point | None]:
    """Whether an engine finds a feasible point, the objective left out; the ray of a claim that not."""
    program = cone_program(sample, torch.tensor([0])).without_objective
    answer = turned(Clarabel({}).solve_matrices(program), sample.form.p)
    if answer.claims[0] == Status.INFEASIBLE and answer.rays is not None:
        x, y = (torch.from_numpy(part) for part in answer.rays)
        return False, Point(x, *y.split([sample.form.m, sample.form.p], 1))
    solved = answer.claims[0] == Status.SOLVED
    return solved and _violation(sample, answer.x[0]) <= FEASIBLE, None


def _infeasible(plan: Plan, sample: Instance, words: str, least: float) -> Failure | None:
    assert plan.proof is not None
    elastic = plan.proof.least_violation(sample)
    if elastic is None or not elastic.violations:
        return None
    relative = _violation(sample, elastic.x)
    worst = max(elastic.violations, key=lambda name: elastic.violations[name])
    at_work = SOLVED_TO * max(1.0, np.abs(elastic.x).max(initial=0.0))
    if not (relative > least and elastic.violations[worst] > at_work):
        return None
    why = f"{words}; {worst} violated by {elastic.violations[worst]:.3g} at best"
    return Failure(Status.INFEASIBLE, why, relative)


def _unbounded(plan: Plan, sample: Instance, words: str) -> Failure | None:
    """Three feasible points, each farther out, between which f falls at a slope that does not abate.

    One that abates, that of -log z, may still have no end: reported as inaccurate, not as proven.
    """
    assert plan.proof is not None
    found = plan.proof.boxed_minimizers(sample)
    if len(found) < 3 or any(_violation(sample, x) > FEASIBLE for x in found):
        return None
    near, far, farthest = (np.abs(x).max() for x in found)
    if not (far > OUTWARD * near and farthest > OUTWARD * far):
        return None
    values = [_value(sample, x) for x in found]
    slopes = [(a - b) / r for a, b, r in zip(values, values[1:], (far - near, farthest - far), strict=False)]
    if not (
        slopes[1] > UNABATED * slopes[0] > 0.0 and values[1] - values[2] > VISIBLE * max(map(abs, values))
    ):
        return None
    return Failure(Status.UNBOUNDED, f"{words}; the objective keeps falling as the variables grow")


def _violation(sample: Instance, x: np.ndarray) -> float:
    """The worst relative violation of a constraint at a primal point."""
    primal = torch.from_numpy(x)[None]
    point = Point(primal, primal.new_zeros(1, sample.form.m), primal.new_zeros(1, sample.form.p))
    at = sample.at(point)
    return certify.residuals(at, point, certify.scales(at, point, sample.unit)).primal.item()


def _value(sample: Instance, x: np.ndarray) -> float:
    return sample.form.value(torch.from_numpy(x)[None], *sample.theta).item()


def saddle(curvature: float, residual: float) -> Failure:
    """A stationary point of a problem that is not convex there."""
    why = (
        "not convex at the solution: on the face of the active constraints the Hessian of the Lagrangian has "
        f"an eigenvalue of {curvature:.1e} relative to its size"
    )
    return Failure(Status.INACCURATE, why, residual)


def not_smoothed(mu: float, residual: float) -> Failure:
    """An argmin beside which no point of the central path was found."""
    why = f"solved, but not with smoothing={mu:g}: try a larger one, or None for the exact derivative"
    return Failure(Status.INACCURATE, why, residual)


def unexplained(
    plan: Plan, sample: Instance, point: Point, rows: Tensor, claim: Status, words: str
) -> Failure:
    """A point that fails the certificate, or no point at all. rows: the four residuals."""
    if plan.form.unproven:
        words += _not_convex(sample, point)
        words += "; infeasibility is not proven" if claim == Status.INFEASIBLE else ""
    if point.x.isfinite().all() and not sample.borders.smooth(point.x).all():
        why = (
            f"{words}; there the argument of a logarithm, root or reciprocal is not positive, or a norm is 0"
        )
        return Failure(Status.INACCURATE, why, rows.max().item())
    if not rows.isfinite().all():
        if point.x.isfinite().all():
            why = (
                f"{words}; from there Newton's method does not settle: the data may be badly scaled, or the "
                "infimum not attained"
            )
            return Failure(Status.INACCURATE, why)
        stopped = claim == Status.INACCURATE
        return Failure(Status.INACCURATE if stopped else Status.FAILED, words)
    worst = list(Residuals.__dataclass_fields__)[int(rows.argmax())]
    why = f"{words}; relative residual {worst} {rows.max():.1e} exceeds the tolerance {plan.tolerance:.0e}"
    restless = polish.restlessness(sample, polish.settle(sample, point)).item()
    if restless > UNSETTLED:
        why += (
            f"; one more Newton step would move x by {100 * restless:.0f} %: "
            "the solver stopped early, or the infimum is not attained"
        )
    return Failure(Status.INACCURATE, why, rows.max().item())


def _not_convex(sample: Instance, point: Point) -> str:
    """A remark, where the point says so."""
    if not point.x.isfinite().all():
        return ""
    curvature = least_curvature(sample.at(point), point).item()
    return "; the problem is not convex there" if curvature < 0 else ""


def samples(rows: Tensor) -> list[int]:
    """Their numbers."""
    indices: list[int] = rows.nonzero().flatten().tolist()
    return indices
