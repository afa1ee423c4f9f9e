"""The torch reading of cvxpy expressions, against cvxpy's own values, rule by rule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.wraps import (
    hermitian_wrap,
    nonneg_wrap,
    nonpos_wrap,
    nsd_wrap,
    psd_wrap,
    skew_symmetric_wrap,
    symmetric_wrap,
)
from cvxpy.atoms.atom import Atom
from scipy import sparse
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from optlayer.declare.atoms_affine import AFFINE
from optlayer.declare.atoms_smooth import SMOOTH
from optlayer.declare.refusals import REFUSED
from optlayer.declare.translate import RULES, Translation, translate
from optlayer.errors import DeclarationError

Array = np.ndarray

# torch's forward mode compiles its decompositions, by what it deprecates, when it is first used
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

# --- what leaves hold -----------------------------------------------------------------------------


def classes(translation):
    """Its monomials as (degree in the variables, whether a parameter enters the coefficient)."""
    return {(degree, parametric > 0) for degree, parametric in translation.monomials}


class Real:
    """Any number."""

    attributes: ClassVar[dict[str, Any]] = {}

    def point(self, rng: np.random.Generator, shape: tuple[int, ...], near: bool) -> Array:
        return rng.standard_normal(shape)

    def direction(self, rng: np.random.Generator, point: Array) -> Array:
        return rng.standard_normal(point.shape)


class Positive(Real):
    """Positive numbers; near the border about 1e-8."""

    def point(self, rng: np.random.Generator, shape: tuple[int, ...], near: bool) -> Array:
        return (10.0 ** rng.uniform(-9, -7, shape)) if near else rng.uniform(0.3, 2.0, shape)

    def direction(self, rng: np.random.Generator, point: Array) -> Array:
        return point * rng.uniform(-1, 1, point.shape)


class Nonnegative(Positive):
    """Positive numbers, as an attribute too."""

    attributes: ClassVar[dict[str, Any]] = {"nonneg": True}


class AboveMinusOne(Positive):
    """Numbers above -1."""

    def point(self, rng: np.random.Generator, shape: tuple[int, ...], near: bool) -> Array:
        return (0.0 if near else -1.0) + super().point(rng, shape, near)


class Large(Real):
    """Numbers of size 1000."""

    def point(self, rng: np.random.Generator, shape: tuple[int, ...], near: bool) -> Array:
        return 3.0 * rng.standard_normal(shape) + (1e3 * rng.choice([-1, 1], shape) if near else 0)


class Definite(Real):
    """Positive definite matrices; near the border with one eigenvalue 1e-5."""

    attributes: ClassVar[dict[str, Any]] = {"PSD": True}

    def point(self, rng: np.random.Generator, shape: tuple[int, ...], near: bool) -> Array:
        basis, _ = np.linalg.qr(rng.standard_normal(shape))
        eigenvalues = rng.uniform(0.5, 2.0, shape[0])
        eigenvalues[0] = 1e-5 if near else eigenvalues[0]
        matrix = basis * eigenvalues @ basis.T
        return (matrix + matrix.T) / 2

    def direction(self, rng: np.random.Generator, point: Array) -> Array:
        noise = rng.standard_normal(point.shape)
        return np.linalg.eigvalsh(point)[0] * (noise + noise.T)


REAL, POSITIVE, NONNEGATIVE, DEFINITE = Real(), Positive(), Nonnegative(), Definite()
ABOVE_MINUS_ONE, LARGE = AboveMinusOne(), Large()


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`build(*variables, *parameters)`, with the shapes and domains of the leaves."""

    name: str
    build: Callable[..., cp.Expression]
    variables: list[tuple[tuple[int, ...], Real]]
    parameters: list[tuple[tuple[int, ...], Real]]
    apex: bool = False


def case(name: str, build: Callable[..., cp.Expression], *shapes: Any, apex: bool = False) -> Case:
    """`shapes`: one per leaf, alone or with a domain; the first is the variable's."""
    leaves = [s if len(s) == 2 and isinstance(s[1], Real) else (s, REAL) for s in shapes]
    return Case(name, build, leaves[:1], leaves[1:], apex)


SPARSE = sparse.random_array((4, 3), density=0.5, rng=0, format="csc")
TENSOR = np.random.default_rng(1).standard_normal((2, 3, 4))
MASK = np.array([[True, False, True], [False, True, True]])


def _conv(a: Any, z: cp.Expression) -> cp.Expression:
    with pytest.warns(DeprecationWarning, match="conv is deprecated"):
        return cp.conv(a, z)


