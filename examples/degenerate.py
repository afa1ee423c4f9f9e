r"""Where the argmin has no derivative
==================================

Three reasons why there is none, three answers, three small problems.

.. list-table::
   :header-rows: 1

   * - answer
     - problem
     - why
   * - exact
     - :math:`\min\, (z - x)^2,\; z \ge 0`
     - a kink: a tie counts as inactive, 1, and a flag
   * - minimum norm
     - :math:`\min\, (z_1 + z_2 - x)^2`
     - a line of minimizers: the shortest derivative, (½, ½), and a flag
   * - smoothed
     - :math:`\min\, xz,\; |z| \le 1`
     - a vertex that jumps: the slope of the central path

The smoothed derivative is that of the minimizer of
:math:`xz - \mu \log(1 - z) - \mu \log(1 + z)`, which is a root of :math:`xz^2 - 2\mu z - x`: something to
compare with. :doc:`/degenerate` says more.
"""

from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from _style import BLUE, FIGURES, GOLD, GREEN, INK, MUTED, RED, save
from optlayer import OptLayer

SMOOTHINGS = (0.03, 0.1, 0.3)
ON_THE_LINE = 0.8  # x of the problem whose minimizers are a line


# %%
# Three problems
# --------------


def relu() -> OptLayer:
    z, x = cp.Variable(), cp.Parameter()
    return OptLayer([z], [x], lambda z, x: cp.square(z - x), [lambda z, x: -z])


def on_a_line() -> OptLayer:
    z, x = cp.Variable(2), cp.Parameter()
    return OptLayer([z], [x], lambda z, x: cp.square(cp.sum(z) - x), nonunique="ignore")


def sign(smoothing: float | None = None) -> OptLayer:
    z, x = cp.Variable(), cp.Parameter()
    sides = [lambda z, x: z - 1, lambda z, x: -1 - z]
    return OptLayer([z], [x], lambda z, x: x * z, sides, smoothing=smoothing, nonunique="ignore")


# %%
# Their slopes
# ------------
#
# By autograd; and for the vertex the root of the quadratic equation, written out.


def slopes(layer: OptLayer, x: Tensor) -> Tensor:
    """dz/dx, sample by sample."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    return slope


def central_path(x: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """z and dz/dx of the root of xz² - 2μz - x within (-1, 1)."""
    z = -x / (mu + (mu**2 + x**2).sqrt())
    return z, -(1 - z**2) / (2 * (mu - x * z))


# %%
# The figure
# ----------


def figure(x: Tensor, file: Path) -> None:
    canvas, axes = plt.subplots(1, 3, figsize=(10, 3.1))
    draw_kink(axes[0], x)
    draw_line(axes[1])
    draw_vertex(axes[2], x)
    save(canvas, file)


def draw_kink(axis: plt.Axes, x: Tensor) -> None:
    axis.plot(x, relu()(x), color=MUTED, label="$z^*$")
    away = x[x.abs() > 1e-3]
    for side in (away[away < 0], away[away > 0]):
        axis.plot(side, slopes(relu(), side), color=BLUE, label="its derivative" if side[0] < 0 else None)
    zero = torch.zeros(1, dtype=x.dtype)
    axis.plot(zero, slopes(relu(), zero), "o", color=BLUE, label="at the kink, flagged")
    axis.set(title="exact", xlabel="x")
    axis.legend(loc="upper left")


def draw_line(axis: plt.Axes) -> None:
    x = torch.tensor([ON_THE_LINE], dtype=torch.float64)
    z = on_a_line()(x)[0]
    slope = torch.func.jacrev(on_a_line())(x)[0, :, 0]
    ends = torch.tensor([-0.4, 1.2], dtype=x.dtype)
    for value, color in ((ON_THE_LINE, MUTED), (ON_THE_LINE + 0.5, GOLD)):
        axis.plot(ends, value - ends, color=color, label=f"minimizers, x = {value:g}")
    axis.plot(*z, "o", color=INK)
    axis.annotate(
        "", (z + 0.5 * slope).tolist(), z.tolist(), arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 2}
    )
    axis.set(title="minimum norm", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    axis.legend(loc="lower left", fontsize="small", handlelength=1)


def draw_vertex(axis: plt.Axes, x: Tensor) -> None:
    """Where x is 0 every z is optimal: left out."""
    x = x[x != 0]
    axis.plot(x, -slopes(sign(), x), color=MUTED, label="exact: 0")
    for mu, color in zip(SMOOTHINGS, (RED, BLUE, GREEN)):
        axis.plot(x, -slopes(sign(mu), x), color=color, label=f"smoothing={mu:g}")
    axis.set(title="smoothed: $-dz^*/dx$", xlabel="x", ylim=(-0.3, 8))
    axis.legend(loc="upper right", fontsize="small", handlelength=1)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Draw the three; compare each with what it should be."""
    x = torch.arange(-100, 101, dtype=torch.float64) / 100
    kink = relu().solve(torch.zeros(1, dtype=x.dtype))
    line = torch.func.jacrev(on_a_line())(torch.tensor([ON_THE_LINE], dtype=x.dtype))[0, :, 0]
    beside = x[x != 0]
    smoothed = [(slopes(sign(mu), beside) / central_path(beside, mu)[1] - 1).abs().max() for mu in SMOOTHINGS]
    numbers = {
        "kink_flagged": float(kink.flags.kink.all()),
        "kink_slope": slopes(relu(), torch.zeros(1, dtype=x.dtype)).item(),
        "minimum_norm_error": (line - 0.5).abs().max().item(),
        "smoothed_error": max(error.item() for error in smoothed),
        "exact_slope": slopes(sign(), beside).abs().max().item(),
    }
    print(f"at the kink             {numbers['kink_slope']:.0f}, flagged")
    print(f"along a line            ({line[0]:.3f}, {line[1]:.3f})")
    print(f"at a vertex             {numbers['exact_slope']:.0f}")
    print(f"smoothed                {numbers['smoothed_error']:.0e} from the central path's")
    figure(x, figures / "degenerate.png")
    return numbers


if __name__ == "__main__":
    main()
