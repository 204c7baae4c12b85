"""A grading process whose grader hangs, crashes or fills the memory on command; everything else is the real worker."""

from __future__ import annotations

import os
import sys
import time

from rlspec.rlvr.grading import worker

_grade_answer = worker.grade_answer


def _misbehave(answer: str, gold: str, **options: object):
    if answer == "HANG":
        return 7 ** (7 ** (7**7))  # one C call that never returns to Python
    if answer == "SLEEP":
        time.sleep(60)
    if answer == "RAISE":
        raise RuntimeError("a bug in the grader")
    if answer == "ABORT":
        os.abort()
    if answer == "MEMORY":
        return bytearray(1 << 40)
    return _grade_answer(answer, gold, **options)  # type: ignore[arg-type]


worker.grade_answer = _misbehave  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:]))
