"""Your own equations: the derivatives of a solution that optlayer did not find."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.autograd import forward_ad

from optlayer.errors import InputError
from optlayer.implicit import attach
from optlayer.linsolve import RANK, matvec, push, ruiz, solve
from optlayer.matrix import or_one
from optlayer.modes import without_saved_tensor_hooks

ROOT = 1e-4  # largest Newton step at a root, relative to its size
SOLVED = 1e-3  # part of the residual that this step may leave
ROUNDING = 8  # ulps: how small a step, or how small a part of an equation, cannot be told from none
PROBES = 4


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
        data: d, what the solution depends on. Integers and booleans are data without a derivative.

    Raises:
        InputError: where F has not as many equations as u has unknowns, or closes over a tensor that
            is differentiated and not among the data; where the solution is not finite or not a root: one
            Newton step would move it by more than 1e-4 of its size, or of what the data make of it, or would
            leave of the equations more than rounding and more than a thousandth of the residual (judged
            outside of torch.func only, under whose transforms there are no numbers to judge).

    Example:
        >>> a = torch.tensor(2.0, requires_grad=True)
        >>> root = implicit(lambda u, a: u**2 - a, a.detach().sqrt(), a)
        >>> torch.autograd.grad(root, a)
        (tensor(0.3536),)
    """
    _check_tensors(solution, data)
    root = _Equations(residual, tuple(solution.shape))
    u = solution.detach().reshape(1, prod(solution.shape))
    batched = tuple(d.unsqueeze(0) for d in data)
    with without_saved_tensor_hooks():
        _check_equations(root, u, batched)
    return attach(root, u, batched).reshape(solution.shape)


