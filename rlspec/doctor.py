"""What works on this machine, and the remedy for what does not: `python -m rlspec.doctor`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from pydantic import model_validator

from rlspec.config.command import CommandLine
from rlspec.config.paths import list_robots
from rlspec.config.schema import Key
from rlspec.entry import command

if TYPE_CHECKING:
    from rlspec.deploy.probes import ProbeResult
    from rlspec.runtime.machine import Finding

_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


class DoctorCommand(CommandLine):
    """Checks versions, torch, the renderer, LIBERO, video and disk space; says what to do about what does not work.
    Exit code 1 where something is broken; what is not installed is a warning.
    """  # noqa: D205

    command = "doctor"
    synopsis = ("[robot=NAME [host=ADDRESS] [cameras=A,B]] [server=ws://HOST:PORT] [--json]",)
    example = "robot=franka_fr3, or --json"
    short = {"json": "as_json"}

    robot: Annotated[str | None, Key("what this robot (or FILE.yaml) needs instead", "NAME")] = None
    host: Annotated[str | None, Key("of the robot; nothing moves", "ADDRESS")] = None
    cameras: Annotated[
        list[str], Key("such as opencv:/dev/video0@640x480x30,realsense:0123456,zed:30785375", "A,B")
    ] = []
    server: Annotated[str | None, Key("a policy server as well", "URL")] = None
    token: Annotated[str | None, Key("what that server wants (or in the variable RLSPEC_TOKEN)")] = None
    as_json: Annotated[bool, Key("the same as JSON")] = False

    @model_validator(mode="after")
    def _an_address(self) -> DoctorCommand:
        from rlspec.deploy.settings import described_robot

        robot = described_robot(self.robot or "dry_run")
        if self.host is not None and not robot.found.needs_host:
            addressed = [name for name in list_robots() if described_robot(name).found.needs_host]
            raise ValueError(
                f"host={self.host}: robot={robot.name} has no address; use robot={' or robot='.join(addressed)}"
            )
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 where something is broken, 2 for an unknown argument."""
    return command(DoctorCommand, _doctor, argv, bare=True)


def _doctor(line: DoctorCommand) -> int:
    if line.model_fields_set - {"as_json"}:
        from rlspec.runtime.machine import guarded

        given = line.model_dump(exclude={"as_json", "robot"}) | {"token": line.token or os.environ.get("RLSPEC_TOKEN")}
        checks = robot_checks(line.robot or "dry_run", **given)
        findings = [guarded(name, check) for name, check in checks.items()]
    else:
        from rlspec.runtime.machine import examine

        findings = examine()
    healthy = all(finding.status != "fail" for finding in findings)
    if line.as_json:
        content = {"ok": healthy, "checks": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{text}\n" for text in _render(findings)))
    return 0 if healthy else 1


def robot_checks(
    robot: str,
    *,
    host: str | None = None,
    cameras: Sequence[str] = (),
    server: str | None = None,
    token: str | None = None,
) -> dict[str, Callable[[], Finding]]:
    """The checks for a robot, in order.

    Args:
        robot: An option of recipes/robot, or a robot's own file.
        host: Of the robot.
        cameras: Descriptions, see `rlspec.deploy.robots.cameras.opener`.
        server: URL of a policy server.
        token: What that server wants.
    """
    from rlspec.deploy import probes
    from rlspec.deploy.settings import described_robot
    from rlspec.runtime.machine import Finding, check_python, probe_apart

    described = described_robot(robot)
    host = host or described.host
    alone: dict[str, Callable[[], ProbeResult]] = {
        "driver": probes.driver,
        "kernel": probes.realtime_kernel,
        "priority": probes.realtime_priority,
        "governor": probes.governor,
        "simulator": probes.simulator,
    }
    needs = described.found.needs
    listed = {name: alone[name] for name in needs if name in alone}
    if host and "network" in needs:
        listed["network"] = lambda: probes.network(host)
    if "robot" in needs:
        model = "fer" if described.model == "fer" else "fr3"
        unasked = probes.ProbeResult("warn", "not asked", "say where it is: host=ADDRESS")
        listed["robot"] = lambda: probes.robot_server(host, model) if host else unasked
    if cameras:
        listed["cameras"] = lambda: probes.cameras(cameras)
    if server:
        listed["policy server"] = lambda: probes.policy_server(server, token)

    def found(name: str, probe: Callable[[], ProbeResult]) -> Callable[[], Finding]:
        return lambda: Finding(name, *probe())

    checks: dict[str, Callable[[], Finding]] = {"python": check_python}
    checks |= {name: found(name, probe) for name, probe in listed.items()}
    if "renderer" in needs:
        checks["renderer"] = lambda: probe_apart("renderer")
    if not server:
        checks["torch"] = lambda: probe_apart("torch")  # a policy that runs on the robot's computer
    return checks


def _render(findings: Sequence[Finding]) -> list[str]:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]}  {finding.name:{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':{width + 6}}  remedy: {finding.remedy}")
    bad = [finding.name for finding in findings if finding.status == "fail"]
    return [*lines, f"broken: {', '.join(bad)}" if bad else "nothing is broken"]


if __name__ == "__main__":
    sys.exit(main())
