"""How a layer is called: names, leading dimensions, types, and the errors for what does not fit."""

import gc

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import InputError, OptLayer, OptLayerError

from .problems import (
    BLOCKS,
    BOX,
    PLANE,
    QP,
    SMALL_QP,
    SMALL_QP_LOOSE,
    SPARSEMAX,
    all_of,
    build_box,
    build_qp,
    build_relu,
    build_sparsemax,
    close,
    layer_of,
    leaves,
    normal,
    plant_qp,
    sample_sparsemax,
    sparsemax,
)

# ------------------------------------------------------------------ names


def test_keywords_are_parameter_names(rng):
    x, a, b = PLANE.parameters(rng, 2)
    layer = layer_of(PLANE)
    expected = layer(x, a, b)
    assert torch.equal(layer(b=b, x=x, a=a), expected)
    assert torch.equal(layer(x, b=b, a=a), expected)
    assert torch.equal(layer.solve(a=a, x=x, b=b).primal[0], expected)


@pytest.mark.parametrize(
    ("arguments", "named", "parts"),
    [
        (2, {}, ["b"]),
        (0, {}, ["x"]),
        (1, {"b": 2}, ["a"]),
        (3, {"b": 2}, ["b"]),
        (2, {"b": 2, "wrong": 0}, ["wrong"]),
        (2, {"beta": 2}, ["beta"]),
    ],
    ids=["missing", "none", "missing-named", "twice", "unknown", "misspelt"],
)
def test_wrong_names(arguments, named, parts, rng):
    data = PLANE.parameters(rng)
    with pytest.raises(InputError, match=all_of(*(rf"\b{part}\b" for part in parts))):
        layer_of(PLANE)(*data[:arguments], **{name: data[index] for name, index in named.items()})


def test_wrong_count(rng):
    data = PLANE.parameters(rng)
    with pytest.raises(InputError, match=all_of("3", "4")):
        layer_of(PLANE)(*data, data[0])
    with pytest.raises(InputError, match=all_of(r"\bb\b")) as caught:
        layer_of(PLANE)(*data[:2])
    assert caught.value.indices == ()
    assert isinstance(caught.value, (OptLayerError, ValueError))


# ------------------------------------------------------------------ outputs


def test_one_tensor_for_one_variable_and_a_tuple_for_several(rng):
    assert isinstance(layer_of(SPARSEMAX)(*SPARSEMAX.parameters(rng)), torch.Tensor)
    outputs = layer_of(BLOCKS)(*BLOCKS.parameters(rng, 3))
    assert isinstance(outputs, tuple)
    assert [tuple(output.shape) for output in outputs] == [
        (3,),
        (3, 2, 3),
        (3, 2, 3, 2),
    ]


# ------------------------------------------------------------------ leading dimensions


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 3)], ids=str)
def test_leading_dimensions(batch, rng):
    (x,) = sample_sparsemax(rng, *batch)
    x.requires_grad_()
    y = layer_of(SPARSEMAX)(x)
    assert y.shape == (*batch, 6)
    close(y, sparsemax(x))
    (y * torch.arange(6)).sum().backward()
    (reference,) = leaves((x,))
    (sparsemax(reference) * torch.arange(6)).sum().backward()
    close(x.grad, reference.grad)


