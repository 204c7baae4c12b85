"""LIBERO's scene files for tests: LIBERO_ASSETS, else the folder beside the checkout; skipped where both are absent."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.rendering import choose_gl

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def package() -> None:
    """Skip where hf-libero is not installed."""
    if importlib.util.find_spec("libero") is None:
        pytest.skip("hf-libero is not installed")


@pytest.fixture(scope="session")
def libero_assets(package: None) -> Path:
    shared = Path(os.environ.get("RLSPEC_SHARED", REPOSITORY.parent / "shared"))
    folder = Path(os.environ.get("LIBERO_ASSETS", shared / "libero-assets"))
    if not folder.is_dir():
        pytest.skip(f"no LIBERO assets in {folder}: set LIBERO_ASSETS")
    return folder


@pytest.fixture
def libero(libero_assets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Assets and a renderer are there, and LIBERO_ASSETS says where."""
    try:
        choose_gl()
    except EnvironmentUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("LIBERO_ASSETS", str(libero_assets))
    return libero_assets
