"""How fast is a layer, and how right, beside the other differentiable optimization layers?

Seventeen workloads, forward and backward; OptLayer first, then whatever is installed of cvxpylayers, Moreau,
qpth and proxsuite, then Clarabel on its own. Prints one markdown table each.

    python benchmarks/against_peers.py [--only sparsemax-10,control] [--rounds 7] [--json rows.json] [--plot]
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import Row, compare, machine, parser, table, write_json
from peers import ALONE, OURS, PEERS, installed
from workloads import FULL, QUICK

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "against_peers.png"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser(__doc__)
    options.add_argument("--only", default=",".join(FULL), help="workloads, by name, with commas between")
    options.add_argument("--plot", nargs="?", type=Path, const=FIGURE, help="also draw the ratios")
    options = options.parse_args(arguments)
    print(machine())
    contestants = [OURS, *installed(PEERS), ALONE]
    rows = []
    for name in options.only.split(","):
        workload = (QUICK if options.quick else FULL)[name]()
        print(f"\n### {workload.title}, batch of {workload.batch}\n")
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # the peers'
            found = compare(workload, contestants, 1 if options.quick else options.rounds, options.budget)
        print(table(found), flush=True)
        rows += found
    write_json(options, rows)
    if options.plot:
        from figures import draw_ratios

        draw_ratios(rows, options.plot)
    return rows


if __name__ == "__main__":
    main()
