"""At the door: from what a user hands in to one float64 batch on the CPU, and back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.errors import InputError

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Slot:
    """A parameter as the door sees it."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Parameter values with one common batch dimension, and how to leave again.

    `eps` is the relative spacing of each value's own dtype.
    """

    theta: tuple[Float64[Tensor, "B ..."], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    eps: tuple[float, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def beside(self, weights: Sequence[Tensor]) -> "Batch":
        """With tensors that every sample shares; they decide neither dtype nor device of what comes out."""
        doubles = (w.cpu().to(torch.float64) for w in weights)
        shared = (w.expand((*self.shape, *w.shape)).reshape(self.size, *w.shape) for w in doubles)
        eps = (torch.finfo(w.dtype).eps for w in weights)
        return replace(self, theta=(*self.theta, *shared), eps=(*self.eps, *eps))

    def leave(self, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(B, k) float64 -> (*batch, *shape) in the caller's dtype, on the caller's device."""
        return value.reshape((*self.shape, *shape)).to(self.dtype).to(self.device)

    def place(self, value: Tensor) -> Tensor:
        """(B,) of any dtype -> (*batch,)."""
        return value.reshape(self.shape).to(self.device)


def bind(slots: Sequence[Slot], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Values in the order of the slots, from positional and keyword arguments.

    Raises:
        InputError: for a wrong count, an unknown name, or a value given twice.
    """
    names = [slot.name for slot in slots]
    if len(args) > len(slots):
        raise InputError(f"{len(args)} values for {len(slots)} parameters ({_listed(names)})")
    given: dict[str, Any] = {}
    for name, value in kwargs.items():
        if names.count(name) != 1:
            how = "is the name of several parameters" if name in names else "is not a parameter"
            raise InputError(f"{name!r} {how}; the parameters are {_listed(names)}")
        if names.index(name) < len(args):
            raise InputError(f"parameter {name!r} was given twice, by position and by name")
        given[name] = value
    missing = [name for name in names[len(args) :] if name not in given]
    if missing:
        raise InputError(
            f"{len(args) + len(given)} values for {len(slots)} parameters: missing {_listed(missing)}"
        )
    return [*args, *(given[name] for name in names[len(args) :])]


def enter(slots: Sequence[Slot], values: Sequence[Any], at_home: bool = True) -> Batch:
    """Check, promote, broadcast the leading dimensions, flatten them to one.

    Args:
        slots: The parameters.
        values: What was handed in for them.
        at_home: Moved to the CPU, where layers are solved; else left where they are, except where
            there is no float64.

    Raises:
        InputError: naming the parameter, what was expected and what came.
    """
    device = _common_device(slots, values)
    tensors = [_as_tensor(slot, value, device) for slot, value in zip(slots, values, strict=True)]
    leading = [_leading(slot, t) for slot, t in zip(slots, tensors, strict=True)]
    shape = _broadcast(slots, leading)
    there = torch.device("cpu") if at_home or device.type == "mps" else device
    theta = (
        t.to(there).to(torch.float64).expand((*shape, *slot.shape)).reshape(_flat_shape(shape, slot.shape))
        for slot, t in zip(slots, tensors, strict=True)
    )
    strong = [v.dtype for v in values if isinstance(v, Tensor) and v.dtype in FLOATING]
    dtype = strong[0] if strong else torch.get_default_dtype()
    for other in strong:
        dtype = torch.promote_types(dtype, other)
    eps = tuple(torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0 for t in tensors)
    return Batch(tuple(theta), shape, dtype, device, eps)


def _flat_shape(batch: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return int(np.prod(batch)), *shape


def _common_device(slots: Sequence[Slot], values: Sequence[Any]) -> torch.device:
    """The device of the tensors; the CPU where there is none."""
    found = [(slot.name, v.device) for slot, v in zip(slots, values, strict=True) if isinstance(v, Tensor)]
    devices = {device for _, device in found}
    if len(devices) > 1:
        where = ", ".join(f"{name!r} on {device}" for name, device in found)
        raise InputError(f"parameters on different devices: {where}; move them to one")
    return devices.pop() if devices else torch.device("cpu")


def _as_tensor(slot: Slot, value: Any, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise InputError(f"parameter {slot.name!r} is a sparse tensor; pass value.to_dense()")
        if value.is_complex():
            raise InputError(f"parameter {slot.name!r} is complex ({value.dtype}), expected real values")
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"dtype {array.dtype}")
        return torch.as_tensor(array.astype(np.float64), device=device)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"parameter {slot.name!r} is a {type(value).__name__} ({error}), "
            "expected a tensor, an array or a number"
        ) from error


def _leading(slot: Slot, value: Tensor) -> tuple[int, ...]:
    """The batch dimensions of a value."""
    k = value.ndim - len(slot.shape)
    if k < 0 or tuple(value.shape[k:]) != slot.shape:
        raise InputError(
            f"parameter {slot.name!r}: expected shape {_shape(slot.shape)}, got {tuple(value.shape)}"
        )
    return tuple(value.shape[:k])


def _broadcast(slots: Sequence[Slot], leading: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*leading))
    except RuntimeError as error:
        batches = ", ".join(f"{slot.name!r}: {b}" for slot, b in zip(slots, leading, strict=True))
        raise InputError(f"the batch dimensions do not broadcast: {batches}") from error


def _shape(shape: tuple[int, ...]) -> str:
    return f"(*batch, {', '.join(map(str, shape))})" if shape else "(*batch)"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
