r"""
Tuning a support vector machine by gradient
===========================================

A support vector machine with a Gaussian kernel has two hyper-parameters, the price :math:`C` of a violated
margin and the width of the kernel. They are set by the loss on validation samples, usually on a grid:

.. math::

    \min_{C, \gamma}\ \ell_{\text{val}}(\alpha^\star, b^\star), \qquad
    \alpha^\star(C, \gamma) = \operatorname*{argmin}_{0 \le \alpha \le C,\ y^\top\alpha = 0}
    \tfrac12 \alpha^\top Q(\gamma)\,\alpha - 1^\top\alpha .

Here the machine is a layer, and the validation loss is descended through it. A grid grows with the power
of the number of hyper-parameters, a gradient does not: at the end there are 30 widths, one for each
feature.

Y. Bengio, *Gradient-based optimization of hyperparameters*, Neural Computation 12(8), 2000, DOI
10.1162/089976600300015187; O. Chapelle, V. Vapnik, O. Bousquet, S. Mukherjee, *Choosing multiple
parameters for support vector machines*, Machine Learning 46, 2002, DOI 10.1023/A:1012450327387.
"""

# %%
# Data
# ----
# Breast tumours, malignant or benign, by two of the thirty measurements scikit-learn has of them: the
# texture of the cells and the concavity of their outlines. 80 samples train, 200 validate, the others
# test.

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.svm import SVC
from torch.nn.functional import softplus

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)
data = load_breast_cancer()
order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
features = torch.tensor(data.data)[order]
features = (features - features.mean(0)) / features.std(0)
labels = 2.0 * torch.tensor(data.target)[order] - 1
two = features[:, [1, 7]]
n = 80
train, validate, test = slice(0, n), slice(n, 280), slice(280, None)

# %%
# The machine
# -----------
# With :math:`Q_{ij} = y_i y_j k(x_i, x_j)` the layer takes :math:`Q` and :math:`C`. The offset :math:`b`
# of the machine is the multiplier of the equation :math:`y^\top\alpha = 0`, and differentiable like
# :math:`\alpha`.

y = labels[train]
machine = OptLayer(
    variables=[cp.Variable(n)],
    parameters=[cp.Parameter((n, n), PSD=True), cp.Parameter()],
    objective=lambda α, Q, C: cp.quad_form(α, Q) / 2 - cp.sum(α),
    inequalities=[lambda α, Q, C: -α, lambda α, Q, C: α - C],
    equalities=[lambda α, Q, C: y.numpy() @ α],
)


def kernel(a, b, γ):
    """exp(-Σ γ_j (a_j - b_j)²), with one width γ for all features or one for each."""
    return torch.exp(-((a[:, None] - b) ** 2 * γ).sum(-1))


def score(x, points, hyper):
    """The decision function of a machine with hyper = (log C, log γ); its sign is the class."""
    C, γ = hyper[0].exp(), hyper[1:].exp()
    solution = machine.solve(y * kernel(x[train], x[train], γ) * y[:, None], C)
    α, b = solution.primal[0], solution.equality_duals[0]
    return kernel(points, x[train], γ) @ (α * y) + b


def loss(x, hyper, samples=validate):
    """Logistic: a smooth stand-in for the number of errors."""
    return softplus(-2 * labels[samples] * score(x, x[samples], hyper)).mean()


def errors(x, hyper):
    return 100 * (score(x, x[test], hyper).sign() != labels[test]).double().mean()


# %%
# Descending
# ----------
# Adam on the logarithms, from three corners; and a grid for comparison, all of it in one batch by
# ``vmap``.


def descend(x, hyper, steps=60, rate=0.25):
    hyper = hyper.clone().requires_grad_()
    optimizer = torch.optim.Adam([hyper], rate, betas=(0.7, 0.9))
    path = [hyper.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x, hyper).backward()
        optimizer.step()
        path.append(hyper.detach().clone())
    return torch.stack(path)


starts = torch.tensor([[-3.0, 2.0], [3.0, 2.0], [-3.0, -4.0]])
paths = torch.stack([descend(two, start) for start in starts])

axes_C, axes_γ = torch.linspace(-5, 5, 17), torch.linspace(-5.5, 3.5, 16)
grid = torch.cartesian_prod(axes_C, axes_γ)
surface = torch.func.vmap(lambda hyper: loss(two, hyper))(grid)
reached = torch.stack([loss(two, path[-1]).detach() for path in paths])

