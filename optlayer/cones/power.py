r"""Power cones, K = {(x, z) : Πᵢ xᵢ^αᵢ >= |z|, x >= 0}, x ∈ ℝᵐ, z ∈ ℝᵏ, α > 0, Σ αᵢ = 1, and their duals.

    K* = {(u, w) : Πᵢ (uᵢ/αᵢ)^αᵢ >= |w|, u >= 0}

Outside of K and of its polar -K*, with ζ = |z| > 0, the projection is (x, r ẑ) with 0 < r < ζ, b = ζ - r
and (Hien, "Differential properties of Euclidean projection onto power cone", 2015)

    xᵢ² - x⁰ᵢ xᵢ = αᵢ r b,    so xᵢ = ½(x⁰ᵢ + Rᵢ),  Rᵢ = √(x⁰ᵢ² + 4αᵢ r b),        Σ αᵢ log xᵢ = log r

One equation in r, or in s = log(r/b), r = ζσ(s), b = ζσ(-s), in which it is monotone with slopes in
(-1, 0) over all magnitudes. With U = Σ αᵢxᵢ/Rᵢ + r Σ (αᵢ/Rᵢ)νᵢ, νᵢ = αᵢr/xᵢ, A = α/R, all positive,
differentiating the three equations gives, without a difference that cancels,

    DΠ = ⎡ diag(x/R) + r(b - r) AAᵀ/U          r A ẑᵀ/U            ⎤
         ⎣      r ẑAᵀ/U               r (Aᵀν) ẑẑᵀ/U + (r/ζ)(I - ẑẑᵀ) ⎦

    ds = ζ/(bU) Aᵀ(dx⁰ - x⁰ dζ/ζ)

For z = 0 with some x⁰ᵢ > 0, Π = (max(x⁰, 0), 0) and DΠ = diag(x⁰ > 0) ⊕ δI, where δ = lim r/ζ as ζ → 0
follows from the weight ω = Σ{αᵢ : x⁰ᵢ < 0} + ½Σ{αᵢ : x⁰ᵢ = 0}: 1 if ω < ½, 0 if ω > ½, and σ(c/(1 - ω)),
c = Σ αᵢ log(x⁰ᵢ or αᵢ/|x⁰ᵢ| or √αᵢ), if ω = ½.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones.moreau import CurvedCone, DualCone
from optlayer.cones.roots import increasing_root

ROUNDING = 8 * torch.finfo(torch.float64).eps
TINY = 1e-280  # what a positive number is at least, where a logarithm or a quotient needs it
SMALLEST = 1e-50  # a coordinate below this part of |v| is 0
DEEPEST = 100.0  # of s
STEEPEST = 1e-100  # a slope beyond its inverse is none


class _PowerCone(CurvedCone):
    __slots__ = ()

    alphas: tuple[float, ...]
    k: int

    def project(self, v: Tensor, largest: bool = False) -> Float64[Tensor, "*batch dim"]:
        at, v0 = _point(v, self.alphas, largest), v.detach()
        return at.value + 0.5 * (at.apply(v0, v - v0) + at.apply(v, v - v0))

    def nearest(self, v: Tensor, largest: bool = False) -> Float64[Tensor, "*batch dim"]:
        return _point(v, self.alphas, largest).value

    def jvp(self, v: Tensor, dv: Tensor, largest: bool = False) -> Float64[Tensor, "*batch dim"]:
        return _point(v, self.alphas, largest).apply(v, dv)

    def eigen(self, v: Tensor, largest: bool = False) -> tuple[Tensor, Tensor]:
        identity = torch.eye(self.dim, dtype=v.dtype, device=v.device)
        D = self.jvp(v.detach().unsqueeze(-2), identity, largest)
        finite = D.isfinite()
        d, W = torch.linalg.eigh(torch.where(finite, 0.5 * (D + D.mT), 0.0))
        return torch.where(finite.all(-1), d.clamp(0.0, 1.0), torch.nan), W

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        return self.to_boundary(v, tolerance)

    def outer_normals(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch c dim"]:
        """Through boundary points with the same x and with the same z; xᵢ = 0."""
        x, z = v.split((len(self.alphas), self.k), -1)
        return _normals(x, z, torch.ones_like(x[..., :1]), self.alphas, -1.0)

    def rays(self, v: Float64[Tensor, "*batch dim"]) -> Float64[Tensor, "*batch c dim"]:
        """The same for -v in the dual cone; there they are inner."""
        x, z = (-v).split((len(self.alphas), self.k), -1)
        return _normals(x, -z, torch.tensor(self.alphas, dtype=v.dtype, device=v.device), self.alphas, 1.0)


@dataclass(frozen=True, slots=True)
class GeneralizedPower(_PowerCone):
    """Πᵢ xᵢ^αᵢ >= |z| in ℝ^(m + k), α > 0, Σ αᵢ = 1."""

    alphas: tuple[float, ...]
    k: int
    dim: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.alphas, self.k)
        object.__setattr__(self, "alphas", tuple(float(a) for a in self.alphas))
        object.__setattr__(self, "dim", len(self.alphas) + self.k)

    @property
    def dual(self) -> "DualGeneralizedPower":
        return DualGeneralizedPower(self.alphas, self.k)


@dataclass(frozen=True, slots=True)
class Power(_PowerCone):
    """x^α y^(1 - α) >= |z|, x, y >= 0, in the order (x, y, z)."""

    alpha: float
    alphas: tuple[float, ...] = field(init=False, repr=False)
    k: int = field(default=1, init=False, repr=False)
    dim: int = field(default=3, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "alphas", (self.alpha, 1 - self.alpha))
        _check(self.alphas, 1)

    @property
    def dual(self) -> "DualPower":
        return DualPower(self.alpha)


@dataclass(frozen=True, slots=True)
class DualGeneralizedPower(DualCone):
    """Πᵢ (uᵢ/αᵢ)^αᵢ >= |w|."""

    alphas: tuple[float, ...]
    k: int
    dim: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.alphas, self.k)
        object.__setattr__(self, "alphas", tuple(float(a) for a in self.alphas))
        object.__setattr__(self, "dim", len(self.alphas) + self.k)

    @property
    def dual(self) -> GeneralizedPower:
        return GeneralizedPower(self.alphas, self.k)


@dataclass(frozen=True, slots=True)
class DualPower(DualCone):
    """(u/α)^α (v/(1 - α))^(1 - α) >= |w|."""

    alpha: float
    dim: int = field(default=3, init=False, repr=False)

    def __post_init__(self) -> None:
        _check((self.alpha, 1 - self.alpha), 1)

    @property
    def dual(self) -> Power:
        return Power(self.alpha)


def _check(alphas: tuple[float, ...], k: int) -> None:
    if not alphas or min(alphas) <= 0 or abs(sum(alphas) - 1) > 1e-12:
        raise ValueError(f"the exponents of a power cone are positive and sum to 1, unlike {alphas}")
    if k < 1:
        raise ValueError(f"a power cone bounds |z| for z of at least one row, not {k}")


# ------------------------------------------------------------------------- the curved part, in (v, s)


class _Curve(NamedTuple):
    """The quantities of the module's formulas."""

    direction: Float64[Tensor, "*batch k"]  # ẑ
    zeta: Float64[Tensor, "*batch 1"]
    r: Float64[Tensor, "*batch 1"]
    b: Float64[Tensor, "*batch 1"]
    x: Float64[Tensor, "*batch m"]
    R: Float64[Tensor, "*batch m"]
    A: Float64[Tensor, "*batch m"]
    bend: Float64[Tensor, "*batch 1"]  # r Aᵀν
    U: Float64[Tensor, "*batch 1"]


