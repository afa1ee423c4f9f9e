"""The monomials an expression may hold, by degree in the variables and dependence on parameters.

An over-estimate: a monomial that cancels is still listed, one that occurs is never missing. It is
what tells a quadratic with constant curvature from one whose curvature moves with a parameter.
"""

import math
from collections.abc import Iterable
from functools import reduce
from itertools import product

Terms = frozenset[tuple[float, bool]]

CONSTANT: Terms = frozenset({(0, False)})
PARAMETER: Terms = frozenset({(0, True)})
VARIABLE: Terms = frozenset({(1, False)})

_HIGHEST_POWER = 16  # beyond it a polynomial is no more use to us than any other smooth function


def union(*operands: Terms) -> Terms:
    """Of a sum, and of every linear rearrangement."""
    return frozenset().union(*operands)


def multiplied(*operands: Terms) -> Terms:
    """Of a product: degrees add, and one parameter is enough."""
    return reduce(_pairwise, operands, CONSTANT)


def composed(*operands: Terms) -> Terms:
    """Of any other function of the operands: polynomial only where it does not see a variable."""
    terms = union(*operands)
    degree = math.inf if any(degree for degree, _ in terms) else 0
    return frozenset({(degree, any(parametric for _, parametric in terms))})


def divided(numerator: Terms, denominator: Terms) -> Terms:
    """Of a quotient."""
    return multiplied(numerator, composed(denominator))


def raised(exponent: float, base: Terms) -> Terms:
    """Of a power with a constant exponent."""
    if exponent in range(_HIGHEST_POWER + 1):
        return multiplied(*[base] * int(exponent))
    return composed(base)


def _pairwise(left: Iterable[tuple[float, bool]], right: Iterable[tuple[float, bool]]) -> Terms:
    return frozenset((m + n, p or q) for (m, p), (n, q) in product(left, right))
