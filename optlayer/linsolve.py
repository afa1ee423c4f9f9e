r"""Linear solves: the one derivative of the package written by hand.

    M(d) x = b,     M a batched linear operator that depends on tensors d

    tangent   ẋ = M⁻¹ (ḃ - Ṁ x)
    adjoint   b̄ = M⁻ᵀ x̄,    d̄ = -∂⟨b̄, M(d) x⟩/∂d

Both rules are again solves with M or Mᵀ, so they call the primitive itself: every order follows. The
operator is met through its products alone; how its inverse is found is its own affair.

Here it is found from symmetric matrices K, first n rows primal, the others dual (a KKT matrix).
K is equilibrated (Ruiz 2001), shifted by ±δ so that it is quasidefinite and has an LDLᵀ
factorization (Vanderbei 1995), and the answer is refined against the *unshifted* matrix. The
residual of every solve is checked; samples whose K is singular, or nearly so, take K⁺b, the
minimum-norm least-squares solution, from an eigendecomposition. LU is not used: batched LU on
several CPU threads returns garbage in some builds of torch 2.13 without raising.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.modes import without_saved_tensor_hooks

SHIFT = 1e-10  # δ, relative to the equilibrated matrix, whose rows have largest entry 1
REFINEMENTS = 3
RUIZ_SWEEPS = 4
CONSISTENT = 1e-10  # largest |b - Kx| / |b| that passes
ROUNDING = 1e-14  # or |b - Kx| / |x|, when |x| / |b| is below GROWTH
GROWTH = 1e8
RANK = 1e-13  # eigenvalues of the equilibrated matrix below RANK * N count as zero
NEAR = 10.0  # |x| / |b| of a singular matrix, in units of what counts as zero, is larger


class Solved(NamedTuple):
    """x with K x = b, and which samples were singular."""

    x: Float64[Tensor, "*batch N"]
    singular: Bool[Tensor, "*batch"]
    free: Bool[Tensor, "*batch n"]  # primal coordinates that the null space of K moves


def matvec(M: Float64[Tensor, "*batch r c"], a: Float64[Tensor, "*batch c"]) -> Float64[Tensor, "*batch r"]:
    """M a."""
    return (M @ a.unsqueeze(-1)).squeeze(-1)


class System(Protocol):
    """A batched linear operator M(d) that can be multiplied with and solved."""

    def product(self, x: Float64[Tensor, "B N"], *data: Tensor, transposed: bool) -> Float64[Tensor, "B N"]:
        """M(d) x, or M(d)ᵀ x; differentiable in x and d."""
        ...

    def inverse(self, b: Float64[Tensor, "B N"], *data: Tensor, transposed: bool) -> Float64[Tensor, "B N"]:
        """M(d)⁻¹ b, or M(d)⁻ᵀ b; numbers."""
        ...


def linsolve(
    system: System, b: Float64[Tensor, "B N"], *data: Tensor, transposed: bool = False
) -> Float64[Tensor, "B N"]:
    """x with M(d) x = b, or M(d)ᵀ x = b; differentiable in b and d in every mode.

    Args:
        system: The operator M.
        b: The right-hand side.
        data: d, tensors of any shape with leading B.
        transposed: Solve with Mᵀ.
    """
    x: Tensor = _LinearSolve.apply(system, transposed, b, *data)
    return x


class _LinearSolve(torch.autograd.Function):
    @staticmethod
    def forward(system: System, transposed: bool, b: Tensor, *data: Tensor) -> Tensor:
        with torch.no_grad(), without_saved_tensor_hooks():
            return system.inverse(b, *data, transposed=transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system, ctx.transposed, _, *data = inputs
        ctx.save_for_backward(output, *data)
        ctx.save_for_forward(output, *data)

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor | None, ...]:
        x, *data = ctx.saved_tensors
        b_bar = linsolve(ctx.system, x_bar, *data, transposed=not ctx.transposed)
        wanted = ctx.needs_input_grad[3:]
        if not any(wanted):
            return None, None, b_bar, *(None for _ in data)
        with without_saved_tensor_hooks():
            pull: Any = torch.func.vjp(*only(_product(ctx, x), data, wanted))[1]
            data_bar = iter(pull(-b_bar))
        return None, None, b_bar, *(next(data_bar) if want else None for want in wanted)

    @staticmethod
    def jvp(ctx: Any, _system: None, _transposed: None, b_dot: Tensor | None, *data_dot: Any) -> Tensor:
        x, *data = ctx.saved_tensors
        rhs = torch.zeros_like(x) if b_dot is None else b_dot
        if any(dot is not None for dot in data_dot):
            with without_saved_tensor_hooks():
                rhs = rhs - push(_product(ctx, x), data, data_dot)
        return linsolve(ctx.system, rhs, *data, transposed=ctx.transposed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], system: System, transposed: bool, b: Tensor, *data: Tensor
    ) -> Any:
        """Fold the new dimension into the batch."""
        size = info.batch_size
        front = [
            t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((b, *data), in_dims[2:], strict=True)
        ]
        b, *data = (t.reshape(size * t.shape[1], *t.shape[2:]) for t in front)  # type: ignore[assignment]
        x = linsolve(system, b, *data, transposed=transposed)
        return x.reshape(front[0].shape), 0


def _product(ctx: Any, x: Tensor) -> Callable[..., Tensor]:
    """d -> M(d) x, or M(d)ᵀ x."""
    return lambda *data: ctx.system.product(x, *data, transposed=ctx.transposed)


def only(
    function: Callable[..., Tensor], arguments: Sequence[Tensor], chosen: Sequence[bool]
) -> tuple[Any, ...]:
    """The function of some of its arguments, the others held, and those arguments."""

    def of_chosen(*values: Tensor) -> Tensor:
        value = iter(values)
        return function(*(next(value) if c else a for a, c in zip(arguments, chosen, strict=True)))

    return of_chosen, *(a for a, c in zip(arguments, chosen, strict=True) if c)


def push(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> Tensor:
    """∂function · tangents as the transpose of the transpose: custom rules may not use forward mode."""
    pulled: Any = torch.func.vjp(*only(function, primals, [dot is not None for dot in tangents]))
    value, pull = pulled
    transpose = torch.func.vjp(pull, torch.zeros_like(value))[1]
    (tangent,) = transpose(tuple(dot for dot in tangents if dot is not None))
    return tangent


def solve(
    K: Float64[Tensor, "*batch N N"], b: Float64[Tensor, "*batch N"], n: int, null: float | None = None
) -> Solved:
    """x with K x = b for symmetric K, n primal rows first, and what is known of singular samples.

    Samples with non-finite entries give NaN, the others are unharmed. Singular samples give K⁺b.
    No autograd.

    Args:
        K: The matrix.
        b: The right-hand side.
        n: Primal rows, which come first.
        null: Eigenvalues of the equilibrated matrix that count as zero, relative to the largest; None: what
            is rounding where the entries of K are right to the last digit.
    """
    batch = torch.broadcast_shapes(K.shape[:-2], b.shape[:-1])
    N, count = b.shape[-1], prod(batch)
    K, b = K.expand(*batch, N, N).reshape(count, N, N), b.expand(*batch, N).reshape(count, N)
    x, singular, free = _solve_flat(K, b, n, RANK * N if null is None else null)
    return Solved(x.reshape(*batch, N), singular.reshape(batch), free.reshape(*batch, n))


def _solve_flat(K: Tensor, b: Tensor, n: int, null: float) -> Solved:
    finite = K.isfinite().flatten(1).all(1) & b.isfinite().all(1)
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    K, b = torch.where(finite[:, None, None], K, eye), torch.where(finite[:, None], b, 0.0)

    s = ruiz(K)
    scaled, rhs = s[:, :, None] * K * s[:, None, :], s * b
    y, passed = _refined_ldl(scaled, rhs, n, min(GROWTH, 1.0 / (NEAR * max(null, RANK))))
    singular, free = torch.zeros_like(passed), torch.zeros_like(b[:, :n], dtype=torch.bool)
    x = s * y
    lost = (~passed).nonzero().squeeze(1)
    if lost.numel():
        x[lost], singular[lost], free[lost] = _minimum_norm(scaled[lost], b[lost], s[lost], n, null)
    return Solved(torch.where(finite[:, None], x, torch.nan), singular, free)


def ruiz(K: Float64[Tensor, "B N N"]) -> Float64[Tensor, "B N"]:
    """s > 0 such that the rows of diag(s) K diag(s) have largest entry about 1 (Ruiz 2001)."""
    s = K.new_ones(K.shape[:-1])
    for _ in range(RUIZ_SWEEPS if K.shape[-1] else 0):
        largest = (s[:, :, None] * K * s[:, None, :]).abs().amax(-1)
        s = s * torch.where(largest > 0, largest, 1.0).rsqrt()
    return s


def _refined_ldl(K: Tensor, b: Tensor, n: int, growth: float) -> tuple[Tensor, Tensor]:
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
    return x[:, :, 0], (small & (size_x <= growth * size_b)).all(1)


def _minimum_norm(K: Tensor, b: Tensor, s: Tensor, n: int, nothing: float) -> Solved:
    """K⁺b of the unscaled matrix S⁻¹ K S⁻¹, whose null space is S null(K).

    K is symmetric, so its range is the complement of its null space Z: drop the part of b
    along Z, solve on the rest, drop the part of x along Z. Each sample has memory of its own: where a matrix
    begins decides how it is rounded, and how many singular ones come before it must not.
    """
    eigenvalues, W = map(torch.stack, zip(*map(torch.linalg.eigh, K), strict=True))
    null = eigenvalues.abs() <= nothing * eigenvalues.abs().amax(1, keepdim=True)
    inverse = torch.where(null, 0.0, 1.0 / eigenvalues)
    bases = [Wi[:, own] for Wi, own in zip(s.unsqueeze(-1) * W, null)]  # as many columns as are needed
    onto_null = torch.stack([Z @ torch.linalg.pinv(Z) for Z in bases])

    def off_null(a: Tensor) -> Tensor:
        return a - matvec(onto_null, a)

    def solved(a: Tensor) -> Tensor:
        return matvec(W, inverse * matvec(W.mT, a))

    rhs = s * off_null(b)
    y = solved(rhs)
    for _ in range(REFINEMENTS):  # where the least eigenvalues are near RANK their vectors are not exact
        y = y + solved(rhs - matvec(K, y))
    free = onto_null.diagonal(dim1=1, dim2=2)[:, :n] > 1e-8
    return Solved(off_null(s * y), null.any(1), free)


def _largest(a: Float64[Tensor, "B N k"]) -> Float64[Tensor, "B k"]:
    return a.abs().amax(1) if a.shape[1] else a.new_zeros(a.shape[0], a.shape[2])
