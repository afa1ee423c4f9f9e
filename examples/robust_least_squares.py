r"""Robust least squares, at the apex of two norms
==============================================

Equations known only up to an ellipsoid:

.. math::
   \begin{aligned}
   v(A, b, d) &= \min_x \max_\Delta\; |(A + \Delta)x - b| \quad\text{over}\quad
                 \Delta = E \operatorname{diag}(d),\; |E| \le 1 \\
              &= \min_x\; |Ax - b| + |d \circ x|
   \end{aligned}

(El Ghaoui & Lebret, SIAM Journal on Matrix Analysis and Applications 18, 1997,
doi:10.1137/S0895479896298130). Two norms, neither of them squared, so that the solution may sit at the apex
of either. For a square A and :math:`d = (\rho, \dots, \rho)` there are three regimes,

.. math::
   \begin{aligned}
   \rho &< |A^{-1}b| \,/\, |(AA^\top)^{-1}b| &&\text{the equations are met: apex of the first norm} \\
   \rho &> |A^\top b| \,/\, |b| &&\text{x = 0, the data are too poor to say anything: apex of the second}
   \end{aligned}

and neither apex between them; one batch holds all of them. The worst case is attained by
:math:`E = rz^\top/|r||z|` with :math:`r = Ax - b,\; z = d \circ x`, and by the envelope theorem
:math:`\partial v/\partial\rho = |x|`, apex or not.

Last, d is learned. A matrix has been measured often, some of its columns more exactly than others. One d, for
thirty-two right-hand sides (four of which stay at the apex), is fitted through the argmin so that the x found
from the mean of A does well on every measurement. It follows the scatter of the columns, unknown to it.
"""

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import trange

from _style import BLUE, FAINT, FIGURES, GREEN, MUTED, RED, save
from optlayer import OptLayer

ROWS, COLUMNS, SIDES, SILENT, STEPS = 20, 6, 32, 4, 30
APEX = 1e-9


# %%
# The layer
# ---------
#
# Two norms, neither squared: a second-order cone programme.


class Measured(NamedTuple):
    A: Tensor  # the mean
    b: Tensor  # the right-hand sides, one a row
    copies: Tensor  # what was measured
    fresh: Tensor  # what will be


def declare(rows: int, columns: int) -> OptLayer:
    x, d = cp.Variable(columns), cp.Parameter(columns, nonneg=True, name="d")
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    worst_case = cp.norm2(A @ x - b) + cp.norm2(cp.multiply(d, x))
    return OptLayer.from_problem(cp.Problem(cp.Minimize(worst_case)), parameters=[A, b, d])


# %%
# Three regimes in one batch
# --------------------------


class Regimes(NamedTuple):
    """The square system for many ρ, and where its regimes should end."""

    A: Tensor
    b: Tensor
    rho: Tensor
    x: Tensor
    value: Tensor
    slope: Tensor  # ∂v/∂ρ
    ends: tuple[float, float]


def regimes(size: int = 3) -> Regimes:
    torch.manual_seed(0)
    system = torch.randn(size, size + 1, dtype=torch.float64)
    A, b = system[:, :-1], system[:, -1]
    rho = torch.linspace(0.01, 2.5, 250, dtype=torch.float64).requires_grad_()
    solution = declare(size, size).solve(A, b, rho[:, None].expand(-1, size))
    (slope,) = torch.autograd.grad(solution.value.sum(), rho)
    first = torch.linalg.solve(A, b).norm() / torch.linalg.solve(A @ A.T, b).norm()
    ends = first.item(), ((A.T @ b).norm() / b.norm()).item()
    return Regimes(A, b, rho.detach(), solution.primal[0].detach(), solution.value.detach(), slope, ends)


def attained(of: Regimes) -> Tensor:
    """|(A + Δ)x - b| at the worst Δ, where neither norm is at its apex"""
    r, z = of.x @ of.A.T - of.b, of.rho[:, None] * of.x
    E = r[:, :, None] * z[:, None, :] / (r.norm(dim=1) * z.norm(dim=1))[:, None, None]
    return (r + (of.rho[:, None, None] * E @ of.x[:, :, None])[..., 0]).norm(dim=1)


# %%
# Learning the ellipsoid
# ----------------------


def scatter() -> Tensor:
    """The standard deviation of a measurement, column by column"""
    return torch.linspace(0.1, 0.9, COLUMNS, dtype=torch.float64)


def measure() -> Measured:
    torch.manual_seed(1)
    A = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    x = torch.randn(SIDES, COLUMNS, dtype=torch.float64)
    x[:SILENT] = 0
    b = x @ A.T + torch.randn(SIDES, ROWS, dtype=torch.float64)
    b[:SILENT] -= 0.9 * b[:SILENT] @ A @ torch.linalg.pinv(A)  # hardly anything that A could explain
    noise = scatter() * torch.randn(2, 100, ROWS, COLUMNS, dtype=torch.float64)
    return Measured(A, b, *(A + noise))


