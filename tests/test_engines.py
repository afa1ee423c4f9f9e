"""The matrix engines: the same answers from all of them, honest claims, and samples that do not meet.

The oracle for every cone is its projection: x = Π_K(a) solves min ½|x - a|² s.t. x ∈ K. Everything else is
judged by the optimality conditions, written out below with the cones' projections, and by Farkas's lemma.
"""

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from optlayer import OptLayer
from optlayer.columns import to_csc
from optlayer.cones import (
    ConvexCone,
    Exponential,
    GeneralizedPower,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Semidefinite,
)
from optlayer.engines import Answer, ConeProgram, table
from optlayer.engines import clarabel as clarabel_engine
from optlayer.engines.clarabel import Clarabel
from optlayer.engines.matrices import CvxpyMatrices
from optlayer.engines.moreau import Moreau
from optlayer.engines.osqp import OSQP
from optlayer.engines.piqp import PIQP
from optlayer.engines.pool import Pool, divided
from optlayer.engines.scaling import equilibrated
from optlayer.engines.scs import SCS
from optlayer.errors import DeclarationError
from optlayer.matrix import Dense, Matrix, Pattern, Sparse, diagonal, stacked
from optlayer.solution import Status


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


ENGINES: dict[str, Callable[..., Any]] = {
    "CLARABEL": Clarabel,
    "OSQP": OSQP,
    "SCS": SCS,
    "PIQP": PIQP,
    "MOREAU": Moreau,
}
NEEDED = {"PIQP": "piqp", "MOREAU": "moreau"}
ACCURACY = {"CLARABEL": 1e-5, "OSQP": 1e-3, "SCS": 1e-6, "PIQP": 1e-5, "MOREAU": 1e-5}


def each(*names: str) -> list[Any]:
    """Engines as parameters of a test; the optional ones are skipped where they are not installed."""
    missing = {name: not installed(NEEDED[name]) for name in names if name in NEEDED}
    return [
        pytest.param(name, marks=pytest.mark.skipif(missing.get(name, False), reason="not installed"))
        for name in names
    ]


ALL = each(*ENGINES)
CONIC = each("CLARABEL", "SCS", "MOREAU")


# ----------------------------------------------------------------------------------------- judging


def optimality(program: ConeProgram, answer: Answer) -> Tensor:
    """The largest violation of s ∈ K, y ∈ K*, ⟨y, s⟩ = 0, Px + q + Aᵀy = 0, relative; (B,)."""
    p, K = program.zero, program.K
    x, y = torch.from_numpy(answer.x), torch.from_numpy(answer.y)
    s = program.b - program.A @ x
    lam, primal = y[:, p:], torch.cat([s[:, :p], s[:, p:] - K.project(s[:, p:])], 1)
    stationarity = program.P @ x + program.q + program.A.mT(y)
    size = 1.0 + x.abs().amax(1) + y.abs().amax(1)
    violations = [stationarity, primal, lam - K.dual.project(lam), (lam * s[:, p:]).sum(1, keepdim=True) / 10]
    return torch.cat(violations, 1).abs().amax(1) / size


def excludes(program: ConeProgram, answer: Answer, i: int) -> bool:
    """Whether the ray of sample i proves that it has no point: Aᵀy = 0, y ∈ K*, bᵀy < 0."""
    y = torch.from_numpy(answer.rays[1][i : i + 1])
    one = program.A[torch.tensor([i])]
    lam, size = y[:, program.zero :], y.abs().max()
    outside = (lam - program.K.dual.project(lam)).abs().amax() if lam.numel() else torch.zeros(())
    balance = one.mT(y).abs().max()
    return bool(max(balance, outside) <= 1e-5 * size and (program.b[i] * y[0]).sum() < -1e-3 * size)


def recedes(program: ConeProgram, answer: Answer, i: int) -> bool:
    """Whether its x is a direction of descent without end: Px = 0, -Ax ∈ {0} × K, qᵀx < 0."""
    x, row, p = torch.from_numpy(answer.rays[0][i : i + 1]), torch.tensor([i]), program.zero
    s = -(program.A[row] @ x)
    outside = torch.cat([s[:, :p], s[:, p:] - program.K.project(s[:, p:]), program.P[row] @ x], 1)
    size = x.abs().max()
    return bool(outside.abs().max() <= 1e-5 * size and (program.q[i] * x[0]).sum() < -1e-3 * size)


