"""Everything the package raises. One root, so that a caller can catch it all with one `except`."""

from collections.abc import Sequence
from typing import Any


class OptLayerError(Exception):
    """Root of every error raised by optlayer."""


class DeclarationError(OptLayerError, ValueError):
    """The problem as declared cannot become a layer. Raised at construction only."""


class _SampleError(OptLayerError):
    """An error that concerns some samples of a batch.

    Attributes:
        indices: The failed samples: ints, or tuples of ints for several batch dimensions; empty
            when the call was unbatched.
        statuses: A `Status` per failed sample, aligned with `indices` (one element when unbatched).
        residuals: The worst relative residual of the certificate per failed sample, aligned likewise.
    """

    def __init__(
        self,
        message: str,
        indices: Sequence[Any] = (),
        statuses: Sequence[Any] = (),
        residuals: Sequence[float] = (),
    ) -> None:
        super().__init__(message)
        self.indices = tuple(indices)
        self.statuses = tuple(statuses)
        self.residuals = tuple(residuals)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.indices, self.statuses, self.residuals)


class InputError(_SampleError, ValueError):
    """What was handed to the layer cannot be used: count, shape, batch, device, dtype or value."""


class SolveError(_SampleError, RuntimeError):
    """At least one sample has no certified answer."""


class InfeasibleError(SolveError):
    """No point satisfies the constraints (verified, not merely claimed by a solver)."""


class UnboundedError(SolveError):
    """The objective falls without bound on the feasible set (verified likewise)."""


class InaccurateError(SolveError):
    """A point was found, but it fails the certificate; or the infimum is not attained."""


class SolverFailedError(SolveError):
    """No engine returned a point."""
