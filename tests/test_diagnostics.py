"""Each finding on a problem where it holds and on a twin where it does not; numbers against known ones."""

import re
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayer import OptLayer, Status, diagnostics
from optlayer.diagnostics import Report, Slopes
from optlayer.diagnostics.slopes import directions
from optlayer.errors import InputError
from tests.contract.problems import BY_NAME, layer_of

DOUBLE = torch.float64


def vector(*entries):
    return torch.tensor(entries, dtype=DOUBLE)


def positive(z, x):
    return -z


def total(z, x):
    return cp.sum(z) - 1


def on_the_simplex(objective, n=3, **options):
    z, x = cp.Variable(n), cp.Parameter(n, name="x")
    return OptLayer([z], [x], objective, [positive], [total], **options)


def sparsemax(**options):
    return on_the_simplex(lambda z, x: cp.sum_squares(z - x) / 2, **options)


def cheapest(**options):
    return on_the_simplex(lambda z, x: x @ z, **options)


def relu(**options):
    z, x = cp.Variable(3), cp.Parameter(3, name="x")
    return OptLayer([z], [x], lambda z, x: cp.sum_squares(z - x) / 2, [positive], **options)


def scaled(*weights):
    """min ½|Wz|² - xᵀz."""
    z, x = cp.Variable(2), cp.Parameter(2, name="x")
    W = np.array(weights or (1, 2))
    return OptLayer([z], [x], lambda z, x: cp.sum_squares(cp.multiply(W, z)) / 2 - x @ z)


def crossing(slope=1.0, copies=1):
    """The point on two lines, as near to parallel as wanted."""
    z, x = cp.Variable(2), cp.Parameter(2, name="x")
    lines = [lambda z, x: z[0] + z[1] - x[0], lambda z, x: z[0] + (1 + slope) * z[1] - x[1]]
    return OptLayer([z], [x], lambda z, x: cp.sum_squares(z), equalities=lines * copies)


def capped():
    z, x, cap = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    inequalities = [lambda z, x, cap: -z, lambda z, x, cap: z - cap]
    sums = [lambda z, x, cap: cp.sum(z) - 1]
    return OptLayer([z], [x, cap], lambda z, x, cap: cp.sum_squares(z - x), inequalities, sums)


def check(layer, *parameters, **options):
    return diagnostics.check(layer, *parameters, verbose=False, **options)


def only(report):
    (sample,) = report.samples
    return sample


# ---------------------------------------------------------------- each finding, and a twin without it

CALM = vector(0.5, 0.3, 0.1)
SMOOTHED = partial(cheapest, smoothing=0.1)


@pytest.mark.parametrize(
    ("kind", "guilty", "innocent", "words"),
    [
        ("vertex", (cheapest, vector(1, 2, 3)), (sparsemax, CALM), "smoothing=mu"),
        ("vertex", (relu, vector(-1, -2, -3)), (relu, vector(-1, -2, 3)), "derivative is 0"),
        ("nonunique", (cheapest, vector(1, 1, 2)), (cheapest, vector(1, 1.5, 2)), "strictly convex"),
        ("kink", (relu, vector(0, 1, -1)), (relu, vector(1e-3, 1, -1)), "'inequality 0 'positive'' row 0"),
        ("near kink", (relu, vector(1e-8, 1, -1)), (relu, vector(1e-2, 1, -1)), "one-sided .* differ"),
        ("degenerate", (partial(crossing, 1, 2), vector(1, 2)), (crossing, vector(1, 2)), "multipliers"),
        ("steep", (partial(crossing, 1e-4), vector(1, 1)), (crossing, vector(1, 1)), "huge"),
        ("units", (partial(scaled, 1e5, 1e-4), vector(1, 2)), (scaled, vector(1, 2)), r"x 2e\+00"),
        ("condition", (partial(crossing, 1e-5), vector(1, 1)), (crossing, vector(1, 1)), "expect x to"),
        ("gradient", (partial(crossing, 1e-6), vector(1, 1)), (crossing, vector(1, 2)), "apart"),
        ("dtype", (sparsemax, CALM.float()), (sparsemax, CALM), "float32.*1e-07"),
        ("smoothed", (SMOOTHED, vector(1, 2, 3)), (cheapest, vector(1, 2, 3)), "smoothing=None"),
        ("invalid", (sparsemax, vector(0, torch.nan, 1)), (sparsemax, CALM), "parameter 'x'"),
        ("unbounded", (partial(scaled, 0, 0), vector(1, 1)), (scaled, vector(1, 1)), "bound the"),
    ],
)
def test_a_finding_is_made_where_it_holds(kind, guilty, innocent, words):
    (build, x), (twin, y) = guilty, innocent
    report = check(build(), x)
    assert kind in report.kinds
    finding = report.finding(kind)
    assert re.search(words, f"{finding.text} {finding.advice}")
    assert finding.text in str(report)
    assert finding.advice in str(report)
    assert kind not in check(twin(), y).kinds


