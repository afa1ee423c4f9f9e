"""A whole cp.Problem as a declaration: private copies, lowerings, refusals.

The oracle is cvxpy itself: a private copy solves to what the user's problem solves to.
"""

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpy.transforms.indicator import indicator
from cvxpy.transforms.partial_optimize import partial_optimize
from cvxpy.transforms.suppfunc import SuppFunc
from scipy import sparse

from optlayer.declare.discipline import explain_not_dpp, is_parametrized
from optlayer.declare.outputs import Dual, Expressed, Primal
from optlayer.declare.parametric import lowered
from optlayer.declare.posed import Posed
from optlayer.declare.problem import ProblemDeclaration
from optlayer.declare.rewriting import Rewriting
from optlayer.declare.translate import translate
from optlayer.errors import DeclarationError

pytestmark = [  # of cvxpy itself, about sparse leaves, and about the accuracy we ask for
    pytest.mark.filterwarnings("ignore:(Reading from|Writing to) a sparse CVXPY expression:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning"),
]
EXACT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def solve(problem: cp.Problem, **options: Any) -> float:
    """The optimal value, to high accuracy."""
    value = problem.solve(solver="CLARABEL", ignore_dpp=True, **EXACT, **options)
    assert problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)
    return float(value)


def give(posed: Posed, theta: list[Any]) -> tuple[torch.Tensor, ...]:
    """The lifted values of one sample, assigned to the inner parameters."""
    batch = tuple(torch.tensor(np.asarray(t, dtype=float))[None] for t in theta)
    lifted = posed.lift(batch)
    for parameter, value in zip(posed.parameters, lifted, strict=True):
        assert tuple(value.shape[1:]) == parameter.shape
        parameter.save_value(value[0].numpy())
    return lifted


def solved(posed: Posed, theta: list[Any]) -> tuple[float, list[np.ndarray]]:
    """Value and primal values as the user counts them."""
    give(posed, theta)
    value = solve(posed.problem)
    value = -value if posed.maximize else value
    primal = [dense(v) for v in posed.variables]
    if posed.gp:
        return float(np.exp(value)), [np.exp(x) for x in primal]
    return value, primal


def dense(variable: cp.Variable) -> np.ndarray:
    value: Any = variable.value
    return value.toarray() if sparse.issparse(value) else np.asarray(value)


def same_solution(
    problem: cp.Problem,
    theta: list[Any],
    gp: bool = False,
    attributes: bool = True,
    then: Callable[[Posed], Posed] = lambda posed: posed,
) -> Posed:
    """A private copy solves to the same as the problem with the values in place."""
    declaration = ProblemDeclaration.of(problem, gp=gp)
    posed = then(declaration.build(attributes))
    value, primal = solved(posed, theta)
    duals = [[d.value for d in c.dual_variables] for c in posed.constraints]
    for parameter, t in zip(declaration.parameters, theta, strict=True):
        parameter.value = np.asarray(t, dtype=float)
    expected = solve(problem, gp=gp)
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-7)
    for mine, variable in zip(primal, declaration.variables, strict=True):
        np.testing.assert_allclose(mine, dense(variable), rtol=1e-4, atol=1e-5)
    for mine, constraint in zip(duals, problem.constraints, strict=True):
        for a, b in zip(mine, constraint.dual_variables, strict=True):
            if a is not None:
                np.testing.assert_allclose(np.ravel(a), np.ravel(b.value), rtol=1e-3, atol=1e-5)
    return posed


