"""The layers of `optlayer.layers`, each against a closed form or an answer of high accuracy, and each fast
path against the declaration it stands for."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.linear_model import Lasso as SklearnLasso
from torch.autograd import gradcheck, gradgradcheck

from optlayer import DeclarationError, InfeasibleError, InputError, layers
from optlayer.layers.transport import _potentials

DOUBLE = torch.float64
mpmath.mp.dps = 40


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ the table


class Case(NamedTuple):
    name: str
    build: Callable[..., Any]
    inputs: Callable[..., tuple[torch.Tensor, ...]]  # of batch dimensions
    free: Callable[..., tuple[torch.Tensor, ...]] = lambda *inputs: (
        inputs
    )  # inputs of any value to admissible

    def __repr__(self) -> str:
        return self.name


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 7 * len(shape)), dtype=DOUBLE)


def uniform(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + 7 * len(shape)), dtype=DOUBLE)


def bounds(*shape: int) -> torch.Tensor:
    """Summing to between one and three, so that some are met."""
    u = 0.05 + uniform(*shape)
    return u / u.sum(-1, keepdim=True) * (1.2 + 1.8 * uniform(*shape[:-1], 1, seed=2))


def marginal(*shape: int, seed: int = 3) -> torch.Tensor:
    return normal(*shape, seed=seed).softmax(-1)


def positive_definite(Q, *others):
    n = Q.shape[-1]
    return Q @ Q.mT + 0.5 * torch.eye(n, dtype=Q.dtype), *others


def scores(*batch):
    return (2 * normal(*batch, 5),)


FAST = [
    Case("relu", lambda **o: layers.ReLU(5, **o), scores),
    Case("sigmoid", lambda **o: layers.Sigmoid(5, **o), scores),
    Case("softmax", lambda **o: layers.Softmax(5, **o), scores),
    Case("sparsemax", lambda **o: layers.Sparsemax(5, **o), scores),
    Case(
        "constrained-softmax",
        lambda **o: layers.ConstrainedSoftmax(5, **o),
        lambda *b: (2 * normal(*b, 5), bounds(*b, 5)),
    ),
    Case(
        "constrained-sparsemax",
        lambda **o: layers.ConstrainedSparsemax(5, **o),
        lambda *b: (normal(*b, 5), bounds(*b, 5)),
    ),
    Case("lml", lambda **o: layers.LML(5, 2, **o), scores),
    Case(
        "least-squares",
        lambda **o: layers.LeastSquares(4, 2, **o),
        lambda *b: (normal(*b, 4, 2), normal(*b, 4)),
    ),
    Case(
        "ridge",
        lambda **o: layers.LeastSquares(2, 3, ridge=True, **o),
        lambda *b: (normal(*b, 2, 3), normal(*b, 2), 0.2 + uniform(*b)),
    ),
    Case(
        "entropic-transport",
        lambda **o: layers.OptimalTransport(2, 3, eps=0.2, **o),
        lambda *b: (uniform(*b, 2, 3), normal(*b, 2), normal(*b, 3)),
        lambda C, r, c: (C, r.softmax(-1), c.softmax(-1)),
    ),
    Case("mean", lambda **o: layers.RobustPooling(5, penalty="quadratic", **o), scores),
    Case("huber", lambda **o: layers.RobustPooling(5, alpha=1.5, **o), scores),
    Case(
        "huber-vectors",
        lambda **o: layers.RobustPooling(5, 2, alpha=1.2, **o),
        lambda *b: (2 * normal(*b, 5, 2),),
    ),
    Case("pseudo-huber", lambda **o: layers.RobustPooling(5, penalty="pseudo-huber", **o), scores),
    Case(
        "pseudo-huber-vectors",
        lambda **o: layers.RobustPooling(5, 2, penalty="pseudo-huber", alpha=0.7, **o),
        lambda *b: (2 * normal(*b, 5, 2),),
    ),
]


def polytope(**options):
    torch.manual_seed(0)
    return layers.Polytope(3, 6, **options).double()


DECLARED_ONLY = [
    Case("polytope", polytope, lambda *b: (3 * normal(*b, 3),)),
    Case("ellipsoid", lambda **o: layers.Ellipsoid(3, **o).double(), lambda *b: (3 * normal(*b, 3),)),
    Case(
        "qp",
        lambda **o: layers.QP(3, 2, 1, **o),
        lambda *b: (
            normal(*b, 3, 3),
            normal(*b, 3),
            normal(*b, 2, 3),
            uniform(*b, 2),
            normal(*b, 1, 3),
            0.1 * normal(*b, 1),
        ),
        positive_definite,
    ),
    Case(
        "lasso",
        lambda **o: layers.Lasso(4, 3, **o),
        lambda *b: (normal(*b, 4, 3), normal(*b, 4), 0.5 + uniform(*b)),
    ),
    Case(
        "total-variation",
        lambda **o: layers.TotalVariation(6, **o),
        lambda *b: (normal(*b, 6), 0.3 + 0.2 * uniform(*b)),
    ),
    Case(
        "total-variation-2d",
        lambda **o: layers.TotalVariation((2, 3), **o),
        lambda *b: (normal(*b, 2, 3), 0.2 + 0.2 * uniform(*b)),
    ),
    Case(
        "exact-transport",
        lambda **o: layers.OptimalTransport(2, 3, **o),
        lambda *b: (uniform(*b, 2, 3), normal(*b, 2), normal(*b, 3)),
        lambda C, r, c: (C, r.softmax(-1), c.softmax(-1)),
    ),
]
ALL = FAST + DECLARED_ONLY

fast_cases = pytest.mark.parametrize("case", FAST, ids=repr)
all_cases = pytest.mark.parametrize("case", ALL, ids=repr)


def close(a, b, tolerance=1e-12):
    assert a.shape == b.shape, (a.shape, b.shape)
    assert torch.allclose(a, b, rtol=0, atol=tolerance), (a - b).abs().max()


def leaves(tensors):
    return tuple(t.clone().requires_grad_() for t in tensors)


def with_gradient(layer, case, *batch):
    inputs = leaves(case.inputs(*batch))
    y = layer(*case.free(*inputs))
    weights = normal(*y.shape, seed=5)
    return y.detach(), torch.autograd.grad((weights * y).sum(), inputs)


def poisoned(*args):
    raise AssertionError("the declared problem was solved")


@pytest.fixture
def no_solver(monkeypatch):
    """A call that does not take the fast path fails."""
    monkeypatch.setattr("optlayer.layer.solve", poisoned)


# ------------------------------------------------------------------------------------- fast against declared


@fast_cases
def test_fast_and_declared_have_the_same_values_and_gradients(case):
    y, gradients = with_gradient(case.build(), case, 12)
    y_fast, gradients_fast = with_gradient(case.build(fast=True), case, 12)
    close(y_fast, y)
    for fast, declared in zip(gradients_fast, gradients, strict=True):
        close(fast, declared, 1e-10)


@fast_cases
def test_the_fast_path_is_taken_and_differentiable_twice(case, no_solver):
    layer = case.build(fast=True)

    def f(*inputs):
        return layer(*case.free(*inputs))

    inputs = leaves(case.inputs(2))
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True)


@fast_cases
def test_transforms_of_the_fast_path(case, no_solver):
    layer = case.build(fast=True)

    def loss(*inputs):
        y = layer(*case.free(*inputs))
        return (y**3).sum()

    inputs = case.inputs(3)
    every = tuple(range(len(inputs)))
    alone = [torch.func.hessian(loss, 0)(*(t[i] for t in inputs)) for i in range(3)]
    close(torch.func.vmap(torch.func.hessian(loss, 0))(*inputs), torch.stack(alone), 1e-11)
    reverse = torch.func.jacrev(torch.func.vmap(loss), every)(*inputs)
    forward = torch.func.vmap(torch.func.jacfwd(loss, every))(*inputs)
    for r, f in zip(reverse, forward, strict=True):
        close(torch.stack([r[i, i] for i in range(3)]), f, 1e-11)


@pytest.mark.parametrize("case", [c for c in FAST if c.inputs is scores or "x" in c.name], ids=repr)
def test_extreme_inputs_agree_or_go_the_declared_way(case):
    """Scores of a hundred: saturated sigmoids, vertices of the simplex, everyone an outlier."""
    factor = 8 if case.name in ("sigmoid", "lml") else 40  # declared, 1 − z below 1e-12 has no digits left
    inputs = case.inputs(6)
    inputs = factor * inputs[0], *inputs[1:]
    fast, declared = (case.build(fast=f, nonunique="ignore")(*inputs) for f in (True, False))
    close(fast, declared, 1e-12 * 40)


@fast_cases
def test_a_sample_does_not_depend_on_its_neighbours(case):
    """Bitwise, as long as they all have an answer."""
    layer, inputs = case.build(fast=True), case.free(*case.inputs(5))
    others = [torch.cat([5 * t[3:4] if i == 0 else t[3:4], t[1:]]) for i, t in enumerate(inputs)]
    assert torch.equal(layer(*inputs)[1:], layer(*others)[1:])


def test_ties_have_the_declared_derivative():
    """A constraint that is active with multiplier 0 counts as inactive."""
    half, quarter = np.log(0.5), np.log(0.25)
    for build, inputs in [
        (lambda **o: layers.ReLU(2, **o), ([0.0, 1.0],)),
        (lambda **o: layers.Sparsemax(2, **o), ([1.0, 0.0],)),
        (lambda **o: layers.Sparsemax(3, **o), ([1.1, 0.1, 0.1],)),
        (lambda **o: layers.ConstrainedSparsemax(3, **o), ([1.0, 0.5, 0.25], [0.75, 1.0, 1.0])),
        (lambda **o: layers.ConstrainedSoftmax(3, **o), ([half, quarter, quarter], [0.5, 1.0, 1.0])),
    ]:
        theta = [torch.as_tensor(t, dtype=DOUBLE) for t in inputs]
        J = [torch.autograd.functional.jacobian(build(fast=f), tuple(theta)) for f in (True, False)]
        close(J[0][0], J[1][0])
        assert J[0][0].diagonal().all()  # every entry moves


# ------------------------------------------------------------------------------- against answers of 40 digits


def bisected(function, low, high):
    """The root of an increasing function."""
    low, high = mpmath.mpf(low), mpmath.mpf(high)
    for _ in range(140):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


def exactly(x):
    return [mpmath.mpf(v) for v in x.tolist()]


def clip(v, low, high):
    return min(max(v, low), high)


def sigmoid(v):
    return 1 / (1 + mpmath.exp(-v))


ENTRIES = {  # z_i of x_i + t and u_i, to sum to ...
    "sparsemax": (lambda v, u: max(v, mpmath.mpf(0)), 1),
    "constrained-sparsemax": (lambda v, u: clip(v, mpmath.mpf(0), u), 1),
    "constrained-softmax": (lambda v, u: min(mpmath.exp(v), u), 1),
    "softmax": (lambda v, u: mpmath.exp(v), 1),
    "lml": (lambda v, u: sigmoid(v), 2),
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "declared"])
@pytest.mark.parametrize("case", [c for c in FAST if ENTRIES.get(c.name)], ids=repr)
def test_activations_have_forty_digits_behind_them(case, fast):
    entry, total = ENTRIES[case.name]
    inputs = case.inputs(4)
    answers = []
    for sample in zip(*inputs):
        pairs = list(zip(exactly(sample[0]), exactly(sample[-1])))

        def excess(t, pairs=pairs):
            return sum(entry(v + t, u) for v, u in pairs) - total

        t = bisected(excess, -60, 60)
        answers.append([float(entry(v + t, u)) for v, u in pairs])
    close(case.build(fast=fast)(*inputs), torch.tensor(answers, dtype=DOUBLE), 2e-14)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "declared"])
def test_relu_and_sigmoid_are_torchs(fast):
    (x,) = scores(7)
    close(layers.ReLU(5, fast=fast)(x), x.relu(), 1e-15)
    close(layers.Sigmoid(5, fast=fast)(x), x.sigmoid(), 1e-14)


SLOPES = {
    "huber": lambda r, a: clip(r, -a, a),
    "pseudo-huber": lambda r, a: r / mpmath.sqrt(1 + (r / a) ** 2),
    "quadratic": lambda r, a: r,
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "declared"])
@pytest.mark.parametrize("penalty", SLOPES)
def test_pooling_balances_the_slopes(penalty, fast):
    x, slope, alpha = 2 * normal(4, 5) + 10, SLOPES[penalty], 1.5
    answers = []
    for points in map(exactly, x):

        def pull(y, points=points):
            return sum(slope(y - v, mpmath.mpf(alpha)) for v in points)

        answers.append(float(bisected(pull, -60, 60)))
    pooled = layers.RobustPooling(5, penalty=penalty, alpha=alpha, fast=fast)(x)
    close(pooled, torch.tensor(answers, dtype=DOUBLE), 2e-14 * 10)


def test_vectors_are_pooled_coordinate_by_coordinate():
    x = normal(3, 5, 2)
    for penalty in SLOPES:
        vectors = layers.RobustPooling(5, 2, penalty=penalty)(x)
        for fast in (True, False):
            numbers = layers.RobustPooling(5, penalty=penalty, fast=fast)
            close(vectors, torch.stack([numbers(x[..., 0]), numbers(x[..., 1])], -1), 1e-13)


def test_huber_without_a_unique_mean_goes_the_declared_way(monkeypatch):
    x = torch.tensor([0.0, 0.1, 10.0, 10.1], dtype=DOUBLE)
    fast, declared = (layers.RobustPooling(4, fast=f, nonunique="ignore") for f in (True, False))
    close(fast(x), declared(x))
    monkeypatch.setattr("optlayer.layer.solve", poisoned)
    with pytest.raises(AssertionError, match="the declared problem was solved"):
        fast(x)


# ------------------------------------------------------------------------------------------- projections


def test_a_box_is_a_polytope():
    box = layers.Polytope(3, 6).double()
    with torch.no_grad():
        box.G.copy_(torch.cat([torch.eye(3), -torch.eye(3)]))
        box.h.copy_(torch.tensor([1.0, 0.5, 2.0, 0.0, 0.5, 1.0]))
    x = 2 * normal(20, 3)
    lower, upper = -box.h[3:].detach(), box.h[:3].detach()
    close(box(x).detach(), x.clamp(lower, upper), 1e-13)


def test_a_polytope_is_learned_through_its_projection():
    layer = polytope()
    x = 3 * normal(5, 3)
    layer(x).sum().backward()
    assert layer.G.grad.any()
    assert layer.h.grad.any()
    solution = layer.solve(x)
    assert solution.inequality_duals[0].shape == (5, 6)
    close(layer.solve(x, warm_start=solution).primal[0], layer(x))

    def projected(x, G, h):
        return torch.func.functional_call(layer, {"G": G, "h": h}, (x,))

    assert gradcheck(projected, leaves((x[:1], layer.G.detach(), layer.h.detach())))


def test_an_empty_polytope_is_infeasible():
    layer = polytope()
    with torch.no_grad():
        layer.G[1], layer.h[:2] = -layer.G[0], -1.0
    with pytest.raises(InfeasibleError):
        layer(torch.zeros(3, dtype=DOUBLE))


def test_ellipsoids():
    """The unit ball; and axes of their own, where the multiplier solves a scalar equation."""
    x = 3 * normal(6, 3)
    ball = layers.Ellipsoid(3).double()
    close(ball(x).detach(), x / x.norm(dim=1, keepdim=True).clamp_min(1), 1e-13)
    a, c = (
        [mpmath.mpf(2), mpmath.mpf(1), mpmath.mpf("0.5")],
        [mpmath.mpf("0.25"), mpmath.mpf(0), mpmath.mpf(-1)],
    )
    with torch.no_grad():
        ball.A.copy_(torch.tensor([float(v) for v in a]).diag())
        ball.c.copy_(torch.tensor([float(v) for v in c]))
    for point in x:
        d = [v - m for v, m in zip(exactly(point), c)]

        def reach(mu, d=d):
            return 1 - sum((s * v / (1 + mu * s**2)) ** 2 for s, v in zip(a, d))

        mu = bisected(reach, 0, 1000) if reach(mpmath.mpf(0)) < 0 else 0
        nearest = [float(m + v / (1 + mu * s**2)) for m, v, s in zip(c, d, a)]
        close(ball(point).detach(), torch.tensor(nearest, dtype=DOUBLE), 1e-13)

    def projected(x, A, c):
        return torch.func.functional_call(ball, {"A": A, "c": c}, (x,))

    assert gradcheck(projected, leaves((x[:1], ball.A.detach() + 0.1, ball.c.detach())))


# --------------------------------------------------------------------------------------------- programmes


def test_qp_in_each_of_its_forms():
    Q, p = positive_definite(normal(4, 3, 3), normal(4, 3))
    z = -torch.linalg.solve(Q, p.unsqueeze(2)).squeeze(2)
    close(layers.QP(3)(Q, p), z)
    A, b = normal(4, 1, 3), normal(4, 1)
    K = torch.cat([torch.cat([Q, A.mT], 2), torch.cat([A, torch.zeros(4, 1, 1, dtype=DOUBLE)], 2)], 1)
    with_multiplier = torch.linalg.solve(K, torch.cat([-p, b], 1).unsqueeze(2)).squeeze(2)
    close(layers.QP(3, k=1)(Q, p, A, b), with_multiplier[:, :3], 1e-11)
    q, upper = 0.5 + uniform(4, 3), uniform(4, 3)
    box = layers.QP(3, m=3)(torch.diag_embed(q), p, torch.eye(3), upper)
    close(box, torch.minimum(-p / q, upper))


def test_qp_wants_a_semidefinite_matrix():
    with pytest.raises(InputError, match="'Q'"):
        layers.QP(2)(-torch.eye(2), torch.zeros(2))


def test_lasso_shrinks_and_is_sklearns():
    X, y, lam = torch.linalg.qr(normal(6, 4)).Q, normal(6), torch.tensor(0.3, dtype=DOUBLE)
    w = X.T @ y
    close(layers.Lasso(6, 4)(X, y, lam), w.sign() * (w.abs() - lam).relu(), 1e-13)
    X = normal(6, 4)
    theirs = SklearnLasso(alpha=0.8 / 6, fit_intercept=False, tol=1e-15, max_iter=100_000).fit(X, y).coef_
    close(layers.Lasso(6, 4)(X, y, 0.8), torch.as_tensor(theirs), 1e-9)
    with pytest.raises(InputError, match="'lam'"):
        layers.Lasso(6, 4)(X, y, -1.0)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "declared"])
def test_least_squares_is_lapacks(fast):
    A, b = normal(5, 7, 3), normal(5, 7)
    close(layers.LeastSquares(7, 3, fast=fast)(A, b), torch.linalg.lstsq(A, b.unsqueeze(2)).solution[..., 0])
    rho = torch.tensor([0.0, 1e-3, 0.1, 1.0, 1e3], dtype=DOUBLE)
    M = A.mT @ A + rho[:, None, None] * torch.eye(3, dtype=DOUBLE)
    x = torch.cholesky_solve((A.mT @ b.unsqueeze(2)), torch.linalg.cholesky(M))[..., 0]
    close(layers.LeastSquares(7, 3, ridge=True, fast=fast)(A, b, rho), x)
    with pytest.raises(InputError, match="'rho'"):
        layers.LeastSquares(7, 3, ridge=True, fast=fast)(A, b, -rho)


def test_a_badly_conditioned_fit_keeps_its_digits():
    """κ = 1e6: the normal equations lose 12 digits, QR 6."""
    U, V = torch.linalg.qr(normal(8, 4)).Q, torch.linalg.qr(normal(4, 4)).Q
    A = U @ torch.diag(torch.logspace(0, -6, 4, dtype=DOUBLE)) @ V.T
    b = A @ torch.ones(4, dtype=DOUBLE)
    x = layers.LeastSquares(8, 4, fast=True)(A, b)
    close(x, torch.ones(4, dtype=DOUBLE), 1e-9)


def test_a_rank_deficient_fit_goes_the_declared_way():
    A = normal(6, 2) @ normal(2, 3)
    b = normal(6)
    fast, declared = (layers.LeastSquares(6, 3, fast=f, nonunique="ignore") for f in (True, False))
    assert declared.solve(A, b).flags.nonunique
    close(fast(A, b), declared(A, b))
    shortest = [torch.autograd.functional.jacobian(f, (A, b))[1] for f in (fast, declared)]
    close(shortest[0], shortest[1])
    close(shortest[0], torch.linalg.pinv(A, rtol=1e-10), 1e-10)  # the derivative of minimum norm


def test_the_factor_is_reused(monkeypatch):
    """One QR for the answer and its gradient."""
    counted = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda *a, **k: counted.append(1) or qr(*a, **k))
    A, b = leaves((normal(2, 6, 3), normal(2, 6)))
    layers.LeastSquares(6, 3, fast=True)(A, b).sum().backward()
    assert len(counted) == 1


def test_total_variation_of_two():
    x = torch.tensor([[0.0, 3.0], [0.0, 1.0]], dtype=DOUBLE)
    z = layers.TotalVariation(2)(x, 1.0)
    close(z, torch.tensor([[1.0, 2.0], [0.5, 0.5]], dtype=DOUBLE), 1e-14)


def test_total_variation_is_certified():
    """u = Σ_{j ≤ i} (x_j − z_j) holds |u_i| ≤ λ, = λ sign(z_{i+1} − z_i) at jumps, u_n = 0: a proof."""
    x, lam = normal(20, 8), 0.4
    z = layers.TotalVariation(8)(x, lam)
    u, jump = (x - z).cumsum(1), z.diff(dim=1)
    assert u.abs().max() <= lam + 1e-12
    close(u[:, -1], torch.zeros(20, dtype=DOUBLE))
    jumps = jump.abs() > 1e-9
    assert jumps.any()
    close(u[:, :-1][jumps], -lam * jump.sign()[jumps])


def test_an_image_of_equal_rows_is_a_signal():
    x = normal(2, 4)
    image = layers.TotalVariation((3, 4))(x[:, None, :].expand(2, 3, 4), 0.3)
    close(image, layers.TotalVariation(4)(x, 0.3)[:, None, :].expand(2, 3, 4))


# ----------------------------------------------------------------------------------------------- transport


def test_assignment_is_a_vertex():
    C = uniform(5, 5)
    rows, columns = scipy.optimize.linear_sum_assignment(C.numpy())
    P = torch.zeros(5, 5, dtype=DOUBLE)
    P[rows, columns] = 0.2
    marginal = torch.full((5,), 0.2, dtype=DOUBLE)
    close(layers.OptimalTransport(5, 5, nonunique="ignore")(C, marginal, marginal), P)


def test_exact_transport_costs_what_highs_says():
    C, r, c = uniform(3, 4), marginal(3), marginal(4)
    A = np.concatenate([np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))])
    highs = scipy.optimize.linprog(C.reshape(-1).numpy(), A_eq=A, b_eq=torch.cat([r, c]).numpy())
    P = layers.OptimalTransport(3, 4)(C, r, c)
    assert abs((C * P).sum().item() - highs.fun) < 1e-12
    close(P, torch.as_tensor(highs.x).reshape(3, 4), 1e-12)


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01, 1e-3])
def test_entropic_transport_is_certified(eps):
    """Right marginals and log P + C / eps = f ⊕ g prove a plan; declared, it is refused below some eps."""
    C, r, c = uniform(6, 5, 4), marginal(6, 5), marginal(6, 4)
    for fast in (True, False) if eps >= 0.1 else (True,):
        P = layers.OptimalTransport(5, 4, eps=eps, fast=fast)(C, r, c)
        close(P.sum(2), r, 1e-13)
        close(P.sum(1), c, 1e-13)
        L = P.log() * eps + C
        crossed = L - L[:, :1] - L[:, :, :1] + L[:, :1, :1]
        seen = P.log() > -25  # below, P has lost digits beside the marginals
        close(torch.where(seen & seen[:, :1] & seen[:, :, :1], crossed, 0), torch.zeros_like(C), 1e-6 * eps)


def test_newton_spares_sinkhorn_his_thousands(monkeypatch):
    """At eps = 1/100 of the costs Sinkhorn's iteration alone contracts by next to nothing."""
    C, r, c = 100 * uniform(20, 5, 4), marginal(20, 5), marginal(20, 4)
    monkeypatch.setattr("optlayer.layers.transport.ROUNDS", 12)
    assert _potentials(C, r, c)[1].all()
    monkeypatch.setattr("optlayer.layers.transport._line_search", lambda u, *_: u)
    assert not _potentials(C, r, c)[1].all()


