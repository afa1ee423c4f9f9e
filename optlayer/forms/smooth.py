r"""The smooth form: min f(x, θ)  s.t.  g(x, θ) <= 0,  h(x, θ) = 0  with f, g, h torch functions.

One sample of f, g, h is what the user declared; torch.func differentiates and batches it. Where the
problem is a quadratic programme its matrices are read off once a call.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import grad, jacrev, vmap

from optlayer.cones import Nonnegative, Product
from optlayer.forms import Curvature, Domain, Function, Local, Point, Reference
from optlayer.forms.kkt import KKTForm


@dataclass(frozen=True)
class Constants:
    """Blocks of a quadratic programme that no parameter enters; None where one does."""

    P: Float64[Tensor, "n n"] | None = None
    G: Float64[Tensor, "m n"] | None = None
    A: Float64[Tensor, "p n"] | None = None


@dataclass(frozen=True, eq=False)
class SmoothForm(KKTForm):
    """A compiled smooth programme in x ∈ ℝⁿ, all variables flattened in C order and concatenated."""

    n: int
    m: int  # rows of g, those that stand for variable attributes included
    p: int  # rows of h, likewise
    objective: Function  # f: () or one element
    inequality: Function  # g: (m,)
    equality: Function  # h: (p,)
    reference: Reference
    quadratic: bool  # f quadratic, g and h affine in x, for every θ
    constants: Constants = Constants()
    domain: Domain | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> "SmoothForm":
        return self  # immutable

    @cached_property
    def dual(self) -> Product:  # type: ignore[override]
        """λ >= 0."""
        return Product((Nonnegative(self.m),))

    @property
    def patterns(self) -> tuple[Bool[np.ndarray, "n n"], Bool[np.ndarray, "p+m n"]]:
        """Where P and [A; G] of a quadratic programme may be nonzero, whatever the parameters are."""
        P, G, A = self.constants.P, self.constants.G, self.constants.A
        rows = [_pattern(A, self.p, self.n), _pattern(G, self.m, self.n)]
        return _pattern(P, self.n, self.n), np.vstack(rows)

    @cached_property
    def seen(self) -> Bool[Tensor, " n"]:  # type: ignore[override]
        """All of them."""
        return torch.ones(self.n, dtype=torch.bool)

    # ------------------------------------------------------------------------------------ batched

    def rows(self, point: Point, *theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∇f + Gᵀλ + Aᵀν, g and h, batched and differentiable."""
        stationarity, g, h = vmap(self._rows)(*point, *theta)
        return stationarity, g, h

    def curvature(self, point: Point, *theta: Tensor) -> Curvature:
        """H, G, A."""
        return Curvature(*vmap(self._second_order)(*point, *theta))

    def local(self, point: Point, *theta: Tensor) -> Local:
        """f, g, h to second order at a point."""
        gradient, H, g, G, h, A = vmap(self._local)(*point, *theta)
        return Local(gradient, H, g, G, h, A, self.dual)

    def value(self, x: Float64[Tensor, "B n"], *theta: Tensor) -> Float64[Tensor, " B"]:
        """f(x, θ), batched."""
        return vmap(self._f)(x, *theta)

    # ------------------------------------------------------------------------ one sample of f, g, h

    def _rows(self, x: Tensor, lam: Tensor, nu: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        return grad(self._lagrangian)(x, lam, nu, *theta), self._g(x, *theta), self._h(x, *theta)

    def _local(self, x: Tensor, lam: Tensor, nu: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        H, G, A = self._second_order(x, lam, nu, *theta)
        return grad(self._f)(x, *theta), H, self._g(x, *theta), G, self._h(x, *theta), A

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

    def _f(self, x: Tensor, *theta: Tensor) -> Float64[Tensor, ""]:
        return self.objective(x, *theta).reshape(())

    def _g(self, x: Tensor, *theta: Tensor) -> Float64[Tensor, " m"]:
        return self.inequality(x, *theta) if self.m else x.new_zeros(0)

    def _h(self, x: Tensor, *theta: Tensor) -> Float64[Tensor, " p"]:
        return self.equality(x, *theta) if self.p else x.new_zeros(0)

    def _lagrangian(self, x: Tensor, lam: Tensor, nu: Tensor, *theta: Tensor) -> Float64[Tensor, ""]:
        """L = f + λᵀg + νᵀh."""
        return self._f(x, *theta) + lam @ self._g(x, *theta) + nu @ self._h(x, *theta)


def _pattern(constant: Tensor | None, rows: int, columns: int) -> Bool[np.ndarray, "r c"]:
    """Where a block may be nonzero."""
    if constant is None:
        return np.ones((rows, columns), dtype=bool)
    pattern: np.ndarray = torch.ne(constant, 0.0).numpy()
    return pattern


def jacobian(function: Function, rows: int) -> Function:
    """∂function/∂x for one sample; torch's own transforms refuse outputs without elements."""
    if rows:
        return jacrev(function)
    return lambda x, *theta: x.new_zeros(0, x.shape[0])
