"""Text as bytes, masks and positions of the backbone: padding changes nothing, text and images do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grounding import features, make_scenes
from lerobot.processor import ProcessorStepRegistry
from torch import nn

from rlspec.errors import ConfigError, DataError
from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.adapter.modeling_adapter import RlspecAdapterPolicy
from rlspec.vla.policies.backbone.backbone import attention_mask, count_positions
from rlspec.vla.policies.backbone.text import VOCABULARY, ByteTextProcessorStep, embed_words, encode

TEXTS = ["push the cube", "pick up the red cube and put it away"]


def test_ids_tell_byte_and_place_in_the_word() -> None:
    assert encode("Go é") == [ord("g"), 256 + ord("o"), 0xC3, 256 + 0xA9]
    assert max(encode("x" * 40)) < VOCABULARY


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_word_is_the_sum_of_its_bytes_wherever_padding_stands(side: str) -> None:
    table = nn.Embedding(VOCABULARY, 8)
    ids, mask = ByteTextProcessorStep(padding_side=side).encode_batch(TEXTS)
    words, seen = embed_words(table, ids, mask)
    assert seen.sum(1).tolist() == [3, 9]
    for row, text in enumerate(TEXTS):
        for column, word in enumerate(text.split()):
            expected = sum(table(torch.tensor(each)) for each in encode(word))
            torch.testing.assert_close(words[row, column], expected)


def test_texts_are_cut_to_the_longest_that_fits() -> None:
    ids, mask = ByteTextProcessorStep(max_length=5).encode_batch(["abcdefgh"])
    assert ids.shape == (1, 5) and mask.all()


@pytest.mark.parametrize("task", [None, "", ["pick", " "]])
def test_a_sample_without_instruction_is_refused(task: Any) -> None:
    step = ProcessorStepRegistry.get("rlspec_byte_text")()
    transition = {"observation": {}, "complementary_data": {"task": task}}
    with pytest.raises(DataError, match="every sample needs an instruction"):
        step(transition)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_who_sees_whom(bidirectional: bool) -> None:
    """Against a loop over all pairs."""
    mask = torch.tensor([[True, True, False, True]])
    allowed = attention_mask(mask, 2, bidirectional)[0, 0]
    for one in range(6):
        for other in range(6):
            real = other >= 4 or bool(mask[0, other])
            before = bidirectional or other <= one
            reaches = (one >= 4) or (other < 4 and before)
            assert bool(allowed[one, other]) == ((real and reaches) or one == other), (one, other)
    assert count_positions(mask, 2)[0, [0, 1, 3, 4, 5]].tolist() == [0, 1, 2, 3, 4]


def build(**settings: Any) -> RlspecAdapterPolicy:
    torch.manual_seed(0)
    inputs, outputs = features(64)
    given = {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}
    return RlspecAdapterPolicy(RlspecAdapterConfig(**{**given, "image_size": 64, **settings})).eval()


def sample(side: str = "right") -> dict[str, Any]:
    batch: dict[str, Any] = make_scenes(2, 1, 0, 64).batch(torch.arange(2))
    ids, mask = ByteTextProcessorStep(padding_side=side).encode_batch(TEXTS)
    return batch | {"observation.language.tokens": ids, "observation.language.attention_mask": mask}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_changes_nothing(bidirectional: bool) -> None:
    policy = build(bidirectional=bidirectional, num_queries=3)
    right = policy.predict_action_chunk(sample("right"))
    torch.testing.assert_close(policy.predict_action_chunk(sample("left")), right, rtol=1e-4, atol=1e-5)
    short = sample()
    alone = {key: value[:1] for key, value in short.items()}
    length = int(short["observation.language.attention_mask"][0].sum())
    for key in ("observation.language.tokens", "observation.language.attention_mask"):
        alone[key] = alone[key][:, :length]
    torch.testing.assert_close(policy.predict_action_chunk(alone)[0], right[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", ["language.tokens", "images.external", "images.wrist", "state"])
def test_every_input_matters(key: str) -> None:
    policy, batch = build(), sample()
    first = policy.predict_action_chunk(batch)
    changed = batch[f"observation.{key}"].clone()
    changed[1] = changed[1].flip(-1) if key != "state" else changed[1] + 1
    if key == "language.tokens":  # the same bytes in other places are other words
        changed[1] = torch.tensor(encode(" ".join(reversed(TEXTS[1].split()))))
    second = policy.predict_action_chunk({**batch, f"observation.{key}": changed})
    torch.testing.assert_close(second[0], first[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(second[1], first[1], atol=1e-4)


def test_without_proprioception_the_state_is_not_read() -> None:
    policy, batch = build(use_proprio=False), sample()
    del batch["observation.state"]
    assert policy.predict_action_chunk(batch).isfinite().all()
    assert not [name for name, _ in policy.named_parameters() if "proprio" in name]


def test_bytes_are_pictures_too() -> None:
    policy, batch = build(), sample()
    expected = policy.predict_action_chunk(batch)
    for name in ("external", "wrist"):
        batch[f"observation.images.{name}"] = (batch[f"observation.images.{name}"] * 255).round().to(torch.uint8)
    torch.testing.assert_close(policy.predict_action_chunk(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [[0, 1, 2], [2]])
def test_the_head_has_a_block_for_each_layer_that_it_reads(layers: list[int]) -> None:
    policy = build(bridge_layers=layers)
    assert len(policy.model.action_head.blocks) == len(layers)
    assert policy.predict_action_chunk(sample()).isfinite().all()


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"bridge_layers=\[3\] must lie between 0 and 2"):
        build(bridge_layers=[3])


@pytest.mark.parametrize(("part", "frozen"), [("train_vision", "vision_tower"), ("train_language", "language_model")])
def test_frozen_parts_are_frozen_and_no_others(part: str, frozen: str) -> None:
    names = {name: param.requires_grad for name, param in build(**{part: False}).named_parameters()}
    assert all(trained != (f".{frozen}." in name) for name, trained in names.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_gives_a_finite_float32_loss(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype):
        loss, _ = build()(sample())
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