AFFINE_CASES = [
    case("leaf", lambda z: z, (2, 3)),
    case("scalar leaf", lambda z: z, ()),
    case("constant", lambda z: cp.Constant([1.0, 2.0]), (3,)),
    case("add", lambda z, x: z + x + 2, (3,), (3,)),
    case("add broadcasts", lambda z, x: z + x, (2, 3), (3,)),
    case("add promotes", lambda z, x: z + x, (2, 3), ()),
    case("neg", lambda z: -z, (2, 3)),
    case("subtract", lambda z, x: x - 2 * z, (3,), (3,)),
    case("scale", lambda z, x: x * z, (2, 3), ()),
    case("matmul", lambda z, G: G @ z, (3,), (2, 3)),
    case("matmul matrices", lambda z, G: z @ G, (2, 3), (3, 4)),
    case("matmul dot", lambda z, c: c @ z, (3,), (3,)),
    case("matmul row", lambda z, c: c @ z, (3, 2), (3,)),
    case("matmul sparse", lambda z: SPARSE @ z, (3,)),
    case("matmul sparse scaled", lambda z, x: x * (SPARSE @ z), (3,), ()),
    case("matmul batched", lambda z, G: G @ z, (2, 3, 4), (2, 5, 3)),
    case("matmul batched vector", lambda z: TENSOR @ z, (4,)),
    case("multiply", lambda z, x: cp.multiply(x, z), (2, 3), (2, 3)),
    case("multiply broadcasts", lambda z, x: cp.multiply(x, z), (2, 3), (3,)),
    case("multiply sparse", lambda z: cp.multiply(SPARSE, z), (4, 3)),
    case("divide", lambda z, x: z / x, (2, 3), ((3,), POSITIVE)),
    case("kron", lambda z, x: cp.kron(x, z), (2, 2), (3, 2)),
    case("kron reversed", lambda z, x: cp.kron(z, x), (2, 2), (1, 3)),
    case("conv", lambda z, a: _conv(a, z), (4,), (3,)),
    case("conv columns", lambda z, a: _conv(a, z), (4, 1), (3, 1)),
    case("convolve", lambda z, a: cp.convolve(a, z), (2,), (5,)),
    case("convolve longer", lambda z, a: cp.convolve(a, z), (5,), (2,)),
    case("sum", lambda z: cp.sum(z), (2, 3)),
    case("sum of scalar", lambda z: cp.sum(z), ()),
    case("sum axis", lambda z: cp.sum(z, axis=1), (2, 3)),
    case("sum axis keepdims", lambda z: cp.sum(z, axis=-2, keepdims=True), (2, 3)),
    case("sum axes", lambda z: cp.sum(z, axis=(0, 2)), (2, 3, 2)),
    case("sum keepdims", lambda z: cp.sum(z, keepdims=True), (2, 3)),
    case("mean", lambda z: cp.mean(z, axis=0), (2, 3)),
    case("trace", lambda z: cp.trace(z), (3, 3)),
    case("trace batched", lambda z: cp.trace(z), (2, 3, 3)),
    case("trace of product", lambda z, x: cp.trace(z @ x), (2, 3), (3, 2)),
    case("cumsum", lambda z: cp.cumsum(z, axis=1), (2, 3)),
    case("cumsum flat", lambda z: cp.cumsum(z, axis=None), (2, 3)),
    case("cumsum 3d", lambda z: cp.cumsum(z, axis=-1), (2, 3, 2)),
    case("diff", lambda z: cp.diff(z, 2), (5,)),
    case("reshape F", lambda z: cp.reshape(z, (3, 2), order="F"), (2, 3)),
    case("reshape C", lambda z: cp.reshape(z, (3, 2), order="C"), (2, 3)),
    case("reshape F 3d", lambda z: cp.reshape(z, (4, 3, 2), order="F"), (2, 3, 4)),
    case("reshape F to scalar", lambda z: cp.reshape(z, (), order="F"), (1, 1)),
    case("reshape C 3d", lambda z: cp.reshape(z, (6, 4), order="C"), (2, 3, 4)),
    case("vec F", lambda z: cp.vec(z, order="F"), (2, 3)),
    case("vec C", lambda z: cp.vec(z, order="C"), (2, 3)),
    case("squeeze", lambda z: cp.squeeze(z), (2, 1, 3)),
    case("transpose", lambda z: z.T, (2, 3)),
    case("transpose 3d", lambda z: z.T, (2, 3, 4)),
    case("permute", lambda z: cp.permute_dims(z, [1, 2, 0]), (2, 3, 4)),
    case("swapaxes", lambda z: cp.swapaxes(z, 0, 2), (2, 3, 4)),
    case("moveaxis", lambda z: cp.moveaxis(z, 0, -1), (2, 3, 4)),
    case("promote", lambda z: cp.promote(z, (2, 3)), ()),
    case("broadcast", lambda z: cp.broadcast_to(z, (2, 3)), (3,)),
    case("index", lambda z: z[1], (3,)),
    case("index negative", lambda z: z[-1, 0], (2, 3)),
    case("index slice", lambda z: z[1:, ::2], (2, 4)),
    case("index backwards", lambda z: z[::-1, 2:0:-1], (2, 4)),
    case("index 3d", lambda z: z[..., 1], (2, 3, 4)),
    case("index new axis", lambda z: z[None, :], (3,)),
    case("index list", lambda z: z[[2, 0, 0]], (3,)),
    case("index lists", lambda z: z[[1, 0], [2, 1]], (2, 3)),
    case("index rows", lambda z: z[[1, 0, 1]], (2, 3)),
    case("index mask", lambda z: z[MASK], (2, 3)),
    case("diag of vector", lambda z: cp.diag(z), (3,)),
    case("diag of vector, above", lambda z: cp.diag(z, k=1), (3,)),
    case("diag of matrix", lambda z: cp.diag(z), (3, 3)),
    case("diag of matrix, below", lambda z: cp.diag(z, k=-1), (3, 3)),
    case("upper_tri", lambda z: cp.upper_tri(z), (4, 4)),
    case("upper_tri batched", lambda z: cp.upper_tri(z), (2, 3, 3)),
    case("vec_to_upper_tri", lambda z: cp.vec_to_upper_tri(z), (6,)),
    case("vec_to_upper_tri strict", lambda z: cp.vec_to_upper_tri(z, strict=True), (3,)),
    case("vstack", lambda z, x: cp.vstack([z, x]), (2, 3), (1, 3)),
    case("vstack vectors", lambda z, x: cp.vstack([z, x]), (3,), (3,)),
    case("hstack", lambda z, x: cp.hstack([z, x]), (2, 3), (2, 1)),
    case("hstack vectors", lambda z, x: cp.hstack([z, x, 1.0]), (3,), ()),
    case("concatenate", lambda z, x: cp.concatenate([z, x], axis=1), (2, 3), (2, 2)),
    case("concatenate flat", lambda z, x: cp.concatenate([z, x], axis=None), (2, 3), (3,)),
    case("stack", lambda z, x: cp.stack([z, x], axis=-1), (2, 3), (2, 3)),
    case("bmat", lambda z, x: cp.bmat([[z, x], [x.T, np.eye(2)]]), (3, 3), (3, 2)),
    case("outer", lambda z, x: cp.outer(x, z), (3,), (2,)),
    case("vdot", lambda z, x: cp.vdot(x, z), (2, 3), (2, 3)),
    case("scalar_product", lambda z, x: cp.scalar_product(x, z), (3,), (3,)),
    case("einsum", lambda z, x: cp.einsum("ij,jk->ki", x, z), (3, 2), (4, 3)),
    case("partial_trace", lambda z: cp.partial_trace(z, (2, 3), 1), (6, 6)),
    case("partial_transpose", lambda z: cp.partial_transpose(z, (2, 2), 0), (4, 4)),
    case("real", lambda z: cp.real(z), (3,)),
    case("imag", lambda z: cp.imag(z), (3,)),
    case("conj", lambda z: cp.conj(z), (3,)),
    case("psd_wrap", lambda z: psd_wrap(z), (2, 2)),
    case("nsd_wrap", lambda z: nsd_wrap(z), (2, 2)),
    case("nonneg_wrap", lambda z: nonneg_wrap(z), (2,)),
    case("nonpos_wrap", lambda z: nonpos_wrap(z), (2,)),
    case("symmetric_wrap", lambda z: symmetric_wrap(z), (2, 2)),
    case("hermitian_wrap", lambda z: hermitian_wrap(z), (2, 2)),
    case("skew_symmetric_wrap", lambda z: skew_symmetric_wrap(z), (2, 2)),
]

