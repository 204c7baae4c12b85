"""The losses that the trainers really compute, against plain Python loops and TRL's own GMPO where that is right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from rlspec.optim import SpectralOptimizer, build_optimizer
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.training.trainers import SpectralGMPOTrainer, SpectralGRPOTrainer
from rlspec.rlvr.training.zero_advantages import informative_first

EPSILON, EPSILON_HIGH = 0.2, 0.28


def policy() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16, intermediate_size=64, vocab_size=263, pad_token_id=0))


def trainer(kind: type, folder: Path, *, skip_zero_advantages: bool = False, **knobs: Any) -> Any:
    config = GMPOConfig if kind is GMPOTrainer else GRPOConfig
    arguments = {"per_device_train_batch_size": 4, "num_generations": 4, "max_steps": 4, "report_to": [], "bf16": False}
    args = config(output_dir=str(folder), use_cpu=True, **{**arguments, **knobs})
    extras = {}
    if kind is not GMPOTrainer:
        extras = {"optimizer_factory": build_optimizer, "checkpoint_extras": lambda _: {}, "keep_last": 1}
        extras["skip_zero_advantages"] = skip_zero_advantages
    return kind(
        model=policy(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1=?"}]}] * 4),
        processing_class=build_byte_tokenizer(),
        **extras,
    )


def block(spread: float = 0.7) -> dict[str, Tensor]:
    """Four rollouts of unequal length, sampled from a policy that has moved since."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
    return {
        "prompt_ids": torch.randint(3, 200, (4, 3), generator=generator),
        "prompt_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_ids": torch.randint(3, 200, (4, 4), generator=generator),
        "completion_mask": mask,
        "advantages": torch.tensor([1.2, -0.8, 0.4, -0.8]),
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": -5.6 + spread * torch.randn(4, 4, generator=generator),
    }


def token_log_probabilities(model: Any, inputs: dict[str, Tensor]) -> list[list[float]]:
    """The model's own, sequence by sequence, without padding or masks."""
    rows = []
    for prompt, completion in zip(inputs["prompt_ids"], inputs["completion_ids"], strict=True):
        with torch.no_grad():
            logits = model(torch.cat([prompt, completion])[None]).logits[0].double()
        scores = logits.log_softmax(-1)
        start = len(prompt) - 1
        rows.append([scores[start + position, token].item() for position, token in enumerate(completion)])
    return rows


def plain_grpo(model: Any, inputs: dict[str, Tensor]) -> float:
    """DAPO's token mean over the batch of PPO's clipped objective, clip-higher."""
    logps, total, count = token_log_probabilities(model, inputs), 0.0, 0
    for row in range(4):
        advantage = inputs["advantages"][row].item()
        for token in range(4):
            if inputs["completion_mask"][row, token]:
                ratio = math.exp(logps[row][token] - inputs["old_per_token_logps"][row, token].item())
                clipped = min(max(ratio, 1 - EPSILON), 1 + EPSILON_HIGH)
                total -= min(ratio * advantage, clipped * advantage)
                count += 1
    return total / count


def plain_gmpo(model: Any, inputs: dict[str, Tensor], low: float = 0.4, high: float = 0.4) -> float:
    logps, losses = token_log_probabilities(model, inputs), []
    for row in range(4):
        advantage, product, count = inputs["advantages"][row].item(), 1.0, 0
        for token in range(4):
            if inputs["completion_mask"][row, token]:
                ratio = math.exp(logps[row][token] - inputs["old_per_token_logps"][row, token].item())
                product *= min(ratio, math.exp(high)) if advantage > 0 else max(ratio, math.exp(-low))
                count += 1
        losses.append(-advantage * product ** (1 / count))
    return sum(losses) / 4


def loss_of(instance: Any, inputs: dict[str, Tensor]) -> Tensor:
    instance.model.train()
    instance.current_gradient_accumulation_steps = 1
    return instance._compute_loss(instance.model, inputs)


def test_grpo_is_the_clipped_token_mean(tmp_path: Path) -> None:
    grpo = trainer(SpectralGRPOTrainer, tmp_path, loss_type="dapo", epsilon=EPSILON, epsilon_high=EPSILON_HIGH)
    assert loss_of(grpo, block()).item() == pytest.approx(plain_grpo(grpo.model, block()), rel=1e-5)


def test_gmpo_is_the_geometric_mean(tmp_path: Path) -> None:
    gmpo = trainer(SpectralGMPOTrainer, tmp_path, epsilon=0.4, epsilon_high=0.4)
    assert loss_of(gmpo, block()).item() == pytest.approx(plain_gmpo(gmpo.model, block()), rel=1e-5)


BY_THE_MODEL = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])  # and not by a tool


@pytest.mark.parametrize(
    ("kind", "plain", "knobs"),
    [
        (SpectralGRPOTrainer, plain_grpo, {"loss_type": "dapo", "epsilon": EPSILON, "epsilon_high": EPSILON_HIGH}),
        (SpectralGMPOTrainer, plain_gmpo, {"epsilon": 0.4, "epsilon_high": 0.4}),
    ],
)
def test_what_a_tool_said_is_read_and_has_no_part_in_the_loss(
    kind: type, plain: Any, knobs: dict[str, Any], tmp_path: Path
) -> None:
    instance, inputs = trainer(kind, tmp_path, **knobs), block()
    counted = inputs["completion_mask"] * BY_THE_MODEL
    inputs |= {"tool_mask": BY_THE_MODEL, "num_items_in_batch": counted.sum()}
    loss = loss_of(instance, inputs)
    # The plain loop reads every token and counts those that the model wrote.
    assert loss.item() == pytest.approx(plain(instance.model, {**block(), "completion_mask": counted}), rel=1e-5)
    (entropy,) = instance._metrics["train"]["entropy"]
    instance._metrics["train"]["entropy"].clear()
    loss_of(instance, {**inputs, "tool_mask": torch.ones_like(BY_THE_MODEL)})
    assert instance._metrics["train"]["entropy"][0] != entropy


