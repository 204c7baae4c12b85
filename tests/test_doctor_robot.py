"""What the doctor says of a robot's computer: which checks it runs, their outcomes, and mistakes in its arguments."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlspec import doctor
from rlspec.deploy import probes
from rlspec.errors import RobotError
from rlspec.runtime import machine
from rlspec.runtime.machine import Finding


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (
            {"robot": "franka_fr3", "host": "h", "server": "ws://s"},
            ["python", "driver", "kernel", "priority", "governor", "network", "robot", "policy server"],
        ),
        ({"robot": "franka_sim", "cameras": ["opencv:0"]}, ["python", "driver", "simulator", "cameras", "torch"]),
        ({"robot": "mujoco"}, ["python", "renderer", "torch"]),
        ({"robot": "dry_run", "server": "ws://s"}, ["python", "policy server"]),
    ],
)
def test_each_robot_has_its_checks(chosen: dict[str, Any], names: list[str]) -> None:
    assert list(doctor.robot_checks(**chosen)) == names


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("robot=franka", "robot=franka: unknown; did you mean franka_sim?"),
        ("hots=1", "hots=1: unknown key; did you mean host?"),
        ("host=1", "host=1: robot=dry_run has no address"),
    ],
)
def test_a_wrong_argument_is_one_line(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_outcomes_become_findings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(probes, "driver", lambda: probes.ProbeResult("fail", "no driver", "install it"))
    monkeypatch.setattr(probes, "simulator", lambda: probes.ProbeResult("ok", "it runs"))
    monkeypatch.setattr(machine, "probe_apart", lambda name: Finding(name, "ok", "fine"))
    assert doctor.main(["robot=franka_sim", "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["driver"] == {"name": "driver", "status": "fail", "detail": "no driver", "remedy": "install it"}


def test_a_kernel_is_judged_by_what_it_says_of_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probes, "_KERNEL", tmp_path / "realtime")
    monkeypatch.setattr(probes.platform, "version", lambda: "#1 SMP PREEMPT_DYNAMIC")
    assert probes.realtime_kernel().status == "warn"
    (tmp_path / "realtime").write_text("1\n")
    assert probes.realtime_kernel().status == "ok"


@pytest.mark.parametrize(("limit", "status"), [(0, "warn"), (79, "warn"), (99, "ok"), (-1, "ok")])
def test_the_right_to_priority_is_read(monkeypatch: pytest.MonkeyPatch, limit: int, status: str) -> None:
    monkeypatch.setattr(probes.resource, "getrlimit", lambda which: (0, limit))
    assert probes.realtime_priority().status == status


def test_a_governor_that_saves_power_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, text in enumerate(("performance", "powersave")):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(text)
    monkeypatch.setattr(probes, "_CPUS", tmp_path)
    assert probes.governor()[:2] == ("warn", "performance, powersave")


def test_a_network_is_measured_without_the_robots_own_port() -> None:
    outcome = probes.network("127.0.0.1")
    assert outcome.status in ("ok", "warn") and "median" in outcome.detail


@pytest.mark.parametrize(
    ("server", "model", "status", "words"),
    [
        (10, "fr3", "ok", "robot server 10"),
        (9, "fr3", "fail", "the driver speaks to 10"),
        (5, "fr3", "fail", "is a fer"),
        (10, "fer", "fail", "is a fr3"),
    ],
)
def test_versions_and_model_must_match(
    monkeypatch: pytest.MonkeyPatch, server: int, model: str, status: str, words: str
) -> None:
    monkeypatch.setattr(probes, "server_version", lambda host: server)
    monkeypatch.setattr(probes, "driver_versions", lambda: ("2.0.0", 10))
    outcome = probes.robot_server("h", model)
    assert outcome.status == status and words in outcome.detail
    assert bool(outcome.remedy) == (status == "fail")


def test_a_driver_that_is_absent_is_remedied(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise RobotError("the Franka driver is not installed; pip install 'rlspec[franka]'")

    monkeypatch.setattr(probes, "import_franky", absent)
    expected = ("fail", "the Franka driver is not installed", "pip install 'rlspec[franka]'")
    assert probes.driver() == expected


def test_the_driver_tells_its_versions() -> None:
    pytest.importorskip("franky")
    outcome = probes.driver()
    assert outcome.status == "ok" and "robot server 10" in outcome.detail


def test_cameras_are_counted_and_a_bad_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        def read(self) -> np.ndarray:
            threading.Event().wait(0.02)
            return np.zeros((48, 64, 3), np.uint8)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(probes, "_CAMERA_SECONDS", 0.1)
    assert "64x48 at" in probes._camera_rate(Source)
    outcome = probes.cameras(["usb:0"])
    assert outcome.status == "fail" and outcome.detail.startswith("camera usb:0")


@pytest.fixture
def unhealthy() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_the_token_of_the_environment_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str | None] = []

    def server(url: str, token: str | None) -> probes.ProbeResult:
        shown.append(token)
        return probes.ProbeResult("ok", url)

    monkeypatch.setattr(probes, "policy_server", server)
    monkeypatch.setenv("RLSPEC_TOKEN", "secret")
    for more in ([], ["token=other"]):
        assert doctor.main(["server=ws://a:1", *more]) == 0
    assert shown == ["secret", "other"]


def test_a_policy_server_that_is_ill_or_absent_is_named(unhealthy: int) -> None:
    assert "answers 503" in probes.policy_server(f"ws://127.0.0.1:{unhealthy}").detail
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        outcome = probes.policy_server(f"ws://127.0.0.1:{free.getsockname()[1]}")
    assert outcome.status == "fail" and "python -m rlspec.serve" in outcome.detail + outcome.remedy
