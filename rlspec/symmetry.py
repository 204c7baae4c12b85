"""Print the symmetry map of a model or policy: `python -m rlspec.symmetry model=...`, without weights or training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF
from rlspec.contract.features import ACTION, EEF_STATE, STATE, image_key
from rlspec.entry import run_command
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from rlspec.config.schema import Model
    from rlspec.optim.map.symmetry import SymmetryMap

USAGE = """\
usage: python -m rlspec.symmetry model=NAME|policy=NAME [optim=NAME] [key=value ...] [out=FILE.md|FILE.json|FILE.txt]

Prints which role, symmetry group, split and update rule every parameter of a model gets, and what the optimizer's
state takes. No weights are read.

  model=tiny, qwen3_0.6b, ...   a profile of recipes/model, a hub id or a local folder with config.json
  policy=rlspec_smolvla, ...    a policy as its config makes it: rlspec_adapter, rlspec_flow, rlspec_smolvla,
                                rlspec_pi05, or LeRobot's own smolvla, pi0, pi05; policy.KEY=value changes the
                                config, for example policy.train_expert_only=false
  optim=adamw, muon, vla_pion   a group of recipes/optim (default: pion)
  roles=vla                     a preset: Muon for vision and language, Pion on whole matrices for actions
  key=value                     any key of a recipe, for example optim.split=whole or +model.lora.r=16
  out=FILE                      also write the table; the suffix chooses the format
"""

OURS = ("rlspec_adapter", "rlspec_flow", "rlspec_smolvla", "rlspec_pi05")
POLICIES = (*OURS, "smolvla", "pi0", "pi05")
# What the hub's SmolVLM2-500M-Video-Instruct has in its config.json, which SmolVLA starts from.
SMOLVLM2_TEXT = {
    "model_type": "llama",
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "vocab_size": 49280,
}
SMOLVLM2_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(argv, lambda: USAGE, run)


def run(arguments: Sequence[str]) -> int:
    """Print the map, and write it where `out=` asks for it.

    Raises:
        UserError: naming the argument and the remedy.
    """
    mine = {key: value for key, _, value in (text.partition("=") for text in arguments) if _is_mine(key)}
    rest = [argument for argument in arguments if not _is_mine(argument.partition("=")[0])]
    policy = mine.pop("policy", None)
    if policy is None and not any(argument.startswith("model=") for argument in rest):
        raise ConfigError("no model given: add model=NAME, for example model=tiny, or policy=NAME")
    if policy is not None and policy not in POLICIES:
        raise ConfigError(f"policy={policy}: allowed: {', '.join(POLICIES)}")
    out, roles = mine.pop("out", None), mine.pop("roles", None)
    path = _output_path(out) if out is not None else None
    from rlspec.config.load import load_recipe
    from rlspec.config.optim import map_settings

    defaults = ["recipe=grpo_math"] if not any(argument.startswith("recipe=") for argument in rest) else []
    recipe = load_recipe([*defaults, *rest])
    from rlspec.optim import symmetry_map
    from rlspec.optim.map.render import RENDERERS, render_text

    chosen = map_settings(recipe.optim)
    chosen["roles"] = roles or chosen["roles"]
    fields = {key.removeprefix("policy."): value for key, value in mine.items()}
    model = build_meta_model(recipe.model) if policy is None else build_meta_policy(policy, fields)
    mapping: SymmetryMap = symmetry_map(model, **chosen)
    lines = [render_text(mapping), *unused_line(model), state_line(mapping, symmetry_map(model, rule="adamw"))]
    sys.stdout.write("\n".join(lines) + "\n")
    if path is not None:
        _write(path, RENDERERS[path.suffix](mapping))
    return 0


def _is_mine(key: str) -> bool:
    """Whether an argument is this command's own, not the recipe's."""
    return key in ("out", "roles", "policy") or key.startswith("policy.")


def unused_line(model: nn.Module) -> list[str]:
    """What a policy says that no loss of its reaches, if it says so."""
    unused: dict[str, int] = getattr(model, "unused_parameters", {})
    if not unused:
        return []
    return [f"unused: no loss reaches {sum(unused.values()):,} parameters, which are frozen: {', '.join(unused)}"]


def state_line(mapping: SymmetryMap, baseline: SymmetryMap) -> str:
    """What the optimizer's state takes, by rule, and what it would take with AdamW for everything."""
    rules = dict.fromkeys(spec.rule for spec in mapping)
    sizes = {rule: sum(spec.state_bytes for spec in mapping if spec.rule == rule) for rule in rules}
    total, alone = sum(sizes.values()), sum(spec.state_bytes for spec in baseline)
    parts = ", ".join(f"{rule} {size:,}" for rule, size in sizes.items())
    return f"state: {total / 1e9:.2f} GB ({parts} bytes); AdamW for everything: {alone / 1e9:.2f} GB ({alone:,} bytes)"


