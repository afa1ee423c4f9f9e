r"""The nearest correlation matrix
==============================

Wines, most of whose measurements are lost, and

.. math::
   X^\star(C, W) = \operatorname*{argmin}_X\; \tfrac12 |W \circ (X - C)|^2 \;:\;
   \operatorname{diag} X = 1,\; X \succeq 0

(Higham, IMA Journal of Numerical Analysis 22, 2002, doi:10.1093/imanum/22.3.329). Of 178 wines and 13
constituents, seven tenths of all entries are struck out, and each correlation is estimated from the wines
where both are left. This C is no correlation matrix: some combinations of constituents have negative
variance. X is the nearest matrix where none has; with :math:`W_{ij}` the root of the number of wines behind
:math:`C_{ij}`, what has been estimated well is moved less. A projection onto a convex set comes nearer to
every point of the set: X to the true correlations, too, in the norm with these weights.

The variance of the mean of all constituents, :math:`u^\top X u`, is then differentiated with respect to what
was measured: through the projection, the correlations and the missing data, down to a single measurement of
a single wine.
"""

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_wine
from torch import Tensor

from _style import BLUE, FIGURES, INK, MUTED, RED, save
from optlayer import OptLayer

LOST, DIRECTIONS = 0.7, 8


# %%
# The data and the layer
# ----------------------
#
# What is lost is struck out at random; the projection is weighted by what is left.


class Wines(NamedTuple):
    values: Tensor  # 178 wines, 13 constituents, standardised
    seen: Tensor  # 1 where a measurement is left
    names: list[str]


class Estimate(NamedTuple):
    correlation: Tensor
    counts: Tensor  # the number of wines behind each entry


def load(seed: int = 1) -> Wines:
    wine = load_wine()
    values = torch.tensor(wine.data)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(values.shape, generator=generator) > LOST
    return Wines((values - values.mean(0)) / values.std(0), seen.double(), wine.feature_names)


def declare(size: int) -> OptLayer:
    X = cp.Variable((size, size), symmetric=True)
    C = cp.Parameter((size, size), symmetric=True, name="C")
    W = cp.Parameter((size, size), symmetric=True, nonneg=True, name="W")
    distance = cp.sum_squares(cp.multiply(W, X - C)) / 2
    problem = cp.Problem(cp.Minimize(distance), [cp.diag(X) == 1, X >> 0])
    return OptLayer.from_problem(problem, parameters=[C, W])


def estimate(values: Tensor, seen: Tensor) -> Estimate:
    """Every correlation from the rows where both columns are seen; differentiable in the values."""
    n, x = seen.T @ seen, values * seen
    sums = x.T @ seen  # of the first column of each pair
    covariance = x.T @ x - sums * sums.T / n
    variance = x.square().T @ seen - sums.square() / n
    return Estimate(covariance / (variance * variance.T).sqrt(), n)


def weights(counts: Tensor) -> Tensor:
    return (counts / counts.mean()).sqrt()


def mean_variance(X: Tensor) -> Tensor:
    """uᵀXu for u = (1, ..., 1)/13"""
    return X.mean((-2, -1))


# %%
# Which measurement matters
# -------------------------
#
# The gradient of the variance of the mean, back to single measurements; beside it finite differences.


def influence(layer: OptLayer, wines: Wines) -> tuple[Tensor, float]:
    """The derivative of uᵀXu by every measurement, and its distance from central differences."""

    def variance(values: Tensor) -> Tensor:
        C, counts = torch.func.vmap(estimate, (0, None))(values, wines.seen)
        return mean_variance(layer(C, weights(counts)))

    values = wines.values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(variance(values[None]).sum(), values)
    generator, step = torch.Generator().manual_seed(0), 1e-5
    along = torch.randn(DIRECTIONS, *values.shape, generator=generator, dtype=values.dtype)
    with torch.no_grad():
        difference = (variance(values + step * along) - variance(values - step * along)) / (2 * step)
    return gradient, (difference - (along * gradient).sum((1, 2))).abs().max().item()


# %%
# The figure
# ----------


def draw_matrix(axis: Axes, matrix: Tensor, title: str) -> None:
    axis.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def figure(matrices: dict[str, Tensor], path: Path) -> None:
    """The three matrices, in one order of the constituents, and their eigenvalues."""
    canvas, axes = plt.subplots(1, 4, figsize=(11, 3), width_ratios=[1, 1, 1, 1.15])
    *_, truth = matrices.values()
    order = torch.linalg.eigh(truth).eigenvectors[:, -1].argsort()
    axes[3].axhline(0, color=INK, linewidth=0.8, zorder=0)
    for axis, (name, matrix), color in zip(axes, matrices.items(), (RED, BLUE, MUTED)):
        draw_matrix(axis, matrix[order][:, order], name)
        eigenvalues = torch.linalg.eigvalsh(matrix)
        axes[3].plot(range(1, 14), eigenvalues, "o-", color=color, markersize=4, linewidth=1, label=name)
    axes[3].set(title="eigenvalues", xticks=[1, 5, 9, 13])
    axes[3].legend(loc="upper left")
    bar = canvas.colorbar(axes[0].images[0], ax=axes[0], location="left", ticks=[-1, 0, 1], shrink=0.6)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    save(canvas, path)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Estimate, project, differentiate, draw."""
    wines = load()
    layer = declare(len(wines.names))
    C, counts = estimate(wines.values, wines.seen)
    truth, W = torch.corrcoef(wines.values.T), weights(counts)
    solution = layer.solve(C, torch.stack([torch.ones_like(W), W]))
    unweighted, X = solution.primal[0]
    gradient, error = influence(layer, wines)
    wine, constituent = divmod(gradient.abs().argmax().item(), len(wines.names))

    least = lambda matrix: torch.linalg.eigvalsh(matrix)[0].item()
    away = lambda matrix, W=1.0: (W * (matrix - truth)).norm().item()
    numbers = {
        "residual": solution.residuals.worst.max().item(),
        "least_before": least(C),
        "least_after": least(X),
        "diagonal_error": (X.diagonal() - 1).abs().max().item(),
        "before": away(C),
        "unweighted": away(unweighted),
        "after": away(X),
        "before_weighted": away(C, W),
        "after_weighted": away(X, W),
        "unseen": gradient[wines.seen == 0].abs().max().item(),
        "finite_difference_error": error,
    }
    print(f"wines behind an entry  {counts.min():.0f} to {counts.max():.0f}, of {len(wines.values)}")
    print(f"smallest eigenvalue    {least(C):.3f} estimated, {abs(least(X)):.3f} nearest")
    print(f"distance to the truth  {away(C):.3f}; {away(X):.3f} nearest, {away(unweighted):.3f} unweighted")
    print(f"variance of the mean   {mean_variance(C):.4f} estimated, {mean_variance(X):.4f} nearest")
    print(f"  depends most on      {wines.names[constituent]} of wine {wine}")
    print(f"  finite differences   {error:.0e} away, in {DIRECTIONS} directions of {gradient.numel()}")
    figure({"estimated": C, "nearest": X, "nothing lost": truth}, figures / "nearest_correlation.png")
    return numbers


if __name__ == "__main__":
    main()
