"""LIBERO's tasks: names, instructions, goal files and stored initial states, read without importing the package."""

from __future__ import annotations

import functools
import importlib.util
import io
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.libero.bootstrap import package_folder

TASK_COUNTS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
LIBERO_SUITES = tuple(TASK_COUNTS)
EXPERT_TASKS: dict[str, tuple[str, ...]] = {
    "libero_spatial": tuple(map(str, range(10))),
    "libero_object": tuple(map(str, range(10))),
    "libero_goal": ("0", "1", "2", "4", "5", "6", "7", "8", "9"),
    "libero_10": ("0", "1", "2", "3", "4", "5", "6", "7"),
}
"""Suite -> the tasks that a script demonstrates."""


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite, in LIBERO's own order."""

    suite: str
    task_id: int
    name: str
    instruction: str
    bddl_file: Path
    initial_states_file: Path


def list_libero_tasks(suite: str) -> list[str]:
    """Task ids of `suite` as text, "0" to "9" (to "89" for libero_90); needs no package."""
    return [str(index) for index in range(TASK_COUNTS[_checked_suite(suite)])]


def get_task(suite: str, task_id: int) -> LiberoTask:
    """Look up a task; `ValueError` names the range, `EnvironmentUnavailable` the missing package."""
    count = TASK_COUNTS[_checked_suite(suite)]
    if isinstance(task_id, bool) or not str(task_id).isdigit() or not 0 <= int(task_id) < count:
        raise ValueError(f"{suite} has no task {task_id!r}: choose 0 to {count - 1}")
    package = package_folder()
    names = _task_names(package)[suite]
    if len(names) != count:
        raise EnvironmentUnavailable(
            f"{suite} of the installed hf-libero has {len(names)} tasks, not {count}: use 0.1.4"
        )
    name = names[int(task_id)]
    return LiberoTask(
        suite=suite,
        task_id=int(task_id),
        name=name,
        instruction=re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " "),
        bddl_file=package / "bddl_files" / suite / f"{name}.bddl",
        initial_states_file=package / "init_files" / suite / f"{name}.pruned_init",
    )


def _checked_suite(suite: str) -> str:
    if suite not in TASK_COUNTS:
        raise ValueError(f"unknown LIBERO suite {suite!r}: choose one of {', '.join(LIBERO_SUITES)}")
    return suite


@functools.cache
def _task_names(package: Path) -> dict[str, list[str]]:
    """The package's task lists; its benchmark package itself imports torch, so the file is loaded alone."""
    file = package / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_rlspec_libero_tasks", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise EnvironmentUnavailable(f"the installed LIBERO package lacks {file}: reinstall hf-libero==0.1.4")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names: dict[str, list[str]] = module.libero_task_map
    return names


def load_initial_states(task: LiberoTask) -> np.ndarray:
    """Stored initial states (count, 1 + nq + nv) float64: time, positions, velocities.

    The files are torch archives that hold one pickled numpy array; they are read without torch, and nothing but numpy's
    array types may be unpickled.
    """
    try:
        with zipfile.ZipFile(task.initial_states_file) as archive:
            name = next(entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
            states = _ArrayUnpickler(io.BytesIO(archive.read(name))).load()
    except (OSError, StopIteration, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise EnvironmentUnavailable(
            f"cannot read initial states from {task.initial_states_file} ({error}): reinstall hf-libero==0.1.4"
        ) from error
    return np.asarray(states, dtype=np.float64)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers only."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"unexpected type {module}.{name}")
