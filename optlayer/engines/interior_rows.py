"""What the interior point for smooth problems looks at: f, g, h of one call, beside rows for their domain."""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.cones import Nonnegative, Product
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance
from optlayer.matrix import Dense, Matrix, Pattern, Sparse, stacked

SAME = 1e-6  # relative difference of the distances to a bound and to a border that are one


class State(NamedTuple):
    """x, s, λ, ν; s and λ of the rows for the domain come last."""

    x: Float64[Tensor, "B n"]
    s: Float64[Tensor, "B m"]
    lam: Float64[Tensor, "B m"]
    nu: Float64[Tensor, "B p"]

    def moved(self, by: "State", primal: Tensor, dual: Tensor) -> "State":
        """x, s and ν by one length (B, 1), λ by another."""
        return State(
            self.x + primal * by.x, self.s + primal * by.s, self.lam + dual * by.lam, self.nu + primal * by.nu
        )


class Residual(NamedTuple):
    """The rows of the KKT conditions, complementarity apart."""

    stationarity: Float64[Tensor, "B n"]
    g: Float64[Tensor, "B m"]  # g + s
    h: Float64[Tensor, "B p"]


class Units(NamedTuple):
    """What things are measured in; set at the start, so that neither a unit of x nor one of f matters."""

    x: Float64[Tensor, "B 1"]
    slope: Float64[Tensor, "B 1"]  # of ∇f
    g: Float64[Tensor, "B m"]
    h: Float64[Tensor, "B p"]

    @property
    def f(self) -> Float64[Tensor, "B 1"]:
        """Of f, and of every s_i λ_i."""
        return self.x * self.slope


class Rows:
    """f, g and h of one call, with a row for every coordinate that a domain stops."""

    def __init__(self, problem: Instance) -> None:
        self.problem, self.zeros = problem, problem.nowhere.x
        self._patterns: dict[str, Pattern] = {}
        self.extra: Sparse | None = None
        if problem.borders.stops:
            slopes, offsets = problem.borders.affine
            columns = problem.borders.columns
            shape = (len(columns), problem.form.n)
            rows = torch.arange(len(columns), device=columns.device)
            self.extra, self.offset = Sparse(-slopes, Pattern(shape, rows, columns)), -offsets

    @property
    def m(self) -> int:
        """All rows of g."""
        return self.problem.form.m + (self.extra.shape[0] if self.extra else 0)

    @cached_property
    def dual(self) -> Product:
        """λ >= 0."""
        return Product((Nonnegative(self.m),))

    def local(self, now: State) -> Local:
        """f, g, h to second order, with the rows that were added."""
        m = self.problem.form.m
        at = self.problem.at(Point(now.x, now.lam[:, :m], now.nu))
        if self.extra is not None:
            G = stacked(at.G, self.extra) if m else self.extra
            at = at._replace(g=torch.cat([at.g, self.extra @ now.x + self.offset], 1), G=G, dual=self.dual)
        same = self._same
        return at._replace(hessian=same("hessian", at.hessian), G=same("G", at.G), A=same("A", at.A))

    def _same(self, name: str, M: Matrix) -> Matrix:
        """With the pattern it had at the start, which knows already what it is."""
        if isinstance(M, Dense):
            return M
        return Sparse(M.values, self._patterns.setdefault(name, M.pattern))

    def without_domain(self, lam: Float64[Tensor, "B m"], at: Local) -> Float64[Tensor, "B m"]:
        """λ = 0 for bounds that say again what the domain says: x keeps away from those by itself."""
        if self.extra is None or not lam.shape[1]:
            return lam
        g, G = at.g, at.G
        m, columns = lam.shape[1], self.extra.pattern.columns
        border = torch.full_like(at.gradient, torch.inf)
        border[:, columns] = (-g / G.peaks)[:, m:]
        column = G.dense()[:, :m].abs().argmax(2).expand(len(g), -1)
        same = G.is_single[:, :m] & ((-g / G.peaks)[:, :m] >= (1.0 - SAME) * border.gather(1, column))
        return torch.where(same, 0.0, lam)

    def value(self, x: Tensor) -> Float64[Tensor, "B 1"]:
        """f."""
        return self.problem.form.value(x, *self.problem.theta).unsqueeze(1)

    def evaluate(self, now: State) -> tuple[Tensor, Residual]:
        """f and the residual; batched once more by `vmap`."""
        m = self.problem.form.m
        point = Point(now.x, now.lam[:, :m], now.nu)
        left, g, h = self.problem.form.rows(point, *self.problem.theta)
        if self.extra is not None:
            left = left + self.extra.mT(now.lam[:, m:])
            g = torch.cat([g, self.extra @ now.x + self.offset], 1)
        return self.value(now.x), Residual(left, g + now.s, h)

    def holds(self, x: Tensor) -> Bool[Tensor, "B 1"]:
        """Whether x is inside of the domain."""
        return self.problem.borders.holds(x).unsqueeze(1)


def residual(at: Local, now: State) -> Residual:
    """∇f + Gᵀλ + Aᵀν, g + s, h."""
    return Residual(at.gradient + at.G.mT(now.lam) + at.A.mT(now.nu), at.g + now.s, at.h)
