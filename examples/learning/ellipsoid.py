r"""
An ellipsoid, learned from projections onto it
==============================================

A hidden ellipse has been used to project sixty points. Given the points and their projections, and nothing
else, which ellipse is it? The layer is the projection itself,

.. math:: \Pi(x; A, b) = \operatorname*{argmin}_z \tfrac12 |z - x|^2
          \quad\text{subject to}\quad |A z + b|^2 \le 1,

and Adam changes :math:`A` and :math:`b` until the layer answers as the hidden ellipse does. It is the round
sibling of the polytope in ``examples/polytope.py``: one curved constraint in the place of twenty faces.

Source: A. Agrawal, B. Amos, S. Barratt, S. Boyd, S. Diamond and J. Z. Kolter, *Differentiable Convex
Optimization Layers*, NeurIPS 2019, arXiv:1910.12430, and the article of the same name on locuslab.github.io
(2019).
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation

from optlayer import OptLayer

# sphinx_gallery_thumbnail_number = 1

torch.set_default_dtype(torch.float64)
torch.manual_seed(2)

project = OptLayer(
    variables=[cp.Variable(2)],
    parameters=[cp.Parameter(2), cp.Parameter((2, 2)), cp.Parameter(2)],
    objective=lambda z, x, A, b: cp.sum_squares(z - x) / 2,
    inequalities=[lambda z, x, A, b: cp.sum_squares(A @ z + b) - 1],
)

# %%
# Sixty points and where they went
# --------------------------------
# The hidden ellipse has half axes 1.9 and 0.7 and lies askew. Points inside it are their own projections
# and say little; a point outside lands on the boundary, where the constraint is active, and its projection
# carries a gradient.

turn = torch.tensor(0.6)
axes = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.stack([-turn.sin(), turn.cos()])])
hidden_A = torch.diag(1 / torch.tensor([1.9, 0.7])) @ axes
hidden_b = -hidden_A @ torch.tensor([0.5, -0.3])

points = 1.5 * torch.randn(60, 2)
targets = project(points, hidden_A, hidden_b)

# %%
# Forty steps of Adam
# -------------------
# The first guess is the unit circle. The loss is the mean squared distance between the layer's projections
# and the given ones. Forty steps are few for Adam's usual averages over ten and a thousand gradients;
# shorter ones, over three and ten, follow the curved valley of this loss better.

STEPS = 40
A, b = torch.eye(2).requires_grad_(), torch.zeros(2).requires_grad_()
optimizer = torch.optim.Adam([A, b], lr=0.2, betas=(0.7, 0.9))
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=0.005)
path, losses = [], []
for _ in range(STEPS + 1):
    z = project(points, A, b)
    loss = (z - targets).square().sum(1).mean()
    path.append((A.detach().clone(), b.detach().clone(), z.detach()))
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

print("step   mean squared distance")
for step in (0, 10, 20, 30, 40):
    print(f"{step:4d}   {losses[step]:.1e}")

# %%
# Before, after, and the way between
# ----------------------------------
# The hidden ellipse is grey. A red line joins a point's projection to where it should be.

angles = torch.linspace(0, 2 * np.pi, 200)
circle = torch.stack([angles.cos(), angles.sin()], dim=1)


def outline(A, b):
    """The boundary, as the image of the unit circle: z = A⁻¹(u − b)."""
    return torch.linalg.solve(A, (circle - b).T)


def draw(axis, step):
    """The ellipse of this step, its projections, and how far they are off."""
    A, b, z = path[step]
    axis.fill(*outline(hidden_A, hidden_b), color="0.88")
    axis.plot(*points.T, ".", color="0.6", markersize=3)
    axis.plot(*torch.stack([z, targets]).permute(2, 0, 1), color="C1", linewidth=1.2)
    axis.plot(*outline(A, b), color="C0")
    axis.plot(*z.T, "o", color="C0", markersize=3)
    axis.set(title=f"step {step}", aspect="equal", xlim=(-2.8, 2.9), ylim=(-2.8, 2.6))
    axis.axis("off")


figure, (before, after, way) = plt.subplots(1, 3, figsize=(9, 3.3))
draw(before, 0)
draw(after, STEPS)
way.fill(*outline(hidden_A, hidden_b), color="0.88")
for step in range(0, 21, 2):
    way.plot(*outline(*path[step][:2]), color=plt.cm.Blues(0.25 + 0.035 * step), linewidth=1.3)
way.set(title="steps 0 to 20, darkening", aspect="equal", xlim=(-1.6, 2.6), ylim=(-2.2, 1.8))
way.axis("off")

# %%
# The forty steps
# ---------------

moving, axis = plt.subplots(figsize=(3.2, 3.4), dpi=90)


def frame(step):
    axis.clear()
    draw(axis, step)


animation = FuncAnimation(moving, frame, frames=range(STEPS), interval=120)

# %%
# Checked
# -------
# A and QA are the same ellipse for every rotation Q, so what can be compared are :math:`A^\top A` and the
# centre :math:`-A^{-1} b`. The projections are compared with the secular equation: with
# :math:`A^\top A = V \operatorname{diag}(p) V^\top` and :math:`y = V^\top(x - c)`, the projection of a
# point outside is :math:`c + V (y_i / (1 + \lambda p_i))` with the one :math:`\lambda > 0` for which
# :math:`\sum_i p_i y_i^2 / (1 + \lambda p_i)^2 = 1`, found here by bisection.


def centre(A, b):
    return -torch.linalg.solve(A, b)


def secular(x, A, b):
    p, V = torch.linalg.eigh(A.T @ A)
    y = (x - centre(A, b)) @ V
    low, high = torch.zeros(len(x), 1), torch.full((len(x), 1), 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        outside = (p * y**2 / (1 + middle * p) ** 2).sum(1, keepdim=True) > 1
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return centre(A, b) + (y / (1 + low * p)) @ V.T


shape = (A.T @ A - hidden_A.T @ hidden_A).norm() / (hidden_A.T @ hidden_A).norm()
place = (centre(A, b) - centre(hidden_A, hidden_b)).norm()
by_hand = (targets - secular(points, hidden_A, hidden_b)).abs().max()
print(f"shape: {shape:.1e} off    centre: {place:.1e} off    layer against secular equation: {by_hand:.1e}")
assert shape < 0.02
assert place < 0.02
assert losses[-1] < 1e-3 * losses[0]
assert by_hand < 1e-10
