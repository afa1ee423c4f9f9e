r"""Problems whose data are not affine in the parameters, rewritten until they are.

cvxpy's parametrized form needs DPP: every product has its parameters in one factor only, and enters
them affinely. Five rewritings, none of which changes the solution, bring most problems there:

    g(p), without variables, not affine      -> a parameter of the lowered problem, computed in torch
    e / g(p)                                 -> (1 / g(p)) * e
    f * (a + b),  f * (h * e)                -> f * a + f * b,  (f * h) * e      f, h without variables
    f * quad_form(x, P)                      -> quad_form(x, f * P)
    f * g(A(p) x + b(p))                     -> f * g(t)  with  t == A(p) x + b(p)
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from optlayer.declare.cvxpy_internals import is_param_affine
from optlayer.declare.discipline import is_parametrized
from optlayer.declare.posed import Lift, Posed, Row, Theta, composed, rewritten
from optlayer.declare.refusals import shortened
from optlayer.declare.rewriting import Rewriting
from optlayer.declare.translate import translate
from optlayer.errors import DeclarationError


def lowered(posed: Posed) -> Posed:
    """The problem as near to DPP as the rewritings bring it, its functions of parameters alone as data."""
    if not posed.parameters:
        return posed
    found = _Lowering(posed).posed()
    same = [id(p) for p in found.parameters] == [id(p) for p in posed.parameters]
    return posed if same and is_parametrized(posed.problem) else found


class Computed:
    """Parameters that stand for functions of others, which torch computes.

    Args:
        parameters: Those of the problem as it was.
    """

    def __init__(self, parameters: tuple[cp.Parameter, ...]) -> None:
        self._parameters = parameters
        self._new: list[tuple[cp.Parameter, Callable[..., Tensor]]] = []

    def parameter(self, e: Any, **attributes: bool) -> cp.Parameter | None:
        """The parameter that stands for an expression without variables; None where torch has no rule."""
        try:
            function = translate(e, [], self._parameters, apex=True).function
        except DeclarationError:
            return None
        parameter = cp.Parameter(e.shape, name=shortened(e), **(attributes or _attributes(e)))
        self._new.append((parameter, _symmetrized(function) if parameter.is_symmetric() else function))
        return parameter

    def completed(self, before: Posed, objective: Any, rows: tuple[Row, ...]) -> Posed:
        """The problem after the change, with those old and new parameters that it holds."""
        problem = cp.Problem(objective, [row.constraint for row in rows])
        left = {id(p) for p in problem.parameters()}
        kept = [i for i, p in enumerate(self._parameters) if id(p) in left]
        new = [(p, function) for p, function in self._new if id(p) in left]
        return replace(
            before,
            problem=problem,
            parameters=(*(self._parameters[i] for i in kept), *(p for p, _ in new)),
            rows=rows,
            lift=composed(_lift(kept, [function for _, function in new]), before.lift),
        )


class _Lowering:
    """The rewritings, and what they introduce; lives only while a problem is lowered."""

    def __init__(self, posed: Posed) -> None:
        self._before = posed
        self._computed = Computed(posed.parameters)
        self._definitions: list[Row] = []
        self._rewriting = Rewriting(self._substitute)
        self._freeing = Rewriting(self._freed)

    def posed(self) -> Posed:
        objective = self._rewriting.objective(self._before.problem.objective)
        rows = rewritten(self._before.rows, self._rewriting)
        return self._computed.completed(self._before, objective, (*rows, *self._definitions))

    def _substitute(self, e: Any) -> Any:
        """What stands in the place of an expression; None where its parts are to be rewritten."""
        if not e.parameters():
            return None
        if not e.variables():
            return None if is_param_affine(e) else self._computed.parameter(e)
        match type(e).__name__:
            case "DivExpression" if not e.args[1].variables() and e.args[1].parameters():
                return self._rewriting.of(cp.multiply(cp.Constant(1) / e.args[1], e.args[0]))
            case "multiply" | "MulExpression" if all(arg.parameters() for arg in e.args):
                return self._product(e)
        return None

    def _product(self, e: Any) -> Any:
        """Of factors that both hold parameters."""
        free = [i for i, arg in enumerate(e.args) if not arg.variables()]
        if not free:
            return None
        factor: Any = e.args[free[0]]
        other: Any = e.args[1 - free[0]]
        if type(e).__name__ == "multiply":
            if type(other).__name__ == "AddExpression":
                return reduce(add, [self._rewriting.of(cp.multiply(factor, arg)) for arg in other.args])
            if type(other).__name__ == "NegExpression":
                return -self._rewriting.of(cp.multiply(factor, other.args[0]))
            if type(other).__name__ == "QuadForm" and factor.is_nonneg() and other.args[1].is_psd():
                scaled = cp.psd_wrap(cp.multiply(factor, other.args[1]))
                return self._rewriting.of(cp.quad_form(other.args[0], scaled))
            inner = _factors(other)
            if inner is not None:
                return self._rewriting.of(cp.multiply(cp.multiply(factor, inner[0]), inner[1]))
        args = [(self._rewriting if i in free else self._freeing).of(arg) for i, arg in enumerate(e.args)]
        return e.copy(args)

    def _freed(self, e: Any) -> Any:
        """Affine functions of the variables give way to variables, so that no parameter is left."""
        if not e.parameters():
            return e
        if not e.is_affine() or not e.variables():
            return None
        t = cp.Variable(e.shape, name=shortened(e))
        self._definitions.append(Row(t == self._rewriting.of(e), None, f"the definition of {shortened(e)}"))
        return t


def _factors(e: Any) -> tuple[Any, Any] | None:
    """The factor without variables, and the other, of an elementwise product."""
    if type(e).__name__ != "multiply":
        return None
    left, right = e.args
    if not left.variables():
        return left, right
    return (right, left) if not right.variables() else None


def _attributes(e: Any) -> dict[str, bool]:
    """What cvxpy knows of a parametric expression, as a parameter may declare it."""
    found = {"nonneg": e.is_nonneg(), "nonpos": e.is_nonpos()}
    if e.is_psd() or e.is_nsd():
        found |= {"PSD": e.is_psd(), "NSD": not e.is_psd()}
    elif e.ndim == 2 and e.size > 1:
        found |= {"symmetric": e.is_symmetric()}
    return {name: True for name, holds in found.items() if holds}


def _symmetrized(function: Any) -> Any:
    """½(X + Xᵀ): of a symmetric parameter cvxpy reads one triangle."""

    def symmetric(*theta: Tensor) -> Tensor:
        value: Tensor = function(*theta)
        return (value + value.mT) / 2 if value.ndim == 2 else value

    return symmetric


def _lift(kept: list[int], functions: list[Callable[..., Tensor]]) -> Lift:
    def lift(theta: Theta) -> Theta:
        return (*(theta[i] for i in kept), *(torch.vmap(f)(*theta) for f in functions))

    return lift
