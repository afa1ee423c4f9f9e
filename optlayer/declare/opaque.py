"""What cvxpy cannot see into: callables written for torch only, `nn.Module`s among them.

To cvxpy such a callable is one atom of all leaves. That it is convex, or affine where it is an equality, is
the user's word; it is tried at random points when the layer is built, and at every solution. The weights of a
module are parameters like any other, except that they come from the module and not with the call.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from optlayer.declare.cvxpy_internals import Atom
from optlayer.errors import DeclarationError
from optlayer.modes import undisturbed

SAME = 1e-9  # relative: a chord below the function, or a slope that moves, by less is rounding
NO_BRANCHES = (
    "torch.func batches and differentiates it, so it may not branch on values, call .item(), go through "
    "numpy or write in place: use torch.where, torch.clamp and their kin"
)


class Learned:
    """An `nn.Module` as a function of its weights; they and the floating buffers are passed in.

    Args:
        module: The user's, of which a private copy is kept. What is called are copies of that, one for each
            thread, since calling with other weights puts them into the module for a moment. They are
            in eval mode: an argmin needs one fixed function.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = _still(module)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.names = tuple(name for name, tensor in tensors.items() if tensor.is_floating_point())
        self._local = threading.local()

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """As they were when the layer was declared: what it is probed with."""
        return tuple(read(self.module, name) for name in self.names)

    def __call__(self, *values: Tensor) -> Any:
        """values: the callable's arguments, then the weights."""
        k = len(values) - len(self.names)
        weights = dict(zip(self.names, values[k:], strict=True))
        return functional_call(self._own, weights, values[:k])

    @property
    def _own(self) -> torch.nn.Module:
        """The calling thread's."""
        if not hasattr(self._local, "module"):
            self._local.module = _still(self.module)
        module: torch.nn.Module = self._local.module
        return module

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"])  # type: ignore[misc]


