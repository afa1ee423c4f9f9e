r"""Proofs for cone programmes, from the rays that solvers return with their claims.

Infeasible. A multiplier (λ, ν) with

    λ ∈ K*,   Gᵀλ + Aᵀν = 0,   λᵀg₀ + νᵀh₀ > 0

leaves no x: for every feasible one λᵀ(Gx + g₀) <= 0 and νᵀ(Ax + h₀) = 0, and the two add up to the
contrary (Farkas's lemma for cones; Boyd & Vandenberghe, Convex Optimization, section 5.9.4).

Unbounded. A direction x with Px = 0, -Gx ∈ K, Ax = 0, qᵀx < 0, and any feasible point: the objective
falls along it for ever.

A ray from a solver balances to its tolerance only. What is left over, r = Gᵀλ + Aᵀν, could be made up
for by an x with |r|ᵀ|x| as large as the gap: the proof holds within a box of FAR times the data's own
lengths, and is taken for a proof.
"""

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.certify import over
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance
from optlayer.matrix import Matrix

FAR = 1e5  # how far out, in lengths of the data, a feasible point would have to lie
EXACT = 1e-6  # largest part of a ray, or of its multipliers, that may lie outside of the cone
VISIBLE = 1e-6  # least relative size of λᵀg₀ + νᵀh₀, or of qᵀx


def excludes(sample: Instance, ray: Point, visible: float = VISIBLE) -> bool:
    """Whether the multipliers of a ray prove that one sample has no feasible point.

    Args:
        sample: The sample.
        ray: λ and ν; its x is not looked at.
        visible: Least relative size of λᵀg₀ + νᵀh₀.
    """
    at = sample.origin
    lam = at.dual.nearest(ray.lam)
    left_over = at.G.mT(lam) + at.A.mT(ray.nu)
    shares = torch.cat([ray.nu * at.h, lam * at.g], 1)
    gap = shares.sum() - FAR * (left_over.abs() * _lengths(at)).sum()
    return bool(gap > visible * shares.abs().sum()) and _within(ray.lam - lam, ray.lam)


def recedes(sample: Instance, ray: Point) -> bool:
    """Whether the objective falls for ever along the x of a ray, from any feasible point."""
    at, x = sample.origin, ray.x
    rows = [(at.hessian, at.hessian @ x), (at.A, at.A @ x), (at.G, at.dual.nearest(at.G @ x))]
    falls = -(at.gradient * x).sum() > VISIBLE * (at.gradient * x).abs().sum()
    return bool(falls) and all(_within(over(r, M.peaks), x) for M, r in rows if r.numel())


def _lengths(at: Local) -> Float64[Tensor, "B n"]:
    """What the right-hand sides make of each coordinate: max |b_i| / |A_ij|, or that of the others."""
    own = torch.maximum(*(_longest(M, b.abs()) for M, b in ((at.A, at.h), (at.G, at.g))))
    return torch.where(own > 0, own, own.amax(1, keepdim=True))


def _longest(M: Matrix, b: Float64[Tensor, "B r"]) -> Float64[Tensor, "B c"]:
    """max_i b_i / |M_ij|, 0 where there is none."""
    if not M.shape[0]:
        return b.new_zeros(len(b), M.shape[1])
    entries = M.abs.values
    return replace(M, values=torch.where(entries > 0, 1.0 / entries, 0.0)).column_largest(b)


def _within(part: Tensor, whole: Tensor) -> bool:
    """Whether a part of a ray is rounding of the whole; false for what is not a number."""
    return bool((part.abs() <= EXACT * whole.abs().amax()).all())