def refused(match: str, problem: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(DeclarationError, match=re.escape(match)):
        ProblemDeclaration.of(problem, *args, **kwargs)


x, y = cp.Variable(3, name="x"), cp.Variable(name="y")
s, free = cp.Variable(nonneg=True, name="s"), cp.Variable(3)
p, q = cp.Parameter(3, name="p"), cp.Parameter(nonneg=True, name="q")
P, Q = np.array([1.0, -2.0, 0.5]), 0.7


# ---------------------------------------------------------------------------- private copies


def plain_problems() -> dict[str, cp.Problem]:
    square = cp.sum_squares(x - p) + cp.square(y - 1)
    X = cp.Variable((2, 2), symmetric=False)
    tall, flat = (cp.reshape(x, shape, order="F") for shape in ((3, 1), (1, 3)))
    return {
        "elementwise": cp.Problem(
            cp.Minimize(square), [x <= q, y == cp.sum(x), x >= -1, y - 3 <= 0, cp.norm2(x) <= 2]
        ),
        "maximize": cp.Problem(cp.Maximize(y - square), [x <= q, y == cp.sum(x)]),
        "NonNeg and Zero": cp.Problem(
            cp.Minimize(square), [cp.constraints.NonNeg(q - x), cp.constraints.Zero(y - cp.sum(x))]
        ),
        "cones": cp.Problem(
            cp.Minimize(square + cp.trace(X)),
            [
                cp.SOC(y, x),
                cp.ExpCone(x[:1], np.ones(1), cp.reshape(y + q, (1,), order="F")),
                cp.PowCone3D(y, 2.0, x[0], 0.3),
                cp.PowConeND(cp.hstack([y, 1 + q]), x[1], np.array([0.4, 0.6])),
                np.array([[1.0, 0.5], [0.5, 1.0]]) << X,
                X[0, 1] == X[1, 0],
            ],
        ),
        "no parameters": cp.Problem(cp.Minimize(cp.sum_squares(x - P)), [cp.norm1(x) <= 1]),
        "hidden leaves": cp.Problem(
            cp.Minimize(cp.sum(cp.huber(x - p, q)) + cp.sum_squares(x)), [x[0] + y == 0]
        ),
        "norms with keepdims": cp.Problem(
            cp.Minimize(cp.sum(cp.norm1(tall - np.ones((3, 1)), axis=1, keepdims=True) + flat.T) + y),
            [y >= q, cp.norm_inf(flat, axis=1, keepdims=True) <= q],
        ),
        "a constraint twice, another trivial": cp.Problem(
            cp.Minimize(square), [*([y >= 2] * 2), True, cp.norm2(x) <= q]
        ),
        "perspective and indicator": cp.Problem(
            cp.Minimize(cp.perspective(cp.square(y), s) + indicator([y + s >= 2]) + square),
            [s <= 1 + q],
        ),
        "support function": cp.Problem(
            cp.Minimize(cp.sum_squares(x - p) + SuppFunc(free, [cp.norm2(free) <= 1])(x))
        ),
    }


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("name", plain_problems())
def test_a_private_copy_solves_to_the_same(name: str, attributes: bool) -> None:
    problem = plain_problems()[name]
    if name == "perspective and indicator" and not attributes:
        with pytest.raises(DeclarationError, match="needs 's' to keep nonneg=True"):
            ProblemDeclaration.of(problem).build(attributes=False)
        return
    theta = [{"p": P, "q": Q}[own.name()] for own in problem.parameters()]
    posed = same_solution(problem, theta, attributes=attributes)
    assert isinstance(posed.problem.objective, cp.Minimize)
    assert [row.position for row in posed.rows] == list(range(len(problem.constraints)))
    assert posed.auxiliary == ()


@pytest.mark.filterwarnings("ignore::cvxpy.utilities.warn.CvxpyDeprecationWarning")
def test_nonpos_keeps_its_multiplier() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.constraints.NonPos(1 - x)])
    same_solution(problem, [], attributes=False)


def test_the_users_leaves_are_left_alone() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm2(x) <= q])
    ids, x.value, p.value, q.value = [v.id for v in (x, p, q)], np.ones(3), P, Q
    posed = ProblemDeclaration.of(problem).build(attributes=True)
    solved(posed, [2 * P, 3 * Q])
    assert [v.id for v in (x, p, q)] == ids
    assert (x.value == 1).all()
    assert (p.value is P and q.value == Q) or ((p.value == P).all() and q.value == Q)
    own = {id(e) for e in (x, p, q, *problem.constraints)}
    theirs = [*posed.problem.variables(), *posed.problem.parameters(), *posed.constraints]
    assert not own & {id(e) for e in theirs}
    assert not {c.id for c in problem.constraints} & {c.id for c in posed.constraints}


def test_what_is_shared_stays_shared() -> None:
    e = cp.exp(x - p)
    twin = Rewriting(lambda one: None).of(e + cp.square(e))
    assert twin.args[0] is twin.args[1].args[0]


