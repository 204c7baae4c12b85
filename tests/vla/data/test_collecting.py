"""Demonstrations are the same however they were collected, and what they say is true."""

from __future__ import annotations

import errno
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import Toy, expert_action, threads

from rlspec.display import Display
from rlspec.errors import DataError
from rlspec.vla.data import demonstrations, staging, workers
from rlspec.vla.data.episodes import load_episode_actions
from rlspec.vla.data.files import read_columns
from rlspec.vla.data.output import first_difference

Generate = Callable[..., Path]


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Stopped(Exception):
    """Stands for Ctrl-C and for a kill."""


def stop_after(attempts: int, seen: list[int]) -> Any:
    """A pool that ends the collection after so many attempts; counts those that it ran."""

    class Counting:
        def __init__(self, inner: Executor) -> None:
            self.inner = inner

        def submit(self, function: Any, *arguments: Any) -> Any:
            if len(seen) == attempts:
                raise Stopped
            seen.append(arguments[2])
            return self.inner.submit(function, *arguments)

    @contextmanager
    def pool(workers: int) -> Iterator[Any]:
        with threads(workers) as inner:
            yield Counting(inner)

    return pool


@pytest.mark.parametrize("video", [False, True])
def test_the_data_set_does_not_depend_on_workers(
    generate: Generate, images: Path, films: Path, tmp_path: Path, video: bool
) -> None:
    other = generate(tmp_path / "other", workers=3, video=video)
    expected = content(films if video else images)
    assert content(other).keys() == expected.keys()
    assert [name for name, data in content(other).items() if data != expected[name]] == []


def test_an_interrupted_collection_goes_on_and_gives_the_same(generate: Generate, images: Path, tmp_path: Path) -> None:
    first: list[int] = []
    with pytest.raises(Stopped):
        generate(tmp_path / "data", pool=stop_after(4, first))
    assert not (tmp_path / "data").exists()
    half_written = tmp_path / ".data.work" / "episodes" / "001-000001.npz"
    half_written.write_bytes(b"PK a kill cut this short")
    second: list[int] = []
    generate(tmp_path / "data", pool=stop_after(100, second))
    assert content(tmp_path / "data") == content(images)
    record = json.loads((images / "meta/rlspec.json").read_text())
    tried = len(record["episodes"]) + sum(sum(kinds.values()) for kinds in record["failures"].values())
    assert len(first) + len(second) == tried
    assert list(tmp_path.iterdir()) in ([tmp_path / "data"], [tmp_path / "data", tmp_path / ".data.work.lock"][::-1])


def test_successes_are_handed_on_in_order_however_they_arrive() -> None:
    task = workers.Progress(0, wanted=2, started=3)
    waiting = deque((task, position) for position in range(2))
    task.outcomes[2] = ""
    assert list(workers._ready(waiting)) == []  # 0 and 1 may come before it
    task.outcomes[0] = "dropped"
    assert list(workers._ready(waiting)) == []
    task.outcomes[1] = ""
    assert list(workers._ready(waiting)) == [(0, 1), (0, 2)]
    assert list(workers._ready(waiting)) == []


def test_only_successes_are_kept_and_failures_counted(images: Path) -> None:
    record = json.loads((images / "meta/rlspec.json").read_text())
    # Seeds 4 and on; those divisible by three fail.
    assert [each["seed"] for each in record["episodes"]] == [4, 5, 7] * 2
    assert [each["task"] for each in record["episodes"]] == ["reach"] * 3 + ["touch"] * 3
    assert record["failures"] == {"reach": {"timeout": 1}, "touch": {"timeout": 1}}
    assert (record["suite"], record["action_space"], record["control_hz"]) == ("toy", "delta_eef", 10.0)
    assert record["env"] == {"name": "toy", "robot": "point"}


def test_labels_are_the_experts_and_executed_actions_are_disturbed(generate: Generate, tmp_path: Path) -> None:
    root = generate(tmp_path / "data", episodes=10, noise=0.3, noise_share=0.25)
    columns = read_columns(root, ["observation.state", "action", "executed_action"])
    labels, executed = columns["action"], columns["executed_action"]
    assert np.array_equal(labels, np.stack([expert_action(state) for state in columns["observation.state"]]))
    changed = (labels != executed).any(axis=1)
    assert 0.15 < changed.mean() < 0.35
    assert np.array_equal(labels[:, -1], executed[:, -1])
    assert np.abs(executed).max() <= 1


