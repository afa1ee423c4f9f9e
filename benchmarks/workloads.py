"""What is timed: seventeen problems, each with the answer it is judged by.

Each maker takes its sizes and returns a Workload: a cvxpy problem as a user would write it, a batch of
parameter values, the exact answer, and for quadratic programmes the matrices, for peers that take nothing
else. Drawn from a fixed seed, in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from reference import Exact, Outputs, Programme, Root, by_closed_form, by_newton, kkt, least_squares
from scipy import sparse
from torch import Tensor, nn


class Posed(NamedTuple):
    """A problem of its own for each layer, in the order OptLayer.from_problem takes."""

    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]


@dataclass(frozen=True)
class Workload:
    title: str
    theta: Outputs  # (B, ...) each
    pose: Callable[[], Posed]
    exact: Callable[[Outputs, Outputs], Exact]  # (θ, weights of the outputs) -> the answer and its gradient
    programme: Callable[..., Programme] | None = None  # of one sample's θ
    read: Callable[[Tensor], Outputs] = lambda z: (z,)  # outputs from one sample's stacked z

    @property
    def batch(self) -> int:
        return len(self.theta[0])

    def matrices(self) -> Programme:
        """Of the whole batch: Q is (B, n, n), and so on."""
        device = self.theta[0].device
        return Programme(*(M.to(device) for M in torch.func.vmap(self.programme)(*self.theta)))

    def weights(self) -> Outputs:
        """The cotangent ȳ of each output."""
        draw = generator(77)
        return tuple(normal(draw, self.batch, *v.shape) for v in self.pose().variables)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def quadratic(
    title: str, theta: Outputs, pose: Callable, programme: Callable, read=lambda z: (z,)
) -> Workload:
    """A quadratic programme, judged by its KKT conditions."""
    return Workload(title, theta, pose, partial(by_newton, kkt(programme, read)), programme, read)


# ---------------------------------------------------------------------------- projections


def sparsemax(n: int, batch: int) -> Workload:
    """The nearest point of the simplex."""

    def pose() -> Posed:
        z, x = cp.Variable(n), cp.Parameter(n)
        return Posed(cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [z >= 0, cp.sum(z) == 1]), [x], [z])

    def by_sorting(x: Tensor) -> Outputs:
        above = x.sort(1, descending=True).values
        excess = above.cumsum(1) - 1
        rank = (above * torch.arange(1, n + 1) > excess).sum(1, keepdim=True)
        return ((x - excess.gather(1, rank - 1) / rank).clamp_min(0.0),)

    def programme(x: Tensor) -> Programme:
        return Programme(2 * eye(n), -2 * x, -eye(n), zeros(n), zeros(1, n) + 1, zeros(1) + 1)

    theta = (normal(generator(1), batch, n),)
    exact = partial(by_closed_form, by_sorting)
    return Workload(f"sparsemax, n = {n}", theta, pose, exact, programme)


def polytope(batch: int, n: int = 2, m: int = 20) -> Workload:
    """The nearest point of {z : Gz <= h}, differentiated with respect to the polytope too."""

    def pose() -> Posed:
        z, x, G, h = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
        return Posed(cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [G @ z <= h]), [x, G, h], [z])

    def programme(x: Tensor, G: Tensor, h: Tensor) -> Programme:
        return Programme(2 * eye(n), -2 * x, G, h, zeros(0, n), zeros(0))

    draw = generator(4)
    G, x = normal(draw, m, n), normal(draw, batch, n)
    theta = x, G.expand(batch, m, n).clone(), zeros(batch, m) + 1
    return quadratic(f"projection onto a polytope, {m} faces", theta, pose, programme)


def second_order_cone(n: int, batch: int) -> Workload:
    """The nearest point of {(z, t) : |z| <= t}."""

    def pose() -> Posed:
        z, t, x, s = cp.Variable(n), cp.Variable(1), cp.Parameter(n), cp.Parameter(1)
        distance = cp.sum_squares(z - x) + cp.sum_squares(t - s)
        return Posed(cp.Problem(cp.Minimize(distance), [cp.SOC(t[0], z)]), [x, s], [z, t])

    def projection(x: Tensor, s: Tensor) -> Outputs:
        norm = x.norm(dim=1, keepdim=True)
        outside = ((norm + s) / 2).clamp_min(0.0)
        inside = norm <= s
        return torch.where(inside, x, outside * x / norm), torch.where(inside, s, outside)

    draw = generator(8)
    theta = normal(draw, batch, n), 3 * normal(draw, batch, 1)
    exact = partial(by_closed_form, projection)
    return Workload(f"projection onto a second-order cone, n = {n}", theta, pose, exact)


def semidefinite(n: int, batch: int) -> Workload:
    """The nearest positive semidefinite matrix."""

    def pose() -> Posed:
        X, Y = cp.Variable((n, n), PSD=True), cp.Parameter((n, n))
        return Posed(cp.Problem(cp.Minimize(cp.sum_squares(X - Y))), [Y], [X])

    def projection(Y: Tensor) -> Outputs:
        w, V = torch.linalg.eigh((Y + Y.mT) / 2)
        return ((V * w.clamp_min(0.0).unsqueeze(1)) @ V.mT,)

    Y = normal(generator(9), batch, n, n)
    theta, exact = ((Y + Y.mT) / 2,), partial(by_closed_form, projection)
    return Workload(f"projection onto the semidefinite cone, {n}×{n}", theta, pose, exact)


# ---------------------------------------------------------------------------- entropies


def softmax(n: int, batch: int) -> Workload:
    def pose() -> Posed:
        z, x = cp.Variable(n), cp.Parameter(n)
        return Posed(cp.Problem(cp.Minimize(-x @ z - cp.sum(cp.entr(z))), [cp.sum(z) == 1]), [x], [z])

    theta, exact = (normal(generator(2), batch, n),), partial(by_closed_form, lambda x: (x.softmax(1),))
    return Workload(f"softmax, n = {n}", theta, pose, exact)


def sigmoid(batch: int) -> Workload:
    def pose() -> Posed:
        z, x = cp.Variable(1), cp.Parameter(1)
        return Posed(
            cp.Problem(cp.Minimize(cp.sum(-cp.multiply(x, z) - cp.entr(z) - cp.entr(1 - z)))), [x], [z]
        )

    theta = (torch.linspace(-5, 5, batch, dtype=torch.float64)[:, None],)
    return Workload("sigmoid", theta, pose, partial(by_closed_form, lambda x: (x.sigmoid(),)))


def _transport(n: int, batch: int) -> Outputs:
    """Costs, rows' masses, and columns' but the last, which the others imply."""
    draw = np.random.default_rng(7)
    C, a, b = draw.random((batch, n, n)), draw.random((batch, n)) + 0.5, draw.random((batch, n)) + 0.5
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    return torch.tensor(C), torch.tensor(a), torch.tensor(b[:, :-1])


def _pose_transport(n: int, eps: float) -> Posed:
    X, C, a, b = cp.Variable((n, n)), cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter(n - 1)
    constraints = [cp.sum(X, axis=1) == a, cp.sum(X, axis=0)[:-1] == b]
    cost = cp.sum(cp.multiply(C, X))
    if eps:
        return Posed(cp.Problem(cp.Minimize(cost - eps * cp.sum(cp.entr(X))), constraints), [C, a, b], [X])
    return Posed(cp.Problem(cp.Minimize(cost), [X >= 0, *constraints]), [C, a, b], [X])


def transport(n: int, batch: int) -> Workload:
    """Optimal transport: a linear programme."""
    sums = torch.cat([torch.kron(eye(n), zeros(1, n) + 1), torch.kron(zeros(1, n) + 1, eye(n))])[:-1]

    def programme(C: Tensor, a: Tensor, b: Tensor) -> Programme:
        none, square = zeros(n * n, n * n), n * n
        return Programme(none, C.reshape(square), -eye(square), zeros(square), sums, torch.cat([a, b]))

    title, pose = f"optimal transport, {n}×{n}", partial(_pose_transport, n, 0.0)
    return quadratic(title, _transport(n, batch), pose, programme, lambda z: (z.reshape(n, n),))


def entropic_transport(n: int, batch: int, eps: float = 0.1) -> Workload:
    """The same with entropy: X = exp((−C − α − β)/ε − 1), and the multipliers are found from its sums."""

    def plan(u: Tensor, C: Tensor, a: Tensor, b: Tensor) -> Tensor:
        beta = torch.cat([u[n:], u.new_zeros(1)])
        return torch.exp((-C - u[:n, None] - beta) / eps - 1)

    def residual(u: Tensor, C: Tensor, a: Tensor, b: Tensor) -> Tensor:
        X = plan(u, C, a, b)
        return torch.cat([X.sum(1) - a, X.sum(0)[:-1] - b])

    def sinkhorn(C: Tensor, a: Tensor, b: Tensor) -> Tensor:
        b = torch.cat([b, (a.sum() - b.sum())[None]])
        beta = torch.zeros_like(b)
        for _ in range(500):
            alpha = eps * ((-C - beta) / eps - 1).logsumexp(1) - eps * a.log()
            beta = eps * ((-C - alpha[:, None]) / eps - 1).logsumexp(0) - eps * b.log()
        return torch.cat([alpha + beta[-1], beta[:-1] - beta[-1]])

    root = Root(sinkhorn, residual, lambda *u_theta: (plan(*u_theta),))
    title, pose = f"entropic transport, {n}×{n}", partial(_pose_transport, n, eps)
    return Workload(title, _transport(n, batch), pose, partial(by_newton, root))


# ---------------------------------------------------------------------------- quadratic programmes


def _pose_dense(n: int, m: int, k: int) -> Posed:
    z, L, q, G, h = cp.Variable(n), *map(cp.Parameter, [(n, n), n, (m, n), m])
    A, b = (cp.Parameter((k, n)), cp.Parameter(k)) if k else (None, None)
    constraints = [G @ z <= h] + ([A @ z == b] if k else [])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ z) / 2 + q @ z), constraints)
    return Posed(problem, [L, q, G, h] + ([A, b] if k else []), [z])


def dense(n: int, batch: int) -> Workload:
    """As many inequalities as variables, ill-conditioned Q = LLᵀ + 1e-3 (CvxpyLayers' own benchmark)."""
    draw = np.random.default_rng(0)
    L = draw.random((batch, n, n))
    w, V = np.linalg.eigh(L @ L.transpose(0, 2, 1) + 1e-3 * np.eye(n))
    root = (V * np.sqrt(w)[:, None]) @ V.transpose(0, 2, 1)
    q, G = draw.standard_normal((batch, n)), draw.standard_normal((batch, n, n))
    z, slack = draw.standard_normal((batch, n, 1)), draw.random((batch, n))
    theta = tuple(map(torch.tensor, (root, q, G, (G @ z)[..., 0] + slack)))

    def programme(L: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Programme:
        return Programme(L.T @ L, q, G, h, zeros(0, n), zeros(0))

    return quadratic(f"dense QP, n = m = {n}", theta, partial(_pose_dense, n, n, 0), programme)


def small(batch: int, n: int = 10, m: int = 4, k: int = 5) -> Workload:
    """The tutorial's example: every entry random."""
    draw = generator(5)
    theta = tuple(normal(draw, batch, *shape) for shape in [(n, n), (n,), (m, n), (m,), (k, n), (k,)])

    def programme(L: Tensor, *rest: Tensor) -> Programme:
        return Programme(L.T @ L, *rest)

    title = f"small QP, {n} variables, {m} + {k} constraints"
    return quadratic(title, theta, partial(_pose_dense, n, m, k), programme)


def sparse_programme(n: int, batch: int, k: int, density: float = 0.01) -> Workload:
    """Constant sparse A and G; q, b and h are the parameters."""
    draw = np.random.default_rng(6)
    A, G = (
        (sparse.random(r, n, density=density, random_state=draw) + sparse.eye(r, n)).tocsr() for r in (k, n)
    )
    x, q = draw.standard_normal((batch, n)), 2 * draw.standard_normal((batch, n))
    theta = tuple(map(torch.tensor, (q, x @ A.T, x @ G.T + draw.random((batch, n)))))
    dense_A, dense_G = torch.tensor(A.toarray()), torch.tensor(G.toarray())

    def pose() -> Posed:
        z, q, b, h = cp.Variable(n), cp.Parameter(n), cp.Parameter(k), cp.Parameter(n)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(z) / 2 + q @ z), [G @ z <= h, A @ z == b])
        return Posed(problem, [q, b, h], [z])

    def programme(q: Tensor, b: Tensor, h: Tensor) -> Programme:
        return Programme(eye(n), q, dense_G, h, dense_A, b)

    title = f"sparse QP, {n} variables, {n} + {k} constraints, {100 * density:.0f} %"
    return quadratic(title, theta, pose, programme)


