"""Which route `auto` takes, for problems and for callables; what no route takes is refused by name."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import DeclarationError, OptLayer

from .cone_problems import cvxpy_solve, primal_of
from .problems import F64, all_of, as_tuple, close, leaves, normal, sparsemax

pytestmark = pytest.mark.usefixtures("one_thread")


def route(layer):
    (name,) = (name for name in ("smooth", "cone") if f"route: {name}" in repr(layer))
    return name


# ------------------------------ problems


def problems():
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    Z, X = cp.Variable((3, 3), symmetric=True, name="Z"), cp.Parameter((3, 3), symmetric=True, name="X")
    P = cp.Parameter((3, 3), PSD=True, name="P")
    near, near_Z = cp.sum_squares(z - x), cp.sum_squares(Z - X)
    smooth = {
        "quadratic": (near, [z >= 0, cp.sum(z) == 1]),
        "linear": (x @ z, [z >= -1, z <= 1]),
        "attribute": (cp.sum_squares(cp.Variable(3, nonneg=True) - x), []),
        "logistic": (cp.sum(cp.logistic(z)) + near, []),
        "entropy": (x @ z - cp.sum(cp.entr(z)), [cp.sum(z) == 1]),
        "log_sum_exp": (near, [cp.log_sum_exp(z) <= 1]),
        "ball_in_squares": (near, [cp.sum_squares(z) <= 1]),
        "quad_form": (cp.quad_form(z, P) + x @ z, []),
        "quad_form_in_a_constraint": (x @ z, [cp.quad_form(z, P) <= 1]),
        "not_dpp": (cp.sum_squares(z - cp.square(x)) + cp.square(x[0]) * z[1], [x[0] * x[1] + z[0] <= 0]),
        "huber": (cp.sum(cp.huber(z - x)), []),
    }
    cone = {
        "abs": (near + cp.sum(cp.abs(z)), []),
        "norm1": (near + cp.norm1(z), []),
        "norm1_in_a_constraint": (near, [cp.norm1(z) <= 1]),
        "norm2": (near + cp.norm2(z), []),
        "norm2_in_a_constraint": (near, [cp.norm2(z) <= 1]),
        "norm3": (near + cp.pnorm(z, 3), []),
        "norm_inf": (near + cp.norm_inf(z), []),
        "max": (near + cp.max(z), []),
        "maximum": (near + cp.sum(cp.maximum(z, 0)), []),
        "pos": (near + cp.sum(cp.pos(z)), []),
        "sum_largest": (near + cp.sum_largest(z, 2), []),
        "tv": (near + cp.tv(z), []),
        "minimum": (near - cp.min(z), []),
        "lambda_max": (near_Z + cp.lambda_max(Z), []),
        "lambda_sum_largest": (near_Z + cp.lambda_sum_largest(Z, 2), []),
        "sigma_max": (near_Z + cp.sigma_max(Z), []),
        "nuclear_norm": (near_Z + cp.normNuc(Z), []),
        "frobenius": (near_Z + cp.norm(Z, "fro"), []),
        "psd": (near_Z, [Z >> 0]),
        "psd_attribute": (cp.sum_squares(cp.Variable((3, 3), PSD=True) - X), []),
        "nsd_attribute": (cp.sum_squares(cp.Variable((3, 3), NSD=True) - X), []),
        "soc": (near, [cp.SOC(z[0], z[1:])]),
        "exp_cone": (near, [cp.ExpCone(z[0], z[1] + 1, z[2])]),
        "pow_cone": (near, [cp.PowCone3D(z[0], z[1], z[2], 0.3)]),
    }
    return {"smooth": smooth, "cone": cone}


PROBLEMS = problems()


def declared(name, kind):
    objective, constraints = PROBLEMS[kind][name]
    return cp.Problem(cp.Minimize(objective), constraints)


def admissible(problem, rng):
    data = []
    for parameter in problem.parameters():
        value = normal(rng, *parameter.shape)
        value = value @ value.T if parameter.attributes["PSD"] else value
        data.append((value + value.T) / 2 if parameter.ndim == 2 else value)
    return data


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for kind, table in PROBLEMS.items() for name in table if name != "huber"]
)
def test_the_route_of_a_problem(name, kind, rng):
    """And on whatever route, the answer is cvxpy's."""
    problem = declared(name, kind)
    layer = OptLayer.from_problem(problem)
    assert route(layer) == kind
    data = admissible(problem, rng)
    cvxpy_solve(problem, problem.parameters(), data)
    for mine, variable in zip(as_tuple(layer(*data)), problem.variables(), strict=True):
        close(mine, primal_of(variable), 2e-4, name)


