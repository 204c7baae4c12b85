"""The studies by name, without what they import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlspec.diagnostics.result import StudyResult
    from rlspec.diagnostics.subject import Subject

STUDIES: dict[str, str] = {
    "spectra": "ranks of gradients and momenta per role and layer, and what each filter passes of them",
    "noise": "signal-to-noise of the gradient over parts of the batch, by head, by direction and by filter",
    "weights": "tails and ranks of the weights' spectra, and how much of their width feed-forward layers use",
    "curvature": "trace, bulk and outliers of the Hessian, and sharpness along the steps of the rules",
    "geometry": "how hidden states spread and how widely attention heads look, over a run's checkpoints",
    "data": "which training problems give gradients that agree with the others', and which noise or nothing",
    "basis": "a learned spectral basis of hidden states: on how many smooth functions they live",
    "advice": "a rule and a k_p for every role, each with its reason",
}
"""Value of `what=` -> a line about it. The study of that name is `rlspec.diagnostics.studies.NAME.study`."""


def run_study(name: str, subject: Subject) -> StudyResult:
    """Run a study.

    Raises:
        UserError: It cannot be had of that subject, in one line.
    """
    found: StudyResult = import_module(f"rlspec.diagnostics.studies.{name}").study(subject)
    return found
