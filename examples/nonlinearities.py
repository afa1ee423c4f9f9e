r"""Four nonlinearities as convex problems
======================================

Sigmoid, softmax, sparsemax and ReLU, written as what they are: solutions of convex problems.

.. math::
   \begin{aligned}
   \text{sigmoid}   &: \;\operatorname*{argmin}_z\; -xz - H(z) - H(1 - z), \qquad H(z) = -z \log z \\
   \text{softmax}   &: \;\operatorname*{argmin}_z\; -x^\top z - \textstyle\sum_i H(z_i)
                        \;:\; \textstyle\sum_i z_i = 1 \\
   \text{sparsemax} &: \;\operatorname*{argmin}_z\; \tfrac12 |z - x|^2
                        \;:\; \textstyle\sum_i z_i = 1,\; z \ge 0 \\
   \text{ReLU}      &: \;\operatorname*{argmin}_z\; \tfrac12 (z - x)^2 \;:\; z \ge 0
   \end{aligned}

Each is compared with its closed form, value and gradient, also where floating point is unkind:
sigmoid out to ±20, softmax at logits of size 50.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from _style import BLUE, FIGURES, GOLD, GREEN, INK, MUTED, RED, VIOLET, save
from optlayer import OptLayer

N = 5  # entries of the vectors


# %%
# The four problems
# -----------------
#
# Each is a layer, its closed form, and the inputs on which the two are compared. An objective is a lambda of
# the variable and the parameter, a constraint one that is at most, or equal to, zero.


class Nonlinearity(NamedTuple):
    name: str
    formula: str
    layer: OptLayer
    closed_form: Callable[[Tensor], Tensor]
    path: Tensor  # inputs along a line, to draw
    trials: Tensor  # inputs to be judged on


def sparsemax(x: Tensor) -> Tensor:
    """The closed form: lower x until what stays positive sums to one (Martins & Astudillo 2016)."""
    ordered = x.sort(descending=True).values
    excess = ordered.cumsum(-1) - 1
    support = (ordered * torch.arange(1, x.shape[-1] + 1) > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, support - 1) / support).clamp(min=0)


def declare() -> list[Nonlinearity]:
    """The four problems, their closed forms, and where to compare them."""
    number = [cp.Variable()], [cp.Parameter()]
    vector = [cp.Variable(N)], [cp.Parameter(N)]
    positive, sums_to_one = lambda z, x: -z, lambda z, x: cp.sum(z) - 1

    torch.manual_seed(0)
    real = torch.linspace(-20, 20, 100, dtype=torch.float64)
    ray = real[:, None] * torch.tensor([0.5, 0.3, 0.05, -0.25, -0.6], dtype=torch.float64)
    logits = torch.randn(100, N, dtype=torch.float64)
    return [
        Nonlinearity(
            "sigmoid",
            r"$-xz-H(z)-H(1-z)$",
            OptLayer(*number, lambda z, x: -x * z - cp.entr(z) - cp.entr(1 - z)),
            torch.sigmoid,
            path=real,
            trials=real,
        ),
        Nonlinearity(
            "softmax",
            r"$-x^\mathsf{T} z-1^\mathsf{T} H(z)\;:\;1^\mathsf{T} z=1$",
            OptLayer(
                *vector,
                lambda z, x: -x @ z - cp.sum(cp.entr(z)),
                equalities=[sums_to_one],
            ),
            lambda x: x.softmax(-1),
            path=ray / 2,
            trials=torch.cat([logits, 10 * logits, 50 * logits]),
        ),
        Nonlinearity(
            "sparsemax",
            r"$\frac{1}{2}|z-x|^2\;:\;1^\mathsf{T} z=1,\;z\geq 0$",
            OptLayer(
                *vector,
                lambda z, x: cp.sum_squares(z - x) / 2,
                inequalities=[positive],
                equalities=[sums_to_one],
            ),
            sparsemax,
            path=ray / 5,
            trials=torch.cat([logits, 10 * logits, logits / 10]),
        ),
        Nonlinearity(
            "ReLU",
            r"$\frac{1}{2}(z-x)^2\;:\;z\geq 0$",
            OptLayer(*number, lambda z, x: cp.square(z - x) / 2, inequalities=[positive]),
            torch.relu,
            path=real / 20,
            trials=real,
        ),
    ]


# %%
# The comparison
# --------------
#
# Value and gradient, of the layer and of the closed form, at the same inputs.


def with_gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x), and the gradient of a fixed random combination of its entries."""
    x = x.clone().requires_grad_()
    y = f(x)
    weights = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    (gradient,) = torch.autograd.grad((y * (weights if y.ndim > 1 else weights[0])).sum(), x)
    return y.detach(), gradient


