"""The gallery's figures: one style, and a look-out for those that a script writes itself."""

import os
import re
import sys
from pathlib import Path
from shutil import copyfile
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from PIL import Image
from sphinx.application import Sphinx
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

DOCS = Path(__file__).parent.parent
WRITTEN = DOCS / "_build" / "figures"  # where scripts that write figures put them during a build

CELL = ".. GENERATED FROM PYTHON SOURCE LINES"  # what sphinx-gallery puts in front of each
FIGURE = re.compile(r"^\.\. image-sg::.*\n(?: .*\n)+", re.MULTILINE)

# Where a thumbnail looks in a wide figure: 0 is its left, 1 its right end.
LOOK = {
    "data_poisoning": 0,
    "degenerate": 1,
    "digits": 0.75,
    "dispatch": 0,
    "eigenvector": 0.5,
    "ellipsoid": 0,
    "equality_qp": 0,
    "hessian_of_value": 0,
    "hyperparameters": 0,
    "implicit_functions": 0,
    "infeasible_samples": 0.43,
    "input_convex": 0,
    "jacobian_or_adjoint": 0,
    "lasso": 0.5,
    "least_squares_l1": 0,
    "least_squares_qr": 0,
    "max_cut": 0,
    "mpc": 0.55,
    "nearest_correlation": 0.02,
    "nonlinearities": 0.46,
    "perspective_n_point": 1,
    "polytope": 0.5,
    "pooling": 0,
    "portfolio": 0.4,
    "quadratic_program": 0,
    "robust_least_squares": 0.5,
    "shortest_path": 1,
    "stackelberg": 0,
    "sudoku": 1,
    "total_variation": 0.85,
    "transport_sinkhorn": 0,
    "unit_circle": 0,
    "unrolled": 0,
}

Gallery = dict[str, Any]


def reset(gallery_conf: Gallery, script: str) -> None:
    """Before each page: torch as it comes, matplotlib in our style, a folder for what is written."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    plt.rcdefaults()
    plt.style.use(DOCS / "optlayer.mplstyle")
    sys.modules.pop("_style", None)  # the look of the scripts in examples/ itself, on top of it when imported
    os.environ["OPTLAYER_FIGURES"] = str(WRITTEN / Path(script).stem)


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
    folder = Path(os.environ["OPTLAYER_FIGURES"])
    written = sorted(folder.glob("*.*"), key=lambda path: path.stat().st_mtime_ns)
    shown = ""
    for path, place in zip(written, variables["image_path_iterator"]):
        place = Path(place).with_suffix(path.suffix)
        copyfile(path, place)
        path.unlink()
        shown += figure_rst([place], gallery_conf["src_dir"])
    return shown


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", raise_figures)
    app.connect("builder-inited", crop_thumbnails, priority=900)  # after sphinx-gallery
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def raise_figures(app: Sphinx, page: str, content: list[str]) -> None:
    """Where a script draws in its last cell only, the figures stand above its code: first what, then how."""
    head, *cells = content[0].split(CELL)
    if cells and "image-sg::" in cells[-1] and not any("image-sg::" in cell for cell in cells[:-1]):
        figures = "\n\n".join(FIGURE.findall(cells[-1])) + "\n\n"
        content[0] = CELL.join([head + figures, *cells[:-1], FIGURE.sub("", cells[-1])])


def crop_thumbnails(app: Sphinx) -> None:
    """The part of a wide figure that is worth a look at the size of a thumbnail."""
    width, height = app.config.sphinx_gallery_conf["thumbnail_size"]
    for name, look in LOOK.items():
        for path in (DOCS / "gallery").rglob(f"images/sphx_glr_{name}_001.png"):
            figure = Image.open(path).convert("RGB")
            window = figure.height * width / height
            left = look * (figure.width - window)
            figure = figure.crop((round(left), 0, round(left + window), figure.height))
            figure.resize((width, height)).save(path.parent / "thumb" / f"sphx_glr_{name}_thumb.png")
