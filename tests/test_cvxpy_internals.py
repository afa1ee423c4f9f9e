"""What the package uses of cvxpy beyond its documented methods. A failure here names what moved."""

import re
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.transforms.suppfunc import SuppFunc

import optlayer
from optlayer.declare import cvxpy_internals as internals
from optlayer.declare.canonical import REDUCTIONS
from optlayer.engines import chain
from optlayer.forms import ReferenceProblem

ROOT = Path(optlayer.__file__).parent


def test_nobody_else_imports_from_inside_cvxpy():
    inside = re.compile(r"^\s*(?:from|import) cvxpy\.(?!error\b)", re.MULTILINE)
    found = [path.name for path in ROOT.rglob("*.py") if inside.search(path.read_text(encoding="utf-8"))]
    assert found == ["cvxpy_internals.py"]


# ------------------------------------------------------------------------------------------- engines


def problem() -> ReferenceProblem:
    z, unused, x = cp.Variable((2, 3)), cp.Variable(2), cp.Parameter((2, 3))
    g, h = [z - 1 <= 0], [cp.sum(z, axis=1) - 1 == 0]
    return ReferenceProblem(cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [*g, *h]), [z, unused], [x], g, h)


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "OSQP"])
def test_the_chain_solves_and_maps_back(solver):
    reference, x = problem(), np.arange(6.0).reshape(2, 3)
    chain.assign(reference.parameters, [x])
    solution = chain.run(reference.problem, solver, {}, ignore_dpp=False)
    assert solution.status == cp.OPTIMAL, "Solution.status or chain.invert moved"
    assert solution.attr["num_iters"] > 0, "Solution.attr moved"
    values = chain.values(reference, solution)
    assert values.shape == (8,), "Solution.primal_vars moved"
    # Both rows are the projection of (0, 1, 2) onto {z : sum z = 1, z <= 1}, moved by a constant.
    assert np.abs(values[:6] - np.tile([-0.5, 0.5, 1.0], 2)).max() < 1e-3, "values are not in C order"
    assert (values[6:] == 0).all(), "a variable that the problem does not mention is 0"


def test_multipliers_come_in_c_order():
    """A 2 x 3 inequality with one active row; cvxpy hands multipliers out in Fortran order."""
    reference = problem()
    x = np.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    chain.assign(reference.parameters, [x])
    solution = chain.run(reference.problem, "CLARABEL", {}, ignore_dpp=False)
    lam = chain.multiplier(reference.inequalities[0], solution)
    assert lam.shape == (6,)
    assert np.argmax(lam) == 0
    assert lam[0] > 1.0
    assert np.abs(lam[1:]).max() < 1e-4, "Solution.dual_vars changed its order"


def test_a_stopped_solver_is_reported_and_does_not_raise():
    reference = problem()
    chain.assign(reference.parameters, [np.arange(6.0).reshape(2, 3)])
    solution = chain.run(reference.problem, "CLARABEL", {"max_iter": 1}, ignore_dpp=False)
    assert solution.status in (cp.USER_LIMIT, cp.OPTIMAL_INACCURATE, cp.SOLVER_ERROR)


def test_values_are_assigned_without_cvxpys_own_tolerance():
    """A float32 Gram matrix is positive semidefinite to its own precision only."""
    P = cp.Parameter((2, 2), PSD=True)
    slightly_indefinite = np.array([[1.0, 1.0], [1.0, 1.0 - 1e-6]])
    with pytest.raises(ValueError, match="must be positive semidefinite"):
        P.value = slightly_indefinite
    chain.assign([P], [slightly_indefinite])
    assert np.array_equal(P.value, slightly_indefinite)


@pytest.mark.parametrize("attributes", [{"diag": True}, {"sparsity": [(0, 1), (0, 1)]}])
@pytest.mark.filterwarnings(
    "ignore:(Reading from|Writing to|Accessing) a sparse CVXPY expression:RuntimeWarning"
)
def test_sparse_values_are_assigned_as_cvxpy_keeps_them(attributes):
    P, z = cp.Parameter((2, 2), **attributes), cp.Variable(2)
    chain.assign([P], [np.diag([1.0, 2.0])])
    reference = cp.Problem(cp.Minimize(cp.sum_squares(z)), [P @ z == 2])
    solution = chain.run(reference, "CLARABEL", {}, ignore_dpp=False)
    assert solution.primal_vars[z.id] == pytest.approx([2.0, 1.0])


