"""The atoms of cvxpy that have no torch function here: what is wrong with each, and the way out."""

import textwrap

import cvxpy as cp

from optlayer.errors import DeclarationError

_SMOOTH = "is not smooth"
_CURVATURE = "is not convex"
_EIGENVALUES = "is not smooth where eigenvalues or singular values meet"


_CONE = 'the cone route takes it: leave method="auto", or pass "cone"'
_QUASI = "minimize it by bisection over convex problems"
_LOG = "take logarithms by hand"
_TRANSCENDENTAL = "write the problem with convex atoms of cvxpy"
_INTEGER = "layers have no integer or boolean variables"

# class name -> (what is wrong, the way out)
REFUSED: dict[str, tuple[str, str]] = {
    "abs": (_SMOOTH, _CONE),
    "norm1": (_SMOOTH, _CONE),
    "norm_inf": (_SMOOTH, _CONE),
    "max": (_SMOOTH, _CONE),
    "maximum": (_SMOOTH, _CONE),
    "cummax": (_SMOOTH, _CONE),
    "min": (_SMOOTH, _CONE),
    "minimum": (_SMOOTH, _CONE),
    "sum_largest": (_SMOOTH, _CONE),
    "dotsort": (_SMOOTH, _CONE),
    "SuppFuncAtom": (_SMOOTH, _CONE),
    "perspective": ("has a border that depends on the function inside", _CONE),
    "lambda_max": (_EIGENVALUES, _CONE),
    "lambda_sum_largest": (_EIGENVALUES, _CONE),
    "sigma_max": (_EIGENVALUES, _CONE),
    "normNuc": (_EIGENVALUES, _CONE),
    "von_neumann_entr": (_EIGENVALUES, _CONE),
    "quantum_rel_entr": (_EIGENVALUES, _CONE),
    "gen_lambda_max": (_CURVATURE, _QUASI),
    "condition_number": (_CURVATURE, _QUASI),
    "dist_ratio": (_CURVATURE, _QUASI),
    "length": (_CURVATURE, _QUASI),
    "ceil": (_CURVATURE, _QUASI),
    "floor": (_CURVATURE, _QUASI),
    "sign": (_CURVATURE, _QUASI),
    "Prod": (_CURVATURE, _LOG),
    "cumprod": (_CURVATURE, _LOG),
    "gmatmul": (_CURVATURE, _LOG),
    "one_minus_pos": (_CURVATURE, _LOG),
    "eye_minus_inv": (_CURVATURE, _LOG),
    "pf_eigenvalue": (_CURVATURE, _LOG),
    "normcdf": (_CURVATURE, _TRANSCENDENTAL),
    "sin": (_CURVATURE, _TRANSCENDENTAL),
    "cos": (_CURVATURE, _TRANSCENDENTAL),
    "tan": (_CURVATURE, _TRANSCENDENTAL),
    "sinh": (_CURVATURE, _TRANSCENDENTAL),
    "tanh": (_CURVATURE, _TRANSCENDENTAL),
    "asinh": (_CURVATURE, _TRANSCENDENTAL),
    "atanh": (_CURVATURE, _TRANSCENDENTAL),
    "And": ("is boolean", _INTEGER),
    "Or": ("is boolean", _INTEGER),
    "Xor": ("is boolean", _INTEGER),
    "Not": ("is boolean", _INTEGER),
    "SymbolicQuadForm": ("belongs to cvxpy's own reductions", "write the original expression"),
}

_UNKNOWN = ("has no torch function here", "write it with other atoms")
_APEX = (
    "is not smooth where its argument is 0",
    'pass method="smooth" if the solution keeps away from 0, or bound the square of the norm',
)


class NotSmooth(DeclarationError):
    """What the smooth route cannot take; the cone route may."""


def refused(atom: cp.Expression) -> NotSmooth:
    """For an atom without a rule."""
    return NotSmooth(_explained(atom, *REFUSED.get(type(atom).__name__, _UNKNOWN)))


def refused_apex(atom: cp.Expression) -> NotSmooth:
    """For a norm whose argument may reach 0."""
    return NotSmooth(_explained(atom, *_APEX))


def undeclared(leaf: cp.Variable | cp.Parameter) -> DeclarationError:
    """For a leaf that is not an argument of the callable."""
    role = "variables" if isinstance(leaf, cp.Variable) else "parameters"
    return DeclarationError(
        f"{type(leaf).__name__} '{leaf.name()}' of shape {leaf.shape} was not declared: add it to {role}"
    )


def complex_valued(leaf: cp.Expression) -> DeclarationError:
    """For a complex constant, variable or parameter."""
    return DeclarationError(
        _explained(leaf, "is complex", "write the real and the imaginary part separately")
    )


def shortened(expression: cp.Expression) -> str:
    """The expression as cvxpy prints it, on one line of bearable length."""
    return textwrap.shorten(str(expression), 80, placeholder=" ...")


def _explained(expression: cp.Expression, fault: str, way_out: str) -> str:
    name = type(expression).__name__
    if isinstance(expression, cp.atoms.atom.Atom) and not expression.variables():
        way_out = "it sees parameters only: compute it in torch and pass the result as a parameter"
    return f"{shortened(expression)}: {name} {fault}; {way_out}"
