"""One way to ask any engine, in the form's own terms."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from optlayer.engines import Answer, Array, ConeProgram
from optlayer.engines.cvxpy import Cvxpy
from optlayer.engines.table import Engine
from optlayer.forms.kkt import Instance


def ask(engine: Engine, problem: Instance, rows: Tensor) -> Answer:
    """An engine's answer for some samples, y = (λ, ν)."""
    if isinstance(engine, Cvxpy):
        return engine.solve_problem(tuple(t[rows].numpy() for t in problem.theta), len(rows))
    answer = engine.solve_matrices(cone_program(problem, rows))
    rays = answer.rays and (answer.rays[0], _turned(answer.rays[1], problem.form.p))
    return replace(answer, y=_turned(answer.y, problem.form.p), rays=rays)


def _turned(y: Array, p: int) -> Array:
    """(ν, λ) -> (λ, ν)."""
    return np.roll(y, -p, axis=1)


def cone_program(problem: Instance, rows: Tensor) -> ConeProgram:
    """[A; G] x + s = -[h₀; g₀] with s = 0 for the equalities, s ∈ K for the others."""
    form, origin = problem.form, problem.origin
    q, P, g0, G, h0, A = (block[rows].numpy() for block in origin[:6])
    P_pattern, A_pattern = form.patterns
    return ConeProgram(
        P=P,
        q=q,
        A=np.concatenate([A, G], axis=1),
        b=-np.concatenate([h0, g0], axis=1),
        zero=form.p,
        K=form.dual.dual,
        P_pattern=P_pattern,
        A_pattern=A_pattern,
    )
