"""Orders and scalings of rows: each map against its definition, and there and back."""

import numpy as np
import pytest
import torch

from optlayer.cones import orderings as o

SIDES = range(1, 7)


def symmetric(n: int) -> np.ndarray:
    M = np.random.default_rng(n).normal(size=(n, n))
    return M + M.T


@pytest.mark.parametrize("n", SIDES)
def test_the_house_order_is_the_upper_triangle_column_by_column(n: int) -> None:
    M = symmetric(n)
    expected = [M[i, j] * (1 if i == j else 2**0.5) for j in range(n) for i in range(j + 1)]
    np.testing.assert_allclose(o.svec(M), expected, rtol=1e-15)
    torch.testing.assert_close(o.svec(torch.from_numpy(M)), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("n", SIDES)
def test_scs_is_the_lower_triangle_column_by_column(n: int) -> None:
    M = symmetric(n)
    expected = [M[i, j] * (1 if i == j else 2**0.5) for j in range(n) for i in range(j, n)]
    np.testing.assert_allclose(o.svec(M)[o.house_to_scs(n)], expected, rtol=1e-15)
    np.testing.assert_array_equal(o.svec(M)[o.house_to_scs(n)][o.scs_to_house(n)], o.svec(M))
    i, j = o.scs_pairs(n)
    np.testing.assert_allclose(M[i, j] * o.scaling(n)[o.house_to_scs(n)], expected, rtol=1e-15)


@pytest.mark.parametrize("n", SIDES)
def test_matrices_and_vectors_there_and_back(n: int) -> None:
    M = symmetric(n)
    v = np.random.default_rng(0).normal(size=(2, 3, o.triangle(n)))
    np.testing.assert_allclose(o.smat(o.svec(M)), M, rtol=1e-15)
    np.testing.assert_allclose(o.svec(o.smat(v)), v, rtol=1e-15)
    torch.testing.assert_close(o.smat(torch.from_numpy(v)), torch.from_numpy(o.smat(v)))


@pytest.mark.parametrize("n", SIDES)
def test_the_inner_product_is_the_matrices(n: int) -> None:
    M, N = symmetric(n), symmetric(n) ** 2
    assert o.svec(M) @ o.svec(N) == pytest.approx((M * N).sum(), rel=1e-13)


@pytest.mark.parametrize("n", SIDES)
def test_the_full_matrix_of_cvxpy(n: int) -> None:
    M = symmetric(n)
    full = M.ravel(order="F")
    np.testing.assert_allclose(o.svec_matrix(n) @ full, o.svec(M), rtol=1e-15)
    np.testing.assert_allclose(o.smat_matrix(n) @ o.svec(M), full, rtol=1e-15)
    round_trip = (o.svec_matrix(n) @ o.smat_matrix(n)).toarray()
    np.testing.assert_allclose(round_trip, np.eye(o.triangle(n)), atol=1e-15)


@pytest.mark.parametrize("n", SIDES)
def test_an_unsymmetric_full_matrix_counts_by_its_symmetric_part(n: int) -> None:
    M = np.random.default_rng(n).normal(size=(n, n))
    np.testing.assert_allclose(o.svec_matrix(n) @ M.ravel(order="F"), o.svec((M + M.T) / 2), rtol=1e-13)


def test_the_exponential_cone_of_mosek_is_reversed() -> None:
    house = np.array(["x", "y", "z"])
    mosek = house[list(o.EXPONENTIAL_TO_MOSEK)]
    assert mosek.tolist() == ["z", "y", "x"]
    assert mosek[list(o.EXPONENTIAL_TO_MOSEK)].tolist() == house.tolist()


def test_rows_that_are_no_triangle() -> None:
    assert [o.side(o.triangle(n)) for n in SIDES] == list(SIDES)
    with pytest.raises(ValueError, match="5 is no n"):
        o.side(5)
