"""One way to ask any engine, in the form's own terms."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from optlayer.engines import Answer, ConeProgram
from optlayer.engines.cvxpy import Cvxpy
from optlayer.engines.face import Face
from optlayer.engines.interior import Interior
from optlayer.engines.native import InteriorQP
from optlayer.engines.table import Solver
from optlayer.forms.kkt import Instance
from optlayer.matrix import stacked
from optlayer.solution import Status


def ask(engine: Solver, problem: Instance, rows: Tensor) -> Answer:
    """An engine's answer for some samples, y = (λ, ν); one that throws has none."""
    try:
        return _asked(engine, problem, rows)
    except Exception as error:
        return _nothing(problem, len(rows), f"{engine.name} raised {type(error).__name__}: {error}")


def _nothing(problem: Instance, size: int, words: str) -> Answer:
    form = problem.form
    x, y = (np.full((size, k), np.nan) for k in (form.n, form.m + form.p))
    return Answer(x, y, (Status.FAILED,) * size, (words,) * size, np.zeros(size, dtype=np.int64))


def improve(engine: Face, problem: Instance, rows: Tensor, answer: Answer) -> Answer:
    """What becomes of an earlier engine's answer for these samples; that answer, where it throws."""
    p = problem.form.p
    try:
        return turned(engine.improved(cone_program(problem, rows), turned(answer, -p)), p)
    except Exception as error:
        raised = f"{engine.name} raised {type(error).__name__}: {error}"
        return replace(answer, words=tuple(f"{word}; {raised}" for word in answer.words))


def _asked(engine: Solver, problem: Instance, rows: Tensor) -> Answer:
    if isinstance(engine, Interior):
        return some(engine.solve_instance(problem), rows)
    if isinstance(engine, Cvxpy):
        return engine.solve_problem(tuple(t[rows].numpy() for t in problem.theta), len(rows))
    if isinstance(engine, InteriorQP):
        return engine.solve_local(problem.origin if len(rows) == problem.size else problem.origin.some(rows))
    return turned(engine.solve_matrices(cone_program(problem, rows)), problem.form.p)


def turned(answer: Answer, p: int) -> Answer:
    """y = (ν, λ) -> (λ, ν), and back with -p."""
    rays = answer.rays and (answer.rays[0], np.roll(answer.rays[1], -p, axis=1))
    return replace(answer, y=np.roll(answer.y, -p, axis=1), rays=rays)


def some(answer: Answer, rows: Tensor) -> Answer:
    """Of what was answered as one batch some samples, so that none feels who else is asked about."""
    index = rows.tolist()
    return replace(
        answer,
        x=answer.x[index],
        y=answer.y[index],
        claims=tuple(answer.claims[i] for i in index),
        words=tuple(answer.words[i] for i in index),
        iterations=answer.iterations[index],
        rays=answer.rays and (answer.rays[0][index], answer.rays[1][index]),
    )


def cone_program(problem: Instance, rows: Tensor) -> ConeProgram:
    """[A; G] x + s = -[h₀; g₀] with s = 0 for the equalities, s ∈ K for the others."""
    form, origin = problem.form, problem.origin
    P, G, A = (block[rows] for block in (origin.hessian, origin.G, origin.A))
    b = -torch.cat([origin.h[rows], origin.g[rows]], 1)
    return ConeProgram(P, origin.gradient[rows], stacked(A, G), b, form.p, form.dual.dual)