WEIGHTS = [1, 0, 2, 3]
SMOOTH_CASES = [
    case("exp", lambda z: cp.exp(z), (2, 3)),
    case("xexp", lambda z: cp.xexp(z), ((3,), NONNEGATIVE)),
    case("log", lambda z: cp.log(z), ((3,), POSITIVE)),
    case("log of parameters", lambda z, x: cp.log(x + z), ((3,), POSITIVE), ((3,), POSITIVE)),
    case("log1p", lambda z: cp.log1p(z), ((3,), ABOVE_MINUS_ONE)),
    case("entr", lambda z: cp.entr(z), ((3,), POSITIVE)),
    case("rel_entr", lambda z, x: cp.rel_entr(z, x), ((3,), POSITIVE), ((3,), POSITIVE)),
    case("rel_entr reversed", lambda z, x: cp.rel_entr(x, z), ((3,), POSITIVE), ((3,), POSITIVE)),
    case("rel_entr promotes", lambda z, x: cp.rel_entr(z, x), ((3,), POSITIVE), ((), POSITIVE)),
    case("kl_div", lambda z, x: cp.kl_div(z, x), ((3,), POSITIVE), ((3,), POSITIVE)),
    case("logistic", lambda z: cp.logistic(z), ((5,), LARGE)),
    case("huber", lambda z: cp.huber(3 * z), (5,)),
    case("huber M", lambda z, M: cp.huber(3 * z, M), (5,), ((), NONNEGATIVE)),
    case("square", lambda z: cp.square(z), (3,)),
    case("power 0", lambda z: cp.power(z, 0), (3,)),
    case("power 1", lambda z: cp.power(z, 1), (3,)),
    case("power 3", lambda z: cp.power(z, 3), ((3,), POSITIVE)),
    case("power 4", lambda z: z**4, (3,)),
    case("power 1.5", lambda z: cp.power(z, 1.5), ((3,), POSITIVE)),
    case("power 0.3", lambda z: cp.power(z, 0.3), ((3,), POSITIVE)),
    case("power -2", lambda z: cp.power(z, -2), ((3,), POSITIVE)),
    case("power exact", lambda z: cp.power(z, 0.7, approx=False), ((3,), POSITIVE)),
    case("power of parameter", lambda z, p: cp.power(z, p), ((3,), POSITIVE), ((), POSITIVE)),
    case("power base", lambda z: cp.power(2, z), (3,)),
    case("sqrt", lambda z: cp.sqrt(z), ((3,), POSITIVE)),
    case("inv_pos", lambda z: cp.inv_pos(z), ((3,), POSITIVE)),
    case("inv_prod", lambda z: cp.inv_prod(z), ((3,), POSITIVE)),
    case("quad_form", lambda z, P: cp.quad_form(z, P), (3,), ((3, 3), DEFINITE)),
    case("quad_form column", lambda z: cp.quad_form(z, np.diag([1.0, 2.0])), (2, 1)),
    case("quad_form constant", lambda z, x: cp.quad_form(z - x, np.eye(3)), (3,), (3,)),
    case("sum_squares", lambda z, x: cp.sum_squares(z - x), (2, 3), (2, 3)),
    case("sum_squares axis", lambda z: cp.sum_squares(z, axis=0), (2, 3)),
    case("quad_over_lin", lambda z, y: cp.quad_over_lin(z, y), (2, 3), ((), POSITIVE)),
    case("quad_over_lin variable", lambda z: cp.quad_over_lin(z[1:], z[0]), ((3,), POSITIVE)),
    case(
        "quad_over_lin axis",
        lambda z, y: cp.quad_over_lin(z, y, axis=1, keepdims=True),
        (2, 3),
        ((1,), POSITIVE),
    ),
    case("var", lambda z: cp.var(z), (4,)),
    case("log_sum_exp", lambda z: cp.log_sum_exp(z), ((2, 3), LARGE)),
    case("log_sum_exp of scalar", lambda z: cp.log_sum_exp(z), ()),
    case("log_sum_exp axis", lambda z: cp.log_sum_exp(z, axis=1, keepdims=True), (2, 3)),
    case("log_sum_exp axes", lambda z: cp.log_sum_exp(z, axis=(0, 2)), (2, 2, 2)),
    case("geo_mean", lambda z: cp.geo_mean(z), ((3,), POSITIVE)),
    case("geo_mean exact", lambda z: cp.geo_mean(z, [1, 2, 0.3], approx=False), ((3,), POSITIVE)),
    case("geo_mean weights", lambda z: cp.geo_mean(z, WEIGHTS), ((4,), POSITIVE)),
    case("geo_mean matrix weights", lambda z: cp.geo_mean(z, WEIGHTS), ((2, 2), POSITIVE)),
    case("geo_mean one weight", lambda z: cp.geo_mean(z, [0, 0, 2]), (3,)),
    case("geo_mean axis", lambda z: cp.geo_mean(z, [1, 0, 2], axis=1), ((2, 3), POSITIVE)),
    case(
        "geo_mean axes",
        lambda z: cp.geo_mean(z, WEIGHTS, axis=(0, 2), keepdims=True),
        ((2, 3, 2), POSITIVE),
    ),
    case("harmonic_mean", lambda z: cp.harmonic_mean(z), ((3,), POSITIVE)),
    case("pnorm 0.5", lambda z: cp.pnorm(z, 0.5), ((3,), POSITIVE)),
    case("pnorm -1 keepdims", lambda z: cp.pnorm(z, -1, keepdims=True), ((3, 2), POSITIVE)),
    case("log_det", lambda z: cp.log_det(z), ((3, 3), DEFINITE)),
    case("tr_inv", lambda z: cp.tr_inv(z), ((3, 3), DEFINITE)),
    case("matrix_frac", lambda z, P: cp.matrix_frac(z, P), (3,), ((3, 3), DEFINITE)),
    case("matrix_frac matrix", lambda z, P: cp.matrix_frac(z, P), (3, 2), ((3, 3), DEFINITE)),
    case("norm2", lambda z: cp.norm2(z), (3,), apex=True),
    case("norm2 axis", lambda z: cp.norm(z, 2, axis=1), (2, 3), apex=True),
    case("norm fro", lambda z: cp.norm(z, "fro"), (2, 3), apex=True),
    case("pnorm 3", lambda z: cp.pnorm(z, 3), (3,), apex=True),
    case("pnorm 4 exact", lambda z: cp.pnorm(z, 4, approx=False), (3, 2), apex=True),
    case("pnorm 1.5", lambda z: cp.pnorm(z, 1.5, keepdims=True), (3, 1), apex=True),
    case("std", lambda z: cp.std(z), (4,), apex=True),
    case(
        "composition",
        lambda z, A, b: cp.sum(cp.logistic(A @ z + b)) + cp.log_sum_exp(cp.exp(z) - z[::-1]),
        (3,),
        (4, 3),
        (4,),
    ),
]
CASES = AFFINE_CASES + SMOOTH_CASES
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
smooth_case = pytest.mark.parametrize("case", SMOOTH_CASES, ids=lambda c: c.name)


