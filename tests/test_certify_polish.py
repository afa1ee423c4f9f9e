"""The certificate tells right from wrong at every scale; polish turns rough points into exact ones."""

import math
from types import SimpleNamespace

import cvxpy as cp
import pytest
import torch

from optlayer import certify
from optlayer.cones import Nonnegative, Product, SecondOrder
from optlayer.declare.declaration import Declaration
from optlayer.declare.problem import ProblemDeclaration
from optlayer.declare.routes import compile_declaration
from optlayer.doubts import _ran_away
from optlayer.forms import Local, Point
from optlayer.forms.kkt import Instance
from optlayer.matrix import Dense
from optlayer.newton import Iterate, Search, _shifts, begin
from optlayer.polish import (
    LONG,
    Polished,
    _after,
    _ahead,
    _moves,
    _negligible,
    _on_bounds,
    _to_rest,
    polish,
    restlessness,
    settle,
)

DOUBLE = torch.float64


def instance(n, objective, inequalities=(), equalities=(), theta=(), shapes=((3,),)) -> Instance:
    parameters = tuple(cp.Parameter(shape) for shape in shapes)
    declaration = Declaration(
        (cp.Variable(n),), parameters, objective, tuple(inequalities), tuple(equalities)
    )
    theta = tuple(torch.as_tensor(t, dtype=DOUBLE)[None] for t in theta)
    return Instance(compile_declaration(declaration, "auto").form, theta, 1)


def simplex_projection(x, scale=1.0) -> Instance:
    """z = 0 is where a coordinate of x is low; the answer for (1, 0.2, -1) is (0.9, 0.1, 0)."""
    return instance(
        3,
        lambda z, x: scale * cp.sum_squares(z - x),
        [lambda z, x: -z],
        [lambda z, x: cp.sum(z) - cp.sum(x) / 0.2],
        [x],
    )


X = torch.tensor([1.0, 0.2, -1.0], dtype=DOUBLE)
Z = torch.tensor([[0.9, 0.1, 0.0]], dtype=DOUBLE)
LAM = torch.tensor([[0.0, 0.0, 2.2]], dtype=DOUBLE)
NU = torch.tensor([[0.2]], dtype=DOUBLE)


def worst(problem: Instance, point: Point) -> float:
    at = problem.at(point)
    return certify.residuals(at, point, certify.scales(at, point, problem.unit)).worst.item()


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0, 1e6, 1e9])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_certificate_does_not_depend_on_units(size, scale):
    """Neither on the unit of x nor on that of the objective: no absolute threshold anywhere."""
    problem = simplex_projection(size * X, scale)
    unit = size * scale
    right = Point(size * Z, unit * LAM, unit * NU)
    assert worst(problem, right) < 1e-12
    for wrong in (
        Point(size * (Z + torch.tensor([[1e-6, -1e-6, 0.0]], dtype=DOUBLE)), unit * LAM, unit * NU),
        Point(size * (Z + torch.tensor([[1e-6, 0.0, 0.0]], dtype=DOUBLE)), unit * LAM, unit * NU),
        Point(size * Z, unit * (LAM + 1e-6), unit * NU),
        Point(size * Z, unit * LAM, unit * NU * (1 + 1e-5)),
    ):
        assert worst(problem, wrong) > 1e-7


def test_a_coordinate_that_is_small_is_judged_by_its_own_size():
    """min |z - x|² with x = (1, 1e-10): a tenth off in the small coordinate is a tenth off."""
    x = torch.tensor([1.0, 1e-10], dtype=DOUBLE)
    problem = instance(2, lambda z, x: cp.sum_squares(z - x), theta=[x], shapes=((2,),))
    none = torch.zeros(1, 0, dtype=DOUBLE)
    assert worst(problem, Point(x[None], none, none)) == 0.0
    assert worst(problem, Point(x[None] * torch.tensor([1.0, 1.1]), none, none)) > 1e-6


