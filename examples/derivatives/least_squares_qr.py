r"""
Least squares: one factor, there and back
=========================================

.. math:: x(A, b) = \arg\min_x \tfrac12 \lVert A x - b \rVert^2

is solved with A = QR, and the same R gives its gradient. The page writes both out in a few lines and
compares them with the layer. Then the same measurement enters in two units: A loses rank, there is a line
of solutions, and what *the* derivative is depends on which of them is meant.

Source: G. Golub and V. Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems
whose variables separate, SIAM J. Numer. Anal. 10 (1973), doi:10.1137/0710036.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_linnerud
from torch.func import grad, jacrev

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)
data = load_linnerud()  # twenty men in a fitness club
chins, waist = torch.tensor(data.data[:, 0]), torch.tensor(data.target[:, 1])
m = len(waist)

# %%
# By hand
# -------
# With r = b − Ax the normal equations :math:`A^\top r = 0` differentiate to :math:`A^\top A\,dx = dA^\top r -
# A^\top dA\,x + A^\top db`, so that a cotangent :math:`\bar x` is pulled back by
#
# .. math:: R^\top R\, z = \bar x, \qquad \bar b = A z, \qquad \bar A = r z^\top - \bar b\, x^\top.
#
# The factor costs 2mn² operations, once. Backward, two triangular systems cost 2n², and the products mn.


def triangular(R, y, upper=True):
    return torch.linalg.solve_triangular(R, y[:, None], upper=upper)[:, 0]


class LeastSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, A, b):
        Q, R = torch.linalg.qr(A)
        x = triangular(R, Q.T @ b)
        ctx.save_for_backward(A, R, x, b - A @ x)
        return x

    @staticmethod
    def backward(ctx, x_bar):
        A, R, x, r = ctx.saved_tensors
        z = triangular(R, triangular(R.T, x_bar, upper=False))
        b_bar = A @ z
        return torch.outer(r, z) - torch.outer(b_bar, x), b_bar


# %%
# The layer, and a question: how many chin-ups does a man of 40 inches do, and what would each of the twenty
# have to change to move that prediction?

fit = OptLayer(
    variables=[cp.Variable(2)],
    parameters=[cp.Parameter((m, 2)), cp.Parameter(m)],
    objective=lambda x, A, b: cp.sum_squares(A @ x - b) / 2,
)


def one_unit(waist):
    return torch.stack([torch.ones_like(waist), waist - 35], -1)


def by_lstsq(A, b):
    return torch.linalg.lstsq(A, b[:, None], driver="gelsd", rcond=1e-12).solution[:, 0]


gradients = {}
for name, solve in {"by hand": LeastSquares.apply, "layer": fit, "torch.linalg.lstsq": by_lstsq}.items():
    leaves = waist.clone().requires_grad_(), chins.clone().requires_grad_()
    prediction = one_unit(torch.tensor(40.0)) @ solve(one_unit(leaves[0]), leaves[1])
    gradients[name] = torch.stack(torch.autograd.grad(prediction, leaves), 1)
    print(f"{name:20s} {prediction:.12f}   by the first man's waist and chins: {gradients[name][0].tolist()}")

# %%
# Two units
# ---------
# Now the waist in inches is one column, in centimetres another, A = (1, d, cd) with c = 2.54 and d = waist
# − 35. Only β₁ + cβ₂ is determined. The plain layer returns *a* minimiser, sets ``flags.nonunique``, and
# differentiates by the shortest movement to the new line of solutions. Asked for the shortest *solution*
# instead, with the normal equations as constraints, it has a unique answer; only its multipliers are not
# unique, ``flags.degenerate``.


def two_units(waist, c):
    return torch.stack([torch.ones_like(waist), waist - 35, c * (waist - 35)], -1)


x, A, b = cp.Variable(3), cp.Parameter((m, 3)), cp.Parameter(m)
any_fit = OptLayer([x], [A, b], lambda x, A, b: cp.sum_squares(A @ x - b) / 2, nonunique="ignore")
shortest_fit = OptLayer(
    [x], [A, b], lambda x, A, b: cp.sum_squares(x) / 2, equalities=[lambda x, A, b: A.T @ (A @ x - b)]
)
c = torch.tensor(2.54)
A = two_units(waist, c)
some, shortest = any_fit.solve(A, chins), shortest_fit.solve(A, chins)
for name, solution in ("any", some), ("shortest", shortest):
    flags = solution.flags
    coefficients = [round(value, 4) for value in solution.primal[0].tolist()]
    print(f"{name:9s} {coefficients}  nonunique {bool(flags.nonunique)}  degenerate {bool(flags.degenerate)}")

# %%
# Golub and Pereyra's derivative of :math:`A^+ b`, for changes that keep the rank, has three terms:
#
# .. math:: dx = -A^+ dA\, x + (A^\top A)^+ dA^\top r + (I - A^+ A)\, dA^\top (A^+)^\top x.
#
# The plain layer gives the first two, which lead to the new line by the shortest way; the third turns with
# it and leads to its foot. A loss on predictions does not see the third: its gradient is the one of the
# single unit.


def predict(solve, waist, chins):
    return two_units(torch.tensor(40.0), c) @ solve(two_units(waist, c), chins)


of_prediction = torch.stack(grad(lambda w, b: predict(any_fit, w, b), (0, 1))(waist, chins), 1)
by_unit = {
    name: jacrev(lambda c, solve=solve: solve(two_units(waist, c), chins))(c)[1:]
    for name, solve in {"any": any_fit, "shortest": shortest_fit}.items()
}
print("d(β₁, β₂)/dc", {name: [round(v, 4) for v in slope.tolist()] for name, slope in by_unit.items()})

# %%
# The picture
# -----------
# Left, the line and the prediction at 40 inches; the arrows show the way in which each man raises it most.
# Right, the plane of (β₁, β₂) with its line of solutions for c = 2.54, and for a somewhat larger c. The
# derivatives of the two layers by c are drawn from the solution that each returns.

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9))
places = torch.tensor([30.0, 47.0])
left.plot(places, one_unit(places) @ fit(one_unit(waist), chins), color="C0")
left.quiver(waist, chins, *gradients["layer"].T, color="C1", angles="xy", width=0.005, scale=1.5)
left.plot(waist, chins, "o", color="C0", markersize=4)
left.plot(40, prediction.item(), "o", color="C3", markersize=9, label="prediction at 40 inches")
left.set(xlabel="waist, inches", ylabel="chin-ups", title="what moves the prediction")
left.set(xlim=(28.5, 52.5), ylim=(-2, 20))
left.legend()

slope = (shortest.primal[0][1] + c * shortest.primal[0][2]).item()
beta, step = torch.tensor([-0.75, 0.3]), 0.8
for unit, style in (c.item(), "-"), (c.item() + step, "--"):
    right.plot(beta, (slope - beta) / unit, style, color="0.45", linewidth=1.2, label=f"c = {unit:.2f}")
for solution, name, color in (some, "any", "C1"), (shortest, "shortest", "C2"):
    point = solution.primal[0][1:]
    right.plot(*point, "o", color=color, label=f"{name} solution")
    right.quiver(
        *point, *step * by_unit[name], color=color, angles="xy", scale_units="xy", scale=1, width=0.008
    )
right.plot(0, 0, "+", color="0.3")
right.set(
    xlabel="β₁, per inch",
    ylabel="β₂, per centimetre",
    title="two units: a line of solutions",
    ylim=(-0.55, 0.1),
)
right.set_aspect("equal")
right.legend(loc="lower left", fontsize=9)

# %%
# Checked
# -------

tilt = slope * torch.stack([-2 * c, 1 - c**2]) / (1 + c**2) ** 2  # of the foot (1, c) slope / (1 + c²)
shift = -some.primal[0][2] * torch.stack([torch.ones_like(c), c]) / (1 + c**2)  # straight to the new line
b_leaf = chins.clone().requires_grad_()
assert torch.autograd.gradcheck(LeastSquares.apply, (one_unit(waist).requires_grad_(), b_leaf))
errors = {
    "by hand against the layer": gradients["by hand"] - gradients["layer"],
    "lstsq against the layer": gradients["torch.linalg.lstsq"] - gradients["layer"],
    "two units against one": of_prediction - gradients["layer"],
    "shortest solution, against lstsq": shortest.primal[0] - by_lstsq(A, chins),
    "its Jacobian by b, against pinv": jacrev(shortest_fit, 1)(A, chins) - torch.linalg.pinv(A, rtol=1e-12),
    "its Jacobian by A, against lstsq": jacrev(shortest_fit, 0)(A, chins) - jacrev(by_lstsq, 0)(A, chins),
    "its derivative by c, closed form": by_unit["shortest"] - tilt,
    "any solution by c, closed form": by_unit["any"] - shift,
}
for name, error in errors.items():
    print(f"{name:34s} {error.abs().max():.0e}")
assert max(error.abs().max() for error in errors.values()) < 1e-10
assert some.flags.nonunique
assert shortest.flags.degenerate
assert not shortest.flags.nonunique
