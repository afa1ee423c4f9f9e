r"""The smooth form: min f(x, θ)  s.t.  g(x, θ) <= 0,  h(x, θ) = 0  with f, g, h torch functions.

Its KKT conditions as one square system, the *normal map* (Robinson 1992), in u = (x, v, ν):

    ∇f + Gᵀλ + Aᵀν = 0        λ = Π(v)/τ         G = ∂g,  A = ∂h,  Π(v) = max(v, 0)
    g - v + Π(v)   = 0        so g = -Π(-v): v holds the multiplier where it is positive,
    h              = 0        the slack where it is negative

τ > 0 is a constant for each row that brings τλ and g to one size; nothing depends on its value.
With D = DΠ(v), a diagonal of zeros and ones, and H = ∇²f + Σ λ_i ∇²g_i,

        ⎡ H   GᵀD/τ   Aᵀ ⎤                 ⎡ H    (DG)ᵀ   Aᵀ ⎤
    J = ⎢ G   D - I   0  ⎥    reduces to K = ⎢ DG   D - I   0  ⎥ ,  symmetric,
        ⎣ A   0       0  ⎦                 ⎣ A    0       0  ⎦

by taking λ in place of v on the active rows and eliminating v on the others. A Newton step on it is
a step of the primal-dual active-set method. `docs/derivation.md` has the algebra.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from optlayer.cones import nonnegative
from optlayer.forms import Local, Point, Reference
from optlayer.linsolve import linsolve, matvec

PROBES = 8

Function = Callable[..., Tensor]  # one sample: (x (n,), *theta) -> Tensor


@dataclass(frozen=True)
class Constants:
    """Blocks of a quadratic programme that no parameter enters; None where one does."""

    P: Float64[Tensor, "n n"] | None = None
    G: Float64[Tensor, "m n"] | None = None
    A: Float64[Tensor, "p n"] | None = None


@dataclass(frozen=True)
class Domain:
    """Where f, g, h are defined: `borders(x, *theta) > 0`, such as the arguments of logarithms.

    Rows `row` of the borders are affine in one coordinate `column` of x alone, z >= 0 for an
    entropy: there Newton can step in the logarithm of the distance.
    """

    borders: Function
    norms: Function  # those of the borders that are norms, without derivative at 0
    row: tuple[int, ...]
    column: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SmoothForm:
    """A compiled smooth programme in x ∈ ℝⁿ, all variables flattened in C order and concatenated."""

    variable_shapes: tuple[tuple[int, ...], ...]
    inequality_shapes: tuple[tuple[int, ...], ...]  # of the declared constraints; attributes follow
    equality_shapes: tuple[tuple[int, ...], ...]
    m: int  # rows of g, those that stand for variable attributes included
    p: int  # rows of h, likewise
    objective: Function  # f: () or one element
    inequality: Function  # g: (m,)
    equality: Function  # h: (p,)
    reference: Reference
    quadratic: bool  # f quadratic, g and h affine in x, for every θ
    constants: Constants = Constants()
    domain: Domain | None = None

    @property
    def n(self) -> int:
        return sum(prod(shape) for shape in self.variable_shapes)

    @property
    def size(self) -> int:
        return self.n + self.m + self.p

    def __deepcopy__(self, memo: dict[int, object]) -> "SmoothForm":
        return self  # immutable

    # ------------------------------------------------------------------ the root that is attached

    def residual(self, u: Float64[Tensor, "B N"], *data: Tensor) -> Float64[Tensor, "B N"]:
        """F(u; θ, τ), batched; data = (*theta, tau)."""
        return vmap(self._residual)(u, *data)

    def _residual(self, u: Float64[Tensor, " N"], *data: Tensor) -> Float64[Tensor, " N"]:
        *theta, tau = data
        x, v, nu = self.split(u)
        lam = nonnegative.project(v) / tau
        stationarity = grad(self._lagrangian)(x, lam, nu, *theta)
        normal = self._g(x, *theta) - v + nonnegative.project(v)
        return torch.cat([stationarity, normal, self._h(x, *theta)])

    def solve(self, u: Tensor, rhs: Tensor, *data: Tensor) -> Float64[Tensor, "B N"]:
        """J⁻¹ rhs: K (ẋ, λ̇, ν̇) = (r₁, D r₂, r₃), then v̇ = τλ̇ where active, Gẋ - r₂ elsewhere."""
        H, G, A, D = self._blocks(u, *data)
        r1, r2, r3 = self.split(rhs)
        y = linsolve(kkt_matrix(H, G, A, D), torch.cat([r1, torch.where(D, r2, 0.0), r3], 1), self.n)
        x_dot, lam_dot, nu_dot = self.split(y)
        v_dot = torch.where(D, data[-1] * lam_dot, matvec(G, x_dot) - r2)
        return torch.cat([x_dot, v_dot, nu_dot], 1)

    def solve_transposed(self, u: Tensor, rhs: Tensor, *data: Tensor) -> Float64[Tensor, "B N"]:
        """J⁻ᵀ ū: K w = (ūₓ + Gᵀ(I - D)ū_v, τDū_v + (I - D)ū_v, ū_ν)."""
        H, G, A, D = self._blocks(u, *data)
        x_bar, v_bar, nu_bar = self.split(rhs)
        x_bar = x_bar + matvec(G.mT, torch.where(D, 0.0, v_bar))
        v_bar = torch.where(D, data[-1] * v_bar, v_bar)
        return linsolve(kkt_matrix(H, G, A, D), torch.cat([x_bar, v_bar, nu_bar], 1), self.n)

    def _blocks(self, u: Tensor, *data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """H, G, A and the diagonal of D at u."""
        *theta, tau = data
        x, lam, nu = self.recover(u, tau)
        H, G, A = vmap(self._second_order)(x, lam, nu, *theta)
        return H, G, A, nonnegative.active(self.split(u)[1])

    # ------------------------------------------------------------------------ one sample of f, g, h

    def local(self, x: Tensor, lam: Tensor, nu: Tensor, *theta: Tensor) -> Local:
        """f, g, h to second order at a point; one sample."""
        H, G, A = self._second_order(x, lam, nu, *theta)
        return Local(grad(self._f)(x, *theta), H, self._g(x, *theta), G, self._h(x, *theta), A)

    def _second_order(
        self, x: Tensor, lam: Tensor, nu: Tensor, *theta: Tensor
    ) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, "m n"], Float64[Tensor, "p n"]]:
        """H, G, A, those that are constant as they were compiled."""
        P, G, A = self.constants.P, self.constants.G, self.constants.A
        if P is None and self.quadratic:
            P = jacrev(grad(self._f))(x, *theta)  # g and h are affine: the multipliers do not matter
        return (
            jacrev(grad(self._lagrangian))(x, lam, nu, *theta) if P is None else P,
            jacobian(self._g, self.m)(x, *theta) if G is None else G,
            jacobian(self._h, self.p)(x, *theta) if A is None else A,
        )

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """f(x, θ), batched."""
        return vmap(self._f)(x, *theta)

    def _f(self, x: Tensor, *theta: Tensor) -> Float64[Tensor, ""]:
        return self.objective(x, *theta).reshape(())

    def _g(self, x: Tensor, *theta: Tensor) -> Float64[Tensor, " m"]:
        return self.inequality(x, *theta) if self.m else x.new_zeros(0)

    def _h(self, x: Tensor, *theta: Tensor) -> Float64[Tensor, " p"]:
        return self.equality(x, *theta) if self.p else x.new_zeros(0)

    def _lagrangian(self, x: Tensor, lam: Tensor, nu: Tensor, *theta: Tensor) -> Float64[Tensor, ""]:
        """L = f + λᵀg + νᵀh."""
        return self._f(x, *theta) + lam @ self._g(x, *theta) + nu @ self._h(x, *theta)

    # -------------------------------------------------------------------------------- u and points

    def split(self, u: Float64[Tensor, "*B N"]) -> tuple[Tensor, Tensor, Tensor]:
        """u -> x, v, ν."""
        x, v, nu = u.split([self.n, self.m, self.p], dim=-1)
        return x, v, nu

    def recover(self, u: Float64[Tensor, "*B N"], tau: Float64[Tensor, "*B m"]) -> Point:
        """u -> x, λ, ν."""
        x, v, nu = self.split(u)
        return Point(x, nonnegative.project(v) / tau, nu)


@dataclass(frozen=True)
class Instance:
    """A form at given parameter values, for a batch of samples: what engines and Newton look at."""

    form: SmoothForm
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
            changes.append(jvp(lambda *theta: self.form.residual(u, *theta, tau), self.theta, move)[1])
        return torch.stack(changes).abs().amax(0)

    @cached_property
    def origin(self) -> Local:
        """At x = 0: P, q, G, g₀, A, h₀, all there is to know of a quadratic programme."""
        zeros = (
            torch.zeros(self.size, k, dtype=torch.float64) for k in (self.form.n, self.form.m, self.form.p)
        )
        return vmap(self.form.local)(*zeros, *self.theta)

    def at(self, point: Point) -> Local:
        """f, g, h to second order at a point."""
        if not self.form.quadratic:
            return vmap(self.form.local)(*point, *self.theta)
        q, P, g0, G, h0, A = self.origin
        return Local(matvec(P, point.x) + q, P, matvec(G, point.x) + g0, G, matvec(A, point.x) + h0, A)


def kkt_matrix(
    H: Float64[Tensor, "B n n"],
    G: Float64[Tensor, "B m n"],
    A: Float64[Tensor, "B p n"],
    D: Bool[Tensor, "B m"],
) -> Float64[Tensor, "B N N"]:
    """K, the symmetric reduction of J; the rows of inactive inequalities are those of -I."""
    m, p = G.shape[1], A.shape[1]
    DG = torch.where(D.unsqueeze(2), G, 0.0)
    D_minus_I = torch.diag_embed(D.to(H.dtype) - 1.0)
    zero = H.new_zeros(H.shape[0], p, m + p)
    lower = torch.cat([torch.cat([D_minus_I, zero[:, :, :m].mT], 2), zero], 1)
    E = torch.cat([DG, A], 1)
    return torch.cat([torch.cat([H, E.mT], 2), torch.cat([E, lower], 2)], 1)


def jacobian(function: Function, rows: int) -> Function:
    """∂function/∂x for one sample; torch's own transforms refuse outputs without elements."""
    if rows:
        return jacrev(function)
    return lambda x, *theta: x.new_zeros(0, x.shape[0])
