"""The walls of design.md section 3, read off the source files."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = {"rlspec": "rlspec", "rlspec_envs": "envs", "rlspec_recipes": "recipes"}  # import name -> folder
# A unit may import units of a lower rank only. Modules with a `main` are entry points, the top rank.
RANKS: dict[str, float] = {
    "rlspec": 0,
    "errors": 0,
    "contract": 0.5,
    "config": 1,
    "optim": 1,
    "checkpoint": 1,
    "display": 1,
    "entry": 1,
    "intervals": 1,
    "versions": 1,
    "run_directory": 2,
    "diagnostics": 2.5,
    "runtime": 3,
    "rlvr": 4,
    "vla": 4,
    "serving": 4,
    "deploy": 4,
}
ENTRY = 5
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "sympy",
    "math_verify",
    "matplotlib",
    "pandas",
}
LIGHT_UNITS = ("errors", "config")


@dataclass(frozen=True)
class Import:
    target: str  # dotted name of a module
    lazy: bool  # inside a function, or for type checkers only


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
            yield from _walk(child, lazy=True)
        else:
            yield from _walk(child, lazy=lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


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


def own(module: str) -> list[Import]:
    return [each for each in imports_of(module) if each.target.split(".")[0] == "rlspec"]


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "rlspec"])
def test_imports_point_down(module: str) -> None:
    unit = unit_of(module)
    upward = [
        each.target
        for each in own(module)
        if unit_of(each.target) != unit and rank_of(unit_of(each.target)) >= rank_of(unit) and unit != "__main__"
    ]
    assert not upward, f"{module} imports {upward}"


def test_the_optimizer_needs_nothing_but_torch() -> None:
    for module in MODULES:
        if module.startswith("rlspec.optim"):
            foreign = {
                each.target
                for each in imports_of(module)
                if each.target.split(".")[0] not in sys.stdlib_module_names | {"torch"}
                and not each.target.startswith(("rlspec.optim", "rlspec.errors"))
            }
            assert not foreign, f"{module} imports {foreign}"


def test_the_contract_stands_on_the_ground_and_needs_the_base_install_alone() -> None:
    for module in MODULES:
        if module.startswith("rlspec.contract"):
            foreign = {
                each.target
                for each in imports_of(module)
                if each.target.split(".")[0] not in sys.stdlib_module_names | {"numpy", "msgpack", "PIL"}
                and not each.target.startswith(("rlspec.contract", "rlspec.errors"))
            }
            assert not foreign, f"{module} imports {foreign}"


def test_rlvr_and_vla_do_not_know_each_other() -> None:
    for module in MODULES:
        for one, other in (("rlspec.rlvr", "rlspec.vla"), ("rlspec.vla", "rlspec.rlvr")):
            assert not (module.startswith(one) and any(each.target.startswith(other) for each in own(module))), module


def test_environments_and_recipes_never_import_rlspec() -> None:
    for module in MODULES:
        if not module.startswith("rlspec."):
            assert not own(module), module


def light_modules() -> list[str]:
    return [
        name
        for name in MODULES
        if name.startswith("rlspec.") and (unit_of(name) in LIGHT_UNITS or rank_of(unit_of(name)) == ENTRY)
    ]


@pytest.mark.parametrize("module", light_modules())
def test_light_modules_start_without_heavy_libraries(module: str) -> None:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in MODULES:
            continue
        seen.add(current)
        parents = [".".join(current.split(".")[:length]) for length in range(1, current.count(".") + 1)]
        eager = [each.target for each in imports_of(current) if not each.lazy]
        heavy = {target for target in eager if target.split(".")[0] in HEAVY}
        assert not heavy, f"{module} reaches {current}, which imports {heavy}"
        waiting += parents + eager


def test_there_are_no_import_cycles() -> None:
    graph = {module: {each.target for each in own(module) if not each.lazy} - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_the_project_file_lists_the_packages_on_disk() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(project["packages"]) == sorted(on_disk | {"rlspec_checkpoints"})
    assert project["package-dir"] == FOLDERS | {"rlspec_checkpoints": "checkpoints"}


def test_every_folder_with_python_files_is_a_package() -> None:
    for path in MODULES.values():
        assert (path.parent / "__init__.py").is_file(), path
