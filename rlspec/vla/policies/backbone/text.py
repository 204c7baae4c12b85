"""Text without tokenizer files: bytes that know their place in a word, and words that are the sum of their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn

from rlspec.contract.features import TASK
from rlspec.errors import DataError

PLACES = 16
"""Places in a word that are told apart; later bytes share the last one."""

VOCABULARY = 256 * PLACES


def encode(text: str) -> list[int]:
    """Ids 256 * place + byte of the text's words, in lower case and without spaces; ids below 256 begin a word."""
    return [
        256 * min(place, PLACES - 1) + byte
        for word in text.lower().split()
        for place, byte in enumerate(word.encode("utf-8"))
    ]


@dataclass
@ProcessorStepRegistry.register(name="rlspec_byte_text")
class ByteTextProcessorStep(ObservationProcessorStep):
    """Turns the task of a transition into padded byte ids and their mask, both (B, L).

    Attributes:
        max_length: bytes kept of each text.
        padding_side: "right" or "left".
    """

    max_length: int = 96
    padding_side: str = "right"

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Add tokens and mask.

        Raises:
            DataError: if there is no task, or one without a word.
        """
        ids, mask = self.encode_batch(self._tasks())
        device = next((value.device for value in observation.values() if isinstance(value, Tensor)), None)
        added = {OBS_LANGUAGE_TOKENS: ids.to(device), OBS_LANGUAGE_ATTENTION_MASK: mask.to(device)}
        return {**observation, **added}

    def encode_batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L) int64 and mask (B, L) bool of texts, padded to the longest."""
        rows = [encode(text)[: self.max_length] for text in texts]
        length = max(map(len, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            place = slice(0, len(row)) if self.padding_side == "right" else slice(length - len(row), length)
            ids[index, place] = torch.tensor(row, dtype=torch.int64)
            mask[index, place] = True
        return ids, mask

    def get_config(self) -> dict[str, Any]:
        """What rebuilds this step."""
        return {"max_length": self.max_length, "padding_side": self.padding_side}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Add the features of tokens and mask."""
        feature = PolicyFeature(type=FeatureType.LANGUAGE, shape=(self.max_length,))
        for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK):
            features[PipelineFeatureType.OBSERVATION].setdefault(key, feature)
        return features

    def _tasks(self) -> list[str]:
        task = (self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get(TASK)
        tasks = [task] if isinstance(task, str) else list(task or ())
        if not tasks or not all(isinstance(text, str) and text.strip() for text in tasks):
            raise DataError(f"task: every sample needs an instruction, and got {task!r}; give it as text")
        return tasks


def embed_words(table: nn.Embedding, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the embeddings of the bytes of each word.

    Words are few and, as sums of vectors that know byte and place, linearly separable at once; bytes one by one would
    have to be assembled by attention first.

    Args:
        table: of byte ids.
        ids: (B, L) as `encode` gives them.
        mask: (B, L), False where padded.

    Returns:
        Words (B, W, D) and their mask (B, W), padded on the right to the largest number of words.
    """
    word = (((ids < 256) & mask).cumsum(1) - 1).clamp(min=0)
    count = int(word.max()) + 1
    vectors = table(ids) * mask[..., None]
    words = vectors.new_zeros(ids.shape[0], count, vectors.shape[-1])
    words = words.scatter_add(1, word[..., None].expand_as(vectors), vectors)
    last = word.masked_fill(~mask, 0).amax(1, keepdim=True)
    return words, torch.arange(count, device=ids.device)[None] <= last
