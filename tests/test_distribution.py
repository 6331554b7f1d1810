"""What pip is told: one name of the distribution everywhere, extras that exist, the citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import flashmm as fm
from flashmm.citation import DISTRIBUTION

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = (ROOT / "CITATION.cff").read_text("utf-8")
TEXTS = [
    *(ROOT / "flashmm").rglob("*.py"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
]


def field(name: str) -> str:
    """The last value of a key of CITATION.cff before the references, folded text in one line."""
    cited = CITATION.split("\nreferences:")[0]
    found = re.findall(rf"^ *{name}: *(.*(?:\n {{4,}}(?!\w+:|- ).*)*)", cited, re.MULTILINE)
    return " ".join(found[-1].removeprefix(">-").split()).strip('"')


def test_the_distribution_has_one_name():
    assert PYPROJECT["name"] == DISTRIBUTION
    # The index takes names that differ in -, _, . and case, or in l for 1 and o for 0, for one.
    taken = "flashmm"  # FLASH-MM, of the authors of the method
    assert re.sub(r"[-_.]", "", DISTRIBUTION.lower()) != taken


def test_texts_name_the_distribution_and_extras_that_exist():
    extras = PYPROJECT["optional-dependencies"]
    named = [
        (path.name, *found)
        for path in TEXTS
        for found in re.findall(r"(?<![\w.])(\w+)\[([a-z]+)\]['\"`]", path.read_text("utf-8"))
        if found[0] in ("flashmm", DISTRIBUTION)
    ]
    assert len(named) > 15
    assert {name for _, name, _ in named} == {DISTRIBUTION}
    assert {extra for _, _, extra in named} <= set(extras)


def test_the_citation_is_that_of_the_file():
    text, bibtex = fm.cite(), fm.cite("bibtex")
    families = re.findall(r"family-names: (\w+)", CITATION.split("\nreferences:")[0])
    assert len(families) == 5
    for said in (text, bibtex):
        places = [said.index(name) for name in (*families, field("journal"))]
        assert sorted(places[:5]) == places[:5]
        assert field("doi") in said
        assert field("year") in said
        assert fm.__version__ in said
    assert field("title") in text
    assert f"{field('journal')} {field('volume')}, {field('start')}." in text
    assert re.findall(r"^@(\w+)", bibtex, re.MULTILINE) == ["software", "article"]
    assert bibtex.count("{") == bibtex.count("}")


@pytest.mark.parametrize("wrong", ["apa", None])
def test_other_formats_are_refused(wrong):
    with pytest.raises(fm.InputError, match="'text' or 'bibtex'"):
        fm.cite(wrong)