def test_each_residual_sees_its_own_fault():
    problem = simplex_projection(X)

    def rows(x, lam, nu):
        point = Point(x, lam, nu)
        at = problem.at(point)
        return certify.residuals(at, point, certify.scales(at, point))

    assert rows(Z, LAM + 0.1, NU).stationarity > 1e-2
    assert rows(Z + 0.1, LAM, NU).primal > 1e-2
    assert rows(Z - torch.tensor([0.0, 0.0, 0.1]), LAM, NU).primal > 1e-2
    assert rows(Z, -LAM, NU).dual > 1e-2
    assert rows(Z, LAM + torch.tensor([0.1, 0.0, 0.0]), NU).complementarity > 1e-2
    assert rows(Z, LAM, NU).worst < 1e-15


def test_a_point_that_is_no_number_never_passes():
    nan = torch.full((1, 3), torch.nan, dtype=DOUBLE)
    assert not worst(simplex_projection(X), Point(nan, LAM, NU)) <= 1e-8


@pytest.mark.parametrize(
    "start",
    [
        Point(Z + 1e-4, LAM + 1e-4, NU),
        Point(Z + 0.3, 0 * LAM, 0 * NU),  # every inequality inactive
        Point(0 * Z, LAM + 5.0, NU),  # every inequality active: K is singular
        Point(-Z, LAM.flip(1), NU),  # the wrong one active
    ],
)
def test_polish_repairs_wrong_active_sets(start):
    polished = polish(simplex_projection(X), start)
    assert (polished.point.x - Z).abs().max() < 1e-14
    assert (polished.point.lam - LAM).abs().max() < 1e-13
    assert (polished.point.nu - NU).abs().max() < 1e-13
    assert not polished.kink


def test_polish_never_worsens_an_answer():
    polished = polish(simplex_projection(X), Point(Z, LAM, NU))
    assert worst(simplex_projection(X), polished.point) < 1e-15


def softmax(logits) -> Instance:
    return instance(
        len(logits),
        lambda z, x: -x @ z - cp.sum(cp.entr(z)),
        equalities=[lambda z, x: cp.sum(z) - 1],
        theta=[logits],
        shapes=((len(logits),),),
    )


@pytest.mark.parametrize("spread", [1.0, 50.0, 400.0])
@pytest.mark.parametrize("floor", [1e-9, 1e-6, 0.0, -1e-10])
def test_entropies_are_polished_from_what_engines_return(spread, floor):
    """Steps in the logarithm: z = e^-400 is reached from 1e-9, and from outside the domain."""
    x = spread * torch.tensor([0.0, -0.5, -1.0, 0.2], dtype=DOUBLE)
    expected = torch.softmax(x, 0)
    rough = torch.where(expected > 1e-9, expected * (1 + 1e-6), floor)
    nu = torch.logsumexp(x, 0).reshape(1, 1) - 1 + 1e-5
    polished = polish(softmax(x), Point(rough[None], torch.zeros(1, 0, dtype=DOUBLE), nu))
    assert ((polished.point.x[0] - expected).abs() <= 1e-11 * expected + 1e-300).all()


def test_a_weakly_active_constraint_is_snapped_to_the_kink():
    """min (z - 0)² s.t. z >= 0: multiplier and slack vanish together."""
    problem = instance(
        1, lambda z, x: cp.sum_squares(z - x), [lambda z, x: -z], theta=[[0.0]], shapes=((1,),)
    )
    zero = torch.zeros(1, 1, dtype=DOUBLE)
    polished = polish(problem, Point(zero + 1e-9, zero + 1e-9, zero[:, :0]))
    assert polished.kink
    assert polished.u[0, 1] == 0.0


def test_frozen_samples_do_not_move():
    """A sample that is solved stays bitwise as it is while its neighbours go on."""
    theta = torch.stack([X, 3 * X])
    form = simplex_projection(X).form
    rough = Point(torch.cat([Z, 0 * Z]), torch.cat([LAM, 0 * LAM]), torch.cat([NU, 0 * NU]))
    both = polish(Instance(form, (theta,), 2), rough)
    easy = Point(torch.cat([Z, 3 * Z]), torch.cat([LAM, 3 * LAM]), torch.cat([NU, 3 * NU]))
    other = polish(Instance(form, (theta,), 2), easy)
    assert torch.equal(both.u[0], other.u[0])
    assert (both.point.x[1] - 3 * Z[0]).abs().max() < 1e-13


