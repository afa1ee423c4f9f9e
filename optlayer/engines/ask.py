"""One way to ask any engine, in the form's own terms."""

import numpy as np
import torch
from torch import Tensor

from optlayer.cones import Cone
from optlayer.engines import Answer, Array, ConeProgram
from optlayer.engines.clarabel import Clarabel
from optlayer.engines.table import Engine
from optlayer.forms.smooth import Instance


def ask(engine: Engine, problem: Instance, rows: Tensor) -> Answer:
    """An engine's answer for some samples, y = (λ, ν)."""
    if not isinstance(engine, Clarabel):
        theta = tuple(t[rows].numpy() for t in problem.theta)
        return engine.solve_problem(theta)
    answer = engine.solve_matrices(cone_program(problem, rows))
    nu, lam = np.split(answer.y, [problem.form.p], axis=1)
    return Answer(answer.x, np.hstack([lam, nu]), answer.claims, answer.words, answer.iterations)


def cone_program(problem: Instance, rows: Tensor) -> ConeProgram:
    """[A; G] x + s = -[h₀; g₀] with s = 0 for the equalities, s >= 0 for the inequalities."""
    form, constants = problem.form, problem.form.constants
    q, P, g0, G, h0, A = (block[rows].numpy() for block in problem.origin)
    patterns = [_pattern(constants.A, form.p, form.n), _pattern(constants.G, form.m, form.n)]
    return ConeProgram(
        P=P,
        q=q,
        A=np.concatenate([A, G], axis=1),
        b=-np.concatenate([h0, g0], axis=1),
        K=Cone(zero=form.p, nonnegative=form.m),
        P_pattern=_pattern(constants.P, form.n, form.n),
        A_pattern=np.vstack(patterns),
    )


def _pattern(constant: Tensor | None, rows: int, columns: int) -> Array:
    """Where a block may be nonzero, whatever the parameters are."""
    if constant is None:
        return np.ones((rows, columns), dtype=bool)
    pattern: Array = torch.ne(constant, 0.0).numpy()
    return pattern