# ---------------------------------------------------------------------------------------- problems


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthant(dim: int) -> Product:
    return Product((Nonnegative(dim),))


def dense_qp(B: int = 9, n: int = 6, m: int = 5, p: int = 2, seed: int = 0) -> ConeProgram:
    """Strictly convex, feasible, everything different in every sample."""
    L, A, x = randn(B, n, n, seed=seed), randn(B, p + m, n, seed=seed + 1), randn(B, n, seed=seed + 2)
    slack = torch.cat([torch.zeros(B, p), randn(B, m, seed=seed + 3).abs()], 1)
    P = L.mT @ L + 0.1 * torch.eye(n, dtype=torch.float64)
    q, b = randn(B, n, seed=seed + 4), (A @ x.unsqueeze(2)).squeeze(2) + slack
    return ConeProgram(Dense(P), q, Dense(A), b, p, orthant(m))


def shared_qp(B: int = 9, n: int = 12) -> ConeProgram:
    """argmin |x - a|² on the simplex: diagonal P, sparse A, both shared by all samples."""
    ones = torch.ones(1, n, dtype=torch.float64)
    line = torch.arange(n)
    total = Sparse(ones, Pattern((1, n), torch.zeros(n, dtype=torch.int64), line))
    A = stacked(total, diagonal(-ones))
    b = torch.cat([torch.ones(B, 1), torch.zeros(B, n)], 1).double()
    return ConeProgram(diagonal(ones), randn(B, n), A, b, 1, orthant(n))


def banded_qp(B: int = 5, n: int = 40) -> ConeProgram:
    """Sparse and different in every sample."""
    i = torch.arange(n - 1)
    rows, columns = torch.stack([i, i], 1).flatten(), torch.stack([i, i + 1], 1).flatten()
    chain = Sparse(1.0 + 0.2 * randn(B, 2 * (n - 1)), Pattern((n - 1, n), rows, columns))
    A = stacked(chain, diagonal(-torch.ones(1, n, dtype=torch.float64)))
    b = torch.cat([1.0 + randn(B, n - 1, seed=1).abs(), torch.zeros(B, n)], 1).double()
    return ConeProgram(
        diagonal(1.0 + randn(B, n, seed=2).abs()), randn(B, n, seed=3), A, b, 0, orthant(2 * n - 1)
    )


def lp(B: int = 7, n: int = 6) -> ConeProgram:
    """min cᵀx on the simplex: a vertex."""
    program = shared_qp(B, n)
    none = torch.zeros(0, dtype=torch.int64)
    return program._replace(P=Sparse(program.q.new_zeros(1, 0), Pattern((n, n), none, none)))


def projection(K: Product, B: int = 6, seed: int = 0, scale: float = 1.0) -> tuple[ConeProgram, Tensor]:
    """min ½|x - a|² s.t. x ∈ K, and its solution."""
    a = scale * randn(B, K.dim, seed=seed)
    I = diagonal(torch.ones(1, K.dim, dtype=torch.float64))
    A = I.scaled(-1.0, 1.0)
    return ConeProgram(I, -a, A, torch.zeros_like(a), 0, K), K.project(a)


QPS = {"dense": dense_qp, "shared": shared_qp, "banded": banded_qp, "lp": lp}
CONES: dict[str, tuple[ConvexCone, ...]] = {
    "orthant": (Nonnegative(4),),
    "second-order": (SecondOrder(5),),
    "semidefinite": (Semidefinite(4),),
    "exponential": (Exponential(), Exponential()),
    "power": (Power(0.3), Power(0.6)),
    "all, in no order": (
        *(Exponential(), Semidefinite(3), Nonnegative(2), Power(0.4), SecondOrder(3)),
        *(Nonnegative(1), Semidefinite(2), Exponential(), SecondOrder(4), Power(0.7)),
    ),
}


def twins() -> tuple[ConeProgram, int, int]:
    """min ½x₁² + qᵀx s.t. x₁ <= u, -x₁ <= -l, -x₂ <= 0; and the samples that are infeasible, unbounded."""
    P = Dense(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64))
    A = Dense(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]], dtype=torch.float64))
    b = torch.tensor([[2.0, -1.0, 0.0]] * 5, dtype=torch.float64)
    q = torch.tensor([[0.5, 1.0]] * 5, dtype=torch.float64)
    b[1, 1], q[3, 1] = -3.0, -1.0
    return ConeProgram(P, q, A, b, 0, orthant(3)), 1, 3


