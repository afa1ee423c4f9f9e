"""The tutorial's quadratic programme, all of its data random and all of it differentiable.

    z*(L, q, G, h, A, b) = argmin_z  ½|Lz|² + qᵀz   :   Gz <= h,   Az = b

The layer gives z and the multipliers λ, ν. Their Jacobian with respect to everything is drawn: inactive
constraints are blank rows and columns, and with respect to (q, -h, -b) it is a symmetric matrix, because
one symmetric system (docs/derivation.md, section 4) is behind every derivative.
"""

from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from _style import FIGURES, INK, MUTED, save
from optlayer import OptLayer

N, INEQUALITIES, EQUALITIES = 10, 4, 5
SHAPES = {
    "L": (N, N),
    "q": (N,),
    "G": (INEQUALITIES, N),
    "h": (INEQUALITIES,),
    "A": (EQUALITIES, N),
    "b": (EQUALITIES,),
}


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


def draw(J: dict[str, Tensor], path: Path) -> None:
    """The Jacobian as a heat map: the symmetric part, then L, G and A."""
    limit = J["L"].abs().quantile(0.99).item()
    rows = {"$z$": N, "$\\lambda$": INEQUALITIES, "$\\nu$": EQUALITIES}
    symmetric = torch.cat([J["q"], -J["h"], -J["b"]], dim=1)
    panels = [symmetric, J["L"], J["G"], J["A"]]
    titles = ["$(q,\\,-h,\\,-b)$", "$L$", "$G$", "$A$"]
    canvas, axes = plt.subplots(
        1, 4, figsize=(11, 3.1), sharey=True, width_ratios=[45, 100, 40, 50]
    )
    for axis, panel, title in zip(axes, panels, titles):
        image = axis.imshow(panel, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axis.set_title(f"with respect to {title}" if axis is axes[0] else title)
        axis.spines[:].set_visible(False)
        axis.set_xticks([])
        divide(axis.axhline, list(rows.values()))
    divide(axes[0].axvline, list(rows.values()))
    divide(axes[1].axvline, [N] * N, color="#c9cdd3")
    divide(axes[2].axvline, [N] * INEQUALITIES, color="#c9cdd3")
    divide(axes[3].axvline, [N] * EQUALITIES, color="#c9cdd3")
    label(axes[0], rows)
    canvas.colorbar(image, ax=axes, pad=0.01, extend="both").outline.set_visible(False)
    save(canvas, path)
