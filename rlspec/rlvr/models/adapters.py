"""What of a policy is trained: all but what is frozen, or adapters (peft) on it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from transformers import PreTrainedModel

from rlspec.errors import CheckpointError, ConfigError
from rlspec.hub import one_line
from rlspec.runtime.adapters import adapter_config


def freeze(model: torch.nn.Module, patterns: Sequence[str]) -> torch.nn.Module:
    """The model itself, whose parameters with a name that some pattern matches (re.search) are not trained.

    Raises:
        ConfigError: A pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        found = [name for name in names if re.search(pattern, name)]
        if not found:
            raise ConfigError(f"model.freeze={pattern}: matches no parameter; there are {', '.join(names[:3])}, ...")
        for name in found:
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model.freeze: nothing is left to train; drop a pattern")
    return model


def apply_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    target_modules: Sequence[str],
    seed: int = 0,
    **settings: Any,
) -> torch.nn.Module:
    """Freeze the model and add adapters (peft) to the named modules; `settings` are `adapter_config`'s others.

    Raises:
        ConfigError: a target name matches no linear module, or peft refuses what it is told.
    """
    check_lora_targets(model, target_modules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = adapter_config(
                r=r, alpha=alpha, target_modules=target_modules, task_type=TaskType.CAUSAL_LM, **settings
            )
            return get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.lora: {one_line(error)}") from error


def lora_as_stored(model: PreTrainedModel, path: str) -> torch.nn.Module:
    """Adapters as those in a folder are, with new values: a model that tells what they take."""
    config = PeftConfig.from_pretrained(path)
    config.inference_mode = False
    return get_peft_model(model, config)


def continue_lora(model: PreTrainedModel, path: str, *, dropout: float) -> torch.nn.Module:
    """Freeze the model and put stored adapters on it, whose training continues (peft; in float32).

    Raises:
        CheckpointError: they cannot be read, or do not fit the model.
    """
    try:
        config = PeftConfig.from_pretrained(path)
        if hasattr(config, "lora_dropout"):
            config.lora_dropout = dropout
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, path, config=config, is_trainable=True)
        different = get_peft_model_state_dict(adapted).keys() ^ load_peft_weights(path, device="cpu").keys()
        if different:  # peft passes over layers that only one of the two has
            raise ValueError(
                f"{len(different)} tensors are only in the adapters or only in the model, such as {min(different)}"
            )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"model.lora.path={path}: these adapters do not go onto {model.config.name_or_path or 'this model'}: "
            f"{one_line(error)}"
        ) from error
    return adapted


def check_lora_targets(model: torch.nn.Module, target_modules: Sequence[str]) -> None:
    """Every target must name a linear module: peft itself is content if one of them does."""
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            there = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ConfigError(f"model.lora.target_modules: {target!r} matches no linear module; there are {there}")
    if not target_modules:
        raise ConfigError("model.lora.target_modules is empty: nothing would be trained")