def test_gmpo_equals_trls_in_loss_and_gradient_where_trl_is_right(tmp_path: Path) -> None:
    """One engine, beta 0: TRL's own GMPO leaves out the correction for a separate engine, and nothing else."""
    ours = trainer(SpectralGMPOTrainer, tmp_path, epsilon=0.3, epsilon_high=0.5)
    theirs = trainer(GMPOTrainer, tmp_path, epsilon=0.3, epsilon_high=0.5)
    for instance in (ours, theirs):
        loss_of(instance, block()).backward()
    expected = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-8, msg=name)
    assert ours._metrics["train"]["clip_ratio/region_mean"] == pytest.approx(
        theirs._metrics["train"]["clip_ratio/region_mean"]
    )


def test_gmpo_applies_the_correction_for_a_separate_rollout_engine(tmp_path: Path) -> None:
    gmpo = trainer(SpectralGMPOTrainer, tmp_path, epsilon=0.4, epsilon_high=0.4)
    inputs = {**block(), "importance_sampling_ratio": torch.full((4, 4), 0.5)}
    assert loss_of(gmpo, inputs).item() == pytest.approx(0.5 * plain_gmpo(gmpo.model, block()), rel=1e-5)
    inputs["importance_sampling_ratio"] = torch.zeros(4, 1)
    assert loss_of(gmpo, inputs).item() == 0.0


def test_gmpos_penalty_is_the_mean_k3_estimate(tmp_path: Path) -> None:
    gmpo = trainer(SpectralGMPOTrainer, tmp_path, epsilon=0.4, epsilon_high=0.4)
    gmpo.beta = 0.1  # given to the constructor it would load a second model from the hub
    reference = -5.6 + 0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    inputs = {**block(), "ref_per_token_logps": reference}
    penalty = 0.0
    for row, logps in enumerate(token_log_probabilities(gmpo.model, inputs)):
        length = int(inputs["completion_mask"][row].sum())
        gaps = [reference[row, token].item() - logps[token] for token in range(length)]
        penalty += sum(math.exp(gap) - gap - 1 for gap in gaps) / length / 4
    expected = plain_gmpo(gmpo.model, inputs) + 0.1 * penalty
    assert loss_of(gmpo, inputs).item() == pytest.approx(expected, rel=1e-5)


def test_the_optimizer_is_built_from_the_model_that_is_trained(tmp_path: Path) -> None:
    grpo = trainer(SpectralGRPOTrainer, tmp_path)
    assert isinstance(grpo.create_optimizer(), SpectralOptimizer)
    claimed = {name for group in grpo.optimizer.param_groups for name in group["param_names"]}
    assert claimed == {name for name, _ in grpo.model.named_parameters()}


@pytest.mark.parametrize("kind", [SpectralGRPOTrainer, SpectralGMPOTrainer])
def test_passing_over_zero_advantages_gives_the_same_gradient_with_fewer_passes(kind: type, tmp_path: Path) -> None:
    inputs = block() | {"advantages": torch.tensor([0.0, 1.2, 0.0, -1.2])}
    found: dict[bool, tuple[int, list[Tensor]]] = {}
    for skips in (False, True):
        instance = trainer(
            kind, tmp_path, skip_zero_advantages=skips,
            per_device_train_batch_size=1, gradient_accumulation_steps=4, loss_type="dapo",
        )  # fmt: skip
        passes: list[int] = []
        instance.model.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        instance._generate_and_score_completions = lambda _: dict(inputs)
        instance.current_gradient_accumulation_steps = 4
        for _ in range(4):
            loss = instance.compute_loss(instance.model, instance._prepare_inputs({}))
            loss.backward()
            instance._step += 1
        found[skips] = len(passes), [param.grad.clone() for param in instance.model.parameters()]
    assert (found[False][0], found[True][0]) == (4, 2)
    for one, other in zip(found[False][1], found[True][1], strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_rows_with_an_advantage_come_first_within_their_step_and_stay_whole() -> None:
    advantages = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 0.0, 0.0, 0.0])
    rows = [{"advantages": part, "ids": 10 * part, "words": [str(v) for v in part.tolist()], "count": torch.tensor(7)}
            for part in advantages.split(2)]  # fmt: skip
    arranged = informative_first(rows, per_step=2)
    assert torch.cat([part["advantages"] for part in arranged]).tolist() == [1, 2, 0, 0, 3, 0, 0, 0]
    for part in arranged:
        assert part["ids"].tolist() == [10 * value for value in part["advantages"].tolist()]
        assert part["words"] == [str(value) for value in part["advantages"].tolist()]
        assert part["count"] == 7


@pytest.mark.parametrize("bf16", [True, False])
def test_weights_are_cast_once_for_all_tokens_of_an_answer(tmp_path: Path, bf16: bool) -> None:
    """Autocast forgets its casts where it ends. What was cast without gradients must not be met by the loss."""
    run = trainer(SpectralGRPOTrainer, tmp_path, bf16=bf16, max_completion_length=8, max_steps=1)
    generate, around, without = run.model.generate, [], []

    def spied(*args: Any, **kwargs: Any) -> Any:
        around.append(torch.is_autocast_enabled("cpu"))
        return generate(*args, **kwargs)

    run.model.generate = spied
    run.create_optimizer()
    run.optimizer.register_step_pre_hook(
        lambda *_: without.append([name for name, value in run.model.named_parameters() if value.grad is None])
    )
    run.train()
    assert around == [bf16]
    assert without == [[]]
