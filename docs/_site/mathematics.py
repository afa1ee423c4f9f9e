"""Formulas as MathML, which browsers set themselves: no script, no network, and a typo stops the build."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

PLAIN = {  # what the converter does without; the bars of a norm it would stretch, and not as a pair
    **{r"\dots": r"\ldots", r"\textstyle": "", r"\displaystyle": ""},
    **{r"\lVert": "|", r"\rVert": "|", r"\Vert": "|"},
}
ACCENT = re.compile(r"(\\(?:dot|bar|hat|tilde)\s*(?:\w|\{\w+\}|\\[a-z]+))(?=[_^])")  # \dot x_k: of x alone
FRACTION = re.compile(r"\\[dt]?frac\s*([\da-z])([\da-z])")  # \tfrac12
BAR = '<mo stretchy="false">|</mo>'
NORM = BAR.replace(" ", ' lspace="0" rspace="0" ', 1)  # no space around it
THIN = "\N{THIN SPACE}"
LIMITS = re.compile(  # \operatorname*{argmin}_x
    r"\\operatorname\*\{([^{}]*)\}\s*(?:_(\{[^{}]*\}|\\[a-zA-Z]+|\w))?"
)

logger = logging.getLogger(__name__)


def mathml(node: nodes.Element, as_block: bool) -> str:
    """The formula of a node."""
    tex = re.sub(r"\\[a-zA-Z]+", lambda name: PLAIN.get(name[0], name[0]), node.astext().strip())
    tex = FRACTION.sub(r"\\frac{\1}{\2}", LIMITS.sub(under, tex))
    tex = ACCENT.sub(r"{\1{}}", tex)  # the braces alone would be dropped
    if as_block and r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        return tex2mathml(tex, as_block=as_block).replace(BAR, NORM)
    except MathError as error:
        logger.warning("formula: %s in %r", error, tex, location=node)
        return f"<code>{tex}</code>"


def under(operator: re.Match[str]) -> str:
    """What an operator with a star has as subscript stands below it."""
    name = rf"\operatorname{{{operator[1].replace(chr(92) + ',', THIN)}}}"
    return rf"\underset{{{operator[2]}}}{{{name}}}" if operator[2] else name


def inline(writer, node: nodes.math) -> None:
    writer.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def block(writer, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
