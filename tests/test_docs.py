"""README, changelog and documentation agree with the code: commands, names, versions, links."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from test_imports import FLOORS

import flashmm as fm
from flashmm.likelihood import ENGINES
from flashmm.solvers import SOLVERS
from flashmm.solvers.verdict_texts import MEANINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# What FLASHMM 1.3.0's functions take and return.
FLASHMM_ARGUMENTS = (
    "Y fixed random metadata is.counts X Z d XX XY ZX ZY ZZ Ynorm n method nBlocks theta0 max.iter "
    "epsilon output.cov output.FIM output.RE output.SS verbose fit index contrast alternative "
    "model.matrix.names counts nGenes nCells samples.nested nsam ncls ntrt trt nDEgenes "
    "nDEgenesType pDEgenesType adjust.library.size direction minbeta maxbeta var.randomeffects"
)
FLASHMM_OUTPUTS = (
    "method epsilon dlogL logLik niter coef se t p df cov theta se.theta FIM.beta FIM.theta RE "
    "summary_data"
)
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


PARTS = ["start", "how-to", "theory", "reference"]


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading of level two."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading '## {heading}'"
    return found[1]


@pytest.mark.parametrize(
    ("heading", "command"),
    [
        ("Quick start", "pip install . && python examples/quickstart.py"),
        ("Tests", 'pip install ".[test]" && python -m pytest'),
    ],
)
def test_readme_has_one_command_under_each_heading(heading, command):
    assert blocks(section(README, heading), "bash") == [f"{command}\n"]


def test_readme_has_two_commands_and_their_parts_exist():
    assert len(blocks(README, "bash")) == 2
    assert (ROOT / "examples" / "quickstart.py").is_file()
    assert {"test", "docs"} <= PYPROJECT["optional-dependencies"].keys()


def test_readme_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = blocks(README, "python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), {})
    assert "Linear mixed models" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))],
    ids=lambda p: p.name,
)
def test_local_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def toctree(page: str) -> list[str]:
    """Pages in the tables of contents of a page, in order."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    return re.findall(r"^[\w-]+$", "\n".join(blocks(text, "{toctree}")), re.MULTILINE)


def below(page: str) -> list[str]:
    """All pages under a page."""
    return [name for child in toctree(page) for name in [child, *below(child)]]


def code_cells(page: Path) -> list[str]:
    return blocks(page.read_text("utf-8"), "{code-cell} ipython3")


def test_every_page_is_in_exactly_one_part():
    assert toctree("index") == PARTS
    listed = [*PARTS, *(name for part in PARTS for name in below(part))]
    pages = [page.stem for page in DOCS.glob("*.md") if page.stem != "index"]
    assert sorted(listed) == sorted(pages)


def test_users_do_not_meet_the_inside():
    inside = {"engines", "writing-a-solver", "architecture", "api-inside"}
    assert not inside & {*below("start"), *below("how-to")}
    api = (DOCS / "api.md").read_text("utf-8")
    assert not re.search(r"^   (solvers|likelihood|storage)\.", api, re.MULTILINE)


@pytest.mark.parametrize("page", ["tutorial", "which-test", "faq", *toctree("how-to")])
def test_every_page_of_instructions_runs(page):
    path = DOCS / f"{page}.md"
    assert path.read_text("utf-8").startswith("---\nfile_format: mystnb\n")
    assert len(code_cells(path)) >= 2


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_files_that_a_page_reads_are_in_the_repository(page):
    """Else the page runs where it was written, and nowhere else."""
    for path in re.findall(
        r"""["']((?:\.\./|calibration/|benchmarks/)[\w./-]*\.\w+)["']""", "".join(code_cells(page))
    ):
        assert (DOCS / path).exists(), path


def test_the_start_page_has_a_picture_and_three_doors():
    text = (DOCS / "index.md").read_text("utf-8")
    assert "plt.subplots" in code_cells(DOCS / "index.md")[0]
    doors = re.findall(r"^:::\{container\} door\n(.*?)^:::$", text, re.MULTILINE | re.DOTALL)
    assert len(doors) == 3
    assert all(len(re.findall(r"\]\(", door)) >= 3 for door in doors)


def test_the_site_takes_nothing_from_elsewhere():
    """No script, style or font of another host, and no list of links that a build would fetch."""
    conf = (DOCS / "conf.py").read_text("utf-8")
    assert '"sphinx.ext.mathjax"' not in conf
    assert 'html_math_renderer = "mathml"' in conf
    names = re.search(r"intersphinx_mapping = \{.*?^\}", conf, re.MULTILINE | re.DOTALL)[0]
    for name in re.findall(r'"(\w+)": "https://', names):
        lines = (DOCS / "inventories" / f"{name}.txt").read_text("utf-8").splitlines()
        assert lines[0] == "# Sphinx inventory version 1"
        assert all(len(line.split()) == 3 for line in lines[3:])
    for path in [*(DOCS / "_static").iterdir(), *(DOCS / "_templates").rglob("*.*")]:
        assert "//" not in re.sub(r"^\s*//.*$", "", path.read_text("utf-8"), flags=re.MULTILINE), (
            path
        )