def test_samples_without_a_solution_are_said_not_raised():
    report = check(capped(), vector(0.9, 0.4, -1.0), vector(0.2, 0.7, 0.1))
    assert [s.status for s in report.samples] == [Status.INFEASIBLE, Status.SOLVED, Status.INFEASIBLE]
    assert report.finding("infeasible").samples == (0, 2)
    assert "no solution" in report.samples[0].message
    assert "samples 0, 2: " in str(report)
    assert report.samples[1].active == {"inequality 0": (2,), "inequality 1": (0,)}
    assert report.samples[1].slopes.agree


@pytest.mark.parametrize("name", ["qp", "softmax", "covariance", "box"])
def test_nothing_to_remark_on_healthy_problems(name):
    problem = BY_NAME[name]
    parameters = problem.parameters(torch.Generator().manual_seed(0), 2)
    report = check(layer_of(problem), *parameters)
    assert not report.findings
    assert all(s.slopes.agree for s in report.samples)
    assert "nothing to remark" in str(report)


def test_a_point_of_many_ties_is_not_called_a_vertex():
    """x = z*: every multiplier is 0 up to rounding, so the zero gradient is one side's only."""
    report = check(on_the_simplex(lambda z, x: cp.sum_squares(z - x) / 2, n=4), vector(1, 0, 0, 0))
    assert "vertex" not in report.kinds
    assert report.kinds & {"kink", "near kink"}


# ------------------------------------------------------------------------------------------ numbers


def test_the_active_set_is_the_known_one():
    sample = only(check(capped(), vector(0.9, 0.4, -1.0), vector(0.7)[0]))
    assert sample.active == {"inequality 0": (2,), "inequality 1": (0,)}
    assert sample.weakly_active == {}


def test_the_active_set_of_a_kink():
    sample = only(check(relu(), vector(0, 1, -1)))
    assert (sample.active, sample.weakly_active) == (
        {"inequality 0 'positive'": (2,)},
        {"inequality 0 'positive'": (0,)},
    )
    assert sample.kink
    assert sample.margin == 0.0


def test_attributes_and_constraints_have_their_names():
    z, x = cp.Variable(3, name="z", nonneg=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x)), [cp.sum(z) <= 1])
    report = check(OptLayer.from_problem(problem), vector(2, 0.5, -1))
    assert only(report).active == {"constraint 0: Sum(z, None, False) <= 1.0": (0,), "nonneg of 'z'": (1, 2)}
    assert "nonneg of 'z' [1, 2] of 3" in str(report)


def test_the_active_set_on_the_cone_route():
    z, x = cp.Variable(3, name="z"), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.norm2(z - x)), [cp.SOC(cp.Constant(1.0), z), z <= 5, z[2] == 0])
    out, inside = check(
        OptLayer.from_problem(problem), torch.stack([vector(3, 4, 0), vector(0.1, 0, 0)])
    ).samples
    (name,) = (name for name in out.active if name.startswith("constraint 0"))
    assert len(out.active[name]) == 4
    assert name not in inside.active
    assert not any(name.startswith("constraint 1") for name in out.active)


