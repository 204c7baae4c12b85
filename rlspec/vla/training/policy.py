"""A LeRobot policy with its processors, from a recipe or from a checkpoint of a run."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import draccus
import torch
from accelerate import PartialState
from lerobot.configs import PreTrainedConfig
from lerobot.configs.parser import load_plugin
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor.pipeline import ProcessorMigrationError
from torch import nn

from rlspec.checkpoint import staged_folder
from rlspec.config.paths import resolve_path
from rlspec.config.vla_schema import Policy
from rlspec.errors import ConfigError, UserError
from rlspec.hub import one_line, refusal
from rlspec.runtime.sharding import giving, plain_weights
from rlspec.vla.data.facts import describe_policy, write_facts
from rlspec.vla.data.norm_stats import read_norm_stats, vector_sizes
from rlspec.vla.data.normalisation import normalised_by, unnormalised
from rlspec.vla.policies.adapters import BASE, adapted, add_adapters
from rlspec.vla.training.fresh import renew
from rlspec.vla.training.order import INITIAL, derive_seed, seed_all
from rlspec.vla.training.samples import Samples

PLUGINS = "rlspec.vla.policies"
LOCAL_COPY = "check name, network and `hf auth login`, or give a local copy with policy.path=FOLDER"
IMPOSSIBLE = (
    OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, AttributeError, ProcessorMigrationError,
)  # fmt: skip
"""What LeRobot and the libraries below it raise where a policy cannot be had."""


@dataclass
class LoadedPolicy:
    """A policy that is ready to train."""

    policy: nn.Module  # behind LoRA adapters where there are any
    preprocessor: Any  # LeRobot's pipeline for observations and targets
    postprocessor: Any  # LeRobot's pipeline for actions
    source: str | None  # path or hub id that the recipe starts from, as its config says it
    facts: dict[str, Any] = field(default_factory=dict)  # of rlspec.json besides the step: rlspec.vla.data.facts

    @property
    def config(self) -> Any:
        """LeRobot's config of the policy."""
        return self.policy.config

    def save(self, folder: Path, *, step: int) -> None:
        """Write the policy, whole, and its processors in LeRobot's format, and rlspec.json."""
        config, resumed = self.config, self.config.pretrained_path
        config.pretrained_path = self.source
        try:
            with giving(self.policy, plain_weights(self.policy)):
                self.policy.save_pretrained(str(folder))  # type: ignore[operator]
            config.save_pretrained(str(folder))  # adapters are saved without it
        finally:
            config.pretrained_path = resumed
        self.preprocessor.save_pretrained(str(folder))
        self.postprocessor.save_pretrained(str(folder))
        write_facts(folder, self.facts, step=step)


def register_policies() -> None:
    """Make rlspec's policies known to LeRobot."""
    for name in ("rlspec.vla", PLUGINS):
        load_plugin(name)


def load_policy(
    settings: Policy, samples: Samples, *, device: str, seed: int, resume: Path | None, dataset: str = "",
    base: Path | None = None,
) -> LoadedPolicy:  # fmt: skip
    """The policy that a recipe starts from, with the features and statistics of the data, or that in a checkpoint.

    Args:
        settings: Of the recipe.
        samples: The data.
        device: Of the weights.
        seed: Of the run.
        resume: Checkpoint from which a run goes on.
        dataset: The data set's name.
        base: Folder for the policy below adapters where it comes from nowhere else; None: it is not kept.

    Raises:
        ConfigError: It cannot be built, in one line.
    """
    seed_all(derive_seed(seed, INITIAL))
    config = policy_config(settings, device=device) if resume is None else _resumed_config(resume, device)
    source = settings.path if settings.path is None else str(resolve_path(settings.path))
    with explained(_called(settings)), contextlib.redirect_stdout(io.StringIO()):
        policy = _make_policy(config, samples)
        if settings.fresh and resume is None:
            seed_all(derive_seed(seed, INITIAL))
            renew(policy, settings.fresh, make_policy(replace(config, pretrained_path=None), ds_meta=samples.meta))
        if settings.lora is not None and resume is None:
            source = source or _keep_base(policy, base)
            start, config.pretrained_path = config.pretrained_path, source  # which the adapters name
            policy = add_adapters(policy, settings.lora)
            config.pretrained_path = start  # its processors are its own
        stats = None if resume is not None else statistics_for(settings, samples)
        processors = _processors(config, stats, device)
    config._runtime_dataset_meta = None  # LeRobot leaves the data set there
    policy.train()
    facts = describe_policy(config, samples.meta, normalised_by(processors[0]), dataset=dataset)
    return LoadedPolicy(policy, *processors, source, facts)


def _make_policy(config: PreTrainedConfig, samples: Samples) -> Any:
    """LeRobot's, with adapters where the weights are some."""
    if not config.use_peft:
        return make_policy(config, ds_meta=samples.meta)
    folder = str(config.pretrained_path)

    def below(base: str) -> Any:
        config.use_peft, config.pretrained_path = False, base
        return make_policy(config, ds_meta=samples.meta)

    try:
        return adapted(below, folder, trainable=True)
    finally:
        config.use_peft, config.pretrained_path = True, folder


