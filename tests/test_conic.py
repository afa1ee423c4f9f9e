"""What a hostile review of the cone route found, by name."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import DeclarationError, InaccurateError, OptLayer

DOUBLE = torch.float64


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=float))


def solved_right_or_refused(layer, data, right):
    """No third way."""
    try:
        answer = layer(tensor(data))
    except InaccurateError:
        return
    assert right(answer), answer


@pytest.mark.parametrize("cap", [1e-10, 1e-8, 1e-7, 1e-6, 1e-4, 1.0, 1e4, 1e8, 1e10])
def test_a_square_that_is_small_beside_the_rows_of_its_cone(cap):
    """x² <= t is written (1 + t, 1 - t, 2x): a residual that is small beside 1 says nothing of t = 1e-9."""
    w, c = cp.Variable(3), cp.Parameter(nonneg=True)
    S, mu = np.diag([1.0, 2.0, 0.5]), np.array([1.0, 2.0, -3.0])
    problem = cp.Problem(cp.Maximize(mu @ w - 0.1 * cp.norm1(w)), [cp.quad_form(w, S) <= c])
    layer = OptLayer.from_problem(problem)
    solved_right_or_refused(layer, cap, lambda w: abs(w @ tensor(S) @ w / cap - 1) < 1e-5)
    if 1e-6 <= cap <= 1e4:
        layer(tensor(cap))


@pytest.mark.parametrize("budget", [1.0, 1e2, 1e4, 5e4, 1e6])
def test_reciprocals_far_out(budget):
    """min Σ s_i / n_i with Σ n_i <= B: n is proportional to √s."""
    s = np.array([1.0, 2.0, 4.0])
    n, B = cp.Variable(3), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(s, cp.inv_pos(n)))), [cp.norm1(n) <= B])
    layer = OptLayer.from_problem(problem, nonunique="ignore")
    share = tensor(np.sqrt(s) / np.sqrt(s).sum())
    solved_right_or_refused(layer, budget, lambda n: torch.allclose(n / budget, share, rtol=1e-5))


@pytest.mark.parametrize("size", [1.0, 3e2, 1e3, 1e4])
def test_the_larger_of_two_squares(size):
    z, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.maximum(cp.sum_squares(z - x), cp.sum_squares(z + x))))
    data = size * np.array([1.0, 2.0, -3.0])
    solved_right_or_refused(OptLayer.from_problem(problem), data, lambda z: z.abs().max() < 1e-6 * size)


@pytest.mark.parametrize("cap", [1e-12, 1e-8, 1.0, 1e8])
def test_functions_of_parameters_alone_are_data(cap):
    """√cap is computed in torch, also where cvxpy would allow it in the cone programme."""
    w, c = cp.Variable(3), cp.Parameter(nonneg=True)
    mu = np.array([1.0, 2.0, -3.0])
    problem = cp.Problem(cp.Maximize(mu @ w - 0.1 * cp.norm1(w)), [cp.norm2(w) <= cp.sqrt(c)])
    value = OptLayer.from_problem(problem).solve(tensor(cap)).value
    assert value.item() == pytest.approx(np.sqrt(cap) * np.linalg.norm([0.9, 1.9, 2.9]), rel=1e-9)


@pytest.mark.parametrize("norm", [cp.norm2, cp.norm1, cp.norm_inf, lambda p: cp.pnorm(p, 3)])
def test_the_derivative_of_a_norm_of_parameters_at_zero(norm):
    z, p = cp.Variable(), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize((norm(p) + 1) * cp.norm1(z) + cp.square(z - 2)))
    p = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    z = OptLayer.from_problem(problem)(p)
    z.backward()
    assert z.item() == pytest.approx(1.5)
    assert (p.grad == 0).all()


@pytest.mark.parametrize("exponent", [1.5, 2.5, 3.0, 3.5])
def test_powers_of_a_positive_part(exponent):
    """At z < 0 the power vanishes with its derivatives: z = x there."""
    z, x = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.power(cp.pos(z), exponent) + 0.5 * cp.square(z - x)))
    x = torch.tensor([-1.0, -0.3, 1.0, 4.0], dtype=DOUBLE, requires_grad=True)
    z = OptLayer.from_problem(problem)(x)
    assert torch.allclose(z[:2], x[:2], atol=1e-7)
    slope = exponent * z[2:].clamp_min(0) ** (exponent - 1)
    assert torch.allclose(slope + z[2:] - x[2:], torch.zeros(2, dtype=DOUBLE), atol=1e-9)


def test_a_perspective_takes_the_cone_route_by_itself():
    t, s, x = cp.Variable(name="t"), cp.Variable(nonneg=True, name="s"), cp.Parameter(name="x")
    problem = cp.Problem(cp.Minimize(cp.perspective(cp.square(t), s)), [t == x, s <= 2])
    layer = OptLayer.from_problem(problem)
    assert "route: cone" in repr(layer)
    assert layer.solve(tensor(3.0)).value.item() == pytest.approx(4.5)


def of_products(z, x, p, q):
    return cp.sum_squares(z - x) / 2 + p * q * cp.norm1(z)


def of_squares(z, x, p, q):
    return cp.sum_squares(z - x) / 2 + cp.square(p) * cp.norm1(z) + q * cp.sum(z)


def with_a_branch(z, x, p, q):
    if isinstance(z, cp.Expression):
        return of_products(z, x, p, q)
    return (z - x).square().sum() / 2 + p * q * z.abs().sum()


def with_another_branch(z, x, p, q):
    return of_products(z, x, p, q) if isinstance(z, cp.Expression) else p * q * z.abs().sum()


def shrunk(x, t):
    """argmin ½|z - x|² + t |z|₁."""
    return x.sign() * (x.abs() - t).relu()


SHRINKAGE = {
    of_products: lambda x, p, q: shrunk(x, p * q),
    of_squares: lambda x, p, q: shrunk(x - q, p.square()),
    with_a_branch: lambda x, p, q: shrunk(x, p * q),
}


def callable_layer(objective):
    variables = [cp.Variable(3)]
    parameters = [cp.Parameter(3), cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)]
    return OptLayer(variables, parameters, objective, [lambda z, x, p, q: p * q * cp.norm1(z) - 9])


@pytest.mark.parametrize("objective", SHRINKAGE)
def test_callables_are_rewritten_for_the_cone_route_too(objective):
    """Products and functions of parameters, in the objective and in a constraint that is slack."""
    layer = callable_layer(objective)
    assert "route: cone" in repr(layer)
    values = [1.0, -2.0, 0.1], 0.5, 0.7
    data = tuple(tensor(value).requires_grad_() for value in values)
    assert torch.allclose(layer(*data), SHRINKAGE[objective](*data), rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(layer, data)


def test_a_torch_branch_is_compared_in_the_users_parameters():
    """p, q, not the p * q that stands for them in the cone programme."""
    with pytest.raises(DeclarationError, match="two branches of objective 'with_another_branch' disagree"):
        callable_layer(with_another_branch)


def test_derivatives_on_the_cone_route_do_not_depend_on_units():
    """x was right to 1e-16, dx to 1e-5 and less: a unit was taken from rows that have their own."""
    z, L, q, G, h = (
        cp.Variable(3),
        cp.Parameter((3, 3)),
        cp.Parameter(3),
        cp.Parameter((3, 3)),
        cp.Parameter(3),
    )
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ z) / 2 + q @ z), [G @ z <= h])
    layer = OptLayer.from_problem(problem, [L, q, G, h], method="cone")
    rng = np.random.default_rng(35)
    data = np.eye(3) + np.tri(3) / 3, rng.standard_normal(3), rng.standard_normal((3, 3)), [-1.0, 5.0, 5.0]

    def slopes(D, R):
        units = 1 / D, 1 / D, R[:, None] / D, R
        leaves = [tensor(part * unit).requires_grad_() for part, unit in zip(data, units, strict=True)]
        (tensor([1.0, -2.0, 3.0]) * layer(*leaves) / tensor(D)).sum().backward()
        return [leaf.grad * tensor(unit) for leaf, unit in zip(leaves, units, strict=True)]

    scaled = slopes(2.0 ** np.array([-11, -4, 9]), 2.0 ** np.array([-1, 12, 12]))
    for slope, right in zip(scaled, slopes(np.ones(3), np.ones(3)), strict=True):
        assert torch.allclose(slope, right, rtol=1e-9, atol=1e-9)
