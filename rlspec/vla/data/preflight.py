"""Data, policy and environment must mean the same: one line for everything that does not agree, before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.config.messages import join_lines
from rlspec.config.vla_schema import Env
from rlspec.contract.actions import ACTION_SPACES, STIFF_POSITION
from rlspec.contract.features import (
    ACTION,
    AGENT_POS,
    PIXELS,
    STATE,
    camera_of,
    image_key,
    is_empty_camera,
    is_image,
    picture_shape,
)
from rlspec.errors import DataError, nearest
from rlspec.vla.data.comparison import (
    Columns,
    Finding,
    compare_facts,
    compare_statistics,
    misfit,
    near_constant,
    units,
)
from rlspec.vla.data.facts import Stats, read_record
from rlspec.vla.data.files import INFO, read_columns, read_json
from rlspec.vla.data.motion import motion_findings


@dataclass(frozen=True)
class EnvFacts:
    """What an environment gives and takes."""

    suite: str
    cameras: dict[str, tuple[int, ...]]  # name -> (height, width, 3)
    state: int
    action_space: str
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    control_hz: float

    @classmethod
    def of(cls, env: Any) -> EnvFacts:
        """Read an environment of `rlspec_envs`."""
        simulator, spaces = env.unwrapped, env.observation_space
        return cls(
            suite=simulator.suite,
            cameras={name: box.shape for name, box in spaces[PIXELS].spaces.items()},
            state=spaces[AGENT_POS].shape[0],
            action_space=simulator.action_space_name,
            low=env.action_space.low,
            high=env.action_space.high,
            control_hz=float(simulator.control_hz),
        )


def read_env_facts(section: Env) -> EnvFacts:
    """Make the environment of a recipe for a moment and read it.

    Raises:
        ConfigError: It cannot be made.
    """
    from rlspec.vla.data.workers import make_environment

    task = section.tasks[0] if section.tasks else _first_task(section.suite)
    env = make_environment(section.suite, task, section.options)
    try:
        return EnvFacts.of(env)
    finally:
        env.close()


def _first_task(suite: str) -> str:
    import rlspec_envs

    return str(rlspec_envs.list_tasks(suite)[0])


def preflight(
    meta: Any,
    *,
    policy: Any | None = None,
    checkpoint: Stats | None = None,
    facts: Mapping[str, Any] | None = None,
    env: EnvFacts | None = None,
    chosen: tuple[str, Stats] | None = None,
) -> list[str]:
    """Compare data, policy, checkpoint and environment.

    Args:
        meta: of the opened data set, under the names that the policy knows.
        policy: a LeRobot policy's config; None, or one without features: it is built after the data.
        checkpoint: statistics that the policy was pretrained with; None: there are none.
        facts: what `facts.read_facts` says of a pretrained policy.
        env: what `EnvFacts.of(env)` says; None: nothing is simulated.
        chosen: other statistics than the data's that the policy will normalise by, after the key that chose them.

    Returns:
        Lines worth reading that stop nothing.

    Raises:
        DataError: What does not agree and how to mend it, at most five lines.
    """
    faults: list[str] = []
    notes: list[str] = []
    record = read_record(meta.root)
    for is_fault, line in _all(meta, policy, env, record):
        (faults if is_fault else notes).append(line)
    if chosen is not None:  # then these are compared, which a checkpoint's may be
        checkpoint = None
        for is_fault, line in misfit(*chosen, meta.stats or {}, _columns(meta)):
            (faults if is_fault else notes).append(line)
    for is_fault, line in numbers(meta, policy, checkpoint, facts or {}):
        (faults if is_fault else notes).append(line)
    if faults:
        raise DataError(join_lines(faults))
    return list(dict.fromkeys(notes))


def _all(meta: Any, policy: Any, env: EnvFacts | None, record: Mapping[str, Any]) -> Iterator[Finding]:
    if policy is not None:
        yield from _policy_features(meta, policy)
    if env is not None:
        yield from _cameras(meta, env, policy)
        yield from _rates(meta, env, record)
        yield from _action_space(meta, env, record)
    space = record.get("action_space") or (env.action_space if env is not None else None)
    if space in ACTION_SPACES and "suite" not in record:  # not our simulators'
        yield from _motion(Path(meta.root), space)


def _motion(root: Path, space: str) -> Iterator[Finding]:
    names = [ACTION, STATE, "episode_index"]
    if (root / INFO).is_file() and set(names) <= read_json(root / INFO)["features"].keys():
        yield from motion_findings(read_columns(root, names), space)


def numbers(meta: Any, policy: Any, checkpoint: Stats | None, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """What the statistics say: units, normalisation, and the comparison with a checkpoint."""
    stats, record = meta.stats or {}, read_record(meta.root)
    names = (meta.features.get(STATE) or {}).get("names")
    yield from units(stats, record.get("action_space"), list(names) if isinstance(names, list | tuple) else None)
    modes = getattr(policy, "normalization_mapping", None) or facts.get("normalization") or {}
    plain = {kind: str(getattr(mode, "value", mode)) for kind, mode in modes.items()}
    yield from near_constant(stats, stats, plain)
    yield from compare_facts({"control_hz": getattr(meta, "fps", None), **record}, facts)
    if checkpoint is not None:
        yield from compare_statistics(stats, checkpoint, _columns(meta))


def _columns(meta: Any) -> Columns:
    """Reads numbers by the policy's names."""
    in_files = {new: old for old, new in getattr(meta, "renamed", {}).items()}

    def columns(name: str) -> NDArray[Any]:
        key = in_files.get(name, name)
        return read_columns(Path(meta.root), [key])[key]

    return columns


