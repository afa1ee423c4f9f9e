r"""
A leader and a follower
=======================

Two firms sell the same good at the price :math:`a - b(Q + q)` and have unit costs :math:`c`. The leader
commits to a quantity :math:`Q`, and the follower answers with the most profitable :math:`q` up to its
capacity :math:`k`:

.. math::

    \max_Q\ \bigl(a - c - b(Q + q^\star(Q))\bigr)\,Q,
    \qquad q^\star(Q) = \operatorname*{argmax}_{0 \le q \le k}\ \bigl(a - c - b(Q + q)\bigr)\,q .

The answer :math:`q^\star` is a layer, so the leader climbs the gradient of its own profit through it. The
same loop works where no formula for the answer exists: a follower with many goods, networks and
constraints.

H. von Stackelberg, *Marktform und Gleichgewicht*, Springer, 1934.
"""

# %%
# The follower
# ------------
# Its profit, with the sign changed, is a convex quadratic in :math:`q`; the leader's quantity and the
# capacity are parameters.

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)
a, b, c = 15.0, 1.0, 3.0

follower = OptLayer(
    variables=[cp.Variable()],
    parameters=[cp.Parameter(), cp.Parameter()],
    objective=lambda q, Q, k: b * cp.square(q) - (a - c - b * Q) * q,
    inequalities=[lambda q, Q, k: -q, lambda q, Q, k: q - k],
)


def profit(Q, k):
    """Of the leader, who knows how the follower will answer."""
    return (a - c - b * (Q + follower(Q, k))) * Q


# %%
# Climbing
# --------
# :math:`d\pi/dQ = a - c - b(2Q + q^\star) - bQ\,\mathrm{d}q^\star/\mathrm{d}Q`. The last term is what
# makes a leader of a firm: it counts on the follower giving way, :math:`\mathrm{d}q^\star/\mathrm{d}Q =
# -\tfrac12`. Four ascents run as one batch: two against a follower without a binding capacity, two against
# one with :math:`k = 3.4`.

capacity = torch.tensor([9.0, 9.0, 3.4, 3.4])
Q = torch.tensor([1.0, 9.5, 1.0, 9.5], requires_grad=True)
path = [Q.detach().clone()]
for _ in range(40):
    (slope,) = torch.autograd.grad(profit(Q, capacity).sum(), Q)
    Q = (Q + 0.25 * slope).detach().requires_grad_()
    path.append(Q.detach().clone())
path = torch.stack(path)
answers = follower(path, capacity)

print("capacity  start  leader  follower  profit")
for k, start, end, q, π in zip(capacity, path[0], path[-1], answers[-1], profit(Q, capacity).detach()):
    print(f"{k:8.1f} {start:6.1f} {end:7.3f} {q:9.3f} {π:7.3f}")

# %%
# Where they meet
# ---------------
# Left: the lines of equal profit of the leader, higher further down. If both moved at once, they would
# meet where each answers the other, at Cournot's point :math:`Q = q = (a - c)/3b`. The leader slides along
# the follower's answers instead, until they touch the best of these lines: :math:`Q = (a - c)/2b`,
# :math:`q = (a - c)/4b`.
#
# Right: the capacity puts a kink into the leader's profit, and a second top. Left of the kink the follower
# sells all it has, whatever the leader does. There the leader gains nothing from committing, and the top
# is the Cournot point of the two firms. Which ascent finds which top depends on where it starts: a bilevel
# problem is not convex, though its follower is.

grid = torch.linspace(0, 11, 221)
cournot, stackelberg = (a - c) / (3 * b), (a - c) / (2 * b)
fig, (plane, hills) = plt.subplots(1, 2, figsize=(9.5, 4.2))

levels = (a - c - b * (grid + grid[:, None])) * grid
plane.contour(grid, grid, levels, [4, 8, 12, 15, 21, 24, 28], colors="0.82", linewidths=0.9)
plane.contour(grid, grid, levels, [18], colors="C3", linewidths=1.6)
plane.plot(
    grid, follower(grid, torch.tensor(9.0)), color="C1", alpha=0.35, linewidth=5, label="follower's answer"
)
plane.plot((a - c - b * grid) / (2 * b), grid, color="C2", label="best quantity against $q$")
for i in (0, 1):
    plane.plot(path[:, i], answers[:, i], "o-", color="C0", markersize=4, linewidth=0.8)
plane.plot(cournot, cournot, "s", color="C2", markersize=8)
plane.annotate("Cournot", (cournot, cournot), (8, 6), textcoords="offset points")
plane.plot(stackelberg, stackelberg / 2, "*", color="C3", markersize=16, zorder=4)
plane.annotate("Stackelberg", (stackelberg, stackelberg / 2), (6, 8), textcoords="offset points")
plane.set(
    xlabel="leader $Q$", ylabel="follower $q$", xlim=(0, 11), ylim=(0, 7), title="climbing along the answers"
)
plane.legend(loc="upper right")

for k, color, shift in ((9.0, "C0", 0), (3.4, "C4", 2)):
    name = "no capacity" if k > 8 else f"capacity {k}"
    hills.plot(grid, profit(grid, torch.tensor(k)), color=color, linewidth=1.2, label=name)
    steps = path[:, shift : shift + 2]
    hills.plot(steps, profit(steps, torch.tensor(k)), "o", color=color, markersize=4)
kink = (a - c) / b - 2 * 3.4
hills.annotate(
    "kink",
    (kink, profit(torch.tensor(kink), torch.tensor(3.4))),
    (0, -60),
    textcoords="offset points",
    ha="center",
    arrowprops={"arrowstyle": "->", "color": "0.4"},
)
hills.set(xlabel="leader $Q$", ylabel="leader's profit", xlim=(0.8, 10.5), ylim=(4, 19.5), title="two tops")
hills.legend(loc="lower center")

# %%
# Checked
# -------
# Both tops against their closed forms, the second derivative of the profit (:math:`-b` on the slope right
# of the kink, :math:`-2b` left of it), and the flag that says where there is a kink.

ends = torch.tensor([stackelberg, stackelberg, (a - c) / (2 * b) - 3.4 / 2, stackelberg])
error = (path[-1] - ends).abs().max()
curvature = torch.func.vmap(torch.func.hessian(profit))(path[-1], capacity)
flags = follower.solve(torch.tensor([kink - 0.1, kink, kink + 0.1]), torch.tensor(3.4)).flags.kink

print(f"quantities    {error:.0e} from the closed forms")
print(f"curvature     {[round(x, 6) for x in curvature.tolist()]}")
print(f"kink flagged  {flags.tolist()}")
assert error < 1e-4
assert torch.allclose(curvature, torch.tensor([-b, -b, -2 * b, -b]))
assert flags.tolist() == [False, True, False]
