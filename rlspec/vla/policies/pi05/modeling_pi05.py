"""`rlspec_pi05`: LeRobot's network, with parameters that the optimizer knows by name and none that it cannot train."""

# No annotations from __future__: LeRobot reads the class of the config from the constructor.

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05.modeling_pi05 import PI05Policy, make_att_2d_masks, prepare_attention_masks_4d
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from lerobot.utils.device_utils import resolve_safetensors_device
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlspec.errors import CheckpointError
from rlspec.vla.policies.backbone.policy import masked_mean
from rlspec.vla.policies.flow_sde import Velocity
from rlspec.vla.policies.inherited import NamedPolicy, check_loaded, denoising, freeze_unused
from rlspec.vla.policies.pi05.configuration_pi05 import RlspecPI05Config

WEIGHTS = "model.safetensors"


class RlspecPI05Policy(NamedPolicy, PI05Policy):
    """LeRobot's pi0.5; also loads checkpoints of type pi05.

    Neither output head is ever used, and of the language model's last layer only keys and values reach the actions:
    the rest is frozen, or it would cost optimizer state.

    Attributes:
        unused_parameters: names and sizes of what is frozen for that reason.
    """

    config_class = RlspecPI05Config
    name = "rlspec_pi05"

    def __init__(self, config: RlspecPI05Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        last = len(self.model.paligemma_with_expert.paligemma.model.language_model.layers) - 1
        self.unused_parameters = freeze_unused(
            self,
            (
                r"\.lm_head\.",
                r"\.language_model\.norm\.",
                rf"\.language_model\.layers\.{last}\.(?:self_attn\.[qo]_proj|mlp|post_attention_layernorm)\.",
            ),
        )

    @property
    def flow_shape(self) -> tuple[int, int, int]:
        """Denoising steps, rows of a chunk, numbers in a row with padding."""
        return self.config.num_inference_steps, self.config.chunk_size, self.config.max_action_dim

    def velocity_field(self, batch: dict[str, Any]) -> Velocity:
        """The velocity of noisy actions as in `sample_actions`, with gradients; observations are read once."""
        images, seen = self._preprocess_images(batch)
        words, spoken = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        model = self.model
        prefix, pad, attended = model.embed_prefix(images, seen, words, spoken)
        model.paligemma_with_expert.paligemma.model.language_model.config._attn_implementation = "eager"
        _, cache = model.paligemma_with_expert.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad, attended)),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[prefix, None],
            use_cache=True,
        )
        return denoising(model, pad, cache)

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """As LeRobot's, but what follows an episode's end is no target: theirs and openpi's learn to stand still there.

        Args:
            batch: preprocessed; `action_is_pad` (B, chunk) says what is padding.
            reduction: "mean", or "none" for a loss of each sample, (B,).
        """
        images, seen = self._preprocess_images(batch)
        actions = self.prepare_action(batch)
        noise = self.model.sample_noise(actions.shape, actions.device)
        time = self.model.sample_time(actions.shape[0], actions.device)
        words = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        losses = self.model.forward(images, seen, *words, actions, noise, time)
        losses = losses[..., : self.config.output_features[ACTION].shape[0]]
        padded = batch.get("action_is_pad")
        real = losses.new_ones(losses.shape[:2], dtype=torch.bool) if padded is None else ~padded.bool()
        if reduction == "none":
            loss = torch.stack([masked_mean(*sample) for sample in zip(losses, real, strict=True)])
        else:
            loss = losses.mean() if padded is None else masked_mean(losses, real)
        return loss, {"loss": float(loss.detach().mean()), "loss_per_dim": losses.detach().mean((0, 1)).tolist()}

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **settings: Any
    ) -> "RlspecPI05Policy":
        """As LeRobot's, which starts from random weights where it cannot load any: this refuses.

        Args:
            pretrained_name_or_path: folder or hub id.
            config: None: the stored one.
            settings: `revision` and what else `hf_hub_download` takes.

        Raises:
            CheckpointError: if weights cannot be had or do not fit.
        """
        hub = {key: settings[key] for key in _HUB if settings.get(key) is not None}
        if config is None:
            config = cls.config_class.from_pretrained(pretrained_name_or_path, **hub)
        policy = cls(config)
        file: str | Path = pretrained_name_or_path
        try:
            file = _weights_file(pretrained_name_or_path, hub)
            stored = load_file(file, device=resolve_safetensors_device(str(config.device)))
            renamed = policy._fix_pytorch_state_dict_keys(stored, config)
            found = {key if key.startswith("model.") else f"model.{key}": value for key, value in renamed.items()}
            missing, _ = policy.load_state_dict(found, strict=False)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{file}: {' '.join(str(error).split()[:40])}") from error
        check_loaded(policy, missing, file)
        policy.eval()
        return policy


_HUB = ("force_download", "token", "cache_dir", "local_files_only", "revision")


def _weights_file(source: str | Path, hub: dict[str, Any]) -> Path:
    if not Path(source).is_dir():
        return Path(hf_hub_download(str(source), WEIGHTS, **hub))
    file = Path(source) / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{source} has no {WEIGHTS}")
    return file
