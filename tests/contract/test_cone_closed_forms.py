"""Cone problems whose answer is a formula: value and gradient within 1e-8, whoever writes them down.

Each row of the table is one problem, written as a cp.Problem; its truth is a torch function, and the gradient
of the truth is what autograd makes of it. `test_the_formula_is_right` compares each with plain cvxpy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import OptLayer

from .cone_problems import cvxpy_solve, draw_symmetric, primal_of
from .problems import F64, as_tuple, close, leaves, normal, sample_marginals, sinkhorn, sparsemax, uniform

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------ formulas


def soft(x, t):
    return x.sign() * (x.abs() - t).relu()


def shrink(x, t):
    """The prox of t |.|: 0 inside the ball of radius t."""
    norm = x.norm(dim=-1, keepdim=True)
    inside = norm <= t
    safe = torch.where(inside, torch.ones_like(norm), norm)
    return torch.where(inside, torch.zeros_like(x), x * (1 - t / safe))


def to_ball(x, r):
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm <= r, x, x * (r / norm))


def to_l1_ball(x, r):
    inside = x.abs().sum(-1, keepdim=True) <= r
    return torch.where(inside, x, x.sign() * r * sparsemax(x.abs() / r))


def to_second_order_cone(x, t):
    norm, top = x.norm(dim=-1, keepdim=True), t.unsqueeze(-1)
    middle = (norm + top) / 2
    z = torch.where(norm <= top, x, torch.where(norm <= -top, torch.zeros_like(x), middle * x / norm))
    s = torch.where(norm <= top, top, torch.where(norm <= -top, torch.zeros_like(top), middle))
    return z, s.squeeze(-1)


def of_singular_values(function):
    def truth(X, t):
        U, S, V = torch.linalg.svd(X, full_matrices=False)
        return U @ (function(S, t).unsqueeze(-1) * V)

    return truth


def of_eigenvalues(function):
    def truth(X, t):
        values, Q = torch.linalg.eigh((X + X.mT) / 2)
        return Q @ (function(values, t).unsqueeze(-1) * Q.mT)

    return truth


def prox_of_max(x, t):
    return x - t * sparsemax(x / t)


def prox_of_largest_size(x, t):
    return x - to_l1_ball(x, t)


def prox_of_two_largest(x, t):
    """x less the projection of x onto { 0 <= w <= t, sum(w) = 2t }; one sample."""
    low, high = x.detach().min() - t.detach(), x.detach().max()
    for _ in range(100):
        middle = (low + high) / 2
        if (x - middle).clamp(min=0).minimum(t).sum() > 2 * t:
            low = middle
        else:
            high = middle
    free, full = (x - high > 1e-9) & (x - high < t - 1e-9), x - high >= t - 1e-9
    if not free.any():
        return x - t * full
    threshold = (x[free].sum() + full.sum() * t - 2 * t) / free.sum()
    return x - torch.where(free, x - threshold, t * full)


def isotonic(x):
    """Pool adjacent violators, with means of blocks as torch expressions; one sample."""
    blocks = [[value] for value in x]
    index = 0
    while index + 1 < len(blocks):
        left, right = (torch.stack(block).mean() for block in blocks[index : index + 2])
        if left > right:
            blocks[index : index + 2] = [blocks[index] + blocks[index + 1]]
            index = max(index - 1, 0)
        else:
            index += 1
    return torch.stack([torch.stack(block).mean() for block in blocks for _ in block])


# ------------------------------ the table


@dataclass(frozen=True)
class Known:
    name: str
    build: Callable[[], tuple]  # () -> problem, parameters, variables
    sample: Callable  # rng -> a list of samples, each a tuple of tensors
    truth: Callable  # one sample -> primal
    smooth: bool = False  # the smooth route solves it too

    def __repr__(self):
        return self.name

    @functools.cached_property
    def declared(self):
        return self.build()

    @functools.cached_property
    def layer(self):
        return OptLayer.from_problem(*self.declared, method="cone")

    def samples(self, seed=0):
        return self.sample(torch.Generator().manual_seed(seed))


def tensors(*values):
    return tuple(torch.as_tensor(value, dtype=F64) for value in values)


def prox(function, shape=4, symmetric=False, weight=1.0):
    """min |Z - X|²/2 + t function(Z)."""

    def build():
        options = {"symmetric": True} if symmetric else {}
        Z, X = cp.Variable(shape, name="Z", **options), cp.Parameter(shape, name="X", **options)
        t = cp.Parameter(nonneg=True, name="t")
        return (
            cp.Problem(cp.Minimize(weight * (cp.sum_squares(Z - X) / 2 + t * function(Z)))),
            [X, t],
            [Z],
        )

    return build


def to_set(constraints, shape=5, radius=False):
    """min |z - x|² over a set."""

    def build():
        z, x = cp.Variable(shape, name="z"), cp.Parameter(shape, name="x")
        r = [cp.Parameter(nonneg=True, name="r")] if radius else []
        return cp.Problem(cp.Minimize(cp.sum_squares(z - x)), constraints(z, *r)), [x, *r], [z]

    return build


def vectors_and(t, n=4, count=3, scale=1.5):
    return lambda rng: [(scale * normal(rng, n), tensors(t)[0]) for _ in range(count)]


def matrices_and(t, *shape, count=2):
    return lambda rng: [(normal(rng, *shape), tensors(t)[0]) for _ in range(count)]


def symmetric_and(t, k, count=2):
    return lambda rng: [(draw_symmetric(rng, k=k) * 1.5, tensors(t)[0]) for _ in range(count)]


def build_soc(n=50):
    z, s = cp.Variable(n, name="z"), cp.Variable(name="s")
    x, t = cp.Parameter(n, name="x"), cp.Parameter(name="t")
    objective = cp.sum_squares(z - x) + cp.square(s - t)
    return cp.Problem(cp.Minimize(objective), [cp.SOC(s, z)]), [x, t], [z, s]


def build_soc_norm(n=50):
    z, s = cp.Variable(n, name="z"), cp.Variable(name="s")
    x, t = cp.Parameter(n, name="x"), cp.Parameter(name="t")
    objective = cp.sum_squares(z - x) + cp.square(s - t)
    return cp.Problem(cp.Minimize(objective), [cp.norm2(z) <= s]), [x, t], [z, s]


def sample_soc(rng, n=50):
    return [(normal(rng, n), tensors(t)[0]) for t in (2.0, -1.0, 20.0, -20.0)]


def build_softmax(n=5):
    z, x = cp.Variable(n, name="z"), cp.Parameter(n, name="x")
    return cp.Problem(cp.Minimize(-x @ z - cp.sum(cp.entr(z))), [cp.sum(z) == 1]), [x], [z]


def build_sigmoid(n=5):
    z, x = cp.Variable(n, name="z"), cp.Parameter(n, name="x")
    return cp.Problem(cp.Minimize(-x @ z - cp.sum(cp.entr(z) + cp.entr(1 - z)))), [x], [z]


def build_barrier(n=4):
    """The prox of the negative logarithm."""
    z, x = cp.Variable(n, name="z"), cp.Parameter(n, name="x")
    t = cp.Parameter(nonneg=True, name="t")
    return cp.Problem(cp.Minimize(cp.sum_squares(z - x) / 2 - t * cp.sum(cp.log(z)))), [x, t], [z]


def build_covariance(k=3):
    X, S = cp.Variable((k, k), PSD=True, name="X"), cp.Parameter((k, k), symmetric=True, name="S")
    return cp.Problem(cp.Minimize(cp.trace(S @ X) - cp.log_det(X))), [S], [X]


def sample_covariance(rng, k=3):
    halves = [normal(rng, k, k) for _ in range(2)]
    return [(half @ half.T / k + torch.eye(k, dtype=F64) / 2,) for half in halves]


def build_transport(n=4, temperature=0.2):
    P, C = cp.Variable((n, n), name="P"), cp.Parameter((n, n), name="C")
    a, b = cp.Parameter(n, name="a"), cp.Parameter(n, name="b")
    objective = cp.sum(cp.multiply(C, P)) - temperature * cp.sum(cp.entr(P))
    constraints = [cp.sum(P, axis=1) == a, cp.sum(P, axis=0)[:-1] == b[:-1]]
    return cp.Problem(cp.Minimize(objective), constraints), [C, a, b], [P]


def build_cobb_douglas(alpha=0.3):
    """max x^a y^(1-a)  s.t.  p x + y <= w."""
    x, y, u = cp.Variable(name="x"), cp.Variable(name="y"), cp.Variable(name="u")
    p, w = cp.Parameter(nonneg=True, name="p"), cp.Parameter(name="w")
    constraints = [cp.PowCone3D(x, y, u, alpha), p * x + y <= w]
    return cp.Problem(cp.Maximize(u), constraints), [p, w], [x, y, u]


def cobb_douglas(p, w, alpha=0.3):
    x, y = alpha * w / p, (1 - alpha) * w
    return x, y, x**alpha * y ** (1 - alpha)


def build_power(p=3.5):
    """min |z|_p^p / p - x'z, through the three-dimensional power cone."""
    z, x = cp.Variable(4, name="z"), cp.Parameter(4, name="x")
    u = cp.Variable(4)
    cone = cp.PowCone3D(u, np.ones(4), z, np.full(4, 1 / p))  # u^(1/p) >= |z|
    return cp.Problem(cp.Minimize(cp.sum(u) / p - x @ z), [cone]), [x], [z]


