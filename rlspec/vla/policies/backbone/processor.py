"""Pre- and postprocessors of both policies."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStep,
    TokenizerProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)

from rlspec.vla.policies.backbone.prompt import PromptProcessorStep
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.text import ByteTextProcessorStep

Pipelines = tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]


def make_processors(config: BackbonePolicyConfig, dataset_stats: dict[str, Any] | None) -> Pipelines:
    """Rename, add the batch axis, turn the task into ids, move and normalise; and back for actions."""
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations, steps.add_batch_dim, *_text_steps(config), steps.to_device, steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )  # fmt: skip


def _text_steps(config: BackbonePolicyConfig) -> list[ProcessorStep]:
    side = config.tokenizer_padding_side
    if config.size == "tiny":
        return [ByteTextProcessorStep(max_length=config.max_text_length, padding_side=side)]
    ids = TokenizerProcessorStep(
        tokenizer_name=config.vlm_name or config.text_name,
        max_length=config.max_text_length,
        padding_side=side,
        padding="longest",
    )
    return [ids] if config.prompt is None else [PromptProcessorStep(config.prompt), ids]
