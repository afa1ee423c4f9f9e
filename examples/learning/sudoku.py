r"""
The rules of Sudoku, learned from solved boards
===============================================

A layer is shown puzzles and their solutions, and never told a rule. A board of 4 × 4 cells is a vector
:math:`z \in \mathbb{R}^{64}`, one entry per cell and digit; :math:`p` holds a 1 for every given digit. The
layer is

.. math:: z^\star(p; A, z_0) = \operatorname*{argmin}_z\ \tfrac{0.1}{2} |z - \tfrac14|^2 - p^\top z
          \quad\text{subject to}\quad A z = A z_0,\ z \ge 0,

and what it learns are the equations. Of a linear programme the derivative would be 0 almost everywhere; the
small quadratic term makes it one that learns. :math:`z_0 > 0` is learned too and keeps the problem feasible
for every :math:`A`.

Source: B. Amos and J. Z. Kolter, *OptNet: Differentiable Optimization as a Layer in Neural Networks*, ICML
2017, arXiv:1703.00443. Theirs has :math:`|z|^2`; around ¼ a cell without evidence is equally any digit.
"""

import itertools

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

from optlayer import OptLayer

# sphinx_gallery_thumbnail_number = 1

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

EQUATIONS = 40

layer = OptLayer(
    variables=[cp.Variable(64)],
    parameters=[cp.Parameter(64), cp.Parameter((EQUATIONS, 64)), cp.Parameter(EQUATIONS)],
    objective=lambda z, p, A, b: 0.05 * cp.sum_squares(z - 0.25) - p @ z,
    inequalities=[lambda z, p, A, b: -z],
    equalities=[lambda z, p, A, b: A @ z - b],
)

# %%
# All boards
# ----------
# There are 288. A puzzle is a board with six cells removed, and it is kept if it has one solution only. The
# layer trains on puzzles from 240 of the boards and is judged on puzzles from the other 48.


def lawful(board):
    """Every column and every block of 2 × 2 has four digits; rows have by construction."""
    columns = zip(*board)
    blocks = [board[i][j : j + 2] + board[i + 1][j : j + 2] for i in (0, 2) for j in (0, 2)]
    return all(len(set(group)) == 4 for group in (*columns, *blocks))


rows = list(itertools.permutations(range(4)))
boards = torch.tensor([board for board in itertools.product(rows, repeat=4) if lawful(board)])
solutions = torch.nn.functional.one_hot(boards.reshape(-1, 16), 4).to(torch.float64)
shuffled = torch.randperm(len(boards))


def puzzles(which, count, blanks=6):
    """p and z of random puzzles of these boards, each with exactly one solution."""
    found = []
    while len(found) < count:
        k = which[torch.randint(len(which), ())]
        given = solutions[k] * (torch.rand(16).argsort() >= blanks)[:, None]
        agree = ((solutions * given).sum((1, 2)) == 16 - blanks).sum()
        if agree == 1:
            found.append(torch.stack([given.flatten(), solutions[k].flatten()]))
    return torch.stack(found, 1)


train, held_out = puzzles(shuffled[:240], 2000), puzzles(shuffled[240:], 100)
print(f"{len(boards)} boards")

# %%
# Training
# --------
# The loss is the squared distance to the solved board. The right side :math:`b = A z_0` is computed in
# torch, so that the gradient reaches :math:`A` on both ways.

A = (torch.rand(EQUATIONS, 64) / 8).requires_grad_()
log_z0 = torch.full((64,), 0.25).log().requires_grad_()


def solve(p):
    return layer(p, A, A @ log_z0.exp())


def right(p, z, solution):
    """The fraction of removed cells, and of whole boards, whose largest entry is the right digit."""
    same = z.reshape(-1, 16, 4).argmax(2) == solution.reshape(-1, 16, 4).argmax(2)
    removed = p.reshape(-1, 16, 4).sum(2) == 0
    return same[removed].double().mean().item(), same.all(1).double().mean().item()


