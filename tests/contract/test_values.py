"""Answers, multipliers, values and gradients against closed forms."""

import cvxpy as cp
import pytest
import torch

from optlayer import OptLayer, Status

from .problems import (
    BALL,
    BOX,
    RELU,
    SIGMOID,
    SOFTMAX,
    SPARSEMAX,
    TABLE,
    as_tuple,
    build_sigmoid,
    build_softmax,
    build_sparsemax,
    close,
    exponential_layer,
    layer_of,
    leaves,
    normal,
    outputs_of,
    plant_exponential,
    plant_qp,
    qp_layer,
    sample_sparsemax,
    sparsemax,
    uniform,
)

EXACT = [problem for problem in TABLE if problem.truth]
WITH_DUALS = [problem for problem in TABLE if problem.duals]


def gradients(outputs, inputs, cotangents):
    return torch.autograd.grad(outputs, inputs, cotangents, materialize_grads=True)


def compare(function, truth, data, rng, tolerance=1e-8):
    """Forward and gradient of two functions, at the same data under the same random cotangents."""
    ours, theirs = leaves(data), leaves(data)
    actual, expected = as_tuple(function(*ours)), as_tuple(truth(*theirs))
    assert len(actual) == len(expected)
    cotangents = []
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        close(a, e, tolerance, f"output {index}")
        cotangents.append(normal(rng, *e.shape))
    for index, (a, e) in enumerate(
        zip(gradients(actual, ours, cotangents), gradients(expected, theirs, cotangents), strict=True)
    ):
        close(a, e, tolerance, f"gradient {index}")


@pytest.mark.parametrize("batch", [(), (7,)], ids=["single", "batch"])
@pytest.mark.parametrize("problem", EXACT, ids=repr)
def test_answer_and_gradient(problem, batch, rng):
    truth = lambda *free: problem.truth(*problem.chart(*free))
    layer = lambda *free: layer_of(problem)(*problem.chart(*free))
    compare(layer, truth, problem.sample(rng, *batch), rng)


@pytest.mark.parametrize("batch", [(), (5,)], ids=["single", "batch"])
@pytest.mark.parametrize("problem", WITH_DUALS, ids=repr)
def test_multipliers_and_value(problem, batch, rng):
    def truth(*free):
        inequality, equality, value = problem.duals(*problem.chart(*free))
        return (*inequality, *equality, value)

    def layer(*free):
        solution = layer_of(problem).solve(*problem.chart(*free))
        return (*solution.inequality_duals, *solution.equality_duals, solution.value)

    compare(layer, truth, problem.sample(rng, *batch), rng)


@pytest.mark.parametrize("seed", range(3))
def test_planted_quadratic_programme(seed):
    planted = plant_qp(torch.Generator().manual_seed(seed), batch=(6,))
    solution = qp_layer(10, 4, 5).solve(*planted.parameters)
    close(solution.primal[0], planted.primal, what="primal")
    close(solution.inequality_duals[0], planted.inequality, what="inequality multipliers")
    close(solution.equality_duals[0], planted.equality, what="equality multipliers")


@pytest.mark.parametrize("seed", range(6))
def test_planted_exponential_programme(seed):
    planted = plant_exponential(torch.Generator().manual_seed(seed), 3, 4, 2)
    solution = exponential_layer(3, 4, 2).solve(*planted.parameters)
    close(solution.primal[0], planted.primal, what="primal")
    duals = torch.cat([solution.inequality_duals[0].reshape(1), solution.inequality_duals[1]])
    close(duals, planted.inequality, what="multipliers")


def test_sigmoid_between_minus_and_plus_twenty(rng):
    grid = torch.linspace(-20, 20, 81, dtype=torch.float64)
    compare(build_sigmoid(1), torch.sigmoid, (grid.unsqueeze(-1),), rng)  # as a batch
    compare(build_sigmoid(81), torch.sigmoid, (grid,), rng)  # as one sample


def test_sigmoid_in_the_tutorials_writing(rng):
    """The other way to write it, with kl_div-free entropies of z and 1 - z summed separately."""
    layer = OptLayer(
        [cp.Variable(1)],
        [cp.Parameter(1)],
        objective=lambda z, x: -x @ z - cp.sum(cp.entr(z)) - cp.sum(cp.entr(1 - z)),
    )
    grid = torch.linspace(-20, 20, 41, dtype=torch.float64).unsqueeze(-1)
    compare(layer, torch.sigmoid, (grid,), rng)


