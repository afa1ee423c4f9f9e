"""Data of very different sizes: answered right or refused, never wrong, never called infeasible or unbounded.

The objectives are sums over three elements, so the answer is known element by element. Data of moderate
spread must be solved, each element to its own relative precision; beyond, what is certified is right in norm.
"""

import cvxpy as cp
import pytest
import torch

from optlayer import OptLayer, Status

from .problems import close, normal, plant_qp, qp_layer, symmetric, uniform, vector_layer

FAMILIES = {  # objective, the answer, the base-10 range of data that must be solved
    "log": (lambda z, x: x @ z - cp.sum(cp.log(z)), lambda x: 1 / x, 4),
    "inv_pos": (lambda z, x: x @ z + cp.sum(cp.inv_pos(z)), lambda x: x**-0.5, 4),
    "sqrt": (lambda z, x: x @ z - cp.sum(cp.sqrt(z)), lambda x: 1 / (4 * x**2), 2),
    "entr": (lambda z, x: -cp.sum(cp.entr(z)) - cp.log(x) @ z, lambda x: x / torch.e, 4),
    "kl_div": (lambda z, x: cp.sum(cp.kl_div(z, x)) + cp.sum(z) / 2, lambda x: x * torch.e**-0.5, 4),
    "exp": (lambda z, x: cp.sum(cp.exp(z)) - x @ z, lambda x: x.log(), 3),
    "square": (lambda z, x: cp.sum_squares(cp.multiply(x, z) - 1), lambda x: 1 / x, 3),
    "power": (lambda z, x: cp.sum(cp.power(z, 1.5)) - x @ z, lambda x: 4 * x**2 / 9, 2),
    "quad_over_lin": (
        lambda z, x: x @ z + sum(cp.quad_over_lin(1.0, z[i]) for i in range(3)),
        lambda x: x**-0.5,
        4,
    ),
    "bound": (lambda z, x: cp.sum_squares(z - x), lambda x: x, 8),
}


def spread(rng, decades, size):
    return 10 ** uniform(rng, size, 3, low=-decades, high=decades)


def solve(name, decades, rng, size=40):
    objective, answer, _ = FAMILIES[name]
    inequalities = [lambda z, x: -z] if name == "bound" else []
    x = spread(rng, decades, size)
    layer = vector_layer(3, objective, inequalities, on_failure="nan", nonunique="ignore")
    solution = layer.solve(x)
    return x, solution, (solution.primal[0] - answer(x)).abs(), answer(x).abs()


@pytest.mark.parametrize("name", FAMILIES)
def test_data_of_moderate_spread_is_solved(name, rng):
    x, solution, error, size = solve(name, FAMILIES[name][2], rng)
    refused = solution.status != Status.SOLVED
    assert not refused.any(), f"{refused.sum()} of {len(x)} were refused, the first at x = {x[refused][0]}"
    assert (error < 1e-8 * size + 1e-14).all()


@pytest.mark.parametrize("decades", [6, 8])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "power"])
def test_data_of_any_spread_is_never_answered_wrong(name, decades, rng):
    x, solution, error, size = solve(name, decades, rng)
    assert not ((solution.status == Status.INFEASIBLE) | (solution.status == Status.UNBOUNDED)).any()
    relative = error.amax(-1) / size.amax(-1)
    wrong = (solution.status == Status.SOLVED) & ~(relative < 1e-6)
    assert not wrong.any(), f"certified though {relative[wrong][0]:.1e} off, at x = {x[wrong][0]}"


@pytest.mark.parametrize(("decades", "rotated"), [(2, True), (3, True), (4, False), (6, False)])
def test_covariances_of_any_condition(decades, rotated, rng):
    layer = OptLayer(
        [cp.Variable((3, 3), symmetric=True)],
        [cp.Parameter((3, 3), symmetric=True)],
        lambda X, S: -cp.log_det(X) + cp.trace(S @ X),
        on_failure="nan",
        nonunique="ignore",
    )
    rotation = torch.linalg.qr(normal(rng, 12, 3, 3)).Q if rotated else torch.eye(3, dtype=torch.float64)
    values = spread(rng, decades, 12)
    S, X = (rotation @ torch.diag_embed(diagonal) @ rotation.mT for diagonal in (values, 1 / values))
    solution = layer.solve(*symmetric(S))
    solved = solution.status == Status.SOLVED
    relative = (solution.primal[0] - X).norm(dim=(-1, -2)) / X.norm(dim=(-1, -2))
    wrong = solved & ~(relative < 1e-6)
    assert not wrong.any(), f"certified though {relative[wrong][0]:.1e} off, eigenvalues {values[wrong][0]}"
    assert not ((solution.status == Status.INFEASIBLE) | (solution.status == Status.UNBOUNDED)).any()
    assert solved.all() or decades > 2


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1e-3, 1e3, 1e6])
def test_rows_of_any_size(scale, rng):
    """A constraint multiplied by a number: the same answer, Jacobian, and multiplier in its own units."""

    def layer(s):
        return vector_layer(
            3,
            lambda z, x: cp.sum_squares(z - x),
            [lambda z, x: s * (z - 1)],
            [lambda z, x: s * (cp.sum(z) - 1)],
        )

    x = 2 * normal(rng, 3, 3)
    ours, plain = layer(scale), layer(1)
    close(ours(x), plain(x))
    jacobian = torch.func.vmap(torch.func.jacrev(ours))(x)
    close(jacobian, torch.func.vmap(torch.func.jacrev(plain))(x))
    close(scale * ours.solve(x).inequality_duals[0], plain.solve(x).inequality_duals[0])
    close(scale * ours.solve(x).equality_duals[0], plain.solve(x).equality_duals[0])


def test_entropies_of_large_logits_are_not_unbounded():
    layer = vector_layer(3, lambda z, x: -x @ z - cp.sum(cp.entr(z)), on_failure="nan")
    x = torch.arange(5.0, 60.0, 5.0, dtype=torch.float64).unsqueeze(-1).expand(-1, 3)
    solution = layer.solve(x)
    solved = solution.status == Status.SOLVED
    assert not (solution.status == Status.UNBOUNDED).any()
    assert solved[:4].all()
    close((solution.primal[0] / (x - 1).exp())[solved], torch.ones_like(x)[solved])


def test_large_systems_in_batches(rng):
    """Batched dense solves above 150 unknowns, all threads on: derivatives against the reduced system."""
    n = 160
    planted = plant_qp(rng, n, 5, 3, batch=(5,))
    data = [tensor.clone() for tensor in planted.parameters]
    data[1].requires_grad_()
    z = qp_layer(n, 5, 3)(*data)
    close(z, planted.primal)
    w = normal(rng, 5, n)
    (dq,) = torch.autograd.grad(z, data[1], w)
    L, _, G, _, A, _ = planted.parameters
    for i in range(5):
        rows = torch.cat([G[i][planted.inequality[i] > 0], A[i]])
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(L[i].mT @ L[i]))
        middle = torch.cholesky_inverse(torch.linalg.cholesky(rows @ inverse @ rows.mT))
        projected = inverse - inverse @ rows.mT @ middle @ rows @ inverse
        close(dq[i], -projected @ w[i])
