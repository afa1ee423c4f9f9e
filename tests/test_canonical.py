"""A disciplined problem as one cone program: data, values and multipliers against cvxpy's own."""

import copy
import pickle
import time
import warnings
from types import SimpleNamespace

import clarabel
import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL, dims_to_solver_cones
from torch.autograd import gradcheck, gradgradcheck

from optlayer.cones import (
    Exponential,
    GeneralizedPower,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Semidefinite,
)
from optlayer.declare import canonical as module
from optlayer.declare.canonical import Canonical, NotDPP, canonicalize
from optlayer.declare.copied import without_copies
from optlayer.forms import affine

rng = np.random.default_rng(3)
SPARSITY = [(0, 1, 1), (1, 2, 0)]


class Case:
    """A problem whose every constraint is asked about, and the values of its parameters."""

    def __init__(self, objective, constraints, variables, values=()):
        self.problem = cp.Problem(cp.Minimize(objective), constraints)
        self.variables, self.constraints = variables, constraints
        self.parameters = [parameter for parameter, _ in values]
        self.values = [np.asarray(value, dtype=float) for _, value in values]

    @property
    def canonical(self) -> Canonical:
        return canonicalize(self.problem, self.variables, self.parameters, self.constraints)

    @property
    def theta(self):
        return torch.from_numpy(np.concatenate([np.zeros(0), *(value.ravel() for value in self.values)]))

    def assign(self):
        for parameter, value in zip(self.parameters, self.values, strict=True):
            if parameter.sparse_idx is not None:
                parameter.value_sparse = sp.coo_array(
                    (value[parameter.sparse_idx], parameter.sparse_idx), value.shape
                )
            else:
                parameter.value = value


def gram(n, seed):
    root = np.random.default_rng(seed).standard_normal((n, n))
    return root @ root.T + np.eye(n)


def linear():
    x, c, A, b = cp.Variable((2, 2)), cp.Parameter((2, 2)), cp.Parameter((3, 4)), cp.Parameter(3)
    rows = [A @ cp.vec(x, order="C") <= b, x >= -1, cp.sum(x) == 1]
    values = [(b, [3, 4, 5]), (c, [[1, 2], [3, 5]]), (A, rng.standard_normal((3, 4)))]
    return Case(cp.sum(cp.multiply(c, x)) + c[0, 1], rows, [x], values)


def quadratic():
    x, y = cp.Variable(3), cp.Variable((2, 2))
    P, R, q, w = (
        cp.Parameter((3, 3), PSD=True),
        cp.Parameter((3, 3), PSD=True),
        cp.Parameter(3),
        cp.Parameter(),
    )
    objective = cp.quad_form(x, P + 2 * R) + q @ x + cp.sum_squares(y - w) + 3
    values = [(R, gram(3, 1)), (q, [1, -8, 2]), (P, gram(3, 0)), (w, 0.3)]
    return Case(objective, [cp.NonNeg(x), cp.Zero(y[0] - x[:2]), cp.sum(x) <= 2], [y, x], values)


def second_order():
    t, X, x, c, r = cp.Variable(2), cp.Variable((3, 2)), cp.Variable(3), cp.Parameter((3, 2)), cp.Parameter()
    rows = [cp.SOC(t, X - c), cp.SOC(t + 1, (X + c).T, axis=1), cp.SOC(t[0], x - r), cp.norm(x) <= r]
    return Case(cp.sum(t) + cp.sum(X) / 9 + x[0] / 5, rows, [x, t, X], [(r, 1.5), (c, rng.random((3, 2)))])


def semidefinite():
    S, t, C, r = (
        cp.Variable((3, 3), symmetric=True),
        cp.Variable(),
        cp.Parameter((3, 3), PSD=True),
        cp.Parameter(),
    )
    rows = [S - np.eye(3) >> 0, cp.PSD(cp.bmat([[r, t], [t, S[0, 1]]])), S[2, 0] == r, cp.trace(S) <= 20]
    return Case(cp.trace(C @ S) - t, rows, [S, t], [(C, gram(3, 5)), (r, 0.5)])


def batched_semidefinite():
    B, c = cp.Variable((2, 3, 3)), cp.Parameter((2, 3, 3))
    target = rng.standard_normal((2, 3, 3))
    return Case(cp.sum_squares(B - c), [cp.PSD(B)], [B], [(c, target + np.swapaxes(target, -2, -1))])


