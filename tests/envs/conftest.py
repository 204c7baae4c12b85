"""What tests of the environments share."""

from __future__ import annotations

import pytest
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.rendering import choose_gl


@pytest.fixture(scope="session")
def gl() -> str:
    """The GL library; the test is skipped where there is none."""
    try:
        return choose_gl()
    except EnvironmentUnavailable as error:
        pytest.skip(str(error))
