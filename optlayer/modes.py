"""The caller's torch modes that must not reach into our own computations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def without_saved_tensor_hooks() -> Iterator[None]:
    """Set aside the hooks of gradient checkpointing and its kin: torch.func refuses to run under them.

    What the layer itself saves for its backward is saved outside of this, under the caller's hooks.
    """
    autograd: Any = torch._C._autograd
    top = getattr(autograd, "_top_saved_tensors_default_hooks", lambda _: None)  # not in torch 2.6
    hooks = []
    while (pair := top(False)) is not None:
        hooks.append(pair)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(pack, unpack)