def atoms() -> list[Any]:
    """One expression of every shape in which cvxpy's atoms keep what they are told."""
    A, B = cp.Variable((2, 3), pos=True), cp.Variable((3, 3), symmetric=True)
    k = cp.Parameter(nonneg=True)
    return [
        *(f(A, axis=1, keepdims=True) for f in (cp.sum, cp.max, cp.min, cp.norm1, cp.norm_inf, cp.prod)),
        *(f(A, axis=0) for f in (cp.log_sum_exp, cp.cumsum, cp.cummax, cp.cumprod, cp.ptp, cp.mean, cp.var)),
        *(f(A, 2, axis=0, keepdims=True) for f in (cp.pnorm, cp.sum_largest)),
        *(f(A, axis=1) for f in (cp.norm2, cp.geo_mean)),
        *(f(B) for f in (cp.lambda_max, cp.trace, cp.log_det, cp.diag, cp.normNuc, cp.upper_tri, cp.tr_inv)),
        *(
            f(A)
            for f in (cp.exp, cp.log, cp.entr, cp.logistic, cp.inv_pos, cp.sqrt, cp.ceil, cp.abs, cp.loggamma)
        ),
        *(f(A, k * A) for f in (cp.maximum, cp.minimum, cp.rel_entr, cp.kl_div, cp.multiply)),
        cp.huber(A, k),
        A**k,
        cp.power(A, 1.7),
        cp.power(A, 1.7, approx=False),
        cp.geo_mean(A[0], [1, 2, 0]),
        cp.gmatmul(cp.Parameter((2, 2)), A),
        cp.gmatmul(np.eye(2), A),
        cp.quad_form(A[0], cp.Parameter((3, 3), PSD=True)),
        cp.quad_over_lin(A, k + A[0, 0], axis=1),
        cp.matrix_frac(A.T, B + 4 * np.eye(3)),
        cp.lambda_sum_largest(B, 2),
        cp.dotsort(A[0], np.arange(3.0)),
        cp.convolve(np.ones(2), A[0]),
        cp.kron(np.eye(2), A) @ np.ones((6, 1)),
        cp.hstack([A, A]) + cp.vstack([A[0], A[1]])[:, [0, 1, 2, 0, 1, 2]],
        cp.bmat([[A, A], [A, -A]])[::-1, 1:3],
        cp.reshape(A, (3, 2), order="C") - cp.reshape(A, (3, 2), order="F"),
        cp.concatenate([A, A], axis=1),
        cp.broadcast_to(A[0], (4, 3)),
        cp.permute_dims(cp.stack([A, A]), (2, 0, 1)),
        cp.partial_trace(B, [1, 3], 0),
        cp.vec_to_upper_tri(A[0]),
        cp.diff(A, axis=1) / k,
        cp.scalene(A, 0.2, 0.3),
        cp.tv(A),
        cp.mixed_norm(A, 1, 2),
        cp.one_minus_pos(A / 100),
        cp.eye_minus_inv(A[:, :2] / 100),
        cp.pf_eigenvalue(A[:, :2]),
        cp.harmonic_mean(A),
        cp.psd_wrap(B),
        cp.quantum_rel_entr(B + 9 * np.eye(3), B + 8 * np.eye(3)),
        cp.von_neumann_entr(B + 9 * np.eye(3)),
        cp.dist_ratio(A[0], np.ones(3), np.zeros(3)),
    ]


@pytest.mark.parametrize("e", atoms(), ids=lambda e: type(e).__name__)
def test_a_rewritten_atom_has_the_same_value(e: Any) -> None:
    rng = np.random.default_rng(0)
    theirs = [*e.variables(), *e.parameters()]
    ours = [type(one)(one.shape, **{k: True for k, v in one.attributes.items() if v}) for one in theirs]
    made = {id(one): twin for one, twin in zip(theirs, ours, strict=True)}
    for one, twin in zip(theirs, ours, strict=True):
        value = rng.uniform(0.5, 1.5, one.shape)
        one.value = twin.value = value + value.T + 3 * np.eye(3) if value.shape == (3, 3) else value
    twin = Rewriting(lambda one: made.get(id(one))).of(e)
    leaves = {id(one) for one in (*twin.variables(), *twin.parameters())}
    assert leaves == {id(one) for one in ours}
    assert type(twin) is type(e)
    np.testing.assert_array_equal(twin.value, e.value)


# ---------------------------------------------------------------------------- attributes

ATTRIBUTES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nonneg": ({"nonneg": True}, ["nonneg of 'X'"]),
    "nonpos": ({"nonpos": True}, ["nonpos of 'X'"]),
    "bounds": (
        {"bounds": [-0.3, np.array([[0.1, 0.2], [0.3, np.inf]])]},
        ["lower bound of 'X'", "upper bound of 'X'"],
    ),
    "symmetric": ({"symmetric": True}, ["symmetry of 'X'"]),
    "diag": ({"diag": True}, ["diagonality of 'X'"]),
    "PSD": ({"PSD": True}, []),
    "NSD": ({"NSD": True}, []),
    "sparsity": ({"sparsity": [(0, 1), (1, 1)]}, []),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_kept_or_written_out(name: str) -> None:
    declared, names = ATTRIBUTES[name]
    X, C = cp.Variable((2, 2), name="X", **declared), cp.Parameter((2, 2))
    value = np.array([[1.0, -2.0], [0.5, -0.7]])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.sum(X) <= 3])
    kept = same_solution(problem, [value], attributes=True)
    assert kept.variables[0].attributes[name]
    assert len(kept.rows) == 1
    if not names:
        with pytest.raises(DeclarationError, match=f"variable 'X' is declared {name}="):
            ProblemDeclaration.of(problem).build(attributes=False)
        return
    bare = same_solution(problem, [value], attributes=False)
    assert bare.variables[0].num_attributes == 0
    assert [row.name for row in bare.rows[1:]] == names
    assert [row.position for row in bare.rows] == [0] + [None] * len(names)


@pytest.mark.parametrize("attributes", [True, False])
def test_bounds_that_are_expressions_become_rows(attributes: bool) -> None:
    z = cp.Variable(3, name="z", bounds=[-q - 2, p + 1])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z + p)))
    posed = same_solution(problem, [Q, P], attributes=attributes)
    assert [row.name for row in posed.rows] == ["lower bound of 'z'", "upper bound of 'z'"]
    assert is_parametrized(posed.problem)


