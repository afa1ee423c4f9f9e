"""The native interior point method as an engine: quadratic programmes as they are, nothing is copied."""

from typing import Any

import torch
from torch import Tensor

from optlayer.cones import Product
from optlayer.engines import Answer, Array
from optlayer.engines.interior_qp import interior_qp
from optlayer.errors import DeclarationError
from optlayer.forms import Local
from optlayer.solution import Status

ROUGHLY = 1e-5  # relative residual that Newton's method goes on from, nearly always
CLOSELY = 1e-8  # the same for a linear programme, whose wrong vertices have a singular K


class InteriorQP:
    """Takes the programme at x = 0, where its matrices are read off; solves the batch at once."""

    name = "INTERIOR"
    quick = True

    def __init__(self, options: dict[str, Any], residual: float = ROUGHLY) -> None:
        if options:
            raise DeclarationError(f"INTERIOR has no option {', '.join(map(repr, options))}")
        self._residual = residual

    def check_suits(self, K: Product) -> None:
        """Whether it takes these cones.

        Raises:
            DeclarationError: where one is not an orthant.
        """
        if not K.is_orthant:
            raise DeclarationError("INTERIOR solves smooth problems; this one takes the cone route")

    def solve_local(self, at: Local) -> Answer:
        """y = (λ, ν)."""
        linear = len(at.hessian.values) == 1 and not at.hessian.values.any()
        x, lam, nu, converged, iterations = interior_qp(
            at.hessian, at.gradient, at.G, at.g, at.A, at.h, CLOSELY if linear else self._residual
        )
        done = converged.tolist()
        claims = tuple(Status.SOLVED if yes else Status.INACCURATE for yes in done)
        words = tuple("INTERIOR: converged" if yes else "INTERIOR: did not converge" for yes in done)
        return Answer(x.numpy(), _stacked(lam, nu), claims, words, iterations.numpy())


def _stacked(lam: Tensor, nu: Tensor) -> Array:
    return torch.cat([lam, nu], 1).numpy()
