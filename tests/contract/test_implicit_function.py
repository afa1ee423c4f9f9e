"""`optlayer.implicit`: the user's own equations, differentiated in every mode.

Six problems of daily life, each with a second road to the same answer: a closed form in plain torch, or
two Newton steps taken from the root, which carry every derivative to third order and share nothing with
the implicit rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from optlayer import InputError, OptLayerError, equations, implicit

from .problems import F64, all_of, close, leaves, normal

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------- the problems


@dataclass(frozen=True)
class Problem:
    name: str
    residual: Callable  # (u, *data) -> F
    root: Callable  # (*data) -> u, numbers
    data: Callable  # rng -> data of one sample
    truth: Callable | None = None  # (*data) -> u, differentiable; two Newton steps where there is none

    def solved(self, *data):
        return implicit(self.residual, self.root(*(d.detach() for d in data)), *data)

    def other_road(self, *data):
        if self.truth is not None:
            return self.truth(*data)
        return newton(self.residual, self.root(*(d.detach() for d in data)).detach(), *data, steps=2)

    def batch(self, rng, size):
        return tuple(torch.stack(column) for column in zip(*(self.data(rng) for _ in range(size))))

    def __repr__(self):
        return self.name


def newton(residual, u, *data, steps):
    """Plain Newton steps; differentiable, as autograd sees them."""
    for _ in range(steps):
        J = jacrev(residual)(u, *data).reshape(u.numel(), u.numel())
        step = torch.linalg.inv(J) @ residual(u, *data).reshape(-1)
        u = u - step.reshape(u.shape)
    return u


def symmetric(A):
    return 0.5 * (A + A.mT)


def eigenpair(A):
    """The largest eigenvalue behind its eigenvector, whose largest entry is positive."""
    values, vectors = torch.linalg.eigh(symmetric(A))
    v = vectors[:, -1]
    sign = torch.where(v.sum() > 0, 1.0, -1.0)
    return torch.cat([sign * v, values[-1:]])


def eigen_residual(u, A):
    v, value = u[:-1], u[-1]
    return torch.cat([symmetric(A) @ v - value * v, (0.5 * (1 - v @ v))[None]])


def influence(r, delta):
    """ψ, the derivative of the pseudo-Huber loss δ²(√(1 + (r/δ)²) - 1)."""
    return r / (1 + (r / delta) ** 2).sqrt()


def robust_mean_residual(u, points, delta):
    return influence(u - points, delta).sum(0)


def robust_mean(points, delta):
    """Reweighting, an iteration of its own, until nothing moves."""
    u = points.mean(0)
    for _ in range(300):
        weights = 1 / (1 + ((u - points) / delta) ** 2).sqrt()
        u = (weights * points).sum(0) / weights.sum(0)
    return newton(robust_mean_residual, u, points, delta, steps=2)


def game_residual(u, P, Q, C, D, p, q):
    """Each player is at the minimum of a cost of their own, the other's move given."""

    def first(x, y):
        return 0.5 * x @ P @ x + x @ C @ y + p @ x

    def second(y, x):
        return 0.5 * y @ Q @ y + y @ D @ x + q @ y

    x, y = u[:2], u[2:]
    return torch.cat([grad(first)(x, y), grad(second)(y, x)])


def equilibrium(P, Q, C, D, p, q):
    M = torch.cat([torch.cat([symmetric(P), C], 1), torch.cat([D, symmetric(Q)], 1)])
    return -torch.linalg.inv(M) @ torch.cat([p, q])


def game_data(rng):
    eye = 3 * torch.eye(2, dtype=F64)
    return (*(eye + 0.3 * normal(rng, 2, 2) for _ in range(2)), *(normal(rng, 2, 2) for _ in range(2)),
            normal(rng, 2), normal(rng, 2))  # fmt: skip


def layer_residual(u, W, x):
    return u - torch.tanh(W @ u + x)


def fixed_point(W, x):
    u = torch.zeros_like(x)
    for _ in range(100):
        u = torch.tanh(W @ u + x)
    return u


def matrix_root(A):
    values, vectors = torch.linalg.eigh(symmetric(A))
    return vectors @ torch.diag(values.sqrt()) @ vectors.mT


def positive_definite(rng):
    B = normal(rng, 3, 3)
    return (B @ B.mT + torch.eye(3, dtype=F64),)


def three_real_roots(p, q):
    """Viète: the roots of t³ + pt + q where there are three."""
    angle = torch.arccos(1.5 * q / p * (-3 / p).sqrt()) / 3
    thirds = 2 * torch.pi / 3 * torch.arange(3, dtype=p.dtype)
    return 2 * (-p / 3).sqrt() * torch.cos(angle - thirds)


EIGENVECTOR = Problem("eigenvector", eigen_residual, eigenpair, lambda rng: (normal(rng, 4, 4),), eigenpair)
ROBUST_MEAN = Problem(
    "robust mean",
    robust_mean_residual,
    robust_mean,
    lambda rng: (3 * normal(rng, 5, 2), torch.tensor([0.7, 1.3], dtype=F64)),
)
GAME = Problem("game", game_residual, equilibrium, game_data, equilibrium)
LAYER = Problem(
    "tanh layer", layer_residual, fixed_point, lambda rng: (0.3 * normal(rng, 3, 3), normal(rng, 3))
)
MATRIX_ROOT = Problem(
    "matrix root", lambda u, A: u @ u - symmetric(A), matrix_root, positive_definite, matrix_root
)
CUBIC = Problem(
    "cubic",
    lambda u, p, q: u**3 + p * u + q,
    three_real_roots,
    lambda rng: (-4 - normal(rng).abs(), normal(rng).clamp(-2, 2)),
    three_real_roots,
)
PROBLEMS = [EIGENVECTOR, ROBUST_MEAN, GAME, LAYER, MATRIX_ROOT, CUBIC]

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=repr)


