"""The proximal method of multipliers, and the face it ends on: degenerate programmes, from anywhere."""

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import minimize_scalar

from optlayer import OptLayer, Status
from optlayer.cones import Nonnegative, Product
from optlayer.engines import Answer, ConeProgram
from optlayer.engines import ask as asking
from optlayer.engines import face as facing
from optlayer.engines.face import Face
from optlayer.engines.proximal import Sample, _Step, size, solution
from optlayer.forms.kkt import Instance
from optlayer.matrix import Dense

F64 = torch.float64
CLOSE = 1e-12


def sample(P: Any, q: Any, A: Any, b: Any, zero: int = 0) -> Sample:
    P, q, A, b = (np.asarray(part, dtype=float) for part in (P, q, A, b))
    return Sample(sparse.csc_matrix(P), q, sparse.csr_matrix(A), b, zero)


def planted(seed: int, n: int = 8, m: int = 12, p: int = 3, rank: int = 5) -> tuple[Sample, np.ndarray]:
    """P of low rank, half of the inequalities weakly active or repeated, an equality twice; and its x."""
    rng = np.random.default_rng(seed)
    L, G, E, x = (rng.standard_normal(s) for s in ((rank, n), (m, n), (p, n), n))
    G[-1], E[-1] = G[0], -2 * E[0]
    lam, slack = rng.random(m), rng.random(m)
    lam[m // 4 :], slack[: m // 2] = 0.0, 0.0  # from m/4 to m/2 neither
    slack[-1] = slack[0]
    A = np.vstack([E, G])
    q = -(L.T @ L @ x + A.T @ np.concatenate([rng.standard_normal(p), lam]))
    return sample(L.T @ L, q, A, A @ x + np.concatenate([np.zeros(p), slack]), p), x


def degenerate(seed: int, rank: int = 5) -> Sample:
    return planted(seed, rank=rank)[0]


def violation(s: Sample, x: np.ndarray, y: np.ndarray) -> float:
    """Of the optimality conditions."""
    slack = s.b - s.A @ x
    rows = np.where(s.equal, slack, np.minimum(y, slack))
    return float(np.abs(np.concatenate([rows, s.slope(x, y)])).max())


STARTS = {
    "zero": lambda rng, s: (np.zeros(len(s.q)), np.zeros(len(s.b))),
    "noise": lambda rng, s: (rng.standard_normal(len(s.q)), rng.standard_normal(len(s.b))),
    "far": lambda rng, s: (1e3 * rng.standard_normal(len(s.q)), 1e3 * rng.standard_normal(len(s.b))),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rank", [0, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_a_solution_is_found_from_anywhere(start: str, rank: int, seed: int) -> None:
    s = degenerate(seed, rank=rank)
    x, y = STARTS[start](np.random.default_rng(seed), s)
    found = solution(s, x, y)
    assert violation(s, found.x, found.y) <= CLOSE * max(size(x), size(y), 1.0)
    assert (found.y[~s.equal] >= 0).all()


def test_it_is_the_solution_beside_the_start() -> None:
    """min 0 over a box: every point of it solves, and the start is one."""
    box = sample(np.zeros((2, 2)), [0.0, 0.0], np.vstack([np.eye(2), -np.eye(2)]), np.ones(4))
    found = solution(box, np.array([0.3, -0.7]), np.zeros(4))
    assert np.abs(found.x - [0.3, -0.7]).max() <= CLOSE
    assert np.abs(solution(box, np.array([0.3, -3.0]), np.zeros(4)).x - [0.3, -1.0]).max() <= 1e-5


def test_fixed_coordinates_have_multipliers_without_bound() -> None:
    """0 <= x <= 0: Slater fails, and λ may be as large as it likes; x = 0 exactly, and some λ does."""
    s = sample(np.eye(2), [1.0, -2.0], [[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0])
    found = solution(s, np.array([5.0, 5.0]), np.array([1e4, 1e4]))
    assert violation(s, found.x, found.y) <= 1e-11 * 1e4
    assert np.abs(found.x - [0.0, 2.0]).max() <= 1e-11


@pytest.mark.parametrize("seed", range(10))
def test_the_line_search_finds_the_minimum(seed: int) -> None:
    s, rng = degenerate(seed), np.random.default_rng(seed)
    step = _Step(s, rng.standard_normal(8), rng.standard_normal(15), 1e-2, 0.3)
    x, dx = rng.standard_normal(8), rng.standard_normal(8)

    def phi(t: float) -> float:
        z = x + t * dx
        r = step._pushed(z)
        r = np.where(s.equal, r, r.clip(min=0.0))
        near = step.rho * np.sum((z - step.x) ** 2)
        return float(z @ (s.P @ z) / 2 + s.q @ z + near / 2 + r @ r / (2 * step.mu))

    slope = (phi(1e-6) - phi(-1e-6)) / 2e-6
    dx *= -np.sign(slope)
    best = minimize_scalar(phi, bracket=(0.0, 1.0), tol=1e-12)
    assert step._length(x, dx, step._pushed(x)) == pytest.approx(best.x, rel=1e-5)


@pytest.mark.parametrize(
    "nothing",
    [
        sample(np.eye(1), [0.0], [[1.0], [-1.0]], [-1.0, -1.0]),  # x <= -1 and x >= 1
        sample(np.zeros((1, 1)), [1.0], [[1.0]], [0.0]),  # min x over x <= 0
    ],
    ids=["infeasible", "unbounded"],
)
def test_where_there_is_no_solution_none_is_claimed(nothing: Sample) -> None:
    found = solution(nothing, np.zeros(1), np.zeros(len(nothing.b)))
    assert found.residual > 1e-3 or found.is_lost or max(size(found.x), size(found.y)) > 1e6


def test_no_number_ends_it() -> None:
    s = degenerate(0)
    found = solution(s._replace(q=np.full_like(s.q, np.nan)), np.zeros(8), np.zeros(15))
    assert not found.residual <= 1.0


# ------------------------------------------------------------------------------------------ the face


def programme(*samples: Sample) -> ConeProgram:
    P, A = (torch.tensor(np.stack([getattr(s, name).toarray() for s in samples])) for name in "PA")
    q, b = (torch.tensor(np.stack([getattr(s, name) for s in samples])) for name in "qb")
    zero = samples[0].zero
    return ConeProgram(Dense(P), q, Dense(A), b, zero, Product((Nonnegative(b.shape[1] - zero),)))


def answer(samples: list[Sample], seed: int = 0) -> Answer:
    """A rough one, of an engine that says that it has solved them."""
    rng, k = np.random.default_rng(seed), len(samples)
    x, y = (rng.standard_normal((k, len(getattr(samples[0], name)))) for name in "qb")
    return Answer(x, y, (Status.SOLVED,) * k, ("ROUGH: solved",) * k, np.zeros(k, dtype=np.int64))


def test_answers_are_improved_and_others_left_alone() -> None:
    samples = [degenerate(seed) for seed in range(4)]
    before = answer(samples)
    before.x[2], before.y[2] = np.nan, np.nan
    before = replace(before, claims=(*before.claims[:2], Status.INFEASIBLE, Status.SOLVED))
    after = Face().improved(programme(*samples), before)
    for i in (0, 1, 3):
        assert violation(samples[i], after.x[i], after.y[i].copy()) <= 1e-11
    assert np.isnan(after.x[2]).all()
    assert after.claims == before.claims
    assert after.first is not None
    assert np.array_equal(after.first[:2], before.x[:2])


def test_no_claim_is_made_that_the_engine_has_not_made() -> None:
    """One that is not solved at all loses its claim; a doubted one stays doubted, however good it is now."""
    impossible = sample(np.eye(1), [0.0], [[1.0], [-1.0]], [-1.0, -1.0])
    solved = sample(np.eye(1), [1.0], [[1.0], [-1.0]], [1.0, 1.0])
    before = answer([impossible, solved])
    before = replace(before, claims=(Status.SOLVED, Status.INACCURATE))
    after = Face().improved(programme(impossible, solved), before)
    assert violation(solved, after.x[1], after.y[1]) <= 1e-12
    assert after.claims == (Status.INACCURATE, Status.INACCURATE)


def test_a_face_beside_the_one_that_was_found() -> None:
    """A row too many and one too few, at a place that is right to 1e-6."""
    s = sample(np.eye(2), [-2.0, -0.5], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [1.0, 1.0, 4.0])
    place = solution(s, np.zeros(2), np.zeros(3))
    rough = place._replace(
        x=place.x + 1e-6, y=np.array([0.0, 1e-9, 0.0]), active=np.array([False, True, False])
    )
    x, y = facing._landed(s, rough)
    assert np.array_equal(x, [1.0, 0.5])
    assert np.array_equal(y, [1.0, 0.0, 0.0])


def test_where_the_engine_has_broken_off_it_sets_out_from_nothing() -> None:
    """No point, and no claim that there is none; after a claim there is nothing to go on from."""
    samples = [degenerate(seed) for seed in range(3)]
    before = answer(samples)
    before.x[:], before.y[:] = np.nan, np.nan
    before = replace(before, claims=(Status.INACCURATE, Status.INFEASIBLE, Status.FAILED))
    after = Face().improved(programme(*samples), before)
    assert violation(samples[0], after.x[0], after.y[0]) <= 1e-11
    assert np.isnan(after.x[1:]).all()


def test_a_sample_does_not_feel_its_neighbours() -> None:
    samples = [degenerate(seed) for seed in range(4)]
    together = Face().improved(programme(*samples), answer(samples))
    alone = Face().improved(programme(samples[1]), replace(answer(samples), **_row(answer(samples), 1)))
    assert np.array_equal(together.x[1], alone.x[0])
    assert np.array_equal(together.y[1], alone.y[0])


def _row(a: Answer, i: int) -> dict[str, Any]:
    return {
        "x": a.x[i : i + 1],
        "y": a.y[i : i + 1],
        "claims": a.claims[i : i + 1],
        "words": a.words[i : i + 1],
        "iterations": a.iterations[i : i + 1],
    }


def test_what_a_bound_holds_is_there_to_the_last_bit() -> None:
    """min |x - (0.3, 2, -1)|² with 0 <= x <= 1/3."""
    third = 1 / 3
    A = np.vstack([np.eye(3), -np.eye(3)])
    s = sample(np.eye(3), [-0.3, -2.0, 1.0], A, [third] * 3 + [0.0] * 3)
    x = Face().improved(programme(s), answer([s])).x[0]
    assert x[1] == third
    assert x[2] == 0.0
    assert x[0] == pytest.approx(0.3, abs=1e-15)


def test_a_multiplier_that_is_rounding_is_none() -> None:
    """A slack variable's row, y_0 - y_1 = 0, holds 1e-17 and 1e-18 where 0 and 0 are meant; y_2 matters."""
    s = sample(
        np.diag([0.0, 1.0]), [0.0, 1e-16], [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], np.ones(4)
    )
    y = np.array([1e-17, 1e-18, -1e-16, 1.0])
    assert np.array_equal(facing._without_rounding(s, y), [0.0, 0.0, -1e-16, 1.0])


def test_a_worse_face_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    s = degenerate(3)
    place = solution(s, np.zeros(8), np.zeros(15))
    monkeypatch.setattr(facing, "_on_face", lambda s, kept, x, y: (x + 1e-3, y))
    x, y = facing._landed(s, place)
    assert violation(s, x, y) <= 1e-11


# ------------------------------------------------------------------------------------------ the layer


def twice(solver: str | None = None, **options: Any) -> tuple[OptLayer, Any]:
    """A vertex through which more planes go than there are coordinates, one of them twice."""
    z, q, h = cp.Variable(3), cp.Parameter(3), cp.Parameter(6)
    G = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1.0]])
    layer = OptLayer(
        [z], [q, h], lambda z, q, h: q @ z, [lambda z, q, h: G @ z - h], solver=solver, **options
    )
    return layer, (torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 3.0]))