def _keep_base(policy: PreTrainedPolicy, folder: Path | None) -> str:
    """Write the policy as it is without its adapters, which name it; returns where it is."""
    if folder is not None and PartialState().is_main_process:
        with staged_folder(folder, metadata={"step": 0}) as staging:
            policy.save_pretrained(staging)
    return str(folder or BASE)


def policy_config(settings: Policy, *, device: str) -> PreTrainedConfig:
    """LeRobot's config of the recipe's policy; features are those of the data.

    Raises:
        ConfigError: It cannot be had, or the weights belong to another type of policy.
    """
    register_policies()
    with explained(_called(settings)):
        if settings.path is None:
            return make_policy_config(settings.type, device=device, push_to_hub=False, **decoded(settings))
        config = _pretrained_config(settings, str(resolve_path(settings.path)))
        if config.use_peft and (settings.lora is not None or settings.fresh):
            key = "policy.lora" if settings.lora is not None else "policy.fresh"
            raise ConfigError(f"{key}: {settings.path} holds adapters, which are trained further; drop {key}")
        changes = {"device": device, "push_to_hub": False, "input_features": {}, **decoded(settings)}
        for name, value in changes.items():
            setattr(config, name, value)
        if (check := getattr(config, "__post_init__", None)) is not None:
            check()
        return config


def decoded(settings: Policy) -> dict[str, Any]:
    """Options in the types of the config's fields: YAML has no tuples and no enumerations."""
    types = get_type_hints(PreTrainedConfig.get_choice_class(settings.type))
    return {name: draccus.decode(types[name], value) for name, value in settings.options.items()}


def policy_settings(settings: Policy, path: str) -> PreTrainedConfig:
    """The config in a folder or on the hub, with its features, its normalisation and the recipe's other options.

    Raises:
        ConfigError: It is of another type than the recipe says.
    """
    config = _pretrained_config(settings, path)
    options = {**decoded(settings), "push_to_hub": False}
    options.pop("normalization_mapping", None)  # that of its processors
    for name, value in options.items():
        setattr(config, name, value)
    return config


def _pretrained_config(settings: Policy, path: str) -> PreTrainedConfig:
    saved = PreTrainedConfig.from_pretrained(path)
    wanted = PreTrainedConfig.get_choice_class(settings.type)
    if type(saved) is not wanted:
        if not issubclass(wanted, type(saved)):
            raise ConfigError(f"policy.path={settings.path}: its weights are of type {saved.type}; set policy.type")
        # Our subclasses of LeRobot's policies have the same fields and weights.
        names = {field.name for field in fields(saved) if field.init}
        saved = wanted(**{name: getattr(saved, name) for name in names})
    saved.pretrained_path = path
    return saved


def _resumed_config(checkpoint: Path, device: str) -> PreTrainedConfig:
    register_policies()
    with explained(str(checkpoint)):
        config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = str(checkpoint)
    config.device = device
    return config


def statistics_for(settings: Policy, samples: Samples) -> dict[str, Any] | None:
    """What a new policy normalises by; None: what its checkpoint does.

    Raises:
        DataError: The file that the recipe names cannot be read, or has fewer numbers than the data.
    """
    stats = samples.meta.stats
    if settings.norm_stats is None:
        return dict(stats)
    if settings.norm_stats == "checkpoint":
        return None
    # min and max stay those of the data: openpi's file has none.
    found = read_norm_stats(resolve_path(settings.norm_stats), vector_sizes(samples.meta.features))
    return {**stats, **{name: {**stats[name], **values} for name, values in found.items()}}


def _processors(config: PreTrainedConfig, stats: dict[str, Any] | None, device: str) -> tuple[Any, Any]:
    """The policy's own, with these statistics; None: those of its checkpoint."""
    if config.pretrained_path is None:
        return make_pre_post_processors(config, dataset_stats=stats)
    modes = {"norm_map": config.normalization_mapping, **({} if stats is None else {"stats": stats})}
    every = {**(config.input_features or {}), **(config.output_features or {})}
    processors = make_pre_post_processors(
        config,
        pretrained_path=str(config.pretrained_path),
        preprocessor_overrides={
            "device_processor": {"device": device},
            "normalizer_processor": {"features": every, **modes},
        },
        postprocessor_overrides={"unnormalizer_processor": {"features": config.output_features, **modes}},
    )
    if stats is None and (faults := list(unnormalised(config, *processors))):
        raise ConfigError(
            f"policy.norm_stats=checkpoint: {config.pretrained_path} has {faults[0]}; set policy.norm_stats=null"
        )
    return processors


def _called(settings: Policy) -> str:
    return f"policy={settings.name}" if settings.path is None else f"policy.path={settings.path}"


@contextlib.contextmanager
def explained(subject: str) -> Iterator[None]:
    """What LeRobot complains of, in one line."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except IMPOSSIBLE as error:
        text = f"{reason}; {LOCAL_COPY}" if (reason := refusal(error)) else one_line(error, 400)
        raise ConfigError(f"{subject}: {text}") from error
    finally:
        root.setLevel(level)
