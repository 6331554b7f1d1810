"""Sphinx configuration. Builds without a network: ``sphinx-build -W docs <folder>``."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from numpydoc.xref import DEFAULT_LINKS

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[1]

# Document this checkout, also in the kernels that run the pages, whatever is installed.
sys.path.insert(0, str(ROOT))
# `docs/_extensions` holds the site's own extensions.
EXTENSIONS = Path(__file__).parent / "_extensions"
sys.path.insert(0, str(EXTENSIONS))
os.environ["PYTHONPATH"] = os.pathsep.join(
    part for part in (str(ROOT), str(EXTENSIONS), os.environ.get("PYTHONPATH")) if part
)

project = "flashmm"
author = "The flashmm developers"
copyright = f"2026, {author}"
release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
    "forked_kernels",
    "mathml",
]
html_math_renderer = "mathml"
# Links to other projects' pages, from small lists in this folder: a build needs no network.
intersphinx_mapping = {
    name: (address, f"inventories/{name}.txt")
    for name, address in {
        "python": "https://docs.python.org/3/",
        "numpy": "https://numpy.org/doc/stable/",
        "pandas": "https://pandas.pydata.org/docs/",
        "scipy": "https://docs.scipy.org/doc/scipy/",
        "xarray": "https://docs.xarray.dev/en/stable/",
        "anndata": "https://anndata.readthedocs.io/en/stable/",
        "matplotlib": "https://matplotlib.org/stable/",
    }.items()
}
# Names that signatures have for what those lists call by its full name.
SHORT = {"pd": "pandas", "np": "numpy", "xr": "xarray"}
templates_path = ["_templates"]
exclude_patterns = [
    "robustness/*",
    "_extensions/*",
    "_build",
    "jupyter_execute",
    "**.ipynb_checkpoints",
]

# Reference pages are generated from docstrings into docs/generated, which git ignores.
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
# The class template lists the members; numpydoc would list them a second time.
numpydoc_show_class_members = False
# Types that methods return are links; other words of such a line stay words.
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
DEFAULT_LINKS.clear()  # to entries of glossaries, which the lists of links do not have
numpydoc_xref_aliases = {
    name: f"{package}.{name}"
    for package, names in {
        "pandas": "DataFrame Series Index Categorical",
        "xarray": "Dataset DataArray",
        "numpy": "ndarray",
        "anndata": "AnnData",
        "matplotlib.axes": "Axes",
        "flashmm": "MultiLMM SummaryStats MultiLMMResults FeatureResults TTestResults FTestResults "
        "FlipTestResults Influence BootstrapResults RatioPrior Covariance Voom",
    }.items()
    for name in names.split()
}
# Unknown or misordered sections, parameters that do not exist or are out of order.
numpydoc_validation_checks = {"GL06", "GL07", "PR02", "PR03"}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# A page that is a notebook runs when its text changed; an error in it fails the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
# Tables that the code prints as Markdown.
nb_render_markdown_format = "myst"

html_theme = "pydata_sphinx_theme"
html_title = f"flashmm {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["flashmm.css"]
html_js_files = ["tables.js"]
html_sidebars = {"index": []}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    # Each of the four parts in the header, its pages in the sidebar on the left.
    "header_links_before_dropdown": 4,
    "show_nav_level": 2,
    "secondary_sidebar_items": {"index": [], "**": ["page-toc"]},
    "footer_end": [],
}


def spell_out(
    _app: Sphinx, _env: BuildEnvironment, node: pending_xref, _text: nodes.Element
) -> None:
    """Give a reference that no page of this site answers its full name, before intersphinx sees it."""
    package, _, rest = node.get("reftarget", "").partition(".")
    if package in SHORT and rest:
        node["reftarget"] = f"{SHORT[package]}.{rest}"


def setup(app: Sphinx) -> None:
    """Connect what is above to Sphinx."""
    app.connect("missing-reference", spell_out, priority=400)