# --------------------------------------------------------------------------------- every derivative mode


@every_problem
def test_the_value_is_the_solution_itself(problem, rng):
    data = problem.data(rng)
    u = problem.root(*data)
    assert torch.equal(implicit(problem.residual, u, *data), u)
    close(problem.residual(u, *data), torch.zeros_like(u), 1e-12)


@every_problem
def test_first_derivatives(problem, rng):
    assert gradcheck(problem.solved, leaves(problem.data(rng)), check_forward_ad=True)


@every_problem
def test_second_derivatives(problem, rng):
    assert gradgradcheck(problem.solved, leaves(problem.data(rng)))


FIRST, SECOND = jacrev, lambda f: jacrev(jacrev(f))
NESTS = {
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "jacrev_jacrev": lambda f: jacrev(jacrev(f)),
    "jacfwd_jacrev": lambda f: jacfwd(jacrev(f)),
    "jacrev_jacfwd": lambda f: jacrev(jacfwd(f)),
}


def plainly(nest):
    """The same derivative by reverse mode alone: torch's eigh gives NaN in reverse over forward."""
    return FIRST if nest in (jacrev, jacfwd) else SECOND


@every_problem
@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS.keys())
def test_in_every_nesting(problem, nest, rng):
    data = problem.data(rng)
    expected = plainly(nest)(problem.other_road)(*data)
    assert expected.abs().max() > 1e-3
    close(nest(problem.solved)(*data), expected)


@every_problem
@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS.keys())
def test_in_every_nesting_under_vmap(problem, nest, rng):
    data = problem.batch(rng, 3)
    close(vmap(nest(problem.solved))(*data), vmap(plainly(nest)(problem.other_road))(*data))


@every_problem
def test_transforms_around_a_vmap(problem, rng):
    data = problem.batch(rng, 2)
    for nest in (jacrev, jacfwd, lambda f: jacfwd(jacrev(f))):
        close(nest(vmap(problem.solved))(*data), nest(vmap(problem.other_road))(*data))


@pytest.mark.parametrize("problem", [CUBIC, LAYER], ids=repr)
def test_third_derivatives(problem, rng):
    data = problem.data(rng)
    for nest in (
        lambda f: jacrev(jacrev(jacrev(f, 1), 1), 1),
        lambda f: jacfwd(jacrev(jacrev(f, 1), 1), 1),
        lambda f: jacrev(jacfwd(jacrev(f, 1), 1), 1),
    ):
        expected = nest(problem.other_road)(*data)
        assert expected.abs().max() > 1e-3
        close(nest(problem.solved)(*data), expected)


@every_problem
def test_forward_over_forward_raises(problem, rng):
    data = problem.data(rng)
    with pytest.raises(NotImplementedError, match=r"forward-over-forward.*jacfwd\(jacrev"):
        jacfwd(jacfwd(problem.solved))(*data)
    with pytest.raises(NotImplementedError, match="forward-over-forward"):
        vmap(jacfwd(jacfwd(problem.solved)))(*problem.batch(rng, 2))


@every_problem
def test_a_batch_is_its_samples(problem, rng):
    data = leaves(problem.batch(rng, 3))
    batched = vmap(problem.solved)(*data)
    gradients = torch.autograd.grad(batched.square().sum(), data)
    for i in range(3):
        sample = leaves(d[i] for d in data)
        alone = problem.solved(*sample)
        close(batched[i], alone, 1e-12)
        for ours, theirs in zip(gradients, torch.autograd.grad(alone.square().sum(), sample), strict=True):
            close(ours[i], theirs, 1e-11)


def test_shared_data_and_other_axes(rng):
    W, x = 0.3 * normal(rng, 3, 3), normal(rng, 3, 2, 4)
    ours = vmap(vmap(jacrev(LAYER.solved, 0), (None, 0)), (None, 2))(W, x.movedim(0, 1))
    theirs = vmap(vmap(jacrev(LAYER.other_road, 0), (None, 0)), (None, 2))(W, x.movedim(0, 1))
    assert ours.shape == (4, 2, 3, 3, 3)
    close(ours, theirs)


def test_several_solutions_of_the_same_equations(rng):
    """vmap over the solution alone: each root has its own derivative."""
    p, q = CUBIC.data(rng)
    roots = three_real_roots(p, q)
    ours = vmap(lambda root: grad(lambda q: implicit(CUBIC.residual, root, p, q))(q))(roots)
    close(ours, -1 / (3 * roots**2 + p), 1e-12)