def test_leading_dimensions_broadcast(rng):
    x, a, b = leaves((normal(rng, 2, 1, 4), normal(rng, 3, 4), normal(rng)))
    y = layer_of(PLANE)(x, a, b)
    assert y.shape == (2, 3, 4)
    theirs = leaves((x, a, b))
    expanded = theirs[0].expand(2, 3, 4), theirs[1].expand(2, 3, 4), theirs[2].expand(2, 3)
    close(y, PLANE.truth(*expanded)[0])
    w = normal(rng, 2, 3, 4)
    ours = torch.autograd.grad(y, (x, a, b), w)
    for actual, expected in zip(ours, torch.autograd.grad(PLANE.truth(*expanded)[0], theirs, w), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("shared", range(6), ids=["L", "q", "G", "h", "A", "b"])
def test_an_unbatched_parameters_gradient_is_the_sum(shared, rng):
    """One parameter shared by four samples: its gradient is the sum of the four, not their mean."""
    data = [tensor.expand(4, *tensor.shape).clone() for tensor in plant_qp(rng, 4, 2, 1).parameters]
    data[1] = data[1] + 0.1 * normal(rng, 4, 4)
    layer, w = layer_of(SMALL_QP_LOOSE), normal(rng, 4, 4)
    batched = leaves(data)
    apart = torch.autograd.grad(layer(*batched), batched, w)
    if shared == 1:
        data[1] = data[1][:1].expand(4, 4)
        batched = leaves(data)
        apart = torch.autograd.grad(layer(*batched), batched, w)
    mixed = leaves([tensor[0] if index == shared else tensor for index, tensor in enumerate(data)])
    together = torch.autograd.grad(layer(*mixed), mixed, w)
    for index, (actual, expected) in enumerate(zip(together, apart, strict=True)):
        close(actual, expected.sum(0) if index == shared else expected, 1e-9)


def test_everything_shared_but_one(rng):
    L, q, G, h, A, b = plant_qp(rng, 4, 2, 1).parameters
    layer = layer_of(SMALL_QP_LOOSE)
    q = q + 0.1 * normal(rng, 5, 4)
    close(layer(L, q, G, h, A, b), torch.stack([layer(L, row, G, h, A, b) for row in q]), 1e-12)


def test_scalar_parameters_take_a_batch(rng):
    x, a, b = normal(rng, 4), normal(rng, 4), normal(rng, 5)
    y = layer_of(PLANE)(x, a, b)
    assert y.shape == (5, 4)
    close(y @ a, b)


def test_scalar_parameters_broadcast_inside(rng):
    layer = OptLayer(
        [cp.Variable(3)],
        [cp.Parameter(3), cp.Parameter()],
        objective=lambda z, x, s: cp.sum_squares(z - s * x - s),
    )
    x, s = leaves((normal(rng, 4, 3), normal(rng, 4)))
    y = layer(x, s)
    close(y, s.unsqueeze(-1) * x + s.unsqueeze(-1))
    close(torch.autograd.grad(y.sum(), s)[0], (x + 1).sum(-1))


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)], ids=str)
def test_empty_batch(batch, rng):
    x = torch.zeros(*batch, 6, dtype=torch.float64, requires_grad=True)
    y = layer_of(SPARSEMAX)(x)
    assert y.shape == (*batch, 6)
    assert y.dtype == torch.float64
    y.sum().backward()
    assert x.grad.shape == x.shape
    solution = layer_of(SPARSEMAX).solve(x)
    assert solution.status.shape == batch
    assert solution.value.shape == batch
    assert solution.inequality_duals[0].shape == (*batch, 6)
    assert solution.equality_duals[0].shape == batch


def test_empty_batch_with_a_shared_parameter(rng):
    x, a, b = leaves((normal(rng, 0, 4), normal(rng, 4), normal(rng)))
    y = layer_of(PLANE)(x, a, b)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))
    assert torch.equal(b.grad, torch.zeros_like(b))


def test_empty_batch_needs_no_solve():
    """Data that no solver could answer, zero times."""
    data = [tensor.expand(0, *tensor.shape) for tensor in BOX.infeasible()[1]]
    assert layer_of(BOX)(*data).shape == (0, 4)


@pytest.mark.parametrize("problem", [SPARSEMAX, SMALL_QP, BOX], ids=repr)
def test_a_sample_does_not_depend_on_its_neighbours(problem, rng):
    """One row replaced: the others bitwise equal, gradients too. One row removed: to 1e-12."""
    first, second = problem.parameters(rng, 6), problem.parameters(rng, 6)
    replaced = [torch.cat([a[:2], b[2:3], a[3:]]) for a, b in zip(first, second, strict=True)]
    removed = [torch.cat([a[:2], a[3:]]) for a in first]
    keep = [0, 1, 3, 4, 5]
    w = normal(rng, 6, layer_of(problem)(*first).shape[-1])
    results = []
    for data, cotangent in ((first, w), (replaced, w), (removed, w[keep])):
        data = leaves(data)
        y = layer_of(problem)(*data)
        results.append((y.detach(), *torch.autograd.grad(y, data, cotangent)))
    for original, other, shorter in zip(*results, strict=True):
        assert torch.equal(original[keep], other[keep])
        close(shorter, original[keep], 1e-12)
    assert not torch.equal(results[0][0][2], results[1][0][2])


