"""Block elimination against the dense matrix, and its honesty about what it cannot solve."""

import pytest
import torch

from optlayer.matrix import Dense, Matrix, diagonal
from optlayer.saddle import MANY, Base, Factor

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def hessian(kind: str, B: int, n: int) -> Matrix:
    if kind == "diagonal":
        return diagonal(normal(B, n).abs() + 0.1)
    if kind == "zero":
        return diagonal(torch.zeros(B, n, dtype=DOUBLE))
    if kind == "constant":
        return diagonal(torch.full((1, n), 2.0, dtype=DOUBLE))
    L = normal(B, n, n)
    return Dense(L @ L.mT + 0.1 * torch.eye(n, dtype=DOUBLE))


def dense(H, E, s, D, fixed):
    """K with the rows and columns of fixed coordinates struck out."""
    B = len(D)
    H, E = H.dense().expand(B, -1, -1), E.dense().expand(B, -1, -1)
    if s is not None:
        E = s[:, :, None] * E
    if fixed is not None:
        E = torch.where(fixed[:, None], 0.0, E)
        H = torch.where(fixed[:, None] | fixed[:, :, None], 0.0, H) + torch.diag_embed(fixed.to(DOUBLE))
    return torch.cat([torch.cat([H, E.mT], 2), torch.cat([E, -torch.diag_embed(D)], 2)], 1)


@pytest.mark.parametrize("kind", ["diagonal", "constant", "dense"])
@pytest.mark.parametrize("k", [0, 3, 8])
@pytest.mark.parametrize("fixing", [False, True])
def test_it_solves(kind, k, fixing):
    B, n = 6, 10
    H, E = hessian(kind, B, n), Dense(normal(B, k, n, seed=1))
    s = (normal(B, k, seed=2) > 0).to(DOUBLE)
    D = 1.0 - s
    fixed = (torch.arange(n) < 2).expand(B, n) if fixing else None
    if fixing:
        s[:, 7:], D[:, 7:] = 0.0, 1.0  # no more rows than free coordinates
    a, c = normal(B, n, seed=3), normal(B, k, seed=4)
    factor = Factor(Base.of(H, E), s, D, fixed)
    x, mu, sound = factor.solve(a, c)
    y = torch.linalg.pinv(dense(H, E, s, D, fixed)) @ torch.cat([a, c], 1)[:, :, None]
    assert sound.all()
    assert factor.regular.all()
    assert torch.allclose(torch.cat([x, mu], 1), y[..., 0], rtol=1e-8, atol=1e-10)


def test_a_hessian_of_zeros_is_no_obstacle():
    """The vertex of a linear programme: as many rows as free coordinates."""
    H, E = hessian("zero", 4, 6), Dense(normal(4, 6, 6))
    a, c = normal(4, 6, seed=1), normal(4, 6, seed=2)
    x, mu, sound = Factor(Base.of(H, E), None, torch.zeros(4, 6, dtype=DOUBLE)).solve(a, c)
    assert sound.all()
    assert torch.allclose((E @ x), c, atol=1e-11)
    assert torch.allclose(E.mT(mu), a, atol=1e-11)


def test_solve_always_refines_as_often_as_K_needs():
    """Where E is nearly singular on coordinates that H does not hold, a refinement gains two digits only."""
    n, B = 4, 2
    U, V = torch.linalg.qr(normal(2, B, n, n)).Q
    singular_values = torch.ones(B, n, dtype=DOUBLE)
    singular_values[1, -1] = 3e-4
    nearly = U * singular_values.unsqueeze(1) @ V
    E = Dense(torch.cat([nearly, torch.eye(n, dtype=DOUBLE).expand(B, n, n)], 2))
    H = diagonal(torch.cat([torch.zeros(B, n, dtype=DOUBLE), torch.ones(B, n, dtype=DOUBLE)], 1))
    a, c = normal(B, 2 * n, seed=1), normal(B, n, seed=2)
    factor = Factor(Base.of(H, E), None, torch.zeros(B, n, dtype=DOUBLE))
    x, mu = factor.solve_always(a, c)
    assert factor.regular.all()
    left = torch.cat([a - H @ x - E.mT(mu), c - E @ x], 1).abs().amax(1)
    assert (left < 1e-14 * torch.cat([x, mu], 1).abs().amax(1)).all()


