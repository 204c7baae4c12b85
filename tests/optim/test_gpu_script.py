"""The benchmark for a GPU: a dry run of its sections, and what becomes of one that fails, hangs or comes too late."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    specification = importlib.util.spec_from_file_location("gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu", module)  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


def test_every_section_measures_on_the_cpu(script, tmp_path) -> None:
    """But `recipe`, which starts trainings: the slow test has it."""
    names = [section.name for section in script.SECTIONS if section.name != "recipe"]
    script.run_here(names, script.Setup.of(True, 1e6), tmp_path)
    check_numbers({name: script.read_part(tmp_path / f"{name}.json") for name in names})


@pytest.mark.slow
def test_the_dry_run_measures_in_every_section_and_prints_them(script, tmp_path) -> None:
    command = ["bash", str(FOLDER / "gpu.sh"), "--dry-run", "--output", str(tmp_path / "gpu.json")]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    sections = content["sections"]
    assert list(sections) == [section.name for section in script.SECTIONS]
    assert all(entry["summary"][-1] in run.stdout for entry in sections.values())
    check_numbers(sections)
    assert [row["exit_code"] for row in sections["recipe"]["results"]["runs"]] == [0, 0]


def check_numbers(sections: dict[str, dict[str, Any]]) -> None:
    assert {name: entry.get("reason") for name, entry in sections.items() if entry["status"] != "done"} == {}
    steps = {row["name"]: row for row in sections["steps"]["results"]["rows"] if row["weights"] == "float32"}
    ours = steps["pion per head, auto"]
    assert ours["ratio_to_torch_muon"] == ours["seconds"] / steps["torch Muon, as it is"]["seconds"]
    parity = sections["parity"]["results"]
    assert all(row["float32"] == [0.0, 0.0] and max(row["cpu_bfloat16"]) < 0.1 for row in parity["rules"])
    assert [row["equal"] for row in parity["equal_to_torch"]] == [True, True]
    assert parity["masking_fails"] == []
    (grpo,) = sections["grpo"]["results"]["runs"]
    assert len(grpo["steps"]) == 3
    assert all(0 < step["rollout"] + step["training"] + step["optimizer"] < step["step"] for step in grpo["steps"])


STAND_INS = {
    "measures": "def run(part, setup):\n    part.put('width', float('nan'))\n    part.say('a line')",
    "fails": "def run(part, setup):\n    part.put('width', 3)\n    raise RuntimeError('no such kernel')",
    "lacks": "import no_such_package",
    "hangs": "import time\ndef run(part, setup):\n    part.add('rows', {'width': 5})\n    time.sleep(600)",
    "dies": "import os\ndef run(part, setup):\n    part.put('width', 7)\n    os._exit(9)",
}


def test_a_section_that_fails_hangs_or_dies_says_so_keeps_its_numbers_and_the_others_go_on(
    script, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "gpu_sections").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "gpu_sections" / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limits = {name: 4.0 if name == "hangs" else 100.0 for name in STAND_INS}
    sections = [script.Section(name, 0, limit) for name, limit in limits.items()]
    monkeypatch.setattr(script, "SECTIONS", (*sections, script.Section("late", 1e6, 1e6)))
    assert script.main(["--output", str(tmp_path / "gpu.json")]) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert {name: entry["status"] for name, entry in written.items()} == {
        "measures": "done", "fails": "failed", "lacks": "lacks a package", "hangs": "ended", "dies": "ended",
        "late": "skipped",
    }  # fmt: skip
    reasons = {name: entry.get("reason", "") for name, entry in written.items()}
    assert reasons["fails"] == "RuntimeError: no such kernel (fails.py:3)"
    assert "no_such_package" in reasons["lacks"]
    assert reasons["hangs"] == "ended after its limit of 4 s"
    assert reasons["dies"] == "its process ended with code 9"
    assert reasons["late"].startswith("needs about 1e+06 s, 4")
    assert written["measures"]["results"] == {"width": "nan"}
    assert [written[name]["results"] for name in ("fails", "hangs", "dies")] == [
        {"width": 3}, {"rows": [{"width": 5}]}, {"width": 7},
    ]  # fmt: skip
    assert "## hangs: ended after" in capsys.readouterr().out


def test_waiting_is_counted_at_the_line_of_rlspec_that_caused_it(script, tmp_path) -> None:
    module = importlib.import_module("gpu_sections.synchronisations")
    (tmp_path / "rlspec").mkdir()
    (tmp_path / "rlspec" / "stage.py").write_text("def stage(wait):\n    return wait()\n")
    space: dict = {}
    exec(compile((tmp_path / "rlspec" / "stage.py").read_text(), str(tmp_path / "rlspec" / "stage.py"), "exec"), space)

    def item() -> None:
        warnings.warn(f"{module.MESSAGE} (Triggered internally)", stacklevel=1)

    with pytest.warns(UserWarning, match="another"), module.watched("cpu") as found:
        for _ in range(3):
            space["stage"](item)
        warnings.warn("another", stacklevel=1)
    assert found == {"rlspec/stage.py:2 return wait() -> item": 3}


def test_the_largest_batch_is_that_of_one_shape_and_cut_up_to_the_workspace(script) -> None:
    module = importlib.import_module("gpu_sections.workspace")
    cuts = [((4, 6), 1), ((4, 6), 1), ((4, 6), 2), ((9, 5), 1)]
    matrices = [module.Matrix(torch.nn.Parameter(torch.zeros(shape)), heads) for shape, heads in cuts]
    assert module._largest_batch(matrices, 1 << 20) == 4 * 2 * 24
    assert module._largest_batch(matrices, 100) == 4 * 45
