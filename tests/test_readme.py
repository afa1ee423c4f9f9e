"""Every fenced python block of README.md and of docs/ runs, and says what the page says it says.

Blocks of one page share a namespace, as at a reader's prompt. A block is checked by an `assert`
of its own, or by the fenced `text` block right behind it, which holds what it prints.
"""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parent.parent
BUILT = {"_build", "gallery"}  # by the site
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not BUILT & set(page.parts)),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    code: str
    line: int  # where its first line stands in the page
    printed: str | None


def blocks(page: str) -> Iterator[Block]:
    fences = list(FENCE.finditer(page))
    for fence, behind in zip(fences, [*fences[1:], None]):
        if fence[1] != "python":
            continue
        adjacent = behind is not None and not page[fence.end() : behind.start()].strip()
        printed = behind[2] if adjacent and behind[1] == "text" else None
        yield Block(fence[2], page.count("\n", 0, fence.start(2)), printed)


def run(page: str, name: str) -> None:
    default = torch.get_default_dtype()
    try:
        run_blocks(page, name)
    finally:
        torch.set_default_dtype(default)


def run_blocks(page: str, name: str) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{name}:{block.line + 1}"
        assert block.printed is not None or "assert " in block.code, f"{where} checks nothing"
        said = io.StringIO()
        with redirect_stdout(said):  # the blank lines make tracebacks point into the page
            exec(compile("\n" * block.line + block.code, name, "exec"), namespace)
        if block.printed is not None:
            assert said.getvalue().split() == block.printed.split(), where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path) -> None:
    run(page.read_text(encoding="utf-8"), page.name)


def test_the_readme_has_a_block_on_its_first_screen() -> None:
    assert next(blocks(PAGES[0].read_text(encoding="utf-8"))).line < 40


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nassert 1 == 2\n```", AssertionError),
        ("```python\nprint(1)\n```\n\n```text\n2\n```", AssertionError),
        ("```python\nprint(1)\n```\nprose\n```text\n1\n```", AssertionError),  # not right behind
        ("```python\nx = 1\n```", AssertionError),
        ("```python\nassert nothing\n```", NameError),
    ],
)
def test_a_wrong_page_fails(page: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(page, "page")


def test_blocks_share_their_names() -> None:
    run("```python\nx = 1\nassert x\n```\n\n```python\nprint(x)\n```\n```text\n1\n```", "page")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:tests|optlayer|examples|benchmarks|docs)/[\w/]+\.(?:py|md|png|gif)", text)
    linked = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in linked if not (page.parent / link).exists()]
    assert not missing
