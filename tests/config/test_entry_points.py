"""The front of `rlspec.train` and of the console script: quick, light, one line per mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlspec import cli, train
from rlspec.config.paths import list_recipes
from rlspec.errors import DataError

HEAVY = ("torch", "transformers", "trl", "datasets", "numpy")
PROBE = f"""
import sys
from rlspec.{{module}} import main
code = main(sys.argv[1:])
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
sys.exit(code)
"""


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE.format(module=module), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 0),
        (("--help",), 0),
        (("recipe=grpo_math", "--print"), 0),
        (("recipe=nope",), 2),
        (("recipe=grpo_math", "optim.lrr=1"), 2),
        (("recipe=grpo_math", "trainer.max_stepss=1"), 2),
        (("recipe=grpo_math", "evaluation.k=[99]"), 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_nothing_heavy_is_imported_before_a_recipe_is_valid(arguments: tuple[str, ...], code: int) -> None:
    result = run("train", *arguments)
    assert result.returncode == code, result.stderr
    assert len(result.stderr.splitlines()) == (1 if code else 0)
    assert bool(result.stdout) == (code == 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("recipe=grpo_math", "resume=/nope"), "resume=/nope: no such folder"),
        (("recipe=grpo_math", f"output_dir={Path(__file__).parents[1]}", "run=config"), "run=config: "),
        (("recipe=grpo_math", f"output_dir={__file__}"), "is no folder that can be written to"),
        (("recipe=vla_franka", "policy.path=nope"), "policy.path=nope: no such folder"),
        (("recipe=vla_franka", "dataset=/nope"), "dataset.repo_id=/nope: no such folder"),
        (
            ("recipe=vla_franka", "dataset=lerobot", "dataset.repo_id=null", "dataset.root=nope"),
            "dataset.root=nope: no such folder",
        ),
    ],
)
def test_a_folder_that_is_not_there_or_taken_is_said_before_libraries_are_loaded(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and said in error and error.count("\n") == 1  # `loading torch` would stand in the output


def test_the_usage_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*list_recipes(), "pion", "qwen3_1.7b", "gsm8k"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "seed=0,1"], "python -m rlspec.compare recipe=NAME seed=0,1"),
        (["--multirun"], "python -m rlspec.compare recipe=NAME seed=0,1"),
        (["--learning_rate", "1e-5"], "a recipe's keys have no dashes: learning_rate=VALUE"),
        (["--prnt"], "did you mean --print?"),
    ],
)
def test_words_with_dashes_are_answered_with_what_was_meant(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["recipe=grpo_math", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error


def test_a_file_with_defaults_is_told_how_to_become_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [grpo_math, _self_]\n")
    assert train.main([f"recipe={tmp_path / 'mine.yaml'}"]) == 2
    assert "make one: python -m rlspec.train recipe=NAME key=value --print > mine.yaml" in capsys.readouterr().err


def test_a_printed_recipe_can_be_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train.main(["recipe=debug_grpo", "--print"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert train.main(["--print", f"recipe={tmp_path / 'mine.yaml'}"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [(DataError("no such file: x"), 2, "no such file: x\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_a_run_that_fails_ends_in_one_line(
    raised: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: object) -> int:
        raise raised

    monkeypatch.setattr(train, "_train", fail)
    assert train.main(["recipe=debug_grpo"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["env.options.image_sise=64"], "task pick_place has no such option; did you mean image_size?"),
        (["env.options.action_space=delta"], "choose one of delta_eef, joint_velocity, joint_position"),
        (["env.options.distractors=9"], "distractors=9: give a whole number from 0 to 3"),
    ],
)
def test_what_the_simulator_cannot_do_is_said_before_libraries_are_loaded(
    given: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "_runner", lambda robotic: pytest.fail("it was started"))
    assert train.main(["recipe=vla_franka", *given]) == 2
    assert words in capsys.readouterr().err


def test_the_console_script_lists_and_runs_commands() -> None:
    listing = run("cli")
    assert listing.returncode == 0
    for name in cli.commands():
        assert f"  {name} " in listing.stdout
    assert {"train", "symmetry"} <= set(cli.commands()) and "cli" not in cli.commands()
    result = run("cli", "train", "recipe=grpo_math", "--print")
    assert result.returncode == 0 and result.stdout.startswith("recipe: grpo_math  # ")
    assert run("cli", "train", "recipe=nope").returncode == 2


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_modules_run_as_scripts(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    for module in ("rlspec", "rlspec.train", "rlspec.cli"):
        result = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
            timeout=120,
        )
        assert result.returncode == 0 and result.stdout.startswith("usage: "), result.stderr


DOORS = sorted(Path(cli.__file__).parent / f"{name}.py" for name in cli.commands())


@pytest.mark.parametrize("door", [path for path in DOORS if path.is_file()], ids=lambda path: path.stem)
def test_a_door_runs_as_a_file(door: Path, tmp_path: Path) -> None:
    """Its folder is then the first on the path: no neighbour may stand for a library."""
    more = ["recipe=grpo_math", "--print"] if door.stem == "train" else ["--help"]
    command = [sys.executable, str(door), *more]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_start_that_is_not_there_is_said_before_libraries_are_loaded_with_the_recipe_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlspec.train._runner", lambda **_: pytest.fail("the run began"))
    monkeypatch.setattr("rlspec.config.paths.SHIPPED", ())
    assert train.main(["recipe=grpo_words"]) == 2
    assert "make it first: python -m rlspec.train recipe=sft_format" in capsys.readouterr().err
