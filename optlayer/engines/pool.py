"""A batch divided among the cores: one stretch of samples a worker, never one task a sample.

Workers call solvers and numpy, not torch, whose thread counts belong to the thread that calls it. What a
worker finds goes into rows of its own, so an answer does not depend on how the batch was divided.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

Task = Callable[[range], None]


class Pool:
    """Threads for one engine, made when they are first needed, and anew after a fork."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers
        self._threads: tuple[int, ThreadPoolExecutor] | None = None  # with the process they live in

    def run(self, task: Task, size: int, alone: bool = False) -> None:
        """`task` on stretches that cover range(size), the first of them in the calling thread.

        Args:
            alone: One stretch, for work too small to be worth a second thread.
        """
        first, *others = divided(size, 1 if alone else self._workers or cores())
        futures = [self._submitted(task, rows) for rows in others]
        task(first)
        for rows, future in zip(others, futures):
            if future is None:
                task(rows)
            else:
                future.result()

    def _submitted(self, task: Task, rows: range) -> Future[None] | None:
        try:
            return self._executor().submit(task, rows)
        except RuntimeError:  # no thread can be started any more, as when the interpreter shuts down
            return None

    def _executor(self) -> ThreadPoolExecutor:
        process = os.getpid()
        if self._threads is None or self._threads[0] != process:
            others = max(1, (self._workers or cores()) - 1)  # the caller is one of the workers
            self._threads = process, ThreadPoolExecutor(others, "optlayer")
        return self._threads[1]

    def __reduce__(self) -> tuple[type["Pool"], tuple[int | None]]:
        return Pool, (self._workers,)


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def divided(size: int, parts: int) -> list[range]:
    """range(size) as at most `parts` stretches of nearly equal length, at least one."""
    parts = max(1, min(parts, size))
    ends = [size * k // parts for k in range(parts + 1)]
    return [range(start, end) for start, end in pairwise(ends)]
