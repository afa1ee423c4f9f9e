"""Eight faults of a solver, through the whole layer: the right answer comes out, or a named error.

Newton's method and the certificate stand between an engine and the user. Here each engine that a layer may
ask throws, lies and mixes up its samples; what the unharmed layer says is the truth.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from optlayer import OptLayer, SolverFailedError, Status
from optlayer.engines import Answer
from optlayer.engines.face import Face

F64 = torch.float64
B, HARMED = 5, 1
METHODS = ("solve_matrices", "solve_local", "solve_instance", "solve_problem", "improved")


# ------------------------------ five classes of problems, each with a unique answer and batched data


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def quadratic(**options: Any) -> OptLayer:
    z, q, G, h = cp.Variable(4), cp.Parameter(4), cp.Parameter((5, 4)), cp.Parameter(5)
    L = np.eye(4) + np.tri(4) / 4
    objective = cp.sum_squares(L @ z) / 2 + q @ z
    problem = cp.Problem(cp.Minimize(objective), [G @ z <= h, cp.sum(z) == 1])
    return OptLayer.from_problem(problem, [q, G, h], on_failure="nan", **options)


def linear(**options: Any) -> OptLayer:
    """Vertices of a simplex cut by a random half-space."""
    z, q, g = cp.Variable(4), cp.Parameter(4), cp.Parameter(4)
    constraints = [z >= 0, cp.sum(z) == 1, g @ z <= 0.5]
    problem = cp.Problem(cp.Minimize(q @ z), constraints)
    return OptLayer.from_problem(problem, [q, g], on_failure="nan", **options)


def smooth(**options: Any) -> OptLayer:
    """Entropy over a simplex with caps."""
    z, x, cap = cp.Variable(4), cp.Parameter(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(-x @ z - cp.sum(cp.entr(z))), [cp.sum(z) == 1, z <= cap])
    return OptLayer.from_problem(problem, [x, cap], on_failure="nan", **options)


def second_order(**options: Any) -> OptLayer:
    z, x, A = cp.Variable(3), cp.Parameter(4), cp.Parameter((4, 3))
    problem = cp.Problem(cp.Minimize(cp.norm(A @ z - x) + cp.norm(z[:2]) + z[2]), [cp.norm(z) <= 1])
    return OptLayer.from_problem(problem, [x, A], on_failure="nan", **options)


def semidefinite(**options: Any) -> OptLayer:
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0, cp.trace(X) == 1])
    return OptLayer.from_problem(problem, [C], on_failure="nan", **options)


def symmetric(seed: int) -> Tensor:
    C = randn(B, 3, 3, seed=seed)
    return C + C.mT


CLASSES: dict[str, tuple[Callable[..., OptLayer], tuple[Tensor, ...]]] = {
    "quadratic": (quadratic, (randn(B, 4, seed=1), randn(B, 5, 4, seed=2), randn(B, 5, seed=3).abs() + 0.5)),
    "linear": (linear, (randn(B, 4, seed=4), randn(B, 4, seed=5))),
    "smooth": (smooth, (2 * randn(B, 4, seed=6), 0.3 + randn(B, 4, seed=7).abs())),
    "second_order": (second_order, (randn(B, 4, seed=8), randn(B, 4, 3, seed=9))),
    "semidefinite": (semidefinite, (symmetric(10),)),
}
MATRICES = ("CLARABEL", "OSQP", "SCS", "PIQP", "MOREAU", "INTERIOR")
SOLVERS = {
    "quadratic": MATRICES,
    "linear": MATRICES,
    "smooth": ("CLARABEL", "SCS", "INTERIOR"),
    "second_order": ("CLARABEL", "SCS"),
    "semidefinite": ("CLARABEL", "SCS"),
}
NEEDED = {"PIQP": "piqp", "MOREAU": "moreau"}
LAYERS = [(kind, solver) for kind in CLASSES for solver in (None, *SOLVERS[kind])]


# ------------------------------ eight faults, each in the rows it is told


def nowhere(part: np.ndarray, rows: list[int], values: Any = np.nan) -> np.ndarray:
    part = part.copy()
    part[rows] = values
    return part


def said(answer: Answer, rows: list[int], claim: Status) -> Answer:
    """The same, with a claim of the liar's."""
    claims = tuple(claim if i in rows else old for i, old in enumerate(answer.claims))
    return replace(answer, claims=claims)


def throws(answer: Answer, rows: list[int]) -> Answer:
    raise RuntimeError("the solver crashed")


def no_number(answer: Answer, rows: list[int]) -> Answer:
    return said(replace(answer, x=nowhere(answer.x, rows), y=nowhere(answer.y, rows)), rows, Status.SOLVED)


def garbage(answer: Answer, rows: list[int]) -> Answer:
    noise = np.random.default_rng(0)
    x = nowhere(answer.x, rows, 1e3 * noise.standard_normal(answer.x[rows].shape))
    y = nowhere(answer.y, rows, 1e3 * noise.standard_normal(answer.y[rows].shape))
    return said(replace(answer, x=x, y=y), rows, Status.SOLVED)


def of_another(answer: Answer, rows: list[int]) -> Answer:
    """The next sample's answer."""
    following = (np.array(rows) + 1) % len(answer.x)
    x, y = nowhere(answer.x, rows, answer.x[following]), nowhere(answer.y, rows, answer.y[following])
    return said(replace(answer, x=x, y=y), rows, Status.SOLVED)