def residuals(x: Tensor, b: Tensor, copies: Tensor) -> Tensor:
    """|Aₖx - b|² for every copy Aₖ and every right-hand side"""
    return (torch.einsum("kij,sj->ksi", copies, x) - b).square().sum(-1)


def learn(layer: OptLayer, data: Measured) -> tuple[Tensor, list[float]]:
    """Adam on log d."""
    theta = torch.zeros(COLUMNS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.3, betas=(0.7, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses = []
    for _ in trange(STEPS, desc="learning the ellipsoid"):
        loss = residuals(layer(data.A, data.b, theta.exp()), data.b, data.copies).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return theta.detach().exp(), losses


# %%
# The figure
# ----------


def draw_regimes(axis: Axes, of: Regimes) -> None:
    (low, high), last = of.ends, of.rho[-1].item()
    axis.axvspan(low, high, color=FAINT, alpha=0.5, linewidth=0)
    axis.plot(of.rho, of.x)
    places = (low / 2, (low + high) / 2, (high + last) / 2)
    for place, name in zip(places, ("$Ax=b$", "neither apex", "$x=0$")):
        axis.annotate(
            name, (place, 1), (0, -10), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", color=MUTED,
        )  # fmt: skip
    axis.set(title="solution; both norms have an apex", xlabel="$\\rho$", xlim=(0, last))
    axis.set_ylim(top=1.4 * of.x.max().clamp(min=0.2).item())


def draw_residuals(axis: Axes, plain: Tensor, robust: Tensor) -> None:
    """The two distributions, on the same bins."""
    bins = torch.linspace(0, torch.quantile(plain, 0.995).item(), 45).tolist()
    axis.hist(plain, bins=bins, color=RED, alpha=0.45, label=f"least squares, mean {plain.mean():.2f}")
    outline = {"histtype": "step", "color": BLUE, "linewidth": 1.6}
    axis.hist(robust, bins=bins, label=f"robust, mean {robust.mean():.2f}", **outline)
    axis.set(title="residuals on fresh measurements", xlabel="$|(A+\\Delta)x-b|$", yticks=[])
    axis.spines["left"].set_visible(False)
    axis.margins(y=0.25)
    axis.legend(loc="upper right")


def draw_ellipsoid(axis: Axes, d: Tensor) -> None:
    scale = (d @ scatter() / scatter().square().sum()).item()
    axis.plot((0, 1), (0, scale), color=MUTED, linewidth=1, label="proportional")
    axis.plot(scatter(), d, "o", color=GREEN, markersize=7, label="learned")
    axis.set(title="axes of the ellipsoid", xlabel="scatter of the column", ylabel="$d$")
    axis.set(xlim=(0, 1), ylim=(0, None))
    axis.legend(loc="upper left")


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """The three regimes, checked; then the ellipsoid, learned."""
    of = regimes()
    met, silent = ((of.x @ of.A.T - of.b).norm(dim=1) < APEX), of.x.norm(dim=1) < APEX
    print(f"equations met       up to ρ = {of.rho[met].max():.3f}, by the closed form {of.ends[0]:.3f}")
    print(f"x = 0               from  ρ = {of.rho[silent].min():.3f}, by the closed form {of.ends[1]:.3f}")

    data = measure()
    layer = declare(ROWS, COLUMNS)
    d, losses = learn(layer, data)
    with torch.no_grad():
        x = layer(data.A, data.b, d)
    least_squares = torch.linalg.lstsq(data.A, data.b.T).solution.T
    plain, robust = (residuals(s, data.b, data.fresh) for s in (least_squares, x))
    numbers = {
        "regime_errors": int((met != (of.rho < of.ends[0])).sum() + (silent != (of.rho > of.ends[1])).sum()),
        "met": int(met.sum()),
        "silent": int(silent.sum()),
        "envelope_error": (of.slope - of.x.norm(dim=1)).abs().max().item(),
        "attained_error": (attained(of) - of.value)[~met & ~silent].abs().max().item(),
        "at_apex": int((x.norm(dim=1) < APEX).sum()),
        "least_squares": plain.mean().item(),
        "robust": robust.mean().item(),
        "cosine": torch.cosine_similarity(d, scatter(), dim=0).item(),
    }
    print(f"∂v/∂ρ               {numbers['envelope_error']:.0e} from |x|")
    print(f"worst case          {numbers['attained_error']:.0e} from v, where it is attained by a formula")
    print(f"squared residual    {losses[0]:.1f} before d is learned, {losses[-1]:.1f} after")
    print(f"  when fresh        {numbers['robust']:.1f}; of least squares {numbers['least_squares']:.1f}")
    print(f"d and the scatter   cosine {numbers['cosine']:.3f}; {numbers['at_apex']} of {SIDES} at the apex")
    canvas, axes = plt.subplots(1, 3, figsize=(11, 3.5))
    draw_regimes(axes[0], of)
    draw_residuals(axes[1], *(r[:, SILENT:].sqrt().flatten() for r in (plain, robust)))
    draw_ellipsoid(axes[2], d)
    save(canvas, figures / "robust_least_squares.png")
    return numbers


if __name__ == "__main__":
    main()
