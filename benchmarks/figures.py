"""What the benchmarks draw: our line in front, the others thin behind it, the solver on its own dashed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from harness import Row, mark

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import matplotlib.pyplot as plt
from _style import BLUE, FAINT, GOLD, GREEN, INK, MUTED, RED, VIOLET, save
from growth import Family
from matplotlib.axes import Axes

OTHERS = {
    "cvxpylayers, clarabel": GREEN,
    "cvxpylayers, scs 1e-8": "#8fc3ab",
    "cvxpylayers, moreau": VIOLET,
    "moreau, matrices": GOLD,
    "qpth": RED,
    "clarabel alone": INK,
}


def draw_growth(families: Sequence[Family], rows: Sequence[Row], path: Path) -> None:
    """One panel a family, both axes logarithmic."""
    columns = min(len(families), 2)
    height = 2.9 * ((len(families) + 1) // 2)
    figure, axes = plt.subplots(-(-len(families) // columns), columns, figsize=(7.6, height), squeeze=False)
    names = list(dict.fromkeys(row.who for row in rows))
    for axis, family in zip(axes.flat, families):
        _growth(axis, family, [row for row in rows if row.workload == family.name and row.both], names)
    handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    save(figure, path)


def _growth(axis: Axes, family: Family, rows: Sequence[Row], names: Sequence[str]) -> None:
    for who in names:
        own = [row for row in rows if row.who == who]
        axis.loglog([row.size for row in own], [row.both for row in own], label=who, **_look(who, names))
    axis.set_xticks(family.sizes, [f"{size:,}" for size in family.sizes], fontsize="small")
    axis.set_xticks([], minor=True)
    axis.grid(True, which="major", color=FAINT, linewidth=0.6)
    axis.set(title=family.name, xlabel=family.label, ylabel="ms")


def _look(who: str, names: Sequence[str]) -> dict[str, object]:
    if who == names[0]:
        return {"color": BLUE, "linewidth": 2.6, "marker": "o", "markersize": 4.5, "zorder": 5}
    if who == names[-1]:
        return {"color": INK, "linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 4}
    return {
        "color": OTHERS.get(who, MUTED),
        "linewidth": 1.1,
        "marker": "o",
        "markersize": 2.5,
        "alpha": 0.85,
    }


def draw_ratios(rows: Sequence[Row], path: Path) -> None:
    """Each peer's time over ours; hollow where its gradient is wrong."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure, axis = plt.subplots(figsize=(7.6, 0.34 * len(workloads) + 1.4))
    axis.axvline(1, color=BLUE, linewidth=2.6, label=rows[0].who)
    for who in dict.fromkeys(row.who for row in rows if row.who != rows[0].who):
        _dots(axis, workloads, [row for row in rows if row.who == who and row.ratio], who)
    axis.set_xscale("log")
    axis.set_yticks(range(len(workloads)), workloads)
    axis.invert_yaxis()
    axis.grid(True, axis="y", color=FAINT, linewidth=0.6)
    axis.set(xlabel="time, forward and backward, over ours; hollow: the gradient is wrong")
    figure.legend(loc="outside lower center", ncols=4)
    save(figure, path)


def _dots(axis: Axes, workloads: Sequence[str], rows: Sequence[Row], who: str) -> None:
    color = OTHERS.get(who, MUTED)
    axis.scatter([], [], s=26, c=color, label=who)  # full in the legend, whatever comes first
    places = [workloads.index(row.workload) for row in rows]
    faces = ["none" if mark(row) else color for row in rows]
    ratios = [row.ratio for row in rows]
    axis.scatter(ratios, places, s=26, c=faces, edgecolors=color, linewidths=1.2, zorder=3)
