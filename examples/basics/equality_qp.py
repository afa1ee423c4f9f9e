r"""
A quadratic programme by hand
=============================

The smallest optimisation layer, with every formula of its derivative written out:

.. math:: z^\star(P, q, A, b) = \arg\min_z \; \tfrac12 z^\top P z + q^\top z \quad\text{where}\quad Az = b.

Solving it is one linear system; differentiating it backwards is one more with the same matrix; and that
second system is itself a quadratic programme, so a solver of quadratic programmes is all one needs. The page
does it three ways: by hand, by OSQP twice, and by the layer. Every larger layer repeats these steps with its
active constraints in place of :math:`A`. Source: Amos and Kolter, *OptNet*, ICML 2017; for cones Agrawal,
Barratt, Boyd, Busseti and Moursi, *Differentiating through a cone program*, J. Appl. Numer. Optim. 2019.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import osqp
import torch
from scipy import sparse

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)

# %%
# Forward
# -------
# A point is optimal exactly when, with a multiplier :math:`\nu` for each equation,
#
# .. math::
#
#    \begin{bmatrix} P & A^\top \\ A & 0 \end{bmatrix}
#    \begin{bmatrix} z \\ \nu \end{bmatrix} = \begin{bmatrix} -q \\ b \end{bmatrix}.


def solve_kkt(P, A, top, bottom):
    """Solve with the one matrix of this page."""
    p = len(A)
    K = torch.cat([torch.cat([P, A.T], 1), torch.cat([A, torch.zeros(p, p)], 1)])
    return torch.linalg.solve(K, torch.cat([top, bottom])).split([len(P), p])


torch.manual_seed(0)
n, p = 30, 10
L = torch.randn(n, n)
P, q, A, b = L @ L.T / n + 0.1 * torch.eye(n), torch.randn(n), torch.randn(p, n), torch.randn(p)
target = torch.randn(n)
z, nu = solve_kkt(P, A, -q, b)

# %%
# Reverse
# -------
# Let a loss :math:`\ell(z^\star)` follow, here the squared distance to a target, and call its gradient
# :math:`\bar z`. By the implicit function theorem
#
# .. math::
#
#    \begin{bmatrix} P & A^\top \\ A & 0 \end{bmatrix}
#    \begin{bmatrix} d \\ \mu \end{bmatrix} = \begin{bmatrix} \bar z \\ 0 \end{bmatrix},
#    \qquad
#    \bar q = -d, \quad \bar b = \mu, \quad
#    \bar P = -\tfrac12 (d z^\top + z d^\top), \quad \bar A = -(\nu d^\top + \mu z^\top).


def pull_back(z, nu, d, mu):
    """The gradients with respect to P, q, A, b."""
    outer = torch.outer(d, z)
    return -(outer + outer.T) / 2, -d, -torch.outer(nu, d) - torch.outer(mu, z), mu


z_bar = z - target
by_hand = pull_back(z, nu, *solve_kkt(P, A, z_bar, torch.zeros(p)))

# %%
# The adjoint is a quadratic programme
# ------------------------------------
# Compare the two systems: :math:`(d, \mu)` are the solution and the multiplier of
#
# .. math:: \min_d \; \tfrac12 d^\top P d - \bar z^\top d \quad\text{subject to}\quad A d = 0.
#
# OSQP factorises once, in ``setup``. The same object then solves the second programme after an
# ``update`` of its vectors, and differentiates without knowing that it does.

solver = osqp.OSQP()
precise = {"eps_abs": 1e-10, "eps_rel": 1e-10, "adaptive_rho": False, "verbose": False}
upper, b_np = sparse.triu(P.numpy(), format="csc"), b.numpy()
solver.setup(upper, q.numpy(), sparse.csc_matrix(A.numpy()), b_np, b_np, **precise)
forward = solver.solve(raise_error=True)

z_osqp, nu_osqp = torch.tensor(forward.x), torch.tensor(forward.y)
solver.update(q=(target - z_osqp).numpy(), l=0 * b_np, u=0 * b_np)
adjoint = solver.solve(raise_error=True)
by_osqp = pull_back(z_osqp, nu_osqp, torch.tensor(adjoint.x), torch.tensor(adjoint.y))
print(f"OSQP: {forward.info.iter} iterations forward, {adjoint.info.iter} backward")

# %%
# The layer
# ---------
# The same in the package. :math:`P` is declared as positive semidefinite, so its gradient is symmetric, as
# above.

layer = OptLayer(
    variables=[cp.Variable(n)],
    parameters=[cp.Parameter((n, n), PSD=True), cp.Parameter(n), cp.Parameter((p, n)), cp.Parameter(p)],
    objective=lambda z, P, q, A, b: cp.quad_form(z, P) / 2 + q @ z,
    equalities=[lambda z, P, q, A, b: A @ z - b],
)
leaves = [theta.clone().requires_grad_() for theta in (P, q, A, b)]
loss = (layer(*leaves) - target).square().sum() / 2
by_layer = torch.autograd.grad(loss, leaves)

# %%
# In the plane
# ------------
# With two unknowns and one equation everything can be seen. On the left, moving :math:`b` moves the line, and
# the solution slides along a straight path, because it is linear in :math:`b`. On the right the adjoint
# programme: the same ellipses around another centre, the same line through the origin. Its multiplier
# :math:`\mu` is the rate at which the loss changes with :math:`b`.

P2, q2 = torch.tensor([[1.0, 0.6], [0.6, 1.4]]), torch.tensor([-0.3, -0.2])
A2, goal, here = torch.tensor([[1.0, 0.8]]), torch.tensor([0.3, 1.9]), 1.4
z2, _ = solve_kkt(P2, A2, -q2, torch.tensor([here]))
d2, mu2 = solve_kkt(P2, A2, z2 - goal, torch.zeros(1))
path = torch.stack([solve_kkt(P2, A2, -q2, b2[None])[0] for b2 in torch.linspace(-0.4, 2.3, 6)])


def draw(axis, centre, point, window, name):
    """Ellipses around the unconstrained minimiser, and the line through the constrained one."""
    side = torch.linspace(-3.2, 3.2, 200)
    away = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1) - centre
    height = ((away @ P2) * away).sum(-1) / ((point - centre) @ P2 @ (point - centre))
    axis.contour(side, side, height.sqrt(), levels=range(1, 10), colors="0.83", linewidths=1)
    axis.plot(*centre, "+", color="0.5", markersize=9)
    axis.axline(point.tolist(), slope=-(A2[0, 0] / A2[0, 1]).item(), color="C0")
    axis.set(aspect="equal", xlim=window[0], ylim=window[1], xlabel=f"${name}_1$", ylabel=f"${name}_2$")


figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4.4))
arrow = {"arrowstyle": "-|>", "color": "C1", "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
draw(left, -torch.linalg.solve(P2, q2), z2, [(-0.9, 2.4), (-1, 2.3)], "z")
left.plot(*path.T, "o-", color="C3", markersize=4, linewidth=1, label="$z^*$ as $b$ moves")
left.annotate("", z2, goal, arrowprops=arrow)
left.plot(*goal, "*", color="C1", markersize=11, label="target; the arrow is $\\bar z$")
left.plot(*z2, "o", color="C0", markersize=8, label="$z^*$")
left.set_title(r"forward: $\frac{1}{2}z^T\!Pz + q^T\!z$ on $Az = b$")

draw(right, torch.linalg.solve(P2, z2 - goal), d2, [(-0.6, 2.7), (-2.9, 0.4)], "d")
right.annotate("", z2 - goal, (0, 0), arrowprops=arrow)
right.annotate(r"$\bar z$", z2 - goal, (-14, -4), textcoords="offset points", color="C1", fontsize=13)
right.plot(*d2, "o", color="C2", markersize=8, label=r"$d$, so that $\bar q = -d$")
right.plot([], [], " ", label=rf"multiplier $\mu = \bar b = {mu2.item():.2f}$")
right.set_title(r"adjoint: $\frac{1}{2}d^T\!Pd - \bar z^T\!d$ on $Ad = 0$")
for axis, corner in ((left, "lower left"), (right, "upper right")):
    axis.legend(loc=corner, fontsize=9)

# %%
# Checked
# -------
# All four gradients, three ways. By hand and from the layer they agree to rounding error, from OSQP to the
# accuracy of its two answers; and :math:`\mu` in the plane is the slope of the loss by central differences.

print("largest difference    layer     OSQP   from the gradient by hand")
errors = {}
for name, hand, *others in zip("PqAb", by_hand, by_layer, by_osqp):
    errors[name] = [(other - hand).abs().max().item() for other in others]
    print(f"{name:<18}{errors[name][0]:9.0e}{errors[name][1]:9.0e}")


def loss_at(b2):
    return (solve_kkt(P2, A2, -q2, torch.tensor([b2]))[0] - goal).square().sum() / 2


slope_error = ((loss_at(here + 1e-5) - loss_at(here - 1e-5)) / 2e-5 - mu2).abs().item()
print(f"slope of the loss in b: {slope_error:.0e} from central differences")
assert max(layer for layer, _ in errors.values()) < 1e-11
assert max(twice for _, twice in errors.values()) < 1e-6
assert slope_error < 1e-8
