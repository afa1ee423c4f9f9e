r"""
A controller with a short view, tuned in closed loop
====================================================

Model predictive control plans some steps ahead, does the first of them, and plans again. The plan is a
quadratic programme whose answer is a layer, the policy:

.. math::

    \min_u\ \sum_{k=1}^{H} p_k^2 + \rho |u|^2 + |P(p_H, v_H)|^2
    \quad\text{s.t.}\quad |u_k| \le \bar u,\ |v_k| \le \bar v,

for a vehicle of position :math:`p`, velocity :math:`v` and force :math:`u`. Three steps see less than the
vehicle needs to stop, so it overshoots. The last term should stand for what lies beyond the horizon; here
:math:`P` is learned by the cost of whole drives, differentiated through forty plans, each of which starts
where the last one led. The limits hold for every :math:`P`.

A. Agrawal, S. Barratt, S. Boyd, B. Stellato, *Learning convex optimization control policies*, L4DC 2020,
arXiv:1912.09529.
"""

# %%
# The plan
# --------
# Positions and velocities are linear in the state :math:`s = (p_0, v_0)` and the forces.

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.linalg import matrix_power
from scipy.linalg import solve_discrete_are

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)
dt, force, speed, ρ = 0.2, 0.4, 1.0, 0.02
A, B = np.array([[1.0, dt], [0.0, 1.0]]), np.array([dt**2 / 2, dt])


def controller(H):
    """The policy with H steps of foresight: states and P in, forces out."""
    free = np.stack([matrix_power(A, k + 1) for k in range(H)])
    forced = np.stack([[matrix_power(A, k - j) @ B if j <= k else 0 * B for j in range(H)] for k in range(H)])
    p = lambda u, s: free[:, 0] @ s + forced[..., 0] @ u
    v = lambda u, s: free[:, 1] @ s + forced[..., 1] @ u
    end = lambda u, s: cp.hstack([p(u, s)[H - 1], v(u, s)[H - 1]])
    return OptLayer(
        variables=[cp.Variable(H)],
        parameters=[cp.Parameter(2), cp.Parameter((2, 2))],
        objective=lambda u, s, P: (
            cp.sum_squares(p(u, s)) + ρ * cp.sum_squares(u) + cp.sum_squares(P @ end(u, s))
        ),
        inequalities=[
            lambda u, s, P: u - force,
            lambda u, s, P: -u - force,
            lambda u, s, P: v(u, s) - speed,
            lambda u, s, P: -v(u, s) - speed,
        ],
    )


short = controller(3)

# %%
# The drive
# ---------
# Sixteen vehicles at once, pushed about by gusts that the plans do not know of.

steps = 40
push = torch.tensor([0.01, 0.05])


def drive(policy, P, s, gusts):
    states, forces = [s], []
    for gust in gusts:
        forces.append(policy(s, P)[:, 0])
        s = s @ torch.tensor(A).T + forces[-1][:, None] * torch.tensor(B) + gust
        states.append(s)
    return torch.stack(states), torch.stack(forces)


def cost(policy, P, s, gusts):
    states, forces = drive(policy, P, s, gusts)
    return (states[1:, :, 0].square() + ρ * forces.square()).sum(0).mean()


def draw(samples, seed):
    uniform = lambda *shape: 2 * torch.rand(shape, generator=generator) - 1
    generator = torch.Generator().manual_seed(seed)
    return uniform(samples, 2) * torch.tensor([3.0, 0.8]), uniform(steps, samples, 2) * push


training, held_out = draw(16, 0), draw(16, 1)

# %%
# Tuning
# ------
# From :math:`P = \operatorname{diag}(1, 0)` (nearly), the last position counting twice. For comparison the
# terminal cost of the linear-quadratic regulator, which is the right one as long as no limit is met, and a
# controller that sees eight times as far.

untuned = torch.diag(torch.tensor([1.0, 0.01]))
P = untuned.clone().requires_grad_()
optimizer = torch.optim.Adam([P], 0.4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
for _ in range(9):
    optimizer.zero_grad()
    cost(short, P, *training).backward()
    optimizer.step()
    schedule.step()
tuned = P.detach()

stage = np.diag([1.0, 0.0])
riccati = solve_discrete_are(A, B[:, None], stage, np.array([[ρ]])) - stage
regulator = torch.linalg.cholesky(torch.tensor(riccati)).T
far = controller(24)
drivers = {
    "3 steps, untuned": (short, untuned),
    "3 steps, regulator's cost": (short, regulator),
    "3 steps, tuned": (short, tuned),
    "24 steps": (far, untuned),
}
costs = {name: cost(*driver, *held_out) for name, driver in drivers.items()}
for name, held_out_cost in costs.items():
    print(f"{name:26} {held_out_cost:.3f} on drives not trained on")

# %%
# Position and velocity
# ---------------------
# Drives begin at the dots and should end in the middle. Untuned, the vehicle notices too late that it must
# brake, and spirals; tuned, it brakes along a curve that is bounded by its force. Grey: speeds that the
# plans may not reach. Only a gust can push the vehicle there.

fig, axes = plt.subplots(1, 3, figsize=(11, 3.5))
shown = held_out[0][:, 0].abs().argsort()[-8:]  # those that have far to go
for axis, name, color in zip(axes, ("3 steps, untuned", "3 steps, tuned"), ("C1", "C0")):
    states, _ = drive(*drivers[name], *held_out)
    axis.plot(*states[:, shown].unbind(-1), color=color, linewidth=1.2)
    axis.plot(*states[0, shown].T, "o", color=color, markersize=5)
    axis.plot(0, 0, "+", color="0.2", markersize=10)
    for side in (-1, 1):
        axis.axhspan(side * speed, side * 1.3, color="0.9", linewidth=0)
    axis.set(title=name, xlabel="position", xlim=(-3.6, 3.6), ylim=(-1.3, 1.3))
axes[0].set_ylabel("velocity")
for (name, driver), color in zip(drivers.items(), ("C1", None, "C0", "0.3")):
    if color:
        states, _ = drive(*driver, *held_out)
        axes[2].plot(
            dt * torch.arange(steps + 1),
            states[:, shown[-1], 0],
            color=color,
            label=name,
            linestyle="--" if driver[0] is far else "-",
        )
axes[2].axhline(0, color="0.8", linewidth=0.8, zorder=0)
axes[2].set(title="one drive", xlabel="time", ylabel="position")
axes[2].legend()

# %%
# Checked
# -------
# The gain on held-out drives; the limits, which hold whatever :math:`P` is; and the gradient of the cost
# of forty plans in a row against differences.

states, forces = drive(short, tuned, *held_out)
closed = (costs["3 steps, untuned"] - costs["3 steps, tuned"]) / (
    costs["3 steps, untuned"] - costs["24 steps"]
)

few = [t[..., :4, :] for t in training]
slope = torch.func.grad(lambda P: cost(short, P, *few))(untuned)
h = torch.tensor([[1.0, -0.5], [0.3, 2.0]]) * 1e-6
difference = (cost(short, untuned + h, *few) - cost(short, untuned - h, *few)) / 2
wrong = abs((slope * h).sum() - difference) / abs(difference)

print(f"of the cost of a short view, tuning removes {100 * closed:.0f} %")
print(f"largest force {forces.abs().max():.3f}, largest speed {states[..., 1].abs().max():.3f}")
print(f"gradient      {wrong:.0e} from differences, relative")
assert closed > 0.8
assert forces.abs().max() < force + 1e-9
assert states[..., 1].abs().max() < speed + push[1]
assert wrong < 1e-5
