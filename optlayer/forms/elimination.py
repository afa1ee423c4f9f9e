r"""K y = r by elimination: active bounds fix their coordinates, Cholesky factors do the rest.

A row of G with one entry, g_i x_j - b_i <= 0, is a bound. In K it reads

    active (d = 1)     g_i x_j = r_i            fixes x_j; its multiplier is read off row j afterwards
    inactive (d = 0)   -τ_i μ_i = r_i           stands alone

so that bounds enter no product: what is left is the saddle-point system of the free coordinates, the other
rows of G and A.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones import Spectrum
from optlayer.forms import Local
from optlayer.matrix import Bounds, Dense, Matrix, Sparse, compact, diagonal, plus_diagonal, stacked
from optlayer.saddle import ROUGH, Base
from optlayer.sparse_saddle import factor


class Eliminated(NamedTuple):
    """K⁻¹ r in the parts of K, and whether its residual says so."""

    x: Float64[Tensor, "B n"]
    mu: Float64[Tensor, "B m"]
    nu: Float64[Tensor, "B p"]
    sound: Bool[Tensor, " B"]


class Elimination:
    """K of one point, factored.

    Args:
        at: H, G, A.
        spectrum: That of DΠ(v).
        tau: τ.
        base: `base_of(at)`, where that is at hand.
    """

    def __init__(self, at: Local, spectrum: Spectrum, tau: Float64[Tensor, "B m"], base: Base | None) -> None:
        self._at, self._tau, self._base = at, tau, base or base_of(at, spectrum)
        self._bounds = bounds_of(at)
        self._fixed: Bool[Tensor, "B n"] | None = None  # coordinates that active bounds hold
        self._single: Bool[Tensor, " B"] | None = None  # whether each is held by one bound only
        d, S = spectrum.d, spectrum.d.sqrt()
        D = (1.0 - d) * tau
        if self._bounds is not None:
            self._fix(self._bounds, d)
            S, D = S[:, self._bounds.other_rows], D[:, self._bounds.other_rows]
        self._others, p = S.shape[1], at.A.shape[0]
        ones, zeros = (S.new_full((len(S), p), value) for value in (1.0, 0.0))
        self._s = torch.cat([S, ones], 1) if self._others else None
        self._factor = factor(self._base, self._s, torch.cat([D, zeros], 1), self._fixed)

    def _fix(self, bounds: Bounds, d: Float64[Tensor, "B m"]) -> None:
        """Which coordinates active bounds hold; two on one coordinate leave K singular."""
        G = self._at.G
        self._active = d[:, bounds.rows]
        self._slope = G.values[:, bounds.entries]
        count = torch.zeros_like(self._at.gradient).index_add(1, bounds.columns, self._active)
        self._fixed, self._single = count > 0, (count <= 1).all(1)

    @property
    def regular(self) -> Bool[Tensor, " B"]:
        """Whether K is regular, which depends on nothing but K."""
        regular = self._factor.regular
        return regular if self._single is None else regular & self._single

    def solve(self, r1: Tensor, r2: Tensor, r3: Tensor, enough: float) -> Eliminated:
        """K (x, μ, ν) = (r₁, r₂, r₃), to a relative residual."""
        x, y, sound = self._factor.solve(*self._without_bounds(r1, r2, r3), enough)
        sound = sound if self._single is None else sound & self._single
        return Eliminated(*self._with_bounds(x, y, r1, r2), sound)

    def solve_always(self, r1: Tensor, r2: Tensor, r3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same where K is `regular`; the right-hand side decides nothing."""
        x, y = self._factor.solve_always(*self._without_bounds(r1, r2, r3))
        return self._with_bounds(x, y, r1, r2)

    def _without_bounds(self, r1: Tensor, r2: Tensor, r3: Tensor) -> tuple[Tensor, Tensor]:
        """The right-hand side of the saddle-point system: coordinates that bounds hold are put in."""
        if self._bounds is None or self._fixed is None:
            return r1, torch.cat([r2, r3], 1)
        bounds = self._bounds
        at_bounds = self._active * r2[:, bounds.rows] / self._slope
        held = torch.zeros_like(r1).index_add(1, bounds.columns, at_bounds)
        right = torch.cat([r2[:, bounds.other_rows], r3], 1) - self._scaled(self._base.given @ held)
        return torch.where(self._fixed, held, r1 - self._at.hessian @ held), right

    def _with_bounds(self, x: Tensor, y: Tensor, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, μ, ν: the multipliers of active bounds are read off the rows they were left out of."""
        others, nu = y.split([self._others, self._at.A.shape[0]], 1)
        if self._bounds is None:
            return x, others, nu
        bounds = self._bounds
        left = r1 - self._at.hessian @ x - self._base.given.mT(self._scaled(y))
        active, inactive = (
            left[:, bounds.columns] / self._slope,
            -r2[:, bounds.rows] / self._tau[:, bounds.rows],
        )
        both = torch.cat([torch.where(self._active > 0, active, inactive), others], 1)
        return x, both[:, bounds.order], nu

    def _scaled(self, rows: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        return rows if self._s is None else self._s * rows


def proximal(
    at: Local, S: Tensor, D: Tensor, rhs: tuple[Tensor, Tensor, Tensor], shift: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """K y = r with δ_p on the primal diagonal and -δ_d on the dual one: regular whatever K is.

    A bound's row, S_i g_i x_j - D_i μ_i = r_i with D_i > 0 now, leaves S_i² g_i² / D_i on the diagonal of H.

    Args:
        at: H, G, A.
        S, D: Scale of the rows of G, and their part of the dual diagonal, δ_d included; (B, m).
        rhs: (r₁, r₂, r₃).
        shift: δ_p and δ_d, (B, 1).
    """
    (r1, r2, r3), (primal, dual), bounds = rhs, shift, bounds_of(at)
    extra, others = primal.expand_as(r1), torch.arange(S.shape[1], device=S.device)
    if bounds is not None:
        slope = S[:, bounds.rows] * at.G.values[:, bounds.entries]
        weight, others = slope / D[:, bounds.rows], bounds.other_rows
        extra = extra.index_add(1, bounds.columns, slope * weight)
        r1 = r1.index_add(1, bounds.columns, weight * r2[:, bounds.rows])
    s = torch.cat([S[:, others], torch.ones_like(r3)], 1)
    E = stacked(_general_rows(at, bounds), at.A)
    solver = factor(
        Base.of(plus_diagonal(at.hessian, extra), E), s, torch.cat([D[:, others], dual.expand_as(r3)], 1)
    )
    x, y, _ = solver.solve(r1, torch.cat([r2[:, others], r3], 1), ROUGH)
    mu = torch.zeros_like(r2)
    mu[:, others] = y[:, : len(others)]
    if bounds is not None:
        mu[:, bounds.rows] = weight * x[:, bounds.columns] - r2[:, bounds.rows] / D[:, bounds.rows]
    return x, mu, y[:, len(others) :]


def least_step(at: Local) -> Float64[Tensor, "B n"]:
    """The shortest Δx with h + A Δx = 0."""
    identity = diagonal(torch.ones_like(at.gradient[:1]))
    nearest = factor(Base.of(identity, at.A), None, torch.zeros_like(at.h))
    return nearest.solve(torch.zeros_like(at.gradient), -at.h).x


def bounds_of(at: Local) -> Bounds | None:
    """The rows of G that hold one coordinate each, where inequalities are all there is."""
    if not isinstance(at.G, Sparse) or not at.dual.is_orthant:
        return None
    bounds = at.G.pattern.bounds
    return bounds if len(bounds.rows) else None


def base_of(at: Local, spectrum: Spectrum | None = None) -> Base:
    """H and the rows that are no bounds; those of curved cones turned into the eigenbasis of DΠ."""
    rows = _general_rows(at, bounds_of(at))
    if spectrum is not None and spectrum.turns:
        return Base.of(at.hessian, compact(stacked(Dense(spectrum.into(rows.dense())), at.A)))
    return Base.of(at.hessian, stacked(rows, at.A))


def _general_rows(at: Local, bounds: Bounds | None) -> Matrix:
    """Those of G that are no bounds."""
    if bounds is None or not isinstance(at.G, Sparse):
        return at.G
    return Sparse(at.G.values[:, bounds.other_entries], bounds.others)
