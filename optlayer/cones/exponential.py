r"""The exponential cone, K = cl{(x, y, z) : y > 0, y e^{x/y} <= z}, and its dual.

The curved part of its boundary is a family of rays, with outward normals, for ρ = x/y ∈ ℝ (Friberg,
"Projection onto the exponential cone: a univariate root-finding problem", 2021):

    e(ρ) = (ρ, 1, e^ρ),        n(ρ) = (1, 1 - ρ, -e^{-ρ}),        eᵀn = 0

Outside of K, of its polar and of x, y <= 0 (where Π(v) = (x, 0, max(z, 0))), v = a e(ρ) + b n(ρ) for one
ρ with a, b > 0, and Π(v) = a e(ρ). The first two rows give a and b, the third an equation in ρ:

    a = ((ρ - 1)x + y)/q,    b = (x - ρy)/q,    q = ρ² - ρ + 1,        a e^ρ - b e^{-ρ} = z

Its logarithmic form, increasing in ρ and nearly of slope one over all magnitudes, is what Newton solves:

    g(ρ) = ρ + ½ log(a/b) - asinh(z / (2√(ab))) = 0

Nothing more is needed than ρ. In the orthonormal frame ê, n̂, ŵ = n̂ × ê, all functions of ρ, v has the
coordinates P = êᵀv = |Π(v)|, Y = n̂ᵀv = |v - Π(v)| and 0, and

    DΠ(v) = êêᵀ + d ŵŵᵀ,    d = P σₑ/(P σₑ + Y σₙ),    ∂ρ/∂v = ŵ/(P σₑ + Y σₙ)
    σₑ = ŵᵀ∂ê/∂ρ = e^ρ |n|/|e|²,    σₙ = ŵᵀ∂n̂/∂ρ = e^{-ρ} |e|/|n|²

by differentiating v = P ê + Y n̂ along ŵ. An error of size ε|v| in ρ's equation is an error of that size
in v, which Π(v) = DΠ(v) v then corrects to first order.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones.moreau import CurvedCone, DualCone
from optlayer.cones.roots import increasing_root

ROUNDING = 8 * torch.finfo(torch.float64).eps
RIDGE = 100 * ROUNDING
SMALLEST = 1e-50  # a coordinate below this part of |v| is 0
TINY = 1e-280  # what a positive number is at least, where a logarithm or a quotient needs it


@dataclass(frozen=True, slots=True)
class Exponential(CurvedCone):
    """y e^{x/y} <= z, y > 0, and its closure."""

    dim: int = field(default=3, init=False, repr=False)

    @property
    def dual(self) -> "DualExponential":
        return DualExponential()

    def project(self, v: Tensor, largest: bool = False) -> Float64[Tensor, "*batch 3"]:
        at, v0 = _point(v, largest), v.detach()
        return at.value + 0.5 * (at.apply(v0, v - v0) + at.apply(v, v - v0))

    def nearest(self, v: Tensor, largest: bool = False) -> Float64[Tensor, "*batch 3"]:
        return _point(v, largest).value

    def jvp(self, v: Tensor, dv: Tensor, largest: bool = False) -> Float64[Tensor, "*batch 3"]:
        return _point(v, largest).apply(v, dv)

    def eigen(self, v: Tensor, largest: bool = False) -> tuple[Tensor, Tensor]:
        at = _point(v, largest)
        frame, d = at.frame(v.detach())
        d = torch.stack([torch.ones_like(d), d, torch.zeros_like(d)], -1)
        W = torch.stack([frame.e, frame.w, frame.n], -1)
        identity = torch.eye(3, dtype=v.dtype, device=v.device)
        return torch.where(at.curved, d, at.plain), torch.where(at.curved.unsqueeze(-1), W, identity)

    def snap(self, v: Tensor, tolerance: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
        """Flat faces first, x = 0 for y <= 0, y = 0 for x <= 0, z = 0 for x, y <= 0; then the curved."""
        v, near = v.detach(), tolerance.unsqueeze(-1)
        small, low = v.abs() <= near, v <= near
        x_fold = small[..., 0] & low[..., 1]
        y_fold = small[..., 1] & low[..., 0]
        z_fold = small[..., 2] & low[..., 0] & low[..., 1]
        fold = torch.stack([x_fold, y_fold, z_fold], -1)
        moved, kink = self.to_boundary(torch.where(fold, 0.0, v), tolerance)
        return moved, kink | fold.any(-1)

    def outer_normals(self, v: Float64[Tensor, "*batch 3"]) -> Float64[Tensor, "*batch 4 3"]:
        """Through the boundary points with the same x, y or the same y, z; y = 0; z = 0."""
        x, y, z = v.unbind(-1)
        return _and_faces([_frame(x / y).n, _frame(torch.log(z / y)).n], (0, -1, 0), (0, 0, -1))

    def rays(self, v: Float64[Tensor, "*batch 3"]) -> Float64[Tensor, "*batch 4 3"]:
        """Normals through the polar's boundary points with the same x, y or x, z; x = 0; z = 0."""
        x, y, z = v.unbind(-1)
        return _and_faces([_frame(1 - y / x).e, _frame(-torch.log(-z / x)).e], (-1, 0, 0), (0, 0, 1))