def test_small_eps_approaches_the_vertex_and_is_differentiable(no_solver):
    C, r, c = uniform(5, 4), marginal(5), marginal(4)
    _, found = _potentials(1e4 * C[None], r[None], c[None])
    assert found.all()
    layer = layers.OptimalTransport(5, 4, eps=0.02, fast=True)
    assert gradcheck(lambda C: layer(C, r, c), leaves((C,)), check_forward_ad=True)


def test_masses_that_differ_by_rounding_are_made_the_same():
    C = uniform(3, 4).float()
    r, c = marginal(3).float(), (marginal(4) + 1e-7).float()
    for eps, fast in ((None, False), (0.3, False), (0.3, True)):
        P = layers.OptimalTransport(3, 4, eps=eps, fast=fast)(C, r, c)
        assert P.dtype == torch.float32
        assert torch.allclose(P.sum(1), r, atol=1e-6)
        assert torch.allclose(P.sum(0), c, atol=1e-6)
        with pytest.raises(InfeasibleError):
            layers.OptimalTransport(3, 4, eps=eps, fast=fast)(C, r, 1.01 * c)


def test_transport_takes_lists():
    P = layers.OptimalTransport(2, 2)([[0.0, 1.0], [1.0, 0.0]], [0.5, 0.5], [0.25, 0.75])
    close(P.double(), torch.tensor([[0.25, 0.25], [0.0, 0.5]], dtype=DOUBLE), 1e-7)


