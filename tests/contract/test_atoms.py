"""Every atom the layer translates, against cvxpy's own numeric value and finite differences.

min |z - atom(p)|^2 has the answer atom(p), whatever the curvature of the atom: values are compared
with cvxpy's, derivatives with central differences of cvxpy's. Then each atom takes part in an
objective of the variable.
"""

import warnings
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from optlayer import OptLayer

from .problems import T, close, leaves, normal, uniform

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(5)
FIXED = RNG.standard_normal((3, 4))
HALF = RNG.standard_normal((3, 3))
PSD = HALF @ HALF.T + np.eye(3)


# ------------------------------ affine atoms: name -> (shape of the argument, atom)

AFFINE = {
    "negation": ((2, 3), lambda p: -p),
    "sum": ((2, 3), cp.sum),
    "sum_rows": ((2, 3), lambda p: cp.sum(p, axis=0)),
    "sum_columns_keepdims": ((2, 3), lambda p: cp.sum(p, axis=1, keepdims=True)),
    "sum_two_axes": ((2, 3, 2), lambda p: cp.sum(p, axis=(0, 2))),
    "sum_method": ((2, 3), lambda p: p.sum(axis=1)),
    "mean": ((2, 3), lambda p: cp.mean(p, axis=0)),
    "trace": ((3, 3), cp.trace),
    "transpose": ((2, 3), lambda p: p.T),
    "transpose_axes": ((2, 3, 2), lambda p: cp.transpose(p, axes=(2, 0, 1))),
    "permute_dims": ((2, 3, 2), lambda p: cp.permute_dims(p, [1, 2, 0])),
    "swapaxes": ((2, 3, 2), lambda p: cp.swapaxes(p, 0, 1)),
    "moveaxis": ((2, 3, 2), lambda p: cp.moveaxis(p, 0, 2)),
    "reshape_f": ((2, 3), lambda p: cp.reshape(p, (3, 2), order="F")),
    "reshape_c": ((2, 3), lambda p: cp.reshape(p, (3, 2), order="C")),
    "reshape_3d_f": ((2, 6), lambda p: cp.reshape(p, (2, 3, 2), order="F")),
    "reshape_from_3d_f": ((2, 3, 2), lambda p: cp.reshape(p, (4, 3), order="F")),
    "reshape_from_3d_c": ((2, 3, 2), lambda p: cp.reshape(p, (4, 3), order="C")),
    "vec_f": ((2, 3), lambda p: cp.vec(p, order="F")),
    "vec_c": ((2, 3), lambda p: cp.vec(p, order="C")),
    "flatten": ((2, 3, 2), lambda p: p.flatten(order="F")),
    "index": ((4, 3), lambda p: p[1, 2]),
    "slice": ((4, 3), lambda p: p[1:3, :]),
    "slice_steps": ((5, 3), lambda p: p[::2, ::-1]),
    "slice_negative": ((5,), lambda p: p[-3:]),
    "slice_3d": ((2, 3, 2), lambda p: p[:, 1:, 0]),
    "row": ((4, 3), lambda p: p[1]),
    "fancy": ((4, 3), lambda p: p[[0, 2, 2], [1, 0, 2]]),
    "fancy_rows": ((4, 3), lambda p: p[[3, 0]]),
    "mask": ((4,), lambda p: p[np.array([True, False, True, True])]),
    "diag_of_vector": ((3,), cp.diag),
    "diag_of_matrix": ((3, 3), cp.diag),
    "diag_above": ((4, 4), lambda p: cp.diag(p, k=1)),
    "diag_of_vector_below": ((3,), lambda p: cp.diag(p, k=-1)),
    "upper_tri": ((4, 4), cp.upper_tri),
    "vec_to_upper_tri": ((6,), lambda p: cp.vec_to_upper_tri(p)),
    "vec_to_upper_tri_strict": ((6,), lambda p: cp.vec_to_upper_tri(p, strict=True)),
    "cumsum": ((4, 3), lambda p: cp.cumsum(p, axis=0)),
    "cumsum_other": ((4, 3), lambda p: cp.cumsum(p, axis=1)),
    "diff": ((5,), cp.diff),
    "diff_twice": ((5, 2), lambda p: cp.diff(p, k=2)),
    "diff_other": ((2, 5), lambda p: cp.diff(p, axis=1)),
    "hstack_vectors": ((3,), lambda p: cp.hstack([p, 2 * p, 1.0])),
    "hstack_matrices": ((2, 3), lambda p: cp.hstack([p, p[:, :1]])),
    "vstack": ((3,), lambda p: cp.vstack([p, -p, np.ones(3)])),
    "vstack_matrices": ((2, 3), lambda p: cp.vstack([p, p[:1]])),
    "stack": ((2, 3), lambda p: cp.stack([p, 3 * p], axis=1)),
    "concatenate": ((2, 3), lambda p: cp.concatenate([p, p + 1], axis=1)),
    "concatenate_flat": ((2, 3), lambda p: cp.concatenate([p, p + 1], axis=None)),
    "bmat": ((2, 3), lambda p: cp.bmat([[p, 2 * p], [np.ones((1, 3)), p[:1]]])),
    "promotion": ((), lambda p: p + np.ones((2, 3))),
    "broadcast": ((3,), lambda p: p + np.ones((2, 3))),
    "broadcast_to": ((3,), lambda p: cp.broadcast_to(p, (2, 3))),
    "matmul_left": ((4, 2), lambda p: FIXED @ p),
    "matmul_right": ((2, 3), lambda p: p @ FIXED),
    "matmul_vector": ((4,), lambda p: FIXED @ p),
    "vector_matmul": ((3,), lambda p: p @ FIXED),
    "batched_matmul": ((2, 4, 2), lambda p: FIXED @ p),
    "inner": ((3,), lambda p: p @ FIXED[:, 0]),
    "multiply": ((3, 4), lambda p: cp.multiply(FIXED, p)),
    "multiply_broadcast": ((4,), lambda p: cp.multiply(FIXED, p)),
    "division": ((3, 4), lambda p: p / FIXED),
    "division_by_scalar": ((3, 4), lambda p: p / 4),
    "outer": ((3,), lambda p: cp.outer(p, np.array([1.0, -2.0]))),
    "vdot": ((3, 4), lambda p: cp.vdot(FIXED, p)),
    "scalar_product": ((4,), lambda p: cp.scalar_product(FIXED[0], p)),
    "kron_right": ((2, 2), lambda p: cp.kron(FIXED, p)),
    "kron_left": ((2, 2), lambda p: cp.kron(p, FIXED)),
    "convolve": ((4,), lambda p: cp.convolve(FIXED[:, 0], p)),
    "conv": ((4,), lambda p: cp.conv(FIXED[:, 0], p)),
    "partial_trace_0": ((6, 6), lambda p: cp.partial_trace(p, (2, 3), axis=0)),
    "partial_trace_1": ((6, 6), lambda p: cp.partial_trace(p, (2, 3), axis=1)),
    "partial_transpose_0": ((6, 6), lambda p: cp.partial_transpose(p, (2, 3), axis=0)),
    "partial_transpose_1": ((6, 6), lambda p: cp.partial_transpose(p, (2, 3), axis=1)),
    "squeeze": ((3, 1), lambda p: cp.squeeze(p)),
    "einsum": ((3, 4), lambda p: cp.einsum("ij,kj->ik", FIXED, p)),
    "deep_flatten": ((2, 3), lambda p: cp.deep_flatten([p, p + 1])),
    "real": ((2, 3), cp.real),
    "sum_of_list": ((3,), lambda p: sum([p, 2 * p, 1])),
    "builtin_chain": ((3, 3), lambda p: (p + p.T)[0] @ FIXED + p[1, 1]),
}


