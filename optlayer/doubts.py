r"""What makes an answer suspect that the certificate lets pass: its rows are relative, there is more to see.

x or a multiplier left for infinity, where rows pass relative to terms that have grown with it;
nothing holds a point far out but rounding (`balance`), or f falls for ever past it (`engines.recession`);
a further Newton step would move x, or a residual is left where K is singular and no step tells.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer import certify
from optlayer.balance import far, unheld
from optlayer.engines.recession import recedes
from optlayer.forms import Point
from optlayer.forms.conic import ConicForm
from optlayer.forms.kkt import Instance
from optlayer.matrix import largest
from optlayer.newton import begin
from optlayer.polish import Polished, restlessness

STRIDE = 1e3  # growth of x from an engine's answer to the polished one that is no polish any more
RESTLESS = 1e-6  # a relative Newton step that says "not a minimum"
ROUNDED = 1e-11  # residual that Newton leaves where K is regular, and more
TIED = 1e-9  # residual that the multipliers of ties leave behind, each 1e-10 of what would matter
UNSETTLED = 1e-9  # merit at which Newton's method has not arrived, whatever wider scales say
STATED = 1e-6  # largest relative disagreement with the user's own objective and constraints
ROUNDING = 1e-13  # of the data's largest length: differences that are none
BEYOND = 1e100  # no number of anybody's problem
FAR = 1e5  # lengths of the data that an argmin may measure without being suspect
OUTER = 1e6  # how much larger than its data the terms of a row may be without being suspect


def is_doubtful(
    problem: Instance,
    found: Polished,
    residuals: Float64[Tensor, "B 4"],
    start: Float64[Tensor, "B n"],
    doubted: Bool[Tensor, " B"],
    tolerance: float,
) -> Bool[Tensor, " B"]:
    """Whether an answer is none, whatever its residuals say.

    Args:
        problem: The batch.
        found: Newton's last points.
        residuals: Of the certificate.
        start: x of the engine that Newton's method set out from.
        doubted: Where that engine does not itself say that it has solved the sample.
        tolerance: Of the certificate.
    """
    lost = _ran_away(problem, start, found.point, doubted) | _restless(problem, found, residuals)
    if problem.form.quadratic:
        lost |= unheld(problem.origin, found.point, found.scale.stationarity)
        lost |= _recedes(problem, found, ~lost & (residuals.amax(1) <= tolerance))
    return lost


def _ran_away(
    problem: Instance, start: Tensor, found: Point, doubted: Bool[Tensor, " B"]
) -> Bool[Tensor, " B"]:
    """Whether Newton left for infinity, where an infimum that is not attained passes every relative test.

    So does a problem without feasible points, once x or the multipliers are large enough. Of cone
    programmes less is believed: anything else has a scale of its own in every row. Nor is it of a quadratic
    programme whose engine itself doubts the answer that Newton set out from.
    """
    size = _size(found.x)
    lost = torch.stack([_size(part) for part in found]).amax(0) > BEYOND
    conic = isinstance(problem.form, ConicForm)
    if not (conic or problem.form.quadratic):
        return lost
    away = size > STRIDE * _size(start)
    away = away if conic else away & doubted
    if away.any():
        lost |= away & (size > FAR * certify.extent(problem.origin, torch.zeros_like(found.x)).squeeze(1))
    return lost


def _size(part: Float64[Tensor, "B k"]) -> Float64[Tensor, " B"]:
    return largest(part).squeeze(1)


def _restless(problem: Instance, found: Polished, residuals: Tensor) -> Bool[Tensor, " B"]:
    """Whether one more Newton step would move the user's variables: the forward error of the answer.

    The rows of a cone are judged together, so that a small residual does not say that what is small
    among them is right: x² <= t in a cone whose largest row is 1 + t. Where K is regular the step does;
    the user's own functions, evaluated at x, say it everywhere.
    """
    form, x = problem.form, found.point.x
    short = (residuals.amax(1) > ROUNDED) | (found.merit > UNSETTLED)
    if not isinstance(form, ConicForm):  # of rows that bind by rounding alone no derivative would be right
        unsure = short & residuals.isfinite().all(1) & form.quadratic
        return unsure & found.reduced.nearly_singular & _unsettled(problem, found) if unsure.any() else unsure
    floor = ROUNDING * certify.extent(found.at, x).squeeze(1)
    gap = form.stated.gap(x, form.value(x, *problem.theta), floor, *problem.theta)
    moves = restlessness(problem, found) > RESTLESS
    if short.any():  # where K is singular, a step that stays says nothing of a residual that is left
        moves |= short & found.reduced.singular[0]
    return residuals.isfinite().all(1) & (moves | (gap > STATED))


def _recedes(problem: Instance, found: Polished, certified: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Whether f falls for ever past a point far out, where dependent constraints meet by rounding alone."""
    if not (problem.form.dual.is_orthant and certified.any()):
        return torch.zeros_like(certified)
    suspect = certified & found.reduced.singular[0]  # needed for the flags in any case
    if suspect.any():
        suspect &= far(problem.origin, found.point.x, OUTER)
    for i in suspect.nonzero().flatten().tolist():
        suspect[i] = recedes(problem.rows(torch.tensor([i])).origin)
    return suspect


def _unsettled(problem: Instance, found: Polished) -> Bool[Tensor, " B"]:
    """Whether a residual is left that is neither rounding nor a tie's, whose multiplier was dropped.

    The merit is that of Newton's last point, or of the one that was made of it on the bounds.
    """
    scale = certify.without_empty_rows(found.at, found.point, found.scale)
    left = certify.residuals(found.at, found.point, scale).worst
    merit = torch.minimum(found.merit, begin(problem, found.point)[2].merit)
    return (left > torch.where(found.kink, TIED, ROUNDED)) | (merit > UNSETTLED)
