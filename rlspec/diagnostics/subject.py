"""What is diagnosed: a model and the parts of its training loss, wherever they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rlspec.diagnostics.result import watched
from rlspec.display import Display
from rlspec.errors import CheckpointError, ConfigError, DataError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.kernels.layout import split_blocks
from rlspec.optim.map.spec import ParameterSpec, SymmetryMap
from rlspec.optim.map.symmetry import within

LARGEST = 1 << 24
"""Values of a matrix up to which it is looked at: embeddings of large vocabularies would take minutes."""

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Part:
    """A part of the training loss, as a step has several.

    Attributes:
        batch: whatever the subject's loss takes.
        label: what it is, for tables.
        facts: numbers that are known of it, such as a pass rate.
    """

    batch: Any
    label: str
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Subject:
    """A model with a loss that is the mean over parts.

    Attributes:
        title: what stands above tables and pictures.
        model: with gradients; nothing random in its forward pass but what a part decides itself.
        mapping: role, blocks and rule of every trainable parameter.
        parts: of the loss; each gives the same value whenever it is asked.
        unit: what a part is, in words.
        step_parts: how many parts a step of the recipe has.
        loss: scalar of a part's batch.
        represent: states (N, width) of a part before the output layer, and an integer label of each (N,).
        optimizer: the recipe's, newly built for the model.
        momenta: the stored optimizer's, by parameter name; empty where there is none.
        variances: likewise its second moments.
        checkpoints: step -> folder with the weights of the same model, oldest first.
        display: where progress is shown.
        remedy: what may be the matter where no part has a gradient.
    """

    title: str
    model: nn.Module
    mapping: SymmetryMap
    parts: Sequence[Part]
    unit: str
    step_parts: int
    loss: Callable[[Any], Tensor]
    represent: Callable[[Any], tuple[Tensor, Tensor]]
    optimizer: Callable[[nn.Module], SpectralOptimizer]
    display: Display
    remedy: str = ""
    momenta: Mapping[str, Tensor] = field(default_factory=dict)
    variances: Mapping[str, Tensor] = field(default_factory=dict)
    checkpoints: Mapping[int, Path] = field(default_factory=dict)
    role: str | None = None

    def specs(self) -> list[ParameterSpec]:
        """Matrices that are looked at: of `role` where one is given, and not larger than `LARGEST`.

        Raises:
            ConfigError: There is none.
        """
        chosen = [spec for spec in self._matrices() if spec.numel <= LARGEST]
        if not chosen and (large := self.too_large()):
            raise ConfigError(f"{', '.join(large)}: matrices of more than {LARGEST:,} values are not looked at")
        if not chosen:
            roles = ", ".join(dict.fromkeys(spec.label for spec in self.mapping if len(spec.shape) > 1))
            raise ConfigError(f"role={self.role}: no matrix has it; there are {roles}")
        return chosen

    def too_large(self) -> list[str]:
        """Roles of which some matrix is not looked at."""
        return list(dict.fromkeys(spec.label for spec in self._matrices() if spec.numel > LARGEST))

    def vectors(self) -> list[ParameterSpec]:
        """What is no matrix, of `role` where one is given."""
        matrices = {spec.name for spec in self._matrices()}
        return [spec for spec in self.mapping if self._meant(spec) and spec.name not in matrices]

    def _matrices(self) -> list[ParameterSpec]:
        return [spec for spec in self.mapping if len(spec.shape) > 1 and min(spec.block) > 1 and self._meant(spec)]

    def _meant(self, spec: ParameterSpec) -> bool:
        if self.role is None:
            return True
        return within(spec.role, self.role) or within(spec.label, self.role) or spec.modality == self.role

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        wanted = {spec.name for spec in self.mapping}
        return {name: value for name, value in self.model.named_parameters() if name in wanted}

    def gradients(self, what: str, parts: Sequence[Part] | None = None) -> Iterator[tuple[Part, dict[str, Tensor]]]:
        """Each part with its gradients by parameter name; they are the next part's once it is asked for.

        Raises:
            CheckpointError: A gradient is not finite.
            DataError: All are zero.
        """
        params, size = self.parameters(), 0.0
        for part in watched(self.parts if parts is None else parts, self.display, f"{what}: gradients of {self.unit}"):
            found = torch.autograd.grad(self.loss(part.batch), list(params.values()), allow_unused=True)
            gradients = {name: value for name, value in zip(params, found, strict=True) if value is not None}
            for name, value in gradients.items():
                self.check_finite(name, value, part)
            size += sum(float(value.abs().max()) for value in gradients.values() if value.numel())
            yield part, gradients
        if size == 0:
            raise self.no_gradient()

    def check_finite(self, name: str, gradient: Tensor, part: Part) -> None:
        """Raises CheckpointError for a gradient with NaN or Inf."""
        if not bool(torch.isfinite(gradient).all()):
            raise CheckpointError(f"{self.title}: the gradient of {name} has NaN or Inf ({part.label})")

    def no_gradient(self) -> DataError:
        """What to say where no part has one."""
        return DataError(f"{self.title}: no gradient: it is zero in every part; {self.remedy}".rstrip("; "))

    def mean_gradient(self, what: str) -> dict[str, Tensor]:
        """Of the whole loss."""
        total: dict[str, Tensor] = {}
        for _, gradients in self.gradients(what):
            add_to(total, gradients)
        return {name: value / len(self.parts) for name, value in total.items()}


def add_to(total: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add tensors by name, in place."""
    for name, value in more.items():
        if name in total:
            total[name] += value
        else:
            total[name] = value.clone()


