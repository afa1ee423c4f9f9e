"""The reduced solves of the forms against their dense Jacobian, with curvature and with every cone."""

import cvxpy as cp
import pytest
import torch
from torch.func import jacrev, vmap

from optlayer.declare.declaration import Declaration
from optlayer.declare.problem import ProblemDeclaration
from optlayer.declare.routes import compile_declaration
from optlayer.forms.blocks import AffineObjective, AffineRows
from optlayer.forms.kkt import KKTForm, Root

DOUBLE = torch.float64


def quadratic() -> KKTForm:
    z, x = cp.Variable(4), cp.Parameter(4)
    declaration = Declaration(
        (z,),
        (x,),
        lambda z, x: cp.sum_squares(z - x) + cp.square(cp.sum(z)),
        (lambda z, x: -z[:2], lambda z, x: cp.sum(cp.multiply(x, z)) - 1),
        (lambda z, x: z[0] - 2 * z[3],),
    )
    return compile_declaration(declaration, "auto").form


def curved() -> KKTForm:
    z, x = cp.Variable(4), cp.Parameter(4)
    declaration = Declaration(
        (z,),
        (x,),
        lambda z, x: cp.log_sum_exp(z - x) + cp.sum_squares(z),
        (lambda z, x: cp.sum_squares(z - x) - 1, lambda z, x: cp.exp(z[:2]) - 2),
        (lambda z, x: cp.sum(z) - x[0],),
    )
    return compile_declaration(declaration, "auto").form


def conic() -> KKTForm:
    z, x, X = cp.Variable(4), cp.Parameter(4), cp.Variable((3, 3), symmetric=True)
    constraints = [
        z >= -x,
        cp.norm(z - x) <= 2,
        X >> cp.diag(x[:3]),
        cp.ExpCone(z[0], x[1] + z[1], z[2]),
        cp.PowCone3D(z[0], z[1], z[3], 0.3),
        cp.trace(X) == 4,
    ]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) + cp.norm1(X)), constraints)
    return compile_declaration(ProblemDeclaration.of(problem), "cone").form


FORMS = {"quadratic": quadratic, "curved": curved, "conic": conic}


SEEDS = {"quadratic": (4, 5), "curved": (4, 5), "conic": (56, 336)}  # with a regular Jacobian


@pytest.fixture(params=FORMS)
def case(request):
    """A form, a point with active and inactive rows, data, and a generic right-hand side."""
    form = FORMS[request.param]()
    draws = [torch.Generator().manual_seed(seed) for seed in SEEDS[request.param]]

    def normal(size):
        return torch.stack([torch.randn(size, generator=g, dtype=DOUBLE) for g in draws])

    u, rhs, theta = normal(form.size), normal(form.size), normal(4).abs()
    assert 0 < (form.split(u)[1] > 0).sum() < 2 * form.m
    data = (theta, form.dual.over_blocks(0.1 + normal(form.m).abs()))
    return form, u, data, rhs


def dense_jacobian(form, u, data):
    def residual(u, *data):
        return form.residual(u[None], *(d[None] for d in data))[0]

    return vmap(jacrev(residual))(u, *data)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_inverse_inverts_the_jacobian(case, transposed):
    """With a cotangent for every entry of u, inactive v included."""
    form, u, data, rhs = case
    J = dense_jacobian(form, u, data)
    J = J.mT if transposed else J
    x = Root(form, None).inverse(rhs, u, *data, transposed=transposed)
    miss = (J @ x[..., None])[..., 0] - rhs
    assert (miss.abs() <= 1e-9 * (J.abs() @ x.abs()[..., None])[..., 0]).all()


def test_the_kkt_matrix_is_symmetric_and_decouples_inactive_rows(case):
    form, u, data, _ = case
    tau = data[-1]
    spectrum = form.dual.spectrum(form.split(u)[1])
    K = form.reduced(u, *data).dense()
    assert torch.equal(K, K.mT)
    inactive = spectrum.d == 0
    rows = K[:, form.n : form.n + form.m]
    assert inactive.any()
    assert (torch.diagonal(rows[:, :, form.n :], dim1=1, dim2=2)[inactive] == -tau[inactive]).all()
    assert (rows[inactive].abs().sum(1) == tau[inactive]).all()


def test_quadratics_are_recognised_and_their_constants_kept():
    form = quadratic()
    assert form.quadratic
    assert isinstance(form.objective, AffineObjective)
    assert form.objective.P.is_constant
    x = torch.ones(2, 4, dtype=DOUBLE)
    at = form.local(form.recover(torch.zeros(2, form.size, dtype=DOUBLE), torch.ones(2, form.m)), x)
    assert torch.equal(at.hessian.dense()[0], 2 * torch.eye(4, dtype=DOUBLE) + 2)
    assert isinstance(form.inequality, AffineRows)
    assert not form.inequality.M.is_constant
    assert torch.equal(at.A.dense()[0], torch.tensor([[1.0, 0.0, 0.0, -2.0]], dtype=DOUBLE))
    assert form.equality.M.is_constant
    assert not curved().quadratic
