"""The walls of design.md section 3, read off the source files.

Imports within functions and those for type checkers count as well; only `test_light_modules_...` is about what is
imported at once.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = {"rlspec": "rlspec", "rlspec_envs": "envs", "rlspec_recipes": "recipes"}  # import name -> folder
# A unit (a package or module in rlspec/) may import units of a lower rank only. Modules with a `main` are entry
# points, the top rank.
RANKS: dict[str, float] = {
    "rlspec": 0,
    "cores": 0,
    "errors": 0,
    "contract": 0.5,
    "config": 1,
    "optim": 0.75,
    "policy_gradient": 0.75,
    "checkpoint": 0.75,
    "display": 1,
    "hub": 1,
    "intervals": 1,
    "native_threads": 1,
    "versions": 1,
    "entry": 2,
    "run_directory": 2,
    "diagnostics": 2.5,
    "comparison": 3,
    "runtime": 3,
    "serving": 3,
    "reporting": 3.5,  # on what comparisons and runs left
    "rlvr": 4,
    "vla": 4,
    "deploy": 4,
}
ENTRY = 5
TRAINING = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
HEAVY = TRAINING | {"sympy", "math_verify", "matplotlib", "pandas"}
LIGHT_UNITS = ("errors", "config")
# Rooms of the robot side that are LeRobot's or write its format; they alone need what brings torch.
LEROBOT_ROOMS = ("rlspec.deploy.lerobot", "rlspec.deploy.log.export")


@dataclass(frozen=True)
class Import:
    target: str  # dotted name of a module
    lazy: bool  # inside a function, or for type checkers only
    runs: bool = True  # not for type checkers only


def modules() -> dict[str, Path]:
    found = {}
    for name, folder in FOLDERS.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if "build" in path.parts:  # what setuptools leaves behind
                continue
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            found[".".join([name, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def imports_of(module: str) -> list[Import]:
    return list(_walk(ast.parse(MODULES[module].read_text(encoding="utf-8")), lazy=False))


def _walk(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide arrows"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield Import(full if full in MODULES else str(child.module), lazy)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (replace(each, runs=False) for each in _walk(child, lazy=True))
        else:
            yield from _walk(child, lazy=lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def targets_of(module: str) -> set[str]:
    return {each.target for each in imports_of(module)}


def inside(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def modules_in(*rooms: str) -> list[str]:
    found = [module for module in MODULES if inside(module, *rooms)]
    assert found, f"nothing is in {rooms}"
    return found


def unit_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def is_entry(unit: str) -> bool:
    files = (f"rlspec.{unit}", f"rlspec.{unit}.__main__")
    trees = [ast.parse(MODULES[name].read_text(encoding="utf-8")) for name in files if name in MODULES]
    return unit == "__main__" or any(
        isinstance(node, ast.FunctionDef) and node.name == "main" for tree in trees for node in tree.body
    )


def rank_of(unit: str) -> float:
    if unit in RANKS:
        return RANKS[unit]
    assert is_entry(unit), f"rlspec/{unit} has no place in the layers: add it to RANKS"
    return ENTRY


@pytest.mark.parametrize("module", modules_in("rlspec"))
def test_imports_point_down(module: str) -> None:
    unit = unit_of(module)
    others = [target for target in targets_of(module) if inside(target, "rlspec") and unit_of(target) != unit]
    upward = [target for target in others if rank_of(unit_of(target)) >= rank_of(unit) and unit != "__main__"]
    assert not upward, f"{module} imports {upward}"


# room: what it never imports
NEVERS = {
    "rlspec.errors": ("rlspec", "rlspec_envs", "rlspec_recipes"),
    "rlspec.contract": ("rlspec", "rlspec_envs", "rlspec_recipes"),
    "rlspec.rlvr": ("rlspec.vla", "rlspec_envs"),
    "rlspec.vla": ("rlspec.rlvr",),
    "rlspec.serving": ("rlspec.rlvr", "rlspec.vla", "rlspec_envs"),
    "rlspec.deploy": ("rlspec.rlvr", "rlspec.vla", "rlspec.serving", "rlspec.optim", "rlspec.runtime"),
    "rlspec_envs": ("rlspec", "rlspec_recipes"),
    "rlspec_recipes": ("rlspec", "rlspec_envs"),
}


@pytest.mark.parametrize("room", NEVERS)
def test_a_room_never_imports_what_it_must_not_know(room: str) -> None:
    for module in modules_in(room):
        wrong = [each for each in targets_of(module) if inside(each, *NEVERS[room]) and not inside(each, room)]
        assert not [each for each in wrong if each != "rlspec"], f"{module} imports {wrong}"  # `rlspec` is its version


def test_the_optimizer_needs_nothing_but_torch() -> None:
    for module in modules_in("rlspec.optim"):
        ours = {each for each in targets_of(module) if inside(each, "rlspec.optim", "rlspec.errors")}
        others = {each.partition(".")[0] for each in targets_of(module) - ours}
        assert others <= sys.stdlib_module_names | {"torch"}, f"{module} imports {others - sys.stdlib_module_names}"


def test_the_robot_side_reaches_no_torch_whatever_it_does() -> None:
    for start in modules_in("rlspec.deploy"):
        if inside(start, *LEROBOT_ROOMS):
            continue
        for module, path in reached_from(start, lambda each: each.runs and not inside(each.target, *LEROBOT_ROOMS)):
            found = {each for each in targets_of(module) if each.partition(".")[0] in TRAINING | {"lerobot"}}
            assert not found, f"{path} imports {found}"


def reached_from(start: str, follow: Callable[[Import], bool]) -> Iterator[tuple[str, str]]:
    """Modules of ours that are imported with one, itself included, each with the way to it."""
    ways = {start: start}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        yield module, ways[module]
        parents = [".".join(module.split(".")[:length]) for length in range(1, module.count(".") + 1)]
        for target in [*parents, *(each.target for each in imports_of(module) if follow(each))]:
            if target in MODULES and target not in ways:
                ways[target] = f"{ways[module]} > {target}"
                waiting.append(target)


def light_modules() -> list[str]:
    return [
        name
        for name in modules_in("rlspec")
        if name != "rlspec" and (unit_of(name) in LIGHT_UNITS or rank_of(unit_of(name)) == ENTRY)
    ]


@pytest.mark.parametrize("module", light_modules())
def test_light_modules_start_without_heavy_libraries(module: str) -> None:
    for current, path in reached_from(module, lambda each: not each.lazy):
        eager = {each.target for each in imports_of(current) if not each.lazy}
        heavy = {target for target in eager if target.split(".")[0] in HEAVY}
        assert not heavy, f"{path} imports {heavy}"


def fail_on_cycle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_there_are_no_import_cycles() -> None:
    fail_on_cycle({module: targets_of(module) & MODULES.keys() - {module} for module in MODULES})


@pytest.mark.parametrize("wing", ["rlspec.optim", "rlspec.rlvr", "rlspec.vla", "rlspec.deploy", "rlspec_envs"])
def test_the_rooms_of_a_wing_do_not_need_each_other_mutually(wing: str) -> None:
    """A room is a package or a module right below the wing; what `__init__` files hand on is no need of theirs."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[: wing.count(".") + 2])

    graph: dict[str, set[str]] = {}
    for module in modules_in(wing):
        if MODULES[module].name != "__init__.py":
            needed = {room(each) for each in targets_of(module) if inside(each, wing) and each != wing}
            graph[room(module)] = graph.get(room(module), set()) | needed - {room(module)}
    fail_on_cycle(graph)


