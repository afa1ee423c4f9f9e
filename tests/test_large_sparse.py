"""Large sparse programmes: the same answers as the dense path, and no dense matrix on the way."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from optlayer import OptLayer, Solution, deficient, fill, sparse_saddle
from optlayer.declare.recovery import Affine, entries
from optlayer.deficient import Deficient
from optlayer.engines.large import large_engines
from optlayer.errors import InfeasibleError
from optlayer.forms.kkt import Instance
from optlayer.least_norm import least_norm
from optlayer.linsolve import matvec, solve
from optlayer.matrix import Pattern, Sparse, diagonal
from optlayer.saddle import Base, Factor
from optlayer.sparse_saddle import Shifted, is_sparse

KINDS = ("banded", "grid", "random")
ROW = 13  # entries in each


# ------------------------------------------------------------------------------------------ problems


def rows(kind: str, n: int, m: int, seed: int = 0) -> sparse.csr_matrix:
    """m rows in n coordinates: a band, the squared Laplacian of a grid, or anywhere."""
    rng = np.random.default_rng(seed)
    if kind == "grid":
        return _grid(n, m, rng)
    first = np.linspace(0, n - ROW, m).astype(int)[:, None]
    columns = first + np.arange(ROW) if kind == "banded" else rng.integers(0, n, (m, ROW))
    place = np.repeat(np.arange(m), ROW), columns.ravel()
    return sparse.csr_matrix((rng.standard_normal(m * ROW), place), shape=(m, n))


def _grid(n: int, m: int, rng: np.random.Generator) -> sparse.csr_matrix:
    side = round(n**0.5)
    assert side * side == n
    second = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    laplacian = sparse.kronsum(second, second).tocsr()
    chosen = (laplacian @ laplacian).tocsr()[np.sort(rng.choice(n, m, replace=False))] / 20
    chosen.data *= 1 + 0.1 * rng.standard_normal(chosen.nnz)
    return chosen


def quadratic_programme(G: sparse.csr_matrix, seed: int = 0) -> tuple[OptLayer, Tensor, Tensor]:
    """min ½|z|² + qᵀz  s.t.  Gz <= h, and values of q and h of which about half the rows are active."""
    (m, n), rng = G.shape, np.random.default_rng(seed)
    layer = OptLayer(
        [cp.Variable(n)],
        [cp.Parameter(n), cp.Parameter(m)],
        lambda z, q, h: cp.sum_squares(z) / 2 + q @ z,
        [lambda z, q, h: G @ z - h],
    )
    q, h = 2 * rng.standard_normal(n), G @ rng.standard_normal(n) + rng.random(m)
    return layer, torch.from_numpy(q), torch.from_numpy(h)


def worst(solution: Solution) -> float:
    r = solution.residuals
    return max(float(part.max()) for part in (r.stationarity, r.primal, r.dual, r.complementarity))


def assert_gradient(layer: OptLayer, *theta: Tensor, step: float = 1e-6) -> None:
    """Along a random direction, against central differences."""
    theta = tuple(t.detach().requires_grad_() for t in theta)
    generator = torch.Generator().manual_seed(1)
    move = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in theta]
    z = layer(*theta)
    w = torch.cos(torch.arange(z.numel(), dtype=z.dtype)).reshape(z.shape)
    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad((z * w).sum(), theta), move))
    with torch.no_grad():
        up, down = (layer(*(t + k * d for t, d in zip(theta, move))) for k in (step, -step))
    assert float(slope) == pytest.approx(float(((up - down) * w).sum() / (2 * step)), rel=1e-5)


# ------------------------------------------------------------------------------------- whole layers


@pytest.mark.parametrize("kind", KINDS)
def test_solved_certified_and_differentiated(kind: str) -> None:
    layer, q, h = quadratic_programme(rows(kind, 64**2, 3000))
    solution = layer.solve(q, h)
    assert worst(solution) < 1e-12
    assert (solution.inequality_duals[0] > 0).sum() > 1000
    assert_gradient(layer, q, h)


def test_the_gradient_is_that_of_the_dense_path(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, q, h = quadratic_programme(rows("banded", 1500, 1100))
    q, h = q.requires_grad_(), h.requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        solution = layer.solve(q, h)
        total = solution.primal[0].cos().sum() + solution.inequality_duals[0].square().sum()
        return torch.autograd.grad(total, (q, h))

    sparsely = gradients()
    met: list[Base] = []
    monkeypatch.setattr(sparse_saddle, "is_sparse", lambda base: bool(met.append(base)))
    monkeypatch.setattr(Base, "chain", None)
    for mine, theirs in zip(sparsely, gradients()):
        assert (mine - theirs).abs().max() <= 1e-10 * theirs.abs().max()
    assert met
    assert all(is_sparse(base) for base in met)


def problems(n: int) -> dict[str, tuple[cp.Problem, list[Any], list[np.ndarray], cp.Variable]]:
    """Other ways to be large and sparse."""
    rng = np.random.default_rng(1)
    z, q, w = cp.Variable(n), cp.Parameter(n), cp.Parameter(n, nonneg=True)
    G, A = rows("banded", n, 3 * n // 4), rows("banded", n, n // 30, seed=3)
    h, b = cp.Parameter(G.shape[0]), cp.Parameter(A.shape[0])
    D = sparse.diags_array([np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n)).tocsr()
    P = (D.T @ D + 0.1 * sparse.eye_array(n)).tocsc()
    slack, half = G @ rng.standard_normal(n) + rng.random(G.shape[0]), cp.sum_squares(z) / 2
    cost, zero = 2 * rng.standard_normal(n), np.zeros(A.shape[0])
    box = [A @ z == b, z >= -1, z <= 1]
    return {
        "bounds": (cp.Problem(cp.Minimize(half + q @ z), box), [q, b], [cost, zero], z),
        "curved": (
            cp.Problem(cp.Minimize(cp.quad_form(z, cp.psd_wrap(P)) / 2 + q @ z), [G @ z <= h]),
            [q, h],
            [cost, slack],
            z,
        ),
        "smoothing": (
            cp.Problem(cp.Minimize(cp.sum_squares(z - q) / 2 + cp.sum_squares(D @ z)), [G @ z <= h]),
            [q, h],
            [cost, slack],
            z,
        ),
        "weighted": (
            cp.Problem(cp.Minimize(w @ cp.square(z) / 2 + q @ z), [G @ z <= h]),
            [w, q, h],
            [1 + rng.random(n), cost, slack],
            z,
        ),
        "one full row": (
            cp.Problem(cp.Minimize(half + q @ z), [G @ z <= h, cp.sum(z) == 1]),
            [q, h],
            [cost, slack],
            z,
        ),
    }


@pytest.mark.parametrize("name", ["bounds", "curved", "smoothing", "weighted", "one full row"])
def test_other_ways_to_be_large(name: str) -> None:
    problem, parameters, values, z = problems(3000)[name]
    layer = OptLayer.from_problem(problem, parameters, [z])
    theta = [torch.from_numpy(value) for value in values]
    assert worst(layer.solve(*theta)) < 1e-11
    assert_gradient(layer, *theta)


def test_a_sample_does_not_feel_its_neighbours() -> None:
    layer, q, h = quadratic_programme(rows("banded", 1500, 1100))
    generator = torch.Generator().manual_seed(0)
    batch = q + torch.randn(3, len(q), generator=generator, dtype=q.dtype)
    other = batch.clone()
    other[1] *= 3

    def rows_of(values: Tensor) -> tuple[Tensor, Tensor]:
        values = values.clone().requires_grad_()
        z = layer(values, h)
        return z.detach(), torch.autograd.grad(z.square().sum(), values)[0]

    for mine, theirs in zip(rows_of(batch), rows_of(other)):
        assert torch.equal(mine[[0, 2]], theirs[[0, 2]])
        assert not torch.equal(mine[1], theirs[1])


def test_a_large_programme_without_a_feasible_point_is_said_to_have_none() -> None:
    first = sparse.eye_array(1, 1500)
    G = sparse.vstack([rows("banded", 1500, 1000), first, -first])
    layer, q, h = quadratic_programme(G.tocsr())
    h[-2:] = -1.0  # z₀ <= -1 and -z₀ <= -1
    with pytest.raises(InfeasibleError):
        layer(q, h)


def test_rows_said_twice_leave_the_gradient() -> None:
    """K is singular, too large for its eigenvectors: multipliers are not unique, z and its gradient are."""
    G = rows("banded", 2400, 1600)
    once, q, h = quadratic_programme(G)
    twice = quadratic_programme(sparse.vstack([G, G[:400]]).tocsr())[0]
    q = q.requires_grad_()
    both = torch.cat([h, h[:400]])
    solution = twice.solve(q, both)
    assert solution.flags.degenerate
    (mine,), (theirs,) = (torch.autograd.grad(z.cos().sum(), q) for z in (solution.primal[0], once(q, h)))
    assert (mine - theirs).abs().max() <= 1e-6 * theirs.abs().max()


# -------------------------------------------------------------------------------------------- memory

MEASURED = """
import resource, sys
sys.path[:0] = {path!r}
import torch
from tests.test_large_sparse import quadratic_programme, rows, worst
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer, q, h = quadratic_programme(rows({kind!r}, {n}, {m}))
q, h = q.requires_grad_(), h.requires_grad_()
solution = layer.solve(q, h)
solution.primal[0].cos().sum().backward()
assert worst(solution) < 1e-10 and q.grad.isfinite().all() and h.grad.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def grown(kind: str, n: int, m: int) -> float:
    """MB by which construction, solve and backward raise the peak of a process of their own."""
    root = str(Path(__file__).parent.parent)
    script = MEASURED.format(path=[root], kind=kind, n=n, m=m)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


