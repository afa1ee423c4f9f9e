"""Docstrings as they are written for a terminal, made reST: what is indented below a sentence is literal."""

import re
from dataclasses import is_dataclass
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"^\s*\w[\w ]*:$")  # Args:, Returns:, Raises:, Attributes:, Example:


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", without_init)
    app.connect("autodoc-process-bases", public)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """`::` in front of indented formulas, and stars that are no emphasis."""
    lines[:] = [text if "``" in text else stars(text) for text in literal(lines)]


def literal(lines: list[str]) -> list[str]:
    """Paragraphs that are indented without a section above them are formulas."""
    out: list[str] = []
    section = formula = False
    for line in lines:
        if line and not line[0].isspace():
            section, formula = SECTION.match(line) is not None, False
        elif line.strip() and not section and not formula and out and not out[-1].strip():
            formula = True
            out += ["::", ""]
        out.append(line)
    return out


def stars(text: str) -> str:
    """*batch is a shape; what ends in a star, too, is emphasis."""
    return re.sub(r"(?<![\w\\*])\*(?=\w)(?![\w ]*\*)", r"\\*", text)


def public(app: Sphinx, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Private classes are skipped in favour of what they derive from."""
    bases[:] = [base.__base__ if base.__name__.startswith("_") else base for base in bases]


def without_init(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, args: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """What is returned or raised is not made by hand: the fields say it all."""
    return ("", None) if args and (what == "exception" or is_dataclass(obj)) else (args, returns)
