"""Projections and their derivatives: against definitions, finite differences, each other and 50 digits."""

import copy
import math
import pickle
from collections.abc import Callable
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, jvp, vjp, vmap

from optlayer.cones import (
    ConvexCone,
    DualExponential,
    DualGeneralizedPower,
    DualPower,
    Exponential,
    Free,
    GeneralizedPower,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Semidefinite,
    Zero,
)
from optlayer.cones.orderings import smat, svec, triangle
from optlayer.cones.roots import increasing_root

mpmath.mp.dps = 50

POWERS = [Power(0.01), Power(0.5), Power(0.99), GeneralizedPower((0.2, 0.5, 0.3), 2)]
CURVED = [Exponential(), *POWERS]
DUALS = [DualExponential(), DualPower(0.3), DualPower(0.01), DualGeneralizedPower((0.4, 0.6), 2)]
SPECTRAL = [Nonnegative(3), SecondOrder(2), SecondOrder(4), Semidefinite(2), Semidefinite(3)]
KINKED = [*SPECTRAL, *CURVED, *DUALS]
MIXED = Product(
    (Zero(1), Exponential(), Nonnegative(2), SecondOrder(3), Exponential(), Free(1), DualPower(0.3))
    + (Semidefinite(2), SecondOrder(1), Nonnegative(0))
)
CONES = [Zero(2), Free(3), *KINKED, SecondOrder(1), Semidefinite(1), MIXED]

every_cone = pytest.mark.parametrize("cone", CONES, ids=str)


def sample(cone: ConvexCone, count: int = 200, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, cone.dim, generator=generator, dtype=torch.float64)


def scaled(cone: ConvexCone, count: int = 200, power: float = 8.0) -> Tensor:
    """Coordinates at 10^±power each."""
    generator = torch.Generator().manual_seed(1)
    exponent = power * (2 * torch.rand(count, cone.dim, generator=generator, dtype=torch.float64) - 1)
    return sample(cone, count) * 10**exponent


def size(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)


def smooth(cone: ConvexCone, count: int = 20) -> Tensor:
    """Points away from kinks, and where the second derivative is moderate."""
    if isinstance(cone, Product):
        return torch.cat([smooth(part, count) for part in cone.cones], -1)
    v = sample(cone, 6 * count, seed=2)
    bent = vmap(hessian(cone.project))(v).abs().amax((1, 2, 3)) < 20 if cone.dim else v.new_zeros(len(v)) < 1
    _, kink = cone.snap(v, torch.full((len(v),), 1e-2, dtype=torch.float64))
    return v[bent & ~kink][:count]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------- definitions


def belongs(cone: ConvexCone, p: Tensor, slack: float) -> Tensor:
    """Membership by the textbook inequality, p of size one."""
    match cone:
        case Nonnegative():
            return (p >= -slack).all(-1)
        case SecondOrder():
            return size(p[:, 1:]) <= p[:, 0] + slack
        case Semidefinite():
            return torch.linalg.eigvalsh(smat(p)).amin(-1) >= -slack
        case Exponential():
            x, y, z = (p + slack * torch.tensor([-1.0, 1.0, 1.0], dtype=p.dtype)).unbind(-1)
            return (y >= 0) & (z >= 0) & (x <= y * torch.log(z / y))
        case DualExponential():
            u, v, w = (p + slack * torch.tensor([-1.0, 1.0, 1.0], dtype=p.dtype)).unbind(-1)
            return (u <= 0) & (w >= 0) & (torch.log(-u) + v / u <= 1 + torch.log(w))
        case Power() | GeneralizedPower() | DualPower() | DualGeneralizedPower():
            dual = isinstance(cone, DualPower | DualGeneralizedPower)
            alphas = torch.tensor(cone.dual.alphas if dual else cone.alphas, dtype=p.dtype)
            x = (p[:, : len(alphas)] + slack) / (alphas if dual else 1.0)
            return (x >= 0).all(-1) & ((x**alphas).prod(-1) + slack >= size(p[:, len(alphas) :]))
    raise NotImplementedError(cone)