def test_the_rows_of_a_cone_share_one_scale():
    """Divided by different numbers, a vector of a cone need not be in the cone any more."""
    z, x, t = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.norm2(z - x)), [cp.norm2(cp.multiply(z, x)) <= t])
    form = compile_declaration(ProblemDeclaration.of(problem), "cone").form
    case = Instance(form, (torch.tensor([[1.0, 1e-3, 1e3]], dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)), 1)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, form.size, generator=generator, dtype=DOUBLE)
    point = form.recover(u, torch.ones(1, form.m, dtype=DOUBLE))
    scale = certify.scales(case.at(point), point)
    moved = case.sensitivity(u, scale.tau)
    scale = scale.plus(moved, moved, form.dual)
    for rows in (scale.inequality, scale.multiplier, scale.slack, scale.tau):
        assert torch.equal(rows, form.dual.over_blocks(rows))
    assert not torch.equal(case.sensitivity(u, scale.tau)[:, form.n : form.n + form.m], scale.inequality)


def conic() -> Instance:
    """A distance in a ball and on a plane: variables that are not the user's, two cones, an equality."""
    z, x, t = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.norm2(z - x) + 0.1 * cp.sum(z)), [cp.norm2(z) <= t, cp.sum(z) == 0.5])
    form = compile_declaration(ProblemDeclaration.of(problem), "cone").form
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.1, -0.3]], dtype=DOUBLE)
    return Instance(form, (x, torch.ones(2, dtype=DOUBLE)), 2)


def noisy(point: Point, size: float) -> Point:
    r = torch.Generator().manual_seed(0)
    return Point(*(part + size * torch.randn(part.shape, generator=r, dtype=DOUBLE) for part in point))


def solved() -> tuple[Instance, Polished]:
    problem = conic()
    found = polish(problem, noisy(problem.nowhere, 1.0), patience=LONG)
    assert (found.merit < 1e-12).all()
    return problem, found


def test_the_step_ahead_is_newton_s():
    """0 at a solution; from nearby, in another unit of v, it leaves the square of the distance."""
    problem, exact = solved()
    assert torch.cat(_ahead(problem, exact)[:3], 1).abs().max() < 1e-11
    near = settle(problem, noisy(exact.point, 1e-5))
    search, _, _ = begin(problem, noisy(exact.point, 1e2))
    after = _after(search, near, _ahead(problem, near))
    assert not torch.equal(search.tau, near.tau)
    assert (near.point.x - exact.point.x).abs().max() > 1e-6
    for found, right in zip(search.point(after), exact.point):
        assert (found - right).abs().max() < 1e-7


def test_what_a_step_moves():
    problem, exact = solved()
    step = _ahead(problem, exact)
    still = step._replace(x=0 * step.x, v=0 * step.v)
    assert not _moves(problem, exact, still).any()
    v = problem.form.split(exact.u)[1]
    for part, size in (("x", exact.point.x.abs()), ("v", problem.form.dual.over_blocks(v.abs()))):
        for times, moves in ((2.0, True), (0.5, False)):
            moved = getattr(still, part).clone()
            moved[1, 0] = times * 1e-11 * size[1, 0]
            assert _moves(problem, exact, still._replace(**{part: moved})).tolist() == [False, moves]


def test_a_last_step_is_taken_where_only_the_step_still_says_something():
    """Where the merit is rounding and the step would move x; nowhere else."""
    problem, exact = solved()
    search, _, near = begin(problem, noisy(exact.point, 1e-9))
    settled = settle(problem, search.point(near))
    done = _to_rest(search, near._replace(merit=torch.tensor([1e-13, 1e-6], dtype=DOUBLE)), settled)
    far = (settled.point.x - exact.point.x).abs().amax(1)
    left = (done.point.x - exact.point.x).abs().amax(1)
    assert (far > 1e-10).all()
    assert left[0] < 1e-13
    assert left[1] > 1e-10
    stays = _to_rest(search, near._replace(merit=torch.full((2,), 1e-6, dtype=DOUBLE)), settled)
    assert torch.equal(stays.point.x, settled.point.x)
    assert torch.equal(stays.ahead.x, _ahead(problem, settled).x)