def build_log_sum_exp():
    """min c'z  s.t.  log_sum_exp(z) <= t: z = log softmax shifted, in logs of c."""
    z, c, t = cp.Variable(4, name="z"), cp.Parameter(4, name="c"), cp.Parameter(name="t")
    return cp.Problem(cp.Maximize(c @ z), [cp.log_sum_exp(z) <= t]), [c, t], [z]


def build_psd(k, attribute):
    X = cp.Variable((k, k), **{attribute: True}, name="X")
    A = cp.Parameter((k, k), name="A")
    constraints = [] if attribute == "PSD" else [X >> 0]
    return cp.Problem(cp.Minimize(cp.sum_squares(X - A)), constraints), [A], [X]


POSITIVE = of_eigenvalues(lambda values, t: values.relu())

TABLE = [
    Known("soft_threshold", prox(cp.norm1), vectors_and(0.8), soft),
    Known("soft_threshold_by_abs", prox(lambda z: cp.sum(cp.abs(z))), vectors_and(0.8), soft),
    Known("small_objective", prox(cp.norm1, weight=1e-5), vectors_and(0.8), soft),
    Known("large_objective", prox(cp.norm1, weight=1e5), vectors_and(0.8), soft),
    Known(
        "prox_of_the_norm",
        prox(cp.norm2),
        lambda rng: [*vectors_and(0.8)(rng), (0.2 * normal(rng, 4), tensors(0.8)[0])],
        shrink,
    ),
    Known("prox_of_max", prox(cp.max), vectors_and(0.8), prox_of_max),
    Known("prox_of_norm_inf", prox(cp.norm_inf), vectors_and(0.8), prox_of_largest_size),
    Known(
        "prox_of_sum_largest",
        prox(lambda z: cp.sum_largest(z, 2)),
        # the second sample has no tie: inside, cvxpy's threshold variable is then not unique, but z is
        lambda rng: [
            (tensors([1.0, 0.7, 0.6, -0.4])[0], tensors(0.8)[0]),
            (tensors([3.0, 2, -1, -2])[0], tensors(0.8)[0]),
        ],
        prox_of_two_largest,
    ),
    Known("second_order_cone", build_soc, sample_soc, to_second_order_cone),
    Known("second_order_cone_by_norm", build_soc_norm, sample_soc, to_second_order_cone),
    Known(
        "ball",
        to_set(lambda z, r: [cp.norm2(z) <= r], radius=True),
        lambda rng: [(normal(rng, 5), tensors(r)[0]) for r in (1.0, 0.5, 9.0)],
        to_ball,
    ),
    Known(
        "simplex",
        to_set(lambda z: [z >= 0, cp.sum(z) == 1]),
        lambda rng: [(normal(rng, 5),)],
        sparsemax,
        True,
    ),
    Known(
        "l1_ball",
        to_set(lambda z, r: [cp.norm1(z) <= r], radius=True),
        lambda rng: [(normal(rng, 5), tensors(r)[0]) for r in (1.0, 2.0, 9.0)],
        to_l1_ball,
    ),
    Known(
        "cube",
        to_set(lambda z, r: [cp.norm_inf(z) <= r], radius=True),
        lambda rng: [(normal(rng, 5), tensors(0.6)[0])],
        lambda x, r: torch.minimum(torch.maximum(x, -r), r),
    ),
    Known("isotonic", to_set(lambda z: [cp.diff(z) >= 0]), lambda rng: [(normal(rng, 5),)], isotonic, True),
    Known("nuclear_prox", prox(cp.normNuc, (5, 4)), matrices_and(1.1, 5, 4), of_singular_values(soft)),
    Known(
        "prox_of_sigma_max",
        prox(cp.sigma_max, (3, 2)),
        matrices_and(0.7, 3, 2),
        of_singular_values(prox_of_largest_size),
    ),
    Known(
        "prox_of_lambda_max",
        prox(cp.lambda_max, (3, 3), symmetric=True),
        symmetric_and(0.9, 3),
        of_eigenvalues(prox_of_max),
    ),
    Known(
        "softmax",
        build_softmax,
        lambda rng: [(normal(rng, 5),), (8 * normal(rng, 5),)],
        lambda x: x.softmax(-1),
        True,
    ),
    Known("sigmoid", build_sigmoid, lambda rng: [(3 * normal(rng, 5),)], torch.sigmoid, True),
    Known(
        "barrier",
        build_barrier,
        vectors_and(0.3),
        lambda x, t: (x + (x.square() + 4 * t).sqrt()) / 2,
        True,
    ),
    Known("covariance", build_covariance, sample_covariance, torch.linalg.inv),
    Known(
        "transport",
        build_transport,
        lambda rng: [sample_marginals(rng, n=4)],
        lambda C, a, b: sinkhorn(C, a, b, steps=400)[0],
        True,
    ),
    Known(
        "cobb_douglas",
        build_cobb_douglas,
        lambda rng: [tuple(uniform(rng, 2, low=0.5, high=2)) for _ in range(2)],
        cobb_douglas,
    ),
    Known(
        "power",
        build_power,
        lambda rng: [(1.5 * normal(rng, 4),)],
        lambda x: x.sign() * x.abs() ** (1 / 2.5),
    ),
    Known(
        "log_sum_exp",
        build_log_sum_exp,
        lambda rng: [(uniform(rng, 4, low=0.2, high=1), normal(rng))],
        lambda c, t: t + c.log() - c.sum().log(),
        True,
    ),
]
BY_NAME = {known.name: known for known in TABLE}