# ---------------------------------------------------------------------------------------------- good layers


@pytest.mark.parametrize("case", DECLARED_ONLY, ids=repr)
def test_gradcheck_of_the_declared(case):
    layer = case.build(nonunique="ignore")
    f = lambda *inputs: layer(*case.free(*inputs))
    assert gradcheck(f, leaves(case.inputs(1)), check_forward_ad=True)


@all_cases
def test_batches(case):
    layers_of_both = [case.build(fast=True), case.build()] if case in FAST else [case.build()]
    for layer in layers_of_both:
        inputs = case.free(*case.inputs(2, 3))
        y = layer(*inputs)
        assert y.shape[:2] == (2, 3)
        alone = layer(*(t[1, 2] for t in inputs))
        close(alone.detach(), y[1, 2].detach())
        mixed = layer(inputs[0], *(t[1, 2] for t in inputs[1:]))
        close(mixed[1, 2].detach(), y[1, 2].detach())
        assert layer(*(t[:0] for t in inputs)).shape[:2] == (0, 3)


@all_cases
def test_dtype_in_is_dtype_out(case):
    for layer in [case.build(fast=True), case.build()] if case in FAST else [case.build()]:
        inputs = case.free(*case.inputs(2))
        y = layer.float()(*(t.float() for t in inputs))
        assert y.dtype == torch.float32
        assert torch.allclose(y.double(), layer.double()(*inputs), atol=1e-4)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "declared"])
