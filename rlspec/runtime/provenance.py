"""What a run and its checkpoints say of themselves: recipe, symmetry map, versions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlspec.checkpoint import staged_folder, write_text_atomically
from rlspec.optim import SpectralOptimizer
from rlspec.optim.map.render import RENDERERS, render_text
from rlspec.run_directory import RECIPE
from rlspec.runtime.starting import Run, stored_recipe
from rlspec.versions import library_versions


def describe_checkpoint(folder: Path, run: Run) -> dict[str, Any]:
    """Put recipe and symmetry map beside the weights: a checkpoint explains itself. Returns entries of its manifest."""
    (folder / RECIPE).write_text(stored_recipe(run.recipe), encoding="utf-8")
    for table in run.directory.path.glob("symmetry.*"):
        shutil.copyfile(table, folder / table.name)
    return {"recipe": run.recipe.recipe, "algorithm": run.recipe.algorithm, "versions": library_versions()}


@contextmanager
def described_folder(target: Path, run: Run, step: int, **entries: float) -> Iterator[Path]:
    """`staged_folder` for weights of a step, described; further entries go to its manifest."""
    metadata: dict[str, Any] = {"step": step, **entries}
    with staged_folder(target, metadata=metadata) as folder:
        yield folder
        metadata |= describe_checkpoint(folder, run)


def show_symmetry(optimizer: SpectralOptimizer, run: Run) -> None:
    """Show which rule updates which parameter, and keep it with the run."""
    mapping = optimizer.symmetry
    assert mapping is not None
    run.display.line(render_text(mapping))
    if optimizer.rates is not None:
        run.display.line(optimizer.rates)
    if run.process.is_main_process:
        for suffix in (".md", ".json"):
            write_text_atomically(run.directory.path / f"symmetry{suffix}", RENDERERS[suffix](mapping))