def test_condition_numbers_are_those_of_numpy():
    sample = only(check(scaled(1, 3), vector(1, 2)))
    assert sample.condition == pytest.approx(9)
    assert sample.scaled == pytest.approx(1)
    at = crossing(0.5)
    K = np.array([[2, 0, 1, 1], [0, 2, 1, 1.5], [1, 1, 0, 0], [1, 1.5, 0, 0]])
    assert only(check(at, vector(1, 2))).condition == pytest.approx(np.linalg.cond(K))


def test_a_large_matrix_is_not_decomposed():
    z, x = cp.Variable(601), cp.Parameter(601)
    report = check(OptLayer([z], [x], lambda z, x: cp.sum_squares(z - x)), torch.zeros(601, dtype=DOUBLE))
    assert only(report).condition is None
    assert "not computed, K is large" in str(report)


def test_the_gradient_is_that_of_the_loss():
    layer, x = sparsemax(), torch.stack([CALM, vector(1, 0.9, -3)])
    leaf = x.clone().requires_grad_()
    (layer(leaf)[:, 0] ** 2).sum().backward()
    report = check(layer, x, loss=lambda y: (y[:, 0] ** 2).sum())
    for sample, gradient in zip(report.samples, leaf.grad, strict=True):
        assert sample.gradient == pytest.approx(gradient.norm().item(), rel=1e-12)


def test_slopes_of_a_kink_differ_on_both_sides():
    slopes = only(check(relu(), vector(0, 1, -1))).slopes
    assert slopes.one_sided
    assert not slopes.agree
    assert min(abs(slopes.vjp - side) for side in (slopes.forward, slopes.backward)) < 1e-6
    assert slopes.jvp == pytest.approx(slopes.vjp)


def test_a_kink_is_called_a_kink_and_nothing_else():
    assert check(relu(), vector(0, -1, -2)).kinds == {"kink"}


def test_a_kink_within_the_longer_step_does_not_spoil_the_check():
    sample = only(check(relu(), vector(3e-5, 1, -1)))
    assert sample.slopes.agree
    assert not sample.one_sided


def test_slopes_can_disagree():
    right = Slopes(forward=1.0, backward=1.0 + 1e-7, jvp=1.0, vjp=1.0, noise=1e-9)
    assert right.agree
    assert not Slopes(forward=1.0, backward=1.0, jvp=1.0, vjp=1.01, noise=1e-9).agree
    assert not Slopes(forward=1.0, backward=1.0, jvp=1.01, vjp=1.0, noise=1e-9).agree


def test_a_wrong_derivative_is_found():
    """A layer whose derivative is off by a factor of two."""

    def forward(self, x):
        y = OptLayer.forward(self, x)
        return y.detach() + 2.0 * (y - y.detach())

    wrong = type("Wrong", (OptLayer,), {"forward": forward})
    z, x = cp.Variable(2), cp.Parameter(2)
    layer = wrong([z], [x], lambda z, x: cp.sum_squares(z - x))
    assert check(layer, vector(1, 2)).kinds == {"gradient"}


def test_branches_are_compared_by_their_derivatives_too():
    def distance(z, x):
        if isinstance(z, torch.Tensor):
            return ((z - torch.where(x > 1e4, x.detach(), x)) ** 2).sum() + 0 * x.sum() + x[1]
        return cp.sum_squares(z - x) + x[1]

    z, x = cp.Variable(2), cp.Parameter(2)
    layer = OptLayer([z], [x], distance, [lambda z, x: z])
    assert check(layer, vector(1, 2)).branches[0].gap < 1e-12
    assert check(layer, vector(1, 2e4)).branches[0].gap > 0.5


