"""Jobs of several processes, started once for all tests."""

from __future__ import annotations

import pytest
from jobs_of_ranks import Job


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two processes."""
    return Job(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Four processes."""
    return Job(4, tmp_path_factory.mktemp("four"))
