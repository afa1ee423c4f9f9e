"""Total variation: signals and images made piecewise constant."""

from typing import Any

import cvxpy as cp

from optlayer.errors import DeclarationError
from optlayer.layer import OptLayer
from optlayer.layers.fast import size


class TotalVariation(OptLayer):
    """argmin ½|z − x|² + λ Σ|Dz|, with D all differences of neighbours; of an image both ways (anisotropic).

    It is called with x (*batch, n) or (*batch, h, w) and λ ≥ 0, a number for each sample.

    Args:
        shape: The length n of a signal, or (h, w) of an image.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a shape that is neither, or has less than two entries.
        InputError: in a call, for a negative λ.

    Reference: Rudin, Osher & Fatemi, Nonlinear total variation based noise removal algorithms, Physica D 60
    (1992), doi:10.1016/0167-2789(92)90242-F.
    """

    def __init__(self, shape: int | tuple[int, int], **options: Any) -> None:
        own = _shape(shape)
        z, x = cp.Variable(own, name="z"), cp.Parameter(own, name="x")
        super().__init__([z], [x, cp.Parameter(nonneg=True, name="lam")], _denoised, **options)


def _shape(given: Any) -> tuple[int, ...]:
    sides = given if isinstance(given, tuple) else (given,)
    names = ("n",) if len(sides) == 1 else ("h", "w")
    if len(sides) != len(names):
        raise DeclarationError(f"shape={given!r}, expected a length n, or (h, w)")
    own = tuple(size(name, side) for name, side in zip(names, sides, strict=True))
    if max(own) == 1:
        raise DeclarationError(f"shape={given!r} has no neighbours, expected at least two entries")
    return own


def _denoised(z: Any, x: Any, lam: Any) -> Any:
    variation = sum(cp.sum(cp.abs(cp.diff(z, axis=i))) for i in range(z.ndim) if z.shape[i] > 1)
    return cp.sum_squares(z - x) / 2 + lam * variation