# ------------------------------ smooth atoms

# name -> (shape, domain, atom, +1 convex or -1 concave)
POSITIVE, ANY, SYMMETRIC = "positive", "any", "positive definite"

SMOOTH = {
    "sum_squares": ((3,), ANY, cp.sum_squares, 1),
    "sum_squares_axis": ((3, 2), ANY, lambda p: cp.sum_squares(p, axis=0), 1),
    "square": ((3,), ANY, cp.square, 1),
    "power_2": ((3,), ANY, lambda p: cp.power(p, 2), 1),
    "power_3": ((3,), POSITIVE, lambda p: cp.power(p, 3), 1),
    "power_4": ((3,), ANY, lambda p: cp.power(p, 4), 1),
    "power_1.5": ((3,), POSITIVE, lambda p: cp.power(p, 1.5), 1),
    "power_2.7": ((3,), POSITIVE, lambda p: cp.power(p, 2.7), 1),
    "power_0.5": ((3,), POSITIVE, lambda p: cp.power(p, 0.5), -1),
    "power_0.3": ((3,), POSITIVE, lambda p: cp.power(p, 0.3), -1),
    "power_-1": ((3,), POSITIVE, lambda p: cp.power(p, -1), 1),
    "power_-0.5": ((3,), POSITIVE, lambda p: cp.power(p, -0.5), 1),
    "operator_power": ((3,), ANY, lambda p: p**2, 1),
    "quad_over_lin": ((3,), POSITIVE, lambda p: cp.quad_over_lin(p[:2], p[2]), 1),
    "quad_over_lin_constant": ((3,), ANY, lambda p: cp.quad_over_lin(p, 2.5), 1),
    "quad_form": ((3,), ANY, lambda p: cp.quad_form(p, PSD), 1),
    "exp": ((3,), ANY, cp.exp, 1),
    "log": ((3,), POSITIVE, cp.log, -1),
    "log1p": ((3,), POSITIVE, lambda p: cp.log1p(p - 0.5), -1),
    "entr": ((3,), POSITIVE, cp.entr, -1),
    "kl_div": ((4,), POSITIVE, lambda p: cp.kl_div(p[:2], p[2:]), 1),
    "rel_entr": ((4,), POSITIVE, lambda p: cp.rel_entr(p[:2], p[2:]), 1),
    "kl_div_constant": ((3,), POSITIVE, lambda p: cp.kl_div(p, np.array([0.5, 1.0, 2.0])), 1),
    "log_sum_exp": ((3,), ANY, cp.log_sum_exp, 1),
    "log_sum_exp_axis": ((2, 3), ANY, lambda p: cp.log_sum_exp(p, axis=1), 1),
    "log_sum_exp_keepdims": ((2, 3), ANY, lambda p: cp.log_sum_exp(p, axis=0, keepdims=True), 1),
    "logistic": ((3,), ANY, cp.logistic, 1),
    "inv_pos": ((3,), POSITIVE, cp.inv_pos, 1),
    "sqrt": ((3,), POSITIVE, cp.sqrt, -1),
    "geo_mean": ((3,), POSITIVE, cp.geo_mean, -1),
    "geo_mean_weights": ((3,), POSITIVE, lambda p: cp.geo_mean(p, p=[1, 2, 1]), -1),
    "harmonic_mean": ((3,), POSITIVE, cp.harmonic_mean, -1),
    "log_det": ((3, 3), SYMMETRIC, cp.log_det, -1),
    "tr_inv": ((3, 3), SYMMETRIC, cp.tr_inv, 1),
    "matrix_frac": ((3,), ANY, lambda p: cp.matrix_frac(p, PSD), 1),
    "matrix_frac_matrix": ((3, 3), SYMMETRIC, lambda p: cp.matrix_frac(np.array([1.0, -2.0, 0.5]), p), 1),
    "huber": ((4,), ANY, lambda p: cp.huber(2 * p, 1.0), 1),
    "huber_wide": ((4,), ANY, lambda p: cp.huber(p, 2.5), 1),
    "xexp": ((3,), POSITIVE, cp.xexp, 1),
    "variance": ((4,), ANY, cp.var, 1),
    "composition": ((3,), ANY, lambda p: cp.logistic(FIXED.T @ p) + cp.sum_squares(p), 1),
    "loss": ((2, 3), ANY, lambda p: cp.sum(cp.logistic(cp.multiply(np.sign(FIXED[:2, :3]), p))), 1),
}
NORMS = {
    "norm2": ((3,), cp.norm2),
    "norm": ((3,), lambda p: cp.norm(p, 2)),
    "pnorm_2": ((3,), lambda p: cp.pnorm(p, 2)),
    "pnorm_3": ((3,), lambda p: cp.pnorm(p, 3)),
    "pnorm_1.5": ((3,), lambda p: cp.pnorm(p, 1.5)),
    "norm2_axis": ((3, 2), lambda p: cp.norm(p, 2, axis=0)),
    "frobenius": ((3, 2), lambda p: cp.norm(p, "fro")),
}