@pytest.mark.parametrize("scale", [1, 10, 50])
@pytest.mark.parametrize("n", [5, 10])
def test_softmax_at_large_logits(scale, n, rng):
    compare(build_softmax(n), lambda x: x.softmax(-1), (scale * normal(rng, 16, n),), rng)


@pytest.mark.parametrize("n", [2, 10, 40])
def test_sparsemax_of_many_sizes(n, rng):
    compare(build_sparsemax(n), sparsemax, sample_sparsemax(rng, 8, n=n), rng)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e4])
@pytest.mark.parametrize("problem", [RELU, BALL, BOX], ids=repr)
def test_data_of_any_size(problem, scale, rng):
    """All three are homogeneous: scaled data, scaled answer, the same Jacobian."""
    data = problem.parameters(rng, 4)
    scaled = tuple(scale * tensor for tensor in data)
    close(layer_of(problem)(*scaled) / scale, problem.truth(*data)[0])
    jacobian = torch.func.vmap(torch.func.jacrev(layer_of(problem)))
    truth = torch.func.vmap(torch.func.jacrev(lambda *x: problem.truth(*x)[0]))
    close(jacobian(*scaled), truth(*scaled))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_objective_of_any_size(scale, rng):
    layer = OptLayer(
        [cp.Variable(6)],
        [cp.Parameter(6)],
        objective=lambda z, x: scale * cp.sum_squares(z - x),
        inequalities=[lambda z, x: -z],
        equalities=[lambda z, x: cp.sum(z) - 1],
    )
    compare(layer, sparsemax, sample_sparsemax(rng, 4), rng)


@pytest.mark.parametrize("problem", [SPARSEMAX, SOFTMAX, SIGMOID, RELU, BALL, BOX], ids=repr)
def test_jacobian_against_closed_form(problem, rng):
    data = problem.parameters(rng)
    ours = torch.func.jacrev(layer_of(problem), argnums=tuple(range(len(data))))(*data)
    truth = torch.func.jacrev(lambda *x: problem.truth(*x)[0], argnums=tuple(range(len(data))))(*data)
    for actual, expected in zip(ours, truth, strict=True):
        close(actual, expected)


def test_the_readme_block():
    z, x = cp.Variable(10), cp.Parameter(10)
    layer = OptLayer(
        [z],
        [x],
        objective=lambda z, x: cp.sum_squares(z - x),
        inequalities=[lambda z, x: -z],
        equalities=[lambda z, x: cp.sum(z) - 1],
    )
    logits = torch.randn(64, 10, requires_grad=True, generator=torch.Generator().manual_seed(0))
    y = layer(logits)
    assert y.shape == (64, 10)
    assert y.dtype == torch.float32
    close(y.detach(), sparsemax(logits.detach()), 1e-6)
    y.square().sum().backward()
    assert logits.grad.dtype == torch.float32
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


def test_cvxpy_agrees_on_every_output(rng):
    """Multipliers in cvxpy's sign: the same problem, solved by cvxpy itself."""
    from .problems import qp_equality, qp_inequality, qp_objective

    planted = plant_qp(rng, 6, 3, 2)
    z = cp.Variable(6)
    data = [tensor.numpy() for tensor in planted.parameters]
    inequality, equality = qp_inequality(z, *data) <= 0, qp_equality(z, *data) == 0
    value = cp.Problem(cp.Minimize(qp_objective(z, *data)), [inequality, equality]).solve(solver=cp.CLARABEL)
    solution = qp_layer(6, 3, 2).solve(*planted.parameters)
    assert solution.status.item() == Status.SOLVED
    for actual, expected in zip(
        outputs_of(solution), (z.value, inequality.dual_value, equality.dual_value, value), strict=True
    ):
        close(actual, torch.as_tensor(expected, dtype=torch.float64), 1e-6)
    assert planted.inequality.max() > 0.1  # a multiplier of a definite sign was compared


def test_large_uniform_logits_do_not_underflow(rng):
    logits = torch.tensor([[0.0, -30.0, -60.0, 5.0, 5.0]], dtype=torch.float64)
    compare(layer_of(SOFTMAX), lambda x: x.softmax(-1), (logits,), rng)
    compare(layer_of(SIGMOID), torch.sigmoid, (uniform(rng, 3, 5, low=-20, high=20),), rng)
