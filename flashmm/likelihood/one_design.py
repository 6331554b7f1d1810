"""What the engines for features that share one design have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashmm.arrays.namespaces import BoolArray, FloatArray, IntArray, take
from flashmm.likelihood.base import Evaluation, Forms, OfProjection, assembled
from flashmm.likelihood.moments import ContrastMoments, contrast_moments
from flashmm.likelihood.projection import Projection

__all__ = ["OneDesign"]


@dataclass(frozen=True)
class OneDesign(OfProjection):
    """A projection, the method, and what follows from them whatever the engine."""

    projection: Projection
    method: Literal["REML", "ML"]

    @property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        return self.projection.perfect_fit

    @property
    def df(self) -> int:
        """Contrasts that the likelihood counts: n - p of REML, n of ML."""
        p = self.projection
        return p.n if self.method == "ML" else p.n - p.p

    @property
    def df_trace(self) -> int:
        """Contrasts of variance sigma2 outside the span that log |V| and the traces run over."""
        p = self.projection
        return p.n - p.r_full if self.method == "ML" else p.n - p.p - p.r

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q); each engine its own."""
        raise NotImplementedError

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k)."""
        return contrast_moments(self, theta, L, adjustment=adjustment)

    def on_span(
        self, quadratic: Forms, trace: Forms, sigma2: FloatArray, features: IntArray
    ) -> Evaluation:
        """The evaluation from forms on the span of Z; see `assembled`."""
        p = self.projection
        rss = take(p.rss, features) if p.n - p.p - p.r > 0 else None
        return assembled(
            quadratic, trace, sigma2, n=p.n, df=self.df, rss=rss, df_trace=self.df_trace
        )
