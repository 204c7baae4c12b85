"""Where reinforcement learning starts: a policy that a run left, or one that is trained by imitation first."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from rlspec.checkpoint import find_weights
from rlspec.config.load import load_vla_recipe
from rlspec.config.match import as_written_today, differing_keys
from rlspec.config.paths import list_group, resolve_path
from rlspec.config.vla_schema import Policy, VlaRecipe
from rlspec.errors import ConfigError
from rlspec.run_directory import RECIPE, SUMMARY
from rlspec.vla.data.facts import describe_policy, read_facts
from rlspec.vla.policies.adapters import adapted, add_adapters
from rlspec.vla.training.order import INITIAL, derive_seed, seed_all
from rlspec.vla.training.policy import (
    LoadedPolicy,
    explained,
    normalised_by,
    policy_settings,
    register_policies,
)


def with_start(recipe: VlaRecipe, imitate: Callable[[VlaRecipe], int]) -> VlaRecipe | int:
    """The recipe with `policy.path`; where it has none, after the run of imitation that makes the policy.

    That run is kept in `output_dir`, gone on with where it was stopped, and used by all runs with this start and seed.

    Args:
        recipe: checked, of algorithm grpo.
        imitate: runs a recipe; returns its exit code.

    Returns:
        The recipe, or the exit code of an imitation that was interrupted.

    Raises:
        ConfigError: The run is there with other settings.
    """
    if recipe.policy.path is not None:
        return recipe
    wanted = imitation_of(recipe)
    folder = Path(wanted.output_dir) / wanted.run_name
    if not _finished(folder):
        if (folder / "checkpoints").is_dir():
            wanted = wanted.model_copy(update={"resume": str(folder)})
        if code := imitate(wanted):
            return code
    _check_same(folder, wanted)
    policy = recipe.policy.model_copy(update={"path": find_weights(str(folder))})
    return recipe.model_copy(update={"policy": policy})


def imitation_of(recipe: VlaRecipe) -> VlaRecipe:
    """The recipe of the imitation that comes first: its own, with the policy, data and simulator of this one."""
    start, policy = recipe.grpo.start, recipe.policy
    assert start is not None, "checked with the recipe"
    named = [f"policy={policy.name}"] if policy.name in list_group("policy") else []
    found = load_vla_recipe([f"recipe={start.recipe}", *named, *start.overrides])
    if found.algorithm != "bc":
        raise ConfigError(f"grpo.start.recipe={start.recipe}: must be one of imitation, such as vla_franka")
    return found.model_copy(
        update={
            "run": f"{recipe.recipe}-{policy.name}-seed{recipe.seed}-start",
            "env": recipe.env,
            "dataset": recipe.dataset,
            "policy": policy.model_copy(update={"lora": None}),
            **{name: getattr(recipe, name) for name in ("seed", "output_dir", "device", "report")},
        }
    )


def _finished(folder: Path) -> bool:
    path = folder / SUMMARY
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["status"] == "finished"


def _check_same(folder: Path, wanted: VlaRecipe) -> None:
    stored = as_written_today(yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")), type(wanted))
    steps = ("training.steps", stored["training"]["steps"], wanted.training.steps)
    different = [*differing_keys(stored, wanted.model_dump(mode="json")), *([steps] if steps[1] != steps[2] else [])]
    if different:
        key, old, new = different[0]
        raise ConfigError(
            f"{folder}: the policy to start from was made with {key}={old}, the recipe says {new}; remove that folder, "
            "or name a start yourself: policy.path=RUN"
        )


def load_start(settings: Policy, *, device: str, seed: int, resume: Path | None, action_std: float) -> LoadedPolicy:
    """The policy of a run, a checkpoint or a hub id, whose features and statistics stay what they are.

    Args:
        settings: the recipe's; `path` is set.
        device: that it is put on.
        seed: of the run, for adapters.
        resume: checkpoint from which a run goes on; it takes the place of `path`.
        action_std: what a regression head that has none begins with.

    Raises:
        ConfigError: It cannot be loaded, or is of another type than the recipe says.
        CheckpointError: There is none.
    """
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors

    register_policies()
    assert settings.path is not None
    source = find_weights(str(resolve_path(settings.path)))
    folder = str(resume) if resume is not None else source
    with explained(f"policy.path={folder}"), contextlib.redirect_stdout(io.StringIO()):
        config: Any = policy_settings(settings, folder)
        config.device = device
        if getattr(config, "action_std", 0.0) is None:
            config.action_std = action_std
        assert isinstance(config, PreTrainedConfig)
        policy = _weights(config, folder)
        if settings.lora is not None and resume is None and not config.use_peft:
            seed_all(derive_seed(seed, INITIAL))
            policy = add_adapters(policy, settings.lora)
        preprocessor, postprocessor = make_pre_post_processors(
            config, pretrained_path=folder, preprocessor_overrides={"device_processor": {"device": device}}
        )
    policy.to(device).eval()
    return LoadedPolicy(policy, preprocessor, postprocessor, source, _facts(folder, config, preprocessor))


def _facts(folder: str, config: Any, preprocessor: Any) -> dict[str, Any]:
    """What the policy's folder says of it; of LeRobot's own, what its config says."""
    found = read_facts(folder)
    if not found:
        unknown = SimpleNamespace(features={}, root=None)
        found = describe_policy(config, unknown, normalised_by(preprocessor), dataset="")
    return {name: value for name, value in found.items() if name != "step"}


def _weights(config: Any, folder: str) -> Any:
    """The policy, with its adapters where it has some."""
    from lerobot.policies.factory import get_policy_class

    kind: Any = get_policy_class(config.type)
    if not config.use_peft:
        config.pretrained_path = folder
        return kind.from_pretrained(folder, config=config)
    return adapted(lambda base: kind.from_pretrained(base, config=config), folder, trainable=True)
