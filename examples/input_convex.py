r"""An input-convex network inside the argmin
=========================================

Somebody chooses z in the unit disc so as to minimize :math:`\mathrm{cost}(z) - x^\top z`. We see prices x
and choices z, never the cost. An input-convex network (Amos, Xu & Kolter, ICML 2017) stands in for it:

.. math::
   z^\star(x) = \operatorname*{argmin}_z\; \{\, \mathrm{network}(z) - x^\top z \;:\; |z|^2 \le 1 \,\}

The layer takes the network as it is, an `nn.Module` written in torch; its weights are parameters of the
layer, and Adam lowers the distance between choices predicted and choices seen. What is learned is the cost
itself, up to a constant.
"""

from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import softplus

from _style import BLUE, FAINT, FIGURES, GOLD, INK, MUTED, RED, save
from optlayer import OptLayer

SEEN, HELD_OUT, STEPS = 60, 200, 150


# %%
# The network
# -----------
#
# Convex in z because the weights between layers are positive; written in torch alone.


class InputConvex(torch.nn.Module):
    """Layers of softplus: convex in z because the weights between them are positive."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.first, self.skip = torch.nn.Linear(2, hidden), torch.nn.Linear(2, hidden)
        self.mixing = torch.nn.Parameter(torch.randn(hidden, hidden) - 2.0)
        self.weights = torch.nn.Parameter(torch.full((hidden,), -0.5))
        self.bowl = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, z: Tensor) -> Tensor:
        """One sample, (2,) -> ()."""
        hidden = softplus(2.0 * self.first(z))
        layers = softplus(self.weights) @ softplus(softplus(self.mixing) @ hidden + self.skip(z))
        return layers + softplus(self.bowl) * (z @ z)


class Regret(torch.nn.Module):
    """network(z) - xᵀz."""

    def __init__(self, cost: torch.nn.Module) -> None:
        super().__init__()
        self.cost = cost

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """One sample."""
        return self.cost(z) - x @ z


class Truth(torch.nn.Module):
    """The cost that nobody sees: a rounded polygon, off the centre."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.tensor([0.3, 1.7, 3.0, 4.4, 5.5], dtype=torch.float64)
        self.register_buffer("slopes", 2.5 * torch.stack([angle.cos(), angle.sin()], 1))
        self.register_buffer("offsets", torch.tensor([0.4, -0.6, 0.1, -0.3, 0.5], dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        """One sample."""
        return torch.logsumexp(self.slopes @ z + self.offsets, 0) + 0.1 * (z @ z)


# %%
# The layer
# ---------
#
# The module is the objective. Its weights become parameters of the layer, so that an optimizer moves them.


def chooser(cost: torch.nn.Module) -> OptLayer:
    """Prices to choices."""
    z, x = cp.Variable(2), cp.Parameter(2)
    return OptLayer([z], [x], Regret(cost), [lambda z, x: cp.sum_squares(z) - 1])


def learn(layer: OptLayer, prices: Tensor, choices: Tensor) -> list[float]:
    """Adam on the squared distance to the choices; each solve starts where the last one ended."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses, solution = [], None
    for _ in range(STEPS):
        solution = layer.solve(prices, warm_start=solution)
        loss = (solution.primal[0] - choices).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def error(layer: OptLayer, prices: Tensor, choices: Tensor) -> float:
    """Mean distance between choices predicted and true."""
    with torch.no_grad():
        return (layer(prices) - choices).norm(dim=1).mean().item()


# %%
# The run
# -------


def main(folder: Path = FIGURES) -> dict[str, float]:
    """Learn the cost, compare it where nobody looked, draw both."""
    torch.manual_seed(0)
    truth, learned = chooser(Truth()), chooser(InputConvex().double())
    prices = 1.5 * torch.randn(SEEN + HELD_OUT, 2, dtype=torch.float64)
    choices = truth(prices).detach()
    seen, held_out = (prices[:SEEN], choices[:SEEN]), (prices[SEEN:], choices[SEEN:])
    before, first = error(learned, *held_out), grid(learned.objective.cost)
    losses = learn(learned, *seen)
    after = error(learned, *held_out)
    print(f"learned from {SEEN} choices in {STEPS} steps of Adam")
    print(f"mean distance to {HELD_OUT} choices never seen: {before:.3f} before, {after:.3f} after")
    numbers = {
        "before": before,
        "after": after,
        "loss": losses[-1],
        "slope_error": slope_error(truth, learned),
    }
    draw(folder, truth, learned, first, seen[1], losses)
    return numbers


def slope_error(truth: OptLayer, learned: OptLayer) -> float:
    """Of the gradient of the cost inside of the disc, relative."""
    angle, radius = torch.linspace(0, 6.2, 40, dtype=torch.float64), 0.5
    points = radius * torch.stack([angle.cos(), angle.sin()], 1)
    slopes = [torch.func.vmap(torch.func.grad(layer.objective.cost))(points) for layer in (truth, learned)]
    wrong = ((slopes[0] - slopes[1]).norm() / slopes[0].norm()).item()
    print(f"gradient of the cost half way to the rim: {100 * wrong:.0f} % off")
    return wrong


# %%
# The figure
# ----------


def grid(cost: torch.nn.Module, points: int = 61) -> tuple[Tensor, Tensor, Tensor]:
    """The cost on a square, its least value in the disc 0, nothing outside of the disc."""
    ends = torch.linspace(-1.0, 1.0, points, dtype=torch.float64)
    X, Y = torch.meshgrid(ends, ends, indexing="xy")
    with torch.no_grad():
        value = torch.func.vmap(cost)(torch.stack([X.reshape(-1), Y.reshape(-1)], 1)).reshape(X.shape)
    inside = X**2 + Y**2 <= 1.0
    return X, Y, torch.where(inside, value - value[inside].min(), torch.nan)


def draw(
    folder: Path,
    truth: OptLayer,
    learned: OptLayer,
    first: tuple[Tensor, ...],
    choices: Tensor,
    losses: list[float],
) -> None:
    """Level lines of the cost: true, before and after; and the loss."""
    figure, axes = plt.subplots(1, 4, figsize=(11.0, 2.9), width_ratios=[1, 1, 1, 1.15])
    panels = [grid(truth.objective.cost), first, grid(learned.objective.cost)]
    levels = torch.linspace(0.0, panels[0][2].nan_to_num(0.0).max().item(), 14).tolist()
    titles = ("the cost nobody sees", "the network before", "and after")
    for axis, (X, Y, value), title in zip(axes, panels, titles, strict=False):
        axis.contour(X, Y, value, levels=levels, colors=[BLUE], linewidths=0.9)
        axis.add_patch(plt.Circle((0, 0), 1.0, fill=False, color=INK, linewidth=1.2))
        axis.set(title=title, xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal", xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0].scatter(*choices.T, s=9, color=RED, zorder=3, label=f"{SEEN} choices")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), handletextpad=0.1)
    axes[3].semilogy(losses, color=GOLD)
    axes[3].set(title="squared distance to the choices", xlabel="step of Adam")
    axes[3].grid(color=FAINT)
    axes[3].tick_params(color=MUTED)
    save(figure, folder / "input_convex.png")


if __name__ == "__main__":
    main()
