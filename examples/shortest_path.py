r"""Costs learned by the paths they lead to
=======================================

A linear programme, whose derivative is zero:

.. math::
   z^\star(c) = \operatorname*{argmin}_z\; \{\, c^\top z \;:\; Nz = b,\; z \ge 0 \,\}

the shortest path through a grid, N its nodes and arcs. Costs depend on features in a way that a linear model
:math:`\hat c = Wx + w` cannot express. Fitted by least squares it spends itself on costs that no path cares
about. What matters is the true length of the path that :math:`\hat c` leads to,

.. math::
   \mathrm{loss}(W, w) = c^\top z^\star(Wx + w),

but :math:`z^\star` is a vertex: it jumps, and its derivative is 0 almost everywhere. Training by the exact
derivative stays where it starts. With `smoothing=mu` the layer returns the same vertex, and the derivative of
the point on the central path beside it (:doc:`/degenerate`).

The costs are those of Elmachtoub & Grigas, *Smart "predict, then optimize"*, Management Science 68 (2022),
doi:10.1287/mnsc.2020.3922.
"""

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import trange

from _style import BLUE, FAINT, FIGURES, GOLD, GREEN, MUTED, RED, save
from optlayer import OptLayer

SIDE, FEATURES, DEGREE = 5, 5, 6  # nodes on a side; how far from linear the costs are
TRAINING, HELD_OUT = 100, 120
STEPS, EVERY, SMOOTHING = 40, 4, 0.3


# %%
# The grid and its linear programme
# ---------------------------------
#
# `smoothing` is the one difference between the layer whose derivative is 0 and the one that learns.


class Data(NamedTuple):
    x: Tensor  # (samples, FEATURES)
    cost: Tensor  # (samples, arcs)
    shortest: Tensor  # () the sum of the lengths of the shortest paths


def arcs() -> list[tuple[int, int]]:
    """Right and down, between nodes numbered row by row."""
    nodes = np.arange(SIDE**2).reshape(SIDE, SIDE)
    right = zip(nodes[:, :-1].ravel().tolist(), nodes[:, 1:].ravel().tolist())
    down = zip(nodes[:-1].ravel().tolist(), nodes[1:].ravel().tolist())
    return [*right, *down]


def shortest_path(smoothing: float | None = None) -> OptLayer:
    """From the first node to the last, whose own row follows from the others."""
    N = np.zeros((SIDE**2, len(arcs())))
    for arc, (start, end) in enumerate(arcs()):
        N[start, arc], N[end, arc] = 1.0, -1.0
    z, cost = cp.Variable(len(arcs())), cp.Parameter(len(arcs()))
    one = np.eye(SIDE**2)[0]
    return OptLayer(
        [z],
        [cost],
        lambda z, cost: cost @ z,
        inequalities=[lambda z, cost: -z],
        equalities=[lambda z, cost: (N @ z - one)[:-1]],
        smoothing=smoothing,
        nonunique="ignore",
    )


def draw(generator: torch.Generator, B: Tensor, samples: int, layer: OptLayer) -> Data:
    """c = ((Bx/√k + 3)/3)^degree, with a tenth of noise."""
    x = torch.randn(samples, FEATURES, generator=generator, dtype=torch.float64)
    noise = 0.9 + 0.2 * torch.rand(samples, len(B), generator=generator, dtype=x.dtype)
    cost = ((x @ B.T / FEATURES**0.5 + 3) / 3) ** DEGREE * noise
    return Data(x, cost, (cost * layer(cost)).sum())


# %%
# Training by the path
# --------------------


def least_squares(data: Data) -> Tensor:
    """(W, w) that fit the costs themselves."""
    return torch.linalg.lstsq(with_one(data.x), data.cost).solution.T


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def regret(layer: OptLayer, weights: Tensor, data: Data) -> Tensor:
    """How much longer the paths chosen are than the shortest ones, on average and relative."""
    chosen = (data.cost * layer(with_one(data.x) @ weights.T)).sum()
    return chosen / data.shortest - 1