@dataclass(frozen=True)
class _Equations:
    """F for one sample of a given shape, as a batched `Root` with a dense Jacobian."""

    function: Callable[..., Tensor]
    shape: tuple[int, ...]

    def residual(self, u: Tensor, *data: Tensor) -> Tensor:
        return torch.func.vmap(self.flat)(u, *data)

    def flat(self, u: Tensor, *data: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            F: Any = self.function(u.reshape(self.shape), *data)
        if not isinstance(F, Tensor):
            raise InputError(f"the residual returns a {type(F).__name__}, expected a tensor")
        return F.reshape(prod(F.shape))

    def jacobian(self, u: Tensor, *data: Tensor) -> Tensor:
        if not u.numel():
            return u.new_zeros(*u.shape, u.shape[1], dtype=torch.float64)
        J: Tensor = torch.func.vmap(torch.func.jacrev(self.flat))(u, *data)
        return J.to(torch.float64)

    def inverse(self, b: Tensor, u: Tensor, *data: Tensor, transposed: bool) -> Tensor:
        J = self.jacobian(u, *data)
        return _least_squares(J.mT if transposed else J, b.to(torch.float64), _ulp(u, *data)).to(b.dtype)


def _least_squares(
    J: Float64[Tensor, "... n n"], b: Float64[Tensor, "B n"], ulp: float
) -> Float64[Tensor, "B n"]:
    """J⁺b; a J that was computed in single precision is as singular as its rounding lets it be."""
    n = b.shape[1]
    null = ROUNDING * ulp * (2 * n) ** 0.5 if ulp > torch.finfo(torch.float64).eps else RANK * 2 * n
    found = solve(_symmetric(J), torch.cat([b, torch.zeros_like(b)], 1), n, null)
    x, lost = found.x[:, n:], found.singular.nonzero().squeeze(1)
    if len(lost):
        x[lost] = _minimum_norm(J.expand(len(b), n, n)[lost], b[lost], null)
    return x


def _symmetric(J: Float64[Tensor, "B n n"]) -> Float64[Tensor, "B 2n 2n"]:
    """K = [[0, J], [Jᵀ, 0]]: K (w, x) = (b, 0) says J x = b."""
    nothing = torch.zeros_like(J)
    return torch.cat([torch.cat([nothing, J], 2), torch.cat([J.mT, nothing], 2)], 1)


def _minimum_norm(J: Float64[Tensor, "B n n"], b: Float64[Tensor, "B n"], null: float) -> Tensor:
    """J⁺b of the unscaled matrix R⁻¹ĴC⁻¹: its null space is C null(Ĵ), that of its transpose R null(Ĵᵀ).

    The part of b along the latter is dropped, and that of x along the former. Both at once, from the
    eigenvectors of the symmetric matrix, would mix equations and unknowns, whose units have nothing in
    common.
    """
    R, C = ruiz(_symmetric(J)).chunk(2, 1)
    U, sigma, Vt = torch.linalg.svd(R[:, :, None] * J * C[:, None, :])
    gone = sigma <= null * sigma.amax(1, keepdim=True)
    inverse = torch.where(gone, 0.0, 1.0 / sigma)
    b = _off(R[:, :, None] * U, gone, b)
    x = C * matvec(Vt.mT, inverse * matvec(U.mT, R * b))
    return _off(C[:, :, None] * Vt.mT, gone, x)


def _off(basis: Float64[Tensor, "B n n"], chosen: Bool[Tensor, "B n"], a: Float64[Tensor, "B n"]) -> Tensor:
    """a without its part in the span of the chosen columns."""
    bases = [Z[:, own] for Z, own in zip(basis, chosen, strict=True)]
    return torch.stack([ai - Z @ (torch.linalg.pinv(Z) @ ai) for Z, ai in zip(bases, a, strict=True)])


# --------------------------------------------------------------------------------- what was handed in


def _check_tensors(solution: Any, data: tuple[Any, ...]) -> None:
    for name, given in [("the solution", solution), *((f"data {i}", d) for i, d in enumerate(data))]:
        if not isinstance(given, Tensor):
            raise InputError(f"{name} is a {type(given).__name__}, expected a tensor")
    if not solution.is_floating_point():
        raise InputError(f"the solution has dtype {solution.dtype}, expected a real floating-point type")


def _check_equations(root: _Equations, u: Tensor, data: tuple[Tensor, ...]) -> None:
    data = tuple(d.detach() for d in data)
    F = root.flat(u[0], *(d[0] for d in data))
    if F.numel() != u.numel():
        raise InputError(f"the residual has {F.numel()} equations for {u.numel()} unknowns, expected as many")
    if _is_differentiated(F):
        raise InputError(
            "the residual closes over a tensor that requires grad, which would get no gradient: "
            "pass it to implicit(residual, solution, *data) as data, or detach it"
        )
    if u.numel() and torch._C._functorch.maybe_get_level(F) == -1:
        _check_root(root, u, data, F[None])


def _is_differentiated(F: Tensor) -> bool:
    """At any level of torch.func or of autograd: the data were detached from all of them."""
    functorch = torch._C._functorch
    while True:
        dual = forward_ad._current_level >= 0 and not functorch.is_batchedtensor(F)
        if F.requires_grad or (dual and forward_ad.unpack_dual(F).tangent is not None):
            return True
        if not functorch.is_functorch_wrapped_tensor(F):
            return False
        F = functorch.get_unwrapped(F)


def _check_root(root: _Equations, u: Tensor, data: tuple[Tensor, ...], F: Tensor) -> None:
    if not (u.isfinite().all() and F.isfinite().all()):
        raise InputError("the solution is not a root of the residual: one of the two is not finite")
    J, ulp = root.jacobian(u, *data), _ulp(u, *data)
    rows = or_one(J.abs().sum(2))  # equations may come in any units
    J, F = J / rows[:, :, None], F / rows
    size = u.abs().amax().item()
    far, solves = _newton_step(J, F, size, torch.zeros_like(F), ulp)
    small = max(ROOT, ROUNDING * torch.finfo(u.dtype).eps)
    if not (solves and far <= small):  # the data may know a larger size, as they do of a root at zero
        F_dot = _moved_by_data(root, u, data) / rows
        size = max(size, _least_squares(J, F_dot, ulp).abs().amax().item()) or 1.0
        far, solves = _newton_step(J, F, size, F_dot.abs().amax(0), ulp)
    if not (solves and far <= small):
        raise InputError(
            f"the solution is not a root of the residual: one Newton step would move it by {far:.1e} of its "
            "size, or not lead to one; solve more accurately before differentiating"
        )


def _newton_step(J: Tensor, F: Tensor, size: float, by_data: Tensor, ulp: float) -> tuple[float, bool]:
    """How far -J⁺F leads, in sizes of u, and whether it solves the equations.

    Each equation is measured by what it changes as u, and the data, move by their own size. What is left of
    it may be a part of the residual; or rounding, which is all that there is at a root.
    """
    unit = or_one(J.abs().sum(2) * size + by_data + F.abs())
    J, F = J * size / unit[:, :, None], F / unit
    step = _least_squares(J, F, ulp)
    left = (F - matvec(J, step)).abs().amax()
    return step.abs().amax().item(), bool(left <= max(SOLVED * F.abs().amax().item(), ROUNDING * ulp))


def _ulp(*numbers: Tensor) -> float:
    """The rounding of the coarsest of them."""
    return max(torch.finfo(t.dtype).eps for t in numbers if t.is_floating_point())


def _moved_by_data(root: _Equations, u: Tensor, data: tuple[Tensor, ...]) -> Float64[Tensor, "PROBES n"]:
    """∂F/∂d d, how the data move the equations by a change of their own size; in several directions."""
    if not any(d.is_floating_point() for d in data):
        return torch.zeros_like(u, dtype=torch.float64)
    u, *copies = (t.expand(PROBES, *t.shape[1:]) for t in (u, *data))
    moves = [d * _signs(d) if d.is_floating_point() else None for d in copies]
    return push(partial(root.residual, u), copies, moves).to(torch.float64).nan_to_num(0.0, 0.0, 0.0)


def _signs(d: Tensor) -> Tensor:
    """Others for each probe; as good as random."""
    place = torch.arange(1.0, 1.0 + d[0].numel(), dtype=torch.float64, device=d.device)
    probe = torch.arange(1.0, 1.0 + len(d), dtype=torch.float64, device=d.device)
    return torch.outer(probe, place**2).cos().sign().to(d.dtype).reshape(d.shape)
