r"""
Where is the camera? Pose and correspondences, learned together
===============================================================

A scene has twelve points :math:`X_i` in space, a picture of it twelve points :math:`y_j`, and nobody says
which belongs to which. Where was the camera? Every point carries three numbers that describe its
surroundings; in the picture they look different, in a way that has to be learned. Two problems in a row
answer:

.. math::

    P^\star &= \operatorname*{argmin}_{P \ge 0} \langle C, P \rangle + \sum_{ij} P_{ij} \log P_{ij}
        \quad\text{subject to}\quad P1 = 1,\ P^\top 1 = 1, \\
    (R, t)^\star &= \operatorname*{argmin}_{R,\,t} \sum_{ij} P^\star_{ij}\, |\pi(R X_i + t) - y_j|^2,

a transport plan P for the costs :math:`C_{ij} = |W f_i - g_j|^2 / \gamma` of the descriptions, and the pose
that fits it best. The second is not convex, so both are given by their equations, to ``optlayer.implicit``.
The loss is the error of the pose alone; no correspondence is ever shown.

Source: D. Campbell, L. Liu and S. Gould, *Solving the Blind Perspective-n-Point Problem End-To-End With
Robust Differentiable Geometric Optimization*, ECCV 2020, DOI 10.1007/978-3-030-58536-5_15.
"""

import matplotlib.pyplot as plt
import torch
from torch.func import grad, jacfwd, vmap

from optlayer import implicit

# sphinx_gallery_thumbnail_number = 1

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

N, DISTANCE, GAMMA, PRIOR = 12, 4.0, 0.5, 3e-3

# %%
# Scenes
# ------
# A pose is six numbers: three for the rotation, by Cayley's formula, and the translation. Descriptions in
# the picture are :math:`g = M f`, and noise, with a rotation M by 63° that we do not know.

skew = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
hidden_M = torch.matrix_exp(1.1 * skew)


def rotation(c):
    """Cayley: the rotation about c by 2 arctan |c|."""
    zero = torch.zeros_like(c[0])
    cross = torch.stack([zero, -c[2], c[1], c[2], zero, -c[0], -c[1], c[0], zero]).reshape(3, 3)
    return ((1 - c @ c) * torch.eye(3) + 2 * cross + 2 * torch.outer(c, c)) / (1 + c @ c)


def project(pose, X):
    """π(RX + t), for a camera that looks along the third axis from a distance."""
    x = X @ rotation(pose[:3]).T + pose[3:]
    return x[:, :2] / (x[:, 2:] + DISTANCE)


def scenes(count):
    """Points, their descriptions, the picture's points and descriptions, and the pose."""
    X, f = 2 * torch.rand(count, N, 3) - 1, torch.randn(count, N, 3)
    pose = torch.cat([0.25 * torch.randn(count, 3), 0.3 * torch.randn(count, 3)], 1)
    y = vmap(project)(pose, X) + 0.003 * torch.randn(count, N, 2)
    g = f @ hidden_M.T + 0.1 * torch.randn(count, N, 3)
    return X, f, y, g, pose


# %%
# The plan
# --------
# It is :math:`P_{ij} = \exp(a_i + b_j - C_{ij})`, with a and b such that rows and columns sum to one. One
# of the 2n equations follows from the others, and one number is free: :math:`b_n = 0`. Sinkhorn's method
# finds a and b roughly, Newton's exactly.


def log_plan(u, C):
    a, b = u[:N], torch.cat([u[N:], u.new_zeros(1)])
    return a[:, None] + b - C


def marginals(u, C):
    """The logarithms of the sums of rows and columns, which are to be 0."""
    P = log_plan(u, C)
    return torch.cat([P.logsumexp(1), P.logsumexp(0)[:-1]])


def newton(equations, u, *data, steps=5):
    """Newton's steps, where they bring the equations nearer to zero."""
    for _ in range(steps):
        F = vmap(equations)(u, *data)
        inverse = torch.linalg.pinv(vmap(jacfwd(equations))(u, *data), rtol=1e-9)
        moved = u - torch.einsum("bij,bj->bi", inverse, F)
        better = vmap(equations)(moved, *data).norm(dim=1) < F.norm(dim=1)
        u = torch.where(better[:, None], moved, u)
    return u


def transport(C):
    with torch.no_grad():
        b = torch.zeros_like(C[:, 0])
        for _ in range(300):
            a = -torch.logsumexp(b[:, None] - C, 2)
            b = -torch.logsumexp(a[:, :, None] - C, 1)
        u = newton(marginals, torch.cat([a + b[:, -1:], (b - b[:, -1:])[:, :-1]], 1), C)
    return vmap(log_plan)(vmap(lambda u, C: implicit(marginals, u, C))(u, C), C).exp()


# %%
# The pose
# --------
# Where the gradient of the second objective is zero. A weak prior, a small multiple of the pose's square,
# keeps the problem well posed while P is vague. Gauss and Newton's method with a little damping goes there
# from the pose 0.