def train(layer: OptLayer, judge: OptLayer, data: Data, held_out: Data) -> tuple[Tensor, list[float]]:
    """Adam on the regret, from the least-squares fit; the held-out regret, before and every few steps."""
    weights = least_squares(data).requires_grad_()
    optimizer = torch.optim.Adam([weights], 0.1)
    course = [regret(judge, weights, held_out).item()]
    for step in trange(1, STEPS + 1):
        optimizer.zero_grad()
        regret(layer, weights, data).backward()
        optimizer.step()
        if step % EVERY == 0:
            course.append(regret(judge, weights, held_out).item())
    return weights.detach(), course


# %%
# The figure
# ----------


def figure(courses: dict[str, list[float]], paths: dict[str, Tensor], cost: Tensor, file: Path) -> None:
    canvas, axes = plt.subplots(1, 1 + len(paths), figsize=(10, 3.2), width_ratios=[1.6, *[1] * len(paths)])
    for (name, course), color in zip(courses.items(), (MUTED, BLUE)):
        axes[0].plot(range(0, STEPS + 1, EVERY), [100 * r for r in course], color=color, label=name)
    axes[0].set(title="detour on held-out samples, per cent", xlabel="step of Adam", ylim=(0, None))
    axes[0].legend(loc="lower left")
    for axis, (name, path), color in zip(axes[1:], paths.items(), (GREEN, RED, BLUE)):
        draw_path(axis, name, path, cost, color)
    save(canvas, file)


def draw_path(axis: Axes, name: str, path: Tensor, cost: Tensor, color: str) -> None:
    """Arcs as dear as they are dark, and the path on top."""
    shade = (cost / cost.max()).sqrt()
    for (start, end), z, s in zip(arcs(), path, shade):
        (y0, x0), (y1, x1) = divmod(start, SIDE), divmod(end, SIDE)
        axis.plot([x0, x1], [-y0, -y1], color=GOLD, alpha=float(s), linewidth=5, zorder=1)
        if z > 0.5:
            axis.plot([x0, x1], [-y0, -y1], color=color, linewidth=2.2, zorder=3)
    grid = [divmod(node, SIDE) for node in range(SIDE**2)]
    axis.plot([x for _, x in grid], [-y for y, _ in grid], "o", color=FAINT, markersize=4, zorder=2)
    axis.set(title=f"{name}: {float(cost @ path):.2f}", aspect="equal")
    axis.set_axis_off()


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Train with the exact and with the smoothed derivative; the detours on samples that neither saw."""
    generator = torch.Generator().manual_seed(1)
    B = torch.bernoulli(torch.full((len(arcs()), FEATURES), 0.5, dtype=torch.float64), generator=generator)
    exact, smoothed = shortest_path(), shortest_path(SMOOTHING)
    data, held_out = draw(generator, B, TRAINING, exact), draw(generator, B, HELD_OUT, exact)
    _, flat = train(exact, exact, data, held_out)
    weights, learned = train(smoothed, exact, data, held_out)

    cost = held_out.cost
    fitted, best = (exact(with_one(held_out.x) @ W.T) for W in (least_squares(data), weights))
    shown = ((cost * (fitted - best)).sum(1) / (cost * best).sum(1)).argmax()
    paths = {"shortest": exact(cost)[shown], "least squares": fitted[shown], "trained": best[shown]}
    numbers = {
        "least_squares": flat[0],
        "exact": flat[-1],
        "smoothed": learned[-1],
        "vertices": (best - best.round()).abs().max().item(),
    }
    print(f"detour by least squares      {100 * flat[0]:.1f} %")
    print(f"after {STEPS} steps, exact        {100 * flat[-1]:.1f} %")
    print(f"after {STEPS} steps, smoothed     {100 * learned[-1]:.1f} %")
    courses = {"exact derivative": flat, f"smoothing={SMOOTHING}": learned}
    figure(courses, paths, cost[shown], figures / "shortest_path.png")
    return numbers


if __name__ == "__main__":
    main()
