"""Projections onto sets that are learned: their parameters belong to the layer, its input is the point."""

from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from optlayer.layer import OptLayer
from optlayer.layers.fast import size
from optlayer.layers.terms import half_squared_distance
from optlayer.solution import Solution


class LearnedSet(OptLayer):
    """The nearest point of a set whose parameters are weights of the module."""

    @property
    def shape(self) -> tuple[Tensor, ...]:
        """What the set is made of, in the order of the declaration."""
        raise NotImplementedError

    @torch.compiler.disable
    def forward(self, x: Any) -> Tensor | tuple[Tensor, ...]:
        """The nearest points of x, (*batch, n) to (*batch, n)."""
        return super().forward(x, *self.shape)

    @torch.compiler.disable
    def solve(self, x: Any, *, warm_start: Solution | None = None) -> Solution:
        """As `OptLayer.solve`, of the points alone."""
        return super().solve(x, *self.shape, warm_start=warm_start)


class Polytope(LearnedSet):
    """argmin ½|z − x|² : Gz ≤ h, with weights G (m, n) and h (m,).

    At first the rows of G are random directions and h = 1: the unit ball is inside.

    Args:
        n: Number of dimensions.
        m: Number of halfspaces.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.
        InfeasibleError: in a call, where learning has left the polytope empty.

    Reference: Kolter, Duvenaud & Johnson, Deep Implicit Layers (NeurIPS 2020 tutorial), chapter 5.
    """

    def __init__(self, n: int, m: int, **options: Any) -> None:
        n, m = size("n", n), size("m", m)
        z, x = cp.Variable(n, name="z"), cp.Parameter(n, name="x")
        G, h = cp.Parameter((m, n), name="G"), cp.Parameter(m, name="h")
        super().__init__([z], [x, G, h], half_squared_distance, [_outside_halfspaces], **options)
        self.G = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(m, n), dim=1))
        self.h = torch.nn.Parameter(torch.ones(m))

    @property
    def shape(self) -> tuple[Tensor, ...]:
        """G and h."""
        return self.G, self.h


class Ellipsoid(LearnedSet):
    """argmin ½|z − x|² : ‖A(z − c)‖² ≤ 1, with weights A (n, n) and c (n,), at first the unit ball.

    It is never empty: c is inside. Where A is singular it is a cylinder.

    Args:
        n: Number of dimensions.
        options: As in `OptLayer`.

    Raises:
        DeclarationError: for a size that is no positive whole number.

    Reference: Agrawal et al., Differentiable convex optimization layers, NeurIPS 2019, arXiv:1910.12430; an
    ellipsoid is learned in https://locuslab.github.io/2019-10-28-cvxpylayers/.
    """

    def __init__(self, n: int, **options: Any) -> None:
        n = size("n", n)
        z, x = cp.Variable(n, name="z"), cp.Parameter(n, name="x")
        A, c = cp.Parameter((n, n), name="A"), cp.Parameter(n, name="c")
        super().__init__([z], [x, A, c], half_squared_distance, [_outside_ellipsoid], **options)
        self.A = torch.nn.Parameter(torch.eye(n))
        self.c = torch.nn.Parameter(torch.zeros(n))

    @property
    def shape(self) -> tuple[Tensor, ...]:
        """A and c."""
        return self.A, self.c


def _outside_halfspaces(z: Any, x: Any, G: Any, h: Any) -> Any:
    del x
    return G @ z - h


def _outside_ellipsoid(z: Any, x: Any, A: Any, c: Any) -> Any:
    del x
    return cp.sum_squares(A @ (z - c)) - 1
