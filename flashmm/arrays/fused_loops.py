"""Loops that read a stored element once and add it wherever it belongs.

Written in the Python that numba compiles (`flashmm.arrays.jit`): called as they are, they give the
same and take forever. Nothing is checked but in `inspected`. Indices are unsigned, since numba lets
signed ones count from the end, which costs as much as the sum itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray

__all__ = ["DISORDER", "FRACTIONS", "LANES", "add_features", "add_samples", "inspected"]

# What `inspected` finds, added up.
DISORDER, NOT_FINITE, FRACTIONS = 1, 2, 4
# What a feature has side by side: the sum of squares, two columns, and the run.
LANES = 4


def inspected(data: Any, indices: IntArray, indptr: IntArray, width: int, largest: int) -> int:
    """What speaks against adding the elements of a compressed matrix as they are.

    Parameters
    ----------
    data, indices, indptr
        The matrix; the pointer is sound.
    width
        Number of rows (or columns) that its indices count.
    largest
        Largest whole number with an entry in a table of transformed values.

    Returns
    -------
    int
        The sum of `DISORDER` (an index outside, or not above the one before), `NOT_FINITE` and
        `FRACTIONS` (an element that is no whole number from 0 to ``largest``).
    """
    falls = 0
    for e in range(1, indices.size):
        falls += indices[e] <= indices[e - 1]
    for i in range(indptr.size - 1):  # from one row to the next indices may fall
        low, high = indptr[i], indptr[i + 1]
        if low < high:
            if low > 0:
                falls -= indices[low] <= indices[low - 1]
            falls += 2 * ((indices[low] < 0) | (indices[high - 1] >= width))
    broken, fractions = 0, 0
    for e in range(data.size):
        x = data[e]
        broken += not np.isfinite(x)
        inside = x if 0 <= x <= largest else 0  # what is larger has no int32
        fractions += np.int32(inside) != x
    return DISORDER * (falls != 0) + NOT_FINITE * (broken != 0) + FRACTIONS * (fractions != 0)


def add_samples(  # noqa: PLR0915 (one loop over the elements is the point)
    data: Any,
    indices: IntArray,
    indptr: IntArray,
    order: IntArray,
    first: int,
    last: int,
    table: FloatArray,
    numbers: FloatArray,
    runs: IntArray,
    codes: IntArray,
    factors: FloatArray,
    unit: Any,
    columns: FloatArray,
    rows: FloatArray,
) -> None:
    """Add elements stored sample by sample to the sums of the features ``first`` to ``last``.

    Parameters
    ----------
    data, indices, indptr
        Elements of b samples, features ascending, uint32 or uint64 indices.
    order
        Order in which samples are added, shape (b,).
    first, last
        Threads share the work by features, so that every sum is made in one order.
    table
        Values to take in place of whole numbers, shape (t,); empty to take elements as they are.
    numbers
        What is multiplied, shape (b, k), k at least 4: the first with the squares, the fourth with
        what is added to the run, the others with the elements.
    runs
        Row that a sample is added to, shape (b,): this is quick where ``order`` brings samples
        of a row together.
    codes, factors, unit
        Other layers: rows, shape (l, b), and factors, shape (l, b), but for the layers that are
        ``unit``, shape (l,).
    columns
        Sums to add the products with ``numbers`` to, shape (k, m).
    rows
        Sums by row to add to, shape (r, m).
    """
    m, more = rows.shape[1], numbers.shape[1] - LANES
    values, tabled = np.empty(last - first), table.size > 0
    # Sums over all samples begin anew, for the sake of their last digits.
    lanes, others = np.zeros(LANES * m), np.zeros((m, more))
    run = np.int64(-1)
    for j in range(order.size):
        i = order[j]
        low, high = indptr[i], indptr[i + 1]
        if first > 0:
            stop = high
            while low < stop:
                middle = (low + stop) // 2
                if indices[middle] < first:
                    low = middle + 1
                else:
                    stop = middle
        if last < m:
            start = low
            while start < high:
                middle = (start + high) // 2
                if indices[middle] < last:
                    start = middle + 1
                else:
                    high = middle
        if runs[i] != run:
            if run >= 0:
                into = rows[run]
                for f in range(first, last):
                    into[f] += lanes[LANES * f + 3]
                    lanes[LANES * f + 3] = 0.0
            run = runs[i]
        size = max(0, high - low)
        here, given, value = indices[low : low + size], data[low : low + size], values[:size]
        square, one, two, three = numbers[i, 0], numbers[i, 1], numbers[i, 2], numbers[i, 3]
        for e in range(size):
            x = table[np.uint32(np.int32(given[e]))] if tabled else np.float64(given[e])
            value[e] = x
            at = np.uint64(LANES) * np.uint64(here[e])
            beside, after, last_at = at + np.uint64(1), at + np.uint64(2), at + np.uint64(3)
            sums = lanes[at], lanes[beside], lanes[after], lanes[last_at]
            lanes[at] = sums[0] + square * x * x
            lanes[beside] = sums[1] + one * x
            lanes[after] = sums[2] + two * x
            lanes[last_at] = sums[3] + three * x
        if more:
            for e in range(size):
                into = others[here[e]]
                for c in range(more):
                    into[c] += numbers[i, LANES + c] * value[e]
        for layer in range(codes.shape[0]):
            into = rows[codes[layer, i]]
            if unit[layer]:
                for e in range(size):
                    into[here[e]] += value[e]
            else:
                factor = factors[layer, i]
                for e in range(size):
                    into[here[e]] += factor * value[e]
    for f in range(first, last):
        for c in range(3):
            columns[c, f] += lanes[LANES * f + c]
        for c in range(more):
            columns[LANES + c, f] += others[f, c]
        if run >= 0:
            rows[run, f] += lanes[LANES * f + 3]


def add_features(
    data: Any,
    indices: IntArray,
    indptr: IntArray,
    first: int,
    last: int,
    table: FloatArray,
    numbers: FloatArray,
    runs: IntArray,
    codes: IntArray,
    factors: FloatArray,
    unit: Any,
    columns: FloatArray,
    rows: FloatArray,
) -> None:
    """Add elements stored feature by feature to the sums of these features.

    Parameters
    ----------
    data, indices, indptr
        Elements of m features, uint32 or uint64 indices of b samples.
    first, last, table, numbers, runs, codes, factors, unit
        As in `add_samples`.
    columns, rows
        What is added to, features first: shapes (m, k) and (m, r).
    """
    more = numbers.shape[1] - LANES
    for f in range(first, last):
        low, high = indptr[f], indptr[f + 1]
        here, given, into = indices[low:high], data[low:high], rows[f]
        value = np.empty(here.size)
        if table.size:
            for e in range(value.size):
                value[e] = table[np.uint32(np.int32(given[e]))]
        else:
            for e in range(value.size):
                value[e] = given[e]
        square, one, two = 0.0, 0.0, 0.0
        for e in range(value.size):
            x, number = value[e], numbers[here[e]]
            square += number[0] * x * x
            one += number[1] * x
            two += number[2] * x
            into[runs[here[e]]] += number[3] * x
            for c in range(more):
                columns[f, LANES + c] += number[LANES + c] * x
        columns[f, 0] += square
        columns[f, 1] += one
        columns[f, 2] += two
        for layer in range(codes.shape[0]):
            code = codes[layer]
            if unit[layer]:
                for e in range(value.size):
                    into[code[here[e]]] += value[e]
            else:
                factor = factors[layer]
                for e in range(value.size):
                    into[code[here[e]]] += factor[here[e]] * value[e]
