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

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayer.errors import InputError
from optlayer.linsolve import linsolve, push, solve

ROOT = 1e-4  # largest relative Newton step at what is handed in as a root


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


def implicit(
    residual: Callable[..., Tensor], solution: Float[Tensor, "*shape"], *data: Tensor
) -> Float[Tensor, "*shape"]:
    r"""The solution of your own equations, with the derivatives of the implicit function theorem.

        F(u, d₁, …, d_k) = 0

    The equations may be the optimality conditions of anything: an eigenvector, a robust mean, the
    equilibrium of a game. Nothing is asked of them but a Jacobian ∂F/∂u that is regular at the
    solution; that the solution is the one you mean, a minimum rather than a saddle, say, is your own
    responsibility. Where the Jacobian is singular the minimum-norm derivative is returned.

    Every derivative mode works, second order included; `torch.func.vmap` runs it on a batch. The
    derivatives are those at `solution`, so they are as accurate as it is.

    Args:
        residual: F, called as `residual(u, *data)`; differentiable torch, as many equations as unknowns.
        solution: u with F(u, d) = 0, found in any way; its own history is ignored.
        data: d, what the solution depends on. Tensors that F merely closes over get no derivative.

    Raises:
        InputError: where F has not as many equations as u has unknowns, depends on a tensor that
            requires grad and is not among the data, or one Newton step would move u by more than
            1e-4 of its size (judged outside of torch.func only, which has no numbers to judge).

    Example:
        >>> a = torch.tensor(2.0, requires_grad=True)
        >>> root = implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a)
        >>> torch.autograd.grad(root, a)
        (tensor(0.3536),)
    """
    root = _Equations(residual, tuple(solution.shape))
    u = solution.detach().reshape(1, -1)
    data = tuple(d.unsqueeze(0) for d in data)
    _check(root, u, data)
    return attach(root, u, data).reshape(solution.shape)


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
        w = linsolve(Jacobian(ctx.root), u_bar, u, *data, transposed=True)
        varying = [d for d, wanted in zip(data, needed, strict=True) if wanted]

        def residual_of(*chosen: Tensor) -> Tensor:
            replacement = iter(chosen)
            return ctx.root.residual(
                u, *(next(replacement) if wanted else d for d, wanted in zip(data, needed, strict=True))
            )

        data_bar = iter(torch.func.vjp(residual_of, *varying)[1](-w))
        return None, None, *(next(data_bar) if wanted else None for wanted in needed)

    @staticmethod
    def jvp(ctx: Any, _root: None, _u: Tensor | None, *data_dot: Tensor | None) -> Tensor:
        _refuse_forward_over_forward()
        u, *data = ctx.saved_tensors
        F_dot = push(lambda *d: ctx.root.residual(u, *d), data, data_dot)
        return -linsolve(Jacobian(ctx.root), F_dot, u, *data)


def _refuse_forward_over_forward() -> None:
    stack = torch._C._functorch.get_interpreter_stack() or []
    jvp = torch._C._functorch.TransformType.Jvp
    if sum(level.key() == jvp for level in stack) > 1:
        raise NotImplementedError(
            "forward-over-forward differentiation of an argmin (jacfwd of jacfwd, jvp of jvp) is not "
            "supported; use torch.func.hessian, jacfwd(jacrev(...)) or jacrev(jacfwd(...)) instead"
        )


# ------------------------------------------------------------------------------- equations of the user


@dataclass(frozen=True)
class _Equations:
    """F for one sample of a given shape, as a batched `Root` with a dense Jacobian."""

    function: Callable[..., Tensor]
    shape: tuple[int, ...]

    def residual(self, u: Tensor, *data: Tensor) -> Tensor:
        return torch.func.vmap(self._flat)(u, *data)

    def _flat(self, u: Tensor, *data: Tensor) -> Tensor:
        return self.function(u.reshape(self.shape), *data).reshape(-1)

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Tensor:
        """J x = b from [[0, J], [Jᵀ, 0]] (w, x) = (b, 0), which is symmetric."""
        J = torch.func.vmap(torch.func.jacrev(self._flat))(u, *data).to(torch.float64)
        J = J.mT if transposed else J
        nothing = torch.zeros_like(J)
        K = torch.cat([torch.cat([nothing, J], 2), torch.cat([J.mT, nothing], 2)], 1)
        rhs = torch.cat([b.to(torch.float64), nothing[:, 0]], 1)
        return solve(K, rhs, u.shape[1]).x[:, u.shape[1] :].to(b.dtype)


def _check(root: _Equations, u: Tensor, data: tuple[Tensor, ...]) -> None:
    F = root._flat(u[0], *(d[0].detach() for d in data))
    unknowns = prod(root.shape)
    if F.numel() != unknowns:
        raise InputError(f"the residual has {F.numel()} equations for {unknowns} unknowns, expected as many")
    if torch._C._functorch.maybe_get_level(F) != -1:
        return
    if F.requires_grad:
        raise InputError(
            "the residual closes over a tensor that requires grad, which would get no gradient: "
            "pass it to implicit(residual, solution, *data) as data, or detach it"
        )
    step = root.inverse(F[None], u, *(d.detach() for d in data), transposed=False)
    far = (step.abs().amax() / u.abs().amax()).item() if unknowns else 0.0
    if not far <= ROOT:
        raise InputError(
            f"the solution is not a root of the residual: one Newton step would move it by {far:.1e} of its "
            "size; solve more accurately before differentiating"
        )