def test_the_smallest_sizes(fast):
    one, alone = torch.tensor([0.3], dtype=DOUBLE), torch.tensor([1.0], dtype=DOUBLE)
    close(layers.Sparsemax(1, fast=fast)(one), alone)
    close(layers.ConstrainedSoftmax(1, fast=fast)(one, 2 * alone), alone)
    close(layers.LML(1, 0.25, fast=fast)(one), 0.25 * alone)
    for penalty in SLOPES:
        close(layers.RobustPooling(1, penalty=penalty, fast=fast)(one), one[0])
    close(layers.LeastSquares(1, 1, fast=fast)(2 * one[None], one), 0.5 * alone)
    for m, n in ((1, 1), (1, 2), (2, 1)):
        r, c = torch.full((m,), 1 / m, dtype=DOUBLE), torch.full((n,), 1 / n, dtype=DOUBLE)
        P = layers.OptimalTransport(m, n, eps=0.5, fast=fast)(torch.zeros(m, n, dtype=DOUBLE), r, c)
        close(P, torch.full((m, n), 1 / (m * n), dtype=DOUBLE))


@all_cases
def test_copies(case):
    layer = case.build(fast=True) if case in FAST else case.build()
    inputs = case.free(*case.inputs(2))
    y = layer(*inputs)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(*inputs), y)
        assert repr(twin) == repr(layer)