def test_autograd_s_own_doors(rng):
    data = GAME.data(rng)
    expected = jacrev(equilibrium, tuple(range(6)))(*data)
    for options in ({}, {"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}):
        close(torch.autograd.functional.jacobian(GAME.solved, data, **options), expected)
    with torch.autograd.forward_ad.dual_level():
        p = torch.autograd.forward_ad.make_dual(data[4], torch.ones(2, dtype=F64))
        value, tangent = torch.autograd.forward_ad.unpack_dual(GAME.solved(*data[:4], p, data[5]))
    close(value, equilibrium(*data))
    close(tangent, expected[4].sum(1))


def test_only_what_needs_a_gradient_gets_one(rng):
    W, x = LAYER.data(rng)
    W.requires_grad_()
    LAYER.solved(W, x).sum().backward()
    close(W.grad, grad(lambda W: LAYER.other_road(W, x).sum())(W.detach()))
    assert x.grad is None
    assert not LAYER.solved(W.detach(), x).requires_grad
    with torch.no_grad():
        assert not LAYER.solved(W, x).requires_grad


def test_the_derivative_is_linear_in_the_cotangent(rng):
    """No threshold, no overflow."""
    data = leaves(GAME.data(rng))
    w = normal(rng, 4)
    expected = torch.autograd.grad(GAME.other_road(*data), data, w)
    for scale in (1e-300, 1e-12, 1e12, 1e200):
        ours = torch.autograd.grad(GAME.solved(*data), data, scale * w)
        for a, b in zip(ours, expected, strict=True):
            close(a / scale, b)


# ---------------------------------------------------------------------------- each against its textbook


def test_eigenvector_derivative(rng):
    """dv = (μI - S)⁺ dS v,  dμ = vᵀ dS v."""
    (A,) = EIGENVECTOR.data(rng)
    dS = symmetric(normal(rng, 4, 4))
    u, du = jvp(EIGENVECTOR.solved, (A,), (dS,))
    v, value = u[:-1], u[-1]
    resolvent = torch.linalg.pinv(value * torch.eye(4, dtype=F64) - symmetric(A))
    close(du[:-1], resolvent @ dS @ v)
    close(du[-1], v @ dS @ v)
    close(du[:-1] @ v, torch.zeros((), dtype=F64), 1e-12)  # |v| = 1 stays


def test_any_eigenvector_not_only_the_last(rng):
    (A,) = leaves(EIGENVECTOR.data(rng))
    w = normal(rng, 4)
    values, vectors = torch.linalg.eigh(symmetric(A))
    for i in range(4):
        (theirs,) = torch.autograd.grad((vectors[:, i] @ w).square(), A, retain_graph=True)
        for sign in (1, -1):  # either is a solution; the square does not see which
            u = torch.cat([sign * vectors[:, i], values[i : i + 1]])
            (ours,) = torch.autograd.grad((implicit(eigen_residual, u, A)[:-1] @ w).square(), A)
            close(ours, theirs)


def test_an_eigenvector_beside_equal_eigenvalues():
    """It has a derivative although the others have none; through eigh it would be NaN."""
    A = torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=F64))
    dA = torch.arange(9, dtype=F64).reshape(3, 3)
    u, du = jvp(EIGENVECTOR.solved, (A,), (dA,))
    close(u, torch.tensor([0.0, 0.0, 1.0, 3.0], dtype=F64), 1e-14)
    close(du, torch.tensor([2.0, 3.0, 0.0, 8.0], dtype=F64), 1e-12)  # (dA + dAᵀ)[:2, 2] / 2 / (3 - 1)


def test_robust_mean_derivative(rng):
    """∂u/∂x_i = ψ′(u - x_i) / Σ ψ′, the influence of a point."""
    points, delta = ROBUST_MEAN.data(rng)
    J = jacrev(ROBUST_MEAN.solved)(points, delta)
    u = robust_mean(points, delta)
    slope = (1 + ((u - points) / delta) ** 2) ** -1.5
    share = slope / slope.sum(0)
    close(J, torch.einsum("ij,jk->kij", share, torch.eye(2, dtype=F64)), 1e-12)
    close(share.sum(0), torch.ones(2, dtype=F64), 1e-12)  # all points moved are the mean moved


def test_robust_mean_against_finite_differences(rng):
    points, delta = ROBUST_MEAN.data(rng)
    direction, h = normal(rng, 5, 2), 1e-5
    ahead, here, behind = (robust_mean(points + step * direction, delta) for step in (h, 0, -h))
    _, first = jvp(lambda x: ROBUST_MEAN.solved(x, delta), (points,), (direction,))
    close(first, (ahead - behind) / (2 * h), 1e-8)
    second = torch.einsum("kabcd,ab,cd->k", hessian(ROBUST_MEAN.solved)(points, delta), direction, direction)
    close(second, (ahead - 2 * here + behind) / h**2, 1e-4)


def test_a_kinked_residual_off_its_kinks(rng):
    """Huber's ψ is a clamp: clipped points have no influence, the others share it equally."""
    points = torch.tensor([-9.0, -0.4, 0.1, 0.5, 12.0, 0.3], dtype=F64)
    u = points[[1, 2, 3, 5]].mean()  # one clipped on either side: they cancel
    J = jacrev(lambda x: implicit(lambda u, x: (u - x).clamp(-1, 1).sum(), u, x))(points)
    close(J, torch.tensor([0, 0.25, 0.25, 0.25, 0, 0.25], dtype=F64), 1e-12)


def test_equilibrium_derivative(rng):
    """M du = -(dM u + dm): M is not symmetric, and Mᵀ would give something else."""
    P, Q, C, D, p, q = GAME.data(rng)
    M = torch.cat([torch.cat([symmetric(P), C], 1), torch.cat([D, symmetric(Q)], 1)])
    assert (M - M.mT).abs().max() > 0.1
    J = torch.cat(jacrev(GAME.solved, (4, 5))(P, Q, C, D, p, q), 1)
    close(J, -torch.linalg.inv(M), 1e-12)
    dC = normal(rng, 2, 2)
    _, du = jvp(lambda C: GAME.solved(P, Q, C, D, p, q), (C,), (dC,))
    y = equilibrium(P, Q, C, D, p, q)[2:]
    close(du, -torch.linalg.inv(M) @ torch.cat([dC @ y, torch.zeros(2, dtype=F64)]), 1e-12)


def test_fixed_point_against_the_unrolled_iteration(rng):
    data = leaves(LAYER.data(rng))
    ours = torch.autograd.grad(LAYER.solved(*data).sin().sum(), data)
    theirs = torch.autograd.grad(fixed_point(*data).sin().sum(), data)  # through a hundred layers
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-10)


