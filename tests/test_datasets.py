"""Every packaged data set loads, says whose it is, and gives the fit that R gives."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import references as ref
from numpy.testing import assert_allclose

import flashmm as fm

FILES = Path(fm.datasets.__file__).parent / "files"
NAMES = [name for name in fm.datasets.__all__ if name != "Dataset"]

# Samples and columns of `data`, features of `Y`, whether there are weights.
SHAPES = {
    "sleepstudy": (180, 3, None, False),
    "penicillin": (144, 3, None, False),
    "orthodont": (108, 4, None, False),
    "kang": (1556, 4, 1267, False),
    "varpart": (100, 5, 200, False),
    "kimma": (12, 8, 1000, True),
}
# Copies in tests/reference, read there by R scripts and by tests.
COPIES = {
    "sleepstudy.csv": "lme4/sleepstudy.csv",
    "penicillin.csv": "lme4/penicillin.csv",
    "orthodont.csv": "residual/orthodont.csv",
    "varpart/samples.csv": "varpart/samples.csv",
    "varpart/expression.csv.gz": "varpart/expression.csv.gz",
    "kimma/targets.csv": "weights/kimma_targets.csv",
    "kimma/log2cpm.csv.gz": "weights/kimma_log2cpm.csv.gz",
    "kimma/weights.csv.gz": "weights/kimma_weights.csv.gz",
}


def fitted(data: fm.datasets.Dataset, features: object = slice(None)) -> fm.MultiLMMResults:
    """The data set's own model of some of its features, variances not negative."""
    tables = {}
    if data.Y is not None:
        tables["Y"] = data.Y.loc[features]
    if data.weights is not None:
        tables["weights"] = data.weights.loc[features]
    model = fm.MultiLMM.from_formula(
        data.formula, data=data.data, transform=data.transform, **tables
    )
    return model.fit(parameter_space="psd")


def test_all_are_listed():
    assert sorted(NAMES) == sorted(SHAPES)
    assert "datasets" in fm.__all__


@pytest.mark.parametrize("name", NAMES)
def test_shape_labels_source_and_licence(name):
    data = getattr(fm.datasets, name)()
    samples, columns, features, weights = SHAPES[name]
    assert data.name == name
    assert data.data.shape == (samples, columns)
    assert (None if data.Y is None else data.Y.shape) == (features and (features, samples))
    assert (data.weights is not None) == weights
    for table in (data.Y, data.weights):
        if table is not None:
            assert table.columns.equals(data.data.index)
            assert table.index.is_unique
    for text in (data.source, data.licence, data.description, data.formula):
        assert len(text) > 15
    assert data.license == data.licence
    assert repr(data).startswith(f"{name}: ")
    assert f"{samples:,} samples" in repr(data)
    assert copy.copy(data).source == pickle.loads(pickle.dumps(data)).source


def test_two_calls_share_nothing():
    sleep = fm.datasets.sleepstudy()
    sleep.data["Days"] += 1
    assert fm.datasets.sleepstudy().data["Days"].min() == 0


@pytest.mark.parametrize(
    ("name", "case"),
    [("sleepstudy", "sleepstudy_correlated_reml"), ("penicillin", "penicillin_crossed_reml")],
)
def test_lme4s_data_give_lme4s_fit(name, case):
    result = fitted(getattr(fm.datasets, name)())
    assert_allclose(result.llf.item(), ref.lme4_case(case)["logLik"], rtol=1e-9)


def test_orthodont_gives_nlmes_fit():
    tight = json.loads((ref.REFERENCE / "residual" / "nlme_tight.json").read_text("utf-8"))
    result = fitted(fm.datasets.orthodont())
    assert_allclose(result.llf.item(), tight["slope"]["equal"], rtol=1e-9)


def test_kangs_cells_give_flashmms_fit():
    result = fitted(fm.datasets.kang(), ["ISG15"])
    theirs = ref.kang_fit()["theta"].loc[["ISG15"]]
    assert_allclose(result.theta, theirs, rtol=1e-5)


def test_varpart_gives_lme4s_fit():
    """The first feature, its variances all above zero."""
    result = fitted(fm.datasets.varpart(), ["gene1"])
    assert_allclose(result.llf.item(), ref.varpart().reference.loc["gene1", "logLik"], rtol=1e-9)


def test_kimma_gives_lmertests_fit():
    text = (ref.REFERENCE / "weights" / "kimma_lmer_weighted.json").read_text("utf-8")
    theirs = json.loads(text)[0]
    result = fitted(fm.datasets.kimma(), [theirs["gene"]])
    assert_allclose(result.llf.item(), theirs["logLik"], rtol=1e-9)


@pytest.mark.parametrize("file", COPIES)
def test_files_are_those_of_the_references(file):
    assert (FILES / file).read_bytes() == (ref.REFERENCE / COPIES[file]).read_bytes()


def test_all_files_are_small_and_have_their_licence():
    sizes = {path: path.stat().st_size for path in FILES.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 2e6
    texts = {path.stem for path in (FILES / "licences").iterdir()}
    assert texts == {"GPL-2", "GPL-3", "MIT-kimma"}


def test_what_is_not_there_names_where_it_is():
    sleep = fm.datasets.sleepstudy()
    with pytest.raises(AttributeError, match=r"`head`: .* `data\.head`"):
        sleep.head()
    with pytest.raises(AttributeError, match=r"`Reaction`: .* data\['Reaction'\]"):
        _ = sleep.Reaction
    with pytest.raises(AttributeError, match=r"no `licenses`: there are 'name', .*'licence'"):
        _ = sleep.licenses
    with pytest.raises(AttributeError, match=r"no data set `load`\. There are .*'sleepstudy\(\)'"):
        fm.datasets.load("sleepstudy")
    with pytest.raises(fm.InputError, match="no argument `as_frame`"):
        fm.datasets.sleepstudy(as_frame=True)
    with pytest.raises(fm.InputError, match="Pass its `data`"):
        fm.MultiLMM.from_formula(sleep.formula, data=sleep)


def test_every_folder_of_the_references_has_its_source_and_licence():
    text = (ref.REFERENCE / "LICENCES.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    stated = {row[0]: row[1:] for row in rows[1:]}
    assert sorted(stated) == sorted(path.name for path in ref.REFERENCE.iterdir() if path.is_dir())
    assert all(len(row) == 2 and all(row) for row in stated.values())
