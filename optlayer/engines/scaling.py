r"""Equilibration, done for the whole batch before any solver sees it.

Solvers scale a programme when it is set up, and keep those scales when it is updated: the second sample
would be solved in units of the first. Here each has its own,

    P̂ = σ DPD,   q̂ = σ Dq,   Â = EAD,   b̂ = Eb,        x = Dx̂,   y = Eŷ/σ,   s = E⁻¹ŝ,

with D, E by Ruiz's iteration (2001), which takes the largest entry of every row and column of
[P Aᵀ; A 0] to 1. They are powers of two: nothing is rounded, on the way in or out. E is constant on the
rows of a cone, whose points it would bend otherwise. σ takes the objective to size 1: P or q, whichever is
larger. Where P and A are shared by all samples, so are D and E.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.engines import ConeProgram, Units
from optlayer.matrix import Matrix, largest

ROUNDS = 3
LARGEST = 1e4  # scale: beyond, an entry is taken for rounding rather than for data


def equilibrated(program: ConeProgram, keep_shared: bool = False) -> tuple[ConeProgram, Units]:
    """The same programme with entries of size 1, and the way back.

    Args:
        keep_shared: σ ignores q, unless P = 0: then a P that all samples share stays shared.
    """
    coarse = program._replace(P=_coarse(program.P), A=_coarse(program.A))
    D, E = _ruiz(coarse)
    P, q = program.P.scaled(D, D), D * program.q
    curvature, slope = largest(D * coarse.P.column_largest(D.float())), largest(q)
    size = torch.where(curvature > 0, curvature, slope) if keep_shared else torch.maximum(curvature, slope)
    sigma = _power_of_two(1.0 / _or_one(size))
    of_P = sigma[:1] if keep_shared and len(P.values) == 1 else sigma  # one for all, or P = 0
    scaled = program._replace(
        P=P.scaled(of_P.expand(-1, P.shape[0]), 1.0),
        q=sigma * q,
        A=program.A.scaled(E, D),
        b=E * program.b,
    )
    return scaled, Units(D.numpy(), (E / sigma).numpy())


def _ruiz(program: ConeProgram) -> tuple[Float64[Tensor, "#B n"], Float64[Tensor, "#B m"]]:
    P, A = program.P, program.A
    samples = max(len(P.values), len(A.values))
    D, E = P.values.new_ones(samples, P.shape[0]), A.values.new_ones(samples, A.shape[0])
    for _ in range(ROUNDS):
        columns = D * torch.maximum(P.column_largest(D), A.column_largest(E))
        rows = _over_cones(program, E * A.largest(D))
        D = (D / _or_one(columns).sqrt()).clamp(1.0 / LARGEST, LARGEST)
        E = (E / _or_one(rows).sqrt()).clamp(1.0 / LARGEST, LARGEST)
    return _power_of_two(D), _power_of_two(E)


def _coarse(matrix: Matrix) -> Matrix:
    """|entries| in single precision, which is more than a power of two needs."""
    return replace(matrix, values=matrix.values.to(torch.float32).abs_())


def _over_cones(program: ConeProgram, rows: Float64[Tensor, "#B m"]) -> Float64[Tensor, "#B m"]:
    """The largest among the rows of a cone."""
    if program.K.blocks == program.K.dim:  # inequalities
        return rows
    return torch.cat([rows[:, : program.zero], program.K.over_blocks(rows[:, program.zero :])], 1)


def _or_one(a: Tensor) -> Tensor:
    """1 for what is no scale."""
    return torch.where((a > 0) & (a < torch.inf), a, 1.0)


def _power_of_two(a: Tensor) -> Tensor:
    """The nearest one."""
    exponent = np.rint(np.log2(a.numpy())).astype(np.int64)
    return torch.from_numpy(np.ldexp(1.0, exponent))
