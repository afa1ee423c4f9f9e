"""Optimal transport: how to move one distribution onto another at least cost."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cvxpy as cp
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.batch import Batch
from optlayer.errors import DeclarationError
from optlayer.implicit import attach
from optlayer.layers.fast import FastLayer, everywhere, plain, positive, size
from optlayer.layers.terms import nonnegative

SAME_MASS = 1e-4  # relative: masses that differ by less are made the same
LENGTHS = 12  # 1, ½, ¼, ... of a Newton step
ROUNDS = 100  # of Sinkhorn and Newton, at each scale of the costs
MOST = 30  # doublings of the scale
ROUGH = 1e-2  # error of a marginal at which the scale is doubled
BALANCED = 1e-13  # largest error of a marginal, relative to the mass
ACCEPTED = 1e-12


class OptimalTransport(FastLayer):
    """argmin ⟨C, P⟩ : P ≥ 0, P1 = r, Pᵀ1 = c; with eps, argmin ⟨C, P⟩ − eps H(P), H(P) = −Σ P log P.

    It is called with the costs C (m, n), the marginals r (m,) and c (n,), nonnegative and of one mass. A
    c whose mass differs from that of r by rounding, up to 1e-4 of it, is scaled to it.

    Without eps the plan is a vertex, and its derivative in C is 0 almost everywhere; `smoothing=mu` gives
    it a useful one. The multipliers of `solve` are the potentials, unique up to a shift.

    Args:
        m: Number of places to move from.
        n: Number of places to move to.
        eps: Weight of the entropy, in units of C; None: exact transport.
        fast: Find P by Sinkhorn's iteration with Newton steps; for positive marginals and eps.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number, an eps that is not positive,
            `fast=True` without eps.
        InfeasibleError: in a call, where r and c have different masses, or a negative entry.

    References: Peyré & Cuturi, Computational optimal transport (2019), arXiv:1803.00567; Cuturi, Sinkhorn
    distances, NeurIPS 2013, arXiv:1306.0895; for the Newton steps Brauer, Clason, Lorenz & Wirth, A
    Sinkhorn-Newton method for entropic optimal transport (2017), arXiv:1710.06635.
    """

    def __init__(
        self, m: int, n: int, *, eps: float | None = None, fast: bool = False, **options: Any
    ) -> None:
        m, n = size("m", m), size("n", n)
        self._eps = None if eps is None else positive("eps", eps)
        if fast is True and eps is None:
            raise DeclarationError(
                "fast=True with eps=None: Sinkhorn's iteration needs the entropy; give eps"
            )
        P, C = cp.Variable((m, n), name="P"), cp.Parameter((m, n), name="C")
        r, c = cp.Parameter(m, name="r"), cp.Parameter(n, name="c")
        super().__init__(
            [P],
            [C, r, c],
            _cost if self._eps is None else partial(_cost_minus_entropy, self._eps),
            [nonnegative] if self._eps is None else [],
            [_row_sums, _column_sums],
            fast=fast,
            **options,
        )

    def _prepared(self, batch: Batch) -> Batch:
        """c of the mass of r, where it nearly has it."""
        C, r, c = batch.theta
        ratio = r.sum(1, keepdim=True) / c.sum(1, keepdim=True)
        near = (ratio - 1).abs() <= max(SAME_MASS, 8 * max(batch.eps[1:]))
        return replace(batch, theta=(C, r, torch.where(near, ratio, 1.0) * c))

    def closed_form(  # type: ignore[override]
        self, C: Float64[Tensor, "B m n"], r: Float64[Tensor, "B m"], c: Float64[Tensor, "B n"]
    ) -> Float64[Tensor, "B m n"]:
        """P = exp(f + g − C / eps), with the potentials f and g that give the marginals."""
        assert self._eps is not None
        C = C / self._eps
        if not everywhere(r > 0, c > 0, (r.sum(1) - c.sum(1)).abs() <= ACCEPTED * r.sum(1)):
            return torch.full_like(C, torch.nan)
        with torch.no_grad():
            u, found = _potentials(C.detach(), r.detach(), c.detach())
        P = _plan(attach(_Marginals(), u, (C, r, c)), C)
        return torch.where(found[:, None, None], P, torch.nan)


# -------------------------------------------------------------------------------------------- the potentials


def _potentials(C: Tensor, r: Tensor, c: Tensor) -> tuple[Float64[Tensor, "B m+n-1"], Tensor]:
    """u = (f, g without its last entry, which is 0), and whether it gives the marginals.

    First at a fraction of the costs, which is at a larger eps, where few rounds do; then that is doubled.
    """
    u = torch.cat([torch.zeros_like(r), torch.zeros_like(c[:, :-1])], 1)
    halvings = C.abs().amax((1, 2)).log2().ceil().clamp(0, MOST)  # after which costs are of size 1
    stages = int(plain(halvings).max())
    for stage in reversed(range(stages + 1)):
        begun, goal = halvings >= stage, ROUGH if stage else BALANCED
        u, error = _rounds(2 * u, C / 2**stage, r, c, goal, ~begun)
        u = torch.where(begun[:, None], u, 0.0)
    return u, error <= ACCEPTED


def _rounds(
    u: Tensor, C: Tensor, r: Tensor, c: Tensor, goal: float, settled: Tensor
) -> tuple[Tensor, Tensor]:
    """Each is one of Sinkhorn's iteration, and a Newton step of the best of some lengths. Both lower the dual
    function, so that they converge from anywhere. Also the error of the marginals."""
    u = _sinkhorn(u, C, r, c)
    for _ in range(ROUNDS):
        step = -_Marginals().inverse(_imbalance(u, C, r, c), u, C, r, c, transposed=False)
        moved = _line_search(u, step.nan_to_num(0.0, 0.0, 0.0), C, r, c)
        u = torch.where(settled[:, None], u, _sinkhorn(moved, C, r, c))
        error = _error(u, C, r, c)
        settled = settled | (error <= goal)  # and stays, whatever its neighbours need
        if everywhere(settled):
            break
    return u, error


def _line_search(u: Tensor, step: Tensor, C: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """All of the step where that brings the marginals nearer; else the part that brings the dual lowest."""
    lengths = torch.cat([C.new_zeros(1), 0.5 ** torch.arange(LENGTHS, dtype=C.dtype, device=C.device)])
    trials = u + lengths[:, None, None] * step
    best = _dual(trials, C, r, c).nan_to_num(torch.inf).argmin(0)
    nearer = _error(u + step, C, r, c) < _error(u, C, r, c)
    return u + torch.where(nearer, 1.0, lengths[best])[:, None] * step


def _dual(u: Float64[Tensor, "T B m+n-1"], C: Tensor, r: Tensor, c: Tensor) -> Float64[Tensor, "T B"]:
    """Σᵢ rᵢ log Σⱼ exp(gⱼ − Cᵢⱼ) − cᵀg, where f is the best for g: convex, least at the potentials."""
    g = _padded(u[..., C.shape[1] :])
    return (r * (g[..., None, :] - C).logsumexp(-1)).sum(-1) - (c * g).sum(-1)


def _sinkhorn(u: Tensor, C: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """f that gives the rows, g that gives the columns, and f again; shifted against each other."""
    g = _padded(u[:, C.shape[1] :])
    f = r.log() - (g[:, None, :] - C).logsumexp(2)
    g = c.log() - (f[:, :, None] - C).logsumexp(1)
    g = g - g[:, -1:]
    f = r.log() - (g[:, None, :] - C).logsumexp(2)
    return torch.cat([f, g[:, :-1]], 1)


@dataclass(frozen=True)
class _Marginals:
    """P1 = r, Pᵀ1 = c but for its last entry, as a `Root`; its Jacobian is symmetric positive definite."""

    def residual(self, u: Tensor, *data: Tensor) -> Tensor:
        return _imbalance(u, *data)

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Tensor:
        """J = [[diag(P1), P], [Pᵀ, diag(Pᵀ1)]] by the Schur complement of its first block.

        That is the Laplacian of a graph with weights Pᵀ diag(P1)⁻¹ P, without its last row and column; its
        diagonal is summed from the weights, so that weak ones are not lost.
        """
        del transposed
        P, m = _plan(u, data[0]), data[0].shape[1]
        rows = P.sum(2)
        share = P / rows[:, :, None]
        weights = P.mT @ share
        weights = weights - torch.diag_embed(weights.diagonal(dim1=1, dim2=2))
        laplacian = torch.diag_embed(weights.sum(2)) - weights
        factor, _ = torch.linalg.cholesky_ex(laplacian[:, :-1, :-1])
        share = share[:, :, :-1]
        right = b[:, m:, None] - share.mT @ b[:, :m, None]
        g = torch.cholesky_solve(right, factor)
        f = (b[:, :m] / rows)[:, :, None] - share @ g
        return torch.cat([f, g], 1).squeeze(2)


def _plan(u: Tensor, C: Tensor) -> Float64[Tensor, "B m n"]:
    m = C.shape[1]
    return (u[:, :m, None] + _padded(u[:, m:])[:, None, :] - C).exp()


def _padded(g: Tensor) -> Tensor:
    return torch.nn.functional.pad(g, (0, 1))


def _imbalance(u: Tensor, C: Tensor, r: Tensor, c: Tensor) -> Float64[Tensor, "B m+n-1"]:
    P = _plan(u, C)
    return torch.cat([P.sum(2) - r, (P.sum(1) - c)[:, :-1]], 1)


def _error(u: Tensor, C: Tensor, r: Tensor, c: Tensor) -> Float64[Tensor, " B"]:
    return _imbalance(u, C, r, c).abs().amax(1) / r.sum(1)


# ------------------------------------------------------------------------------------------- the expressions


def _cost(P: Any, C: Any, *_: Any) -> Any:
    return cp.sum(cp.multiply(C, P))


def _cost_minus_entropy(eps: float, P: Any, C: Any, *_: Any) -> Any:
    return _cost(P, C) - eps * cp.sum(cp.entr(P))


def _row_sums(P: Any, _C: Any, r: Any, _c: Any) -> Any:
    return cp.sum(P, axis=1) - r


def _column_sums(P: Any, _C: Any, _r: Any, c: Any) -> Any:
    return cp.sum(P, axis=0) - c