@pytest.mark.parametrize("known", TABLE, ids=repr)
def test_the_formula_is_right(known):
    problem, parameters, variables = known.declared
    for sample in known.samples():
        cvxpy_solve(problem, parameters, sample)
        for variable, expected in zip(variables, as_tuple(known.truth(*sample)), strict=True):
            close(primal_of(variable), expected, 1e-4)


def compare(layer, known, sample):
    ours, theirs = leaves(sample), leaves(sample)
    answers, expected = as_tuple(layer(*ours)), as_tuple(known.truth(*theirs))
    for answer, truth in zip(answers, expected, strict=True):
        close(answer, truth, 1e-8, "value")
    rng = torch.Generator().manual_seed(1)
    for _ in range(2):
        weights = [normal(rng, *truth.shape) for truth in expected]
        mine = torch.autograd.grad(answers, ours, weights, retain_graph=True)
        right = torch.autograd.grad(
            expected, theirs, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for parameter, one, two in zip(known.declared[1], mine, right, strict=True):
            if parameter.attributes["symmetric"]:
                two = (two + two.mT) / 2
            close(one, two, 1e-8, f"gradient of {parameter.name()}")


@pytest.mark.parametrize("known", TABLE, ids=repr)
def test_value_and_gradient(known):
    for sample in known.samples():
        compare(known.layer, known, sample)


@pytest.mark.parametrize("known", [known for known in TABLE if known.smooth], ids=repr)
@pytest.mark.parametrize("method", ["smooth", "auto"])
def test_the_other_route_says_the_same(known, method):
    layer = OptLayer.from_problem(*known.declared, method=method)
    for sample in known.samples():
        compare(layer, known, sample)


@pytest.mark.parametrize("known", TABLE, ids=repr)
def test_a_batch_of_all_samples(known):
    """At and off the apex, inside and outside, in one batch."""
    samples = known.samples() + known.samples(1)
    data = [torch.stack(column) for column in zip(*samples, strict=True)]
    for row, answer in enumerate(zip(*as_tuple(known.layer(*data)), strict=True)):
        for mine, truth in zip(answer, as_tuple(known.truth(*samples[row])), strict=True):
            close(mine, truth)


# ------------------------------ the apex


@pytest.mark.parametrize("method", ["cone", "auto"])
def test_the_norm_at_its_apex(method):
    """Off, at, and at the very centre of the ball that is shrunk to 0; there the gradient is 0."""
    layer = OptLayer.from_problem(*BY_NAME["prox_of_the_norm"].declared, method=method)
    x = torch.tensor([[3.0, 0, 4, 0], [0.1, -0.2, 0.3, 0], [0, 0, 0, 0], [1, 1, 1, -1]], dtype=F64)
    x.requires_grad_()
    t = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y = layer(x, t)
    close(y, shrink(x, 1.0))
    close(y[1:3], torch.zeros(2, 4, dtype=F64), 1e-12)
    (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    close(gradient[1:3], torch.zeros(2, 4, dtype=F64), 1e-12)
    assert gradient[[0, 3]].abs().amax(-1).min() > 0.1
    (gradient,) = torch.autograd.grad(y[1:3].sum(), t)
    close(gradient, torch.zeros((), dtype=F64), 1e-12)


def test_the_norm_at_its_apex_in_forward_mode():
    layer = BY_NAME["prox_of_the_norm"].layer
    x = torch.tensor([0.1, -0.2, 0.3, 0], dtype=F64)
    t = torch.tensor(1.0, dtype=F64)
    close(torch.func.jacfwd(layer)(x, t), torch.zeros(4, 4, dtype=F64), 1e-12)
    x = torch.tensor([3.0, 0, 4, 0], dtype=F64)
    close(torch.func.jacfwd(layer)(x, t), torch.func.jacrev(shrink)(x, t))


def test_a_distance_at_its_apex():
    """min |z - c|²/2 + |z - x|: at the apex z = x, and the derivative there is the identity."""
    z, c, x = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - c) / 2 + cp.norm2(z - x)))
    layer = OptLayer.from_problem(problem, [c, x])
    c = torch.tensor([[0.2, 0.5, -0.3], [3, 0, 0]], dtype=F64)
    x = torch.zeros(2, 3, dtype=F64)
    close(layer(c, x), torch.tensor([[0.0, 0, 0], [2, 0, 0]], dtype=F64))
    jacobian = torch.func.vmap(torch.func.jacrev(layer, argnums=(0, 1)))(c, x)
    close(jacobian[0][0], torch.zeros(3, 3, dtype=F64), 1e-12)
    close(jacobian[1][0], torch.eye(3, dtype=F64), 1e-12)
    close(jacobian[0][1], torch.diag(torch.tensor([1, 2 / 3, 2 / 3], dtype=F64)))
    close(jacobian[1][1], torch.diag(torch.tensor([0, 1 / 3, 1 / 3], dtype=F64)))