def exponential():
    x, X, c, r = cp.Variable(3), cp.Variable((3, 2)), cp.Parameter((3, 2)), cp.Parameter()
    rows = [cp.ExpCone(X - 1, c, X + 3), cp.ExpCone(x[0], r, x[1] + 4), cp.sum(cp.exp(x)) <= 2 + r]
    return Case(-cp.sum(x) - cp.sum(X), rows, [X, x], [(c, 1 + rng.random((3, 2))), (r, 1)])


def power():
    x, Z, c = cp.Variable(3), cp.Variable((2, 2)), cp.Parameter(3)
    rows = [cp.PowCone3D(x, c, Z[0, 0] * np.ones(3), 0.3), cp.PowCone3D(x[:2], c[:2], Z[1], [0.2, 0.6])]
    rows += [cp.PowCone3D(x[0], x[1], Z[0, 1], 0.5), cp.PowCone3D(Z, Z + 1, Z - 1, 0.4 * np.ones((2, 2)))]
    return Case(cp.sum(x) - cp.sum(Z), rows + [x <= 2], [Z, x], [(c, [1, 2, 1])])


def generalised_power():
    x, W, z, c = cp.Variable(3), cp.Variable((3, 2)), cp.Variable(2), cp.Parameter()
    alpha, columns = np.array([0.2, 0.3, 0.5]), np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]).T
    rows = [cp.PowConeND(x, c, alpha), cp.PowConeND(W, z, columns)]
    rows += [cp.PowConeND(W.T + 1, z + c, columns.T, axis=1), W <= 2]
    return Case(cp.sum(x) - cp.sum(z) + cp.sum(W) / 5, rows, [x, z, W], [(c, 0.7)])


def mixed():
    x, S, c, A = cp.Variable(3), cp.Variable((2, 2), PSD=True), cp.Parameter(3), cp.Parameter((2, 3))
    rows = [
        A @ x == [1, 0],
        cp.norm(x - c) <= 3,
        cp.sum(cp.exp(x)) <= 9,
        S[0, 1] >= c[0] / 9,
        cp.log_det(S) >= -1,
    ]
    objective = cp.sum_squares(x) + cp.trace(S) + cp.norm1(x - c) + cp.sum(cp.power(x - 4, 2))
    return Case(objective, rows, [S, x], [(A, rng.standard_normal((2, 3))), (c, [1, 0.2, -0.3])])


def three_dimensional():
    x, c = cp.Variable((2, 3, 4)), cp.Parameter((2, 3, 4))
    rows = [x >= c, cp.sum(x, axis=(0, 2)) == 1]
    return Case(cp.sum_squares(x), rows, [x], [(c, rng.standard_normal((2, 3, 4)) / 9)])


def scalars_and_constants():
    x, y, unused, r = cp.Variable(), cp.Variable(2), cp.Variable((2, 3)), cp.Parameter()
    rows = [x >= r, r >= -1, cp.Constant([1, 2]) >= 0, cp.SOC(y[0], r)]
    return Case(x**2 + cp.sum(y) + 2 * cp.norm(y), rows, [unused, x, y], [(r, 0.5)])


def without_parameters():
    x = cp.Variable(3)
    return Case(cp.sum_squares(x - [1, 2, 3]), [cp.sum(x) == 1, x <= 1], [x])


ATTRIBUTES = {
    "nonneg": {"nonneg": True},
    "nonpos": {"nonpos": True},
    "pos": {"pos": True},
    "neg": {"neg": True},
    "bounds": {"bounds": [-1, 0.5]},
    "symmetric": {"symmetric": True},
    "PSD": {"PSD": True},
    "NSD": {"NSD": True},
    "diag": {"diag": True},
    "sparsity": {"sparsity": SPARSITY},
    "symmetric and nonneg": {"symmetric": True, "nonneg": True},
    "PSD and bounds": {"PSD": True, "bounds": [-1, 1]},
    "diag and nonneg": {"diag": True, "nonneg": True},
}


