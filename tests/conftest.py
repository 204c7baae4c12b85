"""Fixtures that several test folders use."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the cores

REPOSITORY = Path(__file__).resolve().parents[1]

# Containers often keep Python from storing bytecode: each process that tests start would then compile torch,
# transformers and trl again, 11 of the 20 s that their import takes. Here it is stored, outside of all packages.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(REPOSITORY / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """What is imported by now stays: no later collection looks at its millions of objects again, 0.2 s each time."""
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None  # a deployment's loop freezes and unfreezes what is there


@pytest.fixture(scope="module", autouse=True)
def ordinary_priority() -> Iterator[None]:
    """libfranka leaves its caller's threads with real-time priority: later tests would lean on their neighbours."""
    yield
    tasks = Path("/proc/self/task")
    for thread in map(int, os.listdir(tasks)) if tasks.is_dir() else ():
        with suppress(ProcessLookupError):  # it has ended
            if os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO:
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real GSM8K and MATH-500 files; the test is skipped where it is absent."""
    folder = Path(os.environ.get("RLSPEC_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no data folder in {folder}: set RLSPEC_SHARED")
    return folder


@pytest.fixture(scope="module")  # an open one has an event loop running in this thread
def browser() -> Iterator[Any]:
    """Headless Chromium; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium here: install one, or run `playwright install chromium`")
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()
