"""The answer checker: extraction, normalisation, comparison, and killable worker processes.

Everything here is imported on first use, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlspec.rlvr.grading.compare import grade_answer, grade_completion
    from rlspec.rlvr.grading.gold_check import only_plain, preflight, read_as_one_number
    from rlspec.rlvr.grading.mutations import equivalents, mutate
    from rlspec.rlvr.grading.pool import GraderPool
    from rlspec.rlvr.grading.verdict import Reason, Verdict

__all__ = [
    "GraderPool",
    "Reason",
    "Verdict",
    "equivalents",
    "grade_answer",
    "grade_completion",
    "mutate",
    "only_plain",
    "preflight",
    "read_as_one_number",
]

_HOMES = {
    "GraderPool": "pool",
    "Reason": "verdict",
    "Verdict": "verdict",
    "equivalents": "mutations",
    "grade_answer": "compare",
    "grade_completion": "compare",
    "mutate": "mutations",
    "only_plain": "gold_check",
    "preflight": "gold_check",
    "read_as_one_number": "gold_check",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
