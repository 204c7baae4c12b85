"""VLA-Adapter's heads against their formulas, token by token and head by head, and in a whole policy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_adapter_policy import build, config
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer
from rlspec.vla.policies.adapter.published_head import HEADS, ProBlock, PublishedHead, SharedBlock
from rlspec.vla.policies.backbone.backbone import Hidden

WIDTH, ACTIONS, CHUNK = 32, 3, 5


def hidden(rows: int = 2, layers: int = 2) -> tuple[Hidden, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> Tensor:
        return torch.randn(rows, length, WIDTH, generator=generator, dtype=torch.float64)

    mask = torch.ones(rows, 6, dtype=torch.bool)
    mask[1, 4:] = False
    states = Hidden(tuple(draw(6) for _ in range(layers + 1)), tuple(draw(4) for _ in range(layers + 1)), mask)
    return states, draw(1)


def head(*, pro: bool) -> PublishedHead:
    torch.manual_seed(1)
    built = (
        PublishedHead(config("adapter", chunk_size=CHUNK, n_action_steps=CHUNK), [1, 2], WIDTH, ACTIONS, pro=pro)
        .double()
        .eval()
    )  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return built


def rotated(vector: Tensor, position: int) -> Tensor:
    size = len(vector)
    out = torch.empty_like(vector)
    for channel in range(size):
        angle = position * 10_000.0 ** (-2 * (channel % (size // 2)) / size)
        partner = -vector[channel + 1] if channel % 2 == 0 else vector[channel - 1]
        out[channel] = vector[channel] * math.cos(angle) + partner * math.sin(angle)
    return out


def plain_block(block: Any, tokens: Tensor, task: Tensor, adapter: Tensor) -> Tensor:
    """One row, no padding; tokens (T, D)."""
    pro = isinstance(block, ProBlock)
    size = WIDTH // HEADS
    names = {"self": tokens, "adapter": adapter, "task": task}
    out = torch.empty_like(tokens)
    for step, token in enumerate(tokens):
        mixed = []
        for index in range(HEADS):
            part = slice(index * size, (index + 1) * size)
            query = block.q_proj(token)[part]
            query = rotated(query, step) if pro else query
            logits, values = [], []
            for name, source in names.items():
                for position, vector in enumerate(source):
                    key = (getattr(block, f"k_{name}") if pro else block.k_proj)(vector)[part]
                    key = rotated(key, position) if pro else key
                    gate = torch.tanh(block.gating_factor[0]) if name == "task" else 1.0
                    logits.append(query @ key * gate / math.sqrt(size))
                    values.append((getattr(block, f"v_{name}") if pro else block.v_proj)(vector)[part])
            weights = torch.softmax(torch.stack(logits), 0)
            mixed.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
        norm, linear, _ = block.ffn
        out[step] = torch.relu(linear(norm(block.o_proj(torch.cat(mixed)) + token)))
    return out


@pytest.mark.parametrize("pro", [False, True])
@torch.no_grad()
def test_the_head_is_its_formulas(pro: bool) -> None:
    built = head(pro=pro)
    states, proprio = hidden()
    actions = built(states, proprio)
    assert actions.shape == (2, CHUNK, ACTIONS)
    for row, count in enumerate((6, 4)):
        tokens = torch.relu(built.fc1(built.layer_norm1(torch.zeros(CHUNK, ACTIONS * WIDTH, dtype=torch.float64))))
        for block, layer in zip(built.mlp_resnet_blocks, (1, 2), strict=True):
            adapter = torch.cat([states.queries[layer][row], proprio[row]])
            tokens = plain_block(block, tokens, states.task[layer][row, :count], adapter)
        torch.testing.assert_close(actions[row], built.fc2(built.layer_norm2(tokens)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_closed_gate_weighs_the_task_evenly_and_a_disturbance_comes_in_training_alone() -> None:
    built = head(pro=False)
    states, proprio = hidden()
    assert torch.equal(built(states, proprio), built(states, proprio))
    first = built.train()(states, proprio)
    assert not torch.equal(first, built(states, proprio))
    block = SharedBlock(WIDTH).double()
    assert float(block.gating_factor) == 0.0
    tokens = torch.randn(1, 2, WIDTH, dtype=torch.float64)
    swapped = states.task[1][:1].roll(1, 1)
    args = states.mask[:1], states.queries[1][:1]
    torch.testing.assert_close(block(tokens, states.task[1][:1], *args), block(tokens, swapped, *args))
    other = block(tokens, states.task[1][:1] * 2, *args)
    assert not torch.allclose(other, block(tokens, swapped, *args))


@pytest.mark.parametrize("kind", ["vla_adapter", "vla_adapter_pro"])
def test_every_matrix_of_a_published_head_has_its_heads(kind: str) -> None:
    policy = build("adapter", head=kind)
    optimizer = build_optimizer(policy, rule="pion", lr=1e-3)
    assert optimizer.symmetry is not None
    blocks = {
        spec.name.rpartition("blocks.0.")[2]: spec for spec in optimizer.symmetry if "resnet_blocks.0" in spec.name
    }
    assert blocks["q_proj.weight"].rule == "pion" and blocks["q_proj.weight"].num_heads == HEADS
    assert (blocks["o_proj.weight"].num_heads, blocks["o_proj.weight"].head_axis) == (HEADS, 1)
    assert blocks["o_proj.weight"].rule == blocks["ffn.1.weight"].rule == "pion"
    output = next(spec for spec in optimizer.symmetry if spec.name.endswith("action_head.fc2.weight"))
    assert output.rule == "adamw"


def test_an_unknown_head_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="head='vla_adaptor'; did you mean vla_adapter"):
        config("adapter", head="vla_adaptor")