@all_cases
def test_state(case):
    state = case.build().state_dict()
    owned = {"polytope": ["G", "h"], "ellipsoid": ["A", "c"]}
    assert list(state) == owned.get(case.name, [])
    if state:
        other = case.build()
        other.load_state_dict({name: 2 * value for name, value in state.items()})
        assert torch.equal(next(other.parameters()), 2 * next(iter(state.values())))


@fast_cases
def test_solve_is_the_declared_problem(case):
    inputs = case.free(*case.inputs(2))
    solution = case.build(fast=True).solve(*inputs)
    close(solution.primal[0], case.build(fast=True)(*inputs))
    assert solution.residuals.worst.max() < 1e-12


def test_the_fast_path_says_so():
    assert repr(layers.Sparsemax(3, fast=True)).endswith("fast: by its closed form\n)")
    assert "fast" not in repr(layers.Sparsemax(3))


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "declared"])
@pytest.mark.parametrize("layer", [layers.ConstrainedSoftmax, layers.ConstrainedSparsemax])
def test_bounds_that_sum_to_less_than_one_are_infeasible(layer, fast):
    x, u = normal(3, 4), torch.full((3, 4), 0.5, dtype=DOUBLE)
    u[1] = 0.2
    with pytest.raises(InfeasibleError) as caught:
        layer(4, fast=fast)(x, u)
    assert caught.value.indices == (1,)
    z = layer(4, fast=fast, on_failure="nan")(x, u)
    assert z.isnan().all(1).tolist() == [False, True, False]
    close(z[0], layer(4)(x[0], u[0]))
    with pytest.raises(InfeasibleError):
        torch.func.vmap(layer(4, fast=fast))(x, u)