def test_fixed_point_of_a_module(rng):
    """The weights of a module are data like any other."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 3).double()
    names = [name for name, _ in module.named_parameters()]

    def residual(u, x, *weights):
        inner = functional_call(module, dict(zip(names, weights)), (0.3 * u,))
        return u - torch.tanh(inner + x)

    x = normal(rng, 5, 3)
    u = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(100):
            u = torch.tanh(module(0.3 * u) + x)
    solve = vmap(lambda u, x, *weights: implicit(residual, u, x, *weights), (0, 0, None, None))
    solve(u, x, *module.parameters()).square().sum().backward()

    ours = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    for _ in range(100):
        u = torch.tanh(module(0.3 * u) + x)
    u.square().sum().backward()
    for a, p in zip(ours, module.parameters(), strict=True):
        close(a, p.grad, 1e-10)


def test_matrix_root_derivative(rng):
    """X dX + dX X = dA, a Lyapunov equation."""
    (A,) = MATRIX_ROOT.data(rng)
    dA = symmetric(normal(rng, 3, 3))
    X, dX = jvp(MATRIX_ROOT.solved, (A,), (dA,))
    eye = torch.eye(3, dtype=F64)
    lyapunov = torch.kron(X, eye) + torch.kron(eye, X.mT.contiguous())
    close(dX, (torch.linalg.inv(lyapunov) @ dA.reshape(-1)).reshape(3, 3), 1e-12)
    close(X @ dX + dX @ X, dA, 1e-12)


def test_cubic_derivative(rng):
    """dt/dp = -t / (3t² + p),  dt/dq = -1 / (3t² + p)."""
    p, q = CUBIC.data(rng)
    t = three_real_roots(p, q)
    by_p, by_q = jacrev(CUBIC.solved, (0, 1))(p, q)
    close(by_p, -t / (3 * t**2 + p), 1e-12)
    close(by_q, -1 / (3 * t**2 + p), 1e-12)


# ----------------------------------------------------------------------------------- shapes and data types


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 2)], ids=str)
def test_any_shape(shape, rng):
    a = 1 + normal(rng, *shape).square()
    solved = lambda a: implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a)
    assert solved(a).shape == shape
    close(jacrev(solved)(a), jacrev(torch.sqrt)(a), 1e-12)
    close(jacfwd(solved)(a), jacrev(torch.sqrt)(a), 1e-12)


def test_the_equations_may_have_another_shape_than_the_unknowns(rng):
    a = 1 + normal(rng, 2, 3).square()
    solved = lambda a: implicit(lambda u, a: (u**2 - a).mT.reshape(6, 1), a.detach().sqrt(), a)
    close(jacrev(solved)(a), jacrev(torch.sqrt)(a), 1e-12)


def test_views_and_the_same_tensor_twice(rng):
    def solved(a):
        return implicit(lambda u, a, b: u**2 - a * b, a.detach().mT.abs(), a.mT, a.mT)

    (a,) = leaves((1 + normal(rng, 2, 3).square(),))
    assert gradcheck(solved, a, check_forward_ad=True)
    assert gradgradcheck(solved, a)


@every_problem
def test_single_precision(problem, rng):
    double = problem.data(rng)
    u = problem.root(*double)
    single = leaves(d.float() for d in double)
    ours = implicit(problem.residual, problem.root(*(d.detach() for d in single)), *single)
    assert ours.dtype == torch.float32
    close(ours.double(), u, 1e-4)
    gradients = torch.autograd.grad(ours.sum(), single)
    expected = torch.autograd.grad(problem.other_road(*(leaf := leaves(double))).sum(), leaf)
    for a, b in zip(gradients, expected, strict=True):
        assert a.dtype == torch.float32
        close(a.double(), b, 1e-3)
    tangent = jacfwd(problem.solved)(*(d.detach() for d in single))
    assert tangent.dtype == torch.float32
    assert hessian(problem.solved)(*(d.detach() for d in single)).dtype == torch.float32


def test_gradients_keep_the_type_of_their_data():
    solution = torch.tensor([2.0, 3.0])
    for data, u in ((F64, torch.float32), (torch.float32, F64)):
        a = torch.tensor([4.0, 9.0], dtype=data, requires_grad=True)
        root = implicit(lambda u, a: u**2 - a, solution.to(u), a)
        (gradient,) = torch.autograd.grad(root.sum(), a)
        assert (root.dtype, gradient.dtype) == (u, data)
        close(gradient, 0.5 / solution.to(data), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_roots_are_as_good_as_their_type_allows(dtype):
    a = torch.tensor([2.0, 3.0], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a).sum(), a)
    assert gradient.dtype == dtype
    close(gradient.double(), 0.5 / a.detach().double().sqrt(), 2e-2)


def test_autocast_is_off_inside():
    """As in a layer: an equation is solved and differentiated in the type of its tensors."""
    W, x = 0.3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.2, 0.3])
    (x,) = leaves((x,))
    u = fixed_point(W, x.detach())
    (expected,) = torch.autograd.grad(implicit(layer_residual, u, W, x).sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        (actual,) = torch.autograd.grad(implicit(layer_residual, u, W, x).sum(), x)
    close(actual, expected, 1e-6)


WITH_INTEGERS = {**NESTS, "double_backward": lambda f: lambda a, k: double_backward(f, a, k)}


def double_backward(f, a, k):
    a = a.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(a, k).square().sum(), a, create_graph=True)
    return torch.autograd.grad(first.square().sum(), a)[0]


@pytest.mark.parametrize("nest", WITH_INTEGERS.values(), ids=WITH_INTEGERS.keys())
@pytest.mark.parametrize(
    "k", [torch.tensor([1, 2, 3]), torch.tensor([True, True, True])], ids=["integers", "booleans"]
)
def test_integers_and_booleans_are_data_without_a_derivative(nest, k):
    a = torch.tensor([2.0, 3.0, 5.0], dtype=F64)
    solved = lambda a, k: implicit(lambda u, a, k: u**3 - a * k, (a.detach() * k) ** (1 / 3), a, k)
    close(nest(solved)(a, k), nest(lambda a, k: (a * k) ** (1 / 3))(a, k))


def test_nothing_to_solve_for():
    a = torch.ones(2, dtype=F64, requires_grad=True)
    root = implicit(lambda u, a: u * a[0], torch.zeros(0, dtype=F64), a)
    assert root.shape == (0,)


def test_an_empty_batch():
    a = torch.zeros(0, 3, dtype=F64)
    solved = lambda a: implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a)
    assert vmap(solved)(a).shape == (0, 3)
    assert vmap(jacrev(solved))(a).shape == (0, 3, 3)


# ------------------------------------------------------------------------- scales and singular Jacobians


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e12, 1e200])
def test_the_units_of_the_equations_do_not_matter(scale, rng):
    a = 1 + normal(rng, 3).square()
    mixed = torch.tensor([1.0, scale, scale**0.5], dtype=F64)
    solved = lambda a: implicit(lambda u, a: mixed * (u**2 - a), a.detach().sqrt(), a)
    for nest in (jacrev, jacfwd, lambda f: jacfwd(jacrev(f))):
        close(nest(solved)(a), nest(torch.sqrt)(a), 1e-12)


@pytest.mark.parametrize("smallest", [1e-4, 1e-8, 1e-11])
def test_an_ill_conditioned_jacobian_is_not_a_singular_one(smallest, rng):
    left, right = (torch.linalg.qr(normal(rng, 3, 3)).Q for _ in range(2))
    a = normal(rng, 3)
    M = left @ torch.diag(torch.tensor([1.0, 1.0, smallest], dtype=F64)) @ right
    inverse = torch.linalg.inv(M)
    J = jacrev(lambda a: implicit(lambda u, a: M @ u - a, inverse @ a.detach(), a))(a)
    assert (J - inverse).norm() <= 1e-15 / smallest * inverse.norm()


def test_minimum_norm_where_the_jacobian_is_singular(rng):
    """M u = N a with M of rank two: du = M⁺ N da, the same in both modes."""
    M = normal(rng, 4, 2) @ normal(rng, 2, 4)
    N = M @ normal(rng, 4, 3)
    a = normal(rng, 3)
    expected = torch.linalg.pinv(M, rtol=1e-10) @ N
    solved = lambda a: implicit(lambda u, a: M @ u - N @ a, expected @ a.detach(), a)
    for nest in (jacrev, jacfwd):
        close(nest(solved)(a), expected, 1e-11)
        close(vmap(nest(solved))(torch.stack([a, -a]))[1], expected, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_minimum_norm_where_single_precision_hides_that_the_jacobian_is_singular(dtype, rng):
    """c (w·u - a) = 0: the rows of cwᵀ, rounded to float32, are independent in float64."""
    c, w = ((1 + normal(rng, 4).abs()).to(dtype) for _ in range(2))
    expected = w.double() / w.double().square().sum()
    a = torch.tensor(1.3, dtype=dtype)
    u = (a.double() * expected).to(dtype)
    solved = lambda a: implicit(lambda u, a: c * ((w * u).sum() - a), u, a)
    for nest in (jacrev, jacfwd):
        close(nest(solved)(a).double(), expected, 16 * torch.finfo(dtype).eps)


def test_a_regular_jacobian_of_single_precision_is_not_called_singular(rng):
    M = torch.diag(torch.tensor([1.0, 1e-1, 1e-2, 1e-3])) + 1e-5 * normal(rng, 4, 4).float()
    inverse = torch.linalg.inv(M.double())
    J = jacrev(lambda a: implicit(lambda u, a: M @ u - a, torch.zeros(4), a))(torch.zeros(4))
    assert (J.double() - inverse).norm() <= 1e-3 * inverse.norm()


def test_least_squares_where_the_equations_contradict_the_change(rng):
    """J = diag(2u, 0): what the second equation asks of u cannot be had, so it is not followed."""
    a = torch.tensor([4.0, 0.0], dtype=F64)
    u = torch.tensor([2.0, 1.0], dtype=F64)
    residual = lambda u, a: torch.stack([u[0] ** 2 - a[0], a[1]])
    expected = torch.tensor([[0.25, 0.0], [0.0, 0.0]], dtype=F64)
    close(jacrev(lambda a: implicit(residual, u, a))(a), expected, 1e-14)
    close(jacfwd(lambda a: implicit(residual, u, a))(a), expected, 1e-14)


def sinkhorn(f, cost, rows, columns):
    """One round of matching the columns' masses, then the rows': f + c goes to f + c."""
    g = columns.log() - torch.logsumexp(f[:, None] - cost, 0)
    return rows.log() - torch.logsumexp(g - cost, 1)


def sinkhorn_residual(f, *data):
    return f - sinkhorn(f, *data)


def sinkhorn_root(*data, start=0.0, rounds=200):
    f = torch.full_like(data[1], start)
    for _ in range(rounds):
        f = sinkhorn(f, *data)
    return f


@pytest.mark.parametrize("size", [2, 6, 20])
@pytest.mark.parametrize("start", [0.0, -30.0])
def test_a_fixed_point_that_is_free_to_shift(size, start, rng):
    """J is singular along (1, ..., 1), F is nothing but rounding, and the differences have a derivative."""
    masses = (normal(rng, size).softmax(0), normal(rng, size).softmax(0))
    cost, *masses = leaves((normal(rng, size, size).abs(), *masses))
    f = sinkhorn_root(cost, *masses, start=start).detach()
    weights = torch.linspace(-1, 1, size, dtype=F64)  # they sum to zero
    ours = torch.autograd.grad(weights @ implicit(sinkhorn_residual, f, cost, *masses), cost)
    unrolled = torch.autograd.grad(weights @ sinkhorn_root(cost, *masses), cost)
    close(ours[0], unrolled[0], 1e-10)


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1.0, 1e6, 1e150])
@pytest.mark.parametrize("unknowns", [[0.01, 0.09], [0.0, 0.1], [-0.2, 0.3]], ids=str)
def test_a_root_to_rounding_of_equations_that_say_the_same(unknowns, scale):
    """u₁ + u₂ = a twice, where 0.01 + 0.09 is 0.1 but for an ulp: the derivative is half for each."""
    a = torch.tensor(0.1, dtype=F64)
    residual = lambda u, a: torch.stack([u.sum() - a, scale * (3 * u.sum() - 3 * a)])
    for nest in (jacrev, jacfwd):
        J = nest(lambda a: implicit(residual, torch.tensor(unknowns, dtype=F64), a))(a)
        close(J, torch.full((2,), 0.5, dtype=F64), 1e-12)
    root = implicit(residual, torch.tensor(unknowns, dtype=F64), a.requires_grad_())  # where it is judged
    close(torch.autograd.grad(root[1], a)[0], torch.tensor(0.5, dtype=F64), 1e-12)


def test_an_equation_without_unknowns_may_hold_to_rounding():
    """What makes it small is known from the data alone."""
    a = torch.tensor([0.1, 0.2, 0.3], dtype=F64, requires_grad=True)
    residual = lambda u, a: torch.stack([u[0] - a[0], a[0] + a[1] - a[2]])
    assert residual(a.detach()[:2], a.detach())[1] != 0
    root = implicit(residual, a.detach()[:2], a)
    close(torch.autograd.grad(root.sum(), a)[0], torch.tensor([1.0, 0.0, 0.0], dtype=F64), 1e-14)


# ----------------------------------------------------------------------------------------------- roots


def test_the_history_of_the_solution_is_ignored(rng):
    (a,) = leaves((1 + normal(rng, 3).square(),))
    for solution in (a.sqrt(), torch.nn.Parameter(a.detach().sqrt())):
        root = implicit(lambda u, a: u**2 - a, solution, a)
        assert type(root) is torch.Tensor
        close(torch.autograd.grad(root.sum(), a)[0], 0.5 / a.detach().sqrt(), 1e-12)
    for nest in (jacrev, jacfwd):
        of_solution = nest(lambda b: implicit(lambda u, a: u**2 - a, b.sqrt(), a.detach()))(a.detach())
        assert torch.equal(of_solution, torch.zeros(3, 3, dtype=F64))


def test_the_solution_may_be_overwritten_afterwards(rng):
    (a,) = leaves((1 + normal(rng, 3).square(),))
    u = a.detach().sqrt()
    root = implicit(lambda u, a: u**2 - a, u, a)
    u.zero_()
    close(root, a.sqrt(), 1e-12)
    close(torch.autograd.grad(root.sum(), a)[0], 0.5 / a.detach().sqrt(), 1e-12)


@pytest.mark.parametrize(
    "error", [0.0, 1e-17, 1e-12], ids=["exactly", "to_rounding", "to_the_solver_s_tolerance"]
)
def test_a_root_may_be_zero(error):
    """Relative to zero every step is large; data of size one say what is small."""
    points = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=F64, requires_grad=True)
    solution = torch.tensor(error, dtype=F64)
    u = implicit(lambda u, x: influence(u - x, 1.0).sum(), solution, points)
    (share,) = torch.autograd.grad(u, points)
    slope = (1 + points.detach() ** 2) ** -1.5
    close(share, slope / slope.sum(), 1e-10)


def test_a_point_far_from_a_root_at_zero_is_still_refused():
    points = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=F64)
    with pytest.raises(InputError, match="not a root"):
        implicit(lambda u, x: influence(u - x, 1.0).sum(), torch.tensor(0.01, dtype=F64), points)


@pytest.mark.parametrize(("error", "accepted"), [(1e-6, True), (1e-3, False)])
def test_how_good_a_root_must_be(error, accepted):
    a = torch.tensor([2.0, 3.0], dtype=F64)
    solution = a.sqrt() * (1 + error)
    if accepted:
        assert torch.equal(implicit(lambda u, a: u**2 - a, solution, a), solution)
    else:
        text = r"the solution is not a root of the residual: one Newton step would move it by 1\.0e-03 of its"
        with pytest.raises(InputError, match=text):
            implicit(lambda u, a: u**2 - a, solution, a)


NO_ROOT = {
    "nothing_to_vary": lambda u, a: torch.ones_like(u) + 0 * u,
    "a_minimum_of_the_residual": lambda u, a: (u - 1) ** 2 + a,
    "a_contradiction": lambda u, a: torch.stack([u.sum() - 2, u.sum() - 2]) + a * torch.tensor([1.0, -1.0]),
}


@pytest.mark.parametrize("residual", NO_ROOT.values(), ids=NO_ROOT.keys())
@pytest.mark.parametrize("scale", [[1.0, 1.0], [1e-200, 1e-200], [1e200, 1e200], [1e9, 1e-9]], ids=str)
def test_a_singular_jacobian_does_not_make_a_root(residual, scale):
    """Where Newton's step is zero although the residual is not."""
    rows = torch.tensor(scale, dtype=F64)
    with pytest.raises(InputError, match="not a root"):
        implicit(lambda u, a: rows * residual(u, a), torch.ones(2, dtype=F64), torch.ones(2, dtype=F64))


