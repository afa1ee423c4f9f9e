r"""
Data poisoning: which points would an attacker move?
====================================================

A classifier is trained by logistic regression, and an attacker may move its training points x_i a little.
What it does to the loss on test data goes through the trained weights,

.. math::

   \ell(X) = \ell_{\mathrm{test}}(w(X)), \qquad
   w(X) = \arg\min_w \frac1n \sum_i \log\bigl(1 + e^{-y_i (w^\top x_i + w_0)}\bigr)
   + \frac\lambda2 \lVert w\rVert^2,

and the gradient of that composition says where to push each point. The same arrows, read the other way,
show which measurements a model leans on.

Sources: B. Biggio, B. Nelson and P. Laskov, Poisoning attacks against support vector machines, ICML 2012,
arXiv:1206.6389; P. W. Koh and P. Liang, Understanding black-box predictions via influence functions, ICML
2017, arXiv:1703.04730; A. Agrawal et al., Differentiable convex optimization layers, NeurIPS 2019,
arXiv:1910.12430.
"""

from itertools import pairwise

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from torch.nn.functional import softplus

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)

# %%
# Data
# ----
# Breast cancer: thirty measurements of 569 tumours, standardised, and reduced to their two principal
# components. Sixty tumours are for training, the others for the test.

measurements, target = load_breast_cancer(return_X_y=True)
Z = torch.tensor(measurements)
Z = (Z - Z.mean(0)) / Z.std(0)
Z = Z @ torch.linalg.svd(Z, full_matrices=False).Vh[:2].T
labels = 2.0 * torch.tensor(target) - 1  # +1 benign, -1 malignant
order = torch.randperm(len(Z), generator=torch.Generator().manual_seed(0))
train, test = order[:60], order[60:]
X, y = Z[train], labels[train]
n = len(X)

# %%
# The layer
# ---------
# The declaration is the formula: n points for parameters, the product of a parameter and a variable inside
# the logistic function. The labels are constants.


def loss(w, bias, X):
    return cp.sum(cp.logistic(-cp.multiply(y.numpy(), X @ w + bias))) / n + 0.05 * cp.sum_squares(w) / 2


train_logistic = OptLayer([cp.Variable(2), cp.Variable()], [cp.Parameter((n, 2))], loss)


def test_loss(X):
    w, bias = train_logistic(X)
    return softplus(-labels[test] * (Z[test] @ w + bias)).mean()


leaf = X.clone().requires_grad_()
clean = test_loss(leaf)
(gradient,) = torch.autograd.grad(clean, leaf)
print(f"test loss {clean:.4f}; the strongest point moves it by {gradient.norm(dim=1).max():.4f} per unit")

# %%
# By hand
# -------
# With a = (x, 1), u = (w, w₀), m_i = y_i uᵀa_i and σ(−m) the probability that the model gives to the wrong
# answer, the optimality condition and its Jacobian are
#
# .. math:: F = -\frac1n \sum_i \sigma(-m_i)\, y_i a_i + \lambda (w, 0) = 0, \qquad
#    H = \frac1n \sum_i \sigma(m_i)\sigma(-m_i)\, a_i a_i^\top + \lambda\, \mathrm{diag}(1, 1, 0),
#
# and with the adjoint :math:`Hv = \nabla \ell_{\mathrm{test}}` the gradient by x_i is
#
# .. math:: \frac1n \bigl( \sigma(-m_i)\, y_i\, v_{1:2} - \sigma(m_i)\sigma(-m_i)\, (v^\top a_i)\, w \bigr).

with torch.no_grad():
    w, bias = train_logistic(X)
    u = torch.cat([w, bias[None]])
    a, A = (torch.cat([points, torch.ones(len(points), 1)], 1) for points in (X, Z[test]))
    wrong, curvature = torch.sigmoid(-y * (a @ u)), torch.sigmoid(a @ u) * torch.sigmoid(-a @ u)
    H = (a.T * curvature) @ a / n + 0.05 * torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    of_test = -((labels[test] * torch.sigmoid(-labels[test] * (A @ u)))[:, None] * A).mean(0)
    v = torch.linalg.solve(H, of_test)
    by_hand = ((wrong * y)[:, None] * v[:2] - (curvature * (a @ v))[:, None] * w) / n