def test_non_contiguous_and_expanded_inputs(rng):
    (x,) = sample_sparsemax(rng, 4)
    expected = sparsemax(x)
    close(layer_of(SPARSEMAX)(x.mT.contiguous().mT), expected)
    close(layer_of(SPARSEMAX)(x[::2]), expected[::2])
    close(layer_of(SPARSEMAX)(x[0].expand(3, 6)), expected[0].expand(3, 6))


# ------------------------------------------------------------------ types


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-6), (torch.float64, 1e-12)],
    ids=str,
)
def test_output_and_gradient_have_the_inputs_type(dtype, tolerance, rng):
    x = sample_sparsemax(rng, 4)[0].to(dtype).requires_grad_()
    solution = layer_of(SPARSEMAX).solve(x)
    y = solution.primal[0]
    assert {
        y.dtype,
        solution.value.dtype,
        solution.inequality_duals[0].dtype,
        solution.equality_duals[0].dtype,
    } == {dtype}
    close(y.double(), sparsemax(x.detach().double()), tolerance)
    (y * torch.arange(6, dtype=dtype)).sum().backward()
    assert x.grad.dtype == dtype
    reference = x.detach().double().requires_grad_()
    (sparsemax(reference) * torch.arange(6)).sum().backward()
    close(x.grad.double(), reference.grad, 4 * tolerance)


def test_solved_in_double_precision_whatever_comes_in(rng):
    """A float32 answer is the rounded float64 answer: nothing was solved in float32."""
    x = sample_sparsemax(rng, 4)[0].float()
    assert torch.equal(layer_of(SPARSEMAX)(x), layer_of(SPARSEMAX)(x.double()).float())
    assert layer_of(SPARSEMAX).solve(x).residuals.worst.max() < 1e-9


def test_types_are_promoted(rng):
    x, a, b = PLANE.parameters(rng)
    for dtypes in (
        (torch.float32, torch.float64, torch.float32),
        (torch.float16, torch.float32, torch.bfloat16),
    ):
        data = [
            tensor.clone().to(dtype).requires_grad_() for tensor, dtype in zip((x, a, b), dtypes, strict=True)
        ]
        y = layer_of(PLANE)(*data)
        expected = torch.promote_types(torch.promote_types(*dtypes[:2]), dtypes[2])
        assert y.dtype == expected
        y.sum().backward()
        assert [tensor.grad.dtype for tensor in data] == list(dtypes)


def test_a_scalar_parameter_takes_part_in_promotion(rng):
    """Promotion is that of types; a tensor of no dimensions is not weak."""
    x, a, b = PLANE.parameters(rng)
    assert layer_of(PLANE)(x.float(), a.float(), b.double()).dtype == torch.float64


def test_numpy_and_python_values_are_weak(rng):
    x, a, b = PLANE.parameters(rng)
    expected = layer_of(PLANE)(x, a, b)
    y = layer_of(PLANE)(x.float(), a.numpy(), float(b))
    assert y.dtype == torch.float32
    close(y.double(), expected, 1e-5)
    assert layer_of(PLANE)(x, a.numpy().astype(np.float32), 1).dtype == torch.float64
    half = layer_of(PLANE)(x.half(), a.tolist(), np.float64(b))
    assert half.dtype == torch.float16
    close(layer_of(PLANE)(x, a.tolist(), b.item()), expected, 1e-12)


def test_numpy_values_keep_their_precision(rng):
    """Weak in the promotion, not rounded before the solve."""
    x, a, b = PLANE.parameters(rng)
    y = layer_of(PLANE)(x.float(), a.numpy(), b.numpy())
    close(y, PLANE.truth(x.float().double(), a, b)[0].float(), 1e-7)


def test_numpy_only(rng):
    x, a, b = PLANE.parameters(rng)
    y = layer_of(PLANE)(x.numpy(), a.numpy(), float(b))
    assert isinstance(y, torch.Tensor)
    assert y.is_floating_point()
    close(y.double(), layer_of(PLANE)(x, a, b), 1e-6)


