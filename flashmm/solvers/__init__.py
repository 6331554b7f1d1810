"""Solvers: how theta is found. `Solver` is the protocol, `SOLVERS` the ones known by name."""

from collections.abc import Callable

from flashmm.slips.refusals import no_call
from flashmm.solvers.base import Objective, Solution, Solver, State
from flashmm.solvers.em import EM
from flashmm.solvers.fisher_scoring import FisherScoring
from flashmm.solvers.newton_raphson import AverageInformation, NewtonRaphson
from flashmm.solvers.stopping import standardised_score, verdicts, within
from flashmm.solvers.verdict_texts import Status

__all__ = [
    "EM",
    "SOLVERS",
    "AverageInformation",
    "FisherScoring",
    "NewtonRaphson",
    "Objective",
    "Solution",
    "Solver",
    "State",
    "Status",
    "standardised_score",
    "verdicts",
    "within",
]

SOLVERS: dict[str, Callable[..., Solver]] = {
    "fisher_scoring": FisherScoring,
    "average_information": AverageInformation,
    "newton_raphson": NewtonRaphson,
    "em": EM,
}

no_call(__name__, "a solver is solvers.FisherScoring(), ..., or fit(solver='em')")
