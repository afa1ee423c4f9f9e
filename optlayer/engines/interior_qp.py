r"""A batched interior point method for convex quadratic programmes, in torch alone.

    min ½xᵀPx + qᵀx   s.t.   Gx + g₀ + s = 0,  s >= 0,   Ax + h₀ = 0

Mehrotra's predictor-corrector (1992) in u = (s, λ, ν, x). With D = diag(λ/s) every Newton step solves

    ⎡ P  Gᵀ    Aᵀ ⎤ ⎡ẋ⎤   ⎡ r_d       ⎤      r_d = Px + q + Gᵀλ + Aᵀν
    ⎢ G  -D⁻¹  0  ⎥ ⎢λ̇⎥ = ⎢ r_p - D⁻¹l ⎥      r_p = Gx + g₀ + s
    ⎣ A  0     0  ⎦ ⎣ν̇⎦   ⎣ r_e       ⎦      r_e = Ax + h₀,   and   ṡ = D⁻¹(l - λ̇),

l = λ for the predictor and l = λ - (σμ - ṡλ̇)/s for the corrector, and goes to u - αu̇: with this sign
nothing is ever negated. Three eliminations solve it; the patterns decide which, never the data:

    Separable   P is diagonal. Bounds, the rows of G with one entry, leave a diagonal H = P + GᵀDG; what
                is left is a Schur complement EH⁻¹Eᵀ on the rows E of A and of the other inequalities.
    Gram        No bounds, few rows. x and ν are eliminated once and for all: s = Nλ + d is left, a linear
                complementarity problem in λ alone, N = GP⁻¹Gᵀ on the null space of A.
    Primal      H = P + GᵀDG, whatever P and G are, and a Schur complement on A. It takes over the samples
                that another way has failed.

Singular systems are shifted a little and never refined: r is computed afresh in every iteration, which makes
a shifted step one of the proximal method of multipliers, with the same fixed points. For the same reason a
factorization that breaks down costs a step, and no more. A sample's point is set aside when it converges, so
it does not depend on how long its neighbours run.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayer.matrix import Dense, Matrix, Sparse, largest, or_one, picked, stacked

LIMIT = 60  # iterations
PATIENCE = 10  # of them, in which the error must halve; not asked of the first two rounds
FRACTION = 0.995  # of the way to the border of the cone
CENTRED = 0.1  # of the tolerance: complementarity is never aimed at below
SHIFT = 1e-10  # δ, relative to what it is added to
ROUNDING = 1e-13  # the same where nothing corrects it afterwards
FLOOR = 1e-6  # of the data: where a solution is smaller than that it counts as 0
DEFINITE = 1e-10  # smallest pivot of P, relative to its diagonal, with which P⁻¹ is worth having
SLACK = 10.0  # times the tolerance: what a point found without x may miss with it
OUTER = 2**19  # entries of a table of products of two rows that is worth its memory


class Rough(NamedTuple):
    """A point that satisfies the KKT conditions roughly, where it converged."""

    x: Float64[Tensor, "B n"]
    lam: Float64[Tensor, "B m"]  # >= 0
    nu: Float64[Tensor, "B p"]
    converged: Bool[Tensor, " B"]
    iterations: Int64[Tensor, " B"]


def interior_qp(
    P: Matrix,
    q: Float64[Tensor, "B n"],
    G: Matrix,
    g0: Float64[Tensor, "B m"],
    A: Matrix,
    h0: Float64[Tensor, "B p"],
    tolerance: float = 1e-6,
) -> Rough:
    """Solve a batch of programmes to a relative KKT residual of `tolerance`.

    A matrix of one sample is shared by all. Never raises for a sample: one that is infeasible, unbounded or
    not convex does not converge, and its point means nothing.
    """
    with torch.no_grad():
        programme = Programme.of(P, q, G, g0, A, h0)
        return _found(programme, programme.system(), tolerance)


def _found(programme: "Programme", system: "System", tolerance: float) -> Rough:
    u, converged, iterations = _run(system, tolerance)
    if isinstance(system, Gram):
        u = system.complete(u)
        converged &= programme.residual(u).error.squeeze(1) <= SLACK * tolerance
    if not isinstance(system, Primal) and not bool(converged.all()):
        failed = (~converged).nonzero().squeeze(1)
        failed = failed.repeat(2) if len(failed) == 1 else failed  # one alone would count as shared
        v, again, more = _run(Primal(programme.apart(failed)), tolerance)
        u.whole[failed], converged[failed] = v.whole, again
        iterations[failed] += more
    return Rough(u.x, *programme.given(u), converged, iterations)


# ------------------------------------------------------------------------------------ the method


class Unknowns:
    """u = (s, λ, ν, x) as one tensor, and views of its parts; inequalities are (bounds, others)."""

    def __init__(self, whole: Float64[Tensor, "B 2m+p+n"], b: int, m: int, p: int) -> None:
        self.whole, self.m = whole, m
        self.cone = whole[:, : 2 * m]  # (s, λ) > 0
        self.s, self.s_bounds, self.s_rows = whole[:, :m], whole[:, :b], whole[:, b:m]
        self.lam, self.lam_bounds = whole[:, m : 2 * m], whole[:, m : m + b]
        self.y = whole[:, m + b : 2 * m + p]  # multipliers of E, the other inequalities and A
        self.nu, self.x = whole[:, 2 * m : 2 * m + p], whole[:, 2 * m + p :]

    def centre(self, z: Float64[Tensor, "B m"], eta: Float64[Tensor, "B 1"]) -> Tensor:
        """s > 0 and returned λ > 0 with λ - s = z and λs = η²."""
        root = torch.sqrt(torch.addcmul(4.0 * eta * eta, z, z))
        torch.sub(root, z, out=self.s).mul_(0.5)
        return root.add_(z).mul_(0.5)


class Residual(NamedTuple):
    """r at a point, and how large it is."""

    dual: Float64[Tensor, "B n"]
    bounds: Float64[Tensor, "B b"]  # r_p of the bounds
    rows: Float64[Tensor, "B k"]  # r_p of the others, r_e
    error: Float64[Tensor, "B 1"]  # relative, complementarity included
    unit: Float64[Tensor, "B 1"]  # of sλ
    mu: Float64[Tensor, "B 1"]  # mean of sλ


class System:
    """An elimination: what the method needs to know of a programme."""

    sizes: tuple[int, int, int, int]  # b, m, p, n: bounds, inequalities, equalities, variables
    like: Float64[Tensor, "B ..."]

    def start(self, u: Unknowns) -> None:
        """Write a first point, s and λ positive."""
        raise NotImplementedError

    def residual(self, u: Unknowns) -> Residual:
        raise NotImplementedError

    def factor(self, D: Float64[Tensor, "B m"]) -> None:
        """Prepare `direction`."""
        raise NotImplementedError

    def direction(self, w: Unknowns, l: Float64[Tensor, "B m"], r: Residual) -> None:
        """Write u̇."""
        raise NotImplementedError


def _run(system: System, tolerance: float) -> tuple[Unknowns, Tensor, Tensor]:
    """Points, which of them converged, after how many iterations."""
    (b, m, p, n), like = system.sizes, system.like
    u, w = (Unknowns(like.new_zeros(len(like), 2 * m + p + n), b, m, p) for _ in range(2))
    system.start(u)
    point, left = u.whole.clone(), len(like)
    running = torch.ones(left, dtype=torch.bool, device=like.device)
    converged, iterations = ~running, running * LIMIT
    before = like.new_tensor(torch.inf)
    for k in range(LIMIT):
        r = system.residual(u)
        error = r.error.squeeze(1)
        still = running & (error > tolerance)  # not where it is NaN
        if k and k % PATIENCE == 0:
            now = torch.stack([error, r.mu.squeeze(1)])
            still &= (now < 0.5 * before).any(0)
            before = now
        count = int(still.count_nonzero())
        if count < left:
            ended, running, left = running ^ still, still, count
            converged |= ended & (error <= tolerance)
            iterations.masked_fill_(ended, k)
            point = torch.where(ended.unsqueeze(1), u.whole, point)
        if not left:
            break
        _step(system, u, w, r, CENTRED * tolerance)
    return Unknowns(point, b, m, p), converged, iterations


def _step(system: System, u: Unknowns, w: Unknowns, r: Residual, centred: float) -> None:
    """Mehrotra's two directions from one factorization."""
    system.factor(u.lam / u.s)
    system.direction(w, u.lam, r)
    if not u.m:
        u.whole.sub_(w.whole)
        return
    short = 1.0 - _length(w, u)
    target = torch.maximum(short * short * short * r.mu, centred * r.unit)  # σ = (1 - α)³
    correction = torch.addcmul(target, w.lam, w.s, value=-1.0).div_(u.s)
    system.direction(w, u.lam - correction, r)
    u.whole.addcmul_(_length(w, u, FRACTION), w.whole, value=-FRACTION)


