r"""Proofs of failure: a solver's "infeasible" or "unbounded" is a claim until it is shown here.

Infeasible. The elastic problem  min Σ_i t_i  s.t. g <= t, |h| <= t, t >= 0  over the domain of f always
has a solution; if its best point still violates a constraint, none satisfies them all, and it says which.

Unbounded. Let x(R) = argmin f over the feasible x with |x| <= R. Along R = r, r², r³ (relative to the
data) f falls without limit if its slope does not abate; if it does, the minimum may be far away.
The points are handed out, and judged by whoever knows f and g: solvers are not believed here either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cvxpy as cp
import numpy as np

from optlayer.engines import Array, chain
from optlayer.engines.per_thread import PerThread
from optlayer.forms import Reference, ReferenceProblem
from optlayer.forms.kkt import Instance

SOLVERS = {
    "CLARABEL": {},
    "SCS": {"eps_abs": 1e-9, "eps_rel": 1e-9},
}
RADII = (1e2, 1e4, 1e6)


@dataclass(frozen=True)
class Elastic:
    """The least violated point: x, and how far each constraint is from holding there."""

    x: Array
    violations: dict[str, float]


@dataclass(frozen=True)
class _Workspace:
    reference: ReferenceProblem
    elastic: cp.Problem
    slacks: Sequence[cp.Variable]
    boxed: cp.Problem
    radius: cp.Parameter


class Proof(Protocol):
    """Examines one sample at a time; only samples without an answer come here."""

    def least_violation(self, sample: Instance) -> Elastic | None:
        """The elastic solution, or None where it is not found, or proves nothing."""
        ...

    def boxed_minimizers(self, sample: Instance) -> list[Array]:
        """argmin f over the feasible x with |x| <= R for R = r, r², r³; fewer where one is not found."""
        ...


class ProofByCvxpy:
    """A `Proof` from the problem as it is stated."""

    def __init__(self, reference: Reference) -> None:
        self._names = [*reference.inequality_names, *reference.equality_names]
        self._workspace = PerThread(lambda: _workspace(reference.build))

    def least_violation(self, sample: Instance) -> Elastic | None:
        """The elastic solution, or None where no solver finds it."""
        work = self._workspace.get()
        solution = _solve(work.elastic, work.reference, _values(sample), (cp.OPTIMAL,))
        if solution is None:
            return None
        amounts = [float(np.max(solution.primal_vars[slack.id], initial=0.0)) for slack in work.slacks]
        return Elastic(chain.values(work.reference, solution), dict(zip(self._names, amounts, strict=True)))

    def boxed_minimizers(self, sample: Instance) -> list[Array]:
        """argmin f over the feasible x with |x| <= R for R = r, r², r³; fewer where no solver finds one."""
        work, theta, found = self._workspace.get(), _values(sample), []
        size = max([1.0, *(float(np.abs(t).max()) for t in theta if t.size)])
        for radius in RADII:
            work.radius.value = radius * size
            accepted = (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)
            solution = _solve(work.boxed, work.reference, theta, accepted)
            if solution is not None:
                found.append(chain.values(work.reference, solution))
        return found


def _values(sample: Instance) -> tuple[Array, ...]:
    return tuple(t[0].numpy() for t in sample.theta)


def _workspace(build: Callable[[], ReferenceProblem]) -> _Workspace:
    reference = build()
    constraints = [*reference.inequalities, *reference.equalities]
    slacks = [cp.Variable(c.shape) for c in constraints]
    elastic = [c.expr <= t for c, t in zip(constraints, slacks, strict=True)]
    two_sided = zip(reference.equalities, slacks[len(reference.inequalities) :], strict=True)
    elastic += [-c.expr <= t for c, t in two_sided]
    elastic += [t >= 0 for t in slacks]
    radius = cp.Parameter(nonneg=True, value=1.0)
    box = [cp.norm_inf(cp.vec(v, order="C")) <= radius for v in reference.variables]
    boxed = cp.Problem(reference.problem.objective, [*reference.problem.constraints, *box])
    total = cp.Minimize(sum(cp.sum(t) for t in slacks))
    return _Workspace(reference, cp.Problem(total, [*elastic, *_domain(reference)]), slacks, boxed, radius)


def _domain(reference: ReferenceProblem) -> list[Any]:
    """Where every function of the problem is defined."""
    constraints = [*reference.inequalities, *reference.equalities]
    domain = list(reference.problem.objective.expr.domain)
    domain += [d for c in constraints for d in c.expr.domain]
    # quad_over_lin(x, 1) says 0 <= 1, and a constraint without variables breaks cvxpy's Clarabel interface
    return [d for d in domain if d.variables()]


def _solve(
    problem: cp.Problem,
    reference: ReferenceProblem,
    theta: tuple[Array, ...],
    accepted: tuple[str, ...],
) -> Any:
    """The solution by the first solver with an accepted status."""
    chain.assign(reference.parameters, theta)
    for solver, options in SOLVERS.items():
        try:
            solution = chain.run(problem, solver, options, ignore_dpp=True)
        except Exception:  # a proof that fails is no proof
            continue
        if solution.status in accepted:
            return solution
    return None