def _policy_features(meta: Any, policy: Any) -> Iterator[Finding]:
    """Everything that the policy reads is in the data, in the same size; pictures may differ, policies resize them."""
    features = meta.features
    for name, wanted in {**(policy.input_features or {}), **(policy.output_features or {})}.items():
        if is_empty_camera(name):
            continue
        if name not in features:
            yield True, f"policy: it reads {name}, the data has no such feature; {_rename_hint(name, features)}"
            continue
        shape, expected = tuple(features[name]["shape"]), tuple(wanted.shape)
        if is_image(name):
            height, width, channels = picture_shape(features[name])
            if (channels, height, width) != expected:
                yield False, f"{name}: {width}x{height} pixels, the policy was made for {expected[2]}x{expected[1]}"
        elif shape != expected:
            remedy = "take a policy of that size, or data with the same robot and action space"
            yield True, f"{name}: {shape[0]} numbers, the policy has {expected[0]}; {remedy}"


def _rename_hint(name: str, features: Mapping[str, Any]) -> str:
    alike = [each for each in features if is_image(each) == is_image(name) and "." in each]
    if not alike:
        return nearest(name, features)
    return f"set dataset.rename, for example dataset.rename='{{{alike[0]}: {name}}}'"


def _cameras(meta: Any, env: EnvFacts, policy: Any) -> Iterator[Finding]:
    """What the policy learns from is what the environment shows."""
    features = meta.features
    used = set((policy.input_features if policy is not None else None) or features)
    for name in sorted(used):
        if not is_image(name) or name not in features:
            continue
        camera = camera_of(name)
        if camera not in env.cameras:
            there = [image_key(each) for each in env.cameras]
            yield (
                True,
                (
                    f"camera {name}: the environment has {', '.join(there)}; "
                    f"set dataset.rename, for example dataset.rename='{{{name}: {there[0]}}}'"
                ),
            )
        elif picture_shape(features[name]) != tuple(env.cameras[camera]):
            height, width, _ = picture_shape(features[name])
            shown = env.cameras[camera]
            yield (
                True,
                (
                    f"camera {name}: {width}x{height} pixels in the data, {shown[1]}x{shown[0]} in the environment; "
                    f"set env.options.image_size={height}"
                ),
            )
    if STATE in features and features[STATE]["shape"][0] != env.state:
        yield (
            True,
            (
                f"{STATE}: {features[STATE]['shape'][0]} numbers in the data, {env.state} in the environment; "
                "choose the environment (env.options.action_space) that the data was recorded in"
            ),
        )


def _rates(meta: Any, env: EnvFacts, record: Mapping[str, Any]) -> Iterator[Finding]:
    if abs(float(record.get("control_hz", meta.fps)) - env.control_hz) < 0.05:
        return
    rate = record.get("control_hz", meta.fps)
    line = f"rate: {rate:g} Hz in the data, {env.control_hz:g} Hz in the environment"
    if record:
        yield True, f"{line}; set env.options.control_hz={rate:g}"
    else:  # LIBERO's demonstrations are labelled 10 and were recorded at 20
        yield False, f"{line}; fps is a label only where nobody wrote down the rate of control"


def _action_space(meta: Any, env: EnvFacts, record: Mapping[str, Any]) -> Iterator[Finding]:
    size, taken = meta.features[ACTION]["shape"][0], len(env.low)
    if size != taken:
        yield (
            True,
            (
                f"action: {size} numbers in the data, {taken} in the environment ({env.action_space}); "
                "set env.options.action_space, or take other data"
            ),
        )
        return
    there = record.get("action_space")
    if there is None:
        yield False, f"action space: the data does not say its own; the environment's is {env.action_space}"
    elif there != env.action_space:
        line = f"action space: {there} in the data, {env.action_space} in the environment"
        yield True, f"{line}; set env.options.action_space={there}"
    simulated = record.get("execution_law") == STIFF_POSITION  # recordings of the simulation, in a robot's format
    if record.get("suite", env.suite) != env.suite and not simulated:
        yield False, f"suite: the data is from {record['suite']}, the environment is {env.suite}"
    yield from _action_range(meta, env)


def _action_range(meta: Any, env: EnvFacts) -> Iterator[Finding]:
    stats = (meta.stats or {}).get(ACTION, {})
    if "q01" not in stats or "q99" not in stats:
        return
    low, high = (np.asarray(stats[key], dtype=np.float64) for key in ("q01", "q99"))
    span = np.maximum(env.high - env.low, 1e-6)
    for index in np.flatnonzero((low < env.low - 0.01 * span) | (high > env.high + 0.01 * span)):
        yield (
            False,
            (
                f"action[{index}]: q01..q99 is {low[index]:.3g}..{high[index]:.3g}, the environment cuts it to "
                f"{env.low[index]:.3g}..{env.high[index]:.3g}"
            ),
        )


def checkpoint_statistics(folder: Path | str) -> dict[str, dict[str, Any]] | None:
    """What a saved LeRobot policy normalises by; None where its folder does not say."""
    from safetensors.numpy import load_file

    stats: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("policy_preprocessor*normalizer*.safetensors")):
        for key, value in load_file(path).items():
            name, _, kind = key.rpartition(".")
            stats.setdefault(name, {})[kind] = value
    return stats or None