def _curve(x0: Tensor, z: Tensor, s: Float64[Tensor, "*batch 1"], alphas: Tensor) -> _Curve:
    zeta = torch.sqrt((z * z).sum(-1, keepdim=True))
    r, b = zeta * torch.sigmoid(s), zeta * torch.sigmoid(-s)
    product = alphas * r * b
    R = torch.sqrt(x0 * x0 + 4 * product)
    x = torch.where(x0 > 0, 0.5 * (x0 + R), 2 * product / torch.where(x0 > 0, R, R - x0))
    A = alphas / R
    bend = r * (A * (alphas * r / x)).sum(-1, keepdim=True)
    U = (alphas * x / R).sum(-1, keepdim=True) + bend
    return _Curve(z / zeta, zeta, r, b, x, R, A, bend, U)


class _Point(NamedTuple):
    """What is known of Π at v, as numbers."""

    value: Float64[Tensor, "*batch dim"]
    curved: Bool[Tensor, "*batch 1"]
    plain: Float64[Tensor, "*batch dim"]  # DΠ's diagonal where it is not curved
    alphas: Float64[Tensor, " m"]
    size: Float64[Tensor, "*batch 1"]  # DΠ is that of v/size
    root: Float64[Tensor, "*batch 1"]
    origin: Float64[Tensor, "*batch dim"]  # v/size
    slope: Float64[Tensor, "*batch dim"]  # ∂s/∂(v/size)

    def apply(self, v: Float64[Tensor, "*batch dim"], dv: Tensor) -> Float64[Tensor, "*batch dim"]:
        """DΠ(v) dv, to first order around the point."""
        m = len(self.alphas)
        v = torch.where(self.curved, v / self.size, _anywhere(v, m))
        s = self.root + (self.slope * (v - self.origin)).sum(-1, keepdim=True)
        at = _curve(v[..., :m], v[..., m:], s, self.alphas)
        dx, dz = dv[..., :m], dv[..., m:]
        pull, along = (at.A * dx).sum(-1, keepdim=True), (at.direction * dz).sum(-1, keepdim=True)
        out_x = at.x / at.R * dx + at.r / at.U * ((at.b - at.r) * pull + along) * at.A
        out_z = (at.r * pull + at.bend * along) / at.U * at.direction
        out_z = out_z + at.r / at.zeta * (dz - along * at.direction)
        return torch.where(self.curved, torch.cat([out_x, out_z], -1), self.plain * dv)