def test_huber_by_any_route():
    """Once differentiable: either will do. The prox of huber is a scaled value, then a shift by 2."""
    z, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.huber(z, 1)) + cp.sum_squares(z - x)))
    data = torch.tensor([0.5, 4.0, -5.0], dtype=F64)
    truth = torch.tensor([0.25, 3.0, -4.0], dtype=F64)
    for method in ("auto", "cone"):
        layer = OptLayer.from_problem(problem, method=method)
        close(layer(data), truth)
        close(torch.func.jacrev(layer)(data), torch.diag(torch.tensor([0.5, 1, 1], dtype=F64)))


@pytest.mark.parametrize("kind", ["smooth", "cone"])
def test_a_route_asked_for_is_taken(kind):
    problem = declared("quadratic", "smooth")
    assert route(OptLayer.from_problem(problem, method=kind)) == kind
    z, x = cp.Variable(3), cp.Parameter(3)
    layer = OptLayer([z], [x], lambda z, x: cp.sum_squares(z - x), [lambda z, x: -z], method=kind)
    assert route(layer) == kind
    data = torch.tensor([1.0, -2, 3], dtype=F64)
    solution = layer.solve(data)
    close(solution.primal[0], data.relu())
    close(solution.inequality_duals[0], 2 * (-data).relu())
    close(torch.func.jacrev(layer)(data), torch.diag(torch.tensor([1.0, 0, 1], dtype=F64)))


@pytest.mark.parametrize("name", ["abs", "norm1", "max", "lambda_max", "psd", "soc"])
def test_the_smooth_route_refuses_what_is_not_smooth(name):
    word = {"psd": "PSD|semidefinite|>>", "soc": "SOC|second-order|cone"}.get(name, name)
    with pytest.raises(DeclarationError, match=all_of(word, "(?i:cone)")):
        OptLayer.from_problem(declared(name, "cone"), method="smooth")


# ------------------------------ callables


ATOMS = {
    "abs": lambda z, x: cp.sum(cp.abs(z - x)) + cp.sum_squares(z) / 2,
    "norm1": lambda z, x: cp.norm1(z - x) + cp.sum_squares(z) / 2,
    "norm2": lambda z, x: cp.norm2(z - x) + cp.sum_squares(z) / 2,
    "norm3": lambda z, x: cp.pnorm(z - x, 3) + cp.sum_squares(z) / 2,
    "norm_inf": lambda z, x: cp.norm_inf(z - x) + cp.sum_squares(z) / 2,
    "max": lambda z, x: cp.max(z - x) + cp.sum_squares(z) / 2,
    "maximum": lambda z, x: cp.sum(cp.maximum(z, x)) + cp.sum_squares(z) / 2,
    "pos": lambda z, x: cp.sum(cp.pos(z - x)) + cp.sum_squares(z + 0.5),
    "sum_largest": lambda z, x: cp.sum_largest(z - x, 2) + cp.sum_squares(z) / 2,
    "tv": lambda z, x: cp.tv(z) + cp.sum_squares(z - x),
    "min": lambda z, x: -cp.min(z - x) + cp.sum_squares(z) / 2,
}


@pytest.mark.parametrize("name", ATOMS)
def test_atoms_in_a_callable(name, rng):
    z, x = cp.Variable(4, name="z"), cp.Parameter(4, name="x")
    layer = OptLayer([z], [x], ATOMS[name], [lambda z, x: z - 2], [lambda z, x: z[0] + z[1] - x[2]])
    assert route(layer) == "cone"
    u, p = cp.Variable(4), cp.Parameter(4)
    constraints = [u - 2 <= 0, u[0] + u[1] - p[2] == 0]
    problem = cp.Problem(cp.Minimize(ATOMS[name](u, p)), constraints)
    data = 2 * normal(rng, 3, 4)
    solution = layer.solve(data)
    for row in range(3):
        value = cvxpy_solve(problem, [p], (data[row],))
        close(solution.primal[0][row], primal_of(u), 1e-4)
        close(solution.value[row], value, 1e-5)
        close(solution.inequality_duals[0][row], torch.as_tensor(constraints[0].dual_value), 1e-4)
        close(solution.equality_duals[0][row], torch.as_tensor(np.array(constraints[1].dual_value)), 1e-4)
    assert torch.autograd.gradcheck(layer, leaves((data[:2],)), check_forward_ad=True)


