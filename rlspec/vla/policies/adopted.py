"""A policy that was made of another project's checkpoint, as a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlspec.checkpoint import staged_folder


def write_policy(out: Path, policy: Any, pipelines: Iterable[Any]) -> None:
    """The policy and its processors, put in place whole."""
    with staged_folder(out, metadata={"step": 0}) as staging:
        policy.save_pretrained(staging)
        for pipeline in pipelines:
            pipeline.save_pretrained(staging)
