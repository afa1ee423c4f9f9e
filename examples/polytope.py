r"""A polytope learned from projections onto it
===========================================

.. math::
   \mathrm{project}(x;\, G, h) = \operatorname*{argmin}_z\; \tfrac12 |z - x|^2 \;:\; Gz \le h

A hidden polytope in the plane, of 20 faces, has been used to project 100 points. Given the points and
their projections, and nothing else, find G and h: 40 steps of Adam through the layer.
"""

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor
from tqdm import trange

from _style import BLUE, FAINT, FIGURES, MUTED, RED, save, shown
from optlayer import OptLayer

POINTS, FACES, STEPS = 100, 20, 40
WINDOW = 2.7  # half the side of the drawn square


# %%
# The layer
# ---------
#
# One variable, three parameters: the point that is projected, and the polytope. All three are
# differentiable; G and h are what is learned.


class Polytope(NamedTuple):
    """{ z : Gz <= h }"""

    G: Tensor
    h: Tensor


class Fit(NamedTuple):
    points: Tensor
    targets: Tensor
    hidden: Polytope
    learned: list[Polytope]  # at the start and after every step
    projections: list[Tensor]  # of the points, onto these
    losses: list[float]
    held_out: list[float]  # the losses on points the fit does not see


def declare() -> OptLayer:
    return OptLayer(
        [cp.Variable(2)],
        [cp.Parameter(2), cp.Parameter((FACES, 2)), cp.Parameter(FACES)],
        objective=lambda z, x, G, h: cp.sum_squares(z - x) / 2,
        inequalities=[lambda z, x, G, h: G @ z - h],
    )


# %%
# The fit
# -------
#
# An ordinary training loop; the layer is a module like any other in it.


def hidden_polytope() -> Polytope:
    return Polytope(0.6 * torch.randn(FACES, 2).double(), torch.ones(FACES).double())


def first_guess() -> Polytope:
    """A regular polygon around the unit circle, half as large again."""
    angles = torch.arange(FACES).double() * (2 * np.pi / FACES)
    normals = torch.stack([angles.cos(), angles.sin()], dim=1)
    return Polytope(normals, torch.full((FACES,), 1.5).double())


def fit(seed: int = 5) -> Fit:
    """Adam on the mean squared distance between projections; learning rate 0.1, then 0.01."""
    torch.manual_seed(seed)
    project, hidden = declare(), hidden_polytope()
    points, fresh = 1.5 * torch.randn(2, POINTS, 2).double()

    def loss_at(x: Tensor, *polytope: Tensor) -> tuple[Tensor, Tensor]:
        z = project(x, *polytope)
        return (z - project(x, *hidden)).square().sum(1).mean(), z.detach()

    G, h = (a.requires_grad_() for a in first_guess())
    optimizer = torch.optim.Adam([G, h], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30])
    learned, projections, losses, held_out = [], [], [], []
    for step in trange(STEPS + 1, desc="fitting the polytope"):
        loss, z = loss_at(points, G, h)
        learned.append(Polytope(G.detach().clone(), h.detach().clone()))
        projections.append(z)
        losses.append(loss.item())
        held_out.append(loss_at(fresh, *learned[-1])[0].item())
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Fit(points, project(points, *hidden), hidden, learned, projections, losses, held_out)


# %%
# The figures
# -----------


def depth(polytope: Polytope, side: np.ndarray) -> np.ndarray:
    """max_i (Gz - h)_i on a grid: the polytope is where this is at most 0."""
    grid = torch.tensor(np.stack(np.meshgrid(side, side), axis=-1))
    return (grid @ polytope.G.T - polytope.h).amax(-1).numpy()


def draw_polytope(axis: Axes, fit: Fit, step: int) -> None:
    """The hidden polytope in grey, the learned one as an outline, what is still wrong in red."""
    side = np.linspace(-WINDOW, WINDOW, 361)
    axis.contourf(side, side, depth(fit.hidden, side), levels=[-1e9, 0], colors=[FAINT])
    axis.contour(side, side, depth(fit.learned[step], side), levels=[0], colors=[BLUE])
    ours, targets = fit.projections[step], fit.targets
    for start, end in zip(ours, targets):
        axis.plot(*torch.stack([start, end]).T, color=RED, linewidth=1.2, zorder=2)
    axis.plot(*fit.points.T, ".", color=MUTED, markersize=2.5, zorder=1)
    axis.plot(*ours.T, ".", color=BLUE, markersize=5, zorder=3)
    axis.set(xlim=(-WINDOW, WINDOW), ylim=(-WINDOW, WINDOW), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def draw_losses(axis: Axes, fit: Fit) -> None:
    axis.axvspan(30, STEPS, color=FAINT, alpha=0.5, linewidth=0)
    axis.semilogy(fit.held_out, color=RED, linewidth=1.2, label="fresh points")
    axis.semilogy(fit.losses, color=BLUE, label="the 100 points")
    axis.legend(loc="upper right", reverse=True)
    axis.set(title="mean squared distance", xlabel="step", xlim=(0, STEPS), ylim=(3e-4, 1))
    axis.annotate(
        "rate 0.01", (35, 0), (0, 6), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="center", color=MUTED, fontsize=8,
    )  # fmt: skip
    axis.xaxis.set_major_locator(MaxNLocator(4))


def figure(fit: Fit, path: Path) -> None:
    canvas, axes = plt.subplots(1, 3, figsize=(10, 3.5), width_ratios=[1, 1, 0.9])
    for axis, step, title in zip(axes, (0, STEPS), ("before", f"after {STEPS} steps")):
        draw_polytope(axis, fit, step)
        axis.set_title(title)
    draw_losses(axes[2], fit)
    save(canvas, path)


def animation(fit: Fit, path: Path) -> None:
    """One frame a step, the last held for two seconds."""
    canvas, axis = plt.subplots(figsize=(3.4, 3.6), dpi=110)
    frames = []
    for step in trange(STEPS + 1, desc="drawing frames"):
        axis.clear()
        draw_polytope(axis, fit, step)
        axis.set_title(f"step {step}", loc="left")
        canvas.canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.canvas.buffer_rgba())).convert("RGB"))
    plt.close(canvas)
    palette = frames[STEPS // 4].quantize(64, method=Image.Quantize.MAXCOVERAGE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [600] + [100] * (STEPS - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
    print(f"figure: {shown(path)}")


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Fit, draw, and return the losses."""
    result = fit()
    before, after, held_out = result.losses[0], result.losses[-1], result.held_out[-1]
    print(f"mean squared distance: {before:.4f} before, {after:.4f} after {STEPS} steps,")
    print(f"                       {held_out:.4f} on fresh points")
    figure(result, figures / "polytope.png")
    animation(result, figures / "polytope.gif")
    return {"before": before, "after": after, "held_out": held_out}


if __name__ == "__main__":
    main()