def test_restlessness_is_a_share_of_the_user_s_x():
    problem, exact = solved()
    near = settle(problem, noisy(exact.point, 1e-5))
    seen, step = problem.form.seen, _ahead(problem, near).x
    for k in range(2):
        share = step[k, seen].abs().max() / near.point.x[k, seen].abs().max()
        assert restlessness(problem, near)[k].item() == pytest.approx(share.item())


@pytest.mark.parametrize("worst_rows", ["stationarity", "inequality", "equality"])
def test_the_merit_is_the_worst_relative_row_of_the_normal_map(worst_rows):
    at, point = made_up(auxiliary=False, large="f")
    everywhere = SimpleNamespace(borders=SimpleNamespace(holds=lambda x: torch.ones(2, dtype=torch.bool)))
    tau, length = torch.full((2, 4), 2.0, dtype=DOUBLE), torch.full((2, 5), 1e6, dtype=DOUBLE)
    handed = torch.full((2, 5), 0.3 if worst_rows == "stationarity" else 1e30, dtype=DOUBLE)
    v = torch.linspace(-1, 2, 8, dtype=DOUBLE).view(2, 4)
    projected = at.dual.nearest(v)
    if worst_rows != "inequality":
        at = at._replace(g=v - projected)
    if worst_rows != "equality":
        at = at._replace(h=torch.zeros(2, 2, dtype=DOUBLE))
    terms, inequality, equality = certify.sizes(at, Point(point.x, projected / tau, point.nu))[:3]
    rows = {
        "stationarity": certify.stationarity(at, projected / tau, point.nu)
        / (terms + handed + 1e-7 * terms.amax(1, keepdim=True)),
        "inequality": (at.g - v + projected) / at.dual.over_blocks(inequality + 1e-7 * (at.G.abs @ length)),
        "equality": at.h / (equality + 1e-7 * (at.A.abs @ length)),
    }
    found = Search(everywhere, tau, length, handed).merit(
        at, Iterate(point.x, v, point.nu, projected, torch.zeros(2, dtype=DOUBLE))
    )
    assert torch.allclose(found, rows[worst_rows].abs().amax(1), rtol=1e-12, atol=0.0)


def test_ties_are_small_in_both_units():
    """An inequality with λ > 0 must have g small too, and then λ; any other row v, in the unit of g."""
    at, point = made_up(auxiliary=False)
    at = at._replace(dual=Product((Nonnegative(2), SecondOrder(2))))
    scale = certify.scales(at, point)
    tie = 1e-10 * scale.slack
    multiplier = 3.0 * torch.maximum(1e-10 * scale.multiplier, scale.rounding)
    lam = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]], dtype=DOUBLE)
    g = torch.stack([tie[0], 2 * tie[1]])
    found = _negligible(at._replace(g=g), point._replace(lam=lam), scale, torch.full_like(g, 3.0))
    expected = torch.stack([torch.cat([multiplier[0, :2], tie[0, 2:]]), tie[1]])
    expected[1, 1] = 0.0
    assert torch.equal(found, expected)


def test_an_active_bound_is_met_without_rounding():
    problem = simplex_projection(X)
    settled = settle(problem, Point(Z + torch.tensor([0.0, 0.0, 1e-17]), LAM, NU))
    assert settled.point.x[0, 2] == 0.0
    assert torch.equal(settled.point.x[:, :2], Z[:, :2])


