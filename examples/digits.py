r"""Digits, and which classes they might be
=======================================

Handwritten digits, classified by a network whose last layer is a convex problem:

.. math::
   \mathrm{sparsemax}(x) = \operatorname*{argmin}_z\; \tfrac12 |z - x|^2 \;:\;
   \textstyle\sum_i z_i = 1,\; z \ge 0

(Martins & Astudillo, ICML 2016). Where softmax gives every class some probability, sparsemax gives most of
them none: the network says which digits it is still hesitating between. Trained end to end through the
argmin, on the 1797 digits that ship with scikit-learn.
"""

import time
from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tqdm import trange

from _style import BLUE, FAINT, FIGURES, GREEN, MUTED, RED, save
from optlayer import OptLayer

CLASSES, EPOCHS, BATCH = 10, 12, 64
ZERO = 1e-9  # a share below this is rounding error around an exact zero


# %%
# The data and the network
# ------------------------
#
# A layer without weights at the end of two linear layers; the loss is the squared distance between the
# shares and the label.


class Data(NamedTuple):
    images: Tensor  # 8 x 8 pixels in [0, 1], flattened
    labels: Tensor


class Run(NamedTuple):
    network: nn.Module
    losses: list[float]
    accuracies: list[float]  # on the test digits, after every epoch
    seconds: float


def load() -> tuple[Data, Data]:
    """Training and test digits, four to one."""
    images, labels = load_digits(return_X_y=True)
    halves = train_test_split(images / 16, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in halves[:2])
    train_y, test_y = (torch.tensor(part) for part in halves[2:])
    return Data(train_x, train_y), Data(test_x, test_y)


def sparsemax() -> OptLayer:
    return OptLayer(
        [cp.Variable(CLASSES)],
        [cp.Parameter(CLASSES)],
        objective=lambda z, x: cp.sum_squares(z - x) / 2,
        inequalities=[lambda z, x: -z],
        equalities=[lambda z, x: cp.sum(z) - 1],
    )


def accuracy(network: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return (network(data.images).argmax(1) == data.labels).float().mean().item()


def train(data: Data, test: Data) -> Run:
    """Adam on the squared distance between sparsemax and the label's corner of the simplex."""
    torch.manual_seed(0)
    logits = nn.Linear(32, CLASSES)
    nn.init.zeros_(logits.weight)  # begin where all classes have a share: one with none
    nn.init.zeros_(logits.bias)  #   gets no gradient either
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), logits, sparsemax())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    corners = one_hot(data.labels, CLASSES).float()
    losses, accuracies, start = [], [], time.perf_counter()
    for _ in trange(EPOCHS, desc="training on digits"):
        epoch = 0.0
        for batch in torch.randperm(len(corners)).split(BATCH):
            loss = (network(data.images[batch]) - corners[batch]).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch += loss.item() * len(batch) / len(corners)
        schedule.step()
        losses.append(epoch)
        accuracies.append(accuracy(network, test))
    return Run(network, losses, accuracies, time.perf_counter() - start)


# %%
# The figure
# ----------


def figure(run: Run, test: Data, shares: Tensor, path: Path) -> None:
    canvas = plt.figure(figsize=(11, 4))
    left, right = canvas.subfigures(1, 2, width_ratios=[1, 3])
    above, below = left.subplots(2, 1)
    draw_accuracy(above, run)
    draw_counts(below, shares)
    draw_digits(right, test, shares)
    save(canvas, path)


def draw_accuracy(axis: Axes, run: Run) -> None:
    epochs = range(1, EPOCHS + 1)
    axis.plot(epochs, [100 * a for a in run.accuracies], color=BLUE)
    axis.set(title="test accuracy, %", ylim=(80, 100), xlim=(1, EPOCHS), xlabel="epoch")
    axis.set_xticks([1, 4, 8, 12])
    axis.annotate(
        f"{100 * run.accuracies[-1]:.1f}", (EPOCHS, 100 * run.accuracies[-1]), (0, -12),
        textcoords="offset points", ha="right", color=BLUE,
    )  # fmt: skip


def draw_counts(axis: Axes, shares: Tensor) -> None:
    counts = (shares > ZERO).sum(1).bincount(minlength=6)[1:6].tolist()
    bars = axis.bar(range(1, 6), counts, color=BLUE, width=0.7)
    axis.bar_label(bars, fontsize=8, color=MUTED)
    axis.set(title="classes left by sparsemax", xticks=range(1, 6), yticks=[])
    axis.spines["left"].set_visible(False)


def draw_digits(canvas: SubFigure, test: Data, shares: Tensor, columns: int = 8) -> None:
    """A row of digits the network is sure of, and one of those it hesitates most over."""
    hesitation = 1 - shares.amax(1)
    order = hesitation.argsort(descending=True, stable=True)
    sure = [(test.labels[order] == k).nonzero()[-1].item() for k in range(columns)]
    rows = {"sure": order[sure], "hesitant": order[:columns]}
    canvas.suptitle("what sparsemax leaves of the ten classes; green is the label", fontsize=10)
    axes = canvas.subplots(4, columns, height_ratios=[2, 0.8, 2, 0.8])
    for (name, chosen), images, bars in zip(rows.items(), axes[::2], axes[1::2]):
        images[0].set_ylabel(name, rotation=90, labelpad=8, fontsize=10)
        for i, image, bar in zip(chosen, images, bars):
            image.imshow(test.images[i].reshape(8, 8).numpy(), cmap="gray_r", interpolation="nearest")
            image.set(xticks=[], yticks=[])
            image.spines[:].set_visible(False)
            draw_shares(bar, shares[i], int(test.labels[i]))


def draw_shares(axis: Axes, share: Tensor, label: int) -> None:
    colors = [GREEN if k == label else RED for k in range(CLASSES)]
    axis.bar(range(CLASSES), share.tolist(), color=colors, width=0.8)
    axis.set(ylim=(0, 1), xlim=(-0.7, 9.7), yticks=[])
    axis.set_xticks(range(CLASSES), [str(k) if share[k] > ZERO else "" for k in range(CLASSES)])
    axis.tick_params(length=0, labelsize=8, pad=1)
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_color(FAINT)


# %%
# The run
# -------


def main(figures: Path = FIGURES) -> dict[str, float]:
    """Train, draw, and return the accuracy and the time it took."""
    training, test = load()
    run = train(training, test)
    with torch.no_grad():
        shares = run.network(test.images)
    alone = ((shares > ZERO).sum(1) == 1).float().mean().item()
    print(f"test accuracy   {100 * run.accuracies[-1]:.1f} % after {run.seconds:.0f} s of training")
    print(f"one class left  {100 * alone:.0f} % of the test digits")
    figure(run, test, shares, figures / "digits.png")
    return {"accuracy": run.accuracies[-1], "seconds": run.seconds, "one_class": alone}


if __name__ == "__main__":
    main()
