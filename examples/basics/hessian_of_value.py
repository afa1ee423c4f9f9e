r"""
The Hessian of the optimal value
================================

Twenty households buy two goods at the prices :math:`\pi`, each as much as it likes and can store:

.. math:: v_i(\pi) = \max_{z > 0} \{\, w_i^\top \log z - \pi^\top z \;:\; a_i^\top z \le 1 \,\}.

At which prices is everything sold that there is, :math:`s`? At the minimum of
:math:`\varphi(\pi) = \sum_i v_i(\pi) + \pi^\top s`, which is convex. Its gradient needs no derivative of an
argmin (envelope theorem), its Hessian does; with both, Newton's method finds the prices in a few steps. A
layer has the value as an output, so ``torch.func.hessian`` is all one has to write. Source: Cheung, Cole and
Devanur, *Tatonnement beyond gross substitutes? Gradient descent to the rescue*, STOC 2013,
pages 191-200.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch.func import grad, hessian

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)

# %%
# The market
# ----------
# All households are one batch; they differ in their tastes :math:`w_i` and in the room :math:`a_i` that a
# good takes.

household = OptLayer(
    variables=[cp.Variable(2)],
    parameters=[cp.Parameter(2), cp.Parameter(2, nonneg=True), cp.Parameter(2)],
    objective=lambda z, price, w, a: price @ z - w @ cp.log(z),
    inequalities=[lambda z, price, w, a: a @ z - 1],
)
torch.manual_seed(0)
tastes = 0.2 + 1.6 * torch.rand(20, 2)
room = (0.3 + torch.rand(20, 1)) * (0.7 + 0.6 * torch.rand(20, 2))
supply = torch.tensor([14.8, 17.0])


def cost(price):
    """φ, what Walras's auctioneer minimises."""
    return price @ supply - household.solve(price, tastes, room).value.sum()


# %%
# Gradient and Hessian
# --------------------
# By the envelope theorem :math:`\nabla v_i = -z_i^\star`: where the maximum is, moving it changes nothing to
# first order. So
#
# .. math::
#
#    \nabla \varphi = s - \sum_i z_i^\star(\pi), \qquad
#    \nabla^2 \varphi = -\sum_i \frac{\partial z_i^\star}{\partial \pi},
#
# supply less demand, and the slope of demand. To raise the price of what is short, Walras's *tâtonnement*, is
# gradient descent on :math:`\varphi`.

start = torch.tensor([1.0, 1.4])
print("gradient", grad(cost)(start).tolist())
print("supply - demand", (supply - household(start, tastes, room).sum(0)).tolist())
print("Hessian", hessian(cost)(start).tolist())

# %%
# Newton's method
# ---------------
# :math:`\pi \leftarrow \pi - t\, (\nabla^2\varphi)^{-1} \nabla\varphi`, where the step :math:`t` is halved
# until :math:`\varphi` falls as much as it should.


def newton_step(price):
    slope, curvature = grad(cost)(price), hessian(cost)(price)
    step, t, now = -torch.linalg.solve(curvature, slope), 1.0, cost(price)
    while cost(price + t * step) > now + 0.1 * t * (slope @ step) + 1e-12 * now.abs():
        t /= 2
    return price + t * step


newton = [start]
for _ in range(6):
    newton.append(newton_step(newton[-1]))
clearing = newton[-1]

# %%
# Gradient descent gets the step :math:`1/\lambda_{\max}` of the Hessian at the solution.

eigenvalues = torch.linalg.eigvalsh(hessian(cost)(clearing))
descent = [start]
for _ in range(30):
    descent.append(descent[-1] - grad(cost)(descent[-1]) / eigenvalues[1])
excess = [[grad(cost)(price).norm().item() for price in path] for path in (newton, descent)]
print("clearing prices", clearing.tolist())
print("eigenvalues", eigenvalues.tolist())

# %%
# On the left the level lines of :math:`\varphi` over the prices, with both paths. On the right the excess
# supply or demand: near the solution Newton's method doubles the digits with every step, tâtonnement adds the
# same number each time.

side = torch.linspace(0, 1.6, 16)
prices = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
sold = household.solve(prices[..., None, :], tastes, room).value.sum(-1)
height = (prices @ supply - sold - cost(clearing)).clamp(min=0).sqrt()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2))
left.contour(side, side, height, levels=torch.arange(0.6, 5, 0.4).tolist(), colors="0.8", linewidths=1)
for path, color, name in ((descent, "C1", "tâtonnement"), (newton, "C0", "Newton")):
    left.plot(*torch.stack(path).T, "o-", color=color, markersize=4, linewidth=1.4, label=name)
left.plot(*clearing, "*", color="C3", markersize=13, zorder=4, label="clearing prices")
left.set(title="$\\varphi$, and two ways down", xlabel="price of good 1", ylabel="price of good 2")
left.legend(loc="lower right", fontsize=9)
right.semilogy(excess[1], "o-", color="C1", markersize=3, linewidth=1.4)
right.semilogy([max(off, 1e-16) for off in excess[0]], "o-", color="C0", markersize=4, linewidth=1.4)
right.set(xlabel="step", ylabel="|supply − demand|", title="how far from clearing")

# %%
# Checked
# -------
# The gradient is supply less demand. The slope of demand has a closed form: with
# :math:`D = \mathrm{diag}(z^2/w)` it is :math:`D`, less :math:`D a a^\top D / a^\top D a` where the store is
# full.


def slope_of_demand(z, w, a, full):
    D = torch.diag(z**2 / w)
    return D - full * torch.outer(D @ a, D @ a) / (a @ D @ a)


solution = household.solve(start, tastes, room)
z, (multiplier,) = solution.primal[0], solution.inequality_duals
full = (multiplier > 0).double()
exact = torch.func.vmap(slope_of_demand)(z, tastes, room, full).sum(0)
gradient_error = (grad(cost)(start) - (supply - z.sum(0))).abs().max()
hessian_error = (hessian(cost)(start) - exact).abs().max()
print(f"gradient {gradient_error:.0e}, Hessian {hessian_error:.0e} from the closed form")
print(f"excess after 6 steps of Newton {excess[0][-1]:.0e}, after 30 of descent {excess[1][-1]:.0e}")
assert max(gradient_error, hessian_error) < 1e-10
assert excess[0][-1] < 1e-9 < 1e-6 < excess[1][-1]