def misfit(pose, P, X, y):
    squares = (project(pose, X)[:, None] - y).square().sum(2)
    return (P * squares).sum() + PRIOR * pose @ pose


def errors(pose, P, X, y):
    return (project(pose, X) - P @ y).flatten()


def locate(P, X, y):
    with torch.no_grad():
        pose = torch.zeros(len(P), 6)
        for _ in range(40):
            J, r = vmap(jacfwd(errors))(pose, P, X, y), vmap(errors)(pose, P, X, y)
            H = J.mT @ J + 0.05 * torch.eye(6)
            pose = pose - torch.linalg.solve(H, (J.mT @ r[..., None])[..., 0] + PRIOR * pose)
        pose = newton(grad(misfit), pose, P, X, y, steps=4)
    return vmap(lambda pose, *data: implicit(grad(misfit), pose, *data))(pose, P, X, y)


# %%
# Training
# --------
# W starts as the identity, and keeps its norm: how hard the plan decides is set by γ. The harder, the
# nearer P comes to a permutation, where a and b are no longer determined.


def answer(W, X, f, y, g):
    C = (f @ (3**0.5 * W / W.norm()).T)[:, :, None] - g[:, None]
    P = transport(C.square().sum(3) / GAMMA)
    return P, locate(P, X, y)


def pose_error(pose, true):
    return (pose - true).norm(dim=1)


held_out = scenes(50)
W = torch.eye(3).requires_grad_()
optimizer = torch.optim.Adam([W], lr=0.05)
before = [part.detach() for part in answer(W, *held_out[:4])]
print("step   median angle   right matches   (held out)")


def report(step, P, pose):
    """Angle of the rotation between the poses in degrees, and matches that are the largest of their row."""
    turns = vmap(lambda a, b: torch.trace(rotation(a[:3]).T @ rotation(b[:3])))(pose, held_out[4])
    angle = torch.rad2deg(torch.arccos(((turns - 1) / 2).clamp(-1, 1))).median().item()
    matches = (P.argmax(2) == torch.arange(N)).double().mean().item()
    print(f"{step:4d}   {angle:10.2f}°   {matches:11.0%}")
    return angle, matches


history = [report(0, *before)]
for step in range(1, 41):
    *scene, true = scenes(16)
    loss = pose_error(answer(W, *scene)[1], true).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        after = [part.detach() for part in answer(W, *held_out[:4])]
        history.append(report(step, *after))

# %%
# One scene
# ---------
# Red rings are the picture, blue dots the scene seen from the pose that was found. Lines join what the plan
# holds together, the darker the surer. Beside it the plan, with its points in an order that makes the right
# one the identity.


def draw(picture, matrix, P, pose, title):
    seen, y = project(pose, held_out[0][k]), held_out[2][k]
    for i, j in (P > 0.05).nonzero().tolist():
        picture.plot(*torch.stack([seen[i], y[j]]).T, color="0.4", alpha=P[i, j].item(), linewidth=1.2)
    picture.plot(*y.T, "o", color="C1", markersize=9, fillstyle="none", label="picture")
    picture.plot(*seen.T, "o", color="C0", markersize=4, label="scene, from the pose found")
    picture.set(title=title, aspect="equal", xlim=limits[0], ylim=limits[1])
    picture.axis("off")
    matrix.imshow(P.numpy(), cmap="Blues", vmin=0, vmax=1)
    matrix.set(title="plan", xlabel="point of the picture", ylabel="point of the scene", xticks=[], yticks=[])


k = 0
around = torch.cat([held_out[2][k], project(before[1][k], held_out[0][k])])
limits = [(side.min().item() - 0.05, side.max().item() + 0.05) for side in around.T]
_, axes = plt.subplots(1, 4, figsize=(11, 3), width_ratios=[1.2, 1, 1.2, 1])
draw(*axes[:2], before[0][k], before[1][k], "before training")
draw(*axes[2:], after[0][k], after[1][k], "after")
axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), fontsize=8)

# %%
# Checked
# -------
# The derivative of the pose error with respect to W, through both problems, against finite differences; and
# that it has taught W to match.

scene, true = [part[:4] for part in held_out[:4]], held_out[4][:4]


def error(W):
    return pose_error(answer(W, *scene)[1], true).mean()


(slope,) = torch.autograd.grad(error(W), W)
direction = torch.randn(3, 3)
with torch.no_grad():
    by_differences = (error(W + 1e-5 * direction) - error(W - 1e-5 * direction)) / 2e-5
wrong = abs((slope * direction).sum() - by_differences).item() / slope.norm().item()
print(f"gradient against differences: {wrong:.1e}")
print(f"median angle: {history[0][0]:.0f}° before, {history[-1][0]:.1f}° after")
assert wrong < 1e-6
assert history[0][0] > 20
assert history[-1][0] < 12
assert history[-1][1] > 0.9
