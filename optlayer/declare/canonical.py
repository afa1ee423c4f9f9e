"""A disciplined problem as one cone program whose data are affine in the parameters.

    min ½xᵀPx + qᵀx + d   s.t.   Ax + s = b,   s ∈ {0}^zero × K,      P, q, d, A, b affine in θ

x holds the problem's variables and those cvxpy adds for its atoms, y one multiplier for every row of A
(Clarabel's sign: y ∈ K*, Px + q + Aᵀy = 0), θ the values of the declared parameters, each flattened in C
order, one after the other. K is the product of cones in Clarabel's order: nonnegative, second-order,
semidefinite (upper triangle column by column, off-diagonal entries times √2), exponential, power,
generalised power.

What cvxpy makes of a problem comes from `cvxpy_internals`; how it is read here:

* tensors with a column for every parameter entry (Fortran order) and one for the constant:
      q: row j is q_j, row n is d;    P: row i + n·j is P_ij;    A: row i + m·j is −A_ij, or b_i for j = n
* a symmetric parameter as the mean of its two triangles, where cvxpy reads the upper one only: equal values,
  and ∂/∂θ_ij = ∂/∂θ_ji
* every entry of a variable's value is one entry of x, or 0
* every entry of a constraint's dual value is a multiple of one entry of y, found by inverting the chain on
  y = (1, 1, ...), which gives the factor, and on y = (1, 2, ...), which gives the place.

None of it is taken on trust: construction compares the maps with cvxpy's own data, compiled afresh at other
parameter values (so that a value cvxpy has built into its tensors is seen), and every gathered value with
cvxpy's own inversion at a random (x, y). What differs raises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Int64
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
from optlayer.declare.cvxpy_internals import (
    Compiled,
    compiled,
    dense,
    is_reduced,
    is_symmetric,
    lower_value,
    recover_value_for_leaf,
    unexpected,
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

    @property
    def seen(self) -> Bool[Tensor, " n"]:
        """Coordinates of x that are part of a variable of the user's."""
        seen = torch.zeros(self.n, dtype=torch.bool)
        for gather in self.variables:
            seen[gather.index[gather.coefficient != 0]] = True
        return seen


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
    program = _compile(problem)
    _check_program(program)
    duals = _dual_gathers(program, constraints)
    canonical = Canonical(
        n=program.n,
        m=program.m,
        zero=int(program.dims.zero),
        cone=_cone(program.dims),
        **_maps(program, parameters),
        variables=tuple(_primal_gather(program, variable) for variable in variables),
        duals=duals,
        rows=_rows(program.m, duals),
    )
    theta = _assign_random(parameters, rng)
    _verify_maps(canonical, theta, _compile(cp.Problem(problem.objective, problem.constraints)))
    for _ in range(2):
        x, y = rng.standard_normal(program.n), rng.standard_normal(program.m)
        _verify_gathers(canonical, program, variables, constraints, x, y)
        _verify_gathers(canonical, program, variables, constraints, -x, -y)
    return canonical


# ------------------------------------------------------------------------------------------ the problem


def _compile(problem: cp.Problem) -> Compiled:
    try:
        return compiled(problem)
    except cp.error.DPPError as error:
        raise NotDPP(str(error)) from error


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


def _check_program(program: Compiled) -> None:
    """Nothing of the problem lies outside q, P, A and the cones."""
    strange = [name for name in program.reductions if name not in REDUCTIONS]
    if strange:
        raise unexpected(f"reductions {', '.join(strange)} are not known here")
    if program.beside_rows:
        raise unexpected(f"a constraint was moved to {program.beside_rows[0]} and would be lost")
    rows, shape = int(program.dims.zero) + _cone(program.dims).dim, program.matrices()["A"].shape
    if rows != program.m or shape != (rows, program.n):
        raise unexpected(f"the cones have {rows} rows, the program {program.m}, and A has shape {shape}")


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


def _maps(program: Compiled, parameters: Sequence[Any]) -> dict[str, AffineMap]:
    n, m, theta = program.n, program.m, _theta_of_columns(program, parameters)
    k = theta.shape[1]  # columns: θ, and the constant
    P, q, A = (_in_theta(tensor, theta) for tensor in program.tensors)
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


def _theta_of_columns(program: Compiled, parameters: Sequence[Any]) -> Any:
    """The matrix that makes cvxpy's parameter vector (..., 1) from (θ, 1)."""
    last, k = program.constant_column, sum(parameter.size for parameter in parameters)
    row, column, weight = [np.array([last])], [np.array([k])], [np.ones(1)]
    start = 0
    for parameter in parameters:
        first = program.column(parameter)
        if first is not None:
            for positions, share in _readings(parameter):
                row.append(first + np.arange(len(positions)))
                column.append(start + positions)
                weight.append(np.full(len(positions), share))
        start += parameter.size
    weights, rows, columns = map(np.concatenate, (weight, row, column))
    return _matrix(weights, rows, columns, (last + 1, k + 1)).tocsr()


