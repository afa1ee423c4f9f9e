"""What the benchmarks share: interleaved rounds, accuracy beside every time, tables, JSON.

In one round every contestant runs once, forward and backward, in one process: whatever else the machine is
doing, all of them feel it. A figure is the median of the rounds, a ratio one of medians, and the minimum
stands beside it: where the two are far apart the machine was busy. A time means nothing without the error
it was bought with; the last columns say how far the answer and its gradient are from the exact ones.
"""

import json
import math
import os
import platform
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch
from reference import Exact, Outputs, leaves, paired
from torch import Tensor
from workloads import Workload

WRONG = 1e-2  # a relative error of the gradient above this is called wrong


class Refused(Exception):
    """A contestant that cannot take a workload says why."""


class Layer(Protocol):
    """θ -> outputs."""

    def __call__(self, *theta: Tensor) -> Outputs: ...


class Contestant(Protocol):
    """Something that makes a layer of a workload."""

    name: str
    differentiable: bool  # False for a solver on its own: a yardstick
    programmes_only: bool  # takes quadratic programmes as matrices, and nothing else

    def build(self, workload: Workload) -> Layer: ...

    def residual(self, layer: Layer, theta: Outputs) -> float | None:
        """The worst KKT residual, where the layer reports it."""

    def around(self, workload: Workload) -> AbstractContextManager[Any]:
        """What a run has to happen in."""


class Run(NamedTuple):
    forward: float  # seconds
    backward: float
    outputs: Outputs
    gradients: Outputs


@dataclass
class Row:
    """One contestant on one workload. Milliseconds for the whole batch; errors relative."""

    workload: str
    who: str
    batch: int
    forward: float | None = None
    backward: float | None = None
    both: float | None = None
    least: float | None = None
    ratio: float | None = None  # to the first contestant
    residual: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    build: float | None = None  # seconds
    rounds: int = 0
    size: int = 0  # what a growth is plotted against
    note: str = ""


# ---------------------------------------------------------------------------- a run, and what it is worth


def run(layer: Layer, theta: Outputs, weights: Outputs, differentiable: bool = True) -> Run:
    """Forward, and the gradient of ⟨weights, outputs⟩."""
    theta = leaves(theta) if differentiable else theta
    start = _now(theta)
    outputs = layer(*theta)
    middle = _now(theta)
    if not differentiable:
        return Run(middle - start, 0.0, outputs, ())
    value = paired(weights, outputs)
    ready = _now(theta)
    gradients = torch.autograd.grad(value, theta, materialize_grads=True)
    return Run(middle - start, _now(theta) - ready, tuple(y.detach() for y in outputs), gradients)


