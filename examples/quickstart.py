"""Interferon response of blood cells, cell type by cell type (Kang et al. 2018).

One linear mixed model per gene, 1,267 genes, 1,556 cells, four samples:

    python examples/quickstart.py [results.nc]

The data come with flashmm: fm.datasets.kang().source says whose they are, .licence on what terms.
"""

import sys
from pathlib import Path

import pandas as pd

import flashmm as fm


def fit(cells: pd.DataFrame, counts: pd.DataFrame) -> fm.MultiLMMResults:
    """All genes at once: a level and an interferon effect per cell type, random samples."""
    model = fm.MultiLMM.from_formula(
        fixed="~ 0 + log(libsize) + cluster_id + cluster_id:group_id",
        random="~ 0 + sample_id",
        data=cells,
        Y=counts,
        transform="log2p1",  # y = log2(1 + count), so an effect of 1 is a doubling
    )
    # Variances may not be negative here. The default, "unconstrained", allows it, which suits
    # tests of the variances themselves; but with four samples 214 genes then end where V is not
    # positive definite, and some standard errors do not exist.
    return model.fit(method="REML", parameter_space="psd")


def main(path: Path) -> None:
    kang = fm.datasets.kang()  # cells, one row each, and counts, genes x cells, labelled
    cells = kang.data
    result = fit(cells, kang.Y)
    print(result.summary())

    # Stimulated against control cells, in each of the five cell types.
    effects = {
        name: f"cluster_id[{name}]:group_id[T.stim]" for name in cells["cluster_id"].unique()
    }
    # With four samples a gene's own data hardly say how much samples differ, but all genes together
    # do: "integrated" averages each test over what they know (docs/few-subjects.md).
    tests = result.t_test(effects, df="integrated")
    columns = ["estimate", "se", "t", "p", "p_adjusted"]
    for name in tests.contrasts:
        print(f"\n{name}: genes with the strongest response (log2 scale)")
        print(tests.top_table(name, n=6)[columns].to_string(float_format="{:.3g}".format))

    result.save(path)
    again = fm.MultiLMMResults.load(path)
    assert again.params.equals(result.params)
    print(f"\nSaved and loaded again: {path} ({path.stat().st_size / 1e6:.1f} MB), {again!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("kang.nc"))
