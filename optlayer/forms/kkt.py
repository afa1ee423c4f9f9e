r"""The KKT conditions as one square system, the *normal map* (Robinson 1992), in u = (x, v, ν):

    min f(x, θ)   s.t.   -g(x, θ) ∈ K,   h(x, θ) = 0

    ∇f + Gᵀλ + Aᵀν = 0        λ = Π(v)/τ         G = ∂g,  A = ∂h,  Π the projection onto K*
    g - v + Π(v)   = 0        so -g = Π(v) - v ∈ K and ⟨λ, g⟩ = 0 (Moreau): v = τλ - s holds
    h              = 0        multiplier and slack s = -g at once

For g <= 0 the cone is the orthant, Π(v) = max(v, 0). τ > 0 is a constant for each block of K that
brings τλ and g to one size; nothing depends on its value.

With DΠ(v) = W diag(d) Wᵀ, 0 <= d <= 1, Ĝ = WᵀG, S = √d and H = ∇²f + Σ λ_i ∇²g_i,

        ⎡ H   GᵀDΠ/τ   Aᵀ ⎤                 ⎡ H     (SĜ)ᵀ     Aᵀ ⎤
    J = ⎢ G   DΠ - I   0  ⎥    reduces to K = ⎢ SĜ   (d - 1)τ   0  ⎥ ,  symmetric,
        ⎣ A   0        0  ⎦                 ⎣ A       0       0  ⎦

by taking v = W (τ/S) μ for the unknown. Where d = 0, an inactive inequality, the row decouples and v
is read off g; where d = 1, an active one, μ is the multiplier. A Newton step on it is a step of the
primal-dual active-set method. `docs/derivation.md` has the algebra.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones import Product, Spectrum
from optlayer.forms import Curvature, Domain, Local, Point, Reference
from optlayer.linsolve import matvec, push, solve

PROBES = 8


class KKTForm:
    """What both forms share; a form says what f, g, h are, batched, and how they are differentiated."""

    reference: Reference
    dual: Product  # K*, where λ lives
    quadratic: bool  # f quadratic, g and h affine in x, for every θ
    n: int
    m: int  # rows of g
    p: int  # rows of h
    domain: Domain | None = None
    seen: Bool[Tensor, " n"]  # coordinates of x that are part of a variable of the user's

    def rows(self, point: Point, *theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∇f + Gᵀλ + Aᵀν, g and h, batched and differentiable."""
        raise NotImplementedError

    def curvature(self, point: Point, *theta: Tensor) -> Curvature:
        """H, G, A."""
        raise NotImplementedError

    def local(self, point: Point, *theta: Tensor) -> Local:
        """f, g, h to second order at a point."""
        raise NotImplementedError

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """f(x, θ), differentiable."""
        raise NotImplementedError

    @property
    def patterns(self) -> tuple[Bool[np.ndarray, "n n"], Bool[np.ndarray, "p+m n"]]:
        """Where P and [A; G] of a quadratic programme may be nonzero, whatever the parameters are."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """N, the number of unknowns."""
        return self.n + self.m + self.p

    # ------------------------------------------------------------------ the root that is attached

    def residual(self, u: Float64[Tensor, "B N"], *data: Tensor) -> Float64[Tensor, "B N"]:
        """F(u; θ, τ); data = (*theta, tau)."""
        *theta, tau = data
        x, v, nu = self.split(u)
        projected = self.dual.project(v)
        stationarity, g, h = self.rows(Point(x, projected / tau, nu), *theta)
        return torch.cat([stationarity, g - v + projected, h], 1)

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Float64[Tensor, "B N"]:
        """J⁻¹ b, or J⁻ᵀ b, from K."""
        *theta, tau = data
        _, v, _ = self.split(u)
        reduced = reduce(self.curvature(self.recover(u, tau), *theta), self.dual.spectrum(v), tau)
        solved = reduced.solve_transposed(*self.split(b)) if transposed else reduced.solve(*self.split(b))[:3]
        return torch.cat(solved, 1)

    # -------------------------------------------------------------------------------- u and points

    def split(self, u: Float64[Tensor, "*B N"]) -> tuple[Tensor, Tensor, Tensor]:
        """u -> x, v, ν."""
        x, v, nu = u.split([self.n, self.m, self.p], dim=-1)
        return x, v, nu

    def recover(self, u: Float64[Tensor, "*B N"], tau: Float64[Tensor, "*B m"]) -> Point:
        """u -> x, λ, ν."""
        x, v, nu = self.split(u)
        return Point(x, self.dual.project(v) / tau, nu)


@dataclass(frozen=True)
class Instance:
    """A form at given parameter values, for a batch of samples: what engines and Newton look at."""

    form: KKTForm
    theta: tuple[Float64[Tensor, "B ..."], ...]
    size: int  # B, which no parameter tells where there is none

    @property
    def unit(self) -> float:
        """A length for x where nothing else gives one: without parameters, the user's own unit."""
        return 0.0 if self.theta else 1.0

    def rows(self, index: Tensor) -> "Instance":
        """Some of the samples."""
        return Instance(self.form, tuple(t[index] for t in self.theta), len(index))

    def sensitivity(self, u: Tensor, tau: Tensor) -> Float64[Tensor, "B N"]:
        """The size of ∂F/∂θ θ, row by row: what a relative change of the data makes of F.

        The largest over a few changes of random sign; the Jacobian itself could be huge.
        """
        if not self.theta:
            return torch.zeros_like(u)
        generator = torch.Generator().manual_seed(0)
        changes = []
        for _ in range(PROBES):
            signs = [torch.randint(0, 2, t.shape, generator=generator) * 2.0 - 1.0 for t in self.theta]
            move = tuple(t * sign for t, sign in zip(self.theta, signs, strict=True))
            changes.append(push(lambda *theta: self.form.residual(u, *theta, tau), self.theta, move))
        return torch.stack(changes).abs().amax(0)

    @cached_property
    def origin(self) -> Local:
        """At x = 0: P, q, G, g₀, A, h₀, all there is to know of a quadratic programme."""
        sizes = (self.form.n, self.form.m, self.form.p)
        zeros = Point(*(torch.zeros(self.size, k, dtype=torch.float64) for k in sizes))
        return self.form.local(zeros, *self.theta)

    def at(self, point: Point) -> Local:
        """f, g, h to second order at a point."""
        if not self.form.quadratic:
            return self.form.local(point, *self.theta)
        x, (q, P, g0, G, h0, A, *_) = point.x, self.origin
        return self.origin._replace(gradient=matvec(P, x) + q, g=matvec(G, x) + g0, h=matvec(A, x) + h0)


