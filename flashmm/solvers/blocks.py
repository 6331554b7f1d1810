"""Theta as positive semi-definite blocks: the algebra of the psd space.

Coordinates x of theta are orthonormal: variances in units in which their information is 1, and
covariances in the units that follow, times the square root of 2. So x'x is the sum of squares of
the blocks' entries, and gradients transform as x does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.namespaces import Array, FloatArray, like, namespace

__all__ = ["Block", "Blocks", "Decomposition", "symmetric_eigen"]


@dataclass(frozen=True)
class Block:
    """One s x s block, s >= 2.

    Parameters
    ----------
    size
        s.
    basis
        Orthonormal: x @ basis is the flat block, shape (k, s * s).
    pick
        Entries (s * s) to coordinates (k), for symmetric arrays that multiply entry by entry.
    """

    size: int
    basis: Array
    pick: Array


@dataclass(frozen=True)
class Decomposition:
    """Coordinates Y = X - Z split into psd parts of all blocks, X Z = 0.

    Parameters
    ----------
    X
        The projection of Y onto the psd blocks, shape (B, k).
    weight
        Derivative of that projection in the eigenbasis, entry by entry, shape (B, k).
    rotation
        Y = Y' R with Y' in the eigenbasis, shape (B, k, k); None where that is the basis itself.
    """

    X: FloatArray
    weight: FloatArray
    rotation: FloatArray | None


@dataclass(frozen=True)
class Blocks:
    """How theta (k entries) fills blocks.

    Parameters
    ----------
    single
        1.0 for entries that are blocks of their own, else 0.0, shape (k,).
    larger
        The other blocks.
    free
        1.0 for entries that are in no block, else 0.0, shape (k,): any value will do.
    row, column
        For each entry the positions of the variances of its row and column, shapes (k,).
    factor
        1 for variances, the square root of 2 for covariances, shape (k,).
    """

    single: Array
    larger: tuple[Block, ...]
    free: Array
    row: Array
    column: Array
    factor: Array

    @classmethod
    def of(cls, blocks: Sequence[NDArray[np.intp]], k: int, example: Array) -> Blocks:
        """For the positions in theta of each block's entries, in arrays like ``example``."""
        single, free = np.zeros(k), np.ones(k)
        row, column, factor = np.arange(k), np.arange(k), np.ones(k)
        larger = []
        for block in blocks:
            s = block.shape[0]
            free[block] = 0.0
            if s == 1:
                single[block[0, 0]] = 1.0
                continue
            basis, pick = np.zeros((k, s * s)), np.zeros((s * s, k))
            for a in range(s):
                for b in range(a, s):
                    i = block[a, b]
                    row[i], column[i] = block[a, a], block[b, b]
                    pick[a * s + b, i] = 1.0
                    if a == b:
                        basis[i, a * s + a] = 1.0
                    else:
                        factor[i] = math.sqrt(2.0)
                        basis[i, a * s + b] = basis[i, b * s + a] = math.sqrt(0.5)
            larger.append(Block(s, like(basis, example), like(pick, example)))
        return cls(
            like(single, example),
            tuple(larger),
            like(free, example),
            like(row, example),
            like(column, example),
            like(factor, example),
        )

    def units(self, information: FloatArray) -> FloatArray:
        """What theta is divided by to give coordinates, shape (B, k)."""
        xp = namespace(information)
        curvature = xp.linalg.diagonal(information)
        effect = xp.where(curvature > 0, curvature, 1.0) ** -0.25  # of a standard deviation
        return (
            xp.take(effect, self.row, axis=1) * xp.take(effect, self.column, axis=1) / self.factor
        )

    def matrices(self, block: Block, x: FloatArray) -> FloatArray:
        """The matrices of a block, shape (B, s, s)."""
        return namespace(x).reshape(x @ block.basis, (x.shape[0], block.size, block.size))

    def coordinates(self, block: Block, X: FloatArray) -> FloatArray:
        """The inverse of `matrices`, zero for other blocks, shape (B, k)."""
        flat = namespace(X).reshape(X, (X.shape[0], block.size * block.size))
        return flat @ block.basis.T

    def decomposed(self, Y: FloatArray) -> Decomposition:
        """Split coordinates into their psd parts."""
        xp = namespace(Y)
        alone = self.single + self.free
        kept_as_is = (Y >= 0) | (self.free > 0)
        X = xp.where(kept_as_is, Y, 0.0) * alone
        weight = xp.astype(kept_as_is, xp.float64) * alone
        if not self.larger:
            return Decomposition(X, weight, None)
        rotation = xp.eye(Y.shape[1], dtype=Y.dtype) * alone + xp.zeros_like(Y)[:, :, None]
        for block in self.larger:
            s = block.size
            values, vectors = symmetric_eigen(self.matrices(block, Y))
            kept = xp.clip(values, min=0.0)
            part = xp.matmul(vectors * kept[:, None, :], xp.matrix_transpose(vectors))
            X = X + self.coordinates(block, part)
            a, b = values[:, :, None], values[:, None, :]
            gap = a - b
            mixed = (kept[:, :, None] - kept[:, None, :]) / xp.where(gap == 0.0, 1.0, gap)
            same = xp.astype(a >= 0, xp.float64)
            omega = xp.where((gap == 0.0) | ((a >= 0) == (b >= 0)), same, mixed)
            weight = weight + xp.reshape(omega, (Y.shape[0], s * s)) @ block.pick
            kron = vectors[:, :, None, :, None] * vectors[:, None, :, None, :]
            kron = xp.reshape(kron, (Y.shape[0], s * s, s * s))
            turned = xp.matmul(xp.matmul(block.basis, xp.matrix_transpose(kron)), block.basis.T)
            rotation = rotation + turned
        return Decomposition(X, weight, rotation)

    def multiplier(self, x: FloatArray, gradient: FloatArray, zero: float) -> FloatArray:
        """What the boundary holds at x: the psd part Z of -gradient within the null spaces of x.

        Parameters
        ----------
        x
            Coordinates in the space, shape (B, k).
        gradient
            Gradient of the objective there, shape (B, k).
        zero
            Eigenvalues of x up to this count as zero.

        Returns
        -------
        array
            Shape (B, k), and x with those eigenvalues exactly zero, shape (B, k).
        """
        xp = namespace(x)
        at_zero = (x <= zero) & (self.single > 0)
        Z = xp.where(at_zero, xp.clip(-gradient, min=0.0), 0.0)
        if not self.larger:
            return Z
        for block in self.larger:
            values, vectors = symmetric_eigen(self.matrices(block, x))
            size = xp.max(xp.abs(values), axis=1, keepdims=True)
            null = xp.astype(values <= zero + 1e-13 * size, xp.float64)
            N = xp.matmul(vectors * null[:, None, :], xp.matrix_transpose(vectors))
            inner = xp.matmul(xp.matmul(N, self.matrices(block, -gradient)), N)
            inner = 0.5 * (inner + xp.matrix_transpose(inner))
            held, axes = symmetric_eigen(inner)
            held = xp.clip(held, min=0.0)
            part = xp.matmul(axes * held[:, None, :], xp.matrix_transpose(axes))
            Z = Z + self.coordinates(block, part)
        return Z

    def lowest(self, x: FloatArray) -> FloatArray:
        """Over all blocks the smallest eigenvalue, relative to its block's largest, (B,)."""
        xp = namespace(x)
        # A block of its own is not negative or negative altogether.
        negative = xp.astype((self.single > 0) & (x < 0), xp.float64)
        result = xp.min(1.0 - 2.0 * negative, axis=1)
        for block in self.larger:
            values, _ = symmetric_eigen(self.matrices(block, x))
            size = xp.max(xp.abs(values), axis=1)
            share = xp.min(values, axis=1) / xp.where(size > 0, size, 1.0)
            result = xp.where(share < result, share, result)
        return result


