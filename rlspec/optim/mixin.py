"""The optimizer inside a Hugging Face trainer, TRL's included, without a line of training code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim.build import build_optimizer
from rlspec.optim.engine.optimizer import SpectralOptimizer

ARGUMENTS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "adam_beta1 and adam_beta2",
    "eps": "adam_epsilon",
}
"""What `build_optimizer` takes -> the names in the trainer's arguments, from which it comes."""


class SpectralTrainerMixin:
    """Stands before a trainer and builds its optimizer by the symmetry of the model that is trained:

        class MyTrainer(SpectralTrainerMixin, SFTTrainer): ...

        MyTrainer(model, args=SFTConfig(learning_rate=1e-4), spectral={"rule": "muon", "roles": {"mlp": "pion"}}, ...)

    Learning rate, weight decay, betas and epsilon are the trainer's arguments, so that its schedulers and logs mean
    what they say. In the steps that are logged, the optimizer's numbers per role are logged as `optim/<role>/<name>`.

    Args (keyword-only, the rest goes to the trainer):
        spectral: all other arguments of `rlspec.optim.build_optimizer`.

    Raises:
        ConfigError: if an argument of the trainer chooses another optimizer, which would be ignored.
    """  # noqa: D415

    args: Any
    model: Any
    state: Any
    optimizer: Any

    def __init__(self, *args: Any, spectral: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        for name, argument in ARGUMENTS.items():
            if name in (spectral or {}):
                raise ConfigError(f"spectral: {name} comes from the trainer's arguments; set {argument} there")
        self._spectral = dict(spectral or {})
        super().__init__(*args, **kwargs)
        _refuse_other_optimizers(self)

    @property
    def spectral_optimizer(self) -> SpectralOptimizer:
        """The optimizer itself, without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def build_spectral_optimizer(self, model: nn.Module) -> SpectralOptimizer:
        """The optimizer of `model`; a subclass may build it otherwise."""
        args = self.args
        return build_optimizer(
            model,
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            **self._spectral,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer from the symmetry map of the model that is trained; the trainer calls it."""
        if self.optimizer is None:
            optimizer = self.build_spectral_optimizer(self.model if model is None else model)
            optimizer.register_step_pre_hook(self._ask_for_telemetry)
            if getattr(self.args, "world_size", 1) > 1:  # DDP; of a model that is sharded later it is not asked
                optimizer.process_group = torch.distributed.group.WORLD
            self.optimizer = optimizer
        return self.optimizer

    def step_numbers(self) -> dict[str, float]:
        """What is logged of a step besides the trainer's own numbers; a subclass may add to it."""
        return optimizer_numbers(self.spectral_optimizer)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the optimizer's numbers to the log of a training step; those of evaluations have no `loss`."""
        if "loss" in logs:
            logs.update(self.step_numbers())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _ask_for_telemetry(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if _will_be_logged(self.args, self.state):
            assert isinstance(optimizer, SpectralOptimizer)
            optimizer.collect_telemetry = True


def optimizer_numbers(optimizer: SpectralOptimizer) -> dict[str, float]:
    """The newest telemetry, and how many steps were left out because every gradient was 0, once there are any."""
    zero = optimizer.zero_steps()
    return metric_names(optimizer.telemetry()) | ({"optim/zero_steps": float(zero)} if zero else {})


def metric_names(telemetry: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Numbers by role under the names that they are logged by."""
    return {f"optim/{role}/{name}": value for role, values in telemetry.items() for name, value in values.items()}


def _will_be_logged(args: Any, state: Any) -> bool:
    """Whether the trainer logs after the step about to be taken, which `state.global_step` does not count yet."""
    step = state.global_step + 1
    if step == 1 and args.logging_first_step:
        return True
    if args.logging_strategy == "epoch":  # whole epochs: the last step of each
        return step == state.max_steps or step % max(1, round(state.max_steps / max(1, state.num_train_epochs))) == 0
    return args.logging_strategy == "steps" and step % max(1, int(state.logging_steps)) == 0


def _refuse_other_optimizers(trainer: Any) -> None:
    remedy = "leave it out and name the rule by spectral={'rule': ...}, or use the trainer without SpectralTrainerMixin"
    if trainer.optimizer is not None:
        raise ConfigError(f"optimizers=({type(trainer.optimizer).__name__}, ...) would be ignored; {remedy}")
    if getattr(trainer, "optimizer_cls_and_kwargs", None) is not None:
        raise ConfigError(f"optimizer_cls_and_kwargs would be ignored; {remedy}")
    defaults = {entry.name: entry.default for entry in dataclasses.fields(trainer.args)}
    for name in ("optim", "optim_args", "optim_target_modules"):
        value = getattr(trainer.args, name, None)
        if value != defaults.get(name, value):
            said = getattr(value, "value", value)
            raise ConfigError(f"{name}={said!r} in the trainer's arguments would be ignored; {remedy}")
