"""The atoms of cvxpy that have no torch function here: what is wrong with each, and the way out."""

import textwrap

import cvxpy as cp

from ..errors import DeclarationError

_CONE = 'or pass method="cone"'
_SMOOTH = "is not smooth"
_CURVATURE = "is not convex"
_EIGENVALUES = "is not smooth where eigenvalues or singular values meet"


def _epigraph(*rows: str) -> str:
    """A variable t in the place of the atom."""
    return f"replace it by a variable t with the inequalities {' and '.join(rows)}, {_CONE}"


_ABOVE = _epigraph("u - t for each entry u")
_BELOW = _epigraph("t - u for each entry u")
_BOTH = _epigraph("u - t", "-u - t")
_ONLY_CONE = 'pass method="cone"'
_QUASI = "minimize it by bisection over convex problems"
_LOG = "take logarithms by hand, or use from_problem(..., gp=True)"
_TORCH = "write this callable in torch if the problem is convex all the same"
_INTEGER = "layers have no integer or boolean variables"

# class name -> (what is wrong, the way out)
REFUSED: dict[str, tuple[str, str]] = {
    "abs": (_SMOOTH, _BOTH),
    "norm1": (_SMOOTH, _epigraph("u - t", "-u - t") + "; the norm is sum(t)"),
    "norm_inf": (_SMOOTH, _BOTH),
    "max": (_SMOOTH, _ABOVE),
    "maximum": (_SMOOTH, _ABOVE),
    "cummax": (_SMOOTH, _ABOVE),
    "min": (_SMOOTH, _BELOW),
    "minimum": (_SMOOTH, _BELOW),
    "sum_largest": (_SMOOTH, _ONLY_CONE),
    "dotsort": (_SMOOTH, _ONLY_CONE),
    "SuppFuncAtom": (_SMOOTH, _ONLY_CONE),
    "perspective": ("has a border that depends on the function inside", _ONLY_CONE),
    "lambda_max": (_EIGENVALUES, _ONLY_CONE),
    "lambda_sum_largest": (_EIGENVALUES, _ONLY_CONE),
    "sigma_max": (_EIGENVALUES, _ONLY_CONE),
    "normNuc": (_EIGENVALUES, _ONLY_CONE),
    "von_neumann_entr": (_EIGENVALUES, _ONLY_CONE),
    "quantum_rel_entr": (_EIGENVALUES, _ONLY_CONE),
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
    "normcdf": (_CURVATURE, _TORCH),
    "sin": (_CURVATURE, _TORCH),
    "cos": (_CURVATURE, _TORCH),
    "tan": (_CURVATURE, _TORCH),
    "sinh": (_CURVATURE, _TORCH),
    "tanh": (_CURVATURE, _TORCH),
    "asinh": (_CURVATURE, _TORCH),
    "atanh": (_CURVATURE, _TORCH),
    "And": ("is boolean", _INTEGER),
    "Or": ("is boolean", _INTEGER),
    "Xor": ("is boolean", _INTEGER),
    "Not": ("is boolean", _INTEGER),
    "SymbolicQuadForm": ("belongs to cvxpy's own reductions", "write the original expression"),
}

_UNKNOWN = ("has no torch function here", 'write this callable in torch, or pass method="cone"')
_APEX = (
    "is not smooth where its argument is 0",
    'pass method="smooth" if the solution keeps away from 0, method="cone" if it may not',
)


def refused(atom: cp.Expression) -> DeclarationError:
    """For an atom without a rule."""
    return _error(atom, *REFUSED.get(type(atom).__name__, _UNKNOWN))


def refused_apex(atom: cp.Expression) -> DeclarationError:
    """For a norm where the cone route should be taken."""
    return _error(atom, *_APEX)


def undeclared(leaf: cp.Variable | cp.Parameter) -> DeclarationError:
    """For a leaf that is not an argument of the callable."""
    role = "variables" if isinstance(leaf, cp.Variable) else "parameters"
    return DeclarationError(
        f"{type(leaf).__name__} '{leaf.name()}' of shape {leaf.shape} was not declared: add it to {role}"
    )


def complex_valued(leaf: cp.Expression) -> DeclarationError:
    """For a complex constant, variable or parameter."""
    return _error(leaf, "is complex", "write the real and the imaginary part separately")


def shortened(expression: cp.Expression) -> str:
    """The expression as cvxpy prints it, on one line of bearable length."""
    return textwrap.shorten(str(expression), 80, placeholder=" ...")


def _error(expression: cp.Expression, fault: str, way_out: str) -> DeclarationError:
    name = type(expression).__name__
    if isinstance(expression, cp.atoms.atom.Atom) and not expression.variables():
        way_out = "it sees parameters only: compute it in torch and pass the result as a parameter"
    return DeclarationError(f"{shortened(expression)}: {name} {fault}; {way_out}")
