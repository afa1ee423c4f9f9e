"""Two processes are worth one: equal gradients, equal weights, also where samples fail on one of them.

The processes are started afresh and meet in a file; gloo talks through the loopback.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
WORLD = 2
SAMPLES = 32
STEPS = 3

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


def inherit(patch: pytest.MonkeyPatch) -> None:
    """What the processes find in their environment."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if sys.platform == "linux":
        settings["GLOO_SOCKET_IFNAME"] = "lo"
    for name, value in settings.items():
        patch.setenv(name, value)


def learned(rank: int, world: int) -> dict[str, Any]:
    """The gradient of the first step, the weights after a few, by one process of `world`."""
    example = importlib.import_module("distributed")
    model = example.learner(torch.device("cpu"))
    data = example.draw(SAMPLES).share(rank, world)
    example.loss_of(model, data).backward()
    gradient = flat(model, lambda p: p.grad)
    example.train(model, data, STEPS)
    failed = int(data.observed.isnan().any(1).sum())
    kept = {"gradient": gradient, "weights": flat(model, lambda p: p), "failed": failed}
    return kept | {"apart": example.spread(model)}


def flat(model: nn.Module, read: Any) -> Tensor:
    return torch.cat([read(p).detach().reshape(-1) for p in model.parameters()])


def process(rank: int, folder: str) -> None:
    """One of the two: what it learned is left in the folder."""
    sys.path.insert(0, str(ROOT / "examples"))
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    torch.save(learned(rank, WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("processes"))
    with pytest.MonkeyPatch.context() as patch:
        inherit(patch)
        torch.multiprocessing.spawn(process, (folder,), nprocs=WORLD)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return learned(0, 1)


def test_a_sample_fails_on_one_process_only(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert [kept["failed"] for kept in together] == [1, 0]
    assert alone["failed"] == 1


def test_gradients_are_those_of_the_whole_batch(
    together: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert alone["gradient"].abs().max() > 1e-3
    for kept in together:
        torch.testing.assert_close(kept["gradient"], alone["gradient"], rtol=0, atol=1e-12)


def test_weights_stay_in_step(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    first, second = (kept["weights"] for kept in together)
    assert torch.equal(first, second)
    assert [kept["apart"] for kept in together] == [0, 0]
    torch.testing.assert_close(first, alone["weights"], rtol=0, atol=1e-9)


def test_the_shares_are_the_batch() -> None:
    example = importlib.import_module("distributed")
    data = example.draw(SAMPLES)
    shares = [data.share(rank, WORLD) for rank in range(WORLD)]
    assert torch.stack([s.features for s in shares], 1).reshape_as(data.features).equal(data.features)


def test_the_example_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    inherit(monkeypatch)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    run = subprocess.run(
        [*command, str(ROOT / "examples" / "distributed.py")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "processes      2, 64 samples each, cpu" in run.stdout
    assert "no allocation  2 of 128 samples" in run.stdout
    assert "weights apart  0e+00" in run.stdout


def test_the_example_alone() -> None:
    numbers = importlib.import_module("distributed").main()
    assert numbers["after"] < 0.2 * numbers["before"]
    assert numbers["apart"] == 0
    assert numbers["unsolved"] == 2
