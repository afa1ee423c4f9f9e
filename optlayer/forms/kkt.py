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

Two ways lead through K. Elimination (`elimination`, `saddle`): fast, and right wherever K is regular. The
whole K for samples where that cannot be shown: the minimum-norm solution where it is singular, found by
eigenvectors (`linsolve`), for more than a few hundred unknowns by factors (`deficient`), and by products
alone where those do not fit (`least_norm`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy import sparse
from torch import Tensor

from optlayer.columns import to_csc
from optlayer.cones import Product, Spectrum
from optlayer.deficient import Deficient
from optlayer.fill import WORK
from optlayer.forms import Domain, Local, Point, Reference
from optlayer.forms.borders import Borders
from optlayer.forms.elimination import Elimination, base_of, proximal
from optlayer.least_norm import least_norm
from optlayer.linsolve import Solved, push, solve
from optlayer.matrix import Dense, Sparse
from optlayer.saddle import ROUGH, Base

PROBES = 8
LARGEST = 4000  # rows of a dense K that is factored
BYTES = 2**27  # of K, in one chunk of samples
SMALL = 400  # unknowns up to which a singular K is decomposed into eigenvectors, for Newton's steps too
CONSISTENT = 1e-6  # relative residual up to which such a step solves its system


class KKTForm:
    """What both forms share; a form says what f, g, h are, batched, and how they are differentiated."""

    reference: Reference | None  # the problem as a modelling language states it, for engines that need it
    dual: Product  # K*, where λ lives
    quadratic: bool  # f quadratic, g and h affine in x, for every θ
    n: int
    m: int  # rows of g
    p: int  # rows of h
    domain: Domain | None = None
    unproven: bool = False  # that f and g are convex, h affine, is somebody's word
    seen: Bool[Tensor, " n"]  # coordinates of x that are part of a variable of the user's

    def rows(self, point: Point, *theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∇f + Gᵀλ + Aᵀν, g and h, batched and differentiable."""
        raise NotImplementedError

    def local(self, point: Point, *theta: Tensor) -> Local:
        """f, g, h to second order at a point."""
        raise NotImplementedError

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """f(x, θ), differentiable."""
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

    def reduced(self, u: Tensor, *data: Tensor) -> "Reduction":
        """K at u."""
        *theta, tau = data
        at = self.local(self.recover(u, tau), *theta)
        return Reduction(at, self.dual.spectrum(self.split(u)[1]), tau)

    # -------------------------------------------------------------------------------- u and points

    def split(self, u: Float64[Tensor, "*B N"]) -> tuple[Tensor, Tensor, Tensor]:
        """u -> x, v, ν."""
        x, v, nu = u.split([self.n, self.m, self.p], dim=-1)
        return x, v, nu

    def recover(self, u: Float64[Tensor, "*B N"], tau: Float64[Tensor, "*B m"]) -> Point:
        """u -> x, λ, ν."""
        x, v, nu = self.split(u)
        return Point(x, self.dual.project(v) / tau, nu)


class Factored(NamedTuple):
    """K at certain roots, kept for the backward pass."""

    u: Float64[Tensor, "B N"]
    tau: Float64[Tensor, "B m"]
    reduced: "Reduction"


@dataclass(frozen=True)
class Root:
    """The system that the roots of one call solve, for `implicit.attach`."""

    form: KKTForm
    factored: Factored | None

    def residual(self, u: Float64[Tensor, "B N"], *data: Tensor) -> Float64[Tensor, "B N"]:
        """F(u; θ, τ)."""
        return self.form.residual(u, *data)

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Float64[Tensor, "B N"]:
        """J⁻¹ b, or J⁻ᵀ b; anew where a transform asks at other points than those that were factored."""
        kept = self.factored
        same = kept is not None and torch.equal(kept.u, u) and torch.equal(kept.tau, data[-1])
        reduced = kept.reduced if kept is not None and same else self.form.reduced(u, *data)
        return reduced.inverse(b, transposed)


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

    @property
    def nowhere(self) -> Point:
        """x, λ and ν all 0."""
        device = self.theta[0].device if self.theta else None
        sizes = (self.form.n, self.form.m, self.form.p)
        return Point(*(torch.zeros(self.size, k, dtype=torch.float64, device=device) for k in sizes))

    @cached_property
    def origin(self) -> Local:
        """At x = 0: P, q, G, g₀, A, h₀, all there is to know of a quadratic programme."""
        return self.form.local(self.nowhere, *self.theta)

    @cached_property
    def borders(self) -> Borders:
        """Where f, g and h are defined."""
        return Borders(self.form.domain, self.theta, self.nowhere.x)

    def at(self, point: Point) -> Local:
        """f, g, h to second order at a point."""
        if not self.form.quadratic:
            return self.form.local(point, *self.theta)
        x, origin = point.x, self.origin
        return origin._replace(
            gradient=origin.hessian @ x + origin.gradient,
            g=origin.G @ x + origin.g,
            h=origin.A @ x + origin.h,
        )

    def reduced(
        self,
        at: Local,
        v: Float64[Tensor, "B m"],
        tau: Float64[Tensor, "B m"],
        before: "Reduction | None" = None,
    ) -> "Reduction":
        """K at a point of this problem; what does not move with the point is prepared once.

        With the same active inequalities and the same τ the K of a quadratic programme is the one before.
        """
        spectrum = at.dual.spectrum(v)
        if not (self.form.quadratic and at.dual.is_orthant):
            return Reduction(at, spectrum, tau)
        if before is not None and tau is before.tau and torch.equal(spectrum.d, before.spectrum.d):
            return before
        return Reduction(at, spectrum, tau, self._base)

    @cached_property
    def _base(self) -> Base:
        return base_of(self.origin)


# --------------------------------------------------------------------------------------------------- K


class Step(NamedTuple):
    """J⁻¹r, and whether it is that: not where K is singular and r none of its range."""

    x: Float64[Tensor, "B n"]
    v: Float64[Tensor, "B m"]
    nu: Float64[Tensor, "B p"]
    sound: Bool[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Reduction:
    """K, and what leads from K back to J; factored when it is first solved with."""

    at: Local
    spectrum: Spectrum  # of DΠ(v)
    tau: Float64[Tensor, "B m"]
    base: Base | None = None  # H and the rows that are no bounds, where they are prepared already

    def solve(self, r1: Tensor, r2: Tensor, r3: Tensor, enough: float = ROUGH) -> Step:
        """A Newton step, J (ẋ, v̇, ν̇) = r, to a relative residual of K:

        K (ẋ, μ, ν̇) = (r₁, SWᵀr₂, r₃), then v̇ = Wz with

        z = τμ/S   or, the same where d < 1,   z = (Ĝẋ - Wᵀr₂) / (1 - d).
        """
        r2 = self.spectrum.into(r2)
        rhs = (r1, self._S * r2, r3)
        x, mu, nu, sound = self._elimination.solve(*rhs, enough)
        if self.spectrum.turns:  # along the null space of K rounding would turn the eigenbasis
            sound = sound & self._elimination.regular
        lost = _indices(~sound)
        if len(lost) and sum(self._sizes) <= SMALL:
            y, sound[lost] = self._least_squares(lost, rhs)
            x, mu, nu = _put(lost, y, x, mu, nu)
        return Step(x, self.spectrum.out(self._z(x, mu, r2)), nu, sound)

    def proximal(
        self, r1: Tensor, r2: Tensor, r3: Tensor, primal: Tensor, dual: Tensor
    ) -> tuple[Tensor, ...]:
        """ẋ, v̇, ν̇ with (δ_p, -δ_d d, -δ_d) added to the diagonal of K: a proximal point step.

        Where too many constraints are held active K is singular and J⁻¹r would be a compromise that moves
        nothing; this one lets go of the constraints that fight each other.
        """
        r2, d = self.spectrum.into(r2), self.spectrum.d
        at = (
            self.at._replace(G=Dense(self.spectrum.into(self.at.G.dense())))
            if self.spectrum.turns
            else self.at
        )
        D = (1.0 - d) * self.tau + dual * d
        x, mu, nu = proximal(at, self._S, D, (r1, self._S * r2, r3), (primal, dual))
        return x, self.spectrum.out(self._z(x, mu, r2)), nu

    def inverse(self, b: Float64[Tensor, "B N"], transposed: bool) -> Float64[Tensor, "B N"]:
        """J⁻¹ b, or J⁻ᵀ b; linear in b: K alone decides which samples take the minimum-norm solution."""
        parts = b.split(self._sizes, 1)
        if transposed:
            return torch.cat(self._solve_transposed(*parts), 1)
        r2 = self.spectrum.into(parts[1])
        x, mu, nu = self._strictly(parts[0], self._S * r2, parts[2])
        return torch.cat([x, self.spectrum.out(self._z(x, mu, r2)), nu], 1)

    def _solve_transposed(self, x: Tensor, v: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        """Jᵀ w = ū, with c = (1 - d) Wᵀū_v:  K (w₁, p, w₃) = (ūₓ + GᵀWc, τS(2 - d) Wᵀū_v, ū_ν),

        w₂ = W (Sp - c).
        """
        d, S, v = self.spectrum.d, self._S, self.spectrum.into(v)
        c = (1.0 - d) * v
        x = x + self.at.G.mT(self.spectrum.out(c))
        w1, p, w3 = self._strictly(x, self.tau * S * (2.0 - d) * v, nu)
        return w1, self.spectrum.out(S * p - c), w3

    @cached_property
    def singular(self) -> tuple[Bool[Tensor, " B"], Bool[Tensor, "B n"]]:
        """Whether K is singular, and which coordinates of x its null space moves."""
        singular = torch.zeros_like(self._elimination.regular)
        free = torch.zeros_like(self.at.gradient, dtype=torch.bool)
        lost = _indices(~self._elimination.regular)
        if len(lost):
            nothing = self.tau.new_zeros(len(lost), sum(self._sizes))
            _, singular[lost], free[lost] = self._least_norm(lost, nothing)
        return singular, free

    @property
    def nearly_singular(self) -> Bool[Tensor, " B"]:
        """Whether K is, or so nearly that Newton's steps may have stopped for it."""
        nearly = self.singular[0].clone()
        lost = _indices(~self._elimination.regular)
        if len(lost) and self._goes_by_factors:
            nearly[lost] = torch.tensor([inverse.nearly for inverse in self._deficient])
        return nearly

    def _least_norm(self, rows: Tensor, b: Float64[Tensor, "r N"]) -> Solved:
        """K⁺b of some samples, as many at a time as fit; from products alone where not even one does."""
        N = b.shape[1]
        if self._goes_by_factors:
            return self._by_factors(b)
        if N > SMALL:
            return least_norm(self[rows].product, b, self._n)
        chunks = (index.split(max(1, BYTES // (8 * N * N))) for index in (rows, torch.arange(len(rows))))
        found = [solve(self[some].dense(), b[own], self._n) for some, own in zip(*chunks, strict=True)]
        return Solved(*map(torch.cat, zip(*found, strict=True)))

    @property
    def _goes_by_factors(self) -> bool:
        """Whether K is too large for its eigenvectors, but a factor of it fits."""
        return sum(self._sizes) > SMALL and self._has_factors

    @cached_property
    def _has_factors(self) -> bool:
        """Whether a factor of K fits."""
        H, G, A = self.at.hessian, self.at.G, self.at.A
        if self.spectrum.turns or not all(isinstance(part, Sparse) for part in (H, G, A)):
            return sum(self._sizes) <= LARGEST
        return (self.base or base_of(self.at)).factor_work <= WORK

    def _by_factors(self, b: Float64[Tensor, "r N"]) -> Solved:
        """K⁺b of the samples whose K is irregular."""
        found = self._deficient
        x = np.stack([inverse(row) for inverse, row in zip(found, b.cpu().numpy(), strict=True)])
        free = torch.from_numpy(np.stack([inverse.free for inverse in found]))
        singular = torch.tensor([inverse.singular for inverse in found])
        return Solved(torch.from_numpy(x), singular, free)

    @cached_property
    def _deficient(self) -> list[Deficient]:
        """The irregular K, ready for any right-hand side."""
        rows = _indices(~self._elimination.regular)
        return [Deficient(self[i]._columns(), self._n) for i in rows.split(1)]

    def _columns(self) -> sparse.csc_matrix:
        """K of the only sample."""
        if self.spectrum.turns:
            return sparse.csc_matrix(self.dense()[0].numpy())
        H, G, A = (to_csc(part).matrix(0) for part in (self.at.hessian, self.at.G, self.at.A))
        E = sparse.vstack([sparse.diags_array(self._S[0].numpy()) @ G, A])
        D = torch.cat([(1.0 - self.spectrum.d) * self.tau, torch.zeros_like(self.at.h)], 1)[0].numpy()
        return sparse.csc_matrix(sparse.block_array([[H, E.T], [E, -sparse.diags_array(D)]]))

    def product(self, y: Float64[Tensor, "B N"]) -> Float64[Tensor, "B N"]:
        """K y."""
        (x, mu, nu), at, S = y.split(self._sizes, 1), self.at, self._S
        primal = at.hessian @ x + at.G.mT(self.spectrum.out(S * mu)) + at.A.mT(nu)
        dual = S * self.spectrum.into(at.G @ x) + (self.spectrum.d - 1.0) * self.tau * mu
        return torch.cat([primal, dual, at.A @ x], 1)

    def dense(self) -> Float64[Tensor, "B N N"]:
        """K itself; the rows with d = 0 are those of -τI."""
        H, G, A = (
            block.dense().expand(len(self.tau), -1, -1) for block in (self.at.hessian, self.at.G, self.at.A)
        )
        m, p = G.shape[1], A.shape[1]
        SG = self._S.unsqueeze(2) * self.spectrum.into(G)
        zero = H.new_zeros(H.shape[0], p, m + p)
        diagonal = torch.diag_embed((self.spectrum.d - 1.0) * self.tau)
        lower = torch.cat([torch.cat([diagonal, zero[:, :, :m].mT], 2), zero], 1)
        E = torch.cat([SG, A], 1)
        return torch.cat([torch.cat([H, E.mT], 2), torch.cat([E, lower], 2)], 1)

    def __getitem__(self, rows: Tensor) -> "Reduction":
        """That of some samples."""
        return Reduction(self.at.some(rows), self.spectrum[rows], self.tau[rows])

    @cached_property
    def _elimination(self) -> Elimination:
        return Elimination(self.at, self.spectrum, self.tau, self.base)

    @cached_property
    def _S(self) -> Float64[Tensor, "B m"]:
        return self.spectrum.d.sqrt()

    @property
    def _n(self) -> int:
        return self.at.gradient.shape[1]

    @property
    def _sizes(self) -> list[int]:
        return [self._n, self.tau.shape[1], self.at.A.shape[0]]

    def _z(self, x: Tensor, mu: Tensor, r2: Tensor) -> Float64[Tensor, "B m"]:
        """Wᵀv̇."""
        if not r2.shape[1]:
            return r2
        d, mostly_active = self.spectrum.d, self.spectrum.d > 0.5
        active = self.tau * mu / torch.where(mostly_active, self._S, 1.0)
        inactive = (self.spectrum.into(self.at.G @ x) - r2) / torch.where(mostly_active, 1.0, 1.0 - d)
        return torch.where(mostly_active, active, inactive)

    def _strictly(self, r1: Tensor, r2: Tensor, r3: Tensor) -> tuple[Tensor, ...]:
        """K⁺ (r₁, r₂, r₃)."""
        x, mu, nu = self._elimination.solve_always(r1, r2, r3)
        lost = _indices(~self._elimination.regular)
        return _put(lost, self._least_squares(lost, (r1, r2, r3))[0], x, mu, nu) if len(lost) else (x, mu, nu)

    def _least_squares(self, rows: Tensor, rhs: tuple[Tensor, ...]) -> tuple[Tensor, Bool[Tensor, " r"]]:
        """K⁺ rhs of some samples, and whether that solves it."""
        b = torch.cat([part[rows] for part in rhs], 1)
        y = self._least_norm(rows, b).x
        return y, (self[rows].product(y) - b).abs().amax(1) <= CONSISTENT * b.abs().amax(1)


def _indices(rows: Bool[Tensor, " B"]) -> Tensor:
    return rows.nonzero().squeeze(1)


def _put(rows: Tensor, y: Float64[Tensor, "r N"], *parts: Tensor) -> tuple[Tensor, ...]:
    """The parts with some rows replaced by those of y."""
    new = y.split([part.shape[1] for part in parts], 1)
    return tuple(part.index_copy(0, rows, rows_of) for part, rows_of in zip(parts, new, strict=True))
