"""The caller's torch modes that must not reach into our own computations."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def undisturbed(build: Callable[[], T]) -> T:
    """Run `build` in a thread of its own, where no mode and no transform is active.

    A layer may be built inside torch.func.grad, inference mode or autocast; the constants it keeps
    must not be tensors of theirs.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(copy_context().run, build).result()


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