# ------------------------------ the semidefinite cone, by divided differences


@functools.cache
def psd_layer(k, attribute):
    return OptLayer.from_problem(*build_psd(k, attribute))


def divided_differences(values):
    gap = values[:, None] - values[None, :]
    same = gap.abs() < 1e-12
    rise = values.relu()[:, None] - values.relu()[None, :]
    return torch.where(same, (values > 0).double()[:, None], rise / torch.where(same, 1.0, gap))


def projection_derivative(A, W):
    values, Q = torch.linalg.eigh(A)
    return Q @ (divided_differences(values) * (Q.mT @ W @ Q)) @ Q.mT


def test_divided_differences_are_right(rng):
    A, W = draw_symmetric(rng, k=6), draw_symmetric(rng, k=6)
    step = 1e-6
    both = [POSITIVE(A + sign * step * W, None) for sign in (1, -1)]
    close(projection_derivative(A, W), (both[0] - both[1]) / (2 * step), 1e-7)


@pytest.mark.parametrize("attribute", ["PSD", "symmetric"])
@pytest.mark.parametrize("k", [2, 3, 5, 10, 20])
def test_projection_onto_semidefinite_matrices(k, attribute, rng):
    layer = psd_layer(k, attribute)
    A, W = draw_symmetric(rng, k=k), draw_symmetric(rng, k=k)
    free = A.clone().requires_grad_()
    X = layer(free)
    close(X, POSITIVE(A, None))
    close(X, X.mT, 1e-14)
    (gradient,) = torch.autograd.grad(X, free, W)
    close(gradient, projection_derivative(A, W))
    _, tangent = torch.func.jvp(layer, (A,), (W,))
    close(tangent, projection_derivative(A, W))


