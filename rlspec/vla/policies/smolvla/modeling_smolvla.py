"""`rlspec_smolvla`: LeRobot's network, with parameters that the optimizer knows by name."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, make_att_2d_masks
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from lerobot.utils.device_utils import resolve_safetensors_device
from safetensors.torch import load_model

from rlspec.vla.policies.flow_sde import Velocity
from rlspec.vla.policies.inherited import NamedPolicy, check_loaded, denoising
from rlspec.vla.policies.smolvla.configuration_smolvla import RlspecSmolVLAConfig


class RlspecSmolVLAPolicy(NamedPolicy, SmolVLAPolicy):
    """LeRobot's SmolVLA; also loads checkpoints of type smolvla. What no loss reaches is frozen by LeRobot already."""

    config_class = RlspecSmolVLAConfig
    name = "rlspec_smolvla"

    @property
    def flow_shape(self) -> tuple[int, int, int]:
        """Denoising steps, rows of a chunk, numbers in a row with padding."""
        return self.config.num_steps, self.config.chunk_size, self.config.max_action_dim

    def velocity_field(self, batch: dict[str, Any]) -> Velocity:
        """The velocity of noisy actions as in `sample_actions`, with gradients; observations are read once."""
        images, seen = self.prepare_images(batch)
        words, spoken = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        model, state = self.model, self.prepare_state(batch)
        prefix, pad, attended = model.embed_prefix(images, seen, words, spoken, state=state)
        _, cache = model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad, attended),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[prefix, None],
            use_cache=True,
        )
        return denoising(model, pad, cache)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        device = resolve_safetensors_device(map_location)
        missing, _ = load_model(model, model_file, strict=strict, device=device)
        check_loaded(model, missing, model_file)
        return model
