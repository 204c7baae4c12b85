"""What LIBERO needs before a scene is loaded: tasks, profiles, folders, and a clear line when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.libero import assets, bootstrap, diagnosis, tasks
from rlspec_envs.libero.environment import LiberoEnv
from rlspec_envs.libero.experts import make_libero_expert
from rlspec_envs.libero.profiles import PROFILES, get_profile
from rlspec_envs.libero.simulation import axis_angle, seeded

PYTHON_QUIET = """
import sys
sys.stdin.close()
import numpy as np
from rlspec_envs.libero.bootstrap import import_libero
setup = import_libero()
import libero.libero, robosuite
assert libero.libero.get_assets_path() == setup.assets
assert not {"torch", "lerobot", "rlspec"} & set(sys.modules), "heavy packages were imported"
print(setup.config)
"""


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text
    return text


def test_published_protocols_have_their_published_figures() -> None:
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
    openpi, lerobot = get_profile("openpi"), get_profile("lerobot")
    assert [openpi.max_steps[suite] for suite in suites] == [220, 280, 300, 520, 400]
    assert [lerobot.max_steps[suite] for suite in suites] == [280, 280, 300, 520, 400]
    assert (openpi.replan_steps, openpi.trials, openpi.seed, openpi.settle_steps) == (5, 50, 7, 10)
    for profile in PROFILES.values():
        assert profile.settle_action == (0, 0, 0, 0, 0, 0, -1) and profile.rotate
        assert set(profile.max_steps) == set(tasks.LIBERO_SUITES)
        assert profile.describe()["max_steps"] == dict(profile.max_steps)
    with pytest.raises(ValueError, match="profile 'paper': choose one of openpi, lerobot"):
        get_profile("paper")


def test_a_profile_cannot_be_changed_behind_a_report() -> None:
    with pytest.raises(AttributeError):
        setattr(get_profile("openpi"), "seed", 1)  # noqa: B010


def test_every_suite_lists_its_tasks() -> None:
    assert {suite: len(tasks.list_libero_tasks(suite)) for suite in tasks.LIBERO_SUITES} == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_10": 10,
        "libero_90": 90,
    }
    with pytest.raises(ValueError, match="suite 'libero_100': choose one of libero_spatial, libero_object") as error:
        tasks.list_libero_tasks("libero_100")
    one_line(error.value)


@pytest.mark.parametrize("task_id", [-1, 10, True, "x", 1.5])
def test_a_wrong_task_id_is_one_line_with_the_range(task_id: Any) -> None:
    with pytest.raises(ValueError, match=r"libero_object has no task .*: choose 0 to 9"):
        tasks.get_task("libero_object", task_id)


def test_instructions_are_the_ones_that_policies_are_prompted_with(package: None) -> None:
    assert tasks.get_task("libero_object", 0).instruction == "pick up the alphabet soup and place it in the basket"
    assert tasks.get_task("libero_10", 0).instruction == (
        "put both the alphabet soup and the tomato sauce in the basket"
    )
    assert tasks.get_task("libero_90", 0).instruction == "close the top drawer of the cabinet"
    for suite in tasks.LIBERO_SUITES:
        for task_id in tasks.list_libero_tasks(suite):
            task = tasks.get_task(suite, int(task_id))
            assert task.instruction == task.instruction.lower().strip() and "scene" not in task.instruction
            assert task.bddl_file.is_file() and task.initial_states_file.is_file()


def test_initial_states_equal_what_torch_reads(package: None) -> None:
    torch = pytest.importorskip("torch")
    task = tasks.get_task("libero_goal", 3)
    expected = torch.load(task.initial_states_file, weights_only=False)
    states = tasks.load_initial_states(task)
    assert states.shape == (50, 79) and states.dtype == np.float64
    np.testing.assert_array_equal(states, expected)


def test_a_damaged_file_of_initial_states_is_named(package: None, tmp_path: Path) -> None:
    import dataclasses

    file = tmp_path / "states.pruned_init"
    file.write_bytes(b"not a zip archive")
    task = dataclasses.replace(tasks.get_task("libero_object", 0), initial_states_file=file)
    with pytest.raises(EnvironmentUnavailable, match="states.pruned_init.*reinstall") as error:
        tasks.load_initial_states(task)
    one_line(error.value)


def test_unpickling_refuses_code() -> None:
    import io
    import pickle

    with pytest.raises(pickle.UnpicklingError, match="unexpected type"):
        tasks._ArrayUnpickler(io.BytesIO(pickle.dumps(os.system))).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ("image", "front")}, "no camera 'front': choose from image, image2"),
        ({"cameras": ()}, "cameras must be a list"),
        ({"cameras": "image"}, "cameras must be a list"),
        ({"image_size": 4}, "image_size=4 is not within"),
        ({"success_condition": "held"}, "success_condition='held': choose one of predicate, released"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 must be at least 1"),
        ({"render_mode": "human"}, "render_mode='human'"),
        ({"profile": "mine"}, "profile 'mine'"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        LiberoEnv("libero_object", 0, **options)
    one_line(error.value)


def test_missing_assets_are_named_with_the_remedy(
    package: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "_setup", None)
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "absent"))
    with pytest.raises(EnvironmentUnavailable, match="absent is not a folder: set LIBERO_ASSETS") as error:
        LiberoEnv("libero_object", 0)
    one_line(error.value)
    (tmp_path / "scenes").mkdir()
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(EnvironmentUnavailable, match="lacks articulated_objects, .*, turbosquid_objects: set") as error:
        LiberoEnv("libero_object", 0)
    one_line(error.value)
    assert [problem["remedy"] for problem in diagnosis.describe_libero()["problems"]] == [assets.REMEDY]


def test_offline_without_assets_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentUnavailable, match="HF_HUB_OFFLINE forbids .*: set LIBERO_ASSETS") as error:
        assets.find_assets(tmp_path, allow_download=True)
    one_line(error.value)


def test_assets_are_searched_in_the_stated_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, package, hub = tmp_path / "chosen", tmp_path / "package", tmp_path / "hub"
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    for folder in (hub / "libero-assets", package / "assets", chosen):
        for name in assets.SUBFOLDERS:
            (folder / name).mkdir(parents=True)
        if folder == chosen:
            monkeypatch.setenv("LIBERO_ASSETS", str(chosen))
        assert assets.find_assets(package, allow_download=False).folder == folder


def test_the_configuration_is_private_and_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = bootstrap.cache_folder()
    assert folder == tmp_path / "rlspec" and folder.stat().st_mode & 0o077 == 0
    package = Path("/somebody's package")
    config = bootstrap.write_config(package, Path("/assets"), folder) / "config.yaml"
    entries = yaml.safe_load(config.read_text())
    assert entries["bddl_files"] == "/somebody's package/bddl_files" and entries["assets"] == "/assets"
    written = config.stat().st_mtime_ns
    assert bootstrap.write_config(package, Path("/assets"), folder) == config.parent
    assert config.stat().st_mtime_ns == written and [file.name for file in config.parent.iterdir()] == ["config.yaml"]


def test_a_cache_that_cannot_be_written_gives_way_to_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = bootstrap.cache_folder()
    assert folder.is_dir() and os.access(folder, os.W_OK)
    folder.rmdir()


def test_the_import_asks_nothing_and_writes_nothing_at_home(libero: Path, tmp_path: Path) -> None:
    home, current, cache = (tmp_path / name for name in ("home", "current", "cache"))
    for folder in (home, current, cache):
        folder.mkdir()
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("LIBERO_CONFIG_PATH", "NUMBA_CACHE_DIR", "MPLCONFIGDIR")
    }
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", PYTHON_QUIET], cwd=current, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "" and result.stdout.strip().startswith(str(cache))
    assert list(home.rglob("*")) == [] and list(current.rglob("*")) == []
    assert not list((tmp_path / "tmp").glob("*.log"))


def test_axis_angle_is_the_inverse_of_the_exponential() -> None:
    scipy_rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    generator = np.random.default_rng(0)
    for quaternion in generator.normal(size=(20, 4)):
        quaternion /= np.linalg.norm(quaternion)
        rotated = scipy_rotation.from_rotvec(axis_angle(quaternion)).as_matrix()
        np.testing.assert_allclose(rotated, scipy_rotation.from_quat(quaternion).as_matrix(), atol=1e-12)
    np.testing.assert_array_equal(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), np.zeros(3))


def test_seeding_gives_numpys_generator_back() -> None:
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    with seeded(1):
        inside = np.random.rand()
    np.testing.assert_array_equal(np.random.rand(3), expected)
    with seeded(1):
        assert np.random.rand() == inside


@pytest.mark.parametrize(
    ("suite", "task", "said"),
    [("libero_goal", 3, "its tasks 0, 1, 2, 4, 5, 6, 7, 8, 9 have one"), ("libero_90", 0, "no task of it has one")],
)
def test_tasks_without_an_expert_say_so(libero: Path, suite: str, task: int, said: str) -> None:
    with pytest.raises(ValueError, match=f"{suite} task {task} has no expert: {said}") as error:
        make_libero_expert(LiberoEnv(suite, task))
    one_line(error.value)


def test_a_report_before_the_scene_is_loaded_is_json_safe(libero: Path) -> None:
    import json

    env = LiberoEnv("libero_spatial", 4, profile="lerobot", cameras=("image",))
    report = json.loads(json.dumps(env.describe()))
    assert (report["max_episode_steps"], report["profile"]["name"], report["cameras"]) == (280, "lerobot", ["image"])
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(7, np.float32))
    diagnosed = diagnosis.describe_libero()
    assert diagnosed["problems"] == [] and diagnosed["versions"]["hf-libero"]
    json.dumps(diagnosed)