def errors(of: Nonlinearity, x: Tensor) -> tuple[Tensor, Tensor]:
    """Per input: how far value and gradient are from the closed form."""
    pairs = zip(with_gradient(of.layer, x), with_gradient(of.closed_form, x))
    value, gradient = ((ours - exact).abs().reshape(len(x), -1).amax(1) for ours, exact in pairs)
    return value, gradient


# %%
# The figure
# ----------


def draw(of: Nonlinearity, above: Axes, below: Axes) -> None:
    """Above the curves, below the distance to the closed form."""
    path = of.path.reshape(len(of.path), -1)
    t = path[:, 0]
    exact, ours = (f(of.path).detach().reshape(len(t), -1) for f in (of.closed_form, of.layer))
    for i, shade in zip(range(exact.shape[1]), (BLUE, GREEN, GOLD, VIOLET, RED)):
        above.plot(t, exact[:, i], color=shade, alpha=0.3, linewidth=6, solid_capstyle="butt")
        above.plot(t[1::3], ours[1::3, i], ".", color=shade, markersize=3.5)
    above.set_title(f"{of.name}\n{of.formula}")

    for error, color, label in zip(errors(of, of.path), (BLUE, RED), ("value", "gradient")):
        below.semilogy(t, error.clamp(min=1e-18), ".", color=color, markersize=4, label=label)
    below.axhline(2.2e-16, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    below.set(ylim=(3e-19, 1e-9), xlabel="$x$" if path.shape[1] == 1 else "$x_1$")


def figure(problems: list[Nonlinearity], path: Path) -> None:
    canvas, axes = plt.subplots(2, 4, figsize=(11, 4.6), sharex="col", sharey="row", height_ratios=[1.5, 1])
    for problem, above, below in zip(tqdm(problems, desc="drawing"), *axes):
        draw(problem, above, below)
    axes[0, 0].set(ylabel="argmin", ylim=(-0.06, 1.06))
    axes[1, 0].set_ylabel("distance to\nthe closed form")
    axes[1, 0].set_yticks([1e-18, 1e-16, 1e-13, 1e-10], ["none", "$10^{-16}$", "$10^{-13}$", "$10^{-10}$"])
    axes[1, 0].minorticks_off()
    axes[1, 0].legend(loc="upper left", ncols=2, handletextpad=0, columnspacing=1)
    axes[1, 3].annotate(
        "machine ε", (1, 2.2e-16), (0, 2), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", color=INK, fontsize=7,
    )  # fmt: skip
    save(canvas, path)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Errors against the closed forms; returns the largest of each kind."""
    problems = declare()
    table = {of.name: errors(of, of.trials) for of in tqdm(problems, desc="comparing")}
    print("largest error      value    gradient")
    for name, (value, gradient) in table.items():
        print(f"{name:<14}{value.max():10.0e}{gradient.max():12.0e}")
    figure(problems, figures / "nonlinearities.png")
    value, gradient = (torch.cat(column).max().item() for column in zip(*table.values()))
    return {"value_error": value, "gradient_error": gradient}


if __name__ == "__main__":
    main()
