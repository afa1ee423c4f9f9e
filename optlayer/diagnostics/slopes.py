r"""The gradient check: the layer's derivatives beside differences of its values.

    s(t) = ⟨w, y(θ + tδ)⟩        s'(0) by forward and backward differences, by jvp, by vjp

for every sample at once, in float64. δ is random and of the size of θ; where θ was declared nonnegative,
sparse or definite, so is θ + tδ.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.diagnostics.data import Slopes
from optlayer.layer import OptLayer
from optlayer.matrix import largest, or_one

STEPS = (1e-4, 1e-6)  # relative
ROUNDING = 1e-12  # relative error of the values

Theta = tuple[Tensor, ...]
Loss = Callable[..., Tensor]


def gradients(
    layer: OptLayer,
    theta: Theta,
    shape: tuple[int, ...],
    lengths: Float64[Tensor, " B"],
    loss: Loss | None,
    seed: int,
) -> Iterator[tuple[float, float, Slopes]]:
    """Of each sample |∂⟨w, y⟩/∂θ|, the same relative to |w| |y| / |θ|, and its check along δ.

    Args:
        layer: One that keeps failed samples, as NaN.
        theta: Its parameters, float64 (B, *shape) each, at least one.
        shape: The batch's, as the loss knows it.
        lengths: Of x, to compare with where y is 0.
        loss: A function of what the layer returns; None: ⟨w, y⟩ with w random.
        seed: Of w and δ.
    """
    generator = torch.Generator().manual_seed(seed)
    delta = directions(layer, theta, generator)
    moved = tuple(t.clone().requires_grad_() for t in theta)
    parts = _outputs(layer, moved)
    w, y = _weights(parts, shape, loss, generator), _flat(parts)
    pulled = torch.autograd.grad(y.nan_to_num(), moved, w, allow_unused=True, materialize_grads=True)
    size = _norm(w) * torch.maximum(_norm(y.detach()), lengths)
    norms = torch.stack([_norm(_rows(g)) for g in pulled], 1)
    relative = _norm(norms * torch.stack([_size(t) for t in theta], 1))
    gain = torch.where(relative == 0, 0.0, relative / size)
    vjp = torch.stack([_rows(g * d).sum(1) for g, d in zip(pulled, delta, strict=True)]).sum(0)
    checked = _slopes(layer, theta, delta, w, vjp, ROUNDING * size)
    return zip(_norm(norms).tolist(), gain.tolist(), checked, strict=True)


def _slopes(
    layer: OptLayer, theta: Theta, delta: Theta, w: Tensor, vjp: Tensor, rounding: Tensor
) -> list[Slopes]:
    """One for each sample."""

    def along(*values: Tensor) -> Float64[Tensor, " B"]:
        return (w * _flat(_outputs(layer, values))).sum(1)

    def at(t: float) -> Float64[Tensor, " B"]:
        return along(*(p + t * d for p, d in zip(theta, delta, strict=True)))

    found: Any = torch.func.jvp(along, theta, delta)
    here, jvp = found
    steps = []
    for t in STEPS:
        columns = (at(t) - here) / t, (here - at(-t)) / t, jvp, vjp, rounding / t
        steps.append([Slopes(*row) for row in torch.stack(columns, 1).tolist()])
    return [_smoother(*found) for found in zip(*steps, strict=True)]


def _smoother(*found: Slopes) -> Slopes:
    """The one whose two sides differ least."""
    return min(found, key=lambda s: abs(s.forward - s.backward) if s.known else torch.inf)


def directions(layer: OptLayer, theta: Theta, generator: torch.Generator) -> Theta:
    """δ, of the size of θ sample by sample."""
    return tuple(_direction(p.attributes, t, generator) for p, t in zip(layer.inputs, theta, strict=True))


def _direction(attributes: dict[str, Any], t: Tensor, generator: torch.Generator) -> Tensor:
    """Random, and such that signs, patterns and ranks stay what they were promised to be."""
    promised = {name for name, value in attributes.items() if value is not None and value is not False}
    random = torch.randn(t.shape, generator=generator, dtype=t.dtype)
    if promised & {"PSD", "NSD"}:
        return random @ t + (random @ t).mT
    if promised - {"symmetric"}:
        return t * random.clamp(-1.0, 1.0)
    random = random + random.mT if promised else random
    return _size(t).reshape(-1, *[1] * (t.ndim - 1)) * random


def _weights(
    parts: Theta, shape: tuple[int, ...], loss: Loss | None, generator: torch.Generator
) -> Float64[Tensor, "B k"]:
    """w = ∂loss/∂y, or random."""
    if loss is None:
        return torch.randn(_flat(parts).shape, generator=generator, dtype=torch.float64)
    leaves = [part.detach().nan_to_num().requires_grad_() for part in parts]
    batched = (leaf.reshape(*shape, *leaf.shape[1:]) for leaf in leaves)
    return _flat(torch.autograd.grad(loss(*batched), leaves, allow_unused=True, materialize_grads=True))


def _outputs(layer: OptLayer, theta: Theta) -> Theta:
    found = layer(*theta)
    return found if isinstance(found, tuple) else (found,)


def _flat(parts: Theta) -> Float64[Tensor, "B k"]:
    return torch.cat([_rows(part) for part in parts], 1)


def _rows(t: Float64[Tensor, "B ..."]) -> Float64[Tensor, "B k"]:
    return t.reshape(len(t), -1)


def _size(t: Tensor) -> Float64[Tensor, " B"]:
    """The largest entry of each sample; 1 where that is 0."""
    return or_one(largest(_rows(t.detach())).squeeze(1))


def _norm(rows: Float64[Tensor, "B k"]) -> Float64[Tensor, " B"]:
    return torch.linalg.vector_norm(rows.nan_to_num(), dim=1)