def solved(name: str, program: ConeProgram, **options: Any) -> Answer:
    return ENGINES[name](options).solve_matrices(program)


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("problem", QPS)
def test_quadratic_programmes(engine: str, problem: str) -> None:
    program = QPS[problem]()
    answer = solved(engine, program)
    assert set(answer.claims) == {Status.SOLVED}
    assert optimality(program, answer).max() < ACCURACY[engine]
    assert (answer.iterations > 0).all()


@pytest.mark.parametrize("engine", CONIC)
@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_every_cone(engine: str, cones: str, scale: float) -> None:
    program, x = projection(Product(CONES[cones]), scale=scale)
    answer = solved(engine, program)
    assert set(answer.claims) == {Status.SOLVED}
    torch.testing.assert_close(torch.from_numpy(answer.x), x, atol=2e-4 * scale, rtol=0.0)
    assert optimality(program, answer).max() < 1e-5


@pytest.mark.parametrize("engine", each("CLARABEL", "MOREAU"))
def test_the_generalized_power_cone(engine: str) -> None:
    program, x = projection(Product((Nonnegative(2), GeneralizedPower((0.2, 0.3, 0.5), 2))))
    torch.testing.assert_close(torch.from_numpy(solved(engine, program).x), x, atol=3e-5, rtol=3e-5)


def test_any_solver_of_cvxpys() -> None:
    for program in (dense_qp(B=2), lp(B=2), projection(Product(CONES["all, in no order"]), B=2)[0]):
        answer = CvxpyMatrices("CLARABEL", {}).solve_matrices(program)
        assert set(answer.claims) == {Status.SOLVED}
        assert optimality(program, answer).max() < 1e-4


@pytest.mark.parametrize("power", [-6, 6])
def test_clarabel_in_units_of_the_data(power: int) -> None:
    program, unit = dense_qp(), 10.0**power
    large = program._replace(b=program.b * unit, q=program.q * unit)
    answer = Clarabel({}, rescale=True).solve_matrices(large)
    plain = Clarabel({}).solve_matrices(program)
    np.testing.assert_allclose(answer.x / unit, plain.x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answer.y / unit, plain.y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ALL)
def test_no_constraints_of_one_kind(engine: str) -> None:
    program = dense_qp(m=3, p=0)
    assert optimality(program, solved(engine, program)).max() < ACCURACY[engine]
    program = dense_qp(m=0, p=3)
    assert optimality(program, solved(engine, program)).max() < ACCURACY[engine]


def test_scs_without_a_factorization() -> None:
    program = banded_qp()
    assert optimality(program, solved("SCS", program, indirect=True)).max() < 1e-6


# ------------------------------------------------------------------------------------------ claims


@pytest.mark.parametrize("engine", ALL)
def test_claims_come_with_rays_that_prove_them(engine: str) -> None:
    program, infeasible, unbounded = twins()
    own = {"solver": "ipm"} if engine == "MOREAU" else {}  # the other one claims to solve the unbounded
    answer = solved(engine, program, **own)
    expected = [Status.SOLVED] * 5
    expected[infeasible], expected[unbounded] = Status.INFEASIBLE, Status.UNBOUNDED
    assert list(answer.claims) == expected
    assert excludes(program, answer, infeasible)
    assert recedes(program, answer, unbounded)
    assert np.isnan(answer.x[[infeasible, unbounded]]).all()
    assert np.isfinite(answer.x[[0, 2, 4]]).all()
    assert answer.words[infeasible] == f"{engine}: infeasible"
    assert answer.words[unbounded] == f"{engine}: unbounded"


