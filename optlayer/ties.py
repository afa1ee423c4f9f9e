"""Ties among rounding: an inequality whose multiplier and slack are what rounding elsewhere makes of 0.

At a vertex of the simplex that is its own projection nothing pulls: the row of such an inequality has no
terms of its own, and a multiplier of 1e-16 is as large as they are. What rounding makes of it comes through
the equalities: a ν_k that has to hold terms of size S_j in one row brings a share of their rounding to all
its others. A length is handed on in the same way. No unit of a coordinate or a row enters.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.certify import Scales
from optlayer.forms import Local, Point
from optlayer.matrix import Matrix

ROUNDING = 1e-13  # of what could be handed on: a few digits more than one operation loses


def ties(at: Local, point: Point, v: Float64[Tensor, "B m"], scale: Scales) -> Bool[Tensor, " B"]:
    """Whether some inequality is one. v: τλ - s."""
    if not (v.shape[1] and at.A.shape[0]):
        return torch.zeros_like(point.x[:, 0], dtype=torch.bool)
    least, largest = v.abs().aminmax(dim=1)
    suspect = least <= ROUNDING * largest
    return suspect & _ties(at, point, scale) if suspect.any() else suspect


def _ties(at: Local, point: Point, scale: Scales) -> Bool[Tensor, " B"]:
    inverse = _inverse(at.A)
    terms = at.A.column_largest(inverse.largest(scale.stationarity))
    lengths = torch.maximum(inverse.column_largest(scale.equality), point.x.abs())
    no_pull = point.lam <= ROUNDING * at.G.least(torch.maximum(terms, scale.stationarity))
    no_room = at.g.abs() <= ROUNDING * (at.G.abs @ lengths)
    return (at.dual.alone & no_pull & no_room).any(1)


def _inverse(M: Matrix) -> Matrix:
    """1 / |entries|, 0 where there is none."""
    entries = M.abs.values
    return replace(M, values=torch.where(entries > 0, 1.0 / entries, 0.0))