def test_many_rows_are_left_out_sample_by_sample():
    B, n, k = 3, 40, MANY + 40
    H, E = hessian("constant", B, n), Dense(normal(1, k, n))
    s = torch.zeros(B, k, dtype=DOUBLE)
    for i in range(B):
        s[i, i :: 9 + i] = 1.0
    a, c = normal(B, n, seed=3), normal(B, k, seed=4)
    x, mu, sound = Factor(Base.of(H, E), s, 1.0 - s).solve(a, c)
    K = dense(H, E, s, 1.0 - s, None)
    assert sound.all()
    assert torch.allclose((K @ torch.cat([x, mu], 1)[..., None])[..., 0], torch.cat([a, c], 1), atol=1e-10)


def test_what_is_singular_is_said_to_be():
    """Two equal rows with different right-hand sides; the neighbour is unharmed."""
    H, E = hessian("diagonal", 2, 5), normal(2, 2, 5)
    alone = Factor(Base.of(H, Dense(E.clone())), None, torch.zeros(2, 2, dtype=DOUBLE))
    E[1, 1] = E[1, 0]
    factor = Factor(Base.of(H, Dense(E)), None, torch.zeros(2, 2, dtype=DOUBLE))
    a, c = normal(2, 5, seed=1), normal(2, 2, seed=2)
    assert factor.regular.tolist() == [True, False]
    assert factor.solve(a, c).sound.tolist() == [True, False]
    assert torch.equal(factor.solve(a, c).x[0], alone.solve(a, c).x[0])
    consistent = torch.stack([c[:, 0], c[:, 0]], 1)
    assert factor.solve(a, consistent).sound.all()


def test_a_sample_that_is_not_a_number_is_not_sound_and_harms_no_other():
    H, E = hessian("dense", 3, 4), Dense(normal(3, 2, 4))
    D, a, c = torch.zeros(3, 2, dtype=DOUBLE), normal(3, 4, seed=1), normal(3, 2, seed=2)
    alone = Factor(Base.of(H, E), None, D).solve(a, c)
    broken = H.dense().clone()
    broken[1, 0, 0] = torch.nan
    found = Factor(Base.of(Dense(broken), E), None, D).solve(a, c)
    assert found.sound.tolist() == [True, False, True]
    assert torch.equal(found.x[[0, 2]], alone.x[[0, 2]])


def test_an_indefinite_hessian_is_left_to_others():
    H = Dense(-hessian("dense", 1, 4).dense())
    E = Dense(torch.zeros(1, 0, 4, dtype=DOUBLE))
    assert not Factor(Base.of(H, E), None, torch.zeros(1, 0, dtype=DOUBLE)).regular.any()


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scales_of_rows_and_coordinates(scale):
    H, E = hessian("dense", 3, 5), Dense(normal(3, 2, 5))
    u, w = torch.logspace(-4, 4, 5, dtype=DOUBLE).expand(3, 5), torch.tensor([[1e-6, scale]], dtype=DOUBLE)
    D, a, c = torch.zeros(3, 2, dtype=DOUBLE), normal(3, 5, seed=1), normal(3, 2, seed=2)
    plain = Factor(Base.of(H, E), None, D).solve(a, c)
    scaled = Factor(Base.of(H.scaled(u, u), E.scaled(w.expand(3, 2), u)), None, D).solve(u * a, w * c)
    assert scaled.sound.all()
    assert torch.allclose(u * scaled.x, plain.x, rtol=1e-8)