def attributed(name):
    """A variable and a parameter with the same attributes."""
    X, Q = cp.Variable((3, 3), **ATTRIBUTES[name]), cp.Parameter((3, 3), **ATTRIBUTES[name])
    value = gram(3, 2) / 9
    if name == "NSD":
        value = -value
    elif name in ("nonpos", "neg"):
        value = -np.abs(value)
    elif "diag" in name:
        value = np.diag([1.0, 2, 3])
    elif name == "sparsity":
        value = np.zeros((3, 3))
        value[SPARSITY[0], SPARSITY[1]] = [1, 2, 3]
    elif name != "PSD":
        value = np.clip(np.abs(value), 0, 0.5)
    target, weight = np.arange(9).reshape(3, 3) / 9, np.arange(3.0)
    return Case(cp.sum_squares(X - Q @ target), [X @ weight <= Q @ weight + 2], [X], [(Q, value)])


CASES = {f.__name__: f for f in (linear, quadratic, second_order, semidefinite, batched_semidefinite)}
CASES |= {f.__name__: f for f in (exponential, power, generalised_power, mixed, three_dimensional)}
CASES |= {f.__name__: f for f in (scalars_and_constants, without_parameters)}
CASES |= {name: lambda name=name: attributed(name) for name in ATTRIBUTES}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def cvxpys_own(problem):
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Reading from a sparse|The problem has an expression with dimension"
        )
        data, _, inverse = problem.get_problem_data(cp.CLARABEL)
    return data, inverse


# ----------------------------------------------------------------------------------------------- data


def test_the_maps_give_cvxpys_own_data(case):
    form = case.canonical
    case.assign()
    data, inverse = cvxpys_own(case.problem)
    P = data["P"].toarray() if "P" in data else np.zeros((form.n, form.n))
    expected = {"P": P, "q": data["c"], "d": inverse[-1]["offset"], "A": data["A"].toarray(), "b": data["b"]}
    for name, value in expected.items():
        assert_close(getattr(form, name)(case.theta).numpy(), np.asarray(value))
    assert form.P(case.theta).equal(form.P(case.theta).mT)


def test_values_and_pattern_are_those_of_the_whole_array(case):
    form = case.canonical
    batch = torch.stack([case.theta, 2 * case.theta + 1])
    for data in (form.P, form.q, form.d, form.A, form.b):
        whole = data(batch)
        assert whole.shape == (2, *data.shape)
        elsewhere = torch.ones(data.places.new_tensor(data.shape).prod(), dtype=torch.bool)
        elsewhere[data.places] = False
        assert (whole.reshape(2, -1)[:, elsewhere] == 0).all()
        assert whole.reshape(2, -1)[:, data.places].equal(data.values(batch))
        assert torch.equal(whole[0], data(case.theta))
        assert data.is_constant == (not len(data.entry))
        if len(data.shape) == 2:
            matrix = data.matrix(affine.Parts([batch], 2, batch.device))
            assert torch.equal(matrix.dense().expand(2, -1, -1), whole)
            half = data.shape[0] // 2
            upper, lower = data.part(0, half), data.part(half, data.shape[0])
            assert torch.equal(torch.cat([upper(batch), lower(batch)], 1), whole)
            assert torch.equal(data.times(-2.0)(batch), -2.0 * whole)


def test_the_cones_are_clarabels(case):
    form = case.canonical
    case.assign()
    data, _ = cvxpys_own(case.problem)
    theirs = [cone for cone in map(str, dims_to_solver_cones(data["dims"])) if "Zero" not in cone]
    assert [str(clarabels(cone)) for cone in form.cone.cones] == theirs
    assert form.zero == data["dims"].zero
    assert form.zero + form.cone.dim == form.m


def test_empty_batches_and_leading_dimensions():
    form = linear().canonical
    k = sum(parameter.size for parameter in linear().parameters)
    assert form.A(torch.zeros(0, k, dtype=torch.float64)).shape == (0, form.m, form.n)
    assert form.q(torch.zeros(2, 5, k, dtype=torch.float64)).shape == (2, 5, form.n)
    assert form.variables[0](torch.zeros(2, 0, form.n, dtype=torch.float64)).shape == (2, 0, 2, 2)


def test_a_large_constant_is_not_kept_as_a_dense_array(monkeypatch):
    monkeypatch.setattr(affine, "DENSE", 3)
    case, usual = linear(), linear()
    form = case.canonical
    assert form.A.base is None
    assert form.A(case.theta).equal(usual.canonical.A(case.theta))


