"""A disciplined problem as one cone program whose data are affine in the parameters.

    min ½xᵀPx + qᵀx + d   s.t.   Ax + s = b,   s ∈ {0}^zero × K,      P, q, d, A, b affine in θ

x holds the problem's variables and those cvxpy adds for its atoms, y one multiplier for every row of A
(Clarabel's sign: y ∈ K*, Px + q + Aᵀy = 0), θ the values of the declared parameters, each flattened in C
order, one after the other. K is the product of cones in Clarabel's order: nonnegative, second-order,
semidefinite (upper triangle column by column, off-diagonal entries times √2), exponential, power,
generalised power.

This is the one file that knows how cvxpy works inside; what it knows:

* the chain of reductions for CLARABEL ends in a parametrized cone program, tensors with a column for
  every parameter entry (Fortran order) and one for the constant:
      q: row j is q_j, row n is d;    P: row i + n·j is P_ij;    A: row i + m·j is −A_ij, or b_i for j = n
* a symmetric, diagonal or sparse parameter is replaced by a vector of its free entries. A symmetric one is
  read as the mean of its two triangles, cvxpy reads the upper one only: equal values, and ∂/∂θ_ij = ∂/∂θ_ji
* a variable with attributes is replaced by a reduced one; every entry of its value is one entry of x, or 0
* every entry of a constraint's dual value is a multiple of one entry of y, found by inverting the chain on
  y = (1, 1, ...), which gives the factor, and on y = (1, 2, ...), which gives the place.

None of it is taken on trust: construction compares the maps with cvxpy's own data, compiled afresh at other
parameter values (so that a value cvxpy has built into its tensors is seen), and every gathered value with
cvxpy's own inversion at a random (x, y). What differs raises.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import cvxpy.settings as names
import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.error import DPPError
from cvxpy.lin_ops.lin_op import CONSTANT_ID
from cvxpy.reductions.cvx_attr2constr import SYMMETRIC_ATTRIBUTES, lower_value, recover_value_for_leaf
from jaxtyping import Int64
from torch import Tensor

from optlayer.cones import (
    ConvexCone,
    Exponential,
    GeneralizedPower,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Semidefinite,
)
from optlayer.forms.affine import AffineMap, Array, Gather

REDUCTIONS = {
    "Dcp2Cone",
    "CvxAttr2Constr",
    "ExactCone2Cone",
    "ApproxCone2Cone",
    "EliminateZeroSized",
    "ConeMatrixStuffing",
    "CLARABEL",
}
TOLERANCE = 1e-12  # relative; both sides add up the same few terms


class NotDPP(Exception):
    """The problem's data are not affine in its parameters; the message is cvxpy's or names the constraint."""


@dataclass(frozen=True, eq=False)
class Canonical:
    """A cone program with affine data, and the way back to the problem it came from."""

    n: int  # x ∈ ℝⁿ
    m: int  # rows of A
    zero: int  # of them equalities, the first ones
    cone: Product  # where s lies in the other rows
    P: AffineMap  # symmetric, both triangles
    q: AffineMap
    d: AffineMap
    A: AffineMap
    b: AffineMap
    variables: tuple[Gather, ...]  # x -> the value of each variable
    duals: tuple[tuple[Gather, ...], ...]  # y -> cvxpy's dual values of each constraint; () if it has none
    rows: Int64[Tensor, "m"]  # the constraint a row belongs to; -1: an atom's epigraph, an attribute


def canonicalize(
    problem: cp.Problem,
    variables: Sequence[cp.Variable],
    parameters: Sequence[cp.Parameter],
    constraints: Sequence[cp.Constraint],
) -> Canonical:
    """Compile a problem once, for all parameter values.

    Args:
        problem: a minimization, disciplined convex and disciplined in its parameters.
        variables: whose values are asked for; one that the problem does not mention is 0.
        parameters: all of the problem's, in the order of θ. Their values are overwritten.
        constraints: members of `problem.constraints`, whose multipliers are asked for.

    Raises:
        NotDPP: the problem's data are not affine in its parameters.
        ValueError: a parameter or constraint is missing from either side.
        RuntimeError: cvxpy works differently than this file believes.
        Exception: cvxpy's own, DCPError and SolverError among them, where it refuses the problem.
    """
    _check_declared(problem, parameters, constraints)
    problem = _mention_a_variable(problem, variables)
    rng = np.random.default_rng(0)
    _assign_random(parameters, rng)
    compiled = _compile(problem)
    _check_program(compiled)
    duals = _dual_gathers(compiled, constraints)
    canonical = Canonical(
        n=compiled.n,
        m=compiled.m,
        zero=int(compiled.program.cone_dims.zero),
        cone=_cone(compiled.program.cone_dims),
        **_maps(compiled, parameters),
        variables=tuple(_primal_gather(compiled, variable) for variable in variables),
        duals=duals,
        rows=_rows(compiled.m, duals),
    )
    theta = _assign_random(parameters, rng)
    _verify_maps(canonical, theta, _compile(cp.Problem(problem.objective, problem.constraints)))
    for _ in range(2):
        x, y = rng.standard_normal(compiled.n), rng.standard_normal(compiled.m)
        _verify_gathers(canonical, compiled, variables, constraints, x, y)
        _verify_gathers(canonical, compiled, variables, constraints, -x, -y)
    return canonical


# ------------------------------------------------------------------------------------ cvxpy's own chain


@dataclass(frozen=True)
class _Compiled:
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
        return int(self.program.x.size)

    @property
    def m(self) -> int:
        return int(self.program.constr_size)

    def invert(self, x: Array, y: Array) -> Any:
        """The cvxpy Solution that a solver's answer (x, y) would become."""
        status = self.chain.solver.SOLVED
        answer = SimpleNamespace(status=status, x=x, z=y, obj_val=0.0, solve_time=0.0, iterations=0)
        return self.chain.invert(answer, self.inverse)