def test_branches_are_compared_at_the_solution():
    def distance(z, x):
        """The same near the probes of construction, another one far away."""
        if isinstance(z, torch.Tensor):
            return ((z - x) ** 2).sum() + torch.relu(x - 1e4).sum()
        return cp.sum_squares(z - x)

    z, x = cp.Variable(2), cp.Parameter(2)
    layer = OptLayer([z], [x], distance)
    near, far = check(layer, vector(1, 2)), check(layer, vector(1, 2e4))
    assert [branch.name for branch in near.branches] == ["objective 'distance'"]
    assert near.branches[0].gap < 1e-12
    assert "branches" not in near.kinds
    assert far.branches[0].gap > 0.5
    assert "objective 'distance'" in far.finding("branches").text


# ------------------------------------------------------------------------------------- kinds of calls


def test_batches_of_any_shape():
    x = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    report = check(sparsemax(), x)
    assert [s.index for s in report.samples] == [(i, j) for i in range(2) for j in range(3)]
    assert "and 2 more samples" in str(report)
    assert only(check(sparsemax(), x[1, 2])).active == report.samples[-1].active


def test_by_name_and_broadcast():
    assert len(check(sparsemax(), x=CALM).samples) == 1
    assert len(check(capped(), CALM, vector(0.6, 0.7)).samples) == 2


def test_an_empty_batch():
    report = check(sparsemax(), torch.zeros(0, 3, dtype=DOUBLE))
    assert (report.samples, report.findings) == ((), ())


def test_a_layer_without_parameters():
    z = cp.Variable(2)
    sample = only(check(OptLayer([z], [], lambda z: cp.sum_squares(z - 1), [lambda z: z[0]])))
    assert sample.active == {"inequality 0": (0,)}
    assert sample.slopes is None


def test_parameters_keep_their_promises():
    z = cp.Variable(2)
    P, a = cp.Parameter((2, 2), PSD=True, name="P"), cp.Parameter(2, nonneg=True, name="a")
    problem = cp.Problem(cp.Minimize(cp.quad_form(z, P) - cp.sum(z)), [z <= a])
    layer = OptLayer.from_problem(problem, [P, a])
    sample = only(check(layer, torch.eye(2, dtype=DOUBLE), vector(0, 1)))
    assert sample.slopes.known
    assert sample.slopes.agree


def test_directions_stay_within_the_declared():
    z, P = cp.Variable(2), cp.Parameter((2, 2), PSD=True)
    a, S = cp.Parameter(2, nonneg=True), cp.Parameter((2, 2), symmetric=True)
    objective = cp.quad_form(z, P) + cp.sum(S @ z)
    layer = OptLayer.from_problem(cp.Problem(cp.Minimize(objective), [z <= a]), [P, a, S])
    theta = (torch.ones(1, 2, 2, dtype=DOUBLE), vector(0, 1)[None], torch.eye(2, dtype=DOUBLE)[None])
    dP, da, dS = directions(layer, theta, torch.Generator().manual_seed(0))
    assert torch.equal(dP, dP.mT)
    assert torch.equal(dS, dS.mT)
    along = vector(1, -1) @ dP[0] @ vector(1, -1)  # the null space of P
    assert abs(along) < 1e-14
    assert da[0, 0] == 0 != da[0, 1]


def test_the_layer_is_left_as_it_is():
    layer = cheapest()
    plan = layer._plan
    check(layer, vector(1, 1, 2))
    assert layer._plan is plan
    assert not plan.warned
    with pytest.warns(UserWarning, match="not unique"):
        layer(vector(1, 1, 2))


def test_a_wrong_call_is_an_error():
    with pytest.raises(InputError, match="expected shape"):
        check(sparsemax(), vector(1, 2))


def test_it_prints_unless_told_not_to(capsys):
    report = diagnostics.check(sparsemax(), CALM)
    assert capsys.readouterr().out == f"{report}\n"
    check(sparsemax(), CALM)
    assert capsys.readouterr().out == ""
    assert isinstance(report, Report)
    assert repr(report) == "Report(1 samples, findings: none)"
