"""A made-up data set, a recipe that learns it in a moment, and an evaluator without a simulator."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file

from rlspec.config.load import check_recipe, load_vla_recipe
from rlspec.config.vla_schema import VlaRecipe
from rlspec.display import Display
from rlspec.errors import INTERRUPTED
from rlspec.run_directory import RunDirectory
from rlspec.runtime import outcome
from rlspec.vla.run import run_vla_recipe

CHUNK, SIZE, CAMERAS = 4, 32, ("external", "wrist")
FEATURES: dict[str, dict[str, Any]] = {
    **{
        f"observation.images.{camera}": {
            "dtype": "image",
            "shape": (SIZE, SIZE, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in CAMERAS
    },
    "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
    "action": {"dtype": "float32", "shape": (7,), "names": None},
}


class MadeUpSamples:
    """Random frames whose actions follow from the state and the picture, with padding at the end of episodes."""

    def __init__(self, length: int = 40, *, padded: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = {
            f"observation.images.{camera}": torch.randint(
                0, 256, (length, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator
            )
            for camera in CAMERAS
        }
        self.states = torch.randn(length, 8, generator=generator)
        self.actions = torch.tanh(self.states[:, None, :7] + torch.arange(CHUNK)[None, :, None])
        self.pad = torch.zeros(length, CHUNK, dtype=torch.bool)
        if padded:
            self.pad[9::10, 2:] = True
        vectors = {"observation.state": self.states, "action": self.actions.flatten(0, 1)}
        stats = {
            key: {"mean": value.mean(0), "std": value.std(0), "min": value.amin(0), "max": value.amax(0)}
            for key, value in vectors.items()
        }
        for key in self.images:
            stats[key] = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.3)}
        self.taken: list[list[int]] = []
        self.episodes = np.arange(length) // 10
        self.meta = SimpleNamespace(features=FEATURES, stats=stats, root="no folder", total_episodes=-(-length // 10))

    def __len__(self) -> int:
        return len(self.states)

    def take(self, indices: NDArray[Any]) -> dict[str, Any]:
        self.taken.append([int(index) for index in indices])
        rows = torch.from_numpy(np.asarray(indices))
        return {
            **{key: value[rows] for key, value in self.images.items()},
            "observation.state": self.states[rows],
            "action": self.actions[rows],
            "action_is_pad": self.pad[rows],
            "task": [f"put the {('red', 'blue')[int(row) % 2]} cube away" for row in rows],
        }


class FakeResult:
    """A success rate that somebody made up."""

    def __init__(self, label: str, step: int, rate: float) -> None:
        self.label, self.step, self.success_rate = label, step, rate

    def to_json(self) -> dict[str, Any]:
        total = {"success_rate": self.success_rate, "ci95": [0.0, 1.0]}
        return {"label": self.label, "step": self.step, **total, "total": total, "tasks": {"pick_place": total}}

    def lines(self) -> list[str]:
        return [f"{self.label}: {self.success_rate:.0%}"]


class FakeEvaluator:
    """Gives the rates of a list by step; results of `start` come in at the next but one look."""

    def __init__(self, rates: dict[int, float], *, delay: int = 2) -> None:
        self.rates, self.delay = rates, delay
        self.waiting: list[tuple[int, Path, FakeResult]] = []
        self.measured: list[str] = []
        self.run: RunDirectory | None = None

    def __call__(self, recipe: VlaRecipe, run: RunDirectory, display: Display) -> Self:
        self.run = run
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.waiting.clear()

    def measure(self, checkpoint: Path | str, label: str, step: int) -> FakeResult:
        result = FakeResult(label, step, self.rates.get(step, 0.0))
        self._finish(Path(checkpoint), result)
        return result

    def start(self, checkpoint: Path | str, label: str, step: int) -> None:
        assert (Path(checkpoint) / "model.safetensors").is_file()
        self.waiting.append((self.delay, Path(checkpoint), FakeResult(label, step, self.rates.get(step, 0.0))))

    def finished(self) -> list[FakeResult]:
        self.waiting = [(looks - 1, folder, result) for looks, folder, result in self.waiting]
        done = [(folder, result) for looks, folder, result in self.waiting if looks <= 0]
        self.waiting = [each for each in self.waiting if each[0] > 0]
        return [self._finish(folder, result) for folder, result in done]

    def wait(self) -> list[FakeResult]:
        done, self.waiting = self.waiting, []
        return [self._finish(folder, result) for _, folder, result in done]

    def _finish(self, folder: Path, result: FakeResult) -> FakeResult:
        assert (folder / "config.json").is_file(), "the snapshot is there until its result is taken"
        assert self.run is not None
        self.measured.append(result.label)
        target = self.run.evaluations / result.label / "metrics.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result.to_json()))
        return result


SMALL = [
    "recipe=vla_franka",
    f"policy.options.chunk_size={CHUNK}",
    f"policy.options.n_action_steps={CHUNK}",
    f"policy.options.image_size={SIZE}",
    "policy.options.width=32",
    "policy.options.text_layers=2",
    "policy.options.head_width=32",
    "policy.options.head_heads=2",
    "training.batch_size=4",
    "training.random_shift=2",
    "training.log_every=1",
    "training.steps=4",
    "optim.lr=0.01",  # large, so that a difference would show
    "evaluation.before=false",
    "evaluation.after=false",
    "report.tensorboard=false",
    "device=cpu",
]


@functools.cache
def _base() -> str:
    return load_vla_recipe(SMALL).model_dump_json()


def changed(values: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Dotted keys set to values in YAML."""
    for text in overrides:
        key, _, value = text.partition("=")
        *path, last = key.split(".")
        section = functools.reduce(operator.getitem, path, values)
        section[last] = float(value) if key == "optim.lr" else yaml.safe_load(value)
    return values


