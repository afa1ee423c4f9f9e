"""Projections smoothed by a barrier: what defines them, their limits, their derivatives."""

import pytest
import torch

from optlayer.cones import Exponential, Nonnegative, Product, SecondOrder, Semidefinite, Zero
from optlayer.cones.barrier import Smoothed
from optlayer.cones.orderings import smat

B = 5
CONES = {
    "orthant": Product((Nonnegative(4),)),
    "second-order": Product((SecondOrder(4),)),
    "second-order in the plane": Product((SecondOrder(2),)),
    "semidefinite": Product((Semidefinite(3),)),
    "all": Product((SecondOrder(3), Nonnegative(2), Zero(2).dual, Semidefinite(2), Zero(1), SecondOrder(3))),
}
cones = pytest.mark.parametrize("K", CONES.values(), ids=CONES)
scales = pytest.mark.parametrize("mu", [1.0, 1e-3, 1e-8])


def smoothed(K, mu):
    return Smoothed(K, torch.full((B, K.dim), mu, dtype=torch.float64))


def points(K, seed=0, size=1.0):
    r = torch.Generator().manual_seed(seed)
    return size * torch.randn(B, K.dim, generator=r, dtype=torch.float64)


def jordan(cone, p, s):
    """p ∘ s."""
    if isinstance(cone, Nonnegative):
        return p * s
    if isinstance(cone, SecondOrder):
        return torch.cat(
            [(p * s).sum(-1, keepdim=True), p[..., :1] * s[..., 1:] + s[..., :1] * p[..., 1:]], -1
        )
    P, S = smat(p), smat(s)
    return 0.5 * (P @ S + S @ P)


def unit(cone):
    """e."""
    if isinstance(cone, Nonnegative):
        return torch.ones(cone.dim, dtype=torch.float64)
    if isinstance(cone, SecondOrder):
        return torch.eye(cone.dim, dtype=torch.float64)[0]
    return torch.eye(cone.n, dtype=torch.float64)


@scales
@pytest.mark.parametrize("name", ["orthant", "second-order", "second-order in the plane", "semidefinite"])
def test_it_is_on_the_central_path(name, mu):
    """p ∘ (p - v) = μe with p inside of the cone."""
    K, v = CONES[name], points(CONES[name])
    p = smoothed(K, mu).project(v)
    product = jordan(K.cones[0], p, p - v)
    assert (product - mu * unit(K.cones[0])).abs().max() <= 1e-14 * (1 + mu)
    assert K.contains(p, 1e-15).all()


@cones
def test_it_tends_to_the_projection(K):
    v = points(K)
    far = [(smoothed(K, mu).project(v) - K.project(v)).abs().max() for mu in (1e-4, 1e-8, 1e-12)]
    assert far[0] < 2e-2
    assert far[1] < 1e-3 * far[0] or far[1] < 1e-7
    assert far[2] < 1e-5


@scales
@cones
def test_its_derivatives(K, mu):
    v = points(K, seed=1, size=max(mu**0.5, 0.1)).requires_grad_()
    project = smoothed(K, mu).project
    assert torch.autograd.gradcheck(project, (v,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(project, (v,))


@scales
@cones
def test_its_spectrum_is_its_derivative(K, mu):
    v, soft = points(K, seed=2), smoothed(K, mu)
    J = torch.func.vmap(torch.func.jacrev(lambda v, mu: Smoothed(K, mu).project(v)))(v, soft.mu)
    spectrum = soft.spectrum(v)
    torch.testing.assert_close(spectrum.matrix(), J, rtol=1e-13, atol=1e-14)
    moving = torch.tensor([not isinstance(cone, Zero) for cone in K.atoms]).any()
    assert moving
    assert ((spectrum.d >= 0) & (spectrum.d <= 1)).all()


@pytest.mark.parametrize(
    "K", [CONES["second-order"], CONES["semidefinite"]], ids=["second-order", "semidefinite"]
)
def test_where_eigenvalues_meet(K):
    """At 0 every direction is an eigenvector, and nothing is singular."""
    v = torch.zeros(B, K.dim, dtype=torch.float64, requires_grad=True)
    soft = smoothed(K, 1e-4)
    assert torch.autograd.gradcheck(soft.project, (v,))
    torch.testing.assert_close(soft.spectrum(v).matrix(), 0.5 * torch.eye(K.dim).double().expand(B, -1, -1))


def test_far_below_zero_no_digit_is_lost():
    K = Product((Nonnegative(1),))
    v = torch.full((B, 1), -1e8, dtype=torch.float64)
    soft = smoothed(K, 1e-6)
    torch.testing.assert_close(soft.project(v), torch.full_like(v, 1e-14), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(soft.spectrum(v).d, torch.full_like(v, 1e-22), rtol=1e-14, atol=0.0)


def test_cones_without_one_are_named():
    with pytest.raises(NotImplementedError, match="Exponential"):
        smoothed(Product((Exponential(),)), 1e-3).project(torch.zeros(B, 3, dtype=torch.float64))
