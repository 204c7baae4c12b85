"""The style that the workflow asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
COMMANDS = [step["run"].split() for step in WORKFLOW["jobs"]["style"]["steps"] if "run" in step]
RUFF = [words[2:] for words in COMMANDS if words[:3] == ["uv", "run", "ruff"]]


def test_the_workflow_checks_and_formats() -> None:
    assert RUFF == [["ruff", "check"], ["ruff", "format", "--check"]]


@pytest.mark.parametrize("words", RUFF, ids=" ".join)
def test_the_workflows_ruff_finds_nothing(words: list[str]) -> None:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
