r"""
Pooling, and who has a say in it
================================

Pooling replaces numbers by one: :math:`y^\star(x) = \arg\min_y \sum_i \varphi(y - x_i)`. With :math:`\varphi`
a square this is the average; with a penalty that grows more slowly, outliers have less of a say. How much of
one is the derivative, by the implicit function theorem

.. math::

   \frac{\partial y^\star}{\partial x_i} = \frac{\varphi''(y^\star - x_i)}{\sum_j \varphi''(y^\star - x_j)} .

Three penalties are convex, and layers; the fourth, Welsch's, is not, and goes through ``optlayer.implicit``
from a root found by iteration. Source: Gould, Hartley and Campbell, *Deep declarative networks*, TPAMI 2022,
DOI 10.1109/TPAMI.2021.3059462.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch.func import vmap

from optlayer import OptLayer, implicit

torch.set_default_dtype(torch.float64)

# %%
# Four penalties
# --------------
# .. math::
#
#    \tfrac12 r^2, \qquad \sqrt{1 + r^2} - 1, \qquad
#    \begin{cases} \tfrac12 r^2 & |r| \le 1 \\ |r| - \tfrac12 & |r| > 1 \end{cases}, \qquad
#    1 - e^{-r^2/2}
#
# The pseudo-Huber penalty is written in torch, the others in cvxpy; ``cp.huber`` is twice the third. The
# Welsch average is a fixed point of averaging with the weights :math:`e^{-(y - x_i)^2/2}`, begun at the
# median.

N = 12
penalties = {
    "quadratic": lambda r: cp.sum_squares(r) / 2,
    "pseudo-Huber": lambda r: ((1 + r**2).sqrt() - 1).sum(),
    "Huber": lambda r: cp.sum(cp.huber(r)) / 2,
}


def layer(penalty):
    return OptLayer([cp.Variable()], [cp.Parameter(N)], objective=lambda y, x: penalty(y - x))


def welsch(x):
    y = x.detach().median()
    for _ in range(200):
        weights = (-((y - x.detach()) ** 2) / 2).exp()
        y = (weights * x.detach()).sum() / weights.sum()
    return implicit(lambda y, x: ((y - x) * (-((y - x) ** 2) / 2).exp()).sum(), y, x)


pools = {name: layer(penalty) for name, penalty in penalties.items()} | {"Welsch": vmap(welsch)}

# %%
# One outlier walks away
# ----------------------
# Eleven points around 0, and a twelfth that starts among them and leaves: one batch for each layer. The
# average follows for ever. Huber's and pseudo-Huber's come to a halt, since a far point pulls with the force
# 1 however far it is: its share goes to 0, its pull stays. Welsch's returns as if the point had never been
# there, and on the way back the share is negative: moving the point further away lessens its pull.

torch.manual_seed(2)
points = 0.8 * torch.randn(N - 1)
distances = torch.linspace(0, 8, 81)
data = torch.cat([points.expand(81, -1), distances[:, None]], 1)
pooled, shares = {}, {}
for name, pool in pools.items():
    x = data.clone().requires_grad_()
    y = pool(x)
    pooled[name], (shares[name],) = y.detach(), torch.autograd.grad(y.sum(), x)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.9), layout="constrained")
r = torch.linspace(-4, 4, 200)
shapes = (
    r**2 / 2,
    (1 + r**2).sqrt() - 1,
    torch.where(r.abs() > 1, r.abs() - 0.5, r**2 / 2),
    1 - (-(r**2) / 2).exp(),
)
for name, shape in zip(pools, shapes):
    left.plot(r, shape, label=name)
    middle.plot(distances, pooled[name])
    right.plot(distances, shares[name][:, -1])
middle.plot(torch.zeros(N - 1), points, "_", color="0.5", markersize=9, clip_on=False)
right.axhline(0, color="0.8", linewidth=1, zorder=0)
left.set(title="penalty", xlabel="residual $r$", ylabel=r"$\varphi(r)$", ylim=(-0.1, 3.5))
middle.set(title="pooled value", xlabel="place of the twelfth point", ylabel="$y^*$", ylim=(-1.05, 1.1))
right.set(title="its share", xlabel="place of the twelfth point", ylabel=r"$\partial y^*/\partial x_{12}$")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)

# %%
# Huber's share is a staircase, :math:`1/k` where :math:`k` points lie within 1 of the answer, and falls to 0
# in one step. At the steps the derivative jumps.
#
# The shares in numbers, for the twelfth point at 6. They sum to one in every row, because to shift all points
# is to shift the answer.

print("              " + "".join(f"{place:6.2f}" for place in data[60]))
for name in pools:
    print(f"{name:<14}" + "".join(f"{share:6.2f}" for share in shares[name][60].round(decimals=2) + 0.0))

# %%
# Checked
# -------
# Against the formula at the top, for all twelve shares at all 81 places.

second = {
    "quadratic": torch.ones_like,
    "pseudo-Huber": lambda r: (1 + r**2) ** -1.5,
    "Huber": lambda r: (r.abs() < 1).double(),
    "Welsch": lambda r: (1 - r**2) * (-(r**2) / 2).exp(),
}
for name, bend in second.items():
    bends = bend(pooled[name][:, None] - data)
    error = (shares[name] - bends / bends.sum(1, keepdim=True)).abs().max()
    unit = (shares[name].sum(1) - 1).abs().max()
    print(f"{name:<14}{error:.0e} from the formula, sums {unit:.0e} from 1")
    assert max(error, unit) < 1e-10
assert shares["Welsch"][:, -1].min() < -0.02