def control(batch: int, T: int = 20, nx: int = 8, nu: int = 3, limit: float = 0.5) -> Workload:
    """Model-predictive control; the dynamics are parameters."""
    draw = np.random.default_rng(11)
    A = np.eye(nx) + 0.1 * draw.standard_normal((batch, nx, nx))
    A /= np.abs(np.linalg.eigvals(A)).max(1)[:, None, None]  # marginally stable
    B, x0 = 0.3 * draw.standard_normal((batch, nx, nu)), draw.standard_normal((batch, nx))
    theta = tuple(map(torch.tensor, (x0, A, B)))
    states, inputs = (T + 1) * nx, T * nu
    shift = torch.diag(zeros(T) + 1, -1)  # from each step to the next

    def pose() -> Posed:
        x, u = cp.Variable((T + 1, nx)), cp.Variable((T, nu))
        x0, A, B = cp.Parameter(nx), cp.Parameter((nx, nx)), cp.Parameter((nx, nu))
        dynamics = [x[0] == x0, x[1:] == x[:-1] @ A.T + u @ B.T]
        cost = cp.sum_squares(x) + 0.1 * cp.sum_squares(u)
        problem = cp.Problem(cp.Minimize(cost), [*dynamics, u <= limit, u >= -limit])
        return Posed(problem, [x0, A, B], [x, u])

    def programme(x0: Tensor, A: Tensor, B: Tensor) -> Programme:
        Q = torch.cat([zeros(states) + 2, zeros(inputs) + 0.2]).diag()
        above = torch.cat([zeros(inputs, states), eye(inputs)], 1)
        equations = torch.cat(
            [eye(states) - torch.kron(shift, A), -torch.kron(shift[:, :T].contiguous(), B)], 1
        )
        G, h = torch.cat([above, -above]), zeros(2 * inputs) + limit
        return Programme(Q, zeros(states + inputs), G, h, equations, torch.cat([x0, zeros(T * nx)]))

    def read(z: Tensor) -> Outputs:
        return z[:states].reshape(T + 1, nx), z[states:].reshape(T, nu)

    return quadratic(f"model-predictive control, {T} steps", theta, pose, programme, read)


