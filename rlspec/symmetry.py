"""Print the symmetry map of a model: `python -m rlspec.symmetry model=...`, without weights and without training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlspec.entry import run_command
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from rlspec.config.schema import Model
    from rlspec.optim.symmetry import SymmetryMap

USAGE = """\
usage: python -m rlspec.symmetry model=NAME [optim=NAME] [key=value ...] [out=FILE.md|FILE.json|FILE.txt]

Prints which role, symmetry group, split and update rule every parameter of a model gets. No weights are read.

  model=tiny, qwen3_0.6b, ...   a profile of recipes/model, a hub id or a local folder with config.json
  optim=adamw, muon, pion       a group of recipes/optim (default: pion)
  key=value                     any key of a recipe, for example optim.split=whole or +model.lora.r=16
  out=FILE                      also write the table; the suffix chooses the format
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(argv, lambda: USAGE, run)


def run(arguments: Sequence[str]) -> int:
    """Print the map, and write it where `out=` asks for it.

    Raises:
        UserError: naming the argument and the remedy.
    """
    out = [argument.partition("=")[2] for argument in arguments if argument.startswith("out=")]
    rest = [argument for argument in arguments if not argument.startswith("out=")]
    if not any(argument.startswith("model=") for argument in rest):
        raise ConfigError("no model given: add model=NAME, for example model=tiny")
    path = _output_path(out[-1]) if out else None
    from rlspec.config.load import load_recipe
    from rlspec.config.optim import map_settings

    defaults = ["recipe=grpo_math"] if not any(argument.startswith("recipe=") for argument in rest) else []
    recipe = load_recipe([*defaults, *(argument for argument in rest)])
    from rlspec.optim import symmetry_map
    from rlspec.optim.table import RENDERERS, render_text

    mapping: SymmetryMap = symmetry_map(build_meta_model(recipe.model), **map_settings(recipe.optim))
    sys.stdout.write(render_text(mapping) + "\n")
    if path is not None:
        _write(path, RENDERERS[path.suffix](mapping))
    return 0


def build_meta_model(model: Model) -> nn.Module:
    """The model without storage, from its configuration alone.

    Raises:
        UserError: if the configuration cannot be had or the class is not known to transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from rlspec.rlvr.models import DTYPES, IMPOSSIBLE, apply_lora, build_config, load_tokenizer
    from rlspec.rlvr.quiet import quiet_libraries

    quiet_libraries()
    tokenizer = load_tokenizer(None)  # decides the vocabulary of a model built from `architecture` only
    config = build_config(
        path=model.path, architecture=model.architecture, tokenizer=tokenizer, revision=model.revision
    )
    try:
        with torch.device("meta"):
            policy = AutoModelForCausalLM.from_config(config, dtype=DTYPES[model.weights_dtype])
    except IMPOSSIBLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"model={model.name}: no causal language model: {reason}") from error
    policy.tie_weights()
    if model.lora is None:
        return policy
    with torch.device("meta"):
        return apply_lora(policy, **model.lora.model_dump())


def _output_path(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix not in (".md", ".json", ".txt"):
        raise ConfigError(f"out={text}: the suffix chooses the format; allowed: .md, .json, .txt")
    if not path.parent.is_dir():
        raise ConfigError(f"out={text}: there is no folder {path.parent}")
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out={path}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