def _length(w: Unknowns, u: Unknowns, fraction: float = 1.0) -> Float64[Tensor, "B 1"]:
    """α/fraction, α at most 1 and that fraction of the way to the border."""
    return (w.cone / u.cone).amax(1, keepdim=True).clamp_(min=fraction).reciprocal_()


# ------------------------------------------------------------------------------------ the pieces


@dataclass(frozen=True, eq=False)
class Bounds:
    """Inequalities with one entry each: g_i in column j(i), or in column i where `columns` is None."""

    g: Float64[Tensor, "#B b"]
    columns: Int64[Tensor, " b"] | None

    @cached_property
    def squared(self) -> Float64[Tensor, "#B b"]:
        return self.g * self.g

    def minus_product(self, base: Tensor, x: Tensor, out: Tensor) -> Float64[Tensor, "B b"]:
        """base - Gx."""
        x = x if self.columns is None else picked(x, self.columns)
        return torch.addcmul(base, self.g, x, value=-1.0, out=out)

    def plus_product(self, base: Tensor, x: Tensor) -> Float64[Tensor, "B b"]:
        """base + Gx."""
        x = x if self.columns is None else picked(x, self.columns)
        return torch.addcmul(base, self.g, x)

    def plus_transposed(self, base: Tensor, y: Tensor, sign: float = 1.0) -> Float64[Tensor, "B n"]:
        """base ± Gᵀy."""
        if self.columns is None:
            return torch.addcmul(base, self.g, y, value=sign)
        return base.index_add(1, self.columns, self.g * y, alpha=sign)

    def plus_curvature(self, base: Tensor, D: Tensor) -> Float64[Tensor, "B n"]:
        """base + GᵀDG, both diagonal."""
        if self.columns is None:
            return torch.addcmul(base, self.squared, D)
        return base.expand(len(D), -1).index_add(1, self.columns, self.squared * D)


