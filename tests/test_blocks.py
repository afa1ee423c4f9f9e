"""The structure of a declared problem, settled at construction, against what torch says at a call."""

import math
import tracemalloc
from dataclasses import fields, replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpy.atoms.elementwise.elementwise import Elementwise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_translate import AFFINE_CASES, Built, Case, _atoms, tensors
from torch.func import grad, jacrev, vmap

from optlayer.declare import recovery
from optlayer.declare.blocks import Blocks, Polynomial, affine_blocks
from optlayer.declare.separable import ELEMENTWISE, separable_hessian
from optlayer.declare.smooth import _on_flat, _stack
from optlayer.declare.translate import RULES, translate

# torch's forward mode compiles its decompositions, by what it deprecates, when it is first used
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

DOUBLE = torch.float64
NAMES = [field.name for field in fields(Blocks)]


def diagonal_hessian(f):
    """(x, *theta) -> the diagonal of ∂²f, one sample, for an f whose Hessian is diagonal: its row sums."""

    def diagonal(x, *theta):
        def slopes(x):
            """Σ_j ∂f/∂x_j."""
            return grad(lambda x: f(x, *theta).reshape(()))(x).sum()

        return grad(slopes)(x)

    return diagonal


class Declared:
    """min f  s.t.  g <= 0, h = 0, as the smooth route hands it on."""

    def __init__(self, variables, parameters, f, g=(), h=()):
        self.variables, self.parameters = variables, parameters
        self.n = sum(v.size for v in variables)
        self.f, self.g, self.h = self._polynomial([f]), self._polynomial(g), self._polynomial(h)

    def _polynomial(self, expressions):
        translated = [translate(e, self.variables, self.parameters) for e in expressions]
        function = _on_flat([v.shape for v in self.variables], _stack([t.function for t in translated]))
        monomials = frozenset().union(*(t.monomials for t in translated))
        return Polynomial(function, sum(e.size for e in expressions), monomials)

    def theta(self, seed=0):
        """Positive numbers."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.rand(p.shape, generator=generator, dtype=DOUBLE) + 0.5 for p in self.parameters)

    def blocks(self):
        return affine_blocks(self.f, self.g, self.h, self.n, self.theta())

    def evaluated(self, theta):
        """The blocks at θ, by torch.func."""
        x = torch.zeros(self.n, dtype=DOUBLE)
        f, g, h = (lambda x, p=p: p.function(x, *theta) for p in (self.f, self.g, self.h))
        scalar = lambda x: f(x).reshape(())
        G, A = (jacrev(c)(x) if len(c(x)) else torch.zeros(0, self.n, dtype=DOUBLE) for c in (g, h))
        return dict(zip(NAMES, (jacrev(grad(scalar))(x), grad(scalar)(x), scalar(x), G, g(x), A, h(x))))

    def promised(self):
        """The blocks that the monomials say are affine in θ."""
        pieces = dict(
            zip(NAMES, [*[(self.f, 2, k) for k in (2, 1, 0)], *self._affine(self.g), *self._affine(self.h)])
        )
        return {name for name, (piece, top, degree) in pieces.items() if _is_affine(piece, top, degree)}

    @staticmethod
    def _affine(piece):
        return (piece, 1, 1), (piece, 1, 0)


def _is_affine(piece, top, degree):
    return piece.degree <= top and all(k <= 1 for own, k in piece.monomials if own == degree)


def flat(theta):
    return torch.cat([torch.zeros(0, dtype=DOUBLE), *(t.reshape(-1) for t in theta)])


def check(declared, theta=None):
    """The maps are the blocks, what they do not store is 0, and those that are promised are there."""
    blocks = declared.blocks()
    theta = declared.theta(seed=1) if theta is None else theta
    assert {name for name in NAMES if getattr(blocks, name) is not None} == declared.promised()
    for name, exact in declared.evaluated(theta).items():
        block = getattr(blocks, name)
        if block is None:
            continue
        scale = float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(block(flat(theta)), exact, rtol=1e-13, atol=1e-14 * scale)
        absent = torch.ones(math.prod(block.shape), dtype=torch.bool)
        absent[block.places] = False
        assert (exact.reshape(-1)[absent] == 0).all(), name
    return blocks


def variable(*shape):
    return cp.Variable(shape)


def parameter(*shape, **attributes):
    return cp.Parameter(shape, **attributes)


# --- every atom, and random declarations ----------------------------------------------------------


@pytest.mark.parametrize("case", AFFINE_CASES, ids=lambda c: c.name)
def test_blocks_of_every_affine_atom(case: Case) -> None:
    built = Built(case)
    g = built.expression
    declared = Declared(built.leaves[:1], built.leaves[1:], cp.sum_squares(g), [g], [cp.vec(g, order="C")])
    check(declared, tensors(built.point())[1:])


RNG = np.random.default_rng(0)
L, E, F = (RNG.standard_normal(shape) for shape in ((3, 4), (4, 4), (3, 4)))

LINEAR = {  # of shape (4,) or (3,), in z (4,), y (2, 2), p (4,), s (), w (2, 2), M (3, 4)
    "one entry each": lambda z, y, p, s, w, M: M @ z,
    "bounds": lambda z, y, p, s, w, M: p - z,
    "scaled": lambda z, y, p, s, w, M: s * z,
    "scaled rows": lambda z, y, p, s, w, M: cp.multiply(p, z) - 2,
    "several into one": lambda z, y, p, s, w, M: E @ p + F.T @ (L @ z),
    "one into several": lambda z, y, p, s, w, M: cp.hstack([M @ z, M @ p * 0 + 1])[:4],
    "differences": lambda z, y, p, s, w, M: (z[1:] - z[:-1]) * 3 - (p[1:] - p[:-1]),
    "running sums": lambda z, y, p, s, w, M: cp.cumsum(z) - cp.cumsum(p),
    "matrices": lambda z, y, p, s, w, M: cp.vec(w @ y - y @ w.T, order="C"),
    "mixed": lambda z, y, p, s, w, M: 0.1 * z + cp.multiply(0.3 + p, z) + (0.7 - s),
    "used twice": lambda z, y, p, s, w, M: M @ z + M[:, ::-1] @ z + M[:, 0],
    "not affine": lambda z, y, p, s, w, M: cp.multiply(cp.exp(p), z),
    "quadratic in θ": lambda z, y, p, s, w, M: s * (M @ z),
    "not affine, but its slope": lambda z, y, p, s, w, M: z - cp.log(p),
    "constant": lambda z, y, p, s, w, M: z[:3] - np.ones(3),
    "no variable": lambda z, y, p, s, w, M: p - 1,
    "no slope in some": lambda z, y, p, s, w, M: cp.hstack([z[0], p[0], 3.0]),
}
CURVED = {
    "projection": lambda z, y, p, s, w, M: cp.sum_squares(z - p),
    "of both": lambda z, y, p, s, w, M: cp.sum_squares(z) + cp.sum_squares(y),
    "weighted": lambda z, y, p, s, w, M: cp.sum(cp.multiply(p, cp.square(z - 1))),
    "scaled": lambda z, y, p, s, w, M: s * cp.sum_squares(L @ z - 1),
    "form": lambda z, y, p, s, w, M: cp.quad_form(cp.vec(y, order="C")[:2], w),
    "form and more": lambda z, y, p, s, w, M: (
        cp.quad_form(y[0], w) + cp.sum_squares(y) + w[0, 1] * cp.square(z[0])
    ),
    "factor": lambda z, y, p, s, w, M: cp.sum_squares(M @ z),
    "divided": lambda z, y, p, s, w, M: cp.sum_squares(z) / s + p @ z,
    "linear": lambda z, y, p, s, w, M: p @ z + cp.trace(w @ y) + s,
    "linear through a constant": lambda z, y, p, s, w, M: (E @ p) @ z + cp.sum(p),
    "nothing": lambda z, y, p, s, w, M: cp.Constant(1.0),
    "not quadratic": lambda z, y, p, s, w, M: cp.sum(cp.exp(z)) + p @ z,
}


def posed(curved, inequalities, equalities=()):
    """A declaration of pieces by name."""
    variables = [variable(4), variable(2, 2)]
    parameters = [parameter(4, pos=True), parameter(pos=True), parameter(2, 2, PSD=True), parameter(3, 4)]
    leaves = [*variables, *parameters]
    f = sum(CURVED[name](*leaves) for name in curved)
    g, h = ([LINEAR[name](*leaves) for name in names] for names in (inequalities, equalities))
    return Declared(variables, parameters, f, g, h)


@pytest.mark.parametrize("name", LINEAR)
def test_blocks_of_one_constraint(name):
    check(posed(["nothing"], [name]))


@pytest.mark.parametrize("name", CURVED)
def test_blocks_of_one_objective(name):
    check(posed([name], []))


some = lambda table, least: st.lists(st.sampled_from(sorted(table)), min_size=least, max_size=3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(some(CURVED, 1), some(LINEAR, 0), some(LINEAR, 0))
def test_blocks_of_random_declarations(curved, inequalities, equalities):
    check(posed(curved, inequalities, equalities))


@pytest.mark.parametrize("limit", [0, 10**9], ids=["by structure", "evaluated"])
@pytest.mark.parametrize("names", [sorted(CURVED), *[[name] for name in CURVED]], ids=lambda n: n[0])
def test_large_and_small_blocks_are_met_alike(names, limit, monkeypatch):
    """What is looked for in large blocks alone is found in small ones too, and is the same."""
    monkeypatch.setattr(recovery, "SMALL", limit)
    monkeypatch.setattr(recovery, "CHUNK", 7)
    check(posed(names, ["one entry each", "bounds", "mixed", "differences"], ["constant"]))


# --- exactness, and what is not promised ----------------------------------------------------------


def test_constants_are_constant_and_sparse():
    z, x = variable(50), parameter(50)
    blocks = check(Declared([z], [x], cp.sum_squares(z - x), [-z, z[1:] - z[:-1]], [cp.sum(z) - 1]))
    assert [getattr(blocks, name).is_constant for name in ("P", "G", "g0", "A", "h0")] == [True] * 5
    assert [len(getattr(blocks, name).places) for name in ("P", "G", "g0", "A", "h0")] == [50, 148, 0, 50, 1]
    assert len(blocks.q.entry) == len(blocks.q.places) == 50
    assert blocks.d is None


def test_a_slope_beside_a_large_constant_is_exact():
    z, s = variable(2), parameter()
    blocks = Declared([z], [s], cp.Constant(0.0), [(1e8 + 1e-8 * s) * z]).blocks()
    assert blocks.G.coefficient.tolist() == [1e-8, 1e-8]
    assert blocks.G.constant.tolist() == [1e8, 1e8]


def test_slopes_that_cancel_are_none():
    z, y, s = variable(), variable(2), parameter()
    blocks = check(Declared([z, y], [s], cp.Constant(0.0), [(s + 1) * z - s * z, s * y]))
    assert blocks.G.constant.tolist() == [1, 0, 0]
    assert blocks.G.position.tolist() == [0, 0]


def test_undefined_at_zero_is_left_to_the_call():
    z, s = variable(4), parameter(pos=True)
    blocks = Declared([z], [s], cp.sum_squares(z) / s + (s + 1) * cp.sum(z)).blocks()
    assert blocks.P is None
    assert blocks.q is None


def test_a_parameter_at_which_nothing_is_defined_at_zero():
    """q holds x alone, but at θ = 0 the gradient of |z|²/s is 0/0."""
    blocks = posed(["divided"], []).blocks()
    assert blocks.P is None
    assert not blocks.q.constant.any()
    assert blocks.q.position.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("factor", [cp.square, cp.exp], ids=["square", "exp"])
def test_a_wrong_promise_is_found_out(factor):
    """Terms that say affine where it is not."""
    z, s = variable(3), parameter()
    declared = Declared([z], [s], cp.Constant(0.0), [factor(s) * z[:2] + z[1:]])
    assert declared.blocks().G is None
    declared.g = replace(declared.g, monomials=frozenset({(1, 0), (1, 1)}))
    assert declared.blocks().G is None


def test_without_parameters_and_without_constraints():
    z = variable(3)
    blocks = check(Declared([z], [], cp.sum_squares(z) + cp.sum(z)))
    assert (blocks.G.shape, blocks.g0.shape, blocks.A.shape, blocks.h0.shape) == ((0, 3), (0,), (0, 3), (0,))


def test_too_many_ways_are_left_to_the_call(monkeypatch):
    """Where telling the parameters apart would cost too much, there is no map."""
    z, p = variable(4), parameter(4)
    declared = Declared([z], [p], cp.sum_squares(E @ z), [cp.cumsum(p) + z])
    assert declared.blocks().g0 is not None
    assert declared.blocks().P is not None
    monkeypatch.setattr(recovery, "LIMIT", 11)
    blocks = declared.blocks()
    assert blocks.g0 is None
    assert blocks.P is None


def test_a_matrix_of_a_million_parameters():
    """A term for every parameter, and nothing of a million squared."""
    n = 1000
    z, x, G, h = variable(n), parameter(n), parameter(n, n), parameter(n)
    declared = Declared([z], [x, G, h], cp.sum_squares(z - x), [G @ z - h, -z], [cp.sum(z) - 1])
    tracemalloc.start()  # sees numpy's memory, not torch's: that is counted in what is kept
    blocks = declared.blocks()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6
    kept = {
        name: (len(getattr(blocks, name).places), len(getattr(blocks, name).entry))
        for name in NAMES
        if name != "d"
    }
    assert kept == {
        "P": (n, 0),
        "q": (n, n),
        "G": (n * n + n, n * n),
        "g0": (n, n),
        "A": (n, 0),
        "h0": (1, 0),
    }
    theta = declared.theta(seed=3)
    torch.testing.assert_close(blocks.G(flat(theta))[:n], theta[1], rtol=0, atol=0)
    torch.testing.assert_close(blocks.q(flat(theta)), -2 * theta[0], rtol=0, atol=0)


def test_twenty_thousand_coordinates():
    """Their matrices are never written down."""
    n = 20_000
    z, x, s = variable(n), parameter(n), parameter()
    declared = Declared([z], [x, s], s * cp.sum_squares(z) - x @ z, [-z, z - 1], [cp.sum(z) - 1])
    blocks = declared.blocks()
    assert (len(blocks.P.places), len(blocks.P.entry), len(blocks.G.places)) == (n, n, 2 * n)
    assert (blocks.P.places == torch.arange(n) * (n + 1)).all()
    assert (blocks.P.coefficient == 2).all()


# --- separable objectives -------------------------------------------------------------------------

N = 4
Z, Y, W = variable(N), variable(2, 3), variable()
X, S, Q, K = parameter(N), parameter(pos=True), parameter(N, N), parameter(N, N, PSD=True)
D = np.diag([1.0, 2.0, 0.0, 4.0])
PERMUTED = D[[2, 0, 3, 1]]
DENSE = RNG.standard_normal((N, N))

SEPARABLE = {
    "softmax": -X @ Z - cp.sum(cp.entr(Z)),
    "entropic transport": cp.sum(cp.multiply(RNG.random((2, 3)), Y)) - S * cp.sum(cp.entr(Y)),
    "projection": cp.sum_squares(Z - X),
    "logistic": cp.sum(cp.logistic(Z)),
    "square": cp.sum(Z**2),
    "inv_pos": cp.sum(cp.inv_pos(Z)),
    "kl_div": cp.sum(cp.kl_div(Z, cp.exp(X))),
    "weighted": cp.sum(cp.multiply(cp.exp(X), cp.square(Z))) / S,
    "scaled inside": cp.sum_squares(cp.multiply(cp.exp(X), Z) / S),
    "reordered": cp.sum(cp.exp(cp.hstack([Z[::-1], cp.vec(Y.T, order="F"), 2 * W - 1]))),
    "permuted": cp.sum(cp.logistic(PERMUTED @ Z)) + X @ (DENSE @ Z),
    "nested": cp.sum(cp.exp(cp.square(Z) + Z)),
    "diagonal form": cp.quad_form(Z, cp.Constant(D)),
    "diagonal form of a parameter": cp.quad_form(Z, cp.diag(cp.square(X))),
    "both arguments": cp.sum(cp.rel_entr(Z, 1 + Z)),
    "log of each": -cp.sum(cp.log(Z)) + cp.sum_squares(Y) + W**4,
    "affine": X @ Z + cp.sum(DENSE @ Z),
    "huber": cp.sum(cp.huber(Z - X, S)),
    "over a parameter": cp.quad_over_lin(Z, S),
    "parameters only": cp.norm1(X) + cp.quad_form(X, K),
    "norm of parameters": cp.norm1(X) * cp.sum_squares(Z),
    "by columns": cp.sum(cp.quad_over_lin(Y, 2, axis=0)),
    "spread out": cp.sum_squares(cp.diag(Z) @ DENSE),
    "one of them": cp.square(Z[0]) + cp.exp(Z[1]) + cp.exp(3 * Z[1] - Z[1]),
}
MIXED = {
    "logistic of products": cp.sum(cp.logistic(Q @ Z)),
    "logistic of constant products": cp.sum(cp.logistic(DENSE @ Z)),
    "log_det": -cp.log_det(cp.diag(Z)),
    "dense form": cp.quad_form(Z, K),
    "dense constant form": cp.quad_form(Z, cp.psd_wrap(DENSE.T @ DENSE)),
    "factor": cp.sum_squares(DENSE @ Z),
    "factor of parameters": cp.sum_squares(Q @ Z),
    "logistic of a sum": cp.logistic(Z[0] + Z[1]),
    "variable denominator": cp.quad_over_lin(Z[1:], Z[0]),
    "log_sum_exp": cp.log_sum_exp(Z),
    "function of a sum of functions": cp.exp(cp.sum_squares(Z)),
    "two variables": cp.sum(cp.rel_entr(Z[:2], Z[2:])),
    "differences": cp.sum_squares(Z[1:] - Z[:-1]),
    "square of a total": cp.square(cp.sum(Z)),
    "one entry is mixed": cp.sum_squares(cp.hstack([Z[0], Z[1] + W])),
    "geometric mean": -cp.geo_mean(Z),
    "variance": cp.var(Z),
    "hidden in an unlikely value": cp.square(Z[0] + cp.pos(S - 1e6) * Z[1]),
    "cumulated": cp.sum(cp.exp(cp.cumsum(Z))),
    "product": Z[0] * Z[1],
    "reciprocal of a sum": X[0] / (Z[0] + Z[1]),
    "functions of one that look alike": cp.square(
        np.array([1.0, -1.0, 1.0]) @ cp.hstack([cp.exp(Z[0]), Z[0], Z[1]])
    ),
    "undefined": cp.sum_squares(cp.multiply(X / (X - X), Z) + Z[::-1]),
    "nearly alone": cp.square(Z[0] + 1e-8 * Z[1]),
}
LEAVES = [Z, Y, W], [X, S, Q, K]


def hessian(expression, seed):
    """At random positive points, with a sample of everything."""
    rng = np.random.default_rng(seed)
    translation = translate(expression, *LEAVES)
    f = _on_flat([v.shape for v in LEAVES[0]], translation.function)
    x = torch.tensor(rng.uniform(0.3, 1.0, sum(v.size for v in LEAVES[0])))
    theta = tuple(torch.tensor(rng.uniform(0.3, 1.0, p.shape)) for p in LEAVES[1])
    return f, x, theta


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable(name):
    """And then its Hessian is diagonal, and its diagonal is what one product gives."""
    assert separable_hessian(SEPARABLE[name], *LEAVES)
    for seed in range(3):
        f, x, theta = hessian(SEPARABLE[name], seed)
        H = jacrev(grad(lambda x, f=f, theta=theta: f(x, *theta).reshape(())))(x)
        torch.testing.assert_close(H, torch.diag(H.diagonal()), rtol=0, atol=1e-15)
        torch.testing.assert_close(diagonal_hessian(f)(x, *theta), H.diagonal(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", MIXED)
def test_not_separable(name):
    assert not separable_hessian(MIXED[name], *LEAVES)


def test_the_diagonal_composes():
    """Batched and differentiated, as the Hessian is."""
    f, x, theta = hessian(SEPARABLE["softmax"] + SEPARABLE["nested"], 0)
    X = torch.stack([x, 2 * x, 3 * x])
    full = lambda x: jacrev(grad(lambda x: f(x, *theta).reshape(())))(x).diagonal()
    mine = lambda x: diagonal_hessian(f)(x, *theta)
    torch.testing.assert_close(vmap(mine)(X), vmap(full)(X))
    torch.testing.assert_close(vmap(jacrev(mine))(X), vmap(jacrev(full))(X))


def test_elementwise_atoms_are_elementwise():
    """Each is one of cvxpy's own, and translated."""
    assert {c.__name__ for c in _atoms(Elementwise)} >= ELEMENTWISE
    assert set(RULES) >= ELEMENTWISE