def test_no_module_bears_the_name_of_a_standard_library_module() -> None:
    """Run as a file, a module's folder comes first on the path: its neighbours would stand for the library's."""
    packages_and_modules = {name.rpartition(".")[2]: name for name in MODULES}
    shadowing = {name for name in packages_and_modules if name in sys.stdlib_module_names and name != "__main__"}
    assert not shadowing, [packages_and_modules[name] for name in shadowing]


def test_the_project_file_lists_the_packages_on_disk() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(project["packages"]) == sorted(on_disk | {"rlspec_checkpoints"})
    assert project["package-dir"] == FOLDERS | {"rlspec_checkpoints": "checkpoints"}


def test_every_folder_with_python_files_is_a_package() -> None:
    for path in MODULES.values():
        assert (path.parent / "__init__.py").is_file(), path


# Two classes of one name, and why each may keep it.
TWICE = {
    "Override": "the recipe's section, and what it becomes for the optimizer, which knows no recipes",
    "Entry": "a module's family of parameters, and an update's group: both are local to their room",
}


def test_a_class_name_says_what_it_is_without_its_module() -> None:
    found: dict[str, list[str]] = {}
    for module in modules_in("rlspec"):
        for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    twice = {name: places for name, places in found.items() if len(places) > 1}
    assert not {name: places for name, places in twice.items() if name not in TWICE}
    assert TWICE.keys() <= twice.keys(), "a reason for what is no longer so"