def make_recipe(folder: Path, *overrides: str) -> VlaRecipe:
    """The small recipe with changes, checked; without Hydra, which takes longer than a small run."""
    recipe = check_recipe(changed(json.loads(_base()), f"output_dir={folder}", "run=run", *overrides))
    assert isinstance(recipe, VlaRecipe)
    return recipe


class Interrupted(MadeUpSamples):
    """Sends a signal while a batch is read: the first is the memory estimate's sample."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def take(self, indices: NDArray[Any]) -> dict[str, Any]:
        if len(self.taken) == self.batches:
            signal.raise_signal(signal.SIGTERM)
        return super().take(indices)


def run(recipe: VlaRecipe, samples: MadeUpSamples, evaluator: FakeEvaluator) -> int:
    """Run a recipe; pictures, a third of the time of so small a run, where it is measured alone."""
    draw = contextlib.nullcontext() if recipe.evaluation.before else patch.object(outcome, "plot_curves")
    with draw:
        return run_vla_recipe(recipe, samples=lambda *_: samples, evaluator=evaluator)


def train(
    folder: Path,
    *overrides: str,
    samples: MadeUpSamples | None = None,
    evaluator: FakeEvaluator | None = None,
    stop_after: int | None = None,
) -> Path:
    """Run a small recipe, or its first steps alone; returns its run directory."""
    recipe = make_recipe(folder, *overrides)
    data = samples or MadeUpSamples()
    if stop_after is not None:
        data = Interrupted(stop_after * recipe.training.gradient_accumulation)
    code = run(recipe, data, evaluator or FakeEvaluator({}))
    assert code == (0 if stop_after is None else INTERRUPTED)
    return folder / "run"


def resume(
    folder: Path, *overrides: str, samples: MadeUpSamples | None = None, evaluator: FakeEvaluator | None = None
) -> Path:
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe = check_recipe(changed(values, "run=null", f"resume={folder}", *overrides))
    assert isinstance(recipe, VlaRecipe)
    data = samples or MadeUpSamples()
    assert run(recipe, data, evaluator or FakeEvaluator({})) == 0
    return folder


def course(run: Path, *, without: Sequence[str] = ("step_time", "samples_per_second")) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock decides."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


def state(run: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(
        run / "checkpoints" / f"checkpoint-{step}" / "training_state.pt", weights_only=True
    )
    return content


def weights_equal(left: Path, right: Path, step: int, other: int | None = None) -> bool:
    """Whether two runs' policies are the same, bit for bit, after `step` and `other` steps."""
    folders = [left / "checkpoints" / f"checkpoint-{other or step}", right / "checkpoints" / f"checkpoint-{step}"]
    return equal(*(load_file(folder / "model.safetensors") for folder in folders))


def equal(left: Any, right: Any) -> bool:
    """Bit for bit, in nested containers."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)
