"""The sixty-line layer of the Deep Implicit Layers tutorial, beside OptLayer.

Chapter 5 of the tutorial (Kolter, Duvenaud & Johnson 2020) ends with a differentiable optimization layer
in sixty lines. It is the ancestor of this package, and still the shortest way to say what such a
layer is: solve each sample with cvxpy, write the KKT residual in torch, and let a backward hook solve
with the transpose of its Jacobian. Here it is again, on today's torch, on problems whose answer is
known: the same numbers where it is right, and where it is not.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cvxpy as cp
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from tqdm import tqdm

from nonlinearities import sparsemax
from optlayer import OptLayer


class SixtyLines(torch.nn.Module):
    """The tutorial's layer, for one variable."""

    def __init__(
        self,
        variables: Sequence[cp.Variable],
        parameters: Sequence[cp.Parameter],
        objective: Callable[..., Any],
        inequalities: Sequence[Callable[..., Any]] = (),
        equalities: Sequence[Callable[..., Any]] = (),
    ) -> None:
        super().__init__()
        self.variable, self.leaves = variables[0], parameters
        self.objective, self.inequalities, self.equalities = objective, inequalities, equalities
        symbols = *variables, *parameters
        self.constraints = [g(*symbols) <= 0 for g in inequalities]
        self.constraints += [h(*symbols) == 0 for h in equalities]
        self.problem = cp.Problem(cp.Minimize(objective(*symbols)), self.constraints)

    def forward(self, *batch: Tensor) -> Tensor:
        return torch.stack([self.sample(*theta) for theta in zip(*batch)])

    def sample(self, *theta: Tensor) -> Tensor:
        """z*(θ), with a hook that turns a cotangent ȳ into J⁻ᵀȳ."""
        solved = self.solve(*theta)
        y = torch.cat([a.reshape(-1) for a in solved])
        J = jacobian(lambda y: self.kkt(y, solved, *theta), y)
        y = y - self.kkt(y, solved, *theta)  # zero at an exact solution; it brings θ in
        if y.requires_grad:
            y.register_hook(lambda y_bar: torch.linalg.solve(J.T, y_bar))
        return y[: solved[0].numel()].view_as(solved[0])

    def solve(self, *theta: Tensor) -> list[Tensor]:
        """z and the multipliers, by cvxpy."""
        for leaf, value in zip(self.leaves, theta):
            leaf.value = value.detach().numpy()
        self.problem.solve()
        values = self.variable.value, *(c.dual_value for c in self.constraints)
        return [torch.as_tensor(a, dtype=torch.float64) for a in values]

    def kkt(self, y: Tensor, solved: list[Tensor], *theta: Tensor) -> Tensor:
        """∇f + (∂g)ᵀλ + (∂h)ᵀν,  λ∘g,  h  at y = (z, λ, ν)."""
        parts = y.split([a.numel() for a in solved])
        z, *multipliers = (part.view_as(a) for part, a in zip(parts, solved))
        rows = [c(z, *theta) for c in (*self.inequalities, *self.equalities)]
        for i in range(len(self.inequalities)):
            rows[i] = multipliers[i] * rows[i]

        def lagrangian(z: Tensor) -> Tensor:
            constraints = (*self.inequalities, *self.equalities)
            terms = [(m * c(z, *theta)).sum() for m, c in zip(multipliers, constraints)]
            return self.objective(z, *theta) + sum(terms)

        rows.insert(0, torch.func.grad(lagrangian)(z))
        return torch.cat([row.reshape(-1) for row in rows])


class Trial(NamedTuple):
    name: str
    problem: tuple[Any, ...]  # variables, parameters, objective, inequalities, equalities
    exact: Callable[[Tensor], Tensor]
    inputs: Tensor


def is_cvxpy(z: Any) -> bool:
    """The tutorial's way to write one callable for both libraries."""
    return isinstance(z, cp.Expression)


def distance(z, x):
    return cp.sum_squares(z - x) / 2 if is_cvxpy(z) else (z - x).square().sum() / 2


def entropic(z, x):
    return -x @ z - cp.sum(cp.entr(z)) if is_cvxpy(z) else -x @ z + (z * z.log()).sum()


def binary_entropic(z, x):
    if is_cvxpy(z):
        return -x * z - cp.entr(z) - cp.entr(1 - z)
    return -x * z + z * z.log() + (1 - z) * (1 - z).log()


def negative(z, x):
    return -z


def excess(z, x):
    return (cp.sum(z) if is_cvxpy(z) else z.sum()) - 1


