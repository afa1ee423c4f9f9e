r"""The parts of a quadratic programme, and where their numbers come from.

    f = ½xᵀPx + qᵀx + d        the objective
    r = Mx + r₀                rows of constraints

Usually every block is affine in θ: a call then costs a few gathers. Where one is not, P = LᵀL, it is read
off the function itself by torch.func, which is dearer. `theta` is the tuple of parameter values, batched;
`flat` the same, flattened sample by sample.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import grad, jacrev, vmap

from optlayer.forms import Function
from optlayer.forms.affine import AffineMap, Gather, Parts
from optlayer.matrix import Dense, Matrix

Theta = tuple[Tensor, ...]


class Objective(Protocol):
    """½xᵀPx + qᵀx + d."""

    def hessian(self, theta: Theta, flat: Parts) -> Matrix:
        """P."""
        ...

    def gradient(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B n"]:
        """Px + q, differentiable."""
        ...

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, " B"]:
        """½xᵀPx + qᵀx + d, differentiable."""
        ...


class Rows(Protocol):
    """r(x) = Mx + r₀; or curved, and M its Jacobian at x."""

    def matrix(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Matrix:
        """M."""
        ...

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B r"]:
        """Mx + r₀, differentiable."""
        ...

    def local(
        self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts
    ) -> tuple[Float64[Tensor, "B r"], Matrix]:
        """r and M."""
        ...

    def pulled(
        self, y: Float64[Tensor, "B r"], x: Tensor, theta: Theta, flat: Parts
    ) -> Float64[Tensor, "B n"]:
        """Mᵀy, differentiable."""
        ...


@dataclass(frozen=True, eq=False)
class AffineObjective:
    """P and q are affine in θ; the value comes from d where that is, too, else from f itself."""

    P: AffineMap
    q: AffineMap
    d: AffineMap | None
    f: "Function | Expanded | None" = None

    def hessian(self, theta: Theta, flat: Parts) -> Matrix:
        """P."""
        return self.P.matrix(flat)

    def gradient(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B n"]:
        """Px + q."""
        return self.P.matrix(flat) @ x + self.q(flat)

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, " B"]:
        """½xᵀPx + qᵀx + d."""
        if isinstance(self.f, Expanded):
            return self.f.value(x, theta, flat)
        if self.d is None:
            assert self.f is not None
            return vmap(self.f)(x, *theta)
        return (x * (0.5 * (self.P.matrix(flat) @ x) + self.q(flat))).sum(1) + self.d(flat)


@dataclass(frozen=True, eq=False)
class Expanded:
    """The value of an objective in coordinates some of which are copies of others: x = c∘x'[k] + t(θ)."""

    objective: AffineObjective
    copy: Gather
    shift: AffineMap

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, " B"]:
        """That of the objective, differentiable."""
        return self.objective.value(self.copy(x) + self.shift(flat), theta, flat)


@dataclass(frozen=True, eq=False)
class FunctionObjective:
    """f itself, of one sample; P is constant in x, but not affine in θ."""

    f: Function
    n: int

    def hessian(self, theta: Theta, flat: Parts) -> Matrix:
        """P."""
        zeros = torch.zeros(flat.shape[0], self.n, dtype=torch.float64, device=flat.device)
        return Dense(vmap(jacrev(grad(self.f)))(zeros, *theta))

    def gradient(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B n"]:
        """∇f."""
        gradient: Tensor = vmap(grad(self.f))(x, *theta)
        return gradient

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, " B"]:
        """f."""
        return vmap(self.f)(x, *theta)


@dataclass(frozen=True, eq=False)
class AffineRows:
    """M and r₀ are affine in θ."""

    M: AffineMap
    r0: AffineMap

    def matrix(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Matrix:
        """M."""
        return self.M.matrix(flat)

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B r"]:
        """Mx + r₀."""
        return self.local(x, theta, flat)[0]

    def local(
        self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts
    ) -> tuple[Float64[Tensor, "B r"], Matrix]:
        """Both, M made once."""
        M = self.M.matrix(flat)
        return M @ x + self.r0(flat), M

    def pulled(
        self, y: Float64[Tensor, "B r"], x: Tensor, theta: Theta, flat: Parts
    ) -> Float64[Tensor, "B n"]:
        """Mᵀy."""
        return self.M.matrix(flat).mT(y)


@dataclass(frozen=True, eq=False)
class FunctionRows:
    """The rows as a function of one sample: not affine in θ, or not in x."""

    function: Function
    rows: int

    def matrix(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Matrix:
        """The Jacobian."""
        return Dense(vmap(jacobian(self.function, self.rows))(x, *theta))

    def value(self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts) -> Float64[Tensor, "B r"]:
        """r(x)."""
        return vmap(self.function)(x, *theta) if self.rows else x[:, :0]

    def local(
        self, x: Float64[Tensor, "B n"], theta: Theta, flat: Parts
    ) -> tuple[Float64[Tensor, "B r"], Matrix]:
        """Both."""
        return self.value(x, theta, flat), self.matrix(x, theta, flat)

    def pulled(
        self, y: Float64[Tensor, "B r"], x: Tensor, theta: Theta, flat: Parts
    ) -> Float64[Tensor, "B n"]:
        """Mᵀy, the gradient of yᵀr."""

        def weighted(x: Tensor, y: Tensor, *theta: Tensor) -> Tensor:
            return y @ self.function(x, *theta)

        pulled: Tensor = vmap(grad(weighted))(x, y, *theta)
        return pulled


def flatten(like: Tensor, theta: Theta) -> Parts:
    """θ in one row for each sample."""
    return Parts([t.reshape(len(like), -1) for t in theta], len(like), like.device)


def jacobian(function: Function, rows: int) -> Function:
    """∂function/∂x for one sample; torch's own transforms refuse outputs without elements."""
    if rows:
        return jacrev(function)
    return lambda x, *theta: x.new_zeros(0, x.shape[0])
