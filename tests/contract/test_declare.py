"""How problems are written down, and what is refused at construction, by name and with a way out."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import DeclarationError, OptLayer, OptLayerError

from .problems import all_of, close, normal, one, sample_sparsemax, sparsemax


def declare(objective, inequalities=(), equalities=(), n=3, variable=None, parameter=None, **options):
    z = cp.Variable(n, name="z") if variable is None else variable
    x = cp.Parameter(n, name="x") if parameter is None else parameter
    return OptLayer([z], [x], objective, list(inequalities), list(equalities), **options)


def squares(z, x):
    return cp.sum_squares(z - x)


# ------------------------------ ways to write


def test_plain_arithmetic(rng):
    layer = declare(
        lambda z, x: (z - x) @ (z - x) if isinstance(z, torch.Tensor) else cp.sum_squares(z - x),
        [lambda z, x: -z],
        [lambda z, x: z[0] + z[1] + z[2] - 1],
    )
    (x,) = sample_sparsemax(rng, 4, n=3)
    close(layer(x), sparsemax(x))


def test_only_plain_arithmetic(rng):
    """No cvxpy atom anywhere: operators and indices alone."""

    layer = declare(
        lambda z, x: (z[0] - x[0]) ** 2 + (z[1] - x[1]) ** 2 + (z[2] - 2 * x[2] / 4) ** 2 + (1 + x[0]) * z[0],
        [lambda z, x: -z, lambda z, x: z[0] - x[1] ** 2 - 10],
        [lambda z, x: z[2] - z[1] - x[0] * x[1]],
    )
    x = normal(rng, 3).abs() + 1
    z0 = (x[0] - (1 + x[0]) / 2).relu()
    z1 = (x[1] + x[2] / 2 - x[0] * x[1]) / 2
    if z1 > 0:
        close(layer(x), torch.stack([z0, z1, z1 + x[0] * x[1]]))
    x = torch.tensor([0.5, 3.0, 2.0], dtype=torch.float64)
    close(layer(x), torch.tensor([0.0, 1.25, 2.75], dtype=torch.float64))


def test_two_branches_as_in_the_tutorial(rng):
    def objective(z, x):
        return cp.sum_squares(z - x) if isinstance(z, cp.Variable) else (z - x).square().sum()

    def inequality(z, x):
        return -z

    def equality(z, x):
        return cp.sum(z) - 1 if isinstance(z, cp.Variable) else z.sum() - 1

    layer = declare(objective, [inequality], [equality])
    (x,) = sample_sparsemax(rng, 4, n=3)
    close(layer(x), sparsemax(x))
    close(torch.func.jacrev(layer)(x[0]), torch.func.jacrev(sparsemax)(x[0]))


def test_two_branches_of_a_logarithm(rng):
    """The check looks only at points of the domain."""

    def objective(z, x):
        if isinstance(z, torch.Tensor):
            return -x @ z + (z * z.log()).sum()
        return -x @ z - cp.sum(cp.entr(z))

    layer = declare(
        objective, [], [lambda z, x: cp.sum(z) - 1 if isinstance(z, cp.Variable) else z.sum() - 1]
    )
    x = normal(rng, 4, 3)
    close(layer(x), x.softmax(-1))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_an_objective_of_one_element(shape, rng):
    def objective(z, x):
        return cp.reshape(cp.sum_squares(z - x), shape, order="F")

    x = normal(rng, 2, 3)
    solution = declare(objective, [lambda z, x: -z]).solve(x)
    close(solution.primal[0], x.relu())
    assert solution.value.shape == (2,)


def test_constraints_may_be_scalars_vectors_and_matrices(rng):
    layer = OptLayer(
        [cp.Variable((2, 2))],
        [cp.Parameter((2, 2))],
        objective=squares,
        inequalities=[lambda z, x: -z, lambda z, x: z[0, 0] - 1, lambda z, x: cp.sum(z[1]) - 5],
        equalities=[lambda z, x: z[0] - z[0] @ np.ones(2) / 2],
    )
    x = torch.tensor([[3.0, 1.0], [-1.0, 2.0]], dtype=torch.float64)
    close(layer(x), torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64))


def test_tuples_and_defaults():
    layer = OptLayer((cp.Variable(3),), (cp.Parameter(3),), squares, (lambda z, x: -z,))
    x = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    close(layer(x), x.relu())


def test_constants_are_taken_as_they_are(rng):
    matrix = normal(rng, 3, 3).numpy()
    layer = declare(lambda z, x: cp.sum_squares(matrix @ z - x))
    x = normal(rng, 2, 3)
    close(layer(x) @ torch.as_tensor(matrix).T, x, 1e-7)


def test_a_learned_cvxpy_constant_is_copied(rng):
    matrix = np.eye(3)
    layer = declare(lambda z, x: cp.sum_squares(matrix @ z - x))
    x = normal(rng, 3)
    before = layer(x)
    matrix *= 2
    close(layer(x), before, 1e-12)


# ------------------------------ attributes of variables


@pytest.mark.parametrize(
    ("attributes", "truth"),
    [
        ({"nonneg": True}, lambda x: x.relu()),
        ({"nonpos": True}, lambda x: -(-x).relu()),
        ({"bounds": [-0.5, 0.25]}, lambda x: x.clamp(-0.5, 0.25)),
        (
            {"bounds": [np.array([-0.1, -0.2, -0.3]), None]},
            lambda x: torch.maximum(x, torch.tensor([-0.1, -0.2, -0.3], dtype=x.dtype)),
        ),
        ({"pos": True}, lambda x: x.relu()),
        ({"neg": True}, lambda x: -(-x).relu()),
    ],
    ids=["nonneg", "nonpos", "bounds", "lower-bounds", "pos", "neg"],
)
def test_attributes_become_constraints(attributes, truth, rng):
    x = normal(rng, 6, 3)
    assert not torch.equal(truth(x), x)
    layer = declare(squares, variable=cp.Variable(3, name="z", **attributes))
    close(layer(x), truth(x))
    close(torch.func.vmap(torch.func.jacrev(layer))(x), torch.func.vmap(torch.func.jacrev(truth))(x))


def test_symmetric_variables(rng):
    layer = declare(squares, variable=cp.Variable((3, 3), symmetric=True), parameter=cp.Parameter((3, 3)))
    x = normal(rng, 2, 3, 3)
    z = layer(x)
    close(z, (x + x.mT) / 2)
    close(z, z.mT, 1e-14)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),), check_forward_ad=True)


def test_diagonal_variables(rng):
    layer = declare(squares, variable=cp.Variable((3, 3), diag=True), parameter=cp.Parameter((3, 3)))
    x = normal(rng, 2, 3, 3)
    close(layer(x), torch.diag_embed(x.diagonal(dim1=-2, dim2=-1)))


def test_attributes_beside_constraints(rng):
    layer = declare(squares, [], [lambda z, x: cp.sum(z) - 1], variable=cp.Variable(3, nonneg=True))
    (x,) = sample_sparsemax(rng, 4, n=3)
    solution = layer.solve(x)
    close(solution.primal[0], sparsemax(x))
    assert solution.equality_duals[0].shape == (4,)


@pytest.mark.parametrize("attribute", ["boolean", "integer", "complex", "imag", "hermitian"])
def test_attributes_refused_by_name(attribute):
    with pytest.raises(DeclarationError, match=all_of("amount", attribute)):
        OptLayer(
            [cp.Variable((3, 3), name="amount", **{attribute: True})],
            [cp.Parameter((3, 3))],
            objective=lambda z, x: cp.sum_squares(cp.real(z) - x),
        )


CONIC = {"PSD": {"PSD": True}, "NSD": {"NSD": True}, "sparsity": {"sparsity": [(0, 1), (0, 1)]}}


@pytest.mark.parametrize("attribute", CONIC)
def test_attributes_that_take_the_cone_route(attribute, rng):
    """Projections of a symmetric matrix; refused by name where the smooth route is asked for."""
    projected = {
        "PSD": lambda x: torch.linalg.eigh(x)[1] @ torch.diag(torch.linalg.eigvalsh(x).relu()),
        "NSD": lambda x: torch.linalg.eigh(x)[1] @ torch.diag(-torch.linalg.eigvalsh(-x).flip(0).relu()),
        "sparsity": lambda x: torch.diag(x.diagonal()),
    }[attribute]
    x = normal(rng, 2, 2)
    x = x + x.mT
    expected = projected(x) if attribute == "sparsity" else projected(x) @ torch.linalg.eigh(x)[1].mT
    variable = [cp.Variable((2, 2), name="amount", **CONIC[attribute])]
    close(OptLayer(variable, [cp.Parameter((2, 2))], objective=squares)(x), expected)
    with pytest.raises(DeclarationError, match=all_of("amount", attribute)):
        OptLayer(variable, [cp.Parameter((2, 2))], objective=squares, method="smooth")


@pytest.mark.parametrize("attribute", ["complex", "imag", "hermitian"])
def test_parameter_attributes_refused_by_name(attribute):
    with pytest.raises(DeclarationError, match=all_of("price", attribute)):
        OptLayer(
            [cp.Variable((3, 3))],
            [cp.Parameter((3, 3), name="price", **{attribute: True})],
            objective=lambda z, x: cp.sum_squares(z - cp.real(x)),
        )


# ------------------------------ the two branches disagree


def test_branches_with_other_values():
    def cost_of_goods(z, x):
        return cp.sum_squares(z - x) if isinstance(z, cp.Variable) else 1.01 * (z - x).square().sum()

    with pytest.raises(DeclarationError, match=all_of("cost_of_goods", r"\d+\.?\d*(e-?\d+)?")):
        declare(cost_of_goods)


def test_branches_with_other_derivatives():
    """The values agree; the derivative with respect to the parameter does not."""

    def shop(z, x):
        return cp.sum_squares(z - x) if isinstance(z, cp.Variable) else (z - x.detach()).square().sum()

    with pytest.raises(DeclarationError, match=all_of("shop", r"\bx\b")):
        declare(shop)


def test_constraint_branches_disagree():
    def floor(z, x):
        return -z

    def ceiling(z, x):
        return z - 2 if isinstance(z, cp.Variable) else z - 2.5

    with pytest.raises(DeclarationError, match=all_of("ceiling", r"0\.5|5e-01|5\.0*e-01")):
        declare(squares, [floor, ceiling])


def test_equality_branches_disagree_in_order():
    """A matrix read row by row in one branch, column by column in the other."""

    def flow(z, x):
        return (
            cp.vec(z, order="F") - cp.vec(x, order="F")
            if isinstance(z, cp.Variable)
            else z.reshape(-1) - x.reshape(-1)
        )

    with pytest.raises(DeclarationError, match="flow"):
        OptLayer([cp.Variable((2, 3))], [cp.Parameter((2, 3))], objective=squares, equalities=[flow])


def test_branches_of_other_shapes():
    def flow(z, x):
        return z - x if isinstance(z, cp.Variable) else (z - x)[:2]

    with pytest.raises(DeclarationError, match=all_of("flow", "3", "2")):
        declare(squares, [], [flow])


# ------------------------------ callables that say something else


def test_a_constraint_with_a_sign():
    with pytest.raises(DeclarationError, match=all_of("(?i:inequalit.*0)", "<= ?0|x - z|difference|left|g")):
        declare(squares, [lambda z, x: z >= x])
    with pytest.raises(DeclarationError, match=r"(?i:inequalit.*1)"):
        declare(squares, [lambda z, x: -z, lambda z, x: z <= x])
    with pytest.raises(DeclarationError, match=r"(?i:equalit.*0)"):
        declare(squares, [], [lambda z, x: z == x])


def test_a_list_of_constraints():
    def corridor(z, x):
        return [z - x, -z]

    with pytest.raises(DeclarationError, match=all_of("corridor|(?i:inequalit.*0)", "list")):
        declare(squares, [corridor])
    with pytest.raises(DeclarationError, match="list"):
        declare(lambda z, x: [cp.sum_squares(z - x)])


@pytest.mark.parametrize(
    "leaf",
    [
        cp.Parameter(3, name="stranger", value=np.ones(3)),
        cp.Parameter(3, name="stranger"),
        cp.Variable(3, name="stranger"),
    ],
    ids=["valued", "parameter", "variable"],
)
def test_an_undeclared_leaf(leaf):
    with pytest.raises(DeclarationError, match="stranger"):
        declare(lambda z, x: cp.sum_squares(z - x) + cp.sum_squares(z - leaf))
    with pytest.raises(DeclarationError, match="stranger"):
        declare(squares, [lambda z, x: z - leaf])


def test_an_objective_that_is_no_scalar():
    with pytest.raises(DeclarationError, match=all_of("(?i:objective)", r"\(3,\)")):
        declare(lambda z, x: cp.square(z - x))


def test_an_objective_with_a_sense():
    with pytest.raises(DeclarationError, match=r"(?i:minimize|objective)"):
        declare(lambda z, x: cp.Minimize(cp.sum_squares(z - x)))


def test_nothing_returned():
    def forgot(z, x):
        cp.sum_squares(z - x)

    with pytest.raises(DeclarationError, match=all_of("forgot", "None")):
        declare(forgot)


def test_something_that_is_no_callable():
    z, x = cp.Variable(3), cp.Parameter(3)
    with pytest.raises(DeclarationError, match=r"(?i:callable)"):
        OptLayer([z], [x], cp.sum_squares(z - x))
    with pytest.raises(DeclarationError, match=r"(?i:callable)"):
        declare(squares, [cp.Variable(3) <= 0])


@pytest.mark.parametrize(
    ("variables", "parameters"),
    [
        ([torch.zeros(3)], [cp.Parameter(3)]),
        ([cp.Variable(3)], [torch.zeros(3)]),
        ([cp.Parameter(3)], [cp.Parameter(3)]),
        ([cp.Variable(3)], [cp.Variable(3)]),
    ],
    ids=["tensor", "tensor-parameter", "parameter-as-variable", "variable-as-parameter"],
)
def test_leaves_of_the_wrong_kind(variables, parameters):
    with pytest.raises(DeclarationError, match=r"(?i:variable|parameter)"):
        OptLayer(variables, parameters, objective=squares)


# ------------------------------ not convex


@pytest.mark.parametrize(
    ("objective", "part"),
    [
        (lambda z, x: -cp.sum_squares(z - x), "sum_squares|quad_over_lin"),
        (lambda z, x: cp.sum(cp.log(z)), "log"),
        (lambda z, x: cp.sum(cp.multiply(z, z[::-1])), "z"),
        (lambda z, x: cp.sum(cp.sqrt(z)), "(?i:sqrt|power)"),
    ],
    ids=["concave", "log", "bilinear", "sqrt"],
)
def test_an_objective_that_is_not_convex(objective, part):
    with pytest.raises(DeclarationError, match=all_of("(?i:convex|dcp)", "(?i:objective)", part)):
        declare(objective)


def test_constraints_that_are_not_convex():
    def outside(z, x):
        return 1 - cp.sum_squares(z)

    def sphere(z, x):
        return cp.sum_squares(z) - 1

    with pytest.raises(DeclarationError, match=all_of("(?i:convex|dcp)", "outside")):
        declare(squares, [outside])
    with pytest.raises(DeclarationError, match=all_of("(?i:affine|convex|dcp)", "sphere")):
        declare(squares, [], [sphere])


# ------------------------------ what later engines will do


@pytest.mark.parametrize("method", ["auto", "smooth"])
@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (lambda z, x: cp.sum(cp.abs(z - x)), "abs"),
        (lambda z, x: cp.norm1(z - x), "norm1"),
        (lambda z, x: cp.max(z - x) + cp.sum_squares(z), "max"),
        (lambda z, x: cp.sum(cp.maximum(z, x)) + cp.sum_squares(z), "maximum"),
        (lambda z, x: cp.norm_inf(z - x), "norm_inf"),
        (lambda z, x: cp.sum_largest(z - x, 2) + cp.sum_squares(z), "sum_largest"),
        (lambda z, x: cp.sum(cp.pos(z - x)) + cp.sum_squares(z), "pos|maximum"),
        (lambda z, x: cp.tv(z) + cp.sum_squares(z - x), "tv|abs|norm"),
    ],
    ids=["abs", "norm1", "max", "maximum", "norm_inf", "sum_largest", "pos", "tv"],
)
def test_atoms_that_are_not_smooth(objective, name, method):
    if method == "auto":
        assert "route: cone" in repr(declare(objective))
        return
    with pytest.raises(DeclarationError, match=all_of(name, "(?i:cone|epigraph|instead|rewrite|write|use )")):
        declare(objective, method=method)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (lambda Z, X: cp.lambda_max(Z) + cp.sum_squares(Z - X), "lambda_max"),
        (lambda Z, X: cp.sigma_max(Z - X) + cp.sum_squares(Z), "sigma_max"),
        (lambda Z, X: cp.normNuc(Z - X), "(?i:norm_?nuc)"),
    ],
    ids=["lambda_max", "sigma_max", "norm_nuc"],
)
def test_spectral_atoms(objective, name):
    variable, parameter = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    with pytest.raises(DeclarationError, match=all_of(name)):
        OptLayer([variable], [parameter], objective=objective, method="smooth")
    assert "route: cone" in repr(OptLayer([variable], [parameter], objective=objective))


def test_an_atom_in_a_constraint(rng):
    with pytest.raises(DeclarationError, match=r"norm1|abs"):
        declare(squares, [lambda z, x: cp.norm1(z) - 1], method="smooth")
    z = declare(squares, [lambda z, x: cp.norm1(z) - 1])(10 * normal(rng, 3))
    close(z.abs().sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize(
    "norm",
    [lambda e: cp.norm2(e), lambda e: cp.pnorm(e, 2), lambda e: cp.pnorm(e, 3)],
    ids=["norm2", "pnorm2", "pnorm3"],
)
def test_norms_are_smooth_only_when_asked_for(norm):
    objective = lambda z, x: norm(z - x) + cp.sum_squares(z)
    assert "route: cone" in repr(declare(objective))
    layer = declare(objective, method="smooth")
    x = torch.tensor([3.0, -4.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),), check_forward_ad=True)


def test_the_cone_route_where_the_smooth_one_would_do(rng):
    x = normal(rng, 4, 3)
    layer = declare(squares, [lambda z, x: -z], method="cone")
    assert "route: cone" in repr(layer)
    close(layer(x), x.relu())


def test_branches_of_what_is_not_smooth():
    """There is no translation to compare with: the values are compared."""

    def shop(z, x):
        return cp.norm1(z - x) if isinstance(z, cp.Variable) else (z - x).abs().sum()

    def sham(z, x):
        return cp.norm1(z - x) if isinstance(z, cp.Variable) else 1.5 * (z - x).abs().sum()

    assert "route: cone" in repr(declare(shop))
    with pytest.raises(DeclarationError, match=all_of("sham", "values")):
        declare(sham)


def test_torch_only_callables():
    def energy(z, x):
        return torch.sum((z - x) ** 2)

    assert "energy" in repr(declare(energy))
    assert "INTERIOR" in repr(declare(squares, [lambda z, x: torch.nn.functional.softplus(z) - 1]))
    with pytest.raises(DeclarationError, match=all_of("torch only", "cone")):
        declare(energy, method="cone")


def test_module_callables():
    class Energy(torch.nn.Module):
        def forward(self, z, x):
            return cp.sum_squares(z - x)

    with pytest.raises(DeclarationError, match=r"Module|Energy"):
        declare(Energy())
    with pytest.raises(DeclarationError, match=r"Module|Linear"):
        declare(squares, [torch.nn.Linear(3, 3)])


def test_a_closed_over_parameter():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def weighted(z, x):
        if isinstance(z, torch.Tensor):
            return (weight * (z - x)).square().sum()
        return cp.sum_squares(cp.multiply(weight.detach().numpy(), z - x))

    with pytest.raises(
        DeclarationError, match=all_of("weighted", "(?i:parameter|gradient)", "(?i:declare|pass|Module)")
    ):
        declare(weighted)


def test_a_closed_over_parameter_in_a_constraint():
    bound = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def capped(z, x):
        return z - (bound if isinstance(z, torch.Tensor) else bound.detach().numpy())

    with pytest.raises(DeclarationError, match="capped"):
        declare(squares, [capped])


# ------------------------------ options


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"tolerence": 1e-6}, ["tolerence"]),
        ({"max_iterations_of_nobody": 3}, ["max_iterations_of_nobody"]),
        ({"method": "newton"}, ["method", "newton", "smooth"]),
        ({"on_failure": "explode"}, ["on_failure", "explode", "nan"]),
        ({"on_failure": 3}, ["on_failure", "3"]),
        ({"nonunique": "maybe"}, ["nonunique", "maybe", "ignore"]),
        ({"tolerance": -1.0}, ["tolerance", "-1"]),
        ({"tolerance": "small"}, ["tolerance", "small"]),
        ({"solver": "NOPE"}, ["NOPE"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options(options, parts):
    with pytest.raises(DeclarationError, match=all_of(*parts)):
        declare(squares, **options)


def test_an_unknown_solver_option_is_never_dropped():
    with pytest.raises(DeclarationError, match="max_itre"):
        declare(squares, solver=cp.CLARABEL, max_itre=3)


def test_known_solver_options_pass(rng):
    x = normal(rng, 3)
    close(declare(squares, solver=cp.CLARABEL, max_iter=50)(x), x)
    close(declare(squares, solver=cp.OSQP, max_iter=5000, eps_abs=1e-6)(x), x)
    close(declare(squares, solver=cp.SCS, max_iters=5000)(x), x)


@pytest.mark.parametrize("solver", [cp.CLARABEL, cp.SCS, cp.OSQP])
def test_polish_makes_every_solver_exact(solver, rng):
    (x,) = sample_sparsemax(rng, 8, n=3)
    layer = declare(squares, [lambda z, x: -z], [lambda z, x: cp.sum(z) - 1], solver=solver)
    close(layer(x), sparsemax(x), 1e-10)


def test_declaration_errors_are_value_errors():
    with pytest.raises(ValueError, match="norm1"):
        declare(lambda z, x: cp.norm1(z), method="smooth")
    with pytest.raises(OptLayerError, match="method"):
        declare(squares, method="conic")


def test_names_given_twice():
    """Two parameters of one name could not be told apart by keyword."""
    parameters = [cp.Parameter(3, name="x"), cp.Parameter(3, name="x")]
    try:
        layer = OptLayer([cp.Variable(3)], parameters, objective=lambda z, x, y: cp.sum_squares(z - x - y))
    except DeclarationError as error:
        assert "x" in str(error)  # noqa: PT017
    else:
        close(layer(one(3), one(3)), 2 * one(3))
