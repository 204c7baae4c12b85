"""Policies and their tokenizers: built from an architecture, or loaded from a folder, a GGUF file or the hub."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlspec.config.adapters import ADAPTERS
from rlspec.config.extras import install
from rlspec.config.gguf_header import is_gguf
from rlspec.config.passthrough import check_architecture
from rlspec.config.paths import initial_folder
from rlspec.errors import CheckpointError, ConfigError
from rlspec.hub import fetch_snapshot, is_local, one_line
from rlspec.rlvr.models.gguf_files import check_all_taken, complete_config, gguf_tokenizer, open_gguf
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer

CONFIG_FILES = ["config.json", "generation_config.json"]
TOKENIZER_FILES = ["tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.jinja"]
WEIGHT_FILES = ["*.safetensors", "model.safetensors.index.json"]
REMEDY = "use a local copy: model.path=/path/to/snapshot, or HF_HOME=/path/to/cache HF_HUB_OFFLINE=1"
# What transformers raises for a configuration that makes no model.
_UNLOADABLE = (
    OSError,
    ImportError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
IMPOSSIBLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)
IN_EXTRAS = {"HuggingFaceTB/SmolLM2-135M-Instruct": "smollm"}
"""Models of the hub that a package of the registry brings too -> rlspec's extra with it."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def snapshot(path: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """Where a model lies: its folder, its GGUF file, or the hub's snapshot in the cache, downloaded where needed.

    Args:
        path: local folder, GGUF file or hub id.
        revision: branch, tag or commit of a hub id.
        weights: whether the weights are needed, or only configuration and tokenizer.

    Raises:
        CheckpointError: it cannot be fetched or is incomplete; one line with the remedy.
    """
    if is_gguf(path):
        return open_gguf(path)
    if is_local(path):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"no model folder {folder}; {REMEDY}")
    else:
        files = [*CONFIG_FILES, *TOKENIZER_FILES, *(WEIGHT_FILES if weights else [])]
        try:
            folder = fetch_snapshot(path, kind="model", files=files, revision=revision)
        except ConnectionError as error:
            extra = f"; or {install(IN_EXTRAS[path])}, which brings it" if path in IN_EXTRAS else ""
            raise CheckpointError(f"{error}; {REMEDY}{extra}") from error
    missing = _missing_files(folder, weights)
    if missing and (folder / ADAPTERS).is_file():
        raise CheckpointError(
            f"model {path}: {folder} holds adapters and not a model; go on with them "
            f"(model={shlex.quote(str(folder))}), or merge them: "
            "peft's AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(OUT)"
        )
    if missing:
        raise CheckpointError(f"model {path} is incomplete: {folder} has no {', '.join(missing)}; {REMEDY}")
    return folder


def _missing_files(folder: Path, weights: bool) -> list[str]:
    """What a model folder lacks: the config, the weights, or shards that its index names."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if not weights:
        return missing
    if index.is_file():
        shards = sorted(set(_read_json(index).get("weight_map", {}).values())) or ["weight_map in " + index.name]
        absent = [shard for shard in shards if not (folder / shard).is_file()]
        return missing + absent[:3] + ([f"{len(absent) - 3} more"] if len(absent) > 3 else [])
    return missing + ([] if (folder / "model.safetensors").is_file() else ["model.safetensors"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {path}: not a JSON object")
    return content


def load_tokenizer(path: str | None, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, GGUF file or hub id, padding on the left; None: the built-in byte tokenizer."""
    if path is None:
        return build_byte_tokenizer()
    source = snapshot(path, revision=revision, weights=False)
    try:
        tokenizer = gguf_tokenizer(source) if source.is_file() else _auto_tokenizer(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {path}: {one_line(error)}") from error
    if tokenizer.chat_template is None:
        raise CheckpointError(f"the tokenizer of {path} has no chat template; use an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"the tokenizer of {path} has neither a padding nor an end token; name both in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token  # as TRL does; masks tell padding from ends
    tokenizer.padding_side = "left"
    return tokenizer


def _auto_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def build_config(
    *,
    path: str | None,
    architecture: dict[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None = None,
) -> PretrainedConfig:
    """The model's configuration, without its weights."""
    if path is not None:
        return _read_config(snapshot(path, revision=revision, weights=False))
    if architecture is None:
        raise ConfigError("model.path and model.architecture are both absent; one of them names the model")
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    wrong = check_architecture(architecture)
    if wrong:
        raise ConfigError(wrong[0])
    try:
        config = Qwen3Config(**architecture, **tokens)
        with torch.device("meta"):
            Qwen3ForCausalLM(config)  # names of functions and sizes that only the model itself looks up
    except IMPOSSIBLE as error:
        raise ConfigError(f"model.architecture: {_reason(error)}") from error
    return config


def _read_config(source: Path) -> PretrainedConfig:
    folder, of_file = _places(source)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, **of_file)
    except (OSError, *IMPOSSIBLE) as error:
        what = source if of_file else source / "config.json"
        raise CheckpointError(f"cannot read {what}: {one_line(error)}") from error
    if of_file:
        complete_config(config, source)
    return config


def _places(source: Path) -> tuple[Path, dict[str, str]]:
    """For transformers' `from_pretrained`: the folder, and the GGUF file; by its name alone it is sought here first."""
    return (source.parent, {"gguf_file": str(source)}) if source.is_file() else (source, {})


def _reason(error: Exception) -> str:
    return f"{error} is not known to transformers" if isinstance(error, KeyError) else one_line(error)


def build_model(
    *,
    path: str | None = None,
    architecture: dict[str, Any] | None = None,
    init: str | None = None,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None = None,
    weights_dtype: str = "float32",
    attention: str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A causal language model in evaluation mode on the CPU, its sampling defaults removed.

    Args:
        path: local folder, GGUF file or hub id; None: a Qwen3 built from `architecture`.
        architecture: keyword arguments of Qwen3Config, without those that the tokenizer decides.
        init: run, or folder with weights, to start from; of `path` then configuration and tokenizer are taken alone.
        tokenizer: decides the vocabulary, padding and end tokens of a model built here.
        revision: branch, tag or commit of a hub id.
        weights_dtype: ``float32`` or ``bfloat16``.
        attention: implementation by transformers' name; None: sdpa, or eager where the architecture has no sdpa.
        seed: of the random weights; the global random state is left as it was.
    """
    config = build_config(path=path, architecture=architecture, tokenizer=tokenizer, revision=revision)
    dtype = DTYPES[weights_dtype]
    model: PreTrainedModel
    if path is not None:
        source = snapshot(path, revision=revision, weights=init is None)
        model = _load(source, dtype, config, attention) if init is None else _load_init(init, dtype, config, attention)
        if len(tokenizer) > model.config.vocab_size:
            size = model.config.vocab_size
            raise ConfigError(f"model {path} has {size} embeddings for a tokenizer of {len(tokenizer)} tokens")
    else:
        config._attn_implementation = attention
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = Qwen3ForCausalLM(config)
            except (ValueError, ImportError, OSError) as error:
                raise ConfigError(f"model.attn_implementation={attention}: {one_line(error)}") from error
        for param in model.parameters():  # not the buffers: rotary frequencies in bfloat16 are positions that blur
            param.data = param.data.to(dtype)
        if init is not None:
            copy_weights(initial_weights(init), model)
    model.generation_config = plain_generation_config(model, tokenizer)
    return model.eval()


def _load(
    source: Path, dtype: torch.dtype, config: PretrainedConfig | None = None, attention: str | None = None
) -> PreTrainedModel:
    folder, of_file = _places(source)
    if not of_file:
        check_safetensors(folder)
    load: Any = AutoModelForCausalLM.from_pretrained
    how = {"dtype": dtype, "attn_implementation": attention, "local_files_only": True, "output_loading_info": True}
    try:
        model, report = load(folder, **how, **of_file, **({"config": config} if of_file else {}))
    except _UNLOADABLE as error:
        asked = f" with model.attn_implementation={attention}" if attention else ""
        raise CheckpointError(f"cannot load the model in {source}{asked}: {one_line(error)}") from error
    # transformers would start missing or misshapen tensors at random values with no more than a warning.
    wrong = sorted(map(str, [*report["missing_keys"], *report.get("mismatched_keys", [])]))
    if wrong:
        what = "header" if of_file else "config.json"
        raise CheckpointError(f"the weights in {source} do not fit its {what}: {wrong[0]} ({len(wrong)} tensors)")
    if of_file:
        check_all_taken(model, source)
    return model


def check_safetensors(folder: Path) -> None:
    """Raise CheckpointError for a truncated or corrupt safetensors file. Reads only the headers."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is truncated or corrupt ({one_line(error)}); fetch it again") from error


def initial_weights(init: str) -> Path:
    """The folder `init`, relative to the current folder or, for what ships with the project, to its checkout."""
    return snapshot(str(initial_folder(init).resolve()))


def _load_init(init: str, dtype: torch.dtype, config: PretrainedConfig, attention: str | None) -> PreTrainedModel:
    """The weights in a folder, for a model that `model.path` names."""
    folder = initial_weights(init)
    model = _load(folder, dtype, attention=attention)
    with torch.device("meta"):
        named = AutoModelForCausalLM.from_config(config)
    _check_same_tensors(model.state_dict(), named.state_dict(), folder, "model.path")
    return model


def copy_weights(folder: Path, model: PreTrainedModel) -> None:
    """Copy all weights in a folder into a model built from an architecture; both must have the same tensors."""
    source = _load(folder, model.dtype).state_dict()
    _check_same_tensors(source, model.state_dict(), folder, "model.architecture")
    model.load_state_dict(source)


def _check_same_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], folder: Path, key: str) -> None:
    wrong = sorted(
        name
        for name in source.keys() | target.keys()
        if name not in source or name not in target or source[name].shape != target[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"model.init: the weights in {folder} do not fit {key}: {wrong[0]} ({len(wrong)} tensors)"
        )


def plain_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The model's end tokens and padding, without its publisher's sampling defaults.

    Qwen3 ships temperature 0.6, top_p 0.95 and top_k 20, which `generate` would use wherever a recipe says nothing.
    """
    published = model.generation_config
    ends = published.eos_token_id if published is not None else None
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
