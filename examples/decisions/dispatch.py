r"""
Prices of a power network, and how they move
============================================

Five buses A to E, joined by lines of limited capacity, and five generators of quadratic cost. Their
cheapest dispatch for the demand :math:`d` is a quadratic programme,

.. math::

    \varphi(d) = \min_{p, \theta}\ \sum_g \tfrac12 c_g p_g^2 + b_g p_g
    \quad \text{s.t.} \quad d + A^\top f = M p,\quad f = \operatorname{diag}(s) A\theta,
    \quad |f| \le \bar f,\quad 0 \le p \le \bar p,

and the price of electricity at a bus is the multiplier of its balance: what one more megawatt there would
cost. Multipliers are outputs of the layer and differentiable, so it says too how each price answers to
demand at each bus. That is what a trader, a storage operator or a planner of lines asks.

F. C. Schweppe, M. C. Caramanis, R. D. Tabors, R. E. Bohn, *Spot Pricing of Electricity*, Kluwer, 1988, DOI
10.1007/978-1-4613-1683-1. The network is the five-bus system of F. Li, R. Bo, *Small test systems for
power system economic studies*, IEEE PES General Meeting, 2010, DOI 10.1109/PES.2010.5589973, its costs
made quadratic.
"""

# %%
# The network
# -----------
# The direct-current approximation: the flow on a line is its susceptance times the difference of the
# angles at its ends. Power is in units of 100 MW, money in hundreds of dollars, so that prices are in
# $/MWh.

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)
lines = [(0, 1), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4)]
places = np.array([[0.0, 1.0], [1.2, 1.5], [2.4, 1.0], [2.0, 0.0], [0.4, 0.0]])
susceptance = 1 / np.array([0.0281, 0.0304, 0.0064, 0.0108, 0.0297, 0.0297])
limit = np.array([4.0, 9.0, 9.0, 9.0, 9.0, 2.4])
at = [0, 0, 2, 3, 4]  # the bus of each generator
capacity = np.array([0.4, 1.7, 5.2, 2.0, 6.0])
slope, linear = np.array([1.0, 1.2, 3.0, 5.0, 0.8]), np.array([14.0, 15.0, 30.0, 40.0, 10.0])

ends = np.array(lines)
A = np.zeros((len(lines), 5))
A[range(len(lines)), ends[:, 0]], A[range(len(lines)), ends[:, 1]] = 1.0, -1.0
M = np.eye(5)[:, at]
flow = susceptance[:, None] * A  # times the angles

# %%
# The layer
# ---------
# One equation for each bus: what is demanded and what flows out is what is generated there.

p, θ, d = cp.Variable(5), cp.Variable(5), cp.Parameter(5)
dispatch = OptLayer(
    variables=[p, θ],
    parameters=[d],
    objective=lambda p, θ, d: slope @ cp.square(p) / 2 + linear @ p,
    inequalities=[
        lambda p, θ, d: -p,
        lambda p, θ, d: p - capacity,
        lambda p, θ, d: flow @ θ - limit,
        lambda p, θ, d: -flow @ θ - limit,
    ],
    equalities=[lambda p, θ, d: d + A.T @ (flow @ θ) - M @ p, lambda p, θ, d: θ[0]],
)


def prices(d):
    return dispatch.solve(d).equality_duals[0]


day = torch.tensor([0.0, 3.0, 3.0, 4.0, 0.0])
solution = dispatch.solve(day)
λ, power, f = solution.equality_duals[0], solution.primal[0], torch.tensor(flow) @ solution.primal[1]
made = torch.tensor(M) @ power
for row in zip("ABCDE", day, made, λ):
    print("bus {}: demand {:.1f}, generated {:.2f}, price {:.2f}".format(*row))

# %%
# How prices move
# ---------------
# ``jacrev`` of a multiplier: :math:`\partial\lambda/\partial d`, five by five. As :math:`\lambda =
# \partial\varphi/\partial d`, it is the Hessian of the cost, symmetric and positive semidefinite.
#
# As long as no line is full there is one price. Beyond, prices part. At B, where nothing is generated, the
# price is a mixture of the costs elsewhere. More demand at D *lowers* the price at E.

levels = torch.linspace(0.02, 1.05, 104)
ramp = prices(levels[:, None] * day)
jacobian = torch.func.jacrev(prices)(day)
full = limit - f.abs().numpy() < 1e-9

fig, (net, rise, heat) = plt.subplots(1, 3, figsize=(11, 3.7), width_ratios=[1.15, 1, 1])
for (i, j), amount, congested in zip(lines, f, full):
    color = "C1" if congested else "0.7"
    net.plot(*places[[i, j]].T, color=color, linewidth=1 + 2 * abs(amount), zorder=1, solid_capstyle="butt")
    text = f"{100 * abs(amount):.0f} MW" + (", full" if congested else "")
    net.annotate(
        text,
        places[[i, j]].mean(0),
        ha="center",
        va="center",
        fontsize=8,
        bbox={"boxstyle": "round,pad=0.15", "fc": "w", "ec": "none"},
        color="C1" if congested else "0.3",
    )
dots = net.scatter(*places.T, c=λ, s=900, cmap="YlOrRd", vmin=10, vmax=65, edgecolors="0.4", zorder=2)
for name, place, price in zip("ABCDE", places, λ):
    net.annotate(f"{name}\n{price:.0f}", place, ha="center", va="center", fontsize=8, zorder=3)
net.set(title="prices by day, $/MWh", xlim=(-0.4, 2.8), ylim=(-0.4, 1.9))
net.set_axis_off()

for name, line, color in zip("ABCDE", ramp.T, ("C0", "C2", "C3", "C1", "C4")):
    rise.plot(100 * levels, line, color=color)
    rise.annotate(name, (105, line[-1]), (4, -3), textcoords="offset points", color=color)
rise.set(xlabel="demand, per cent of the day's", ylabel="price, $/MWh", title="one price, then five")

heat.imshow(jacobian.numpy(), cmap="RdBu_r", vmin=-4, vmax=4)
for i in range(5):
    for j in range(5):
        heat.annotate(f"{jacobian[i, j]:.2f}", (j, i), ha="center", va="center", fontsize=8)
heat.set_xticks(range(5), list("ABCDE"))
heat.set_yticks(range(5), list("ABCDE"))
heat.set(xlabel="100 MW more demanded at", ylabel="price at", title="change of prices, $/MWh")
heat.spines[:].set_visible(False)

# %%
# Checked
# -------
# Prices against differences of the cost (they are its gradient), their Jacobian against differences of
# prices, and its symmetry.

value = lambda d: dispatch.solve(d).value
shifts = 1e-4 * torch.eye(5)
envelope = (torch.stack([value(day + h) - value(day - h) for h in shifts]) / 2e-4 - λ).abs().max()
columns = torch.stack([prices(day + h) - prices(day - h) for h in shifts], 1) / 2e-4
apart = (columns - jacobian).abs().max()
eigenvalues = torch.linalg.eigvalsh(jacobian)

print(f"prices          {envelope:.0e} from differences of the cost")
print(f"their Jacobian  {apart:.0e} from differences of prices")
print(f"asymmetry       {(jacobian - jacobian.T).abs().max():.0e}, least eigenvalue {eigenvalues.min():.0e}")
assert envelope < 1e-6
assert apart < 1e-6
assert torch.allclose(jacobian, jacobian.T)
assert eigenvalues.min() > -1e-9
