"""What does a GPU bring, and from which batch on?

Dense QPs and softmax, in float64, batches of 128 to 16,384, forward and backward, with the data where
they are solved: OptLayer, qpth and Moreau on the GPU, then OptLayer on the CPU. A contestant that takes too
long on one batch sits out the larger ones. Without CUDA there is nothing to measure, and the script says so.

    python benchmarks/gpu.py [--n 128] [--rounds 5] [--json rows.json]
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

import torch
from growth import Family, report
from harness import Contestant, Row, machine, parser, write_json
from peers import MOREAU, OURS, QPTH, installed
from workloads import Workload, dense, softmax

BATCHES = (128, 512, 2048, 8192, 16384)
DISTINCT = 512  # samples drawn; larger batches repeat them


def repeated(workload: Workload, batch: int, device: str) -> Workload:
    """The samples of a workload, over and over, on a device."""
    again = -(-batch // workload.batch)
    theta = (t.repeat(again, *[1] * (t.ndim - 1))[:batch].to(device) for t in workload.theta)
    return replace(workload, theta=tuple(theta))


def families(options: Namespace, device: str) -> list[Family]:
    sizes = (2, 4) if options.quick else BATCHES
    drawn = min(DISTINCT, sizes[-1])
    bases = dense(options.n, drawn), softmax(10, drawn)
    return [_family(base, sizes, device) for base in bases]


def _family(base: Workload, sizes: Sequence[int], device: str) -> Family:
    name = f"{base.title}, {device}"
    return Family(name, "samples in the batch", sizes, lambda batch: repeated(base, batch, device))


def contestants(device: str) -> list[Contestant]:
    return [OURS] if device == "cpu" else [OURS, *installed([QPTH, MOREAU])]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser(__doc__, rounds=5)
    options.add_argument("--n", type=int, default=128, help="variables and inequalities of the QP")
    options.add_argument("--devices", default="cuda,cpu", help="in this order")
    options = options.parse_args(arguments)
    if "cuda" in options.devices and not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
        return []
    on = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{on}, {machine()}")
    if options.quick:
        options.n = min(options.n, 4)
    rows = []
    for device in options.devices.split(","):
        for family in families(options, device):
            rows += report(family, contestants(device), options)
    write_json(options, rows)
    return rows


if __name__ == "__main__":
    main()