def test_what_active_bounds_hold_is_put_there():
    """Rows of one coordinate with λ > 0 alone, each in its unit: no others, none that is slack, no cone's."""
    at, point = made_up(auxiliary=False)
    G = torch.zeros(2, 5, 5, dtype=DOUBLE)
    G[:, 0, 2], G[:, 1, :2], G[:, 2, 3], G[:, 3, 4] = 4.0, 1.0, -2.0, 1.0
    at = at._replace(G=Dense(G), g=torch.ones(2, 5, dtype=DOUBLE))
    at = at._replace(dual=Product((Nonnegative(3), SecondOrder(2))))
    lam = torch.tensor([[0.5, 0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 1.0, 0.5]], dtype=DOUBLE)
    moved = _on_bounds(at, point._replace(lam=lam), polyhedral=False) - point.x
    expected = torch.zeros(2, 5, dtype=DOUBLE)
    expected[0, 2], expected[1, 3] = -0.25, 0.5
    assert torch.allclose(moved, expected, rtol=1e-12, atol=1e-12)


def test_what_many_steps_leave_of_nothing_is_nothing():
    """In quadratic programmes over polyhedra: 1e-36 beside 1e5, on either side of 0; not 1e-34."""
    at, point = made_up(auxiliary=False)
    x = torch.tensor([[1e5, 1e-36, -1e-36, 1e-34, -1e-34], [0.0, 1.0, -1.0, 1e-41, 0.1]], dtype=DOUBLE)
    expected = torch.tensor([[1e5, 0.0, 0.0, 1e-34, -1e-34], [0.0, 1.0, -1.0, 0.0, 0.1]], dtype=DOUBLE)
    slack = Point(x, torch.zeros_like(point.lam), point.nu)
    assert torch.equal(_on_bounds(at, slack, polyhedral=True), expected)
    assert torch.equal(_on_bounds(at, slack, polyhedral=False), x)


def test_proximal_shifts_are_in_the_units_of_their_blocks():
    at, _ = made_up(auxiliary=False)
    primal, dual = _shifts(at, torch.tensor([1e-5, 7.0], dtype=DOUBLE))
    H = [at.hessian.dense()[0].abs().max().item(), 1.0]
    E = [torch.cat([at.G.dense(), at.A.dense()], 1)[k].abs().max().item() for k in range(2)]
    for k, delta in enumerate((1e-5, 1e-2)):
        assert primal[k].tolist() == pytest.approx([delta * H[k]])
        assert dual[k].tolist() == pytest.approx([delta * E[k] ** 2 / H[k]])


def test_steps_are_halved_until_they_stay_in_the_domain():
    """min -log(1 - z²) - 200z from 0: the first step is 100, the answer below 1."""
    problem = instance(
        1, lambda z, x: -cp.sum(cp.log(1 - cp.square(z))) - x @ z, theta=[[200.0]], shapes=((1,),)
    )
    zero = torch.zeros(1, 1, dtype=DOUBLE)
    polished = polish(problem, Point(zero, zero[:, :0], zero[:, :0]), patience=LONG)
    assert polished.point.x.item() == pytest.approx((math.sqrt(1 + 200.0**2) - 1) / 200.0, rel=1e-12)


def steps_of(monkeypatch, problem: Instance, start: Point) -> int:
    taken, step = [], Search.step
    monkeypatch.setattr(Search, "step", lambda *arguments: taken.append(1) or step(*arguments))
    polish(problem, start, patience=4)
    return len(taken)


def test_patience_is_how_many_steps_may_gain_nothing(monkeypatch):
    """z = 1 and z = 1.01 at once: no step helps."""
    problem = instance(
        1,
        lambda z, x: cp.sum_squares(z - x),
        equalities=[lambda z, x: z - 1, lambda z, x: z - 1.01],
        theta=[[0.3]],
        shapes=((1,),),
    )
    zero = torch.zeros(1, 1, dtype=DOUBLE)
    assert steps_of(monkeypatch, problem, Point(zero, zero[:, :0], zero.expand(1, 2))) in range(4, 10)


def test_one_more_step_is_taken_where_rounding_is_reached(monkeypatch):
    near = Point(Z * (1 + 3e-13), LAM, NU)
    assert 2e-14 < begin(simplex_projection(X), near)[2].merit.item() < 1e-12
    assert steps_of(monkeypatch, simplex_projection(X), near) == 1