def trials(n: int = 6) -> list[Trial]:
    """Problems with a closed form."""

    def on_plane(A):
        return lambda z, x: (A.numpy() if is_cvxpy(z) else A) @ z - 1

    def onto_plane(A):
        return lambda x: x + (1 - x @ A.T) @ torch.linalg.pinv(A).T

    torch.manual_seed(0)
    x, A = torch.randn(20, n, dtype=torch.float64), torch.randn(2, n, dtype=torch.float64)
    twice = A[[0, 1, 0]]
    real = torch.linspace(-1, 1, 20, dtype=torch.float64)

    number, vector = ([cp.Variable()], [cp.Parameter()]), ([cp.Variable(n)], [cp.Parameter(n)])
    simplex = *vector, distance, [negative], [excess]
    softmax = *vector, entropic, [], [excess]
    sigmoid = *number, binary_entropic
    plane, redundant = ((*vector, distance, [], [on_plane(a)]) for a in (A, twice))
    return [
        Trial("sparsemax", simplex, sparsemax, x),
        Trial("projection onto a plane", plane, onto_plane(A), x),
        Trial("  with an equation given twice", redundant, onto_plane(A), x),
        Trial("sigmoid on [-5, 5]", sigmoid, torch.sigmoid, 5 * real),
        Trial("sigmoid on [-20, 20]", sigmoid, torch.sigmoid, 20 * real),
        Trial("softmax, logits × 1", softmax, lambda x: x.softmax(-1), x),
        Trial("softmax, logits × 10", softmax, lambda x: x.softmax(-1), 10 * x),
        Trial("softmax, logits × 50", softmax, lambda x: x.softmax(-1), 50 * x),
    ]


def errors(layer: torch.nn.Module, trial: Trial) -> tuple[float, float]:
    """Largest error of value and gradient; infinite when the layer raises."""
    weights = torch.randn(trial.inputs.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for f in (trial.exact, layer):
        x = trial.inputs.clone().requires_grad_()
        try:
            y = f(x)
            results.append((y.detach(), *torch.autograd.grad((weights * y).sum(), x)))
        except (RuntimeError, TypeError):
            return math.inf, math.inf
    value, gradient = ((ours - exact).abs().max().item() for exact, ours in zip(*results))
    return value, gradient


def shown(error: float) -> str:
    return "raises" if math.isinf(error) else f"{error:.0e}"


def seconds(layer: torch.nn.Module, x: Tensor) -> float:
    """Forward and backward, the better of two runs."""

    def once() -> float:
        start = time.perf_counter()
        layer(x.clone().requires_grad_()).square().sum().backward()
        return time.perf_counter() - start

    return min(once(), once())


def complaint(layer: torch.nn.Module, *batch: Tensor) -> str:
    """What a user reads when the batch cannot be solved."""
    try:
        layer(*batch)
    except Exception as error:  # whatever it is, it is what the user gets
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> dict[str, float]:
    """Both layers on every trial; returns the errors that matter."""
    table = {
        trial.name: [errors(Layer(*trial.problem), trial) for Layer in (SixtyLines, OptLayer)]
        for trial in tqdm(trials(), desc="comparing")
    }
    print(f"{'largest error of':<34}{'value':<24}gradient")
    print(f"{'':<34}{'sixty lines  OptLayer':<24}sixty lines  OptLayer")
    for name, columns in table.items():
        tutorial, ours = ([shown(error) for error in pair] for pair in columns)
        cells = (f"{t:>11}{o:>10}   " for t, o in zip(tutorial, ours))
        print(f"{name:<34}{''.join(cells)}".rstrip())

    sparse = trials()[0]
    x = sparse.inputs.repeat(5, 1)
    slow, fast = (seconds(Layer(*sparse.problem), x) for Layer in (SixtyLines, OptLayer))
    print(f"\n100 sparsemaxes, forward and backward: {slow:.2f} s and {fast:.2f} s")

    capped = [cp.Variable(6)], [cp.Parameter()], distance, [lambda z, c: z - c], [excess]
    caps = torch.full((8,), 0.5, dtype=torch.float64)
    caps[3] = 0.1  # six numbers of at most 0.1 do not sum to one
    print("\na batch of 8 in which sample 3 has no solution:")
    for Layer in (SixtyLines, OptLayer):
        print(f"  {Layer.__name__:<12}{complaint(Layer(*capped), caps)}")

    known = [table["sparsemax"], table["projection onto a plane"]]
    return {
        "both_right": max(max(*tutorial, *ours) for tutorial, ours in known),
        "ours_worst": max(max(ours) for _, ours in table.values()),
        "tutorial_wrong": sum(not max(t) < 1e-4 for t, _ in table.values()),
        "speedup": slow / fast,
    }


if __name__ == "__main__":
    main()
