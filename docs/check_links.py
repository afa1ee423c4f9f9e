"""Every link inside the built site leads somewhere: to a file, and where it names one, to an anchor in it.

python docs/check_links.py docs/_build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ATTRIBUTES = {"href", "src", "srcset", "poster"}


class Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ATTRIBUTES and value:
                self.links.update(part.split()[0] for part in value.split(",") if part.strip())


def broken(site: Path) -> list[str]:
    """Links that lead nowhere, each with its page."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    return [
        f"{path.relative_to(site)}: {link}"
        for path, page in pages.items()
        for link in sorted(page.links)
        if not leads(path, link, pages)
    ]


def leads(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Whether a link of the page at `path` has a target; those to other sites are not followed."""
    to = urlsplit(link)
    if to.scheme or to.netloc:
        return True
    target = (path.parent / unquote(to.path)).resolve() if to.path else path
    if target.is_dir():
        target /= "index.html"
    anchors = pages[target].anchors if target in pages else {unquote(to.fragment)}
    return target.exists() and unquote(to.fragment) in anchors


def main(folder: str) -> int:
    found = broken(Path(folder).resolve())
    print(*found, f"{len(found)} broken links", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
