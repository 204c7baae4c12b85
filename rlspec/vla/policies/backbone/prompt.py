"""The words around an instruction that a pretrained model was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import ComplementaryDataProcessorStep, ProcessorStepRegistry

from rlspec.contract.features import TASK


@dataclass
@ProcessorStepRegistry.register(name="rlspec_prompt")
class PromptProcessorStep(ComplementaryDataProcessorStep):
    """Puts the task of a transition into a prompt.

    Attributes:
        prompt: with {task} for the task in lower case.
    """

    prompt: str = "{task}"

    def complementary_data(self, complementary_data: dict[str, Any]) -> dict[str, Any]:
        """One text, or a list of them."""
        task = complementary_data.get(TASK)
        if isinstance(task, str):
            return {**complementary_data, TASK: self._said(task)}
        return {**complementary_data, TASK: [self._said(each) for each in task or ()]}

    def _said(self, task: str) -> str:
        return self.prompt.replace("{task}", task.lower())

    def get_config(self) -> dict[str, Any]:
        """What rebuilds this step."""
        return {"prompt": self.prompt}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """As they are."""
        return features
