r"""
Jacobian or adjoint?
====================

The solution of an equality-constrained quadratic programme,

.. math:: x(A, b) = \arg\min_x \{\, \tfrac12 x^\top P x : Ax = b \,\}, \qquad A \in \mathbb{R}^{m \times n},

has a derivative by b of n × m numbers and one by A of n × mn. A loss needs neither: its gradient has as
many numbers as A and b, and costs one linear system. This page counts numbers and systems for each way,
times them, and says when a whole Jacobian pays all the same.

Sources: A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd edition, SIAM 2008,
doi:10.1137/1.9780898717761; S. Gould, R. Hartley and D. Campbell, Deep Declarative Networks, IEEE TPAMI 44
(2022), doi:10.1109/TPAMI.2021.3059462.
"""

from time import perf_counter

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch.func import jacfwd, jacrev, vjp

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)
DELTA = 0.01

# %%
# The problem
# -----------
# x is the smoothest curve of n samples that m instruments could have seen: each row of A is the window of one
# of them, and b holds their readings. P is the sum of squared differences, and a little of the identity.


def smoothest(n, m):
    return OptLayer(
        variables=[cp.Variable(n)],
        parameters=[cp.Parameter((m, n)), cp.Parameter(m)],
        objective=lambda x, A, b: (cp.sum_squares(x[1:] - x[:-1]) + DELTA * cp.sum_squares(x)) / 2,
        equalities=[lambda x, A, b: A @ x - b],
    )


def instruments(n, m):
    """Windows at even distances, and readings."""
    grid, centres = torch.linspace(0, 1, n), (torch.arange(m) + 0.5) / m
    A = torch.exp(-(((grid - centres[:, None]) * m / 0.7) ** 2))
    return A / A.sum(1, keepdim=True), torch.sin(7 * centres) + centres


# %%
# One matrix behind all of them
# -----------------------------
# The optimality conditions are K (x, ν) = (0, b), and differentiating them gives
#
# .. math::
#
#    K = \begin{pmatrix} P & A^\top \\ A & 0 \end{pmatrix}, \qquad
#    K \begin{pmatrix} dx \\ d\nu \end{pmatrix} = \begin{pmatrix} -dA^\top \nu \\ db - dA\,x \end{pmatrix}.
#
# Forward, each of the m + mn inputs is a right-hand side. In reverse, each of the n outputs is one. The
# gradient of a loss with :math:`\bar x = \partial\ell/\partial x` takes a single one, whatever the number
# of inputs, and the gradient by A is a matrix of rank two:
#
# .. math::
#
#    K \begin{pmatrix} w \\ \mu \end{pmatrix} = \begin{pmatrix} \bar x \\ 0 \end{pmatrix}, \qquad
#    \bar b = \mu, \qquad \bar A = -\nu w^\top - \mu x^\top.

n, m = 12, 4
A, b = instruments(n, m)
D = torch.diff(torch.eye(n), dim=0)
P = D.T @ D + DELTA * torch.eye(n)
K = torch.cat([torch.cat([P, A.T], 1), torch.cat([A, torch.zeros(m, m)], 1)])
x, nu = torch.linalg.solve(K, torch.cat([torch.zeros(n), b])).split([n, m])

x_bar = torch.cos(torch.arange(n) * 1.0)  # of any loss
w, mu = torch.linalg.solve(K, torch.cat([x_bar, torch.zeros(m)])).split([n, m])
A_bar, b_bar = -torch.outer(nu, w) - torch.outer(mu, x), mu

# %%
# The layer gives the gradient by ``backward`` or ``torch.func.vjp``, the Jacobians by ``jacrev`` (n
# systems) or ``jacfwd`` (as many as inputs).

layer = smoothest(n, m)
solution, pull = vjp(layer, A, b)
gradient_A, gradient_b = pull(x_bar)
J_A, J_b = jacrev(layer, (0, 1))(A, b)
print("outputs × inputs     by b:", tuple(J_b.shape), "   by A:", tuple(J_A.shape))
print("numbers in Jacobians", J_A.numel() + J_b.numel(), "   in the gradient", A_bar.numel() + b_bar.numel())

# %%
# Time
# ----
# Each from the data to the numbers, the solution of the problem included; m = n/2, the best of three runs.
# By b there are half as many inputs as outputs, and forward mode solves half as many systems. By A it would
# solve n²/2 of them, and is left out. Below n = 64 or so all ways cost the fixed price of a call.

