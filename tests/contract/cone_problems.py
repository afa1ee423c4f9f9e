"""Cone programmes around a chosen answer, and what plain cvxpy says about a problem.

Every generator picks the primal and the dual solution first, strictly complementary, then the data for which
they are optimal; it draws again until the reduced optimality system is far from singular: the solution is
then unique and smooth in the data. Duals are in cvxpy's sign: those of cones lie in the dual cone, those of
equations belong to left minus right.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch

from optlayer import OptLayer

from .problems import (
    EXPONENTIAL_FORM,
    F64,
    T,
    close,
    exponential_inequality,
    exponential_objective,
    exponential_polytope,
    normal,
    plant_exponential,
    uniform,
)

WELL_CONDITIONED = 0.1  # the smallest singular value of a reduced system we keep


# ------------------------------ plain cvxpy


def assign(parameters, data):
    for parameter, tensor in zip(parameters, data, strict=True):
        parameter.value = np.array(tensor.tolist())


def cvxpy_solve(problem: cp.Problem, parameters=(), data=(), gp=False):
    """Solve by Clarabel as accurately as it can; leaves the answer in the problem's own leaves."""
    assign(parameters, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(cp.CLARABEL, gp=gp, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert problem.status in ("optimal", "optimal_inaccurate"), problem.status
    return torch.tensor(float(problem.value), dtype=F64)


def primal_of(leaf):
    value = leaf.value_sparse if leaf.sparse_idx is not None else leaf.value
    return torch.as_tensor(value.toarray() if hasattr(value, "toarray") else np.array(value))


def duals_of(constraint):
    """A tuple: cvxpy's dual values, each in the shape of its dual variable."""
    values = constraint.dual_value
    values = values if isinstance(values, list) else [values]
    return tuple(
        torch.as_tensor(np.array(value, dtype=float)).reshape(variable.shape)
        for value, variable in zip(values, constraint.dual_variables, strict=True)
    )


def as_duals(dual):
    return dual if isinstance(dual, tuple) else (dual,)


# ------------------------------ instances


@dataclass(frozen=True)
class Programme:
    """A cp.Problem of fixed shape; its data change with the instance."""

    problem: cp.Problem
    parameters: list
    variables: list

    @functools.cached_property
    def layer(self) -> OptLayer:
        return OptLayer.from_problem(self.problem, self.parameters, self.variables, method="cone")

    def outputs(self, *data):
        """Primal, duals of every constraint, value."""
        solution = self.layer.solve(*data)
        duals = [as_duals(solution.dual(constraint)) for constraint in self.problem.constraints]
        return (*solution.primal, *itertools.chain(*duals), solution.value)

    def primal(self, *data):
        return self.layer.solve(*data).primal


@dataclass(frozen=True)
class Planted:
    programme: Programme
    data: tuple  # aligned with programme.parameters
    primal: tuple  # aligned with programme.variables
    duals: tuple  # one tuple of tensors per constraint
    value: torch.Tensor

    @property
    def answers(self):
        return (*self.primal, *itertools.chain(*self.duals), self.value)

    @property
    def check(self):
        """What `check_every_entry` asks for."""
        parameters = self.programme.parameters
        return self.programme.outputs, self.data, [p.ndim == 2 and p.is_symmetric() for p in parameters]

    def agrees(self, outputs, tolerance):
        for index, (mine, expected) in enumerate(zip(outputs, self.answers, strict=True)):
            assert mine.shape == expected.shape
            close(mine, expected, tolerance, f"output {index}")


def along(planted: Planted, rng, count: int, only: Callable[[torch.Tensor], bool] = lambda tensor: True):
    """t -> data + t_1 D_1 + ... in random directions; symmetric ones where the parameter is symmetric."""
    directions = []
    for parameter, tensor in zip(planted.programme.parameters, planted.data, strict=True):
        D = (
            normal(rng, count, *tensor.shape)
            if only(tensor)
            else torch.zeros(count, *tensor.shape, dtype=F64)
        )
        directions.append((D + T(D)) / 2 if parameter.attributes["symmetric"] else D)

    def data(t):
        return [tensor + torch.tensordot(t, D, 1) for tensor, D in zip(planted.data, directions, strict=True)]

    return data


# ------------------------------ blocks: a cone, a pair in it and its dual, and the local shape of the cone


@dataclass
class Pair:
    """s in K, y in K*, <s, y> = 0; near s the constraint is rows @ ds = 0 with curvature H."""

    s: torch.Tensor
    y: torch.Tensor
    rows: torch.Tensor
    H: torch.Tensor

    @classmethod
    def inside(cls, s):
        k = len(s)
        return cls(s, torch.zeros(k, dtype=F64), torch.zeros(0, k, dtype=F64), torch.zeros(k, k, dtype=F64))

    @classmethod
    def boundary(cls, s, multiplier, slope, curvature):
        return cls(s, -multiplier * slope, slope[None], multiplier * curvature)

    @classmethod
    def apex(cls, y):
        k = len(y)
        return cls(torch.zeros(k, dtype=F64), y, torch.eye(k, dtype=F64), torch.zeros(k, k, dtype=F64))


def log_uniform(rng, *shape, low, high):
    return torch.exp(uniform(rng, *shape, low=float(np.log(low)), high=float(np.log(high))))


def draw_soc(rng, state, k):
    u = normal(rng, k - 1)
    u = u / u.norm() * uniform(rng, low=0.3, high=2)
    size = u.norm()
    if state == "inside":
        return Pair.inside(torch.cat([(size + uniform(rng, low=0.05, high=1)).reshape(1), u]))
    if state == "apex":
        return Pair.apex(torch.cat([(size + uniform(rng, low=0.05, high=1)).reshape(1), u]))
    slope = torch.cat([-torch.ones(1, dtype=F64), u / size])
    curvature = torch.zeros(k, k, dtype=F64)
    curvature[1:, 1:] = (torch.eye(k - 1, dtype=F64) - torch.outer(u, u) / size**2) / size
    return Pair.boundary(
        torch.cat([size.reshape(1), u]), log_uniform(rng, low=0.02, high=2), slope, curvature
    )


def draw_exp(rng, state, k=3):
    r, s2 = uniform(rng, low=-1.5, high=1), uniform(rng, low=0.3, high=1.5)
    s = torch.stack([r * s2, s2, s2 * r.exp()])
    if state == "inside":
        s[2] += uniform(rng, low=0.05, high=1)
        return Pair.inside(s)
    if state == "apex":  # y = -(u, v, -w) with w > u' exp(..): the inside of the dual cone
        u = uniform(rng, low=0.3, high=1)
        v = normal(rng) / 2
        return Pair.apex(torch.stack([-u, v, u * torch.exp(-v / u - 1) + uniform(rng, low=0.05, high=0.5)]))
    slope = torch.stack([r.exp(), (1 - r) * r.exp(), -torch.ones((), dtype=F64)])
    d = torch.stack([torch.ones((), dtype=F64), -r, torch.zeros((), dtype=F64)])
    return Pair.boundary(s, log_uniform(rng, low=0.02, high=2), slope, torch.outer(d, d) * r.exp() / s2)


def draw_pow(rng, state, k=3, *, alpha):
    s1, s2 = uniform(rng, 2, low=0.3, high=1.5)
    g = s1**alpha * s2 ** (1 - alpha)
    sign = normal(rng).sign()
    if state == "inside":
        return Pair.inside(torch.stack([s1, s2, sign * g * uniform(rng, low=0.1, high=0.9)]))
    if state == "apex":
        limit = (s1 / alpha) ** alpha * (s2 / (1 - alpha)) ** (1 - alpha)
        return Pair.apex(torch.stack([s1, s2, sign * limit * uniform(rng, low=0.1, high=0.9)]))
    slope = torch.stack([-alpha * g / s1, -(1 - alpha) * g / s2, sign])
    d = torch.stack([1 / s1, -1 / s2, torch.zeros((), dtype=F64)])
    curvature = alpha * (1 - alpha) * g * torch.outer(d, d)
    return Pair.boundary(
        torch.stack([s1, s2, sign * g]), log_uniform(rng, low=0.02, high=2), slope, curvature
    )


def draw_nonneg(rng, state, k, low=1e-3):
    active = torch.rand(k, generator=rng) < 0.5 if state is None else state
    size = log_uniform(rng, k, low=low, high=1)
    zero = torch.zeros(k, dtype=F64)
    eye = torch.eye(k, dtype=F64)
    return Pair(torch.where(active, zero, size), torch.where(active, size, zero), eye[active], 0 * eye)


def draw_psd(rng, rank, k):
    """In matrix coordinates: s, y and the rows are k*k long."""
    Q = torch.linalg.qr(normal(rng, k, k)).Q
    U, V = Q[:, :rank], Q[:, rank:]
    large, dual = uniform(rng, rank, low=0.3, high=1.5), log_uniform(rng, k - rank, low=0.1, high=1.5)
    X, S, pinv = (U * large) @ U.T, (V * dual) @ V.T, (U / large) @ U.T
    i, j = torch.triu_indices(k - rank, k - rank)
    rows = (V.T[i][:, :, None] * V.T[j][:, None, :]).reshape(len(i), k * k)
    H = 2 * torch.kron(S, pinv)
    return Pair(X.reshape(-1), S.reshape(-1), rows, H)


def independent(H, rows) -> bool:
    """Whether the reduced system [[H, rows'], [rows, 0]] is far from singular."""
    m = len(rows)
    zero = torch.zeros(m, m, dtype=F64)
    K = torch.cat([torch.cat([H, rows.T], 1), torch.cat([rows, zero], 1)])
    return bool(torch.linalg.svdvals(K).min() > WELL_CONDITIONED)


# ------------------------------ programmes over a vector


@dataclass(frozen=True)
class Shape:
    """n variables; p equations; m inequalities; cones, each (kind, size or exponent)."""

    n: int
    p: int = 0
    m: int = 0
    cones: tuple = ()
    quadratic: bool = False
    norm: bool = False  # write second-order cones as norm(u) <= t


def cone_constraint(kind, size, e, norm):
    if kind == "soc":
        return cp.norm(e[1:]) <= e[0] if norm else cp.SOC(e[0], e[1:])
    if kind == "exp":
        return cp.ExpCone(e[0], e[1], e[2])
    return cp.PowCone3D(e[0], e[1], e[2], size)


def rows_of(kind, size):
    return size if kind == "soc" else 3


@functools.cache
def programme(shape: Shape) -> Programme:
    """min |Lx|²/2 + q'x  s.t.  A_i x + b_i in K_i,  Gx <= h,  Ex = d; every letter but x a parameter."""
    n = shape.n
    x = cp.Variable(n, name="x")
    q = cp.Parameter(n, name="q")
    parameters, constraints = [q], []
    objective = q @ x
    if shape.quadratic:
        L = cp.Parameter((n, n), name="L")
        parameters.append(L)
        objective = objective + cp.sum_squares(L @ x) / 2
    for index, (kind, size) in enumerate(shape.cones):
        k = rows_of(kind, size)
        A, b = cp.Parameter((k, n), name=f"A{index}"), cp.Parameter(k, name=f"b{index}")
        parameters += [A, b]
        constraints.append(cone_constraint(kind, size, A @ x + b, shape.norm))
    if shape.m:
        G, h = cp.Parameter((shape.m, n), name="G"), cp.Parameter(shape.m, name="h")
        parameters += [G, h]
        constraints.append(G @ x <= h)
    if shape.p:
        E, d = cp.Parameter((shape.p, n), name="E"), cp.Parameter(shape.p, name="d")
        parameters += [E, d]
        constraints.append(E @ x == d)
    return Programme(cp.Problem(cp.Minimize(objective), constraints), parameters, [x])


def draw_cone(rng, kind, size, apex):
    chance = float(torch.rand((), generator=rng))
    state = "boundary" if chance < 0.65 else "apex" if apex and chance < 0.8 else "inside"
    if kind == "soc":
        return draw_soc(rng, state, size)
    if kind == "exp":
        return draw_exp(rng, state)
    return draw_pow(rng, state, alpha=size)


def plant(shape: Shape, rng) -> Planted:
    """An instance; with neither cones nor a quadratic term, a vertex."""
    n = shape.n
    vertex = not shape.cones and not shape.quadratic
    for _ in range(5000):
        x, nu, E = normal(rng, n), normal(rng, shape.p), normal(rng, shape.p, n)
        L = torch.eye(n, dtype=F64) + normal(rng, n, n) / (2 * n**0.5)
        H = L.T @ L if shape.quadratic else torch.zeros(n, n, dtype=F64)
        A = [normal(rng, rows_of(*cone), n) for cone in shape.cones]
        pairs = [draw_cone(rng, *cone, apex=cone[0] == "soc") for cone in shape.cones]
        G = normal(rng, shape.m, n)
        order = torch.rand(shape.m, generator=rng).argsort().argsort()
        wanted = n - shape.p if vertex else int(torch.randint(shape.m + 1, (), generator=rng))
        linear = draw_nonneg(rng, order < wanted, shape.m)
        rows = [E, linear.rows @ G]
        for pair, a in zip(pairs, A, strict=True):
            H = H + a.T @ pair.H @ a
            rows.append(pair.rows @ a)
        if independent(H, torch.cat(rows)):
            break
    else:
        raise AssertionError(f"no well-conditioned instance of {shape}")

    q = -(G.T @ linear.y) - E.T @ nu + sum((a.T @ pair.y for pair, a in zip(pairs, A)), torch.zeros_like(x))
    value = q @ x
    data, duals = [q], []
    if shape.quadratic:
        q -= L.T @ (L @ x)
        value = q @ x + (L @ x).square().sum() / 2
        data.append(L)
    for pair, a, (kind, _) in zip(pairs, A, shape.cones, strict=True):
        data += [a, pair.s - a @ x]
        if kind == "soc":
            duals.append((pair.y[0],) if shape.norm else (pair.y[:1], pair.y[1:]))
        else:
            duals.append(tuple(pair.y))
    if shape.m:
        data += [G, G @ x + linear.s]
        duals.append((linear.y,))
    if shape.p:
        data += [E, E @ x]
        duals.append((nu,))
    return Planted(programme(shape), tuple(data), (x,), tuple(duals), value)


# ------------------------------ semidefinite programmes


@functools.cache
def trace_programme(k, m) -> Programme:
    """min tr(CX)  s.t.  X >> 0,  tr(A_i X) = b_i."""
    X = cp.Variable((k, k), symmetric=True, name="X")
    C = cp.Parameter((k, k), symmetric=True, name="C")
    A = [cp.Parameter((k, k), symmetric=True, name=f"A{i}") for i in range(m)]
    b = cp.Parameter(m, name="b")
    constraints = [X >> 0, *(cp.trace(a @ X) == b[i] for i, a in enumerate(A))]
    return Programme(cp.Problem(cp.Minimize(cp.trace(C @ X)), constraints), [C, *A, b], [X])


def symmetric_basis(k):
    """Columns: an orthonormal basis of the symmetric matrices, flattened."""
    columns = []
    for i, j in itertools.combinations_with_replacement(range(k), 2):
        E = torch.zeros(k, k, dtype=F64)
        E[i, j] = E[j, i] = 1 if i == j else 0.5**0.5
        columns.append(E.reshape(-1))
    return torch.stack(columns, 1)


def draw_symmetric(rng, *batch, k):
    M = normal(rng, *batch, k, k)
    return (M + T(M)) / 2


def plant_trace(k, rank, m, rng) -> Planted:
    basis = symmetric_basis(k)
    for _ in range(5000):
        pair = draw_psd(rng, rank, k)
        A, nu = draw_symmetric(rng, m, k=k), normal(rng, m)
        rows = torch.cat([pair.rows, A.reshape(m, -1)]) @ basis
        if independent(basis.T @ pair.H @ basis, rows):
            break
    else:
        raise AssertionError("no well-conditioned instance")
    X, S = pair.s.reshape(k, k), pair.y.reshape(k, k)
    C = S - torch.tensordot(nu, A, 1)
    b = (A * X).sum((1, 2))
    duals = ((S,), *((value,) for value in nu))
    return Planted(trace_programme(k, m), (C, *A, b), (X,), duals, (C * X).sum())


@functools.cache
def matrix_programme(k, n, quadratic) -> Programme:
    """min q'x (+ |x - c|²/2)  s.t.  F_0 + x_1 F_1 + ... >> 0."""
    x = cp.Variable(n, name="x")
    q = cp.Parameter(n, name="q")
    F = [cp.Parameter((k, k), symmetric=True, name=f"F{i}") for i in range(n + 1)]
    objective = q @ x + (cp.sum_squares(x) / 2 if quadratic else 0)
    constraint = F[0] + sum(x[i] * F[i + 1] for i in range(n)) >> 0
    return Programme(cp.Problem(cp.Minimize(objective), [constraint]), [q, *F], [x])


def plant_matrix(k, rank, n, quadratic, rng) -> Planted:
    for _ in range(5000):
        pair, x = draw_psd(rng, rank, k), normal(rng, n)
        F = draw_symmetric(rng, n, k=k)
        A = F.reshape(n, -1).T
        H = A.T @ pair.H @ A + (torch.eye(n, dtype=F64) if quadratic else 0)
        if independent(H, pair.rows @ A):
            break
    else:
        raise AssertionError("no well-conditioned instance")
    X, S = pair.s.reshape(k, k), pair.y.reshape(k, k)
    q = A.T @ pair.y - (x if quadratic else 0)
    value = q @ x + (x @ x / 2 if quadratic else 0)
    data = (q, X - torch.tensordot(x, F, 1), *F)
    return Planted(matrix_programme(k, n, quadratic), data, (x,), ((S,),), value)


# ------------------------------ exponentials written with atoms


@functools.cache
def atoms_programme(n, k, m) -> Programme:
    """min sum(exp(Cz + d)) + 0.05 |z|² + q'z  s.t.  log_sum_exp(Bz + c) <= t,  Gz <= h."""
    z = cp.Variable(n, name="z")
    shapes = {"C": (k, n), "d": k, "q": n, "B": (3, n), "c": 3, "t": (), "G": (m, n), "h": m}
    parameters = [cp.Parameter(shape, name=name) for name, shape in shapes.items()]
    constraints = [exponential_inequality(z, *parameters) <= 0, exponential_polytope(z, *parameters) <= 0]
    return Programme(
        cp.Problem(cp.Minimize(exponential_objective(z, *parameters)), constraints), parameters, [z]
    )


def plant_atoms(n, k, m, rng) -> Planted:
    form = EXPONENTIAL_FORM
    while True:
        planted = plant_exponential(rng, n, k, m, margin=0.02)
        z, data, dual = planted.primal, planted.parameters, planted.inequality
        rows = torch.func.jacrev(form.g)(z, *data)[dual > 0]
        H = torch.func.hessian(lambda z: form.f(z, *data) + dual @ form.g(z, *data))(z)  # noqa: B023
        if independent(H, rows):
            break
    duals = ((dual[0],), (dual[1:],))
    return Planted(atoms_programme(n, k, m), data, (z,), duals, form.f(z, *data))


# ------------------------------ the families


def S(*args, **options):
    return Shape(*args, **options)


LINEAR = [S(3, 1, 4), S(4, 1, 5), S(5, 2, 5), S(3, 0, 5), S(6, 2, 6), S(8, 3, 7)]
QUADRATIC = [
    S(n, p, m, quadratic=True) for n, p, m in [(3, 1, 3), (4, 0, 4), (5, 2, 3), (6, 1, 5), (8, 2, 4)]
]
SECOND_ORDER = [
    S(3, 1, 2, (("soc", 3),), quadratic=True),
    S(4, 1, 2, (("soc", 3), ("soc", 4))),
    S(4, 0, 2, (("soc", 4), ("soc", 3)), quadratic=True, norm=True),
    S(5, 1, 3, (("soc", 5), ("soc", 3)), norm=True),
    S(6, 1, 2, (("soc", 4), ("soc", 3), ("soc", 2)), quadratic=True),
]
RAW_EXPONENTIAL = [
    S(3, 1, 1, (("exp", 3),), quadratic=True),
    S(4, 0, 2, (("exp", 3), ("exp", 3)), quadratic=True),
    S(4, 1, 3, (("exp", 3), ("exp", 3))),
]
POWER = [
    S(3, 1, 1, (("pow", 0.3),), quadratic=True),
    S(4, 0, 2, (("pow", 0.5), ("pow", 0.8)), quadratic=True),
    S(4, 1, 3, (("pow", 0.6), ("pow", 0.25))),
    S(5, 1, 2, (("pow", 0.1), ("pow", 0.5), ("pow", 0.9)), quadratic=True),
]
TRACE = [(3, 1, 2), (3, 2, 3), (4, 2, 4), (5, 2, 4), (6, 2, 5)]  # size, rank, equations
MATRIX = [(3, 2, 3, True), (4, 2, 3, True), (5, 4, 3, True), (6, 4, 4, True), (3, 2, 2, False)]


def generator(family, seed):
    return torch.Generator().manual_seed(10_000 * sorted(FAMILIES).index(family) + seed)


def exponential(seed, rng):
    if seed % 2:
        return plant_atoms(*[(3, 4, 2), (2, 3, 2), (4, 4, 1)][seed // 2 % 3], rng)
    return plant(RAW_EXPONENTIAL[seed // 2 % len(RAW_EXPONENTIAL)], rng)


def semidefinite(seed, rng):
    if seed % 2:
        return plant_matrix(*MATRIX[seed // 2 % len(MATRIX)], rng)
    return plant_trace(*TRACE[seed // 2 % len(TRACE)], rng)


FAMILIES = {
    "linear": lambda seed, rng: plant(LINEAR[seed % len(LINEAR)], rng),
    "quadratic": lambda seed, rng: plant(QUADRATIC[seed % len(QUADRATIC)], rng),
    "second-order": lambda seed, rng: plant(SECOND_ORDER[seed % len(SECOND_ORDER)], rng),
    "exponential": exponential,
    "power": lambda seed, rng: plant(POWER[seed % len(POWER)], rng),
    "semidefinite": semidefinite,
}


def instance(family, seed) -> Planted:
    return FAMILIES[family](seed, generator(family, seed))


# ------------------------------ one problem with a cone of every kind


@functools.cache
def plant_mixed(seed=0) -> Planted:
    """Equation, inequality, second-order, exponential, power and semidefinite constraint, all binding."""
    rng, n = torch.Generator().manual_seed(seed), 7
    kinds = [("soc", 3), ("exp", 3), ("pow", 0.4)]
    while True:
        x, nu = normal(rng, n), normal(rng, 1)
        pairs = [
            draw_soc(rng, "boundary", 3),
            draw_exp(rng, "boundary"),
            draw_pow(rng, "boundary", alpha=0.4),
        ]
        pairs += [draw_nonneg(rng, torch.tensor([True, False]), 2, low=0.1), draw_psd(rng, 1, 2)]
        A = [normal(rng, 3, n) for _ in range(3)]
        F = draw_symmetric(rng, n, k=2)
        A += [-normal(rng, 2, n), F.reshape(n, -1).T]
        E = normal(rng, 1, n)
        H = torch.eye(n, dtype=F64) + sum(a.T @ pair.H @ a for pair, a in zip(pairs, A, strict=True))
        if independent(H, torch.cat([E, *(pair.rows @ a for pair, a in zip(pairs, A, strict=True))])):
            break
    q = sum(a.T @ pair.y for pair, a in zip(pairs, A, strict=True)) - E.T @ nu - x
    b = [pair.s - a @ x for pair, a in zip(pairs, A, strict=True)]

    z = cp.Variable(n, name="z")
    names = ["q", "soc", "exp", "pow", "h"]
    parameters = [cp.Parameter(size, name=name) for name, size in zip(names, [n, 3, 3, 3, 2], strict=True)]
    parameters += [cp.Parameter((2, 2), symmetric=True, name="F"), cp.Parameter(1, name="d")]
    e = [a.numpy() @ z + p for a, p in zip(A[:3], parameters[1:4], strict=True)]
    constraints = [cone_constraint(*kind, row, norm=False) for kind, row in zip(kinds, e, strict=True)]
    constraints += [
        -A[3].numpy() @ z <= parameters[4],
        parameters[5] + sum(z[i] * F[i].numpy() for i in range(n)) >> 0,
        E.numpy() @ z == parameters[6],
    ]
    # in another order than that of the cones inside
    order = [4, 1, 3, 5, 0, 2]
    duals = [
        (pairs[0].y[:1], pairs[0].y[1:]),
        tuple(pairs[1].y),
        tuple(pairs[2].y),
        (pairs[3].y,),
        (pairs[4].y.reshape(2, 2),),
        (nu,),
    ]
    problem = cp.Problem(
        cp.Minimize(parameters[0] @ z + cp.sum_squares(z) / 2), [constraints[i] for i in order]
    )
    data = (q, *b[:4], b[4].reshape(2, 2), E @ x)
    value = q @ x + x @ x / 2
    return Planted(Programme(problem, parameters, [z]), data, (x,), tuple(duals[i] for i in order), value)
