"""Measures the optimizers on one GPU: sections in processes of their own, one JSON, a hard budget of seconds.

    bash tests/benchmarks/gpu.sh --output gpu.json [--budget 460] [--only steps parity] [--dry-run]

A section that fails, lacks a package or runs out of time says so in the JSON with all that it had measured until then,
and the others go on. The JSON is written after every section. Beside it lies what the sections printed (`.log`). With
`--dry-run` all sections run on the CPU at small shapes in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_sections.part import Part, Setup, read_part, write_json


@dataclass(frozen=True)
class Section:
    """A module of `gpu_sections`.

    Attributes:
        name: of the module.
        expected: seconds on an H200; with fewer left the section is skipped.
        limit: seconds after which its process is ended.
    """

    name: str
    expected: float
    limit: float


SECTIONS = (
    Section("environment", 15, 60),
    Section("steps", 60, 170),
    Section("parity", 20, 70),
    Section("synchronisations", 20, 60),
    Section("grpo", 50, 140),
    Section("workspace", 30, 70),
    Section("breakdown", 20, 60),
    Section("kernels", 15, 40),
    Section("recipe", 30, 90),
    Section("remarks", 15, 80),
)
SETTLING = 5.0
"""Seconds kept for what ends after its limit, and for the last write."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--budget", type=float, default=460.0, help="seconds for everything")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at small shapes")
    parser.add_argument("--run-here", nargs="+", metavar="SECTION", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_here(names: list[str], setup: Setup, folder: Path) -> None:
    """Run sections in this process, each into its part file; errors go there too."""
    for name in names:
        part = Part(folder / f"{name}.json")
        try:
            importlib.import_module(f"gpu_sections.{name}").run(part, setup)
            part.end("done")
        except ImportError as error:
            part.end("lacks a package", f"{type(error).__name__}: {error}")
        except Exception as error:
            traceback.print_exc()
            place = traceback.extract_tb(error.__traceback__)[-1]
            part.end("failed", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})")


def run_apart(names: list[str], options: argparse.Namespace, seconds: float, folder: Path, log: Any) -> str | None:
    """Run sections in a process of their own; returns why it did not end by itself, or None."""
    command = [sys.executable, __file__, "--folder", str(folder), "--budget", str(seconds), "--run-here", *names]
    command += ["--dry-run"] if options.dry_run else []
    # A group of its own, so that what a section starts ends with it.
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
    reason = None
    try:
        code = process.wait(seconds)
        reason = f"its process ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        reason = f"ended after its limit of {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return reason


class Report:
    """The JSON: one entry per section, written at every change."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path = path
        self.content: dict[str, Any] = {"dry_run": options.dry_run, "budget": options.budget, "sections": {}}
        self.started = time.monotonic()

    def add(self, name: str, entry: dict[str, Any]) -> None:
        self.content["sections"][name] = entry
        self.content["seconds"] = round(time.monotonic() - self.started, 1)
        write_json(self.path, self.content)

    def collect(self, names: list[str], folder: Path, reason: str | None) -> None:
        """Take the parts of sections that ran; one that did not end takes the reason."""
        for name in names:
            entry = read_part(folder / f"{name}.json")
            if entry["status"] == "running":
                entry |= {"status": "ended", "reason": reason or "its process ended without a word"}
            self.add(name, entry)

    def show(self) -> None:
        for name, entry in self.content["sections"].items():
            reason = f": {entry['reason']}" if entry.get("reason") else ""
            print(f"\n## {name}: {entry['status']} after {entry.get('seconds', 0)} s{reason}")
            print("\n".join(entry.get("summary", [])))
        print(f"\n{self.content['seconds']} s of {self.content['budget']:g}; all numbers: {self.path}")


def orchestrate(options: argparse.Namespace) -> Report:
    report = Report(options.output, options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = [section for section in SECTIONS if section.name in options.only]
    with tempfile.TemporaryDirectory() as place, options.output.with_suffix(".log").open("w") as log:
        folder = Path(place)
        if options.dry_run:
            names = [section.name for section in chosen]
            report.collect(names, folder, run_apart(names, options, options.budget, folder, log))
            return report
        for section in chosen:
            left = options.budget - SETTLING - (time.monotonic() - report.started)
            if left < section.expected:
                reason = f"needs about {section.expected:g} s, {left:.0f} s are left"
                report.add(section.name, {"status": "skipped", "reason": reason})
                continue
            print(f"{section.name} ...", flush=True)
            reason = run_apart([section.name], options, min(section.limit, left), folder, log)
            report.collect([section.name], folder, reason)
    return report


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.run_here:
        run_here(options.run_here, Setup.of(options.dry_run, options.budget), options.folder)
        return 0
    report = orchestrate(options)
    report.show()
    return 0 if all(entry["status"] == "done" for entry in report.content["sections"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