def test_symmetric_parameters_read_both_triangles_alike():
    case = semidefinite()
    slopes = torch.func.jacrev(case.canonical.q)(case.theta)[:, :9].reshape(-1, 3, 3)
    assert slopes.abs().max() > 0
    assert slopes.equal(slopes.mT)
    quad = quadratic()
    slopes = torch.func.jacfwd(quad.canonical.P)(quad.theta)[..., :9].reshape(-1, 3, 3)
    assert slopes.equal(slopes.mT)


# ------------------------------------------------------------------------------------------- solutions


def clarabels(cone):
    match cone:
        case Nonnegative():
            return clarabel.NonnegativeConeT(cone.dim)
        case SecondOrder():
            return clarabel.SecondOrderConeT(cone.dim)
        case Semidefinite():
            return clarabel.PSDTriangleConeT(cone.n)
        case Exponential():
            return clarabel.ExponentialConeT()
        case Power():
            return clarabel.PowerConeT(cone.alpha)
        case GeneralizedPower():
            return clarabel.GenPowerConeT(list(cone.alphas), cone.k)


def solve(form, theta):
    """x and y by Clarabel, from nothing but the canonical form."""
    P, q, A, b = (data(theta).numpy() for data in (form.P, form.q, form.A, form.b))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    zero = [clarabel.ZeroConeT(form.zero)] if form.zero else []
    K = [*zero, *map(clarabels, form.cone.cones)]
    answer = clarabel.DefaultSolver(sp.csc_matrix(np.triu(P)), q, sp.csc_matrix(A), b, K, settings).solve()
    assert str(answer.status) == "Solved"
    return torch.tensor(answer.x, dtype=torch.float64), torch.tensor(answer.z, dtype=torch.float64)


def test_values_and_duals_are_those_cvxpy_reports(case):
    form = case.canonical
    x, y = solve(form, case.theta)
    case.assign()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Reading from a sparse|The problem has an expression with dimension"
        )
        value = case.problem.solve(solver=cp.CLARABEL)
        for variable, gather in zip(case.variables, form.variables, strict=True):
            theirs = np.zeros(variable.shape) if variable.value is None else variable.value
            theirs = theirs.toarray() if sp.issparse(theirs) else theirs
            assert_close(gather(x).numpy(), theirs, 1e-6)
    P, q, d = form.P(case.theta), form.q(case.theta), form.d(case.theta)
    assert_close((x @ P @ x / 2 + q @ x + d).numpy(), np.asarray(value), 1e-6)
    for constraint, gathers in zip(case.constraints, form.duals, strict=True):
        assert len(gathers) == len(constraint.dual_variables)
        for dual, gather in zip(constraint.dual_variables, gathers, strict=True):
            assert gather(y).shape == np.shape(dual.value)
            assert_close(gather(y).numpy(), np.asarray(dual.value), 1e-6)


def test_rows_name_the_constraint_they_come_from():
    case = second_order()
    form = case.canonical
    # norm(x) <= r is one inequality, and one second-order cone that belongs to the atom.
    assert form.rows.tolist() == [3] + [0] * 8 + [1] * 8 + [2] * 4 + [-1] * 4
    assert set(attributed("bounds").canonical.rows.tolist()) == {-1, 0}


def test_without_its_copies_it_is_the_same_programme(case):
    """At every point of the smaller space: rows, value, slope, and what is read off x and y."""
    whole, theta = case.canonical, case.theta
    small, objective = without_copies(whole)
    flat = affine.Parts([theta[None]], 1, theta.device)
    x = torch.from_numpy(rng.standard_normal((1, small.n))).requires_grad_()
    expanded = x if objective.f is None else objective.f.copy(x) + objective.f.shift(theta)
    rows = whole.A(theta) @ expanded[0] - whole.b(theta)
    kept = torch.isin(torch.arange(whole.m), whole.rows.new_tensor(kept_rows(whole, rows)))
    assert int(kept.sum()) == small.m
    assert_close(rows[kept].detach().numpy(), (small.A(theta) @ x[0] - small.b(theta)).detach().numpy())
    assert whole.m - small.m == whole.zero - small.zero == whole.n - small.n
    assert small.rows.equal(whole.rows[kept])
    value = expanded[0] @ whole.P(theta) @ expanded[0] / 2 + whole.q(theta) @ expanded[0] + whole.d(theta)
    assert objective.value(x, (), flat).item() == pytest.approx(value.item(), rel=1e-12)
    (slope,) = torch.autograd.grad(value, x)
    assert_close(objective.gradient(x, (), flat).detach().numpy(), slope.numpy())
    y = torch.from_numpy(rng.standard_normal(whole.m))
    for before, after in zip(whole.variables, small.variables, strict=True):
        assert torch.equal(before(expanded), after(x))
    for before, after in zip(whole.duals, small.duals, strict=True):
        assert all(torch.equal(a(y), b(y[kept])) for a, b in zip(before, after, strict=True))