@dataclass(frozen=True, eq=False)
class Rows:
    """E: the inequalities that are not bounds, then A."""

    matrix: Matrix

    @cached_property
    def dense(self) -> Float64[Tensor, "#B k n"]:
        return self.matrix.dense()

    @cached_property
    def shared(self) -> tuple[Tensor, Tensor] | None:
        """E and Eᵀ where all samples have the same."""
        return (self.dense[0], self.dense[0].T) if len(self.matrix.values) == 1 else None

    @cached_property
    def outer(self) -> Float64[Tensor, "n kk"] | None:
        """Products of the entries of each column: EWEᵀ = Σ_j w_j e_j e_jᵀ is then one product."""
        k, n = self.matrix.shape
        if self.shared is None or n * k * k > OUTER:
            return None
        E = self.shared[0]
        return (E.unsqueeze(0) * E.unsqueeze(1)).permute(2, 0, 1).reshape(n, k * k)

    def product(self, x: Tensor, base: Tensor, sign: float = 1.0) -> Float64[Tensor, "B k"]:
        """Ex ± base."""
        if self.shared is not None:
            return torch.addmm(base, x, self.shared[1], beta=sign)
        if isinstance(self.matrix, Sparse):
            return torch.add(self.matrix @ x, base, alpha=sign)
        return torch.baddbmm(base.unsqueeze(1), x.unsqueeze(1), self.dense.mT, beta=sign).squeeze(1)

    def transposed(self, y: Tensor, base: Tensor) -> Float64[Tensor, "B n"]:
        """Eᵀy + base."""
        if self.shared is not None:
            return torch.addmm(base, y, self.shared[0])
        if isinstance(self.matrix, Sparse):
            return self.matrix.mT(y) + base
        return torch.baddbmm(base.unsqueeze(1), y.unsqueeze(1), self.dense).squeeze(1)

    def pull(self, y: Tensor) -> Float64[Tensor, "B n"]:
        """Eᵀy."""
        return y @ self.shared[0] if self.shared is not None else self.matrix.mT(y)

    def gram(self, w: Float64[Tensor, "B n"]) -> Float64[Tensor, "B k k"]:
        """E diag(w) Eᵀ."""
        if self.outer is not None:
            k = self.matrix.shape[0]
            return (w @ self.outer).view(-1, k, k)
        return (self.dense * w.unsqueeze(1)) @ self.dense.mT