def draw(rng, shape, kind, *batch):
    if kind == POSITIVE:
        return uniform(rng, *batch, *shape, low=0.2, high=2.0)
    if kind == SYMMETRIC:
        half = normal(rng, *batch, *shape)
        return half @ T(half) / 2 + 0.3 * torch.eye(shape[0], dtype=torch.float64)
    value = normal(rng, *batch, *shape)
    return torch.where((2 * value.abs() - 1).abs() < 0.05, value * 1.2, value)  # away from the knees of huber


def border(rng, shape, kind):
    """Points near the border of the domain, and far out where there is none."""
    if kind == POSITIVE:
        return [
            torch.full(shape, small, dtype=torch.float64) * uniform(rng, *shape, low=0.5, high=1.5)
            for small in (1e-3, 1e-6)
        ]
    if kind == SYMMETRIC:
        q, _ = torch.linalg.qr(normal(rng, *shape))
        return [
            q @ torch.diag(torch.tensor([1.0, 0.5, small], dtype=torch.float64)) @ q.T
            for small in (1e-1, 1e-2)
        ]
    return [10 * normal(rng, *shape), 1e-4 * normal(rng, *shape)]


def numeric(atom, value):
    """cvxpy's own value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expression = atom(cp.Constant(value.numpy()))
        return torch.tensor(np.array(expression.value, dtype=float)).reshape(expression.shape)


def along(atom, point, direction, t):
    return numeric(atom, point + t * direction)


def slope(function, step):
    """The derivative at 0, by central differences of fourth order."""
    return (8 * (function(step) - function(-step)) - (function(2 * step) - function(-2 * step))) / (12 * step)


def echo(shape, atom, attributes, **options):
    """The layer that answers atom(p)."""
    p = cp.Parameter(shape, name="p", **attributes)
    result = atom(p)
    return OptLayer(
        [cp.Variable(result.shape, name="z")],
        [p],
        objective=lambda z, p: cp.sum_squares(z - atom(p)),
        **options,
    )


@pytest.mark.filterwarnings("ignore:conv is deprecated")
@pytest.mark.parametrize("name", AFFINE)
def test_affine_atom_of_a_parameter(name, rng):
    shape, atom = AFFINE[name]
    layer = echo(shape, atom, {})
    p = normal(rng, 2, *shape)
    expected = torch.stack([numeric(atom, sample) for sample in p])
    actual = layer(p)
    assert actual.shape == expected.shape
    close(actual, expected, 1e-11)
    direction = normal(rng, *shape)
    jvp = torch.func.jvp(lambda p: layer(p), (p[0],), (direction,))[1]
    close(jvp, numeric(atom, p[0] + direction) - numeric(atom, p[0]), 1e-10)
    cotangent = normal(rng, *expected[0].shape)
    (gradient,) = torch.func.vjp(layer, p[0])[1](cotangent)
    close((gradient * direction).sum(), (cotangent * jvp).sum(), 1e-10)


@pytest.mark.filterwarnings("ignore:conv is deprecated")
@pytest.mark.parametrize("name", AFFINE)
def test_affine_atom_of_the_variable(name, rng):
    """min |atom(z) - x|^2 + |z|^2 is linear least squares with cvxpy's own matrix."""
    shape, atom = AFFINE[name]
    offset = numeric(atom, torch.zeros(shape, dtype=torch.float64))
    size = int(np.prod(shape))
    columns = [
        (numeric(atom, unit.reshape(shape)) - offset).reshape(-1)
        for unit in torch.eye(size, dtype=torch.float64)
    ]
    M = torch.stack(columns, -1)
    layer = OptLayer(
        [cp.Variable(shape, name="z")],
        [cp.Parameter(tuple(offset.shape), name="x")],
        objective=lambda z, x: cp.sum_squares(atom(z) - x) + cp.sum_squares(z),
    )
    x = normal(rng, 2, *offset.shape)
    normal_matrix = torch.linalg.inv(M.T @ M + torch.eye(size, dtype=torch.float64)) @ M.T
    expected = ((x - offset).reshape(2, -1) @ normal_matrix.T).reshape(2, *shape)
    close(layer(x), expected)
    jacobian = torch.func.jacrev(layer)(x[0]).reshape(size, -1)
    close(jacobian, normal_matrix)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_atom_of_a_parameter(name, rng):
    shape, kind, atom, _ = SMOOTH[name]
    layer = echo(shape, atom, {"symmetric": True} if kind == SYMMETRIC else {})
    points = [*draw(rng, shape, kind, 3), *border(rng, shape, kind)]
    expected = torch.stack([numeric(atom, point) for point in points])
    close(layer(torch.stack(points)), expected, 1e-9)
    for point in points:
        # a direction that stays inside the domain: relative for vectors, along its own factors for a matrix
        direction = point * uniform(rng, *shape, low=-1, high=1)
        if kind == SYMMETRIC:
            mix = normal(rng, *shape)
            direction = mix @ point + point @ mix.T
        step = 1e-4 if kind == SYMMETRIC else 1e-5
        difference = slope(partial(along, atom, point, direction), step)
        tangent = torch.func.jvp(layer, (point,), (direction,))[1]
        close(tangent, difference, 1e-6, f"{name} forward at {point.tolist()}")
        cotangent = normal(rng, *difference.shape)
        (gradient,) = torch.func.vjp(layer, point)[1](cotangent)
        close((gradient * direction).sum(), (cotangent * difference).sum(), 1e-6, f"{name} reverse")


