"""Callables written for torch only, modules among them: values, derivatives, refusals, failures."""

import copy
import io
import threading
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import softplus

from optlayer import (
    DeclarationError,
    InaccurateError,
    InfeasibleError,
    InputError,
    OptLayer,
    Status,
    UnboundedError,
)
from optlayer.engines.phase_one import VISIBLE, _proves
from optlayer.forms.kkt import Instance

n = 4
z, x = cp.Variable(n, name="z"), cp.Parameter(n, name="x")


def data(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


def squares(z: Any, x: Any) -> Any:
    return torch.sum((z - x) ** 2)


def bumpy(z: Tensor, x: Tensor) -> Tensor:
    """Strictly convex, coupled, not quadratic."""
    return (
        torch.logsumexp(torch.cat([z - x, x - 2 * z]), 0) + 0.3 * torch.cosh(z.sum()) + 0.1 * torch.dot(z, z)
    )


class Network(torch.nn.Module):
    """Input-convex in z, and any function of x."""

    def __init__(self, hidden: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.nn.Parameter(
            torch.randn(*shape, generator=generator, dtype=torch.float64)
        )
        self.W0, self.W1, self.U = draw(hidden, n), draw(hidden, hidden), draw(hidden, n)
        self.register_buffer("decay", torch.tensor(0.1, dtype=torch.float64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        first = softplus(self.W0 @ z + torch.tanh(self.U @ x))
        return softplus(softplus(self.W1) @ first).sum() + self.decay * torch.dot(z - x, z - x)


SIMPLEX = ([lambda z, x: -z], [lambda z, x: z.sum() - 1])
BALL = ([lambda z, x: torch.dot(z, z) - 1], [])
BOX = ([lambda z, x: z - 0.5, lambda z, x: -0.5 - z], [])


# -------------------------------------------------------------------------------------------- values


def test_it_is_the_same_function_as_its_twin_in_cvxpy() -> None:
    def twin(z: Any, x: Any) -> Any:
        return cp.sum(cp.logistic(z - x)) + cp.sum_squares(z)

    def ours(z: Tensor, x: Tensor) -> Tensor:
        return softplus(z - x).sum() + torch.dot(z, z)

    for g, h in (SIMPLEX, BOX):
        g = [lambda z, x, f=f: f(z, x) for f in g]
        theirs, mine = OptLayer([z], [x], twin, g, h), OptLayer([z], [x], ours, g, h)
        a, b = data(6), data(6)
        y, w = theirs(a), mine(b)
        torch.testing.assert_close(w, y, rtol=1e-10, atol=1e-12)
        for out in (y, w):
            (out**3).sum().backward()
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12)
        s, t = theirs.solve(a), mine.solve(b)
        torch.testing.assert_close(s.value, t.value, rtol=1e-12, atol=1e-12)
        for mine_, theirs_ in zip(
            t.inequality_duals + t.equality_duals, s.inequality_duals + s.equality_duals
        ):
            torch.testing.assert_close(mine_, theirs_, rtol=1e-8, atol=1e-10)


def test_a_projection_onto_the_simplex() -> None:
    sparsemax = OptLayer([z], [x], squares, *SIMPLEX)
    assert "engine: INTERIOR" in repr(sparsemax)
    assert "minimize squares(z, x)" in repr(sparsemax)
    torch.testing.assert_close(
        sparsemax(torch.tensor([3.0, 2.5, 0.0, -1.0])), torch.tensor([0.75, 0.25, 0.0, 0.0])
    )


@pytest.mark.parametrize("attributes", [{"nonneg": True}, {"bounds": [0.0, 0.5]}])
def test_attributes_of_variables_are_rows(attributes: dict[str, Any]) -> None:
    layer = OptLayer([cp.Variable(n, **attributes)], [x], squares)
    y = data(5)
    torch.testing.assert_close(layer(y), y.clamp(0.0, attributes.get("bounds", [0, torch.inf])[1]))


def test_a_symmetric_variable() -> None:
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    layer = OptLayer([X], [C], lambda X, C: torch.exp(X - C).sum() - torch.trace(X - C) - (X - C).sum())
    value = layer(torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert torch.equal(value, value.mT)


@pytest.mark.parametrize(
    "entropy", [lambda z: (z * torch.log(z)).sum(), lambda z: -torch.special.entr(z).sum()]
)
@pytest.mark.parametrize("bounded", [True, False])
def test_a_logarithm_keeps_to_its_domain(entropy: Any, bounded: bool) -> None:
    rows = [lambda z, x: -z] if bounded else []
    softmax = OptLayer([z], [x], lambda z, x: entropy(z) - torch.dot(x, z), rows, SIMPLEX[1])
    logits = 50 * data(20)
    torch.testing.assert_close(softmax(logits), logits.softmax(1), rtol=1e-10, atol=0.0)


def test_several_variables_and_shapes() -> None:
    A, b = cp.Variable((2, 3)), cp.Variable()
    C = cp.Parameter((2, 3))
    layer = OptLayer([A, b], [C], lambda A, b, C: ((A - C) ** 2).sum() + torch.cosh(b - A.sum()))
    value = torch.randn(7, 2, 3, dtype=torch.float64)
    left, right = layer(value)
    assert (left.shape, right.shape) == ((7, 2, 3), (7,))
    torch.testing.assert_close(left, value)
    torch.testing.assert_close(right, value.sum((1, 2)))


# --------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("constraints", [SIMPLEX, BALL, BOX], ids=["simplex", "ball", "box"])
def test_derivatives_with_respect_to_data(constraints: Any) -> None:
    layer = OptLayer([z], [x], bumpy, *constraints)
    assert gradcheck(layer, data(3))
    assert gradcheck(lambda x: layer.solve(x).value, data(2))
    assert gradgradcheck(layer, data(1))


@pytest.mark.parametrize("constraints", [SIMPLEX, BALL, BOX], ids=["simplex", "ball", "box"])
def test_derivatives_with_respect_to_weights(constraints: Any) -> None:
    layer = OptLayer([z], [x], Network(2), *constraints)
    names = [name for name, _ in layer.named_parameters()]

    def solved(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    weights = [w.detach().clone().requires_grad_() for w in layer.parameters()]
    assert gradcheck(solved, (data(2), *weights))
    assert gradgradcheck(solved, (data(1), *weights))


def test_transforms() -> None:
    layer, X = OptLayer([z], [x], Network(), *BALL), data(3).detach()
    torch.testing.assert_close(vmap(layer)(X), layer(X))
    one_by_one = torch.stack([torch.autograd.functional.jacobian(layer, row) for row in X])
    torch.testing.assert_close(vmap(jacrev(layer))(X), one_by_one)


def test_every_sample_adds_to_the_gradient_of_a_weight() -> None:
    layer, X = OptLayer([z], [x], Network(), *BALL), data(3).detach()
    layer(X).pow(3).sum().backward()
    together = layer.objective.W0.grad.clone()
    layer.zero_grad()
    for row in X:
        layer(row).pow(3).sum().backward()
    torch.testing.assert_close(layer.objective.W0.grad, together)
    assert together.abs().max() > 1e-3


# ---------------------------------------------------------------------------------- as a good module


def test_modules_are_submodules_and_nothing_else_is_kept() -> None:
    class Limit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return z - softplus(self.width)

    layer = OptLayer([z], [x], Network(), [Limit()])
    assert list(layer.state_dict()) == [
        "objective.W0",
        "objective.W1",
        "objective.U",
        "objective.decay",
        "inequality_0.width",
    ]
    assert list(OptLayer([z], [x], squares).state_dict()) == []
    layer(5 + data(2)).sum().backward()
    assert layer.inequality_0.width.grad.abs() > 0.1


def test_weights_are_read_at_every_call() -> None:
    network = Network()
    layer, X = OptLayer([z], [x], network, *BALL), data(2)
    before = layer(X)
    with torch.no_grad():
        network.W0.mul_(2.0)
    assert not torch.allclose(layer(X), before)
    with torch.no_grad():
        network.W0.mul_(0.5)
    torch.testing.assert_close(layer(X), before)


def test_one_module_in_two_places_has_one_set_of_weights() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return self.a * torch.dot(z - x, z - x) - 0.5

    both = Both()
    layer = OptLayer([z], [x], both, [both])
    assert list(layer.state_dict()) == ["objective.a"]
    torch.testing.assert_close(layer(data(2)), data(2), rtol=1e-7, atol=1e-7)


def test_copies_and_pickles() -> None:
    layer, X = OptLayer([z], [x], Network(), *MODULE_BALL), data(2)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.objective.W0.zero_()
    assert layer.objective.W0.abs().max() > 0
    assert not torch.allclose(twin(X), layer(X))
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(X), twin(X))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(X), layer(X))


def ball(z: Tensor, x: Tensor) -> Tensor:
    return torch.dot(z, z) - 1


MODULE_BALL = ([ball], [])


def test_threads_do_not_see_each_others_weights() -> None:
    layer, X = OptLayer([z], [x], Network(), *BALL), data(2).detach()
    names = [name for name, _ in layer.named_parameters()]
    wanted = {scale: functional_call(scaled(layer, scale), {}, (X,)) for scale in (0.5, 2.0)}
    wrong: list[float] = []

    def repeat(scale: float) -> None:
        twin = scaled(layer, scale)
        if any(not torch.equal(twin(X), wanted[scale]) for _ in range(5)):
            wrong.append(scale)

    threads = [threading.Thread(target=repeat, args=(scale,)) for scale in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names
    assert not wrong


def scaled(layer: OptLayer, scale: float) -> OptLayer:
    """A twin that shares the compiled problem, with other weights."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(scale)
    return twin


def test_dtypes_are_those_of_the_data() -> None:
    layer = OptLayer([z], [x], Network().float(), *BALL)
    assert layer(data(2).detach().float()).dtype == torch.float32
    y = layer(data(2).detach())
    assert y.dtype == torch.float64
    y.sum().backward()
    assert layer.objective.W0.grad.dtype == torch.float32


def test_dropout_and_batch_statistics_are_off() -> None:
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.dot(z, z) + self.drop(z - x).square().sum()

    layer = OptLayer([z], [x], Noisy().train())
    torch.testing.assert_close(layer(data()), 0.5 * data())


def test_a_weight_that_is_not_finite_is_named() -> None:
    layer = OptLayer([z], [x], Network(), *BALL)
    with torch.no_grad():
        layer.objective.W0[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"'objective\.W0' has 1 NaN"):
        layer(data())


def test_an_empty_batch() -> None:
    layer = OptLayer([z], [x], Network(), *BALL)
    y = layer(data(0))
    y.sum().backward()
    assert y.shape == (0, n)
    assert layer.objective.W0.grad.abs().max() == 0


# -------------------------------------------------------------------------------------------- refusals


def branching(z: Tensor, x: Tensor) -> Tensor:
    return torch.dot(z, z) if z.sum() > 0 else 2 * torch.dot(z, z)


def weighted(weight: Tensor) -> Any:
    return lambda z, x: torch.sum(weight * (z - x) ** 2)


class Silent(torch.nn.Module):
    def forward(self, z: Tensor, x: Tensor) -> None:
        return None


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "shape": ((lambda z, x: torch.exp(z),), {}, r"objective has shape \(4,\), expected a scalar"),
    "closed over": (
        (weighted(torch.nn.Parameter(torch.ones(n, dtype=torch.float64))),),
        {},
        r"requires grad .* nn\.Module .* cp\.Parameter .* detach",
    ),
    "branch": ((branching,), {}, r"objective 'branching' cannot be differentiated by torch .* torch\.where"),
    "item": (
        (lambda z, x: torch.dot(z, z) * float(torch.sum(x)),),
        {},
        r"may not branch on values, call \.item",
    ),
    "float32": ((weighted(torch.ones(n, 4)), [lambda z, x: torch.ones(2, n) @ torch.exp(z)]), {}, r"float64"),
    "not convex": ((lambda z, x: torch.cos(z).sum(),), {}, r"objective is not convex .* above its chord"),
    "concave rows": ((squares, [lambda z, x: 1 - torch.dot(z, z)]), {}, r"inequality 0 is not convex"),
    "curved rows": ((squares, [], [lambda z, x: torch.dot(z, z) - 1]), {}, r"equality 0 is not affine"),
    "cone route": (
        (squares,),
        {"method": "cone"},
        r"cvxpy, which cannot see into callables written for torch",
    ),
    "kinks": ((squares, [lambda z, x: cp.norm1(z) - 1]), {}, r"written for torch only.*norm1 is not smooth"),
    "solver": ((squares,), {"solver": "CLARABEL"}, r"CLARABEL needs the problem in cvxpy's terms"),
    "arguments": ((torch.nn.Linear(n, n),), {}, r"'Linear' raised TypeError .* nn\.Module \(Linear\)"),
    "nothing": ((Silent(),), {}, r"'Silent' returned a NoneType for torch tensors"),
    "integers": ((lambda z, x: torch.argmax(z),), {}, r"returned torch\.int64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    callables, options, message = REFUSED[name]
    with pytest.raises(DeclarationError, match=rf"(?s){message}"):
        OptLayer([z], [x], *callables, **options)


def test_convex_where_attributes_say_so() -> None:
    def cubic(z: Tensor, x: Tensor) -> Tensor:
        return torch.pow(z, 3).sum() / 3 - torch.dot(z, x)

    with pytest.raises(DeclarationError, match="not convex"):
        OptLayer([z], [x], cubic)
    layer = OptLayer([cp.Variable(n, nonneg=True)], [x], cubic)
    torch.testing.assert_close(layer(data().abs()), data().abs().sqrt())


# -------------------------------------------------------------------------------------------- failures


def test_infeasible() -> None:
    def limit(z: Tensor, x: Tensor) -> Tensor:
        return torch.dot(z, z) - x[0]

    layer = OptLayer([z], [x], squares, [limit], on_failure="nan")
    values = data(3).detach()
    values[:, 0] = torch.tensor([1.0, -2.0, 3.0])
    solution = layer.solve(values)
    assert solution.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.SOLVED]
    loud = OptLayer([z], [x], squares, [limit])
    with pytest.raises(
        InfeasibleError, match=r"sample 1 is infeasible .* inequality 0 'limit' violated by 2 at best"
    ):
        loud(values)


@pytest.mark.parametrize(
    ("g", "h"),
    [
        ([lambda z, x: z - 1, lambda z, x: 2 - z], []),
        ([lambda z, x: -z], [lambda z, x: torch.sum(z) + 1]),
        ([], [lambda z, x: torch.sum(z) + 1, lambda z, x: torch.sum(z) - 2]),
        ([lambda z, x: torch.exp(z) - 1, lambda z, x: 1e-2 - z], []),
    ],
)
def test_contradictions_are_proven(g: Any, h: Any) -> None:
    with pytest.raises(InfeasibleError, match="at best"):
        OptLayer([z], [x], squares, g, h)(data())


@pytest.mark.parametrize(("at", "proven"), [(0.0, True), (1.0, False)])
def test_a_proof_needs_multipliers_that_balance(at: float, proven: bool) -> None:
    """|z|² + 1 <= 0: at the origin its gradient is 0 and its value 1; elsewhere it may fall below 0 yet."""
    layer = OptLayer([z], [], lambda z: torch.exp(z).sum(), [lambda z: torch.dot(z, z) + 1])
    point = torch.full((1, n), at, dtype=torch.float64)
    lam, w = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert _proves(Instance(layer._plan.form, (), 1), point, lam, w, VISIBLE) is proven


def test_what_cannot_be_proven_is_not_claimed() -> None:
    """exp(z) <= 0 has no solution, but points that are as near to one as you like."""
    with pytest.raises(InaccurateError):
        OptLayer([z], [x], squares, [lambda z, x: torch.exp(z)])(data())


@pytest.mark.parametrize("objective", [torch.dot, lambda z, x: softplus(z).sum() - 2 * torch.sum(z)])
def test_unbounded(objective: Any) -> None:
    with pytest.raises(UnboundedError, match="keeps falling"):
        OptLayer([z], [x], lambda z, x: objective(z, x))(data())


def test_an_infimum_that_is_not_attained() -> None:
    with pytest.raises(InaccurateError, match="not attained"):
        OptLayer([z], [x], lambda z, x: torch.exp(z - x).sum())(data())


def test_a_saddle_is_no_answer() -> None:
    """Convex at every random probe, concave near 0, where the search begins and the gradient is 0."""

    def dented(z: Tensor, x: Tensor) -> Tensor:
        return torch.where(z.abs() < 2e-3, -torch.square(z), torch.square(z)).sum() + 0 * torch.sum(x)

    layer = OptLayer([z], [x], dented)
    with pytest.raises(
        InaccurateError, match=r"sample 1 is inaccurate \(not convex at the solution: .*eigenvalue"
    ):
        layer(data(2))
    assert OptLayer([z], [x], dented, on_failure="nan")(data(2)).isnan().all()


def test_concave_along_the_constraint_normal_is_no_saddle() -> None:
    """H is indefinite, but not on the face that is left."""

    def tilted(z: Tensor, x: Tensor) -> Tensor:
        return (
            torch.where(z[0] > 5.5, -torch.square(z[0] - 5.5), 0.0)
            - z[0]
            + torch.sum(torch.square(z[1:] - x[1:]))
        )

    layer = OptLayer([z], [x], tilted, [lambda z, x: z - 6, lambda z, x: -z - 6])
    y = layer(0.1 * data(2))
    torch.testing.assert_close(y[:, 0], torch.full((2,), 6.0, dtype=torch.float64))
