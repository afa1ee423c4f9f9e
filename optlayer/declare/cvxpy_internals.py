"""What `declare` uses of cvxpy beyond its public methods, all of it here.

Its counterpart for the engines, which never meet `declare`, is `engines/chain.py`.
`tests/test_cvxpy_internals.py` says what moved when a new cvxpy breaks either. What is relied on:

* the chain of reductions for CLARABEL ends in a parametrized cone program: tensors P, q, A with a column
  for every parameter entry and one for the constant, and the columns of x by variable
* a symmetric, diagonal or sparse parameter is replaced by a vector of its free entries, under a new id
* a variable with attributes is replaced by a reduced one
* the chain inverts any (x, y), one that no solver has found included
* `Dgp2Dcp` pairs each leaf with its logarithm, and each constraint with its twin
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import cvxpy as cp
import cvxpy.settings as names
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.atom import Atom as Atom
from cvxpy.expressions.constants.parameter import is_param_affine as is_param_affine
from cvxpy.lin_ops.lin_op import CONSTANT_ID
from cvxpy.reductions.cvx_attr2constr import SYMMETRIC_ATTRIBUTES
from cvxpy.reductions.cvx_attr2constr import lower_value as lower_value
from cvxpy.reductions.cvx_attr2constr import recover_value_for_leaf as recover_value_for_leaf
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from cvxpy.utilities.scopes import quad_form_dpp_scope as quad_form_dpp_scope

from optlayer.forms.affine import Array

BOUNDS = ("lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor")  # where a program may keep constraints
CONES = "dir_cones"  # and cones, beside its rows


def unexpected(what: str) -> RuntimeError:
    """cvxpy does not work as is believed here."""
    return RuntimeError(f"cvxpy {cp.__version__} canonicalizes differently than expected: {what}")


# ------------------------------------------------------------------------------------------ cone programs


@dataclass(frozen=True)
class Compiled:
    """What cvxpy makes of a problem: solver data, the chain that made them, and how to invert it."""

    data: dict[str, Any]
    chain: Any
    inverse: list[Any]

    @property
    def program(self) -> Any:
        """The parametrized cone program, rows already in the solver's order."""
        return self.data[names.PARAM_PROB]

    @property
    def n(self) -> int:
        """Of x ∈ ℝⁿ."""
        return int(self.program.x.size)

    @property
    def m(self) -> int:
        """Rows of A."""
        return int(self.program.constr_size)

    @property
    def dims(self) -> Any:
        """The cones: zero, nonneg, exp are counts, soc, psd lists of sizes, p3d, pnd lists of exponents."""
        return self.program.cone_dims

    @property
    def tensors(self) -> tuple[Any, Any, Any]:
        """P, q, A with a column for every entry of a parameter, and one for the constant."""
        P, q, A = self.program.P, self.program.q, self.program.A
        return sp.coo_array((self.n**2, q.shape[1])) if P is None else P, q, A

    @property
    def reductions(self) -> list[str]:
        """The links of the chain."""
        return [type(reduction).__name__ for reduction in self.chain.reductions]

    @property
    def beside_rows(self) -> list[str]:
        """Where the program keeps constraints that are no rows of A."""
        bounds = [place for place in BOUNDS if getattr(self.program, place) is not None]
        return bounds + [CONES] * bool(getattr(self.program, CONES))

    @property
    def constant_column(self) -> int:
        """The last column of the tensors."""
        return int(self.program.param_id_to_col[CONSTANT_ID])

    def column(self, parameter: Any) -> int | None:
        """The first of a parameter's columns; None where it does not enter."""
        ids = self.chain.compose_param_id_map().get(parameter.id, [parameter.id])
        if len(ids) != 1:
            raise unexpected(f"parameter {parameter.name()!r} becomes {len(ids)} parameters")
        column: int | None = self.program.param_id_to_col.get(ids[0])
        return column

    def place(self, variable: Any) -> tuple[Any, int | None]:
        """What stands for a variable, and its first column of A; None where it does not enter."""
        reduced = self._reduced.get(variable.id, variable)
        return reduced, self.program.var_id_to_col.get(reduced.id)

    @property
    def _reduced(self) -> dict[int, Any]:
        for name, inverse in zip(self.reductions, self.inverse, strict=True):
            if name == "CvxAttr2Constr" and inverse:
                found: dict[int, Any] = inverse[0]
                return found
        return {}

    def matrices(self) -> dict[str, Any]:
        """P, q, d, A, b at the parameters' values, as the solver is given them, vectors as rows."""
        data = self.data
        upper = sp.triu(data[names.P]) if names.P in data else sp.coo_array((self.n, self.n))
        return {
            "P": upper + sp.triu(upper, 1).T,  # the upper triangle is all that Clarabel reads
            "q": np.reshape(data[names.C], (1, self.n)),
            "d": np.reshape(dense(self.inverse[-1][names.OFFSET]), (1, 1)),
            "A": data[names.A],
            "b": np.reshape(data[names.B], (1, self.m)),
        }

    def invert(self, x: Array, y: Array) -> Any:
        """The cvxpy Solution that a solver's answer (x, y) would become."""
        status = self.chain.solver.SOLVED
        answer = SimpleNamespace(status=status, x=x, z=y, obj_val=0.0, solve_time=0.0, iterations=0)
        return self.chain.invert(answer, self.inverse)