def symmetric_eigen(X: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues (B, s) and vectors (B, s, s) of symmetric matrices; of 2 x 2 by one rotation."""
    xp = namespace(X)
    if X.shape[-1] == 2:
        a, b, c = X[:, 0, 0], X[:, 0, 1], X[:, 1, 1]
        twice = xp.where(b == 0.0, 1.0, 2.0 * b)
        slope = (c - a) / twice
        sign = 2.0 * xp.astype(slope >= 0, xp.float64) - 1.0
        with np.errstate(over="ignore"):
            tangent = sign / (xp.abs(slope) + xp.sqrt(1.0 + slope * slope))
        tangent = xp.where(b == 0.0, 0.0, tangent)
        cosine = 1.0 / xp.sqrt(1.0 + tangent * tangent)
        sine = tangent * cosine
        values = xp.stack([a - tangent * b, c + tangent * b], axis=1)
        first = xp.stack([cosine, sine], axis=1)
        second = xp.stack([-sine, cosine], axis=1)
        return values, xp.stack([first, second], axis=1)
    fine = xp.all(xp.isfinite(xp.reshape(X, (X.shape[0], X.shape[-1] ** 2))), axis=1)
    safe = xp.where(fine[:, None, None], X, xp.eye(X.shape[-1], dtype=X.dtype))
    values, vectors = xp.linalg.eigh(safe)
    return xp.where(fine[:, None], values, xp.nan), vectors