# ------------------------------------------------------------------------------------------- declare


def program() -> tuple[internals.Compiled, dict[str, Any]]:
    """min |z - Sx|² + 3 s.t. z <= 1, z[0] >= c, Σ x = 1 with a diagonal z."""
    leaves = {
        "z": cp.Variable((2, 2), diag=True),
        "x": cp.Variable(2),
        "S": cp.Parameter((2, 2), symmetric=True, value=np.array([[1.0, 2.0], [2.0, 5.0]])),
        "c": cp.Parameter(value=0.5),
        "unused": cp.Parameter(),
    }
    z, x, S, c, _ = leaves.values()
    rows = [z <= 1, z[0, 0] >= c, cp.sum(x) == 1]
    return internals.compiled(cp.Problem(cp.Minimize(cp.sum_squares(cp.diag(z) - S @ x) + 3), rows)), leaves


def test_the_parametrized_program_and_its_columns():
    found, leaves = program()
    P, q, A = found.tensors
    columns = found.constant_column + 1
    assert columns == 5, "param_id_to_col moved: three entries of S, one of c, the constant"
    assert P.shape == (found.n**2, columns)
    assert q.shape == (found.n + 1, columns)
    assert A.shape == (found.m * (found.n + 1), columns)
    firsts = found.column(leaves["S"]), found.column(leaves["c"])
    assert sorted(firsts) in ([0, 1], [0, 3]), "compose_param_id_map moved"
    assert found.column(leaves["unused"]) is None


def test_every_reduction_is_known_by_name():
    found, _ = program()
    assert set(found.reductions) <= REDUCTIONS
    assert {"CvxAttr2Constr", "ConeMatrixStuffing", "CLARABEL"} <= set(found.reductions)


def test_a_reduced_variable_is_found():
    found, leaves = program()
    reduced, column = found.place(leaves["z"])
    assert reduced.shape == (2,), "the inverse data of CvxAttr2Constr moved"
    assert column is not None, "var_id_to_col moved"
    plain, other = found.place(leaves["x"])
    assert plain is leaves["x"]
    assert {column, other} <= set(range(found.n))
    assert found.place(cp.Variable())[1] is None


def test_the_cones_of_a_program():
    t, X = cp.Variable(7), cp.Variable((3, 3), symmetric=True)
    rows = [t == 1, t >= 0, cp.SOC(t[0], t[1:3]), X >> 0, cp.ExpCone(t[0], t[1], t[2])]
    rows += [cp.PowCone3D(t[0], t[1], t[2], 0.3), cp.PowConeND(t[:3], t[3], np.array([0.2, 0.3, 0.5]))]
    dims = internals.compiled(cp.Problem(cp.Minimize(cp.sum(t)), rows)).dims
    assert (dims.zero, dims.nonneg, dims.exp) == (7, 7, 1)
    assert (list(dims.soc), list(dims.psd), list(dims.p3d)) == ([3], [3], [0.3])
    assert [list(alphas) for alphas in dims.pnd] == [[0.2, 0.3, 0.5]]


def test_the_places_beside_the_rows_still_exist():
    """An attribute that was renamed would read as a place where nothing is."""
    found, _ = program()
    for place in (*internals.BOUNDS, internals.CONES):
        assert hasattr(found.program, place), f"the parametrized program has no {place} any more"
    assert found.beside_rows == []


def test_the_data_by_name():
    found, _ = program()
    matrices = found.matrices()
    n, m = found.n, found.m
    shapes = {name: block.shape for name, block in matrices.items()}
    assert shapes == {"P": (n, n), "q": (1, n), "d": (1, 1), "A": (m, n), "b": (1, m)}
    assert matrices["d"].item() == 3.0, "the offset moved"
    assert abs(matrices["P"] - matrices["P"].T).max() == 0


