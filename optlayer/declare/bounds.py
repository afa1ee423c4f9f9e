"""How deep and how large a declaration may be: what is beyond is refused before stack or memory go."""

from typing import Any

from optlayer.errors import DeclarationError

DEEPEST = 128  # atoms inside of each other; cvxpy and we go down expressions by recursion
LARGEST = 2**28  # entries of one dense matrix of one sample: 2 GiB in float64


def check_depth(name: str, expression: Any) -> None:
    """Refuse what is nested too deeply, without recursion.

    Raises:
        DeclarationError: naming whose expression it is.
    """
    depth = _depth(expression)
    if depth > DEEPEST:
        raise DeclarationError(
            f"{name} nests {depth} atoms, expected at most {DEEPEST}: "
            "give a part of it a variable of its own, or sum terms with cp.sum"
        )


def _depth(expression: Any) -> int:
    """Of the longest chain of arguments, each expression once."""
    depths: dict[int, int] = {}
    waiting = [expression]
    while waiting:
        arguments = getattr(waiting[-1], "args", ())  # not everything that cvxpy keeps there is an expression
        missing = [a for a in arguments if id(a) not in depths]
        if not missing:
            depths[id(waiting.pop())] = 1 + max((depths[id(a)] for a in arguments), default=0)
        waiting += missing
    return depths[id(expression)]


def check_size(name: str, rows: int, columns: int, way_out: str) -> None:
    """Refuse a dense matrix that would not fit.

    Raises:
        DeclarationError: naming it, with its size.
    """
    if rows * columns > LARGEST:
        raise DeclarationError(
            f"{name} is a dense {rows:,} x {columns:,} matrix for each sample, "
            f"{rows * columns / 2**27:.0f} GiB, expected at most {LARGEST / 2**27:.0f}: {way_out}"
        )