@contextmanager
def _cvxpy_noise() -> Iterator[None]:
    """cvxpy warns of its own reading of a sparse parameter's `.value`, and of its choice of a backend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Reading from a sparse CVXPY expression", RuntimeWarning)
        warnings.filterwarnings("ignore", "The problem has an expression with dimension", UserWarning)
        yield


def _compile(problem: cp.Problem) -> _Compiled:
    with _cvxpy_noise():
        try:
            data, chain, inverse = problem.get_problem_data(cp.CLARABEL, enforce_dpp=True, solver_opts={})
        except DPPError as error:
            raise NotDPP(str(error)) from error
    if not isinstance(data, dict) or names.PARAM_PROB not in data:
        raise _unexpected("the solver's data hold no parametrized program")
    return _Compiled(data, chain, inverse)


def _unexpected(what: str) -> RuntimeError:
    return RuntimeError(f"cvxpy {cp.__version__} canonicalizes differently than expected: {what}")


def _check_declared(problem: cp.Problem, parameters: Sequence[Any], constraints: Sequence[Any]) -> None:
    declared = {parameter.id for parameter in parameters}
    for parameter in problem.parameters():
        if parameter.id not in declared:
            raise ValueError(f"parameter {parameter.name()!r} of the problem is not among the parameters")
    known = {constraint.id for constraint in problem.constraints}
    for position, constraint in enumerate(constraints):
        if constraint.id not in known:
            raise ValueError(f"constraint {position} is not a constraint of the problem: {constraint}")
    for constraint in problem.constraints:
        alpha = getattr(constraint, "alpha", None)
        if alpha is not None and alpha.parameters():  # cvxpy overlooks it: alpha is none of the arguments
            raise NotDPP(f"the exponent of {constraint} holds a parameter, so the cone itself would move")


def _mention_a_variable(problem: cp.Problem, variables: Sequence[Any]) -> cp.Problem:
    """cvxpy evaluates a problem without variables instead of compiling it."""
    if problem.variables() or not variables:
        return problem
    return cp.Problem(cp.Minimize(problem.objective.expr + 0 * cp.sum(variables[0])), problem.constraints)


def _check_program(compiled: _Compiled) -> None:
    """Nothing of the problem lies outside q, P, A and the"""
    program = compiled.program
    strange = [type(r).__name__ for r in compiled.chain.reductions if type(r).__name__ not in REDUCTIONS]
    if strange:
        raise _unexpected(f"reductions {', '.join(strange)} are not known here")
    for attribute in ("lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor"):
        if getattr(program, attribute, None) is not None:
            raise _unexpected(f"a constraint was moved to {attribute} and would be lost")
    if getattr(program, "dir_cones", None):
        raise _unexpected("a cone constraint was moved to dir_cones and would be lost")
    rows = int(program.cone_dims.zero) + _cone(program.cone_dims).dim
    if rows != compiled.m or compiled.data[names.A].shape != (rows, compiled.n):
        shape = compiled.data[names.A].shape
        raise _unexpected(f"the cones have {rows} rows, the program {compiled.m}, and A has shape {shape}")


# --------------------------------------------------------------------------------------------- the cones


def _cone(dims: Any) -> Product:
    """The cones behind the zero cone, as `dims_to_solver_cones` of cvxpy's CLARABEL lists them."""
    parts: list[ConvexCone] = [Nonnegative(int(dims.nonneg))] if dims.nonneg else []
    parts += [SecondOrder(int(dim)) for dim in dims.soc]
    parts += [Semidefinite(int(n)) for n in dims.psd]
    parts += [Exponential() for _ in range(dims.exp)]
    parts += [Power(float(alpha)) for alpha in dims.p3d]
    parts += [GeneralizedPower(tuple(map(float, alphas)), 1) for alphas in dims.pnd]
    return Product(tuple(parts))


