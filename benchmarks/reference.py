"""Answers to judge by: closed forms, and roots found by Newton's method with the adjoint written out.

Nothing here shares code with the package. Where there is no closed form, a workload gives a residual
F(u, θ) that vanishes at its solution, a start near it, and how outputs are read off u. With the cotangent
ū of the outputs,

    J = ∂F/∂u,     Jᵀ w = ū,     θ̄ = ∂⟨ȳ, read(u, θ)⟩/∂θ − ∂⟨w, F(u, θ)⟩/∂θ,

sample by sample, with numpy's dense solve.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import clarabel
import numpy as np
import torch
from jaxtyping import Float64
from scipy import sparse
from torch import Tensor
from torch.func import jacrev

Outputs = tuple[Tensor, ...]
STEPS = 30
CLOSE = 1e-8  # a Newton step this small, relative to u, is the last if F fell by less than half


class Exact(NamedTuple):
    """What a run has to come to."""

    outputs: Outputs
    gradients: Outputs
    residual: float  # max|F| of the worst sample, relative to max(1, |u|)


class Programme(NamedTuple):
    """min ½zᵀQz + pᵀz subject to Gz <= h, Az = b."""

    Q: Float64[Tensor, "n n"]
    p: Float64[Tensor, " n"]
    G: Float64[Tensor, "m n"]
    h: Float64[Tensor, " m"]
    A: Float64[Tensor, "k n"]
    b: Float64[Tensor, " k"]

    def for_clarabel(self, tolerance: float) -> tuple[Any, ...]:
        """The arguments of clarabel.DefaultSolver: equalities first."""
        settings = clarabel.DefaultSettings()
        settings.verbose, settings.max_threads = False, 1
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
        cones = [clarabel.ZeroConeT(len(self.b)), clarabel.NonnegativeConeT(len(self.h))]
        P = sparse.triu(sparse.csc_matrix(self.Q.numpy()), format="csc")
        rows = sparse.csc_matrix(torch.cat([self.A, self.G]).numpy())
        kept = [cone for cone in cones if cone.dim]
        return P, self.p.numpy(), rows, torch.cat([self.b, self.h]).numpy(), kept, settings


@dataclass(frozen=True)
class Root:
    """A solution as the root of F(u, θ); every function takes one sample."""

    start: Callable[..., Tensor]  # θ -> u near the root
    residual: Callable[..., Tensor]  # (u, θ) -> F
    read: Callable[..., Outputs]  # (u, θ) -> outputs
    solve: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.linalg.solve


def by_closed_form(form: Callable[..., Outputs], theta: Outputs, weights: Outputs) -> Exact:
    theta = leaves(theta)
    outputs = form(*theta)
    gradients = torch.autograd.grad(paired(weights, outputs), theta)
    return Exact(tuple(y.detach() for y in outputs), gradients, 0.0)


def by_newton(root: Root, theta: Outputs, weights: Outputs) -> Exact:
    count = len(theta[0])
    samples = [_adjoint(root, [t[i] for t in theta], [w[i] for w in weights]) for i in range(count)]
    outputs, gradients, residuals = zip(*samples)
    return Exact(_stacked(outputs), _stacked(gradients), max(residuals))


def _adjoint(root: Root, theta: list[Tensor], weights: list[Tensor]) -> tuple[Outputs, Outputs, float]:
    u = _newton(root, theta)
    J = jacrev(root.residual)(u, *theta).numpy()
    theta, u = leaves(theta), u.requires_grad_()
    outputs = root.read(u, *theta)
    value = paired(weights, outputs)
    (u_bar,) = torch.autograd.grad(value, u, retain_graph=True)
    w = torch.from_numpy(root.solve(J.T, u_bar.numpy()))
    F = root.residual(u, *theta)
    gradients = torch.autograd.grad(value - w @ F, theta, materialize_grads=True)
    size = max(1.0, u.detach().abs().max().item())
    return tuple(y.detach() for y in outputs), gradients, F.detach().abs().max().item() / size


def _newton(root: Root, theta: list[Tensor]) -> Tensor:
    u, before = root.start(*theta), torch.inf
    for _ in range(STEPS):
        J, F = jacrev(root.residual)(u, *theta), root.residual(u, *theta)
        step = torch.from_numpy(root.solve(J.numpy(), F.numpy()))
        u = u - step
        if step.abs().max() <= CLOSE * u.abs().max() and F.abs().max() > before / 2:
            break
        before = F.abs().max()
    return u


# ---------------------------------------------------------------------------- quadratic programmes


def kkt(programme: Callable[..., Programme], read: Callable[[Tensor], Outputs]) -> Root:
    """u = (z, v, ν), λ = max(v, 0): Qz + p + Gᵀλ + Aᵀν, Gz − h − (v − λ), Az − b.

    One of Newton's steps is a step of the primal-dual active-set method: from Clarabel's answer it takes two.
    """

    def start(*theta: Tensor) -> Tensor:
        Q, p, G, h, A, b = programme(*theta)
        found = clarabel.DefaultSolver(*Programme(Q, p, G, h, A, b).for_clarabel(1e-12)).solve()
        z, y, s = (torch.tensor(part, dtype=Q.dtype) for part in (found.x, found.z, found.s))
        k = len(b)
        return torch.cat([z, y[k:] - s[k:], y[:k]])

    def residual(u: Tensor, *theta: Tensor) -> Tensor:
        Q, p, G, h, A, b = programme(*theta)
        z, v, nu = u.split([len(p), len(h), len(b)])
        lam = torch.where(v > 0, v, 0.0)
        return torch.cat([Q @ z + p + G.T @ lam + A.T @ nu, G @ z - h - (v - lam), A @ z - b])

    def of_z(u: Tensor, *theta: Tensor) -> Outputs:
        return read(u[: len(programme(*theta).p)])

    return Root(start, residual, of_z)


# ---------------------------------------------------------------------------- small things


def leaves(theta: Any) -> Outputs:
    return tuple(t.detach().clone().requires_grad_() for t in theta)


def paired(weights: Any, outputs: Any) -> Tensor:
    """⟨ȳ, y⟩."""
    return sum((w * y).sum() for w, y in zip(weights, outputs, strict=True))


def least_squares(J: np.ndarray, F: np.ndarray) -> np.ndarray:
    """J⁺F: where u is not unique, but what is read off it is."""
    return np.linalg.lstsq(J, F, rcond=1e-11)[0]


def _stacked(samples: Any) -> Outputs:
    return tuple(torch.stack(parts) for parts in zip(*samples))