class Definite:
    """S = LLᵀ; a square root where S is a number."""

    def __init__(self, S: Float64[Tensor, "#B k k"]) -> None:
        self.number = S.squeeze(2) if S.shape[1] == 1 else None
        self._S = S

    @cached_property
    def L(self) -> Float64[Tensor, "#B k k"]:
        # of the transpose, the same and already in the order of columns that is wanted
        return self._S.sqrt() if self.number is not None else torch.linalg.cholesky_ex(self._S.mT).L

    def solve(self, b: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        """S⁻¹b."""
        return b / self.number if self.number is not None else self.upper(self.lower(b))

    def lower(self, b: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        """L⁻¹b."""
        return _triangular(self.L, b, upper=False)

    def upper(self, b: Float64[Tensor, "B k"]) -> Float64[Tensor, "B k"]:
        """L⁻ᵀb."""
        return _triangular(self.L.mT, b, upper=True)

    def columns(self, M: Float64[Tensor, "#B k c"]) -> Float64[Tensor, "#B k c"]:
        """L⁻¹M."""
        B = max(len(M), len(self.L))
        L, M = self.L.expand(B, -1, -1), M.expand(B, -1, -1)
        return torch.linalg.solve_triangular(L, M, upper=False)


def _triangular(L: Float64[Tensor, "#B k k"], b: Float64[Tensor, "B k"], upper: bool) -> Tensor:
    if len(L) < len(b):  # one matrix: the samples are its right-hand sides
        return torch.linalg.solve_triangular(L[0], b.T, upper=upper).T
    return torch.linalg.solve_triangular(L, b.unsqueeze(2), upper=upper).squeeze(2)


def _product(M: Float64[Tensor, "#B r c"], x: Float64[Tensor, "B c"]) -> Float64[Tensor, "B r"]:
    """Mx; as a row, xᵀMᵀ, which is the faster of the two."""
    return x @ M[0].T if len(M) == 1 else torch.bmm(x.unsqueeze(1), M.mT).squeeze(1)


def _take(a: Tensor, index: Tensor) -> Tensor:
    """Some of the samples of what may be shared."""
    return a if len(a) == 1 else a[index]


def _own(a: Tensor, index: Tensor) -> Tensor:
    """Some of the samples of what may be shared, each its own."""
    return a.expand(len(index), *a.shape[1:]) if len(a) == 1 else a[index]


# ------------------------------------------------------------------------------------ the programme


@dataclass(frozen=True, eq=False)
class Programme:
    """The data: inequalities in the order (bounds, others), every row with largest entry 1."""

    P: Matrix
    q: Float64[Tensor, "B n"]
    bounds: Bounds | None
    g0: Float64[Tensor, "B b"]  # of the bounds
    rows: Rows | None
    e0: Float64[Tensor, "B k"]  # of the other rows
    p: int
    scale: Float64[Tensor, "#B m+p"]  # what the rows were multiplied by
    order: Int64[Tensor, " m"] | None  # of the inequalities here in the given ones

    @classmethod
    def of(cls, P: Matrix, q: Tensor, G: Matrix, g0: Tensor, A: Matrix, h0: Tensor) -> "Programme":
        """From the data as they are given."""
        bounds, others, order = _split(G)
        matrix, b = _stack(others, A), G.shape[0] - (others.shape[0] if others is not None else 0)
        per_bound = q.new_ones(1, 0) if bounds is None else 1.0 / or_one(bounds.g.abs())
        per_row = q.new_ones(1, 0) if matrix is None else 1.0 / or_one(matrix.largest())
        size = max(len(per_bound), len(per_row))
        scale = torch.cat([per_bound.expand(size, -1), per_row.expand(size, -1)], 1)
        constant = torch.cat([g0 if order is None else g0[:, order], h0], 1) * scale
        return cls(
            P=P,
            q=q,
            bounds=None if bounds is None else Bounds(bounds.g * per_bound, bounds.columns),
            g0=constant[:, :b],
            rows=None if matrix is None else Rows(matrix.scaled(per_row, 1.0)),
            e0=constant[:, b:],
            p=A.shape[0],
            scale=scale,
            order=order,
        )

    def apart(self, i: Tensor) -> "Programme":
        """Some of the samples, with matrices of their own.

        In a product with a shared one, how a sample's row is rounded may depend on how many others there are.
        """
        rows = None if self.rows is None else Rows(Dense(_own(self.rows.dense, i)))
        bounds = self.bounds and Bounds(_take(self.bounds.g, i), self.bounds.columns)
        entries = _own(self.P.values, i)
        P = Sparse(entries, self.P.pattern) if isinstance(self.P, Sparse) else Dense(entries)
        scale = _take(self.scale, i)
        return Programme(P, self.q[i], bounds, self.g0[i], rows, self.e0[i], self.p, scale, self.order)

    def given(self, u: Unknowns) -> tuple[Float64[Tensor, "B m"], Float64[Tensor, "B p"]]:
        """λ and ν of the rows as they were given."""
        lam, nu = u.lam * self.scale[:, : u.m], u.nu * self.scale[:, u.m :]
        return lam if self.order is None else torch.empty_like(lam).index_copy_(1, self.order, lam), nu

    def system(self) -> System:
        """The elimination with the least work in an iteration."""
        b, m, p, n = self.sizes
        k = m - b + p
        work: dict[type[Direct | Gram], float] = {Primal: n**3 / 3 + n**2 * k}
        if self.diagonal is not None and (self.is_curved or b >= n):
            work[Separable] = k**3 / 3 + k**2 * n
        if m and not b and self.is_curved:
            work[Gram] = m**3 / 3
        return min(work, key=work.__getitem__)(self)

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """b, m, p, n."""
        b = self.g0.shape[1]
        return b, b + self.e0.shape[1] - self.p, self.p, self.q.shape[1]

    @cached_property
    def is_curved(self) -> bool:
        """Whether P has any place for an entry: not a linear programme."""
        return isinstance(self.P, Dense) or self.P.pattern.nnz > 0

    @cached_property
    def diagonal(self) -> Float64[Tensor, "#B n"] | None:
        """P, where it has no place for an entry anywhere else."""
        if isinstance(self.P, Dense) or bool((self.P.pattern.rows != self.P.pattern.columns).any()):
            return None
        return self.P.diagonal()

    @cached_property
    def slope(self) -> Float64[Tensor, "B 1"]:
        """The size of q, and so of forces."""
        return largest(self.q)

    @cached_property
    def curve(self) -> Float64[Tensor, "#B 1"]:
        return self.P.diagonal().amax(1, keepdim=True)

    @cached_property
    def length(self) -> Float64[Tensor, "B 1"]:
        """The size of g₀ and h₀, and so of x and s; that of P⁻¹q in a cone."""
        length = torch.maximum(largest(self.g0), largest(self.e0))
        return torch.where(length > 0, length, torch.where(self.curve > 0, self.slope / self.curve, 1.0))

    @cached_property
    def force(self) -> Float64[Tensor, "B 1"]:
        """The least size of a force, 1 where nothing gives any."""
        return or_one(torch.maximum(self.slope, FLOOR * self.curve * self.length))

    @cached_property
    def _nothing(self) -> Float64[Tensor, "B 1"]:
        return torch.zeros_like(self.slope)

    @cached_property
    def stiffness(self) -> Float64[Tensor, "B 1"]:
        """ω, force by length: what λ/s is measured in."""
        return or_one(self.curve + self.slope / self.length)

    def residual(self, u: Unknowns) -> Residual:
        b, m, _, _ = self.sizes
        Px = self._curvature(u.x)
        dual, bounds, rows = Px + self.q, self.g0, self.e0
        miss = self._nothing
        if self.bounds is not None:
            dual = self.bounds.plus_transposed(dual, u.lam_bounds)
            bounds = self.bounds.plus_product(bounds, u.x).add_(u.s_bounds)
            miss = largest(bounds)
        if self.rows is not None:
            dual = self.rows.transposed(u.y, dual)
            rows = self.rows.product(u.x, rows)
            if m > b:
                rows[:, : m - b] += u.s_rows
            miss = torch.maximum(miss, largest(rows))
        force, length = torch.maximum(self.force, largest(Px)), largest(u.x)
        if m > b:  # x may be large where no row sees it
            length = torch.minimum(length, largest(u.s) + self.length)
        length = torch.add(length, self.length, alpha=FLOOR)
        error = torch.maximum(largest(dual) / force, miss / length)
        return _complementarity(Residual(dual, bounds, rows, error, force * length, error), u)

    def _curvature(self, x: Tensor) -> Float64[Tensor, "B n"]:
        """Px."""
        if self.diagonal is not None:
            return self.diagonal * x
        return self.P @ x if isinstance(self.P, Sparse) else _product(self.P.values, x)


def _complementarity(r: Residual, u: Unknowns) -> Residual:
    """With the error that sλ makes."""
    if not u.m:
        return r
    gap = u.s * u.lam
    error = torch.maximum(r.error, gap.amax(1, keepdim=True) / r.unit)
    return r._replace(error=error, mu=gap.mean(1, keepdim=True))


def _split(G: Matrix) -> tuple[Bounds | None, Matrix | None, Tensor | None]:
    """The bounds among the rows, the others, and the order (bounds, others), None where it is G's own."""
    if isinstance(G, Dense) or not len(G.pattern.bounds.rows):
        return None, G, None
    pattern, found = G.pattern, G.pattern.bounds
    if pattern.is_row_each:
        return Bounds(G.values, None if pattern.is_diagonal else pattern.columns), None, None
    others = Sparse(G.values[:, found.other_entries], found.others)
    order = torch.cat([found.rows, found.other_rows])
    return Bounds(G.values[:, found.entries], found.columns), others, order


def _stack(G: Matrix | None, A: Matrix) -> Matrix | None:
    """(G, A); sparse where both are, each sample has its own, and it pays."""
    M = A if G is None else stacked(G, A)
    if not M.shape[0]:
        return None
    both = all(isinstance(part, Sparse) for part in (G, A) if part is not None and part.shape[0])
    keep = isinstance(M, Sparse) and both and len(M.values) > 1 and M.pattern.is_sparse
    return M if keep else Dense(M.dense())


# ------------------------------------------------------------------------------------ eliminations


class Direct(System):
    """What the eliminations share that keep all unknowns."""

    def __init__(self, programme: Programme) -> None:
        self.of, self.sizes, self.like = programme, programme.sizes, programme.q
        self.residual = programme.residual  # type: ignore[method-assign]

    def start(self, u: Unknowns) -> None:
        """x of least ½xᵀPx + qᵀx + ½ω|Gx + g₀|² on Ax + h₀ = 0, and λ/ω - s = Gx + g₀ =: z.

        It is the step from 0 with D = ω and l = 0, whose λ̇ is -ωz.
        """
        c, omega = self.of, self.of.stiffness
        ones = c.q.new_ones(len(c.q), u.m)
        self.factor(omega * ones)
        self.direction(u, 0.0 * ones, Residual(c.q, c.g0, c.e0, omega, omega, omega))
        u.whole.neg_()
        if u.m:
            z = u.lam / omega
            eta = torch.maximum(z.abs().mean(1, keepdim=True), 1e-3 * c.length)
            u.lam.copy_(u.centre(z, eta)).mul_(omega)


class Separable(Direct):
    """H diagonal:  ẋ = H⁻¹(r - Eᵀẏ),   (EH⁻¹Eᵀ + C) ẏ = EH⁻¹r - r_E,   C = D⁻¹ on inequalities."""

    def __init__(self, programme: Programme) -> None:
        super().__init__(programme)
        assert programme.diagonal is not None
        self._P = programme.diagonal + SHIFT * programme.stiffness
        self._D_rows: Tensor | None = None

    def factor(self, D: Tensor) -> None:
        c, (b, m, _, _) = self.of, self.sizes
        self._D, self._D_rows = (D, None) if m == b else (D[:, :b], D[:, b:])
        H = c.bounds.plus_curvature(self._P, self._D) if c.bounds is not None else self._P.expand_as(c.q)
        self._inverse = H.reciprocal()
        if c.rows is not None:
            S = c.rows.gram(self._inverse)
            diagonal = S.diagonal(dim1=1, dim2=2).mul_(1.0 + SHIFT)
            if self._D_rows is not None:
                diagonal[:, : m - b] += 1.0 / self._D_rows
            self._schur = Definite(S)

    def direction(self, w: Unknowns, l: Tensor, r: Residual) -> None:
        c, b = self.of, self.sizes[0]
        l_bounds = l if self._D_rows is None else l[:, :b]
        v = r.dual
        if c.bounds is not None:
            v = c.bounds.plus_transposed(v, torch.addcmul(l_bounds, self._D, r.bounds, value=-1.0), -1.0)
        v = self._inverse * v
        if c.rows is None:
            w.x.copy_(v)
        else:
            y = self._multipliers(w, l[:, b:], c.rows.product(v, r.rows, -1.0))
            torch.addcmul(v, self._inverse, c.rows.pull(y), value=-1.0, out=w.x)
        if c.bounds is not None:
            c.bounds.minus_product(r.bounds, w.x, out=w.s_bounds)
            torch.addcmul(l_bounds, self._D, w.s_bounds, value=-1.0, out=w.lam_bounds)

    def _multipliers(self, w: Unknowns, l: Tensor, right: Tensor) -> Float64[Tensor, "B k"]:
        """ẏ; written with the slacks that belong to it."""
        if self._D_rows is None:
            w.y.copy_(self._schur.solve(right))
            return w.y
        slack = l / self._D_rows
        right[:, : l.shape[1]] += slack
        w.y.copy_(self._schur.solve(right))
        torch.addcdiv(slack, w.y[:, : l.shape[1]], self._D_rows, value=-1.0, out=w.s_rows)
        return w.y


class Primal(Direct):
    """H = P + GᵀDG + ωAᵀA, of which the last changes no solution and makes H definite where it can be:

    ẋ = v - H⁻¹Aᵀν̇,   v = H⁻¹(r_d - Gᵀ(l - Dr_p) + ωAᵀr_e),   AH⁻¹Aᵀ ν̇ = Av - r_e
    """

    def __init__(self, programme: Programme) -> None:
        super().__init__(programme)
        c, (b, m, _, n) = programme, self.sizes
        E = c.rows.dense if c.rows is not None else c.q.new_zeros(1, 0, n)
        self._G, self._A = E[:, : m - b], E[:, m - b :]
        P, omega = c.P.dense(), c.stiffness
        static = P.diagonal(dim1=1, dim2=2) + omega * (E * E).sum(1)
        if c.bounds is not None:
            static = c.bounds.plus_curvature(static, omega.expand(-1, b))
        self._P = P + torch.diag_embed(SHIFT * or_one(static))
        self._P = self._P + omega.unsqueeze(2) * (self._A.mT @ self._A)

    def factor(self, D: Tensor) -> None:
        c, (b, m, p, _) = self.of, self.sizes
        self._D = D
        self._weight = torch.cat([D[:, b:], c.stiffness.expand(-1, p)], 1) if p else D[:, b:]
        H = self._P + self._G.mT @ (D[:, b:].unsqueeze(2) * self._G) if m > b else self._P.clone()
        if c.bounds is not None:
            diagonal = H.diagonal(dim1=1, dim2=2)
            diagonal.copy_(c.bounds.plus_curvature(diagonal, D[:, :b]))
        self._H = Definite(H)
        if p:
            Y = self._H.columns(self._A.mT)
            S = Y.mT @ Y
            S.diagonal(dim1=1, dim2=2).mul_(1.0 + SHIFT)
            self._schur = Definite(S)

    def direction(self, w: Unknowns, l: Tensor, r: Residual) -> None:
        c, (b, m, p, _) = self.of, self.sizes
        v, g = r.dual, m - b
        if c.bounds is not None:
            t = torch.addcmul(l[:, :b], self._D[:, :b], r.bounds, value=-1.0)
            v = c.bounds.plus_transposed(v, t, -1.0)
        if c.rows is not None:
            t = self._weight * r.rows
            t[:, :g] -= l[:, b:]
            v = c.rows.transposed(t, v)
        v = self._H.solve(v)
        if p:
            w.nu.copy_(self._schur.solve(_product(self._A, v) - r.rows[:, g:]))
            v = v - self._H.solve(_product(self._A.mT, w.nu))
        w.x.copy_(v)
        if c.bounds is not None:
            c.bounds.minus_product(r.bounds, v, out=w.s_bounds)
        if g:
            torch.sub(r.rows[:, :g], _product(self._G, v), out=w.s_rows)
        torch.addcmul(l, self._D, w.s, value=-1.0, out=w.lam)


class Gram(System):
    """s = Nλ + d, from x = x₀ - P⁻¹(Gᵀλ + Aᵀν) and Ax + h₀ = 0, where x₀ = -P⁻¹q. With M = EP⁻¹Eᵀ,

        ν = M_AA⁻¹(Ax₀ + h₀ - M_AG λ),   N = M_GG - M_GA M_AA⁻¹ M_AG,   -d = Gx₀ + g₀ - M_GA M_AA⁻¹(Ax₀ + h₀),

    in rows scaled so that N has diagonal 1. A step is (N + D⁻¹) λ̇ = D⁻¹l - r_p with r_p = s - Nλ - d.
    """

    def __init__(self, programme: Programme) -> None:
        c = self.of = programme
        assert c.rows is not None
        m = c.sizes[1]
        self.sizes, self.like = (0, m, 0, 0), c.q
        P = c.P.dense()
        self._scale = or_one(P.diagonal(dim1=1, dim2=2)).rsqrt()
        self._L = Definite(self._scale.unsqueeze(2) * P * self._scale.unsqueeze(1))
        Y = self._L.columns((c.rows.dense * self._scale.unsqueeze(1)).mT)
        M = Y.mT @ Y
        self._x0 = -self._inverse(c.q)
        z = c.rows.product(self._x0, c.e0)
        N, d = M[:, :m, :m], z[:, :m]
        if c.p:
            self._MGA = M[:, :m, m:]
            MAA = M[:, m:, m:].clone()
            MAA.diagonal(dim1=1, dim2=2).mul_(1.0 + ROUNDING)
            self._MAA = Definite(MAA)
            K = self._MAA.columns(self._MGA.mT)
            N = N - K.mT @ K
            self._nu0 = self._MAA.solve(z[:, m:])
            d = d - _product(self._MGA, self._nu0)
        self._unit = or_one(N.diagonal(dim1=1, dim2=2)).rsqrt()
        self._N = self._unit.unsqueeze(2) * N * self._unit.unsqueeze(1)
        self._shifted = self._N.expand(len(c.q), -1, -1).clone()  # but for its diagonal
        pivots = self._L.L.diagonal(dim1=1, dim2=2)
        self._d = (-d * self._unit).masked_fill((pivots**2 < DEFINITE).any(1, keepdim=True), torch.nan)
        self._size = largest(self._d)

    def _inverse(self, b: Tensor) -> Float64[Tensor, "B n"]:
        """P⁻¹b."""
        return self._scale * self._L.solve(self._scale * b)

    def start(self, u: Unknowns) -> None:
        """As in `Direct`: (N + 1) λ = -d."""
        self.factor(torch.ones_like(self._d))
        z = self._K.solve(-self._d)
        u.lam.copy_(u.centre(z, torch.maximum(z.abs().mean(1, keepdim=True), 1e-3 * self._size)))
        self._measure = self.of.residual(self.complete(u)).unit  # of sλ, in terms of x

    def residual(self, u: Unknowns) -> Residual:
        Nlam = _product(self._N, u.lam)
        primal = u.s - Nlam - self._d
        size = torch.add(largest(Nlam), self._size, alpha=FLOOR)
        unit = (size * largest(u.lam)).clamp(0.1 * self._measure, self._measure)
        return _complementarity(Residual(primal, primal, primal, largest(primal) / size, unit, unit), u)

    def factor(self, D: Tensor) -> None:
        self._R = 1.0 / D
        torch.add(self._N.diagonal(dim1=1, dim2=2), self._R, out=self._shifted.diagonal(dim1=1, dim2=2))
        self._K = Definite(self._shifted)

    def direction(self, w: Unknowns, l: Tensor, r: Residual) -> None:
        slack = l * self._R
        w.lam.copy_(self._K.solve(slack - r.rows))
        torch.addcmul(slack, w.lam, self._R, value=-1.0, out=w.s)

    def complete(self, u: Unknowns) -> Unknowns:
        """With ν and x, in the programme's rows."""
        c = self.of
        assert c.rows is not None
        lam, s = u.lam * self._unit, u.s / self._unit
        nu = self._nu0 - self._MAA.solve(_product(self._MGA.mT, lam)) if c.p else lam[:, :0]
        # ν has the sign of Ax₀ + h₀, the force that keeps x on the equalities
        x = self._x0 - self._inverse(c.rows.pull(torch.cat([lam, nu], 1)))
        b, m, p, _ = c.sizes
        return Unknowns(torch.cat([s, lam, nu, x], 1), b, m, p)