@pytest.mark.parametrize("cone", KINKED, ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_projections_are_members(cone: ConvexCone, spread: float) -> None:
    p = cone.project(scaled(cone, power=spread))
    p = p / size(p).clamp_min(1e-300)[:, None]
    assert belongs(cone, p, 1e-9).all()
    outside = cone.project(sample(cone)) - 0.1 * cone.dual.project(sample(cone, seed=3))
    assert not belongs(cone, outside, 1e-12).all()


@pytest.mark.parametrize("cone", KINKED, ids=str)
def test_the_nearest_point_is_the_projection_as_a_number(cone: ConvexCone) -> None:
    v = scaled(cone).requires_grad_()
    assert torch.equal(cone.nearest(v), cone.project(v).detach())
    assert not cone.nearest(v).requires_grad


@every_cone
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_moreau(cone: ConvexCone, scale: float) -> None:
    """v = p - q, p ∈ K, q ∈ K*, p ⟂ q: the whole truth about a projection."""
    v = scale * sample(cone)
    p, q = cone.project(v), cone.dual.project(-v)
    assert (size(p - q - v) <= 1e-14 * size(v)).all()
    assert ((p * q).sum(-1).abs() <= 1e-14 * size(v) ** 2).all()
    assert (size(cone.project(p) - p) <= 1e-13 * size(v)).all()
    assert cone.contains(p, 1e-13 * size(v)).all()
    assert cone.dual.contains(q, 1e-13 * size(v)).all()


@every_cone
def test_the_dual_cone_pairs_nonnegatively(cone: ConvexCone) -> None:
    p, q = cone.project(sample(cone)), cone.dual.project(sample(cone, seed=5))
    assert ((p @ q.mT) >= -1e-13 * size(p)[:, None] * size(q)).all()
    assert cone.dual.dual == cone


@pytest.mark.parametrize("cone", KINKED, ids=str)
def test_contains(cone: ConvexCone) -> None:
    v = sample(cone)
    distance = size(v - cone.project(v))
    outside = distance > 1e-3
    assert cone.contains(v, 1.001 * distance).all()
    assert not cone.contains(v[outside], 0.999 * distance[outside]).any()


@pytest.mark.parametrize("cone", KINKED, ids=str)
@pytest.mark.parametrize("spread", [0.0, 8.0])
def test_inside_it_is_the_identity_and_in_the_polar_zero(cone: ConvexCone, spread: float) -> None:
    p = cone.project(sample(cone)) + cone.project(sample(cone, seed=7)) + cone.project(sample(cone, seed=8))
    q = -cone.dual.project(sample(cone)) - cone.dual.project(sample(cone, seed=9))
    assert torch.equal(cone.project(p), p) or (cone.project(p) - p).abs().max() < 1e-14
    assert cone.project(q).abs().max() < 1e-14


# ------------------------------------------------------------------------------------- derivatives


@every_cone
def test_finite_differences(cone: ConvexCone) -> None:
    v, h = smooth(cone), 1e-5
    steps = h * torch.eye(cone.dim, dtype=torch.float64)
    columns = [(cone.project(v + step) - cone.project(v - step)) / (2 * h) for step in steps]
    torch.testing.assert_close(cone.derivative(v), torch.stack(columns, -1), rtol=1e-7, atol=1e-7)


@every_cone
def test_second_finite_differences(cone: ConvexCone) -> None:
    v, h = smooth(cone), 1e-5
    steps = h * torch.eye(cone.dim, dtype=torch.float64)
    columns = [(cone.derivative(v + step) - cone.derivative(v - step)) / (2 * h) for step in steps]
    torch.testing.assert_close(vmap(hessian(cone.project))(v), torch.stack(columns, -1), rtol=1e-4, atol=1e-4)


@every_cone
def test_all_first_derivatives_agree(cone: ConvexCone) -> None:
    v, w = sample(cone), sample(cone, seed=4)
    D = cone.derivative(v)
    close(D, D.mT)
    spectrum = cone.spectrum(v)
    close(spectrum.matrix(), D)
    close(spectrum.out(spectrum.d * spectrum.into(w)), cone.jvp(v, w))
    assert ((spectrum.d >= 0) & (spectrum.d <= 1)).all()
    close(spectrum.out(spectrum.into(w)), w)
    close((D @ w[:, :, None])[..., 0], cone.jvp(v, w))
    close(cone.vjp(v, w), cone.jvp(v, w))
    close(vmap(jacrev(cone.project))(v), D)
    close(vmap(jacfwd(cone.project))(v), D)
    close(jvp(cone.project, (v,), (w,))[1], cone.jvp(v, w))
    close(vjp(cone.project, v)[1](w)[0], cone.jvp(v, w))
    close((D @ v[:, :, None])[..., 0], cone.project(v))  # Euler


@every_cone
def test_all_second_derivatives_agree(cone: ConvexCone) -> None:
    v = smooth(cone, 10)
    H = vmap(hessian(cone.project))(v)
    nestings: list[Callable[[Tensor], Tensor]] = [
        jacfwd(jacfwd(cone.project)),
        jacrev(jacrev(cone.project)),
        jacrev(jacfwd(cone.project)),
        jacfwd(cone.derivative),
        jacrev(cone.derivative),
    ]
    for nested in nestings:
        close(vmap(nested)(v), H, 1e-10)
    w = sample(cone, 10)
    once_more = vmap(jacrev(lambda v, w: cone.jvp(v, w)))(v, w)
    close(once_more, torch.einsum("bijk,bj->bik", H, w), 1e-10)


@every_cone
def test_gradcheck(cone: ConvexCone) -> None:
    v = smooth(cone, 3).requires_grad_()
    w = sample(cone, 3, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(cone.project, v, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cone.project, v)
    assert torch.autograd.gradcheck(cone.jvp, (v, w), check_forward_ad=True)


@every_cone
def test_batches(cone: ConvexCone) -> None:
    v = sample(cone, 24)
    folded = v.reshape(2, 3, 4, cone.dim)
    close(cone.project(folded).reshape(24, -1), cone.project(v))
    close(cone.derivative(folded).reshape(24, cone.dim, -1), cone.derivative(v))
    close(cone.spectrum(folded).matrix().reshape(24, cone.dim, -1), cone.derivative(v))
    close(torch.stack([cone.project(row) for row in v]), cone.project(v))
    assert cone.project(v[:0]).shape == (0, cone.dim)
    assert cone.derivative(v[:0]).shape == (0, cone.dim, cone.dim)


@every_cone
def test_a_row_does_not_depend_on_its_neighbours(cone: ConvexCone) -> None:
    v = scaled(cone, 101, power=3.0)
    other = v.clone()
    other[::2] = sample(cone, 51, seed=11)
    other[0] = torch.nan
    assert torch.equal(cone.project(v)[1::2], cone.project(other)[1::2])


# ------------------------------------------------------------------------------------------- kinks


def at_kinks(cone: ConvexCone) -> list[tuple[str, Tensor]]:
    v = sample(cone)
    p = cone.project(v)
    mixed = (size(p) > 1e-2) & (size(v - p) > 1e-2)
    return [("boundary", p[mixed]), ("polar", (v - p)[mixed]), ("zero", 0 * p)]


@pytest.mark.parametrize("cone", KINKED, ids=str)
@pytest.mark.parametrize("place", range(3), ids=["boundary", "polar", "zero"])
def test_kinks_take_the_least_element(cone: ConvexCone, place: int) -> None:
    name, v = at_kinks(cone)[place]
    noise = 1e-11 * sample(cone, len(v), seed=12)
    near = torch.full((len(v),), 1e-9, dtype=torch.float64)
    moved, kink = cone.snap(v + noise, near)
    assert kink.all()
    assert (moved - v).abs().max() < 1e-10
    D = cone.derivative(moved)
    if name == "boundary":
        y = sample(cone)
        y = (y - cone.project(y))[(size(cone.project(y)) > 1e-2) & (size(y - cone.project(y)) > 1e-2)]
        turning = cone in CURVED + DUALS  # fast, next to a face
        steady = ((v.abs() > 1e-3) & (y.abs() > 1e-3)).all(-1) | (not turning)
        assert (size((D @ y[:, :, None])[..., 0]) < 1e-6 * size(y))[steady].all()  # the normal direction
        ranks = torch.linalg.eigvalsh(D)
        assert (torch.minimum(ranks.abs(), (ranks - 1).abs()) < 1e-9).all()
        close((D @ moved[:, :, None])[..., 0], moved, 1e-9)
    else:
        assert D.abs().max() == 0
    assert D.isfinite().all()
    close(vmap(jacrev(cone.project))(moved), D)
    assert vmap(hessian(cone.project))(moved).isfinite().all()


@pytest.mark.parametrize("cone", KINKED, ids=str)
def test_snap_leaves_the_rest_alone(cone: ConvexCone) -> None:
    v = sample(cone)
    moved, kink = cone.snap(v, torch.full((len(v),), 1e-9, dtype=torch.float64))
    assert torch.equal(moved, v)
    assert not kink.any()
    moved, kink = cone.snap(v, torch.full((len(v),), 1e3, dtype=torch.float64))
    assert kink.all()


@pytest.mark.parametrize("cone", KINKED, ids=str)
def test_snap_takes_any_batch(cone: ConvexCone) -> None:
    v = torch.cat([place[:4] for _, place in at_kinks(cone)])
    v = torch.cat([v, sample(cone, 12 - len(v) % 12, seed=3)]) if len(v) % 12 else v
    near = torch.full((len(v),), 1e-9, dtype=torch.float64)
    moved, kink = cone.snap(v, near)
    some, those = cone.snap(v.unflatten(0, (2, -1)), near.unflatten(0, (2, -1)))
    close(some.flatten(0, 1), moved, 1e-14)
    assert torch.equal(those.flatten(0, 1), kink)
    close(torch.stack([cone.snap(row, near[0])[0] for row in v]), moved, 1e-14)


@pytest.mark.parametrize("cone", [Exponential(), DualExponential(), *POWERS], ids=str)
def test_snap_from_inside(cone: ConvexCone) -> None:
    """Inside of K, and of its polar, the boundary is near as well."""
    v = sample(cone)
    p = cone.project(v)
    y = v - p
    use = (size(p) > 0.1) & (size(y) > 0.1)
    inner = 0.5 * (cone.project(sample(cone, seed=20)) + cone.project(sample(cone, seed=21)))
    near = torch.full((int(use.sum()),), 1e-9, dtype=torch.float64)
    just_inside = (p + 1e-11 * inner)[use]
    moved, kink = cone.snap(just_inside, near)
    assert kink.all()
    assert (moved - just_inside).abs().max() < 1e-9


def touched(cone: ConvexCone, v: Tensor) -> list[Tensor]:
    """The boundary points of K whose normals `outer_normals` promises, for v inside."""
    if isinstance(cone, Exponential):
        x, y, z = v.unbind(-1)
        return [torch.stack([x, y, y * (x / y).exp()], -1), torch.stack([y * (z / y).log(), y, z], -1)]
    m = len(cone.alphas)
    x, z = v[..., :m], v[..., m:]
    bound = (x ** torch.tensor(cone.alphas, dtype=v.dtype)).prod(-1, keepdim=True)
    return [torch.cat([x, bound * z / z.norm(dim=-1, keepdim=True)], -1)]


def touched_by_the_polar(cone: ConvexCone, v: Tensor) -> list[Tensor]:
    """The same of the polar cone, for `rays`."""
    if isinstance(cone, Exponential):
        x, y, z = v.unbind(-1)
        same_xy, same_xz = -x * (y / x - 1).exp(), x * (1 + (-z / x).log())
        return [torch.stack([x, y, same_xy], -1), torch.stack([x, same_xz, z], -1)]
    m, alphas = len(cone.alphas), torch.tensor(cone.alphas, dtype=v.dtype)
    x, z = v[..., :m], v[..., m:]
    bound = ((-x / alphas) ** alphas).prod(-1, keepdim=True)
    return [torch.cat([x, bound * z / z.norm(dim=-1, keepdim=True)], -1)]


@pytest.mark.parametrize("cone", CURVED, ids=str)
def test_normals_touch_the_cone_where_they_say(cone: ConvexCone) -> None:
    """Unit vectors of the polar cone, and of K itself: one is orthogonal to each point that is named."""

    def inside(cone: ConvexCone) -> Tensor:
        return (
            cone.project(sample(cone))
            + cone.project(sample(cone, seed=1))
            + cone.project(sample(cone, seed=2))
        )

    v, w = inside(cone), -inside(cone.dual)
    v, w = v[(v[:, :2] != 0).all(-1)], w[(w[:, :2] != 0).all(-1)]
    normals, rays = cone.outer_normals(v), cone.rays(w)
    assert cone.dual.contains(-normals, 1e-12).all()
    assert cone.contains(rays, 1e-12).all()
    for vectors, points in ((normals, touched(cone, v)), (rays, touched_by_the_polar(cone, w))):
        assert vectors.shape == (len(points[0]), *vectors.shape[1:])
        close(size(vectors), torch.ones_like(size(vectors)))
        for point in points:
            heights = (vectors * point.unsqueeze(-2)).sum(-1).abs().amin(-1)
            assert (heights <= 1e-12 * size(point)).all()


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_root_next_to_a_logarithm_s_end_takes_three_evaluations(end: float) -> None:
    """Newton in the logarithm of the distance to the end is exact there; bisection would take forty."""
    evaluations = []

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        evaluations.append(x)
        distance = (x - end).abs()
        return (1 - 2 * end) * (distance.log() + 20.0), 1 / distance

    zero = torch.zeros(1, 1, dtype=torch.float64)
    root = increasing_root(function, zero, zero + 1, zero + 0.3)
    assert (root - end).abs().item() == pytest.approx(math.exp(-20.0), rel=1e-7)
    assert len(evaluations) <= 3


def test_kinks_of_the_exponential_cones_flat_faces() -> None:
    cone = Exponential()
    v = torch.tensor(
        [[1e-12, -1.0, 1.0], [-1.0, -1.0, 1e-12], [-1.0, 1e-12, 1.0], [0.0, -1.0, -1.0]]
    ).double()
    moved, kink = cone.snap(v, torch.full((4,), 1e-10, dtype=torch.float64))
    assert kink.all()
    expected = [[0.0, -1.0, 1.0], [-1.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, -1.0, -1.0]]
    assert moved.tolist() == expected
    D = cone.derivative(moved).diagonal(dim1=1, dim2=2)
    assert D.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("x", [[1.0, -1.0], [-1.0, 1.0], [2.0, -0.3], [-0.7, 5.0]])
def test_the_power_cones_derivative_is_continuous_at_z_zero(alpha: float, x: list[float]) -> None:
    cone = Power(alpha)
    exactly, nearly = (torch.tensor([*x, z], dtype=torch.float64) for z in (0.0, 1e-20))
    close(cone.derivative(exactly), cone.derivative(nearly), 1e-9)


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (np.eye(4), 10),
        (np.zeros((4, 4)), 0),
        (np.ones((4, 4)), 4),  # rank one: the other eigenvalue, 0, is repeated
        (-np.diag([1.0, 2.0, 2.0, 3.0]), 0),
        (np.diag([2.0, 2.0, -1.0, -1.0]), None),
    ],
    ids=["identity", "zero", "rank one", "negative", "repeated"],
)
def test_semidefinite_with_repeated_and_zero_eigenvalues(matrix: np.ndarray, rank: int | None) -> None:
    cone = Semidefinite(4)
    v = svec(torch.from_numpy(matrix))
    D, H = cone.derivative(v), hessian(cone.project)(v)
    assert D.isfinite().all()
    assert H.isfinite().all()
    close(jacrev(cone.project)(v), D)
    if rank is not None:
        close(D.trace(), torch.tensor(float(rank), dtype=torch.float64))
    else:
        h = 1e-5
        steps = h * torch.eye(10, dtype=torch.float64)
        close(
            torch.stack([(cone.project(v + s) - cone.project(v - s)) / (2 * h) for s in steps], -1), D, 1e-8
        )
        close(
            torch.stack([(cone.derivative(v + s) - cone.derivative(v - s)) / (2 * h) for s in steps], -1),
            H,
            1e-8,
        )