SPECTRAL = {
    "lambda_max": lambda Z, X: cp.lambda_max(Z) + cp.sum_squares(Z - X),
    "sigma_max": lambda Z, X: cp.sigma_max(Z - X) + cp.sum_squares(Z),
    "norm_nuc": lambda Z, X: cp.normNuc(Z - X) + cp.sum_squares(Z),
}


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_atoms_in_a_callable(name, rng):
    Z, X = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    layer = OptLayer([Z], [X], SPECTRAL[name])
    assert route(layer) == "cone"
    half = normal(rng, 3, 3)
    data = half + half.T
    U, P = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    cvxpy_solve(cp.Problem(cp.Minimize(SPECTRAL[name](U, P))), [P], (data,))
    close(layer(data), primal_of(U), 1e-4)


def test_a_callable_over_a_semidefinite_variable(rng):
    X, A = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3))
    layer = OptLayer([X], [A], lambda X, A: cp.sum_squares(X - A))
    assert route(layer) == "cone"
    half = normal(rng, 3, 3)
    data = half + half.T
    values, Q = torch.linalg.eigh(data)
    close(layer(data), (Q * values.relu()) @ Q.T)


@pytest.mark.parametrize("method", ["auto", "cone"])
def test_a_batch_at_and_off_the_apex(method):
    """min |z - x| + |z|²/2: z = x for |x| <= 1, else the sign: at the apex the derivative is 1, off it 0."""
    z, x = cp.Variable(2), cp.Parameter(2)
    layer = OptLayer([z], [x], lambda z, x: cp.norm1(z - x) + cp.sum_squares(z) / 2, method=method)
    data = torch.tensor([[0.3, -0.7], [2.0, 0.2], [-3.0, 5.0], [0.0, 0.9]], dtype=F64)
    close(layer(data), data.clamp(-1, 1))
    slopes = torch.func.vmap(torch.func.jacrev(layer))(data)
    close(slopes, torch.diag_embed((data.abs() < 1).double()))

    layer = OptLayer([z], [x], lambda z, x: cp.norm2(z - x) + cp.sum_squares(z) / 2, method=method)

    def truth(x):
        norm = x.norm(dim=-1, keepdim=True)
        return torch.where(norm <= 1, x, x / norm)

    close(layer(data), truth(data))
    close(
        torch.func.vmap(torch.func.jacrev(layer))(data),
        torch.func.vmap(torch.func.jacrev(truth))(data),
    )


def test_a_smooth_callable_by_the_cone_route(rng):
    layer = OptLayer(
        [cp.Variable(4)],
        [cp.Parameter(4)],
        lambda z, x: cp.sum_squares(z - x),
        [lambda z, x: -z],
        [lambda z, x: cp.sum(z) - 1],
        method="cone",
    )
    x = torch.tensor([[0.9, 0.1, 0.5, -0.3], [0.2, 1.4, -1.0, 0.6]], dtype=F64)
    close(layer(x), sparsemax(x))
    assert torch.autograd.gradcheck(layer, leaves((x,)), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, leaves((x[:1],)))


def test_two_branches_with_a_norm(rng):
    """The torch branch is checked against the cvxpy one on the cone route too."""

    def distance(z, x):
        if isinstance(z, torch.Tensor):
            return (z - x).abs().sum() + z.square().sum() / 2
        return cp.norm1(z - x) + cp.sum_squares(z) / 2

    data = torch.tensor([0.3, -4.0], dtype=F64)
    close(OptLayer([cp.Variable(2)], [cp.Parameter(2)], distance)(data), data.clamp(-1, 1))


# ------------------------------ refused by name


def refused(problem, *parts, **options):
    with pytest.raises(DeclarationError, match=all_of(*parts)):
        OptLayer.from_problem(problem, **options)


METHODS = pytest.mark.parametrize("method", ["auto", "cone", "smooth"])


@METHODS
@pytest.mark.parametrize("attribute", ["boolean", "integer"])
def test_discrete_variables(attribute, method):
    ships, x = cp.Variable(3, name="ships", **{attribute: True}), cp.Parameter(3)
    refused(cp.Problem(cp.Minimize(cp.norm1(ships - x))), "ships", attribute, method=method)


