r"""Implicit differentiation of a root: the one place where derivatives of the argmin come from.

A solver, any solver, hands over u* with F(u*, d) = 0. By the implicit function theorem

    ∂u/∂d = -J⁻¹ ∂F/∂d,      J = ∂F/∂u at (u*, d)

    reverse   w = J⁻ᵀ ū,   d̄ = -(∂F/∂d)ᵀ w
    forward   u̇ = -J⁻¹ (∂F/∂d ḋ)

`attach(root, u*, data)` returns u* carrying these rules. It knows no solver and no cone: J is only
ever met through its products, which are derivatives of F, and through `root.inverse`. Both rules are
made of differentiable pieces and read u from their own *output*, so that a derivative of a derivative
flows through u again: double backward, forward-over-reverse and vmap in any nesting need no further
code.

See Krantz & Parks, The Implicit Function Theorem (2002); Blondel et al., arXiv:2105.15183, eq. (1).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.linsolve import linsolve, only, push
from optlayer.modes import without_saved_tensor_hooks


class Root(Protocol):
    """A batched system F(u, d) = 0 that knows how to solve with its own Jacobian."""

    def residual(self, u: Float64[Tensor, "B N"], *data: Tensor) -> Float64[Tensor, "B N"]:
        """F(u, d), differentiable as often as derivatives are taken."""
        ...

    def inverse(
        self, b: Float64[Tensor, "B N"], u: Float64[Tensor, "B N"], *data: Tensor, transposed: bool
    ) -> Float64[Tensor, "B N"]:
        """J⁻¹ b, or J⁻ᵀ b; numbers, without a derivative."""
        ...


def attach(root: Root, u: Float64[Tensor, "B N"], data: tuple[Tensor, ...]) -> Float64[Tensor, "B N"]:
    """u, with the derivatives of the root of F( . , data).

    Args:
        root: The system that u solves.
        u: The root, found outside autograd.
        data: What it depends on; tensors of any shape with leading B.

    Raises:
        NotImplementedError: under forward-over-forward differentiation, which torch cannot
            express for a custom rule; reverse-over-forward and the other nestings are right.
    """
    out: Tensor = _Attach.apply(root, u, *data)
    return out


@dataclass(frozen=True)
class Jacobian:
    """J = ∂F/∂u, as `linsolve` meets it: its data are (u, *d)."""

    root: Root

    def product(self, x: Tensor, *data: Tensor, transposed: bool) -> Tensor:
        """J x, or Jᵀ x."""
        u, *d = data

        def residual_of(u: Tensor) -> Tensor:
            return self.root.residual(u, *d)

        if transposed:
            (pulled,) = torch.func.vjp(residual_of, u)[1](x)
            return pulled
        return push(residual_of, [u], [x])

    def inverse(self, b: Tensor, *data: Tensor, transposed: bool) -> Tensor:
        """J⁻¹ b, or J⁻ᵀ b."""
        u, *d = data
        return self.root.inverse(b, u, *d, transposed=transposed)


class _Attach(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(root: Root, u: Tensor, *data: Tensor) -> Tensor:
        del root, data
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.root, _, *data = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, *data)
        ctx.save_for_forward(output, *data)

    @staticmethod
    def backward(ctx: Any, u_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        if u_bar is None or not any(needed):
            return None, None, *(None for _ in needed)
        u, *data = ctx.saved_tensors
        with without_saved_tensor_hooks(), torch.autocast(u.device.type, enabled=False):
            w = linsolve(Jacobian(ctx.root), u_bar, u, *data, transposed=True)
            pull: Any = torch.func.vjp(*only(partial(ctx.root.residual, u), data, needed))[1]
            data_bar = iter(pull(-w))
        return None, None, *(next(data_bar) if wanted else None for wanted in needed)

    @staticmethod
    def jvp(ctx: Any, _root: None, _u: Tensor | None, *data_dot: Tensor | None) -> Tensor:
        _refuse_forward_over_forward()
        u, *data = ctx.saved_tensors
        with without_saved_tensor_hooks(), torch.autocast(u.device.type, enabled=False):
            F_dot = push(partial(ctx.root.residual, u), data, data_dot)
            return -linsolve(Jacobian(ctx.root), F_dot, u, *data)


def _refuse_forward_over_forward() -> None:
    stack = torch._C._functorch.get_interpreter_stack() or []
    jvp = torch._C._functorch.TransformType.Jvp
    if sum(level.key() == jvp for level in stack) > 1:
        raise NotImplementedError(
            "forward-over-forward differentiation of an argmin (jacfwd of jacfwd, jvp of jvp) is not "
            "supported; use torch.func.hessian, jacfwd(jacrev(...)) or jacrev(jacfwd(...)) instead"
        )
