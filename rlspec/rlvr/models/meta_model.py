"""A language model without storage, for tables of its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlspec.config.rlvr_schema import Model
from rlspec.errors import ConfigError
from rlspec.rlvr.models.adapters import apply_lora, freeze, lora_as_stored
from rlspec.rlvr.models.loading import DTYPES, IMPOSSIBLE, build_config, load_tokenizer
from rlspec.runtime.quiet import quiet_libraries


def build_meta_model(model: Model) -> nn.Module:
    """The model without storage, from its configuration alone.

    Raises:
        UserError: if the configuration cannot be had or the class is not known to transformers.
    """
    quiet_libraries()
    tokenizer = load_tokenizer(None)  # decides the vocabulary of a model built from `architecture` only
    config = build_config(
        path=model.path, architecture=model.architecture, tokenizer=tokenizer, revision=model.revision
    )
    try:
        with torch.device("meta"):
            policy = _auto_class(config).from_config(config, dtype=DTYPES[model.weights_dtype])
    except IMPOSSIBLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"model={model.name}: no model: {reason}") from error
    policy.tie_weights()
    if model.lora is None:
        return freeze(policy, model.freeze)
    with torch.device("meta"):
        if model.lora.path is not None and Path(model.lora.path).is_dir():
            return lora_as_stored(policy, model.lora.path)
        return apply_lora(policy, **model.lora.model_dump(exclude={"path"}))


def _auto_class(config: Any) -> Any:
    """What builds a model of that config: a language model, one with images, or a part such as a vision tower."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
