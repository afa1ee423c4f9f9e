"""A Schur complement in stages against the dense one, and when it is taken."""

from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import OptLayer, banded, saddle
from optlayer.banded import Chain, Tridiagonal, chain_of
from optlayer.matrix import Dense, Pattern, Sparse, diagonal
from optlayer.saddle import Base, Factor, Solved

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Problem(NamedTuple):
    """The rows of x_0 = …, x_t+1 = Ax_t + Bu_t and some terminal ones of x_T."""

    pattern: Pattern
    ones: torch.Tensor  # which entries are those of x_t+1
    inputs: torch.Tensor  # which columns are those of u

    def entries(self, B: int, seed: int = 0) -> torch.Tensor:
        """A and B small, so that no state grows along the way."""
        return 0.2 * normal(B, self.pattern.nnz, seed=seed) + self.ones.to(DOUBLE)


def dynamics(stages: int, states: int, inputs: int, terminal: int = 0, shuffled: bool = False) -> Problem:
    """Stage by stage, or in any order; columns (x, u)."""
    x = (stages + 1) * states
    k, n = x + terminal, x + stages * inputs
    E = torch.zeros(k, n)
    for t in range(stages):
        rows, first = slice((t + 1) * states, (t + 2) * states), x + t * inputs
        E[rows, t * states : (t + 1) * states] = 1.0
        E[rows, first : first + inputs] = 1.0
    E[:x, :x] += 2.0 * torch.eye(x)
    E[x:, stages * states : x] = 1.0
    is_input = torch.arange(n) >= x
    if shuffled:
        generator = torch.Generator().manual_seed(3)
        columns = torch.randperm(n, generator=generator)
        E, is_input = E[torch.randperm(k, generator=generator)][:, columns], is_input[columns]
    places = E.nonzero(as_tuple=True)
    return Problem(Pattern((k, n), *places), E[places] == 2.0, is_input)


def chain(pattern: Pattern) -> Chain:
    found = chain_of(pattern)
    assert found is not None
    return found


