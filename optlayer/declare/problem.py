"""A whole cp.Problem as a declaration: judged once, copied onto private leaves as often as needed."""

from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from optlayer.declare import discipline, geometric
from optlayer.declare import leaves as leaf
from optlayer.declare.admissible import admissible
from optlayer.declare.bounds import check_depth
from optlayer.declare.copies import private, settled
from optlayer.declare.outputs import Output, read_outputs
from optlayer.declare.posed import Posed
from optlayer.declare.refusals import shortened
from optlayer.declare.rewriting import Rewriting
from optlayer.errors import DeclarationError

_DISCRETE = "the argmin of an integer problem has no derivative"
_RELAX = f"{_DISCRETE}; relax it to bounds=[lower, upper]"
_COMPLEX = "write its real and its imaginary part as real arrays"
COMPLEX = dict.fromkeys(("complex", "imag", "hermitian"), _COMPLEX)
REFUSED = {"boolean": _RELAX, "integer": _RELAX} | COMPLEX  # attribute -> why, and the way out
ROUNDING = float(np.finfo(np.float32).eps)  # by which a constant parameter may miss its attributes


@dataclass(frozen=True, eq=False)
class ProblemDeclaration:
    """The user's problem, with what is asked of it; `of` makes and checks one.

    Nothing of the user's is ever assigned to. Building is deterministic, so that a pickled declaration
    is all a layer needs to keep; a copy is the same object, which cannot change.

    Attributes:
        problem: The user's objective and constraints in a cp.Problem of our own: one that was solved
            may refuse to be pickled.
        parameters: The user's, in the order of the call.
        variables: All of the problem's, in cvxpy's order.
        outputs: What the user wants back.
        constants: Parameters that were left out, each with its value when the declaration was made.
        names: How errors call each constraint.
        gp: A geometric programme.
    """

    problem: cp.Problem
    parameters: tuple[cp.Parameter, ...]
    variables: tuple[cp.Variable, ...]
    outputs: tuple[Output, ...]
    constants: tuple[tuple[cp.Parameter, cp.Expression], ...]
    names: tuple[str, ...]
    gp: bool

    @classmethod
    def of(
        cls, problem: Any, parameters: Any = None, variables: Any = None, gp: bool = False
    ) -> "ProblemDeclaration":
        """The declaration of a problem.

        Args:
            problem: Any disciplined convex cp.Problem, or a geometric programme.
            parameters: What the layer is called with; None for all, in cvxpy's order. The others are
                constants, with the values they have now.
            variables: What it returns: variables, dual variables of constraints, affine expressions of
                variables. None for all variables, in cvxpy's order.
            gp: Read the problem as a geometric programme.

        Raises:
            DeclarationError: naming the leaf, constraint or term that cannot be honoured.
        """
        if not isinstance(problem, cp.Problem):
            raise DeclarationError(f"problem is a {type(problem).__name__}, expected a cvxpy.Problem")
        check_depth("the objective", problem.objective)
        for i, constraint in enumerate(problem.constraints):
            check_depth(f"constraint {i}", constraint)
        own: Any = cp.Problem(problem.objective, problem.constraints)
        names = tuple(f"constraint {i}: {shortened(c)}" for i, c in enumerate(own.constraints))
        _check_leaves(own, gp)
        _check_constraints(own, names)
        chosen = _chosen(own, parameters)
        left_out = [p for p in own.parameters() if not any(p is q for q in chosen)]
        constants = tuple((p, _constant(p)) for p in left_out)
        draft = cls(own, chosen, tuple(own.variables()), (), constants, names, gp)
        posed, rewriting = draft._private()
        discipline.check(geometric.gathered(posed).problem if gp else posed.problem, names, gp)
        return replace(draft, outputs=read_outputs(variables, own, posed, rewriting))

    def build(self, attributes: bool, rows: bool | None = None) -> Posed:
        """A private copy of the problem as a minimization.

        Args:
            attributes: Whether private variables keep theirs; else sign, bounds, symmetry and diagonality
                follow as rows. Bounds that are expressions are rows always.
            rows: Whether those rows follow, if that is not the opposite of `attributes`.

        Raises:
            DeclarationError: for a PSD, NSD or sparse variable without its attributes.
        """
        rows = not attributes if rows is None else rows
        posed, _ = self._private()
        if self.gp:
            posed = geometric.logarithmic(geometric.gathered(posed))
        return settled(posed, attributes, rows)

    @property
    def objective_name(self) -> str:
        """How errors call f."""
        return "objective"

    @property
    def functions(self) -> tuple[None, ...]:
        """Expressions have no torch branches."""
        return (None,) * (1 + len(self.names))

    @property
    def constraint_ids(self) -> tuple[int, ...]:
        """By which the user may ask for multipliers."""
        return tuple(c.id for c in self.problem.constraints)

    def check_convex(self) -> None:
        """Judged when the declaration was made."""

    def position(self, constraint: Any) -> int:
        """Of a constraint among the problem's.

        Raises:
            DeclarationError: for one that is not the problem's own.
        """
        for position, own in enumerate(self.problem.constraints):
            if own is constraint:
                return position
        raise DeclarationError(f"{shortened(constraint)} is not a constraint of the problem")

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProblemDeclaration":
        return self

    def _private(self) -> tuple[Posed, Rewriting]:
        return private(self.problem, self.parameters, self.constants, self.names, self.gp)


