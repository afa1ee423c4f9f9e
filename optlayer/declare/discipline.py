"""Which rule of cvxpy a problem breaks, where, and what to write instead."""

from collections.abc import Callable, Iterator
from typing import Any

import cvxpy as cp

from optlayer.declare.cvxpy_internals import is_param_affine, quad_form_dpp_scope
from optlayer.declare.refusals import shortened
from optlayer.errors import DeclarationError

Rule = Callable[[Any], bool]

_GP = "it is a geometric programme: pass gp=True"
_DQCP = "it is quasiconvex (DQCP), which no layer solves: minimize by bisection over convex problems"


def check(problem: cp.Problem, names: tuple[str, ...], gp: bool) -> None:
    """The problem is disciplined convex, or a disciplined geometric programme.

    Args:
        problem: On leaves without values, for the rules may look at those.
        names: How errors call its constraints.
        gp: Which of the two is asked for.

    Raises:
        DeclarationError: naming the objective or constraint, its smallest term at fault, a way out.
    """
    if gp and not problem.is_dgp():
        raise DeclarationError(_explain_not_dgp(problem, names))
    if not gp and not problem.is_dcp():
        raise DeclarationError(_explain_not_dcp(problem, names))


def is_parametrized(problem: Any) -> bool:
    """Whether its data are affine in its parameters (DPP), quad_form(x, P) in the objective included."""
    return bool(problem.is_dpp(quad_form_dpp="qp"))


def explain_not_dpp(problem: cp.Problem, names: tuple[str, ...]) -> str:
    """Which part of a convex problem is not affine in the parameters, and the ways out.

    Args:
        problem: Convex, and `is_parametrized` says no.
        names: How errors call its constraints.
    """
    name, term = next(_beyond_dpp(problem, names))
    return (
        f"{name} is not affine in the parameters (DPP), at {shortened(term)}: {_rewriting_for(term)}; "
        'or, where every atom is smooth, pass method="smooth"'
    )


def smallest(expression: Any, holds: Rule) -> Any:
    """The first term that breaks a rule which everything inside it keeps."""
    for arg in expression.args:
        if isinstance(arg, cp.Expression) and not holds(arg):
            return smallest(arg, holds)
    return expression


# --- convexity ------------------------------------------------------------------------------------


def _explain_not_dcp(problem: cp.Problem, names: tuple[str, ...]) -> str:
    complaint = f"the problem is not convex by cvxpy's rules: {_first_not_dcp(problem, names)}"
    if problem.is_dgp():
        return f"{complaint}; {_GP}"
    if problem.is_dqcp():
        return f"{complaint}; {_DQCP}"
    return complaint


def _first_not_dcp(problem: cp.Problem, names: tuple[str, ...]) -> str:
    if not problem.objective.is_dcp():
        wanted = "convex" if isinstance(problem.objective, cp.Minimize) else "concave"
        return _not_curved("objective", problem.objective.expr, wanted)
    name, constraint = next((n, c) for n, c in zip(names, problem.constraints) if not c.is_dcp())
    match type(constraint).__name__:
        case "Inequality" | "NonPos":
            return _not_curved(name, constraint.expr, "convex")
        case "NonNeg":
            return _not_curved(name, constraint.expr, "concave")
    part = next((arg for arg in _parts(constraint) if not arg.is_affine()), constraint.args[0])
    return f"{name} is not affine in the variables, at {shortened(smallest(part, _is_affine))}"


def _not_curved(name: str, expression: Any, wanted: str) -> str:
    if not expression.is_dcp():
        term = smallest(expression, _is_dcp)
        return f"{name} has no known curvature, at {shortened(term)}{_curvature_hint(term)}"
    other = "concave" if wanted == "convex" else "convex"
    hint = "; minimize a convex or maximize a concave function" if name == "objective" else ""
    return f"{name} is {other} where {wanted} is needed: {shortened(expression)}{hint}"


def _curvature_hint(term: Any) -> str:
    match type(term).__name__:
        case "QuadForm":
            return ", whose matrix is not known to be semidefinite: declare it PSD=True, or use cp.psd_wrap"
        case "multiply" | "MulExpression" if not any(arg.is_constant() for arg in term.args):
            return ", a product of variables"
    return ""


def _parts(constraint: Any) -> list[Any]:
    """The expressions that must be affine."""
    return [constraint.expr] if type(constraint).__name__ in ("Equality", "Zero") else constraint.args


def _is_dcp(expression: Any) -> bool:
    return bool(expression.is_dcp())


def _is_affine(expression: Any) -> bool:
    return bool(expression.is_affine())


# --- log-log convexity ----------------------------------------------------------------------------


def _explain_not_dgp(problem: cp.Problem, names: tuple[str, ...]) -> str:
    complaint = f"the problem is not a geometric programme by cvxpy's rules: {_first_not_dgp(problem, names)}"
    return f"{complaint}; it is convex as it stands: leave gp out" if problem.is_dcp() else complaint


def _first_not_dgp(problem: cp.Problem, names: tuple[str, ...]) -> str:
    if not problem.objective.is_dgp():
        return _not_log_log("objective", [problem.objective.expr])
    name, constraint = next((n, c) for n, c in zip(names, problem.constraints) if not c.is_dgp())
    return _not_log_log(name, constraint.args)


def _not_log_log(name: str, parts: list[Any]) -> str:
    part = next((p for p in parts if not p.is_dgp()), None)
    if part is None:
        whole = " and ".join(shortened(p) for p in parts)
        return f"{name} relates {whole}, whose log-log curvatures do not fit"
    term = smallest(part, lambda e: bool(e.is_dgp()))
    return f"{name} has no log-log curvature, at {shortened(term)}{_positivity_hint(term)}"


def _positivity_hint(term: Any) -> str:
    if isinstance(term, cp.Variable | cp.Parameter):
        return f": declare {term.name()!r} with pos=True"
    if isinstance(term, cp.Constant):
        return ", a constant that is not positive"
    return ""


# --- parameters -----------------------------------------------------------------------------------


def _beyond_dpp(problem: cp.Problem, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Name and smallest term of everything that is not affine in the parameters."""
    with quad_form_dpp_scope():
        if not problem.objective.is_dcp(dpp=True):
            yield "objective", smallest(problem.objective.expr, _is_dpp)
    for name, constraint in zip(names, problem.constraints):
        if not constraint.is_dcp(dpp=True):
            elementwise = type(constraint).__name__ in ("Equality", "Inequality")
            parts = [constraint.expr] if elementwise else constraint.args
            part = next((p for p in parts if not _is_dpp(p)), parts[0])
            yield name, smallest(part, _is_dpp)


def _is_dpp(expression: Any) -> bool:
    return bool(expression.is_dcp(dpp=True))


def _rewriting_for(term: Any) -> str:
    match type(term).__name__:
        case "QuadForm":
            return (
                "write sum_squares(F @ x), with a factor F of the matrix F.T @ F as the parameter "
                "(quad_form(x, P) with a parameter P may stand in the objective only)"
            )
        case "multiply" | "MulExpression":
            for factor in term.args:
                if not factor.variables() and not is_param_affine(factor):
                    return f"compute {shortened(factor)} in torch and pass the result as a parameter"
            return "both factors hold parameters: put a new variable t, with t == ..., for one of them"
        case "DivExpression":
            return "declare the reciprocal q = 1/p as the parameter, and multiply by it"
    if not term.variables():
        return "it sees parameters only: compute it in torch and pass the result as a parameter"
    return "parameters must enter it affinely: compute what it needs in torch, and pass that as a parameter"
