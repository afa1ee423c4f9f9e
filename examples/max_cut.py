r"""Maximum cut, and the edges it depends on
========================================

.. math::
   v(w) = \max_X\; \tfrac12 \sum_e w_e (1 - X_e) \;:\; \operatorname{diag} X = 1,\; X \succeq 0

is the semidefinite relaxation of Goemans and Williamson (Journal of the ACM 42, 1995,
doi:10.1145/227683.227684); :math:`X_e` is the entry of X at the two ends of the edge e.
:math:`X = V^\top V` has unit vectors as its columns, one for each vertex, and a random hyperplane that
separates them cuts the graph: on average at least 0.878 v, hence at least 0.878 of the maximum. By the
envelope theorem

.. math::
   \frac{\partial v}{\partial w_e} = \tfrac12 (1 - X_e) \in [0, 1],

1 for an edge to be cut, 0 for one to be kept, and the second derivative of v is
:math:`-\tfrac12\, \partial X_e/\partial w_f`: the derivative of the argmin itself. In this graph X has rank
two, so that its vectors can be drawn.
"""

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from scipy.spatial import Delaunay, distance
from torch import Tensor

from _style import BLUE, FAINT, FIGURES, GOLD, GREEN, INK, MUTED, RED, save
from optlayer import OptLayer

VERTICES, HYPERPLANES, ALPHA = 16, 1000, 0.87856
SENSITIVITY = LinearSegmentedColormap.from_list("sensitivity", ["#d5dae1", GOLD, RED])


# %%
# The graph and its relaxation
# ----------------------------
#
# Points in the plane and their neighbours; the layer's parameter is the weight of each edge.


class Graph(NamedTuple):
    places: np.ndarray  # of the vertices, in the unit square
    edges: np.ndarray  # pairs of vertices, one a row
    weights: Tensor


class Cut(NamedTuple):
    """Of every random hyperplane: its normal, the sides of the vertices, the weight it cuts"""

    vectors: Tensor
    normals: Tensor
    sides: Tensor
    values: Tensor


def plane_graph(seed: int = 2) -> Graph:
    """Random points kept apart, neighbours joined, random weights"""
    random = np.random.default_rng(seed)
    places = random.uniform(0, 1, (1, 2))
    while len(places) < VERTICES:
        point = random.uniform(0, 1, (1, 2))
        if distance.cdist(point, places).min() > 0.17:
            places = np.vstack([places, point])
    edges = {pair for triangle in Delaunay(places).simplices for pair in combinations(sorted(triangle), 2)}
    near = [(a, b) for a, b in sorted(edges) if distance.euclidean(places[a], places[b]) < 0.48]
    return Graph(places, np.array(near), torch.tensor(random.uniform(0.5, 1.5, len(near))))


def declare(edges: np.ndarray) -> OptLayer:
    X = cp.Variable((VERTICES, VERTICES), symmetric=True)
    w = cp.Parameter(len(edges), name="w")
    cut = cp.sum(cp.multiply(w, 1 - X[edges[:, 0], edges[:, 1]])) / 2
    return OptLayer.from_problem(cp.Problem(cp.Maximize(cut), [cp.diag(X) == 1, X >> 0]))


# %%
# From the relaxation to a cut
# ----------------------------
#
# Random hyperplanes through the vectors of X; and, the graph being small, all cuts.


