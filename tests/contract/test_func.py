"""torch.func in every nesting, against the same nesting of a closed form written in plain torch."""

import pytest
import torch
from torch.func import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

from .problems import BALL, BLOCKS, PLANE, SMALL_QP, SOFTMAX, close, layer_of, leaves, normal

N = 5
softmax, ball, plane, blocks = map(layer_of, (SOFTMAX, BALL, PLANE, BLOCKS))


def truth(x):
    return x.softmax(-1)


def loss(function):
    """A scalar with curvature of its own."""

    return lambda x: (function(x) * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)).sum().square()


SINGLE = {  # of one sample
    "grad": lambda f: grad(loss(f)),
    "grad_and_value": lambda f: grad_and_value(loss(f)),
    "grad_grad": lambda f: grad(lambda x: grad(loss(f))(x).square().sum()),
    "grad_grad_grad": lambda f: grad(
        lambda x: grad(lambda y: grad(loss(f))(y).square().sum())(x).sin().sum()
    ),
    "vjp": lambda f: lambda x: vjp(f, x)[1](torch.linspace(0, 1, N, dtype=x.dtype))[0],
    "jvp": lambda f: lambda x: jvp(f, (x,), (torch.linspace(0, 1, N, dtype=x.dtype),)),
    "jacrev": jacrev,
    "jacrev_in_chunks": lambda f: jacrev(f, chunk_size=2),
    "jacfwd": jacfwd,
    "hessian": hessian,
    "hessian_of_loss": lambda f: hessian(loss(f)),
    "jacrev_jacrev": lambda f: jacrev(jacrev(f)),
    "jacfwd_jacrev": lambda f: jacfwd(jacrev(f)),
    "jacrev_jacfwd": lambda f: jacrev(jacfwd(f)),
    "grad_of_jvp": lambda f: grad(lambda x: jvp(f, (x,), (x.sin(),))[1].square().sum()),
    "jvp_of_grad": lambda f: lambda x: jvp(grad(loss(f)), (x,), (torch.linspace(0, 1, N, dtype=x.dtype),)),
    "jvp_of_vjp": lambda f: lambda x: jvp(lambda y: vjp(f, y)[1](y)[0], (x,), (torch.ones_like(x),)),
    "jacrev_jacrev_jacrev": lambda f: jacrev(jacrev(jacrev(f))),
    "jacfwd_jacrev_jacrev": lambda f: jacfwd(jacrev(jacrev(f))),
}


@pytest.mark.parametrize("nest", SINGLE.values(), ids=SINGLE.keys())
def test_of_one_sample(nest, rng):
    x = normal(rng, N)
    close(nest(softmax)(x), nest(truth)(x))


@pytest.mark.parametrize("nest", SINGLE.values(), ids=SINGLE.keys())
def test_under_vmap(nest, rng):
    x = normal(rng, 3, N)
    close(vmap(nest(softmax))(x), vmap(nest(truth))(x))


@pytest.mark.parametrize("name", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "jacrev_jacrev"])
def test_under_two_vmaps(name, rng):
    x, nest = normal(rng, 2, 3, N), SINGLE[name]
    close(vmap(vmap(nest(softmax)))(x), vmap(vmap(nest(truth)))(x))


OVER_BATCH = {  # transforms outside, the batch inside
    "grad_vmap": lambda f: grad(lambda x: vmap(loss(f))(x).sum()),
    "grad_batch": lambda f: grad(loss(f)),
    "jacrev_vmap": lambda f: jacrev(vmap(f)),
    "jacrev_batch": jacrev,
    "jacfwd_vmap": lambda f: jacfwd(vmap(f)),
    "jacfwd_batch": jacfwd,
    "hessian_vmap": lambda f: hessian(lambda x: vmap(loss(f))(x).sum()),
    "hessian_batch": lambda f: hessian(loss(f)),
    "vmap_of_batch": lambda f: lambda x: vmap(f)(torch.stack([x, -x])),
    "jacrev_vmap_jacrev": lambda f: jacrev(vmap(jacrev(f))),
    "jacfwd_vmap_jacrev": lambda f: jacfwd(vmap(jacrev(f))),
    "second_axis": lambda f: lambda x: vmap(f, in_dims=1, out_dims=1)(x.mT),
    "in_chunks": lambda f: lambda x: vmap(f, chunk_size=2)(x),
}


