r"""
Unrolled or implicit: the derivative comes one step behind
==========================================================

An iteration :math:`x_{k+1} = \Phi(x_k, \theta)` that converges to a solution of :math:`x = \Phi(x, \theta)`
can be differentiated step by step,

.. math:: \dot x_{k+1} = \partial_x\Phi\, \dot x_k + \partial_\theta\Phi,
   \qquad\text{or at its end:}\quad \dot x = (I - \partial_x\Phi)^{-1}\, \partial_\theta\Phi,

or by its last step alone, with :math:`\dot x_k` taken for 0. The page counts digits and memory of the
three, on the Babylonian square root and on gradient descent.

Sources: J. C. Gilbert, Automatic differentiation and iterative processes, Optim. Methods Softw. 1 (1992),
doi:10.1080/10556789208805503; J. Bolte, E. Pauwels and S. Vaiter, One-step differentiation of iterative
algorithms, NeurIPS 2023, arXiv:2305.13768.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes
from torch.func import grad, jacfwd

from optlayer import InputError, implicit

torch.set_default_dtype(torch.float64)


def iterate(step, x, theta, count):
    for _ in range(count):
        x = step(x, theta)
    return x


def unrolled(step, x, theta, count):
    return iterate(step, x, theta, count)


def at_the_end(step, x, theta, count):
    x = iterate(step, x, theta.detach(), count)
    return implicit(lambda x, theta: x - step(x, theta), x, theta)


def last_step(step, x, theta, count):
    return step(iterate(step, x, theta.detach(), count - 1), theta)


ways = {"unrolled": unrolled, "last step": last_step, "implicit": at_the_end}

# %%
# The Babylonian square root
# --------------------------
# :math:`x \leftarrow (x + a/x)/2` is Newton's method on x² = a. At the root :math:`\partial_x\Phi = 0`, so
# that digits double, and so do those of the derivative, from the x of the step before: the error of
# :math:`\dot x_{k+1}` has the size of that of :math:`x_k`. For the same reason the last step alone will do.
# The implicit derivative, 1/(2x) once x is there, is as good as x itself.


def babylonian(x, a):
    return (x + a / x) / 2


a, one = torch.tensor(2.0), torch.tensor(1.0)
counts = range(1, 7)
value_error = [abs(iterate(babylonian, one, a, k) - 2**0.5).item() for k in counts]
root_errors = {
    name: [abs(grad(way, argnums=2)(babylonian, one, a, k) - 0.5 / 2**0.5).item() for k in counts]
    for name, way in ways.items()
}
print("steps  value     " + "  ".join(f"{name:9s}" for name in ways))
for k, row in enumerate(zip(value_error, *root_errors.values()), 1):
    print(f"{k:5d}  " + "   ".join(f"{error:7.1e}" for error in row))

# %%
# Under ``torch.func`` an unfinished iterate is taken as it is, as above. In a plain call ``implicit`` looks
# at the residual first, and refuses what is no root:

try:
    at_the_end(babylonian, one, a.requires_grad_(), 2)
except InputError as error:
    print(error)

# %%
# Gradient descent
# ----------------
# Ridge regression on the diabetes data, :math:`w = \arg\min \lVert Xw - y\rVert^2/2n + \theta\lVert
# w\rVert^2/2`, with the best fixed step size, converges like :math:`\rho^k` with :math:`\rho = (\kappa -
# 1)/(\kappa + 1)` for the condition number κ. The unrolled derivative adds up k errors of the past and
# converges like :math:`k\rho^{k-1}`. The last step alone never gets there: it is off by the factor
# :math:`\partial_x\Phi`, which is ρ, not 0.

X, y = (torch.tensor(part) for part in load_diabetes(return_X_y=True))
X, y = X / X.std(0), (y - y.mean()) / y.std()
n, features = X.shape
H, theta, w0 = X.T @ X / n, torch.tensor(0.3), torch.zeros(features)
low, high = (torch.linalg.eigvalsh(H) + theta)[[0, -1]]
rho = ((high - low) / (high + low)).item()


def descend(w, theta):
    return w - 2 / (low + high) * (X.T @ (X @ w - y) / n + theta * w)


ridge = torch.linalg.solve(H + theta * torch.eye(features), X.T @ y / n)
slope = -torch.linalg.solve(H + theta * torch.eye(features), ridge)
steps = [1, *range(10, 301, 10)]
w_error = [(iterate(descend, w0, theta, k) - ridge).norm() / ridge.norm() for k in steps]
w_errors = {
    name: [(jacfwd(way, argnums=2)(descend, w0, theta, k) - slope).norm() / slope.norm() for k in steps]
    for name, way in ways.items()
}
print(f"κ = {high / low:.1f}, ρ = {rho:.3f}")

# %%
# Memory
# ------
# What autograd keeps until the backward pass: of every step, or of the solution alone.


def kept(output):
    """Bytes that the graph behind a tensor holds, each storage once."""
    storages, nodes, seen = {}, [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for tensor in (*saved, *getattr(node, "saved_tensors", ())):
            if isinstance(tensor, torch.Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


leaf = theta.clone().requires_grad_()
memory_steps = [k for k in steps if k >= 100]
memory = {name: [kept(way(descend, w0, leaf, k)) for k in memory_steps] for name, way in ways.items()}

# %%
# The picture
# -----------
# Left, the doubling of digits, the derivative one step behind. Middle, the lag of gradient descent, which
# grows. Right, memory in bytes, from where the descent is accurate enough for ``implicit`` to accept it.

figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.7))
colors = {"unrolled": "C1", "last step": "C3", "implicit": "C0"}
axes[0].semilogy(counts, value_error, "o-", color="0.6", linewidth=5, markersize=9, label="value")
axes[1].semilogy(steps, w_error, color="0.7", linewidth=5, label="value")
for name, color in colors.items():
    style = "s:" if name == "last step" else "o-"
    floor = [max(error, 1e-17) for error in root_errors[name]]
    axes[0].semilogy(counts, floor, style, color=color, markersize=4, label=f"derivative, {name}")
    axes[1].semilogy(steps, w_errors[name], color=color, label=name)
    axes[2].semilogy(memory_steps, memory[name], color=color, label=name)
axes[1].semilogy(
    steps, [k * rho ** (k - 1) for k in steps], "--", color="0.2", linewidth=1, label="$k\\rho^{k-1}$"
)
axes[0].set(xlabel="steps", ylabel="error", title="square root of 2")
axes[1].set(xlabel="steps", ylabel="relative error", title="ridge by gradient descent", ylim=(1e-16, 30))
axes[2].set(xlabel="steps", title="bytes kept for the backward pass")
axes[0].legend(fontsize=8)
axes[1].legend(fontsize=8)
axes[2].legend(fontsize=8, loc="center right")

# %%
# Checked
# -------

print("value after k, unrolled derivative after k + 1:")
print([(f"{v:.0e}", f"{d:.0e}") for v, d in zip(value_error[:3], root_errors["unrolled"][1:4])])
