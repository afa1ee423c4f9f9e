r"""The influence of a point on a robust mean
=========================================

.. math::
   u(x, \delta) = \operatorname*{argmin}_u\; \sum_i \rho(u - x_i), \qquad
   \rho(r) = \delta^2 \left( \sqrt{1 + (r/\delta)^2} - 1 \right)

(pseudo-Huber). There is no closed form for u, but it solves one equation, :math:`\sum_i \rho'(u - x_i) = 0`,
and that is enough for `optlayer.implicit`: its derivative :math:`\partial u/\partial x_i` is the influence
of point i. The ordinary mean, :math:`\delta = \infty`, gives every point the same; a robust one gives the far
points almost none. Finite differences and the formula of the textbook,
:math:`\rho''(u - x_i) / \sum_j \rho''(u - x_j)`, check it.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from _style import BLUE, FIGURES, GREEN, MUTED, RED, save
from optlayer import implicit

DELTAS = torch.tensor([0.5, 2.0], dtype=torch.float64)
COLORS = BLUE, GREEN


# %%
# One equation
# ------------
#
# The root is found by reweighting, any method would do; `implicit` then gives it the derivatives of the
# equation that it solves.


def residual(u: Tensor, x: Tensor, delta: Tensor) -> Tensor:
    """Σ ρ'(u - x_i)"""
    r = u - x
    return (r / (1 + (r / delta) ** 2).sqrt()).sum()


def robust_mean(x: Tensor, delta: Tensor) -> Tensor:
    """The root by a solver that knows nothing of derivatives; then the derivatives, by `implicit`."""
    points, width = x.detach(), delta.detach()
    u = points.mean()
    for _ in range(300):
        weights = (1 + ((u - points) / width) ** 2).rsqrt()
        u = (weights * points).sum() / weights.sum()
    return implicit(residual, u, x, delta)


# %%
# The data, and two ways to check
# -------------------------------


def random_data(seed: int = 0) -> Tensor:
    """Ten points around 0 and two that went astray."""
    generator = torch.Generator().manual_seed(seed)
    good = torch.randn(10, generator=generator, dtype=torch.float64)
    return torch.cat([good, torch.tensor([5.0, 9.0], dtype=torch.float64)])


def textbook(t: Tensor, u: Tensor, x: Tensor, delta: Tensor) -> Tensor:
    """The influence of a point at t on the robust mean u of x."""
    curvature = lambda r: (1 + (r / delta) ** 2) ** -1.5
    return curvature(u - t) / curvature(u - x).sum()


def errors(x: Tensor, delta: Tensor, step: float = 1e-5) -> tuple[float, float]:
    """How far the influences are from the textbook's formula and from central differences."""
    influence = grad(robust_mean)(x, delta)
    shifts = step * torch.eye(len(x), dtype=x.dtype)
    ahead, behind = (vmap(robust_mean, (0, None))(x + sign * shifts, delta) for sign in (1, -1))
    others = textbook(x, robust_mean(x, delta), x, delta), (ahead - behind) / (2 * step)
    return tuple((influence - other).abs().max().item() for other in others)


# %%
# The figure
# ----------


def draw_influence(axis: Axes, x: Tensor) -> None:
    """The derivative at every point, on the curve of the textbook."""
    t = torch.linspace(-4, 10, 400, dtype=x.dtype)
    axis.axhline(1 / len(x), color=RED, alpha=0.4)
    axis.plot(x, torch.full_like(x, 1 / len(x)), "o", color=RED, markersize=4, label="mean")
    for delta, color in zip(DELTAS, COLORS):
        axis.plot(t, textbook(t, robust_mean(x, delta), x, delta), color=color, alpha=0.4)
        influence = grad(robust_mean)(x, delta)
        axis.plot(x, influence, "o", color=color, markersize=4, label=f"robust mean, $\\delta={delta:g}$")
    axis.set(xlabel="data point $x_i$", ylabel="influence $\\partial u/\\partial x_i$")
    axis.set_title("influence of each data point")
    axis.legend(handletextpad=0)


def draw_journey(axis: Axes, x: Tensor) -> None:
    """The estimate while the last point travels, with tangents from the derivative."""
    places, stops = (torch.linspace(-6, 10, size, dtype=x.dtype) for size in (200, 9))
    moved = lambda places: torch.cat([x[:-1].expand(len(places), -1), places[:, None]], 1)
    ends = torch.tensor([-0.7, 0.7], dtype=x.dtype)
    axis.plot(places, moved(places).mean(1), color=RED, alpha=0.4)
    for delta, color in zip(DELTAS, COLORS):
        axis.plot(places, vmap(robust_mean, (0, None))(moved(places), delta), color=color, alpha=0.4)
        influence, u = vmap(grad_and_value(robust_mean), (0, None))(moved(stops), delta)
        for stop, height, slope in zip(stops, u, influence[:, -1]):
            axis.plot(stop + ends, height + slope * ends, color=color, linewidth=1.2)
            axis.plot(stop, height, "o", color=color, markersize=4)
    axis.set(xlabel="place of the last point", ylabel="estimate $u$")
    axis.set(xticks=[-5, 0, 5, 10], yticks=[-0.5, 0, 0.5, 1], ylim=(-0.65, 1.1))
    axis.set_title("one point travels, the others stay")
    axis.plot(x[:-1], torch.full_like(x[:-1], -0.6), "|", color=MUTED, markersize=7)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Print and draw the influences; returns the largest errors."""
    x = random_data()
    print(f"              mean   influence of the point at {x[-1]:g}")
    print(f"ordinary    {x.mean():6.3f}   {1 / len(x):.5f}")
    for delta in DELTAS:
        influence, u = grad_and_value(robust_mean)(x, delta)
        print(f"δ = {delta:<5g}   {u:6.3f}   {influence[-1]:.5f}")
    exact, difference = map(max, zip(*(errors(x, delta) for delta in DELTAS)))
    print(f"influences: {exact:.0e} from the textbook, {difference:.0e} from finite differences")

    canvas, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    draw_influence(axes[0], x)
    draw_journey(axes[1], x)
    save(canvas, figures / "implicit_functions.png")
    return {"textbook_error": exact, "finite_difference_error": difference}


if __name__ == "__main__":
    main()
