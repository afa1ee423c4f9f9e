"""One table of problems, each with a sampler, its exact answer where there is one, and twins without any.

The callables live at module level, so that layers made of them can be pickled.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import torch

from optlayer import OptLayer

F64 = torch.float64


def normal(rng, *shape):
    return torch.randn(shape, generator=rng, dtype=F64)


def uniform(rng, *shape, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(shape, generator=rng, dtype=F64)


def until(draw: Callable, good: Callable, tries: int = 1000):
    """Draw batches until every sample is good, keeping the good ones."""
    kept = draw()
    for _ in range(tries):
        bad = ~good(*kept)
        if not bad.any():
            return kept
        fresh = draw()
        kept = tuple(
            torch.where(bad.reshape(bad.shape + (1,) * (old.ndim - bad.ndim)), new, old)
            for old, new in zip(kept, fresh, strict=True)
        )
    raise AssertionError("the sampler found no good sample")


def T(matrix):
    return matrix.transpose(-1, -2)


def mv(matrix, vector):
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Form:
    """The problem in plain torch, one sample, flat variable: for the oracle that knows no layer."""

    f: Callable
    g: Callable | None = None
    h: Callable | None = None


@dataclass(frozen=True)
class Problem:
    name: str
    build: Callable[..., OptLayer]  # a fresh layer; keyword options are passed on
    sample: Callable  # (rng, *batch) -> free coordinates, a tuple of tensors
    chart: Callable = lambda *free: free  # free coordinates -> parameters (symmetric matrices)
    truth: Callable | None = None  # parameters -> tuple of primals
    duals: Callable | None = None  # parameters -> (inequality duals, equality duals, value)
    form: Form | None = None
    infeasible: Callable | None = None  # () -> (layer, parameters)
    unbounded: Callable | None = None

    def parameters(self, rng, *batch):
        return self.chart(*self.sample(rng, *batch))

    def __repr__(self):
        return self.name


@functools.cache
def layer_of(problem: Problem) -> OptLayer:
    return problem.build()


# ------------------------------ the tutorial's quadratic programme


def qp_objective(z, L, q, G, h, A, b):
    return 0.5 * cp.sum_squares(L @ z) + q @ z


def qp_inequality(z, L, q, G, h, A, b):
    return G @ z - h


def qp_equality(z, L, q, G, h, A, b):
    return A @ z - b


def build_qp(n=10, m=4, p=5, **options):
    z = cp.Variable(n, name="z")
    shapes = {"L": (n, n), "q": n, "G": (m, n), "h": m, "A": (p, n), "b": p}
    parameters = [cp.Parameter(shape, name=name) for name, shape in shapes.items()]
    return OptLayer(
        [z],
        parameters,
        qp_objective,
        [qp_inequality] if m else [],
        [qp_equality] if p else [],
        **options,
    )


@functools.cache
def qp_layer(n, m, p):
    return build_qp(n, m, p)


@dataclass(frozen=True)
class Planted:
    parameters: tuple
    primal: torch.Tensor
    inequality: torch.Tensor
    equality: torch.Tensor


def plant_qp(rng, n=10, m=4, p=5, batch=(), margin=0.2) -> Planted:
    """A random quadratic programme around a chosen answer, strictly complementary by `margin`."""
    z, nu = normal(rng, *batch, n), normal(rng, *batch, p)
    L = torch.eye(n, dtype=F64) + normal(rng, *batch, n, n) / (2 * n**0.5)
    G, A = normal(rng, *batch, m, n), normal(rng, *batch, p, n)
    order = torch.rand(*batch, m, generator=rng, dtype=F64).argsort(-1).argsort(-1)
    active = order < min(m, n - p) - (torch.rand(*batch, 1, generator=rng) < 0.5).long()
    dual = torch.where(active, uniform(rng, *batch, m, low=margin, high=1 + margin), 0.0)
    slack = torch.where(active, 0.0, uniform(rng, *batch, m, low=margin, high=1 + margin))
    h, b = mv(G, z) + slack, mv(A, z)
    q = -(mv(T(L) @ L, z) + mv(T(G), dual) + mv(T(A), nu))
    return Planted((L, q, G, h, A, b), z, dual, nu)


def infeasible_qp():
    L, q, G, h, A, b = plant_qp(torch.Generator().manual_seed(1)).parameters
    A[1], b[1] = A[0], b[0] + 1
    return layer_of(QP), (L, q, G, h, A, b)


def unbounded_qp():
    L, q, G, h, A, b = plant_qp(torch.Generator().manual_seed(1)).parameters
    return layer_of(QP), (0 * L, q, 0 * G, h.abs() + 1, A, b)


QP_FORM = Form(
    lambda z, L, q, G, h, A, b: 0.5 * (L @ z).square().sum() + q @ z,
    lambda z, L, q, G, h, A, b: G @ z - h,
    lambda z, L, q, G, h, A, b: A @ z - b,
)

QP = Problem(
    "qp",
    build_qp,
    lambda rng, *batch: plant_qp(rng, batch=batch).parameters,
    form=QP_FORM,
    infeasible=infeasible_qp,
    unbounded=unbounded_qp,
)
SMALL_QP = Problem(
    "small_qp",
    lambda **options: build_qp(4, 3, 1, **options),
    lambda rng, *batch: plant_qp(rng, 4, 3, 1, batch=batch).parameters,
    form=QP_FORM,
)
SMALL_QP_LOOSE = Problem(
    "small_qp_loose",
    lambda **options: build_qp(4, 2, 1, **options),
    lambda rng, *batch: plant_qp(rng, 4, 2, 1, batch=batch).parameters,
    form=QP_FORM,
)


# ------------------------------ nonlinearities


def vector_layer(n, objective, inequalities=(), equalities=(), **options):
    """One variable z, one parameter x, both of n elements."""
    return OptLayer(
        [cp.Variable(n, name="z")],
        [cp.Parameter(n, name="x")],
        objective,
        list(inequalities),
        list(equalities),
        **options,
    )


def distance(z, x):
    return cp.sum_squares(z - x)


def nonnegative(z, x):
    return -z


def sums_to_one(z, x):
    return cp.sum(z) - 1


def linear(z, x):
    return x @ z


def entropic(z, x):
    return -x @ z - cp.sum(cp.entr(z))


def binary_entropic(z, x):
    return -x @ z - cp.sum(cp.entr(z) + cp.entr(1 - z))


def build_sparsemax(n=6, **options):
    return vector_layer(n, distance, [nonnegative], [sums_to_one], **options)


def build_softmax(n=5, **options):
    return vector_layer(n, entropic, [], [sums_to_one], **options)


def build_sigmoid(n=5, **options):
    return vector_layer(n, binary_entropic, **options)


def build_relu(n=5, **options):
    return vector_layer(n, distance, [nonnegative], **options)


def sparsemax(x):
    """Projection onto the simplex (Martins and Astudillo 2016, proposition 1)."""
    ordered = x.sort(-1, descending=True).values
    ranks = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    sums = ordered.cumsum(-1) - 1
    size = (ranks * ordered > sums).sum(-1, keepdim=True)
    threshold = sums.gather(-1, size - 1) / size
    return torch.where(x > threshold, x - threshold, torch.zeros_like(x))


def sparsemax_margin(x):
    """How far every coordinate is from changing sides."""
    ordered = x.sort(-1, descending=True).values
    ranks = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    sums = ordered.cumsum(-1) - 1
    size = (ranks * ordered > sums).sum(-1, keepdim=True)
    return (x - sums.gather(-1, size - 1) / size).abs().amin(-1)


def sample_sparsemax(rng, *batch, n=6):
    return until(lambda: (normal(rng, *batch, n),), lambda x: sparsemax_margin(x) > 0.05)


def sample_relu(rng, *batch, n=5):
    return until(lambda: (normal(rng, *batch, n),), lambda x: x.abs().amin(-1) > 0.05)


def sparsemax_duals(x):
    z = sparsemax(x)
    threshold = (x - z).masked_fill(z <= 0, 0.0).sum(-1) / (z > 0).sum(-1)
    excess = torch.where(z > 0, torch.zeros_like(x), 2 * (threshold.unsqueeze(-1) - x))
    return (excess,), (2 * threshold,), (z - x).square().sum(-1)


def one(*shape):
    return torch.ones(shape, dtype=F64)


SPARSEMAX = Problem(
    "sparsemax",
    build_sparsemax,
    sample_sparsemax,
    truth=lambda x: (sparsemax(x),),
    duals=sparsemax_duals,
    form=Form(lambda z, x: (z - x).square().sum(), lambda z, x: -z, lambda z, x: z.sum().reshape(1) - 1),
    infeasible=lambda: (vector_layer(6, distance, [lambda z, x: z], [sums_to_one]), (one(6),)),
    unbounded=lambda: (vector_layer(6, linear, [nonnegative]), (-one(6),)),
)
SOFTMAX = Problem(
    "softmax",
    build_softmax,
    lambda rng, *batch: (normal(rng, *batch, 5),),
    truth=lambda x: (x.softmax(-1),),
    duals=lambda x: ((), (x.logsumexp(-1) - 1,), -x.logsumexp(-1)),
    form=Form(lambda z, x: -x @ z + (z * z.log()).sum(), None, lambda z, x: z.sum().reshape(1) - 1),
    infeasible=lambda: (vector_layer(5, entropic, [], [lambda z, x: cp.sum(z) + 1]), (one(5),)),
    unbounded=lambda: (vector_layer(5, lambda z, x: -x @ z - cp.sum(cp.log(z))), (one(5),)),
)
SIGMOID = Problem(
    "sigmoid",
    build_sigmoid,
    lambda rng, *batch: (2 * normal(rng, *batch, 5),),
    truth=lambda x: (x.sigmoid(),),
    duals=lambda x: ((), (), -torch.nn.functional.softplus(x).sum(-1)),
    form=Form(lambda z, x: -x @ z + (z * z.log() + (1 - z) * (1 - z).log()).sum()),
    infeasible=lambda: (vector_layer(5, binary_entropic, [], [lambda z, x: z - 2]), (one(5),)),
    unbounded=lambda: (vector_layer(5, lambda z, x: cp.sum(cp.logistic(z)) - 2 * x @ z), (one(5),)),
)
RELU = Problem(
    "relu",
    build_relu,
    sample_relu,
    truth=lambda x: (x.relu(),),
    duals=lambda x: ((2 * (-x).relu(),), (), (-x).relu().square().sum(-1)),
    form=Form(lambda z, x: (z - x).square().sum(), lambda z, x: -z),
    infeasible=lambda: (vector_layer(5, distance, [nonnegative, lambda z, x: z + 1]), (one(5),)),
    unbounded=lambda: (vector_layer(5, linear, [nonnegative]), (-one(5),)),
)


# ------------------------------ the ball, in squared form


def ball_distance(z, x, r):
    return cp.sum_squares(z - x)


def inside_ball(z, x, r):
    return cp.sum_squares(z) - r**2


def build_ball(n=4, **options):
    return OptLayer(
        [cp.Variable(n, name="z")],
        [cp.Parameter(n, name="x"), cp.Parameter(name="r")],
        ball_distance,
        [inside_ball],
        **options,
    )


def sample_ball(rng, *batch, n=4):
    return until(
        lambda: (normal(rng, *batch, n), uniform(rng, *batch, low=0.8, high=2.0)),
        lambda x, r: (x.norm(dim=-1) - r).abs() > 0.05,
    )


def ball_truth(x, r):
    norm = x.norm(dim=-1)
    return (x * torch.where(norm > r, r / norm, torch.ones_like(norm)).unsqueeze(-1),)


def ball_duals(x, r):
    norm = x.norm(dim=-1)
    return ((norm / r - 1).relu(),), (), (norm - r).relu().square()


BALL = Problem(
    "ball",
    build_ball,
    sample_ball,
    truth=ball_truth,
    duals=ball_duals,
    form=Form(lambda z, x, r: (z - x).square().sum(), lambda z, x, r: (z @ z - r**2).reshape(1)),
    infeasible=lambda: (vector_layer(4, distance, [lambda z, x: cp.sum_squares(z) + 1]), (one(4),)),
    unbounded=lambda: (vector_layer(4, lambda z, x: -x @ z, [lambda z, x: -x @ z]), (one(4),)),
)


# ------------------------------ statistics


def logistic_loss(w, X, y):
    return cp.sum(cp.logistic(-cp.multiply(y, X @ w))) / 12 + 0.05 * cp.sum_squares(w)


def build_logistic(m=12, n=3, **options):
    return OptLayer(
        [cp.Variable(n, name="w")],
        [cp.Parameter((m, n), name="X"), cp.Parameter(m, name="y")],
        logistic_loss,
        **options,
    )


def sample_logistic(rng, *batch, m=12, n=3):
    X = normal(rng, *batch, m, n)
    return X, torch.sign(X[..., 0] + normal(rng, *batch, m))


LOGISTIC = Problem(
    "logistic",
    build_logistic,
    sample_logistic,
    form=Form(lambda w, X, y: torch.nn.functional.softplus(-y * (X @ w)).sum() / 12 + 0.05 * w @ w),
    infeasible=lambda: (
        vector_layer(3, lambda w, x: cp.sum(cp.logistic(w)), [lambda w, x: cp.sum_squares(w) + 1]),
        (one(3),),
    ),
    unbounded=lambda: (vector_layer(3, lambda w, x: cp.sum(cp.logistic(w)) - 2 * x @ w), (one(3),)),
)


def covariance_loss(X, S):
    return -cp.log_det(X) + cp.trace(S @ X)


def build_covariance(n=3, **options):
    return OptLayer(
        [cp.Variable((n, n), symmetric=True, name="X")],
        [cp.Parameter((n, n), symmetric=True, name="S")],
        covariance_loss,
        **options,
    )


def symmetric(M):
    return ((M + T(M)) / 2,)


def sample_covariance(rng, *batch, n=3):
    half = normal(rng, *batch, n, n)
    return (half @ T(half) / n + 0.5 * torch.eye(n, dtype=F64),)


COVARIANCE = Problem(
    "covariance",
    build_covariance,
    sample_covariance,
    chart=symmetric,
    truth=lambda S: (torch.linalg.inv(S),),
    infeasible=lambda: (
        OptLayer(
            [cp.Variable((3, 3), symmetric=True)],
            [cp.Parameter((3, 3), symmetric=True)],
            covariance_loss,
            [lambda X, S: cp.trace(X) + 1],
        ),
        (torch.eye(3, dtype=F64),),
    ),
    unbounded=lambda: (layer_of(COVARIANCE), (-torch.eye(3, dtype=F64),)),
)


# ------------------------------ entropic transport


TEMPERATURE = 0.2


def transport_cost(P, C, *marginals):
    return cp.sum(cp.multiply(C, P)) - TEMPERATURE * cp.sum(cp.entr(P))


def rows_uniform(P, C):
    return cp.sum(P, axis=1) - 1 / 6


def columns_uniform(P, C):
    return cp.sum(P, axis=0) - 1 / 6


def rows_sum(P, C, a, b):
    return cp.sum(P, axis=1) - a


def columns_sum_but_last(P, C, a, b):
    return cp.sum(P, axis=0)[:-1] - b[:-1]


def columns_sum(P, C, a, b):
    return cp.sum(P, axis=0) - b


def build_transport(n=6, **options):
    """Both marginals, one row of them redundant."""
    return OptLayer(
        [cp.Variable((n, n), name="P")],
        [cp.Parameter((n, n), name="C")],
        transport_cost,
        [],
        [rows_uniform, columns_uniform],
        **{"nonunique": "ignore"} | options,
    )


def build_transport_reduced(n=6, columns=columns_sum_but_last, **options):
    return OptLayer(
        [cp.Variable((n, n), name="P")],
        [cp.Parameter((n, n), name="C"), cp.Parameter(n, name="a"), cp.Parameter(n, name="b")],
        transport_cost,
        [],
        [rows_sum, columns],
        **{"nonunique": "ignore"} | options,
    )


def sinkhorn(C, a=None, b=None, steps=400):
    n = C.shape[-1]
    a = torch.full((n,), 1 / n, dtype=C.dtype) if a is None else a
    if b is None:
        b = torch.full((n,), 1 / n, dtype=C.dtype)
    else:  # the last column takes what is left
        b = torch.cat([b[..., :-1], (a.sum(-1) - b[..., :-1].sum(-1)).unsqueeze(-1)], -1)
    K, v = -C / TEMPERATURE, torch.zeros_like(C[..., 0, :])
    for _ in range(steps):
        u = a.log() - (K + v.unsqueeze(-2)).logsumexp(-1)
        v = b.log() - (K + u.unsqueeze(-1)).logsumexp(-2)
    return ((K + u.unsqueeze(-1) + v.unsqueeze(-2)).exp(),)


def sample_marginals(rng, *batch, n=6):
    a, b = (uniform(rng, *batch, n, low=0.5, high=1.5) for _ in range(2))
    return uniform(rng, *batch, n, n), a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def inconsistent_transport():
    C, a, b = sample_marginals(torch.Generator().manual_seed(3))
    return build_transport_reduced(columns=columns_sum), (C, a, 2 * b)


TRANSPORT = Problem(
    "transport",
    build_transport,
    lambda rng, *batch: (uniform(rng, *batch, 6, 6),),
    truth=sinkhorn,
    infeasible=inconsistent_transport,
    unbounded=lambda: (
        OptLayer(
            [cp.Variable((6, 6))],
            [cp.Parameter((6, 6))],
            lambda P, C: cp.sum(cp.multiply(C, P)),
            [lambda P, C: -P],
        ),
        (-one(6, 6),),
    ),
)
TRANSPORT_REDUCED = Problem("transport_reduced", build_transport_reduced, sample_marginals, truth=sinkhorn)


# ------------------------------ a linear programme over a box


def box_cost(z, c, lo, hi):
    return c @ z


def box_lower(z, c, lo, hi):
    return lo - z


def box_upper(z, c, lo, hi):
    return z - hi


def build_box(n=4, upper=True, **options):
    return OptLayer(
        [cp.Variable(n, name="z")],
        [cp.Parameter(n, name=name) for name in ("c", "lo", "hi")],
        box_cost,
        [box_lower, box_upper] if upper else [box_lower],
        **options,
    )


def sample_box(rng, *batch, n=4):
    lo = normal(rng, *batch, n)
    (c,) = until(lambda: (normal(rng, *batch, n),), lambda c: c.abs().amin(-1) > 0.1)
    return c, lo, lo + uniform(rng, *batch, n, low=0.5, high=1.5)


BOX = Problem(
    "box",
    build_box,
    sample_box,
    truth=lambda c, lo, hi: (torch.where(c > 0, lo, hi),),
    duals=lambda c, lo, hi: ((c.relu(), (-c).relu()), (), (c * torch.where(c > 0, lo, hi)).sum(-1)),
    form=Form(lambda z, c, lo, hi: c @ z, lambda z, c, lo, hi: torch.cat([lo - z, z - hi])),
    infeasible=lambda: (layer_of(BOX), (one(4), one(4), -one(4))),
    unbounded=lambda: (build_box(upper=False), (-one(4), one(4), one(4))),
)


# ------------------------------ a scalar, a matrix, a block of three dimensions


WEIGHT_W = torch.arange(1.0, 7.0, dtype=F64).reshape(2, 3) / 6
WEIGHT_B = torch.arange(1.0, 13.0, dtype=F64).reshape(2, 3, 2).flip(1) / 12


def blocks_objective(t, W, B, p, M, K):
    return cp.square(t - p) + cp.sum_squares(W - M) + cp.sum_squares(B - K)


def blocks_equality(t, W, B, p, M, K):
    return t + cp.sum(cp.multiply(WEIGHT_W.numpy(), W)) + cp.sum(cp.multiply(WEIGHT_B.numpy(), B)) - 1


def build_blocks(**options):
    variables = [
        cp.Variable(name="t"),
        cp.Variable((2, 3), name="W"),
        cp.Variable((2, 3, 2), name="B"),
    ]
    parameters = [
        cp.Parameter(name="p"),
        cp.Parameter((2, 3), name="M"),
        cp.Parameter((2, 3, 2), name="K"),
    ]
    return OptLayer(variables, parameters, blocks_objective, [], [blocks_equality], **options)


def blocks_truth(p, M, K):
    gap = p + (WEIGHT_W * M).sum((-1, -2)) + (WEIGHT_B * K).sum((-1, -2, -3)) - 1
    step = gap / (1 + WEIGHT_W.square().sum() + WEIGHT_B.square().sum())
    return (
        p - step,
        M - step[..., None, None] * WEIGHT_W,
        K - step[..., None, None, None] * WEIGHT_B,
    )


def blocks_duals(p, M, K):
    step = p - blocks_truth(p, M, K)[0]
    norm = 1 + WEIGHT_W.square().sum() + WEIGHT_B.square().sum()
    return (), (2 * step,), step.square() * norm


BLOCKS = Problem(
    "blocks",
    build_blocks,
    lambda rng, *batch: (
        normal(rng, *batch),
        normal(rng, *batch, 2, 3),
        normal(rng, *batch, 2, 3, 2),
    ),
    truth=blocks_truth,
    duals=blocks_duals,
)


# ------------------------------ the value and the multiplier of a plane


def plane_objective(z, x, a, b):
    return 0.5 * cp.sum_squares(z - x)


def plane_equality(z, x, a, b):
    return a @ z - b


def build_plane(n=4, objective=plane_objective, **options):
    return OptLayer(
        [cp.Variable(n, name="z")],
        [cp.Parameter(n, name="x"), cp.Parameter(n, name="a"), cp.Parameter(name="b")],
        objective,
        [],
        [plane_equality],
        **options,
    )


def plane_multiplier(x, a, b):
    return ((a * x).sum(-1) - b) / a.square().sum(-1)


PLANE = Problem(
    "plane",
    build_plane,
    lambda rng, *batch: (normal(rng, *batch, 4), normal(rng, *batch, 4), normal(rng, *batch)),
    truth=lambda x, a, b: (x - plane_multiplier(x, a, b).unsqueeze(-1) * a,),
    duals=lambda x, a, b: (
        (),
        (plane_multiplier(x, a, b),),
        0.5 * plane_multiplier(x, a, b).square() * a.square().sum(-1),
    ),
    form=Form(
        lambda z, x, a, b: 0.5 * (z - x).square().sum(),
        None,
        lambda z, x, a, b: (a @ z - b).reshape(1),
    ),
    infeasible=lambda: (layer_of(PLANE), (one(4), 0 * one(4), one())),
    unbounded=lambda: (
        build_plane(objective=lambda z, x, a, b: x @ z),
        (torch.tensor([1.0, -1, 0, 0], dtype=F64), one(4), one()),
    ),
)


# ------------------------------ a quadratic form whose matrix is a parameter


def quadform_objective(z, P, q, A, b):
    return 0.5 * cp.quad_form(z, P) + q @ z


def quadform_equality(z, P, q, A, b):
    return A @ z - b


def build_quadform(n=4, p=2, **options):
    parameters = [
        cp.Parameter((n, n), PSD=True, name="P"),
        cp.Parameter(n, name="q"),
        cp.Parameter((p, n), name="A"),
        cp.Parameter(p, name="b"),
    ]
    return OptLayer(
        [cp.Variable(n, name="z")],
        parameters,
        quadform_objective,
        [],
        [quadform_equality],
        **options,
    )


def sample_quadform(rng, *batch, n=4, p=2):
    half = normal(rng, *batch, n, n)
    return (
        half @ T(half) / n + 0.5 * torch.eye(n, dtype=F64),
        normal(rng, *batch, n),
        normal(rng, *batch, p, n),
        normal(rng, *batch, p),
    )


def quadform_solution(P, q, A, b):
    """Through the Schur complement: Cholesky and small inverses only."""
    PiA, Piq = torch.cholesky_solve(T(A), torch.linalg.cholesky(P)), mv(torch.linalg.inv(P), q)
    nu = -mv(torch.linalg.inv(A @ PiA), b + mv(A, Piq))
    return -Piq - mv(PiA, nu), nu


def quadform_duals(P, q, A, b):
    z, nu = quadform_solution(P, q, A, b)
    return (), (nu,), 0.5 * (z * mv(P, z)).sum(-1) + (q * z).sum(-1)


def infeasible_quadform():
    P, q, A, b = sample_quadform(torch.Generator().manual_seed(2))
    A[0], b[0] = 0, 1
    return layer_of(QUADFORM), (P, q, A, b)


def unbounded_quadform():
    P, q, A, b = sample_quadform(torch.Generator().manual_seed(2))
    return layer_of(QUADFORM), (0 * P, q, A, b)


QUADFORM = Problem(
    "quadform",
    build_quadform,
    sample_quadform,
    chart=lambda P, q, A, b: (*symmetric(P), q, A, b),
    truth=lambda *data: (quadform_solution(*data)[0],),
    duals=quadform_duals,
    infeasible=infeasible_quadform,
    unbounded=unbounded_quadform,
)


# ------------------------------ products of parameters: not DPP


def product_objective(z, s, M, q):
    return cp.sum_squares(z) + (s * (M @ q)) @ z


def product_upper(z, s, M, q):
    return z - 1


def build_product(n=3, objective=product_objective, inequalities=(product_upper,), **options):
    return OptLayer(
        [cp.Variable(n, name="z")],
        [cp.Parameter(name="s"), cp.Parameter((n, n), name="M"), cp.Parameter(n, name="q")],
        objective,
        list(inequalities),
        **options,
    )


def product_truth(s, M, q):
    return ((-s.unsqueeze(-1) * mv(M, q) / 2).clamp(max=1.0),)


def sample_product(rng, *batch, n=3):
    return until(
        lambda: (
            uniform(rng, *batch, low=0.5, high=2.0),
            normal(rng, *batch, n, n),
            normal(rng, *batch, n),
        ),
        lambda s, M, q: ((-s.unsqueeze(-1) * mv(M, q) / 2) - 1).abs().amin(-1) > 0.05,
    )


PRODUCT = Problem(
    "product",
    build_product,
    sample_product,
    truth=product_truth,
    infeasible=lambda: (
        build_product(inequalities=[product_upper, lambda z, s, M, q: s * (M @ q) + 1 - z]),
        (one(), torch.eye(3, dtype=F64), one(3)),
    ),
    unbounded=lambda: (
        build_product(objective=lambda z, s, M, q: (s * (M @ q)) @ z),
        (one(), torch.eye(3, dtype=F64), one(3)),
    ),
)


# ------------------------------ random smooth programmes with exponentials


def exponential_objective(z, C, d, q, B, c, t, G, h):
    return cp.sum(cp.exp(C @ z + d)) + 0.05 * cp.sum_squares(z) + q @ z


def exponential_inequality(z, C, d, q, B, c, t, G, h):
    return cp.log_sum_exp(B @ z + c) - t


def exponential_polytope(z, C, d, q, B, c, t, G, h):
    return G @ z - h


@functools.cache
def exponential_layer(n, k, m):
    shapes = {"C": (k, n), "d": k, "q": n, "B": (3, n), "c": 3, "t": (), "G": (m, n), "h": m}
    return OptLayer(
        [cp.Variable(n, name="z")],
        [cp.Parameter(shape, name=name) for name, shape in shapes.items()],
        exponential_objective,
        [exponential_inequality, exponential_polytope],
    )


def plant_exponential(rng, n, k, m, margin=0.2) -> Planted:
    """Sums of exponentials under a log-sum-exp bound and a polytope, around a chosen answer."""
    z, C, d = normal(rng, n) / 2, normal(rng, k, n) / 2, normal(rng, k) / 2
    B, c, G = normal(rng, 3, n), normal(rng, 3), normal(rng, m, n)
    active = torch.rand(1 + m, generator=rng) < 0.5
    active[n:] = False
    dual = torch.where(active, uniform(rng, 1 + m, low=margin, high=1 + margin), 0.0)
    slack = torch.where(active, 0.0, uniform(rng, 1 + m, low=margin, high=1 + margin))
    t, h = (B @ z + c).logsumexp(0) + slack[0], G @ z + slack[1:]
    q = -(T(C) @ (C @ z + d).exp() + 0.1 * z + dual[0] * T(B) @ (B @ z + c).softmax(0) + T(G) @ dual[1:])
    return Planted((C, d, q, B, c, t, G, h), z, dual, normal(rng, 0))


EXPONENTIAL_FORM = Form(
    lambda z, C, d, q, B, c, t, G, h: (C @ z + d).exp().sum() + 0.05 * z @ z + q @ z,
    lambda z, C, d, q, B, c, t, G, h: torch.cat([((B @ z + c).logsumexp(0) - t).reshape(1), G @ z - h]),
)

EXPONENTIAL = Problem(
    "exponential",
    lambda: exponential_layer(3, 4, 2),
    lambda rng, *batch: plant_exponential(rng, 3, 4, 2).parameters,
    form=EXPONENTIAL_FORM,
)


TABLE = [
    QP,
    SPARSEMAX,
    SOFTMAX,
    SIGMOID,
    RELU,
    BALL,
    LOGISTIC,
    COVARIANCE,
    TRANSPORT,
    TRANSPORT_REDUCED,
    BOX,
    BLOCKS,
    PLANE,
    QUADFORM,
    PRODUCT,
]
BY_NAME = {problem.name: problem for problem in TABLE}


def outputs_of(solution):
    """Every differentiable output of a solution, in one tuple."""
    return (*solution.primal, *solution.inequality_duals, *solution.equality_duals, solution.value)


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def leaves(tensors):
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def close(actual, expected, tolerance=1e-8, what=""):
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance,
        msg=(lambda text: f"{what}: {text}") if what else None,
    )


def all_of(*parts):
    """A regex that wants every part somewhere in the text."""
    return re.compile("".join(f"(?=.*(?:{part}))" for part in parts), re.DOTALL)
