"""What pip installs is whole: it holds what the checkout holds, and its commands work in an empty folder."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rlspec.config.extras import install

REPOSITORY = Path(__file__).resolve().parents[1]
IMPORT_NAMES = {"rlspec": "rlspec", "envs": "rlspec_envs", "recipes": "rlspec_recipes"}
FOR_READERS = (".md", ".png", ".gif", ".svg")  # what a folder shows on a code host
WARM_STARTS = ("checkpoints/tiny-arithmetic", "checkpoints/tiny-calculator")
BUILD = "import setuptools.build_meta as build; print(build.build_wheel('dist'))"
# The installed package stands before the checkout, which the environment of the tests knows too.
RUN = "import sys, rlspec.cli; print(rlspec.__file__, file=sys.stderr); sys.exit(rlspec.cli.main(sys.argv[1:]))"

OFFERED = {"cv2", "pyrealsense2", "pyzed", "wandb"}  # no extra has them: what needs them says what to install

Command = Callable[..., subprocess.CompletedProcess[str]]


def project_files() -> list[str]:
    """What git tracks or would track; builds and runs lie in the same folders."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if (REPOSITORY / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout in which somebody has trained."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    source = tmp_path_factory.mktemp("source")
    for name in project_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, source / name)
    run = source / "checkpoints" / "grpo_math-tiny-pion-seed0"
    (run / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "checkpoints" / "checkpoint-5" / "model.safetensors").write_bytes(bytes(1000))
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def needed(name: str, seen: set[str]) -> set[str]:
    """A distribution and what it needs, without extras."""
    if name not in seen:
        seen.add(name)
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(canonicalize_name(requirement.name), seen)
    return seen


@pytest.fixture(scope="module")
def base(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The console script where `pip install` was given no extra."""
    site = tmp_path_factory.mktemp("base")
    for name in needed("rlspec", set()) - {"rlspec"}:
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(Path(str(found.locate_file(top))))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{site}", "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-S", "-c", RUN, *arguments]
        return subprocess.run(command, cwd=site, env=variables, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def rlspec(installed: Path, tmp_path: Path) -> Command:
    """The console script of the installed wheel, run in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", RUN, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr.startswith(str(installed / "rlspec" / "__init__.py")), "this is not the wheel's rlspec"
        return done

    return run


def test_the_wheel_holds_the_files_of_the_checkout_and_none_of_its_runs(wheel: Path) -> None:
    expected = set()
    for name in project_files():
        top, _, rest = name.partition("/")
        if top in IMPORT_NAMES and not name.endswith(FOR_READERS):
            expected.add(f"{IMPORT_NAMES[top]}/{rest}")
        elif name.startswith(tuple(f"{start}/" for start in WARM_STARTS)):
            expected.add(f"rlspec_{name}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(found - expected) == []
    assert sorted(expected - found) == []
    assert {f"rlspec_{start}/model.safetensors" for start in WARM_STARTS} <= found


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level packages that run time asks for; what only a type checker reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        yield from imported(node)


def test_what_is_imported_is_asked_for_and_not_left_to_other_packages() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    known, undeclared = metadata.packages_distributions(), {}
    for name in project_files():
        if name.startswith(("rlspec/", "envs/")) and name.endswith(".py"):
            for package in imported(ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))):
                owners = {canonicalize_name(owner) for owner in known.get(package, [])}
                here = package in known and package not in OFFERED and not package.startswith("rlspec")
                if here and not owners & declared:
                    undeclared.setdefault(package, name)
    assert undeclared == {}


def test_the_main_command_trains_from_the_wheel(rlspec: Command, tmp_path: Path) -> None:
    small = ("trainer.max_steps=1", "trainer.max_completion_length=8", "batch.prompts_per_step=2")
    quick = ("evaluation.before=false", "evaluation.after=false", "report.tensorboard=false")
    done = rlspec("train", "recipe=grpo_math", *small, *quick)
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert (run / "summary.json").is_file()
    assert list(run.rglob("*.safetensors"))
    assert str(run.relative_to(tmp_path)) in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "recipe=vla_franka", "--print"), "recipe: vla_franka"),
        (("rules", "all"), "pion"),
        (("collect", "--help"), "droid_raw"),
        (("deploy", "--help"), "franka_fr3"),
    ],
)
def test_commands_find_their_files_in_the_wheel(rlspec: Command, arguments: tuple[str, ...], said: str) -> None:
    assert said in rlspec(*arguments).stdout


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("rules all", "optim"),
        ("rules muon", "optim"),
        ("collect env=franka_pick_place episodes=1", "vla"),
        ("collect format=droid_raw episodes=1", "vla"),
        ("stats path=nope", "vla"),
        ("truncate before=a after=b out=c keep=0.9", "train"),
        ("train recipe=grpo_math", "train"),
    ],
)
def test_a_command_without_its_libraries_names_the_extra(base: Command, line: str, extra: str) -> None:
    done = base(*line.split())
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr  # the first is the test's own
    assert f"is not installed: install rlspec with its extra, `pip install 'rlspec[{extra}]'`" in done.stderr


@pytest.mark.parametrize("line", ["--help", "train --help", "doctor --help", "deploy --help"])
def test_the_base_install_does_what_needs_no_more(base: Command, line: str) -> None:
    done = base(*line.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("lock", "extras", "expected"),
    [
        (True, (), "`uv sync`"),
        (True, ("train",), "`uv sync --extra train`"),
        (False, (), "`pip install rlspec`"),
        (False, ("optim", "vla"), "`pip install 'rlspec[optim,vla]'`"),
    ],
)
def test_how_to_install_depends_on_where_rlspec_lies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lock: bool, extras: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr("rlspec.__file__", str(tmp_path / "rlspec" / "__init__.py"))
    if lock:
        (tmp_path / "uv.lock").touch()
    monkeypatch.setattr(metadata.PathDistribution, "read_text", lambda *_: None)
    assert install(*extras) == expected


@pytest.mark.parametrize("place", ["/a clone", "/dist/rlspec-0.1.0-py3-none-any.whl"])
def test_what_pip_installed_from_a_place_it_installs_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """No index has rlspec, and another package may take its name there."""
    monkeypatch.setattr("rlspec.__file__", str(tmp_path / "rlspec" / "__init__.py"))
    record = json.dumps({"url": Path(place).as_uri(), "dir_info": {}})
    monkeypatch.setattr(metadata.PathDistribution, "read_text", lambda *_: record)
    assert install("train") == f"`pip install '{place}[train]'`"