class Built:
    """A case with its leaves made and its expression translated."""

    def __init__(self, case: Case, seed: int = 0, near: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.domains = [domain for _, domain in case.variables + case.parameters]
        variables = [cp.Variable(s, **d.attributes) for s, d in case.variables]
        parameters = [cp.Parameter(s, **d.attributes) for s, d in case.parameters]
        self.leaves = [*variables, *parameters]
        self.expression = case.build(*self.leaves)
        self.translation = translate(self.expression, variables, parameters, apex=case.apex)
        self.near = near

    def point(self) -> list[Array]:
        return [
            domain.point(self.rng, leaf.shape, self.near)
            for domain, leaf in zip(self.domains, self.leaves, strict=True)
        ]

    def reference(self, point: list[Array]) -> Array:
        """cvxpy's own value."""
        for leaf, value in zip(self.leaves, point, strict=True):
            leaf.save_value(np.asarray(value))
        value = self.expression.value
        dense = value.toarray() if sparse.issparse(value) else np.asarray(value, dtype=float)
        return dense.reshape(self.expression.shape)

    def value(self, point: list[Array]) -> torch.Tensor:
        return self.translation.function(*tensors(point))

    def scalar(self, flat: torch.Tensor) -> torch.Tensor:
        """A weighted sum of the value's entries, of all leaves in one vector."""
        sizes = [leaf.size for leaf in self.leaves]
        pieces = zip(flat.split(sizes), self.leaves, strict=True)
        value = self.translation.function(*[p.reshape(leaf.shape) for p, leaf in pieces])
        return (value.reshape(-1) * torch.arange(1.0, 1 + value.numel()).to(flat).sin()).sum()

    def flat_point(self) -> torch.Tensor:
        return torch.cat([value.reshape(-1) for value in tensors(self.point())])


def tensors(point: list[Array]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64) for value in point)


