"""The gallery's figures: one style, and a look-out for those that a script writes itself."""

import sys
from pathlib import Path
from shutil import copyfile
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

DOCS = Path(__file__).parent.parent
EXAMPLES = DOCS.parent / "examples"
WRITTEN = DOCS / "gallery" / "written"  # where scripts with a `main()` put their figures during a build

Gallery = dict[str, Any]


def reset(gallery_conf: Gallery, script: str) -> None:
    """Before each page: matplotlib as it comes, in the site's style; scripts write into `WRITTEN`."""
    plt.rcdefaults()
    sys.modules.pop("_style", None)
    if Path(script).parent == EXAMPLES:
        if str(EXAMPLES) not in sys.path:
            sys.path.append(str(EXAMPLES))
        import _style

        _style.FIGURES = WRITTEN / Path(script).stem
    else:
        plt.style.use(DOCS / "optlayer.mplstyle")


def scrape(block: Any, variables: dict[str, Any], gallery_conf: Gallery) -> str:
    """The figures a block left behind: animations, open figures, files."""
    of_block = animations(variables, gallery_conf)
    of_block += matplotlib_scraper(block, variables, gallery_conf)
    return of_block + files(variables, gallery_conf)


def animations(variables: dict[str, Any], gallery_conf: Gallery) -> str:
    """Each animation as a GIF, which needs neither JavaScript nor a video encoder."""
    shown = ""
    for value in list(variables["example_globals"].values()):
        if isinstance(value, FuncAnimation) and plt.fignum_exists(value._fig.number):
            path = Path(next(variables["image_path_iterator"])).with_suffix(".gif")
            value.save(path, writer=PillowWriter(fps=round(1000 / value._interval)), dpi=110)
            plt.close(value._fig)
            shown += figure_rst([path], gallery_conf["src_dir"])
    return shown


def files(variables: dict[str, Any], gallery_conf: Gallery) -> str:
    """Each file that the script wrote, in the order of writing; taken away, so that it is seen once."""
    folder = WRITTEN / Path(variables["src_file"]).stem
    written = sorted(folder.glob("*.*"), key=lambda path: path.stat().st_mtime_ns)
    shown = ""
    for path, place in zip(written, variables["image_path_iterator"]):
        place = Path(place).with_suffix(path.suffix)
        copyfile(path, place)
        path.unlink()
        shown += figure_rst([place], gallery_conf["src_dir"])
    return shown