def test_a_bound_may_be_an_expression_on_one_side() -> None:
    z = cp.Variable(3, name="z", bounds=[-q, 0.2])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - p)))
    same_solution(problem, [Q, P], attributes=True)
    bare = same_solution(problem, [Q, P], attributes=False)
    assert [row.name for row in bare.rows] == ["lower bound of 'z'", "upper bound of 'z'"]


def test_the_rows_are_sorted_by_kind() -> None:
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(x)), [cp.SOC(y, x), x >= 1, y == 4, cp.constraints.NonNeg(y)]
    )
    posed = ProblemDeclaration.of(problem).build(attributes=False)
    assert [row.position for row in posed.inequalities] == [1, 3]
    assert [row.position for row in posed.equalities] == [2]
    assert [row.position for row in posed.cones] == [0]


# ---------------------------------------------------------------------------- parameters and outputs


def test_a_parameter_left_out_is_a_constant() -> None:
    F = cp.Parameter((2, 2), PSD=True, name="F", value=np.array([[2.0, 0.5], [0.5, 1.0]]))
    S = cp.Parameter((2, 2), sparsity=[(0, 1), (1, 1)])
    S.value_sparse = sparse.coo_array(([1.0, 2.0], ([0, 1], [1, 1])), shape=(2, 2))
    z = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.quad_form(z, F) + q * cp.sum(S @ z)), [z >= p[:2]])
    declaration = ProblemDeclaration.of(problem, [p, q])
    F.value, expected = np.eye(2), F.value.copy()
    posed = declaration.build(attributes=False)
    assert [len(posed.parameters), declaration.parameters] == [2, (p, q)]
    (definite, wrapped), _ = declaration.constants
    assert definite is F
    assert type(wrapped).__name__ == "psd_wrap"
    value, _ = solved(posed, [P, Q])
    F.value, p.value, q.value = expected, P, Q
    assert value == pytest.approx(solve(problem), abs=1e-7)


def test_parameters_are_taken_in_the_order_given() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + q * y), [y >= 1])
    assert ProblemDeclaration.of(problem).parameters == tuple(problem.parameters())
    posed = ProblemDeclaration.of(problem, (q, p)).build(attributes=True)
    assert [leaf.name() for leaf in posed.parameters] == ["q", "p"]


def test_outputs() -> None:
    constraints = [cp.SOC(y, x), x >= p]
    problem = cp.Problem(cp.Minimize(y + q), constraints)
    wanted = [y, constraints[0].dual_variables[1], constraints[1].dual_variables[0], 2 * x + q * y - p, x]
    outputs = ProblemDeclaration.of(problem, variables=wanted).outputs
    first, second, third, fourth, last = outputs
    assert isinstance(first, Primal)
    assert (first.position, first.shape) == (problem.variables().index(y), ())
    assert isinstance(last, Primal)
    assert last.shape == (3,)
    for dual, place, shape in ((second, (0, 1), (3,)), (third, (1, 0), (3,))):
        assert isinstance(dual, Dual)
        assert (dual.constraint, dual.index) == place
        assert dual.shape == shape
    assert isinstance(fourth, Expressed)
    assert not {id(v) for v in fourth.expression.variables()} & {id(x), id(y)}
    of = translate(fourth.expression, fourth.variables, fourth.parameters).function
    values = {"x": torch.ones(3), "y": torch.tensor(3.0), "p": torch.tensor(P), "q": torch.tensor(Q)}
    got = of(*(values[leaf.name()].double() for leaf in (*fourth.variables, *fourth.parameters)))
    torch.testing.assert_close(got, 2 + Q * 3 - torch.tensor(P))


def test_all_variables_are_the_default_output() -> None:
    problem = cp.Problem(cp.Minimize(y + q), [cp.SOC(y, x)])
    declaration = ProblemDeclaration.of(problem)
    assert [o.position for o in declaration.outputs if isinstance(o, Primal)] == [0, 1]
    assert declaration.variables == tuple(problem.variables())


def test_names_and_positions() -> None:
    constraints = [x <= 1, (cp.sum(x) + y == 3).set_label("budget")]
    declaration = ProblemDeclaration.of(cp.Problem(cp.Minimize(cp.sum_squares(x)), constraints))
    assert declaration.names == (
        "constraint 0: x <= 1.0",
        "constraint 1: budget: Sum(x, None, False) + y == 3.0",
    )
    assert [declaration.position(c) for c in constraints] == [0, 1]
    with pytest.raises(DeclarationError, match=r"x <= 2\.0 is not a constraint of the problem"):
        declaration.position(x <= 2)


# ---------------------------------------------------------------------------- geometric programmes

a, b = cp.Parameter(pos=True, name="a"), cp.Parameter(2, pos=True, name="b")
power = cp.Parameter(name="power")
u, v = cp.Variable(pos=True, name="u"), cp.Variable(2, pos=True, name="v")
GP_VALUES = {"a": 1.7, "b": np.array([0.6, 2.0]), "power": -0.8}


