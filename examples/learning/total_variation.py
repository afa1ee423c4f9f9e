r"""
Total variation with learned weights
====================================

Total variation removes noise from a picture :math:`x` and keeps its edges, if it is told how much every
difference between neighbours should cost:

.. math:: z^\star(x, w) = \operatorname*{argmin}_z\ \tfrac12 |z - x|^2 + \sum_e w_e |(Dz)_e|

One weight for all edges is the usual choice. Here :math:`w_e` is a small function of the noisy picture,
with three numbers in it, and these are learned on one crop of a photograph, through the argmin, and judged
on another.

Source: L. I. Rudin, S. Osher and E. Fatemi, *Nonlinear total variation based noise removal algorithms*,
Physica D 60 (1992), DOI 10.1016/0167-2789(92)90242-F; the dual is A. Chambolle's, J. Math. Imaging Vis. 20
(2004), DOI 10.1023/B:JMIV.0000011325.36760.1e.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch.nn.functional import conv2d, pad

from optlayer import OptLayer

# sphinx_gallery_thumbnail_number = 1

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

# %%
# The layer
# ---------
# A penalty :math:`w_e |d|` is the maximum of :math:`u d` over :math:`|u| \le w_e`. With the two
# optimisations exchanged, z can be eliminated, :math:`z = x - D^\top u`, and what is left is a quadratic
# programme in u with bounds: the weights are the largest amounts of brightness that may flow across each
# edge. It is half the size of the problem in z. Where edges form a circle u is not unique; z is.


def differences(n):
    """D of an n × n picture: first along its rows, then along its columns."""
    step = np.diff(np.eye(n), axis=0)
    return np.vstack([np.kron(np.eye(n), step), np.kron(step, np.eye(n))])


def flows(n):
    D = differences(n)
    return OptLayer(
        variables=[cp.Variable(len(D))],
        parameters=[cp.Parameter(n * n), cp.Parameter(len(D))],
        objective=lambda u, x, w: cp.sum_squares(D.T @ u - x) / 2,
        inequalities=[lambda u, x, w: u - w, lambda u, x, w: -u - w],
        nonunique="ignore",
    )


def denoise(layer, x, w):
    """z = x − Dᵀu, for pictures x and weights w."""
    n = x.shape[-1]
    u = layer(x.flatten(-2), w)
    return x - (u @ torch.from_numpy(differences(n))).unflatten(-1, (n, n))


# %%
# Two crops
# ---------
# A pagoda to learn from, and trees before a lake. The photograph is made grey and eight times smaller, and
# gets the noise of few photons: where the picture is brighter, there is more of it, with a standard
# deviation of :math:`0.18 \sqrt{x}`.


def photograph(name, rows, columns):
    grey = torch.from_numpy(load_sample_image(name)[:424].mean(2) / 255)
    return grey.reshape(53, 8, 80, 8).mean((1, 3))[rows, columns]


train = photograph("china.jpg", slice(6, 38), slice(10, 42))
test = photograph("china.jpg", slice(32, 52), slice(46, 66))
noisy_train, noisy_test = (clean + 0.18 * clean.sqrt() * torch.randn(clean.shape) for clean in (train, test))

# %%
# The weights
# -----------
# More noise asks for a larger weight, and an edge for a smaller one. Both can be seen in the twelve pixels
# around a pair of neighbours e, six on either side: their mean brightness :math:`m_e`, and the contrast
# :math:`c_e` between the two sides. The weight is :math:`w_e = \exp(\theta_1 + \theta_2 m_e + \theta_3 c_e)`.

MEAN = torch.full((1, 1, 3, 4), 1 / 12)
CONTRAST = torch.tensor([-1.0, -1.0, 1.0, 1.0]).expand(1, 1, 3, 4) / 6


def features(x):
    """m and c, for the horizontal and for the vertical pairs of neighbours."""
    x = pad(x[None, None], (1, 1, 1, 1), mode="replicate")
    across, down = (
        (conv2d(x, m)[0], conv2d(x, c)[0].abs()) for m, c in ((MEAN, CONTRAST), (MEAN.mT, CONTRAST.mT))
    )
    return torch.cat(across), torch.cat(down)


def weights(theta, across, down):
    """w, from features of shapes (..., 2, n, n − 1) and (..., 2, n − 1, n)."""
    both = torch.cat([across.flatten(-2), down.flatten(-2)], -1)
    return (theta[0] + theta[1:] @ both).exp()


# %%
# Learning
# --------
# The crop is cut into sixteen tiles of 8 × 8. One weight for all is the best of six, by trial.


def tiles(picture, height=8, width=8):
    """Of the last two dimensions, side by side every eight pixels; the tiles come first."""
    cut = picture.unfold(-2, height, 8).unfold(-2, width, 8)
    return cut.flatten(-4, -3).movedim(-3, 0)


small = flows(8)
clean, noisy = tiles(train), tiles(noisy_train)
across, down = features(noisy_train)
around = tiles(pad(across, (0, 1)), 8, 7), tiles(pad(down, (0, 0, 0, 1)), 7, 8)


def error(w):
    return (denoise(small, noisy, w) - clean).square().mean()


with torch.no_grad():
    trials = {w: error(torch.full((112,), w)).item() for w in (0.03, 0.05, 0.07, 0.09, 0.12, 0.15)}
best = min(trials, key=trials.get)

theta = torch.tensor([best, 1.0, 1.0]).log().requires_grad_()
optimizer = torch.optim.Adam([theta], lr=0.3)
losses = []
for _ in range(20):
    loss = error(weights(theta, *around))
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(
    f"mean squared error on the tiles: {losses[0]:.2e} with w = {best}, {losses[-1]:.2e} with learned weights"
)
print("theta:", [round(t, 2) for t in theta.tolist()])

# %%
# On the other crop
# -----------------
# PSNR is the error in decibels, more is better. On the right are the learned weights, the mean of the two
# that meet at a pixel: high on the bright water, which carries more noise, low on the dark trees.

large = flows(20)
w = weights(theta, *features(noisy_test)).detach()
fixed, learned = (denoise(large, noisy_test, weight) for weight in (torch.full_like(w, best), w))


def psnr(picture):
    return -10 * (picture - test).square().mean().log10().item()


_, axes = plt.subplots(1, 5, figsize=(11, 2.7))
pictures = {"clean": test, "noisy": noisy_test, f"w = {best}": fixed, "learned w": learned}
for axis, (title, picture) in zip(axes, pictures.items()):
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set(title=title, xlabel="" if picture is test else f"{psnr(picture):.1f} dB")
across, down = w[:380].reshape(20, 19), w[380:].reshape(19, 20)
shown = axes[4].imshow((across[:19] + down[:, :19]).numpy() / 2, cmap="viridis")
axes[4].set(title="weights")
plt.colorbar(shown, ax=axes[4], shrink=0.7)
for axis in axes:
    axis.set(xticks=[], yticks=[])

# %%
# Checked
# -------
# The programme in z itself, by cvxpy, for one tile; the derivative of the error by finite differences; and
# what was gained.

weight = weights(theta, *around).detach()
z = cp.Variable(64)
total_variation = weight[5].numpy() @ cp.abs(differences(8) @ z)
cp.Problem(cp.Minimize(cp.sum_squares(z - noisy[5].flatten().numpy()) / 2 + total_variation)).solve(
    "CLARABEL"
)
off = np.abs(denoise(small, noisy[5], weight[5]).flatten().numpy() - z.value).max()

(slope,) = torch.autograd.grad(error(weights(theta, *around)), theta)
h = 1e-5 * torch.eye(3)
with torch.no_grad():
    ahead, behind = ([error(weights(theta + sign * e, *around)) for e in h] for sign in (1, -1))
by_differences = (torch.stack(ahead) - torch.stack(behind)) / 2e-5
wrong = ((slope - by_differences).norm() / slope.norm()).item()
print(f"layer against cvxpy: {off:.1e}    gradient against differences: {wrong:.1e}")
before, after = psnr(fixed), psnr(learned)
print(f"held-out PSNR: {psnr(noisy_test):.1f} noisy, {before:.1f} with one weight, {after:.1f} learned")
assert off < 1e-4
assert wrong < 1e-4
assert after > before + 0.4
