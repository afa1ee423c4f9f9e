"""Dense and sparse matrices give the same answers to the same questions."""

import pytest
import torch

from optlayer.matrix import Dense, Pattern, Sparse, diagonal, plus_diagonal, stacked

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


PATTERNS = {
    "scattered": (4, 5, [1, 3, 5, 9, 12, 14, 19]),
    "diagonal": (4, 4, [0, 5, 10, 15]),
    "bounds": (5, 3, [0, 3, 8, 11, 12]),
    "some rows empty": (4, 3, [3, 4, 9]),
    "empty": (3, 2, []),
}


@pytest.fixture(params=PATTERNS)
def pair(request):
    """A sparse matrix with an entry that happens to be 0, and its dense twin; two samples."""
    r, c, places = PATTERNS[request.param]
    values = normal(2, len(places))
    if len(places) > 4:
        values[1, 2] = 0.0
    sparse = Sparse(values, Pattern.of_places((r, c), torch.tensor(places, dtype=torch.int64)))
    whole = torch.zeros(2, r * c, dtype=DOUBLE)
    whole[:, places] = values
    return sparse, Dense(whole.reshape(2, r, c))


def test_a_sparse_matrix_answers_as_its_dense_twin(pair):
    sparse, dense = pair
    (r, c), whole = dense.shape, dense.dense()
    x, y = normal(2, c, seed=1).abs(), normal(2, r, seed=2).abs()
    assert torch.equal(sparse.dense(), whole)
    for ours, theirs, same in [
        (sparse @ x, dense @ x, (whole @ x[..., None])[..., 0]),
        (sparse.mT(y), dense.mT(y), (whole.mT @ y[..., None])[..., 0]),
        (sparse.largest(x), dense.largest(x), (whole.abs() * x[:, None]).amax(2)),
        (sparse.column_largest(y), dense.column_largest(y), (whole.abs() * y[..., None]).amax(1)),
        (sparse.least(x), dense.least(x), (x[:, None] / whole.abs()).amin(2)),
        (sparse.column_least(y), dense.column_least(y), (y[..., None] / whole.abs()).amin(1)),
        (sparse.smallest, dense.smallest, torch.where(whole == 0, torch.inf, whole.abs()).amin(2)),
        (sparse.peaks, dense.peaks, whole.abs().amax(2)),
        (sparse.peak, dense.peak, whole.abs().flatten(1).amax(1, keepdim=True)),
        (sparse.scaled(y, x).dense(), dense.scaled(y, x).dense(), y[..., None] * whole * x[:, None]),
    ]:
        assert torch.allclose(ours, theirs, atol=1e-15)
        assert torch.allclose(ours, same, atol=1e-15)
    assert torch.equal(sparse.is_single, dense.is_single)
    assert torch.equal(sparse.is_single, (whole != 0).sum(2) == 1)
    one = torch.tensor([1])
    assert torch.equal(sparse[one].dense(), dense[one].dense())


def test_bounds_are_told_from_other_rows(pair):
    sparse, dense = pair
    bounds = sparse.pattern.bounds
    whole = torch.zeros_like(dense.dense())
    whole[:, bounds.rows, bounds.columns] = sparse.values[:, bounds.entries]
    whole[:, bounds.other_rows] = Sparse(sparse.values[:, bounds.other_entries], bounds.others).dense()
    assert torch.equal(whole, dense.dense())
    assert (sparse.pattern.count[bounds.rows] == 1).all()
    assert (sparse.pattern.count[bounds.other_rows] != 1).all()


def test_one_sample_stands_for_all():
    constant, x = Dense(normal(1, 3, 4)), normal(5, 4, seed=1)
    assert torch.allclose(constant @ x, torch.stack([constant.values[0] @ row for row in x]))
    assert constant[torch.tensor([3, 4])] is constant


def test_sums_and_stacks(pair):
    sparse, dense = pair
    n = dense.shape[1]
    square = Dense(normal(2, n, n, seed=3))
    d = normal(2, n, seed=4)
    assert torch.equal(plus_diagonal(square, d).dense(), square.dense() + torch.diag_embed(d))
    assert torch.equal(plus_diagonal(diagonal(d), d).dense(), torch.diag_embed(2 * d))
    for lower in (diagonal(d[:1]), Dense(normal(1, 2, n, seed=5)), Dense(normal(1, 0, n))):
        expected = torch.cat([dense.dense(), lower.dense().expand(2, -1, -1)], 1)
        assert torch.equal(stacked(sparse, lower).dense(), expected)


def test_only_what_pays_is_kept_sparse():
    whole = torch.arange(100 * 100)
    assert not Pattern.of_places((100, 100), whole).is_sparse
    assert Pattern.of_places((100, 100), whole[::7]).is_sparse
    assert not Pattern.of_places((10, 10), whole[:100:7]).is_sparse
    assert Pattern.of_places((10, 10), whole[:100:11]).is_sparse  # a diagonal always


def test_a_stack_of_two_patterns_is_made_once() -> None:
    upper, lower = (Pattern.of_places((2, 3), torch.tensor(places)) for places in ([0, 4], [1, 2]))
    assert upper.above(lower) is upper.above(lower)
    again = Pattern(lower.shape, lower.rows, lower.columns)
    assert upper.above(again) is not upper.above(lower)
    assert upper.above(lower).rows.tolist() == [0, 1, 2, 2]