# ------------------------------------------------------------------------------- closed forms, scales


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_semidefinite_closed_form(n: int, scale: float) -> None:
    rng = np.random.default_rng(n)
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    eigenvalues = scale * rng.normal(size=n)
    v = svec(torch.from_numpy((Q * eigenvalues) @ Q.T))
    expected = svec(torch.from_numpy((Q * eigenvalues.clip(0)) @ Q.T))
    cone = Semidefinite(n)
    assert (cone.project(v) - expected).abs().max() < 1e-13 * scale
    positive = int((eigenvalues > 0).sum())
    d = cone.spectrum(v).d
    assert int((d == 1).sum()) == triangle(positive)
    assert int((d == 0).sum()) == triangle(n - positive)


def test_second_order_frames_are_orthonormal_in_every_direction() -> None:
    """A Householder vector must not cancel: not for x along -e₁, nor next to it."""
    v = torch.tensor([[0.5, sign, tilt, 0.0] for sign in (-1.0, 1.0) for tilt in (0.0, 1e-9, -1e-4)])
    _, W = SecondOrder(4).eigen(v.to(torch.float64))
    close(W.mT @ W, torch.eye(4, dtype=torch.float64).expand_as(W), 1e-14)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_second_order_closed_form(scale: float) -> None:
    cone = SecondOrder(50)
    v = scale * sample(cone)
    length = size(v[:, 1:])
    v[:, 0] = length * torch.linspace(-0.99, 0.99, len(v), dtype=torch.float64)
    factor = 0.5 * (v[:, 0] + length)
    expected = factor[:, None] * torch.cat([torch.ones_like(v[:, :1]), v[:, 1:] / length[:, None]], 1)
    assert ((cone.project(v) - expected).abs().amax(1) <= 1e-14 * size(v)).all()