@pytest.mark.parametrize("gap", [1.0, 1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_contradiction_is_not_hidden_by_the_units_of_another_equation(gap, scale):
    """u₁ + u₂ = 1 and = 1 + gap: at a root of either, or between, the other is off by more than rounding."""
    a = torch.tensor(1.0, dtype=F64)
    residual = lambda u, a: torch.stack([u.sum() - a, scale * (u.sum() - a - gap * a)])
    for share in (0.0, 0.5, 1.0):
        with pytest.raises(InputError, match="not a root"):
            implicit(residual, torch.tensor([0.3, 0.7 + share * gap], dtype=F64), a)


@pytest.mark.parametrize("units", [0, 3, 12, 100])
def test_a_singular_system_in_units_of_all_sizes(units, rng):
    """M of rank two: a root is one in any units, and what is off the range of M is not."""
    U, S, Vh = torch.linalg.svd(normal(rng, 4, 2) @ normal(rng, 2, 4))
    M = U[:, :2] @ torch.diag(S[:2]) @ Vh[:2]
    residual = lambda u, a, rows, gap: rows * (M @ u - M @ a + gap * U[:, 3])
    for _ in range(5):
        a, rows = normal(rng, 4), 10.0 ** (units * normal(rng, 4).tanh())
        implicit(residual, a + Vh[2], a, rows, torch.zeros((), dtype=F64))
        for gap in (1.0, 1e-3, 1e-6, 1e-9):
            with pytest.raises(InputError, match="not a root"):
                implicit(residual, a + Vh[2], a, rows, torch.tensor(gap, dtype=F64))


@pytest.mark.parametrize("solution", [1.7, 0.0], ids=["of_size_one", "zero"])
def test_the_check_forms_one_jacobian(solution, monkeypatch):
    """It is most of what the check costs; and an ordinary root needs one solve, nothing of the data."""
    formed, solved, moved = [], [], []
    for name, calls in (("_least_squares", solved), ("_moved_by_data", moved)):
        counted(equations, name, calls, monkeypatch)
    counted(equations._Equations, "jacobian", formed, monkeypatch)
    a = torch.full((3,), 1.7, dtype=F64)
    implicit(lambda u, a: u + (1.7 - solution) - a, torch.full((3,), solution + 1e-12, dtype=F64), a)
    assert len(formed) == 1
    if solution:
        assert (len(solved), len(moved)) == (1, 0)


def counted(owner, name, calls, monkeypatch):
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: (calls.append(name), function(*a, **k))[1])


# ------------------------------------------------------------------------------- the caller's own hooks


def nothing_done(tensor):
    return tensor


HOOKS = {
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "saved_tensors_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(nothing_done, nothing_done),
}
under_hooks = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="torch 2.6 cannot set them aside",
)