def test_every_formula_can_be_written_as_mathml():
    latex2mathml = pytest.importorskip("docutils.utils.math.latex2mathml")
    sys.path.insert(0, str(DOCS / "_extensions"))
    try:
        mathml = importlib.import_module("mathml")
    finally:
        sys.path.pop(0)
    count = 0
    for page in DOCS.glob("*.md"):
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"`[^`\n]+`", "", text)
        for formula in re.findall(r"\$\$(.+?)\$\$|(?<!\\)\$([^$]+?)\$", text, re.DOTALL):
            written = latex2mathml.tex2mathml(mathml.readable("".join(formula)))
            # A half is one over two, not twelve over what follows.
            halves = re.findall(r"frac\s*12", "".join(formula))
            tight = re.sub(r"\s", "", written)
            assert tight.count("<mn>1</mn><mn>2</mn></mfrac>") >= len(halves), formula
            assert not re.search(r"<mfrac[^>]*><mn>12</mn>", tight), formula
            assert "<munderover>" not in tight or "sum" in "".join(formula), formula
            count += 1
    assert count > 300
    with pytest.raises(ValueError, match="braces"):
        mathml.readable(r"\frac a b")


def test_api_reference_lists_every_public_name():
    pages = ("api.md", "api-inside.md")
    api = "".join((DOCS / page).read_text("utf-8") for page in pages)
    listed = re.findall(r"^   ([\w.]+)$", api, re.MULTILINE)
    modules = {"datasets", "simulate"}
    assert set(fm.__all__) - modules <= set(listed)
    assert {f"simulate.{name}" for name in fm.simulate.__all__} <= set(listed)
    assert {f"datasets.{name}" for name in fm.datasets.__all__} <= set(listed)
    solvers = {f"solvers.{solver.__name__}" for solver in SOLVERS.values()}
    assert solvers | {"solvers.Solver", "solvers.State"} <= set(listed)


@pytest.mark.parametrize(
    ("heading", "names"), [("Arguments", FLASHMM_ARGUMENTS), ("Outputs", FLASHMM_OUTPUTS)]
)
def test_every_name_of_flashmm_is_in_a_table(heading, names):
    text = section((DOCS / "flashmm-users.md").read_text("utf-8"), heading)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    documented: set[str] = set()
    theirs: list[int] = []
    for row in rows:
        if "FLASHMM" in row:
            theirs = [position for position, cell in enumerate(row) if cell == "FLASHMM"]
        else:
            documented.update(*(re.findall(r"`([\w.]+)", row[position]) for position in theirs))
    assert set(names.split()) <= documented


def test_names_in_the_pages_for_other_users_exist():
    results = {"result": fm.MultiLMMResults, "one": fm.FeatureResults}
    for page in ("flashmm-users.md", "lme4-statsmodels-users.md"):
        text = (DOCS / page).read_text("utf-8")
        used = re.findall(r"`(result|one)\.(\w+)", text)
        assert len(used) > 15
        for owner, attribute in used:
            known = hasattr(results[owner], attribute)
            assert known or attribute in ("ds", "stats", "options"), f"{owner}.{attribute}"


def test_readme_has_the_measured_ratios_to_flash_mm():
    text = (DOCS / "benchmarks" / "flash_mm.json").read_text("utf-8")
    peers = [case["peers"]["FLASH-MM"] for case in json.loads(text)["cases"]]
    assert all(peer["agreement"]["agrees"] for peer in peers)
    ratios = sorted(peer["ratio"] for peer in peers)
    said = re.search(r"was (\d+) to\s+(\d+) times as fast per feature", README)
    assert said
    assert [int(said[1]), int(said[2])] == [round(ratios[0]), round(ratios[-1])]


def test_changelog_keeps_the_format():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    form = r"\[(Unreleased|\d+\.\d+\.\d+)\](?: - (\d{4}-\d{2}-\d{2}))?"
    parsed = [re.fullmatch(form, heading) for heading in headings]
    assert all(parsed), headings
    versions = [found[1] for found in parsed if found]
    assert versions[0] in ("Unreleased", PYPROJECT["version"])
    dated = {found[1]: found[2] for found in parsed if found}
    assert all((date is None) == (version == "Unreleased") for version, date in dated.items())
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= SECTIONS


def test_changelog_names_every_verdict():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    for status in MEANINGS:
        if status is not fm.Status.RUNNING:
            assert status.label in text


def test_the_model_page_describes_every_engine():
    page = (DOCS / "model.md").read_text("utf-8")
    assert set(re.findall(r'^`"(\w+)"`$', page, re.MULTILINE)) >= set(ENGINES)


def test_citation_has_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == PYPROJECT["version"]


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for path in re.findall(r"`((?:flashmm|tests|docs|\.ci)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    flow = text.split("<!-- the flow -->")[1].split("<!-- the flow ends -->")[0]
    picture, order = flow.rsplit("```", 1)
    places = [order.index(f"`{name}`") for floor in FLOORS[:-1] for name in floor]
    assert places == sorted(places), "the order is that of tests/test_imports.py"
    rooms = {path.parent.name for path in (ROOT / "flashmm").glob("*/__init__.py")}
    missing = [room for room in rooms if f"{room}/" not in picture]
    assert not missing, missing
