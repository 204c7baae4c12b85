"""Adapters in a recipe: peft's own knobs, known by name, and none that would be ignored or make a run mean another."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlspec.config.paths import show
from rlspec.config.sources import read_knobs
from rlspec.errors import CheckpointError, ConfigError, nearest

if TYPE_CHECKING:
    from rlspec.config.schema import Lora

ADAPTERS = "adapter_config.json"  # peft's
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

METHODS = {"LORA": "lora", "FOURIERFT": "fourierft"}  # peft's name -> ours
CLASSES = {"lora": "LoraConfig", "fourierft": "FourierFTConfig"}
OF_LORA = ("r", "alpha", "dropout", "use_rslora")
OWN = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "target_modules"}
OWN |= {"use_rslora": "use_rslora"}
"""peft's name -> ours."""
REFUSED = (
    "modules_to_save",
    "bias",
    "trainable_token_indices",
    "layer_replication",
    "megatron_config",
    "runtime_config",
)
"""They train or rebuild more than adapters; so do not, but need objects, those that end in _config."""
STARTS = ("gaussian", "pissa", "olora", "orthogonal")
"""Of `init_lora_weights`; peft's others need data or a quantised model."""
MOVE_THE_BASE = ("pissa", "olora")
"""Starts that take the factors out of the frozen weights: the model without its adapter is not the one before."""


def holds_adapters(folder: Path) -> bool:
    """Whether a folder holds adapters and no weights of a model; a config.json lies beside some."""
    whole = ("model.safetensors", "model.safetensors.index.json")
    return (folder / ADAPTERS).is_file() and not any((folder / name).is_file() for name in whole)


def base_of(folder: Path) -> dict[str, Any]:
    """Keys of section `model` that say to which model stored adapters belong.

    Raises:
        ConfigError: They do not name it.
    """
    if (model := _recipe_of(folder)) is not None:
        base = {key: model.get(key) for key in ("path", "revision", "architecture", "init")}
        return base if base["architecture"] is None else base | {"enable_thinking": None}  # which it has not
    stored = _stored(folder)
    name = stored.get("base_model_name_or_path")
    if not name:
        raise ConfigError(
            f"model={folder}: its {ADAPTERS} names no base model; give it: model=BASE "
            f"model.lora.path={shlex.quote(str(folder))}"
        )
    return {"path": name, "revision": stored.get("revision"), "architecture": None, "init": None}


def _recipe_of(folder: Path) -> dict[str, Any] | None:
    """Section `model` of the recipe of ours that made the adapters; None: there is none."""
    try:
        content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else None


def with_stored(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Section `model.lora` with rank, scale and modules of the adapters at its `path`.

    Raises:
        ConfigError: The section contradicts the adapters, or more than adapters was trained.
        CheckpointError: They cannot be read.
    """
    folder = Path(lora["path"])
    if folder.name in (ADAPTERS, *WEIGHTS):
        folder = folder.parent
    if not folder.is_dir() and not folder.is_absolute() and lora["path"].count("/") == 1:
        raise CheckpointError(
            f"model.lora.path={folder}: no such folder; if it is on the hub: hf download {folder} --local-dir FOLDER, "
            "then model.lora.path=FOLDER"
        )
    found = _settings(folder, _stored(folder))
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise CheckpointError(f"model.lora.path={folder}: {WEIGHTS[0]} is missing")
    for key, value in found.items():
        given = lora.get(key, value)
        same = sorted(map(str, given)) == value if isinstance(given, list) else given == value
        if not same:
            here = f"the adapters in {folder} have {show(value)}"
            raise ConfigError(f"model.lora.{key}={show(given)}: {here}; leave it out")
    return {**lora, **found, "path": str(folder)}


def _settings(folder: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of section `model.lora` as adapters have them."""
    kind, targets = str(stored.get("peft_type")), stored.get("target_modules")
    refused = [name for name in ("modules_to_save", "trainable_token_indices", "layer_replication") if stored.get(name)]
    refused += ["bias"] if stored.get("bias", "none") != "none" else []
    refused += [] if kind in METHODS else ["peft_type"]
    if refused or not isinstance(targets, list):
        name = refused[0] if refused else "target_modules"
        what = f"{name}={show(stored.get(name))}"
        raise ConfigError(
            f"model.lora.path={folder}: adapters with {what} do not go on; merge them into a model, with peft's "
            "merge_and_unload, and start from that"
        )
    own = {ours: stored[theirs] for theirs, ours in OWN.items() if stored.get(theirs) is not None}
    own.pop("dropout", None)  # no part of what was learnt
    return {**own, "method": METHODS[kind], "target_modules": sorted(targets)}


def _stored(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / ADAPTERS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"model.lora.path={folder}: no adapters there ({ADAPTERS} is missing)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model.lora.path={folder}: its {ADAPTERS} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"model.lora.path={folder}: its {ADAPTERS} is no mapping")
    return content


def check_lora(key: str, lora: Lora) -> Iterator[str]:
    """One line per mistake in the section; `key` is its own."""
    knobs = read_knobs(CLASSES[lora.method])
    if lora.method != "lora":
        for name in OF_LORA:
            if getattr(lora, name) != type(lora).model_fields[name].default:
                yield f"{key}.{name}={show(getattr(lora, name))}: {lora.method} ignores it; remove it"
    for name, value in lora.options.items():
        where = f"{key}.options.{name}={show(value)}"
        if name in OWN:
            yield f"{where}: use {key}.{OWN[name]}"
        elif name not in knobs or name in REFUSED or name.endswith("_config"):
            known = [knob for knob in knobs if knob not in (*OWN, *REFUSED) and not knob.endswith("_config")]
            yield f"{where}: no knob of peft's {CLASSES[lora.method]} that works here; {nearest(name, known)}"
        elif name == "init_lora_weights":
            if not isinstance(value, bool) and value not in STARTS:
                yield f"{where}: must be true, false or one of {', '.join(STARTS)}"
        elif not knobs[name].accepts(value):
            yield f"{where}: must be {knobs[name].allowed}"


def moves_the_base(lora: Lora | None) -> bool:
    """Whether the model with its adapter taken off is another one than before training."""
    return lora is not None and lora.options.get("init_lora_weights") in MOVE_THE_BASE
