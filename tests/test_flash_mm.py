"""The Python package of FLASHMM's authors, where it is installed: the same estimates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import flashmm as fm

flash_mm = pytest.importorskip("flash_mm")


@pytest.mark.filterwarnings("ignore::flashmm.ConvergenceWarning")
@pytest.mark.parametrize(("factors", "method"), [(1, "REML"), (1, "ML"), (2, "REML"), (2, "ML")])
def test_estimates_agree(factors, method):
    """Largest differences of 40 genes seen: 1e-10, relative to the largest number of the gene.

    FLASH-MM has ended where |dlogL| <= 1e-5. By ML with two factors one gene has no maximum: its
    likelihood rises to where V turns singular, and FLASH-MM stops there after 50 iterations.
    """
    sim = fm.simulate.rnaseq(n_genes=40, n_cells=1500, n_samples=25, n_clusters=4, rng=1)
    cells = sim.metadata
    types = pd.get_dummies(cells["cls"]).to_numpy(float)
    treated = (cells["trt"] == "B").to_numpy(float)[:, None]
    X = np.column_stack([np.log(cells["libsize"]), types, types * treated])
    place = np.random.default_rng(0).integers(0, 8, len(X))
    Z = [pd.get_dummies(factor).to_numpy(float) for factor in (cells["sam"], place)][:factors]
    d = [block.shape[1] for block in Z]
    Y = np.log2(1.0 + sim.counts.to_numpy())
    theirs = flash_mm.lmmfit(Y, X, np.hstack(Z), d=d, method=method)
    ours = fm.MultiLMM.from_arrays(Y, X, np.hstack(Z), components=d).fit(method=method)
    ended = np.abs(theirs["dlogL"].to_numpy()).max(axis=0) <= 1e-5
    assert not (ended & ~ours.converged).any()
    assert ended.mean() > 0.9
    for table, name in ((ours.params, "coef"), (ours.bse, "se"), (ours.theta, "theta")):
        found, expected = table.to_numpy()[ended], theirs[name].to_numpy().T[ended]
        scale = np.abs(expected).max(axis=1, keepdims=True)
        assert np.nanmax(np.abs(found - expected) / scale) < 1e-8, name