def kept_rows(whole, rows):
    """Those that somebody asks for, or that an expanded point leaves open."""
    return [i for i in range(whole.m) if i >= whole.zero or whole.rows[i] >= 0 or abs(rows[i]) > 1e-9]


def test_the_copies_of_a_sum_of_squares_leave_the_programme():
    """|z - x|² has no coordinates but z's; a row whose multiplier is asked for keeps its own."""
    z, w, x = cp.Variable(4), cp.Variable(4), cp.Parameter(4)
    rows = [cp.norm(z) <= 1, w == z - x]
    case = Case(cp.sum_squares(z - x) + cp.sum_squares(3 * z[:2]), rows, [z], [(x, np.ones(4))])
    assert case.canonical.n == 4 + 4 + 2 + 1 + 4
    small, objective = without_copies(case.canonical)
    assert (small.n, small.zero) == (4 + 1 + 4, 4)
    assert objective.P.pattern.is_diagonal
    assert sorted(objective.P(case.theta).diagonal().tolist()) == [0] * 5 + [2, 2, 20, 20]


def test_what_nobody_mentions_is_zero():
    x, unused, r = cp.Variable(2), cp.Variable((2, 2), nonneg=True), cp.Parameter()
    for objective, constraints in ((cp.sum_squares(x), []), (cp.Constant(1), [r >= 0]), (cp.Constant(1), [])):
        form = canonicalize(cp.Problem(cp.Minimize(objective), constraints), [x, unused], [r], constraints)
        assert (form.variables[1](torch.ones(3, form.n, dtype=torch.float64)) == 0).all()
        assert form.variables[0](torch.ones(3, form.n, dtype=torch.float64)).shape == (3, 2)
        assert form.d(torch.ones(1, dtype=torch.float64)) == objective.is_constant()


def test_constraints_without_dual_values_have_none():
    x = cp.Variable(3)
    cone = cp.RelEntrConeQuad(x, x, x, 2, 2)
    form = canonicalize(cp.Problem(cp.Minimize(cp.sum(x)), [cone, x >= 1]), [x], [], [cone])
    assert form.duals == ((),)
    empty = x[:0] >= 0
    form = canonicalize(cp.Problem(cp.Minimize(cp.sum(x)), [empty, x >= 1]), [x], [], [empty])
    assert form.duals[0][0](torch.ones(form.m, dtype=torch.float64)).shape == (0,)


# ------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("name", ["linear", "quadratic", "semidefinite", "symmetric", "sparsity"])
def test_the_maps_are_differentiable_in_every_mode(name):
    case = CASES[name]()
    form, theta = case.canonical, case.theta.clone().requires_grad_()
    batch = torch.stack([case.theta, case.theta + 1]).requires_grad_()
    for data in (form.P, form.q, form.d, form.A, form.b):
        if data.is_constant:
            continue
        for function in (data, data.values):
            assert gradcheck(function, theta, check_forward_ad=True, check_batched_grad=True)
            assert gradcheck(function, batch, check_forward_ad=True)
            assert gradgradcheck(lambda t, f=function: f(t) ** 2, theta)
        backward, forward = torch.func.jacrev(data)(case.theta), torch.func.jacfwd(data)(case.theta)
        assert backward.equal(forward)
        assert torch.func.vmap(data)(batch).equal(data(batch))
        assert torch.func.vmap(torch.func.jacrev(data))(batch)[1].equal(backward)
        square = torch.func.hessian(lambda t, f=data: (f(t) ** 2).sum())(case.theta)
        flat = backward.reshape(-1, theta.numel())
        assert torch.allclose(square, 2 * flat.mT @ flat)


