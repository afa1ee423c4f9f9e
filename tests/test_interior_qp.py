"""The native interior point method: families that are hard to solve, one answer by every elimination."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optlayer.engines.interior_qp import Gram, Primal, Programme, Rough, Separable, _run, interior_qp
from optlayer.matrix import Dense, Matrix, Pattern, Sparse

B = 200
Problem = tuple[Matrix, Tensor, Matrix, Tensor, Matrix, Tensor]


class Random:
    """Numbers with a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator, dtype=torch.float64)


def times(M: Tensor, x: Tensor) -> Tensor:
    return (M @ x.unsqueeze(2)).squeeze(2)


def zeros(n: int) -> Sparse:
    """No objective of second order."""
    none = torch.zeros(0, dtype=torch.int64)
    return Sparse(torch.zeros(1, 0, dtype=torch.float64), Pattern((n, n), none, none))


def diagonal(values: Tensor) -> Sparse:
    i = torch.arange(values.shape[1])
    return Sparse(values, Pattern((len(i), len(i)), i, i))


def box(n: int) -> Sparse:
    """x <= up, -x <= -lo."""
    i, ones = torch.arange(n), torch.ones(1, n, dtype=torch.float64)
    return Sparse(torch.cat([ones, -ones], 1), Pattern((2 * n, n), torch.arange(2 * n), torch.cat([i, i])))


def nothing(n: int) -> tuple[Dense, Tensor]:
    """No row."""
    return Dense(torch.zeros(1, 0, n, dtype=torch.float64)), torch.zeros(B, 0, dtype=torch.float64)


def conditioned(r: Random, n: int, decades: float) -> Tensor:
    """Symmetric, with eigenvalues from 1 down."""
    Q = torch.linalg.qr(r.normal(B, n, n)).Q
    return (Q * torch.logspace(0, -decades, n, dtype=torch.float64)) @ Q.mT


def feasible(r: Random, n: int, m: int, p: int, active: float = 0.0) -> tuple[Tensor, ...]:
    """G, g0, A, h0 and the slack of one point, part of the inequalities active in it."""
    G, A, x = r.normal(B, m, n), r.normal(B, p, n), r.normal(B, n)
    s = r.uniform(B, m) * (r.uniform(B, m) >= active)
    return G, -(times(G, x) + s), A, -times(A, x), s


# ------------------------------------------------------------------------------------ families


def ill_conditioned(r: Random, n: int, m: int, p: int) -> Problem:
    G, g0, A, h0, _ = feasible(r, n, m, p)
    return Dense(conditioned(r, n, 8)), r.normal(B, n), Dense(G), g0, Dense(A), h0


