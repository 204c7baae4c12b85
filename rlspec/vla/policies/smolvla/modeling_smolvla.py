"""`rlspec_smolvla`: LeRobot's network, with parameters that the optimizer knows by name."""

from __future__ import annotations

from typing import Any

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.device_utils import resolve_safetensors_device
from safetensors.torch import load_model

from rlspec.vla.policies.inherited import NamedPolicy, check_loaded
from rlspec.vla.policies.smolvla.configuration_smolvla import RlspecSmolVLAConfig


class RlspecSmolVLAPolicy(NamedPolicy, SmolVLAPolicy):
    """LeRobot's SmolVLA; also loads checkpoints of type smolvla. What no loss reaches is frozen by LeRobot already."""

    config_class = RlspecSmolVLAConfig
    name = "rlspec_smolvla"

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        device = resolve_safetensors_device(map_location)
        missing, _ = load_model(model, model_file, strict=strict, device=device)
        check_loaded(model, missing, model_file)
        return model