STEPS = 240
optimizer = torch.optim.Adam([{"params": [A]}, {"params": [log_z0], "lr": 0.01}], lr=0.04)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [200])
first_A, history = A.detach().clone(), []
print("step   cells right   boards right   (held out)")
for step in range(STEPS + 1):
    if step % 40 == 0:
        with torch.no_grad():
            answers = solve(held_out[0])
        history.append((answers, *right(held_out[0], answers, held_out[1])))
        print(f"{step:4d}   {history[-1][1]:11.0%}   {history[-1][2]:12.0%}")
    p, solution = train[:, torch.randint(train.shape[1], (32,))]
    loss = (solve(p) - solution).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

# %%
# One puzzle
# ----------
# Every cell shows its four entries as four squares, the darker the larger, and the digit of the largest:
# red where it is wrong, else black where it was given and blue where the layer found it.

place = torch.arange(4).reshape(2, 2)


def draw(axis, z, given, solution, title):
    z, digits, true = z.reshape(4, 4, 4), z.reshape(16, 4).argmax(1), solution.reshape(16, 4).argmax(1)
    axis.imshow(z[:, :, place].permute(0, 2, 1, 3).reshape(8, 8).numpy(), cmap="Blues", vmin=0, vmax=1.6)
    for cell in range(16):
        at, known = (2 * (cell % 4) + 0.5, 2 * (cell // 4) + 0.5), given[4 * cell : 4 * cell + 4].sum() > 0
        color = "C1" if digits[cell] != true[cell] else "black" if known else "C0"
        label = f"{digits[cell] + 1}" if z.reshape(16, 4)[cell].max() > 0 else ""
        axis.text(*at, label, color=color, fontsize=17, ha="center", va="center", weight="bold")
    for line in range(5):
        width = 2 if line % 2 == 0 else 0.6
        axis.axhline(2 * line - 0.5, color="0.2", linewidth=width, clip_on=False)
        axis.axvline(2 * line - 0.5, color="0.2", linewidth=width, clip_on=False)
    axis.set(title=title, xticks=[], yticks=[])


given, solution = held_out[:, 0]
_, axes = plt.subplots(1, 3, figsize=(9, 3.3))
draw(axes[0], given, given, solution, "a puzzle")
draw(axes[1], history[0][0][0], given, solution, "the layer's answer before training")
draw(axes[2], history[-1][0][0], given, solution, "and after")

# %%
# The rules
# ---------
# The equations :math:`Az = Az_0` may be learned in any mixture, so A itself looks like noise. What counts
# is its row space, seen in the projector :math:`A^+A`. The rules, a digit once in every cell, row, column
# and block, have one as well: 64 equations of rank 40.

cell, digit = torch.arange(64) // 4, torch.arange(64) % 4
row, column = cell // 4, cell % 4
block = 2 * (row // 2) + column // 2
groups = (cell, 4 * row + digit, 4 * column + digit, 4 * block + digit)
rules = torch.cat([torch.nn.functional.one_hot(group, 16).T for group in groups]).to(torch.float64)


def projector(M):
    return torch.linalg.pinv(M) @ M


learned, true = projector(A.detach()), projector(rules)
_, axes = plt.subplots(1, 3, figsize=(9, 3.3))
titles = ("before training", "learned", "the rules")
for axis, P, title in zip(axes, (projector(first_A), learned, true), titles):
    picture = axis.imshow(P.numpy(), cmap="RdBu", vmin=-0.3, vmax=0.3)
    axis.set(title=title, xticks=range(0, 65, 16), yticks=range(0, 65, 16))
    axis.set(xlabel="entry of z", ylabel="entry of z" if axis is axes[0] else "")
plt.colorbar(picture, ax=axes, label=r"$A^+A$", shrink=0.8)

# %%
# Checked
# -------
# The share of the rules' row space that A spans, :math:`\operatorname{tr}(A^+A\,R^+R) / 40`, is 40/64 by
# chance.

shares = [(projector(M) * true).sum().item() / 40 for M in (first_A, A.detach())]
print(f"rules spanned: {shares[0]:.0%} before, {shares[1]:.0%} after")
print(f"held-out boards right: {history[0][2]:.0%} before, {history[-1][2]:.0%} after")
assert torch.linalg.matrix_rank(rules) == 40
assert history[0][2] < 0.05
assert history[-1][1] > 0.8
assert history[-1][2] > 0.5
assert shares[1] > 0.85