@pytest.mark.parametrize("nest", OVER_BATCH.values(), ids=OVER_BATCH.keys())
def test_over_a_batch(nest, rng):
    x = normal(rng, 3, N)
    close(nest(softmax)(x), nest(truth)(x))


def test_forward_over_forward_is_right_or_raises(rng):
    x = normal(rng, N)
    nests = [
        (lambda f: jacfwd(jacfwd(f)), x),
        (lambda f: vmap(jacfwd(jacfwd(f))), normal(rng, 2, N)),
        (lambda f: lambda x: jvp(lambda y: jvp(f, (y,), (y.sin(),))[1], (x,), (torch.ones_like(x),)), x),
    ]
    for nest, data in nests:
        expected = nest(truth)(data)
        try:
            actual = nest(softmax)(data)
        except (RuntimeError, NotImplementedError) as error:
            assert str(error)  # noqa: PT017
            continue
        close(actual, expected)


def test_forward_over_forward_with_constraints(rng):
    """Where an inequality is active: the curvature of the multiplier belongs to the answer."""
    x, r = 3 * normal(rng, 4).sign() + normal(rng, 4), torch.tensor(1.0, dtype=torch.float64)
    expected = jacfwd(jacfwd(lambda x: BALL.truth(x, r)[0]))(x)
    assert expected.abs().max() > 1e-3
    try:
        actual = jacfwd(jacfwd(lambda x: ball(x, r)))(x)
    except (RuntimeError, NotImplementedError) as error:
        assert str(error)  # noqa: PT017
    else:
        close(actual, expected)


@pytest.mark.parametrize(
    "name", ["jacrev", "jacfwd", "hessian", "jacrev_jacrev", "jacrev_jacfwd", "jacrev_jacrev_jacrev"]
)
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_where_an_inequality_is_active_or_not(name, inside, rng):
    x, r = normal(rng, 3, 4), torch.tensor(9.0 if inside else 0.7, dtype=torch.float64)
    ours, theirs = lambda x: ball(x, r), lambda x: BALL.truth(x, r)[0]
    close(vmap(SINGLE[name](ours))(x), vmap(SINGLE[name](theirs))(x))


def test_with_respect_to_each_argument(rng):
    data = PLANE.parameters(rng)
    for transform in (jacrev, jacfwd, hessian):
        everything = transform(plane, argnums=(0, 1, 2))(*data)
        expected = transform(lambda *data: PLANE.truth(*data)[0], argnums=(0, 1, 2))(*data)
        torch.testing.assert_close(everything, expected, rtol=1e-8, atol=1e-8)


def test_shared_argument_under_vmap(rng):
    x, a, b = normal(rng, 3, 4), normal(rng, 4), normal(rng, 3)
    for transform in (
        lambda f: f,
        lambda f: jacrev(f, argnums=(0, 1)),
        lambda f: jacfwd(f, argnums=(0, 1)),
        lambda f: hessian(f, argnums=(0, 1)),
    ):
        ours = vmap(transform(plane), in_dims=(0, None, 0))(x, a, b)
        theirs = vmap(transform(lambda *data: PLANE.truth(*data)[0]), in_dims=(0, None, 0))(x, a, b)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_batch_inside_a_vmap(rng):
    """vmap over one axis while the layer sees another as its own batch, shared parameters in between."""
    x, a, b = normal(rng, 2, 3, 4), normal(rng, 2, 4), normal(rng, 3)
    ours = vmap(plane, in_dims=(0, 0, None))(x, a, b)
    close(ours, PLANE.truth(x, a.unsqueeze(1).expand(2, 3, 4), b.expand(2, 3))[0])


def test_several_outputs(rng):
    data = BLOCKS.parameters(rng, 2)
    for transform in (lambda f: f, lambda f: jacrev(f, argnums=1), lambda f: jacfwd(f, argnums=(0, 2))):
        ours, theirs = vmap(transform(blocks))(*data), vmap(transform(BLOCKS.truth))(*data)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("output", ["multiplier", "value"])
