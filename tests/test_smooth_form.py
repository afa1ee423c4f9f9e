"""The reduced solves of the smooth form against its dense Jacobian, with and without curvature."""

import cvxpy as cp
import pytest
import torch
from torch.func import jacrev, vmap

from optlayer.declare.declaration import Declaration
from optlayer.forms.smooth import SmoothForm, kkt_matrix

DOUBLE = torch.float64


def quadratic() -> SmoothForm:
    z, x = cp.Variable(4), cp.Parameter(4)
    return Declaration(
        (z,),
        (x,),
        lambda z, x: cp.sum_squares(z - x) + cp.square(cp.sum(z)),
        (lambda z, x: -z[:2], lambda z, x: cp.sum(cp.multiply(x, z)) - 1),
        (lambda z, x: z[0] - 2 * z[3],),
    ).compile()


def curved() -> SmoothForm:
    z, x = cp.Variable(4), cp.Parameter(4)
    return Declaration(
        (z,),
        (x,),
        lambda z, x: cp.log_sum_exp(z - x) + cp.sum_squares(z),
        (lambda z, x: cp.sum_squares(z - x) - 1, lambda z, x: cp.exp(z[:2]) - 2),
        (lambda z, x: cp.sum(z) - x[0],),
    ).compile()


FORMS = {"quadratic": quadratic, "curved": curved}


@pytest.fixture(params=FORMS)
def case(request):
    """A form, a point with active and inactive rows, data, and a generic right-hand side."""
    form = FORMS[request.param]()
    generator = torch.Generator().manual_seed(4)
    u = torch.randn(2, form.size, generator=generator, dtype=DOUBLE)
    assert 0 < (form.split(u)[1] > 0).sum() < 2 * form.m
    data = (torch.rand(2, 4, generator=generator, dtype=DOUBLE), 0.1 + torch.rand(2, form.m, dtype=DOUBLE))
    return form, u, data, torch.randn(2, form.size, generator=generator, dtype=DOUBLE)


def dense_jacobian(form, u, data):
    def residual(u, *data):
        return form.residual(u[None], *(d[None] for d in data))[0]

    return vmap(jacrev(residual))(u, *data)


def test_the_solve_inverts_the_jacobian(case):
    form, u, data, rhs = case
    J = dense_jacobian(form, u, data)
    assert torch.allclose((J @ form.solve(u, rhs, *data)[..., None])[..., 0], rhs, rtol=1e-10, atol=1e-10)


def test_the_transposed_solve_inverts_its_transpose(case):
    """With a cotangent for every entry of u, inactive v included."""
    form, u, data, rhs = case
    J = dense_jacobian(form, u, data)
    w = form.solve_transposed(u, rhs, *data)
    assert torch.allclose((J.mT @ w[..., None])[..., 0], rhs, rtol=1e-10, atol=1e-10)


def test_the_kkt_matrix_is_symmetric_with_minus_one_on_inactive_rows(case):
    form, u, data, _ = case
    H, G, A, D = form._blocks(u, *data)
    K = kkt_matrix(H, G, A, D)
    assert torch.equal(K, K.mT)
    inactive = torch.diagonal(K, dim1=1, dim2=2)[:, form.n : form.n + form.m][~D]
    assert (inactive == -1).all()


def test_quadratics_are_recognised_and_their_constants_kept():
    form = quadratic()
    assert form.quadratic
    assert torch.equal(form.constants.P, 2 * torch.eye(4, dtype=DOUBLE) + 2)
    assert form.constants.G is None  # a parameter multiplies z
    assert torch.equal(form.constants.A, torch.tensor([[1.0, 0.0, 0.0, -2.0]], dtype=DOUBLE))
    assert not curved().quadratic
