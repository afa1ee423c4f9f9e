r"""Objectives that are a quadratic beside elementwise functions of affine expressions, found in their tree.

    f = ½xᵀPx + qᵀx + d + Σ_k w_k φ_k(y_k),    y = Jx + c

Every elementwise atom gets a variable of its own for its value, z_k = φ_k(y_k), so that f becomes a function
of (x, z). Where that is quadratic, with blocks that are affine in θ and no curvature in z, its gradient at 0
is (q, w). Whatever is not so, or has no rule here, is differentiated as a function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from optlayer.declare.atoms_smooth import log_one_plus_exp
from optlayer.declare.blocks import Polynomial, constraint_blocks, objective_blocks
from optlayer.declare.points import Point
from optlayer.declare.translate import Translation, translate
from optlayer.forms import Function
from optlayer.forms.affine import AffineMap
from optlayer.forms.curved import Composite, Curve

Flatten = Callable[[Sequence[cp.Variable], Sequence[Translation]], Polynomial]  # in x and θ


def composite(
    f: Function,
    expression: cp.Expression,
    variables: Sequence[cp.Variable],
    parameters: Sequence[cp.Parameter],
    theta: Point,
    flatten: Flatten,
) -> Composite | None:
    """A scalar expression as such a sum; None where it is none.

    Args:
        f: The expression as a function of x and θ.
        expression: Translated already: its atoms are known, its leaves declared.
        variables: The coordinates of x, flattened in C order and concatenated.
        parameters: Its other leaves.
        theta: Values of them at which it is defined.
        flatten: Translations to a function of x, the given variables in one vector, and θ.
    """
    atoms = _curved_atoms(expression)
    if not atoms:
        return None
    values = [cp.Variable(atom.shape) for atom in atoms]
    arguments = [translate(atom.args[0], variables, parameters) for atom in atoms]
    given = dict(zip(map(id, atoms), values, strict=True))
    outer = translate(expression, [*variables, *values], parameters, given=given)
    n, k = (sum(v.size for v in leaves) for leaves in (variables, values))
    P, q, d = objective_blocks(flatten([*variables, *values], [outer]), n + k, theta)
    J, c = constraint_blocks(flatten(variables, arguments), n, theta)
    if P is None or q is None or J is None or c is None or _reaches(P, n):
        return None
    curves = tuple(_curve(atom) for atom in atoms)
    own = P.leading(n)
    return Composite(
        f,
        own.on_diagonal() if len(own.places) else own,
        q.part(0, n),
        d,
        J,
        c,
        q.part(n, n + k),
        tuple(curve for curve in curves if curve is not None),
        tuple(atom.size for atom in atoms),
    )


def _curved_atoms(e: Any) -> list[Any]:
    """The outermost atoms that have a rule, each once."""
    found: dict[int, Any] = {}

    def read(e: Any) -> None:
        if not e.variables() or id(e) in found:
            return
        if _curve(e) is not None:
            found[id(e)] = e
        for operand in e.args if id(e) not in found else ():
            read(operand)

    read(e)
    return list(found.values())


def _reaches(P: AffineMap, n: int) -> bool:
    """Whether a matrix has entries beyond its first n rows and columns."""
    width = P.shape[1]
    return bool(((P.places // width >= n) | (P.places % width >= n)).any())


# -------------------------------------------------------------------------------- φ with its derivatives


def _curve(atom: Any) -> Curve | None:
    """What is known of an elementwise atom; squares are quadratic, and need no rule."""
    name = type(atom).__name__
    if name not in ("Power", "PowerApprox"):
        return CURVES.get(name)
    if isinstance(atom.p, cp.Parameter) or float(atom.p.value) in (0.0, 1.0, 2.0):
        return None
    return _power(float(atom.p.value))


def _power(p: float) -> Curve:
    return Curve(
        lambda y: torch.pow(y, p),
        lambda y: p * torch.pow(y, p - 1.0),
        lambda y: p * (p - 1.0) * torch.pow(y, p - 2.0),
    )


def _logistic_curvature(y: Tensor) -> Tensor:
    """σ(1 - σ), without the difference."""
    return torch.sigmoid(y) * torch.sigmoid(-y)


CURVES = {
    "exp": Curve(torch.exp, torch.exp, torch.exp),
    "log": Curve(torch.log, torch.reciprocal, lambda y: -y.reciprocal().square()),
    "log1p": Curve(torch.log1p, lambda y: (1.0 + y).reciprocal(), lambda y: -(1.0 + y).reciprocal().square()),
    "entr": Curve(torch.special.entr, lambda y: -1.0 - torch.log(y), lambda y: -y.reciprocal()),
    "logistic": Curve(log_one_plus_exp, torch.sigmoid, _logistic_curvature),
    "xexp": Curve(lambda y: y * y.exp(), lambda y: (1.0 + y) * y.exp(), lambda y: (2.0 + y) * y.exp()),
}