def test_stored_actions_repeat_the_stored_states(images: Path) -> None:
    columns = read_columns(images, ["observation.state", "episode_index"])
    for episode in range(6):
        stored = load_episode_actions(images, episode)
        env = Toy(stored.task)
        observation, _ = env.reset(seed=stored.seed)
        outcome: dict[str, Any] = {}
        states = []
        for action in stored.actions:
            states.append(observation["agent_pos"])
            observation, *_, outcome = env.step(action)
        assert np.array_equal(np.stack(states), columns["observation.state"][columns["episode_index"][:, 0] == episode])
        assert outcome["is_success"]


def test_an_episode_that_is_not_there(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no episode 6; it has 6"):
        load_episode_actions(images, 6)
    with pytest.raises(DataError, match="set evaluation.replay=0"):
        load_episode_actions(tmp_path, 0)


def test_a_simulator_that_does_not_repeat_itself_is_found_out(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drift(self: Toy, *, seed: int | None = None, options: Any = None) -> Any:
        result = reset(self, seed=seed, options=options)
        self.position = self.position + 1e-6 * self.resets
        return result

    reset = Toy.reset
    monkeypatch.setattr(Toy, "reset", drift)
    with pytest.raises(DataError, match="reach: seed 4: the replay is in another state before step 1; the environment"):
        generate(tmp_path / "data")


def test_an_expert_that_never_succeeds_is_given_up(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "plan_episode", lambda *_: Failed())
    with pytest.raises(DataError, match=r"the expert solved reach in 0 of 1\d attempts \(dropped\); lower noise"):
        generate(tmp_path / "data", workers=2)


class Failed:
    failure = "dropped"


def test_finished_demonstrations_are_found(
    generate: Generate, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[int] = []
    assert generate(images, pool=stop_after(0, ran), display=Display("plain")) == images
    assert "is complete" in capsys.readouterr().out


def test_other_settings_do_not_overwrite(generate: Generate, images: Path) -> None:
    with pytest.raises(DataError, match=r"another episodes \(3 instead of 2\); choose another folder, or remove it"):
        generate(images, episodes=2)


def test_unfinished_demonstrations_of_other_settings_are_not_mixed(generate: Generate, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        generate(tmp_path / "data", pool=stop_after(2, []))
    with pytest.raises(DataError, match=r"unfinished demonstrations with another seed \(4 instead of 9\)"):
        generate(tmp_path / "data", seed=9)


@pytest.mark.parametrize(
    ("stored", "wanted", "said"),
    [
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}, "y (2 instead of 3)"),
        ({"a": {"x": 1}}, {"a": {"x": 1, "z": 4}}, "z (null instead of 4)"),
        ({"a": {"x": 1, "z": 4}}, {"a": {"x": 1}}, "z (4 instead of null)"),
        ({"a": {"x": None}, "b": 1}, {"a": {}, "b": 2}, 'a ({"x": null} instead of {})'),
        ({"a": {"x": 1}, "c": 1}, {"a": {"x": 1}}, None),
    ],
)
def test_a_difference_within_a_mapping_is_never_passed_over(
    stored: dict[str, Any], wanted: dict[str, Any], said: str | None
) -> None:
    assert first_difference(stored, wanted) == said


def test_a_run_that_ended_before_its_first_episode_binds_nobody(generate: Generate, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        generate(tmp_path / "data", pool=stop_after(0, []))
    assert (tmp_path / ".data.work" / "settings.json").is_file()
    assert generate(tmp_path / "data", seed=9).is_dir()


def test_a_folder_with_other_things_is_left_alone(generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no demonstrations of rlspec; choose another folder, or remove it"):
        generate(tmp_path)


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    generate: Generate, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        original(path, data)

    original = staging.write_whole
    with monkeypatch.context() as patch:
        patch.setattr(staging, "write_whole", write)
        with pytest.raises(
            DataError, match="the disk is full; free space, or choose another folder; what was"
        ) as error:
            generate(tmp_path / "data")
    assert "\n" not in str(error.value)
    seen: list[int] = []
    generate(tmp_path / "data", pool=stop_after(100, seen))
    assert content(tmp_path / "data") == content(images)
    assert len(seen) == 8 - 3


def test_a_folder_that_cannot_be_made_is_one_line(generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written .*; mend that, or choose another folder"):
        generate(tmp_path / "file" / "data")


def test_equal_demonstrations_have_one_name(toy_environment: None) -> None:
    from rlspec.config.vla_schema import Demonstrations, Env

    env = Env(name="toy", suite="toy", tasks=["reach"], options={})
    name = demonstrations.default_name(env, Demonstrations(episodes=3))
    assert name.startswith("toy-reach-")
    assert demonstrations.default_name(env, Demonstrations(episodes=3, workers=7, noise_share=0.9)) == name
    assert demonstrations.default_name(env, Demonstrations(episodes=3, noise=0.1)) != name
    assert demonstrations.default_name(env, Demonstrations(episodes=4)) != name
