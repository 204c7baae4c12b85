"""The optimizer inside Hugging Face's Trainer and TRL's, on real, tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.mixin import SpectralTrainerMixin
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer


class SpectralTrainer(SpectralTrainerMixin, Trainer):
    pass


class SpectralSFT(SpectralTrainerMixin, SFTTrainer):
    pass


class SpectralGRPO(SpectralTrainerMixin, GRPOTrainer):
    pass


def rows(count: int = 16) -> Dataset:
    tokens = torch.randint(3, 200, (count, 12), generator=torch.Generator().manual_seed(3)).tolist()
    return Dataset.from_dict({"input_ids": tokens, "labels": tokens})


EPOCHS = {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 8}
QUICK = {"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "save_strategy": "no", "report_to": []}


def trainer(
    model: nn.Module, folder: Path, *, spectral: dict[str, Any] | None = None, extra: Any = None, **knobs: Any
) -> Any:
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **(QUICK | knobs))
    return SpectralTrainer(
        model=model, args=arguments, train_dataset=rows(), spectral={"rule": "pion"} | (spectral or {}), **(extra or {})
    )


def logged(instance: Any) -> list[dict[str, float]]:
    return [entry for entry in instance.state.log_history if "loss" in entry]


def test_the_trainers_arguments_are_the_optimizers_settings(tiny_qwen3: Callable[..., Any], tmp_path: Path) -> None:
    knobs = {"learning_rate": 3e-4, "weight_decay": 0.02, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-7}
    built = trainer(tiny_qwen3(), tmp_path, spectral={"promotion_steps": 2}, **knobs)
    optimizer = built.create_optimizer()
    assert isinstance(optimizer, SpectralOptimizer) and built.create_optimizer() is optimizer
    assert {group["rule"] for group in optimizer.param_groups} == {"pion", "adamw"}
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.9), 1e-7)
        assert group["promotion_steps"] == 2
        assert group["weight_decay"] == (0.0 if group["role"] == "norm" else 0.02)
    claimed = {name for group in optimizer.param_groups for name in group["param_names"]}
    assert claimed == {name for name, _ in built.model.named_parameters()}


def test_a_real_trainer_trains_and_logs_every_role(tiny_qwen3: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_qwen3()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    run = trainer(model, tmp_path, spectral={"rule": "muon"}, learning_rate=1e-2, max_steps=16)
    run.train()
    assert isinstance(run.spectral_optimizer, SpectralOptimizer) and run.optimizer is not run.spectral_optimizer
    assert all(not torch.equal(before[name], param) for name, param in model.named_parameters())
    history = logged(run)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    for role in ("attention.q", "mlp.down", "embed"):
        assert all(entry[f"optim/{role}/change_rms"] > 0 for entry in history[:-1])  # the last learning rate is 0
    assert not any(key.startswith("optim/") for key in run.state.log_history[-1])  # the summary at the end


def steps_with_telemetry(run: Any, limit: int) -> list[int]:
    asked: list[bool] = []
    optimizer = run.create_optimizer()
    optimizer.register_step_pre_hook(lambda *_: asked.append(optimizer.collect_telemetry))
    run.train()
    assert len(asked) == limit
    return [step for step, is_asked in enumerate(asked, 1) if is_asked]


@pytest.mark.parametrize(
    ("knobs", "steps"),
    [
        ({"logging_steps": 2}, [2, 4]),
        ({"logging_steps": 3, "logging_first_step": True}, [1, 3]),
        ({"logging_steps": 0.5}, [2, 4]),
        ({"logging_strategy": "no"}, []),
        (EPOCHS, [2, 4]),
    ],
)
def test_telemetry_is_collected_in_logged_steps_only(
    tiny_qwen3: Callable[..., Any], tmp_path: Path, knobs: dict[str, Any], steps: list[int]
) -> None:
    run = trainer(tiny_qwen3(num_hidden_layers=1), tmp_path, **knobs)
    assert steps_with_telemetry(run, 4) == steps
    shown = [entry["step"] for entry in logged(run)]
    assert shown == steps and all("optim/attention.q/pass_energy" in entry for entry in logged(run))


def test_telemetry_counts_optimizer_steps_and_not_micro_batches(tiny_qwen3: Callable[..., Any], tmp_path: Path) -> None:
    run = trainer(tiny_qwen3(num_hidden_layers=1), tmp_path, logging_steps=2, gradient_accumulation_steps=2)
    assert steps_with_telemetry(run, 4) == [2, 4]


def test_a_resumed_run_is_the_run_that_never_stopped_bit_for_bit(
    tiny_qwen3: Callable[..., Any], tmp_path: Path
) -> None:
    knobs = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3, "weight_decay": 0.1}
    whole = trainer(tiny_qwen3(), tmp_path / "whole", **knobs)
    whole.train()
    torch.manual_seed(99)
    resumed = trainer(tiny_qwen3(), tmp_path / "resumed", **knobs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert [entry["step"] for entry in logged(resumed)] == [1, 2, 3, 4, 5, 6]
    assert logged(resumed)[-1] == logged(whole)[-1]
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    first, second = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert first.keys() == second.keys() and len(first) == len(list(whole.model.parameters()))
    for index, state in first.items():
        assert all(torch.equal(value, second[index][key]) for key, value in state.items())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0)


@pytest.mark.parametrize(
    ("knobs", "extra", "offender"),
    [
        ({"optim": "sgd"}, lambda model: {}, r"optim='sgd'"),
        ({"optim_args": "a=1"}, lambda model: {}, r"optim_args='a=1'"),
        ({}, lambda model: {"optimizers": (optimizer_of(model), None)}, r"optimizers=\(SGD"),
        ({}, lambda model: {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1.0})}, "optimizer_cls_and_kwargs"),
    ],
)
def test_another_optimizer_is_refused_because_it_would_be_ignored(
    tiny_qwen3: Callable[..., Any], tmp_path: Path, knobs: dict[str, Any], extra: Any, offender: str
) -> None:
    model = tiny_qwen3(num_hidden_layers=1)
    with pytest.raises(ConfigError, match=rf"{offender}.* would be ignored; leave it out and name the rule"):
        trainer(model, tmp_path, extra=extra(model), **knobs)


def test_a_scheduler_of_ones_own_is_kept(tiny_qwen3: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_qwen3(num_hidden_layers=1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer_of(model), lambda _: 1.0)
    assert trainer(model, tmp_path, extra={"optimizers": (None, scheduler)}).lr_scheduler is scheduler


@pytest.mark.parametrize("name", ["lr", "weight_decay", "betas", "eps"])
def test_settings_that_the_trainers_arguments_have_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"spectral: {name} comes from the trainer's arguments"):
        trainer(nn.Linear(2, 2), tmp_path, spectral={name: 1.0})


def test_a_mistake_in_spectral_is_named_by_the_builder(tiny_qwen3: Callable[..., Any], tmp_path: Path) -> None:
    run = trainer(tiny_qwen3(num_hidden_layers=1), tmp_path, spectral={"rule": "mion"})
    with pytest.raises(ConfigError, match="unknown optimizer rule 'mion'"):
        run.train()


@pytest.mark.filterwarnings("ignore:rule muon updates nothing")
def test_trls_sft_trainer_updates_lora_pairs_together(tiny_qwen3: Callable[..., Any], tmp_path: Path) -> None:
    from peft import LoraConfig

    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, learning_rate=2e-2, max_length=64,
        lr_scheduler_type="constant", **(QUICK | {"max_steps": 12, "per_device_train_batch_size": 4}),
    )  # fmt: skip
    run = SpectralSFT(
        model=tiny_qwen3(vocab_size=263),
        args=arguments,
        train_dataset=Dataset.from_list([{"text": f"{a} and {a} make {2 * a}"} for a in range(8)]),
        processing_class=build_byte_tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
        spectral={"rule": "muon", "roles": {"lora": "lora_muon"}, "momentum": 0.9},
    )
    run.train()
    groups = run.spectral_optimizer.param_groups
    assert {group["rule"] for group in groups} == {"lora_muon"} and {group["scaling"] for group in groups} == {2.0}
    names = [name for group in groups for name in group["param_names"]]
    assert len(names) == 2 * 3 * 2  # A and B of three projections in two layers
    for a, b in zip(names[0::2], names[1::2], strict=True):
        assert "lora_A" in a and b == a.replace("lora_A", "lora_B")
    history = logged(run)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert all(entry["optim/lora.down/change_rms"] > 0 for entry in history if "optim/lora.down/change_rms" in entry)
    assert "adapter_model.safetensors" in saved_adapter(run, tmp_path / "adapter")


def saved_adapter(run: Any, folder: Path) -> set[str]:
    run.save_model(str(folder))
    return {path.name for path in folder.iterdir()}


def test_trls_grpo_trainer_takes_steps(tiny_qwen3: Callable[..., Any], tmp_path: Path) -> None:
    arguments = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, learning_rate=1e-3, beta=0.0,
        num_generations=4, max_completion_length=8, **(QUICK | {"max_steps": 2, "per_device_train_batch_size": 4}),
    )  # fmt: skip
    model = tiny_qwen3(vocab_size=263, pad_token_id=0)
    run = SpectralGRPO(
        model=model,
        reward_funcs=lambda completion_ids, **_: [float(len(set(ids))) for ids in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "1+1="}] * 4),
        processing_class=build_byte_tokenizer(),
        spectral={"rule": "pion", "promotion_steps": 1},
    )
    before = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    run.train()
    assert not torch.equal(before, model.model.layers[0].mlp.down_proj.weight)
    assert [entry["step"] for entry in logged(run)] == [1, 2]
    for entry in logged(run):
        assert "reward" in entry and entry["optim/mlp.down/pass_energy"] > 0
    json.dumps(run.state.log_history)  # what the trainer writes into its checkpoints
