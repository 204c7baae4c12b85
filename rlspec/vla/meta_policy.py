"""A robot's policy without storage, for tables of its parameters; nothing is fetched."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF
from rlspec.contract.features import ACTION, EEF_STATE, STATE, image_key
from rlspec.errors import ConfigError, nearest
from rlspec.runtime.quiet import quiet_libraries

OURS = ("rlspec_adapter", "rlspec_flow", "rlspec_smolvla", "rlspec_pi05")
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


# What LeRobot and transformers raise where a configuration makes no model.
IMPOSSIBLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError)


def build_meta_policy(name: str, settings: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """A policy without storage, under the names that it has in LeRobot; nothing is fetched.

    Args:
        name: one of `POLICIES`.
        settings: fields of its config.
        device: of its parameters.

    Raises:
        ConfigError: if LeRobot is not installed, or a setting is none of the config's or makes no model.
    """
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
        config = make_policy_config(name, device="cpu", **_known_fields(defaults, settings))
        with torch.device(device), contextlib.redirect_stdout(io.StringIO()):
            return _whole(name, config, device) if name in OURS else nn.ModuleDict({"model": _core(name, config)})
    except IMPOSSIBLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"policy={name}: no model: {reason}") from error


def _known_fields(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    for key in settings:
        if key not in vars(config):
            raise ConfigError(f"policy.{key}: {config.type} has no such field; {nearest(key, sorted(vars(config)))}")
    return dict(settings)


def _whole(name: str, config: Any, device: str) -> nn.Module:
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
    config.device = device
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
    from lerobot.policies.smolvla import smolvlm_with_expert
    from transformers import AutoConfig

    vlm = AutoConfig.for_model("smolvlm", text_config=SMOLVLM2_TEXT, vision_config=SMOLVLM2_VISION, scale_factor=4)
    config.load_vlm_weights = False
    tokens = SimpleNamespace(fake_image_token_id=0, global_image_token_id=0)
    shipped = {
        "AutoConfig": SimpleNamespace(from_pretrained=lambda *_, **__: vlm),
        "AutoProcessor": SimpleNamespace(from_pretrained=lambda *_, **__: SimpleNamespace(tokenizer=tokens)),
    }
    fetched = {name: getattr(smolvlm_with_expert, name) for name in shipped}
    for name, value in shipped.items():
        setattr(smolvlm_with_expert, name, value)
    try:
        yield
    finally:
        for name, value in fetched.items():
            setattr(smolvlm_with_expert, name, value)
