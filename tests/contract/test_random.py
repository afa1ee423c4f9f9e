"""Random programmes, strictly complementary by construction: the answer is known, gradcheck passes on all."""

import pytest
import torch
from torch.autograd import gradcheck

from .problems import EXPONENTIAL, close, exponential_layer, outputs_of, plant_exponential, plant_qp, qp_layer

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(2, 1, 1), (3, 2, 1), (3, 3, 1), (4, 3, 1), (4, 2, 2)]
EXPONENTIAL_SHAPES = [(2, 2, 1), (3, 4, 2), (2, 3, 2)]


def check(layer, planted, wanted):
    """gradcheck with respect to the wanted parameters, of all outputs."""
    solution = layer.solve(*planted.parameters)
    close(solution.primal[0], planted.primal)
    free = [index for index in range(len(planted.parameters)) if wanted(index)]
    data = list(planted.parameters)

    def function(*tensors):
        arguments = list(data)
        for index, tensor in zip(free, tensors, strict=True):
            arguments[index] = tensor
        return outputs_of(layer.solve(*arguments))

    inputs = tuple(data[index].clone().requires_grad_() for index in free)
    assert gradcheck(function, inputs, check_forward_ad=True)


def independent(rows):
    """Whether the binding rows are far from dependent: else a step of 1e-6 changes which of them bind."""
    return len(rows) == 0 or torch.linalg.svdvals(rows).min() > 0.1


def quadratic(seed):
    n, m, p = SHAPES[seed % len(SHAPES)]
    rng = torch.Generator().manual_seed(1000 + seed)
    while True:
        planted = plant_qp(rng, n, m, p, margin=0.05)
        _, _, G, _, A, _ = planted.parameters
        if independent(torch.cat([G[planted.inequality > 0], A])):
            return (n, m, p), planted


def exponential(seed):
    n, k, m = EXPONENTIAL_SHAPES[seed % len(EXPONENTIAL_SHAPES)]
    rng = torch.Generator().manual_seed(2000 + seed)
    while True:
        planted = plant_exponential(rng, n, k, m, margin=0.05)
        rows = torch.func.jacrev(EXPONENTIAL.form.g)(planted.primal, *planted.parameters)
        if independent(rows[planted.inequality > 0]):
            return (n, k, m), planted


@pytest.mark.parametrize("seed", range(25))
def test_quadratic_programme(seed):
    shape, planted = quadratic(seed)
    check(qp_layer(*shape), planted, lambda index: index % 3 == seed % 3)


@pytest.mark.parametrize("seed", range(25))
def test_smooth_programme_with_exponentials(seed):
    shape, planted = exponential(seed)
    check(exponential_layer(*shape), planted, lambda index: index % 4 == seed % 4)