@pytest.mark.parametrize("engine", CONIC)
def test_an_infeasible_second_order_cone(engine: str) -> None:
    """|x| <= t <= -1, after inequalities, so that the ray is in the order of our rows."""
    A = torch.zeros(2, 4, 3, dtype=torch.float64)
    A[:, :3] = -torch.eye(3, dtype=torch.float64)
    A[:, 3, 0] = 1.0
    b = torch.tensor([[0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    K = Product((SecondOrder(3), Nonnegative(1)))
    P = Dense(torch.eye(3, dtype=torch.float64)[None])
    program = ConeProgram(P, torch.ones(2, 3, dtype=torch.float64), Dense(A), b, 0, K)
    answer = solved(engine, program)
    assert list(answer.claims) == [Status.INFEASIBLE, Status.SOLVED]
    assert excludes(program, answer, 0)


def test_the_judges_see() -> None:
    """A wrong point, and rays that prove nothing, are not let pass."""
    program, infeasible, unbounded = twins()
    answer = solved("CLARABEL", program)
    assert not excludes(program, answer, unbounded)
    assert not recedes(program, answer, infeasible)
    program = dense_qp()
    answer = solved("CLARABEL", program)
    answer.x[0, 0] += 1e-2
    assert optimality(program, answer)[0] > 1e-3


# ------------------------------------------------------------------------------------------ faults

SOLVERS = {
    "CLARABEL": ("clarabel", "DefaultSolver"),
    "OSQP": ("osqp", "OSQP"),
    "SCS": ("scs", "SCS"),
    "PIQP": ("piqp", "DenseSolver"),
    "MOREAU": ("moreau", "CompiledSolver"),
}


class Panic(BaseException):
    """What an extension written in Rust throws."""


def spoil(monkeypatch: pytest.MonkeyPatch, engine: str, change: Callable[[Any, Any], Any]) -> None:
    """Replace an engine's solver by one whose `solve` returns change(solver, what it found)."""
    module, name = (importlib.import_module(SOLVERS[engine][0]), SOLVERS[engine][1])
    real = getattr(module, name)

    class Spoiled:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.real, self.result = real(*args, **kwargs), None

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.real, attribute)

        def solve(self, *args: Any, **kwargs: Any) -> Any:
            return change(self, self.real.solve(*args, **kwargs))

    monkeypatch.setattr(module, name, Spoiled)


def replaced(engine: str, solver: Any, found: Any, x: Callable[[Any], Any], status: str | None = None) -> Any:
    """What the solver found, with another point, and another status if there is one."""
    match engine:
        case "CLARABEL":
            word = status or found.status
            return SimpleNamespace(x=x(found.x), z=found.z, status=word, iterations=found.iterations)
        case "OSQP":
            found.x, found.info.status = x(found.x), status or found.info.status
            return found
        case "SCS":
            code = {None: 1, "PrimalInfeasible": -2, "Solved": 1}[status]
            return {**found, "x": x(found["x"]), "info": {**found["info"], "status_val": code}}
        case "PIQP":
            real = solver.real.result
            solver.result = SimpleNamespace(x=x(real.x), y=real.y, z_u=real.z_u, info=real.info)
            return SimpleNamespace(name=status or found.name)
        case _:
            found.x = x(found.x)
            kinds = importlib.import_module("moreau").SolverStatus
            if status:
                solver.real._info.status = [kinds[status]] * len(found.x)
            return found


WORDS = {"OSQP": {"Solved": "solved", "PrimalInfeasible": "primal infeasible"}}
WORDS["PIQP"] = {"Solved": "PIQP_SOLVED", "PrimalInfeasible": "PIQP_PRIMAL_INFEASIBLE"}


def said(engine: str, word: str) -> str:
    return WORDS.get(engine, {}).get(word, word)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("error", [ValueError, Panic])
def test_a_solver_that_throws_fails_those_samples_alone(
    engine: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, calls = dense_qp(), []
    before = solved(engine, program)
    poison = 1 if engine == "MOREAU" else 3  # the first call of Moreau's is the whole batch

    def change(solver: Any, found: Any) -> Any:
        calls.append(found)
        if len(calls) in (poison, 4):
            raise error("boom")
        return replaced(engine, solver, found, lambda x: x)

    spoil(monkeypatch, engine, change)
    again = ENGINES[engine]({})
    again._pool = Pool(1)  # the calls in the order of the samples
    after = again.solve_matrices(program)
    failed = [i for i, claim in enumerate(after.claims) if claim == Status.FAILED]
    assert failed == ([2] if engine == "MOREAU" else [2, 3])
    assert after.words[failed[0]] == f"{engine} raised {error.__name__}: boom"
    assert np.isnan(after.x[failed]).all()
    others = [i for i in range(len(before.x)) if i not in failed]
    np.testing.assert_array_equal(after.x[others], before.x[others])
    np.testing.assert_array_equal(after.y[others], before.y[others])


@pytest.mark.parametrize("engine", ALL)
def test_an_interrupt_is_not_a_sample_that_failed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(solver: Any, found: Any) -> Any:
        raise KeyboardInterrupt

    spoil(monkeypatch, engine, change)
    with pytest.raises(KeyboardInterrupt):
        solved(engine, dense_qp())


@pytest.mark.parametrize("engine", ALL)
def test_no_number_is_no_solution(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = lambda x: np.full(np.shape(x), np.nan)
    spoil(monkeypatch, engine, lambda solver, found: replaced(engine, solver, found, nowhere))
    answer = solved(engine, dense_qp())
    assert set(answer.claims) == {Status.FAILED}
    assert all("not a finite point" in word for word in answer.words)
    assert np.isnan(answer.x).all()
    assert np.isnan(answer.y).all()


@pytest.mark.parametrize("engine", ALL)
def test_a_lie_is_handed_on_with_what_gives_it_away(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = dense_qp()
    with monkeypatch.context() as lying:
        word = said(engine, "Solved")
        spoil(lying, engine, lambda s, found: replaced(engine, s, found, lambda x: 0.0 * np.array(x), word))
        answer = solved(engine, program)
    assert set(answer.claims) == {Status.SOLVED}
    assert (optimality(program, answer) > 1e-2).all()
    word = said(engine, "PrimalInfeasible")
    spoil(monkeypatch, engine, lambda s, found: replaced(engine, s, found, lambda x: x, word))
    answer = solved(engine, program)
    assert set(answer.claims) == {Status.INFEASIBLE}
    assert not any(excludes(program, answer, i) for i in range(len(program.q)))


@pytest.mark.parametrize("engine", ALL)
def test_data_that_are_no_numbers_do_not_raise(engine: str) -> None:
    program = dense_qp()
    before = solved(engine, program)
    program.q[2, 0], program.b[4, 1], program.P.values[5, 0, 0] = torch.nan, torch.nan, torch.inf
    after = solved(engine, program)
    good = [0, 1, 3, 6, 7, 8]
    np.testing.assert_array_equal(after.x[good], before.x[good])


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("engine", ALL)
def test_unknown_options_are_refused_by_name(engine: str) -> None:
    with pytest.raises(DeclarationError, match=f"{engine} has no option 'tolerence'; it has .*max_iter"):
        ENGINES[engine]({"tolerence": 1.0})


@pytest.mark.parametrize(
    ("engine", "option"),
    [
        ("CLARABEL", {"max_iter": "many"}),
        ("OSQP", {"max_iter": -1}),
        ("OSQP", {"eps_abs": "small"}),
        ("OSQP", {"warm_starting": True}),
        ("SCS", {"max_iters": 1.5}),
        ("SCS", {"linear_solver": "none"}),
        ("PIQP", {"max_iter": "many"}),
        ("MOREAU", {"max_iter": "many"}),
    ],
)
def test_bad_values_are_refused_by_name(engine: str, option: dict[str, Any], capfd: Any) -> None:
    if engine in NEEDED:
        pytest.importorskip(NEEDED[engine])
    with pytest.raises(DeclarationError, match=f"{engine} refuses {next(iter(option))}="):
        ENGINES[engine](option)
    capfd.readouterr()


@pytest.mark.parametrize("engine", ALL)
def test_options_reach_the_solver(engine: str) -> None:
    limit = "max_iters" if engine == "SCS" else "max_iter"
    answer = solved(engine, banded_qp(), **{limit: 1})
    assert Status.SOLVED not in answer.claims


@pytest.mark.parametrize("engine", each("OSQP", "PIQP"))
def test_cones_that_a_solver_lacks_are_refused(engine: str) -> None:
    ENGINES[engine]({}).check_suits(orthant(2))
    with pytest.raises(DeclarationError, match=rf"{engine} has no cone for SecondOrder\(dim=3\)"):
        ENGINES[engine]({}).check_suits(Product((Nonnegative(1), SecondOrder(3))))


def test_scs_has_no_generalized_power_cone() -> None:
    SCS({}).check_suits(Product(CONES["all, in no order"]))
    with pytest.raises(DeclarationError, match="SCS has no cone for GeneralizedPower"):
        SCS({}).check_suits(Product((GeneralizedPower((0.2, 0.8), 2),)))


@pytest.mark.parametrize("module", ["piqp", "moreau"])
def test_an_optional_solver_says_how_to_install_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DeclarationError, match=f"'{module.upper()}' is not installed: pip install"):
        {"piqp": PIQP, "moreau": Moreau}[module]({})


# -------------------------------------------------------------------------------------- neighbours


def picked(program: ConeProgram, rows: list[int]) -> ConeProgram:
    index = torch.tensor(rows)
    return program._replace(P=program.P[index], q=program.q[index], A=program.A[index], b=program.b[index])


def same(a: Answer, b: Answer, rows_a: Any = slice(None), rows_b: Any = slice(None)) -> None:
    np.testing.assert_array_equal(a.x[rows_a], b.x[rows_b])
    np.testing.assert_array_equal(a.y[rows_a], b.y[rows_b])


def badly_scaled() -> ConeProgram:
    """Each sample in units of its own."""
    program, unit = dense_qp(), 10.0 ** torch.arange(-4, 5)[:, None].double()
    return program._replace(q=program.q * unit)


CASES: dict[str, Callable[[], ConeProgram]] = {
    **QPS,
    "twins": lambda: twins()[0],
    "badly scaled": lambda: dense_qp()._replace(
        q=dense_qp().q * 10.0 ** torch.arange(-4, 5)[:, None].double()
    ),
    "cones": lambda: projection(Product(CONES["all, in no order"]), B=5)[0],
}


def takes(engine: str, program: ConeProgram) -> bool:
    try:
        ENGINES[engine]({}).check_suits(program.K)
    except DeclarationError:
        return False
    return True


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("case", CASES)
def test_a_sample_does_not_feel_its_neighbours(engine: str, case: str) -> None:
    program = CASES[case]()
    if not takes(engine, program):
        pytest.skip("the solver has no such cones")
    B = len(program.q)
    whole = solved(engine, program)
    backwards = list(range(B))[::-1]
    same(whole, solved(engine, picked(program, backwards)), backwards)
    for i in (0, B // 2, B - 1):
        same(whole, solved(engine, picked(program, [i])), [i])


@pytest.mark.parametrize("engine", each("CLARABEL", "OSQP", "SCS", "PIQP"))
@pytest.mark.parametrize("case", CASES)
def test_nor_how_the_batch_is_divided(engine: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = CASES[case]()
    if not takes(engine, program):
        pytest.skip("the solver has no such cones")
    monkeypatch.setattr(clarabel_engine, "LIGHT", 0)
    whole = solved(engine, program)
    for workers in (1, 2, 3, 7):
        parted = ENGINES[engine]({})
        parted._pool = Pool(workers)
        same(whole, parted.solve_matrices(program))


@pytest.mark.parametrize(
    ("engine", "own"), [("CLARABEL", {"equilibrate_enable": True}), ("OSQP", {"scaling": 10})]
)
def test_a_solvers_own_scaling_does_not_outlive_a_sample(engine: str, own: dict[str, Any]) -> None:
    program = CASES["badly scaled"]()
    whole = solved(engine, program, **own)
    same(whole, solved(engine, picked(program, [5]), **own), [5])


# ------------------------------------------------------------------------------------------- pools


def test_a_batch_is_divided_into_stretches() -> None:
    assert divided(0, 3) == [range(0)]
    assert divided(2, 5) == [range(1), range(1, 2)]
    for size, parts in ((10, 3), (7, 7), (128, 2)):
        stretches = divided(size, parts)
        assert len(stretches) == parts
        assert [i for rows in stretches for i in rows] == list(range(size))
        assert max(map(len, stretches)) - min(map(len, stretches)) <= 1


def test_every_stretch_is_run_once_and_by_several_threads() -> None:
    barrier, seen = threading.Barrier(3, timeout=10.0), []

    def task(rows: range) -> None:
        barrier.wait()  # passed only if all three are under way at once
        seen.extend((i, threading.get_ident()) for i in rows)

    Pool(3).run(task, 10)
    assert sorted(i for i, _ in seen) == list(range(10))
    assert len({thread for _, thread in seen}) == 3
    assert threading.get_ident() in {thread for _, thread in seen}


def test_an_error_in_another_thread_is_raised() -> None:
    def task(rows: range) -> None:
        if 9 in rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pool(2).run(task, 10)


def test_without_threads_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    seen: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refused)
    Pool(3).run(seen.extend, 10)
    assert sorted(seen) == list(range(10))


def test_pools_are_copied_without_their_threads() -> None:
    pool = Pool(2)
    pool.run(lambda rows: None, 4)
    for other in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert other._threads is None
        other.run(lambda rows: None, 4)


def test_workers_leave_torchs_thread_count_alone() -> None:
    before = torch.get_num_threads()
    engine = Clarabel({})
    engine._pool = Pool(2)
    engine.solve_matrices(dense_qp(n=30, m=20))
    assert torch.get_num_threads() == before
    counts: list[int] = []
    worker = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    worker.start()
    worker.join()
    assert counts == [before]


@pytest.mark.parametrize("engine", ALL)
def test_one_engine_serves_many_threads(engine: str) -> None:
    shared, programs = ENGINES[engine]({}), [dense_qp(seed=10 * k) for k in range(4)]
    expected, found = [solved(engine, program) for program in programs], {}

    def work(k: int) -> None:
        found[k] = [shared.solve_matrices(programs[k]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, answers in found.items():
        for answer in answers:
            same(expected[k], answer)
    assert len(found) == 4


FORK = """
import os, sys
sys.path.insert(0, {root!r})
from optlayer.engines.{module} import {name}
from optlayer.engines.pool import Pool
from tests.test_engines import dense_qp, same
import optlayer.engines.clarabel as c
c.LIGHT = 0
engine, program = {name}({{}}), dense_qp()
engine._pool = Pool(2)
before = engine.solve_matrices(program)
child = os.fork()
if child == 0:
    same(before, engine.solve_matrices(program))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
same(before, engine.solve_matrices(program))
print("well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("module", "name"), [("clarabel", "Clarabel"), ("osqp", "OSQP"), ("scs", "SCS")])
def test_pools_are_made_anew_after_a_fork(module: str, name: str) -> None:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    script = FORK.format(root=root, module=module, name=name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=root, env=environment
    )
    assert run.stdout.strip() == "well", run.stderr


# ----------------------------------------------------------------------------------------- scaling


def test_equilibration_rounds_nothing_and_is_the_same_problem() -> None:
    program = dense_qp()
    wild = 10.0 ** (4 * torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 2)
    rows = 10.0 ** (4 * torch.rand(7, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 2)
    P = program.P.scaled(wild.expand(9, -1), wild.expand(9, -1))
    program = program._replace(P=P, A=program.A.scaled(rows.expand(9, -1), wild.expand(9, -1)))
    scaled, units = equilibrated(program)
    for scale in (units.x, units.y):
        assert (np.frexp(scale)[0] == 0.5).all()  # powers of two
    D, back = torch.from_numpy(units.x), 1.0 / torch.from_numpy(units.x)
    sigma = (scaled.q / (D * program.q))[:, :1]
    assert torch.equal(scaled.P.scaled(back / sigma, back).dense(), program.P.dense())
    E = torch.from_numpy(units.y) * sigma
    assert torch.equal(scaled.A.scaled(1.0 / E, back).dense(), program.A.dense())
    assert torch.equal(scaled.b / E, program.b)
    assert 0.05 < scaled.A.largest().min() <= scaled.A.largest().max() < 20.0


def test_the_rows_of_a_cone_share_a_scale_and_constants_stay_shared() -> None:
    program, _ = projection(Product((SecondOrder(4), Nonnegative(2), Semidefinite(3))))
    program = program._replace(A=program.A.scaled(10.0 ** torch.arange(-6, 6)[None].double(), 1.0))
    scaled, units = equilibrated(program, keep_shared=True)
    assert len(scaled.P.values) == len(scaled.A.values) == len(units.x) == 1
    assert len(np.unique(units.y[:, :4])) == len(np.unique(units.y[:, 6:])) == 1
    assert len(np.unique(units.y)) > 2


# --------------------------------------------------------------------------------- stacks, columns


def sparse(B: int, rows: int, columns: int, seed: int = 0) -> Sparse:
    """About half of the entries."""
    places = (randn(rows * columns, seed=seed) > 0).nonzero().squeeze(1)
    return Sparse(randn(B, len(places), seed=seed + 1), Pattern.of_places((rows, columns), places))


MATRICES = {
    "dense": lambda B, r: Dense(randn(B, r, 5, seed=r)),
    "sparse": lambda B, r: sparse(B, r, 5, seed=r),
    "empty": lambda B, r: Dense(torch.zeros(B, 0, 5, dtype=torch.float64)),
}


@pytest.mark.parametrize("upper", MATRICES)
@pytest.mark.parametrize("lower", MATRICES)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_stacks(upper: str, lower: str, sizes: tuple[int, int]) -> None:
    A, G = MATRICES[upper](sizes[0], 3), MATRICES[lower](sizes[1], 4)
    found = stacked(A, G)
    parts = [M.dense().expand(4, -1, -1) for M in (A, G)]
    assert torch.equal(found.dense().expand(4, -1, -1), torch.cat(parts, 1))
    assert isinstance(found, Sparse) == ("sparse" in (upper, lower))
    if "empty" not in (upper, lower):
        assert (len(found.values) == 1) == (sizes == (1, 1))
    assert_columns(found)


def assert_columns(matrix: Matrix) -> None:
    """Columns and all that is made of them, against the dense matrix."""
    columns, whole = to_csc(matrix), matrix.dense().numpy()
    r = matrix.shape[0]
    order = np.random.default_rng(0).permutation(r)
    for i in range(len(whole)):
        entry = columns.matrix(i)
        entry.check_format()
        assert entry.has_sorted_indices
        np.testing.assert_array_equal(entry.toarray(), whole[i])
        np.testing.assert_array_equal(columns.transposed().matrix(i).toarray(), whole[i].T)
        np.testing.assert_array_equal(columns.reordered(order).matrix(i).toarray(), whole[i][order])
        np.testing.assert_array_equal(columns.upper().matrix(i).toarray(), np.triu(whole[i]))
        above, below = columns.split(r // 2)
        np.testing.assert_array_equal(above.matrix(i).toarray(), whole[i][: r // 2])
        np.testing.assert_array_equal(below.matrix(i).toarray(), whole[i][r // 2 :])
    assert columns.constant == (len(matrix.values) == 1)


def test_entries_that_are_zero_stay_in_the_structure() -> None:
    """The patterns must not depend on the data."""
    assert len(to_csc(Dense(torch.zeros(2, 3, 4, dtype=torch.float64))).rows) == 12
    M = sparse(2, 3, 4)
    assert len(to_csc(Sparse(0.0 * M.values, M.pattern)).rows) == M.pattern.nnz


def test_without_an_objective_any_feasible_point_will_do() -> None:
    program = dense_qp().without_objective
    answer = solved("CLARABEL", program)
    s = program.b - program.A @ torch.from_numpy(answer.x)
    assert set(answer.claims) == {Status.SOLVED}
    assert s[:, :2].abs().max() < 1e-6
    assert s[:, 2:].min() > -1e-6


# -------------------------------------------------------------------------------------------- choice


def polytope(n: int, m: int, **options: Any) -> tuple[OptLayer, list[Tensor]]:
    """The projection onto Gz <= h, with 1000 samples of random data."""
    z, x, G, h = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [G @ z <= h])
    r = torch.Generator().manual_seed(0)
    data = [torch.randn(1000, n, generator=r), torch.randn(1000, m, n, generator=r)]
    data.append(torch.rand(1000, m, generator=r) + 0.1)
    return OptLayer.from_problem(problem, [x, G, h], [z], **options), data


def test_the_extra_is_chosen_for_dense_programmes_where_it_is_installed(monkeypatch: Any) -> None:
    monkeypatch.setattr(table, "is_installed", lambda: False)
    assert polytope(2, 5)[0]._plan.engines[0].name == "INTERIOR"
    monkeypatch.setattr(table, "is_installed", lambda: True)
    monkeypatch.setattr(table, "Moreau", lambda options: "Moreau")
    assert polytope(2, 5)[0]._plan.engines[0] == "Moreau"
    assert polytope(2, 5, solver="PIQP")[0]._plan.engines[0].name == "PIQP"


def test_interior_by_name_goes_on_where_newton_cannot() -> None:
    """At 1e-5 the active set of some of these is not to be guessed, and no other engine may help."""
    layer, data = polytope(20, 60, solver="INTERIOR", on_failure="nan")
    some = [d[[0, 65, 116, 146, 338]] for d in data]
    assert (layer.solve(*some).status == 0).all()
