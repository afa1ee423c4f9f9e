"""How does the cost grow with the batch, from 1 to 10,000 samples?

Two problems, forward and backward: sparsemax, where almost everything is overhead, and a small dense QP.
Clarabel on its own, on assembled matrices, is the line to compare with: it grows by the same amount with
every sample. Accuracy is judged on the first samples of every batch.

    python benchmarks/scaling_with_batch.py [--rounds 5] [--json rows.json] [--plot]
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from growth import Family, scaling_main
from harness import Row
from workloads import Workload, small, sparsemax

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "scaling_with_batch.png"
BATCHES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


def families(quick: bool) -> list[Family]:
    makers: dict[str, Callable[[int], Workload]] = {
        "sparsemax, n = 10": partial(sparsemax, 10),
        "QP, 10 variables, 9 constraints": small,
    }
    sizes = (1, 2) if quick else BATCHES
    return [Family(name, "samples in the batch", sizes, make) for name, make in makers.items()]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    return scaling_main(__doc__, families, FIGURE, arguments)


if __name__ == "__main__":
    main()