def geometric_problems() -> dict[str, cp.Problem]:
    w = cp.Variable((2, 2), pos=True, bounds=[0.1, 9.0])
    bounded = cp.Variable(pos=True, bounds=[a, 5])
    return {
        "monomials": cp.Problem(
            cp.Minimize(a / u * (cp.sum(cp.multiply(b, v)) + 1)), [u * v[0] * v[1] <= 2, v <= b, u <= a * 3]
        ),
        "maximize": cp.Problem(cp.Maximize(u * v[0] ** a), [cp.sum(v) <= a, u == v[1] * b[0], v >= 0.01]),
        "an exponent, of both kinds": cp.Problem(
            cp.Minimize(u**power + a * u**a + cp.prod(v) ** -1), [v <= b, u >= 0.1]
        ),
        "sums of parameters": cp.Problem(
            cp.Minimize((a + b[0]) * u + b[1] / u + cp.sum(v)), [v >= b, u >= 0.1]
        ),
        "bounds": cp.Problem(cp.Minimize(bounded + cp.sum(w) * a), [w[0, 0] * w[1, 1] >= 1]),
        "auxiliary variables": cp.Problem(
            cp.Minimize(cp.pf_eigenvalue(w) + cp.sum(w)), [cp.prod(w) == 1, w[0, 1] >= a, cp.max(w) <= 8]
        ),
        "a constant in parts": cp.Problem(
            cp.Minimize((cp.Constant(3) - 1) * u), [u * cp.Constant([2, 3]) >= b]
        ),
    }


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("name", geometric_problems())
def test_a_geometric_programme_solves_to_the_same(name: str, attributes: bool) -> None:
    problem = geometric_problems()[name]
    if name == "a constant in parts":  # which cvxpy gets wrong: the logarithm of a sum is not that sum's
        declaration = ProblemDeclaration.of(problem, gp=True)
        value, _ = solved(declaration.build(attributes=attributes), [GP_VALUES["b"]])
        assert value == pytest.approx(2 * 2 / 3, rel=1e-6)
        return
    theta = [GP_VALUES[own.name()] for own in problem.parameters()]
    posed = same_solution(problem, theta, gp=True, attributes=attributes)
    assert posed.gp
    assert posed.problem.is_dcp()
    assert not attributes or name != "bounds" or posed.variables[1].bounds is not None


def test_parameters_of_a_geometric_programme_need_no_value() -> None:
    fresh = cp.Parameter(pos=True)
    declaration = ProblemDeclaration.of(cp.Problem(cp.Minimize(u), [u >= fresh]), gp=True)
    posed = declaration.build(attributes=True)
    assert solved(posed, [3.0])[0] == pytest.approx(3.0)
    assert fresh.value is None


# ---------------------------------------------------------------------------- lowering

F = cp.Parameter((3, 3), name="F")
r = cp.Parameter(pos=True, name="r")
ONE_MORE = {"p": P, "q": Q, "r": 1.3, "F": np.array([[1.0, 0.2, 0], [0, 2.0, -0.3], [0.5, 0, 1.0]])}


def liftable() -> dict[str, cp.Problem]:
    near = cp.sum_squares(x - p)
    return {
        "p1 p2 x": cp.Problem(cp.Minimize(near + cp.sum(cp.multiply(q * p, x)))),
        "norm(p) x": cp.Problem(cp.Minimize(near), [cp.norm2(p) * cp.norm2(x) <= q]),
        "exp(p) x": cp.Problem(cp.Minimize(near), [cp.exp(p) @ x <= q]),
        "x / p": cp.Problem(cp.Minimize(near), [cp.norm1(x) / r <= 1, cp.sum(x / (1 + q)) >= 0.1]),
        "p1 (p2 x)": cp.Problem(cp.Minimize(near), [q * (r * cp.norm1(x)) <= 0.9]),
        "elastic net": cp.Problem(cp.Minimize(near + q * (cp.norm1(x) + r * cp.sum_squares(x)))),
        "p f(A x - b)": cp.Problem(
            cp.Minimize(near + q * cp.norm1(F @ x - p) - r * cp.sum(cp.sqrt(F @ x + 5)))
        ),
        "A B x": cp.Problem(cp.Minimize(near), [F @ (F @ x) <= 1, (F @ F) @ x >= -9]),
        "a product negated": cp.Problem(cp.Minimize(near - q * (p @ x - r * cp.sum(x)))),
        "risk aversion": cp.Problem(
            cp.Maximize(p @ x - q * cp.quad_form(x, cp.psd_wrap(F.T @ F))), [cp.sum(x) == 1, cp.norm1(x) <= r]
        ),
        "a norm negated": cp.Problem(cp.Minimize(near), [q * -(r * cp.norm1(x)) >= -0.9]),
        "quad_form": cp.Problem(cp.Minimize(near), [cp.quad_form(x, cp.psd_wrap(F.T @ F)) + p @ x <= 1]),
        "quad_form in the objective": cp.Problem(
            cp.Minimize(cp.quad_form(x, cp.psd_wrap(F.T @ F)) - p @ x), [cp.sum(x) == q]
        ),
    }


