"""From a cvxpy expression to the torch function that it is.

The expression tree is walked once and laid out as a tape: one slot per leaf, constant and atom, in
an order in which operands come first, shared subexpressions once. A call fills the slots. There
are no branches on data and no writes into tensors, so torch.func may batch a call and
differentiate it in any nesting.

Constants become dense float64 tensors, sparse ones included unless they are large factors of a matrix
product: those stay the entries they have (`sparse_products`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from optlayer.declare.atoms_affine import AFFINE
from optlayer.declare.atoms_parametric import PARAMETRIC
from optlayer.declare.atoms_smooth import SMOOTH
from optlayer.declare.operation import Atom, Function, Operation, curved
from optlayer.declare.refusals import complex_valued, refused, refused_apex, undeclared
from optlayer.declare.sparse_products import large_factor
from optlayer.declare.terms import CONSTANT, PARAMETER, VARIABLE, Terms

_Leaf = cp.Variable | cp.Parameter

NOTHING_GIVEN: Mapping[int, cp.Variable] = {}
OPAQUE = {"TorchFunction": lambda atom: curved(atom.opaque.function)}
RULES = AFFINE | SMOOTH | OPAQUE  # by the name of the class, which outlives its place in cvxpy


@dataclass(frozen=True)
class Translation:
    """An expression as torch functions of (*variables, *parameters), one sample, declared shapes.

    Attributes:
        function: The value, of the expression's shape.
        borders: The quantities, flat of shape (k,), that must stay positive for the expression to
            be defined and smooth: what stands under a logarithm, an entropy, a root, a
            reciprocal, the denominator of quad_over_lin, a norm. k is 0 for a polynomial. The
            signs of denominators and the eigenvalues of matrix arguments are not among them.
        norms: Those of the borders that are norms, smooth only away from their apex 0.
        shape: That of the value.
        monomials: Every class of monomials that may occur, as (degree in the variables, degree in the
            parameters); math.inf where it is not polynomial in them.
    """

    function: Callable[..., Tensor]
    borders: Callable[..., Tensor]
    norms: Callable[..., Tensor]
    shape: tuple[int, ...]
    monomials: Terms


def translate(
    expression: cp.Expression,
    variables: Sequence[cp.Variable],
    parameters: Sequence[cp.Parameter],
    *,
    apex: bool = False,
    values_only: bool = False,
    given: Mapping[int, cp.Variable] = NOTHING_GIVEN,
) -> Translation:
    """The torch functions of an expression.

    Args:
        expression: Scalar or array, with no leaves but the declared ones.
        variables: Its variables, in the order in which their values will be passed.
        parameters: Its parameters, likewise.
        apex: Admit norms, which are smooth only away from 0.
        values_only: Admit whatever torch can evaluate, smooth or not; derivatives are not asked for.
        given: By the id of a subexpression, the variable that stands for it.

    Raises:
        DeclarationError: Naming the atom that is not smooth or not known, the leaf that was not
            declared, or the constant that is complex.
    """
    apex = apex or values_only
    values = _Tape(variables, parameters, apex, values_only, given)
    output = values.slot(expression)
    return Translation(
        function=values.program(output),
        borders=_together(values.guarded, _Tape(variables, parameters, apex, values_only)),
        norms=_together(values.norms, _Tape(variables, parameters, apex, values_only)),
        shape=expression.shape,
        monomials=values.terms[output],
    )


@dataclass(frozen=True)
class _Step:
    """Fills the next slot from earlier ones."""

    apply: Function
    operands: tuple[int, ...]


class _Tape:
    """The slots of an expression, the leaves' first."""

    def __init__(
        self,
        variables: Sequence[cp.Variable],
        parameters: Sequence[cp.Parameter],
        apex: bool,
        values_only: bool,
        given: Mapping[int, cp.Variable] = NOTHING_GIVEN,
    ) -> None:
        leaves: list[_Leaf] = [*variables, *parameters]
        self.terms: list[Terms] = [VARIABLE] * len(variables) + [PARAMETER] * len(parameters)
        self.guarded: list[tuple[cp.Expression, Function]] = []
        self.norms: list[tuple[cp.Expression, Function]] = []
        self._apex, self._values_only = apex, values_only
        self._leaves = {leaf.id: slot for slot, leaf in enumerate(leaves)}
        self._slots = {of: self._leaves[leaf.id] for of, leaf in given.items()}
        self._steps: list[_Step] = []
        for leaf in leaves:
            _check_real(leaf)

    def slot(self, expression: cp.Expression) -> int:
        """Where the value of the expression lies, laid out if it is new."""
        if id(expression) not in self._slots:
            self._slots[id(expression)] = self._lay_out(expression)
        return self._slots[id(expression)]

    def add(self, apply: Function, operands: Sequence[int], terms: Terms = CONSTANT) -> int:
        """One more step, and its slot."""
        self._steps.append(_Step(apply, tuple(operands)))
        self.terms.append(terms)
        return len(self.terms) - 1

    def program(self, output: int) -> Function:
        """The leaves' values to that of one slot."""
        steps = tuple(self._steps)

        def run(*leaves: Tensor) -> Tensor:
            slots = list(leaves)
            for step in steps:
                slots.append(step.apply(*[slots[operand] for operand in step.operands]))
            return slots[output]

        return run

    def _lay_out(self, expression: cp.Expression) -> int:
        if _is_constant(expression):
            return self.add(partial(_placed, constant_tensor(expression)), [0])
        if isinstance(expression, _Leaf):
            return self._leaf(expression)
        return self._atom(expression)

    def _leaf(self, leaf: _Leaf) -> int:
        if leaf.id not in self._leaves:
            raise undeclared(leaf)
        return self._leaves[leaf.id]

    def _atom(self, atom: Atom) -> int:
        sparse_factor = large_factor(atom)
        if sparse_factor is not None:
            (slot,) = (self.slot(operand) for operand in sparse_factor.operands)
            return self.add(sparse_factor, [slot], sparse_factor.terms(self.terms[slot]))
        operation = self._operation(atom)
        operands = [*atom.args, *operation.hidden]
        slots = [self.slot(operand) for operand in operands]
        for position, border in operation.borders.items():
            if not _is_constant(operands[position]):
                self.guarded.append((operands[position], border))
                if operation.apex:
                    self.norms.append((operands[position], border))
        terms = operation.terms(*[self.terms[slot] for slot in slots])
        return self.add(operation.apply, slots, terms)

    def _operation(self, atom: Atom) -> Operation:
        name = type(atom).__name__
        smooth_only = bool(atom.variables()) and not self._values_only
        rule = RULES.get(name) if smooth_only else (RULES | PARAMETRIC).get(name)
        if rule is None:
            raise refused(atom)
        operation = rule(atom)
        if operation.apex and not self._apex and atom.variables():
            raise refused_apex(atom)
        return operation