def moved(answer: Answer, rows: list[int]) -> Answer:
    return said(replace(answer, x=nowhere(answer.x, rows, answer.x[rows] + 1e-3)), rows, Status.SOLVED)


def stopped_early(answer: Answer, rows: list[int]) -> Answer:
    """Where a first iteration may stand, and said to be the end."""
    far = replace(answer, x=nowhere(answer.x, rows, 30.0), y=nowhere(answer.y, rows, 1.0))
    return said(far, rows, Status.SOLVED)


def without_end(claim: Status) -> Callable[[Answer, list[int]], Answer]:
    """No solution, it says, and hands its own answer over as the ray that proves it."""

    def lie(answer: Answer, rows: list[int]) -> Answer:
        nothing = replace(answer, x=nowhere(answer.x, rows), y=nowhere(answer.y, rows))
        return said(replace(nothing, rays=(answer.x, answer.y)), rows, claim)

    return lie


FAULTS = {
    "throws": throws,
    "no_number": no_number,
    "garbage": garbage,
    "of_another": of_another,
    "moved": moved,
    "stopped_early": stopped_early,
    "infeasible": without_end(Status.INFEASIBLE),
    "unbounded": without_end(Status.UNBOUNDED),
}


POINTS = ("garbage", "of_another", "moved", "stopped_early")  # something to go on from


def harm(monkeypatch: pytest.MonkeyPatch, engine: Any, fault: Callable[..., Answer], all_rows: bool) -> None:
    """An engine that commits a fault in one sample of a batch, or whatever it is asked about."""
    (method,) = (name for name in METHODS if hasattr(engine, name))
    honest = getattr(engine, method)

    def dishonest(*args: Any) -> Answer:
        answer = honest(*args)
        alone = len(answer.x) < B  # asked once more, about what the engine before got wrong
        return fault(answer, list(range(len(answer.x))) if all_rows or alone else [HARMED])

    monkeypatch.setattr(engine, method, dishonest)


# ------------------------------ what comes out


@functools.cache
def built(kind: str, solver: str | None) -> OptLayer:
    return CLASSES[kind][0](solver=solver)


def outcome(layer: OptLayer, data: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Status, and answers with gradients, row by row."""
    data = tuple(t.clone().requires_grad_() for t in data)
    solution = layer.solve(*data)
    (x,) = solution.primal
    weights = torch.linspace(1, 2, x[0].numel(), dtype=F64).reshape(x[0].shape)
    gradients = torch.autograd.grad((weights * x).nan_to_num().sum(), data)
    return solution.status, x.detach().flatten(1), torch.cat([g.flatten(1) for g in gradients], 1)


@functools.cache
def truth(kind: str, solver: str | None) -> tuple[Any, ...]:
    status, *numbers = outcome(built(kind, solver), CLASSES[kind][1])
    assert (status == Status.SOLVED).all()
    return tuple(numbers)


def skip_unless_installed(solver: str | None) -> None:
    if solver in NEEDED and importlib.util.find_spec(NEEDED[solver]) is None:
        pytest.skip("not installed")


@pytest.mark.parametrize("all_rows", [False, True], ids=["one_sample", "every_sample"])
@pytest.mark.parametrize("spoiled", ["first", "all"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("kind", "solver"), LAYERS)
def test_none_is_silent(
    kind: str, solver: str | None, fault: str, spoiled: str, all_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_installed(solver)
    layer, data = built(kind, solver), CLASSES[kind][1]
    right, slopes = truth(kind, solver)
    engines = layer._plan.engines
    for engine in engines[:1] if spoiled == "first" else engines:
        harm(monkeypatch, engine, FAULTS[fault], all_rows)
    status, x, gradient = outcome(layer, data)
    solved = status == Status.SOLVED
    assert torch.allclose(x[solved], right[solved], rtol=1e-8, atol=1e-8)
    assert torch.allclose(gradient[solved], slopes[solved], rtol=1e-8, atol=1e-8)
    assert x[~solved].isnan().all()
    assert (gradient[~solved] == 0).all()
    assert not ((status == Status.INFEASIBLE) | (status == Status.UNBOUNDED)).any()
    others = [engine for engine in engines[1:] if fault in POINTS or not isinstance(engine, Face)]
    if spoiled == "first" and others:
        assert solved.all()
    if not all_rows and fault != "throws":
        others = [i for i in range(B) if i != HARMED]
        assert solved[others].all()
        assert torch.equal(x[others], right[others])
        assert torch.equal(gradient[others], slopes[others])


@pytest.mark.parametrize(("kind", "solver"), LAYERS)
def test_an_engine_that_crashes_is_named(
    kind: str, solver: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_installed(solver)
    layer = CLASSES[kind][0](solver=solver)
    for engine in layer._plan.engines:
        harm(monkeypatch, engine, throws, all_rows=True)
    layer._plan = replace(layer._plan, raises=True)
    words = f"{layer._plan.engines[-1].name} raised RuntimeError: the solver crashed"
    with pytest.raises(SolverFailedError, match=words) as caught:
        layer(*CLASSES[kind][1])
    assert caught.value.indices == tuple(range(B))


def test_an_interrupt_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(answer: Answer, rows: list[int]) -> Answer:
        raise KeyboardInterrupt

    layer = quadratic()
    harm(monkeypatch, layer._plan.engines[0], interrupted, all_rows=True)
    with pytest.raises(KeyboardInterrupt):
        layer(*CLASSES["quadratic"][1])
