"""The replay oracle: recorded successes must succeed again, or the protocol is broken and says nothing of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlspec.errors import ConfigError
from rlspec.vla.evaluation.episodes import EvaluatedEpisode
from rlspec.vla.evaluation.jobs import ActorSpec, Done, EvaluationJob
from rlspec.vla.evaluation.pool import WorkerPool
from rlspec.vla.evaluation.protocol import Protocol
from rlspec.vla.evaluation.records import plan_replays, read_starts

_COMPARED = ("control_hz", "action_space")


def replay_demonstrations(
    protocol: Protocol,
    root: Path,
    per_task: int,
    pool: WorkerPool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[EvaluatedEpisode]:
    """Replay the first demonstrations of every task.

    Raises:
        ConfigError: One of them does not succeed; the text says where it left its record, and what differs.
        DataError: The data set cannot be read.
    """
    plans = plan_replays(root, protocol.simulator.suite, list(protocol.tasks), per_task)
    spec = ActorSpec("replay", str(root))
    episodes: list[EvaluatedEpisode] = []
    environments: list[dict[str, Any]] = []

    def on_done(job: EvaluationJob, done: Done) -> None:
        episodes.append(done.episode)
        environments.append(done.environment)

    pool.run([EvaluationJob(spec, plan) for plan in plans], on_done)
    if failed := [episode for episode in episodes if not episode.success]:
        raise ConfigError(_complaint(failed, len(episodes), root, environments[0]))
    if astray := next((episode for episode in episodes if episode.note), None):
        warn(f"replay: {astray.task}, seed {astray.seed}: {astray.note}, and succeeded all the same")
    if episodes:
        say(f"replay: {len(episodes)} of {len(episodes)} demonstrations succeed again")
    return episodes


def _complaint(failed: Sequence[EvaluatedEpisode], total: int, root: Path, environment: dict[str, Any]) -> str:
    first = min(failed, key=lambda episode: episode.index)
    differences = environment_differences(read_starts(root), environment)
    causes = [f"{first.task}, seed {first.seed}: {first.failure}", *([first.note] if first.note else []), *differences]
    return (
        f"replay: {len(failed)} of {total} demonstrations of {root} do not succeed again ({'; '.join(causes)}): "
        "the environment is not the one that they were made in, so a success rate would say nothing; "
        "mend env.options, or set evaluation.replay=0"
    )


def environment_differences(recorded: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    """Where the environment of the data and the present one differ, as `name was x, is y`."""
    before = {**recorded.get("env", {}), **{name: recorded[name] for name in _COMPARED if name in recorded}}
    ignored = ("versions", "task", "task_name", "instruction", "gl", "renderer", "assets", "assets_source", "cameras")
    return [
        f"{name} was {before[name]}, is {environment[name]}"
        for name in before
        if name in environment and name not in ignored and before[name] != environment[name]
    ][:4]