def test_what_is_known_of_the_polished_point_is_of_that_point(monkeypatch):
    """Not of the last one, which may be worse: here every step is."""
    problem, step = simplex_projection(X), Search.step

    def worse(search, now, at, running):
        now, _, reduced = step(search, now, at, running)
        now = now._replace(x=now.x + 1.0, merit=now.merit + 1.0)
        return now, problem.at(search.point(now)), reduced

    monkeypatch.setattr(Search, "step", worse)
    polished = polish(problem, Point(Z + 0.1, LAM, NU))
    assert (polished.point.x - Z).abs().max() <= 0.1 + 1e-12
    for part in ("gradient", "g", "h"):
        assert torch.equal(getattr(polished.at, part), getattr(problem.at(polished.point), part))


def test_points_beyond_all_numbers_are_not_believed():
    """x of 1e200 makes any row relative: what Newton's method sends there has left the problem."""
    problem = simplex_projection(X)
    believed = torch.zeros(len(Z), dtype=torch.bool)
    assert not _ran_away(problem, Z, Point(Z, LAM, NU), believed).any()
    assert _ran_away(problem, Z, Point(1e200 * Z, LAM, NU), believed).all()
    assert _ran_away(problem, Z, Point(Z, LAM, 1e200 * NU), believed).all()


def test_a_point_far_from_a_doubted_answer_is_not_believed():
    """1e18 where the data are of size 1, from an engine that did not converge."""
    problem, far = simplex_projection(X), Point(1e18 * Z, LAM, NU)
    doubted = torch.ones(len(Z), dtype=torch.bool)
    assert _ran_away(problem, Z, far, doubted).all()
    assert not _ran_away(problem, Z, far, ~doubted).any()
    assert not _ran_away(problem, 1e17 * Z, far, doubted).any()


CURVED, FLAT = range(2)  # samples: f curves in some coordinates; f is 0


def made_up(auxiliary: bool, large: str = "") -> tuple[Local, Point]:
    """Rows, columns and entries of zeros among numbers of very different sizes; an inequality and a cone."""
    size = {"f": 1e-9, "g": 1.0, "h": 1.0} | ({large: 1e3} if large else {})
    r = torch.Generator().manual_seed(3)

    def numbers(*shape: int) -> torch.Tensor:
        return 10 ** (4 * torch.rand(2, *shape, generator=r, dtype=DOUBLE) - 3) * torch.sign(
            torch.randn(2, *shape, generator=r, dtype=DOUBLE)
        )

    H, gradient, G, A = numbers(5, 5), size["f"] * numbers(5), numbers(4, 5), numbers(2, 5)
    H = 1e-9 * H @ H.mT
    H[:, 3:], H[:, :, 3:] = 0.0, 0.0
    H[FLAT], gradient[FLAT], gradient[:, 3] = 0.0, 0.0, 0.0
    G[:, 0, 2], G[:, :, 1], G[:, 3], A[:, 1, 0], A[:, :, 1], A[:, :, 4] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    x, lam, nu = numbers(5), numbers(4).abs(), numbers(2)
    x[:, 1], lam[:, 1], nu[:, 0] = 0.0, 0.0, 1e-9
    dual = Product((Nonnegative(1), SecondOrder(2), Nonnegative(1)))
    g, h = size["g"] * numbers(4), size["h"] * numbers(2)
    return Local(gradient, Dense(H), g, Dense(G), h, Dense(A), dual, auxiliary), Point(x, lam, nu)