@pytest.mark.parametrize("attribute", ["PSD", "symmetric"])
def test_projection_with_repeated_eigenvalues(attribute, rng):
    Q = torch.linalg.qr(normal(rng, 4, 4)).Q
    A = (Q * torch.tensor([2.0, 2, -1, -1], dtype=F64)) @ Q.mT
    A, W = (A + A.mT) / 2, draw_symmetric(rng, k=4)
    free = A.clone().requires_grad_()
    X = psd_layer(4, attribute)(free)
    (gradient,) = torch.autograd.grad(X, free, W)
    close(X, POSITIVE(A, None))
    close(gradient, projection_derivative(A, W))


@pytest.mark.parametrize("sign", [1, -1])
def test_projection_of_a_definite_matrix(sign, rng):
    """Inside the cone, and inside its polar: the identity, and 0."""
    half = normal(rng, 3, 3)
    A = sign * (half @ half.T + torch.eye(3, dtype=F64))
    free = A.clone().requires_grad_()
    X = psd_layer(3, "PSD")(free)
    close(X, A if sign > 0 else 0 * A)
    W = draw_symmetric(rng, k=3)
    (gradient,) = torch.autograd.grad(X, free, W)
    close(gradient, W if sign > 0 else 0 * W)


def test_second_derivative_of_the_projection(rng):
    A = draw_symmetric(rng, k=3)
    D = draw_symmetric(rng, 2, k=3)
    weights = normal(rng, 3, 3)
    t = torch.zeros(2, dtype=F64, requires_grad=True)
    layer = psd_layer(3, "PSD")
    assert torch.autograd.gradgradcheck(
        lambda t: (weights * layer(A + torch.tensordot(t, D, 1))).sum(), (t,), check_fwd_over_rev=True
    )


