"""gradcheck's own test, every perturbed problem in one batch: a thousand programmes in minutes, not hours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev

from .problems import F64

Outputs = Callable[..., tuple[Tensor, ...]]


def check_every_entry(
    outputs: Outputs, data: Sequence[Tensor], symmetric: Sequence[bool], step: float = 1e-6
) -> None:
    """Central differences by gradcheck's step against both modes of autograd, to gradcheck's tolerances."""
    of_vector, theta, basis = flattened(outputs, data, symmetric)
    k = len(basis)
    moved = of_vector(theta + step * torch.cat([basis, -basis]))
    numerical = (moved[:k] - moved[k:]) / (2 * step)
    on_basis = lambda t: of_vector(theta + t @ basis)
    for mode in (jacrev, jacfwd):
        analytical = mode(on_basis)(torch.zeros(k, dtype=F64)).mT
        torch.testing.assert_close(analytical, numerical, rtol=1e-3, atol=1e-5)  # gradcheck's defaults


def flattened(
    outputs: Outputs, data: Sequence[Tensor], symmetric: Sequence[bool]
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """The outputs as one function of one vector, the vector, and its admissible directions."""
    shapes = [tensor.shape for tensor in data]
    sizes = [tensor.numel() for tensor in data]

    def of_vector(theta: Tensor) -> Tensor:
        batch = theta.shape[:-1]
        pieces = zip(theta.split(sizes, -1), shapes, strict=True)
        values = outputs(*(piece.reshape((*batch, *shape)) for piece, shape in pieces))
        return torch.cat([value.reshape((*batch, -1)) for value in values], -1)

    directions = [units(tensor, pairs) for tensor, pairs in zip(data, symmetric, strict=True)]
    return of_vector, torch.cat([tensor.reshape(-1) for tensor in data]), torch.block_diag(*directions)


def units(tensor: Tensor, symmetric: bool) -> Tensor:
    """The unit vectors of a tensor's entries; of a symmetric matrix, both halves move together."""
    size = tensor.numel()
    eye = torch.eye(size, dtype=F64).reshape(size, *tensor.shape)
    return ((eye + eye.mT) / 2 if symmetric else eye).reshape(size, size)
