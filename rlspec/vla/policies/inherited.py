"""What our versions of LeRobot's policies add to them: the optimizer's preset, names for it, and strict loading."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from lerobot.configs import PreTrainedConfig
from torch import Tensor, nn

from rlspec.errors import CheckpointError
from rlspec.vla.policies.flow_sde import Velocity
from rlspec.vla.policies.preset import SpectralPreset

_HUB = ("force_download", "resume_download", "proxies", "token", "cache_dir", "local_files_only", "revision")


@dataclass
class InheritedPreset(SpectralPreset):
    """A config of LeRobot's with our optimizer preset, that loads LeRobot's own of the same policy."""

    stock: ClassVar[Any] = None
    """LeRobot's config of the same policy."""

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **settings: Any) -> Self:
        """The config in a folder or on the hub, ours or LeRobot's own of the same policy.

        Raises:
            CheckpointError: if it is of another policy.
        """
        found: Any = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **settings)
        if isinstance(found, cls):
            return found
        if type(found) is not cls.stock:
            kinds = " and ".join(PreTrainedConfig.get_choice_name(kind) for kind in (cls, cls.stock))
            raise CheckpointError(
                f"{pretrained_name_or_path} holds a policy of type {found.type}, and this loads {kinds}; "
                f"set policy.type={found.type}"
            )
        return cls(**{entry.name: getattr(found, entry.name) for entry in dataclasses.fields(found) if entry.init})


class NamedPolicy:
    """A policy that tells the optimizer which parameter is which, and that loads LeRobot's checkpoints of its kind."""

    config_class: ClassVar[Any]

    def get_optim_params(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that still know their modules, as `SpectralOptimizerConfig` needs them; also inside peft."""
        assert isinstance(self, nn.Module)
        return self.named_parameters()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **settings: Any
    ) -> Any:
        """The policy with weights of its own kind or of LeRobot's, from a folder or the hub.

        Args:
            pretrained_name_or_path: folder or hub id.
            config: None: the stored one.
            settings: LeRobot's, such as `revision`.

        Raises:
            CheckpointError: if the folder holds another policy or lacks weights that would be trained.
        """
        if config is None:
            hub = {key: settings[key] for key in _HUB if key in settings}
            config = cls.config_class.from_pretrained(pretrained_name_or_path, **hub)
        parent: Any = super()
        return parent.from_pretrained(pretrained_name_or_path, config=config, **settings)


def check_loaded(policy: nn.Module, missing: Sequence[str], file: str | Path) -> None:
    """Refuse a file that leaves trainable parameters as they were initialised.

    Args:
        policy: after loading.
        missing: names that the file lacks.
        file: to be named.

    Raises:
        CheckpointError: naming the first one.
    """
    trained = {name for name, param in policy.named_parameters() if param.requires_grad}
    lacking = sorted(trained.intersection(missing))
    if lacking:
        raise CheckpointError(
            f"{file} lacks {len(lacking)} of {len(trained)} trainable parameters, first {lacking[0]}; "
            "is it of this policy, and are the sizes in its config the same?"
        )


def freeze_unused(model: nn.Module, patterns: Sequence[str]) -> dict[str, int]:
    """Stop training what no loss reaches: an optimizer would hold state for it, or decay it for nothing.

    Args:
        model: any.
        patterns: regular expressions for names.

    Returns:
        Names and numbers of values of what they match.
    """
    unused = {
        name: param for name, param in model.named_parameters() if any(re.search(pattern, name) for pattern in patterns)
    }
    for param in unused.values():
        param.requires_grad_(False)
    return {name: param.numel() for name, param in unused.items()}


def denoising(model: Any, pad: Tensor, cache: Any) -> Velocity:
    """The velocity of noisy actions by LeRobot's denoising step, over observations that were read once.

    Args:
        model: LeRobot's network inside of a policy.
        pad: (B, L), which tokens of the observations are real.
        cache: their keys and values.
    """

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        return model.denoise_step(prefix_pad_masks=pad, past_key_values=cache, x_t=x, timestep=time).float()

    return velocity