def scales_by_hand(at: Local, point: Point, unit: float, k: int) -> dict[str, list[float]]:
    """The scales of sample k, number by number, as the module's docstrings define them."""
    H, G, A = (M.dense()[k].abs().tolist() for M in (at.hessian, at.G, at.A))
    gradient, x, lam, nu = (a[k].abs().tolist() for a in (at.gradient, point.x, point.lam, point.nu))
    q = (at.gradient - at.hessian @ point.x)[k].abs().tolist()
    g0, h0 = (at.g - at.G @ point.x)[k].abs().tolist(), (at.h - at.A @ point.x)[k].abs().tolist()
    n, rows = range(len(x)), [*zip(G, g0), *zip(A, h0)]
    none = math.inf

    def times(M, v):
        return [sum(a * b for a, b in zip(row, v)) for row in M]

    def column(M, j):
        return [row[j] for row in M]

    def least(entries, of):
        return min((t / a for a, t in zip(entries, of) if a > 0 and t > 0), default=none)

    def finite(a):
        return 0.0 if a == none else a

    def over_blocks(a, how=max):
        return [a[0], how(a[1:3]), how(a[1:3]), a[3]]

    def passed_on(lengths):
        size = [a + b for a, b in zip(times(H, lengths), q)]
        for _ in range(certify.PASSES):
            y = over_blocks([finite(least(row, size)) for row in G]) + [finite(least(row, size)) for row in A]
            size = [max([size[j], *(a * b for a, b in zip(column(G + A, j), y))]) for j in n]
        return [max(s, certify.FLOOR * max(size)) for s in size]

    of_f = [a + b for a, b in zip(times(H, x), gradient)]
    terms = [
        of_f[j] + sum(a * b for a, b in zip(column(G, j), lam)) + sum(a * b for a, b in zip(column(A, j), nu))
        for j in n
    ]
    reach_of_rows = [a + b for (_, b), a in zip(rows, times(G + A, x))]
    alone = [q[j] / H[j][j] if H[j][j] else 0.0 for j in n]
    if at.auxiliary:
        longest = max(b / min(filter(None, row)) for row, b in rows if any(row))
        longest = max(longest, *alone) or 1.0
        allowed = over_blocks(reach_of_rows[:4]) + reach_of_rows[4:]
        lengths = [max(x[j], finite(least(column(G + A, j), allowed))) for j in n]
        lengths = [max(length, certify.FLOOR * longest) for length in lengths]
        reach = [max(a, b) for a, b in zip(lengths, alone)]
        widest = [max(a, certify.ROOM * longest) for a in lengths]
        terms = [a + b for a, b in zip(terms, passed_on(lengths))]
    else:
        peak_G, peak_A = max(map(max, G)), max(map(max, A))
        across = max(*x, max(g0) / peak_G, max(h0) / peak_A)
        own = [of_f[j] / H[j][j] if H[j][j] else across for j in n]
        lengths = reach = widest = [max(unit, x[j], own[j]) for j in n]
        idle = [not any(H[j]) and q[j] == 0 for j in n]
        handed = passed_on(lengths)
        terms = [terms[j] + certify.FLOOR * handed[j] * idle[j] for j in n]
    most = certify.LARGEST * max(a + b for a, b in zip(times(H, lengths), gradient))
    terms = [min(t, most or none) for t in terms]
    reached, floor = times(G, reach), times(G + A, widest)
    rounding = certify.ROUNDING * max(terms)
    return {
        "stationarity": [t + unit * certify.FLOOR * sum(row) for t, row in zip(terms, H)],
        "inequality": over_blocks([r + certify.FLOOR * f for r, f in zip(reach_of_rows, floor)][:4]),
        "equality": [r + certify.FLOOR * f for r, f in zip(reach_of_rows, floor)][4:],
        "multiplier": over_blocks([least(row, terms) for row in G], min),
        "slack": over_blocks([r + f for r, f in zip(reach_of_rows, reached)]),
        "rounding": over_blocks([rounding / max(row) if any(row) else none for row in G]),
        "length": widest,
    }


@pytest.mark.parametrize("sample", [CURVED, FLAT])
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("unit", [0.0, 3.0])
@pytest.mark.parametrize("multipliers", [1.0, 1e8])
@pytest.mark.parametrize("large", ["", "f", "g", "h"])
def test_scales_are_what_they_are_defined_to_be(sample, auxiliary, unit, multipliers, large):
    at, point = made_up(auxiliary, large)
    point = point._replace(lam=multipliers * point.lam)
    found = certify.scales(at, point, unit)
    for name, expected in scales_by_hand(at, point, unit, sample).items():
        assert getattr(found, name)[sample].tolist() == pytest.approx(expected, rel=1e-12, abs=0.0), name


