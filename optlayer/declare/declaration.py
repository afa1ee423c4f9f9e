"""A problem declared by callables, in the tutorial's order."""

from dataclasses import dataclass
from typing import Any

import cvxpy as cp

from optlayer.declare import leaves as leaf
from optlayer.declare.callables import UserCallable, express, name_of
from optlayer.declare.copies import settled
from optlayer.declare.opaque import Learned, Weight
from optlayer.declare.outputs import Output, Primal
from optlayer.declare.posed import Posed, Row, identity
from optlayer.errors import DeclarationError


@dataclass(frozen=True, eq=False)
class Declaration:
    """The user's variables, parameters and callables.

    What is made of it is deterministic, so that a pickled declaration is all a layer needs to keep.
    """

    variables: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    objective: UserCallable  # an nn.Module as `Learned`
    inequalities: tuple[UserCallable, ...]
    equalities: tuple[UserCallable, ...]

    def __post_init__(self) -> None:
        leaf.check(self.variables, cp.Variable, "variable")
        leaf.check(self.parameters, cp.Parameter, "parameter")
        if not self.variables:
            raise DeclarationError("no variables: a layer needs at least one cvxpy.Variable")
        for variable in self.variables:
            leaf.check_attributes(variable, leaf.REFUSED, "variable")
        for parameter in self.parameters:
            leaf.check_attributes(parameter, ("complex", "imag", "hermitian"), "parameter")

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The variables."""
        return tuple(Primal(i, v.shape) for i, v in enumerate(self.variables))

    @property
    def learned(self) -> tuple[Learned, ...]:
        """The modules among the callables, each once."""
        return tuple({id(f): f for f in self.functions if isinstance(f, Learned)}.values())

    @property
    def objective_name(self) -> str:
        """How errors call f."""
        return name_of("objective", self.objective)

    @property
    def functions(self) -> tuple[UserCallable | None, ...]:
        """The objective, then the constraints in the order of their rows."""
        return (self.objective, *self.inequalities, *self.equalities)

    @property
    def constraint_ids(self) -> tuple[int, ...]:
        """There are no constraint objects of the user's to ask by."""
        return ()

    def build(self, attributes: bool, rows: bool) -> Posed:
        """A private copy of the problem, on leaves that nobody else holds; see `Declared`."""
        variables = tuple(leaf.private_copy(v) for v in self.variables)
        parameters = tuple(leaf.private_copy(p) for p in self.parameters)
        own, theirs = [*variables, *parameters], [*self.variables, *self.parameters]
        weights = {id(module): _weights(module) for module in self.learned}
        name = self.objective_name
        f = express(name, self.objective, own, theirs, weights.get(id(self.objective), ()))
        if f.size != 1:
            raise DeclarationError(f"{name} has shape {f.shape}, expected a scalar or one element")
        constraints = self._rows(own, theirs, weights)
        parameters = (*parameters, *(leaf for leaves in weights.values() for leaf in leaves))
        problem = cp.Problem(cp.Minimize(f), [row.constraint for row in constraints])
        posed = Posed(problem, variables, parameters, constraints, identity, maximize=False)
        return settled(posed, attributes, rows)

    def check_convex(self) -> None:
        """Complain in the user's terms where cvxpy's rules do not see a convex problem.

        Raises:
            DeclarationError: naming the callable and a way out.
        """
        posed = self.build(attributes=True, rows=False)
        f = posed.problem.objective.expr
        if not f.is_convex():
            hint = "; to maximise f, minimise -f" if f.is_concave() else _psd_hint(f)
            raise DeclarationError(f"{self.objective_name} is not convex by cvxpy's rules: {_short(f)}{hint}")
        for row in posed.inequalities:
            g = row.constraint.expr
            if not g.is_convex():
                raise DeclarationError(
                    f"{row.name} is not convex by cvxpy's rules, so g <= 0 is not a convex set: "
                    f"{_short(g)}{_psd_hint(g)}"
                )
        for row in posed.equalities:
            h = row.constraint.expr
            if not h.is_affine():
                raise DeclarationError(f"{row.name} is not affine in the variables: {_short(h)}")

    def _rows(
        self, own: list[Any], theirs: list[Any], weights: dict[int, tuple[Weight, ...]]
    ) -> tuple[Row, ...]:
        """The declared constraints."""

        def expressed(role: str, c: UserCallable, affine: bool) -> tuple[str, cp.Expression]:
            name = name_of(role, c)
            return name, express(name, c, own, theirs, weights.get(id(c), ()), affine)

        g = [expressed(f"inequality {i}", c, affine=False) for i, c in enumerate(self.inequalities)]
        h = [expressed(f"equality {i}", c, affine=True) for i, c in enumerate(self.equalities)]
        constraints = [(name, left <= 0) for name, left in g] + [(name, left == 0) for name, left in h]
        return tuple(Row(constraint, i, name) for i, (name, constraint) in enumerate(constraints))


def _weights(module: Learned) -> tuple[Weight, ...]:
    """Leaves for the weights of a module."""
    return tuple(Weight(name, tensor) for name, tensor in zip(module.names, module.weights, strict=True))


def _short(expression: cp.Expression, length: int = 120) -> str:
    text = str(expression)
    return text if len(text) <= length else text[: length - 3] + "..."


def _psd_hint(expression: cp.Expression) -> str:
    if any(type(atom).__name__ == "QuadForm" for atom in _atoms(expression)):
        return "; in quad_form(x, P) declare P as cp.Parameter(..., PSD=True)"
    return ""


def _atoms(expression: Any) -> list[Any]:
    return [expression, *(atom for argument in expression.args for atom in _atoms(argument))]