def _still(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that nobody trains; made where no transform is active, or its tensors would be theirs."""
    return undisturbed(lambda: copy.deepcopy(module).eval().requires_grad_(False))


def read(module: torch.nn.Module, name: str) -> Tensor:
    """A weight or a buffer by its dotted name."""
    *path, last = name.split(".")
    tensor: Tensor = getattr(module.get_submodule(".".join(path)), last)
    return tensor


class Weight(cp.Parameter):
    """The leaf that stands for a weight; probes find its value here."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        super().__init__(tuple(tensor.shape), name=name)
        self.tensor = tensor.to("cpu", torch.float64)


@dataclass(frozen=True, eq=False)
class Opaque:
    """One callable as torch sees it.

    Attributes:
        name: How errors call it.
        function: Of the values of the leaves it gets.
        shape: Of its value.
        affine: It is an equality.
    """

    name: str
    function: Callable[..., Tensor]
    shape: tuple[int, ...]
    affine: bool

    @cached_property
    def short(self) -> str:
        """How cvxpy prints it."""
        called = self.function.module if isinstance(self.function, Learned) else self.function
        own = getattr(called, "__name__", type(called).__name__)
        return "torch function" if own == "<lambda>" else str(own)


class TorchFunction(Atom):
    """The atom; its data are an `Opaque`."""

    def __init__(self, *args: Any) -> None:
        *leaves, self.opaque = args
        super().__init__(*leaves)

    def get_data(self) -> list[Any]:  # type: ignore[override]
        return [self.opaque]

    def name(self) -> str:
        plain = [leaf.name() for leaf in self.args if not isinstance(leaf, Weight)]
        return f"{self.opaque.short}({', '.join(plain)})"

    def shape_from_args(self) -> tuple[int, ...]:
        return self.opaque.shape

    def sign_from_args(self) -> tuple[bool, bool]:
        return False, False

    def is_atom_convex(self) -> bool:
        return True

    def is_atom_concave(self) -> bool:
        return self.opaque.affine

    def is_incr(self, idx: int) -> bool:
        del idx
        return False

    def is_decr(self, idx: int) -> bool:
        del idx
        return False

    def numeric(self, values: Any) -> np.ndarray:
        value: np.ndarray = self.opaque.function(*(torch.as_tensor(np.asarray(v)) for v in values)).numpy()
        return value

    def _grad(self, values: Any) -> Any:
        raise NotImplementedError("torch differentiates it")


def is_opaque(problem: cp.Problem) -> bool:
    """Whether torch alone can evaluate some part of a problem."""
    return TorchFunction in problem.atoms()


def torch_only(
    name: str, function: Any, leaves: Sequence[Any], weights: Sequence[Weight], affine: bool
) -> TorchFunction:
    """A callable as an atom of leaves, after one call with random numbers.

    Raises:
        DeclarationError: where torch cannot evaluate it either, or it is no function of its arguments alone.
    """
    arguments = [*leaves, *weights]
    generator = torch.Generator().manual_seed(0)
    values = [torch.rand(leaf.shape, dtype=torch.float64, generator=generator) for leaf in leaves]
    values += [weight.tensor for weight in weights]
    try:
        with torch.enable_grad():
            result = function(*values)
    except Exception as error:
        raise DeclarationError(_why_it_raised(name, function, leaves, error)) from error
    if not isinstance(result, Tensor):
        raise DeclarationError(
            f"{name} returned a {type(result).__name__} for torch tensors, expected a tensor"
        )
    if result.requires_grad:
        raise DeclarationError(closed_over(name))
    if result.is_complex() or not result.is_floating_point():
        raise DeclarationError(f"{name} returned {result.dtype} for float64 tensors, expected real numbers")
    return TorchFunction(*arguments, Opaque(name, function, tuple(result.shape), affine))


def closed_over(name: str) -> str:
    """The complaint about a learned tensor that is not an argument."""
    return (
        f"{name} requires grad although none of its arguments does: it closes over a tensor that is "
        "learned, which would get no gradient. Write it as an nn.Module that holds the tensor, and pass the "
        "module itself; or make the tensor a cp.Parameter of the layer and pass it in the call; or detach "
        "it if it is a constant"
    )


def _why_it_raised(name: str, function: Any, leaves: Sequence[Any], error: Exception) -> str:
    shapes = ", ".join(f"{leaf.name()}: {leaf.shape}" for leaf in leaves)
    kind = ""
    if isinstance(function, Learned):
        kind = f"; it is an nn.Module ({type(function.module).__name__}), which is called with torch tensors"
    dtype = "; problems are solved in float64: keep constants in it" if "dtype" in str(error) else ""
    return f"{name} raised {type(error).__name__} on leaves of shapes ({shapes}): {error}{kind}{dtype}"


# ------------------------------------------------------------------------------ at random points


class Chord(NamedTuple):
    """Two points, and parameter values."""

    a: Float64[Tensor, " n"]
    b: Float64[Tensor, " n"]
    theta: tuple[Tensor, ...]


def check(opaque: Opaque, function: Callable[..., Tensor], chords: Sequence[Chord]) -> None:
    """Whether torch.func can differentiate it, and nothing speaks against its convexity.

    Args:
        opaque: What is checked.
        function: The same of one sample, (x, *theta) -> its values, flat.
        chords: Where; the first end of the first must be in its domain.

    Raises:
        DeclarationError: naming the callable.
    """
    if chords:
        _check_differentiable(opaque.name, function, chords[0].a, chords[0].theta)
    examine = _check_affine if opaque.affine else _check_convex
    for chord in chords:
        examine(opaque.name, function, chord)


def _check_differentiable(name: str, function: Any, x: Tensor, theta: tuple[Tensor, ...]) -> None:
    def total(x: Tensor, *theta: Tensor) -> Tensor:
        return function(x, *theta).sum()

    try:
        batch = torch.stack([x, x]), *(torch.stack([t, t]) for t in theta)
        H = vmap(jacrev(grad(total)))(*batch)
    except Exception as error:
        raise DeclarationError(
            f"{name} cannot be differentiated by torch ({error}); {NO_BRANCHES}"
        ) from error
    if not H.isfinite().all():
        raise DeclarationError(
            f"{name} has a derivative that is not a number at a point where its value is one"
        )


def _check_convex(name: str, function: Any, chord: Chord) -> None:
    left, middle, right = (function(x, *chord.theta) for x in (chord.a, 0.5 * (chord.a + chord.b), chord.b))
    excess = middle - 0.5 * (left + right)
    if (excess > SAME * (left.abs() + middle.abs() + right.abs())).any():
        raise DeclarationError(
            f"{name} is not convex in the variables: at the middle of two points it lies {excess.max():.3g} "
            "above its chord. Where it is convex for some parameters, or for some values of the variables "
            "only, say so with their attributes (nonneg=True, PSD=True, bounds=...)"
        )


def _check_affine(name: str, function: Any, chord: Chord) -> None:
    left, middle, right = (function(x, *chord.theta) for x in (chord.a, 0.5 * (chord.a + chord.b), chord.b))
    bend = (middle - 0.5 * (left + right)).abs()
    if (bend > SAME * (left.abs() + middle.abs() + right.abs())).any():
        raise DeclarationError(
            f"{name} is not affine in the variables: at the middle of two points it is {bend.max():.3g} off "
            "its chord"
        )
