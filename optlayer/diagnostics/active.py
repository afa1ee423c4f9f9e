"""Which constraints hold x, by the user's names."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.certify import over
from optlayer.cones import Product
from optlayer.diagnostics.data import Constraint
from optlayer.forms.conic import ConicForm
from optlayer.forms.kkt import Reduction
from optlayer.layer import OptLayer

TIE = 1e-12  # relative distance from a kink that is none
HELD = 1e-9  # part of a row's length in a direction that is rounding
UNNAMED = "atoms and attributes"  # rows that cvxpy adds: the value of a norm, a sign of a variable


def names(layer: OptLayer) -> tuple[str, ...]:
    """The constraint that each row of g belongs to, (m,)."""
    form = layer._plan.form
    if isinstance(form, ConicForm):
        return tuple(name or UNNAMED for name in form.owners[form.p :])
    rows = layer._declaration.build(attributes=False, rows=True).inequalities
    return tuple(row.name for row in rows for _ in range(row.constraint.size))


def state(
    owners: Sequence[str], dual: Product, v: Float64[Tensor, " m"], unit: Float64[Tensor, " m"]
) -> dict[str, Any]:
    """What `Sample` has to say of constraints; v = τλ - s in the unit of s."""
    distance, nearest = margin(owners, dual, v, unit)
    return {"constraints": constraints(owners, dual, v), "margin": distance, "nearest": nearest}


def constraints(owners: Sequence[str], dual: Product, v: Float64[Tensor, " m"]) -> tuple[Constraint, ...]:
    """The state of each constraint at v = τλ - s; rows of one cone share theirs."""
    active, weak = states(dual, v)
    places: dict[str, list[int]] = {}
    for row, name in enumerate(owners):
        places.setdefault(name, []).append(row)
    return tuple(
        Constraint(name, len(rows), _numbers(active[rows]), _numbers(weak[rows]))
        for name, rows in places.items()
    )


def states(dual: Product, v: Float64[Tensor, " m"]) -> tuple[Bool[Tensor, " m"], Bool[Tensor, " m"]]:
    """Rows whose cone has a multiplier, and rows whose cone is on a kink of the projection."""
    size = dual.over_blocks(v.abs())
    weak = dual.snap(v, TIE * size)[1]
    return (dual.over_blocks(dual.nearest(v).abs()) > TIE * size) & ~weak, weak


def margin(
    owners: Sequence[str], dual: Product, v: Float64[Tensor, " m"], unit: Float64[Tensor, " m"]
) -> tuple[float, str]:
    """The least |v| of an inequality in its unit, and whose it is; inf where there is none."""
    relative = torch.where(dual.alone & ((unit > 0) | (v == 0)), over(v.abs(), unit), torch.inf)
    if not relative.isfinite().any():
        return torch.inf, ""
    least = int(relative.argmin())
    return relative[least].item(), owners[least]


def is_vertex(K: Reduction) -> bool:
    """Whether equalities and fully active rows determine x of one sample: their rank is n."""
    G, A = K.spectrum.into(K.at.G.dense())[0], K.at.A.dense()[0]
    rows = torch.cat([G[K.spectrum.d[0] > 1.0 - TIE], A])
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    n = rows.shape[1]
    return len(rows) >= n and int(torch.linalg.matrix_rank(rows / lengths, rtol=HELD)) == n


def _numbers(rows: Bool[Tensor, " r"]) -> tuple[int, ...]:
    return tuple(rows.nonzero().flatten().tolist())