@pytest.mark.parametrize("solver", ["INTERIOR", "PIQP", "OSQP", "SCS", "CLARABEL"])
def test_it_follows_every_engine(solver: str) -> None:
    layer, data = twice(solver, nonunique="ignore")
    assert "PROXIMAL" in [engine.name for engine in layer._plan.engines]
    assert torch.allclose(layer(*(d.double() for d in data)), torch.ones(3, dtype=F64), atol=1e-12)


def test_an_error_of_its_own_leaves_the_answer_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, data = twice()
    problem = Instance(layer._plan.form, tuple(d.double()[None] for d in data), 1)
    x, y = np.zeros((1, 3)), np.zeros((1, 6))
    before = Answer(x, y, (Status.SOLVED,), ("ROUGH: solved",), np.zeros(1, dtype=np.int64))

    def broken(*args: Any) -> Answer:
        raise ArithmeticError("lost")

    monkeypatch.setattr(Face, "improved", broken)
    after = asking.improve(Face(), problem, torch.tensor([0]), before)
    assert after.x is x
    assert after.words == ("ROUGH: solved; PROXIMAL raised ArithmeticError: lost",)


SIZES = [(3, 6, 0, 2), (6, 10, 2, 0), (8, 16, 3, 4), (15, 30, 4, 8)]  # n, m, p, rank of P