@pytest.mark.filterwarnings("ignore:Power atom")  # cvxpy's way with exponents that are no small fractions
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_atom_of_the_variable(name, rng):
    shape, kind, atom, sign = SMOOTH[name]

    def objective(z, x):
        return sign * cp.sum(atom(z)) + 2 * cp.sum_squares(z - x)

    attributes = {SYMMETRIC: {"symmetric": True}, POSITIVE: {"nonneg": True}, ANY: {}}[kind]
    layer = OptLayer([cp.Variable(shape, name="z", **attributes)], [cp.Parameter(shape, name="x")], objective)
    x = draw(rng, shape, kind)
    if kind != ANY:
        x = x + (1 if kind == POSITIVE else torch.eye(shape[0]))
    solution = layer.solve(x)
    z = cp.Variable(shape, **attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = cp.Problem(cp.Minimize(objective(z, x.numpy()))).solve(solver=cp.CLARABEL)
    close(solution.primal[0], torch.as_tensor(np.asarray(z.value)), 2e-4)
    close(solution.value, torch.tensor(value, dtype=torch.float64), 1e-6)
    close(solution.value, numeric(lambda z: objective(z, x.numpy()), solution.primal[0]), 1e-12)
    assert solution.residuals.worst < 1e-10
    assert gradcheck(layer, leaves((x,)), check_forward_ad=True)
    assert gradgradcheck(layer, leaves((x,)), check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", NORMS)
def test_norm_away_from_its_apex(name, rng):
    shape, atom = NORMS[name]
    layer = echo(shape, atom, {}, method="smooth")
    p = normal(rng, 3, *shape) + 2
    close(layer(p), torch.stack([numeric(atom, sample) for sample in p]), 1e-9)
    assert gradcheck(layer, leaves((p[0],)), check_forward_ad=True)
    constrained = OptLayer(
        [cp.Variable(shape)],
        [cp.Parameter(shape)],
        lambda z, x: cp.sum_squares(z - x),
        [lambda z, x: cp.sum(atom(z)) - 0.5],
        method="smooth",
    )
    (x,) = leaves((p[0],))
    z = constrained(x)
    close(numeric(atom, z.detach()).sum(), torch.tensor(0.5, dtype=torch.float64))
    assert gradcheck(constrained, (x,), check_forward_ad=True)


def test_quad_form_of_a_parameter_matrix(rng):
    layer = OptLayer(
        [cp.Variable()],
        [cp.Parameter(3, name="p"), cp.Parameter((3, 3), PSD=True, name="Q")],
        objective=lambda z, p, Q: cp.square(z - cp.quad_form(p, Q)),
    )
    p, half = normal(rng, 4, 3), normal(rng, 4, 3, 3)
    Q = half @ half.mT
    close(layer(p, Q), torch.einsum("bi,bij,bj->b", p, Q, p), 1e-9)
    close(torch.func.vmap(torch.func.jacrev(layer, argnums=1))(p, Q), p.unsqueeze(-1) * p.unsqueeze(-2), 1e-8)


def test_matrix_frac_of_both(rng):
    layer = OptLayer(
        [cp.Variable()],
        [cp.Parameter(3, name="p"), cp.Parameter((3, 3), PSD=True, name="Q")],
        objective=lambda z, p, Q: cp.square(z - cp.matrix_frac(p, Q)),
    )
    p, half = normal(rng, 4, 3), normal(rng, 4, 3, 3)
    Q = half @ half.mT + torch.eye(3)
    close(layer(p, Q), (p * torch.linalg.inv(Q).matmul(p.unsqueeze(-1)).squeeze(-1)).sum(-1), 1e-9)


def test_huber_on_both_sides_of_its_knee(rng):
    """Derivatives are one-sided limits that agree at first order: no jump at the knee."""
    layer = echo((1,), lambda p: cp.huber(p, 1.0), {})
    for at in (1.0, -1.0):
        p = torch.tensor([at], dtype=torch.float64)
        close(torch.func.jacrev(layer)(p), torch.tensor([[2 * at]], dtype=torch.float64))


def test_overflow_is_met_with_calm(rng):
    """log_sum_exp and logistic at large arguments: no infinity inside."""
    layer = echo((3,), cp.log_sum_exp, {})
    p = torch.tensor([[800.0, 799.0, -800.0], [-1000.0, -1001.0, -999.0]], dtype=torch.float64)
    close(layer(p), p.logsumexp(-1), 1e-9)
    close(torch.func.vmap(torch.func.jacrev(layer))(p), p.softmax(-1), 1e-8)
    layer = echo((3,), cp.logistic, {})
    close(layer(p), torch.nn.functional.softplus(p), 1e-9)
    close(torch.func.vmap(torch.func.jacrev(layer))(p), torch.diag_embed(p.sigmoid()), 1e-8)
