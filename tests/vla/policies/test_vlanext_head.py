"""VLANeXt's head and loss against their formulas, token by token, and its states before everything else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.fft
import torch
from grounding import ACTIONS, CHUNK, features
from test_backbone_pretrained import SOURCES, batch, build, own_forward
from torch import Tensor, nn

from rlspec.contract.policies import keeps_past
from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer
from rlspec.vla.policies.backbone.backbone import Hidden
from rlspec.vla.policies.backbone.vlm import First, VisionLanguageBackbone
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig
from rlspec.vla.policies.flow.modeling_flow import RlspecFlowPolicy, follow
from rlspec.vla.policies.flow.vlanext_head import VlanextHead, frequency_loss, published_times, time_features
from rlspec.vla.policies.likelihood import distribution_of

WIDTH, SEEN, HEADS = 16, 12, 2


def settings(**more: Any) -> RlspecFlowConfig:
    inputs, outputs = features(40)
    given = {
        **SOURCES["qwen3_vl"], "image_size": 32, "size": "pretrained", "head": "vlanext", "head_width": WIDTH,
        "head_heads": HEADS, "num_queries": 3, "bridge_layers": [0, 1, 2], "num_steps": 3, "device": "cpu",
        "push_to_hub": False, "input_features": inputs, "output_features": outputs,
    }  # fmt: skip
    return RlspecFlowConfig(**{**given, **more})


def randomised(module: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module


def head() -> VlanextHead:
    return randomised(VlanextHead(settings(), [0, 1], SEEN, ACTIONS).double())  # type: ignore[no-any-return]


def hidden() -> Hidden:
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> Tensor:
        return torch.randn(2, length, SEEN, generator=generator, dtype=torch.float64)

    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return Hidden(tuple(draw(5) for _ in range(2)), tuple(draw(3) for _ in range(2)), mask)


def normed(vector: Tensor) -> Tensor:
    return (vector - vector.mean()) / torch.sqrt(((vector - vector.mean()) ** 2).mean() + 1e-6)


def plain_block(block: Any, tokens: Tensor, seen: Tensor, condition: Tensor) -> Tensor:
    """One row, no padding: tokens (T, width) and seen (L, SEEN)."""
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = block.ada_ln(nn.functional.silu(condition)).split(WIDTH)
    inside = torch.stack([normed(token) * (1 + scale) + shift for token in tokens])
    sources = torch.cat([inside, torch.stack([block.context_proj(each) for each in seen])])
    size, rows = WIDTH // HEADS, []
    for step in range(len(tokens)):
        mixed = []
        for index in range(HEADS):
            part = slice(index * size, (index + 1) * size)
            query = block.q_proj(inside[step])[part]
            logits = torch.stack([query @ block.k_proj(each)[part] / math.sqrt(size) for each in sources])
            values = torch.stack([block.v_proj(each)[part] for each in sources])
            mixed.append(torch.softmax(logits, 0) @ values)
        token = tokens[step] + gate * block.o_proj(torch.cat(mixed))
        wide = block.fc1(normed(token) * (1 + scale_mlp) + shift_mlp)
        wide = 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        rows.append(token + gate_mlp * block.fc2(wide))
    return torch.stack(rows)


@torch.no_grad()
def test_the_head_is_its_formulas() -> None:
    built, states = head(), hidden()
    noisy = torch.randn(2, CHUNK, ACTIONS, dtype=torch.float64)
    time = torch.tensor([2**-10, 2**-7], dtype=torch.float64)  # of which float32, in which times are, loses little
    velocity = built(noisy, time, built.read(states, None))
    for row, count in enumerate((5, 3)):
        waves = [1000 * float(time[row]) * 10_000 ** (-index / 128) for index in range(128)]
        wave = torch.tensor([math.cos(each) for each in waves] + [math.sin(each) for each in waves]).double()
        condition = built.time_mlp_out(nn.functional.silu(built.time_mlp_in(wave)))
        tokens = built.action_in_proj(noisy[row]) + built.pos_embed
        for block, layer in zip(built.blocks, (0, 1), strict=True):
            seen = torch.cat([states.task[layer][row, :count], states.queries[layer][row]])
            tokens = plain_block(block, tokens, seen, condition)
        shift, scale = built.ada_ln(nn.functional.silu(condition)).split(WIDTH)
        expected = torch.stack([built.action_out_proj(normed(token) * (1 + scale) + shift) for token in tokens])
        torch.testing.assert_close(velocity[row], expected, rtol=1e-5, atol=1e-5)
    late = torch.tensor([900 * 10_000 ** (-index / 128) for index in range(128)])
    waves = torch.cat([late.cos(), late.sin()])
    torch.testing.assert_close(time_features(torch.tensor([0.9]))[0], waves, rtol=1e-4, atol=2e-4)


def test_a_new_head_says_nothing_and_its_blocks_change_nothing() -> None:
    built = VlanextHead(settings(), [0, 1], SEEN, ACTIONS).double()
    noisy, time = torch.randn(2, CHUNK, ACTIONS, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    contexts = built.read(hidden(), None)
    assert not built(noisy, time, contexts).any()
    tokens, condition = torch.randn(2, CHUNK, WIDTH, dtype=torch.float64), torch.randn(2, WIDTH, dtype=torch.float64)
    assert torch.equal(built.blocks[0](tokens, contexts[0], condition), tokens)
    largest = float(built.blocks[0].context_proj.weight.detach().abs().max())  # type: ignore[union-attr]
    assert largest == pytest.approx(math.sqrt(6 / (SEEN + WIDTH)), rel=0.05), "Glorot's, uniform"


@pytest.mark.parametrize(("split", "cut"), [(0.125, 1), (0.5, 4), (0.01, 1)])
def test_the_loss_of_frequencies_is_that_of_scipys_transform(split: float, cut: int) -> None:
    errors = torch.randn(3, 8, 2, dtype=torch.float64)
    waves = torch.from_numpy(scipy.fft.dct(errors.numpy(), type=2, axis=1, norm="ortho"))
    weights = torch.tensor([5.0] * cut + [0.5] * (8 - cut)).double()[:, None]
    torch.testing.assert_close(frequency_loss(errors, split, 5.0, 0.5), (weights * waves**2).mean())


def test_training_adds_it_for_the_actions_that_the_velocity_means() -> None:
    torch.manual_seed(0)
    policy, given = randomised(RlspecFlowPolicy(settings(frequency_weight=0.1, frequency_low=5.0))), batch()
    given["action_is_pad"] = torch.zeros(2, CHUNK, dtype=torch.bool)
    given["action_is_pad"][1, 2:] = True
    noise, time = torch.randn(2, CHUNK, ACTIONS), torch.tensor([0.25, 0.8])
    seen: list[tuple[Tensor, Tensor]] = []
    policy.model.action_head.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    loss, numbers = policy(given, noise=noise, time=time)
    ((noisy, velocity),) = seen
    real = ~given["action_is_pad"][..., None]
    meant = noisy - time[:, None, None] * velocity
    plain = ((velocity - (noise - given["action"])) ** 2 * real).sum() / (real.sum() * ACTIONS)
    waves = scipy.fft.dct(((meant - given["action"]) * real).detach().numpy(), type=2, axis=1, norm="ortho")
    weights = torch.ones(CHUNK, 1)
    weights[0] = 5.0
    frequencies = (weights * torch.from_numpy(waves) ** 2).mean()
    torch.testing.assert_close(loss, plain + 0.1 * frequencies)
    assert numbers["frequency_loss"] == pytest.approx(float(frequencies), rel=1e-5)


def test_times_are_drawn_evenly_and_followed_as_published() -> None:
    policy = RlspecFlowPolicy(settings())
    torch.manual_seed(0)
    times = policy._draw_time(torch.zeros(20_000, 1, 1))
    assert [float((times < edge).float().mean()) for edge in (0.25, 0.5, 0.75)] == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.01
    )
    assert published_times(3) == pytest.approx([1.0, 0.5005, 0.001, 0.0])
    asked: list[float] = []

    def field(x: Tensor, time: Tensor) -> Tensor:
        asked.append(float(time[0]))
        return torch.ones_like(x)

    torch.testing.assert_close(follow(field, torch.ones(1, 2, 2), published_times(10)), torch.zeros(1, 2, 2))
    assert len(asked) == 10 and asked[-1] == pytest.approx(0.001)
    assert time_features(torch.zeros(1))[0, :128].eq(1).all()


@torch.no_grad()
def test_tokens_before_everything_are_read_as_words_there_would_be() -> None:
    backbone = build("qwen3_vl").model.backbone
    assert isinstance(backbone, VisionLanguageBackbone)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 1, 3, 32, 32, generator=generator) * 2 - 1
    ids, mask = torch.randint(1, 60, (2, 5), generator=generator), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    words = torch.tensor([[7, 9, 11], [7, 9, 11]])
    real = torch.tensor([[True, True, True], [False, True, True]])
    first = First(backbone.vlm.get_input_embeddings()(words), real)
    found = backbone(images, ids, mask, torch.zeros(2, 32), first)
    plain = backbone(images, ids, mask, torch.zeros(2, 32))
    assert found.mask.shape[1] == plain.mask.shape[1] + 3
    for row in range(2):
        expected = own_forward(backbone.vlm, images[row], ids[row][mask[row]], 4, before=words[row][real[row]].tolist())
        for ours, theirs in zip(found.task, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours[row][found.mask[row]], theirs[0], rtol=1e-5, atol=2e-6)


def test_the_newest_states_are_read_those_before_an_episode_are_not_and_actions_remember_them() -> None:
    policy, given = randomised(RlspecFlowPolicy(settings(state_history=3, n_action_steps=1))).eval(), batch()
    states = torch.randn(2, 3, 3)
    seen: list[First] = []
    backbone = policy.model.backbone
    forward = backbone.forward
    backbone.forward = lambda *inputs: (seen.append(inputs[-1]), forward(*inputs))[1]
    policy.predict_action_chunk({**given, "observation.state": states})
    for step in range(3):
        policy.select_action({**given, "observation.state": states[:, step]})
    whole, *one_by_one = seen
    assert whole.mask.all() and [each.mask.sum(1).tolist() for each in one_by_one] == [[1, 1], [2, 2], [3, 3]]
    torch.testing.assert_close(one_by_one[-1].tokens, whole.tokens)
    pad = torch.tensor([[True, False, False], [False, False, False]])
    policy.predict_action_chunk({**given, "observation.state": states, "observation.state_is_pad": pad})
    assert torch.equal(seen[-1].mask, ~pad)
    policy.reset()
    policy.select_action({**given, "observation.state": states[:, 0]})
    assert seen[-1].mask.sum() == 2
    assert policy.config.state_delta_indices == [-2, -1, 0]


def test_only_acting_step_by_step_remembers_states_so_that_server_and_reinforcement_refuse_it() -> None:
    policy = RlspecFlowPolicy(settings(state_history=8))
    with pytest.raises(ConfigError, match="rlspec_flow: it keeps past observations"):
        distribution_of(policy, 0.5)
    assert keeps_past(policy.config) and not keeps_past(settings())


def test_every_matrix_of_the_head_has_its_role_and_all_learn() -> None:
    policy = randomised(RlspecFlowPolicy(settings(state_history=2)))
    policy(batch())[0].backward()
    silent = [name for name, value in policy.named_parameters() if "head" in name and not value.grad.any()]
    assert not silent and policy.model.proprio_projector.weight.grad.any()
    specs = {spec.name.removeprefix("model."): spec for spec in build_optimizer(policy, lr=1e-3, rule="pion").symmetry}
    block = "action_head.blocks.0."
    assert specs[f"{block}q_proj.weight"].num_heads == specs[f"{block}o_proj.weight"].num_heads == HEADS
    assert (
        specs[f"{block}ada_ln.weight"].role == "modulation"
        and specs["action_head.action_out_proj.weight"].role == "output"
    )
    assert specs["proprio_projector.weight"].modality == "action"


def test_what_the_head_needs_is_said() -> None:
    with pytest.raises(ConfigError, match="head='vlanex'; did you mean vlanext"):
        settings(head="vlanex")
    with pytest.raises(ConfigError, match="state_history=8: only head=vlanext reads older states"):
        settings(head="bridge", state_history=8)
    with pytest.raises(ConfigError, match="head=vlanext needs a vision-language model; give vlm_name"):
        settings(size="tiny", vlm_config=None)
