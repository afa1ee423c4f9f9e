"""How much faster than the tutorial's sixty lines, and how much more accurate, is a declared layer?

The same callables given to both, forward and backward of a batch; the exact gradient is the judge.

    python benchmarks/against_sixty_lines.py [--rounds 7] [--batch 128]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cvxpy as cp
import torch
from harness import Layer, Row, compare, machine, parser, table, unguarded, write_json
from peers import in_tuple
from reference import Outputs
from workloads import Workload, polytope, sparsemax

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from sixty_lines import SixtyLines

from optlayer import OptLayer


def is_cvxpy(z: Any) -> bool:
    """The tutorial's way to write one callable for both libraries."""
    return isinstance(z, cp.Expression)


def squared_distance(z, x, *_):
    return cp.sum_squares(z - x) if is_cvxpy(z) else torch.sum((z - x) ** 2)


CONSTRAINTS: dict[str, dict[str, Any]] = {
    "sparsemax": {
        "inequalities": [lambda z, x: -z],
        "equalities": [lambda z, x: (cp.sum(z) if is_cvxpy(z) else z.sum()) - 1],
    },
    "polytope": {"inequalities": [lambda z, x, G, h: G @ z - h]},
}


@dataclass(frozen=True)
class Declared:
    """A layer of variables, parameters and callables."""

    name: str
    make: Callable[..., torch.nn.Module]
    differentiable: bool = True
    programmes_only: bool = False
    around = staticmethod(unguarded)

    def build(self, workload: Workload) -> Layer:
        posed = workload.pose()
        constraints = CONSTRAINTS["sparsemax" if "sparsemax" in workload.title else "polytope"]
        layer = self.make(posed.variables, posed.parameters, squared_distance, **constraints)

        def call(*theta: torch.Tensor) -> Outputs:
            return in_tuple(layer(*theta))

        call.layer = layer
        return call

    def residual(self, layer: Layer, theta: Outputs) -> float | None:
        if not isinstance(layer.layer, OptLayer):
            return None
        return layer.layer.solve(*theta).residuals.worst.max().item()


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=128)
    options = options.parse_args(arguments)
    batch, rounds = (2, 1) if options.quick else (options.batch, options.rounds)
    print(machine())
    rows = []
    for workload in (sparsemax(10, batch), polytope(batch)):
        contestants = Declared("optlayer", OptLayer), Declared("sixty lines", SixtyLines)
        found = compare(workload, contestants, rounds, options.budget)
        print(f"\n### {workload.title}, batch of {workload.batch}\n\n{table(found)}")
        rows += found
    write_json(options, rows)
    return rows


if __name__ == "__main__":
    main()