def exact_exponential(v: list[float]) -> list[mpmath.mpf]:
    """By bisection of a e^ρ - b e^-ρ = z, in 50 digits."""
    mp = mpmath.mp
    x, y, z = (mpmath.mpf(c) for c in v)
    if (y > 0 and z > 0 and x <= y * mp.log(z / y)) or (y == 0 and x <= 0 <= z):
        return [x, y, z]
    if (x > 0 and z < 0 and y <= x * (1 + mp.log(-z / x))) or (x == 0 and y <= 0 and z <= 0):
        return [mpmath.mpf(0)] * 3
    if x <= 0 and y <= 0:
        return [x, mpmath.mpf(0), max(z, mpmath.mpf(0))]
    low, high = (1 - y / x if x > 0 else None), (x / y if y > 0 else None)

    def a(rho: mpmath.mpf) -> mpmath.mpf:
        return ((rho - 1) * x + y) / (rho * rho - rho + 1)

    def residual(rho: mpmath.mpf) -> mpmath.mpf:
        top, bottom = a(rho), (x - rho * y) / (rho * rho - rho + 1)
        if top <= 0 or bottom <= 0:
            return mpmath.mpf(-1 if top <= 0 else 1)
        return rho + mp.log(top / bottom) / 2 - mp.asinh(z / (2 * mp.sqrt(top * bottom)))

    width = mpmath.mpf(1)
    if low is None:
        while residual(high - width) > 0:
            width *= 2
        low = high - width
    if high is None:
        while residual(low + width) < 0:
            width *= 2
        high = low + width
    rho = bisected(residual, low, high)
    if rho > 120:  # e^ρ is out of the reach of 50 digits: the limit
        return [mpmath.mpf(0), mpmath.mpf(0), max(z, mpmath.mpf(0))]
    return [a(rho) * rho, a(rho), a(rho) * mp.exp(rho)]