@under_hooks
@every_problem
@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS.keys())
def test_under_the_hooks_of_saved_tensors(problem, hooks, rng):
    data = leaves(problem.data(rng))
    expected = torch.autograd.grad(problem.solved(*data).sin().sum(), data)
    u = problem.root(*(d.detach() for d in data))
    with hooks():
        root = implicit(problem.residual, u, *data)
    for ours, theirs in zip(torch.autograd.grad(root.sin().sum(), data), expected, strict=True):
        assert torch.equal(ours, theirs)


@under_hooks
def test_the_hooks_still_see_what_is_kept_for_the_backward(rng):
    packed = []
    a = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(t), t)[1], nothing_done):
        implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a)
        (a * a).sum()  # and they are there again afterwards
    assert [t.shape for t in packed] == [(1, 2), (1, 2), (2,), (2,)]  # the root, its data; the two factors


@under_hooks
@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS.keys())
def test_under_the_hooks_of_saved_tensors_in_the_backward_alone(hooks, rng):
    (a,) = leaves((1 + normal(rng, 3).square(),))
    root = implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a)
    with hooks():
        (slope,) = torch.autograd.grad(root.sum(), a, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), a)
    close(slope.detach(), 0.5 * a.detach() ** -0.5, 1e-12)
    close(curvature, -0.25 * a.detach() ** -1.5, 1e-12)