PROBLEMS = {
    "stages": dynamics(20, 8, 3),
    "shuffled": dynamics(20, 8, 3, shuffled=True),
    "terminal": dynamics(24, 7, 2, terminal=3),
    "states alone": dynamics(30, 6, 0),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_it_is_the_dense_schur_complement(name: str, scaling: bool, shared: bool) -> None:
    problem, B = PROBLEMS[name], 3
    pattern = problem.pattern
    k, n = pattern.shape
    E = Sparse(problem.entries(1 if shared else B), pattern)
    W, D = normal(B, n, seed=1).abs(), normal(B, k, seed=2).abs() + 0.1
    W[:, ::5] = 0.0  # fixed coordinates
    s = normal(B, k, seed=3).clamp_min(0.0) if scaling else None
    b, found = normal(B, k, seed=4), chain(pattern)
    rows = E.dense() if s is None else s.unsqueeze(2) * E.dense()
    S = (rows * W.unsqueeze(1)) @ rows.mT + torch.diag_embed(D)
    mu = Tridiagonal(found, found.blocks(E), W, s, D).solve(b)
    assert torch.allclose((S @ mu.unsqueeze(2)).squeeze(2), b, rtol=1e-9, atol=1e-10)


def test_the_stages_of_a_problem_in_time_are_its_own() -> None:
    stages, width, slots = chain(dynamics(20, 8, 3).pattern).shape
    assert (stages, width, slots) == (21, 8, 11)


def test_they_are_found_whatever_the_order_of_the_rows() -> None:
    stages, width, _ = chain(dynamics(20, 8, 3, shuffled=True).pattern).shape
    assert (stages, width) == (21, 8)


@pytest.mark.parametrize(
    "pattern",
    [
        dynamics(4, 3, 2).pattern,  # small
        Pattern.of_places((60, 80), torch.arange(60 * 80)),  # everything meets
        Pattern((200, 400), torch.arange(200).repeat(2), torch.arange(400) // 400),  # one column, all rows
        Pattern((0, 5), *torch.zeros(2, 0, dtype=torch.int64)),
    ],
)
def test_where_it_does_not_pay_there_is_none(pattern: Pattern) -> None:
    assert chain_of(pattern) is None


def test_too_many_meetings_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded, "MEETINGS", 10.0)
    assert chain_of(PROBLEMS["stages"].pattern) is None


def test_a_pattern_is_looked_at_once() -> None:
    pattern, calls = dynamics(20, 8, 3).pattern, []

    def find(found: Pattern) -> Chain | None:
        calls.append(found)
        return chain_of(found)

    assert pattern.once(find) is pattern.once(find)
    assert calls == [pattern]


# ---------------------------------------------------------------------- as a part of K


def systems(problem: Problem) -> tuple[Base, Base]:
    """The same K, by stages and dense."""
    H = diagonal(normal(4, problem.pattern.shape[1]).abs() + 0.1)
    E = Sparse(problem.entries(4), problem.pattern)
    mine, theirs = Base.of(H, E), Base.of(H, Dense(E.dense()))
    assert mine.chain is not None
    assert theirs.chain is None
    return mine, theirs


def solved(base: Base, s: torch.Tensor | None, fixed: torch.Tensor | None) -> Solved:
    k, n = base.E.shape
    D = torch.zeros(4, k, dtype=DOUBLE) if s is None else 1.0 - s
    return Factor(base, s, D, fixed).solve(normal(4, n, seed=5), normal(4, k, seed=6))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("fixing", [False, True])
def test_it_solves_as_dense_blocks_do(name: str, dropping: bool, fixing: bool) -> None:
    problem = PROBLEMS[name]
    k, n = problem.pattern.shape
    s = (normal(4, k, seed=2) > 0).to(DOUBLE) if dropping else None
    # inputs alone: were states held, too, no coordinate would be left for some row
    fixed = (normal(4, n, seed=3) > 0) & problem.inputs if fixing else None
    mine, theirs = (solved(base, s, fixed) for base in systems(problem))
    assert mine.sound.all()
    for found, expected in zip(mine[:2], theirs[:2], strict=True):
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_what_is_singular_is_said_to_be() -> None:
    """A row of zeros is one equation too many; the neighbours are unharmed."""
    pattern = PROBLEMS["stages"].pattern
    mine, _ = systems(PROBLEMS["stages"])
    values = mine.E.values.clone()
    values[1, pattern.rows == 30] = 0.0
    H, nothing = mine.H, torch.zeros(4, pattern.shape[0], dtype=DOUBLE)
    whole, broken = (Factor(Base.of(H, M), None, nothing) for M in (mine.E, Sparse(values, pattern)))
    assert whole.regular.all()
    assert broken.regular.tolist() == [True, False, True, True]


def test_what_is_no_number_harms_no_other_sample() -> None:
    pattern = PROBLEMS["stages"].pattern
    H, E = diagonal(torch.ones(1, pattern.shape[1], dtype=DOUBLE)), PROBLEMS["stages"].entries(4)
    broken = E.clone()
    broken[2, 7] = torch.nan
    whole, part = (solved(Base.of(H, Sparse(values, pattern)), None, None) for values in (E, broken))
    assert part.sound.tolist() == [True, True, False, True]
    others = [0, 1, 3]
    assert torch.equal(whole.x[others], part.x[others])
    assert torch.equal(whole.mu[others], part.mu[others])


def test_a_stage_that_is_not_definite_leaves_nothing_of_its_sample() -> None:
    pattern = PROBLEMS["stages"].pattern
    k, n = pattern.shape
    W, D, b, found = (
        torch.ones(2, n, dtype=DOUBLE),
        torch.ones(2, k, dtype=DOUBLE),
        normal(2, k),
        chain(pattern),
    )
    D[1, 80] = -1e3
    mu = Tridiagonal(found, found.blocks(Sparse(normal(2, pattern.nnz), pattern)), W, None, D).solve(b)
    assert mu[0].isfinite().all()
    assert mu[1].isnan().all()


@pytest.mark.parametrize("B", [1, 2, 5])
def test_a_sample_does_not_feel_its_neighbours(B: int) -> None:
    pattern = PROBLEMS["stages"].pattern
    k, n = pattern.shape
    H, E = normal(5, n).abs() + 0.1, PROBLEMS["stages"].entries(5)
    a, c, D = normal(5, n, seed=5), normal(5, k, seed=6), torch.zeros(5, k, dtype=DOUBLE)
    all_, some = (
        Factor(Base.of(diagonal(H[:size]), Sparse(E[:size], pattern)), None, D[:size]).solve(
            a[:size], c[:size]
        )
        for size in (5, B)
    )
    assert torch.equal(all_.x[:B], some.x)
    assert torch.equal(all_.mu[:B], some.mu)


def test_unequal_stages_have_places_left_over() -> None:
    found = chain(PROBLEMS["terminal"].pattern)
    stages, width, _ = found.shape
    assert stages * width > len(found.places)
    assert np.array_equal(found.rows[found.places].numpy(), np.arange(len(found.places)))


# ---------------------------------------------------------------------- as a part of a layer


def control(stages: int, states: int, inputs: int) -> tuple[OptLayer, tuple[torch.Tensor, ...]]:
    """A linear-quadratic regulator with bounded inputs, and values of which some are at their bounds."""
    layer = OptLayer(
        [cp.Variable((stages + 1, states)), cp.Variable((stages, inputs))],
        [cp.Parameter(states), cp.Parameter((states, states)), cp.Parameter((states, inputs))],
        lambda x, u, x0, A, B: cp.sum_squares(x) + 0.1 * cp.sum_squares(u),
        [lambda x, u, x0, A, B: u - 0.3, lambda x, u, x0, A, B: -0.3 - u],
        [lambda x, u, x0, A, B: x[0] - x0, lambda x, u, x0, A, B: x[1:] - x[:-1] @ A.T - u @ B.T],
    )
    A = torch.eye(states, dtype=DOUBLE) + 0.1 * normal(2, states, states)
    theta = (
        normal(2, states, seed=1),
        A / torch.linalg.matrix_norm(A, 2)[:, None, None],
        normal(2, states, inputs),
    )
    return layer, tuple(t.requires_grad_() for t in theta)


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[Tridiagonal]:
    """All chains that are factored."""
    found: list[Tridiagonal] = []

    class Noted(Tridiagonal):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            found.append(self)

    monkeypatch.setattr(saddle, "Tridiagonal", Noted)
    return found


def test_solution_and_gradient_are_those_of_dense_blocks(
    met: list[Tridiagonal], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, theta = control(24, 6, 2)

    def found() -> list[torch.Tensor]:
        x, u = layer(*theta)
        return [x, u, *torch.autograd.grad(x.square().sum() + u.sin().sum(), theta)]

    by_stages = found()
    assert met
    assert (by_stages[1].abs() == 0.3).any()
    assert (by_stages[1].abs() < 0.3).any()
    met.clear()
    monkeypatch.setattr(Base, "chain", None)
    for mine, theirs in zip(by_stages, found(), strict=True):
        assert (mine - theirs).abs().max() <= 1e-10 * theirs.abs().max()
    assert not met


def test_many_gradients_at_once(met: list[Tridiagonal]) -> None:
    """The older vmap knows few views."""
    layer, theta = control(24, 6, 2)
    u = layer(*theta)[1]
    weights = normal(3, *u.shape, seed=7)
    together = torch.autograd.grad(u, theta, weights, is_grads_batched=True, retain_graph=True)
    assert met
    for i, weight in enumerate(weights):
        for mine, theirs in zip(
            together, torch.autograd.grad(u, theta, weight, retain_graph=True), strict=True
        ):
            assert torch.allclose(mine[i], theirs, rtol=1e-12, atol=1e-13)