def exact_power(v: list[float], alphas: tuple[float, ...]) -> list[mpmath.mpf]:
    """By bisection of log r = Σ αᵢ log xᵢ in log(r/(ζ - r)), in 50 digits."""
    mp, m = mpmath.mp, len(alphas)
    a = [mpmath.mpf(c) for c in alphas]
    x0, z = [mpmath.mpf(c) for c in v[:m]], [mpmath.mpf(c) for c in v[m:]]
    zeta = mp.sqrt(sum(c * c for c in z))
    if min(x0) >= 0 and mpmath.fprod(c**e for c, e in zip(x0, a)) >= zeta:
        return x0 + z
    if max(x0) <= 0 and mpmath.fprod((-c / e) ** e for c, e in zip(x0, a)) >= zeta:
        return [mpmath.mpf(0)] * len(v)
    if zeta == 0:
        return [max(c, mpmath.mpf(0)) for c in x0] + z

    def at(s: mpmath.mpf) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
        r, b = zeta / (1 + mp.exp(-s)), zeta / (1 + mp.exp(s))
        roots = [mp.sqrt(c * c + 4 * e * r * b) for c, e in zip(x0, a)]
        return r, [
            (c + root) / 2 if c > 0 else 2 * e * r * b / (root - c) for c, e, root in zip(x0, a, roots)
        ]

    def residual(s: mpmath.mpf) -> mpmath.mpf:
        r, x = at(s)
        return mp.log(r) - sum(e * mp.log(c) for e, c in zip(a, x))

    reach = mpmath.mpf(1)
    while reach < 1e6 and (residual(reach) < 0 or residual(-reach) > 0):
        reach *= 2
    r, x = at(bisected(residual, -reach, reach))
    return x + [r * c / zeta for c in z]


