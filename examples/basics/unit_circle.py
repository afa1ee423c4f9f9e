r"""
The unit circle
===============

The circle :math:`x^2 + y^2 = 1` is not the graph of a function, but near every point with :math:`y \ne 0` it
is one, and differentiating the equation gives its slope without solving for :math:`y`:

.. math::

   F(y(x), x) = x^2 + y^2 - 1 = 0 \quad\Rightarrow\quad
   \frac{dy}{dx} = -\Bigl(\frac{\partial F}{\partial y}\Bigr)^{-1} \frac{\partial F}{\partial x} = -\frac xy .

This is the implicit function theorem, which is behind every derivative of this package (:doc:`/derivation`).
Here it is used as it stands, by ``optlayer.implicit``, and then on the same circle as the edge of a convex
set: the highest point of the disc above :math:`x`, and the point of the disc nearest to :math:`v`. Source:
Dontchev and Rockafellar, *Implicit Functions and Solution Mappings*, Springer 2009, DOI
10.1007/978-0-387-87821-8.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch.func import grad, jacrev, vmap

from optlayer import InfeasibleError, OptLayer, implicit

torch.set_default_dtype(torch.float64)

# %%
# As an equation
# --------------
# ``implicit`` takes the equation and a root of it, found in any way, and returns the root with its
# derivatives. The equation does not say which half of the circle is meant; the root does. Second derivatives
# come along: :math:`y'' = -1/y^3`.


def half_circle(x, sign):
    root = sign * (1 - x.detach() ** 2).sqrt()
    return implicit(lambda y, x: x**2 + y**2 - 1, root, x)


places = torch.cos(torch.pi * (torch.arange(9) + 0.5) / 9)
down = vmap(half_circle, (0, None))(places, -1.0)
slope_down = vmap(grad(half_circle), (0, None))(places, -1.0)
bend_down = vmap(grad(grad(half_circle)), (0, None))(places, -1.0)

# %%
# As an argmin
# ------------
# The upper half is the highest point of the disc above :math:`x`:
#
# .. math:: y^\star(x) = \arg\max_y \{\, y : x^2 + y^2 \le 1 \,\}.
#
# Now the equation is chosen by the solver, since only an active constraint is one. Its multiplier is
# :math:`\lambda = 1/(2y)`, from :math:`-1 + 2 \lambda y = 0`.

highest = OptLayer(
    variables=[cp.Variable()],
    parameters=[cp.Parameter()],
    objective=lambda y, x: -y,
    inequalities=[lambda y, x: cp.square(x) + cp.square(y) - 1],
)
x = places.clone().requires_grad_()
solution = highest.solve(x)
(up,), (multiplier,) = solution.primal, solution.inequality_duals
(slope_up,) = torch.autograd.grad(up.sum(), x)

# %%
# Where it ends
# -------------
# At :math:`y = 0` the tangent is vertical: :math:`\partial F/\partial y = 2y` has no inverse, and neither
# half is a function of :math:`x` any longer. On the way there the multiplier grows with the slope, without
# bound. Beyond :math:`x = 1` there is no root: the layer says so, with the index of the sample.

ends = torch.tensor([0.6, 0.99, 0.9999, 0.999999])
x = ends.clone().requires_grad_()
near = highest.solve(x)
(steep,) = torch.autograd.grad(near.primal[0].sum(), x)
print("         x         y    slope   multiplier")
for row in zip(x.tolist(), near.primal[0].tolist(), steep.tolist(), near.inequality_duals[0].tolist()):
    print("{:10g}{:10.5f}{:9.2f}{:13.2f}".format(*row))
try:
    highest(torch.tensor([0.6, 1.1]))
except InfeasibleError as error:
    print("no solution for samples", error.indices)

# %%
# The nearest point of the disc
# -----------------------------
# .. math:: p(v) = \arg\min_p \{\, \tfrac12 |p - v|^2 : |p|^2 \le 1 \,\}
#
# Inside, nothing is active and the derivative is the identity. Outside, the circle removes what points away
# from it and shrinks the rest: with :math:`\hat v = v/|v|`,
#
# .. math:: \frac{\partial p}{\partial v} = \frac{1}{|v|}\,\bigl(I - \hat v \hat v^\top\bigr).
#
# In the picture every small disc around a :math:`v` is carried by :math:`\partial p/\partial v` to where its
# centre is projected: inside it stays as it is, outside it is flattened to a piece of tangent.

nearest = OptLayer(
    variables=[cp.Variable(2)],
    parameters=[cp.Parameter(2)],
    objective=lambda p, v: cp.sum_squares(p - v) / 2,
    inequalities=[lambda p, v: cp.sum_squares(p) - 1],
)
angle = torch.linspace(0, 2 * torch.pi, 100)
circle = torch.stack([angle.cos(), angle.sin()], -1)
turns = torch.tensor([0.35, 1.25, 2.2, 3.0, 3.9, 4.8, 5.6])
lengths = torch.tensor([1.5, 1.75, 1.45, 1.7, 1.8, 1.5, 1.6])
outside = lengths[:, None] * torch.stack([turns.cos(), turns.sin()], -1)
v = torch.cat([outside, torch.tensor([[0.35, 0.2], [-0.3, -0.25]])])
p, Dp = nearest(v), vmap(jacrev(nearest))(v)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6))
for axis in (left, right):
    axis.fill(*circle.T, color="0.95")
    axis.plot(*circle.T, color="0.6", linewidth=1)
    axis.set(aspect="equal")

for y, slope, color, name in (
    (up, slope_up, "C0", "as an argmin"),
    (down, slope_down, "C1", "as an equation"),
):
    tangent = torch.stack([torch.ones(9), slope], -1)
    tangent = 0.42 * tangent / tangent.norm(dim=1, keepdim=True)
    left.quiver(places, y.detach(), *tangent.T, color=color, units="xy", scale=1, width=0.022)
    left.plot(places, y.detach(), "o", color=color, markersize=5, label=name)
left.plot([-1, 1], [0, 0], "X", color="C3", markersize=9, label="no derivative")
left.legend(loc="center", fontsize=9)
left.set(title="tangents from $dy/dx$", xlabel="$x$", ylabel="$y$", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))

ball = 0.17 * circle
for point, image, derivative in zip(v, p, Dp):
    right.plot(*torch.stack([point, image]).T, color="0.75", linewidth=1)
    right.plot(*(point + ball).T, color="C0", linewidth=1.2)
    right.plot(*(image + ball @ derivative.T).T, color="C1", linewidth=2.6, alpha=0.9)
right.plot([], [], color="C0", label="disc around $v$")
right.plot([], [], color="C1", label="its image around $p(v)$")
right.legend(loc="lower left", fontsize=9)
right.set(title="projection onto the disc", xlabel="$v_1$", ylabel="$v_2$", xlim=(-2, 2), ylim=(-2, 2))

# %%
# Checked
# -------
# Everything above against its closed form.

unit = v / v.norm(dim=1, keepdim=True)
tangential = (torch.eye(2) - unit[:, :, None] * unit[:, None]) / v.norm(dim=1)[:, None, None]
exact = torch.where((v.norm(dim=1) > 1)[:, None, None], tangential, torch.eye(2))
errors = {
    "implicit: slope": slope_down + places / down,
    "implicit: second derivative": (bend_down + 1 / down**3) * down**3,
    "argmin: y": up - (1 - places**2).sqrt(),
    "argmin: slope": slope_up + places / up,
    "argmin: multiplier": multiplier - 1 / (2 * up),
    "projection: derivative": Dp - exact,
}
for name, error in errors.items():
    print(f"{name:<30}{error.abs().max():.0e}")
    assert error.abs().max() < 1e-11