# ---------------------------------------------------------------------------- others


def _solved(pose: Callable[[], Posed], theta: Sequence[Tensor]) -> Tensor:
    """The first variable by Clarabel, tight: where Newton starts."""
    problem, parameters, variables = pose()
    for parameter, value in zip(parameters, theta, strict=True):
        parameter.value = value.numpy()
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return torch.tensor(variables[0].value, dtype=torch.float64)


def _unconstrained(
    title: str, theta: Outputs, pose: Callable[[], Posed], f: Callable[..., Tensor]
) -> Workload:
    """∇f = 0."""
    root = Root(lambda *theta: _solved(pose, theta), torch.func.grad(f), lambda z, *theta: (z,))
    return Workload(title, theta, pose, partial(by_newton, root))


def robust_least_squares(batch: int, m: int = 50, n: int = 20, rho: float = 0.5) -> Workload:
    """|Az − b| + ρ|z|."""

    def pose() -> Posed:
        z, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
        return Posed(cp.Problem(cp.Minimize(cp.norm(A @ z - b) + rho * cp.norm(z))), [A, b], [z])

    draw = generator(88)
    A = normal(draw, batch, m, n)
    b = (A @ normal(draw, batch, n, 1)).squeeze(2) + normal(draw, batch, m)
    title = f"robust least squares, {m}×{n}"
    return _unconstrained(title, (A, b), pose, lambda z, A, b: (A @ z - b).norm() + rho * z.norm())