def test_the_chain_inverts_what_no_solver_found():
    found, leaves = program()
    solution = found.invert(np.arange(1.0, found.n + 1), np.ones(found.m))
    _, column = found.place(leaves["x"])
    assert solution.primal_vars[leaves["x"].id].tolist() == [column + 1.0, column + 2.0]
    assert len(solution.dual_vars) >= 3


def test_what_is_not_dpp_is_refused_as_such():
    z, p = cp.Variable(), cp.Parameter(nonneg=True)
    with pytest.raises(cp.error.DPPError):
        internals.compiled(cp.Problem(cp.Minimize(p * p * cp.abs(z))))


@pytest.mark.parametrize(
    ("attributes", "symmetric", "value"),
    [
        ({}, False, None),
        ({"nonneg": True}, False, None),
        ({"symmetric": True}, True, [[2.0, 1.0], [1.0, 3.0]]),
        ({"PSD": True}, True, [[2.0, 1.0], [1.0, 3.0]]),
        ({"NSD": True}, True, [[-2.0, 1.0], [1.0, -3.0]]),
        ({"diag": True}, False, [[2.0, 0.0], [0.0, 3.0]]),
        ({"sparsity": [(0, 1), (1, 1)]}, False, [[0.0, 2.0], [0.0, 3.0]]),
    ],
)
def test_the_free_entries_of_a_leaf(attributes, symmetric, value):
    leaf = cp.Parameter((2, 2), **attributes)
    assert internals.is_symmetric(leaf) == symmetric, "SYMMETRIC_ATTRIBUTES moved"
    assert internals.is_reduced(leaf) == (value is not None), "_has_dim_reducing_attr moved"
    if value is not None:
        free = internals.lower_value(leaf, np.array(value))
        assert free.size == (3 if symmetric else 2)
        assert internals.dense(internals.recover_value_for_leaf(leaf, free, project=False)).tolist() == value


def test_the_rules_for_parameters():
    p, P, z = cp.Parameter(nonneg=True), cp.Parameter((2, 2), PSD=True), cp.Variable(2)
    assert internals.is_param_affine(2 * p + 1)
    assert not internals.is_param_affine(p * p)
    assert not internals.is_param_affine(p * z)
    quadratic = cp.quad_form(z, P)
    assert not quadratic.is_dcp(dpp=True)
    with internals.quad_form_dpp_scope():
        assert quadratic.is_dcp(dpp=True)
    problem: Any = cp.Problem(cp.Minimize(quadratic))
    assert problem.is_dpp(quad_form_dpp="qp")
    assert not problem.is_dpp()


def test_what_two_atoms_keep_to_themselves():
    y, z = cp.Variable(3), cp.Variable(3)
    ball = SuppFunc(y, [cp.norm2(y) <= 1])
    assert internals.supported_set(ball(z)) is ball, "SuppFuncAtom._parent moved"
    mean = cp.geo_mean(z, [1, 0, 2])
    assert list(internals.averaged(mean)) == [True, False, True], "geo_mean._keep moved"
    assert [float(w) for w in mean.w] == pytest.approx([1 / 3, 2 / 3])


def test_logarithms_pair_leaves_and_constraints():
    u, a, exponent = cp.Variable(pos=True, name="u"), cp.Parameter(pos=True), cp.Parameter()
    row = a * u >= 2
    found = internals.logarithmic(cp.Problem(cp.Minimize(u**exponent), [row]))
    assert found.problem.is_dcp()
    assert [v.name() for v in found.problem.variables()] == ["log u"]
    assert found.variables[u] is found.problem.variables()[0], "canon_methods._variables moved"
    assert set(found.parameters) == {a}, "canon_methods._parameters moved"
    assert found.twins[row.id] in {c.id for c in found.problem.constraints}, "cons_id_map moved"
    assert {id(p) for p in found.problem.parameters()} == {id(found.parameters[a]), id(exponent)}
