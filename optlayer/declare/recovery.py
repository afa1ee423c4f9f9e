r"""A matrix B(θ) = B₀ + Σ_k θ_k B_k that is known to be affine, as a sparse map, from a few evaluations.

B is met through its products λᵀB(θ) alone, and one gradient gives, for all k at once,

    T_k(λ, v) = ∂/∂θ_k λᵀB(θ)v = λᵀB_k v.

Where θ_k enters a single entry, B_k = c e_i e_jᵀ, and with ι = (1, 2, 3, ...)

    T(1, 1) = c        T(ι, 1) = c i        T(1, ι) = c j,

and for a pair of entries of a symmetric B, B_k = ½c (e_i e_jᵀ + e_j e_iᵀ),

    T(1, 1) = c        T(ι, 1) = ½c (i + j)        T(ι, ι) = c i j.

At random λ and v no other B_k takes the value T_k that these c, i, j predict, but with probability 0: the
recovery proves itself. θ_k that enter several entries are moved: all at once, where no entry of B depends
on two of them; one by one, where they are few; else the matrix stays unsettled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.func import grad, vmap

from optlayer.declare.points import Point
from optlayer.forms.affine import DENSE, AffineMap

SMALL = 2**12  # entries up to which a matrix is evaluated without looking for its structure
CHUNK = 2**20  # entries evaluated at once
LIMIT = 2**25  # entries evaluated in all
MANY = 2**22  # and from which on rows with few entries are looked for
FIRST_PRIME, LAST_PRIME = 31, 600  # into how many cells a row is divided
CROWDED = 0.9  # part of the cells that are taken: more are needed
SETTLED = 1e-12  # relative: of a row that is complete
DISTINCT = 1e3  # times rounding: a number that is none
AGREEMENT = 1e-10  # relative: of sums over all entries
ROUNDING = 1e-14  # relative: what two evaluations of one number may differ by
STEP = 2.0**100  # of a parameter that is moved: so large that B₀ leaves no rounding in the slope


class Unsettled(Exception):
    """The structure is none of those that are looked for, or an evaluation is not finite."""


@dataclass(frozen=True)
class Affine:
    """B(θ), known to be affine in θ. A vector is a matrix with one row."""

    shape: tuple[int, ...]  # as what the map's values are wanted
    rows: int
    columns: int
    product: Callable[..., Tensor]  # (λ (rows,), *theta) -> λᵀB(θ) (columns,)
    symmetric: bool = False

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def form(self, lam: Tensor, v: Tensor, *theta: Tensor) -> Float64[Tensor, ""]:
        """λᵀB(θ)v."""
        return self.product(lam, *theta) @ v

    def times(self, v: Float64[Tensor, " columns"], *theta: Tensor) -> Float64[Tensor, " rows"]:
        """B(θ)v, the gradient of λᵀB(θ)v in λ."""
        return grad(self.form)(torch.zeros(self.rows, dtype=torch.float64), v, *theta)

    def dense(self, rows: Int64[Tensor, " a"], *theta: Tensor) -> Float64[Tensor, "a columns"]:
        """Rows of B(θ)."""
        return vmap(lambda lam: self.product(lam, *theta))(_units(rows, self.rows))


class Entries(NamedTuple):
    """Numbers at ascending positions of an array in C order; 0 elsewhere."""

    places: Int64[Tensor, " nnz"]
    values: Float64[Tensor, " nnz"]

    def at(self, places: Int64[Tensor, " a"]) -> Float64[Tensor, " a"]:
        """The numbers at other positions."""
        if not len(self.places):
            return torch.zeros(len(places), dtype=torch.float64)
        near = torch.searchsorted(self.places, places).clamp_max(len(self.places) - 1)
        return torch.where(self.places[near] == places, self.values[near], 0.0)


class Triplets(NamedTuple):
    """Σ_t coefficient_t θ[position_t] e(place_t)."""

    place: Int64[Tensor, " terms"]
    position: Int64[Tensor, " terms"]
    coefficient: Float64[Tensor, " terms"]

    def __or__(self, other: "Triplets") -> "Triplets":
        if not len(self.place) or not len(other.place):
            return self if len(self.place) else other
        return Triplets(*map(torch.cat, zip(self, other)))


_INDEX, _NUMBER = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
_NO_ENTRIES, _NO_TRIPLETS = Entries(_INDEX, _NUMBER), Triplets(_INDEX, _INDEX, _NUMBER)


def recovered(B: Affine, theta: Point, constant: bool = True, parametric: bool = True) -> AffineMap:
    """B as a map of θ, flattened in C order and concatenated.

    Args:
        B: The matrix.
        theta: Where it can be evaluated.
        constant: Whether B₀ may differ from 0.
        parametric: Whether the B_k may.

    Raises:
        Unsettled: Parameters enter it in too many ways to tell apart, or it is not affine after all.
    """
    if not B.size:
        return _affine_map(B.shape, _NO_ENTRIES, _NO_TRIPLETS)
    terms, rest, origin = _NO_TRIPLETS, _INDEX, theta
    if parametric:
        terms, rest = _Slopes(B, theta).single()
        origin = _zero_where(theta, torch.cat([terms.position, rest]))
    base = entries(B, *origin) if constant else _NO_ENTRIES
    if len(rest):
        terms |= _Moved(B, origin, base, rest).terms()
    _check(B, theta, base, terms)
    return _affine_map(B.shape, base, terms)


def _check(B: Affine, theta: Point, base: Entries, terms: Triplets) -> None:
    """λᵀB(θ)v is what the map makes of it."""
    lam, v = random(B.rows, 4), random(B.columns, 5)

    def weight(place: Int64[Tensor, " a"]) -> Float64[Tensor, " a"]:
        return lam[place // B.columns] * v[place % B.columns]

    flat = torch.cat([_NUMBER, *(t.reshape(-1) for t in theta)])
    slopes = weight(terms.place) * flat[terms.position] * terms.coefficient
    parts = torch.cat([weight(base.places) * base.values, slopes])
    if not (B.form(lam, v, *theta) - parts.sum()).abs() <= AGREEMENT * parts.abs().sum():
        raise Unsettled


# ------------------------------------------------------------------ parameters that enter a single entry


class _Slopes:
    """T(λ, v) for the θ_k that enter B at all."""

    def __init__(self, B: Affine, theta: Point) -> None:
        self._B, self._theta = B, theta
        self._lam, self._v = random(B.rows, 1), random(B.columns, 2)
        value = self._all(self._lam, self._v)
        self._k = value.nonzero().squeeze(1)
        self._value = value[self._k]

    def single(self) -> tuple[Triplets, Int64[Tensor, " b"]]:
        """The terms of those θ_k that enter one entry, or one pair of a symmetric B; the other k."""
        if not len(self._k):
            return _NO_TRIPLETS, _INDEX
        c = self._of(ones(self._B.rows), ones(self._B.columns))
        i, j = self._pair(c) if self._B.symmetric else self._place(c)
        found = (self._value - self._predicted(c, i, j)).abs() <= ROUNDING * c.abs()
        return self._terms(c[found], i[found], j[found], self._k[found]), self._k[~found]

    def _all(self, lam: Tensor, v: Tensor) -> Float64[Tensor, " k"]:
        """T(λ, v), taken where all is defined: it does not depend on θ."""

        def form(*theta: Tensor) -> Tensor:
            return self._B.form(lam, v, *theta)

        slopes = grad(form, argnums=tuple(range(len(self._theta))))(*self._theta)
        return torch.cat([slope.reshape(-1) for slope in slopes])

    def _of(self, lam: Tensor, v: Tensor) -> Float64[Tensor, " a"]:
        return self._all(lam, v)[self._k]

    def _place(self, c: Float64[Tensor, " a"]) -> tuple[Int64[Tensor, " a"], Int64[Tensor, " a"]]:
        """i = T(ι, 1) / c and j = T(1, ι) / c."""
        r, s = self._B.rows, self._B.columns
        i = self._of(iota(r), ones(s)) / c if r > 1 else torch.ones_like(c)
        j = self._of(ones(r), iota(s)) / c if s > 1 else torch.ones_like(c)
        return _index(i, r), _index(j, s)

    def _pair(self, c: Float64[Tensor, " a"]) -> tuple[Int64[Tensor, " a"], Int64[Tensor, " a"]]:
        """The roots i <= j of t² - st + p, with s = i + j = 2 T(ι, 1) / c and p = ij = T(ι, ι) / c."""
        n = self._B.rows
        s = (2 * self._of(iota(n), ones(n)) / c).round()
        p = (self._of(iota(n), iota(n)) / c).round()
        root = (s.square() - 4 * p).clamp_min(0.0).sqrt()
        return _index((s - root) / 2, n), _index((s + root) / 2, n)

    def _predicted(self, c: Tensor, i: Tensor, j: Tensor) -> Float64[Tensor, " a"]:
        """λᵀB_k v."""
        lam, v = self._lam, self._v
        return c * (lam[i] * v[j] + lam[j] * v[i]) / 2 if self._B.symmetric else c * lam[i] * v[j]

    def _terms(self, c: Tensor, i: Tensor, j: Tensor, k: Tensor) -> Triplets:
        """c e_i e_jᵀ, or ½c (e_i e_jᵀ + e_j e_iᵀ)."""
        place = i * self._B.columns + j
        if not self._B.symmetric:
            return Triplets(place, k, c)
        pair = i != j
        mirrored = Triplets((j * self._B.columns + i)[pair], k[pair], c[pair] / 2)
        return Triplets(place, k, torch.where(pair, c / 2, c)) | mirrored


def _zero_where(theta: Point, k: Int64[Tensor, " a"]) -> Point:
    """0 in the parameters that hold one of the θ_k; the others keep values at which all is defined."""
    entering = {leaf for leaf, *_ in _runs(theta, k)}
    return tuple(torch.zeros_like(t) if leaf in entering else t for leaf, t in enumerate(theta))


def _runs(theta: Point, k: Int64[Tensor, " a"]) -> list[tuple[int, Tensor, Tensor]]:
    """For each parameter that holds one of the θ_k: which it is, which of the k, and where inside it."""
    found = []
    starts = accumulate((t.numel() for t in theta), initial=0)
    for leaf, (t, start) in enumerate(zip(theta, starts, strict=False)):
        own = ((k >= start) & (k < start + t.numel())).nonzero().squeeze(1)
        if len(own):
            found.append((leaf, own, k[own] - start))
    return found


# --------------------------------------------------------------------------------- the matrix at one θ


def entries(B: Affine, *theta: Tensor) -> Entries:
    """B(θ) without its zeros: rows with a single entry found all at once, the others one by one."""
    single, rows = _single_rows(B, *theta) if B.rows > 1 and B.size > SMALL else (_NO_ENTRIES, None)
    rows = torch.arange(B.rows) if rows is None else rows
    few, rows = few_entries(B, rows, *theta) if len(rows) * B.columns > MANY else (_NO_ENTRIES, rows)
    if len(rows) * B.columns > LIMIT:
        raise Unsettled
    places, values = [single.places, few.places], [single.values, few.values]
    for some in _chunks(rows, max(B.rows, B.columns)):
        dense = B.dense(some, *theta)
        i, j = dense.nonzero(as_tuple=True)
        places.append(some[i] * B.columns + j)
        values.append(dense[i, j])
    return _ascending(torch.cat(places), _finite(torch.cat(values)))


def _single_rows(B: Affine, *theta: Tensor) -> tuple[Entries, Int64[Tensor, " b"]]:
    """The rows c e_jᵀ: B1 = c, Bι = c j and Bv = c v_j at a random v. Which rows are neither so nor 0."""
    v = random(B.columns, 2)
    c, moved, value = (B.times(w, *theta) for w in (ones(B.columns), iota(B.columns), v))
    j, found = located(c, moved, value, v)
    rows = torch.arange(B.rows)
    empty = (c == 0) & (value == 0)
    return Entries((rows * B.columns + j)[found], c[found]), rows[~found & ~empty]


def located(
    c: Float64[Tensor, " a"], moved: Float64[Tensor, " a"], value: Float64[Tensor, " a"], v: Tensor
) -> tuple[Int64[Tensor, " a"], Bool[Tensor, " a"]]:
    """Which j it is where Σ_j c_j, Σ_j c_j ι_j and Σ_j c_j v_j are sums of one term; where they are."""
    j = _index(moved / c, len(v))
    return j, ((value - c * v[j]).abs() <= ROUNDING * c.abs()) & (c != 0)


# ------------------------------------------------------------------------------- rows with few entries


def few_entries(
    B: Affine, rows: Int64[Tensor, " r"], *theta: Tensor
) -> tuple[Entries, Int64[Tensor, " rest"]]:
    """Rows with few entries each, from a number of products that does not grow with B; the other rows.

    For a prime b, the b products with 1, ι and v on the columns j ≡ 0, 1, ..., b - 1 (mod b) put every entry
    of a row into one of b cells; an entry alone in its cell is `located`. What is found is taken out of the
    cells of every other prime, where more entries are then alone. Two columns share their cells for
    all primes of a product above the number of columns only if they are equal (Chinese remainder theorem).

    A row is settled when what was found of it makes its product with v.
    """
    cells, found, b = _Cells(B, rows, theta), _NO_ENTRIES, FIRST_PRIME
    while b <= LAST_PRIME and len(cells.rows) > 3 * b:  # fewer are evaluated sooner than divided
        crowded = cells.divide(b)
        found = Entries(*(torch.cat(parts) for parts in zip(found, cells.settled())))
        b = _prime(4 * b if crowded else b + 1)
    return _ascending(*found), cells.rows


class _Sums(NamedTuple):
    """What is left in the cells of one prime, (r, b) each."""

    c: Float64[Tensor, "r b"]  # Σ_j c_j
    moved: Float64[Tensor, "r b"]  # Σ_j c_j ι_j
    value: Float64[Tensor, "r b"]  # Σ_j c_j v_j
    taken: Float64[Tensor, "r b"]  # Σ_j |c_j| of what was taken out: what rounding is measured by

    @property
    def noise(self) -> Float64[Tensor, "r b"]:
        return ROUNDING * (self.c.abs() + self.taken)


class _Cells:
    """The unsettled rows, their sums, and what was found of them."""

    def __init__(self, B: Affine, rows: Int64[Tensor, " r"], theta: Point) -> None:
        self.rows = rows
        self._B, self._theta = B, theta
        self._iota, self._v = iota(B.columns), random(B.columns, 2)
        self._target = B.times(self._v, *theta)[rows]
        self._sums: list[_Sums] = []
        self._i, self._j, self._c = _INDEX, _INDEX, _NUMBER  # entries found: row among `rows`, column, number

    def divide(self, b: int) -> bool:
        """Sums over the classes modulo one more prime; whether most of its cells are taken."""
        weights = torch.ones_like(self._v), self._iota, self._v
        c, moved, value = (self._products(b, w) for w in weights)
        fresh = _Sums(c, moved, value, torch.zeros_like(c))
        crowded = float((fresh.c != 0).double().mean()) > CROWDED
        self._sums.append(fresh)
        self._take_out(self._sums[-1:], self._i, self._j, self._c)
        while self._locate():
            pass
        return crowded

    def settled(self) -> Entries:
        """The entries of rows that are complete; these rows are forgotten."""
        own = self._c * self._v[self._j]
        made, size = (torch.zeros_like(self._target).index_add(0, self._i, part) for part in (own, own.abs()))
        done = (made - self._target).abs() <= SETTLED * size
        kept = ~done[self._i]
        places = (self.rows[self._i] * self._B.columns + self._j)[~kept]
        entries = Entries(places, self._c[~kept])
        self._i, self._j, self._c = ((~done).cumsum(0) - 1)[self._i[kept]], self._j[kept], self._c[kept]
        self.rows, self._target = self.rows[~done], self._target[~done]
        self._sums = [_Sums(*(part[~done] for part in sums)) for sums in self._sums]
        return entries

    def _products(self, b: int, weights: Float64[Tensor, " columns"]) -> Float64[Tensor, "r b"]:
        classes = torch.arange(self._B.columns) % b
        columns = []
        for some in _chunks(torch.arange(b), max(self._B.rows, self._B.columns)):
            chosen = torch.where(classes == some[:, None], weights, 0.0)
            columns.append(vmap(lambda w: self._B.times(w, *self._theta))(chosen)[:, self.rows].T)
        return torch.cat(columns, 1).contiguous()

    def _locate(self) -> int:
        """Entries that are alone in a cell now, taken out of all others; how many."""
        count = 0
        for sums in self._sums:
            b = sums.c.shape[1]
            j = _index(sums.moved / sums.c, len(self._v))
            alone = (sums.value - sums.c * self._v[j]).abs() <= sums.noise
            alone &= (sums.c.abs() > DISTINCT * sums.noise) & (j % b == torch.arange(b))
            i, cell = alone.nonzero(as_tuple=True)
            column, c = j[i, cell], sums.c[i, cell]
            self._i, self._j, self._c = (
                torch.cat(p) for p in ((self._i, i), (self._j, column), (self._c, c))
            )
            self._take_out(self._sums, i, column, c)
            count += len(i)
        return count

    def _take_out(self, from_: list[_Sums], i: Tensor, j: Tensor, c: Tensor) -> None:
        for sums in from_:
            place = i * sums.c.shape[1] + j % sums.c.shape[1]
            for part, share in zip(sums, (-c, -c * self._iota[j], -c * self._v[j], c.abs()), strict=True):
                part.view(-1).index_add_(0, place, share)


def _prime(least: int) -> int:
    """The next prime."""
    return next(b for b in range(least, 2 * least + 2) if all(b % k for k in range(2, int(b**0.5) + 1)))


# ------------------------------------------------------------------ parameters that enter several entries


class _Moved:
    """θ_k that are moved: (B(θ⁰ + STEP w) - B(θ⁰)) / STEP = Σ_k w_k B_k, where B(θ⁰) = B₀."""

    def __init__(self, B: Affine, origin: Point, base: Entries, k: Int64[Tensor, " a"]) -> None:
        self._B, self._origin, self._base, self._k = B, origin, base, k
        self._runs = _runs(origin, k)

    def terms(self) -> Triplets:
        """Of all of them at once, where that tells them apart."""
        size = len(self._k)
        v = random(size, 3)
        slopes = [self._slope(w) for w in (ones(size), iota(size), v)]
        place = _union(*(slope.places for slope in slopes))
        c, moved, value = (slope.at(place) for slope in slopes)
        k, found = located(c, moved, value, v)
        told_apart = found.all() and len(k.unique()) == size
        return Triplets(place, self._k[k], c) if told_apart else self._one_by_one()

    def _slope(self, w: Float64[Tensor, " a"]) -> Entries:
        """Σ_k w_k B_k."""
        moved = entries(self._B, *self._at(w))
        places = _union(moved.places, self._base.places)
        values = _slope(moved.at(places), self._base.at(places))
        return Entries(places[values != 0], values[values != 0])

    def _at(self, w: Float64[Tensor, " a"]) -> Point:
        """θ⁰ + STEP w."""
        theta = list(self._origin)
        for leaf, own, inside in self._runs:
            flat = theta[leaf].reshape(-1).index_add(0, inside, STEP * w[own])
            theta[leaf] = flat.reshape(theta[leaf].shape)
        return tuple(theta)

    def _one_by_one(self) -> Triplets:
        """Every B_k as a dense matrix."""
        width = max(self._B.size, *(self._origin[leaf].numel() for leaf, *_ in self._runs))
        if len(self._k) * width > LIMIT:
            raise Unsettled
        everything = torch.arange(self._B.rows)
        base = self._B.dense(everything, *self._origin)
        found = _NO_TRIPLETS
        for some in _chunks(torch.arange(len(self._k)), width):
            dense = vmap(lambda w: self._B.dense(everything, *self._at(w)))(_units(some, len(self._k)))
            slopes = _slope(dense, base).reshape(len(some), -1)
            t, place = slopes.nonzero(as_tuple=True)
            found |= Triplets(place, self._k[some[t]], _finite(slopes[t, place]))
        return found


def _slope(moved: Float64[Tensor, "..."], base: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """(B(θ⁰ + STEP w) - B(θ⁰)) / STEP; what is of the size of B₀ is what B₀ lost beside STEP."""
    change = moved - base
    return torch.where(change.abs() > 4 * base.abs(), change / STEP, 0.0)


# ------------------------------------------------------------------------------------------ small tools


def _affine_map(shape: tuple[int, ...], base: Entries, terms: Triplets) -> AffineMap:
    """The constant and the terms, these in the order of their places."""
    place, position, coefficient = _by_place(terms)
    places = _union(base.places, place)
    constant = base.at(places)
    small = prod(shape) <= DENSE
    dense = torch.zeros(prod(shape) if small else 0, dtype=torch.float64)
    return AffineMap(
        shape=shape,
        places=places,
        constant=constant,
        entry=torch.searchsorted(places, place),
        position=position,
        coefficient=coefficient,
        target=place,
        base=dense.index_copy(0, places, constant).reshape(shape) if small else None,
    )


def _by_place(triplets: Triplets) -> Triplets:
    if _is_ascending(triplets.place):
        return triplets
    order = triplets.place.argsort(stable=True)
    return Triplets(*(part[order] for part in triplets))


def _ascending(places: Int64[Tensor, " nnz"], values: Float64[Tensor, " nnz"]) -> Entries:
    if _is_ascending(places):
        return Entries(places, values)
    order = places.argsort()
    return Entries(places[order], values[order])


def _is_ascending(places: Int64[Tensor, " a"]) -> bool:
    return bool((places[1:] >= places[:-1]).all())


def _union(*places: Int64[Tensor, " _"]) -> Int64[Tensor, " a"]:
    """Each place once, in order."""
    together = torch.cat(places)
    return (together if _is_ascending(together) else together.sort().values).unique_consecutive()


def ones(size: int) -> Float64[Tensor, " size"]:
    """1, 1, 1, ..."""
    return torch.ones(size, dtype=torch.float64)


def iota(size: int) -> Float64[Tensor, " size"]:
    """1, 2, 3, ..."""
    return torch.arange(1.0, size + 1.0, dtype=torch.float64)


def random(size: int, seed: int) -> Float64[Tensor, " size"]:
    """Numbers between 1 and 2, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    return 1.0 + torch.rand(size, generator=generator, dtype=torch.float64)


def _units(chosen: Int64[Tensor, " a"], size: int) -> Float64[Tensor, "a size"]:
    """Rows of the identity."""
    rows = torch.zeros(len(chosen), size, dtype=torch.float64)
    rows[torch.arange(len(chosen)), chosen] = 1.0
    return rows


def _index(numbers: Float64[Tensor, " a"], size: int) -> Int64[Tensor, " a"]:
    """Positions in ι of numbers that are of it; some position for others."""
    return numbers.round().nan_to_num(1.0).clamp(1.0, size).to(torch.int64) - 1


def _chunks(index: Int64[Tensor, " a"], width: int) -> tuple[Tensor, ...]:
    """As many at a time as CHUNK allows, each with so many entries; none where there is nothing."""
    return index.split(max(1, CHUNK // max(width, 1))) if len(index) else ()


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise Unsettled
    return values
