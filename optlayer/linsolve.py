r"""The symmetric linear solve: the one derivative of the package written by hand.

    K x = b,     K = Kᵀ,  first n rows primal, the others dual  (a KKT matrix)

    tangent   ẋ = K⁻¹ (ḃ - K̇ x)
    adjoint   b̄ = K⁻ᵀ x̄ = K⁻¹ x̄,    K̄ = -b̄ xᵀ

Both rules are again solves with K, so they call the primitive itself: every order follows.

How it is solved. K is equilibrated (Ruiz 2001), shifted by ±δ so that it is quasidefinite
and has an LDLᵀ factorization (Vanderbei 1995), and the answer is refined against the *unshifted*
matrix. The residual of every solve is checked; samples whose K is singular, or nearly so, take K⁺b,
the minimum-norm least-squares solution, from an eigendecomposition. LU is not used: batched LU on
several CPU threads returns garbage in some builds of torch 2.13 without raising.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

SHIFT = 1e-10  # δ, relative to the equilibrated matrix, whose rows have largest entry 1
REFINEMENTS = 3
RUIZ_SWEEPS = 4
CONSISTENT = 1e-10  # largest |b - Kx| / |b| that passes
ROUNDING = 1e-14  # or |b - Kx| / |x|, when |x| / |b| is below GROWTH
GROWTH = 1e8
RANK = 1e-13  # eigenvalues of the equilibrated matrix below RANK * N count as zero


class Solved(NamedTuple):
    """x with K x = b, and which samples were singular."""

    x: Float64[Tensor, "*batch N"]
    singular: Bool[Tensor, "*batch"]
    free: Bool[Tensor, "*batch"]  # the null space of K has a primal component


def matvec(M: Float64[Tensor, "*batch r c"], a: Float64[Tensor, "*batch c"]) -> Float64[Tensor, "*batch r"]:
    """M a."""
    return (M @ a.unsqueeze(-1)).squeeze(-1)


def linsolve(
    K: Float64[Tensor, "*batch N N"], b: Float64[Tensor, "*batch N"], n: int
) -> Float64[Tensor, "*batch N"]:
    """x = K⁻¹ b for symmetric K with n primal rows first; differentiable in every mode.

    Samples with non-finite entries give NaN, the others are unharmed. Singular samples give K⁺b.
    """
    x: Tensor = _LinearSolve.apply(K, b, n)
    return x


class _LinearSolve(torch.autograd.Function):
    @staticmethod
    def forward(K: Tensor, b: Tensor, n: int) -> Tensor:
        return solve(K, b, n).x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        K, _, ctx.n = inputs
        ctx.save_for_backward(K, output)
        ctx.save_for_forward(K, output)

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor | None, Tensor, None]:
        K, x = ctx.saved_tensors
        b_bar = linsolve(K, x_bar, ctx.n)
        K_bar = -b_bar.unsqueeze(-1) * x.unsqueeze(-2) if ctx.needs_input_grad[0] else None
        return K_bar, b_bar, None

    @staticmethod
    def jvp(ctx: Any, K_dot: Tensor | None, b_dot: Tensor | None, _: None) -> Tensor:
        K, x = ctx.saved_tensors
        rhs = torch.zeros_like(x) if b_dot is None else b_dot
        if K_dot is not None:
            rhs = rhs - matvec(K_dot, x)
        return linsolve(K, rhs, ctx.n)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], K: Tensor, b: Tensor, n: int) -> Any:
        size, (K_dim, b_dim, _) = info.batch_size, in_dims
        K = K.movedim(K_dim, 0) if K_dim is not None else K.expand(size, *K.shape)
        b = b.movedim(b_dim, 0) if b_dim is not None else b.expand(size, *b.shape)
        return linsolve(K, b, n), 0


def solve(K: Float64[Tensor, "*batch N N"], b: Float64[Tensor, "*batch N"], n: int) -> Solved:
    """The numbers behind `linsolve`, with what is known about singular samples; no autograd."""
    batch = torch.broadcast_shapes(K.shape[:-2], b.shape[:-1])
    N = b.shape[-1]
    K, b = K.expand(*batch, N, N).reshape(-1, N, N), b.expand(*batch, N).reshape(-1, N)
    x, singular, free = _solve_flat(K, b, n)
    return Solved(x.reshape(*batch, N), singular.reshape(batch), free.reshape(batch))


def _solve_flat(K: Tensor, b: Tensor, n: int) -> Solved:
    finite = K.isfinite().flatten(1).all(1) & b.isfinite().all(1)
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    K, b = torch.where(finite[:, None, None], K, eye), torch.where(finite[:, None], b, 0.0)

    s = _ruiz(K)
    scaled, rhs = s[:, :, None] * K * s[:, None, :], s * b
    y, passed = _refined_ldl(scaled, rhs, n)
    singular, free = torch.zeros_like(passed), torch.zeros_like(passed)
    x = s * y
    lost = (~passed).nonzero().squeeze(1)
    if lost.numel():
        x[lost], singular[lost], free[lost] = _minimum_norm(scaled[lost], b[lost], s[lost], n)
    return Solved(torch.where(finite[:, None], x, torch.nan), singular, free)


def _ruiz(K: Float64[Tensor, "B N N"]) -> Float64[Tensor, "B N"]:
    """s > 0 such that the rows of diag(s) K diag(s) have largest entry about 1 (Ruiz 2001)."""
    s = K.new_ones(K.shape[:-1])
    for _ in range(RUIZ_SWEEPS if K.shape[-1] else 0):
        largest = (s[:, :, None] * K * s[:, None, :]).abs().amax(-1)
        s = s * torch.where(largest > 0, largest, 1.0).rsqrt()
    return s


def _refined_ldl(K: Tensor, b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """K x = b by LDLᵀ of K + diag(δ, -δ), refined against K; whether x can be trusted.

    A generic right-hand side is solved alongside: it decides whether K is singular, so that this
    depends on K alone and x stays linear in b.
    """
    shift = torch.full_like(b, -SHIFT)
    shift[:, :n] = SHIFT
    factor, pivots = torch.linalg.ldl_factor(K + torch.diag_embed(shift))
    generic = torch.cos(torch.arange(b.shape[1], dtype=b.dtype, device=b.device) ** 2)
    rhs = torch.stack([b, generic.expand_as(b)], 2)
    x = torch.linalg.ldl_solve(factor, pivots, rhs)
    for _ in range(REFINEMENTS):
        x = x + torch.linalg.ldl_solve(factor, pivots, rhs - K @ x)
    residual, size_b, size_x = _largest(rhs - K @ x), _largest(rhs), _largest(x)
    small = (residual <= CONSISTENT * size_b) | (residual <= ROUNDING * size_x)
    return x[:, :, 0], (small & (size_x <= GROWTH * size_b)).all(1)


def _minimum_norm(K: Tensor, b: Tensor, s: Tensor, n: int) -> Solved:
    """K⁺b of the unscaled matrix S⁻¹ K S⁻¹, whose null space is S null(K).

    K is symmetric, so its range is the complement of its null space Z: drop the part of b
    along Z, solve on the rest, drop the part of x along Z.
    """
    eigenvalues, W = torch.linalg.eigh(K)
    null = eigenvalues.abs() <= RANK * K.shape[-1] * eigenvalues.abs().amax(1, keepdim=True)
    inverse = torch.where(null, 0.0, 1.0 / eigenvalues)
    Z = s.unsqueeze(-1) * torch.where(null.unsqueeze(1), W, 0.0)
    onto_null = Z @ torch.linalg.pinv(Z)

    def off_null(a: Tensor) -> Tensor:
        return a - matvec(onto_null, a)

    y = matvec(W, inverse * matvec(W.mT, s * off_null(b)))
    free = (onto_null.diagonal(dim1=1, dim2=2)[:, :n] > 1e-8).any(1)
    return Solved(off_null(s * y), null.any(1), free)


def _largest(a: Float64[Tensor, "B N k"]) -> Float64[Tensor, "B k"]:
    return a.abs().amax(1) if a.shape[1] else a.new_zeros(a.shape[0], a.shape[2])
