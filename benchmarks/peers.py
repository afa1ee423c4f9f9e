"""Who is timed: OptLayer, what else is installed, and a solver on its own as the yardstick.

A peer is a class of its own only where it is called differently; the same one at another setting is an
instance. Tolerances are stated where they are not the package's own.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import clarabel
import cvxpy as cp
import numpy as np
import torch
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import dims_to_solver_cones
from harness import Contestant, Layer, Refused, unguarded
from reference import Outputs, Programme
from scipy import sparse
from torch import Tensor
from torch.func import vmap
from workloads import Workload

from optlayer import OptLayer

LU_IS_SAFE = 64  # size up to which batched LU is right on several threads, in every torch seen


@dataclass(frozen=True)
class Ours:
    """The layer of the problem as it is posed."""

    options: dict[str, Any] = field(default_factory=dict)
    name: str = "optlayer"
    differentiable: bool = True
    programmes_only: bool = False
    around = staticmethod(unguarded)

    def build(self, workload: Workload) -> Layer:
        layer = OptLayer.from_problem(*workload.pose(), **self.options)

        def call(*theta: Tensor) -> Outputs:
            return in_tuple(layer(*theta))

        call.solve = layer.solve
        return call

    def residual(self, layer: Layer, theta: Outputs) -> float:
        return layer.solve(*theta).residuals.worst.max().item()


@dataclass(frozen=True)
class Peer:
    """What the others have in common: a module to be installed, and no residual of their own."""

    name: str
    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    differentiable = True
    programmes_only = False

    def residual(self, layer: Layer, theta: Outputs) -> None:
        del layer, theta

    def around(self, workload: Workload) -> AbstractContextManager[Any]:
        return unguarded(workload)


@dataclass(frozen=True)
class CvxpyLayers(Peer):
    solver: str | None = None  # None: diffcp

    def build(self, workload: Workload) -> Layer:
        from cvxpylayers.torch import CvxpyLayer

        layer = CvxpyLayer(*workload.pose(), **({"solver": self.solver} if self.solver else {}))
        return lambda *theta: tuple(layer(*theta, solver_args=dict(self.settings)))


@dataclass(frozen=True)
class Matrices(Peer):
    """A layer that takes Q, p, G, h, A, b; they are formed inside the timed call, by torch."""

    programmes_only = True

    def build(self, workload: Workload) -> Layer:
        batched, read = vmap(workload.programme), vmap(workload.read)
        solve = self.solver(workload)
        return lambda *theta: read(solve(*(M.to(theta[0].device) for M in batched(*theta))))

    def solver(self, workload: Workload) -> Any:
        """(Q, p, G, h, A, b) -> z (B, n)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Qpth(Matrices):
    """OptNet; tolerance 1e-10."""

    def solver(self, workload: Workload) -> Any:
        from qpth.qp import QPFunction

        if not workload.matrices().Q[0].diagonal().all():
            raise Refused("Q has to be definite")
        solve = QPFunction(eps=1e-10, maxIter=60, notImprovedLim=5, check_Q_spd=False, verbose=-1)
        none = torch.empty(0)

        def called(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
            return solve(Q, p, G, h, *((A, b) if b.shape[1] else (none, none)))

        return called

    def around(self, workload: Workload) -> AbstractContextManager[Any]:
        large = workload.theta[0].device.type == "cpu" and workload.matrices().p.shape[1] >= LU_IS_SAFE
        return one_thread() if large else nullcontext()


@dataclass(frozen=True)
class ProxQP(Matrices):
    """proxsuite's QPLayer; 1e-9 forward and backward. It makes its gradients in torch's default dtype."""

    def solver(self, workload: Workload) -> Any:
        from proxsuite.torch.qplayer import QPFunction

        solve = QPFunction(eps=1e-9, maxIter=1000, eps_backward=1e-9)

        def called(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
            Q, A, G = (M.contiguous() for M in (Q, A, G))
            return solve(Q, p, A, b, G, torch.full_like(h, -1e20), h)[0]

        return called

    def around(self, workload: Workload) -> AbstractContextManager[Any]:
        del workload
        return default_float64()


@dataclass(frozen=True)
class Moreau(Matrices):
    """Moreau on the matrices; the entries that are 0 in every sample are no entries."""

    def solver(self, workload: Workload) -> Any:
        import moreau
        import moreau.torch

        programme = workload.matrices()
        Q, p, G, h, A, b = programme
        device = p.device.type
        square = _Entries.of(Q.abs() + Q.mT.abs())
        rows = _Entries.of(torch.cat([A, G], 1))
        solver = moreau.torch.Solver(
            n=p.shape[1],
            m=b.shape[1] + h.shape[1],
            P_row_offsets=square.offsets,
            P_col_indices=square.columns,
            A_row_offsets=rows.offsets,
            A_col_indices=rows.columns,
            cones=moreau.Cones(num_zero_cones=b.shape[1], num_nonneg_cones=h.shape[1]),
            settings=moreau.Settings(enable_grad=True, device=device, **self.settings),
        )

        def called(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
            P, M = square.read(Q), rows.read(torch.cat([A, G], 1))
            return solver.solve(P, M, p.contiguous(), torch.cat([b, h], 1)).x

        return called


@dataclass(frozen=True)
class _Entries:
    """Compressed rows, the same for each sample."""

    offsets: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, M: Tensor) -> "_Entries":
        places = (M != 0).any(0).cpu()
        rows, columns = places.nonzero(as_tuple=True)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), places.sum(1).cumsum(0)])
        return cls(offsets, rows, columns)

    def read(self, M: Tensor) -> Tensor:
        return M[:, self.rows.to(M.device), self.columns.to(M.device)].contiguous()


