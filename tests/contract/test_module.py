"""A good module: copied, pickled, moved, shared between threads, wrapped, checkpointed."""

import copy
import gc
import io
import multiprocessing as mp
import os
import pickle
import subprocess
import sys
import textwrap
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cvxpy as cp
import pytest
import torch

import optlayer
from optlayer import OptLayer

from .problems import (
    BALL,
    BLOCKS,
    SMALL_QP,
    SPARSEMAX,
    TABLE,
    as_tuple,
    build_qp,
    build_softmax,
    build_sparsemax,
    close,
    layer_of,
    leaves,
    normal,
    outputs_of,
    plant_qp,
    sample_sparsemax,
)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 6, dtype=torch.float64),
        build_sparsemax(),
        torch.nn.Linear(6, 2, dtype=torch.float64),
    )


def same(first, second, problem, rng):
    data = problem.parameters(rng, 2)
    for a, b in zip(as_tuple(first(*data)), as_tuple(second(*data)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("problem", TABLE, ids=repr)
def test_deepcopy_and_pickle(problem, used, rng):
    layer = problem.build()
    if used:
        layer(*problem.parameters(rng, 2))
    same(copy.deepcopy(layer), layer, problem, rng)
    same(pickle.loads(pickle.dumps(layer)), layer, problem, rng)


def test_a_copy_is_its_own(rng):
    layer = build_sparsemax(on_failure="nan")
    other = copy.deepcopy(layer)
    del layer
    gc.collect()
    close(other(*SPARSEMAX.parameters(rng, 2)).sum(-1), torch.ones(2, dtype=torch.float64))
    assert other(torch.full((6,), float("nan"), dtype=torch.float64)).isnan().all()  # options travel


def test_deepcopy_of_a_layer_made_of_lambdas(rng):
    layer = OptLayer([cp.Variable(3)], [cp.Parameter(3)], objective=lambda z, x: cp.sum_squares(z - x))
    x = normal(rng, 2, 3)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_torch_save(rng):
    net, buffer = model(), io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    x = normal(rng, 4, 3)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), net(x))


SHOP = """
    import cvxpy as cp
    import torch
    from optlayer import OptLayer

    def objective(z, x, s):
        return s * cp.sum_squares(z - x) + cp.sum(cp.exp(z))

    def positive(z, x, s):
        return -z

    def total(z, x, s):
        return cp.sum(z) - 1

    def build():
        return OptLayer([cp.Variable(4)], [cp.Parameter(4, name="x"), cp.Parameter(nonneg=True, name="s")],
                        objective, [positive], [total], solver="CLARABEL")

    def numbers(layer):
        x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
        y = layer(x=x, s=2.0)
        y.square().sum().backward()
        return [*y.flatten().tolist(), *x.grad.flatten().tolist()]
"""
WRITE = (
    "import shop, pickle, sys; layer = shop.build(); print(shop.numbers(layer)); "
    "pickle.dump(layer, open(sys.argv[1], 'wb'))"
)
READ = (
    "import pickle, sys; layer = pickle.load(open(sys.argv[1], 'rb')); "
    "import shop; print(shop.numbers(layer))"
)


