"""What does it cost to make a layer with one large parameter?

Least squares, min ½|Az − b|² + ½|z|² with a dense n×n parameter A: seconds and added peak memory to construct
it, then one call forward and backward, its residual and the error of its gradient. Each layer is made in a
process of its own. Peers beyond n = 300 are left out unless asked for: at n = 1000 some take
the better part of a minute and 16 GB.

    python benchmarks/construction.py [--sizes 100,300,1000] [--peers-at-all-sizes] [--json rows.json]
"""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import cvxpy as cp
import torch
from harness import Contestant, distance, error_text, machine, milliseconds, parser, run
from peers import OURS, PEERS, installed
from reference import Outputs, by_closed_form
from torch import Tensor
from workloads import Posed, Workload, eye, generator, normal

COMFORTABLE = 300  # n up to which every peer constructs in seconds
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


@dataclass
class Cost:
    who: str
    n: int
    seconds: float = 0.0
    megabytes: float = 0.0  # added to the peak
    call: float = 0.0  # ms, the second one
    residual: float | None = None
    gradient_error: float | None = None
    note: str = ""


def least_squares(n: int) -> Workload:
    def pose() -> Posed:
        z, A, b = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
        loss = cp.sum_squares(A @ z - b) / 2 + cp.sum_squares(z) / 2
        return Posed(cp.Problem(cp.Minimize(loss)), [A, b], [z])

    def normal_equations(A: Tensor, b: Tensor) -> Outputs:
        factor = torch.linalg.cholesky(A.mT @ A + eye(n))
        return (torch.cholesky_solve(A.mT @ b.unsqueeze(2), factor).squeeze(2),)

    draw = generator(3)
    theta = normal(draw, 1, n, n), normal(draw, 1, n)
    return Workload("least squares", theta, pose, partial(by_closed_form, normal_equations))


def cost(contestant: Contestant, n: int) -> Cost:
    """In this process, which should have made no other layer."""
    workload = least_squares(n)
    weights = workload.weights()
    exact = workload.exact(workload.theta, weights)
    before, start = _peak(), time.perf_counter()
    layer = contestant.build(workload)
    spent = Cost(contestant.name, n, time.perf_counter() - start, _peak() - before)
    run(layer, workload.theta, weights)
    second = run(layer, workload.theta, weights)
    spent.call = 1e3 * (second.forward + second.backward)
    spent.residual = contestant.residual(layer, workload.theta)
    spent.gradient_error = distance(second.gradients, exact.gradients)
    return spent


def _peak() -> float:
    """Megabytes."""
    return getrusage(RUSAGE_SELF).ru_maxrss * UNIT / 2**20


def apart(who: str, n: int, limit: float) -> Cost:
    """`cost` in a process of its own."""
    command = [sys.executable, __file__, "--measure", who, "--sizes", str(n)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
    except subprocess.TimeoutExpired:
        return Cost(who, n, note=f"more than {limit:.0f} s")
    except subprocess.CalledProcessError as error:
        return Cost(who, n, note=(error.stderr.strip().splitlines() or ["killed"])[-1][:100])
    return Cost(**json.loads(child.stdout.splitlines()[-1]))


def table(costs: Sequence[Cost]) -> str:
    head = ["", "n", "construct s", "added MB", "call ms", "residual", "gradient error"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *map(_cells, costs)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(c: Cost) -> list[str]:
    if c.note:
        return [c.who, str(c.n), c.note, "", "", "", ""]
    measured = f"{c.seconds:.2f}", f"{c.megabytes:.0f}", milliseconds(c.call)
    return [c.who, str(c.n), *measured, error_text(c.residual), error_text(c.gradient_error)]


def main(arguments: Sequence[str] | None = None) -> list[Cost]:
    options = parser(__doc__, rounds=1)
    options.add_argument("--sizes", default="")
    options.add_argument("--limit", type=float, default=180.0, help="seconds for one process")
    options.add_argument("--peers-at-all-sizes", action="store_true")
    options.add_argument("--measure", help="construct this one here and print its cost as JSON")
    options = options.parse_args(arguments)
    sizes = [int(n) for n in (options.sizes or ("5" if options.quick else "100,300,1000")).split(",")]
    contestants = {c.name: c for c in [OURS, *([] if options.quick else installed(PEERS[:3]))]}
    if options.measure:
        warnings.simplefilter("ignore")
        print(json.dumps(asdict(cost(contestants[options.measure], sizes[0]))))
        return []
    print(machine(), end="\n\n")
    within = sys.maxsize if options.peers_at_all_sizes else COMFORTABLE
    pairs = [(who, n) for n in sizes for who in contestants if who == OURS.name or n <= within]
    costs = [apart(who, n, options.limit) for who, n in pairs]
    print(table(costs))
    if options.json:
        Path(options.json).write_text(
            json.dumps([asdict(c) for c in costs], indent=1) + "\n", encoding="utf-8"
        )
    return costs


if __name__ == "__main__":
    main()
