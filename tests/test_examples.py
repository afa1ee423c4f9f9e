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


def test_input_convex(tmp_path: Path) -> None:
    numbers = run("input_convex", tmp_path)
    assert numbers["after"] < 0.1 < 0.5 < numbers["before"]
    assert numbers["slope_error"] < 0.15
    assert written(tmp_path) == ["input_convex.png"]


def test_degenerate(tmp_path: Path) -> None:
    numbers = run("degenerate", tmp_path)
    assert numbers["kink_flagged"] == numbers["kink_slope"] == 1
    assert numbers["minimum_norm_error"] < 1e-12
    assert numbers["smoothed_error"] < 1e-10
    assert numbers["exact_slope"] == 0
    assert written(tmp_path) == ["degenerate.png"]


def test_shortest_path(tmp_path: Path) -> None:
    numbers = run("shortest_path", tmp_path)
    assert numbers["exact"] == numbers["least_squares"]  # the exact derivative is 0
    assert numbers["smoothed"] < 0.7 * numbers["least_squares"]
    assert numbers["vertices"] < 1e-12
    assert written(tmp_path) == ["shortest_path.png"]


def test_least_squares_l1(tmp_path: Path) -> None:
    numbers = run("least_squares_l1", tmp_path)
    assert numbers["residual"] < 1e-13
    assert numbers["multiplier"] > 0.1  # the floor is felt
    assert numbers["gradient_error"] < 1e-12
    assert numbers["finite_difference_error"] < 1e-9
    assert numbers["sign_error"] < 1e-12
    assert numbers["rows_fitted"] == 1
    assert written(tmp_path) == ["least_squares_l1.png"]


def test_lasso(tmp_path: Path) -> None:
    numbers = run("lasso", tmp_path)
    assert numbers["spread"] < 0.02  # both learners stop at the same λ,
    assert 0.8 < numbers["lambda"] / numbers["grid"] < 1.25  # two steps of the grid at most from its best
    assert numbers["excess"] < 0
    assert numbers["gradient_error"] < 1e-12
    assert numbers["sklearn_distance"] < 1e-9
    assert numbers["missed"] == 0
    assert numbers["support"] <= 15
    assert written(tmp_path) == ["lasso.png"]


def test_robust_least_squares(tmp_path: Path) -> None:
    numbers = run("robust_least_squares", tmp_path)
    assert numbers["regime_errors"] == 0
    assert min(numbers["met"], numbers["silent"]) > 50
    assert numbers["envelope_error"] < 1e-12
    assert numbers["attained_error"] < 1e-12
    assert numbers["at_apex"] == 4
    assert numbers["robust"] < 0.85 * numbers["least_squares"]
    assert numbers["cosine"] > 0.98
    assert written(tmp_path) == ["robust_least_squares.png"]


def test_max_cut(tmp_path: Path) -> None:
    numbers = run("max_cut", tmp_path)
    assert 0.87856 * numbers["value"] < numbers["expected"] < numbers["maximum"] < numbers["value"]
    assert numbers["best"] == pytest.approx(numbers["maximum"])
    assert numbers["mean"] == pytest.approx(numbers["expected"], rel=0.01)
    assert numbers["rank"] == 2
    assert numbers["envelope_error"] < 1e-12
    assert numbers["gradient_error"] < 1e-7
    assert numbers["hessian_error"] < 1e-7
    assert numbers["asymmetry"] < 1e-10
    assert written(tmp_path) == ["max_cut.png"]


def test_nearest_correlation(tmp_path: Path) -> None:
    numbers = run("nearest_correlation", tmp_path)
    assert numbers["residual"] < 1e-12
    assert numbers["least_before"] < -0.5
    assert numbers["least_after"] > -1e-12
    assert numbers["diagonal_error"] < 1e-12
    assert numbers["after"] < numbers["unweighted"] < numbers["before"]
    assert numbers["after_weighted"] < numbers["before_weighted"]
    assert numbers["unseen"] == 0
    assert numbers["finite_difference_error"] < 1e-8
    assert written(tmp_path) == ["nearest_correlation.png"]


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.stat().st_size > 10_000)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_runs_as_a_script_and_only_then(path: Path) -> None:
    *above, last = ast.parse(path.read_text(encoding="utf-8")).body
    assert ast.unparse(last) == "if __name__ == '__main__':\n    main()"
    assert not any(isinstance(node, ast.For | ast.While | ast.With | ast.If) for node in above)
