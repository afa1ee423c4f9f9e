r"""
Unrolled or implicit: which digits come when
============================================

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

from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes
from torch.func import grad, jvp

from optlayer import InputError, implicit

torch.set_default_dtype(torch.float64)

# %%
# Three ways
# ----------


def unrolled(step, x, theta, count):
    for _ in range(count):
        x = step(x, theta)
    return x


def at_the_end(step, x, theta, count):
    x = unrolled(step, x, theta.detach(), count)
    return implicit(lambda x, theta: x - step(x, theta), x, theta)


def last_step(step, x, theta, count):
    return step(unrolled(step, x, theta.detach(), count - 1), theta)


ways = {"unrolled": unrolled, "last step": last_step, "implicit": at_the_end}

# %%
# The Babylonian square root
# --------------------------
# :math:`x \leftarrow (x + a/x)/2` is Newton's method on x² = a, and its digits double. With :math:`\delta_k`
# for the error of :math:`x_k`, and :math:`\partial_x\Phi = \delta_k/\sqrt a` to first order, the derivatives
# have these errors:
#
# * last step: as :math:`\delta_{k-1}`, one step behind, for what it neglects is :math:`\partial_x\Phi`;
# * unrolled: about :math:`2^k \delta_k`, as :math:`\delta_k` falls like :math:`q^{2^k}` q depending on a;
# * implicit: :math:`1/(x_k + a/x_k) = 1/(2x_{k+1})`, and so as :math:`\delta_{k+1}`, one step ahead.


def babylonian(x, a):
    return (x + a / x) / 2


a, one = torch.tensor(2.0), torch.tensor(1.0)
counts = range(1, 7)
value_error = [abs(unrolled(babylonian, one, a, k) - 2**0.5).item() for k in counts]
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
# w\rVert^2/2`, with the best fixed step, converges like :math:`\rho^k`, :math:`\rho = (\kappa - 1)/(\kappa
# + 1)` for the condition number κ. The unrolled derivative collects an error from each of its k steps and
# converges like :math:`k\rho^{k-1}`; the implicit one keeps :math:`\rho^k`. The last step alone never
# arrives: what it neglects, :math:`\partial_x\Phi`, has norm ρ, not 0.

X, y = (torch.tensor(part) for part in load_diabetes(return_X_y=True))
X, y = X / X.std(0), (y - y.mean()) / y.std()
H, c = X.T @ X / len(X), X.T @ y / len(X)
theta, start = torch.tensor(0.3), torch.zeros(len(c))
low, high = (torch.linalg.eigvalsh(H) + theta)[[0, -1]]
rho = ((high - low) / (high + low)).item()


def descend(w, theta):
    return w - 2 / (low + high) * (H @ w - c + theta * w)


regular = H + theta * torch.eye(len(c))
ridge = torch.linalg.solve(regular, c)
slope = -torch.linalg.solve(regular, ridge)


def off(x, exact):
    return ((x - exact).norm() / exact.norm()).item()


steps = [1, *range(20, 281, 20)]
w_errors = {name: [] for name in ways}
for name, way in ways.items():
    for k in steps:
        w, by_theta = jvp(partial(way, descend, start, count=k), (theta,), (torch.tensor(1.0),))
        w_errors[name].append(off(by_theta, slope))
w_error = [off(unrolled(descend, start, theta, k), ridge) for k in steps]
print(f"κ = {high / low:.1f}, ρ = {rho:.3f}")

# %%
# Memory
# ------
# What autograd keeps until the backward pass: of every step, or of the solution alone.


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


leaf = theta.clone().requires_grad_()
long = [k for k in steps if k >= 100]
memory = {name: [kept(way(descend, start, leaf, k)) for k in long] for name, way in ways.items()}

# %%
# The picture
# -----------
# Left, the doubling of digits: implicit one step ahead of x, the last step one behind. Middle, the lag of
# unrolled gradient descent, a factor that grows with k. Right, memory, from where the descent is accurate
# enough for ``implicit`` to accept it.

figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.7))
colors = {"last step": "C3", "unrolled": "C1", "implicit": "C0"}
axes[0].semilogy(counts, value_error, color="0.75", linewidth=6, label="value")
axes[1].semilogy(steps, w_error, color="0.75", linewidth=6, label="value")
for name, color in colors.items():
    axes[0].semilogy(counts, [max(e, 1e-17) for e in root_errors[name]], "o-", color=color, label=name)
    axes[1].semilogy(steps, w_errors[name], color=color, label=name)
    axes[2].plot(long, memory[name], "--" if name == "implicit" else "-", color=color, label=name)
bound = [k * rho ** (k - 1) for k in steps]
axes[1].semilogy(steps, bound, "--", color="0.2", linewidth=1, label="$k\\rho^{k-1}$")
axes[0].set(xlabel="steps", ylabel="error", title="square root of 2", ylim=(3e-18, 10))
axes[1].set(xlabel="steps", ylabel="relative error", title="ridge by gradient descent", ylim=(1e-16, 30))
axes[2].set(xlabel="steps", title="bytes kept for the backward pass")
for axis in axes:
    axis.legend(fontsize=9)

# %%
# Checked
# -------

ratios = {
    "last step, by the value one step before": (root_errors["last step"][1:], value_error),
    "implicit, by the value one step after": (root_errors["implicit"], value_error[1:]),
    "unrolled, by the value": (root_errors["unrolled"], value_error),
}
ratios = {name: [d / v for d, v in zip(*pair)][:3] for name, pair in ratios.items()}
for name, row in ratios.items():
    print(f"{name:40s}", " ".join(f"{ratio:.2f}" for ratio in row))
behind, ahead, factor = ratios.values()
assert all(0.1 < ratio < 0.5 for ratio in behind + ahead)
assert all(1.5 < later / earlier < 2.5 for earlier, later in pairwise(factor))

at = steps.index(200)
print(f"ridge after 200 steps: value {w_error[at]:.0e}", {k: f"{e[at]:.0e}" for k, e in w_errors.items()})
assert 0.01 < w_errors["unrolled"][at] / bound[at] < 1
assert 0.1 < w_errors["implicit"][at] / w_error[at] < 3
assert max(w_errors["implicit"][-1], w_errors["unrolled"][-1]) < 1e-12 < 0.1 < w_errors["last step"][-1]

per_step = (memory["unrolled"][-1] - memory["unrolled"][0]) / (long[-1] - long[0])
print(f"memory: {per_step:.0f} bytes for each step unrolled, {memory['implicit'][-1]} in all implicit")
assert per_step >= 8 * len(c)
assert memory["implicit"][0] == memory["implicit"][-1]
