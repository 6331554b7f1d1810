"""Warnings name the line of the caller."""

from __future__ import annotations

import warnings

import pytest

from flashmm.exceptions import PrecisionWarning, warn


def test_a_warning_names_the_callers_line():
    with pytest.warns(PrecisionWarning) as caught:
        warn("few digits", PrecisionWarning)
    assert caught[0].filename == __file__


def test_code_without_a_module_name_gets_its_warning():
    """Code run by exec, as templates and debuggers do, may have no ``__name__``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec("warn('few digits', kind)", {"warn": warn, "kind": PrecisionWarning})
    assert [str(warning.message) for warning in caught] == ["few digits"]
