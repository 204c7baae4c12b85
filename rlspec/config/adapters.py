"""Adapters in a recipe: peft's own knobs, known by name, and none that would be ignored or make a run mean another."""

from __future__ import annotations

from collections.abc import Iterator

from rlspec.config.paths import show
from rlspec.config.schema import Lora
from rlspec.config.sources import read_knobs
from rlspec.errors import nearest

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


def check_lora(key: str, lora: Lora) -> Iterator[str]:
    """One line per mistake in the section; `key` is its own."""
    knobs = read_knobs(CLASSES[lora.method])
    if lora.method != "lora":
        for name in OF_LORA:
            if name in lora.model_fields_set:
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