print("                  C       width   validation loss   errors in testing")
for name, hyper in [
    ("first start", starts[0]),
    *(("learned", path[-1]) for path in paths),
    ("best of the grid", grid[surface.argmin()]),
]:
    C, γ = hyper.exp()
    print(f"{name:17} {C:6.2f} {1 / γ:10.3f} {loss(two, hyper):10.4f} {errors(two, hyper):17.1f} %")

# %%
# What was learned
# ----------------
# Left: three descents into one valley, along which a higher price and a wider kernel nearly make up for
# each other. Beside it the machines at both ends of the red path, benign samples blue, malignant ones red,
# support vectors (:math:`\alpha_i > 0`) ringed. At the start nearly every sample is one, and the answer is
# "benign" everywhere; learned, there is a border.

fig, (valley, before, after) = plt.subplots(1, 3, figsize=(11, 3.7), width_ratios=[1.25, 1, 1])
levels = torch.logspace(surface.min().log10().item(), -0.03, 16)
valley.contourf(axes_C, axes_γ, surface.reshape(17, 16).T, levels, cmap="Blues", alpha=0.5, extend="max")
for path, color in zip(paths, ("C1", "C2", "C4")):
    valley.plot(*path.T, "o-", color=color, markersize=3, linewidth=0.8)
valley.plot(*grid[surface.argmin()], "*", color="C3", markersize=14, label="best of the grid")
valley.set(xlabel=r"$\log C$", ylabel=r"$\log \gamma$", title="validation loss")
valley.legend(loc="lower left", handletextpad=0)

sides = torch.linspace(-2.4, 4.2, 60), torch.linspace(-1.4, 3.6, 60)
points = torch.cartesian_prod(*sides)
for axis, hyper, title in ((before, starts[0], "at the first start"), (after, paths[0, -1], "learned")):
    plane = score(two, points, hyper).reshape(60, 60).T.clamp(-1.5, 1.5)
    axis.imshow(
        plane.numpy(),
        cmap="RdBu",
        vmin=-4,
        vmax=4,
        origin="lower",
        extent=(-2.4, 4.2, -1.4, 3.6),
        aspect="auto",
    )
    axis.contour(*sides, plane, [0], colors="0.3", linewidths=1.2)
    for side, color in ((1, "C0"), (-1, "C1")):
        axis.scatter(*two[train][y == side].T, s=12, color=color)
    C, γ = hyper.exp()
    α = machine(y * kernel(two[train], two[train], γ) * y[:, None], C)
    axis.scatter(*two[train][α > 1e-9].T, s=46, facecolors="none", edgecolors="0.25", linewidths=0.7)
    axis.set(xlabel="texture", title=title, xlim=(-2.4, 4.2), ylim=(-1.4, 3.6))
before.set_ylabel("concavity")

# %%
# Thirty-one hyper-parameters
# ---------------------------
# One width for each of the thirty features. A step costs what it did; a grid of ten values each would have
# :math:`10^{31}` points. But a loss on 200 samples that 31 numbers are fitted to is a training loss too:
# on the test samples it falls less, and the number of errors does not.

one = descend(features, torch.tensor([0.0, -3.0]))[-1]
each = descend(features, torch.cat([one[:1], one[1:].expand(30)]), steps=40, rate=0.1)[-1]
for name, hyper in (("one width", one), ("thirty", each)):
    print(
        f"{name:10} validation {loss(features, hyper):.4f}, test {loss(features, hyper, test):.4f},", end=" "
    )
    print(f"errors {errors(features, hyper):.1f} %")

# %%
# Checked
# -------
# The machine against scikit-learn's, the gradient of all 31 hyper-parameters against finite differences,
# and the three descents against the best of 272 points.

C, γ = paths[0, -1].exp()
theirs = SVC(C=C.item(), kernel="rbf", gamma=γ.item(), tol=1e-9).fit(two[train].numpy(), y.numpy())
apart = (score(two, two, paths[0, -1]) - torch.tensor(theirs.decision_function(two.numpy()))).abs().max()

slope = torch.func.grad(loss, argnums=1)(features, each)
shifts = 1e-5 * torch.eye(31)
differences = torch.stack([loss(features, each + h) - loss(features, each - h) for h in shifts]) / 2e-5
wrong = (slope - differences).norm() / slope.norm()

print(f"scikit-learn   {apart:.0e} apart")
print(f"31 gradients   {wrong:.0e} from differences")
print(f"descents       {', '.join(f'{x:.4f}' for x in reached)}; best of the grid {surface.min():.4f}")
assert apart < 1e-5
assert wrong < 1e-5
assert reached.max() < 1.03 * surface.min()
