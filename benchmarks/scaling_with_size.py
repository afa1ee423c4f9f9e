"""How does the cost grow with the size of the problem?

A sparsemax (diagonal), a dense QP, a sparse QP and a control problem (banded), forward and backward of a
small batch. The exponent of the last step says how: 3 is a dense factorization, 1 is what structure allows.

    python benchmarks/scaling_with_size.py [--rounds 5] [--json rows.json] [--plot]
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from growth import Family, scaling_main
from harness import Row
from workloads import Workload, control, dense, sparse_programme, sparsemax

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "scaling_with_size.png"
BATCH = 4

Maker = Callable[[int], Workload]
MAKERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], Maker]] = {
    "sparsemax": ("n", (10, 30, 100, 300, 1000, 3000), (3, 5), lambda n: sparsemax(n, BATCH)),
    "dense QP": ("n = m", (8, 16, 32, 64, 128, 256), (3, 5), lambda n: dense(n, BATCH)),
    "sparse QP": ("n = m", (64, 128, 256, 512, 1024), (8, 12), lambda n: sparse_programme(n, BATCH, n // 4)),
    "control": ("steps", (5, 10, 20, 40, 80), (2, 3), lambda T: control(BATCH, T)),
}


def families(quick: bool) -> list[Family]:
    return [
        Family(name, label, tiny if quick else full, make)
        for name, (label, full, tiny, make) in MAKERS.items()
    ]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    return scaling_main(__doc__, families, FIGURE, arguments)


if __name__ == "__main__":
    main()
