"""Which engines a large sparse quadratic programme is for, read off its patterns.

OSQP factorizes once where an interior point method does so in every step; SCS with conjugate gradients
never does, for patterns that would fill in. Neither is asked for more than Newton's method needs to set out
from: the polish does the rest.
"""

import numpy as np
import torch

from optlayer.engines.clarabel import Clarabel
from optlayer.engines.osqp import OSQP
from optlayer.engines.scs import SCS
from optlayer.fill import WORK, factor_work
from optlayer.forms.blocks import AffineObjective, AffineRows
from optlayer.forms.kkt import KKTForm
from optlayer.forms.programme import Programme
from optlayer.matrix import FULL, Pattern

LARGE = 2000  # unknowns from which on it matters
ROUGHLY, CAREFULLY = ({"eps_abs": eps, "eps_rel": eps} for eps in (1e-4, 1e-8))


def large_engines(form: KKTForm) -> tuple[OSQP | SCS | Clarabel, ...]:
    """Best first; none where the programme is not large, or dense, or not over the orthant."""
    patterns = _patterns(form)
    if patterns is None:
        return ()
    if factor_work(*patterns) <= WORK:
        return OSQP(ROUGHLY), Clarabel({}), Clarabel({}, rescale=True)
    return SCS({"indirect": True, **ROUGHLY}), SCS({"indirect": True, **CAREFULLY})


def _patterns(form: KKTForm) -> tuple[Pattern, Pattern] | None:
    """Those of P and of [G; A], where both are sparse and the programme is large."""
    if not isinstance(form, Programme) or not form.dual.is_orthant or form.size <= LARGE:
        return None
    rows = [part for part, size in ((form.inequality, form.m), (form.equality, form.p)) if size]
    affine = [part.M.pattern for part in rows if isinstance(part, AffineRows)]
    if not isinstance(form.objective, AffineObjective) or len(affine) < len(rows):
        return None
    P, E = form.objective.P.pattern, _below(affine, form.n)
    return (P, E) if P.nnz <= FULL * form.n**2 and E.nnz <= FULL * E.shape[0] * form.n else None


def _below(parts: list[Pattern], n: int) -> Pattern:
    """One below the other."""
    starts = np.cumsum([0, *(part.shape[0] for part in parts)]).tolist()
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = torch.cat([nothing, *(part.rows + start for part, start in zip(parts, starts, strict=False))])
    columns = torch.cat([nothing, *(part.columns for part in parts)])
    return Pattern((starts[-1], n), rows, columns)
