"""The site. `make docs` builds it: warnings are errors, and every page that runs is run."""

import os
import sys
import typing
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ |= {"TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "passive"}  # progress bars are for terminals
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])  # for workers
typing.GENERATING_DOCUMENTATION = "optlayer"  # jaxtyping then shows a shape as it is written

from sphinx_gallery.sorting import ExplicitOrder  # noqa: E402

import optlayer  # noqa: E402

project = "optlayer"
author = "the optlayer developers"
copyright = f"2026, {author}"
version = release = optlayer.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "_site.docstrings",
    "_site.figures",
    "_site.links",
    "_site.mathematics",
]
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py", "gallery/written"]

# ---------------------------------------------------------------------------------------- text
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 4  # links to headings, as GitHub makes them
default_role = "literal"  # `x` is code, in docstrings as in the pages
highlight_language = "none"  # what is indented is mathematics more often than Python
smartquotes = False
html_math_renderer = "mathml"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!optlayer).*")]  # torch, cvxpy, jaxtyping: no look-ups on the network

# ----------------------------------------------------------------------------------------- API
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 72
add_module_names = False
napoleon_use_ivar = True

# ------------------------------------------------------------------------------------- gallery
SECTIONS = ["basics", "derivatives", "learning", "decisions"]
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "",  # every script is run,
    "ignore_pattern": r"(__init__|_style|demo|distributed|sixty_lines)\.py$",  # these are no pages
    "subsection_order": ExplicitOrder([*(f"../examples/{name}" for name in SECTIONS), "*"]),
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("_site.figures.scrape",),
    "reset_modules": ("_site.figures.reset",),
    "capture_repr": (),
    "inspect_global_variables": False,  # it reads every attribute, x.T of a batch among them, which warns
    "abort_on_example_error": True,
    "run_stale_examples": False,
    "remove_config_comments": True,
    "min_reported_time": 1,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "thumbnail_size": (400, 280),
    "parallel": int(os.environ.get("DOCS_JOBS", "2")),
}

# ---------------------------------------------------------------------------------------- look
html_theme = "furo"
html_title = "optlayer"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2f6db5", "color-brand-content": "#2f6db5"},
    "dark_css_variables": {"color-brand-primary": "#7fb0ea", "color-brand-content": "#7fb0ea"},
}
copybutton_exclude = ".linenos, .gp, .go"
