"""The monomials an expression may hold, by degree in the variables and degree in the parameters.

An over-estimate: a monomial that cancels is still listed, one that occurs is never missing. It is
what tells a quadratic with constant curvature from one whose curvature is affine in a parameter, and
both from one whose curvature moves with it in any other way. A degree is math.inf where the expression
is not polynomial in those leaves.
"""

import math
from collections.abc import Iterable
from functools import reduce
from itertools import product

Terms = frozenset[tuple[float, float]]

CONSTANT: Terms = frozenset({(0, 0)})
PARAMETER: Terms = frozenset({(0, 1)})
VARIABLE: Terms = frozenset({(1, 0)})

_HIGHEST_POWER = 16  # beyond it a polynomial is no more use to us than any other smooth function


def union(*operands: Terms) -> Terms:
    """Of a sum, and of every linear rearrangement."""
    return frozenset().union(*operands)


def multiplied(*operands: Terms) -> Terms:
    """Of a product: degrees add."""
    return reduce(_pairwise, operands, CONSTANT)


def composed(*operands: Terms) -> Terms:
    """Of any other function of the operands: polynomial only in leaves that it does not see."""
    x, theta = (max(degrees) for degrees in zip(*union(*operands)))
    return frozenset({(math.inf if x else 0, math.inf if theta else 0)})


def divided(numerator: Terms, denominator: Terms) -> Terms:
    """Of a quotient."""
    return multiplied(numerator, composed(denominator))


def raised(exponent: float, base: Terms) -> Terms:
    """Of a power with a constant exponent."""
    if exponent in range(_HIGHEST_POWER + 1):
        return multiplied(*[base] * int(exponent))
    return composed(base)


def _pairwise(left: Iterable[tuple[float, float]], right: Iterable[tuple[float, float]]) -> Terms:
    return frozenset((_total(m, n), _total(p, q)) for (m, p), (n, q) in product(left, right))


def _total(m: float, n: float) -> float:
    return m + n if m + n <= _HIGHEST_POWER else math.inf
