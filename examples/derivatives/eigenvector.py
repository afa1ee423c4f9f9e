r"""
An eigenvector, and what happens when two eigenvalues meet
==========================================================

The eigenvector v of the largest eigenvalue λ of a symmetric matrix solves n + 1 equations in n + 1 unknowns,

.. math:: A v - \lambda v = 0, \qquad v^\top v - 1 = 0,

and that is all that ``optlayer.implicit`` needs to differentiate it. Here it is the first principal axis of
a data set, and the derivative says how each point turns that axis. It grows like one over the gap between
the two largest eigenvalues, and where they meet there is no derivative.

Source: J. R. Magnus, On differentiating eigenvalues and eigenvectors, Econometric Theory 1 (1985),
doi:10.1017/S0266466600011129.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_iris
from torch.func import grad, jacrev, vmap

from optlayer import implicit

torch.set_default_dtype(torch.float64)

# %%
# Declared by its equations
# -------------------------
# Any solver finds v; its sign is a choice, made here by a reference direction. The equations are written
# for a symmetric A, and symmetrising it inside makes the derivative by A a symmetric matrix.


def equations(u, A):
    v, eigenvalue = u[:-1], u[-1]
    return torch.cat([(A + A.T) @ v / 2 - eigenvalue * v, (v @ v - 1)[None]])


def leading(A, reference):
    values, vectors = torch.linalg.eigh(A.detach())
    v = vectors[:, -1] * torch.sign(vectors[:, -1] @ reference)
    return implicit(equations, torch.cat([v, values[-1:]]), A)[:-1]


def leading_by_eigh(A, reference):
    v = torch.linalg.eigh(A).eigenvectors[:, -1]
    return v * torch.sign(v @ reference).detach()


# %%
# Who turns the principal axis?
# -----------------------------
# Fifty irises of one kind, petal length and sepal width, and the angle of their first principal axis. With
# the centred points z_i and both axes v₁, v₂, the derivative of A = Σ z_i z_iᵀ / n and first-order
# perturbation give
#
# .. math:: \frac{\partial\,\mathrm{angle}}{\partial x_i} = \frac{(z_i^\top v_1)\, v_2 + (z_i^\top v_2)\, v_1}
#    {n\,(\lambda_1 - \lambda_2)}.

X = torch.tensor(load_iris().data[50:100][:, [2, 1]])
n, up = len(X), torch.tensor([1.0, 1.0])


def covariance(X):
    z = X - X.mean(0)
    return z.T @ z / n


def angle(X):
    v = leading(covariance(X), up)
    return torch.atan2(v[1], v[0])


turns = grad(angle)(X)
v, z = leading(covariance(X), up), X - X.mean(0)
across, values = torch.stack([-v[1], v[0]]), torch.linalg.eigvalsh(covariance(X))
textbook = ((z @ v)[:, None] * across + (z @ across)[:, None] * v) / (n * (values[1] - values[0]))
print(
    f"angle {angle(X).rad2deg():.2f}°; the most influential flower turns it by "
    f"{turns.norm(dim=1).max().rad2deg():.2f}° per cm"
)

# %%
# When the two largest meet
# -------------------------
# For A(t) with the rows (t, e), (e, −t) the eigenvalues are :math:`\pm\sqrt{t^2 + e^2}`. They come as close
# as 2e at t = 0 and part again, and while they do, v turns by a right angle: ever faster as e becomes
# smaller, with slope −1/(2e), one over the gap, in the middle. For e = 0 it jumps.

t, first = torch.linspace(-1, 1, 401), torch.tensor([1.0, 0.5])


def crossing_angle(t, e):
    v = leading(torch.stack([torch.stack([t, e]), torch.stack([e, -t])]), first)
    return torch.atan2(v[1], v[0])


couplings = torch.tensor([0.3, 0.1, 0.02])
angles = vmap(vmap(crossing_angle, (0, None)), (None, 0))(t, couplings)
slopes = vmap(grad(crossing_angle), (None, 0))(torch.tensor(0.0), couplings)

# %%
# In general dv moves along the other eigenvectors, each over its own gap:
#
# .. math:: dv_1 = \sum_{j > 1} v_j\, \frac{v_j^\top dA\, v_1}{\lambda_1 - \lambda_j}.
#
# The accuracy suffers in the same way: an error of 1e-16 in A is one of 1e-16/gap in v and in its
# derivative. Below, three eigenvalues 1 + gap, 1 and 0.3. At gap 0, ``eigh`` says nan; ``implicit`` returns
# the derivative of minimum norm, without a warning: a number, but nobody's derivative.

V, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
gaps = [10.0**-k for k in range(11)]
norms, errors, errors_eigh = [], [], []
for gap in gaps:
    spectrum = torch.tensor([1 + gap, 1, 0.3])
    A = (V * spectrum) @ V.T
    A = (A + A.T) / 2
    exact = sum(
        torch.einsum("k,i,j->kij", V[:, j], V[:, j], V[:, 0]) / (spectrum[0] - spectrum[j]) for j in (1, 2)
    )
    exact = (exact + exact.mT) / 2
    by_equations, by_eigh = (jacrev(f)(A, V[:, 0]) for f in (leading, leading_by_eigh))
    norms.append(by_equations.norm())
    errors.append((by_equations - exact).norm() / exact.norm())
    errors_eigh.append(((by_eigh + by_eigh.mT) / 2 - exact).norm() / exact.norm())
for gap, norm, error, other in list(zip(gaps, norms, errors, errors_eigh))[::2]:
    print(f"gap {gap:5.0e}   |dv/dA| {norm:7.1e}   relative error {error:.0e}, by eigh {other:.0e}")
equal = torch.diag(torch.tensor([1.0, 1.0, 0.3]))
for f in leading, leading_by_eigh:
    print(f"gap 0       |dv/dA| {jacrev(f)(equal, torch.ones(3)).norm():.2g}   {f.__name__}")

# %%
# The picture
# -----------
# Left: moving a flower along its arrow turns the axis counterclockwise; the length of an arrow is the
# flower's distance from the centre, over n times the gap. Middle: v turns as two eigenvalues pass; the
# tangents are the derivatives. Right: the derivative and its relative error against the gap.

figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.8), width_ratios=[1.15, 1, 1])
centre = X.mean(0)
for direction, value, width in (v, values[1], 1.8), (across, values[0], 1.0):
    ends = centre + 2.6 * value.sqrt() * torch.stack([-direction, direction])
    axes[0].plot(*ends.T, color="0.6", linewidth=width)
axes[0].quiver(*X.T, *turns.T, color="C1", angles="xy", width=0.006, scale=0.85)
axes[0].plot(*X.T, "o", color="C0", markersize=3.5)
axes[0].set(xlabel="petal length, cm", ylabel="sepal width, cm", title="what turns the principal axis")
axes[0].set(xlim=(2.85, 5.55), ylim=(1.65, 3.75))
axes[0].set_aspect("equal")
ends = torch.tensor([-1.0, 1.0])
for e, row, slope, color in zip(couplings, angles, slopes, ("C0", "C2", "C1")):
    axes[1].plot(t, row.rad2deg(), color=color, label=f"gap {2 * e:.2g}")
    reach = 0.55 / slope.abs()
    axes[1].plot(reach * ends, 45 + (slope * reach * ends).rad2deg(), color="0.2", linewidth=1)
axes[1].set(xlabel="t", ylabel="angle of v", title="two eigenvalues pass", yticks=[0, 45, 90])
axes[1].legend()
axes[2].loglog(gaps, norms, "o-", color="C0", markersize=4, label="size of the derivative")
axes[2].loglog(gaps, errors, "o-", color="C1", markersize=4, label="its relative error")
axes[2].loglog(gaps, errors_eigh, "x", color="C4", label="and that of eigh")
axes[2].loglog(gaps, [1e-16 / gap for gap in gaps], "--", color="0.6", linewidth=1, label="$10^{-16}$/gap")
axes[2].set(xlabel="gap $\\lambda_1 - \\lambda_2$", title="1 / gap", xlim=(2, 5e-11))
axes[2].legend(fontsize=8)

# %%
# Checked
# -------

cov = covariance(torch.tensor(load_iris().data))
by_equations, by_eigh = (jacrev(f)(cov, cov.new_ones(4)) for f in (leading, leading_by_eigh))
checks = {
    "four features, against eigh": by_equations - (by_eigh + by_eigh.mT) / 2,
    "turns of the axis, textbook": turns - textbook,
    "slopes at the crossing, -1/gap": slopes * 2 * couplings + 1,
}
for name, error in checks.items():
    print(f"{name:32s} {error.abs().max():.0e}")
assert max(error.abs().max() for error in checks.values()) < 1e-12
assert max(gap * error for gap, error in zip(gaps, errors)) < 1e-14