# --- values and derivatives -----------------------------------------------------------------------


@pytest.mark.parametrize("near", [False, True], ids=["inside", "near the border"])
@every_case
def test_value_is_cvxpy_s(case: Case, near: bool) -> None:
    built = Built(case, near=near)
    for _ in range(3):
        point = built.point()
        expected, got = built.reference(point), built.value(point)
        assert got.shape == expected.shape == built.expression.shape
        tolerance = 1e-9 if near and DEFINITE in built.domains else 1e-12
        np.testing.assert_allclose(got.numpy(), expected, rtol=tolerance, atol=1e-14)


@pytest.mark.parametrize("near", [False, True], ids=["inside", "near the border"])
@every_case
def test_derivative_is_that_of_cvxpy_s_value(case: Case, near: bool) -> None:
    built, h = Built(case, seed=1, near=near), 1e-4
    for _ in range(3):
        point = built.point()
        along = [d.direction(built.rng, p) for d, p in zip(built.domains, point, strict=True)]

        def moved(t: float, point: list[Array] = point, along: list[Array] = along) -> Array:
            return built.reference([p + t * d for p, d in zip(point, along, strict=True)])

        slope = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
        _, got = jvp(built.translation.function, tensors(point), tensors(along))
        scale = np.abs(built.reference(point)).max(initial=1e-300)
        tolerance = 1e-5 if near and DEFINITE in built.domains else 1e-7  # cvxpy inverts there
        np.testing.assert_allclose(got.numpy(), slope, rtol=tolerance, atol=1e-10 * scale + 1e-14)


@every_case
def test_gradcheck(case: Case) -> None:
    built = Built(case, seed=2)
    inputs = tuple(t.requires_grad_() for t in tensors(built.point()))
    assert torch.autograd.gradcheck(built.translation.function, inputs, check_forward_ad=True)


@smooth_case
def test_gradgradcheck(case: Case) -> None:
    built = Built(case, seed=3)
    flat = built.flat_point().requires_grad_()
    assert torch.autograd.gradgradcheck(built.scalar, (flat,), check_fwd_over_rev=True)


@every_case
def test_batched_hessian_is_the_looped_one(case: Case) -> None:
    built = Built(case, seed=4)
    points = torch.stack([built.flat_point() for _ in range(3)])
    batched = vmap(jacrev(grad(built.scalar)))(points)
    looped = torch.stack([jacfwd(grad(built.scalar))(point) for point in points])
    torch.testing.assert_close(batched, looped, rtol=1e-10, atol=1e-11)


NESTINGS = {
    "reverse": lambda f: jacrev(jacrev(grad(f))),
    "forward over reverse": lambda f: jacfwd(jacrev(grad(f))),
    "reverse over forward": lambda f: jacrev(jacfwd(grad(f))),
    "forward": lambda f: jacfwd(jacfwd(jacfwd(f))),
}


@pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS.keys())
@smooth_case
def test_third_derivative(case: Case, nesting: Callable[..., Any]) -> None:
    built, h = Built(case, seed=5), 1e-4
    point = built.flat_point()
    direction = torch.cos(torch.arange(1.0, 1 + len(point), dtype=point.dtype))
    hessian = jacrev(grad(built.scalar))
    slope = (hessian(point + h * direction) - hessian(point - h * direction)) / (2 * h)
    third = vmap(nesting(built.scalar))(point[None])[0]
    scale = third.abs().max().item()
    torch.testing.assert_close(third @ direction, slope, rtol=1e-5, atol=1e-5 * scale + 1e-9)


def _at(build: Callable[..., cp.Expression], *values: Any) -> Any:
    """Value and gradients of a sum, at exact points."""
    leaves = [cp.Variable(np.shape(v)) for v in values]
    function = translate(cp.sum(build(*leaves)), leaves, []).function
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    value = function(*inputs)
    return value.item(), *[g.tolist() for g in torch.autograd.grad(value, inputs)]


def test_exact_points_of_the_border() -> None:
    assert _at(cp.entr, [0.0, 1.0]) == (0.0, [math.inf, -1.0])
    assert _at(cp.rel_entr, [0.0, 1.0], [0.5, 1.0]) == (0.0, [-math.inf, 1.0], [0.0, -1.0])
    assert _at(cp.kl_div, [0.0], [0.5]) == (0.5, [-math.inf], [1.0])
    assert _at(lambda z: z**2, [0.0]) == (0.0, [0.0])
    assert _at(cp.logistic, [0.0, 1e3, -1e3]) == (math.log(2) + 1e3, [0.5, 1.0, 0.0])
    assert _at(cp.huber, [0.0, 1.0, -3.0]) == (6.0, [0.0, 2.0, -2.0])


