"""Raw DROID recordings generated from the Franka simulation: many episodes, in parallel, resumable, equal by seed.

    <out>/<lab>/success|failure/<date>/<time>/{trajectory.h5, metadata_<uuid>.json, recordings/MP4/<serial>.mp4}
    <out>/aggregated-annotations-030724.json     uuid -> language_instruction1, 2, 3
    <out>/recordings.json                        settings, and what came out; written last

An episode's content, name and place depend on its number alone. It is written beside its place and renamed, so a run
that is killed goes on with the episodes that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlspec.checkpoint import write_json_atomically
from rlspec.config.vla_schema import Recordings
from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.features import CAMERAS
from rlspec.display import Display
from rlspec.errors import ConfigError, DataError
from rlspec.versions import library_versions
from rlspec.vla.data.demonstrations import EnvSpec
from rlspec.vla.data.output import first_difference, locked, read_settings, writing
from rlspec.vla.data.recording import Disturbance
from rlspec.vla.data.workers import Pool, make_demonstrator, make_environment, process_pool
from rlspec.vla.droid import simulated
from rlspec.vla.droid.raw_writer import EpisodeName, simulated_time, write_episode
from rlspec.vla.droid.schema import OURS

ANNOTATIONS = "aggregated-annotations-030724.json"  # the release's name, which readers look for
RECORDINGS = "recordings.json"
DEFAULT_ENV = "franka_droid"
_FORMAT = 1  # of the settings that decide what is recorded
_PATIENCE = 20  # seeds that an episode may take until the expert succeeds
_SECONDS = 5.0  # between two lines of progress
_STAGING = ".incomplete-"


@dataclass(frozen=True)
class Slot:
    """One episode to be recorded.

    Attributes:
        task: name.
        number: among all episodes of all tasks.
        seed: of the first attempt.
        stride: between the seeds of attempts.
        fails: the operator gives up half-way.
    """

    task: str
    number: int
    seed: int
    stride: int
    fails: bool


@dataclass(frozen=True)
class RawJob:
    """What all episodes have in common."""

    options: Mapping[str, Any]
    disturbance: Disturbance
    idle_steps: tuple[int, int]
    lab: str
    out: Path

    def name(self, slot: Slot) -> EpisodeName:
        """Where and when the episode is said to have been recorded."""
        return EpisodeName(self.lab, simulated_time(slot.number), success=not slot.fails)

    def folder(self, slot: Slot) -> Path:
        """The episode's folder."""
        return self.out / self.lab / self.name(slot).folder


def default_recordings_name(env: EnvSpec, settings: Recordings) -> str:
    """`droid-raw-<tasks>-<hash of what matters>`."""
    text = json.dumps(recording_settings(env, settings), sort_keys=True)
    tasks = "-".join(env.tasks) or "all"
    return f"droid-raw-{tasks[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def recording_settings(env: EnvSpec, settings: Recordings) -> dict[str, Any]:
    """All that decides what is recorded; the number of workers does not."""
    import rlspec_envs

    fewest, most = settings.idle_steps
    if not 0 <= fewest <= most:
        raise ConfigError(f"idle_steps=[{fewest},{most}]: must be the fewest and the most, from 0")
    if env.suite != "franka":
        raise ConfigError(f"format=droid_raw: records the Franka, not {env.suite}; use env={DEFAULT_ENV}")
    chosen = settings.model_dump(mode="json", exclude={"workers"})
    if not chosen["noise"]:
        chosen["noise_share"] = 0.0
    tasks = list(env.tasks) or list(rlspec_envs.list_tasks(env.suite))
    options = {**env.options, "cameras": list(CAMERAS)}
    return {"format": _FORMAT, "suite": env.suite, "tasks": tasks, "options": options, **chosen}


def generate_recordings(
    env: EnvSpec, settings: Recordings, out: Path, display: Display, *, pool: Pool | None = None
) -> Path:
    """Generate recordings, go on with them, or find them done.

    Args:
        env: the Franka with `joint_velocity`; no tasks: all.
        settings: how many, from which seed, with which disturbance.
        out: folder of the recordings.
        display: shows progress.
        pool: makes the executor; None: processes.

    Returns:
        `out`.

    Raises:
        DataError: The expert fails, the folder holds something else, or it cannot be written.
        ConfigError: The environment cannot be made, or is not what DROID's robots are.
    """
    matters = recording_settings(env, settings)
    with writing(out, "what was recorded"), locked(out.with_name(f".{out.name}"), display, "recordings"):
        if _is_done(out, matters):
            display.line(f"recordings: {out} is complete")
            return out
        out.mkdir(exist_ok=True)
        write_json_atomically(out / RECORDINGS, {"complete": False, "settings": matters})
        for left in out.rglob(f"{_STAGING}*"):
            shutil.rmtree(left)
        _record_all(matters, settings.workers, out, display, pool or process_pool)
    return out