def blocks_of(spec: ParameterSpec, tensor: Tensor) -> Tensor:
    """A parameter-shaped tensor as the blocks that its rule sees: (blocks, rows, cols)."""
    return split_blocks(tensor, spec.num_heads, spec.head_axis, spec.stacked)


def layer_of(name: str) -> int:
    """Number of the layer that a parameter's name tells; -1: none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else -1


def check_finite(model: nn.Module, source: str) -> None:
    """Refuse weights that are no numbers.

    Raises:
        CheckpointError: naming the first such parameter.
    """
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{source}: {name} has NaN or Inf; use an earlier checkpoint")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put another checkpoint's weights in place, of the same model or of its adapters.

    Raises:
        CheckpointError: It has none, or those of another model.
    """
    files = sorted([*folder.glob("model*.safetensors"), *folder.glob("adapter_model.safetensors")])
    params = dict(model.named_parameters())
    names = {re.sub(r"\.(lora_\w+)\.[^.]+(?=\.|$)", r".\1", name): name for name in params}
    found = 0
    for file in files:
        with safe_open(file, "pt") as stored, torch.no_grad():
            for key in stored.keys():  # noqa: SIM118 - no mapping
                name = key if key in params else names.get(key)
                if name is None:
                    continue
                value = stored.get_tensor(key)
                if value.shape != params[name].shape:
                    raise CheckpointError(f"{folder}: {key} has shape {tuple(value.shape)}: not the same model")
                params[name].copy_(value)
                found += 1
    if not found:
        raise CheckpointError(f"{folder}: has no weights of this model")


def stored_moments(
    folder: str | None, name: str, model: nn.Module, build: Callable[[nn.Module], SpectralOptimizer]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """First and second moments by parameter name, out of a checkpoint's optimizer; none where it holds none.

    Args:
        folder: of the checkpoint; None: there is none.
        name: of the file with the optimizer's state, alone or under the key `optimizer`.
        model: of the checkpoint.
        build: makes an optimizer of the same settings, which takes in the state.
    """
    file = Path(folder or ".") / name
    if folder is None or not file.is_file():
        return {}, {}
    content = torch.load(file, map_location=next(model.parameters()).device, weights_only=True)
    optimizer = build(model)
    optimizer.load_state_dict(content.get("optimizer", content))
    first, second = {}, {}
    for group in optimizer.param_groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            kept = optimizer.state.get(param, {})
            for key in ("momentum_buffer", "exp_avg"):
                if key in kept:
                    first[name] = kept[key]
            if "exp_avg_sq" in kept:
                second[name] = kept["exp_avg_sq"]
    return first, second