class Step(NamedTuple):
    """J⁻¹r, and how far K was from solving it, relative; NaN where r = 0."""

    x: Float64[Tensor, "B n"]
    v: Float64[Tensor, "B m"]
    nu: Float64[Tensor, "B p"]
    miss: Float64[Tensor, "B 1"]


class Reduction(NamedTuple):
    """K and what leads from K back to J."""

    K: Float64[Tensor, "B N N"]
    G: Float64[Tensor, "B m n"]
    spectrum: Spectrum
    tau: Float64[Tensor, "B m"]

    @property
    def n(self) -> int:
        """Primal rows of K."""
        return self.G.shape[2]

    def solve(self, r1: Tensor, r2: Tensor, r3: Tensor, shift: Tensor | None = None) -> Step:
        """J (ẋ, v̇, ν̇) = r:  K (ẋ, μ, ν̇) = (r₁, SWᵀr₂, r₃), then v̇ = Wz with

            z = τμ/S   or, the same where d < 1,   z = (Ĝẋ - Wᵀr₂) / (1 - d).

        `shift` is added to the diagonal of K.
        """
        d, S = self.spectrum.d, self.spectrum.d.sqrt()
        r2 = self._into(r2)
        rhs = torch.cat([r1, S * r2, r3], 1)
        y = solve(self.K if shift is None else self.K + torch.diag_embed(shift), rhs, self.n).x
        x, mu, nu = y.split([self.n, d.shape[1], r3.shape[1]], 1)
        mostly_active = d > 0.5
        active = self.tau * mu / torch.where(mostly_active, S, 1.0)
        inactive = (self._into(matvec(self.G, x)) - r2) / torch.where(mostly_active, 1.0, 1.0 - d)
        miss = (matvec(self.K, y) - rhs).abs().amax(1, keepdim=True) / rhs.abs().amax(1, keepdim=True)
        return Step(x, self.spectrum.out(torch.where(mostly_active, active, inactive)), nu, miss)

    def solve_transposed(self, x: Tensor, v: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        """Jᵀ w = ū, with c = (1 - d) Wᵀū_v:  K (w₁, p, w₃) = (ūₓ + GᵀWc, τS(2 - d) Wᵀū_v, ū_ν),

        w₂ = W (Sp - c).
        """
        d, S = self.spectrum.d, self.spectrum.d.sqrt()
        v = self._into(v)
        c = (1.0 - d) * v
        x = x + matvec(self.G.mT, self.spectrum.out(c))
        y = solve(self.K, torch.cat([x, self.tau * S * (2.0 - d) * v, nu], 1), self.n).x
        w1, p, w3 = y.split([self.n, d.shape[1], nu.shape[1]], 1)
        return w1, self.spectrum.out(S * p - c), w3

    def _into(self, a: Float64[Tensor, "B m"]) -> Float64[Tensor, "B m"]:
        """Wᵀa."""
        return self.spectrum.into(a.unsqueeze(2)).squeeze(2)


def reduce(at: Curvature | Local, spectrum: Spectrum, tau: Float64[Tensor, "B m"]) -> Reduction:
    """K, the symmetric reduction of J; the rows with d = 0 are those of -τI."""
    H, G, A = at.hessian, at.G, at.A
    m, p = G.shape[1], A.shape[1]
    SG = spectrum.d.sqrt().unsqueeze(2) * spectrum.into(G)
    zero = H.new_zeros(H.shape[0], p, m + p)
    diagonal = torch.diag_embed((spectrum.d - 1.0) * tau)
    lower = torch.cat([torch.cat([diagonal, zero[:, :, :m].mT], 2), zero], 1)
    E = torch.cat([SG, A], 1)
    K = torch.cat([torch.cat([H, E.mT], 2), torch.cat([E, lower], 2)], 1)
    return Reduction(K, G, spectrum, tau)