def logistic(batch: int, samples: int = 100, d: int = 20, ridge: float = 0.1) -> Workload:
    """Logistic regression, differentiated with respect to its data."""
    draw = generator(10)
    X, direction = normal(draw, batch, samples, d), normal(draw, d)
    y = torch.sign(X[0] @ direction + 0.5 * normal(draw, samples))

    def pose() -> Posed:
        w, X = cp.Variable(d), cp.Parameter((samples, d))
        loss = cp.sum(cp.logistic(cp.multiply(-y.numpy(), X @ w))) / samples
        return Posed(cp.Problem(cp.Minimize(loss + ridge * cp.sum_squares(w))), [X], [w])

    def f(w: Tensor, X: Tensor) -> Tensor:
        return nn.functional.softplus(-y * (X @ w)).mean() + ridge * w @ w

    return _unconstrained(f"logistic regression, {samples}×{d}", (X,), pose, f)


def max_cut(n: int, batch: int) -> Workload:
    """X = VVᵀ with V of the rank of X: (C + diag ν)V = 0, diag VVᵀ = 1; V only up to a rotation."""

    def pose() -> Posed:
        X, C = cp.Variable((n, n), PSD=True), cp.Parameter((n, n))
        return Posed(cp.Problem(cp.Minimize(cp.trace(C @ X)), [cp.diag(X) == 1]), [C], [X])

    def parts(u: Tensor) -> tuple[Tensor, Tensor]:
        return u[:-n].reshape(n, -1), u[-n:]

    def start(C: Tensor) -> Tensor:
        X = _solved(pose, [C])
        w, V = torch.linalg.eigh((X + X.T) / 2)
        large = w > 1e-4 * w[-1]
        return torch.cat([(V[:, large] * w[large].sqrt()).reshape(-1), -(C @ X).diagonal()])

    def residual(u: Tensor, C: Tensor) -> Tensor:
        V, nu = parts(u)
        stationary = (C + C.T) / 2 @ V + nu[:, None] * V
        return torch.cat([stationary.reshape(-1), V.square().sum(1) - 1])

    def read(u: Tensor, C: Tensor) -> Outputs:
        V, _ = parts(u)
        return (V @ V.T,)

    C = normal(generator(99), batch, n, n)
    root = Root(start, residual, read, least_squares)
    return Workload(f"maximum cut, {n}×{n}", ((C + C.mT) / 2,), pose, partial(by_newton, root))