def rank_deficient(r: Random, n: int, m: int, p: int) -> Problem:
    G, g0, A, h0, _ = feasible(r, n, m, p)
    L, q = r.normal(B, n // 2, n), -times(G.mT, r.uniform(B, m)) - times(A.mT, r.normal(B, p))
    return Dense(L.mT @ L), q, Dense(G), g0, Dense(A), h0


def linear(r: Random, n: int, m: int, p: int, active: float = 0.0) -> Problem:
    G, g0, A, h0, s = feasible(r, n, m, p, active)
    lam = r.uniform(B, m) * (s == 0) if active else r.uniform(B, m)
    q = -times(G.mT, lam) - times(A.mT, r.normal(B, p))
    return zeros(n), q, Dense(G), g0, Dense(A), h0


def linear_unrecognised(r: Random) -> Problem:
    _, *rest = linear(r, 8, 20, 2)
    return Dense(torch.zeros(1, 8, 8, dtype=torch.float64)), *rest


def standard(r: Random, n: int, p: int, degenerate: bool = False, redundant: int = 0) -> Problem:
    """min qᵀx, x >= 0, Ax = b; degenerate: most of x is 0, with and without a multiplier."""
    A, x, z = r.normal(B, p, n), r.uniform(B, n), r.uniform(B, n)
    if degenerate:
        x = x * ((r.uniform(B, n) > 0.7) | (torch.arange(n) == 0))
        z = z * (x == 0) * (r.uniform(B, n) > 0.3)
    q = z - times(A.mT, r.normal(B, p))
    A = torch.cat([A, A[:, :redundant] + A[:, -redundant:]], 1) if redundant else A
    G = diagonal(-torch.ones(1, n, dtype=torch.float64))
    return zeros(n), q, G, torch.zeros(B, n, dtype=torch.float64), Dense(A), -times(A, x)


def separable(r: Random, n: int, p: int) -> Problem:
    _, _, G, g0, A, h0 = standard(r, n, p)
    return diagonal(10.0 ** (-8 * r.uniform(B, n))), r.normal(B, n), G, g0, A, h0


def fixed(r: Random, P: Callable[[Random], Matrix]) -> Problem:
    """A third of the variables has lo == up."""
    lo, n = -r.uniform(B, 12), 12
    up = torch.where(torch.arange(n) < n // 3, lo, r.uniform(B, n))
    return P(r), r.normal(B, n), box(n), torch.cat([-up, lo], 1), *nothing(n)


def unlimited(r: Random) -> Problem:
    """Some bounds of 1e8 that mean none."""
    n, lo = 12, -r.uniform(B, 12)
    up = torch.where(torch.arange(n) % 2 == 0, torch.full((B, n), 1e8, dtype=torch.float64), r.uniform(B, n))
    return Dense(conditioned(r, n, 3)), r.normal(B, n), box(n), torch.cat([-up, lo], 1), *nothing(n)


def usual(
    r: Random,
    copies: int = 1,
    redundant: bool = False,
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0),
    units: tuple[float, float] = (0.0, 0.0),
) -> Problem:
    """A good problem: rows repeated; objective, rows and right-hand sides scaled; units for x and rows."""
    n, m, p = 15, 12, 3
    G, g0, A, h0, _ = feasible(r, n, m, p)
    P, q = conditioned(r, n, 2), r.normal(B, n)
    if redundant:
        A, h0 = torch.cat([A, A, A.sum(1, keepdim=True)], 1), torch.cat([h0, h0, h0.sum(1, keepdim=True)], 1)
    objective, rows, length = scales
    x, y = 10.0 ** (units[0] * (2 * r.uniform(B, n) - 1)), 10.0 ** (units[1] * (2 * r.uniform(B, m) - 1))
    G, g0 = torch.cat([G] * copies, 1), torch.cat([g0] * copies, 1)
    y = torch.cat([y] * copies, 1)
    return (
        Dense(objective * x.unsqueeze(2) * P * x.unsqueeze(1)),
        objective * length * x * q,
        Dense(rows * y.unsqueeze(2) * G * x.unsqueeze(1)),
        rows * length * y * g0,
        Dense(rows * A * x.unsqueeze(1)),
        rows * length * h0,
    )


def equations_as_pairs(r: Random) -> Problem:
    P, q, G, g0, A, h0 = usual(r)
    G = Dense(torch.cat([G.dense(), A.dense(), -A.dense()], 1))
    return P, q, G, torch.cat([g0, h0, -h0], 1), *nothing(15)


FAMILIES: dict[str, Callable[[Random], Problem]] = {
    "condition 1e8, one by rows": lambda r: ill_conditioned(r, 20, 30, 5),
    "condition 1e8, one by columns": lambda r: ill_conditioned(r, 8, 24, 2),
    "condition 1e8, separable": lambda r: separable(r, 40, 15),
    "rank deficient": lambda r: rank_deficient(r, 20, 30, 5),
    "rank deficient, few rows": lambda r: rank_deficient(r, 10, 5, 0),
    "linear": lambda r: linear(r, 20, 50, 5),
    "linear, no equations": lambda r: linear(r, 10, 25, 0),
    "linear, degenerate": lambda r: linear(r, 20, 50, 5, active=0.5),
    "linear, not known to be": linear_unrecognised,
    "standard form": lambda r: standard(r, 40, 15),
    "standard form, degenerate": lambda r: standard(r, 12, 5, degenerate=True),
    "standard form, redundant": lambda r: standard(r, 40, 15, redundant=2),
    "fixed variables, separable": lambda r: fixed(r, lambda r: diagonal(0.1 + r.uniform(B, 12))),
    "fixed variables": lambda r: fixed(r, lambda r: Dense(conditioned(r, 12, 4))),
    "bounds that mean none": unlimited,
    "duplicated rows": lambda r: usual(r, copies=2),
    "triplicated rows": lambda r: usual(r, copies=3),
    "redundant equations": lambda r: usual(r, redundant=True),
    "redundant equations, many rows": lambda r: usual(r, copies=4, redundant=True),
    "equations as pairs": equations_as_pairs,
    "small objective": lambda r: usual(r, scales=(1e-6, 1.0, 1.0)),
    "large objective": lambda r: usual(r, scales=(1e6, 1.0, 1.0)),
    "small rows": lambda r: usual(r, scales=(1.0, 1e-6, 1.0)),
    "large rows": lambda r: usual(r, scales=(1.0, 1e6, 1.0)),
    "small solution": lambda r: usual(r, scales=(1.0, 1.0, 1e-6)),
    "large solution": lambda r: usual(r, scales=(1.0, 1.0, 1e6)),
    "units of variables": lambda r: usual(r, units=(3.0, 0.0)),
    "units of rows": lambda r: usual(r, units=(0.0, 6.0)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_sample_of_a_family_is_solved(name: str) -> None:
    problem = FAMILIES[name](Random(list(FAMILIES).index(name)))
    rough = interior_qp(*problem)
    assert rough.converged.all()
    assert (rough.lam >= 0).all()
    assert error(problem, rough).max() < 2e-5


def error(problem: Problem, rough: Rough) -> Tensor:
    """The largest relative KKT residual of each sample, from the data as they were given."""
    P, q, G, g0, A, h0 = (M if isinstance(M, Tensor) else M.dense() for M in problem)
    x, lam, nu = rough[:3]
    Px, g = times(P, x), times(G, x) + g0
    force = torch.maximum(peak(q), peak(Px))
    dual = peak(Px + q + times(G.mT, lam) + times(A.mT, nu)) / force.clamp(min=1e-300)
    length = peak(x) + 1e-6 * (peak(g0) + peak(h0))
    misses = [
        (row / M.abs().amax(2)).amax(1) / length
        for row, M in ((g.clamp(min=0), G), ((times(A, x) + h0).abs(), A))
        if row.shape[1]
    ]
    gap = peak(lam * g) / (force * torch.maximum(peak(x), peak(g0))).clamp(min=1e-300)
    return torch.stack([dual, gap, *misses]).amax(0)


def peak(a: Tensor) -> Tensor:
    return a.abs().amax(1) if a.shape[1] else torch.zeros(len(a), dtype=a.dtype)


# ------------------------------------------------------------------------------------ one answer


def test_sparsemax_is_the_closed_form() -> None:
    z = Random(0).normal(B, 10)
    two, one = torch.full((1, 10), 2.0, dtype=torch.float64), torch.ones(1, 10, dtype=torch.float64)
    problem = (
        diagonal(two),
        -2 * z,
        diagonal(-one),
        0 * z,
        Dense(one.unsqueeze(1)),
        -torch.ones_like(z[:, :1]),
    )
    ordered = z.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    k = (ordered * torch.arange(1, 11) > excess).sum(1, keepdim=True)
    expected = (z - excess.gather(1, k - 1) / k).clamp(min=0)
    rough = interior_qp(*problem, tolerance=1e-9)
    assert type(Programme.of(*problem).system()) is Separable
    torch.testing.assert_close(rough.x, expected, rtol=0, atol=1e-4)
    assert rough.iterations.max() <= 10


def test_the_patterns_choose() -> None:
    r = Random(1)
    assert type(Programme.of(*usual(r)).system()) is Gram
    assert type(Programme.of(*usual(r, copies=4)).system()) is Primal
    assert type(Programme.of(*separable(r, 10, 2)).system()) is Separable
    assert type(Programme.of(*standard(r, 10, 2)).system()) is Separable
    assert type(Programme.of(*linear(r, 10, 30, 2)).system()) is Primal


def mixed(r: Random) -> Problem:
    """P diagonal and well conditioned, bounds scattered between rows with two entries, some equations."""
    n, p = 14, 2
    rows = torch.tensor([0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 7])
    columns = torch.tensor([5, 0, 3, 5, 1, 2, 9, 7, 1, 8, 13])
    G = Sparse(r.normal(B, len(rows)), Pattern((8, n), rows, columns))
    x, A = r.normal(B, n), r.normal(B, p, n)
    return (
        diagonal(0.5 + r.uniform(B, n)),
        2 * r.normal(B, n),
        G,
        -(G @ x) - r.uniform(B, 8),
        Dense(A),
        -times(A, x),
    )


def test_every_elimination_has_one_answer() -> None:
    problem = mixed(Random(2))
    P, q, G, g0, A, h0 = problem
    dense = Dense(P.dense()), q, Dense(G.dense()), g0, A, h0
    answers = [by(system, c) for system in (Separable, Primal) for c in (problem,)]
    answers += [by(Separable, (P, *dense[1:])), by(Primal, dense), by(Gram, dense)]
    for other in answers[1:]:
        for mine, theirs in zip(answers[0], other):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def by(system: type, problem: Problem) -> tuple[Tensor, ...]:
    """x, λ, ν by a certain elimination."""
    programme = Programme.of(*problem)
    it = system(programme)
    u, converged, _ = _run(it, 1e-11)
    assert converged.all()
    u = it.complete(u) if system is Gram else u
    return (u.x, *programme.given(u))


def test_what_is_shared_may_be_repeated() -> None:
    r = Random(3)
    G, g0, A, h0, _ = feasible(r, 9, 7, 2)
    for P in (Dense(conditioned(r, 9, 1)[:1]), diagonal(1 + r.uniform(1, 9))):
        shared = P, r.normal(B, 9), Dense(G[:1]), g0, Dense(A[:1]), h0
        repeated = (P if isinstance(P, Sparse) else Dense(P.values.repeat(B, 1, 1))), shared[1]
        repeated += (Dense(G[:1].repeat(B, 1, 1)), g0, Dense(A[:1].repeat(B, 1, 1)), h0)
        torch.testing.assert_close(
            interior_qp(*shared, 1e-9).x, interior_qp(*repeated, 1e-9).x, rtol=0, atol=1e-6
        )


# ------------------------------------------------------------------------------------ neighbours

EACH = {
    "separable": lambda r: separable(r, 12, 3),
    "mixed": mixed,
    "gram": usual,
    "primal": lambda r: usual(r, copies=4),
    "linear": lambda r: linear(r, 8, 20, 2),
    "handed over": lambda r: rank_deficient(r, 10, 5, 0),
    "handed over, shared": lambda r: shared(rank_deficient(r, 10, 5, 0)),
}


def shared(problem: Problem) -> Problem:
    """All samples with the matrices of the first, each its vectors."""
    return tuple(M if isinstance(M, Tensor) else M[:1] for M in problem)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("spoil", [1e3, torch.nan, torch.inf])
def test_neighbours_do_not_matter(name: str, spoil: float) -> None:
    problem = EACH[name](Random(4))
    other = tuple(_spoiled(M, spoil) for M in problem)
    a, b = interior_qp(*problem), interior_qp(*other)
    keep = torch.arange(B) != 7
    for mine, theirs in zip(a, b):
        assert torch.equal(mine[keep], theirs[keep])
    assert spoil == 1e3 or not b.converged[7]


def _spoiled(M: Matrix | Tensor, factor: float) -> Matrix | Tensor:
    """Sample 7 changed, in the vectors."""
    if not isinstance(M, Tensor):
        return M
    M = M.clone()
    M[7] *= factor
    return M


@pytest.mark.parametrize("name", EACH)
def test_alone_or_among_others(name: str) -> None:
    problem = EACH[name](Random(5))
    one = interior_qp(*(M[torch.tensor([3])] for M in problem))
    torch.testing.assert_close(one.x, interior_qp(*problem).x[3:4], rtol=1e-9, atol=1e-9)


def infeasible(problem: Problem) -> Problem:
    """Sample 7 with Gx + g0 <= 0 for a row and its opposite."""
    P, q, G, g0, A, h0 = problem
    G, g0 = G.dense().clone(), g0.clone()
    G[7, 1], g0[7, 1] = -G[7, 0], 5.0 - g0[7, 0]
    return P, q, Dense(G), g0, A, h0


@pytest.mark.parametrize("build", [usual, lambda r: usual(r, copies=4), lambda r: linear(r, 8, 20, 2)])
def test_an_infeasible_sample_is_alone_in_it(build: Callable[[Random], Problem]) -> None:
    rough = interior_qp(*infeasible(build(Random(6))))
    assert not rough.converged[7]
    assert rough.converged.sum() == B - 1


def test_an_unbounded_sample_is_alone_in_it() -> None:
    P, q, G, g0, A, h0 = linear(Random(7), 8, 20, 2)
    G.values[7] = G.values[7, :1]  # a half-space
    rough = interior_qp(P, q, G, g0, A, h0)
    assert rough.converged.tolist() == [i != 7 for i in range(B)]


def test_an_empty_simplex_is_infeasible() -> None:
    P, q, G, g0, _, h0 = separable(Random(8), 10, 1)
    A = Dense(torch.ones(1, 1, 10, dtype=torch.float64))
    h0[:, 0] = torch.where(torch.arange(B) == 7, 1.0, -1.0)  # sum(x) = ∓1
    assert interior_qp(P, q, G, g0, A, h0).converged.tolist() == [i != 7 for i in range(B)]


# ------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("curved", [Dense, Sparse, None])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(
    ("n", "m", "p"), [(1, 0, 0), (4, 0, 0), (4, 0, 2), (4, 3, 0), (1, 2, 0), (4, 3, 1), (2, 9, 1)]
)
def test_every_shape(curved: type | None, size: int, n: int, m: int, p: int) -> None:
    r = Random(9)
    G, g0, A, h0, _ = feasible(r, n, m, p)
    P: Matrix = Dense(conditioned(r, n, 1)) if curved is Dense else diagonal(1 + r.uniform(B, n))
    q = r.normal(B, n)
    if curved is None:
        P, q = zeros(n), -times(G.mT, r.uniform(B, m)) - times(A.mT, r.normal(B, p))
    problem = P, q, Dense(G), g0, Dense(A), h0
    few = tuple(M[torch.arange(size)] for M in problem)
    rough = interior_qp(*few)
    assert [len(t) for t in rough] == [size] * 5
    assert (rough.x.shape[1], rough.lam.shape[1], rough.nu.shape[1]) == (n, m, p)
    assert rough.converged.all()
    assert error(few, rough).max() < 2e-5


def test_no_sample() -> None:
    problem = tuple(M[:0] if isinstance(M, Tensor) else M for M in separable(Random(10), 6, 2))
    P = diagonal(torch.ones(1, 6, dtype=torch.float64))
    A = Dense(torch.ones(1, 2, 6, dtype=torch.float64))
    assert interior_qp(P, *problem[1:4], A, problem[5]).x.shape == (0, 6)


def test_the_answer_can_be_differentiated_through() -> None:
    rough = interior_qp(*usual(Random(11)))
    assert not any(t.is_inference() for t in rough)
    (rough.x * torch.ones(15, dtype=torch.float64, requires_grad=True)).sum().backward()


def test_a_lower_tolerance_is_cheaper_and_kept() -> None:
    problem = usual(Random(12))
    rough, fine = interior_qp(*problem, 1e-4), interior_qp(*problem, 1e-9)
    assert rough.iterations.sum() < fine.iterations.sum()
    assert error(problem, rough).max() < 2e-3
    assert error(problem, fine).max() < 2e-8