# ---------------------------------------------------------------------------------------- data as maps of θ


def _maps(compiled: _Compiled, parameters: Sequence[Any]) -> dict[str, AffineMap]:
    program, n, m = compiled.program, compiled.n, compiled.m
    theta = _theta_of_columns(compiled, parameters)
    k = theta.shape[1]  # columns: θ, and the constant
    q, A = (_in_theta(tensor, theta) for tensor in (program.q, program.A))
    P = sp.coo_array((n * n, k)) if program.P is None else _in_theta(program.P, theta)
    j, i = np.divmod(A.row, max(m, 1))  # Fortran order: row i + m·j
    inside, linear = j < n, q.row < n
    mirrored = P.row // n + n * (P.row % n)
    both = np.concatenate([P.row, mirrored]), np.concatenate([P.col, P.col])
    return {
        "P": AffineMap.of((n, n), _matrix(np.concatenate([P.data, P.data]) / 2, *both, (n * n, k))),
        "q": AffineMap.of((n,), _matrix(q.data[linear], q.row[linear], q.col[linear], (n, k))),
        "d": AffineMap.of((), _matrix(q.data[~linear], q.row[~linear] - n, q.col[~linear], (1, k))),
        "A": AffineMap.of((m, n), _matrix(-A.data[inside], (i * n + j)[inside], A.col[inside], (m * n, k))),
        "b": AffineMap.of((m,), _matrix(A.data[~inside], i[~inside], A.col[~inside], (m, k))),
    }


def _in_theta(tensor: Any, theta: Any) -> Any:
    """One of cvxpy's tensors with a column for every entry of θ; it has many rows, and few that are not 0."""
    tensor = sp.coo_array(tensor)
    rows, place = np.unique(tensor.row.astype(np.int64), return_inverse=True)
    product = (_matrix(tensor.data, place, tensor.col, (len(rows), theta.shape[0])).tocsr() @ theta).tocoo()
    return _matrix(product.data, rows[product.row], product.col, (tensor.shape[0], theta.shape[1]))


def _matrix(data: Array, row: Array, column: Array, shape: tuple[int, int]) -> Any:
    return sp.coo_array((data, (row, column)), shape=shape)


def _theta_of_columns(compiled: _Compiled, parameters: Sequence[Any]) -> Any:
    """The matrix that makes cvxpy's parameter vector (..., 1) from (θ, 1)."""
    columns, renamed = compiled.program.param_id_to_col, compiled.chain.compose_param_id_map()
    k = sum(parameter.size for parameter in parameters)
    row, column, weight = [np.array([columns[CONSTANT_ID]])], [np.array([k])], [np.ones(1)]
    start = 0
    for parameter in parameters:
        ids = renamed.get(parameter.id, [parameter.id])
        if len(ids) != 1:
            raise _unexpected(f"parameter {parameter.name()!r} becomes {len(ids)} parameters")
        if ids[0] in columns:
            for positions, share in _readings(parameter):
                row.append(columns[ids[0]] + np.arange(len(positions)))
                column.append(start + positions)
                weight.append(np.full(len(positions), share))
        start += parameter.size
    shape = (columns[CONSTANT_ID] + 1, k + 1)
    return _matrix(np.concatenate(weight), np.concatenate(row), np.concatenate(column), shape).tocsr()