@pytest.mark.parametrize("exponent", [2, 3, 4])
def test_integer_powers_are_smooth_at_zero(exponent: int) -> None:
    z = cp.Variable()
    derivative = translate(cp.power(z, exponent), [z], []).function
    zero = torch.zeros((), dtype=torch.float64)
    for order in range(1, 5):
        derivative = grad(derivative)
        assert derivative(zero) == (math.factorial(order) if order == exponent else 0)


@pytest.mark.parametrize("x", [-1e3, -25.0, 0.0, 25.0, 1e3])
def test_logistic_has_all_derivatives_everywhere(x: float) -> None:
    z = cp.Variable()
    value = translate(cp.logistic(z), [z], []).function
    point = torch.tensor(x, dtype=torch.float64)
    s = torch.sigmoid(point)
    for expected in (s, s * torch.sigmoid(-point), s * torch.sigmoid(-point) * (1 - 2 * s)):
        value = grad(value)
        torch.testing.assert_close(value(point), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("atom", [cp.log_det, cp.tr_inv])
def test_outside_the_cone_is_nan_for_its_own_sample(atom: Callable[..., cp.Expression]) -> None:
    z = cp.Variable((2, 2), symmetric=True)
    matrices = torch.stack([torch.diag(torch.tensor([1.0, s])).double() for s in (1.0, -1.0)])
    inside, outside = vmap(translate(atom(z), [z], []).function)(matrices).tolist()
    assert math.isfinite(inside)
    assert math.isnan(outside)


def test_matrices_are_symmetrized() -> None:
    z = cp.Variable((2, 2), symmetric=True)
    X = torch.tensor([[2.0, 0.3], [0.7, 1.0]], dtype=torch.float64)
    for atom in (cp.log_det, cp.tr_inv):
        function = translate(atom(z), [z], []).function
        torch.testing.assert_close(function(X), function((X + X.T) / 2))
        gradient = grad(function)(X)
        torch.testing.assert_close(gradient, gradient.T)


def test_precision_follows_the_call() -> None:
    z = cp.Variable(3)
    function = translate(SPARSE @ z + 1, [z], []).function
    assert function(torch.ones(3)).dtype == torch.float32
    assert function(torch.ones(3, dtype=torch.float64)).dtype == torch.float64


def test_shared_subexpressions_are_computed_once() -> None:
    z = cp.Variable(3)
    shared = cp.exp(z)
    calls = []
    once = translate(shared + 2 * shared, [z], []).function
    with _Counting(calls):
        once(torch.zeros(3, dtype=torch.float64))
    assert sum("exp" in name for name in calls) == 1


class _Counting(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operations that torch runs."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func.name())
        return func(*args, **(kwargs or {}))


# --- borders --------------------------------------------------------------------------------------


@every_case
def test_borders_are_flat_positive_and_batched(case: Case) -> None:
    built = Built(case, seed=6)
    inputs = tensors(built.point())
    borders = built.translation.borders(*inputs)
    assert borders.ndim == 1
    assert (borders > 0).all()
    batch = tuple(torch.stack([i, i]) for i in inputs)
    torch.testing.assert_close(vmap(built.translation.borders)(*batch), torch.stack([borders] * 2))
    vmap(jacrev(built.translation.borders))(*batch)


Z, Y = cp.Variable(3, name="Z"), cp.Variable(name="Y")
X, Q = cp.Parameter(3, name="X"), cp.Parameter(nonneg=True, name="Q")
P = cp.Parameter((3, 3), PSD=True, name="P")
z, y, x, q = [2.0, 3.0, -5.0], 7.0, [11.0, 13.0, 17.0], 0.5

BORDERS = [
    (cp.log(Z), z),
    (cp.log(2 * Z + 1), [5.0, 7.0, -9.0]),
    (cp.log1p(Z), [3.0, 4.0, -4.0]),
    (cp.entr(Z), z),
    (cp.rel_entr(Z, X), z + x),
    (cp.kl_div(X, Z), x + z),
    (cp.kl_div(Z, np.ones(3)), z),
    (cp.exp(Z), []),
    (cp.xexp(Z), []),
    (cp.sqrt(Z), z),
    (cp.inv_pos(Y), [y]),
    (cp.power(Z, 1.5), z),
    (cp.power(Z, 3), z),
    (cp.power(Z, 4), []),
    (cp.power(Z, 1), []),
    (cp.power(Z, 0), []),
    (cp.power(Z, Q), z),
    (cp.sum_squares(Z - X), []),
    (cp.quad_over_lin(Z, Y), [y]),
    (cp.quad_over_lin(Z, Q), [q]),
    (cp.geo_mean(Z), z),
    (cp.geo_mean(Z, [1, 0, 2]), [2.0, -5.0]),
    (cp.geo_mean(Z, [0, 0, 2]), []),
    (cp.harmonic_mean(Z), z),
    (cp.pnorm(Z, 0.5), z),
    (cp.norm2(Z), [math.sqrt(38)]),
    (cp.logistic(Z), []),
    (cp.huber(Z, Q), []),
    (cp.log_sum_exp(Z), []),
    (cp.log(Y) + cp.sum(cp.entr(Z)), [y, *z]),
    (Z @ X, []),
]


@pytest.mark.parametrize(("expression", "expected"), BORDERS, ids=lambda v: str(v)[:40])
def test_borders(expression: cp.Expression, expected: list[float]) -> None:
    translation = translate(expression, [Z, Y], [X, Q], apex=True)
    borders = translation.borders(*tensors([z, y, x, q]))
    torch.testing.assert_close(borders, torch.tensor(expected, dtype=torch.float64))


# --- terms ----------------------------------------------------------------------------------------

C, P0 = (0, False), (0, True)
L, PL = (1, False), (1, True)
S, PS = (2, False), (2, True)
ANY, PANY = (math.inf, False), (math.inf, True)

TERMS = [
    (cp.Constant(1.0), {C}),
    (Z, {L}),
    (X, {P0}),
    (-Z, {L}),
    (Z - 1, {L, C}),
    (Z - X, {L, P0}),
    (cp.sum_squares(Z), {S}),
    (cp.sum_squares(Z - X), {S, PL, P0}),
    (cp.sum_squares(Z - 1), {S, L, C}),
    (cp.sum_squares(cp.multiply(X, Z)), {PS}),
    (cp.square(Z) + X @ Z, {S, PL}),
    (P @ Z - X, {PL, P0}),
    (cp.kron(P, cp.reshape(Z, (3, 1), order="F")), {PL}),
    (cp.convolve(X, Z), {PL}),
    (cp.quad_form(Z, P), {PS}),
    (cp.quad_form(Z, np.eye(3)), {S}),
    (cp.quad_form(X, P), {P0}),
    (cp.quad_over_lin(Z, Q), {PS}),
    (cp.quad_over_lin(Z, 2), {S}),
    (cp.quad_over_lin(Z, Y), {ANY}),
    (cp.quad_over_lin(X, Y), {PANY}),
    (cp.quad_over_lin(X, Q), {P0}),
    (cp.matrix_frac(Z, P), {PS}),
    (cp.matrix_frac(Z, cp.Constant(np.eye(3))), {S}),
    (Z / 2, {L}),
    (Z / Q, {PL}),
    (X / Y, {PANY}),
    (2 / Y, {ANY}),
    (cp.power(Z, 0), {C}),
    (cp.power(Z, 1), {L}),
    (cp.power(Z, 3), {(3, False)}),
    (cp.power(Z, 40), {ANY}),
    (cp.power(Z, 0.5), {ANY}),
    (cp.power(Z, -1), {ANY}),
    (cp.power(Z - X, 2), {S, PL, P0}),
    (cp.power(Z, Q), {PANY}),
    (cp.power(X, 0.5), {P0}),
    (cp.exp(Z), {ANY}),
    (cp.exp(Z - X), {PANY}),
    (cp.exp(X), {P0}),
    (cp.exp(Z) + X @ Z, {ANY, PL}),
    (cp.multiply(cp.exp(X), Z), {PL}),
    (cp.huber(Z), {ANY}),
    (cp.huber(Z, Q), {PANY}),
    (cp.huber(X), {P0}),
    (cp.log_sum_exp(Z), {ANY}),
    (cp.norm2(Z), {ANY}),
    (cp.geo_mean(Z), {ANY}),
    (cp.geo_mean(Z, [0, 1, 0]), {L}),
    (cp.square(cp.square(Z)), {(4, False)}),
    (cp.vstack([cp.reshape(Z, (1, 3), order="F"), X[None, :], np.ones((1, 3))]), {L, P0, C}),
    (cp.vstack([Z, cp.square(Z)]), {L, S}),
    (Z[0] * Z[1], {S}),
    (Q * (Z @ np.ones(3)), {PL}),
]


@pytest.mark.parametrize(("expression", "expected"), TERMS, ids=lambda v: str(v)[:40])
def test_terms(expression: cp.Expression, expected: set[tuple[float, bool]]) -> None:
    assert classes(translate(expression, [Z, Y], [X, Q, P], apex=True)) == expected


@every_case
def test_polynomial_degree_is_not_too_low(case: Case) -> None:
    """Along a random line in the variables, the differences of one order higher vanish."""
    built = Built(case, seed=7)
    degree = max(degree for degree, _ in built.translation.monomials)
    if degree == math.inf:
        return
    point = built.point()
    direction = built.rng.standard_normal(point[0].shape)
    values = [built.value([point[0] + k * direction, *point[1:]]) for k in range(int(degree) + 2)]
    difference = np.diff(torch.stack(values).numpy(), n=int(degree) + 1, axis=0)
    np.testing.assert_allclose(difference, 0, atol=1e-10 * max(v.abs().max() for v in values))


# --- completeness ---------------------------------------------------------------------------------

ABSTRACT = {
    "AffAtom",
    "AxisAtom",
    "BinaryOperator",
    "Elementwise",
    "LogicExpression",
    "UnaryOperator",
    "Wrap",
    "_NaryLogicExpression",
}


def _atoms(base: type) -> set[type]:
    found = {s for c in base.__subclasses__() for s in {c} | _atoms(c)}
    return {c for c in found if c.__module__.startswith("cvxpy.")}


def test_every_atom_of_cvxpy_is_translated_or_refused() -> None:
    names = {c.__name__ for c in _atoms(Atom)} - ABSTRACT
    assert names - RULES.keys() - REFUSED.keys() == set(), "cvxpy has atoms that we do not know"


def test_every_affine_atom_of_cvxpy_is_translated() -> None:
    affine = {c.__name__ for c in _atoms(AffAtom)} - ABSTRACT
    assert affine - AFFINE.keys() == {"cumprod"}  # which cvxpy derives from AffAtom, and is not


OUR_OWN = {"TorchFunction"}  # what torch alone can evaluate; tests/test_torch_callables.py has its cases


def test_tables_name_atoms_that_exist_once() -> None:
    names = [c.__name__ for c in _atoms(Atom)]
    assert len(names) == len(set(names))
    assert (set(RULES) | set(REFUSED)) - OUR_OWN <= set(names)
    assert not AFFINE.keys() & SMOOTH.keys()
    assert not RULES.keys() & REFUSED.keys()


def test_every_rule_has_a_case() -> None:
    seen = {type(a).__name__ for case in CASES for a in _nodes(Built(case).expression)}
    assert set(RULES) - seen == OUR_OWN


def _nodes(expression: cp.Expression) -> list[cp.Expression]:
    return [expression, *[node for arg in expression.args for node in _nodes(arg)]]


# --- refusals -------------------------------------------------------------------------------------

CONE = 'the cone route takes it: leave method="auto", or pass "cone"'
REFUSALS = [
    (cp.abs(Z), r"abs\(Z\): abs is not smooth; " + CONE),
    (cp.max(Z - X), "max is not smooth; " + CONE),
    (cp.minimum(Z, 1), "minimum is not smooth; " + CONE),
    (1 + cp.norm1(Z), r"norm1\(Z\): norm1 is not smooth; " + CONE),
    (cp.norm_inf(Z), "norm_inf is not smooth"),
    (cp.norm2(Z), r'PnormApprox is not smooth where its argument is 0; pass method="smooth" if'),
    (cp.pnorm(Z, 3, approx=False), "Pnorm is not smooth where its argument is 0"),
    (cp.pos(Z), "maximum is not smooth"),
    (cp.sum_largest(Z, 2), "sum_largest is not smooth; " + CONE),
    (cp.lambda_max(cp.diag(Z)), "lambda_max is not smooth where eigenvalues"),
    (cp.prod(Z), "Prod is not convex; take logarithms"),
    (cp.cummax(X), "cummax is not smooth; it sees parameters only: compute it in torch and pass"),
    (cp.loggamma(Z), "is not smooth"),
    (cp.tv(cp.diag(Z)), "PnormApprox is not smooth"),
    (1j * Z[0], "is complex; write the real and the imaginary part separately"),
    (
        cp.Variable(2, name="w") + Z[:2],
        r"Variable 'w' of shape \(2,\) was not declared: add it to var",
    ),
    (Z + cp.Parameter(3, name="p"), r"Parameter 'p' of shape \(3,\) .*: add it to parameters"),
    (
        Z + cp.CallbackParam(lambda: np.ones(3), 3, name="c"),
        r"CallbackParam 'c' of shape \(3,\) was not declared: add it to parameters",
    ),
]


@pytest.mark.parametrize(("expression", "message"), REFUSALS, ids=lambda v: str(v)[:30])
def test_refusals_name_the_atom_and_the_way_out(expression: cp.Expression, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        translate(expression, [Z, Y], [X])


def test_unknown_atoms_are_refused_by_name() -> None:
    class Mine(cp.exp):
        pass

    with pytest.raises(DeclarationError, match=r"Mine\(Z\): Mine has no torch function here"):
        translate(Mine(Z), [Z], [])


def test_complex_leaves_are_refused() -> None:
    w = cp.Variable(2, complex=True, name="w")
    with pytest.raises(DeclarationError, match="w: Variable is complex"):
        translate(cp.real(w), [w], [])


def test_long_expressions_are_shortened() -> None:
    with pytest.raises(DeclarationError) as caught:
        translate(cp.max(cp.hstack([Z * k for k in range(50)])), [Z], [])
    assert len(str(caught.value)) < 300


def test_refused_atoms_of_constants_are_constants() -> None:
    result: Translation = translate(cp.norm1(np.ones(3)) * Z, [Z], [])
    assert classes(result) == {L}
    assert result.function(*tensors([z])).tolist() == [6.0, 9.0, -15.0]


PARAMETRIC = {
    "abs": cp.abs(X),
    "norm1": cp.norm1(X),
    "norm_inf": cp.norm_inf(X),
    "max": cp.max(X),
    "min": cp.min(X),
    "maximum": cp.maximum(X, 0.1, -X),
    "minimum": cp.minimum(X, 0.1),
    "sum_largest": cp.sum_largest(X, 2),
    "norm2": cp.norm2(X),
    "sigma_max": cp.sigma_max(cp.diag(X)),
    "normNuc": cp.normNuc(cp.diag(X)),
    "lambda_max": cp.lambda_max(cp.diag(X)),
}


@pytest.mark.parametrize("name", PARAMETRIC)
def test_atoms_of_parameters_alone_need_not_be_smooth(name):
    """They are data: their value is cvxpy's, and torch differentiates them."""
    expression = PARAMETRIC[name] * cp.sum(Z) if PARAMETRIC[name].ndim == 0 else PARAMETRIC[name] @ Z
    x = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    translation = translate(expression, [Z], [X])
    z = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    Z.value, X.value = z.numpy(), x.numpy()
    assert torch.allclose(translation.function(z, x), torch.as_tensor(np.asarray(expression.value)))
    assert torch.autograd.gradcheck(lambda x: translation.function(z, x), (x.requires_grad_(),))
    assert classes(translation) == {(1, True)}
