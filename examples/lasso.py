r"""A lasso that learns how much to regularise
==========================================

.. math::
   w^\star(\lambda) = \operatorname*{argmin}_w\; \frac{|Xw - y|^2}{2n} + \lambda |w|_1

is fitted to 60 training samples of 40 features, of which 6 matter. :math:`\lambda = \exp \theta` is then
learned: Adam on θ descends the loss of :math:`w^\star(\lambda)` on validation samples, through the argmin.
The gradient needs no grid: with S the support of :math:`w^\star`,

.. math::
   \frac{dw^\star_S}{d\lambda} = -n\, (X_S^\top X_S)^{-1} \operatorname{sign}(w^\star_S)
   \qquad\text{and zero outside } S,

which the layer's is compared with. The grid is there for the picture, and to see that the learner, from
either side, stops where the grid is lowest.
"""

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from sklearn.linear_model import Lasso
from torch import Tensor
from tqdm import trange

from _style import BLUE, FAINT, FIGURES, GREEN, INK, MUTED, RED, save
from optlayer import OptLayer

SAMPLES, FEATURES, STEPS = 60, 40, 30
TRUTH = (3.0, -2.0, 1.5, -1.0, 0.7, 0.4)  # the coefficients that are not zero
NOISE = 1.5
STARTS = (0.004, 1.5)  # two learners, from below and from above
ZERO = 1e-9


# %%
# Data and layer
# --------------
#
# The training samples are constants of the layer; λ is its only parameter.


class Data(NamedTuple):
    X: Tensor
    y: Tensor


class Descent(NamedTuple):
    """What the learners did: λ and the validation loss, before every step and after the last."""

    lambdas: Tensor
    losses: Tensor