def _readings(parameter: Any) -> list[tuple[Array, float]]:
    """Which entries of a parameter, in C order, its free entries read, and with what weight."""
    places = np.arange(parameter.size).reshape(parameter.shape)
    if is_symmetric(parameter):
        triangles = (places, np.swapaxes(places, -2, -1))
        return [(np.ravel(lower_value(parameter, triangle)), 0.5) for triangle in triangles]
    if is_reduced(parameter):
        return [(np.ravel(lower_value(parameter, places)), 1.0)]
    return [(np.ravel(places, order="F"), 1.0)]


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
    if is_symmetric(parameter):
        return value + np.swapaxes(value, -2, -1)
    if parameter.attributes["diag"]:
        return np.diag(np.diag(value))
    if parameter.sparse_idx is not None:
        sparse = np.zeros(parameter.shape)
        sparse[parameter.sparse_idx] = value[parameter.sparse_idx]
        return sparse
    return value


# ------------------------------------------------------------------------------- values and dual values


def _primal_gather(program: Compiled, variable: Any) -> Gather:
    """Follow the variable to its columns of x, then let cvxpy unfold their numbers as if they were values."""
    reduced, column = program.place(variable)
    if column is None:
        return Gather.of(np.zeros(variable.shape, dtype=int), np.zeros(variable.shape))
    numbers = 1.0 + column + np.arange(reduced.size).reshape(reduced.shape, order="F")  # 0 is "nowhere"
    places = dense(recover_value_for_leaf(variable, numbers, project=False))
    return Gather.of(np.rint(places).astype(int) - 1, (places != 0).astype(float))


def _dual_gathers(program: Compiled, constraints: Sequence[Any]) -> tuple[tuple[Gather, ...], ...]:
    x, m = np.zeros(program.n), program.m
    factors = _dual_values(program.invert(x, np.ones(m)), constraints)
    numbered = _dual_values(program.invert(x, np.arange(1.0, m + 1)), constraints)
    return tuple(
        tuple(_dual_gather(c, m, f, v) for f, v in zip(ones, values, strict=True))
        for c, ones, values in zip(constraints, factors, numbered, strict=True)
    )


def _dual_gather(constraint: Any, m: int, factor: Array, numbered: Array) -> Gather:
    number = np.divide(numbered, factor, out=np.ones_like(factor), where=factor != 0)
    index = np.rint(number).astype(int) - 1
    if ((index < 0) | (index >= m) & (factor != 0)).any():
        raise unexpected(f"the dual value of {constraint} mixes several multipliers")
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
        found.append([] if any(v is None for v in values) else [dense(v).astype(float) for v in values])
    return found


def _rows(m: int, duals: Sequence[Sequence[Gather]]) -> Tensor:
    """A row belongs to the constraint whose dual value reads its multiplier."""
    rows = torch.full((m,), -1, dtype=torch.int64)
    for position, gathers in enumerate(duals):
        for gather in gathers:
            rows[gather.index[gather.coefficient != 0]] = position
    return rows


# ---------------------------------------------------------------------------------------- verification


def _verify_maps(canonical: Canonical, theta: Array, program: Compiled) -> None:
    """P, q, d, A, b at θ against the data of a problem compiled at θ."""
    point, shape = torch.from_numpy(theta), (canonical.n, canonical.m)
    if (program.n, program.m) != shape or _cone(program.dims) != canonical.cone:
        raise unexpected("the shape of the cone program depends on the parameters' values")
    for name, expected in program.matrices().items():
        found: AffineMap = getattr(canonical, name)
        if not _agree(found.places.numpy(), found.values(point).numpy(), sp.csr_array(expected)):
            raise unexpected(f"{name} at random parameter values is not what cvxpy's tensors say")


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
    canonical: Canonical, program: Compiled, variables: Any, constraints: Any, x: Array, y: Array
) -> None:
    """Values and dual values from (x, y) against cvxpy's own inversion."""
    solution = program.invert(x, y)
    for variable, gather in zip(variables, canonical.variables, strict=True):
        ours = gather(torch.from_numpy(x)).numpy()
        if not is_reduced(variable):
            ours = variable.project(ours)  # cvxpy clips a value to its sign and bounds, we leave it alone
        theirs = dense(solution.primal_vars.get(variable.id, np.zeros(variable.shape)))
        if theirs.shape != variable.shape or not np.array_equal(ours, theirs):
            raise unexpected(f"the value of variable {variable.name()!r} is not a gather of x")
    duals = _dual_values(solution, constraints)
    for constraint, gathers, values in zip(constraints, canonical.duals, duals, strict=True):
        for gather, theirs in zip(gathers, values, strict=True):
            if not np.allclose(gather(torch.from_numpy(y)).numpy(), theirs, rtol=TOLERANCE, atol=0):
                raise unexpected(f"the dual value of {constraint} mixes several multipliers")