FULL: dict[str, Callable[[], Workload]] = {
    "sparsemax-10": partial(sparsemax, 10, 128),
    "sparsemax-100": partial(sparsemax, 100, 128),
    "sparsemax-1000": partial(sparsemax, 1000, 16),
    "softmax": partial(softmax, 10, 128),
    "sigmoid": partial(sigmoid, 100),
    "polytope": partial(polytope, 100),
    "dense-qp": partial(dense, 128, 128),
    "small-qp": partial(small, 128),
    "sparse-qp": partial(sparse_programme, 1024, 8, 256),
    "transport": partial(transport, 16, 16),
    "entropic-transport": partial(entropic_transport, 16, 16),
    "second-order-cone": partial(second_order_cone, 50, 64),
    "robust-least-squares": partial(robust_least_squares, 64),
    "semidefinite": partial(semidefinite, 10, 16),
    "max-cut": partial(max_cut, 20, 4),
    "logistic": partial(logistic, 1),
    "control": partial(control, 64),
}
QUICK: dict[str, Callable[[], Workload]] = {
    "sparsemax-10": partial(sparsemax, 4, 3),
    "sparsemax-100": partial(sparsemax, 6, 3),
    "sparsemax-1000": partial(sparsemax, 12, 2),
    "softmax": partial(softmax, 3, 3),
    "sigmoid": partial(sigmoid, 4),
    "polytope": partial(polytope, 3, m=5),
    "dense-qp": partial(dense, 4, 3),
    "small-qp": partial(small, 3),
    "sparse-qp": partial(sparse_programme, 12, 2, 3, density=0.2),
    "transport": partial(transport, 3, 2),
    "entropic-transport": partial(entropic_transport, 3, 2),
    "second-order-cone": partial(second_order_cone, 4, 3),
    "robust-least-squares": partial(robust_least_squares, 2, m=8, n=3),
    "semidefinite": partial(semidefinite, 3, 2),
    "max-cut": partial(max_cut, 4, 2),
    "logistic": partial(logistic, 1, samples=12, d=3),
    "control": partial(control, 2, T=3, nx=2, nu=1),
}
