"""The benchmarks run, and print what they promise: accuracy beside every time.

Tiny sizes and one round. Whether the judge judges is tested too: the reference agrees with a closed
form it does not use, and a layer that is wrong, or raises, is said to be.
"""

import ast
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = (
    "against_peers",
    "against_sixty_lines",
    "construction",
    "gpu",
    "scaling_with_batch",
    "scaling_with_size",
)

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """A module of the benchmarks, imported as a script beside it would."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def right(row: Any) -> None:
    assert not row.note
    assert row.both > 0
    assert row.least <= row.both
    assert row.residual < 1e-12
    assert row.gradient_error < 1e-9


# ---------------------------------------------------------------------------- the scripts


def test_against_peers(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, figure = tmp_path / "rows.json", tmp_path / "ratios.png"
    rows = load("against_peers").main(["--quick", "--json", str(kept), "--plot", str(figure)])
    ours = [row for row in rows if row.who == "optlayer"]
    assert len(ours) == len(load("workloads").FULL)
    for row in ours:
        right(row)
        assert row.ratio == 1
    printed = capsys.readouterr().out
    assert printed.count("| residual | value error | gradient error |") == len(ours)
    assert len(json.loads(kept.read_text())["rows"]) == len(rows)
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize("name", ["scaling_with_batch", "scaling_with_size"])
def test_scaling(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    figure = tmp_path / "growth.png"
    rows = load(name).main(["--quick", "--plot", str(figure)])
    ours = [row for row in rows if row.who == "optlayer"]
    families = dict.fromkeys(row.workload for row in rows)
    assert len(ours) == 2 * len(families)
    for row in ours:
        right(row)
    printed = capsys.readouterr().out
    assert printed.count("| exponent |") == printed.count("\n| clarabel alone |") == len(families)
    assert re.search(r"\| optlayer \| [\d.]+ \(\d+e-\d+, \d+e-\d+\)", printed)  # a time has its errors
    assert figure.stat().st_size > 10_000


def test_against_sixty_lines(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load("against_sixty_lines").main(["--quick"])
    assert [row.who for row in rows] == ["optlayer", "sixty lines"] * 2
    for ours, theirs in zip(rows[::2], rows[1::2]):
        right(ours)
        assert theirs.gradient_error < 1e-3
        assert theirs.ratio > 0
    assert "### sparsemax" in capsys.readouterr().out


def test_construction(
    load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))  # for the process it starts
    (cost,) = load("construction").main(["--quick"])
    assert not cost.note
    assert cost.seconds > 0
    assert 0 <= cost.megabytes < 200
    assert max(cost.residual, cost.gradient_error) < 1e-9
    assert "| construct s | added MB |" in capsys.readouterr().out


def test_gpu(load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA it says so; what it would do there runs on a CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert load("gpu").main([]) == []
    assert capsys.readouterr().out == "no CUDA device here: nothing to measure\n"
    rows = load("gpu").main(["--quick", "--devices", "cpu"])
    assert [row.size for row in rows] == [2, 4, 2, 4]
    for row in rows:
        right(row)


# ---------------------------------------------------------------------------- the judge


def test_the_reference_agrees_with_a_closed_form(load: Load) -> None:
    reference, workload = load("reference"), load("workloads").sparsemax(6, 5)
    closed = workload.exact(workload.theta, workload.weights())
    root = reference.kkt(workload.programme, workload.read)
    newton = reference.by_newton(root, workload.theta, workload.weights())
    assert newton.residual < 1e-15
    for ours, exact in zip((*newton.outputs, *newton.gradients), (*closed.outputs, *closed.gradients)):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-14)


def test_the_reference_agrees_with_finite_differences(load: Load) -> None:
    """Of every workload without a closed form, along one direction."""
    workloads = load("workloads")
    for make in (made for name, made in workloads.QUICK.items() if name != "logistic"):
        workload = make()
        weights = workload.weights()
        generator = torch.Generator().manual_seed(1)
        ways = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in workload.theta]

        def value(step: float, workload=workload, weights=weights, ways=ways) -> torch.Tensor:
            moved = tuple(t + step * d for t, d in zip(workload.theta, ways))
            return load("reference").paired(weights, workload.exact(moved, weights).outputs)

        difference = (value(1e-6) - value(-1e-6)) / 2e-6
        exact = workload.exact(workload.theta, weights)
        slope = load("reference").paired(ways, exact.gradients)
        assert abs(difference - slope) < 1e-5 * (1 + abs(slope)), workload.title


@dataclass(frozen=True)
class Pretender:
    """The closed form of sparsemax, spoilt."""

    name: str
    spoil: Callable[[torch.Tensor], torch.Tensor]
    differentiable: bool = True
    programmes_only: bool = False

    def build(self, workload: Any) -> Any:
        closed = workload.exact.args[0]
        return lambda x: (self.spoil(closed(x)[0]),)

    def residual(self, layer: Any, theta: Any) -> None: ...

    def around(self, workload: Any) -> Any:
        return torch.enable_grad()


def fails(y: torch.Tensor) -> torch.Tensor:
    raise ValueError("no | such\nnumber")


def test_a_wrong_answer_is_called_wrong_and_an_error_is_named(load: Load) -> None:
    harness, workload = load("harness"), load("workloads").sparsemax(6, 5)
    spoilers = {"exact": lambda y: y, "off by 5 %": lambda y: 1.05 * y, "fails": fails}
    rows = harness.compare(workload, [Pretender(*pair) for pair in spoilers.items()], 3)
    exact, off, failed = rows
    assert exact.gradient_error == exact.value_error == 0
    assert off.gradient_error == pytest.approx(0.05)
    assert off.value_error == pytest.approx(0.05)
    assert (exact.rounds, failed.rounds) == (3, 0)
    assert failed.note == "ValueError: no | such number"
    marked = [("**wrong**" in line, "ValueError" in line) for line in harness.table(rows).splitlines()[2:]]
    assert marked == [(False, False), (True, False), (False, True)]


def test_a_nan_is_wrong(load: Load) -> None:
    harness, workload = load("harness"), load("workloads").sparsemax(6, 5)
    rows = harness.compare(workload, [Pretender("nan", lambda y: y * torch.nan)], 1)
    assert "**wrong**" in harness.table(rows)


def test_who_has_spent_the_budget_sits_out(load: Load) -> None:
    harness, workload = load("harness"), load("workloads").sparsemax(6, 5)
    (row,) = harness.compare(workload, [Pretender("exact", lambda y: y)], 5, budget=0.0)
    assert row.rounds == 1


def test_growth(load: Load) -> None:
    harness = load("harness")
    row = harness.Row("w", "who", 1)
    cubic = [replace(row, size=n, both=2.0 * n**3) for n in (1, 10, 20)]
    assert harness.growth(cubic) == pytest.approx(3)
    assert harness.growth(cubic[:1]) is None


@pytest.mark.parametrize("name", SCRIPTS)
def test_runs_as_a_script(name: str) -> None:
    *_, last = ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")).body
    assert ast.unparse(last) == "if __name__ == '__main__':\n    main()"


def test_make_bench_runs_them_all() -> None:
    (line,) = re.findall(r"for name in (against_.*?); do", (BENCHMARKS.parent / "Makefile").read_text())
    assert sorted(line.split()) == sorted(SCRIPTS)
