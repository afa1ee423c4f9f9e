"""The symmetric solve: right, differentiable in every mode, honest about singular matrices."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap

from optlayer import linsolve as module
from optlayer.linsolve import linsolve, matvec, ruiz, solve

DOUBLE = torch.float64


def kkt(n: int, p: int, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random nonsingular KKT matrix and right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    L = torch.randn(batch, n, n, generator=generator, dtype=DOUBLE)
    A = torch.randn(batch, p, n, generator=generator, dtype=DOUBLE)
    H = L @ L.mT + torch.eye(n, dtype=DOUBLE)
    top = torch.cat([H, A.mT], 2)
    bottom = torch.cat([A, torch.zeros(batch, p, p, dtype=DOUBLE)], 2)
    return torch.cat([top, bottom], 1), torch.randn(batch, n + p, generator=generator, dtype=DOUBLE)


class Symmetric:
    """M(K) = K, with 3 primal rows."""

    def product(self, x, K, transposed):
        return matvec(K.mT if transposed else K, x)

    def inverse(self, b, K, transposed):
        del transposed
        return solve(K, b, 3).x


def symmetric_solve(K: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    batched = linsolve(Symmetric(), b.reshape(-1, b.shape[-1]), 0.5 * (K + K.mT).reshape(-1, *K.shape[-2:]))
    return batched.reshape(b.shape)


@pytest.mark.parametrize(("n", "p"), [(1, 0), (3, 2), (20, 7), (120, 60)])
def test_it_solves(n, p):
    K, b = kkt(n, p, batch=5)
    x = solve(K, b, n).x
    assert torch.allclose((K @ x[..., None])[..., 0], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_badly_scaled_rows(scale):
    K, b = kkt(6, 3)
    s = torch.logspace(-6, 6, 9, dtype=DOUBLE)
    x = solve(scale * s[:, None] * K * s, scale * s * b, 6).x
    assert torch.allclose(x, solve(K, b, 6).x / s, rtol=1e-9)


def test_first_and_second_derivatives_in_both_modes():
    K, b = (a.requires_grad_() for a in kkt(3, 2, batch=2))
    assert gradcheck(symmetric_solve, (K, b), check_forward_ad=True)
    assert gradgradcheck(symmetric_solve, (K, b))


def test_torch_func_nestings_agree_with_the_inverse():
    K, b = (a[0] for a in kkt(3, 2))

    def ours(K, b):
        return symmetric_solve(K, b)

    def theirs(K, b):
        return torch.linalg.inv(0.5 * (K + K.mT)) @ b

    for outer in (jacrev, jacfwd):
        for argument in (0, 1):
            ours_2 = outer(jacrev(ours, 0), argument)(K, b)
            theirs_2 = jacrev(jacrev(theirs, 0), argument)(K, b)
            assert torch.allclose(ours_2, theirs_2, rtol=1e-9, atol=1e-10)


def test_vmap_over_either_argument():
    K, b = kkt(3, 2, batch=4)
    expected = symmetric_solve(K, b)
    assert torch.equal(vmap(symmetric_solve)(K, b), expected)
    over_b = vmap(lambda b: symmetric_solve(K[0], b))(b)
    assert torch.allclose((K[0] @ over_b[..., None])[..., 0], b, atol=1e-11)
    over_K = vmap(lambda K: symmetric_solve(K, b[0]), in_dims=2)(K.movedim(0, 2))
    assert torch.allclose((K @ over_K[..., None])[..., 0], b[:1].expand_as(b), atol=1e-11)


def test_redundant_rows_with_a_consistent_right_hand_side():
    """Where plain LU gives up: the same constraint twice."""
    K, b = kkt(4, 1)
    twice = torch.tensor([0, 1, 2, 3, 4, 4])
    K, b = K[:, twice][:, :, twice], b[:, twice]
    x = solve(K, b, 4).x
    assert ((K @ x[..., None])[..., 0] - b).abs().max() < 1e-12


def test_singular_matrices_give_the_minimum_norm_least_squares_solution():
    K, b = kkt(4, 2, batch=3)
    K[1, :, 1] = K[1, 1, :] = 0.0  # nothing holds coordinate 1 of sample 1
    K[2, :, 5] = K[2, 5, :] = 0.0  # nor multiplier 5 of sample 2
    found = solve(K, b, 4)
    assert found.singular.tolist() == [False, True, True]
    assert found.free.any(1).tolist() == [False, True, False]
    assert found.free[1].tolist() == [False, True, False, False]
    assert torch.allclose(found.x[1:], (torch.linalg.pinv(K) @ b[..., None])[1:, :, 0], atol=1e-10)


def test_minimum_norm_is_of_the_unscaled_matrix_and_symmetric():
    """K⁺ itself, so that forward and reverse mode agree on singular problems too."""
    K = torch.tensor([[1e4, 1e2, 0.0], [1e2, 1.0, 0.0], [0.0, 0.0, -1.0]], dtype=DOUBLE)
    pseudo_inverse = torch.stack([solve(K, e, 2).x for e in torch.eye(3, dtype=DOUBLE)])
    assert torch.allclose(pseudo_inverse, torch.linalg.pinv(K), rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("seed", [525, 3121, 3645, 4056])
def test_eigenvectors_of_a_graded_matrix_are_refined(seed):
    """They are exact beside its largest entries only; solving for the least ones lost digits."""
    generator = torch.Generator().manual_seed(seed)
    n, p = 4, 3
    curvature = 2.0 ** torch.randint(-30, 1, (n,), generator=generator).double()
    signs = torch.randint(-2, 3, (p, n), generator=generator).double()
    E = signs * 2.0 ** torch.randint(-12, 1, (p, n), generator=generator).double()
    E[2] = 2 * E[0]  # ν = (2, 0, -1) is null, and y below has no part in it
    K = torch.zeros(n + p, n + p, dtype=DOUBLE)
    K[:n, :n], K[n:, :n], K[:n, n:] = torch.diag(curvature), E, E.T
    y = torch.tensor([3.0, -1.0, 2.0, 5.0, 1.0, 3.0, 2.0], dtype=DOUBLE)
    found = solve(K, K @ y, n)
    assert found.singular
    assert (found.x - y).abs().max() < 1e-12


def test_what_counts_as_zero_is_relative_to_the_largest_eigenvalue():
    """4.002 and, three times, 0.002."""
    K = torch.ones(4, 4, dtype=DOUBLE) + 0.002 * torch.eye(4, dtype=DOUBLE)
    b = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)
    kept, dropped = solve(K, b, 4, null=2e-4), solve(K, b, 4, null=1e-3)
    assert not kept.singular
    assert torch.allclose(K @ kept.x, b, rtol=1e-12)
    assert dropped.singular
    assert torch.allclose(dropped.x, b.mean() / K.sum(1), rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e9])
@pytest.mark.parametrize("least", [1.0, 1e-3, 1e-7])
def test_a_regular_matrix_needs_no_eigendecomposition(least, scale, monkeypatch):
    """Nor does one that is nearly singular: there |x| is large, and so is what rounding leaves of b."""
    monkeypatch.setattr(module, "_minimum_norm", None)
    n = 6
    Q = torch.linalg.qr(kkt(n, 0, batch=4)[0]).Q
    eigenvalues = torch.tensor([least, 1.0, -1.0, 0.5, -0.5, 1.0], dtype=DOUBLE)
    K, b = Q * eigenvalues @ Q.mT, scale * kkt(n, 0, batch=4)[1]
    found = solve(K, b, 3)
    assert not found.singular.any()
    assert torch.allclose(found.x, matvec(Q / eigenvalues @ Q.mT, b), rtol=1e-13 / least)


def test_a_factorization_that_returns_garbage_is_found_out(monkeypatch):
    """Some builds of torch do: the residual is what is believed."""
    K, b = kkt(4, 2, batch=3)
    right = solve(K, b, 4).x
    monkeypatch.setattr(torch.linalg, "ldl_solve", lambda factor, pivots, b: 0.5 * b)
    assert torch.allclose(solve(K, b, 4).x, right, rtol=1e-9)


def test_there_is_nothing_to_equilibrate_without_unknowns():
    assert ruiz(torch.zeros(2, 0, 0, dtype=DOUBLE)).shape == (2, 0)


def test_a_sample_that_is_not_finite_harms_no_other():
    K, b = kkt(3, 2, batch=3)
    alone = solve(K, b, 3).x
    K[1, 0, 0] = torch.nan
    x = solve(K, b, 3).x
    assert x[1].isnan().all()
    assert torch.equal(x[[0, 2]], alone[[0, 2]])


def test_it_does_not_depend_on_threads():
    """Batched LU on two threads returns garbage in torch 2.13 at this size; this must not."""
    K, b = kkt(150, 60, batch=6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        x = solve(K, b, 150).x
    finally:
        torch.set_num_threads(threads)
    assert ((K @ x[..., None])[..., 0] - b).abs().max() < 1e-10


def test_no_unknowns_have_the_empty_solution() -> None:
    for batch in ((), (2,), (0,)):
        found = solve(torch.zeros(*batch, 0, 0, dtype=DOUBLE), torch.zeros(*batch, 0, dtype=DOUBLE), 0)
        assert found.x.shape == (*batch, 0)
        assert found.singular.shape == batch
        assert not found.singular.any()