@dataclass(frozen=True)
class SolverAlone:
    """Clarabel on assembled matrices, one sample after the other: what any layer on top of it has to pay."""

    name: str = "clarabel alone"
    differentiable: bool = False
    programmes_only: bool = False
    around = staticmethod(unguarded)

    def build(self, workload: Workload) -> Layer:
        samples = _assembled(workload) if workload.programme else _canonical(workload)

        def call(*theta: Tensor) -> Outputs:
            del theta
            found = [clarabel.DefaultSolver(*sample).solve().x for sample in samples]
            if workload.programme is None:
                return ()  # the canonical variables are not the user's
            return vmap(workload.read)(torch.from_numpy(np.array(found)))

        return call

    def residual(self, layer: Layer, theta: Outputs) -> None:
        del layer, theta


def _assembled(workload: Workload) -> list[tuple[Any, ...]]:
    return [Programme(*parts).for_clarabel(1e-8) for parts in zip(*workload.matrices())]


def _canonical(workload: Workload) -> list[tuple[Any, ...]]:
    """cvxpy's cone programme of every sample."""
    posed = workload.pose()
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    samples = []
    for values in zip(*workload.theta):
        for parameter, value in zip(posed.parameters, values, strict=True):
            parameter.value = value.numpy()
        data = posed.problem.get_problem_data(cp.CLARABEL)[0]
        n = len(data["c"])
        P = sparse.triu(data["P"]).tocsc() if "P" in data else sparse.csc_matrix((n, n))
        cones = dims_to_solver_cones(data["dims"])
        samples.append((P, data["c"], sparse.csc_matrix(data["A"]), data["b"], cones, settings))
    return samples


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's batched LU is wrong on several threads in some builds: large ones run on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def default_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_tuple(outputs: Any) -> Outputs:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


OURS = Ours()
ALONE = SolverAlone()
QPTH = Qpth("qpth", "qpth")
MOREAU = Moreau("moreau, matrices", "moreau")
PEERS: list[Peer] = [
    CvxpyLayers("cvxpylayers, clarabel", "cvxpylayers", {"solve_method": "Clarabel"}),
    CvxpyLayers("cvxpylayers, scs 1e-8", "cvxpylayers", {"eps": 1e-8, "max_iters": 20000}),
    CvxpyLayers("cvxpylayers, moreau", "cvxpylayers", solver="MOREAU"),
    MOREAU,
    QPTH,
    ProxQP("proxqp", "proxsuite"),
]


def installed(peers: list[Peer]) -> list[Contestant]:
    return [peer for peer in peers if find_spec(peer.module)]