@dataclass(frozen=True, slots=True)
class DualExponential(DualCone):
    """-u e^{v/u} <= e w, u < 0, and its closure: with u = 0, v >= 0, w >= 0."""

    dim: int = field(default=3, init=False, repr=False)

    @property
    def dual(self) -> Exponential:
        return Exponential()


class _Frame(NamedTuple):
    """ê, n̂, ŵ, σₑ, σₙ: functions of ρ."""

    e: Float64[Tensor, "*batch 3"]
    n: Float64[Tensor, "*batch 3"]
    w: Float64[Tensor, "*batch 3"]
    se: Float64[Tensor, "*batch"]
    sn: Float64[Tensor, "*batch"]


def _frame(rho: Float64[Tensor, "*batch"]) -> _Frame:
    """With e and n scaled by e^{-ρ₊} and e^{ρ₋}, nothing overflows."""
    E = torch.exp(-torch.where(rho > 0, rho, 0.0))
    N = torch.exp(torch.where(rho > 0, 0.0, rho))
    e = torch.stack([rho * E, E, N], -1)
    n = torch.stack([N, (1 - rho) * N, -E], -1)
    e_size, n_size = _length(e), _length(n)
    se = (E * n_size / (e_size * e_size)).clamp_min(TINY)
    sn = (N * e_size / (n_size * n_size)).clamp_min(TINY)
    e, n = e / e_size.unsqueeze(-1), n / n_size.unsqueeze(-1)
    return _Frame(e, n, torch.linalg.cross(n, e), se, sn)


class _Point(NamedTuple):
    """What is known of Π at v, as numbers."""

    value: Float64[Tensor, "*batch 3"]
    curved: Bool[Tensor, "*batch 1"]
    plain: Float64[Tensor, "*batch 3"]  # DΠ's diagonal where it is not curved
    size: Float64[Tensor, "*batch 1"]  # DΠ is that of v/size
    root: Float64[Tensor, "*batch"]
    origin: Float64[Tensor, "*batch 3"]  # v/size
    slope: Float64[Tensor, "*batch 3"]  # ∂ρ/∂(v/size)
    kink: Float64[Tensor, "*batch"]  # d on a boundary: 1 on K's, 0 on the polar's; elsewhere NaN

    def frame(self, v: Float64[Tensor, "*batch 3"]) -> tuple[_Frame, Tensor]:
        """The frame at v, and d."""
        v = torch.where(self.curved, v / self.size, _anywhere(v))
        frame = _frame(self.root + (self.slope * (v - self.origin)).sum(-1))
        return frame, torch.where(self.kink.isnan(), _tangential(frame, v)[0], self.kink)

    def apply(self, v: Float64[Tensor, "*batch 3"], dv: Tensor) -> Float64[Tensor, "*batch 3"]:
        """DΠ(v) dv, to first order around the point."""
        frame, d = self.frame(v)
        along = (frame.e * dv).sum(-1, keepdim=True) * frame.e
        across = (frame.w * dv).sum(-1, keepdim=True) * frame.w
        return torch.where(self.curved, along + d.unsqueeze(-1) * across, self.plain * dv)


def _point(v: Float64[Tensor, "*batch 3"], largest: bool) -> _Point:
    v = v.detach()
    size = v.abs().amax(-1, keepdim=True)
    size = torch.where(size == 0, 1.0, size)
    unit = v / size
    unit = torch.where(unit.abs() < SMALLEST, 0.0, unit)
    case = _cases(unit, largest)
    curved = ~(case.inside | case.polar | case.face)
    x, _, z = unit.split(1, -1)
    on = [x <= 0 if largest else x < 0, torch.zeros_like(curved), z >= 0 if largest else z > 0]
    plain = torch.where(case.face, torch.cat(on, -1).to(v.dtype), case.inside.to(v.dtype))
    origin = torch.where(curved, unit, _anywhere(v))
    root = _root(origin).squeeze(-1)
    frame = _frame(root)
    _, resistance = _tangential(frame, origin)
    slope = frame.w / resistance.unsqueeze(-1)
    kink = torch.where(case.in_cone, 1.0, torch.where(case.in_polar, 0.0, torch.nan)).squeeze(-1)
    at = _Point(v, curved, plain, size, root, origin, slope, kink)
    outside = torch.where(case.in_polar, 0.0, at.apply(v, v))  # Π(v) = DΠ(v) v
    return at._replace(value=torch.where(case.in_cone & ~(case.in_polar & ~case.inside), v, outside))


