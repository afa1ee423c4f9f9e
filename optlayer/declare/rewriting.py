"""The same expressions and constraints, with some of their parts replaced.

cvxpy's own `tree_copy` visits a shared subexpression once for each place it stands in, leaves alone
what atoms keep outside `args` (a threshold, an exponent, a matrix), and loses the `keepdims` of norms.
"""

from collections.abc import Callable
from typing import Any

import cvxpy as cp

from optlayer.declare.cvxpy_internals import supported_set
from optlayer.declare.refusals import NotSmooth, shortened
from optlayer.errors import DeclarationError

Substitute = Callable[[Any], Any]  # an expression -> what stands in its place, None to look inside


class Rewriting:
    """Rewrites expressions; what they share stays shared.

    Args:
        substitute: Asked about every expression before what it is made of.
    """

    def __init__(self, substitute: Substitute) -> None:
        self._substitute = substitute
        self._made: dict[int, tuple[Any, Any]] = {}  # the original beside its twin, so that ids stay taken

    def of(self, expression: Any) -> Any:
        """The expression rewritten, of the same shape."""
        if id(expression) not in self._made:
            self._made[id(expression)] = (expression, self._twin(expression))
        return self._made[id(expression)][1]

    def constraint(self, constraint: Any) -> Any:
        """The constraint rewritten; elementwise ones as an `Inequality` or an `Equality`.

        Every sort keeps the multiplier it has in cvxpy: there x <= 0, NonPos(x) and NonNeg(-x) have
        the same one, and so have x == 0 and Zero(x).
        """
        args = [self.of(arg) for arg in constraint.args]
        match type(constraint).__name__:
            case "Inequality":
                return args[0] <= args[1]
            case "Equality":
                return args[0] == args[1]
            case "NonPos":
                return args[0] <= 0
            case "NonNeg":
                return -args[0] <= 0
            case "Zero":
                return args[0] == 0
        *data, _ = constraint.get_data()  # without its id
        return type(constraint)(*args, *(self._inner(d) for d in data))

    def objective(self, objective: Any) -> Any:
        """Minimize or Maximize, of the expression rewritten."""
        return type(objective)(self.of(objective.expr))

    def _twin(self, expression: Any) -> Any:
        substitute = self._substitute(expression)
        if substitute is not None:
            return substitute
        if isinstance(expression, cp.Constant | cp.Variable | cp.Parameter):
            return expression
        twin = self._rebuilt(expression)
        if twin.shape != expression.shape:
            raise DeclarationError(f"{shortened(expression)} cannot be copied; write it with other atoms")
        return twin

    def _rebuilt(self, atom: Any) -> Any:
        rebuild = REBUILT.get(type(atom).__name__)
        if rebuild is not None:
            return rebuild(self, atom)
        return atom.copy([self.of(arg) for arg in atom.args])

    def _inner(self, data: Any) -> Any:
        return self.of(data) if isinstance(data, cp.Expression) else data


# --- atoms that keep something where `copy` does not reach it -------------------------------------


def _with_data(made: Rewriting, atom: Any) -> Any:
    """Expressions among what `get_data` returns."""
    return type(atom)(*map(made.of, atom.args), *map(made._inner, atom.get_data()))


def _with_keepdims(made: Rewriting, atom: Any) -> Any:
    return type(atom)(made.of(atom.args[0]), axis=atom.axis, keepdims=atom.keepdims)


def _perspective(made: Rewriting, atom: Any) -> Any:
    scale = made.of(atom.args[0])
    if not scale.is_nonneg():
        raise NotSmooth(f"{shortened(atom)} needs {scale.name()!r} to keep nonneg=True; the cone route does")
    return type(atom)(made.of(atom.f), scale, made._inner(atom.f_recession))


def _support_function(made: Rewriting, atom: Any) -> Any:
    return type(atom)(made.of(atom.args[0]), supported_set(atom))


def _indicator(made: Rewriting, atom: Any) -> Any:
    return type(atom)([made.constraint(c) for c in atom.args], atom.err_tol)


def _partial_problem(made: Rewriting, atom: Any) -> Any:
    raise DeclarationError(
        f"{shortened(atom)} is a partial minimization: put its objective in the atom's place, and its "
        "constraints among the problem's"
    )


def _real(made: Rewriting, atom: Any) -> Any:
    """cvxpy cannot canonicalize what concerns complex numbers where there are none."""
    argument = made.of(atom.args[0])
    return argument if argument.is_real() else type(atom)(argument)


REBUILT: dict[str, Callable[[Rewriting, Any], Any]] = {
    "real": _real,
    "conj": _real,
    "Power": _with_data,
    "PowerApprox": _with_data,
    "huber": _with_data,
    "gmatmul": lambda made, atom: type(atom)(made.of(atom.A), made.of(atom.args[0])),
    "norm1": _with_keepdims,
    "norm_inf": _with_keepdims,
    "perspective": _perspective,
    "SuppFuncAtom": _support_function,
    "indicator": _indicator,
    "PartialProblem": _partial_problem,
}