def test_tau_is_the_power_of_two_that_brings_slack_and_multiplier_together():
    at, point = made_up(auxiliary=False)
    found = certify.scales(at, point)
    ratio = found.slack / found.multiplier
    assert found.tau[0, 0] == 2.0 ** ratio[0, 0].log2().round()
    lam = point.lam[0, 1:3].abs().max()
    assert lam > found.multiplier[0, 1]  # larger than matters: of its size not a digit of g is lost beside τλ
    assert torch.equal(found.tau[0, 1:3], (2.0 ** (found.slack[0, 1] / lam).log2().round()).expand(2))
    assert not (found.tau[0, :3] == 1.0).any()
    assert found.tau[0, 3] == 1.0  # a row of zeros: no multiplier would matter


def test_the_sensitivity_to_the_data_is_added_to_each_kind_of_row():
    at, point = made_up(auxiliary=False)
    plain = certify.scales(at, point)
    data = torch.arange(1.0, 12.0, dtype=DOUBLE).expand(2, -1)
    most = torch.tensor([[1.0], [3.0]], dtype=DOUBLE)
    alone = torch.zeros(2, 11, dtype=DOUBLE)
    alone[0, 4], alone[:, 5:] = 4.5 / certify.LARGEST, 1e9  # what f makes of it counts, g and h do not
    found = plain._replace(most=most).plus(data, alone, at.dual)
    assert torch.equal(found.stationarity[0], plain.stationarity[0] + data[0, :5].clamp_max(4.5))
    assert torch.equal(found.stationarity[1], plain.stationarity[1] + data[1, :5].clamp_max(3.0))
    assert torch.equal(found.inequality, plain.inequality + torch.tensor([6.0, 8.0, 8.0, 9.0]))
    assert torch.equal(found.equality, plain.equality + data[:, 9:])
    assert found[3:-1] == plain[3:-1]


def test_rows_that_hold_nothing_but_rounding_are_empty():
    """1e-17 in a coordinate beside others of 1, or in a multiplier beside others of 0.5."""
    at, _ = made_up(auxiliary=False)
    H = torch.diag_embed(torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]] * 2, dtype=DOUBLE))
    eye = torch.eye(5, dtype=DOUBLE).expand(2, 5, 5)
    x = torch.tensor([[1.0, 1e-17, 2.0, 1e-17, 1e-17]] * 2, dtype=DOUBLE)
    lam, nu = torch.ones(2, 4, dtype=DOUBLE), torch.tensor([[0.5, 1e-17]] * 2, dtype=DOUBLE)
    at = at._replace(gradient=x * H.sum(2), hessian=Dense(H), G=Dense(eye[:, :4]), A=Dense(eye[:, [2, 4]]))
    at = at._replace(g=at.G @ x, h=at.A @ x, dual=Product((Nonnegative(4),)))
    found = certify.without_empty_rows(at, Point(x, 1e-17 * lam, nu), certify.scales(at, Point(x, lam, nu)))
    assert found.stationarity.isinf().tolist() == [[False, True, False, True, True]] * 2
    assert found.inequality.isinf().tolist() == [[False, True, False, True]] * 2
    assert found.equality.isinf().tolist() == [[False, True]] * 2


def test_large_multipliers_excuse_nothing():
    """Two that cancel leave ∇f as it is, however large they are."""
    problem = instance(
        2,
        lambda z, x: cp.sum_squares(z - x),
        equalities=[lambda z, x: z[0] - z[1], lambda z, x: z[1] - z[0]],
        theta=[torch.tensor([1.0, 2.0], dtype=DOUBLE)],
        shapes=((2,),),
    )
    nothing = torch.zeros(1, 0, dtype=DOUBLE)
    wrong = torch.full((1, 2), 3.0, dtype=DOUBLE)
    assert worst(problem, Point(wrong, nothing, torch.full((1, 2), 1e20, dtype=DOUBLE))) > 1e-8
