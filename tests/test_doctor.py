"""What the doctor says of a healthy machine, of a broken renderer, and of checks that fail themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlspec import doctor
from rlspec.runtime import machine
from rlspec.runtime.machine import Finding


def ask(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlspec.runtime.machine", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=200, check=False)


def test_a_renderer_that_does_not_exist_is_found_and_remedied() -> None:
    done = ask("renderer", MUJOCO_GL="nonsense")
    finding = Finding(**json.loads(done.stdout))
    assert finding.status == "fail"
    assert "nonsense" in finding.detail
    assert "unset MUJOCO_GL" in finding.remedy and "apt-get install" in finding.remedy


def test_the_renderer_draws_a_frame() -> None:
    rendering = pytest.importorskip("rlspec_envs.rendering")
    try:
        rendering.choose_gl()
    except Exception as error:
        pytest.skip(f"no GL library here: {error}")
    finding = Finding(**json.loads(ask("renderer").stdout))
    assert finding.status == "ok", finding
    assert "mujoco 3." in finding.detail


def test_video_and_libero_are_examined_in_this_process() -> None:
    video = machine.probe_video()
    assert (video.status, "H.264" in video.detail) == ("ok", True)
    libero = machine.probe_libero()
    assert libero.status in ("ok", "warn")
    assert bool(libero.remedy) == (libero.status == "warn")


def test_all_cheap_checks_pass_in_the_development_environment() -> None:
    findings = {name: check() for name, check in machine.CHECKS.items()}
    assert [name for name, finding in findings.items() if finding.status == "fail"] == []
    assert "lerobot 0.6.1" in findings["libraries"].detail


def test_a_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.metadata.version
    monkeypatch.setattr(machine.metadata, "version", lambda name: "0.5.0" if name == "lerobot" else real(name))
    finding = machine.check_libraries()
    assert finding.status == "fail"
    assert "lerobot 0.5.0 (needs ==0.6.1)" in finding.detail
    assert "uv sync --extra optim --extra train --extra vla" in finding.remedy


def test_outside_of_a_checkout_the_remedy_is_pips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rlspec.__file__", str(tmp_path / "rlspec" / "__init__.py"))
    monkeypatch.setattr(machine.metadata.PathDistribution, "read_text", lambda *_: None)  # no record of its origin
    monkeypatch.setitem(sys.modules, "mujoco", None)
    assert machine.probe_renderer().remedy == "for simulators: `pip install 'rlspec[vla]'`"


def test_the_optimizers_alone_may_have_a_newer_torch_than_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pip install rlspec[optim]` leaves it: torch brings some packages that training asks for as well."""
    here = {"torch": "2.15.0", "jinja2": "3.1.6", "sympy": "1.14.0", "markupsafe": "3.0.3", "mpmath": "1.3.0"}
    base = ("hydra-core", "msgpack", "numpy", "omegaconf", "packaging", "pillow", "pydantic", "pyyaml", "rich")
    real = machine.metadata.version

    def version(name: str) -> str:
        if name in here or name in (*base, "websockets"):
            return here.get(name) or real(name)
        raise machine.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "version", version)
    finding = machine.check_libraries()
    assert (finding.status, "trl" in finding.detail) == ("warn", True), finding
    here["torch"] = "2.10.0"
    assert "torch 2.10.0 (needs >=2.11)" in machine.check_libraries().detail
    base = base[1:]
    assert "hydra-core is missing" in machine.check_libraries().detail


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    finding = machine.check_disk()
    assert (finding.status, "0.5 GiB free" in finding.detail) == ("fail", True)


def run_with(monkeypatch: pytest.MonkeyPatch, checks: dict[str, Any], *arguments: str) -> int:
    monkeypatch.setattr(machine, "CHECKS", checks)
    monkeypatch.setattr(machine, "PROBES", {})
    return doctor.main(list(arguments))


def test_a_check_that_raises_is_a_finding_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Finding:
        raise KeyError("what")

    checks = {"broken": broken, "sound": lambda: Finding("sound", "ok", "all well")}
    assert run_with(monkeypatch, checks) == 1
    out = capsys.readouterr().out
    assert "FAIL  broken  KeyError: 'what'" in out and "remedy:" in out
    assert "ok    sound   all well" in out and out.endswith("broken: broken\n")


def test_warnings_do_not_break_anything_and_json_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = {"absent": lambda: Finding("absent", "warn", "not installed", "install it")}
    assert run_with(monkeypatch, checks, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content == {
        "ok": True,
        "checks": [{"name": "absent", "status": "warn", "detail": "not installed", "remedy": "install it"}],
    }


def test_a_check_that_dies_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = SimpleNamespace(stdout="", stderr="Segmentation fault\n", returncode=-11)
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: dead)
    finding = machine.probe_apart("renderer")
    assert (finding.name, finding.status) == ("renderer", "fail")
    assert "code -11: Segmentation fault" in finding.detail


@pytest.mark.parametrize(("name", "status"), [("renderer", "fail"), ("torch", "warn")])
def test_a_check_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch, name: str, status: str) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(machine.subprocess, "run", hang)
    finding = machine.probe_apart(name)
    assert (finding.status, "no answer within 60 s" in finding.detail) == (status, True)


def test_an_unknown_argument_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--jason"]) == 2
    assert capsys.readouterr().err.startswith("--jason: unknown key; did you mean --json?")