@under_hooks
@every_problem
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(problem, reentrant, rng):
    data = leaves(problem.data(rng))
    expected = torch.autograd.grad(problem.solved(*data).sin().sum(), data)
    solved = partial(implicit, problem.residual, problem.root(*(d.detach() for d in data)))
    root = torch.utils.checkpoint.checkpoint(solved, *data, use_reentrant=reentrant)
    root.sin().sum().backward()
    for d, theirs in zip(data, expected, strict=True):
        assert torch.equal(d.grad, theirs)


def test_an_error_of_the_library_is_caught_as_such():
    with pytest.raises(OptLayerError):
        implicit(lambda u: u - 1, torch.tensor(3.0))
    with pytest.raises(ValueError, match="not a root"):
        implicit(lambda u: u - 1, torch.tensor(3.0))


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("residual", "equations"),
    [
        (lambda u, a: (u**2 - a)[:1], 1),
        (lambda u, a: (u**2 - a).sum(), 1),
        (lambda u, a: torch.cat([u**2 - a, u]), 4),
        (lambda u, a: u[:, None] ** 2 - a, 4),  # broadcast by accident
    ],
    ids=["fewer", "a_sum", "more", "broadcast"],
)
def test_as_many_equations_as_unknowns(residual, equations):
    a = torch.tensor([2.0, 3.0])
    text = f"the residual has {equations} equations for 2 unknowns, expected as many"
    with pytest.raises(InputError, match=text):
        implicit(residual, a.sqrt(), a)
    with pytest.raises(InputError, match=text):
        vmap(lambda a: implicit(residual, a.detach().sqrt(), a))(a[None])
    with pytest.raises(InputError, match=text):
        jacrev(lambda a: implicit(residual, a.detach().sqrt(), a))(a)


