"""One family of workloads at growing sizes: what scaling_with_batch and scaling_with_size share."""

import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import (
    Contestant,
    Row,
    compare,
    error_text,
    growth,
    machine,
    mark,
    milliseconds,
    parser,
    write_json,
)
from peers import ALONE, MOREAU, OURS, PEERS, QPTH, installed
from reference import Exact
from workloads import Workload

JUDGED = 64  # samples whose exact gradient is found


@dataclass(frozen=True)
class Family:
    name: str
    label: str  # of the size
    sizes: Sequence[int]
    make: Callable[[int], Workload]


def measure(family: Family, contestants: Sequence[Contestant], rounds: int, budget: float) -> list[Row]:
    """Rows of every size; who has spent the budget on one sits out the larger ones."""
    rows: list[Row] = []
    racing = list(contestants)
    for size in family.sizes:
        workload = family.make(size)
        found = compare(workload, racing, rounds, budget, _exact(workload))
        within = {row.who for row in found if row.both and row.both < 1e3 * budget / 4}
        racing = [contestant for contestant in racing if contestant.name in within]
        rows += [replace(row, workload=family.name, size=size) for row in found]
    return rows


def _exact(workload: Workload) -> Exact:
    first = tuple(t[:JUDGED].cpu() for t in workload.theta)
    return workload.exact(first, tuple(w[:JUDGED] for w in workload.weights()))


def growth_table(family: Family, rows: Sequence[Row]) -> str:
    """A row for each contestant, a column for each size: ms, gradient error; the last exponent."""
    head = [family.label, *map(str, family.sizes), "exponent"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for who in dict.fromkeys(row.who for row in rows):
        own = [row for row in rows if row.who == who]
        cells = {row.size: _cell(row) for row in own}
        exponent = growth(own)
        last = "" if exponent is None else f"{exponent:.1f}"
        lines.append([who, *(cells.get(size, "") for size in family.sizes), last])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(row: Row) -> str:
    if row.both is None:
        return row.note
    errors = [error_text(e) for e in (row.residual, row.gradient_error) if e is not None]
    return f"{milliseconds(row.both)} ({', '.join(errors)}){mark(row)}" if errors else milliseconds(row.both)


def scaling_main(
    doc: str, families: Callable[[bool], list[Family]], figure: Path, arguments: Sequence[str] | None
) -> list[Row]:
    options = parser(doc, rounds=5)
    options.add_argument("--plot", nargs="?", type=Path, const=figure, help="also draw the growth")
    options = options.parse_args(arguments)
    print(machine())
    rows = []
    contestants = [OURS, *installed([PEERS[0], MOREAU, QPTH]), ALONE]
    for family in families(options.quick):
        rows += report(family, contestants, options)
    write_json(options, rows)
    if options.plot:
        from figures import draw_growth

        draw_growth(families(options.quick), rows, options.plot)
    return rows


def report(family: Family, contestants: Sequence[Contestant], options: Namespace) -> list[Row]:
    """Measure, and print the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        rows = measure(family, contestants, 1 if options.quick else options.rounds, options.budget)
    print(f"\n### {family.name}\n\nms forward and backward (KKT residual, gradient error)\n")
    print(growth_table(family, rows), flush=True)
    return rows
