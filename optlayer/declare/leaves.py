"""The leaves of a declaration: private copies of the user's, and what their attributes demand."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np

from optlayer.declare.refusals import NotSmooth
from optlayer.errors import DeclarationError

REFUSED = ("boolean", "integer", "complex", "imag", "hermitian")
UNSMOOTH = ("PSD", "NSD", "sparsity")  # what only the cone route can honour
SIGNS = {"nonneg": -1.0, "pos": -1.0, "nonpos": 1.0, "neg": 1.0}  # sign * z <= 0

Constraint = tuple[str, Callable[[cp.Variable], cp.Expression]]  # its name, and the expression


def check(leaves: Sequence[Any], kind: type[Any], word: str) -> None:
    """The declared leaves are distinct cvxpy leaves of the right kind."""
    for position, leaf in enumerate(leaves):
        if not isinstance(leaf, kind):
            raise DeclarationError(
                f"{word} {position} is a {type(leaf).__name__}, expected a cvxpy.{kind.__name__}"
            )
        if any(leaf is other for other in leaves[:position]):
            raise DeclarationError(f"{word} {leaf.name()!r} is declared twice")


def check_attributes(leaf: Any, refused: Sequence[str], word: str) -> None:
    """Refuse attributes by name."""
    for attribute in refused:
        if _present(leaf.attributes.get(attribute)):
            raise DeclarationError(
                f"{word} {leaf.name()!r} is declared {attribute}={leaf.attributes[attribute]!r}: "
                "the argmin of an integer or complex problem has no derivative here"
            )


def check_smooth(variable: cp.Variable) -> None:
    """Refuse what only the cone route can honour."""
    for attribute in UNSMOOTH:
        if _present(variable.attributes.get(attribute)):
            raise NotSmooth(
                f"variable {variable.name()!r} is declared {attribute}={variable.attributes[attribute]!r}, "
                f"which the smooth route cannot honour{_way_out(attribute)}"
            )


def _way_out(attribute: str) -> str:
    if attribute in ("PSD", "NSD"):
        return "; where log_det or tr_inv keeps the matrix definite, declare symmetric=True instead"
    return "; declare a vector of the entries, and place them with cp.multiply or indexing"


def private_copy(leaf: Any, keep: bool = True) -> Any:
    """A leaf of the same name and shape that nobody else can assign to; its attributes if kept."""
    attributes = {k: v for k, v in leaf.attributes.items() if _present(v)} if keep else {}
    if attributes.get("sparsity") is not None:
        attributes["sparsity"] = leaf.sparse_idx
    return type(leaf)(leaf.shape, name=leaf.name(), **attributes)


def attribute_inequalities(variable: cp.Variable) -> list[Constraint]:
    """nonneg, nonpos, pos, neg and bounds as expressions <= 0."""
    name = variable.name()
    found: list[Constraint] = [
        (f"{attribute} of {name!r}", partial(_signed, sign))
        for attribute, sign in SIGNS.items()
        if _present(variable.attributes.get(attribute))
    ]
    bounds: Any = variable.attributes.get("bounds")
    if _present(bounds):
        lower, upper = bounds
        found += _bound(f"lower bound of {name!r}", lower, -1.0, variable.shape)
        found += _bound(f"upper bound of {name!r}", upper, 1.0, variable.shape)
    return found


def _signed(sign: float, z: cp.Expression) -> cp.Expression:
    return sign * z


def _bound(name: str, bound: Any, sign: float, shape: tuple[int, ...]) -> list[Constraint]:
    """sign * (z - bound) <= 0 on the entries where the bound is finite."""
    if isinstance(bound, cp.Expression):
        raise DeclarationError(f"the {name} is an expression; declare it as an inequality instead")
    values = np.broadcast_to(np.asarray(bound, dtype=float), shape).ravel()
    finite = np.flatnonzero(np.isfinite(values))
    if not finite.size:
        return []
    return [(name, lambda z: sign * (_entries(z, finite) - values[finite]))]


def attribute_equalities(variable: cp.Variable) -> list[Constraint]:
    """symmetric and diag as expressions == 0."""
    name, n = variable.name(), variable.shape[0] if variable.shape else 1
    found: list[Constraint] = []
    if is_symmetric(variable):
        i, j = np.triu_indices(n, 1)
        found.append((f"symmetry of {name!r}", lambda z: _entries(z, i * n + j) - _entries(z, j * n + i)))
    if _present(variable.attributes.get("diag")) and n > 1:
        off = np.flatnonzero(~np.eye(n, dtype=bool))
        found.append((f"diagonality of {name!r}", lambda z: _entries(z, off)))
    return found


def is_symmetric(variable: cp.Variable) -> bool:
    """Whether it is declared so, and has something to be so in."""
    return _present(variable.attributes.get("symmetric")) and variable.size > 1


def _entries(z: cp.Expression, index: np.ndarray) -> cp.Expression:
    """Entries of z by their position in C order."""
    return cp.vec(z, order="C")[index]


def _present(attribute: Any) -> bool:
    return attribute is not None and attribute is not False