AMP = {torch.bfloat16: 0.05, torch.float16: 0.01}  # what eight and eleven bits leave of a gradient


@pytest.mark.parametrize("dtype", AMP, ids=str)
def test_autocast_does_not_reach_inside(dtype, rng):
    x = sample_sparsemax(rng, 4)[0].float().requires_grad_()
    plain = layer_of(SPARSEMAX)(x)
    plain.square().sum().backward()
    gradient, x.grad = x.grad, None
    with torch.autocast("cpu", dtype=dtype):
        y = layer_of(SPARSEMAX)(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, plain)
    with torch.autocast("cpu", dtype=dtype):
        y.square().sum().backward()
    close(x.grad, gradient, 1e-6)


def mixed_precision_step(weights, dtype, data):
    """The gradient of one step of mixed-precision training, by the usual recipe, and the layer's output."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 6), layer_of(SPARSEMAX))
    net.load_state_dict(weights)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        y = net(data)
    scaler.scale((y.float() - y.new_tensor([1, 0, 0, 0, 0, 0])).square().sum()).backward()
    scaler.unscale_(optimizer)
    gradient = [parameter.grad.clone() for parameter in net.parameters()]
    scaler.step(optimizer)
    return y, gradient


@pytest.mark.parametrize("dtype", AMP, ids=str)
def test_a_step_of_mixed_precision_training(dtype, rng):
    """The linear layer hands over 16 bits, the answer is that of those 16 bits and has their type."""
    weights = {"0.weight": normal(rng, 6, 3).float(), "0.bias": normal(rng, 6).float()}
    data = normal(rng, 5, 3).float()
    _, expected = mixed_precision_step(weights, None, data)
    y, gradient = mixed_precision_step(weights, dtype, data)
    assert y.dtype == dtype
    with torch.autocast("cpu", dtype=dtype):
        handed_over = torch.nn.functional.linear(data, *weights.values())
    assert torch.equal(y, layer_of(SPARSEMAX)(handed_over.double()).to(dtype))
    for actual, right in zip(gradient, expected, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - right).norm() < AMP[dtype] * right.norm()


# ------------------------------------------------------------------ modes


def test_no_grad_and_inference_mode(rng):
    x = sample_sparsemax(rng, 4)[0].requires_grad_()
    expected = layer_of(SPARSEMAX)(x).detach()
    with torch.no_grad():
        y = layer_of(SPARSEMAX)(x)
    assert not y.requires_grad
    assert y.grad_fn is None
    with torch.inference_mode():
        z = layer_of(SPARSEMAX)(x)
        solution = layer_of(SPARSEMAX).solve(x)
    assert z.is_inference()
    assert not solution.value.requires_grad
    assert torch.equal(y, expected)
    assert torch.equal(z, expected)
    assert not layer_of(SPARSEMAX)(x.detach()).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_for_a_backward(mode, rng):
    """After the call the output's memory is the only new memory that tensors hold."""
    layer, (x,) = build_sparsemax(), sample_sparsemax(rng, 4)
    x.requires_grad_()

    def alive():
        gc.collect()
        return {
            thing.untyped_storage().data_ptr() for thing in gc.get_objects() if type(thing) is torch.Tensor
        }

    layer(x)  # whatever is made once
    before = alive()
    with mode():
        y = layer(x)
    assert alive() - before == {y.untyped_storage().data_ptr()}


def test_under_saved_tensor_hooks(rng):
    """Checkpointing and offloading work by such hooks; without gradients they see nothing."""
    x = sample_sparsemax(rng, 4)[0].requires_grad_()
    (expected,) = torch.autograd.grad(layer_of(SPARSEMAX)(x).square().sum(), x)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        with torch.no_grad():
            layer_of(SPARSEMAX)(x)
        assert not saved
        y = layer_of(SPARSEMAX)(x)
    assert saved
    close(torch.autograd.grad(y.square().sum(), x)[0], expected, 1e-12)
    with torch.autograd.graph.save_on_cpu():
        y = layer_of(SPARSEMAX)(x)
    close(torch.autograd.grad(y.square().sum(), x)[0], expected, 1e-12)


