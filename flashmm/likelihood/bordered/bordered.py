"""Several components: the largest made diagonal, the others a narrow border.

In the eigenbasis of the component with most columns M is a diagonal matrix and a narrow border:
`flashmm.likelihood.bordered.border` has the algebra. X is gone: the projection took it out
beforehand.

(Woodbury's identity in the coordinates of FaST-LMM, Lippert et al. 2011.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from flashmm.arrays.namespaces import BoolArray, FloatArray, IntArray, namespace, put, take
from flashmm.likelihood.base import (
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    evaluate_in_parts,
    small_residual,
    standard_errors,
)
from flashmm.likelihood.bordered.border import (
    Border,
    Pieces,
    factorised,
    make_border,
    quadratic_forms,
    solve,
    traces,
)
from flashmm.likelihood.general import GeneralLikelihood, root_and_diagonal, weighted_sum
from flashmm.likelihood.one_design import OneDesign
from flashmm.likelihood.projection import Projection

__all__ = ["BorderedLikelihood", "main_component"]

# Variances of estimates are what is left of terms in theta^2 / sigma2; at a residual variance
# below this share of y's on X too few digits are left, and the general likelihood takes over.
_CANCELLING = 1e-3


def main_component(projection: Projection) -> int | None:
    """The parameter to make diagonal: the single variance with most columns; None if none."""
    structure = projection.structure
    best, most = None, 0
    for i, parameter in enumerate(structure.parameters):
        rows, _ = structure.columns(parameter)
        alone = sum(p.term == parameter.term for p in structure.parameters) == 1
        if alone and rows.size > most:
            best, most = i, rows.size
    return best


@dataclass(frozen=True)
class BorderedLikelihood(OneDesign):
    """REML or ML log-likelihood for several components, one of them made diagonal.

    Where D itself is not positive definite (a very negative main variance held up by the
    others) the general likelihood takes over, feature by feature.
    """

    engine: str = "bordered"

    @cached_property
    def general(self) -> GeneralLikelihood:
        """The yardstick, for what the border cannot do."""
        return GeneralLikelihood(self.projection, self.method)

    @cached_property
    def border(self) -> Border:
        """The border of the error contrasts' covariance."""
        return self._make_border(self.projection.A)

    @cached_property
    def border_full(self) -> Border:
        """The border of V on the span of Z."""
        return self._make_border(self.projection.A_full)

    def _make_border(self, A: FloatArray) -> Border:
        main = main_component(self.projection)
        assert main is not None
        return make_border(A, main, [bool(x) for x in self.projection.structure.is_variance[:-1]])

    @cached_property
    def _u(self) -> FloatArray:
        return self.projection.u @ self.border.rotation

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: some (w, w) matrices and (r,) vectors."""
        r, w, k = self.projection.r_full, self.border.width, self.n_params
        per_feature = (14 + 2 * k) * w * w + (10 + 4 * k) * r + 3 * w * self.projection.p
        return max(1, memory // (8 * per_feature))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        p, ml, xp = self.projection, self.method == "ML", namespace(theta)
        # Fits start from one point, where only the quadratic forms differ between features.
        shared = theta.shape[0] > 1 and bool(xp.all(theta == theta[:1, :]))
        point = theta[:1, :] if shared else theta
        pieces, inside, unknown = factorised(self.border, point)
        trace_border, trace_pieces = self.border, pieces
        if ml:
            trace_border = self.border_full
            trace_pieces, inside_full, unknown_full = factorised(self.border_full, point)
            inside, unknown = inside & inside_full, unknown | unknown_full
        unknown = unknown | (point[:, -1] <= small_residual(p.structure.q))
        known = inside & ~unknown
        if self.df_trace > 0:
            known = known & (point[:, -1] > 0)
        at, chosen = theta, features
        if not bool(xp.all(known)):
            point, pieces = point[known], pieces.take(known)
            trace_pieces = trace_pieces.take(known) if ml else pieces
        known = xp.broadcast_to(known, theta.shape[:1])
        if not bool(xp.all(known)):
            at, chosen = theta[known], features[known]
        evaluation = self.on_span(
            quadratic_forms(self.border, pieces, at, take(self._u, chosen)),
            traces(trace_border, trace_pieces, point).repeated(at.shape[0]),
            at[:, -1],
            chosen,
        ).spread(known)
        if bool(xp.any(unknown)):
            unknown = xp.broadcast_to(unknown, theta.shape[:1])
            evaluation.put(
                unknown, evaluate_in_parts(self.general, theta[unknown], features[unknown])
            )
        return evaluation

    # What theta implies is asked for once per fit, and M^-1 is needed in factored form only.

    @cached_property
    def _loadings(self) -> FloatArray:
        """K'G_iH of each parameter in the rotated basis, shape (k, r, p)."""
        _, KGH = self.general.products
        return namespace(KGH).matmul(self.border.rotation.T, KGH)

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        w, bad = self._solve_u(theta, features)
        correction = sum(
            theta[:, i, None] * (w @ self._loadings[i, :, :]) for i in range(self.n_params - 1)
        )
        beta = take(p.beta_ols.T, features) - take(p.unit, features)[:, None] * correction
        return self._mended(beta, bad, theta, features, self.general.beta)

    def _pieces(self, theta: FloatArray) -> tuple[Pieces, BoolArray]:
        """Pieces, and where variances are to be had from the general likelihood."""
        pieces, _, unknown = factorised(self.border, theta)
        return pieces, unknown | (theta[:, -1] <= _CANCELLING)

    @staticmethod
    def _mended(
        values: FloatArray,
        bad: BoolArray,
        theta: FloatArray,
        features: IntArray,
        exact: Callable[..., FloatArray],
        *arguments: FloatArray,
    ) -> FloatArray:
        """Values (B, ...) with those of the ``bad`` features from a function of the general one."""
        if bool(namespace(theta).any(bad)):
            put(values, bad, exact(theta[bad], features[bad], *arguments))
        return values

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c).

        With f_i = K'G_iH l the term (sum_i theta_i f_i)'M^-1 (sum_j theta_j f_j) takes weighted
        sums of products that all features share, f_i f_j and c f_i.
        """
        p, xp, border = self.projection, namespace(theta), self.border
        HGH, _ = self.general.products
        pieces, bad = self._pieces(theta)
        loaded = self._loadings @ L.T
        k, r, c = loaded.shape
        variance = theta[:, -1:] * xp.sum((p.XX_inverse @ L.T) * L.T, axis=0)
        variance += theta[:, :-1] @ xp.sum(xp.matmul(HGH, L.T) * L.T, axis=1)
        CF = 0.0
        for i in range(k):
            f = loaded[i, :, :]
            for j in range(i + 1):
                weight = (1.0 if i == j else 2.0) * theta[:, i] * theta[:, j]
                variance -= weight[:, None] * (pieces.inverse @ (f * loaded[j, :, :]))
            products = xp.reshape(border.C[:, :, None] * f[:, None, :], (r, -1))
            CF = CF + theta[:, i, None] * (pieces.inverse @ products)
        CF = xp.reshape(CF, (theta.shape[0], border.width, c))
        variance += xp.sum(xp.matmul(pieces.Q, CF) * CF, axis=1)
        variance *= take(p.scale, features)[:, None]
        return self._mended(variance, bad, theta, features, self.general.contrast_variance, L)

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, xp = self.projection, namespace(theta)
        HGH, _ = self.general.products
        pieces, bad = self._pieces(theta)
        F = weighted_sum(theta[:, :-1], self._loadings)
        scaled = F * pieces.inverse[:, :, None]
        CF = xp.matmul(self.border.C.T, scaled)
        C = weighted_sum(theta[:, :-1], HGH)
        C += theta[:, -1, None, None] * p.XX_inverse
        C -= xp.matmul(xp.matrix_transpose(F), scaled)
        C += xp.matmul(xp.matrix_transpose(CF), xp.matmul(pieces.Q, CF))
        C = 0.5 * (C + xp.matrix_transpose(C)) * take(p.scale, features)[:, None, None]
        return self._mended(C, bad, theta, features, self.general.covariance)

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, structure, xp = self.projection, self.projection.structure, namespace(theta)
        unit = take(p.unit, features)[:, None] / p.column_scale
        w, bad = self._solve_u(theta, features)
        blup = structure.multiply(theta, w @ (p.K @ self.border.rotation).T) * unit
        errors = None
        if se is not None:
            border, K = self.border, p.K
            if se == "conditional":
                border, K = self.border_full, p.K_full
            pieces, _, unknown = factorised(border, theta)
            bad = bad | unknown | (theta[:, -1] <= _CANCELLING)
            errors = standard_errors(self._variances(theta, border, pieces, K @ border.rotation))
            errors *= unit
        if bool(xp.any(bad)):
            exact = self.general.random_effects(theta[bad], features[bad], se)
            put(blup, bad, exact.blup)
            if errors is not None:
                put(errors, bad, exact.se)
        return RandomEffects(blup, errors)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v = K M^-1 K'v for the rows of vectors (B, c, q), same shape."""
        xp, K = namespace(theta), self.projection.K @ self.border.rotation
        pieces, bad = self._pieces(theta)
        scaled = xp.matmul(vectors, K) * pieces.inverse[:, None, :]
        inner = xp.matmul(xp.matmul(scaled, self.border.C), pieces.Q)
        scaled -= xp.matmul(inner, self.border.C.T) * pieces.inverse[:, None, :]
        result = xp.matmul(scaled, K.T)
        if bool(xp.any(bad)):
            put(result, bad, self.general.apply_T(theta[bad], vectors[bad]))
        return result

    def _variances(
        self, theta: FloatArray, border: Border, pieces: Pieces, K: FloatArray
    ) -> FloatArray:
        """Diagonal of D - D K M^-1 K'D, shape (B, q)."""
        xp = namespace(theta)
        variance, DK = root_and_diagonal(self.projection.structure, theta, K)
        scaled = DK * pieces.inverse[:, None, :]
        variance -= xp.sum(scaled * DK, axis=2)
        DKC = xp.matmul(scaled, border.C)
        variance += xp.sum(xp.matmul(DKC, pieces.Q) * DKC, axis=2)
        return variance

    def _solve_u(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, BoolArray]:
        """M^-1 u in the rotated basis, and where it could not be had."""
        pieces, _, bad = factorised(self.border, theta)
        return solve(self.border, pieces, take(self._u, features)), bad

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        p = self.projection
        _, definite, unknown = factorised(self.border_full, theta)
        if p.n > p.r_full:
            definite = definite & (theta[:, -1] > 0)
        if bool(namespace(theta).any(unknown)):
            put(definite, unknown, self.general.is_definite(theta[unknown]))
        return definite

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        return self.general.distance_to_edge(theta)