# %%
# The attack
# ----------
# All points together move by a length r in the direction of the gradient, the way in which the loss grows
# most for that budget; the first-order prediction is ℓ + r‖∇‖. Going on, with a new gradient after each
# step, leads further.

radii = torch.linspace(0, 12, 13)
predicted = clean.detach() + radii * gradient.norm()
once = torch.stack([test_loss(X + r * gradient / gradient.norm()) for r in radii])
points, followed = X.clone().requires_grad_(), [clean.item()]
for stride in radii.diff():
    (direction,) = torch.autograd.grad(test_loss(points), points)
    points = (points + stride * direction / direction.norm()).detach().requires_grad_()
    followed.append(test_loss(points).item())
poisoned = points.detach()
print("length   predicted   one gradient   followed")
for row in list(zip(radii, predicted, once, followed))[::3]:
    print("{:6.1f} {:10.4f} {:13.4f} {:11.4f}".format(*(float(x) for x in row)))


def accuracy(X):
    w, bias = train_logistic(X)
    return ((Z[test] @ w + bias) * labels[test] > 0).double().mean().item()


print(f"test accuracy {100 * accuracy(X):.1f} %, after the attack {100 * accuracy(poisoned):.1f} %")

# %%
# The picture
# -----------
# Points beyond the boundary on the wrong side, and those near it, are pushed furthest: they are the ones
# that the model leans on. Points deep inside their own class hardly matter. Faint: the test data.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=[1.6, 1])
for sign, color, name in (1, "C0", "benign"), (-1, "C1", "malignant"):
    mine = labels[test] == sign
    left.plot(*Z[test][mine].T, ".", color=color, alpha=0.15, markersize=5)
    left.plot(*X[y == sign].T, "o", color=color, markersize=5, label=name)
moves = poisoned - X
left.quiver(*X.T, *moves.T, color="0.25", angles="xy", scale_units="xy", scale=1, width=0.004)
across = torch.linspace(-10, 8, 2)
for data, style, name in (X, "-", "trained on the data"), (poisoned, "--", "on the poisoned data"):
    w, bias = (part.detach() for part in train_logistic(data))
    left.plot(across, -(w[0] * across + bias) / w[1], style, color="0.3", label=name)
left.set(xlabel="first principal component", ylabel="second principal component")
left.set(xlim=(-10, 8), ylim=(-8.5, 8), title="sixty training points, and where they are pushed")
left.legend(fontsize=8, loc="lower right")
right.plot(radii, predicted, "--", color="0.6", label="predicted")
right.plot(radii, once.detach(), "o-", color="C2", markersize=4, label="one gradient")
right.plot(radii, followed, "o-", color="C4", markersize=4, label="gradient followed")
right.set(xlabel="length of the path of all points", ylabel="test loss", title="what it does")
right.legend()

# %%
# Checked
# -------
# The gradient against the formula and central differences; the loss against its prediction.

step = 1e-5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    differences = (test_loss(X + step) - test_loss(X - step)) / 2
slope = (gradient * step).sum()
print(f"by hand              {(gradient - by_hand).abs().max():.0e}")
print(f"central differences  {abs(differences / slope - 1):.0e}, relative")
print(f"first step           {(once[1] - clean) / (predicted[1] - clean):.3f} of what was predicted")
assert (gradient - by_hand).abs().max() < 1e-12
assert abs(differences / slope - 1) < 1e-6
assert 0.8 < (once[1] - clean) / (predicted[1] - clean) < 1.25
assert all(later > earlier for earlier, later in pairwise(followed))
