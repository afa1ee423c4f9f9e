"""Standard quadratic programmes (Maros & Mészáros 1999): solved to a certificate, or refused by name.

    min ½xᵀPx + qᵀx   s.t.   l <= Ax <= u

They are degenerate, badly scaled and rank deficient, as programmes met in practice are. Every answer is
judged again here, in numpy, and its value compared with that of another solver. The files stand beside the
repository; without them there is nothing to test.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import clarabel
import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.io import loadmat
from torch import Tensor

from optlayer import OptLayer, Solution
from optlayer.engines.moreau import is_installed
from optlayer.errors import InfeasibleError, SolveError, UnboundedError

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "maros_meszaros"
NAMES = sorted(path.stem for path in FOLDER.glob("*.mat"))
SMALL = [name for name in NAMES if (FOLDER / f"{name}.mat").stat().st_size < 8000]
FEW = [name for name in SMALL if (FOLDER / f"{name}.mat").stat().st_size < 3500]
ENGINES = ["INTERIOR", "PIQP", "OSQP", "SCS", "CLARABEL", *(["MOREAU"] if is_installed() else [])]
NONE = 9.99e19  # 1e20 as some of the files have rounded it: no bound
TOLERANCE = 1e-8
ULP = 2.0**-52  # of the sum of |terms|: what the gap moves by in another order of summation (QFORPLAN: 1e-4)
STEP = 1e-5  # relative, of one-sided differences
SMOOTH = 1e-3  # relative distance of the two that tells a derivative from a kink
REFUSED = {"QPCBLEND"}  # right-hand sides of 5e-17 where 0 is meant
BY_DEFAULT, NAMED = 48, 47  # of all of them, at least: by the default engines, by one asked for by name

pytestmark = pytest.mark.skipif(not NAMES, reason="the standard problems are not at hand")


class Standard(NamedTuple):
    """½xᵀPx + qᵀx over Ex = b, Gx <= h; a bound without a number is no row."""

    P: sparse.csc_matrix
    q: np.ndarray
    E: sparse.csr_matrix
    b: np.ndarray
    G: sparse.csr_matrix
    h: np.ndarray

    @property
    def data(self) -> tuple[Tensor, ...]:
        """What the layer is called with."""
        return tuple(torch.from_numpy(part) for part in (self.q, self.b, self.h) if part.size)

    def value(self, x: np.ndarray) -> float:
        return float(x @ (self.P @ x) / 2 + self.q @ x)


@cache
def load(name: str) -> Standard:
    file = loadmat(FOLDER / f"{name}.mat")
    A, (q, l, u) = file["A"].tocsr(), (np.asarray(file[k], dtype=float).ravel() for k in "qlu")
    equal = l == u
    above, below = (u < NONE) & ~equal, (l > -NONE) & ~equal
    G = sparse.vstack([A[above], -A[below]], format="csr")
    return Standard(file["P"].tocsc(), q, A[equal], u[equal], G, np.concatenate([u[above], -l[below]]))


def layer(problem: Standard, solver: str | None = None) -> OptLayer:
    """q, b and h are its parameters; P, E and G sparse constants."""
    x, q = cp.Variable(len(problem.q)), cp.Parameter(len(problem.q))
    b, h = cp.Parameter(max(len(problem.b), 1)), cp.Parameter(max(len(problem.h), 1))
    rows = [(problem.E @ x == b, b)] * bool(problem.b.size) + [(problem.G @ x <= h, h)] * bool(problem.h.size)
    curved = cp.quad_form(x, cp.psd_wrap(problem.P)) / 2 if problem.P.nnz else 0
    stated = cp.Problem(cp.Minimize(curved + q @ x), [row for row, _ in rows])
    parameters = [q, *(p for _, p in rows)]
    return OptLayer.from_problem(stated, parameters, [x], solver=solver, nonunique="ignore")


def solved(name: str, solver: str | None = None) -> Solution | None:
    """The solution, checked; None where it is refused, which must not be by a wrong name."""
    problem = load(name)
    try:
        solution = layer(problem, solver).solve(*problem.data)
    except SolveError as error:
        if isinstance(error, InfeasibleError | UnboundedError):
            pytest.fail(f"{name} has a solution: {error}")
        return None
    assert float(solution.residuals.worst) <= TOLERANCE
    assert_optimal(problem, solution)
    return solution


def assert_optimal(problem: Standard, solution: Solution) -> None:
    """Feasible, and no worse than the dual value, both up to rounding in the terms they are made of."""
    x, duals = solution.primal[0].numpy(), [part[0].numpy() for part in solution.duals.values()]
    nu = duals[0] if problem.b.size else np.zeros(0)
    lam = duals[-1] if problem.h.size else np.zeros(0)
    P, E, G = problem.P, problem.E, problem.G
    reach = np.abs(x).max()
    for row, bound, violation in ((E, problem.b, np.abs), (G, problem.h, lambda r: r.clip(min=0))):
        size = abs(row) @ np.abs(x) + np.abs(bound) + 1e-7 * reach * np.asarray(abs(row).sum(axis=1)).ravel()
        assert (violation(row @ x - bound) <= TOLERANCE * size).all()
    assert (lam >= 0).all()
    left = P @ x + problem.q + E.T @ nu + G.T @ lam
    terms = abs(P) @ np.abs(x) + np.abs(problem.q) + abs(E).T @ np.abs(nu) + abs(G).T @ lam
    assert (np.abs(left) <= TOLERANCE * (terms + terms.max())).all()
    gap = problem.value(x) + x @ (P @ x) / 2 + problem.b @ nu + problem.h @ lam
    linear, bounds = np.abs(problem.q) @ np.abs(x), np.abs(problem.h) @ lam
    summed = np.abs(x) @ (abs(P) @ np.abs(x)) + linear + np.abs(problem.b) @ np.abs(nu) + bounds
    assert abs(gap) <= TOLERANCE * (linear + bounds + 1.0) + ULP * summed
    assert problem.value(x) == pytest.approx(float(solution.value), rel=1e-9, abs=1e-9)


def reference(problem: Standard) -> float | None:
    """The optimal value by Clarabel alone, closely; None where it does not get there."""
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads, settings.tol_gap_rel, settings.tol_feas = False, 1, 1e-10, 1e-10
    P, A = sparse.triu(problem.P, format="csc"), sparse.vstack([problem.E, problem.G], format="csc")
    cones = [clarabel.ZeroConeT(len(problem.b)), clarabel.NonnegativeConeT(len(problem.h))]
    limits = np.concatenate([problem.b, problem.h])
    found = clarabel.DefaultSolver(P, problem.q, A, limits, cones, settings).solve()
    return found.obj_val if str(found.status) == "Solved" else None


def assert_solved(names: list[str], least: int, engine: str | None = None) -> None:
    """Each with the value that another solver finds."""
    found = {name: solved(name, engine) for name in names}
    for name, solution in found.items():
        value = None if solution is None else reference(load(name))
        if value is not None:
            assert float(solution.value) == pytest.approx(value, rel=1e-6, abs=1e-6), name
    refused = [name for name, solution in found.items() if solution is None]
    assert len(names) - len(refused) >= least, f"refused: {refused}"


def test_small_ones_are_solved() -> None:
    assert_solved(SMALL, len(set(SMALL) - REFUSED))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_smallest_are_solved_by_every_engine(engine: str) -> None:
    """What an engine leaves unsettled the proximal method of multipliers goes on from."""
    assert_solved(FEW, len(set(FEW) - REFUSED), engine)


@pytest.mark.large
@pytest.mark.parametrize("engine", [None, *ENGINES])
def test_they_are_solved_by_every_engine(engine: str | None) -> None:
    assert_solved(NAMES, BY_DEFAULT if engine is None else NAMED, engine)


@pytest.mark.parametrize("name", ["GOULDQP3", "QADLITTL"])
def test_a_row_without_objective_is_no_reason_to_refuse(name: str) -> None:
    """A slack variable's multipliers are all 0, up to rounding that nothing in their row compares with."""
    assert solved(name) is not None


