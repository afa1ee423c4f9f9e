r"""
Entropic transport: implicit against unrolled Sinkhorn
======================================================

The cheapest way to move a distribution a onto b, smoothed by entropy,

.. math::

   P = \arg\min_P \{\, \langle C, P\rangle - \varepsilon H(P) :
   P \mathbf 1 = a,\ P^\top \mathbf 1 = b \,\},

is found by Sinkhorn's iteration, hundreds of steps of which autograd would keep every one. It need not: the
plan solves equations, and they hold its derivative. Both gradients are the same; memory and time are not.

Sources: M. Cuturi, Sinkhorn distances, NeurIPS 2013, arXiv:1306.0895; G. Luise et al., Differential
properties of Sinkhorn approximation, NeurIPS 2018, arXiv:1805.11897; M. Eisenberger et al., A unified
framework for implicit Sinkhorn differentiation, CVPR 2022, arXiv:2205.06688.
"""

from time import perf_counter

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from optlayer import OptLayer, implicit

torch.set_default_dtype(torch.float64)

# %%
# Sinkhorn's iteration
# --------------------
# The plan has the form :math:`P_{ij} = \exp((f_i + g_j - C_{ij})/\varepsilon)`. For given f the potential g
# that fits the column sums is a formula, and the other way round; the iteration takes them in turn, in
# logarithms.


def fitted(f, C, b, eps):
    """The potential of the other side, for which the sums over f's side are b."""
    return eps * (b.log() - torch.logsumexp((f[:, None] - C) / eps, 0))


def plan(f, C, b, eps):
    return torch.exp((f[:, None] + fitted(f, C, b, eps) - C) / eps)


def sinkhorn(C, a, b, eps, steps):
    f = torch.zeros_like(a)
    for _ in range(steps):
        f = fitted(fitted(f, C, b, eps), C.T, a, eps)
    return f


def unrolled(C, a, b, eps, steps):
    return plan(sinkhorn(C, a, b, eps, steps), C, b, eps)


# %%
# Its equations
# -------------
# With g eliminated, the row sums determine f up to a constant, which may as well be such that the last of f
# is 0; the last row then has its sum by itself. That leaves n − 1 equations for as many unknowns.


def implicit_plan(C, a, b, eps, steps):
    def potential(u):
        return torch.cat([u, u.new_zeros(1)])

    def row_sums(u, C, a, b):
        return (plan(potential(u), C, b, eps).sum(1) - a)[:-1]

    with torch.no_grad():
        f = sinkhorn(C, a, b, eps, steps)
    u = implicit(row_sums, (f - f[-1])[:-1], C, a, b)
    return plan(potential(u), C, b, eps)


# %%
# The problem itself can be handed to a layer, which then has all n·m entries of P for unknowns. That is
# convenient for small problems, and slow for larger ones.


def transport_layer(n, m, eps):
    return OptLayer(
        variables=[cp.Variable((n, m))],
        parameters=[cp.Parameter((n, m)), cp.Parameter(n), cp.Parameter(m)],
        objective=lambda P, C, a, b: cp.sum(cp.multiply(C, P)) - eps * cp.sum(cp.entr(P)),
        equalities=[lambda P, C, a, b: cp.sum(P, axis=1) - a, lambda P, C, a, b: cp.sum(P, axis=0) - b],
    )


# %%
# A digit into another
# --------------------
# The lit pixels of a 1 and of a 3. The loss is the transport cost ⟨C, P⟩ without its entropy, Luise's
# *sharp* Sinkhorn distance, so that the gradient has to go through P.


def digit(which):
    image = torch.tensor(load_digits().images[which])
    places = torch.nonzero(image > 0)
    return places.flip(1) * torch.tensor([1.0, -1.0]) / 7, image[image > 0] / image.sum()


EPS, STEPS = 0.03, 400
(X, a), (Y, b) = digit(1), digit(3)
leaves = X.clone().requires_grad_(), a.clone().requires_grad_()
gradients = {}
for way in unrolled, implicit_plan:
    C = torch.cdist(leaves[0], Y).square()
    P = way(C, leaves[1], b, EPS, STEPS)
    gradients[way.__name__] = torch.autograd.grad((C * P).sum(), leaves)
P = P.detach()
by_weight = gradients["implicit_plan"][1]
by_weight = by_weight - by_weight.mean()  # a keeps its sum: only differences count
print(f"{len(a)} to {len(b)} pixels, row and column sums off by {(P.sum(0) - b).abs().max():.0e}")

# %%
# Time and memory
# ---------------
# Two random clouds of n points. Counted is what autograd keeps for the backward pass, each storage once;
# timed are forward and backward together. Both ways take the same steps; a smaller ε needs more of them.
# (``implicit`` makes its Jacobian from n − 1 products at once, a few n³ numbers for a moment.)