@pytest.mark.parametrize("name", [n for n in liftable() if n != "quad_form"])
def test_a_lowered_problem_is_dpp_and_solves_to_the_same(name: str) -> None:
    problem = liftable()[name]
    theta = [ONE_MORE[own.name()] for own in problem.parameters()]
    assert not is_parametrized(ProblemDeclaration.of(problem).build(attributes=True).problem)
    posed = same_solution(problem, theta, then=lowered)
    assert is_parametrized(posed.problem)
    declared = [row for row in posed.rows if row.position is not None]
    assert len(declared) == len(problem.constraints)
    assert len(posed.rows) - len(declared) == len(posed.auxiliary)


def test_a_dpp_problem_is_left_as_it_is() -> None:
    declaration = ProblemDeclaration.of(
        cp.Problem(cp.Minimize(cp.sum_squares(x - (p + 2 * p)) + q * y), [y >= 0])
    )
    posed = lowered(declaration.build(attributes=True))
    assert [leaf.name() for leaf in posed.parameters] == ["p", "q"]
    batch = (torch.rand(4, 3), torch.rand(4))
    assert posed.lift(batch) is batch


def test_only_sums_of_positive_parameters_are_gathered() -> None:
    problem = cp.Problem(cp.Minimize(a * b[0] * u), [u >= 1, v[0] >= (a + b[1]) * u, v[1] == 1])
    posed = ProblemDeclaration.of(problem, gp=True).build(attributes=True)
    assert [leaf.name() for leaf in posed.parameters] == ["a", "b", "a + b[1]"]
    theta = (torch.tensor([2.0]), torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(posed.lift(theta)[2], torch.tensor([5.0]).log())


def test_a_negative_semidefinite_constant_stays_so() -> None:
    N = cp.Parameter((3, 3), NSD=True, value=-np.ones((3, 3)))
    declaration = ProblemDeclaration.of(
        cp.Problem(cp.Maximize(cp.quad_form(x, N) - cp.sum_squares(x - p))), [p]
    )
    assert solved(declaration.build(attributes=True), [P])[0] == pytest.approx(-(np.sum(P) ** 2) / 4)


def test_a_geometric_programme_is_lowered_too() -> None:
    problem = cp.Problem(cp.Minimize(u + v[0]), [u * v[0] >= (a + b[0]) ** 2, v[1] == a + b[1]])
    posed = same_solution(problem, [GP_VALUES["a"], GP_VALUES["b"]], gp=True, then=lowered)
    assert is_parametrized(posed.problem)


def test_what_is_known_of_an_expression_is_declared() -> None:
    quadratic = liftable()["quad_form in the objective"]
    posed = lowered(ProblemDeclaration.of(quadratic).build(attributes=True))
    (matrix,) = (leaf for leaf in posed.parameters if leaf.ndim == 2)
    assert matrix.attributes["PSD"]
    posed = lowered(ProblemDeclaration.of(liftable()["norm(p) x"]).build(attributes=True))
    (norm,) = (leaf for leaf in posed.parameters if leaf.name() not in ("p", "q"))
    assert norm.attributes["nonneg"]


@pytest.mark.parametrize("name", liftable())
def test_the_derivative_of_a_lift(name: str) -> None:
    declaration = ProblemDeclaration.of(liftable()[name])
    posed = lowered(declaration.build(attributes=True))
    values = [torch.tensor(ONE_MORE[own.name()], dtype=torch.float64) for own in declaration.parameters]
    batch = tuple(torch.stack([t, 1.1 * t]).requires_grad_() for t in values)
    assert torch.autograd.gradcheck(lambda *theta: posed.lift(theta), batch, check_forward_ad=True)
    one = posed.lift(tuple(t[:1] for t in batch))
    for whole, single in zip(posed.lift(batch), one, strict=True):
        torch.testing.assert_close(whole[:1], single, rtol=0, atol=1e-15)


def test_the_derivative_of_a_logarithmic_lift() -> None:
    posed = ProblemDeclaration.of(geometric_problems()["an exponent, of both kinds"], gp=True).build(True)
    batch = [torch.rand(3, *s, dtype=torch.float64) + 0.5 for s in [(), (), (2,)]]
    order = sorted(batch, key=lambda t: t.ndim)
    theta = tuple(t.requires_grad_() for t in order)
    assert len(posed.parameters) == 4
    assert torch.autograd.gradcheck(lambda *t: posed.lift(t), theta)


def test_an_empty_batch_lifts_to_an_empty_batch() -> None:
    declaration = ProblemDeclaration.of(liftable()["p1 p2 x"])
    posed = lowered(declaration.build(attributes=True))
    lifted = posed.lift(
        tuple(torch.zeros(0, *own.shape, dtype=torch.float64) for own in declaration.parameters)
    )
    assert [tuple(t.shape) for t in lifted] == [(0, *own.shape) for own in posed.parameters]


@pytest.mark.parametrize(
    ("problem", "texts"),
    [
        (
            liftable()["quad_form"],
            ["constraint 0: ", "write sum_squares(F @ x), with a factor F", 'pass method="smooth"'],
        ),
        (
            cp.Problem(cp.Minimize(cp.sum(cp.huber(x, q)) * r + cp.norm1(x))),
            ["objective is not affine in the parameters (DPP), at", "both factors hold parameters"],
        ),
        (
            cp.Problem(cp.Minimize(cp.max(cp.cummax(cp.abs(p))) * cp.norm1(x))),
            ["objective is", "cummax(abs(p)", "norm1(x)", "in torch"],
        ),
    ],
)
def test_a_problem_that_stays_beyond_dpp_is_explained(problem: cp.Problem, texts: list[str]) -> None:
    posed = lowered(ProblemDeclaration.of(problem).build(attributes=True))
    assert not is_parametrized(posed.problem)
    message = explain_not_dpp(posed.problem, tuple(row.name for row in posed.rows))
    for text in texts:
        assert text in message


# ---------------------------------------------------------------------------- as a good object


def same(one: Posed, other: Posed, theta: list[Any]) -> None:
    """Not only the solution, the very numbers the solver is given."""
    for posed in (one, other):
        give(posed, theta)
    mine, theirs = (posed.problem.get_problem_data("CLARABEL", ignore_dpp=True)[0] for posed in (one, other))
    for block in ("P", "q", "A", "b"):
        if block in mine:
            assert abs(mine[block] - theirs[block]).max() == 0


def test_pickle_and_deepcopy_even_of_a_solved_problem() -> None:
    c = x <= q
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [c])
    p.value, q.value = P, Q
    problem.solve(solver="OSQP")
    declaration = ProblemDeclaration.of(problem, [p], [c.dual_variables[0], 2 * x])
    read: ProblemDeclaration = pickle.loads(pickle.dumps(declaration))
    for twin in (read, copy.deepcopy(declaration)):
        assert [type(o) for o in twin.outputs] == [Dual, Expressed]
        same(declaration.build(attributes=True), twin.build(attributes=True), [P])
    assert copy.deepcopy(declaration).position(c) == 0


