"""The atoms of cvxpy that have no torch function here: what is wrong with each, and the way out."""

import textwrap

import cvxpy as cp

from optlayer.errors import DeclarationError

_SMOOTH = "is not smooth"
_CURVATURE = "is not convex"
_EIGENVALUES = "is not smooth where eigenvalues or singular values meet"


def _epigraph(*rows: str) -> str:
    """A variable t in the place of the atom."""
    return f"rewrite it with an epigraph variable t and the inequalities {' and '.join(rows)}"


_ABOVE = _epigraph("u - t for each entry u")
_BELOW = _epigraph("t - u for each entry u")
_BOTH = _epigraph("u - t", "-u - t")
_NO_CONES = "rewrite it with smooth atoms, this version solves smooth problems only"
_QUASI = "minimize it by bisection over convex problems"
_LOG = "take logarithms by hand"
_TRANSCENDENTAL = "write the problem with convex atoms of cvxpy"
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
    "sum_largest": (_SMOOTH, _NO_CONES),
    "dotsort": (_SMOOTH, _NO_CONES),
    "SuppFuncAtom": (_SMOOTH, _NO_CONES),
    "perspective": ("has a border that depends on the function inside", _NO_CONES),
    "lambda_max": (_EIGENVALUES, _NO_CONES),
    "lambda_sum_largest": (_EIGENVALUES, _NO_CONES),
    "sigma_max": (_EIGENVALUES, _NO_CONES),
    "normNuc": (_EIGENVALUES, _NO_CONES),
    "von_neumann_entr": (_EIGENVALUES, _NO_CONES),
    "quantum_rel_entr": (_EIGENVALUES, _NO_CONES),
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


def refused(atom: cp.Expression) -> DeclarationError:
    """For an atom without a rule."""
    return _error(atom, *REFUSED.get(type(atom).__name__, _UNKNOWN))


def refused_apex(atom: cp.Expression) -> DeclarationError:
    """For a norm whose argument may reach 0."""
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
