"""The examples run as they stand, and their numbers are what they should be."""

import ast
import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: object) -> dict[str, float]:
    return importlib.import_module(name).main(*arguments)


def test_sixty_lines() -> None:
    numbers = run("sixty_lines")
    assert numbers["both_right"] < 1e-6
    assert numbers["ours_worst"] < 1e-12
    assert numbers["tutorial_wrong"] >= 4  # it is still the layer the page says it is


def test_nonlinearities(tmp_path: Path) -> None:
    numbers = run("nonlinearities", tmp_path)
    assert numbers["value_error"] < 1e-12
    assert numbers["gradient_error"] < 1e-12
    assert written(tmp_path) == ["nonlinearities.png"]


def test_quadratic_program(tmp_path: Path) -> None:
    numbers = run("quadratic_program", tmp_path)
    assert numbers["residual"] < 1e-13
    assert numbers["finite_difference_error"] < 1e-7
    assert numbers["asymmetry"] < 1e-11
    assert 0 < numbers["active"] < 4
    assert written(tmp_path) == ["quadratic_program.png"]


def test_polytope(tmp_path: Path) -> None:
    numbers = run("polytope", tmp_path)
    assert numbers["after"] < 0.005 < 0.1 < numbers["before"]
    assert numbers["held_out"] < 0.005
    assert written(tmp_path) == ["polytope.gif", "polytope.png"]


def test_digits(tmp_path: Path) -> None:
    numbers = run("digits", tmp_path)
    assert numbers["accuracy"] >= 0.95
    assert 0.5 < numbers["one_class"] < 1
    assert written(tmp_path) == ["digits.png"]


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.stat().st_size > 10_000)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_runs_as_a_script_and_only_then(path: Path) -> None:
    *above, last = ast.parse(path.read_text(encoding="utf-8")).body
    assert ast.unparse(last) == "if __name__ == '__main__':\n    main()"
    assert not any(isinstance(node, ast.For | ast.While | ast.With | ast.If) for node in above)