def _is_done(out: Path, matters: Mapping[str, Any]) -> bool:
    """Raises DataError where the folder holds anything but these recordings."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = read_settings(out / RECORDINGS)
    if record is None:
        raise DataError(f"{out} exists and holds no recordings of rlspec; choose another folder, or remove it")
    if different := first_difference(record.get("settings", {}), matters):
        raise DataError(f"{out} holds recordings with another {different}; choose another folder, or remove it")
    return bool(record.get("complete"))


def plan_slots(matters: Mapping[str, Any]) -> list[Slot]:
    """The episodes of all tasks; failures are spread evenly among the successes."""
    successes, tasks = matters["episodes"], matters["tasks"]
    failures = round(successes * matters["failures"])
    total = successes + failures
    slots = []
    for index, task in enumerate(tasks):
        for place in range(total):
            fails = (place + 1) * failures // total > place * failures // total
            slots.append(Slot(task, index * total + place, matters["seed"] + place, total, fails))
    return slots


def _record_all(matters: Mapping[str, Any], workers: int, out: Path, display: Display, pool: Pool) -> None:
    disturbance, idle = Disturbance(matters["noise"], matters["noise_share"]), matters["idle_steps"]
    job = RawJob(matters["options"], disturbance, (idle[0], idle[1]), matters["lab"], out)
    slots = plan_slots(matters)
    missing = [slot for slot in slots if not job.folder(slot).is_dir()]
    display.line(f"recordings: {len(slots)} episodes of {', '.join(matters['tasks'])}, into {out}")
    if len(missing) < len(slots):
        display.line(f"recordings: {len(slots) - len(missing)} from before")
    started = shown = time.monotonic()
    for done, task in enumerate(_run(job, missing, workers, pool), start=1):
        if (now := time.monotonic()) - shown >= _SECONDS:
            shown = now
            display.line(f"recordings: {done}/{len(missing)} ({task})  {done / (now - started):.2f} per second")
    frames, retries = _finish(job, slots, matters)
    seconds = time.monotonic() - started
    again = f" ({retries} attempts of the expert failed and were left out)" if retries else ""
    display.line(f"recordings: {len(slots)} episodes, {frames} frames in {seconds:.0f} s{again}")


def _run(job: RawJob, slots: list[Slot], workers: int, pool: Pool) -> Iterator[str]:
    """Record the slots; yields the task of each one that is done."""
    if not slots:
        return
    with pool(workers) as executor:
        pending = {executor.submit(record_slot, job, slot): slot for slot in slots}
        for future in as_completed(pending):
            task = pending[future].task
            try:
                future.result()
            except BrokenProcessPool:
                raise DataError(
                    f"a worker process died while it recorded {task} (out of memory?); use fewer workers; the same "
                    "command goes on"
                ) from None
            yield task


def record_slot(job: RawJob, slot: Slot) -> None:
    """Record one episode in this process.

    Raises:
        ConfigError: The environment cannot be made, or is not what DROID's robots are.
        DataError: The expert does not succeed, or the environment does not repeat itself.
    """
    env, expert = _environment(job, slot.task)
    failures = []
    for attempt in range(_PATIENCE):
        seed = slot.seed + attempt * slot.stride
        plan = simulated.plan_episode(env, expert, seed, job.disturbance, job.idle_steps)
        if not plan.failure:
            break
        failures.append(plan.failure)
    else:
        kinds = ", ".join(sorted(set(failures)))
        raise DataError(f"{slot.task}: the expert failed {_PATIENCE} times ({kinds}); lower noise, or mend env.options")
    recording = simulated.film(env, simulated.give_up(plan) if slot.fails else plan)
    about = {
        "suite": "franka",
        "task": slot.task,
        "seed": plan.seed,
        "idle_steps": plan.idle,
        "disturbance": asdict(job.disturbance),
        "attempts": failures,
        "instructions": simulated.instructions(slot.task, plan.instruction),
        "env": recording.environment,
    }
    target = job.folder(slot)
    staging = target.with_name(f"{_STAGING}{target.name}")
    staging.mkdir(parents=True)
    write_episode(staging, job.name(slot), recording, about)
    os.replace(staging, target)


_made: dict[str, Any] = {}  # of this process; renderers do not bear two environments in one


def _environment(job: RawJob, task: str) -> tuple[Any, Any]:
    key = repr((task, job.options))
    if _made.get("key") != key:
        if "env" in _made:
            _made.pop("env").close()
        _made["key"] = None
        _made["env"] = env = make_environment("franka", task, job.options)
        simulated.check_environment(env)
        _made["expert"], _made["key"] = make_demonstrator(env), key
    return _made["env"], _made["expert"]


def _finish(job: RawJob, slots: list[Slot], matters: Mapping[str, Any]) -> tuple[int, int]:
    """Write annotations and the record of the whole; returns the numbers of frames and of failed attempts."""
    annotations: dict[str, dict[str, str]] = {}
    kinds: Counter[str] = Counter()
    frames = 0
    for slot in slots:
        name = job.name(slot)
        content = json.loads((job.folder(slot) / f"metadata_{name.uuid}.json").read_text(encoding="utf-8"))
        texts = content[OURS]["instructions"]
        annotations[name.uuid] = {f"language_instruction{index}": text for index, text in enumerate(texts, start=1)}
        frames += content["trajectory_length"]
        kinds.update(content[OURS]["attempts"])
    write_json_atomically(job.out / ANNOTATIONS, annotations)
    record = {
        "complete": True,
        "settings": dict(matters),
        "action_space": simulated.SPACE,
        "control_hz": ACTION_SPACES[simulated.SPACE].control_hz,
        "episodes": len(slots),
        "frames": frames,
        "failed_attempts": dict(sorted(kinds.items())),
        "versions": library_versions(),
    }
    write_json_atomically(job.out / RECORDINGS, record)
    return frames, sum(kinds.values())