def compiled(problem: cp.Problem) -> Compiled:
    """A problem compiled for CLARABEL, without solving it.

    Raises:
        cvxpy.error.DPPError: its data are not affine in its parameters.
        RuntimeError: cvxpy works differently than is believed here.
    """
    with _cvxpy_noise():
        data, chain, inverse = problem.get_problem_data(cp.CLARABEL, enforce_dpp=True, solver_opts={})
    if not isinstance(data, dict) or names.PARAM_PROB not in data:
        raise unexpected("the solver's data hold no parametrized program")
    return Compiled(data, chain, inverse)


@contextmanager
def _cvxpy_noise() -> Iterator[None]:
    """cvxpy warns of its own reading of a sparse parameter's `.value`, and of its choice of a backend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Reading from a sparse CVXPY expression", RuntimeWarning)
        warnings.filterwarnings("ignore", "The problem has an expression with dimension", UserWarning)
        yield


# ------------------------------------------------------------------------------------------ leaves, atoms


def is_symmetric(leaf: Any) -> bool:
    """Whether one triangle stands for a leaf."""
    return any(leaf.attributes[attribute] for attribute in SYMMETRIC_ATTRIBUTES)


def is_reduced(leaf: Any) -> bool:
    """Whether fewer numbers than it has entries stand for a leaf."""
    return bool(leaf._has_dim_reducing_attr)


def dense(value: Any) -> Array:
    """A value as an array; cvxpy hands out some as sparse matrices."""
    return np.asarray(value.toarray() if sp.issparse(value) else value)


def supported_set(atom: Any) -> Any:
    """The `SuppFunc` of a support function."""
    return atom._parent


def averaged(atom: Any) -> Any:
    """Which entries a geometric mean gives a weight."""
    return atom._keep


# ------------------------------------------------------------------------------------------ geometric


class Logarithmic(NamedTuple):
    """A geometric programme in the logarithms of its leaves."""

    problem: cp.Problem
    variables: dict[Any, Any]  # each of the original with its logarithm
    parameters: dict[Any, Any]  # likewise, unless it stands in exponents only
    twins: dict[int, int]  # ids of the original constraints, and of theirs


def logarithmic(problem: cp.Problem) -> Logarithmic:
    """cvxpy's own reduction, with names for the new variables."""
    reduction = Dgp2Dcp()
    convex, inverse = reduction.apply(problem)
    methods = reduction.canon_methods
    for original, logarithm in methods._variables.items():
        logarithm._name = f"log {original.name()}"
    return Logarithmic(convex, methods._variables, methods._parameters, inverse.cons_id_map)
