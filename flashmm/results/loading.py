"""Reading whatever flashmm saved, without saying what it is."""

from __future__ import annotations

from os import PathLike
from typing import Any

from flashmm.exceptions import InputError, listing
from flashmm.results.ratio_prior import RatioPrior
from flashmm.results.results import MultiLMMResults
from flashmm.slips.answers import answered
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage.files import kind_of

__all__ = ["load"]

_READERS: dict[str, Any] = {
    owner.__name__: owner for owner in (MultiLMMResults, SummaryStats, PatternedStats, RatioPrior)
}


@answered
def load(path: str | PathLike[str]) -> Any:
    """Read what flashmm saved: results, summary statistics or a prior of variance ratios.

    Parameters
    ----------
    path
        A file that a method ``save`` wrote.

    Returns
    -------
    MultiLMMResults, SummaryStats, PatternedStats or RatioPrior

    Raises
    ------
    InputError
        If there is no such file, or it is none of flashmm's, damaged or altered.

    Examples
    --------
    >>> import tempfile, numpy as np, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
    >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(f"{folder}/fit.nc")
    ...     fm.load(f"{folder}/fit.nc")
    <MultiLMMResults: REML, 3 features, 3 converged; n=40, p=1, q=8>
    """
    kind = kind_of(path)
    if kind not in _READERS:
        raise InputError(
            f"{str(path)!r} holds {kind or 'nothing that flashmm saved'!r}; flashmm.load reads "
            f"{listing(_READERS)}."
        )
    return _READERS[kind].load(path)
