"""What is recommended for tests is one thing on every page, in every hint and in the examples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import flashmm as fm
from flashmm.exceptions import ConvergenceWarning
from flashmm.model import _warn_about
from flashmm.results.trust import FEW_LEVELS
from flashmm.solvers.verdict_texts import Status

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
# Pages that say which tests to take; the recommended call or the page that argues it is on each.
ADVISING = (
    "README",
    "calibration",
    "dream-limma-users",
    "few-subjects",
    "flashmm-users",
    "lme4-statsmodels-users",
    "model",
    "moderation",
    "tutorial",
    "which-test",
)


def plain(text: str) -> str:
    """On one line, without marks."""
    return " ".join(text.replace("`", "").split())


@pytest.mark.parametrize("name", ADVISING)
def test_pages_that_advise_name_the_recommended_space_and_df(name):
    text = next(page for page in PAGES if page.stem == name).read_text("utf-8")
    assert 'df="integrated"' in text or '"psd"`, `"integrated"' in text
    assert 'parameter_space="psd"' in text or '`"psd"`' in text
    assert name == "few-subjects" or "few-subjects.md" in text


@pytest.mark.parametrize("path", PAGES + SCRIPTS, ids=lambda path: path.stem)
def test_no_page_says_otherwise(path):
    text = path.read_text("utf-8")
    # How many are few: one number, that of the hints.
    few = re.findall(
        r"[Ff]ewer than (?:about )?(\d+) (?:subjects|groups|levels|samples|donors)", plain(text)
    )
    assert set(few) <= {str(FEW_LEVELS)}, few
    # A piece of code that fits and integrates does so in the recommended space.
    blocks = [text] if path.suffix == ".py" else re.findall(r"```.*?```", text, re.S)
    for block in blocks:
        fits = re.findall(r"\.fit\(([^)]*)\)", block)
        if fits and 'df="integrated"' in block:
            assert all('parameter_space="psd"' in fit for fit in fits), block
    # Nothing else is recommended for few subjects.
    for sentence in re.split(r"(?<=[.:;])\s", plain(text)):
        if re.search(r"\b[Ff]ew (subjects|groups|samples|donors)\b", sentence) and re.search(
            r"\b(use|take|choose|recommend)", sentence
        ):
            assert "satterthwaite" not in sentence.lower() or "integrated" in sentence, sentence
            assert 'df="residual"' not in sentence or "too liberal" in sentence, sentence


def test_hints_say_the_same():
    rng = np.random.default_rng(0)
    Z = np.kron(np.eye(4), np.ones((10, 1)))
    X = np.column_stack([np.ones(40), np.repeat([0.0, 1.0], 20)])
    Y = rng.normal(size=(30, 4)) @ Z.T + rng.normal(size=(30, 40))
    result = fm.MultiLMM.from_arrays(Y, X, Z).fit(parameter_space="psd")
    for text in (str(result.summary()), result.t_test(np.array([0.0, 1.0])).ds.attrs["note"]):
        assert "df='integrated'" in plain(text)
        assert f"fewer than {FEW_LEVELS}" in plain(text)
    assert result.t_test(np.array([0.0, 1.0]), df="integrated").ds.attrs.get("note", "") == ""
    with pytest.warns(ConvergenceWarning, match="parameter_space='psd'"):
        _warn_about(np.array([Status.INDEFINITE, Status.CONVERGED]))