@pytest.mark.parametrize("solver", [None, "INTERIOR", "PIQP", "OSQP", "SCS", "CLARABEL"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decades", [0.0, 3.0])
def test_degenerate_programmes_are_solved_by_every_engine(
    decades: float, size: tuple[int, ...], solver: str | None
) -> None:
    """Repeated rows, weakly active ones, P of low rank: feasible, of the optimal value, in any units."""
    n, m, p, rank = size
    samples, answers = zip(*(planted(seed, n, m, max(p, 1), rank) for seed in range(8)))
    z, q, A, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    L, E, e = cp.Parameter((max(rank, 1), n)), cp.Parameter((max(p, 1), n)), cp.Parameter(max(p, 1))
    objective = (cp.sum_squares(L @ z) / 2 if rank else 0 * cp.sum(L)) + q @ z
    stated = cp.Problem(cp.Minimize(objective), [A @ z <= b, E @ z == e])
    layer = OptLayer.from_problem(stated, [L, q, A, b, E, e], [z], solver=solver, nonunique="ignore")
    rng = np.random.default_rng(0)
    length, c = _units(rng, decades, 8, n), _units(rng, decades, 8, 1)
    w = _units(rng, decades, 8, m + max(p, 1))
    rows = [(wi[:, None] * s.A.toarray() / u, wi * s.b) for s, u, wi in zip(samples, length, w)]
    parts = [
        (
            np.sqrt(f) * _root(s, max(rank, 1)) / u,
            f * s.q / u,
            M[s.zero :],
            d[s.zero :],
            M[: s.zero],
            d[: s.zero],
        )
        for s, u, f, (M, d) in zip(samples, length, c, rows)
    ]
    found = layer.solve(*(torch.tensor(np.stack(part)) for part in zip(*parts)))
    for s, best, x in zip(samples, answers, found.primal[0].numpy() / length):
        value = lambda x, s=s: x @ (s.P @ x) / 2 + s.q @ x
        assert value(x) == pytest.approx(value(best), abs=1e-9 * (1 + np.abs(s.q) @ np.abs(x)))
        slack = s.b - s.A @ x
        assert np.where(s.equal, np.abs(slack), -slack).max() <= 1e-9 * (1 + np.abs(x).max())


def _root(s: Sample, rank: int) -> np.ndarray:
    """L with LᵀL = P."""
    values, vectors = np.linalg.eigh(s.P.toarray())
    return (np.sqrt(values.clip(min=0.0)) * vectors).T[-rank:]


def _units(rng: np.random.Generator, decades: float, *shape: int) -> np.ndarray:
    """Powers of two, which round nothing."""
    return np.exp2(np.rint(rng.uniform(-1, 1, shape) * decades * np.log2(10)))
