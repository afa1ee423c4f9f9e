"""Solve, look at K at the solutions, differentiate, compare, and say what to do."""

from typing import Any

from torch import Tensor

from optlayer.batch import bind, enter
from optlayer.diagnostics.agreement import branches
from optlayer.diagnostics.findings import Facts, find
from optlayer.diagnostics.measure import Measured, samples
from optlayer.diagnostics.report import Report
from optlayer.diagnostics.slopes import Loss
from optlayer.layer import OptLayer

COMPARED = 4  # samples at which branches are compared


def check(
    layer: OptLayer,
    *parameters: Any,
    loss: Loss | None = None,
    seed: int = 0,
    verbose: bool = True,
    **named: Any,
) -> Report:
    """How a layer does at given parameters: what is proven, what holds x, whether its gradient can be used.

    It solves seven times, in float64; samples without a solution are reported, not raised.

    Args:
        layer: The layer, which is left as it is.
        parameters, named: Its parameters, as in a call.
        loss: A scalar function of what the layer returns, whose gradient is looked at; failed samples are 0
            in what it gets. None: the sum of the outputs, each times a random number.
        seed: Of those numbers, and of the direction in which the derivative is checked.
        verbose: Print the report.

    Raises:
        InputError: for parameters of wrong count, shape, batch, device or dtype.

    Example:
        >>> report = check(layer, x, verbose=False)
        >>> report.kinds, report.samples[0].active
        (frozenset({'vertex'}), {"inequality 0 'positive'": (1, 2, 3)})
    """
    batch = layer._prepared(enter(layer._slots, bind(layer._slots, parameters, named)))
    batch = batch.beside(layer._weights)
    measured = Measured.of(layer, batch)
    found = samples(measured, loss, seed)
    agreement = branches(layer, _points(measured))
    sizes = {p.name(): t.abs().max().item() for p, t in zip(layer.inputs, batch.theta) if t.numel()}
    facts = Facts(found, agreement, sizes, batch.dtype, layer._smoothing)
    report = Report(_title(layer, len(found)), found, agreement, find(facts))
    if verbose:
        print(report)
    return report


def _title(layer: OptLayer, size: int) -> str:
    return f"{type(layer).__name__}, route {layer._compiled.route}, {size} sample{'s' * (size != 1)}"


def _points(measured: Measured) -> list[tuple[Tensor, ...]]:
    """Variables and parameters of some solved samples."""
    layer, batch, outcome = measured
    x = layer._plan.form.recover(outcome.u, outcome.tau).x
    values = [*(gather(x) for gather in layer._compiled.readout.variables), *batch.theta]
    return [tuple(value[i].detach() for value in values) for i in measured.solved[:COMPARED]]