def truth() -> Tensor:
    w = torch.zeros(FEATURES, dtype=torch.float64)
    w[:: FEATURES // len(TRUTH)][: len(TRUTH)] = torch.tensor(TRUTH, dtype=w.dtype)
    return w


def draw(generator: torch.Generator) -> Data:
    X = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    return Data(X, X @ truth() + NOISE * torch.randn(SAMPLES, generator=generator, dtype=X.dtype))


def declare(data: Data) -> OptLayer:
    """The data are constants of the layer; λ alone is its parameter."""
    w, strength = cp.Variable(FEATURES), cp.Parameter(nonneg=True)
    fit = cp.sum_squares(data.X.numpy() @ w - data.y.numpy()) / (2 * SAMPLES)
    return OptLayer.from_problem(cp.Problem(cp.Minimize(fit + strength * cp.norm1(w))))


# %%
# The learner
# -----------
#
# Adam on θ = log λ, and the derivative in closed form to compare with.


def loss_of(w: Tensor, data: Data) -> Tensor:
    """Mean squared error of every row of w"""
    return (w @ data.X.T - data.y).square().mean(-1)


def learn(lasso: OptLayer, validation: Data) -> Descent:
    """Adam on θ = log λ, all starts as one batch."""
    theta = torch.tensor(STARTS, dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.4, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    lambdas, losses = [], []
    for step in trange(STEPS + 1, desc="learning λ"):
        loss = loss_of(lasso(theta.exp()), validation)
        lambdas.append(theta.detach().exp())
        losses.append(loss.detach())
        if step < STEPS:
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
    return Descent(torch.stack(lambdas), torch.stack(losses))


def closed_form(w: Tensor, X: Tensor) -> Tensor:
    """dw*/dλ"""
    S = w.abs() > ZERO
    slope = torch.zeros_like(w)
    slope[S] = -SAMPLES * torch.linalg.solve(X[:, S].T @ X[:, S], w[S].sign())
    return slope


# %%
# The figure
# ----------


def figure(grid: Tensor, w: Tensor, losses: Tensor, path: Descent, learned: Tensor, file: Path) -> None:
    canvas, axes = plt.subplots(1, 3, figsize=(11, 3.5))
    draw_losses(axes[0], grid, losses, path)
    draw_coefficients(axes[1], grid, w, path.lambdas[-1].mean().item())
    draw_learned(axes[2], learned)
    save(canvas, file)


def draw_losses(axis: Axes, grid: Tensor, losses: Tensor, path: Descent) -> None:
    axis.loglog(grid, losses, color=MUTED, linewidth=1.2)
    for lambdas, values, color, name in zip(path.lambdas.T, path.losses.T, (BLUE, RED), ("below", "above")):
        axis.plot(lambdas, values, "o-", color=color, markersize=4, linewidth=0.8, label=f"from {name}")
    axis.plot(path.lambdas[-1], path.losses[-1], "o", color=INK, markersize=6)
    axis.set(title="validation loss", xlabel="$\\lambda$", xlim=grid[[0, -1]].tolist())
    axis.set_yticks([3, 5, 10], ["3", "5", "10"])
    axis.minorticks_off()
    axis.legend(title=f"{STEPS} steps of Adam", loc="upper center")


def draw_coefficients(axis: Axes, grid: Tensor, w: Tensor, learned: float) -> None:
    for column, true in zip(w.T, truth()):
        axis.semilogx(grid, column, color=GREEN if true else MUTED, linewidth=1.6 if true else 0.6)
    axis.axvline(learned, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axis.annotate("learned", (learned, 1), (4, -8), **place)
    axis.set(title="coefficients; green: those that matter", xlabel="$\\lambda$", xlim=grid[[0, -1]].tolist())


def draw_learned(axis: Axes, w: Tensor) -> None:
    order = truth().abs().argsort(descending=True, stable=True)
    places = range(FEATURES)
    axis.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    axis.bar(places, truth()[order].tolist(), color=FAINT, width=0.9, label="truth")
    axis.plot(places, w[order], "o", color=BLUE, markersize=4, label="learned")
    axis.set(title="coefficients at the learned $\\lambda$", xlabel="feature, largest first")
    axis.legend(loc="upper right")


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Learn λ, draw, and compare: with a grid, a closed form, and scikit-learn's lasso."""
    generator = torch.Generator().manual_seed(0)
    training, validation = draw(generator), draw(generator)
    lasso = declare(training)
    path = learn(lasso, validation)

    grid = torch.logspace(-2.5, 0.5, 61, dtype=torch.float64)
    coefficients = lasso(grid)
    losses = loss_of(coefficients, validation)
    learned = path.lambdas[-1].mean()
    w, slope = torch.func.jvp(lasso, (learned,), (torch.ones_like(learned),))
    theirs = Lasso(learned.item(), fit_intercept=False, tol=1e-14, max_iter=100_000)
    theirs.fit(training.X.numpy(), training.y.numpy())
    support, true = w.abs() > ZERO, truth() != 0
    numbers = {
        "lambda": learned.item(),
        "spread": (path.lambdas[-1] / learned - 1).abs().max().item(),
        "excess": (path.losses[-1].max() / losses.min() - 1).item(),
        "grid": grid[losses.argmin()].item(),
        "gradient_error": (slope - closed_form(w, training.X)).abs().max().item(),
        "sklearn_distance": (w - torch.tensor(theirs.coef_)).abs().max().item(),
        "support": int(support.sum()),
        "missed": int((true & ~support).sum()),
    }
    print(f"λ learned      {', '.join(f'{x:.4f} from {s:g}' for s, x in zip(STARTS, path.lambdas[-1]))}")
    print(f"λ of the grid  {numbers['grid']:.4f}")
    print(f"loss           {path.losses[-1, 0]:.4f}, on the grid {losses.min():.4f}")
    print(
        f"features       {numbers['support']} of {FEATURES}, {numbers['missed']} of those that matter missed"
    )
    print(f"dw/dλ          {numbers['gradient_error']:.0e} from its closed form")
    print(f"scikit-learn   {numbers['sklearn_distance']:.0e} away")
    figure(grid, coefficients, losses, path, w, figures / "lasso.png")
    return numbers


if __name__ == "__main__":
    main()