def test_inference_tensors_as_data(rng):
    with torch.inference_mode():
        (x,) = sample_sparsemax(rng, 2)
    close(layer_of(SPARSEMAX)(x), sparsemax(x))


def test_only_what_asks_gets_a_gradient(rng):
    x, a, b = PLANE.parameters(rng)
    x.requires_grad_()
    y = layer_of(PLANE)(x, a, b)
    y.sum().backward()
    assert x.grad is not None
    assert a.grad is None
    assert b.grad is None


# ------------------------------------------------------------------ wrong data


@pytest.mark.parametrize(
    ("name", "got", "expected"),
    [
        ("L", (10, 9), "10, ?10"),
        ("q", (9,), "10"),
        ("G", (4,), "4, ?10"),
        ("h", (), "4"),
        ("A", (6, 10), "5, ?10"),
        ("b", (5, 1), "5"),
    ],
    ids=["L", "q", "G", "h", "A", "b"],
)
def test_wrong_shape(name, got, expected):
    """One size at a time: the text names the parameter, what was expected, what came."""
    data = dict(zip("LqGhAb", QP.parameters(torch.Generator().manual_seed(0)), strict=True))
    data[name] = torch.zeros(got, dtype=torch.float64)
    shape = ", ?".join(map(str, got))
    with pytest.raises(
        InputError, match=all_of(rf"\b{name}\b", expected, rf"\({shape},?\)|\[{shape}\]")
    ) as caught:
        layer_of(QP)(**data)
    assert caught.value.indices == ()


def test_wrong_batch(rng):
    x, a, b = PLANE.parameters(rng, 4)
    with pytest.raises(InputError, match=all_of("4", "5", r"\ba\b")) as caught:
        layer_of(PLANE)(x, normal(rng, 5, 4), b)
    assert caught.value.indices == ()
    with pytest.raises(InputError, match=all_of(r"\bx\b")):
        layer_of(PLANE)(normal(rng, 2, 3, 4), a, b)


def test_wrong_device(rng):
    x, a, b = PLANE.parameters(rng)
    with pytest.raises(InputError, match=all_of("device", "meta", "cpu")):
        layer_of(PLANE)(x, a.to("meta"), b)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_data(dtype, rng):
    x, a, b = PLANE.parameters(rng)
    with pytest.raises(InputError, match=all_of(r"\ba\b", "complex")):
        layer_of(PLANE)(x, a.to(dtype), b)
    with pytest.raises(InputError, match=all_of(r"\ba\b", "complex")):
        layer_of(PLANE)(x, a.to(dtype).numpy(), b)


@pytest.mark.parametrize(
    "value", ["three", None, object(), {"a": 1}], ids=["text", "none", "object", "dictionary"]
)
def test_data_that_is_no_number(value, rng):
    x, _, b = PLANE.parameters(rng)
    with pytest.raises(InputError, match=r"\ba\b"):
        layer_of(PLANE)(x, value, b)


def test_ragged_data(rng):
    x, _, b = PLANE.parameters(rng)
    with pytest.raises(InputError, match=r"\ba\b"):
        layer_of(PLANE)(x, [[1.0, 2.0], [3.0]], b)


