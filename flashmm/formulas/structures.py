"""Names of the structures of random effects: those of lme4 2.0, glmmTMB and nlme."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["ALONG", "FOREIGN_WRAPPERS", "KNOWN", "OPTIONS", "STRUCTURES", "WRAPPED", "Structure"]

Structure: TypeAlias = Literal["full", "diagonal", "identity", "cs", "csh", "ar1", "exp"]

# Structures by name and by `hom`, the default first; glmmTMB has two further names.
STRUCTURES: dict[str, dict[bool, Structure]] = {
    "us": {False: "full"},
    "diag": {False: "diagonal", True: "identity"},
    "homdiag": {True: "identity"},
    "cs": {True: "cs", False: "csh"},
    "homcs": {True: "cs"},
    "homar1": {True: "ar1"},
    "ar1": {True: "ar1"},
    "exp": {True: "exp"},
}
# Structures of lme4, glmmTMB and nlme that have no meaning here.
FOREIGN_WRAPPERS = frozenset(
    {
        *("hetar1", "toep", "homtoep", "ou", "gau", "mat", "rr", "un"),
        *("propto", "equalto", "dcs", "csh", "ar1h", "arma", "id", "idh", "iid", "ident"),
        *("pdSymm", "pdDiag", "pdIdent", "pdCompSymm", "corAR1", "corCAR1", "corExp"),
    }
)
KNOWN = (
    "us(x | g), the same as (x | g); diag(x | g), one variance per effect; diag(x | g, hom=TRUE), "
    "one variance for all effects; cs(0 + f | g), one variance and one correlation; cs(0 + f | g, "
    "hom=FALSE), one correlation and a variance per effect; ar1(t | g), correlations rho^lag of "
    "the times t; exp(pos | g), correlations exp(-distance / range)"
)
WRAPPED = {"full": "", "diagonal": "diag", "identity": "diag", "cs": "cs", "csh": "cs"}
# Structures along a column of times or positions.
ALONG = ("ar1", "exp")
OPTIONS = {"identity": ", hom=TRUE", "csh": ", hom=FALSE"}