def fresh_python(code, folder, *arguments):
    """What a new interpreter prints, with the modules in the folder; it must succeed."""
    where = [str(folder), str(Path(optlayer.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(where), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_pickle_in_a_fresh_process(tmp_path):
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP))
    printed = []
    for code in (WRITE, READ):
        output = fresh_python(code, tmp_path, str(tmp_path / "layer.pickle"))
        printed.append(torch.tensor(eval(output), dtype=torch.float64))
    close(printed[1], printed[0], 1e-12)
    assert len(printed[0]) == 16
    assert printed[0].isfinite().all()


def test_nothing_of_ours_in_the_state():
    layer = build_sparsemax()
    assert not layer.state_dict()
    assert not list(layer.parameters())
    assert not list(layer.buffers())
    assert set(model().state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert isinstance(layer, torch.nn.Module)


def test_a_checkpoint_without_the_layer_loads_into_a_model_with_one(rng):
    net, other = model(), model()
    other.load_state_dict(net.state_dict(), strict=True)
    x = normal(rng, 4, 3)
    assert torch.equal(net(x), other(x))


def test_moving(rng):
    layer = build_sparsemax()
    (x,) = sample_sparsemax(rng, 2)
    expected = layer(x)
    for moved in (
        layer.to("cpu"),
        layer.double(),
        layer.half(),
        layer.float(),
        layer.to(torch.bfloat16),
        layer.eval(),
        layer.train(),
        layer.requires_grad_(False),
        layer.requires_grad_(True),
    ):
        assert moved is layer
        assert torch.equal(moved(x), expected)
        assert moved(x.float()).dtype == torch.float32


def test_eight_threads(rng):
    """Eight threads, two hundred calls each, other data and other batch sizes, forward and backward."""
    layer = build_qp(2, 1, 1)
    jobs = [plant_qp(rng, 2, 1, 1, batch=(1 + index % 3,)).parameters for index in range(40)]

    def work(data):
        data = leaves(data)
        y = layer(*data)
        y.square().sum().backward()
        return (y.detach(), *(tensor.grad for tensor in data))

    expected = [work(job) for job in jobs]

    def two_hundred_calls(thread):
        for call in range(200):
            job = (7 * thread + call) % 40  # no two threads in step
            assert all(map(torch.equal, work(jobs[job]), expected[job]))
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(two_hundred_calls, range(8))) == 1600


def test_threads_on_a_fresh_layer(rng):
    """The very first calls come at once; first derivatives under vmap in the threads too."""
    layer, x = build_softmax(), normal(rng, 16, 5)
    with ThreadPoolExecutor(8) as pool:
        jacobians = list(pool.map(torch.func.jacrev(layer), x))
    close(torch.stack(jacobians), torch.func.vmap(torch.func.jacrev(lambda x: x.softmax(-1)))(x))


def test_number_of_threads_is_left_alone(rng):
    before = torch.get_num_threads()
    layer_of(SPARSEMAX)(*sample_sparsemax(rng, 64))
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_random_state_and_modes_are_left_alone(rng):
    state = torch.get_rng_state()
    layer = build_softmax()
    layer(normal(rng, 2, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_default_dtype_does_not_matter(rng):
    (x,) = sample_sparsemax(rng, 2)
    expected = layer_of(SPARSEMAX)(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(build_sparsemax()(x), expected)
        assert build_sparsemax()(x.float()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_repr_shows_problem_route_and_engine():
    text = repr(build_qp(4, 3, 1, solver=cp.CLARABEL))
    for part in ("OptLayer", "z", "L", "q", "G", "h", "A", "b", "smooth"):
        assert part in text
    assert "clarabel" in text.lower()
    text = repr(BLOCKS.build())
    for part in ("t", "W", "B", "p", "M", "K", "(2, 3)", "(2, 3, 2)"):
        assert part in text
    assert "\n" not in repr(model()[1]).strip() or "OptLayer(" in repr(model())


def test_forward_does_not_change_the_module(rng):
    layer = build_qp(4, 3, 1)
    layer(*SMALL_QP.parameters(rng, 2))
    before = dict(vars(layer))
    with torch.no_grad():
        layer(*SMALL_QP.parameters(rng, 5))
    after = vars(layer)
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)


def test_two_forwards_then_backward_of_the_first(rng):
    layer = build_qp(4, 3, 1)
    first, second = leaves(SMALL_QP.parameters(rng, 2)), leaves(SMALL_QP.parameters(rng, 3))
    expected = torch.autograd.grad(layer(*first).square().sum(), first)
    y = layer(*first)
    layer(*second).sum().backward()
    for actual, right in zip(torch.autograd.grad(y.square().sum(), first), expected, strict=True):
        assert torch.equal(actual, right)


def test_backward_twice(rng):
    (x,) = leaves(sample_sparsemax(rng, 2))
    y = layer_of(SPARSEMAX)(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(y.square().sum(), x)


def test_backward_in_another_thread(rng):
    (x,) = leaves(sample_sparsemax(rng, 2))
    y = layer_of(SPARSEMAX)(x)
    (expected,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    with ThreadPoolExecutor(1) as pool:
        (actual,) = pool.submit(torch.autograd.grad, y.square().sum(), x).result()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("problem", TABLE, ids=repr)
def test_repeated_calls_are_bitwise_equal(problem, rng):
    """The same layer again, after other data, and a layer built anew: forward, value, duals, gradients."""
    layer, data, other = problem.build(), problem.parameters(rng, 3), problem.parameters(rng, 2)

    def numbers(layer):
        inputs = leaves(data)
        outputs = outputs_of(layer.solve(*inputs))
        loss = sum(output.square().sum() for output in outputs)
        return [*outputs, *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)]

    first = numbers(layer)
    again = numbers(layer)
    layer(*other)
    for repeated in (again, numbers(layer), numbers(problem.build())):
        assert all(map(torch.equal, repeated, first))


@pytest.mark.parametrize("problem", [SPARSEMAX, SMALL_QP, BALL], ids=repr)
def test_inputs_changed_in_place_before_the_backward(problem, rng):
    """Torch's own error, not the gradient at data that were never solved."""
    data = leaves(problem.parameters(rng, 2))
    inputs = [tensor * 1 for tensor in data]
    y = layer_of(problem)(*inputs)
    inputs[0].detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.square().sum().backward()


def test_inputs_of_another_precision_changed_in_place(rng):
    """The layer solved a float64 copy of its own, so the gradient is that of what was handed in."""
    (x,) = leaves(tensor.float() for tensor in sample_sparsemax(rng, 2))
    inner = x * 1
    y = layer_of(SPARSEMAX)(inner)
    (expected,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    inner.detach().mul_(2)
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, rng):
    x = normal(rng, 4, 3).requires_grad_()
    net = model()
    expected = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    y = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=reentrant)
    y.square().sum().backward()
    for tensor, right in zip([x, *net.parameters()], expected, strict=True):
        assert torch.equal(tensor.grad, right)


def test_anomaly_mode(rng):
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        (x,) = leaves(sample_sparsemax(rng, 3))
        layer_of(SPARSEMAX)(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_the_graph_is_freed(rng):
    """Neither the layer nor a cycle keeps data alive after the last reference goes."""
    layer = build_sparsemax()
    gc.collect()
    gc.disable()
    try:
        (x,) = leaves(sample_sparsemax(rng, 3))
        y = layer(x)
        y.sum().backward()
        references = weakref.ref(x), weakref.ref(y)
        del x, y
        alive = [reference() is not None for reference in references]
    finally:
        gc.enable()
    assert alive == [False, False]


def test_functional_call(rng):
    net, x = model(), normal(rng, 4, 3)
    parameters = dict(net.named_parameters())
    loss = lambda parameters: torch.func.functional_call(net, parameters, (x,)).square().sum()
    gradients = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, tensor in parameters.items():
        close(gradients[name], tensor.grad, 1e-12)


def test_hooks(rng):
    layer, seen = build_sparsemax(), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer(*sample_sparsemax(rng, 3))
    assert seen == [(3, 6)]


def test_training_reaches_a_target(rng):
    target = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0, 0.0], dtype=torch.float64)
    x = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    layer, optimizer = build_sparsemax(), torch.optim.SGD([x], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-6


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_distributed_data_parallel(tmp_path, rng, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    net, x = model(), normal(rng, 4, 3)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
        wrapped(x).square().sum().backward()
        del wrapped  # else the group dies with it after it was destroyed, and gloo may never join its thread
        gc.collect()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, right in zip(net.parameters(), expected, strict=True):
        close(parameter.grad, right, 1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork(tmp_path):
    """Used before the fork and after it, in the child: solver workspaces are remade."""
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP))
    code = """
        import os, sys, shop, torch
        torch.set_num_threads(1)
        layer = shop.build()
        expected = shop.numbers(layer)
        child = os.fork()
        if child == 0:
            os._exit(0 if shop.numbers(layer) == expected else 7)
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    """
    fresh_python(textwrap.dedent(code), tmp_path)


class Solved(torch.utils.data.Dataset):
    """A data set whose items are answers and gradients of a layer."""

    def __init__(self, layer, data):
        self.layer, self.data = layer, data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x = self.data[index].clone().requires_grad_()
        y = self.layer(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        return y.detach(), gradient


@pytest.mark.parametrize("context", sorted({"fork", "spawn"} & set(mp.get_all_start_methods())))
def test_workers_of_a_data_loader(context, rng):
    """Used before the workers start, then by them; spawned ones get it by pickle."""
    items = Solved(build_sparsemax(), *sample_sparsemax(rng, 8))
    expected = torch.utils.data.default_collate([items[index] for index in range(8)])
    loader = torch.utils.data.DataLoader(
        items, batch_size=4, num_workers=2 if context == "fork" else 1, multiprocessing_context=context
    )
    actual = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    assert all(map(torch.equal, actual, expected))