ways = {
    "solution alone": lambda layer, A, b: layer(A, b),
    "and a gradient by A and b": lambda layer, A, b: vjp(layer, A, b)[1](torch.ones(A.shape[1])),
    "and the Jacobian by b, forward": lambda layer, A, b: jacfwd(layer, 1)(A, b),
    "and the Jacobian by b, reverse": lambda layer, A, b: jacrev(layer, 1)(A, b),
    "and the Jacobian by A, reverse": lambda layer, A, b: jacrev(layer, 0)(A, b),
}


def milliseconds(way, *arguments, repeats=3):
    times = []
    for _ in range(repeats):
        start = perf_counter()
        way(*arguments)
        times.append(1e3 * (perf_counter() - start))
    return min(times)


sizes = [16, 32, 64, 128, 160]
times = {name: [] for name in ways}
for size in sizes:
    arguments = smoothest(size, size // 2), *instruments(size, size // 2)
    for name, way in ways.items():
        times[name].append(milliseconds(way, *arguments))
print(f"{'n':32s}" + "".join(f"{size:8d}" for size in sizes))
for name, row in times.items():
    print(f"{name:32s}" + "".join(f"{time:8.1f}" for time in row))

# %%
# The picture
# -----------
# Left, above: the two Jacobians side by side, one row for each sample of the curve, four columns by b, then
# 48 by A. A gradient is a combination of the rows, and the adjoint finds it, below, without making them.
# Right: the times.

scale = {"cmap": "RdBu_r", "aspect": "auto", "interpolation": "nearest"}
figure, axes = plt.subplot_mosaic(
    [["J", "time"], ["g", "time"]], figsize=(9.5, 3.9), width_ratios=[1.25, 1], height_ratios=[7, 1]
)
J = torch.cat([J_b, J_A.reshape(n, -1)], 1)
row = torch.cat([b_bar, A_bar.reshape(-1)])[None]
for axis, matrix in (axes["J"], J), (axes["g"], row):
    largest = matrix.abs().max().item()
    axis.imshow(matrix.numpy(), vmin=-largest, vmax=largest, **scale)
    axis.spines[["left", "bottom"]].set_visible(False)
    for column in range(m, m + m * n, n):
        axis.axvline(column - 0.5, color="0.25", linewidth=0.8)
    axis.set_yticks([])
axes["J"].set(ylabel="sample of x", xticks=[], title=f"Jacobian: {J.numel()} numbers, {n} systems")
names = ["b", *(f"row {i + 1} of A" for i in range(m))]
axes["g"].set_xticks([m / 2 - 0.5, *(m + n * i + n / 2 - 0.5 for i in range(m))], names)
axes["g"].set_title(f"gradient of a loss: {row.numel()} numbers, 1 system")
axes["g"].tick_params(length=0)
right = axes["time"]
for (name, row_of_times), color in zip(times.items(), ("0.6", "C2", "C0", "C4", "C1")):
    right.loglog(sizes, row_of_times, "o-", color=color, label=name, markersize=4)
right.set(xlabel="variables n, with m = n/2", ylabel="milliseconds", title="time, the solution included")
right.set(xticks=sizes, xticklabels=sizes, ylim=(None, 6 * max(map(max, times.values()))))
right.minorticks_off()
right.legend(fontsize=8, loc="upper left")

# %%
# What to take
# ------------
# *One loss:* the adjoint, always. *Few inputs*, say a single temperature that b depends on: forward mode,
# one system for each. *As many losses as outputs at the same solution*, or every sensitivity on its own, as
# in Gauss–Newton steps and error bars: a Jacobian, from the side with fewer systems. To keep the one by A
# and multiply with it does not pay: a product takes mn² multiplications, a solution with the factor of K
# only about (n + m)².

# %%
# Checked
# -------

errors = {
    "solution, by hand": (solution - x).abs().max(),
    "gradient by A, by hand": (gradient_A - A_bar).abs().max(),
    "gradient by b, by hand": (gradient_b - b_bar).abs().max(),
    "gradient by A, from the Jacobian": (gradient_A - torch.tensordot(x_bar, J_A, 1)).abs().max(),
    "gradient by b, from the Jacobian": (gradient_b - x_bar @ J_b).abs().max(),
    "forward against reverse": (jacfwd(layer, 1)(A, b) - J_b).abs().max(),
}
for name, error in errors.items():
    print(f"{name:34s} {error:.0e}")
assert max(errors.values()) < 1e-10
gradient, by_A = times["and a gradient by A and b"][-1], times["and the Jacobian by A, reverse"][-1]
print(f"at n = {sizes[-1]} the Jacobian by A takes {by_A / gradient:.0f} times as long as the gradient")
