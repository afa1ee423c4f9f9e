r"""
Fitting a polynomial, and which point moves it
==============================================

A polynomial of degree :math:`d` is fitted to points :math:`(x_i, y_i)`, freely and under the condition that
it never falls:

.. math::

   c^\star(x, y) = \arg\min_c \; \tfrac12 \sum_i \Bigl(\sum_k c_k T_k(x_i) - y_i\Bigr)^2
   \quad\text{where}\quad \sum_k c_k T_k'(t) \ge 0 \ \text{ for } t \text{ on a grid.}

The layer differentiates the fit with respect to every point, in height and in place. Without the condition
this is the *hat matrix* of regression, whose diagonal is called leverage and whose trace counts degrees of
freedom; with it there is no such matrix to write down in advance, and the same derivative still says what
each point does. Source: Hoaglin and Welsch, *The hat matrix in regression and ANOVA*, The American
Statistician 1978, DOI 10.1080/00031305.1978.10479237.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch.func import jacfwd, jacrev, vmap

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)

# %%
# Data
# ----
# A step with noise. Chebyshev polynomials :math:`T_0, \dots, T_9` span the fits; they follow from
# :math:`T_{k+1} = 2xT_k - T_{k-1}`.

N, TERMS = 22, 10
generator = torch.Generator().manual_seed(1)
x = torch.linspace(-1, 1, N) + 0.03 * torch.randn(N, generator=generator)
y = torch.tanh(4 * x) + 0.25 * torch.randn(N, generator=generator)


def basis(t):
    T = [torch.ones_like(t), t]
    while len(T) < TERMS:
        T.append(2 * t * T[-1] - T[-2])
    return torch.stack(T)


t = torch.linspace(-1.03, 1.03, 100)
rows, slopes = vmap(basis)(t), vmap(jacfwd(basis))(t)

# %%
# Two layers
# ----------
# They differ in one line. The matrix of the :math:`T_k(x_i)` is a parameter, so that the derivative reaches
# the places :math:`x_i` through ``basis``.

shape = [cp.Variable(TERMS)], [cp.Parameter((N, TERMS)), cp.Parameter(N)]
distance = lambda c, T, y: cp.sum_squares(T @ c - y) / 2
rising = lambda c, T, y: -slopes.numpy() @ c
layers = {
    "least squares": OptLayer(*shape, distance),
    "never falling": OptLayer(*shape, distance, inequalities=[rising]),
}

# %%
# What each point does
# --------------------
# :math:`\partial c^\star/\partial y` is one matrix of 10 by 22, from ``jacrev``; at :math:`t` the fit then
# changes by :math:`\sum_k T_k(t)\, \partial c_k / \partial y_i` when point :math:`i` is lifted. Evaluated at
# the points themselves this is the hat matrix. Its trace, the degrees of freedom, is the number of
# coefficients for least squares; every active condition takes one away.

T = vmap(basis)(x)
fits, lifts, active = {}, {}, {}
print("                degrees of freedom   active conditions")
for name, layer in layers.items():
    solution = layer.solve(T, y)
    fits[name] = solution.primal[0]
    lifts[name] = jacrev(layer, argnums=1)(T, y)
    duals = solution.inequality_duals
    active[name] = slopes[duals[0] > 0] if duals else slopes[:0]
    freedom = (T @ lifts[name]).trace()
    print(f"{name:<16}{freedom:18.2f}{len(active[name]):20d}")

# %%
# The upper pictures ask for one value of the fit, at the dashed line: the arrow at every point is the
# gradient of that value with respect to the place of the point. The lower ones have a curve for every point,
# in its colour: how the whole fit changes when that point is lifted. Free of conditions, the influence of a
# point swings through the whole interval and is largest at the ends. Under the condition, where the fit is
# flat, the points there can only lift it together.

at = torch.tensor(0.45)


def height(layer, x, y):
    return basis(at) @ layer(vmap(basis)(x), y)


sideways, upwards = {}, {}
figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey="row")
colors = plt.colormaps["viridis"](torch.linspace(0, 0.93, N).numpy())
for (above, below), (name, layer) in zip(axes.T, layers.items()):
    sideways[name], upwards[name] = jacrev(height, argnums=(1, 2))(layer, x, y)
    arrows = {"color": "C1", "angles": "xy", "scale_units": "xy", "scale": 1.5, "width": 0.005}
    above.quiver(x, y, sideways[name], upwards[name], **arrows)
    above.axvline(at, color="0.6", linestyle="--", linewidth=1)
    above.plot(t, rows @ fits[name], color="0.35")
    above.scatter(x, y, c=colors, s=26, zorder=3)
    above.set_title(name)
    for lift, color in zip((rows @ lifts[name]).T, colors):
        below.plot(t, lift, color=color, linewidth=1.2)
    below.set_xlabel("$t$")
axes[0, 0].set(ylabel="fit, and what raises it at the line", xlim=(-1.15, 1.15), ylim=(-1.5, 2))
axes[1, 0].set_ylabel(r"$\partial\,\mathrm{fit}(t)/\partial y_i$")

# %%
# Checked
# -------
# With the columns of :math:`Z` spanning the coefficients that keep the active conditions active, the
# derivative is :math:`Z (Z^\top T^\top T Z)^{-1} Z^\top T^\top`; for least squares :math:`Z = I`. Sideways,
# finite differences.

for name, layer in layers.items():
    Z = torch.linalg.svd(active[name]).Vh[len(active[name]) :].T
    closed = Z @ torch.linalg.solve(Z.T @ T.T @ T @ Z, Z.T @ T.T)
    moved = 1e-6 * torch.eye(N)
    ahead, behind = (vmap(height, (None, 0, None))(layer, x + shift, y) for shift in (moved, -moved))
    hat_error = (lifts[name] - closed).abs().max()
    place_error = (sideways[name] - (ahead - behind) / 2e-6).abs().max()
    print(f"{name}: {hat_error:.0e} from the closed form, {place_error:.0e} from finite differences")
    assert hat_error < 1e-10
    assert place_error < 1e-6
