"""Rules of a user's own, by the name of the module that registers them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlspec import train

REGISTERING = """
from rlspec.optim.composition import Rule, ema
from rlspec.optim.rules import register
from rlspec.optim.stages.second_moments import signs

register(Rule("my_signs", "a test", (signs,), "S x S", ema))
"""


def print_recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("rlspec"), "train", "recipe=grpo_math", *arguments, "--print"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_registered_rule_is_an_optimizer_of_a_recipe_and_the_stored_recipe_brings_it(tmp_path: Path) -> None:
    (tmp_path / "my_rules.py").write_text(REGISTERING)
    result = print_recipe(tmp_path, "optim=my_signs", "optim.plugins=[my_rules]", "optim.roles={mlp: my_signs}")
    assert result.returncode == 0, result.stderr
    optim = yaml.safe_load(result.stdout)["optim"]
    assert (optim["name"], optim["rule"], optim["plugins"]) == ("my_signs", "my_signs", ["my_rules"])
    (tmp_path / "stored.yaml").write_text(result.stdout)
    again = print_recipe(tmp_path, "recipe=stored.yaml", "optim.lr=1.0")
    assert again.returncode == 0, again.stderr
    assert again.stdout == result.stdout.replace("  lr: 0.0001  #", "  lr: 1.0  #") != result.stdout


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("", "registers no rule; call rlspec.optim.rules.register"),
        ("import no_such_library", "cannot be imported (ModuleNotFoundError: No module named 'no_such_library')"),
        ("1 / 0", "ZeroDivisionError"),
        (REGISTERING.replace('"my_signs"', '"muon"'), "there is a rule 'muon' already"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(
    tmp_path: Path, module: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_rules.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my_rules", None)  # the one that registers nothing can be imported
    assert train.main(["recipe=grpo_math", "optim.plugins=[my_rules]", "--print"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("optim.plugins=my_rules: ") and words in error
    assert error.count("\n") == 1
