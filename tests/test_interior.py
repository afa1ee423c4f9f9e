"""The interior point on random problems of every family it is there for, and what it does not take."""

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from optlayer import DeclarationError, OptLayer, Status
from optlayer.engines.interior import LENGTHS, Interior, interior
from optlayer.forms.kkt import Instance

Family = tuple[OptLayer, tuple[Tensor, ...]]
EXACT = 1e-12


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def applied(M: Tensor, x: Tensor) -> Tensor:
    return (M @ x.unsqueeze(2)).squeeze(2)


def through_interior(*declaration: Any, **options: Any) -> OptLayer:
    return OptLayer(*declaration, solver="INTERIOR", on_failure="nan", nonunique="ignore", **options)


def quadratic(B: int, n: int = 20, m: int = 30, p: int = 5) -> Family:
    """Condition 1e8, inequalities and equalities."""
    z, P, q = cp.Variable(n), cp.Parameter((n, n), PSD=True), cp.Parameter(n)
    G, g, A, b = cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter((p, n)), cp.Parameter(p)
    layer = through_interior(
        [z],
        [P, q, G, g, A, b],
        lambda z, P, q, G, g, A, b: 0.5 * cp.quad_form(z, P) + q @ z,
        [lambda z, P, q, G, g, A, b: G @ z - g],
        [lambda z, P, q, G, g, A, b: A @ z - b],
    )
    Q = torch.linalg.qr(normal(B, n, n, seed=0))[0]
    P_ = Q @ (torch.logspace(0, -8, n, dtype=torch.float64)[:, None] * Q.mT)
    G_, A_, inside = normal(B, m, n, seed=1), normal(B, p, n, seed=2), normal(B, n, seed=3)
    limits = applied(G_, inside) + uniform(B, m, seed=4)
    return layer, (0.5 * (P_ + P_.mT), normal(B, n, seed=5), G_, limits, A_, applied(A_, inside))


def linear(B: int, n: int = 20, p: int = 8) -> Family:
    """A feasible and bounded linear programme in standard form."""
    z, c, A, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((p, n)), cp.Parameter(p)
    layer = through_interior(
        [z], [c, A, b], lambda z, c, A, b: c @ z, [lambda z, c, A, b: -z], [lambda z, c, A, b: A @ z - b]
    )
    A_ = normal(B, p, n, seed=1)
    cost = uniform(B, n, seed=2) + applied(A_.mT, normal(B, p, seed=3))
    return layer, (cost, A_, applied(A_, uniform(B, n, seed=4)))


def entropy(B: int, n: int = 20) -> Family:
    """Softmax of logits of size 50."""
    z, x = cp.Variable(n), cp.Parameter(n)
    layer = through_interior(
        [z], [x], lambda z, x: -cp.sum(cp.entr(z)) - x @ z, equalities=[lambda z, x: cp.sum(z) - 1]
    )
    return layer, (50.0 * normal(B, n, seed=1),)


def logistic(B: int, n: int = 10, k: int = 30) -> Family:
    """A logistic regression in a box."""
    z, X = cp.Variable(n), cp.Parameter((k, n))
    layer = through_interior(
        [z],
        [X],
        lambda z, X: cp.sum(cp.logistic(X @ z)) + 0.01 * cp.sum_squares(z),
        [lambda z, X: z - 1, lambda z, X: -1 - z],
    )
    return layer, (normal(B, k, n, seed=1),)


def network(z: Tensor, W0: Tensor, b0: Tensor, W1: Tensor, U: Tensor, b1: Tensor, w: Tensor) -> Tensor:
    """Convex in z where W1 and w are not negative."""
    return w @ softplus(W1 @ softplus(W0 @ z + b0) + U @ z + b1)


SETS: dict[str, dict[str, list[Callable[..., Any]]]] = {
    "simplex": {"inequalities": [lambda z, *_: -z], "equalities": [lambda z, *_: torch.sum(z) - 1.0]},
    "box": {"inequalities": [lambda z, *_: z - 1.0, lambda z, *_: -1.0 - z]},
    "ball": {"inequalities": [lambda z, *_: torch.dot(z, z) - 1.0]},
}


def input_convex(B: int, n: int, over: str, hidden: int = 16) -> Family:
    """Input-convex networks with random weights."""
    z = cp.Variable(n)
    parameters = [
        cp.Parameter((hidden, n)),
        cp.Parameter(hidden),
        cp.Parameter((hidden, hidden), nonneg=True),
        cp.Parameter((hidden, n)),
        cp.Parameter(hidden),
        cp.Parameter(hidden, nonneg=True),
    ]
    layer = OptLayer([z], parameters, network, **SETS[over], on_failure="nan", nonunique="ignore")
    weights = [normal(B, *p.shape, seed=i) for i, p in enumerate(parameters)]
    weights[2], weights[5] = weights[2].abs() / hidden, weights[5].abs()
    return layer, tuple(weights)


