"""torch.autograd.gradcheck and gradgradcheck, reverse and forward, at their default tolerances."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from .problems import (
    BALL,
    BOX,
    BY_NAME,
    COVARIANCE,
    PLANE,
    PRODUCT,
    QUADFORM,
    RELU,
    SIGMOID,
    SMALL_QP,
    SOFTMAX,
    SPARSEMAX,
    TABLE,
    TRANSPORT,
    layer_of,
    leaves,
    outputs_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NAMED = ["qp", "sparsemax", "softmax", "sigmoid", "logistic", "covariance", "transport", "transport_reduced"]


def everything(problem):
    """Primal, multipliers and value of the free coordinates; without multipliers that are not unique."""

    def function(*free):
        solution = layer_of(problem).solve(*problem.chart(*free))
        if problem is TRANSPORT:
            return (*solution.primal, solution.value)
        return outputs_of(solution)

    return function


def primal(problem):
    return lambda *free: layer_of(problem)(*problem.chart(*free))


@pytest.mark.parametrize("problem", TABLE, ids=repr)
def test_first_derivatives_of_every_output(problem, rng):
    assert gradcheck(everything(problem), leaves(problem.sample(rng)), check_forward_ad=True)


@pytest.mark.parametrize(
    "problem", [BY_NAME[name] for name in NAMED if name != "transport_reduced"], ids=repr
)
def test_second_derivatives(problem, rng):
    assert gradgradcheck(primal(problem), leaves(problem.sample(rng)))


@pytest.mark.parametrize(
    "problem", [SMALL_QP, RELU, BALL, BOX, PLANE, QUADFORM, PRODUCT, SOFTMAX, COVARIANCE], ids=repr
)
def test_second_derivatives_of_every_output(problem, rng):
    """Multipliers and value too, and forward over reverse."""
    assert gradgradcheck(everything(problem), leaves(problem.sample(rng)), check_fwd_over_rev=True)


@pytest.mark.parametrize("problem", [SPARSEMAX, SOFTMAX, SIGMOID, BALL], ids=repr)
def test_first_derivatives_of_a_batch(problem, rng):
    assert gradcheck(
        primal(problem),
        leaves(problem.sample(rng, 2)),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("problem", [SPARSEMAX, BALL], ids=repr)
def test_second_derivatives_of_a_batch(problem, rng):
    assert gradgradcheck(
        primal(problem), leaves(problem.sample(rng, 2)), check_fwd_over_rev=True, check_batched_grad=True
    )


def other_samples(problem, seed):
    rng = torch.Generator().manual_seed(100 + seed)
    assert gradcheck(everything(problem), leaves(problem.sample(rng)), check_forward_ad=True)


@pytest.mark.parametrize("problem", [SPARSEMAX, SOFTMAX, SIGMOID, BALL, BOX, COVARIANCE], ids=repr)
def test_another_sample(problem):
    other_samples(problem, 0)


@pytest.mark.large
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("problem", TABLE, ids=repr)
def test_other_samples(problem, seed):
    other_samples(problem, seed)


@pytest.mark.large
@pytest.mark.parametrize("problem", TABLE, ids=repr)
def test_second_derivatives_of_everything(problem, rng):
    assert gradgradcheck(everything(problem), leaves(problem.sample(rng)), check_fwd_over_rev=True)
