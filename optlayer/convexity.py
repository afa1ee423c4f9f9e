r"""Whether a solution of a problem that nobody has proven convex is a minimum.

At a minimum of a convex problem H = ∇²f + Σ λ_i ∇²g_i is positive semidefinite. Where it is not, but is so on
the face that the active constraints leave,

    zᵀHz >= 0   for all z with G₊z = 0 and Az = 0,     G₊ the rows with λ_i > 0,

the point is a local minimum as far as second derivatives can tell; where it is not even that, a saddle.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayer.forms import Local, Point

ROUNDING = 1e-9  # relative size of a negative eigenvalue that is none
INDEPENDENT = 1e-12  # relative size of a singular value, squared, that belongs to a constraint of its own


def least_curvature(at: Local, point: Point) -> Float64[Tensor, " B"]:
    """The least eigenvalue of H on the active face, relative to H; 0 where it is not negative."""
    least = torch.zeros_like(point.x[:, 0])
    H = at.hessian.dense().expand(len(least), -1, -1)
    scaled = _scaled(H)
    suspect = (~_definite(scaled)).nonzero().squeeze(1)
    if len(suspect):
        faces = _projector(at.some(suspect), point.lam[suspect])
        face = faces @ H[suspect] @ faces
        size = H[suspect].abs().amax((1, 2))
        found = torch.linalg.eigvalsh(0.5 * (face + face.mT))[:, 0] / size
        least[suspect] = torch.where(found < -ROUNDING, found, 0.0)
    return least


def _scaled(H: Float64[Tensor, "B n n"]) -> Float64[Tensor, "B n n"]:
    """With a diagonal of ones."""
    d = H.diagonal(dim1=1, dim2=2)
    u = torch.where(d > 0, d, torch.where(d.amax(1, keepdim=True) > 0, d.amax(1, keepdim=True), 1.0)).rsqrt()
    return u.unsqueeze(2) * H * u.unsqueeze(1)


def _definite(H: Float64[Tensor, "B n n"]) -> Bool[Tensor, " B"]:
    """Whether H is positive semidefinite up to rounding; what is not a number is let pass."""
    shifted = H + ROUNDING * torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
    return (torch.linalg.cholesky_ex(shifted).info == 0) | ~H.isfinite().all((1, 2))


def _projector(at: Local, lam: Float64[Tensor, "B m"]) -> Float64[Tensor, "B n n"]:
    """Onto the directions that every active constraint leaves free."""
    rows = [M.dense().expand(len(lam), -1, -1) for M in (at.G, at.A)]
    E = torch.cat([torch.where((lam > 0).unsqueeze(2), rows[0], 0.0), rows[1]], 1)
    size = E.abs().amax(2, keepdim=True) if E.shape[1] else E.sum(2, keepdim=True)
    E = E / torch.where(size > 0, size, 1.0)
    values, vectors = torch.linalg.eigh(E.mT @ E)
    free = values <= INDEPENDENT * values[:, -1:].clamp_min(INDEPENDENT)
    return (vectors * free.unsqueeze(1)) @ vectors.mT
