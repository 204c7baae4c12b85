"""A tiny policy for the lane, the recipe that reinforces it, and workers in this process."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lane_sim
import pytest
import torch
import yaml

from rlspec.config.load import check_recipe, load_vla_recipe
from rlspec.config.vla_schema import VlaRecipe
from rlspec.vla.evaluation.jobs import GroupDone, GroupJob, WorkerSettings
from rlspec.vla.evaluation.pool import Stopped
from rlspec.vla.evaluation.protocol import build_protocol
from rlspec.vla.evaluation.runner import Runner
from rlspec.vla.evaluation.simulator import Simulator
from rlspec.vla.reinforcement import session
from rlspec.vla.run import run_vla_recipe

CHUNK = 4
SMALL = {"size": "tiny", "image_size": 32, "width": 32, "text_layers": 1, "head_width": 32, "head_heads": 2}
SMALL |= {"vision_channels": [8, 16], "num_queries": 2, "vision_slots": 4}
OVERRIDES = [
    "recipe=vla_grpo_franka",
    "env.options={}",
    f"policy.options.chunk_size={CHUNK}",
    f"policy.options.n_action_steps={CHUNK}",
    "policy.options.num_steps=2",
    "optim=adamw",
    "optim.lr=3e-3",
    "training.steps=3",
    "grpo.groups_per_step=4",
    "grpo.update_epochs=1",
    "grpo.refills=3",
    "grpo.max_episode_steps=null",
    "training.scheduler.num_warmup_steps=0",
    "grpo.films=0",
    "grpo.noise_level=1.0",
    "checkpoints.every=1",
    "checkpoints.keep_last=9",
    "evaluation.before=false",
    "evaluation.after=false",
    "report.tensorboard=false",
    "device=cpu",
]


def write_policy(path: Path, kind: str = "rlspec_flow", **settings: Any) -> Path:
    """Untrained: its chunks are noise."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    import rlspec.vla.policies  # noqa: F401

    given = {**SMALL, "chunk_size": CHUNK, "n_action_steps": CHUNK, **settings}
    given |= {"num_steps": 2} if kind == "rlspec_flow" else {}
    config: Any = make_policy_config(kind, device="cpu", push_to_hub=False, **given)
    image = PolicyFeature(FeatureType.VISUAL, (3, lane_sim.SIZE, lane_sim.SIZE))
    state = PolicyFeature(FeatureType.STATE, (2,))
    config.input_features = {"observation.images.front": image, "observation.state": state}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    stats = {
        name: {"mean": torch.zeros(2), "std": torch.full((2,), scale)}
        for name, scale in (("observation.state", 0.3), ("action", 0.5))
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy: Any = get_policy_class(config.type)(config)
    if kind == "rlspec_adapter":  # a mean of zero, about which half of the draws succeed
        for parameter in policy.model.action_head.fc2.parameters():
            torch.nn.init.zeros_(parameter)
    policy.save_pretrained(path)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(path)
    return path


@functools.cache
def _base() -> str:
    return load_vla_recipe([*OVERRIDES, "policy.path=someone/run"]).model_dump_json()


def make_recipe(folder: Path, policy: Path, **changes: Any) -> VlaRecipe:
    """The small recipe; changes by dotted keys with `__` for the dots."""
    values = json.loads(_base())
    given = {"output_dir": str(folder), "run": "run", "policy__path": str(policy), **changes}
    for name, value in given.items():
        *path, last = name.split("__")
        functools.reduce(lambda section, key: section[key], path, values)[last] = value
    recipe = check_recipe(values)
    assert isinstance(recipe, VlaRecipe)
    return recipe


class HerePool:
    """Runs groups in this process, one after the other."""

    before: Callable[[int], None] = staticmethod(lambda number: None)  # is told how many groups were run before

    def __init__(self, simulator: Simulator, count: int, warn: Any, *, stopped: Callable[[], bool]) -> None:
        self.runner, self.stopped, self.count = Runner(WorkerSettings(simulator)), stopped, 0

    def run_groups(self, jobs: Sequence[GroupJob], on_done: Callable[[GroupJob, GroupDone], None]) -> None:
        for job in jobs:
            type(self).before(self.count)
            if self.stopped():
                raise Stopped
            self.count += 1
            done = self.runner.run(job)
            assert isinstance(done, GroupDone)
            on_done(job, done)

    def close(self) -> None:
        self.runner.close()


@pytest.fixture(scope="session")
def lane_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs drive on the lane, in this process."""
    monkeypatch.setattr(session, "build_protocol", functools.partial(build_protocol, module="lane_sim"))
    monkeypatch.setattr(session, "WorkerPool", HerePool)


def train(recipe: VlaRecipe) -> int:
    return run_vla_recipe(recipe, evaluator=lambda *_: nullcontext(None))  # type: ignore[arg-type,return-value]


def resumed(folder: Path, **changes: Any) -> VlaRecipe:
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe = check_recipe({**values, "run": None, "resume": str(folder), **changes})
    assert isinstance(recipe, VlaRecipe)
    return recipe


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock decides, or in which step a session first looked at alignment."""
    clock = ("step_time", "episodes_per_second", "output/rms", "alignment/mean", "alignment/largest")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]
