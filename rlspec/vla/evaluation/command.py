"""A policy measured in the simulator outside training, by the code that measures it inside."""

from __future__ import annotations

import json
from pathlib import Path

from rlspec.config.vla_schema import VlaRecipe
from rlspec.display import Display
from rlspec.run_directory import RunDirectory
from rlspec.vla.evaluation.campaign import VIDEOS
from rlspec.vla.evaluation.evaluator import SimEvaluator
from rlspec.vla.evaluation.protocol import REPLAY
from rlspec.vla.evaluation.records import dataset_folder
from rlspec.vla.evaluation.results import EPISODES, METRICS


def measure(recipe: VlaRecipe, *, what: str, out: Path, trained: VlaRecipe | None, dataset: Path | None) -> int:
    """Measure and show.

    Returns:
        The exit code: 1 where demonstrations were replayed and not all succeeded again, or where episodes crashed, of
        which nothing is known.

    Args:
        recipe: Its sections `env`, `evaluation` and `device` count.
        what: "expert", "replay", a policy's folder or a hub id.
        out: Folder of the result.
        trained: The recipe that the policy was trained by; its data set is what the policy knows.
        dataset: Demonstrations to replay.
    """
    display = Display(recipe.report.display)
    assert recipe.env is not None
    root = dataset or dataset_folder(trained or recipe)
    run = RunDirectory(out.parent)
    with SimEvaluator(recipe, run, display, dataset_root=root, folder=out.parent, keep=True) as evaluator:
        tasks, settings = evaluator.protocol.tasks, recipe.evaluation
        named = ", ".join(tasks) if len(tasks) <= 4 else f"{len(tasks)} tasks"
        display.heading(f"{what} in {recipe.env.suite} ({named}), {settings.episodes} episodes per task")
        result = evaluator.measure(what, out.name, 0)
    for line in result.lines():
        display.line(line)
    for line in _remarks(out / EPISODES):
        display.line(line)
    display.line(f"metrics   {out / METRICS}")
    display.line(f"episodes  {out / EPISODES}")
    if (out / VIDEOS).is_dir():
        display.line(f"videos    {out / VIDEOS}")
    if result.crashed:
        display.warn("these are no success rates yet: run the command again, which repeats what crashed alone")
        return 1
    if what == REPLAY and result.success_rate < 1.0:
        display.warn(f"replay: not all demonstrations of {root} succeed again; the environment is not that of the data")
        return 1
    return 0


def _remarks(episodes: Path) -> list[str]:
    """What is to be said of episodes, such as where a replay left its record; the first three."""
    rows = [json.loads(line) for line in episodes.read_text(encoding="utf-8").splitlines()]
    return [f"{row['task']}, episode {row['index']}: {row['note']}" for row in rows if row["note"]][:3]