# --- what the user handed in ----------------------------------------------------------------------


def _check_leaves(problem: cp.Problem, gp: bool) -> None:
    if not problem.variables():
        raise DeclarationError("the problem has no variables: a layer needs at least one cvxpy.Variable")
    leaves = [("variable", v, REFUSED) for v in problem.variables()]
    leaves += [("parameter", p, COMPLEX) for p in problem.parameters()]
    for word, one, refused in leaves:
        for attribute in refused:
            if one.attributes.get(attribute):
                raise DeclarationError(f"{word} {one.name()!r} is declared {attribute}: {REFUSED[attribute]}")
        if gp:
            geometric.check_attributes(one, word)


def _check_constraints(problem: cp.Problem, names: tuple[str, ...]) -> None:
    for name, constraint in zip(names, problem.constraints, strict=True):
        if type(constraint).__name__ == "FiniteSet":
            raise DeclarationError(f"{name} is discrete: {_DISCRETE}; constrain it to the convex hull")
        if constraint.is_complex():
            raise DeclarationError(f"{name} is complex: {_COMPLEX}")


def _chosen(problem: cp.Problem, given: Any) -> tuple[cp.Parameter, ...]:
    """The parameters the layer is called with."""
    own = problem.parameters()
    chosen = own if given is None else given
    if not isinstance(chosen, list | tuple):
        raise DeclarationError(f"parameters is a {type(given).__name__}, expected a list or tuple")
    leaf.check(chosen, cp.Parameter, "parameter")
    for parameter in chosen:
        if not any(parameter is p for p in own):
            raise DeclarationError(f"parameter {parameter.name()!r} does not occur in the problem")
        if isinstance(parameter, cp.CallbackParam):
            raise DeclarationError(
                f"parameter {parameter.name()!r} has a callback for its value: write what the callback "
                "computes as an expression of the parameters it reads"
            )
    return tuple(chosen)


def _constant(parameter: cp.Parameter) -> cp.Expression:
    """The value of a parameter that was left out, copied, with what its attributes promise."""
    value = _value(parameter)
    rules = admissible(parameter)
    for attribute, offends in rules.offences(value, ROUNDING):
        if offends.any():
            raise DeclarationError(
                f"parameter {parameter.name()!r} is declared {attribute}, and the value it is left out with "
                "is not; set a value that is, or list the parameter"
            )
    entries = rules.read(value)[0].numpy()
    constant = cp.Constant(entries if parameter.sparse_idx is None else sparse.coo_array(entries))
    if not rules.definite:
        return constant
    return cp.psd_wrap(constant) if rules.definite > 0 else -cp.psd_wrap(-constant)


def _value(parameter: cp.Parameter) -> Tensor:
    """(1, *shape), a batch of one."""
    value: Any = parameter.value if parameter.sparse_idx is None else parameter.value_sparse
    if value is None:
        raise DeclarationError(
            f"parameter {parameter.name()!r} is left out, so it is a constant, and it has no value: list it "
            "in parameters, or set its value first"
        )
    entries = np.array(value.toarray() if sparse.issparse(value) else value, dtype=float)
    if not np.isfinite(entries).all():
        raise DeclarationError(
            f"parameter {parameter.name()!r} is left out with a value that is not finite: {entries}"
        )
    return torch.as_tensor(entries)[None]