def test_multipliers_and_values(output, rng):
    data = PLANE.parameters(rng, 2)

    def ours(*data):
        solution = plane.solve(*data)
        return solution.value if output == "value" else solution.equality_duals[0]

    def theirs(*data):
        _, equality, value = PLANE.duals(*data)
        return value if output == "value" else equality[0]

    for transform in (grad, jacrev, jacfwd, hessian, lambda f: jacrev(jacrev(f))):
        close(vmap(transform(ours))(*data), vmap(transform(theirs))(*data))


def test_status_under_vmap(rng):
    x = normal(rng, 3, N)
    status = vmap(lambda x: softmax.solve(x).status)(x)
    assert status.shape == (3,)
    assert status.dtype == torch.int64
    assert (status == softmax.solve(x).status).all()


def test_second_derivatives_of_a_quadratic_programme_under_vmap(rng):
    data = SMALL_QP.parameters(rng, 2)
    layer = layer_of(SMALL_QP)
    one_by_one = [hessian(layer, argnums=1)(*sample) for sample in zip(*data, strict=True)]
    close(vmap(hessian(layer, argnums=1))(*data), torch.stack(one_by_one), 1e-9)
    assert vmap(hessian(layer, argnums=4))(*data).abs().max() > 1e-3


def test_a_layer_made_inside_a_transform(rng):
    """Made where it is first needed, used outside afterwards."""
    x, made = normal(rng, 3, 4), []

    def function(x):
        if not made:
            made.append(BALL.build())
        return made[0](x, 0.7)

    for transform in (jacfwd, jacrev, hessian):
        made.clear()
        expected = vmap(transform(lambda x: BALL.truth(x, torch.tensor(0.7, dtype=x.dtype))[0]))(x)
        close(vmap(transform(function))(x), expected)
        close(function(x), BALL.truth(x, torch.tensor(0.7, dtype=x.dtype))[0])


class TestAutograd:
    """The same derivatives through torch.autograd's own doors."""

    def test_functional(self, rng):
        x = normal(rng, N)
        expected = jacrev(truth)(x)
        for options in ({}, {"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}):
            close(torch.autograd.functional.jacobian(softmax, x, **options), expected)
        close(torch.autograd.functional.hessian(loss(softmax), x), hessian(loss(truth))(x))
        close(torch.autograd.functional.hessian(loss(softmax), x, vectorize=True), hessian(loss(truth))(x))
        close(torch.autograd.functional.jvp(softmax, x, torch.ones_like(x))[1], expected.sum(-1))

    def test_dual_numbers(self, rng):
        x, tangent = normal(rng, 2, N), normal(rng, 2, N)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            value, actual = torch.autograd.forward_ad.unpack_dual(softmax(dual))
        close(value, truth(x))
        close(actual, jvp(truth, (x,), (tangent,))[1])

    def test_batched_cotangents(self, rng):
        (x,) = leaves((normal(rng, N),))
        (jacobian,) = torch.autograd.grad(softmax(x), x, torch.eye(N, dtype=x.dtype), is_grads_batched=True)
        close(jacobian, jacrev(truth)(x.detach()))

    def test_double_backward(self, rng):
        (x,) = leaves((normal(rng, 2, N),))
        (first,) = torch.autograd.grad(loss(softmax)(x), x, create_graph=True)
        first.square().sum().backward()
        expected = grad(lambda x: grad(loss(truth))(x).square().sum())(x.detach())
        close(x.grad, expected)

    def test_small_and_large_cotangents(self, rng):
        """The derivative is linear in the cotangent: no threshold, no overflow."""
        (x,) = leaves((normal(rng, N),))
        w = normal(rng, N)
        expected = jacrev(truth)(x.detach()).T @ w
        for scale in (1e-300, 1e-100, 1e-12, 1e12, 1e100):
            (actual,) = torch.autograd.grad(softmax(x), x, scale * w)
            close(actual / scale, expected)

    def test_only_one_of_several_outputs_is_used(self, rng):
        data = leaves(BLOCKS.parameters(rng, 2))
        blocks(*data)[1].square().sum().backward()
        theirs = leaves(data)
        BLOCKS.truth(*theirs)[1].square().sum().backward()
        for actual, expected in zip(data, theirs, strict=True):
            close(actual.grad, expected.grad)
