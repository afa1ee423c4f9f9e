"""gradcheck at torch's default tolerances on random cone programmes, primal, duals and value as outputs."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from .cone_problems import (
    FAMILIES,
    Shape,
    along,
    as_duals,
    cvxpy_solve,
    duals_of,
    generator,
    instance,
    plant,
    plant_atoms,
    plant_matrix,
    plant_mixed,
    plant_trace,
    primal_of,
    programme,
)
from .entrywise import check_every_entry
from .problems import F64, close, normal

pytestmark = pytest.mark.usefixtures("one_thread")


def directions(planted, rng, count):
    """Every entry of the data moves at once, along a few random directions."""
    data = along(planted, rng, count)
    t = torch.zeros(count, dtype=F64, requires_grad=True)
    return gradcheck(lambda t: planted.programme.outputs(*data(t)), (t,), check_forward_ad=True)


# ------------------------------ the planted answers themselves


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("family", FAMILIES)
def test_planted_answers_are_those_of_cvxpy(family, seed):
    planted = instance(family, seed)
    compare_with_cvxpy(planted)


@pytest.mark.parametrize("seed", range(3))
def test_planted_mixture_is_that_of_cvxpy(seed):
    compare_with_cvxpy(plant_mixed(seed))


def compare_with_cvxpy(planted):
    problem = planted.programme.problem
    assert problem.is_dpp()
    value = cvxpy_solve(problem, planted.programme.parameters, planted.data)
    duals = [dual for constraint in problem.constraints for dual in duals_of(constraint)]
    planted.agrees([*(primal_of(leaf) for leaf in planted.programme.variables), *duals, value], 3e-5)


# ------------------------------ first derivatives


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_random_programme(family, seed):
    planted = instance(family, seed)
    planted.agrees(planted.programme.outputs(*planted.data), 1e-8)
    check_every_entry(*planted.check)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
def test_gradcheck_itself(family, seed):
    assert directions(instance(family, seed), generator(family, 500 + seed), 2)


@pytest.mark.parametrize("seed", range(3))
def test_every_cone_in_one_problem(seed):
    planted = plant_mixed(seed)
    planted.agrees(planted.programme.outputs(*planted.data), 1e-8)
    assert directions(planted, torch.Generator().manual_seed(seed), 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_equals_its_samples(family):
    """Two instances of one shape stacked: answers and derivatives are those of each alone."""
    first = instance(family, 0)
    rng = generator(family, 700)
    while True:
        second = FAMILIES[family](0, rng)
        if second.programme is first.programme:
            break
    data = [torch.stack(pair).requires_grad_() for pair in zip(first.data, second.data, strict=True)]
    outputs = first.programme.outputs(*data)
    for mine, one, two in zip(outputs, first.answers, second.answers, strict=True):
        close(mine, torch.stack([one, two]))
    weights = [normal(rng, *output.shape) for output in outputs]
    together = torch.autograd.grad(outputs, data, weights)
    for row, planted in enumerate((first, second)):
        alone = [tensor.clone().requires_grad_() for tensor in planted.data]
        gradient = torch.autograd.grad(
            planted.programme.outputs(*alone), alone, [weight[row] for weight in weights]
        )
        for mine, expected in zip(together, gradient, strict=True):
            close(mine[row], expected)


@pytest.mark.parametrize("cone", [("soc", 4), ("exp", 3), ("pow", 0.3)], ids=lambda cone: cone[0])
def test_at_the_apex_of_a_cone(cone):
    """s = 0 with y inside the dual cone: strictly complementary, the three rows act as equations."""
    kind, _ = cone
    shape = Shape(5, 0, 0, (cone,), quadratic=True)
    x, dual = (
        torch.tensor([0.3, -1.0, 0.7, 0.2, -0.4], dtype=F64),
        {
            "soc": torch.tensor([1.5, 0.6, -0.5, 0.4], dtype=F64),
            "exp": torch.tensor([-0.8, 0.3, 0.9], dtype=F64),  # 0.9 > 0.8 exp(-0.3/0.8 - 1)
            "pow": torch.tensor([0.6, 0.9, 0.5], dtype=F64),
        }[kind],
    )
    rng = torch.Generator().manual_seed(5)
    A = normal(rng, len(dual), 5)
    L = torch.eye(5, dtype=F64) + normal(rng, 5, 5) / 5
    q = A.T @ dual - L.T @ (L @ x)
    layer = programme(shape).layer
    (constraint,) = programme(shape).problem.constraints

    def outputs(q, L, b):
        solution = layer.solve(q, L, A, b)
        return (*solution.primal, *as_duals(solution.dual(constraint)), solution.value)

    data = (q, L, -A @ x)
    answers = outputs(*data)
    close(answers[0], x)
    close(torch.cat([part.reshape(-1) for part in answers[1:-1]]), dual)
    assert gradcheck(outputs, tuple(tensor.requires_grad_() for tensor in data), check_forward_ad=True)


# ------------------------------ second derivatives


SMOOTH = {
    "quadratic": lambda rng: plant(Shape(3, 1, 2, quadratic=True), rng),
    "second-order": lambda rng: plant(Shape(3, 0, 1, (("soc", 3),), quadratic=True), rng),
    "norm": lambda rng: plant(Shape(4, 1, 0, (("soc", 3),), quadratic=True, norm=True), rng),
    "exponential": lambda rng: plant(Shape(3, 0, 1, (("exp", 3),), quadratic=True), rng),
    "atoms": lambda rng: plant_atoms(2, 3, 2, rng),
    "power": lambda rng: plant(Shape(3, 0, 1, (("pow", 0.3),), quadratic=True), rng),
    "trace": lambda rng: plant_trace(3, 2, 3, rng),
    "matrix": lambda rng: plant_matrix(3, 2, 3, True, rng),
}


def curved(name):
    """An instance whose cone binds; one that does not would have no second derivative worth the name."""
    rng = torch.Generator().manual_seed(40)
    while True:
        planted = SMOOTH[name](rng)
        if name in ("quadratic", "atoms") or all(dual.abs().sum() > 0.1 for dual in planted.duals[0]):
            return planted, rng


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives(name):
    planted, rng = curved(name)
    data = along(planted, rng, 2)
    sizes = [answer.numel() for answer in planted.answers]
    weights = normal(rng, 2, sum(sizes))

    def function(t):
        return weights @ torch.cat([output.reshape(-1) for output in planted.programme.outputs(*data(t))])

    t = torch.zeros(2, dtype=F64, requires_grad=True)
    assert gradgradcheck(function, (t,), check_fwd_over_rev=True)


@pytest.mark.large
@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_of_every_output(name):
    planted, rng = curved(name)
    data = along(planted, rng, 4)
    t = torch.zeros(4, dtype=F64, requires_grad=True)
    assert gradgradcheck(lambda t: planted.programme.outputs(*data(t)), (t,), check_fwd_over_rev=True)