def _together(needed: Sequence[tuple[cp.Expression, Function]], tape: _Tape) -> Function:
    """Some quantities that must stay positive, on a tape that holds nothing else."""
    slots = [tape.add(border, [tape.slot(guarded)]) for guarded, border in needed]
    return tape.program(tape.add(_flat, slots) if slots else tape.add(_nothing, [0]))


def _flat(*arrays: Tensor) -> Tensor:
    return torch.cat([array.reshape(-1) for array in arrays])


def _nothing(like: Tensor) -> Tensor:
    return like.reshape(-1)[:0]


def _placed(constant: Tensor, like: Tensor) -> Tensor:
    """The constant where and in the precision in which the call computes."""
    return constant.to(like.device, like.dtype)


def _is_constant(expression: cp.Expression) -> bool:
    """Whether it holds no leaf whose value may change."""
    return not expression.variables() and not expression.parameters()


def constant_tensor(constant: cp.Expression) -> Tensor:
    """The value of an expression that holds no leaf, dense."""
    value: Any = constant.value
    array = value.toarray() if sparse.issparse(value) else np.asarray(value)
    if np.iscomplexobj(array):
        raise complex_valued(constant)
    return torch.tensor(array, dtype=torch.float64).reshape(constant.shape)


def _check_real(leaf: _Leaf) -> None:
    if leaf.is_complex():
        raise complex_valued(leaf)
