r"""
Cones, their projections and their derivatives
==============================================

The constraints of a convex problem say that some vectors lie in cones, and every derivative of its solution
contains the derivative of the projection onto them (:doc:`/derivation`, section 7),

.. math:: \Pi(v) = \arg\min_p \{\, \tfrac12 |p - v|^2 : p \in K \,\}.

The derivative :math:`D\Pi(v)` is a symmetric matrix with eigenvalues between 0 and 1: what it keeps of a
movement of :math:`v`, and what it takes away. Its trace counts the directions that are kept: all of them
inside the cone, none where :math:`\Pi(v) = 0`. The page draws it for four cones in three dimensions. Sources:
Parikh and Boyd, *Proximal algorithms*, 2014, DOI 10.1561/2400000003, section 6.3; Amelunxen, Lotz, McCoy and
Tropp, *Living on the edge*, Information and Inference 2014, DOI 10.1093/imaiai/iau005.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from torch.func import jacrev, vmap

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)

# %%
# Four cones
# ----------
# A symmetric matrix :math:`\begin{pmatrix} a & b \\ b & c \end{pmatrix}` is the vector
# :math:`(a, \sqrt2\, b, c)`, whose length is the Frobenius norm. The exponential cone is the closure of
# :math:`y e^{x/y} \le z`, :math:`y > 0`.


def matrix(p):
    return cp.bmat([[p[0], p[1] / 2**0.5], [p[1] / 2**0.5, p[2]]])


def projection(cone):
    p, v = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(p - v) / 2), [cone(p)])
    return OptLayer.from_problem(problem, [v], [p])


project = {
    "nonnegative": projection(lambda p: p >= 0),
    "second-order": projection(lambda p: cp.norm2(p[:2]) <= p[2]),
    "semidefinite": projection(lambda p: matrix(p) >> 0),
    "exponential": projection(lambda p: cp.constraints.ExpCone(p[0], p[1], p[2])),
}

# %%
# Slices
# ------
# A plane through each: along the axis for the first two; beside it for the third, at
# :math:`\sqrt2\, b = 0.6`, where the cone shows a hyperbola (through the axis it would be the second picture
# again, since in three dimensions it is the same cone, turned); and :math:`y = 1` for the last, where the
# border is the graph of the exponential. The colour is the trace of :math:`D\Pi`. The arrows point from
# :math:`v` to :math:`\Pi(v)`, as seen in the plane, at two fifths of their length. The upper line is the
# border of the cone; below the lower one, in the polar cone, all is projected to 0.


def with_derivative(function, v):
    return vmap(jacrev(lambda v: (function(v),) * 2, has_aux=True))(v)


e1, e2, e3 = torch.eye(3)
axis_up, across, turned = (e1 + e2 + e3) / 3**0.5, (e1 - e2) / 2**0.5, (e1 - e3) / 2**0.5
slices = {  # a point of the plane, its direction to the right and upwards, and their names
    "nonnegative": (0 * e1, across, axis_up, "$(v_1 - v_2)/\\sqrt{2}$", "$(v_1 + v_2 + v_3)/\\sqrt{3}$"),
    "second-order": (0 * e1, e1, e3, "$v_1$", "$v_3$"),
    "semidefinite": (0.6 * e2, turned, (e1 + e3) / 2**0.5, "$(a - c)/\\sqrt{2}$", "$(a + c)/\\sqrt{2}$"),
    "exponential": (e2, e1, e3, "$x$", "$z$"),
}
blues = ListedColormap(plt.colormaps["Blues"](torch.linspace(0, 0.8, 200).numpy()))
side = torch.linspace(-2, 2, 81) + 1e-3
X, Y = torch.meshgrid(side, side, indexing="xy")
borders = {  # positive in the cone, and in its polar
    "nonnegative": lambda *v: (torch.stack(v).amin(0), -torch.stack(v).amax(0)),
    "second-order": lambda x, y, t: (t - torch.hypot(x, y), -t - torch.hypot(x, y)),
    "semidefinite": lambda a, b, c: (
        a + c - torch.hypot(a - c, 2**0.5 * b),
        -a - c - torch.hypot(a - c, 2**0.5 * b),
    ),
    "exponential": lambda x, y, z: (
        z - y * (x / y).exp(),
        torch.where(x > 0, -z - x * (y / x - 1).exp(), -1.0),
    ),
}

frame = {"extent": (-2, 2, -2, 2), "origin": "lower", "interpolation": "bilinear"}
figure, axes = plt.subplots(2, 2, figsize=(8.4, 7.6))
for axis, (name, (origin, right, up, xlabel, ylabel)) in zip(axes.flat, slices.items()):
    v = (origin + X[..., None] * right + Y[..., None] * up).reshape(-1, 3)
    DP, p = with_derivative(project[name], v)
    trace = DP.diagonal(dim1=1, dim2=2).sum(1).reshape(X.shape)
    image = axis.imshow(trace.numpy(), cmap=blues, vmin=0, vmax=3, **frame)
    for border in borders[name](*v.T):
        axis.contour(side, side, border.reshape(X.shape), levels=[0], colors="C3", linewidths=2)
    step, thin = p - v, slice(4, None, 8)
    arrows = (a.reshape(X.shape)[thin, thin] for a in (X, Y, step @ right, step @ up))
    axis.quiver(*arrows, color="C1", angles="xy", scale_units="xy", scale=2.5, width=0.004)
    axis.set(title=name, aspect="equal", xlabel=xlabel, ylabel=ylabel, xticks=[-2, 0, 2], yticks=[-2, 0, 2])
figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 1, 2, 3], label="trace of $D\\Pi$")

# %%
# Checked
# -------
# The first three have closed forms: clip the entries, clip the eigenvalues, and for the second-order cone
# move to the nearest ray. For the last, central differences of 200 samples. For all four Euler's identity,
# :math:`\Pi(v) = D\Pi(v)\, v`. At normally distributed :math:`v` the mean of the trace is the *statistical
# dimension* of the cone, which is also the mean of :math:`|\Pi(v)|^2`. The first three are their own duals,
# so :math:`D\Pi(v) + D\Pi(-v) = I` by Moreau's decomposition, and the dimension is half that of the space.


def onto_second_order(v):
    length, t = v[:2].norm(), v[2]
    ray = torch.cat([v[:2] / length, torch.ones(1)])
    return torch.where(length <= t, v, (length + t).clamp(min=0) / 2 * ray)


def onto_semidefinite(v):
    a, b, c = v[0], v[1] / 2**0.5, v[2]
    values, vectors = torch.linalg.eigh(torch.stack([a, b, b, c]).reshape(2, 2))
    P = (vectors * values.clamp(min=0)) @ vectors.T
    return torch.stack([P[0, 0], 2**0.5 * P[0, 1], P[1, 1]])


closed = {"nonnegative": torch.relu, "second-order": onto_second_order, "semidefinite": onto_semidefinite}
torch.manual_seed(0)
half, step = torch.randn(1000, 3), 1e-5 * torch.eye(3)
v = torch.cat([half, -half])
print("               projection  derivative    Euler   mean trace   mean |projection|²")
for name, layer in project.items():
    DP, p = with_derivative(layer, v)
    if name in closed:
        exact, D_exact, margin = vmap(closed[name])(v), vmap(jacrev(closed[name]))(v), 1e-9
    else:
        ahead, behind = layer(v[:200, None] + step), layer(v[:200, None] - step)
        exact, D_exact, margin = p, DP.clone(), 1e-4
        D_exact[:200] = (ahead - behind).mT / 2e-5
    euler = (DP @ v[..., None]).squeeze(-1)
    errors = [(a - b).abs().max().item() for a, b in ((p, exact), (DP, D_exact), (euler, p))]
    dimension, energy = DP.diagonal(dim1=1, dim2=2).sum(1).mean(), p.square().sum(1).mean()
    print(f"{name:<14}{errors[0]:11.0e}{errors[1]:12.0e}{errors[2]:9.0e}{dimension:13.3f}{energy:21.3f}")
    assert max(errors[0], errors[2]) < 1e-11
    assert errors[1] < margin
    assert name == "exponential" or abs(dimension - 1.5) < 1e-9
