"""The independent oracle: two Newton steps on the KKT residual from the detached answer, in plain torch.

From u* with F(u*, d*) = 0, two steps of u - inv(J(u, d)) F(u, d) are u* at d*, and carry the exact first and
second derivatives with respect to d. No autograd Function takes part.
"""

import pytest
import torch
from torch.func import grad, hessian, jacrev

from .problems import (
    BALL,
    BOX,
    EXPONENTIAL,
    LOGISTIC,
    PLANE,
    RELU,
    SIGMOID,
    SMALL_QP,
    SOFTMAX,
    SPARSEMAX,
    Form,
    close,
    exponential_layer,
    layer_of,
    normal,
    plant_exponential,
)

PROBLEMS = [SMALL_QP, SPARSEMAX, SOFTMAX, SIGMOID, RELU, BALL, LOGISTIC, BOX, PLANE, EXPONENTIAL]


def flat(tensors):
    return (
        torch.cat([tensor.reshape(-1) for tensor in tensors])
        if tensors
        else torch.zeros(0, dtype=torch.float64)
    )


def oracle(form: Form, solution, data):
    """data -> (primal, inequality and equality multipliers), flat, near the data that `solution` answers."""
    x = solution.primal[0].detach()
    duals, nu = flat(solution.inequality_duals).detach(), flat(solution.equality_duals).detach()
    n, m = len(x), len(duals)
    slack = form.g(x, *data).detach() if form.g else duals
    root = torch.cat([x, duals + slack, nu])

    def residual(u, *data):
        x, v, nu = u[:n], u[n : n + m], u[n + m :]
        multiplier = torch.where(v > 0, v, torch.zeros_like(v))

        def lagrangian(x):
            total = form.f(x, *data)
            if form.g:
                total = total + multiplier @ form.g(x, *data)
            if form.h:
                total = total + nu @ form.h(x, *data)
            return total

        rows = [grad(lagrangian)(x)]
        if form.g:
            rows.append(form.g(x, *data) - (v - multiplier))
        if form.h:
            rows.append(form.h(x, *data))
        return torch.cat(rows)

    def answer(*data):
        u = root
        for _ in range(2):
            u = u - torch.linalg.inv(jacrev(residual)(u, *data)) @ residual(u, *data)
        return torch.cat([u[:n], u[n : n + m].relu(), u[n + m :]])

    return answer


def cut(vector, data):
    """The parameters out of one flat vector."""
    pieces = vector.split([tensor.numel() for tensor in data])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, data, strict=True)]


def start(problem, rng):
    data = problem.parameters(rng)
    layer = layer_of(problem)
    solution = layer.solve(*data)
    expected = oracle(problem.form, solution, data)

    def ours(theta):
        solution = layer.solve(*cut(theta, data))
        return torch.cat([solution.primal[0], flat(solution.inequality_duals), flat(solution.equality_duals)])

    return ours, lambda theta: expected(*cut(theta, data)), flat(data)


@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_first_derivatives(problem, rng):
    ours, expected, theta = start(problem, rng)
    close(ours(theta), expected(theta), 1e-9, "answer")
    truth = jacrev(expected)(theta)
    assert truth.abs().max() > 1e-3
    close(jacrev(ours)(theta), truth, 1e-8, "reverse")
    close(torch.func.jacfwd(ours)(theta), truth, 1e-8, "forward")


@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_second_derivatives(problem, rng):
    ours, expected, theta = start(problem, rng)
    weights = normal(rng, len(ours(theta)))
    truth = jacrev(jacrev(lambda theta: weights @ expected(theta)))(theta)
    scale = 1 + truth.abs().max()
    close(
        hessian(lambda theta: weights @ ours(theta))(theta) / scale,
        truth / scale,
        1e-8,
        "forward over reverse",
    )
    close(
        jacrev(jacrev(lambda theta: weights @ ours(theta)))(theta) / scale,
        truth / scale,
        1e-8,
        "reverse over reverse",
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_exponential_programmes(seed):
    rng = torch.Generator().manual_seed(50 + seed)
    planted = plant_exponential(rng, 4, 5, 3)
    layer, data = exponential_layer(4, 5, 3), planted.parameters
    expected = oracle(EXPONENTIAL.form, layer.solve(*data), data)

    def ours(theta):
        solution = layer.solve(*cut(theta, data))
        return torch.cat([solution.primal[0], flat(solution.inequality_duals)])

    close(jacrev(ours)(flat(data)), jacrev(lambda theta: expected(*cut(theta, data)))(flat(data)))