def test_the_problem_may_be_extended_afterwards() -> None:
    constraints = [x <= 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints)
    declaration = ProblemDeclaration.of(problem)
    problem.constraints.append(x <= -5)
    assert len(declaration.build(attributes=True).rows) == 1


def test_two_threads_build_the_same() -> None:
    problem = liftable()["p f(A x - b)"]
    declaration = ProblemDeclaration.of(problem)
    theta = [ONE_MORE[own.name()] for own in declaration.parameters]

    def build(_: int) -> Posed:
        return lowered(declaration.build(attributes=True))

    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(build, range(4)))
    leaves = [id(leaf) for posed in built for leaf in (*posed.problem.variables(), *posed.parameters)]
    assert len(leaves) == len(set(leaves))
    for posed in built[1:]:
        same(built[0], posed, theta)


# ---------------------------------------------------------------------------- refusals


def minimize(expression: Any, *constraints: Any) -> cp.Problem:
    return cp.Problem(cp.Minimize(expression), list(constraints))


def leaf(kind: Callable[..., Any], shape: Any = (), **attributes: Any) -> Any:
    return kind(shape, name="w", **attributes)


REFUSALS: dict[str, tuple[Callable[[], cp.Problem], str]] = {
    "boolean": (
        lambda: minimize(leaf(cp.Variable, boolean=True)),
        "variable 'w' is declared boolean: the argmin of an integer problem has no derivative; relax it",
    ),
    "integer": (lambda: minimize(leaf(cp.Variable, integer=True)), "variable 'w' is declared integer"),
    "complex variable": (
        lambda: minimize(cp.abs(leaf(cp.Variable, complex=True))),
        "variable 'w' is declared complex: write its real and its imaginary part as real arrays",
    ),
    "hermitian": (
        lambda: minimize(cp.lambda_max(leaf(cp.Variable, (2, 2), hermitian=True))),
        "variable 'w' is declared hermitian",
    ),
    "complex parameter": (
        lambda: minimize(cp.abs(y - leaf(cp.Parameter, imag=True))),
        "parameter 'w' is declared imag",
    ),
    "complex constraint": (lambda: minimize(y, (1 + 2j) * y == 3), "constraint 0: "),
    "FiniteSet": (
        lambda: minimize(y, x >= 0, cp.FiniteSet(y, [1, 2])),
        "constraint 1: FiniteSet(y, reshape([1. 2.], (2,), F)) is discrete: the argmin",
    ),
    "no variables": (lambda: minimize(q), "the problem has no variables"),
    "concave objective": (
        lambda: minimize(cp.sqrt(y)),
        "objective is concave where convex is needed: PowerApprox(y, 0.5); minimize a convex or",
    ),
    "convex objective maximized": (
        lambda: cp.Problem(cp.Maximize(cp.square(y))),
        "objective is convex where concave is needed",
    ),
    "product of variables": (
        lambda: minimize(y, x[0] >= 1, cp.square(x[0]) + y * x[1] <= 1),
        "constraint 1: PowerApprox(x[0], 2.0) + y * x[1] <= 1.0 has no known curvature, at y * x[1], a",
    ),
    "concave constraint": (
        lambda: minimize(y, cp.norm2(x) >= 1),
        "constraint 0: 1.0 <= PnormApprox(x, 2) is concave where convex is needed",
    ),
    "curved equality": (
        lambda: minimize(y, cp.square(y) + x[0] == 1),
        "x[0] == 1.0 is not affine in the variables, at PowerApprox(y, 2.0)",
    ),
    "quad_form": (
        lambda: minimize(cp.quad_form(x, leaf(cp.Parameter, (3, 3), symmetric=True))),
        "whose matrix is not known to be semidefinite: declare it PSD=True, or use cp.psd_wrap",
    ),
    "geometric": (
        lambda: minimize(u * v[0], u * v[0] ** 2 >= 2),
        "it is a geometric programme: pass gp=True",
    ),
    "partial minimization": (
        lambda: minimize(partial_optimize(minimize(cp.square(y - x[0])), [y])),
        "is a partial minimization: put its objective in the atom's place",
    ),
    "quasiconvex": (
        lambda: minimize(cp.ceil(y), y >= 0.3),
        "it is quasiconvex (DQCP), which no layer solves: minimize by bisection",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_problems_say_where_and_what_to_do(name: str) -> None:
    problem, text = REFUSALS[name]
    refused(text, problem())


GP_REFUSALS: dict[str, tuple[Callable[[], cp.Problem], str]] = {
    "no sign": (
        lambda: minimize(u + y),
        "objective has no log-log curvature, at y: declare 'y' with pos=True",
    ),
    "a difference": (
        lambda: minimize(u, u * v[0] - v[1] <= 1),
        "constraint 0: u * v[0] + -(v[1]) <= 1.0 has no log-log curvature, at -(v[1])",
    ),
    "a difference of parameters": (
        lambda: minimize((2 * a - b[0]) * u),
        "objective has no log-log curvature",
    ),
    "convex": (lambda: minimize(cp.sum_squares(x - p)), "it is convex as it stands: leave gp out"),
    "directions": (
        lambda: minimize(u, u + v[0] >= 1),
        "constraint 0: 1.0 <= u + v[0] relates 1.0 and u + v[0], whose log-log curvatures do not fit",
    ),
    "PSD": (
        lambda: minimize(cp.trace(leaf(cp.Variable, (2, 2), PSD=True))),
        "variable 'w' is declared PSD, which a geometric programme cannot honour",
    ),
}


@pytest.mark.parametrize("name", GP_REFUSALS)
def test_refused_geometric_programmes_say_where(name: str) -> None:
    problem, text = GP_REFUSALS[name]
    a.value, b.value = 1.0, np.ones(2)  # at which 2 a - b is positive: values must not matter
    refused(text, problem(), gp=True)


def test_refused_arguments() -> None:
    c = x >= p
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + q * y), [c, y >= 0])
    stranger, other = cp.Parameter(name="stranger"), cp.Variable(name="other")
    refused("problem is a function, expected a cvxpy.Problem", lambda z: z)
    refused("parameters is a Parameter, expected a list or tuple", problem, p)
    refused("parameter 1 is a Variable, expected a cvxpy.Parameter", problem, [p, x])
    refused("parameter 'p' is declared twice", problem, [p, p])
    refused("parameter 'stranger' does not occur in the problem", problem, [p, stranger])
    refused("variables is a Variable, expected a list or tuple", problem, None, x)
    refused("variables is empty", problem, None, [])
    refused("output 1 is a Inequality, expected a variable, a dual variable", problem, None, [x, c])
    refused("output 0, other, has a variable 'other' that is not in the problem", problem, None, [other])
    refused("output 0, stranger * y, has a parameter 'stranger'", problem, None, [stranger * y])
    refused("output 0, PowerApprox(x, 2.0), is not a real affine expression", problem, None, [cp.square(x)])
    refused("output 0, p, does not depend on the variables", problem, None, [p])
    refused("output 0 is a str", problem, None, ["x"])


def test_refused_constants() -> None:
    bare, definite = cp.Parameter(name="bare"), cp.Parameter((2, 2), PSD=True, name="definite")
    z = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z) + bare * cp.sum(z)), [definite @ z >= 1])
    refused("parameter 'bare' is left out, so it is a constant, and it has no value", problem, [])
    bare.value = np.inf
    refused("parameter 'bare' is left out with a value that is not finite", problem, [])
    bare.value = 1.0
    definite.save_value(-np.eye(2))
    refused("parameter 'definite' is declared PSD, and the value it is left out with is not", problem, [])
    callback = cp.CallbackParam(lambda: 2.0, name="callback")
    refused("'callback' has a callback for its value", cp.Problem(cp.Minimize(callback * y), [y >= 0]))
    assert ProblemDeclaration.of(cp.Problem(cp.Minimize(callback * y), [y >= 0]), []).parameters == ()
