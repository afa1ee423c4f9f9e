"""What the site is made with: its links are followed, its formulas are set, its docstrings are made reST."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from _site.docstrings import literal, stars
from _site.figures import CELL, raise_figures
from _site.links import redirect
from _site.mathematics import mathml
from check_links import broken
from docutils import nodes

# ------------------------------------------------------------------------------------------ links


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<h1 id="title">a page</h1> <img src="../figure.png">')
    (tmp_path / "figure.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "link", ["folder/index.html", "folder/", "folder/index.html#title", "#here", "#", "https://example.org/x"]
)
def test_a_link_that_leads_somewhere(site: Path, link: str) -> None:
    (site / "start.html").write_text(f'<p id="here"><a href="{link}">there</a></p>')
    assert broken(site) == []


@pytest.mark.parametrize("link", ["none.html", "folder/index.html#nowhere", "#nowhere", "../outside.html"])
def test_a_link_that_leads_nowhere(site: Path, link: str) -> None:
    (site / "start.html").write_text(f'<a href="{link}">there</a>')
    assert broken(site) == [f"start.html: {link}"]


def test_a_figure_that_is_missing(site: Path) -> None:
    (site / "figure.png").unlink()
    assert broken(site) == ["folder/index.html: ../figure.png"]


@pytest.mark.parametrize(
    ("page", "link", "leads"),
    [
        ("faq", "../examples/lasso.py", "gallery/lasso.rst"),
        ("howto/gpu", "../../examples/lasso.py", "../gallery/lasso.rst"),
        ("faq", "../examples/demo.py", "../examples/demo.py"),  # no page: offered for download
        ("faq", "../CHANGELOG.md", "changes.md"),
        ("faq", "derivation.md#6-kinks", "derivation.md#6-kinks"),
        ("faq", "https://example.org/../x", "https://example.org/../x"),
    ],
)
def test_a_link_that_github_follows(page: str, link: str, leads: str) -> None:
    content = [f"[there]({link})"]
    redirect(SimpleNamespace(env=SimpleNamespace(found_docs={"gallery/lasso"})), page, content)
    assert content == [f"[there]({leads})"]


# --------------------------------------------------------------------------------------- formulas


def test_fractions_of_digits() -> None:
    tags = mathml(nodes.math("", r"\tfrac12 x"), as_block=False).replace("\n", "").replace(" ", "")
    assert "<mfrac><mn>1</mn><mn>2</mn></mfrac>" in tags


def test_an_operator_with_its_variable_below() -> None:
    tags = mathml(nodes.math("", r"\operatorname*{argmin}_z f"), as_block=False)
    assert "<munder>" in tags
    assert ">argmin</mi>" in tags


def test_an_accent_is_that_of_its_letter() -> None:
    tags = mathml(nodes.math("", r"\dot x_k"), as_block=False).replace("\n", "").replace(" ", "")
    assert "<msub><mrow><mover" in tags


def test_the_bars_of_a_norm_are_not_stretched() -> None:
    tags = mathml(nodes.math("", r"\lVert x\rVert^2"), as_block=False)
    assert tags.count('stretchy="false"') == 2


def test_a_wrong_formula_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert mathml(nodes.math("", r"\nonsense"), as_block=False) == r"<code>\nonsense</code>"
    assert r"\nonsense" in caplog.text


# ------------------------------------------------------------------------------------- docstrings


def test_what_is_indented_is_literal() -> None:
    lines = ["The formula", "", "    F(u) = 0", "", "Args:", "", "    u: text"]
    assert literal(lines) == ["The formula", "", "::", "", "    F(u) = 0", "", "Args:", "", "    u: text"]


@pytest.mark.parametrize(
    ("text", "rest"), [("(*batch, *n)", r"(\*batch, \*n)"), ("*the* one", "*the* one"), ("x*", "x*")]
)
def test_stars(text: str, rest: str) -> None:
    assert stars(text) == rest


# ---------------------------------------------------------------------------------------- figures

FIGURE = ".. image-sg:: /one.png\n   :alt: one\n"


@pytest.mark.parametrize(
    ("cells", "raised"),
    [
        (["title\n", "code\n", FIGURE], ["title\n" + FIGURE + "\n\n", "code\n", ""]),
        (["title\n", FIGURE, "code\n"], ["title\n", FIGURE, "code\n"]),  # stays where it was drawn
        (["a page without cells\n"], ["a page without cells\n"]),
    ],
)
def test_figures_of_the_last_cell_go_to_the_top(cells: list[str], raised: list[str]) -> None:
    content = [CELL.join(cells)]
    raise_figures(SimpleNamespace(), "gallery/page", content)
    assert content == [CELL.join(raised)]