def build_meta_model(model: Model) -> nn.Module:
    """The model without storage, from its configuration alone.

    Raises:
        UserError: if the configuration cannot be had or the class is not known to transformers.
    """
    import torch

    from rlspec.rlvr.models import DTYPES, IMPOSSIBLE, apply_lora, build_config, load_tokenizer
    from rlspec.runtime.quiet import quiet_libraries

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
        return policy
    with torch.device("meta"):
        return apply_lora(policy, **model.lora.model_dump())


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


def build_meta_policy(name: str, settings: Mapping[str, str]) -> nn.Module:
    """A policy without storage, under the names that it has in LeRobot; nothing is fetched.

    Args:
        name: one of `POLICIES`.
        settings: fields of its config as written on the command line.

    Raises:
        ConfigError: if LeRobot is not installed, or a setting is none of the config's or makes no model.
    """
    import io
    import logging

    import torch
    from torch import nn

    from rlspec.rlvr.models import IMPOSSIBLE
    from rlspec.runtime.quiet import quiet_libraries

    quiet_libraries()
    logging.getLogger().setLevel(logging.ERROR)  # LeRobot logs to the root, and prints
    try:
        from lerobot.policies.factory import make_policy_config

        if name in OURS:
            import rlspec.vla.policies  # noqa: F401  # registers them
    except ImportError as error:
        raise ConfigError(f"policy={name} needs LeRobot: install the extra vla ({error})") from error
    try:
        defaults = make_policy_config(name, device="cpu")
        config = make_policy_config(name, device="cpu", **_policy_settings(defaults, settings))
        with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
            return _whole(name, config) if name in OURS else nn.ModuleDict({"model": _core(name, config)})
    except IMPOSSIBLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"policy={name}: no model: {reason}") from error


def _policy_settings(config: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """Values in the types that YAML gives them."""
    import yaml

    from rlspec.errors import nearest

    for key in settings:
        if key not in vars(config):
            raise ConfigError(f"policy.{key}: {config.type} has no such field; {nearest(key, sorted(vars(config)))}")
    return {key: yaml.safe_load(value) for key, value in settings.items()}


def _whole(name: str, config: Any) -> nn.Module:
    """One of our policies, which decides itself what it trains."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class

    pictures = {image_key(name): (3, 128, 128) for name in ("external", "wrist")}
    config.input_features = config.input_features or {
        STATE: PolicyFeature(FeatureType.STATE, (len(EEF_STATE),)),
        **{name: PolicyFeature(FeatureType.VISUAL, shape) for name, shape in pictures.items()},
    }
    config.output_features = config.output_features or {
        ACTION: PolicyFeature(FeatureType.ACTION, (ACTION_SPACES[DELTA_EEF].size,))
    }
    config.device = "meta"
    with _without_hub(config) if name == "rlspec_smolvla" else contextlib.nullcontext():
        return get_policy_class(name)(config)


def _core(name: str, config: Any) -> nn.Module:
    """The network of one of LeRobot's policies."""
    if name == "pi0":
        from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch

        return PI0Pytorch(config)
    if name == "pi05":
        from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch

        return PI05Pytorch(config)
    from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching

    with _without_hub(config):
        return VLAFlowMatching(config)


@contextlib.contextmanager
def _without_hub(config: Any) -> Iterator[None]:
    """What SmolVLA would fetch from the hub is put in its place."""
    from unittest.mock import patch

    from lerobot.policies.smolvla import smolvlm_with_expert
    from transformers import AutoConfig

    vlm = AutoConfig.for_model("smolvlm", text_config=SMOLVLM2_TEXT, vision_config=SMOLVLM2_VISION, scale_factor=4)
    config.load_vlm_weights = False
    with (
        patch.object(smolvlm_with_expert, "AutoConfig") as configs,
        patch.object(smolvlm_with_expert, "AutoProcessor") as processors,
    ):
        configs.from_pretrained.return_value = vlm
        tokenizer = processors.from_pretrained.return_value.tokenizer
        tokenizer.fake_image_token_id = tokenizer.global_image_token_id = 0
        yield


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