def pseudo_huber(B: int, width: float, boxed: bool, n: int = 10, k: int = 30) -> Family:
    """Σ √(1 + (r/width)²) - 1 of residuals of size 10: nearly the l1 norm."""
    z, A, b = cp.Variable(n), cp.Parameter((k, n)), cp.Parameter(k)

    def loss(z: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return (torch.sqrt(1.0 + ((A @ z - b) / width) ** 2) - 1.0).sum()

    rows = SETS["box"]["inequalities"] if boxed else []
    layer = OptLayer([z], [A, b], loss, rows, on_failure="nan", nonunique="ignore")
    return layer, (normal(B, k, n, seed=1), 10.0 * normal(B, k, seed=2))


FAMILIES: dict[str, Callable[[int], Family]] = {
    "quadratic 1e8": quadratic,
    "linear": linear,
    "entropy x50": entropy,
    "logistic box": logistic,
    **{
        f"network {over} {n}": lambda B, n=n, over=over: input_convex(B, n, over)
        for over in SETS
        for n in (2, 10, 50)
    },
    **{
        f"pseudo-Huber {width} {'box' if boxed else 'free'}": lambda B, w=width, c=boxed: pseudo_huber(
            B, w, c
        )
        for width in (1.0, 0.1, 0.01)
        for boxed in (True, False)
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_few_of_each_family(name: str) -> None:
    succeed(name, 20, 20)


@pytest.mark.large
@pytest.mark.parametrize("name", FAMILIES)
def test_two_hundred_of_each_family(name: str) -> None:
    succeed(name, 200, 200 if "Huber" not in name else 198)


def succeed(name: str, count: int, least: int) -> None:
    """Certified to rounding, and the engine alone has come to its own tolerance."""
    layer, theta = FAMILIES[name](count)
    solution = layer.solve(*theta)
    worst = torch.stack(
        [getattr(solution.residuals, r) for r in solution.residuals.__dataclass_fields__]
    ).amax(0)
    certified = (solution.status == Status.SOLVED) & (worst <= EXACT)
    found = interior(Instance(layer._plan.form, layer._plan.lift(theta), count))
    print(
        f"{name}: certified {int(certified.sum())}, converged {int((found.claim == 0).sum())} of {count}; "
        f"steps {found.iterations.median().item()}, at most {found.iterations.max().item()}"
    )
    assert certified.sum() >= least
    assert (found.claim == 0).sum() >= 0.97 * count


@pytest.mark.parametrize("name", ["quadratic 1e8", "linear", "entropy x50", "logistic box"])
def test_it_agrees_with_other_solvers(name: str) -> None:
    layer, theta = FAMILIES[name](5)
    d = layer._declaration
    reference = OptLayer(
        d.variables,
        d.parameters,
        d.objective,
        d.inequalities,
        d.equalities,
        nonunique="ignore",
        solver="CLARABEL",
    )
    assert "INTERIOR" in repr(layer)
    assert "INTERIOR" not in repr(reference)
    torch.testing.assert_close(layer(*theta), reference(*theta), rtol=1e-7, atol=1e-9)


def test_softmax_is_softmax() -> None:
    layer, (x,) = entropy(20)
    torch.testing.assert_close(layer(x), x.softmax(1), rtol=1e-10, atol=0.0)


def test_a_sample_does_not_feel_its_neighbours() -> None:
    layer, theta = input_convex(4, 5, "ball")
    others = [torch.cat([t[:1], t[1:].roll(1, 0) * 1.1]) for t in theta]
    assert torch.equal(layer(*theta)[0], layer(*others)[0])
    others[0] = others[0].clone()
    others[0][1] = torch.nan
    spoilt = layer(*others)
    assert spoilt[1].isnan().all()
    assert torch.equal(layer(*theta)[0], spoilt[0])


def test_samples_rest_once_they_have_arrived() -> None:
    layer, theta = quadratic(6)
    found = interior(Instance(layer._plan.form, theta, 6))
    assert found.iterations.min() < found.iterations.max()
    alone = Instance(layer._plan.form, tuple(t[:1] for t in theta), 1)
    assert interior(alone).iterations[0] == found.iterations[0]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_do_not_matter(scale: float) -> None:
    layer, (P, q, *rest) = quadratic(5)
    steps = interior(Instance(layer._plan.form, (P, q, *rest), 5)).iterations
    rescaled = interior(Instance(layer._plan.form, (scale * P, scale * q, *rest), 5))
    assert (rescaled.claim == 0).all()
    assert (rescaled.iterations - steps).abs().max() <= 2


def test_it_has_no_options_and_no_cones() -> None:
    with pytest.raises(DeclarationError, match="INTERIOR has no option 'max_iter'"):
        Interior({"max_iter": 3})
    z = cp.Variable(3)
    with pytest.raises(DeclarationError, match="takes the cone route"):
        OptLayer([z], [], lambda z: cp.norm2(z), solver="interior")


def test_lengths_are_tried_from_the_longest() -> None:
    assert list(LENGTHS) == sorted(LENGTHS, reverse=True)
    assert LENGTHS[0] == 1.0
