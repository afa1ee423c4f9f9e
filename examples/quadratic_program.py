r"""A quadratic programme and its Jacobian
======================================

The tutorial's quadratic programme, all of its data random and all of it differentiable:

.. math::
   z^\star(L, q, G, h, A, b) = \operatorname*{argmin}_z\; \tfrac12 |Lz|^2 + q^\top z
   \;:\; Gz \le h,\; Az = b

The layer gives z and the multipliers λ, ν. Their Jacobian with respect to everything is drawn: inactive
constraints are blank rows and columns, and with respect to (q, -h, -b) it is a symmetric matrix, because
one symmetric system (:doc:`/derivation`, section 4) is behind every derivative.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import SymLogNorm
from torch import Tensor
from tqdm import tqdm

from _style import FIGURES, INK, MUTED, save
from optlayer import OptLayer

N, INEQUALITIES, EQUALITIES = BLOCKS = 10, 4, 5
SHAPES = {
    "L": (N, N),
    "q": (N,),
    "G": (INEQUALITIES, N),
    "h": (INEQUALITIES,),
    "A": (EQUALITIES, N),
    "b": (EQUALITIES,),
}


# %%
# The layer
# ---------
#
# Six parameters, one variable; `solve` returns the multipliers too.


def declare() -> OptLayer:
    return OptLayer(
        [cp.Variable(N, name="z")],
        [cp.Parameter(shape, name=name) for name, shape in SHAPES.items()],
        objective=lambda z, L, q, G, h, A, b: 0.5 * cp.sum_squares(L @ z) + q @ z,
        inequalities=[lambda z, L, q, G, h, A, b: G @ z - h],
        equalities=[lambda z, L, q, G, h, A, b: A @ z - b],
    )


def random_data(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    return {name: draw(shape) for name, shape in SHAPES.items()}


# %%
# The Jacobian
# ------------
#
# `torch.func` differentiates z, λ and ν with respect to all six.


def jacobian(layer: OptLayer, data: dict[str, Tensor]) -> dict[str, Tensor]:
    """∂(z, λ, ν)/∂θ for every parameter θ; one matrix each."""

    def answer(data: dict[str, Tensor]) -> Tensor:
        solution = layer.solve(**data)
        return torch.cat(solution.primal + solution.inequality_duals + solution.equality_duals)

    return {name: J.flatten(1) for name, J in torch.func.jacrev(answer)(data).items()}


def finite_difference_error(
    layer: OptLayer, data: dict[str, Tensor], J: dict[str, Tensor], step: float = 1e-5
) -> float:
    """Largest distance of J's first rows, ∂z/∂θ, from central differences, over all 209 entries of θ."""
    worst = 0.0
    for name, theta in tqdm(data.items(), desc="finite differences"):
        shifts = step * torch.eye(theta.numel(), dtype=theta.dtype).reshape(-1, *theta.shape)
        ahead, behind = (layer(**(data | {name: theta + s})) for s in (shifts, -shifts))
        worst = max(worst, ((ahead - behind).mT / (2 * step) - J[name][:N]).abs().max().item())
    return worst


# %%
# The figure
# ----------


def draw(J: dict[str, Tensor], path: Path) -> None:
    """The Jacobian as a heat map: the symmetric part, then one panel for each matrix."""
    panels = {
        "$(q,\\,-h,\\,-b)$": (symmetric_part(J), BLOCKS),
        "$L$, row by row": (J["L"], [N] * N),
        "$G$": (J["G"], [N] * INEQUALITIES),
        "$A$": (J["A"], [N] * EQUALITIES),
    }
    scale = SymLogNorm(linthresh=0.1, vmin=-10, vmax=10)
    canvas, axes = plt.subplots(1, 4, figsize=(11, 3.3), sharey=True, width_ratios=[74, 100, 40, 50])
    for axis, (name, (panel, columns)) in zip(axes, panels.items()):
        image = axis.imshow(panel.numpy(), cmap="RdBu_r", norm=scale, aspect="auto")
        axis.set_title(name)
        axis.spines[:].set_visible(False)
        axis.set(xticks=[], yticks=[])
        separate(axis.axhline, BLOCKS, INK)
        separate(axis.axvline, columns, INK if axis is axes[0] else MUTED)
    for center, name in zip((4.5, 11.5, 16), ("$z$", "$\\lambda$", "$\\nu$")):
        axes[0].annotate(
            name, (0, center), (-12, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="center", va="center", fontsize=11,
        )  # fmt: skip
    canvas.suptitle("the derivative of the solution and its multipliers with respect to", fontsize=10)
    ticks = [-10, -1, -0.1, 0, 0.1, 1, 10]
    bar = canvas.colorbar(image, ax=axes, pad=0.01, ticks=ticks, format="%g")
    bar.outline.set_visible(False)
    bar.minorticks_off()
    save(canvas, path)


def symmetric_part(J: dict[str, Tensor]) -> Tensor:
    """∂(z, λ, ν)/∂(q, -h, -b)"""
    return torch.cat([J["q"], -J["h"], -J["b"]], dim=1)


def separate(line: Callable[..., object], sizes: Sequence[int], color: str) -> None:
    """Thin lines between blocks of these sizes."""
    for end in list(accumulate(sizes))[:-1]:
        line(end - 0.5, color=color, linewidth=0.5)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Solve once, differentiate every way; returns the errors."""
    layer, data = declare(), random_data()
    solution = layer.solve(**data)
    for name, (values,) in {
        "z": solution.primal,
        "λ": solution.inequality_duals,
        "ν": solution.equality_duals,
    }.items():
        print(f"{name} =", " ".join(f"{value:7.4f}" for value in values))
    print(f"KKT residual         {solution.residuals.worst:.0e}")

    J = jacobian(layer, data)
    difference = finite_difference_error(layer, data, J)
    symmetric = symmetric_part(J)
    asymmetry = (symmetric - symmetric.T).abs().max().item()
    print(f"finite differences   {difference:.0e} away from ∂z/∂(L, q, G, h, A, b)")
    print(f"asymmetry            {asymmetry:.0e} of ∂(z, λ, ν)/∂(q, -h, -b)")
    draw(J, figures / "quadratic_program.png")
    return {
        "residual": solution.residuals.worst.item(),
        "finite_difference_error": difference,
        "asymmetry": asymmetry,
        "active": int((solution.inequality_duals[0] > 0).sum()),
    }


if __name__ == "__main__":
    main()
