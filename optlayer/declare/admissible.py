"""Which parameter values a declaration admits, and how symmetric ones are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from optlayer.errors import DeclarationError

SYMMETRY = 1e-4  # relative asymmetry taken for rounding, or for a finite difference, and averaged out

Test = Callable[[Tensor, float], Tensor]  # (B, *shape), relative precision -> violation per sample


@dataclass(frozen=True, eq=False)
class Admissible:
    """The attributes of one parameter as tests on a batch of values.

    `tests` pairs an attribute with the amount by which each sample fails it, relative to the
    sample's largest entry; `precision` of the input's own dtype is forgiven.
    """

    name: str
    shape: tuple[int, ...]
    symmetric: bool
    definite: float  # 1 for PSD, -1 for NSD, 0 for neither
    tests: tuple[tuple[str, Test], ...]

    def read(self, value: Tensor) -> Tensor:
        """Symmetric parameters as ½(X + Xᵀ), their gradient's convention; definite ones definite.

        A float32 Gram matrix may be indefinite by its own rounding. It is forgiven, and shifted by
        just as much: on an indefinite matrix a stationary point could be a saddle.
        """
        if not self.symmetric:
            return value
        value = 0.5 * (value + value.mT)
        if not self.definite:
            return value
        excess = _least_eigenvalue(self.definite * value.detach()).clamp_max(0.0)
        return value - self.definite * excess[:, None, None] * torch.eye(value.shape[-1], dtype=value.dtype)

    def offences(self, value: Tensor, precision: float) -> list[tuple[str, Bool[Tensor, " B"]]]:
        """Each attribute with the samples that fail it."""
        scale = _largest(value.abs())
        return [(what, test(value, precision) > precision * scale) for what, test in self.tests]


def admissible(parameter: cp.Parameter) -> Admissible:
    """Read a parameter's attributes.

    Raises:
        DeclarationError: for bounds that are expressions.
    """
    attributes = {k: v for k, v in parameter.attributes.items() if v is not None and v is not False}
    tests = [(name, TESTS[name]) for name in attributes if name in TESTS]
    if "bounds" in attributes:
        tests.append(("bounds", _within(parameter, attributes["bounds"])))
    if "sparsity" in attributes:
        tests.append(("sparsity", _outside_pattern(parameter)))
    symmetric = bool({"symmetric", "PSD", "NSD"} & set(attributes))
    definite = float("PSD" in attributes) - float("NSD" in attributes)
    return Admissible(parameter.name(), parameter.shape, symmetric, definite, tuple(tests))


def _largest(value: Tensor) -> Tensor:
    flat = value.reshape(value.shape[0], -1)
    return flat.amax(1) if flat.shape[1] else flat.new_zeros(flat.shape[0])


def _strictly(value: Tensor) -> Tensor:
    """inf where an entry is not positive: there is no precision to forgive."""
    return torch.where(_largest(-value) < 0, 0.0, torch.inf)


def _least_eigenvalue(value: Tensor) -> Tensor:
    finite = torch.nan_to_num(value, posinf=0.0, neginf=0.0)
    return torch.linalg.eigvalsh(0.5 * (finite + finite.mT))[:, 0]


def _definite(value: Tensor, precision: float) -> Tensor:
    """-λ_min beyond what rounding in an n x n product explains."""
    n = value.shape[-1]
    excess = -_least_eigenvalue(value) - n * precision * _largest(value.abs())
    return torch.maximum(excess, _asymmetry(value))


def _asymmetry(value: Tensor) -> Tensor:
    """inf beyond SYMMETRY: a matrix that was not meant to be symmetric."""
    asymmetric = _largest((value - value.mT).abs()) > SYMMETRY * _largest(value.abs())
    return torch.where(asymmetric, torch.inf, 0.0)


def _off_diagonal(value: Tensor) -> Tensor:
    return _largest((value - torch.diag_embed(value.diagonal(dim1=-2, dim2=-1))).abs())


TESTS: dict[str, Test] = {
    "nonneg": lambda value, _: _largest(-value),
    "nonpos": lambda value, _: _largest(value),
    "pos": lambda value, _: _strictly(value),
    "neg": lambda value, _: _strictly(-value),
    "symmetric": lambda value, _: _asymmetry(value),
    "PSD": _definite,
    "NSD": lambda value, precision: _definite(-value, precision),
    "diag": lambda value, _: _off_diagonal(value),
    "integer": lambda value, _: _largest((value - value.round()).abs()),
    "boolean": lambda value, _: _largest(torch.minimum(value.abs(), (value - 1).abs())),
}


def _within(parameter: cp.Parameter, bounds: Any) -> Test:
    if any(isinstance(bound, cp.Expression) for bound in bounds):
        raise DeclarationError(f"the bounds of parameter {parameter.name()!r} are expressions; give numbers")
    lower, upper = (torch.as_tensor(np.broadcast_to(b, parameter.shape).astype(float)) for b in bounds)
    return lambda value, _: torch.maximum(_largest(lower - value), _largest(value - upper))


def _outside_pattern(parameter: cp.Parameter) -> Test:
    mask = torch.ones(parameter.shape, dtype=torch.bool)
    mask[tuple(torch.as_tensor(np.array(i)) for i in parameter.sparse_idx)] = False
    return lambda value, _: _largest(torch.where(mask, value.abs(), 0.0))
