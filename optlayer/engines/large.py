"""Which engines a large sparse quadratic programme is for, read off its patterns.

An interior point method factorizes in every step, OSQP a few times, SCS once, and with conjugate gradients
never: the more a factor fills in, the later in this row. None is asked for more than Newton's method needs to
set out from: the polish does the rest.
"""

from functools import reduce

import torch

from optlayer.engines.clarabel import Clarabel
from optlayer.engines.face import Face, closely
from optlayer.engines.osqp import OSQP
from optlayer.engines.piqp import PIQP
from optlayer.engines.scs import SCS
from optlayer.fill import WORK, factor_work
from optlayer.forms.blocks import AffineObjective, AffineRows
from optlayer.forms.programme import Programme
from optlayer.matrix import FULL, Pattern

MIDDLE, LARGE = 500, 2000  # unknowns up to which a direct method sample by sample is quickest: always; where
# its factors stay sparse
CHEAP = 600  # operations of a factorization for each entry, up to which they do, and it may be repeated
NOWHERE = torch.zeros(0, dtype=torch.int64)
ROUGHLY, CAREFULLY = ({"eps_abs": eps, "eps_rel": eps} for eps in (1e-4, 1e-8))


def large_engines(form: Programme) -> tuple[OSQP | SCS | Clarabel | PIQP | Face, ...]:
    """Best first, for a programme over the orthant; none where it is not large, or dense."""
    patterns = _patterns(form) if form.size > MIDDLE else None
    if patterns is None:
        return ()
    work = factor_work(*patterns)
    if work > WORK:
        return SCS({"indirect": True, **ROUGHLY}), SCS({"indirect": True, **CAREFULLY})
    then = *closely(), Clarabel({}), Clarabel({}, rescale=True)
    if work > CHEAP * sum(pattern.nnz for pattern in patterns):
        return SCS(ROUGHLY), *then
    return (OSQP(ROUGHLY), *then) if form.size > LARGE else ()


def _patterns(form: Programme) -> tuple[Pattern, Pattern] | None:
    """Those of P and of [G; A], where both are sparse."""
    rows = [part for part, size in ((form.inequality, form.m), (form.equality, form.p)) if size]
    affine = [part.M.pattern for part in rows if isinstance(part, AffineRows)]
    if not isinstance(form.objective, AffineObjective) or len(affine) < len(rows):
        return None
    P, E = form.objective.P.pattern, reduce(Pattern.above, affine, Pattern.of_places((0, form.n), NOWHERE))
    return (P, E) if P.nnz <= FULL * form.n**2 and E.nnz <= FULL * E.shape[0] * form.n else None
