"""Arrays of numpy, PyTorch and a strict implementation of the standard: one meaning."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from flashmm.arrays.namespaces import (
    Triangle,
    cholesky,
    flatnonzero,
    inverse_of_triangular,
    like,
    namespace,
    put,
    solved,
    take,
    to_numpy,
)


@pytest.fixture(params=["numpy", "array_api_strict", "torch"])
def example(request):
    """An array of each library, to make others like it."""
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        return torch.zeros(1, dtype=torch.float64)
    return {"numpy": np, "array_api_strict": array_api_strict}[request.param].asarray([0.0])


def matrices(count, r):
    root = np.random.default_rng(r).normal(size=(count, r, r + 2))
    return root @ np.swapaxes(root, 1, 2)


def test_arrays_go_there_and_back(example):
    values = np.random.default_rng(1).normal(size=(3, 4))[:, ::-1]
    there = like(values, example)
    assert type(there) is type(example)
    assert there.dtype == example.dtype
    assert_array_equal(to_numpy(there), values)
    assert to_numpy(like([True, False], example)).dtype == bool
    assert_array_equal(to_numpy(namespace(there).sum(there, axis=0)), values.sum(axis=0))


def test_numpy_arrays_are_not_copied():
    values = np.ones(3)
    assert to_numpy(values) is values
    assert like(values, np.zeros(1)) is values


def test_rows_by_mask_and_by_position(example):
    values = np.arange(12.0).reshape(4, 3)
    mask, index = np.array([True, False, False, True]), np.array([2, 0])
    array = like(values, example)
    assert_array_equal(to_numpy(take(array, like(mask, example))), values[mask])
    assert_array_equal(to_numpy(take(array, like(index, example))), values[index])
    assert_array_equal(to_numpy(flatnonzero(like(mask, example))), [0, 3])
    new = np.array([[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]])
    for chosen in (mask, index):
        expected, array = values.copy(), like(values.copy(), example)
        expected[chosen] = new
        put(array, like(chosen, example), like(new, example))
        assert_array_equal(to_numpy(array), expected)


@pytest.mark.parametrize("bad", [(), (0,), (2, 3, 6), tuple(range(7))])
def test_a_matrix_without_a_factor_fails_alone(example, bad):
    M = matrices(7, 3)
    for j in bad:
        M[j] = -M[j] if j % 2 else np.nan
    L, ok = cholesky(like(M, example))
    L, ok = to_numpy(L), to_numpy(ok)
    assert_array_equal(np.flatnonzero(~ok), bad)
    assert_allclose(L[ok] @ np.swapaxes(L[ok], 1, 2), M[ok], rtol=1e-13)
    assert_array_equal(L[ok], np.tril(L[ok]))
    assert np.isnan(L[~ok]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("value", [np.inf, np.nan, -1.0, 0.0])
def test_a_number_that_is_no_variance_has_no_root(example, value):
    L, ok = cholesky(like([[[4.0]], [[value]]], example))
    assert to_numpy(ok).tolist() == [True, False]
    assert to_numpy(L)[0, 0, 0] == 2.0


def test_no_matrices_and_empty_matrices(example):
    for shape in ((0, 3, 3), (2, 0, 0)):
        L, ok = cholesky(like(np.zeros(shape), example))
        assert L.shape == shape
        assert to_numpy(ok).all()


@pytest.mark.parametrize("r", [0, 1, 7, 8, 9, 40])
def test_triangular_matrices_are_inverted(example, r):
    L = np.linalg.cholesky(matrices(3, r))
    inverse = to_numpy(inverse_of_triangular(like(L, example)))
    assert_array_equal(inverse, np.tril(inverse))
    assert_allclose(inverse @ L, np.broadcast_to(np.eye(r), L.shape), atol=1e-12)


@pytest.mark.parametrize("width", [0, 1, 4])
def test_triangles_pack_and_unpack(example, width):
    M = matrices(3, width)
    triangle = Triangle.of(width, example)
    packed = triangle.pack(like(M, example))
    rows, columns = np.triu_indices(width)
    assert_array_equal(to_numpy(packed), M[:, rows, columns])
    assert_array_equal(to_numpy(triangle.unpack(packed)), M)
    # tr(M M) is the sum of squares of all entries
    weighted = to_numpy(triangle.multiplicity) * to_numpy(packed) ** 2
    assert_allclose(weighted.sum(axis=1), (M * M).sum(axis=(1, 2)), rtol=1e-13)


def test_a_singular_matrix_has_no_solution_and_stops_no_other(example):
    M = np.stack([np.eye(2), np.zeros((2, 2)), 4.0 * np.eye(2)])
    found = to_numpy(solved(like(M, example), like(np.ones((3, 2, 1)), example)))
    assert_array_equal(found[:, :, 0], [[1.0, 1.0], [np.nan, np.nan], [0.25, 0.25]])
