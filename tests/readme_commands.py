"""Whether a command line of rlspec is understood: carried out up to its first heavy import, process or connection."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NoReturn

HEAVY = {
    *(
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "lerobot",
        "gymnasium",
        "mujoco",
        "rlspec_envs",
    ),
    *("franky", "websockets", "h5py", "av", "matplotlib", "pandas", "pyarrow", "sympy", "math_verify", "safetensors"),
}
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Verdict:
    """What became of a command line.

    Attributes:
        understood: it ended well, or got as far as the work.
        output: what it said.
    """

    understood: bool
    output: str


class Reached(BaseException):
    """The command line has been understood, and the work begins. No `except Exception` may hold it up."""


class Stop(MetaPathFinder):
    """In place of a heavy import."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raises Reached for what is heavy."""
        if fullname.partition(".")[0] in HEAVY:
            raise Reached(fullname)


def _stop(*_: object, **__: object) -> NoReturn:
    raise Reached


def judge(lines: Iterable[list[str]], folder: Path) -> list[Verdict]:
    """Judge command lines, the arguments of `rlspec` each, in a folder with the files that READMEs speak of."""
    furnish(folder)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import readme_commands as r; r.answer()"
    text = "\0".join("\1".join(line) for line in lines)
    environment = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=text,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=True,
    )
    answers = [answer.partition("\1") for answer in result.stdout.split("\0")[:-1]]
    return [Verdict(code == "0", output) for code, _, output in answers]


def furnish(folder: Path) -> None:
    """A run, a plan, recordings, a data set, a table of problems, a token, by the names that READMEs give them."""
    run = folder / "checkpoints/RUN"
    shutil.copytree(ROOT / "checkpoints/tiny-arithmetic", run, dirs_exist_ok=True)
    (folder / "tests/benchmarks/plans").mkdir(parents=True, exist_ok=True)
    for plan in (ROOT / "tests/benchmarks/plans").glob("*.yaml"):
        (folder / "tests/benchmarks/plans" / plan.name).write_text("recipe: debug_grpo\narms: {all: []}\n")
    facts = {"format": 1, "action_space": "joint_velocity", "control_hz": 15, "execution_law": "droid_hybrid"}
    (run / "rlspec.json").write_text(json.dumps(facts), encoding="utf-8")
    for name in ("RECORDINGS", "DATA", "OUT", "OPENPI"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "gsm8k").mkdir(exist_ok=True)
    for name in ("train.jsonl", "gsm8k/train.jsonl"):
        (folder / name).write_text('{"question": "1 + 1?", "answer": "2"}\n', encoding="utf-8")
    header = {
        "robot": "mujoco",
        "control_hz": 15,
        "action_space": "joint_velocity",
        "law": "droid_hybrid",
        "mode": "real",
    }
    tick = {"tick": 0, "time": 0.0, "phase": "run", "state": {"joints": [0] * 7, "velocities": [0] * 7, "closure": 0}}
    tick |= {"sent": [0] * 7, "closure_sent": 0, "requested": [0] * 8}
    log = "\n".join(json.dumps(line) for line in ({"header": header}, tick))
    (folder / "OUT/ticks.jsonl").write_text(f"{log}\n", encoding="utf-8")
    (folder / "TOKEN").write_text("0123456789abcdef0123456789abcdef\n", encoding="utf-8")
    (folder / "TOKEN").chmod(0o600)


def answer() -> None:
    """Read command lines from stdin; write exit code and output of each, every one in a process of its own."""
    sys.meta_path.insert(0, Stop())
    load_once()
    for line in sys.stdin.read().split("\0"):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os._exit(carry_out(line.split("\1")))
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe:
            output = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\1{output.strip()}\0")


def load_once() -> None:
    """What most commands import before the work begins: once for all of them."""
    from rlspec.cli import commands

    for module in ("hydra", "rlspec.config.load", *(f"rlspec.{name}" for name in commands())):
        with contextlib.suppress(Reached):
            importlib.import_module(module)


def carry_out(arguments: list[str]) -> int:
    """The exit code; 0 also where the work would begin."""
    subprocess.Popen.__init__ = _stop  # type: ignore[method-assign, assignment]
    socket.socket.connect = _stop  # type: ignore[method-assign, assignment]
    try:
        from rlspec.cli import main

        return main(arguments)
    except Reached:
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
