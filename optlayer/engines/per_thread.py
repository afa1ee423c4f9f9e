"""A workspace for each thread of each process: solvers and cvxpy problems are not shared."""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """`get()` builds the workspace on a thread's first use, and anew after a fork."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._local = threading.local()

    def get(self) -> T:
        """The calling thread's own."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.workspace = self._build()
            self._local.pid = os.getpid()
        workspace: T = self._local.workspace
        return workspace
