r"""Proofs for cone programmes, from the rays that solvers return with their claims.

Infeasible. A multiplier (λ, ν) with

    λ ∈ K*,   Gᵀλ + Aᵀν = 0,   λᵀg₀ + νᵀh₀ > 0

leaves no x: for every feasible one λᵀ(Gx + g₀) <= 0 and νᵀ(Ax + h₀) = 0, and the two add up to the
contrary (Farkas's lemma for cones; Boyd & Vandenberghe, Convex Optimization, section 5.9.4).

Unbounded. A direction x with Px = 0, -Gx ∈ K, Ax = 0, qᵀx < 0, and any feasible point: the objective
falls along it for ever.

Every equation is judged against the size of its own terms, as the certificate judges a solution.
"""

import torch
from torch import Tensor

from optlayer.certify import over
from optlayer.forms import Point
from optlayer.forms.kkt import Instance
from optlayer.linsolve import matvec

EXACT = 1e-6  # largest relative residual of a ray
VISIBLE = 1e-6  # least relative size of λᵀg₀ + νᵀh₀, or of qᵀx


def excludes(sample: Instance, ray: Point) -> bool:
    """Whether the multipliers of a ray prove that one sample has no feasible point."""
    at, lam, nu = sample.origin, ray.lam, ray.nu
    balance = matvec(at.G.mT, lam) + matvec(at.A.mT, nu)
    terms = matvec(at.G.abs().mT, lam.abs()) + matvec(at.A.abs().mT, nu.abs())
    outside = lam - at.dual.project(lam)
    gap, size = contributions(sample, ray).sum(), contributions(sample, ray).abs().sum()
    return bool(
        _small(balance, terms) and _small(outside, at.dual.over_blocks(lam.abs())) and gap > VISIBLE * size
    )


def contributions(sample: Instance, ray: Point) -> Tensor:
    """ν_i h₀_i and λ_i g₀_i, row by row: what each row of A adds to the contradiction."""
    at = sample.origin
    return torch.cat([ray.nu * at.h, ray.lam * at.g], 1)[0]


def recedes(sample: Instance, ray: Point) -> bool:
    """Whether the objective falls for ever along the x of a ray, from any feasible point."""
    at, x = sample.origin, ray.x
    q, P, _, G, _, A, dual, _ = at
    size = x.abs()
    return bool(
        _small(matvec(P, x), matvec(P.abs(), size))
        and _small(dual.project(matvec(G, x)), dual.over_blocks(matvec(G.abs(), size)))
        and _small(matvec(A, x), matvec(A.abs(), size))
        and -(q * x).sum() > VISIBLE * (q * x).abs().sum()
    )


def _small(rows: Tensor, terms: Tensor) -> bool:
    relative = over(rows, terms).abs()
    return bool((relative <= EXACT).all())