def _point(v: Float64[Tensor, "*batch dim"], exponents: tuple[float, ...], largest: bool) -> _Point:
    v, m = v.detach(), len(exponents)
    alphas = torch.tensor(exponents, dtype=v.dtype, device=v.device)
    size = v.abs().amax(-1, keepdim=True)
    size = torch.where(size == 0, 1.0, size)
    unit = v / size
    unit = torch.where(unit.abs() < SMALLEST, 0.0, unit)
    x, z = unit[..., :m], unit[..., m:]
    zeta = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    flat = zeta == 0
    in_cone, in_polar, inside, polar = _cases(x, zeta, alphas, largest)
    curved = ~(inside | polar | flat)
    support = (x >= 0 if largest else x > 0).to(v.dtype)
    on_flat = torch.cat([support, _isotropic(x, alphas).expand_as(z)], -1)
    plain = torch.where(inside, 1.0, torch.where(polar, 0.0, on_flat))
    origin = torch.where(curved, unit, _anywhere(v, m))
    root = _root(origin[..., :m], origin[..., m:], alphas)
    root = torch.where(in_cone, DEEPEST, torch.where(in_polar, -DEEPEST, root))  # kinks: b = 0, r = 0
    at = _curve(origin[..., :m], origin[..., m:], root, alphas)
    ds_dx = at.A * (at.zeta / (at.b * at.U).clamp_min(STEEPEST))
    slope = torch.cat([ds_dx, -(ds_dx * origin[..., :m]).sum(-1, keepdim=True) / at.zeta * at.direction], -1)
    on_curve = size * torch.cat([at.x, at.r * at.direction], -1)
    outside = torch.where(in_polar, 0.0, torch.where(curved, on_curve, plain * v))
    value = torch.where(in_cone & ~(in_polar & ~inside), v, outside)
    return _Point(value, curved, plain, alphas, size, root, origin, slope)