def test_the_gathers_are_differentiable_in_every_mode():
    form = semidefinite().canonical
    x, y = (torch.randn(2, size, dtype=torch.float64, requires_grad=True) for size in (form.n, form.m))
    for gather, v in [(form.variables[0], x), (form.duals[0][0], y)]:
        assert gradcheck(gather, v, check_forward_ad=True, check_batched_grad=True)
        assert torch.func.vmap(gather)(v).equal(gather(v))


# ---------------------------------------------------------------------------------------------- habits


def test_it_is_pickled_and_copied_without_cvxpy(case):
    form = case.canonical
    text = pickle.dumps(form)
    assert b"cvxpy" not in text
    for twin in (pickle.loads(text), copy.deepcopy(form)):
        assert twin.cone == form.cone
        for name in "PqdAb":
            assert getattr(twin, name)(case.theta).equal(getattr(form, name)(case.theta))


def test_dual_values_are_left_unset():
    case = linear()
    assert case.canonical.m
    assert all(constraint.dual_value is None for constraint in case.constraints)


def test_a_large_dense_parameter_is_canonicalized_quickly():
    A, x = cp.Parameter((200, 200)), cp.Variable(200)
    start = time.perf_counter()
    form = canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x)), [A @ x <= 1]), [x], [A], [])
    assert time.perf_counter() - start < 2  # 0.05 s where nothing else runs
    theta = torch.randn(40_000, dtype=torch.float64)
    assert form.A(theta).equal(theta.reshape(200, 200))


# -------------------------------------------------------------------------------------------- refusals


def test_what_is_not_disciplined_in_its_parameters():
    x, p, P = cp.Variable(2), cp.Parameter(pos=True, value=0.4), cp.Parameter((2, 2), PSD=True)
    for objective, constraints in [
        (cp.sum(x) * p * p, []),
        (cp.sum(x), [cp.quad_form(x, P) <= 1]),
    ]:
        with pytest.raises(NotDPP, match="not DPP"):
            canonicalize(cp.Problem(cp.Minimize(objective), constraints), [x], [p, P], constraints)
    moving = cp.PowCone3D(x, x, x, p)
    with pytest.raises(NotDPP, match=r"exponent of Pow3D.* holds a parameter"):
        canonicalize(cp.Problem(cp.Minimize(cp.sum(x)), [moving]), [x], [p], [moving])


def test_what_cvxpy_refuses_is_cvxpys_own_error():
    x, n = cp.Variable(2), cp.Variable(2, integer=True)
    with pytest.raises(cp.error.DCPError):
        canonicalize(cp.Problem(cp.Minimize(cp.sum(cp.sqrt(x)))), [x], [], [])
    with pytest.raises(cp.error.SolverError):
        canonicalize(cp.Problem(cp.Minimize(cp.sum(n)), [n >= 0.5]), [n], [], [])


def test_parameters_and_constraints_must_belong_to_the_problem():
    x, p = cp.Variable(2), cp.Parameter(name="price")
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [x >= p])
    with pytest.raises(ValueError, match="parameter 'price' of the problem is not among"):
        canonicalize(problem, [x], [], [])
    with pytest.raises(ValueError, match="constraint 0 is not a constraint of the problem"):
        canonicalize(problem, [x], [p], [x >= 1])


# What this file's subject believes of cvxpy is broken on purpose, one belief at a time.


def refuses(case, match):
    with pytest.raises(RuntimeError, match=f"canonicalizes differently than expected: .*{match}"):
        _ = case.canonical


def test_bounds_moved_onto_variables_are_seen(monkeypatch):
    monkeypatch.setattr(CLARABEL, "BOUNDED_VARIABLES", True)
    refuses(attributed("nonneg"), "moved to lower_bounds and would be lost")


def test_cones_moved_onto_variables_are_seen(monkeypatch):
    monkeypatch.setattr(CLARABEL, "DIR_CONE_KINDS", frozenset({"nonneg", "soc"}))
    monkeypatch.setattr(module, "REDUCTIONS", module.REDUCTIONS | {"ExtractDirectCones"})
    x = cp.Variable(3)
    refuses(Case(cp.sum_squares(x - 1), [cp.NonNeg(x)], [x]), "moved to dir_cones and would be lost")


