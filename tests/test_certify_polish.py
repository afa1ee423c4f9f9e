"""The certificate tells right from wrong at every scale; polish turns rough points into exact ones."""

import cvxpy as cp
import pytest
import torch

from optlayer import certify
from optlayer.declare.declaration import Declaration
from optlayer.declare.problem import ProblemDeclaration
from optlayer.declare.routes import compile_declaration
from optlayer.forms import Point
from optlayer.forms.kkt import Instance
from optlayer.polish import polish
from optlayer.solve import _ran_away

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
    scale = scale.plus(case.sensitivity(u, scale.tau), form.dual)
    for rows in (scale.inequality, scale.multiplier, scale.slack, scale.tau):
        assert torch.equal(rows, form.dual.over_blocks(rows))
    assert not torch.equal(case.sensitivity(u, scale.tau)[:, form.n : form.n + form.m], scale.inequality)


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