def kept(output):
    """Bytes that the graph behind a tensor holds, each storage once."""
    nodes, seen, held = [output.grad_fn], {None}, {}
    for node in nodes:  # the list grows while it is read
        if node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
            saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
            for tensor in filter(torch.is_tensor, (*saved, *getattr(node, "saved_tensors", ()))):
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(held.values())


def cost(way, n, *options):
    """Kept MiB, seconds (the better of two), and the gradient by C of a fixed function of the plan."""
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.rand(n, 2, generator=generator) for _ in range(2))
    C, a = torch.cdist(X, Y).square().requires_grad_(), torch.full((n,), 1 / n)
    weights, times = torch.cos(torch.arange(n * n)).reshape(n, n), []
    for _ in range(2):
        start = perf_counter()
        P = way(C, a, a, *options)
        (gradient,) = torch.autograd.grad((weights * P).sum(), C, retain_graph=True)
        times.append(perf_counter() - start)
    return kept(P) / 2**20, min(times), gradient


sizes, regimes = [8, 16, 32, 64, 96], {0.1: 60, 0.02: 800}  # ε, steps
table, disagreement = {}, 0.0
print("    n   steps   unrolled: MiB, seconds   implicit: MiB, seconds")
for eps, steps in regimes.items():
    for n in sizes:
        one, other = (cost(way, n, eps, steps) for way in (unrolled, implicit_plan))
        table[eps, n] = one[:2], other[:2]
        disagreement = max(disagreement, (one[2] - other[2]).abs().max() / one[2].abs().max())
        print(f"{n:5d} {steps:7d} {one[0]:16.2f} {one[1]:7.3f} {other[0]:16.3f} {other[1]:7.3f}")
_, layer_seconds, by_layer = cost(transport_layer(24, 24, 0.1), 24)
_, equations_seconds, by_equations = cost(implicit_plan, 24, 0.1, 100)
print(f"n = 24: the layer {layer_seconds:.3f} s, its equations alone {equations_seconds:.3f} s")

# %%
# Unrolled memory grows with steps × n², implicit with n² alone. In time there is a crossing: few steps are
# cheaper to unroll than n − 1 rows of a Jacobian are to make, many are not. Of the two implicit
# declarations the equations are the faster one, and the one used here.

# %%
# The picture
# -----------
# Left: the 1 (dots, as large as their weight) moves to the 3 (squares); arrows go to the mean place that
# each pixel's mass is sent to, for every dot. Its colour is the derivative of the cost by its weight: red
# pixels would better be lighter, blue ones heavier. Right: memory and time.

figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.9))
axes[0].scatter(*Y.T, s=2200 * b, marker="s", color="0.86")
arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "color": "0.45", "width": 0.005}
axes[0].quiver(*X.T, *((P @ Y) / a[:, None] - X).T, **arrows)
largest = by_weight.abs().max()
dots = axes[0].scatter(*X.T, s=2200 * a, c=by_weight, cmap="coolwarm", vmin=-largest, vmax=largest, zorder=3)
figure.colorbar(dots, ax=axes[0], label="derivative by weight", shrink=0.75)
axes[0].set(title="a 1 becomes a 3", xticks=[], yticks=[])
axes[0].spines[:].set_visible(False)
axes[0].set_aspect("equal")
for column, name in enumerate(["MiB kept for the backward pass", "seconds, forward and backward"]):
    axis = axes[1 + column]
    for (eps, steps), style in zip(regimes.items(), ("--", "-")):
        for way, color in enumerate(["C1", "C0"]):
            row = [table[eps, n][way][column] for n in sizes]
            label = f"{('unrolled', 'implicit')[way]}, {steps} steps"
            axis.loglog(sizes, row, style, color=color, label=label)
    axis.set(xlabel="points n", title=name, xticks=sizes, xticklabels=sizes)
    axis.minorticks_off()
axes[1].legend(fontsize=8, loc="upper left", handlelength=3)
axes[1].set_ylim(top=2e4)
axes[2].set_ylim(0.005, 5)

# %%
# Checked
# -------

checks = {
    "digits, by places": gradients["unrolled"][0] - gradients["implicit_plan"][0],
    "digits, by weights": (gradients["unrolled"][1] - gradients["implicit_plan"][1]).diff(),
    "clouds, by C, relative": disagreement,
    "n = 24, layer against equations": by_layer - by_equations,
}
for name, error in checks.items():
    print(f"{name:32s} {error.abs().max():.0e}")
assert max(error.abs().max() for error in checks.values()) < 1e-6
ratio = table[0.02, 96][0][0] / table[0.02, 96][1][0]
print(f"800 steps unrolled keep {ratio:.0f} times as much at n = 96")
assert ratio > 100
