"""Small data sets for examples, each with its source and its licence."""

from typing import Any

from flashmm.datasets.dataset import Dataset
from flashmm.datasets.packaged import kang, kimma, orthodont, penicillin, sleepstudy, varpart
from flashmm.exceptions import listing
from flashmm.slips.refusals import no_call

__all__ = ["Dataset", "kang", "kimma", "orthodont", "penicillin", "sleepstudy", "varpart"]


no_call(__name__, "a data set is datasets.sleepstudy(), ...")


def __getattr__(name: str) -> Any:
    """Say which data sets there are."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    there = listing([f"{each}()" for each in __all__ if each != "Dataset"], 12)
    raise AttributeError(f"There is no data set `{name}`. There are {there}.")
