"""The optimizer that our policies ask LeRobot for: that of recipes/optim/vla_pion.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlspec.config.rules import preset
from rlspec.vla.optimizers import SpectralOptimizerConfig

_VLA_PION = preset("vla_pion")
_OF_THE_POLICY = ("lr", "betas", "eps", "weight_decay", "grad_clip_norm")
"""Settings of the optimizer for which a policy's config may have a value, as `optimizer_<name>`."""


@dataclass
class SpectralPreset:
    """A config whose optimizer preset is ours: Muon for vision and language, Pion for actions, AdamW for the rest.

    Attributes:
        optimizer_rule: of matrices of which `optimizer_roles` say nothing.
        optimizer_roles: a preset of the symmetry map; "": none.
        optimizer_promotion_steps: k_p of Pion's filter; "auto": per block, the fewest with which something passes.
        optimizer_adjust_lr: length of a step, see `rlspec.optim.stages.scale.step_scale`.
        optimizer_paper_scale: s of the length "paper".
    """

    optimizer_rule: str = _VLA_PION["rule"]
    optimizer_roles: str = _VLA_PION["roles"]
    optimizer_promotion_steps: float | str = _VLA_PION["promotion_steps"]
    optimizer_adjust_lr: str = _VLA_PION["adjust_lr"]
    optimizer_paper_scale: float = _VLA_PION["paper_scale"]

    def get_optimizer_preset(self) -> SpectralOptimizerConfig:
        """With the learning rate, decay and clipping of this policy, and whatever else its config has of AdamW's."""
        own: dict[str, Any] = {
            name: getattr(self, f"optimizer_{name}") for name in _OF_THE_POLICY if hasattr(self, f"optimizer_{name}")
        }
        return SpectralOptimizerConfig(
            rule=self.optimizer_rule,
            roles=self.optimizer_roles or None,
            promotion_steps=self.optimizer_promotion_steps,
            adjust_lr=self.optimizer_adjust_lr,
            paper_scale=self.optimizer_paper_scale,
            **own,
        )
