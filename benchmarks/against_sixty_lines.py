"""How much faster than the tutorial's sixty lines, and how much more accurate, is a declared layer?

Forward and backward of a batch, the two layers interleaved in one process, medians over the rounds; the
error of the gradient against the closed form stands beside the time.

    python benchmarks/against_sixty_lines.py [--rounds 7] [--batch 128]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cvxpy as cp
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from sixty_lines import SixtyLines

from optlayer import OptLayer

Problem = tuple[dict, list[Tensor], Callable[..., Tensor] | None]


def is_cvxpy(z) -> bool:
    return isinstance(z, cp.Expression)


def squared_distance(z, x, *_):
    return cp.sum_squares(z - x) if is_cvxpy(z) else torch.sum((z - x) ** 2)


def sparsemax(batch: int, n: int = 10) -> Problem:
    """W1a: the projection onto the simplex."""
    problem = {
        "variables": [cp.Variable(n)],
        "parameters": [cp.Parameter(n)],
        "objective": squared_distance,
        "inequalities": [lambda z, x: -z],
        "equalities": [lambda z, x: cp.sum(z) - 1 if is_cvxpy(z) else z.sum() - 1],
    }

    def by_sorting(x: Tensor) -> Tensor:
        above = x.sort(1, descending=True).values
        excess = above.cumsum(1) - 1
        rank = (above * torch.arange(1, n + 1) > excess).sum(1, keepdim=True)
        return (x - excess.gather(1, rank - 1) / rank).clamp_min(0.0)

    return problem, [torch.randn(batch, n, dtype=torch.float64)], by_sorting


def polytope(batch: int, n: int = 2, m: int = 20) -> Problem:
    """W4: the projection onto {z : Gz <= 1}, for learning G."""
    problem = {
        "variables": [cp.Variable(n)],
        "parameters": [cp.Parameter(n), cp.Parameter((m, n))],
        "objective": squared_distance,
        "inequalities": [lambda z, x, G: G @ z - 1],
        "equalities": [],
    }
    G = torch.randn(m, n, dtype=torch.float64).expand(batch, m, n)
    return problem, [torch.randn(batch, n, dtype=torch.float64), G], None


def timed(layer: torch.nn.Module, parameters: list[Tensor]) -> tuple[float, list[Tensor]]:
    """Seconds of forward and backward, and the gradients."""
    parameters = [p.clone().requires_grad_() for p in parameters]
    start = time.perf_counter()
    z = layer(*parameters)
    (z * torch.cos(torch.arange(z.numel(), dtype=z.dtype)).reshape(z.shape)).sum().backward()
    return time.perf_counter() - start, [p.grad for p in parameters]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def compare(name: str, problem: Problem, rounds: int) -> None:
    declaration, parameters, closed = problem
    layers = {"OptLayer": OptLayer(**declaration), "sixty lines": SixtyLines(**declaration)}
    seconds: dict[str, list[float]] = {who: [] for who in layers}
    gradients: dict[str, list[Tensor]] = {}
    for _ in tqdm(range(rounds), desc=name, leave=False):
        for who, layer in layers.items():
            spent, gradients[who] = timed(layer, parameters)
            seconds[who].append(spent)
    truth = timed(closed, parameters)[1] if closed else gradients["OptLayer"]
    for who in layers:
        error = distance(gradients[who], truth)
        print(f"{name:10s} {who:12s} {1e3 * median(seconds[who]):8.1f} ms   gradient error {error:.0e}")
    ratio = median(seconds["sixty lines"]) / median(seconds["OptLayer"])
    print(f"{name:10s} ratio of medians {ratio:.1f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--batch", type=int, default=128)
    options = arguments.parse_args()
    torch.manual_seed(0)
    for make in (sparsemax, polytope):
        compare(make.__name__, make(options.batch), options.rounds)


if __name__ == "__main__":
    main()