def _cases(x: Tensor, zeta: Tensor, alphas: Tensor, largest: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In K and in its polar, up to rounding; the same with what is a boundary given to the polar, or if
    `largest` to K: v is in K up to rounding if x + ε is, and in its interior if x - ε is.
    """
    in_cone = _member(x + ROUNDING, zeta, alphas)
    in_polar = _member((ROUNDING - x) / alphas, zeta, alphas)
    if largest:
        return in_cone, in_polar, in_cone, _member((-ROUNDING - x) / alphas, zeta, alphas) & ~in_cone
    return in_cone, in_polar, _member(x - ROUNDING, zeta, alphas) & ~in_polar, in_polar


def _member(x: Tensor, zeta: Tensor, alphas: Tensor) -> Bool[Tensor, "*batch 1"]:
    """Πᵢ xᵢ^αᵢ >= ζ, x > 0."""
    bound = torch.exp((alphas * torch.log(x.clamp_min(TINY))).sum(-1, keepdim=True))
    return (x > 0).all(-1, keepdim=True) & (bound >= zeta)


def _isotropic(x: Float64[Tensor, "*batch m"], alphas: Float64[Tensor, " m"]) -> Float64[Tensor, "*batch 1"]:
    """δ, the limit of r/ζ as z → 0."""
    weight = torch.where(x < 0, 1.0, torch.where(x > 0, 0.0, 0.5))
    omega = (weight * alphas).sum(-1, keepdim=True)
    size = torch.where(x > 0, x, torch.where(x < 0, alphas / x.abs(), alphas.sqrt()))
    c = (alphas * size.clamp(TINY, 1 / TINY).log()).sum(-1, keepdim=True)
    balanced = torch.sigmoid(c / (1 - omega).clamp_min(TINY))
    tie = (omega - 0.5).abs() <= ROUNDING
    return torch.where(tie & (x > 0).any(-1, keepdim=True), balanced, (omega < 0.5).to(x.dtype))


def _root(x0: Tensor, z: Tensor, alphas: Tensor) -> Float64[Tensor, "*batch 1"]:
    """s with log r = Σ αᵢ log xᵢ."""

    start = torch.zeros_like(x0[..., :1])
    return increasing_root(_excess, start - DEEPEST, start + DEEPEST, start, x0, z, alphas.expand_as(x0))


def _excess(s: Tensor, x0: Tensor, z: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """-Σ αᵢ log(xᵢ/r) and its slope; the ratios are of size one where r, or b, is tiny."""
    at = _curve(x0, z, s, alphas)
    value = -(alphas * torch.log(at.x / at.r)).sum(-1, keepdim=True)
    return value, at.b / at.zeta * at.U


def _anywhere(v: Float64[Tensor, "*batch dim"], m: int) -> Float64[Tensor, " dim"]:
    """A point where every formula is smooth: x = 1, z = (2, 0, …)."""
    point = torch.zeros(v.shape[-1], dtype=v.dtype, device=v.device)
    return torch.cat([torch.ones_like(point[:m]), torch.full_like(point[:1], 2.0), point[m + 1 :]])


def _normals(
    x: Tensor, z: Tensor, unit: Tensor, exponents: tuple[float, ...], sign: float
) -> Float64[Tensor, "*batch c dim"]:
    """(sign αᵢζ/xᵢ, ẑ), normed, at the boundary points Πᵢ (xᵢ/unitᵢ)^αᵢ = ζ near (x, z); of xᵢ = 0 too."""
    alphas = torch.tensor(exponents, dtype=x.dtype, device=x.device)
    zeta = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    direction = z / torch.where(zeta > 0, zeta, 1.0)
    direction = torch.where(zeta > 0, direction, torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)[0])
    bound = torch.exp((alphas * torch.log((x / unit).clamp_min(TINY))).sum(-1, keepdim=True))
    # with the same x, ζ rises to the bound; with the same z, x shrinks by ζ/bound: αᵢζ/xᵢ is unchanged
    normal = torch.cat([sign * alphas * bound / x, direction], -1)
    normal = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    faces = sign * torch.eye(normal.shape[-1], dtype=x.dtype, device=x.device)[: x.shape[-1]]
    return torch.cat([normal.unsqueeze(-2), faces.expand(*normal.shape[:-1], *faces.shape)], -2)
