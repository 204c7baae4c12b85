"""Two and four processes give the weights of one, for every rule, whatever shares the parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from checks_of_ranks import CHECKS, FOR_FOUR, MORE, resume
from jobs_of_ranks import Job


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in FOR_FOUR])
def test_two_processes_find_that(two: Job, name: str) -> None:
    two.verdict(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_four_processes_find_that(four: Job, name: str) -> None:
    four.verdict(name)


def test_one_process_resumes_the_checkpoint_of_two(two: Job) -> None:
    two.verdict("a_checkpoint_is_written_by_all")
    resume(two.folder / "checkpoint", "")


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
def test_fewer_processes_resume_the_checkpoint_of_four(four: Job, world: int, tmp_path: Path) -> None:
    four.verdict("a_checkpoint_is_written_by_all")
    (tmp_path / "source").write_text(str(four.folder / "checkpoint"), encoding="utf-8")
    (name,) = MORE
    Job(world, tmp_path, name).verdict(name)


@pytest.mark.slow
def test_one_plain_process_resumes_the_checkpoint_of_four(four: Job) -> None:
    resume(four.folder / "checkpoint", "")