# ------------------------------ second derivatives of formulas


@pytest.mark.parametrize("name", ["prox_of_the_norm", "softmax", "barrier", "nuclear_prox", "log_sum_exp"])
def test_hessian_of_a_formula(name):
    known = BY_NAME[name]
    sample = known.samples()[0]
    x, rest = sample[0], sample[1:]
    weights = normal(torch.Generator().manual_seed(2), *x.shape)
    ours = torch.func.hessian(lambda x: (weights * known.layer(x, *rest)).sum())(x)
    truth = torch.autograd.functional.hessian(lambda x: (weights * known.truth(x, *rest)).sum(), x)
    close(ours, truth, 1e-7)


# ------------------------------ entropic transport


def test_transport_by_both_routes(rng):
    """Value, multipliers and their derivatives agree; and with Sinkhorn's iteration."""
    problem, parameters, variables = build_transport()
    layers = [OptLayer.from_problem(problem, parameters, variables, method=m) for m in ("cone", "smooth")]
    samples = [sample_marginals(rng, n=4) for _ in range(3)]
    results = []
    for layer in layers:
        data = [torch.stack(column).requires_grad_() for column in zip(*samples, strict=True)]
        solution = layer.solve(*data)
        outputs = [*solution.primal, *(solution.dual(c) for c in problem.constraints), solution.value]
        weights = torch.Generator().manual_seed(4)
        gradients = torch.autograd.grad(outputs, data, [normal(weights, *output.shape) for output in outputs])
        results.append([*outputs, *gradients])
    for one, two in zip(*results, strict=True):
        close(one, two)
    for row, sample in enumerate(samples):
        close(results[0][0][row], sinkhorn(*sample)[0])
