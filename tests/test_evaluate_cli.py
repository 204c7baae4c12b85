"""The command line of evaluations: what is refused in one line, and what is asked of which simulator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlspec import evaluate
from rlspec.checkpoint import staged_folder
from rlspec.config.load import dump_recipe, load_vla_recipe
from rlspec.errors import ConfigError
from rlspec.rlvr import measure as rlvr_measure
from rlspec.runtime.measuring import evaluation_recipe

LIGHT = "import sys; from rlspec.evaluate import main; code = main(sys.argv[1:]); "
CASES = [
    (["env=franka_pick_place"], "policy: required"),
    (["env=frankq", "policy=expert"], "env=frankq: unknown; did you mean franka?"),
    (["policy=expert"], "env: required; add env=NAME; allowed: franka"),
    (["env=franka", "policy=replay"], "policy=replay: needs dataset=DIR"),
    (["env=franka", "policy=expert", "strength=2"], "strength: does nothing without perturb="),
    (["env=franka", "policy=expert", "dataset=/no/such"], "dataset=/no/such: no such folder"),
    (["env=franka", "policy=expert", "task=fly"], "env.tasks=fly: franka has no such task"),
    (["env=franka", "policy=expert", "episodes=0"], "episodes=0: must be"),
    (["env=franka", "policy=expert", "profile=openpi"], "evaluation.profile=openpi: a protocol of LIBERO"),
    (
        ["env=libero_goal", "policy=expert", "profile=opempi"],
        "profile=opempi: must be openpi, lerobot",
    ),
    (["env=franka", "policy=expert", "optim.lr=1"], "optim.lr=1: has no effect on an evaluation in the simulator"),
    (["env=franka", "policy=expert", "worker=1"], "worker=1: has no effect on an evaluation in the simulator; did you"),
    (
        ["env=franka", "policy=expert", "evaluation.epsiodes=3"],
        "evaluation.epsiodes: unknown key; did you mean episodes?",
    ),
    (["env=franka", "policy=./nowhere/at/all"], "no such folder"),
    (["env=franka", "policy=expert", "checkpoint=x"], "policy: required, and not together with checkpoint"),
    *(
        (["checkpoint=checkpoints/tiny-arithmetic", key], f"{key}: has no effect on an evaluation; leave it out")
        for key in ("optim.lr=3", "optim=adamw", "trainer.max_steps=3", "batch.prompts_per_step=2", "push=a/b")
    ),
    (["env=franka", "policy=expert", "loudly"], "'loudly' is no setting"),
    (["env=franka", "policy=expert", "data=math500"], "data=math500: only for language models; leave it out"),
    (["env=franka", "policy=expert", "num_episodes=3"], "num_episodes=3: unknown key; did you mean episodes?"),
]


@pytest.mark.parametrize(("arguments", "line"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1, error


def test_several_local_files_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"data=a\.jsonl: measured on alone"):
        evaluation_recipe("checkpoints/tiny-arithmetic", [], data=["math500", "a.jsonl"])


def test_mistakes_are_answered_without_torch_and_lerobot() -> None:
    check = "sys.exit(code if not {'torch', 'lerobot', 'mujoco'} & set(sys.modules) else 99)"
    command = [sys.executable, "-c", LIGHT + check, "env=franka", "policy=expert", "episodes=none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command would measure."""
    from rlspec.vla.evaluation import command

    found: dict[str, Any] = {}

    def measure(recipe: Any, **rest: Any) -> int:
        found.update(recipe=recipe, **rest)
        return 0

    monkeypatch.setattr(command, "measure", measure)
    return found


def test_short_names_reach_the_recipe(asked: dict[str, Any]) -> None:
    arguments = ["env=franka", "policy=expert", "task=push,stack", "episodes=7", "workers=3", "env.image_size=64"]
    assert evaluate.main([*arguments, "evaluation.n_action_steps=2", "env.options.randomise=none"]) == 0
    recipe = asked["recipe"]
    assert recipe.env.tasks == ["push", "stack"]
    assert (recipe.evaluation.episodes, recipe.evaluation.workers, recipe.evaluation.n_action_steps) == (7, 3, 2)
    assert recipe.env.options == {"action_space": "delta_eef", "image_size": 64, "randomise": "none"}
    assert (asked["what"], asked["trained"]) == ("expert", None)
    assert asked["out"] == Path("checkpoints/evaluations/franka-expert")


def test_a_folder_at_home_is_found_where_it_was_looked_for(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert evaluate.main(["env=franka", "policy=replay", "task=push", "dataset=~/data"]) == 0
    assert asked["dataset"] == tmp_path / "data"


def test_tasks_of_libero_are_text(asked: dict[str, Any]) -> None:
    assert evaluate.main(["env=libero_object", "policy=expert", "task=0,3", "profile=lerobot", "out=x/y"]) == 0
    assert asked["recipe"].env.tasks == ["0", "3"]
    assert asked["recipe"].evaluation.profile == "lerobot"
    assert asked["out"] == Path("x/y")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of behaviour cloning with one checkpoint."""
    recipe = load_vla_recipe(["recipe=vla_franka", "env.options.image_size=32", "evaluation.episodes=3"])
    with staged_folder(tmp_path / "run/checkpoints/checkpoint-5", metadata={"step": 5}) as folder:
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        (folder / "config.json").write_text(json.dumps({"type": "rlspec_adapter"}))
    return tmp_path / "run"


@pytest.mark.parametrize("key", ["checkpoint", "policy"])
def test_a_run_is_measured_in_its_own_environment(key: str, run: Path, asked: dict[str, Any]) -> None:
    assert evaluate.main([f"{key}={run}", "episodes=4"]) == 0
    assert asked["recipe"].env.options["image_size"] == 32
    assert asked["recipe"].evaluation.episodes == 4
    assert asked["what"] == str(run / "checkpoints/checkpoint-5")
    assert asked["out"] == run / "evaluations/checkpoint-5"
    assert asked["trained"].env.options["image_size"] == 32


def test_a_run_is_measured_in_another_environment(run: Path, asked: dict[str, Any]) -> None:
    assert evaluate.main([f"checkpoint={run}", "env=libero_object", "task=1"]) == 0
    assert (asked["recipe"].env.suite, asked["recipe"].env.tasks) == ("libero_object", ["1"])
    assert asked["trained"].env.suite == "franka"
    assert asked["out"] == run / "evaluations/checkpoint-5-libero_object"


def test_language_models_go_their_own_way(
    tmp_path: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}

    def measure(recipe: Any, **rest: Any) -> int:
        called.update(recipe=recipe, **rest)
        return 0

    monkeypatch.setattr(rlvr_measure, "measure", measure)
    (tmp_path / "config.json").write_text("{}")
    assert evaluate.main([f"checkpoint={tmp_path}", "data=math500", f"out={tmp_path / 'o'}"]) == 0
    assert called["recipe"].data.name == "math500" and called["out"] == tmp_path / "o"
    assert not asked