class _Cases(NamedTuple):
    """Where v, of size one, is."""

    in_cone: Bool[Tensor, "*batch 1"]  # up to rounding
    in_polar: Bool[Tensor, "*batch 1"]
    inside: Bool[Tensor, "*batch 1"]  # what is a boundary belongs to the polar, or if `largest` to K
    polar: Bool[Tensor, "*batch 1"]
    face: Bool[Tensor, "*batch 1"]


def _cases(v: Float64[Tensor, "*batch 3"], largest: bool) -> _Cases:
    """v is in K up to rounding if v + ε u is, for u inside K, and in its interior if v - ε u is."""
    u = ROUNDING * torch.tensor([-1.0, 1.0, 1.0], dtype=v.dtype, device=v.device)
    in_cone, in_polar = _member(v + u), _polar_member(v - u)
    if largest:
        inside, polar = in_cone, _polar_member(v + u) & ~in_cone
    else:
        inside, polar = _member(v - u) & ~in_polar, in_polar
    x, y, _ = v.split(1, -1)
    ridge = (in_cone | in_polar) & (torch.maximum(x, y) <= RIDGE)  # z alone: no ray of the curve
    return _Cases(in_cone, in_polar, inside, polar, ((x <= 0) & (y <= 0) | ridge) & ~inside & ~polar)


def _member(v: Float64[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch 1"]:
    x, y, z = v.split(1, -1)
    return (y > 0) & (z > 0) & (x <= y * (torch.log(_positive(z)) - torch.log(_positive(y))))


def _polar_member(v: Float64[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch 1"]:
    x, y, z = v.split(1, -1)
    return (x > 0) & (z < 0) & (y <= x * (1 + torch.log(_positive(-z)) - torch.log(_positive(x))))


def _root(v: Float64[Tensor, "*batch 3"]) -> Float64[Tensor, "*batch 1"]:
    """ρ with g(ρ) = 0, between the ends of the interval on which a and b are positive."""
    x, y, _ = v.split(1, -1)
    low = torch.where(x > 0, 1 - y / torch.where(x > 0, x, 1.0), -torch.inf)
    high = torch.where(y > 0, x / torch.where(y > 0, y, 1.0), torch.inf)
    margin = (0.5 * (high - low)).clamp(0.0, 1.0)
    start = torch.maximum(torch.minimum(torch.full_like(x, 0.5), high - margin), low + margin)
    return increasing_root(_log_residual, low, high, start, v)


def _log_residual(rho: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """g(ρ) and g'(ρ)."""
    x, y, z = v.split(1, -1)
    qa, qb, q = _positive((rho - 1) * x + y), _positive(x - rho * y), rho * rho - rho + 1
    da, db, dq = x / qa, -y / qb, (2 * rho - 1) / q  # of their logarithms
    argument = 0.5 * z * q / (qa.sqrt() * qb.sqrt())
    share = argument / torch.hypot(argument, torch.ones_like(argument))
    value = rho + 0.5 * (qa.log() - qb.log()) - torch.asinh(argument)
    return value, 1 + 0.5 * (da - db) - share * (dq - 0.5 * (da + db))


def _tangential(frame: _Frame, v: Float64[Tensor, "*batch 3"]) -> tuple[Tensor, Tensor]:
    """d = P σₑ / (P σₑ + Y σₙ), and the denominator; on the boundary of K, Y = 0, d = 1."""
    P, Y = (frame.e * v).sum(-1), (frame.n * v).sum(-1)
    pull, push = torch.where(P > 0, P, 0.0) * frame.se, torch.where(Y > 0, Y, 0.0) * frame.sn
    resistance = (pull + push).clamp_min(TINY)
    return pull / resistance, resistance


def _anywhere(v: Float64[Tensor, "*batch 3"]) -> Float64[Tensor, " 3"]:
    """A point where every formula is smooth."""
    return torch.tensor([1.0, 1.0, 0.0], dtype=v.dtype, device=v.device)


def _positive(a: Tensor) -> Tensor:
    return a.clamp_min(TINY)


def _length(a: Float64[Tensor, "*batch 3"]) -> Float64[Tensor, "*batch"]:
    return torch.sqrt((a * a).sum(-1))


def _and_faces(curved: list[Tensor], *flat: tuple[int, int, int]) -> Float64[Tensor, "*batch c 3"]:
    like = curved[0]
    faces = [torch.tensor(face, dtype=like.dtype, device=like.device).expand_as(like) for face in flat]
    return torch.stack([*curved, *faces], -2)
