"""Data sets of the toy robot, as images and as video."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, ToyExpert, threads

from rlspec.config.vla_schema import Demonstrations, Env
from rlspec.display import Display
from rlspec.vla.data import demonstrations, workers

Generate = Callable[..., Path]


@pytest.fixture(scope="module")
def toy_environment() -> Iterator[None]:
    """`rlspec_envs` replaced by the toy robot, for the tests of this folder alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "make_environment", lambda suite, task, options: Toy(task))
        patch.setattr(workers, "make_demonstrator", ToyExpert)
        patch.setattr(demonstrations, "_tasks_of", lambda suite: ["reach", "touch"])
        yield


@pytest.fixture(scope="module")
def generate(toy_environment: None) -> Generate:
    """Collect with the toy robot in threads."""

    def make(out: Path, *, display: Display | None = None, workers: int = 1, pool: Any = threads, **given: Any) -> Path:
        settings = Demonstrations(**{"episodes": 3, "noise": 0.2, "seed": 4, **given, "workers": workers})
        env = Env(name="toy", suite="toy", tasks=[], options={})
        return demonstrations.collect(env, settings, out, display or Display("plain", quiet=True), pool=pool)

    return make


@pytest.fixture(scope="module")
def images(generate: Generate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations with images; read only."""
    return generate(tmp_path_factory.mktemp("toy") / "images")


@pytest.fixture(scope="module")
def films(generate: Generate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same demonstrations with videos; read only."""
    return generate(tmp_path_factory.mktemp("toy") / "films", video=True)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy that a test may damage."""
    return lambda source: Path(shutil.copytree(source, tmp_path / source.name))
