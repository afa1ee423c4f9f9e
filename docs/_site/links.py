"""Pages that are read on GitHub as well: links to the repository's files lead to the site's pages.

../examples/lasso.py     the page of the gallery
../CHANGELOG.md          the page that holds it
../tests/..., ../LICENSE left alone: Sphinx offers the file for download
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"\]\((?!http)((?:\.\./)+)([^)#\s]+)(#[^)]*)?\)")
PAGES = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", redirect)
    app.connect("include-read", lambda app, path, parent, content: redirect_from_root(app, parent, content))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def redirect(app: Sphinx, page: str, content: list[str]) -> None:
    """Links of a page, relative to where it lies."""
    depth = page.count("/") + 1

    def target(link: re.Match[str]) -> str:
        if link[1].count("../") != depth:
            return link[0]
        return f"]({'../' * (depth - 1)}{place(app, link[2])}{link[3] or ''})"

    content[0] = LINK.sub(target, content[0])


def redirect_from_root(app: Sphinx, page: str, content: list[str]) -> None:
    """Links of a file that lies in the root of the repository and is included in a page."""
    here = re.compile(r"\]\(docs/([^)\s]+)\)")
    content[0] = here.sub(r"](\1)", content[0])


def place(app: Sphinx, path: str) -> str:
    """A file of the repository as the site has it, seen from the site's root."""
    if path in PAGES:
        return PAGES[path]
    page = (
        Path("gallery") / Path(path).relative_to("examples").with_suffix("")
        if path.startswith("examples/")
        else None
    )
    if page is not None and str(page) in app.env.found_docs:
        return f"{page}.rst"
    return f"../{path}"
