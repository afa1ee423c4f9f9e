"""torch.compile of a model that holds a layer: the same numbers."""

import pytest
import torch

from .problems import SOFTMAX, build_relu, build_softmax, close, normal

# dynamo asks intermediate tensors for their .grad after every graph break
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


class Model(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first = torch.nn.Linear(5, 5, dtype=torch.float64)
        self.layer = layer
        self.last = torch.nn.Linear(5, 2, dtype=torch.float64)

    def forward(self, x):
        return self.last(self.layer(self.first(x).tanh()).sqrt())


def check(backend, rng):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Model(build_softmax())
    compiled = torch.compile(model, backend=backend)
    for size in (4, 4, 7):
        x = normal(rng, size, 5)
        results = []
        for function in (model, compiled):
            model.zero_grad()
            output = function(x)
            output.square().sum().backward()
            results.append((output.detach(), *(weight.grad.clone() for weight in model.parameters())))
        for eager, fast in zip(*results, strict=True):
            close(fast, eager, 1e-10)
    assert all(weight.grad.abs().max() > 0 for weight in model.parameters())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_model(backend, rng):
    check(backend, rng)


@pytest.mark.large
def test_model_with_the_default_backend(rng):
    check("inductor", rng)


def test_the_layer_itself(rng):
    torch._dynamo.reset()
    layer = build_relu()
    x = normal(rng, 3, 5)
    close(torch.compile(layer, backend="eager")(x), x.relu())


def test_without_gradients(rng):
    torch._dynamo.reset()
    model = Model(build_softmax())
    compiled = torch.compile(model, backend="aot_eager")
    x = normal(rng, 3, 5)
    with torch.no_grad():
        close(compiled(x), model(x), 1e-10)


def test_solve_inside_a_compiled_function(rng):
    torch._dynamo.reset()
    layer = build_softmax()
    x = normal(rng, 3, 5)

    def value(x):
        return layer.solve(2 * x).value + 1

    close(torch.compile(value, backend="eager")(x), SOFTMAX.duals(2 * x)[2] + 1)
