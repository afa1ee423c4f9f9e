"""The check of the site's links finds what leads nowhere, and nothing else."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "docs"))
from check_links import broken


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
