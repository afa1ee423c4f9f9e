"""Quadratic programmes and regressions, with all their data as inputs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import cvxpy as cp
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.linalg import solve_triangular

from optlayer.implicit import attach
from optlayer.layer import OptLayer
from optlayer.layers.fast import FastLayer, check_flag, plain, size

RANK = 1e-10  # a diagonal of R below RANK times the largest: too near to a rank-deficient matrix for QR


class QP(OptLayer):
    """argmin ½zᵀQz + pᵀz : Gz ≤ h, Az = b.

    It is called with Q (n, n) positive semidefinite, p (n,), then G (m, n) and h (m,) if m > 0, then
    A (k, n) and b (k,) if k > 0; all with leading batch dimensions.

    Args:
        n: Number of variables.
        m: Number of inequalities.
        k: Number of equations.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for sizes that are no whole numbers, n ≥ 1, m ≥ 0 and k ≥ 0.
        InputError: in a call, for a Q that is not positive semidefinite.

    Reference: Amos & Kolter, OptNet, ICML 2017, arXiv:1703.00443.
    """

    def __init__(self, n: int, m: int = 0, k: int = 0, **options: Any) -> None:
        n, m, k = size("n", n), size("m", m, least=0), size("k", k, least=0)
        parameters = [cp.Parameter((n, n), PSD=True, name="Q"), cp.Parameter(n, name="p")]
        if m:
            parameters += [cp.Parameter((m, n), name="G"), cp.Parameter(m, name="h")]
        if k:
            parameters += [cp.Parameter((k, n), name="A"), cp.Parameter(k, name="b")]
        super().__init__(
            [cp.Variable(n, name="z")],
            parameters,
            _quadratic,
            [partial(_matrix_minus_vector, 2)] if m else [],
            [partial(_matrix_minus_vector, 4 if m else 2)] if k else [],
            **options,
        )


class Lasso(OptLayer):
    """argmin ½|Xw − y|² + λ|w|₁; it is called with X (m, n), y (m,) and λ ≥ 0, a number for each sample.

    Args:
        m: Number of observations.
        n: Number of coefficients.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.
        InputError: in a call, for a negative λ.

    Reference: Tibshirani, Regression shrinkage and selection via the lasso, JRSS B 58 (1996),
    doi:10.1111/j.2517-6161.1996.tb02080.x.
    """

    def __init__(self, m: int, n: int, **options: Any) -> None:
        m, n = size("m", m), size("n", n)
        X, y = cp.Parameter((m, n), name="X"), cp.Parameter(m, name="y")
        lam = cp.Parameter(nonneg=True, name="lam")
        super().__init__([cp.Variable(n, name="w")], [X, y, lam], _lasso, **options)


class LeastSquares(FastLayer):
    """argmin ‖Ax − b‖², or with `ridge=True` ‖Ax − b‖² + ρ‖x‖².

    It is called with A (m, n), b (m,) and, with `ridge=True`, ρ ≥ 0, a number for each sample.
    Where the columns of A are dependent and ρ = 0, a minimizer is returned whose derivative is that of
    minimum norm, and `flags.nonunique` is set.

    Args:
        m: Number of rows of A.
        n: Number of columns of A.
        ridge: Whether ρ is an input.
        fast: Solve by QR; derivatives of every mode reuse its factor. Rank-deficient A go the declared way.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.
        InputError: in a call, for a negative ρ.

    Reference: Björck, Iterative refinement of linear least squares solutions I, BIT 7 (1967),
    doi:10.1007/BF01939321, for x and the residual from one QR.
    """

    def __init__(self, m: int, n: int, *, ridge: bool = False, fast: bool = False, **options: Any) -> None:
        m, n = size("m", m), size("n", n)
        check_flag("ridge", ridge)
        parameters = [cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")]
        if ridge:
            parameters.append(cp.Parameter(nonneg=True, name="rho"))
        super().__init__([cp.Variable(n, name="x")], parameters, _squares, fast=fast, **options)

    def closed_form(  # type: ignore[override]
        self, A: Float64[Tensor, "B m n"], b: Float64[Tensor, "B m"], rho: Float64[Tensor, " B"] | None = None
    ) -> Float64[Tensor, "B n"]:
        """x and the residual r = b − Ax, which the optimality conditions Aᵀr = ρx know together."""
        rho = torch.zeros_like(b[:, 0]) if rho is None else rho
        with torch.no_grad():
            normal = _Normal.of(A.detach(), rho.detach())
            nothing = torch.zeros_like(A[:, 0].detach())
            u = normal.solve(torch.cat([b.detach(), nothing], 1))
            u = u - normal.solve(_conditions(u, A.detach(), b.detach(), rho.detach()))  # one refinement
        x = attach(_LeastSquaresRoot(normal), u, (A, b, rho))[:, A.shape[1] :]
        return torch.where(normal.full_rank & (rho >= 0)[:, None], x, torch.nan)


@dataclass(frozen=True)
class _Normal:
    """The matrix [[I, A], [Aᵀ, −ρI]] by the factor of [A; √ρ I] = [Q; ·] R."""

    A: Float64[Tensor, "B m n"]
    rho: Float64[Tensor, " B"]
    Q: Float64[Tensor, "B m n"]
    R: Float64[Tensor, "B n n"]

    @classmethod
    def of(cls, A: Tensor, rho: Tensor) -> "_Normal":
        identity = torch.eye(A.shape[2], dtype=A.dtype, device=A.device)
        ridge = rho.clamp_min(0.0).sqrt()[:, None, None] * identity
        Q, R = torch.linalg.qr(torch.cat([A, ridge], 1))
        return cls(A, rho, Q[:, : A.shape[1]], R)

    @property
    def plain(self) -> "_Normal":
        """Outside of the transforms under which it was made."""
        return _Normal(*map(plain, (self.A, self.rho, self.Q, self.R)))

    @property
    def full_rank(self) -> Tensor:
        diagonal = self.R.diagonal(dim1=1, dim2=2).abs()
        return diagonal.amin(1, keepdim=True) > RANK * diagonal.amax(1, keepdim=True)

    def solve(self, rhs: Float64[Tensor, "B m+n"]) -> Float64[Tensor, "B m+n"]:
        """r and x with r + Ax = f, Aᵀr − ρx = g."""
        m = self.A.shape[1]
        f, g = rhs[:, :m, None], rhs[:, m:, None]
        h = solve_triangular(self.R.mT, g, upper=False)
        d = self.Q.mT @ f - h
        return torch.cat([f - self.Q @ d, solve_triangular(self.R, d, upper=True)], 1).squeeze(2)


@dataclass(frozen=True)
class _LeastSquaresRoot:
    """r + Ax = b, Aᵀr = ρx as a `Root`; its Jacobian is symmetric."""

    kept: _Normal

    def residual(self, u: Tensor, *data: Tensor) -> Tensor:
        return _conditions(u, *data)

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Tensor:
        """By the factor there is; anew where a transform asks at other matrices."""
        del u, transposed
        A, _, rho = data
        kept = self.kept.plain
        same = torch.equal(kept.A, A) and torch.equal(kept.rho, rho)
        return (kept if same else _Normal.of(A, rho)).solve(b)


# ----------------------------------------------------------------------------------------- the expressions


def _conditions(u: Tensor, A: Tensor, b: Tensor, rho: Tensor) -> Float64[Tensor, "B m+n"]:
    r, x = u[:, : A.shape[1], None], u[:, A.shape[1] :, None]
    above = r + A @ x - b[:, :, None]
    below = A.mT @ r - rho[:, None, None] * x
    return torch.cat([above, below], 1).squeeze(2)


def _quadratic(z: Any, Q: Any, p: Any, *_: Any) -> Any:
    return cp.quad_form(z, Q) / 2 + p @ z


def _matrix_minus_vector(first: int, z: Any, *parameters: Any) -> Any:
    """Gz − h, or Az − b: the parameter at `first`, and the next."""
    return parameters[first] @ z - parameters[first + 1]


def _lasso(w: Any, X: Any, y: Any, lam: Any) -> Any:
    return cp.sum_squares(X @ w - y) / 2 + lam * cp.norm1(w)


def _squares(x: Any, A: Any, b: Any, rho: Any = None) -> Any:
    squares = cp.sum_squares(A @ x - b)
    return squares if rho is None else squares + rho * cp.sum_squares(x)
