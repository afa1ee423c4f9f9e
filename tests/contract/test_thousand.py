"""A thousand random programmes of every family: the planted answer, and gradcheck's test of every output.

The seeds are fixed. All programmes are strictly complementary and well conditioned by construction, so all
should pass; one of a thousand may fail, and is named: `pytest -s -m large tests/contract/test_thousand.py`.
"""

import functools
from collections.abc import Callable

import pytest

from optlayer import OptLayer

from . import cone_problems, test_random
from .entrywise import check_every_entry
from .problems import (
    EXPONENTIAL_FORM,
    QP_FORM,
    close,
    exponential_layer,
    outputs_of,
    qp_layer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS, LEAST = 1000, 999

# ------------------------------ the same programmes as callables in cvxpy and in torch alone


@functools.cache
def torch_qp_layer(n, m, p) -> OptLayer:
    layer = qp_layer(n, m, p)
    return OptLayer(layer.variables, layer.inputs, QP_FORM.f, [QP_FORM.g], [QP_FORM.h])


@functools.cache
def torch_exponential_layer(n, k, m) -> OptLayer:
    layer = exponential_layer(n, k, m)
    return OptLayer(layer.variables, layer.inputs, EXPONENTIAL_FORM.f, [EXPONENTIAL_FORM.g])


def callables(layer_of_shape: Callable[..., OptLayer], draw: Callable) -> Callable[[int], None]:
    def check(seed: int) -> None:
        shape, planted = draw(seed)
        layer, data = layer_of_shape(*shape), planted.parameters
        close(layer(*data), planted.primal)
        check_every_entry(lambda *data: outputs_of(layer.solve(*data)), data, [False] * len(data))

    return check


def cones(family: str) -> Callable[[int], None]:
    def check(seed: int) -> None:
        planted = cone_problems.instance(family, seed)
        planted.agrees(planted.programme.outputs(*planted.data), 1e-8)
        check_every_entry(*planted.check)

    return check


FAMILIES = {family: cones(family) for family in cone_problems.FAMILIES} | {
    "callables, quadratic": callables(qp_layer, test_random.quadratic),
    "callables, exponential": callables(exponential_layer, test_random.exponential),
    "torch callables, quadratic": callables(torch_qp_layer, test_random.quadratic),
    "torch callables, exponential": callables(torch_exponential_layer, test_random.exponential),
}


# ------------------------------ the run


def failures(check: Callable[[int], None], seeds: range) -> dict[int, str]:
    found = {}
    for seed in seeds:
        try:
            check(seed)
        except Exception as error:  # every way to fail counts
            found[seed] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return found


@pytest.mark.large
@pytest.mark.parametrize("family", FAMILIES)
def test_thousand_programmes(family):
    found = failures(FAMILIES[family], range(SEEDS))
    print(f"\n{family}: {SEEDS - len(found)} of {SEEDS} pass", *found.items(), sep="\n  ", flush=True)
    assert SEEDS - len(found) >= LEAST, f"{family}: {found}"


@pytest.mark.parametrize("family", FAMILIES)
def test_first_programmes(family):
    """The larger run's own code, tried on a few."""
    assert not failures(FAMILIES[family], range(2))
