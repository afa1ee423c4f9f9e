"""Everything that is known of each sample: the solve, K at the solution, the gradient."""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer import certify, failures
from optlayer.batch import Batch
from optlayer.diagnostics import active
from optlayer.diagnostics.data import Sample
from optlayer.diagnostics.slopes import Loss, gradients
from optlayer.forms.kkt import Instance, Reduction
from optlayer.layer import OptLayer
from optlayer.linsolve import ruiz
from optlayer.plan import Call, Outcome
from optlayer.report import sample_index
from optlayer.solution import Flags, Residuals, Status
from optlayer.solve import solve

LARGEST = 600  # unknowns up to which K is decomposed
EXPLAINED = 8  # failures whose reason is asked for one by one
STATUSES = tuple(Status)

Known = dict[str, Any]  # fields of a `Sample`


class Measured(NamedTuple):
    """One call of a layer that keeps failures to itself."""

    layer: OptLayer
    batch: Batch
    outcome: Outcome

    @classmethod
    def of(cls, layer: OptLayer, batch: Batch) -> "Measured":
        """By a twin that neither raises nor warns: failed samples are NaN."""
        twin = copy.deepcopy(layer)
        twin._plan = replace(layer._plan, raises=False, nonunique="ignore")
        twin._on_failure = "nan"
        call = Call(batch.shape, batch.eps)
        nothing = Outcome.of_nothing(twin._plan.form, 0)
        return cls(twin, batch, solve(twin._plan, call, batch.theta) if batch.size else nothing)

    @property
    def solved(self) -> list[int]:
        """The samples with a certified answer."""
        return failures.samples(self.outcome.status == Status.SOLVED)


def samples(measured: Measured, loss: Loss | None, seed: int) -> tuple[Sample, ...]:
    """One for each row of the batch; of failed ones how they failed, and no more."""
    told = _told(measured)
    lengths, found = _structure(measured)
    slopes = _gradients(measured, lengths, loss, seed)
    return tuple(
        Sample(**known) if i not in found else Sample(**known, **found[i], **slopes.get(i, {}))
        for i, known in enumerate(told)
    )


def _told(measured: Measured) -> list[Known]:
    """What the solve itself says."""
    _, batch, outcome = measured
    rows = zip(outcome.status.tolist(), _messages(measured), outcome.residuals, outcome.flags, strict=True)
    return [
        {
            "index": sample_index(i, batch.shape) if batch.shape else (),
            "status": STATUSES[status],
            "message": message,
            "residuals": dict(zip(Residuals.__dataclass_fields__, residuals.tolist(), strict=True)),
            **dict(zip(Flags.__dataclass_fields__, flags.tolist(), strict=True)),
        }
        for i, (status, message, residuals, flags) in enumerate(rows)
    ]


def _messages(measured: Measured) -> list[str]:
    """The status in words; of the first failures, why."""
    layer, batch, outcome = measured
    said = [STATUSES[status].sentence for status in outcome.status.tolist()]
    for i in failures.samples(outcome.status != Status.SOLVED)[:EXPLAINED]:
        alone = Call((), batch.eps)
        solve(layer._plan, alone, tuple(t[i : i + 1] for t in batch.theta))
        said[i] = str(alone.errors[0]) if alone.errors else said[i]
    return said


# --------------------------------------------------------------------------------- at the solutions


def _structure(measured: Measured) -> tuple[Float64[Tensor, " B"], dict[int, Known]]:
    """The length of x in each sample, and active set, conditioning and nearest kink of the solved ones."""
    (layer, batch, outcome), solved = measured, measured.solved
    lengths = torch.zeros(batch.size, dtype=torch.float64)
    if not solved:
        return lengths, {}
    form, owners = layer._plan.form, active.names(layer)
    problem, u, tau = _instance(measured), outcome.u[solved], outcome.tau[solved]
    point, v = form.recover(u, tau), form.split(u)[1]
    at = problem.at(point)
    K, scales = problem.reduced(at, v, tau), certify.scales(at, point, problem.unit)
    lengths[solved] = scales.length.nan_to_num(0.0, 0.0).amax(1)
    found = {
        i: active.state(owners, form.dual, v[row], scales.slack[row]) | _conditioning(K[torch.tensor([row])])
        for row, i in enumerate(solved)
    }
    return lengths, found


def _instance(measured: Measured) -> Instance:
    """The problem of the solved samples."""
    plan, solved = measured.layer._plan, measured.solved
    read = (a.read(t[solved]) for a, t in zip(plan.admissible, measured.batch.theta, strict=True))
    return Instance(plan.form, tuple(t.detach() for t in plan.lift(tuple(read))), len(solved))


def _conditioning(K: Reduction) -> Known:
    """Of one sample, where it is small enough."""
    if sum(K.at.A.shape) + K.tau.shape[1] > LARGEST:
        return {}
    (dense,) = K.dense()
    (s,) = ruiz(dense[None])
    return {
        "condition": condition(dense),
        "scaled": condition(s[:, None] * dense * s),
        "vertex": active.is_vertex(K),
    }


def condition(K: Float64[Tensor, "N N"]) -> float:
    """|K| |K⁻¹| of a symmetric matrix, in the 2-norm."""
    sizes = torch.linalg.eigvalsh(K).abs()
    return (sizes.max() / sizes.min()).item()


def _gradients(measured: Measured, lengths: Tensor, loss: Loss | None, seed: int) -> dict[int, Known]:
    """Of the solved samples; nothing where the layer has no parameters."""
    layer, batch, _ = measured
    theta = tuple(t.detach().clone() for t in batch.theta[: len(layer.inputs)])
    if not theta or not measured.solved:
        return {}
    found = gradients(layer, theta, batch.shape, lengths, loss, seed)
    keys = ("gradient", "gain", "slopes")
    return {i: dict(zip(keys, row, strict=True)) for i, row in enumerate(found)}