def _now(theta: Outputs) -> float:
    if theta[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def distance(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """|ours − exact| / |exact| over everything; `exact` may hold fewer samples."""
    pairs = [(a.detach().to(b)[: len(b)], b) for a, b in zip(ours, exact, strict=True)]
    error = sum((a - b).square().sum().item() for a, b in pairs) ** 0.5
    return error / max(sum(b.square().sum().item() for _, b in pairs) ** 0.5, 1e-300)


def compare(
    workload: Workload,
    contestants: Iterable[Contestant],
    rounds: int,
    budget: float = 20.0,
    exact: Exact | None = None,
) -> list[Row]:
    """One row each; the first contestant is what the others' ratios are to.

    Args:
        budget: Seconds a contestant may take; past it, it sits out the later rounds.
        exact: The answer, of the first samples at least; the workload's own by default.
    """
    weights = tuple(w.to(workload.theta[0].device) for w in workload.weights())
    exact = exact or workload.exact(workload.theta, weights)
    fit = [c for c in contestants if workload.programme or not c.programmes_only]
    entries = [_enter(contestant, workload, weights, exact) for contestant in fit]
    for _ in range(rounds):
        for entry in entries:
            entry.once_more(budget)
    rows = [entry.row() for entry in entries]
    for row in rows:
        row.ratio = row.both / rows[0].both if row.both and rows[0].both else None
    return rows


@dataclass
class _Entry:
    contestant: Contestant
    workload: Workload
    weights: Outputs
    judged: Row
    layer: Layer | None = None
    runs: list[tuple[float, float]] = field(default_factory=list)
    spent: float = 0.0

    def once(self) -> Run:
        with self.contestant.around(self.workload):
            done = run(self.layer, self.workload.theta, self.weights, self.contestant.differentiable)
        self.spent += done.forward + done.backward
        return done

    def once_more(self, budget: float) -> None:
        if self.layer is None or (self.runs and self.spent > budget):
            return
        try:
            self.runs.append(self.once()[:2])
        except BaseException as error:  # a rust panic (Moreau's) is no Exception
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
        why = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        self.layer, self.runs, self.judged.note = None, [], " ".join(why.split())[:120]

    def row(self) -> Row:
        row = self.judged
        if self.runs:
            forward, backward = (1e3 * median(times) for times in zip(*self.runs))
            row.forward, row.backward, row.both = forward, backward, forward + backward
            row.least, row.rounds = 1e3 * min(map(sum, self.runs)), len(self.runs)
        return row


def _enter(contestant: Contestant, workload: Workload, weights: Outputs, exact: Exact) -> _Entry:
    """Build, and judge the first run, which is not timed."""
    entry = _Entry(contestant, workload, weights, Row(workload.title, contestant.name, workload.batch))
    try:
        start = time.perf_counter()
        entry.layer = contestant.build(workload)
        entry.judged.build = time.perf_counter() - start
        first = entry.once()
        if first.outputs:
            entry.judged.value_error = distance(first.outputs, exact.outputs)
        if contestant.differentiable:
            entry.judged.gradient_error = distance(first.gradients, exact.gradients)
        entry.judged.residual = contestant.residual(entry.layer, workload.theta)
    except BaseException as error:
        entry.fail(error)
    return entry


def unguarded(workload: Workload) -> AbstractContextManager[Any]:
    """For contestants that need nothing around them."""
    del workload
    return nullcontext()


# ---------------------------------------------------------------------------- what is printed and kept

COLUMNS = [
    "",
    "forward ms",
    "backward ms",
    "both ms",
    "least",
    "ratio",
    "residual",
    "value error",
    "gradient error",
]


def table(rows: Sequence[Row], heading: Callable[[Row], str] = lambda row: row.who) -> str:
    """The rows in markdown."""
    lines = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *(_cells(row, heading(row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row, heading: str) -> list[str]:
    if row.both is None:
        return [heading, row.note or "no round", *[""] * (len(COLUMNS) - 2)]
    times = [row.forward, row.backward or None, row.both, row.least]
    errors = [row.residual, row.value_error, row.gradient_error]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    texts = list(map(error_text, errors))
    return [heading, *map(milliseconds, times), ratio, *texts[:2], texts[2] + mark(row)]


def mark(row: Row) -> str:
    """Wrong, and NaN is wrong too."""
    return " **wrong**" if row.gradient_error is not None and not row.gradient_error < WRONG else ""


def milliseconds(time: float | None) -> str:
    return "" if time is None else f"{time:.3g}" if time < 100 else f"{time:.0f}"


def error_text(error: float | None) -> str:
    return "" if error is None else f"{error:.0e}"


def machine() -> str:
    """Where, with what, and how busy."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{cores}, {versions}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'unset')}{load}"


def parser(description: str, rounds: int = 7) -> ArgumentParser:
    """The options every benchmark has."""
    arguments = ArgumentParser(description=description.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=rounds)
    arguments.add_argument(
        "--budget", type=float, default=20.0, help="seconds for one contestant on one workload"
    )
    arguments.add_argument("--quick", action="store_true", help="tiny sizes, one round: does it run?")
    arguments.add_argument("--json", type=Path, help="also write the rows there")
    return arguments


def growth(rows: Sequence[Row]) -> float | None:
    """The exponent by which the time of the last two sizes grows."""
    known = [row for row in rows if row.both]
    if len(known) < 2:
        return None
    small, large = known[-2:]
    return math.log(large.both / small.both) / math.log(large.size / small.size)


def write_json(options: Namespace, rows: Sequence[Row]) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
