r"""Cone programmes that miss a feasible point by next to nothing, and multipliers that prove it all the same.

    min t   s.t.   w∘e t - g(x) ∈ K,   h(x) = 0,   t >= -1

with e inside of K and w the size of the rows' slopes. Where t > 0 no x is feasible, and by Farkas's lemma for
cones (`farkas`) it is the multipliers that prove it:

    λ ∈ K*,   Gᵀλ + Aᵀν = 0,   λᵀg₀ + νᵀh₀ = ⟨λ, w∘e⟩ t = t.

A solver's ray balances to its tolerance, which hides any t below; this programme has a solution like any
other, which Newton's method takes to rounding. The equations are kept as they are: relaxed to both sides, a t
near 0 would make the two depend on each other. Equations that contradict each other have an ν of their own:
what least squares leave of h.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayer.cones import Nonnegative, Product
from optlayer.engines.ask import cone_program, turned
from optlayer.engines.clarabel import Clarabel
from optlayer.engines.face import CLARABEL_CLOSELY
from optlayer.forms import Local, Point
from optlayer.forms.blocks import FunctionObjective, FunctionRows
from optlayer.forms.kkt import Instance
from optlayer.forms.programme import Programme
from optlayer.matrix import or_one
from optlayer.polish import polish

LARGEST = 1000  # unknowns and rows: they are met as dense matrices


def contrary(sample: Instance) -> Iterator[Point]:
    """Multipliers that may leave one sample no feasible point: to be judged by whoever asks."""
    base, at = sample.form, sample.origin
    if not (isinstance(base, Programme) and base.size <= LARGEST and at.has_finite_constraints):
        return
    if base.p:
        yield sample.nowhere._replace(nu=_left_over(at))
    if base.m:
        yield from _least_violated(base, sample)


def _left_over(at: Local) -> Float64[Tensor, "1 p"]:
    """ν = h₀ - A argmin |h₀ - Ax|, refined; every row in its unit."""
    w = or_one(at.A.peaks)[0]
    A, left = at.A.dense()[0] / w[:, None], (at.h[0] / w)[:, None]
    for _ in range(2):
        left = left - A @ torch.linalg.lstsq(A, left, driver="gelsd").solution
    return (left[:, 0] / w)[None]


def _least_violated(base: Programme, sample: Instance) -> Iterator[Point]:
    """λ and ν of the solution, where t > 0."""
    problem = replace(sample, form=_elastic(base, sample.origin))
    program = cone_program(problem, torch.tensor([0]))
    answer = turned(Clarabel(CLARABEL_CLOSELY).solve_matrices(program), base.p)
    lam, nu = torch.from_numpy(answer.y).split([base.m + 1, base.p], 1)
    found = polish(problem, Point(torch.from_numpy(answer.x), problem.form.dual.nearest(lam), nu)).point
    x, t = found.x.split([base.n, 1], 1)
    if t > 0:
        yield Point(x, found.lam[:, :-1], found.nu)


def _elastic(base: Programme, at: Local) -> Programme:
    """The programme in y = (x, t); at: the one that it is made of, at x = 0."""
    n, (G, A), (g0, h0) = base.n + 1, (M.dense()[0] for M in (at.G, at.A)), (at.g[0], at.h[0])
    we = base.dual.over_blocks(or_one(at.G.peaks))[0] * inside(base.dual.dual)

    def g(y: Tensor, *_theta: Tensor) -> Tensor:
        return torch.cat([G @ y[:-1] + g0 - we * y[-1], -y[-1:] - 1.0])

    def h(y: Tensor, *_theta: Tensor) -> Tensor:
        return A @ y[:-1] + h0

    return Programme(
        n=n,
        m=base.m + 1,
        p=base.p,
        objective=FunctionObjective(lambda y, *_theta: y[-1], n),
        inequality=FunctionRows(g, base.m + 1),
        equality=FunctionRows(h, base.p),
        dual=Product((*base.dual.cones, Nonnegative(1))),
        seen=torch.ones(n, dtype=torch.bool),
        auxiliary=True,
    )


def inside(K: Product) -> Float64[Tensor, " m"]:
    """A point inside of K, of size 1 in each cone: the sum of Π(±e_i), which span the space."""
    eye = torch.eye(K.dim, dtype=torch.float64)
    e = K.nearest(torch.cat([eye, -eye])).sum(0)
    return e / K.over_blocks(e.abs())