def test_a_negative_bound_is_infeasible_for_sparsemax():
    u = torch.tensor([-0.1, 1.0, 1.0])
    for fast in (True, False):
        with pytest.raises(InfeasibleError):
            layers.ConstrainedSparsemax(3, fast=fast)(torch.zeros(3), u)


@fast_cases
def test_what_is_not_a_number_is_refused_alike(case):
    inputs = [t.clone() for t in case.free(*case.inputs(2))]
    for value in (torch.nan, torch.inf):
        inputs[0][1] = value
        for fast in (True, False):
            with pytest.raises(InputError) as caught:
                case.build(fast=fast)(*inputs)
            assert caught.value.indices == (1,)


@fast_cases
def test_a_wrong_shape_is_refused_alike(case):
    said = []
    for fast in (True, False):
        with pytest.raises(InputError) as caught:
            case.build(fast=fast)(*(t[..., :-1] if t.ndim > 1 else t for t in case.inputs(2)))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: layers.ReLU(0), "n=0, expected a whole number of at least 1"),
        (lambda: layers.Softmax(2.5), "n=2.5, expected a whole number"),
        (lambda: layers.Sparsemax(True), "n=True, expected a whole number"),
        (lambda: layers.Sparsemax(3, fast="yes"), "fast='yes', expected True or False"),
        (lambda: layers.Sparsemax(3, fast=True, smoothing=0.1), "fast=True with smoothing=0.1"),
        (lambda: layers.Sparsemax(3, no_such_option=1), "no_such_option"),
        (lambda: layers.LML(4, 4), "k=4, expected a number between 0 and n=4"),
        (lambda: layers.LML(4, "two"), "k='two', expected"),
        (lambda: layers.Polytope(3, -1), "m=-1, expected a whole number of at least 1"),
        (lambda: layers.Ellipsoid("3"), "n='3', expected"),
        (lambda: layers.QP(3, -1), "m=-1, expected a whole number of at least 0"),
        (lambda: layers.Lasso(0, 3), "m=0, expected"),
        (lambda: layers.LeastSquares(3, 2, ridge=0.1), "ridge=0.1, expected True or False"),
        (lambda: layers.TotalVariation(1), "no neighbours"),
        (lambda: layers.TotalVariation((2, 3, 4)), r"shape=\(2, 3, 4\), expected a length n, or \(h, w\)"),
        (lambda: layers.TotalVariation((2, 0)), "w=0, expected"),
        (lambda: layers.OptimalTransport(2, 3, eps=0.0), "eps=0.0, expected a positive number"),
        (lambda: layers.OptimalTransport(2, 3, fast=True), "fast=True with eps=None"),
        (lambda: layers.RobustPooling(3, penalty="welsch"), "penalty='welsch', expected one of 'quadratic'"),
        (lambda: layers.RobustPooling(3, alpha=-1), "alpha=-1, expected a positive number"),
        (lambda: layers.RobustPooling(3, 0), "d=0, expected"),
    ],
)
def test_bad_sizes_are_named(build, said):
    with pytest.raises(DeclarationError, match=said):
        build()