def test_memory_stays_far_below_a_dense_matrix() -> None:
    n, m = 16_000, 12_000
    assert grown("banded", n, m) < 0.25 * (8 * n * m / 2**20)


@pytest.mark.large
@pytest.mark.parametrize(("kind", "n"), [("banded", 100_000), ("grid", 316**2), ("random", 100_000)])
def test_a_hundred_thousand(kind: str, n: int) -> None:
    """75,000 rows, a million entries: eight gigabytes hold it easily."""
    assert grown(kind, n, 3 * n // 4) < 2000


# ------------------------------------------------------------------------------------------- factors


def system(n: int, k: int, curved: bool) -> tuple[Sparse, Sparse]:
    """H and E of two samples."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    place = torch.from_numpy(np.sort(rng.choice(k * n, 5 * k, replace=False)))
    E = Sparse(
        torch.randn(2, 5 * k, generator=generator, dtype=torch.float64), Pattern.of_places((k, n), place)
    )
    own = 1 + torch.rand(2, n, generator=generator, dtype=torch.float64)
    if not curved:
        return diagonal(own), E
    i = torch.arange(n)
    places = torch.cat([i * (n + 1), i[:-1] * (n + 1) + 1, i[1:] * (n + 1) - 1]).sort()
    beside = torch.full((2, n - 1), 0.3, dtype=torch.float64)
    values = torch.cat([own, beside, beside], 1)[:, places.indices]
    return Sparse(values, Pattern.of_places((n, n), places.values)), E


WAYS = {"factored": (np.inf, np.inf), "whole": (np.inf, 0.0), "iterated": (0.0, np.inf)}  # WORK, SCHUR


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_dense_one(way: str, curved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_saddle, "WORK", WAYS[way][0])
    monkeypatch.setattr(sparse_saddle, "SCHUR", WAYS[way][1])
    n, k = 60, 25
    generator = torch.Generator().manual_seed(2)
    s = (torch.rand(2, k, generator=generator) > 0.4).double()
    fixed = torch.rand(2, n, generator=generator) > 0.8
    D = 1.0 - s
    a, c = (torch.randn(2, size, generator=generator, dtype=torch.float64) for size in (n, k))
    base = Base.of(*system(n, k, curved))
    mine, theirs = (Factor(base, s, D, fixed, shifted).solve(a, c, 1e-15) for shifted in (Shifted, None))
    assert mine.sound.all()
    for found, expected in zip(mine[:2], theirs[:2]):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_a_singular_matrix_is_seen() -> None:
    H, E = system(60, 25, curved=False)
    E = Sparse(E.values.index_fill(1, (E.pattern.rows == 3).nonzero().squeeze(1), 0.0), E.pattern)
    nothing = torch.zeros(2, 25, dtype=torch.float64)
    assert not Factor(Base.of(H, E), None, nothing, None, Shifted).regular.any()


def test_what_is_no_number_harms_no_other_sample() -> None:
    H, E = system(60, 25, curved=False)
    broken = Sparse(E.values.index_fill(0, torch.tensor([1]), torch.nan), E.pattern)
    a, c = torch.ones(2, 60, dtype=torch.float64), torch.ones(2, 25, dtype=torch.float64)
    nothing = torch.zeros_like(c)
    whole, half = (
        Factor(Base.of(H, M), None, nothing, None, Shifted).solve(a, c, 1e-15) for M in (E, broken)
    )
    assert torch.equal(whole.x[0], half.x[0])
    assert half.sound.tolist() == [True, False]


def test_the_least_norm_by_products_is_that_of_the_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(0)
    R = torch.randn(2, 30, 20, generator=generator, dtype=torch.float64)
    K = R @ torch.diag(torch.linspace(-2, 3, 20, dtype=torch.float64)) @ R.mT
    K[:, :3], K[:, :, :3] = 0.0, 0.0
    b = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    expected, found = solve(K, b, 20), least_norm(lambda y: matvec(K, y), b, 20)
    assert torch.allclose(found.x, expected.x, rtol=1e-6, atol=1e-8 * float(expected.x.abs().max()))
    assert found.singular.all()
    assert torch.equal(found.free, expected.free)


def a_singular_saddle(seed: int) -> tuple[Tensor, int]:
    """[H Eᵀ; E 0] in mixed units, with dependent rows of E and a coordinate in which nothing stands."""
    rng = np.random.default_rng(seed)
    n, k = 30, 12
    R, E = rng.standard_normal((n, 25)), rng.standard_normal((k, n))
    E[8:] = rng.standard_normal((4, 8)) @ E[:8]
    H = R @ R.T
    H[:, 5], H[5], E[:, 5] = 0.0, 0.0, 0.0
    units = 10 ** rng.uniform(-2, 2, n + k)
    K = np.block([[H, E.T], [E, np.zeros((k, k))]]) * units[:, None] * units
    return torch.from_numpy(K), n


@pytest.mark.parametrize("seed", range(4))
def test_the_least_norm_by_factors_is_that_of_the_eigenvectors(seed: int) -> None:
    K, n = a_singular_saddle(seed)
    b = torch.randn(K.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected, found = solve(K, b, n), Deficient(sparse.csc_matrix(K.numpy()), n)
    x = torch.from_numpy(found(b.numpy()))
    assert found.singular
    assert torch.allclose(x, expected.x, rtol=1e-7, atol=1e-9 * float(expected.x.abs().max()))
    assert found.free.tolist() == expected.free.tolist()
    assert found.free.sum() == 1


@pytest.mark.parametrize("repeated", [1, 12, 40])  # the first basis; the second; neither, but eigenvectors
def test_a_null_space_of_any_size_is_found(repeated: int) -> None:
    row = np.ones((repeated, 150))
    K = sparse.csc_matrix(np.block([[np.eye(150), row.T], [row, np.zeros((repeated, repeated))]]))
    x = Deficient(K, 150)(np.concatenate([np.arange(150.0), np.ones(repeated)]))
    nearest = np.arange(150.0) - np.mean(np.arange(150.0)) + 1 / 150
    assert np.abs(x[:150] - nearest).max() < 1e-11
    assert np.ptp(x[150:]) < 1e-12


def test_constraints_that_nearly_depend_on_each_other_do_not() -> None:
    """Second differences of 2000 points: the least eigenvalue of K is 1e-11, and the solution is there."""
    n = 2000
    E = sparse.diags_array([1.0, -2.0, 1.0], offsets=[0, 1, 2], shape=(n - 2, n))
    K = sparse.csc_matrix(sparse.block_array([[2 * sparse.eye_array(n), E.T], [E, None]]))
    x = np.random.default_rng(0).standard_normal(2 * n - 2)
    inverse = Deficient(K, n)
    assert not inverse.singular
    assert inverse.nearly
    assert np.abs(inverse(K @ x)[:n] - x[:n]).max() < 1e-9
    assert np.abs(inverse(K @ x) - x).max() < 1e-3


def test_a_nearly_singular_k_says_so() -> None:
    """The same with all differences at their bounds; with none K is regular."""
    n = 2000
    E = sparse.diags_array([1.0, -2.0, 1.0], offsets=[0, 1, 2], shape=(n - 2, n)).tocsr()
    layer, q, h = quadratic_programme(E)
    problem = Instance(layer._plan.form, (q[None], h[None]), 1)
    one = torch.ones(1, n - 2, dtype=torch.float64)
    tight, loose = (problem.reduced(problem.origin, v, one) for v in (one, -one))
    assert not tight.singular[0].any()
    assert tight.nearly_singular.all()
    assert not loose.nearly_singular.any()


def test_a_null_space_is_found_where_a_factor_without_pivots_is_no_inverse() -> None:
    """First and second differences, in units of their own, and f flat in the first coordinate."""
    n = 400
    first = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(n - 1, n))
    second = sparse.diags_array([1.0, -2.0, 1.0], offsets=[0, 1, 2], shape=(n - 2, n))
    E = sparse.vstack([1e3 * first, 1e3 * second])
    H = sparse.diags_array(np.r_[0.0, np.full(n - 1, 1e-3)])
    K = sparse.csc_matrix(sparse.block_array([[H, E.T], [E, None]]))
    inverse = Deficient(K, n)
    assert inverse.singular
    assert not inverse.free.any()
    b = K @ np.random.default_rng(0).standard_normal(3 * n - 3)
    x = inverse(b)
    expected = np.linalg.pinv(K.toarray(), rcond=1e-13) @ b
    assert np.abs(x - expected).max() < 1e-8 * np.abs(expected).max()


def test_rows_of_constraints_that_do_not_hold_are_divided_by() -> None:
    """Explicit zeros or none; a row of zeros alone is no such row."""
    K, b = np.diag([1.0, 2.0, 4.0, 0.0, -5.0, -2.0]), np.array([2.0, 3.0, 8.0, 7.0, 5.0, 4.0])
    K[0, 1] = K[1, 0] = 1.0
    i, j = np.indices(K.shape)
    for stored in (sparse.csc_matrix(K), sparse.csc_matrix((K.ravel(), (i.ravel(), j.ravel())))):
        entries = stored.nnz
        inverse = Deficient(stored, 4)
        assert np.allclose(inverse(b), [1.0, 1.0, 2.0, 0.0, -1.0, -2.0], atol=1e-14)
        assert inverse.singular
        assert inverse.free.tolist() == [False, False, False, True]
        assert stored.nnz == entries


def test_divide_and_conquer_that_does_not_converge_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAPACK's gesdd gives up at times; gesvd is slower, and does not."""
    svd = deficient.linalg.svd

    def stubborn(A: np.ndarray, lapack_driver: str = "gesdd", **options: Any) -> Any:
        if lapack_driver == "gesdd":
            raise deficient.linalg.LinAlgError("SVD did not converge")
        return svd(A, lapack_driver=lapack_driver, **options)

    monkeypatch.setattr(deficient.linalg, "svd", stubborn)
    K = np.kron(np.eye(20), np.array([[2.0, 1.0], [1.0, 2.0]]))
    K[1, 1] = 0.5  # the first two rows depend on each other
    inverse = Deficient(sparse.csc_matrix(K), 40)
    assert inverse.singular
    x = inverse(np.full(40, 3.0))
    assert np.allclose(x[2:], 1.0, rtol=1e-12)
    assert np.allclose(K[:2, :2] @ x[:2], [3.6, 1.8], rtol=1e-12)  # the nearest right-hand side in the range


def test_a_regular_matrix_is_none_of_that() -> None:
    K = sparse.csc_matrix(np.diag([1.0, 1e-6, -1e3]))
    inverse = Deficient(K, 2)
    assert not inverse.singular
    assert not inverse.nearly
    assert np.allclose(inverse(np.ones(3)), [1.0, 1e6, -1e-3], rtol=1e-12)


def test_transport_has_a_derivative_whatever_its_size() -> None:
    """One of its equations is too many: multipliers are not unique, the plan is."""
    n, eps = 24, 0.05
    points = torch.rand(2, n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    C, a = torch.cdist(points[0], points[1]).square().requires_grad_(), torch.full((n,), 1 / n)
    layer = OptLayer(
        [cp.Variable((n, n))],
        [cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter(n)],
        lambda P, C, a, b: cp.sum(cp.multiply(C, P)) - eps * cp.sum(cp.entr(P)),
        equalities=[lambda P, C, a, b: cp.sum(P, axis=1) - a, lambda P, C, a, b: cp.sum(P, axis=0) - b],
    )
    solution = layer.solve(C, a.double(), a.double())
    plan, weights = solution.primal[0], torch.cos(torch.arange(n * n).double()).reshape(n, n)
    assert solution.flags.degenerate
    assert not solution.flags.nonunique
    (gradient,) = torch.autograd.grad((weights * plan).sum(), C)
    step = 1e-5 * weights
    ahead, behind = (layer(C.detach() + s, a.double(), a.double()) for s in (step, -step))
    difference = float((weights * (ahead - behind)).sum()) / 2
    assert float((gradient * step).sum()) == pytest.approx(difference, rel=1e-6)


# ----------------------------------------------------------------------------------- patterns, choices


def envelope(G: sparse.csr_matrix) -> float:
    (m, n), G = G.shape, G.tocoo()
    own = torch.arange(n)
    E = Pattern((m, n), *(torch.from_numpy(part.astype(np.int64)) for part in (G.row, G.col)))
    return fill.envelope(fill.graph(Pattern((n, n), own, own), E))


def test_the_envelope_tells_bands_from_grids_from_random_patterns() -> None:
    n, m = 64**2, 3000
    band, grid, random = (envelope(rows(kind, n, m)) for kind in KINDS)
    assert band < 25 * (n + m)
    assert 4 * band < grid < random / 4


def test_a_shuffled_band_is_a_band() -> None:
    G, rng = rows("banded", 1000, 700), np.random.default_rng(0)
    shuffled = G[rng.permutation(700)][:, rng.permutation(1000)].tocsr()
    assert envelope(shuffled) < 2 * envelope(G)


def test_one_full_row_says_nothing_of_the_others() -> None:
    G = rows("banded", 1000, 700)
    assert envelope(sparse.vstack([G, np.ones((1, 1000))]).tocsr()) < envelope(G) + 2 * 1701


def test_engines_by_pattern() -> None:
    names = {
        kind: large_engines(quadratic_programme(rows(kind, 100**2, 7500))[0]._plan.form) for kind in KINDS
    }
    assert [names[kind][0].name for kind in KINDS] == ["OSQP", "OSQP", "SCS"]


# ------------------------------------------------------------------------------------------ recovery


@pytest.mark.parametrize("kind", [*KINDS, "integers", "with full rows"])
def test_sparse_matrices_are_read_off_few_products(kind: str) -> None:
    G = rows("random" if kind in ("integers", "with full rows") else kind, 50**2, 2000)
    if kind == "integers":
        G.data = np.sign(G.data)  # where sums of several entries look like one
    if kind == "with full rows":
        G = sparse.vstack([G, np.random.default_rng(0).standard_normal((5, 50**2))]).tocsr()
    G.sum_duplicates()
    G.eliminate_zeros()
    C = G.tocoo()
    values, i, j = (
        torch.from_numpy(C.data),
        *(torch.from_numpy(part.astype(np.int64)) for part in (C.row, C.col)),
    )

    def product(lam: Tensor) -> Tensor:
        return torch.zeros(G.shape[1], dtype=torch.float64).index_add(0, j, values * lam.index_select(0, i))

    found = entries(Affine(G.shape, *G.shape, product))
    order = (i * G.shape[1] + j).argsort()
    assert torch.equal(found.places, (i * G.shape[1] + j)[order])
    assert (found.values - values[order]).abs().max() <= 1e-13 * values.abs().max()