def test_an_unknown_reduction_is_seen():
    x, z = cp.Variable(3), cp.Variable(3, complex=True)
    refuses(Case(cp.sum(x), [cp.abs(z) <= x], [x]), "Complex2Real are not known")


def test_a_forgotten_cone_is_seen(monkeypatch):
    monkeypatch.setattr(module, "_cone", lambda dims: Product(()))
    refuses(linear(), "the cones have 1 rows, the program 8, and A has shape")


def test_another_order_of_parameter_entries_is_seen(monkeypatch):
    monkeypatch.setattr(module, "_readings", lambda p: [(np.arange(p.size), 1.0)])
    refuses(linear(), "[qA] at random parameter values is not what")


@pytest.mark.parametrize("key", ["P", "c", "A", "b"])
def test_other_data_are_seen(monkeypatch, key):
    compile_once, calls = module._compile, []

    def drifting(problem):
        compiled = compile_once(problem)
        if calls:
            compiled.data[key] = compiled.data[key] * (1 + 1e-9)
        calls.append(key)
        return compiled

    monkeypatch.setattr(module, "_compile", drifting)
    refuses(quadratic(), "at random parameter values is not what")


def test_a_parameter_value_built_into_the_data_is_seen(monkeypatch):
    P, x = cp.Parameter((2, 2), PSD=True), cp.Variable(2)
    case = Case(cp.sum(x), [cp.quad_form(x, P) <= 1], [x], [(P, np.eye(2))])
    with pytest.raises(NotDPP):
        _ = case.canonical
    monkeypatch.setattr(cp.Problem, "is_dpp", lambda *_, **__: True)
    refuses(case, "at random parameter values is not what")


def test_another_order_of_variable_entries_is_seen(monkeypatch):
    recover = module.recover_value_for_leaf
    monkeypatch.setattr(module, "recover_value_for_leaf", lambda *a, **k: recover(*a, **k).T)
    refuses(linear(), "the value of variable .* is not a gather of x")


@pytest.mark.parametrize("mix", [lambda v: v + v.sum(), lambda v: v + v[::-1], lambda v: v**2])
def test_a_dual_value_that_is_no_multiple_of_one_multiplier_is_seen(monkeypatch, mix):
    save = cp.constraints.Inequality.save_dual_value
    inequality = cp.constraints.Inequality
    monkeypatch.setattr(
        inequality, "save_dual_value", lambda self, v: save(self, mix(np.asarray(v))), raising=False
    )
    refuses(linear(), "the dual value of .* mixes several multipliers")


def test_data_without_a_parametrized_program_are_seen():
    stub = SimpleNamespace(get_problem_data=lambda *_, **__: ({}, None, []))
    with pytest.raises(RuntimeError, match="hold no parametrized program"):
        module._compile(stub)


def test_an_infinite_bound_survives():
    x, b = cp.Variable(3), cp.Parameter(3)
    rows = [x <= np.array([1, np.inf, 2]), x >= b]
    form = canonicalize(cp.Problem(cp.Minimize(cp.sum(x)), rows), [x], [b], rows)
    assert form.b(torch.ones(3, dtype=torch.float64)).tolist() == [1, np.inf, 2, -1, -1, -1]


def test_terms_at_one_place_are_added():
    matrix = sp.coo_array(([1.0, 2, 3, 4, 5, -5], ([3, 3, 3, 1, 2, 2], [0, 0, 1, 2, 0, 0])), shape=(4, 3))
    data = affine.AffineMap.of((2, 2), matrix)
    theta = torch.tensor([10.0, 100.0], dtype=torch.float64)
    assert data(theta).tolist() == [[0, 4], [0, 330]]
    assert data.pattern.rows.tolist() == [0, 1]
    assert data.pattern.columns.tolist() == [1, 1]


def assert_close(ours, theirs, tolerance=1e-12):
    assert ours.shape == theirs.shape
    scale = max(np.abs(theirs).max(initial=0), np.abs(ours).max(initial=0), 1.0 if tolerance > 1e-9 else 0.0)
    assert np.abs(ours - theirs).max(initial=0) <= tolerance * scale
