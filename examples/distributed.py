"""One layer in a model, trained by as many processes as there are.

    python examples/distributed.py
    torchrun --standalone --nproc-per-node 2 examples/distributed.py

Allocations are observed, returns are not: from features φ a linear map W predicts returns c = Wφ, and the
layer turns them into what an investor would do,

    z*(c, κ) = argmax_z { cᵀz − ½|z|² : 0 <= z <= κ, Σz = 1 }.

W is learned through the argmin. Each process solves its share of the batch; DistributedDataParallel averages
the gradients while backward runs, over gloo between CPUs and nccl between GPUs. The shares are equal, so
that is the gradient of the whole batch, and the training is the same with any number of processes. Some of
the limits κ are too low for any allocation: `on_failure="nan"` turns these samples into NaN rows with zero
gradient, and no process waits for another that has raised.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cvxpy as cp
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from optlayer import OptLayer

SAMPLES, FEATURES, ASSETS, STEPS = 128, 5, 8, 40
IMPOSSIBLE = 64  # one limit in so many is below 1 / ASSETS


class Allocator(nn.Module):
    """(φ, κ) -> z*(Wφ, κ)."""

    def __init__(self) -> None:
        super().__init__()
        self.returns = nn.Linear(FEATURES, ASSETS, bias=False, dtype=torch.float64)
        z, c, limit = cp.Variable(ASSETS), cp.Parameter(ASSETS), cp.Parameter()
        self.allocate = OptLayer(
            variables=[z],
            parameters=[c, limit],
            objective=lambda z, c, limit: cp.sum_squares(z) / 2 - c @ z,
            inequalities=[lambda z, c, limit: -z, lambda z, c, limit: z - limit],
            equalities=[lambda z, c, limit: cp.sum(z) - 1],
            on_failure="nan",
        )

    def forward(self, features: Tensor, limits: Tensor) -> Tensor:
        return self.allocate(self.returns(features), limits)


class Data(NamedTuple):
    features: Tensor
    limits: Tensor
    observed: Tensor

    def share(self, rank: int, world: int) -> "Data":
        """Every world-th sample: shares of one size where world divides the batch."""
        return Data(*(t[rank::world] for t in self))

    def to(self, device: torch.device) -> "Data":
        return Data(*(t.to(device) for t in self))


def draw(samples: int = SAMPLES) -> Data:
    """What an Allocator drawn from another seed does: the same on every process."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        truth = Allocator()
        features = torch.randn(samples, FEATURES, dtype=torch.float64)
        limits = 0.2 + 0.6 * torch.rand(samples, dtype=torch.float64)
        limits[::IMPOSSIBLE] = 0.5 / ASSETS
        with torch.no_grad():
            return Data(features, limits, truth(features, limits))


def loss_of(model: nn.Module, data: Data) -> Tensor:
    """The mean over the samples; one without an allocation counts as 0."""
    found = model(data.features, data.limits)
    return (found - data.observed).square().nansum() / len(found)


@contextmanager
def processes() -> Iterator[tuple[int, int, torch.device]]:
    """This process's rank, how many there are, and its device; one and alone without torchrun."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if "RANK" not in os.environ:
        yield 0, 1, device
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size(), device
    finally:
        dist.destroy_process_group()


def learner(device: torch.device) -> nn.Module:
    """The model, with gradients averaged over the processes if there are several."""
    torch.manual_seed(0)
    model = Allocator().to(device)
    return DistributedDataParallel(model) if dist.is_initialized() else model


def train(model: nn.Module, data: Data, steps: int = STEPS) -> list[float]:
    """Losses of this process's share, before every step."""
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        loss = loss_of(model, data)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


def mean_over_processes(value: float, device: torch.device) -> float:
    total = torch.tensor(value, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total.item()


def spread(model: nn.Module) -> float:
    """The largest difference between processes in any weight: 0 if they have kept in step."""
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    least, largest = weights.clone(), weights.clone()
    if dist.is_initialized():
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return (largest - least).max().item()


def learn(rank: int, world: int, device: torch.device) -> dict[str, float]:
    """Train on this process's share; the numbers are those of all of them.

    A function of its own, since the model has to be gone before the process group is: where it keeps a
    gloo group alive beyond `destroy_process_group`, the process may never end.
    """
    model, data = learner(device), draw()
    start = time.perf_counter()
    losses = train(model, data.share(rank, world).to(device))
    return {
        "seconds": time.perf_counter() - start,
        "before": mean_over_processes(losses[0], device),
        "after": mean_over_processes(losses[-1], device),
        "apart": spread(model),
        "unsolved": int(data.observed.isnan().any(1).sum()),
    }


def main() -> dict[str, float]:
    """Learn W on however many processes; the first of them reports."""
    with processes() as (rank, world, device):
        numbers = learn(rank, world, device)
    if rank == 0:
        loss = f"{numbers['before']:.4f} before, {numbers['after']:.4f} after"
        print(f"processes      {world}, {SAMPLES // world} samples each, {device.type}")
        print(f"loss           {loss} {STEPS} steps, {numbers['seconds']:.1f} s")
        print(f"no allocation  {numbers['unsolved']} of {SAMPLES} samples")
        print(f"weights apart  {numbers['apart']:.0e}")
    return numbers


if __name__ == "__main__":
    main()
