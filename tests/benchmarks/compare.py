"""Do two fits answer the same question alike, and is a target met? Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .cases import Target
    from .peers import PeerRun

    FloatArray = NDArray[np.float64]

__all__ = ["agreement", "outcome"]

# Log-likelihoods this close are those of one optimum: 1e-3 is far below what a test can tell.
SAME_LOGLIK = 1e-3
# Degrees of freedom are compared where they matter: above MANY_DF a t is a normal, and some
# peers cut them off.
SAME_DF, MANY_DF = 1e-2, 1e3


def agreement(ours: Mapping[str, FloatArray], peer: PeerRun) -> dict[str, Any]:
    """Compare the same features, ours and a peer's.

    A ratio of times means something only where both found the same optimum: ``same`` features.
    ``peer_lower`` are those whose likelihood the peer left lower than ours; the verdict
    ``agrees`` allows a tenth of them, and none in which ours is the lower. Degrees of freedom,
    where the peer has them, must be the same to a hundredth.
    """
    k = peer.loglik.size
    difference = ours["loglik"][:k] - peer.loglik
    same = np.abs(difference) <= SAME_LOGLIK
    higher, lower = int((difference < -SAME_LOGLIK).sum()), int((difference > SAME_LOGLIK).sum())
    distance = np.abs(ours["theta"][:k] - peer.theta) / ours["se_theta"][:k]
    relative = np.abs(difference) / np.maximum(np.abs(peer.loglik), 1.0)
    report: dict[str, Any] = {
        "features": k,
        "same": int(same.sum()),
        "peer_higher": higher,
        "peer_lower": lower,
        "undefined": k - int(same.sum()) - higher - lower,
        "peer_converged": int(peer.converged.sum()),
        "loglik_difference": _largest(np.abs(difference[same])),
        "loglik_relative": _largest(relative),
        "theta_in_standard_errors": _largest(distance[same]),
        "agrees": higher == 0 and int(same.sum()) >= 0.9 * k,
    }
    if peer.df is not None:
        df = ours["df"][:k]
        few = same[:, None] & (df < MANY_DF)
        apart = _largest((np.abs(df - peer.df) / df)[few])
        report["df_relative"] = apart
        report["agrees"] &= apart is not None and apart <= SAME_DF
    return report


def _largest(values: FloatArray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else None


def outcome(target: Target, case: Mapping[str, Any]) -> tuple[float | None, bool | None]:
    """The measured value of a target, and whether it is met; None where it was not measured.

    ``case`` is what `run_case` returns. A ratio between fits that disagree is not a measurement.
    """
    if target.kind == "seconds":
        value = float(case["seconds"])
        return value, value <= target.bound
    if target.kind == "gigabytes":
        value = case["memory_peak"] / 1e9
        return value, value <= target.bound
    peer = case["peers"].get(target.peer, {})
    if "agreement" not in peer or not peer["agreement"]["agrees"]:
        return None, None
    if target.kind == "loglik":
        value = float(peer["agreement"]["loglik_relative"])
        return value, value <= target.bound
    if target.kind == "within":
        value = 1.0 / peer["ratio"]
        return value, value <= target.bound
    return peer["ratio"], peer["ratio"] >= target.bound