def _readings(parameter: Any) -> list[tuple[Array, float]]:
    """Which entries of a parameter, in C order, its free entries read, and with what weight."""
    places = np.arange(parameter.size).reshape(parameter.shape)
    if _symmetric(parameter):
        triangles = (places, np.swapaxes(places, -2, -1))
        return [(np.ravel(lower_value(parameter, triangle)), 0.5) for triangle in triangles]
    if parameter._has_dim_reducing_attr:
        return [(np.ravel(lower_value(parameter, places)), 1.0)]
    return [(np.ravel(places, order="F"), 1.0)]


def _symmetric(leaf: Any) -> bool:
    return any(leaf.attributes[attribute] for attribute in SYMMETRIC_ATTRIBUTES)


def _assign_random(parameters: Sequence[Any], rng: np.random.Generator) -> Array:
    """Give each parameter a random value of its own structure; the θ made of them."""
    values = [_random_value(parameter, rng) for parameter in parameters]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.save_value(value)  # signs and bounds do not matter to an affine map, shapes do
    return np.concatenate([np.zeros(0), *(value.ravel() for value in values)])


def _random_value(parameter: Any, rng: np.random.Generator) -> Array:
    value = np.asarray(rng.standard_normal(parameter.shape))
    if parameter.attributes["PSD"] or parameter.attributes["NSD"]:
        square = value @ np.swapaxes(value, -2, -1)
        return square if parameter.attributes["PSD"] else -square
    if _symmetric(parameter):
        return value + np.swapaxes(value, -2, -1)
    if parameter.attributes["diag"]:
        return np.diag(np.diag(value))
    if parameter.sparse_idx is not None:
        sparse = np.zeros(parameter.shape)
        sparse[parameter.sparse_idx] = value[parameter.sparse_idx]
        return sparse
    return value


# ------------------------------------------------------------------------------- values and dual values


def _primal_gather(compiled: _Compiled, variable: Any) -> Gather:
    """Follow the variable to its columns of x, then let cvxpy unfold their numbers as if they were values."""
    reduced = _reduced_variables(compiled).get(variable.id, variable)
    column = compiled.program.var_id_to_col.get(reduced.id)
    if column is None:
        return Gather.of(np.zeros(variable.shape, dtype=int), np.zeros(variable.shape))
    numbers = 1.0 + column + np.arange(reduced.size).reshape(reduced.shape, order="F")  # 0 is "nowhere"
    places = _dense(recover_value_for_leaf(variable, numbers, project=False))
    return Gather.of(np.rint(places).astype(int) - 1, (places != 0).astype(float))


def _reduced_variables(compiled: _Compiled) -> dict[int, Any]:
    for reduction, inverse in zip(compiled.chain.reductions, compiled.inverse, strict=True):
        if type(reduction).__name__ == "CvxAttr2Constr" and inverse:
            found: dict[int, Any] = inverse[0]
            return found
    return {}


def _dual_gathers(compiled: _Compiled, constraints: Sequence[Any]) -> tuple[tuple[Gather, ...], ...]:
    x, m = np.zeros(compiled.n), compiled.m
    factors = _dual_values(compiled.invert(x, np.ones(m)), constraints)
    numbered = _dual_values(compiled.invert(x, np.arange(1.0, m + 1)), constraints)
    return tuple(
        tuple(_dual_gather(c, m, f, v) for f, v in zip(ones, values, strict=True))
        for c, ones, values in zip(constraints, factors, numbered, strict=True)
    )


def _dual_gather(constraint: Any, m: int, factor: Array, numbered: Array) -> Gather:
    number = np.divide(numbered, factor, out=np.ones_like(factor), where=factor != 0)
    index = np.rint(number).astype(int) - 1
    if ((index < 0) | (index >= m) & (factor != 0)).any():
        raise _unexpected(f"the dual value of {constraint} mixes several multipliers")
    return Gather.of(index, factor)


