r"""
Training through samples that have no solution
==============================================

A model predicts constraints, and at first some of its predictions leave nothing feasible. Here it predicts
from two features the capacities :math:`\kappa(x)` of four sources that share a demand of 1,

.. math::

    z^\star(\kappa) = \operatorname*{argmin}_z\ \tfrac12\sum_i c_i z_i^2
    \quad\text{s.t.}\quad 0 \le z \le \kappa,\ 1^\top z = 1,

without a solution where :math:`1^\top\kappa < 1` or a :math:`\kappa_i < 0`. With ``on_failure="nan"`` the
other samples of the batch go on as if nothing had happened; the failed ones get a status, NaN values and
no gradient. An elastic twin of the layer, whose limits may be exceeded at a price, gives them one: S.
Boyd, L. Vandenberghe, *Convex Optimization*, Cambridge University Press, 2004, section 11.4.
"""

# %%
# Two layers
# ----------
# The strict one. ``method="cone"`` because infeasibility is then proven by a ray, which is quicker than
# the phase one of the smooth route; nothing else depends on it. And its twin for failed samples alone:
# :math:`t` is what is missing, and the optimal value says how far the sample is from feasible.

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

from optlayer import OptLayer, Status

torch.set_default_dtype(torch.float64)
n, c = 4, torch.tensor([1.0, 2.0, 4.0, 8.0]).numpy()

share = OptLayer(
    variables=[cp.Variable(n)],
    parameters=[cp.Parameter(n)],
    objective=lambda z, κ: c @ cp.square(z) / 2,
    inequalities=[lambda z, κ: -z, lambda z, κ: z - κ],
    equalities=[lambda z, κ: cp.sum(z) - 1],
    method="cone",
    on_failure="nan",
)
elastic = OptLayer(
    variables=[cp.Variable(n), cp.Variable(n)],
    parameters=[cp.Parameter(n)],
    objective=lambda z, t, κ: c @ cp.square(z) / 2 + 50 * cp.sum_squares(t),
    inequalities=[lambda z, t, κ: -z, lambda z, t, κ: z - κ - t],
    equalities=[lambda z, t, κ: cp.sum(z) - 1],
)

# %%
# Data
# ----
# A hundred shares that were observed, of capacities that were not. The model is linear in six functions of
# the features, and starts with weights drawn at random.


def basis(x):
    a, b = torch.tanh(2 * x[..., 0]), torch.tanh(2 * x[..., 1])
    return torch.stack([torch.ones_like(a), a, b, a * b, a**2, b**2], -1)


generator = torch.Generator().manual_seed(1)
truth = torch.tensor([[0.32, 0.3, 0.3, 0.3], [0.12, -0.1, 0, 0], [0, 0, 0.1, -0.05], *[[0.0] * 4] * 3])
first = torch.cat([torch.full((1, n), 0.24), 0.12 * torch.randn(5, n, generator=generator)])
x = 2 * torch.rand(100, 2, generator=generator) - 1
observed = share(basis(x) @ truth)

# %%
# Training
# --------
# Rows are taken by their status, not multiplied by a mask: 0 · NaN is NaN. The loss of the good ones goes
# through the strict layer, that of the bad ones, at a price, through the elastic one. At price 0 they are
# dropped.


def slack(κ):
    """Negative where nothing is feasible."""
    return torch.minimum(κ.sum(-1) - 1, κ.amin(-1))


def train(price, steps=50):
    W, course, failed = first.clone().requires_grad_(), [], []
    optimizer = torch.optim.Adam([W], 0.02)
    for _ in range(steps):
        κ = basis(x) @ W
        solution = share.solve(κ)
        good, bad = solution.status == Status.SOLVED, solution.status == Status.INFEASIBLE
        loss = (solution.primal[0][good] - observed[good]).square().sum()
        if price and bad.any():
            loss = loss + price * elastic(κ[bad])[1].square().sum()
        course.append(W.detach().clone())
        failed.append(int(bad.sum()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return course, failed


runs = {"dropped": train(price=0), "elastic twin": train(price=0.3)}
print("step         " + "".join(f"{step:5}" for step in range(0, 50, 5)))
for name, (_, failed) in runs.items():
    print(f"{name:13}" + "".join(f"{count:5}" for count in failed[::5]))
for name, (course, _) in runs.items():
    error = (share(basis(x) @ course[-1]) - observed).square().sum(1).mean()
    print(f"{name}: squared error {error:.4f} after training")

# %%
# Where there is an answer
# ------------------------
# The plane of the features. In the red part the predicted capacities admit nothing; dots are samples, red
# ones without solution. After twelve steps the elastic twin has brought every sample back. Where failed
# samples are dropped nothing pushes them; they come back only as far as their neighbours drag the model
# along.
#
# The twin leads back to where there is an answer, not to the right one: it raises all capacities nearly
# alike, and the strict loss has to sort them out afterwards. After fifty steps its error is still the
# larger of the two, so a low price is enough.

fig, (curves, *maps) = plt.subplots(1, 4, figsize=(11, 3.0), width_ratios=[1.3, 1, 1, 1])
for (name, (_, failed)), color in zip(runs.items(), ("C3", "C0")):
    curves.plot(failed, color=color, label=name)
curves.axvline(12, color="0.8", linewidth=0.8, zorder=0)
curves.set(xlabel="step", title="samples without solution", ylim=(0, None))
curves.legend(title="failed samples")

side = torch.linspace(-1, 1, 81)
plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
shown = {
    "start": first,
    "dropped, step 12": runs["dropped"][0][12],
    "elastic, step 12": runs["elastic twin"][0][12],
}
for axis, (name, W) in zip(maps, shown.items()):
    room = slack(basis(plane) @ W)
    axis.contourf(side, side, room, [-9, 0], colors=["C1"], alpha=0.25)
    axis.contour(side, side, room, [0], colors="C1", linewidths=1.2)
    fails = slack(basis(x) @ W) < 0
    axis.scatter(*x[~fails].T, s=9, color="C2")
    axis.scatter(*x[fails].T, s=9, color="C1")
    axis.set(title=name, aspect="equal", xticks=[], yticks=[], xlabel="feature 1")
maps[0].set_ylabel("feature 2")

# %%
# Checked
# -------
# Gradients of the good samples of the first batch: none is NaN, those of failed ones are zero; the same to
# the last bit whether the failed rows are there or have been replaced by good ones, and to rounding if
# they are taken out.


def gradient(κ):
    κ = κ.detach().requires_grad_()
    z = share(κ)
    solved = ~z.isnan().any(1)
    return torch.autograd.grad((z[solved] ** 2).sum(), κ)[0], solved


κ = basis(x) @ first
slope, good = gradient(κ)
replaced, _ = gradient(torch.where(good[:, None], κ, torch.full_like(κ, 0.3)))
alone, _ = gradient(κ[good])
apart = (alone - slope[good]).abs().max()

print(f"{int((~good).sum())} of 100 failed; NaN in gradients: {slope.isnan().any()}")
print(
    f"bitwise equal with failed rows replaced: {slope[good].equal(replaced[good])}; {apart:.0e} without them"
)
print(f"failed after training: dropped {runs['dropped'][1][-1]}, elastic {runs['elastic twin'][1][-1]}")
assert good.equal(slack(κ) >= 0)
assert not slope.isnan().any()
assert (slope[~good] == 0).all()
assert slope[good].equal(replaced[good])
assert apart < 1e-12
assert max(runs["elastic twin"][1][12:]) == 0 < runs["dropped"][1][12]