@METHODS
def test_some_entries_discrete(method):
    ships, x = cp.Variable(3, name="ships", integer=[(0,)]), cp.Parameter(3)
    refused(cp.Problem(cp.Minimize(cp.sum_squares(ships - x))), "ships", "integer", method=method)


@METHODS
def test_quasiconvex_problems(method):
    z, x = cp.Variable(2, name="z"), cp.Parameter(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.ceil(z[0])), [z >= x])
    assert problem.is_dqcp()
    refused(problem, "(?i:dqcp|quasi)", method=method)


@METHODS
def test_problems_that_are_not_convex(method):
    z, x = cp.Variable(2, name="z"), cp.Parameter(2, name="x")
    objective = cp.Minimize(cp.sum_squares(z - x))
    refused(cp.Problem(objective, [cp.norm(z) >= 1]), "(?i:convex|dcp)", "(?i:norm)", method=method)
    refused(cp.Problem(cp.Maximize(cp.sum_squares(z))), "(?i:convex|dcp|concave)", method=method)
    refused(cp.Problem(objective, [z[0] * z[1] >= 1]), "(?i:convex|dcp)", r"z\[0\]", method=method)


@METHODS
def test_constraints_that_are_named_when_not_convex(method):
    z = cp.Variable(2, name="z")
    outside = cp.sum_squares(z) >= 1
    outside.set_label("outside")
    refused(cp.Problem(cp.Minimize(cp.sum(z)), [z <= 1, outside]), "outside", method=method)


def not_dpp():
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    price, rate = cp.Parameter(nonneg=True, name="price"), cp.Parameter(nonneg=True, name="rate")
    limit = price * rate * cp.norm1(z) <= 1
    return cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [z >= -9, limit]), [x, price, rate]


def test_a_product_of_parameters_beside_an_atom_that_is_not_smooth():
    """Solved, or refused with the constraint, the term and a rewriting; never solved wrong."""
    problem, parameters = not_dpp()
    assert problem.is_dcp()
    assert not problem.is_dpp()
    try:
        layer = OptLayer.from_problem(problem, parameters)
    except DeclarationError as error:
        text = str(error)
        assert "DPP" in text
        assert all(name in text for name in ("price", "rate", "norm1"))
        assert any(word in text for word in ("instead", "write", "new parameter", "one parameter"))
    else:
        data = (torch.tensor([1.3, -2, 0.5], dtype=F64), *torch.tensor([0.5, 2.0], dtype=F64))
        cvxpy_solve(problem, parameters, data)
        close(layer(*data), primal_of(problem.variables()[0]), 1e-5)
        assert torch.autograd.gradcheck(layer, leaves(data), check_forward_ad=True)


def test_what_is_not_dpp_on_the_cone_route():
    """A quadratic form in a constraint is named when the cone route is insisted on, or solved."""
    z, q = cp.Variable(3, name="z"), cp.Parameter(3, name="q")
    metric = cp.Parameter((3, 3), PSD=True, name="metric")
    problem = cp.Problem(cp.Minimize(q @ z), [cp.quad_form(z, metric) <= 1])
    data = (torch.diag(torch.tensor([1.0, 2, 4], dtype=F64)), torch.tensor([1.0, -1, 2], dtype=F64))
    try:
        layer = OptLayer.from_problem(problem, [metric, q], method="cone")
    except DeclarationError as error:
        assert "metric" in str(error)  # noqa: PT017
        assert "smooth" in str(error)  # noqa: PT017
    else:
        cvxpy_solve(problem, [metric, q], data)
        close(layer(*data), primal_of(z), 1e-5)


def test_a_smooth_problem_that_is_not_dpp(rng):
    """Products of parameters, and functions of them: min |z - a b x|² over z <= exp(a)."""
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    a, b = cp.Parameter(name="a"), cp.Parameter(name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - a * b * x)), [z <= cp.exp(a)])
    assert not problem.is_dpp()
    layer = OptLayer.from_problem(problem, [a, b, x])
    assert route(layer) == "smooth"

    def truth(a, b, x):
        return torch.minimum(a * b * x, a.exp().expand(3))

    data = (*torch.tensor([0.7, 1.5], dtype=F64), torch.tensor([1.0, 3.0, -2.0], dtype=F64))
    close(layer(*data), truth(*data))
    for mine, right in zip(
        torch.func.jacrev(layer, (0, 1, 2))(*data), torch.func.jacrev(truth, (0, 1, 2))(*data), strict=True
    ):
        close(mine, right)
