"""From failed samples to one error that names them."""

from dataclasses import dataclass
from math import nan

import numpy as np

from optlayer.errors import (
    InaccurateError,
    InfeasibleError,
    InputError,
    OptLayerError,
    SolveError,
    SolverFailedError,
    UnboundedError,
)
from optlayer.solution import Status

ERRORS: dict[Status, type[SolveError] | type[InputError]] = {
    Status.INFEASIBLE: InfeasibleError,
    Status.UNBOUNDED: UnboundedError,
    Status.INACCURATE: InaccurateError,
    Status.FAILED: SolverFailedError,
    Status.INVALID: InputError,
    Status.SOLVED: InaccurateError,  # only where nonunique="raise"
}
NAMED = 5  # samples spelled out in a message


@dataclass(frozen=True)
class Failure:
    """Why one sample has no answer."""

    status: Status
    why: str
    residual: float = nan


def explain(failures: dict[int, Failure], size: int, batch: tuple[int, ...]) -> OptLayerError:
    """The error for some failed samples of a batch; of one kind where they agree, else `SolveError`."""
    order = sorted(failures)
    kinds = {failures[i].status for i in order}
    error = ERRORS[kinds.pop()] if len(kinds) == 1 else SolveError
    return error(
        _message(failures, order, size, batch),
        [sample_index(i, batch) for i in order] if batch else (),
        [failures[i].status for i in order],
        [failures[i].residual for i in order],
    )


def _message(failures: dict[int, Failure], order: list[int], size: int, batch: tuple[int, ...]) -> str:
    if not batch:
        return f"no solution: the problem {_sentence(failures[order[0]])}"
    verb = "has" if len(order) == 1 else "have"
    none = "no unique solution" if failures[order[0]].status == Status.SOLVED else "no solution"
    said = "; ".join(f"sample {sample_index(i, batch)} {_sentence(failures[i])}" for i in order[:NAMED])
    more = f"; and {len(order) - NAMED} more" if len(order) > NAMED else ""
    left = size - len(order)
    invalid = failures[order[0]].status == Status.INVALID
    done = (
        'were not solved; on_failure="nan" solves them' if invalid else 'solved; on_failure="nan" keeps them'
    )
    others = f". The other {left} {done}" if left else ""
    samples = "sample" if size == 1 else "samples"
    return f"{len(order)} of {size} {samples} {verb} {none}: {said}{more}{others}."


def _sentence(failure: Failure) -> str:
    if failure.status == Status.SOLVED:
        return f"has a minimizer that is {failure.why}"
    verb = "failed" if failure.status == Status.FAILED else f"is {failure.status.name.lower()}"
    return f"{verb} ({failure.why})"


def sample_index(i: int, batch: tuple[int, ...]) -> int | tuple[int, ...]:
    """What a user calls row i of a flattened batch."""
    index = tuple(int(k) for k in np.unravel_index(i, batch))
    return index[0] if len(index) == 1 else index
