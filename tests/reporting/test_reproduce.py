"""The command under "Run it again" gives the stored recipe, or the recipe itself is given."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlspec.config.load import dump_recipe, load_any_recipe
from rlspec.config.overrides import quote
from rlspec.reporting.reading import read_run
from rlspec.reporting.reproduce import Reproduction, reproduce

PROMPT = 'say "it\'s" [a], {b}: \\ 5$ ='


def reproduction(folder: Path, recipe: dict[str, Any] | str) -> Reproduction:
    (folder / "recipe.yaml").write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    return reproduce(read_run(folder))


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe=grpo_math", "optim=muon", "optim.lr=2e-4", "seed=3", "data.levels=[1,2]", "run=mine", "output_dir=/x"],
        [
            "recipe=grpo_math",
            "model.system_prompt=" + quote('say "it\'s" [a], {b}: \\ 5$ ='),
            "optim.roles={attention.q: adamw}",
        ],
        ["recipe=vla_franka", "optim=vla_pion", "dataset.root=/data/a-b", "evaluation.every=null"],
    ],
)
def test_the_short_command_gives_the_stored_recipe(arguments: list[str], tmp_path: Path) -> None:
    stored = load_any_recipe(arguments)
    found = reproduction(tmp_path, dump_recipe(stored))
    words = shlex.split(found.command)
    assert words[:3] == ["python", "-m", "rlspec.train"] and not found.needs_file
    assert len(words) <= 3 + len(arguments)
    place = {"run": None, "output_dir": "checkpoints"}
    assert load_any_recipe(words[3:]) == stored.model_copy(update=place)
    assert load_any_recipe([f"recipe={tmp_path / 'recipe.yaml'}"]) == stored
    (tmp_path / "given.yaml").write_text(found.recipe)
    assert load_any_recipe([f"recipe={tmp_path / 'given.yaml'}"]) == stored.model_copy(update=place)


@pytest.mark.parametrize("changes", [{"recipe": "nobodys"}, {"seed": -1}, {"unknown": 1}, {"optim": {"name": "x"}}])
def test_what_no_command_gives_is_given_as_a_file(changes: dict[str, Any], tmp_path: Path) -> None:
    stored = load_any_recipe(["recipe=debug_grpo"]).model_dump(mode="json")
    found = reproduction(tmp_path, stored | changes)
    assert found.needs_file and found.command == "python -m rlspec.train recipe=recipe.yaml"


def test_a_recipe_that_was_sent_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    stored = load_any_recipe(["recipe=debug_grpo"]).model_dump(mode="json")
    stored["optim"]["plugins"] = ["trap"]
    assert reproduction(tmp_path, stored).needs_file


def test_without_a_recipe_there_is_no_command(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert reproduction(tmp_path, "").command == ""
