"""`smoothing=mu`: values are exact, derivatives those of the minimizer of f + μ · barrier."""

import math

import cvxpy as cp
import pytest
import torch
from torch.autograd.functional import jacobian

from optlayer import DeclarationError, OptLayer

DOUBLE = torch.float64
mus = pytest.mark.parametrize("mu", [1e-1, 1e-2, 1e-4])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def cheapest(mu=None, n=5, **options):
    """min cᵀz over the simplex: a vertex."""
    z, c = cp.Variable(n), cp.Parameter(n)
    return OptLayer(
        [z], [c], lambda z, c: c @ z, [lambda z, c: -z], [lambda z, c: cp.sum(z) - 1], smoothing=mu, **options
    )


def in_a_ball(mu=None, **options):
    z, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [cp.SOC(cp.Constant(1.0), z)])
    return OptLayer.from_problem(problem, smoothing=mu, **options)


def least_eigenvector(mu=None, **options):
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [X >> 0, cp.trace(X) == 1])
    return OptLayer.from_problem(problem, smoothing=mu, **options)


def boxed(mu=None, **options):
    """A quadratic programme with active and inactive bounds and a dense row."""
    z, x = cp.Variable(4), cp.Parameter(4)
    below, row = [lambda z, x: -z, lambda z, x: z - 1], lambda z, x: cp.sum(z) - 1.5
    return OptLayer([z], [x], lambda z, x: cp.sum_squares(z - x), [*below, row], smoothing=mu, **options)


def barrier_of(name, mu):
    """The same problem with the barrier written out, and no inequality."""
    if name == "simplex":
        z, c = cp.Variable(5), cp.Parameter(5)
        problem = cp.Problem(cp.Minimize(c @ z - mu * cp.sum(cp.log(z))), [cp.sum(z) == 1])
    elif name == "ball":
        z, x = cp.Variable(3), cp.Parameter(3)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) - 0.5 * mu * cp.log(1 - cp.sum_squares(z))))
    elif name == "eigenvector":
        X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
        problem = cp.Problem(cp.Minimize(cp.trace(C @ X) - mu * cp.log_det(X)), [cp.trace(X) == 1])
    else:
        z, x = cp.Variable(4), cp.Parameter(4)
        logs = cp.sum(cp.log(z)) + cp.sum(cp.log(1 - z)) + cp.log(1.5 - cp.sum(z))
        problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) - mu * logs))
    return OptLayer.from_problem(problem)


def symmetric(*shape, seed=0):
    C = random(*shape, seed=seed)
    return C + C.mT


CASES = {
    "simplex": (cheapest, random(4, 5)),
    "ball": (in_a_ball, 1.5 * random(4, 3)),
    "eigenvector": (least_eigenvector, symmetric(2, 3, 3)),
    "box": (boxed, random(4, 4) + 0.5),
}
cases = pytest.mark.parametrize("name", CASES)


@mus
@cases
def test_the_derivative_is_that_of_the_barrier_problem(name, mu):
    make, data = CASES[name]
    smoothed = jacobian(lambda d: make(mu)(d).sum(0), data)
    exact = jacobian(lambda d: barrier_of(name, mu)(d).sum(0), data)
    torch.testing.assert_close(smoothed, exact, rtol=1e-7, atol=1e-9)


@mus
@cases
def test_values_stay_exact(name, mu):
    make, data = CASES[name]
    exact, smoothed = make(nonunique="ignore").solve(data), make(mu, nonunique="ignore").solve(data)
    assert torch.equal(smoothed.primal[0], exact.primal[0])
    assert torch.equal(smoothed.value, exact.value)
    assert torch.equal(smoothed.residuals.stationarity, exact.residuals.stationarity)


@pytest.mark.parametrize("name", ["ball", "eigenvector", "box"])
def test_it_tends_to_the_exact_derivative(name):
    make, data = CASES[name]
    exact = jacobian(lambda d: make()(d).sum(0), data)
    apart = [
        (jacobian(lambda d, mu=mu: make(mu)(d).sum(0), data) - exact).abs().max() for mu in (1e-3, 1e-6, 1e-9)
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-4


@cases
def test_gradcheck_of_a_second_derivative(name):
    """Forward mode, reverse mode and double backward agree; numeric derivatives would see the exact map."""
    make, data = CASES[name]
    layer, one = make(1e-2), data[:1]
    reverse = torch.func.jacrev(layer)(one)
    forward = torch.func.jacfwd(layer)(one)
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-11)
    weights = random(*one.shape, seed=3)

    def slope(d):
        return torch.func.grad(lambda d: (weights * layer(d)).sum())(d)

    def of_barrier(d):
        return torch.func.grad(lambda d: (weights * barrier_of(name, 1e-2)(d)).sum())(d)

    # the smoothed root moves with the data, and so does its derivative
    torch.testing.assert_close(
        torch.func.jacfwd(slope)(one), torch.func.jacfwd(of_barrier)(one), rtol=1e-5, atol=1e-7
    )


def test_multipliers_move_as_on_the_central_path():
    """λ ∘ s = μ there: λ̇ s + λ ṡ = 0."""
    mu, c = 1e-2, random(3, 5)
    layer, barrier = cheapest(mu), barrier_of("simplex", mu)
    z = barrier(c)
    dz = jacobian(lambda c: barrier(c).sum(0), c)
    dlam = jacobian(lambda c: layer.solve(c).inequality_duals[0].sum(0), c)
    expected = -(mu / z.square()).T[:, :, None] * dz
    torch.testing.assert_close(dlam, expected, rtol=1e-7, atol=1e-9)


def test_a_linear_programme_learns():
    """The exact derivative is 0, and training stays where it is; the smoothed one finds the vertex."""

    def trained(layer):
        c = random(5, seed=1).requires_grad_()
        optimizer = torch.optim.Adam([c], 0.1)
        for _ in range(60):
            loss = (layer(c) - torch.eye(5, dtype=DOUBLE)[3]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return layer(c).detach()

    assert trained(cheapest())[3] < 1e-9
    assert trained(cheapest(0.1))[3] > 1 - 1e-9


def test_a_failed_sample_leaves_its_neighbours_alone():
    z, x, r = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [z >= 0, cp.sum(z) <= r])
    layer = OptLayer.from_problem(problem, [x, r], [z], smoothing=1e-2, on_failure="nan")
    data, radius = random(3, 2), torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE, requires_grad=True)
    found = layer(data, radius)
    assert found[1].isnan().all()
    found[[0, 2]].sum().backward()
    assert radius.grad[1] == 0
    assert radius.grad.isfinite().all()
    alone = layer(data[[0]], torch.ones(1, dtype=DOUBLE))
    torch.testing.assert_close(found[[0]], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mu", [0, -1.0, math.inf, math.nan, "small"])
def test_what_is_no_smoothing_is_refused(mu):
    with pytest.raises(DeclarationError, match="smoothing="):
        cheapest(mu)


def test_cones_without_smoothing_are_named():
    z, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.norm1(z - x) + cp.sum(cp.exp(z))))
    with pytest.raises(DeclarationError, match="Exponential"):
        OptLayer.from_problem(problem, smoothing=1e-2)