class TestParameterAttributes:
    """Values are checked against the declared attributes, relative to the precision of what comes in."""

    @staticmethod
    def layer(**attributes):
        parameter = cp.Parameter(3, name="weight", **attributes)
        return OptLayer([cp.Variable(3)], [parameter], objective=lambda z, w: cp.sum_squares(z - w))

    @pytest.mark.parametrize(
        ("attribute", "good", "bad"),
        [("nonneg", 0.0, -1.0), ("nonpos", 0.0, 1.0), ("pos", 1.0, -1.0), ("neg", -1.0, 1.0)],
    )
    def test_sign(self, attribute, good, bad):
        layer = self.layer(**{attribute: True})
        value = torch.full((2, 3), good, dtype=torch.float64)
        close(layer(value), value)
        value[1, 2] = bad
        with pytest.raises(InputError, match=all_of("weight", attribute)) as caught:
            layer(value)
        assert caught.value.indices == (1,)

    @staticmethod
    def quadratic(**attributes):
        return OptLayer(
            [cp.Variable(3)],
            [cp.Parameter((3, 3), name="Q", **attributes), cp.Parameter(3)],
            objective=lambda z, Q, q: cp.quad_form(z, Q) / 2 + cp.sum_squares(z) / 2 + q @ z,
        )

    def test_psd(self, rng):
        layer, eye = self.quadratic(PSD=True), torch.eye(3, dtype=torch.float64)
        with pytest.raises(InputError, match=all_of(r"\bQ\b", "PSD|semidefinite")):
            layer(-eye, eye[0])
        close(layer(eye, eye[0]), -eye[0] / 2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
    def test_a_rounded_gram_matrix_is_psd(self, dtype, rng):
        layer = self.quadratic(PSD=True)
        half = normal(rng, 20, 3, 1).to(dtype)
        y = layer(half @ half.mT, torch.zeros(3, dtype=dtype))
        assert y.dtype == dtype
        close(y, torch.zeros(20, 3, dtype=dtype), 1e-6)

    def test_symmetric(self, rng):
        layer = OptLayer(
            [cp.Variable((3, 3))],
            [cp.Parameter((3, 3), symmetric=True, name="S")],
            objective=lambda Z, S: cp.sum_squares(Z - S),
        )
        S = normal(rng, 3, 3)
        with pytest.raises(InputError, match=all_of(r"\bS\b", "symmetric")):
            layer(S)
        S = (S + S.T).requires_grad_()
        close(layer(S), S)
        w = normal(rng, 3, 3)
        (gradient,) = torch.autograd.grad(layer(S), S, w)
        close(gradient, (w + w.T) / 2)

    def test_nearly_symmetric_is_symmetrized(self, rng):
        layer = OptLayer(
            [cp.Variable((3, 3))],
            [cp.Parameter((3, 3), symmetric=True)],
            objective=lambda Z, S: cp.sum_squares(Z - S),
        )
        S = normal(rng, 3, 3).float()
        S = S + S.T
        S[0, 1] *= 1 + 2e-7
        y = layer(S)
        assert torch.equal(y, y.T)


def test_users_leaves_are_left_alone(rng):
    z, x = cp.Variable(3, name="z"), cp.Parameter(3, name="x")
    layer = OptLayer([z], [x], objective=lambda z, x: cp.sum_squares(z - x))
    other = OptLayer([z], [x], objective=lambda z, x: cp.sum_squares(z - 2 * x))
    data = normal(rng, 2, 3)
    close(layer(data), data)
    close(other(data), 2 * data)
    assert z.value is None
    assert x.value is None
    x.value = [1.0, 2.0, 3.0]
    close(layer(data), data)
    assert x.value.tolist() == [1.0, 2.0, 3.0]


def test_inputs_are_left_alone(rng):
    data = SMALL_QP.parameters(rng, 2)
    copies = [tensor.clone() for tensor in data]
    layer_of(SMALL_QP)(*data)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(data, copies, strict=True))


def test_layers_hold_what_was_declared():
    layer = build_qp(4, 3, 1)
    assert [variable.name() for variable in layer.variables] == ["z"]
    assert [parameter.name() for parameter in layer.inputs] == list("LqGhAb")
    assert [parameter.shape for parameter in layer.inputs] == [(4, 4), (4,), (3, 4), (3,), (1, 4), (1,)]


def test_parameters_of_size_one_are_not_scalars(rng):
    layer = OptLayer(
        [cp.Variable(1)], [cp.Parameter(1, name="x")], objective=lambda z, x: cp.sum_squares(z - x)
    )
    x = normal(rng, 7, 1)
    close(layer(x), x)
    with pytest.raises(InputError, match=all_of(r"\bx\b", "7")):
        layer(normal(rng, 7))


def test_fresh_layers_agree(rng):
    (x,) = sample_sparsemax(rng, 3)
    assert torch.equal(build_sparsemax()(x), build_sparsemax()(x))
    assert torch.equal(build_relu()(x[:, :5]), build_relu()(x[:, :5]))
    data = BOX.parameters(rng, 3)
    assert torch.equal(build_box()(*data), build_box()(*data))
