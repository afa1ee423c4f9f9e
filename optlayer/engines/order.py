"""Solvers have the rows of a programme sorted by the kind of their cone; ours come as they were declared."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from optlayer.cones import ConvexCone, Product
from optlayer.errors import DeclarationError

Array = np.ndarray
Kinds = Sequence[type[ConvexCone]]


def check_kinds(solver: str, K: Product, kinds: Kinds) -> None:
    """Whether a solver that has these kinds of cones takes K.

    Raises:
        DeclarationError: naming the first cone that it lacks.
    """
    for cone in K.cones:
        if not isinstance(cone, tuple(kinds)):
            raise DeclarationError(f"{solver} has no cone for {cone!r}, which this problem needs")


def as_declared(cone: ConvexCone) -> Int64[Array, " dim"]:
    """The order of a cone's own rows, where the solver has ours."""
    return np.arange(cone.dim)


def by_kind(
    zero: int, K: Product, kinds: Kinds, within: Callable[[ConvexCone], Array] = as_declared
) -> Int64[Array, " zero+m"]:
    """The solver's rows among ours: solver = house[by_kind(...)]; `within` says so for those of one cone."""
    rows: dict[type[ConvexCone], list[Array]] = {kind: [] for kind in kinds}
    start = zero
    for cone in K.cones:
        rows[type(cone)].append(start + within(cone))
        start += cone.dim
    parts = [part for kind in kinds for part in rows[kind]]
    return np.concatenate([np.arange(zero), *parts]).astype(np.int64)


def of_kind(K: Product, kind: type[ConvexCone]) -> list[ConvexCone]:
    """Those of K's cones, in their order."""
    return [cone for cone in K.cones if isinstance(cone, kind)]