def _dual_values(solution: Any, constraints: Sequence[Any]) -> list[list[Array]]:
    """What `constraint.dual_variables` would hold after a solve; nothing where cvxpy reports none."""
    found: list[list[Array]] = []
    for constraint in constraints:
        if constraint.id in solution.dual_vars:
            constraint.save_dual_value(solution.dual_vars[constraint.id])
        values = [variable.value for variable in constraint.dual_variables]
        for variable in constraint.dual_variables:
            variable.save_value(None)
        found.append([] if any(v is None for v in values) else [_dense(v).astype(float) for v in values])
    return found


def _rows(m: int, duals: Sequence[Sequence[Gather]]) -> Tensor:
    """A row belongs to the constraint whose dual value reads its multiplier."""
    rows = torch.full((m,), -1, dtype=torch.int64)
    for position, gathers in enumerate(duals):
        for gather in gathers:
            rows[gather.index[gather.coefficient != 0]] = position
    return rows


def _dense(value: Any) -> Array:
    return np.asarray(value.toarray() if sp.issparse(value) else value)


# ---------------------------------------------------------------------------------------- verification


def _verify_maps(canonical: Canonical, theta: Array, compiled: _Compiled) -> None:
    """P, q, d, A, b at θ against the data of a problem compiled at θ."""
    point, data, n, m = torch.from_numpy(theta), compiled.data, canonical.n, canonical.m
    if (compiled.n, compiled.m) != (n, m) or _cone(compiled.program.cone_dims) != canonical.cone:
        raise _unexpected("the shape of the cone program depends on the parameters' values")
    upper = sp.triu(data[names.P]) if names.P in data else sp.coo_array((n, n))  # all that Clarabel reads
    theirs = {
        "P": upper + sp.triu(upper, 1).T,
        "q": np.reshape(data[names.C], (1, n)),
        "d": np.reshape(_dense(compiled.inverse[-1][names.OFFSET]), (1, 1)),
        "A": data[names.A],
        "b": np.reshape(data[names.B], (1, m)),
    }
    for name, expected in theirs.items():
        found: AffineMap = getattr(canonical, name)
        if not _agree(found.places.numpy(), found.values(point).numpy(), sp.csr_array(expected)):
            raise _unexpected(f"{name} at random parameter values is not what cvxpy's tensors say")


def _agree(places: Array, values: Array, expected: Any) -> bool:
    """Equal to rounding, relative to the largest entry; infinite entries exactly."""
    expected = expected.tocoo()
    theirs = expected.row.astype(np.int64) * expected.shape[1] + expected.col
    every = np.union1d(places, theirs)
    a, b = np.zeros(len(every)), np.zeros(len(every))
    a[np.searchsorted(every, places)] = values
    np.add.at(b, np.searchsorted(every, theirs), expected.data)
    same, scale = a == b, np.abs(b[np.isfinite(b)]).max(initial=0.0)
    return bool((np.abs(a[~same] - b[~same]) <= TOLERANCE * scale).all())


def _verify_gathers(
    canonical: Canonical, compiled: _Compiled, variables: Any, constraints: Any, x: Array, y: Array
) -> None:
    """Values and dual values from (x, y) against cvxpy's own inversion."""
    solution = compiled.invert(x, y)
    for variable, gather in zip(variables, canonical.variables, strict=True):
        ours = gather(torch.from_numpy(x)).numpy()
        if not variable._has_dim_reducing_attr:
            ours = variable.project(ours)  # cvxpy clips a value to its sign and bounds, we leave it alone
        theirs = _dense(solution.primal_vars.get(variable.id, np.zeros(variable.shape)))
        if theirs.shape != variable.shape or not np.array_equal(ours, theirs):
            raise _unexpected(f"the value of variable {variable.name()!r} is not a gather of x")
    duals = _dual_values(solution, constraints)
    for constraint, gathers, values in zip(constraints, canonical.duals, duals, strict=True):
        for gather, theirs in zip(gathers, values, strict=True):
            if not np.allclose(gather(torch.from_numpy(y)).numpy(), theirs, rtol=TOLERANCE, atol=0):
                raise _unexpected(f"the dual value of {constraint} mixes several multipliers")
