"""How to cite the software and the paper of the method; CITATION.cff says the same."""

from __future__ import annotations

from typing import Literal

from flashmm.exceptions import InputError
from flashmm.slips.answers import answered
from flashmm.slips.refusals import no_call

__all__ = ["DISTRIBUTION", "cite", "installed_version"]

no_call(__name__, "a text to cite is flashmm.cite()")

DISTRIBUTION = "multilmm"  # what pip installs; the import is flashmm

_SOFTWARE = "The flashmm developers"
_TITLE = (
    "FLASH-MM: fast and scalable single-cell differential expression analysis using linear "
    "mixed-effects models"
)
_AUTHORS = (
    ("Xu", "Changjiang"),
    ("Pouyabahar", "Delaram"),
    ("Voisin", "Veronique"),
    ("Heydari", "Hamed"),
    ("Bader", "Gary D."),
)
_JOURNAL, _YEAR, _VOLUME, _ARTICLE = "Nature Communications", 2026, 17, 2384
_DOI = "10.1038/s41467-026-69063-2"


def installed_version() -> str:
    """Version of the distribution; ``"0+unknown"`` for a source tree that was not installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  (slow)

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+unknown"


@answered
def cite(format: Literal["text", "bibtex"] = "text") -> str:
    """How to cite flashmm, with its version, and the paper of the method.

    Parameters
    ----------
    format
        ``"text"``: two paragraphs; ``"bibtex"``: two entries.

    Returns
    -------
    str

    Raises
    ------
    InputError
        If the format is unknown.

    Examples
    --------
    >>> import flashmm as fm
    >>> print(fm.cite())
    The flashmm developers, flashmm, version ... (software).
    <BLANKLINE>
    Xu, C., Pouyabahar, D., Voisin, V., Heydari, H., Bader, G. D. (2026). FLASH-MM: fast and
    scalable single-cell differential expression analysis using linear mixed-effects models. Nature
    Communications 17, 2384. https://doi.org/10.1038/s41467-026-69063-2
    >>> fm.cite("bibtex").splitlines()[0]
    '@software{flashmm,'
    """
    if format == "text":
        names = ", ".join(f"{family}, {_initials(given)}" for family, given in _AUTHORS)
        return (
            f"{_SOFTWARE}, flashmm, version {installed_version()} (software).\n\n"
            f"{names} ({_YEAR}). {_TITLE}. {_JOURNAL} {_VOLUME}, {_ARTICLE}. "
            f"https://doi.org/{_DOI}"
        )
    if format == "bibtex":
        software = {
            "title": "flashmm",
            "author": f"{{{_SOFTWARE}}}",
            "version": installed_version(),
        }
        article = {
            "title": f"{{FLASH-MM}}{_TITLE.removeprefix('FLASH-MM')}",
            "author": " and ".join(f"{family}, {given}" for family, given in _AUTHORS),
            "journal": _JOURNAL,
            "year": str(_YEAR),
            "volume": str(_VOLUME),
            "pages": str(_ARTICLE),
            "doi": _DOI,
        }
        return (
            f"{_entry('software', 'flashmm', software)}\n\n{_entry('article', 'xu2026', article)}"
        )
    raise InputError(f"`format` must be 'text' or 'bibtex', not {format!r}.")


def _initials(given: str) -> str:
    return " ".join(f"{part[0]}." for part in given.split())


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