NOT_FINITE = {
    "nan_solution": (lambda u, a: u**2 - a, [torch.nan, 1.0], [1.0, 1.0]),
    "infinite_solution": (lambda u, a: u**2 - a, [torch.inf, 1.0], [1.0, 1.0]),
    "infinite_solution_of_a_zero_residual": (lambda u, a: a / u, [torch.inf, torch.inf], [1.0, 1.0]),
    "nan_data": (lambda u, a: u**2 - a, [1.0, 1.0], [torch.nan, 1.0]),
    "infinite_data": (lambda u, a: u**2 - a, [1.0, 1.0], [torch.inf, 1.0]),
    "nan_residual": (lambda u, a: (u**2 - a).log(), [1.0, 1.0], [2.0, 2.0]),
    "nan_jacobian": (lambda u, a: (u - a).abs().sqrt() * (u - a), [1.0, 1.0], [1.0, 1.0]),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_values_that_are_not_finite_are_refused(name):
    residual, u, a = NOT_FINITE[name]
    with pytest.raises(InputError, match=r"finite|not a root"):
        implicit(residual, torch.tensor(u, dtype=F64), torch.tensor(a, dtype=F64))


@pytest.mark.parametrize("name", ["nan_solution", "nan_data"])
def test_the_message_names_what_is_not_finite(name):
    """ "A Newton step of nan" helps nobody."""
    residual, u, a = NOT_FINITE[name]
    with pytest.raises(InputError, match="finite"):
        implicit(residual, torch.tensor(u, dtype=F64), torch.tensor(a, dtype=F64))


def test_one_sample_that_is_not_finite_harms_no_other():
    """Under vmap nothing can be judged: NaN stays in its own sample."""
    a = torch.tensor([[4.0, 9.0], [torch.nan, 1.0], [1.0, 4.0]], dtype=F64)
    J = vmap(jacrev(lambda a: implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a)))(a)
    assert J[1].isnan().any()
    close(J[[0, 2]], vmap(jacrev(torch.sqrt))(a[[0, 2]]), 1e-12)


CLOSURE = r"closes over a tensor that requires grad, which would get no gradient: pass it to implicit"


def test_closing_over_what_requires_grad():
    a = torch.tensor([2.0, 3.0], requires_grad=True)
    with pytest.raises(InputError, match=CLOSURE):
        implicit(lambda u: u**2 - a, a.detach().sqrt())
    with pytest.raises(InputError, match=CLOSURE):  # one of two
        implicit(lambda u, b: u**2 - a * b, a.detach().sqrt(), torch.ones(2, requires_grad=True))
    with torch.no_grad():  # nobody will ask for a gradient
        assert torch.equal(implicit(lambda u: u**2 - a, a.detach().sqrt()), a.sqrt())
    assert torch.equal(implicit(lambda u: u**2 - a.detach(), a.detach().sqrt()), a.detach().sqrt())


def test_closing_over_a_module_with_weights():
    module = torch.nn.Linear(2, 2, bias=False).double()
    residual = lambda u, x: u - x - module(torch.zeros_like(x))
    x = torch.tensor([1.0, 2.0], dtype=F64)
    with pytest.raises(InputError, match=CLOSURE):
        implicit(residual, x, x)
    with pytest.raises(InputError, match=CLOSURE):  # where a batch would lose its gradient silently
        vmap(lambda x: implicit(residual, x.detach(), x))(x[None])
    module.requires_grad_(False)
    assert torch.equal(implicit(residual, x, x), x)


SEEING = {
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "vmap_jacrev": lambda f: lambda a: vmap(jacrev(f))(a[None]),
    "jacrev_vmap": lambda f: lambda a: jacrev(vmap(f))(a[None]),
}


@pytest.mark.parametrize("nest", SEEING.values(), ids=SEEING.keys())
def test_closing_over_what_a_transform_differentiates(nest):
    """Without a refusal the derivative is zero, silently."""
    a = torch.tensor([2.0, 3.0], dtype=F64)
    with pytest.raises(InputError, match="closes over"):
        nest(lambda a: implicit(lambda u: u**2 - a, a.detach().sqrt()))(a)


def test_closing_over_a_dual_number():
    a = torch.tensor([2.0, 3.0], dtype=F64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a, torch.ones_like(a))
        with pytest.raises(InputError, match="closes over"):
            implicit(lambda u: u**2 - dual, a.sqrt())


NO_TENSOR = {"float": 2.0, "list": [2.0], "None": None, "numpy": np.array(2.0), "tuple": (torch.tensor(2.0),)}


@pytest.mark.parametrize("value", NO_TENSOR.values(), ids=NO_TENSOR.keys())
def test_data_and_solution_are_tensors(value):
    u = torch.tensor(2.0)
    with pytest.raises(InputError, match="tensor"):
        implicit(lambda u, a: u - 2.0, u, value)
    with pytest.raises(InputError, match="tensor"):
        implicit(lambda u, a: u - a, value, u)


@pytest.mark.parametrize("value", [None, 0.0, [torch.tensor(0.0)]], ids=["None", "float", "list"])
def test_the_residual_returns_a_tensor(value):
    with pytest.raises(InputError, match="tensor"):
        implicit(lambda u, a: value, torch.tensor(2.0), torch.tensor(2.0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128], ids=str)
def test_a_solution_is_of_real_floating_point(dtype):
    with pytest.raises(InputError, match=all_of("solution", str(dtype).replace("torch.", ""))):
        implicit(lambda u, a: u - a, torch.ones(2, dtype=dtype), torch.ones(2))


def test_torch_s_own_errors_pass_through():
    """What goes wrong inside the user's function is the user's to read."""
    u = torch.ones(2)
    with pytest.raises(TypeError, match="positional argument"):
        implicit(lambda u: u - 1, u, u)
    with pytest.raises(RuntimeError, match="size of tensor"):
        implicit(lambda u, a: u - a, u, torch.ones(3))
