r"""Least absolute deviations, and what a constraint costs
======================================================

The first example of the cvxpylayers tutorial, with nonnegative coefficients:

.. math::
   x^\star(A, b) = \operatorname*{argmin}_x\; \tfrac12 |Ax - b|_1 \;:\; x \ge 0

Its optimal value v is differentiated along with x, and its multipliers say what the constraint costs.
With the floor raised to t, :math:`x \ge t`, the substitution :math:`x = t + u` gives the same problem at
:math:`b - At`, so that

.. math::
   \lambda = \frac{dv}{dt} = -A^\top \frac{\partial v}{\partial b}
   \qquad\text{and}\qquad
   \frac{\partial v}{\partial b} = -\tfrac12 \operatorname{sign}(Ax - b)
   \;\text{ wherever a row does not vanish:}

three ways to the same numbers, the third being finite differences of v. All are exact here, because v is
piecewise linear in b.
"""

from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from _style import BLUE, FAINT, FIGURES, GOLD, INK, RED, save
from optlayer import OptLayer

ROWS, COLUMNS = 3, 2
WINDOW = (-0.3, 1.5)


# %%
# The layer
# ---------
#
# Made from a finished `cp.Problem`; its constraint is kept, so that its multiplier can be asked for.


def declare() -> tuple[OptLayer, cp.Constraint]:
    """The layer, and the constraint whose multiplier is asked for."""
    x = cp.Variable(COLUMNS, name="x")
    A, b = cp.Parameter((ROWS, COLUMNS), name="A"), cp.Parameter(ROWS, name="b")
    floor = x >= 0
    problem = cp.Problem(cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1)), [floor])
    return OptLayer.from_problem(problem, parameters=[A, b], variables=[x]), floor


def random_data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    b = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    return A.requires_grad_(), b.requires_grad_()


# %%
# Two ways to the multiplier
# --------------------------


def value_above(layer: OptLayer, A: Tensor, b: Tensor, floors: Tensor) -> Tensor:
    """v with x >= t, for every t of a batch (*batch, 2)"""
    return layer.solve(A, b - floors @ A.T).value


def finite_differences(layer: OptLayer, A: Tensor, b: Tensor, step: float = 1e-5) -> Tensor:
    """dv/dt by central differences"""
    shifts = step * torch.eye(COLUMNS, dtype=A.dtype)
    with torch.no_grad():
        ahead, behind = (value_above(layer, A, b, s) for s in (shifts, -shifts))
    return (ahead - behind) / (2 * step)


# %%
# The figure
# ----------


def draw_plane(axis: Axes, A: Tensor, b: Tensor, x: Tensor) -> None:
    """Level sets of the objective, a line wherever a row vanishes, and the solution."""
    side = torch.linspace(*WINDOW, 301, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    rows = grid @ A.T - b
    objective = 0.5 * rows.abs().sum(-1)
    axis.axvspan(WINDOW[0], 0, color=FAINT, linewidth=0)
    axis.axhspan(WINDOW[0], 0, color=FAINT, linewidth=0)
    levels = 0.5 * (A @ x - b).abs().sum() + 0.15 * torch.arange(24)
    axis.contour(side, side, objective, levels=levels, colors=[BLUE], linewidths=0.7)
    for row in rows.unbind(-1):
        axis.contour(side, side, row, levels=[0], colors=[GOLD], linewidths=1.4)
    axis.plot(*x, "o", color=RED, markersize=7, zorder=3)
    axis.annotate("x*", tuple(x), (6, 5), textcoords="offset points", color=RED, fontsize=11)
    axis.set(xlim=WINDOW, ylim=WINDOW, aspect="equal", xticks=[0, 1], yticks=[0, 1])
    axis.set(xlabel="$x_1$", ylabel="$x_2$", title="level sets; on a golden line a row vanishes")


def draw_floors(axis: Axes, layer: OptLayer, A: Tensor, b: Tensor, dual: Tensor) -> None:
    """v as one floor moves, and the multiplier as its slope."""
    moves = torch.linspace(-0.5, 0.7, 241, dtype=torch.float64)
    value = layer.solve(A, b).value
    places = {BLUE: ((0, 8), "right", "bottom"), RED: ((4, -4), "left", "top")}
    for i, (color, (offset, side, end)) in enumerate(places.items()):
        floors = moves[:, None] * torch.eye(COLUMNS, dtype=A.dtype)[i]
        axis.plot(moves, value_above(layer, A, b, floors), color=color, label=f"$x_{i + 1} \\geq t$")
        near = torch.tensor([-0.3, 0.3], dtype=A.dtype)
        axis.plot(near, value + dual[i] * near, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axis.annotate(
            f"$\\lambda_{i + 1} = {dual[i]:.3f}$", (0, value), offset, textcoords="offset points",
            ha=side, va=end, fontsize=11, color=color,
        )  # fmt: skip
    axis.plot(0, value, "o", color=INK, markersize=5, zorder=3)
    axis.set(title="optimal value; the multipliers are its slopes at 0", xlabel="floor $t$", ylabel="$v$")
    axis.set(xlim=(-0.5, 0.7), ylim=(0.4, 1.55), xticks=[-0.5, 0, 0.5], yticks=[0.5, 1, 1.5])
    axis.legend(loc="upper left")


def figure(layer: OptLayer, A: Tensor, b: Tensor, x: Tensor, dual: Tensor, path: Path) -> None:
    canvas, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=[1, 1.25])
    with torch.no_grad():
        draw_plane(left, A, b, x)
        draw_floors(right, layer, A, b, dual)
    save(canvas, path)


def shown(values: Tensor) -> str:
    return " ".join(f"{value:8.4f}" for value in values)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Solve once, differentiate x and v; returns how far the multipliers are from what they should be."""
    layer, floor = declare()
    A, b = random_data()
    solution = layer.solve(A, b)
    (x,), dual = solution.primal, solution.dual(floor)
    (by_b,) = torch.autograd.grad(solution.value, b, retain_graph=True)
    (of_x,) = torch.autograd.grad(x.sum(), b)
    from_gradient = -A.detach().T @ by_b
    from_differences = finite_differences(layer, A, b)

    print(f"x                    {shown(x)}")
    print(f"multipliers of x >= 0{shown(dual)}")
    print(f"  -Aᵀ ∂v/∂b          {shown(from_gradient)}")
    print(f"  finite differences {shown(from_differences)}")
    print(f"∂v/∂b                {shown(by_b)}")
    print(f"∂(x₁ + x₂)/∂b        {shown(of_x)}")
    figure(layer, A, b, x.detach(), dual.detach(), figures / "least_squares_l1.png")
    residuals = (A @ x - b).detach()
    fitted = residuals.abs() < 1e-12
    return {
        "residual": solution.residuals.worst.item(),
        "gradient_error": (dual - from_gradient).abs().max().item(),
        "finite_difference_error": (dual - from_differences).abs().max().item(),
        "sign_error": (by_b + 0.5 * residuals.sign())[~fitted].abs().max().item(),
        "rows_fitted": int(fitted.sum()),
        "multiplier": dual.max().item(),
    }


if __name__ == "__main__":
    main()