def bisected(f: Callable[[mpmath.mpf], mpmath.mpf], low: mpmath.mpf, high: mpmath.mpf) -> mpmath.mpf:
    for _ in range(220):
        middle = (low + high) / 2
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return (low + high) / 2


FACES = [
    [1.0, -1.0, 1e-9], [1e-9, -1.0, 1.0], [1e-9, -1.0, -1.0], [-1.0, 1e-9, 1e-9], [-1.0, 1e-9, -1.0],
    [1.0, 1e-9, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 1.0], [1.0, 0.0, -1.0],
    [5.0, 0.0, 0.0], [-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [0.0, -1.0, 1.0], [-1.0, 0.0, 0.0],
    [0.0, 0.0, -1.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, 2.0],
    [-1.0, -1.0, 1e3], [1e8, -1e8, 1e-8], [-1e8, 1e-8, 1.0],
]  # fmt: skip


@pytest.mark.parametrize("spread", [0.0, 4.0, 8.0])
@pytest.mark.parametrize("cone", CURVED, ids=str)
def test_fifty_digits(cone: ConvexCone, spread: float) -> None:
    v = scaled(cone, 25, power=spread)
    if cone.dim == 3:
        v = torch.cat([v, torch.tensor(FACES, dtype=torch.float64)])
    p, q = cone.project(v), cone.dual.project(-v)
    for i, row in enumerate(v.tolist()):
        exact = exact_exponential(row) if cone == Exponential() else exact_power(row, cone.alphas)
        unit = max(map(abs, row))
        wrong = max(abs(a - b) for a, b in zip(p[i].tolist(), exact))
        assert wrong <= 2e-15 * unit, (row, p[i], exact)
        wrong = max(abs(a - (b - c)) for a, b, c in zip(q[i].tolist(), exact, row))
        assert wrong <= 2e-15 * unit, (row, q[i])


@pytest.mark.parametrize("cone", [*CURVED, *DUALS], ids=str)
@pytest.mark.parametrize("spread", [2.0, 8.0])
def test_derivatives_are_finite_and_between_zero_and_one(cone: ConvexCone, spread: float) -> None:
    v = scaled(cone, 300, power=spread)
    v = torch.cat([v, torch.tensor(list(product([-1.0, 0.0, 1.0], repeat=cone.dim)), dtype=torch.float64)])
    D = cone.derivative(v)
    assert D.isfinite().all()
    ranks = torch.linalg.eigvalsh(D)
    assert ranks.min() > -1e-10
    assert ranks.max() < 1 + 1e-10
    assert (size((D @ v[:, :, None])[..., 0] - cone.project(v)) <= 1e-12 * size(v)).all()
    assert vmap(hessian(cone.project))(v).isnan().sum() == 0


@pytest.mark.parametrize(
    "cone", [SecondOrder(3), Semidefinite(3), Exponential(), Power(0.3), DualPower(0.3)], ids=str
)
def test_nan_stays_nan_and_alone(cone: ConvexCone) -> None:
    v = sample(cone, 3)
    clean = cone.project(v)
    v[1] = torch.nan
    p = cone.project(v)
    assert p[1].isnan().all()
    assert torch.equal(p[::2], clean[::2])
    assert cone.spectrum(v).d.shape == v.shape


# ------------------------------------------------------------------------------------------ products


def test_a_product_is_its_parts() -> None:
    v, w = sample(MIXED), sample(MIXED, seed=1)
    sizes = [cone.dim for cone in MIXED.cones]
    parts = list(zip(MIXED.cones, v.split(sizes, -1), w.split(sizes, -1)))
    close(MIXED.project(v), torch.cat([cone.project(a) for cone, a, _ in parts], -1))
    close(MIXED.jvp(v, w), torch.cat([cone.jvp(a, b) for cone, a, b in parts], -1))
    D = torch.zeros(len(v), MIXED.dim, MIXED.dim, dtype=torch.float64)
    start = 0
    for cone, a, _ in parts:
        D[:, start : start + cone.dim, start : start + cone.dim] = cone.derivative(a)
        start += cone.dim
    close(MIXED.derivative(v), D)
    d, W = MIXED.eigen(v)
    close(W @ torch.diag_embed(d) @ W.mT, D)


def test_equal_cones_are_one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    project = Exponential.project

    def counted(self: Exponential, v: Tensor, largest: bool = False) -> Tensor:
        calls.append(v.shape)
        return project(self, v, largest)

    monkeypatch.setattr(Exponential, "project", counted)
    cone = Product((Exponential(), Nonnegative(2)) * 8)
    cone.project(sample(cone, 5))
    assert calls == [(5, 8, 3)]


def test_blocks() -> None:
    cone = Product((Nonnegative(2), SecondOrder(3), Zero(1), Exponential()))
    assert cone.block.tolist() == [0, 1, 2, 2, 2, 3, 4, 4, 4]
    assert cone.blocks == 5
    a = torch.arange(9.0, dtype=torch.float64)[None] - 4
    assert cone.over_blocks(a).tolist() == [[-4, -3, 0, 0, 0, 1, 4, 4, 4]]
    assert cone.over_blocks(a, "sum").tolist() == [[-4, -3, -3, -3, -3, 1, 9, 9, 9]]
    values = sample(MIXED, 6)
    assert torch.equal(
        MIXED.over_blocks(values.unflatten(0, (2, 3))).flatten(0, 1), MIXED.over_blocks(values)
    )


def test_a_product_snaps_by_block() -> None:
    cone = Product((Nonnegative(2), SecondOrder(3), Free(1)))
    v = torch.tensor([[1e-9, 1e-9, 1.0 + 1e-9, 0.6, 0.8, 0.0]], dtype=torch.float64)
    tolerance = torch.tensor([[1e-8, 1e-10, 1e-8, 1e-8, 1e-8, 1.0]], dtype=torch.float64)
    moved, kink = cone.snap(v, tolerance)
    assert kink.tolist() == [[True, False, True, True, True, False]]
    assert moved[0, :2].tolist() == [0.0, 1e-9]
    close(cone.spectrum(moved).d.sum(), torch.tensor(0.0 + 1 + 2 + 1, dtype=torch.float64))


def test_spectra_turn_matrices_too() -> None:
    v = sample(MIXED, 5)
    M = torch.randn(5, MIXED.dim, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = MIXED.spectrum(v)
    close(spectrum.into(M)[..., 2], spectrum.into(M[..., 2]))
    close(spectrum.out(spectrum.into(M)), M)
    close(spectrum.out(spectrum.d[..., None] * spectrum.into(M)), MIXED.derivative(v) @ M)


def test_products_are_values() -> None:
    twin, copied = pickle.loads(pickle.dumps(MIXED)), copy.deepcopy(MIXED)
    assert twin == copied == MIXED == Product(MIXED.cones)
    assert hash(twin) == hash(MIXED)
    v = sample(MIXED, 3)
    assert torch.equal(twin.project(v), MIXED.project(v))
    assert Product((Power(0.3),)) != Product((Power(0.4),))
    with pytest.raises(AttributeError):
        MIXED.cones = ()  # type: ignore[misc]


def test_nothing_at_all() -> None:
    cone, v = Product(()), torch.zeros(3, 0, dtype=torch.float64)
    assert cone.project(v).shape == cone.jvp(v, v).shape == cone.spectrum(v).into(v).shape == (3, 0)
    assert cone.snap(v, v)[1].shape == cone.over_blocks(v).shape == (3, 0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Power(1.0),
        lambda: Power(0.0),
        lambda: GeneralizedPower((0.5, 0.4), 1),
        lambda: GeneralizedPower((0.5, 0.5), 0),
        lambda: SecondOrder(0),
        lambda: Semidefinite(0),
        lambda: DualPower(2.0),
    ],
)
def test_impossible_cones(build: Callable[[], ConvexCone]) -> None:
    with pytest.raises(ValueError, match=r"exponents|at least one row"):
        build()


# ------------------------------------------------------------------------------------------ any v

numbers = st.one_of(
    st.floats(-10, 10), st.floats(-1e8, 1e8), st.floats(-1e-8, 1e-8), st.sampled_from([0.0, 1.0, -1.0])
)


@pytest.mark.parametrize("cone", [*CURVED, DualExponential(), SecondOrder(4), Semidefinite(3)], ids=str)
@given(data=st.data())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_point(cone: ConvexCone, data: st.DataObject) -> None:
    row = data.draw(arrays(np.float64, cone.dim, elements=numbers))
    v = torch.from_numpy(row)
    scale = float(size(v))
    p, q = cone.project(v), cone.dual.project(-v)
    assert size(p - q - v) <= 1e-13 * scale
    assert abs(p @ q) <= 1e-13 * scale**2
    assert size(cone.project(p) - p) <= 1e-13 * scale
    D = cone.derivative(v)
    assert size(D @ v - p) <= 1e-11 * scale
    assert (cone.spectrum(v).matrix() - D).abs().max() <= 1e-12
    moved, kink = cone.snap(v, torch.tensor(1e-10 * scale, dtype=torch.float64))
    assert size(moved - v) <= 1e-8 * scale
    assert kink or torch.equal(moved, v)