def test_dependent_active_constraints_are_no_reason_to_refuse() -> None:
    assert solved("QBORE3D") is not None


def test_rounding_of_the_elastic_problem_is_no_contradiction() -> None:
    """Second differences of 2000 points, all but homogeneous: feasible, whether or not it is solved."""
    solved("YAO")


def test_a_residual_that_a_nearly_singular_matrix_leaves_is_not_believed() -> None:
    """Newton's method stops at 6e-9 from SCS's answer: the least eigenvalue of K is 1e-11."""
    solution = solved("YAO", "SCS")
    assert solution is None or float(solution.residuals.worst) < 1e-11


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["QSCAGR7", "QBORE3D", "QSHARE2B"])
def test_an_engine_that_newtons_method_cannot_finish_is_helped(engine: str, name: str) -> None:
    """Dependent active constraints, and rows that rounding alone fills."""
    assert solved(name, engine) is not None


# ---------------------------------------------------------------------------------------- derivatives


def slopes(name: str) -> tuple[float, float, float] | None:
    """Of a random functional of the argmin along a random change of q and b: exact, ahead and behind."""
    problem, generator = load(name), torch.Generator().manual_seed(0)
    optimum, data = layer(problem), problem.data
    count = 1 + bool(problem.b.size)
    moves = [d * torch.randn(d.shape, generator=generator, dtype=d.dtype) for d in data[:count]]
    moves += [torch.zeros_like(d) for d in data[count:]]
    weights = torch.randn(len(problem.q), generator=generator, dtype=torch.float64)

    def along(t: float) -> Tensor:
        return weights @ optimum(*(d + t * move for d, move in zip(data, moves)))

    try:
        here, ahead, behind = (float(along(t)) for t in (0.0, STEP, -STEP))
    except SolveError:
        return None
    theta = [d.clone().requires_grad_() for d in data]
    gradients = torch.autograd.grad(weights @ optimum(*theta), theta)
    exact = sum(float(g @ move) for g, move in zip(gradients, moves))
    return exact, (ahead - here) / STEP, (here - behind) / STEP


def assert_derivatives(names: list[str]) -> None:
    """Between the one-sided differences, up to how far they are apart, on 95 % where these agree."""
    judged, wrong = 0, []
    for name in names:
        found = slopes(name)
        if found is None:
            continue
        exact, ahead, behind = found
        size = max(abs(ahead), abs(behind))
        if abs(ahead - behind) <= SMOOTH * size + 1e-6:
            judged += 1
            near = abs(exact - (ahead + behind) / 2) <= abs(ahead - behind) / 2 + SMOOTH * size + 1e-6
            wrong += [] if near else [name]
    assert judged
    assert len(wrong) <= 0.05 * judged, f"{wrong} of {judged}"


def test_small_ones_are_differentiated() -> None:
    assert_derivatives(FEW)


@pytest.mark.large
def test_they_are_differentiated() -> None:
    assert_derivatives(NAMES)