def rounded(graph: Graph, X: Tensor) -> Cut:
    """V of full row rank with X = VᵀV, and what random hyperplanes make of it"""
    values, directions = torch.linalg.eigh(X)
    kept = values > 1e-8
    V = values[kept].sqrt()[:, None] * directions[:, kept].T
    normals = torch.randn(HYPERPLANES, len(V), generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    sides = normals @ V > 0
    return Cut(V, normals, sides, cut_values(graph, sides))


def cut_values(graph: Graph, signs: Tensor) -> Tensor:
    """The weight cut by every row of signs"""
    ends = signs[:, graph.edges]
    return (ends[..., 0] != ends[..., 1]).to(graph.weights.dtype) @ graph.weights


def maximum_cut(graph: Graph) -> float:
    """By trying all 2¹⁵ cuts"""
    bits = torch.arange(2 ** (VERTICES - 1))[:, None] >> torch.arange(VERTICES) & 1
    return cut_values(graph, bits).max().item()


def finite_differences(layer: OptLayer, graph: Graph, step: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Central differences of v, and of the entries of X at the edges; a row for each weight."""
    shifts = step * torch.eye(len(graph.weights), dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (layer.solve(graph.weights + s) for s in (shifts, -shifts))
    a, b = graph.edges.T
    entries = (ahead.primal[0] - behind.primal[0])[:, a, b]
    return (ahead.value - behind.value) / (2 * step), entries / (2 * step)


# %%
# The figure
# ----------


def draw_graph(axis: Axes, graph: Graph, sensitivity: Tensor, side: Tensor) -> None:
    """Edges by sensitivity, as wide as they are heavy; vertices by their side of the cut."""
    lines = LineCollection(graph.places[graph.edges], cmap=SENSITIVITY, linewidths=3 * graph.weights)
    lines.set(array=sensitivity.numpy(), clim=(0, 1), capstyle="round", zorder=1)
    axis.add_collection(lines)
    draw_vertices(axis, graph.places, side, 90)
    axis.set(aspect="equal", xticks=[], yticks=[], title="the best cut; edges by $\\partial v/\\partial w$")
    axis.spines[:].set_visible(False)
    bar = axis.figure.colorbar(lines, ax=axis, location="left", ticks=[0, 0.5, 1], shrink=0.7, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def draw_vertices(axis: Axes, places: np.ndarray, side: Tensor, size: float) -> None:
    colors = [BLUE if s else GREEN for s in side]
    axis.scatter(*places.T, s=size, c=colors, edgecolors="white", linewidths=1.2, zorder=3)


def draw_vectors(axis: Axes, V: Tensor, normal: Tensor, side: Tensor) -> None:
    """The vertices as unit vectors, and the line that separates them best."""
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color=FAINT, linewidth=1))
    for vector in V.T:
        axis.plot(*zip((0, 0), vector.tolist()), color=FAINT, linewidth=1, zorder=1)
    draw_vertices(axis, V.T.numpy(), side, 60)
    across = 1.25 * torch.stack([-normal[1], normal[0]]) / normal.norm()
    axis.plot(*zip((-across).tolist(), across.tolist()), color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axis.set(aspect="equal", xticks=[], yticks=[], title="the vectors of $X$, and the best line")
    axis.spines[:].set_visible(False)


def draw_cuts(axis: Axes, cuts: Tensor, numbers: dict[str, float]) -> None:
    axis.hist(cuts, bins=30, color=MUTED, alpha=0.5)
    marks = {"value": RED, "maximum": GREEN, "expected": INK}
    for (key, color), name in zip(marks.items(), ("relaxation $v$", "maximum cut", "expected")):
        axis.axvline(numbers[key], color=color, linewidth=1.4, label=name)
    axis.axvline(ALPHA * numbers["value"], color=MUTED, linewidth=1.4, label="0.878 $v$")
    axis.set(title=f"weight cut by {HYPERPLANES} random lines", yticks=[])
    axis.spines["left"].set_visible(False)
    axis.legend(loc="upper left", handlelength=1.2)


def figure(graph: Graph, cut: Cut, gradient: Tensor, numbers: dict[str, float], path: Path) -> None:
    canvas, axes = plt.subplots(1, 3, figsize=(11, 3.7), width_ratios=[1.25, 1, 1])
    best = cut.values.argmax()
    draw_graph(axes[0], graph, gradient, cut.sides[best])
    draw_vectors(axes[1], cut.vectors, cut.normals[best], cut.sides[best])
    draw_cuts(axes[2], cut.values, numbers)
    save(canvas, path)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Solve, differentiate once and twice, round, draw."""
    graph = plane_graph()
    layer, (a, b), w = declare(graph.edges), graph.edges.T, graph.weights.clone().requires_grad_()
    solution = layer.solve(w)
    X = solution.primal[0].detach()
    (gradient,) = torch.autograd.grad(solution.value, w)
    hessian = torch.func.hessian(lambda w: layer.solve(w).value)(graph.weights)

    cut = rounded(graph, X)
    chances = X[a, b].clamp(-1, 1).acos() / torch.pi  # that a random line separates the ends of an edge
    value_slope, entry_slope = finite_differences(layer, graph)
    numbers = {
        "value": solution.value.item(),
        "maximum": maximum_cut(graph),
        "best": cut.values.max().item(),
        "mean": cut.values.mean().item(),
        "expected": (chances @ graph.weights).item(),
        "rank": len(cut.vectors),
        "envelope_error": (gradient - (1 - X[a, b]) / 2).abs().max().item(),
        "gradient_error": (gradient - value_slope).abs().max().item(),
        "hessian_error": (hessian + entry_slope / 2).abs().max().item(),
        "asymmetry": (hessian - hessian.T).abs().max().item(),
    }
    print("relaxation           {value:.4f}, X of rank {rank}".format(**numbers))
    print("maximum cut          {maximum:.4f}; the best of 1000 lines cuts {best:.4f}".format(**numbers))
    print("a line, on average   {mean:.4f}, expected {expected:.4f}".format(**numbers))
    print("∂v/∂w                {envelope_error:.0e} from ½(1 - X)".format(**numbers))
    print("  finite differences {gradient_error:.0e} from those of v".format(**numbers))
    print("∂²v/∂w²              {hessian_error:.0e} from those of -½X".format(**numbers))
    figure(graph, cut, gradient, numbers, figures / "max_cut.png")
    return numbers


if __name__ == "__main__":
    main()
