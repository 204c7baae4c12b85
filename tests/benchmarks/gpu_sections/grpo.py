"""GRPO steps of a random Qwen3-0.6B with rlspec's own trainer: rollout, training, optimizer, peak memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from gpu_sections.part import Part, Setup, one_line
from gpu_sections.timing import MIB, release, synchronise
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl import GRPOConfig

from rlspec.optim import build_optimizer
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.training.trainers import SpectralGRPOTrainer

QWEN3_06B = {
    "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
TINY = QWEN3_06B | {
    "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 64,
}  # fmt: skip
STEPS = 3
RUNS = (
    ("pion", torch.bfloat16),
    ("adamw", torch.bfloat16),
    ("muon", torch.bfloat16),
    ("pion", torch.float32),
)
"""Rule, dtype of the weights; forward passes are in bfloat16 either way."""


def run(part: Part, setup: Setup) -> None:
    for rule, dtype in RUNS[:1] if setup.dry_run else RUNS:
        label = {"rule": rule, "weights": str(dtype).removeprefix("torch.")}
        if setup.left < 20:
            part.add("runs", label | {"left_out": "no time left"})
            continue
        try:
            row = label | _train(rule, dtype, setup)
        except Exception as error:
            part.add("runs", label | {"error": one_line(error)})
            part.say(f"  {rule}, {label['weights']}: {one_line(error)}")
            if len(part.content["results"]["runs"]) == 1:
                raise
            continue
        part.add("runs", row)
        part.say(_line(row))
        release(setup.device)


def _line(row: dict[str, Any]) -> str:
    peak = row["peak_bytes"]
    parts = ", ".join(f"{name} {row[name]:.3f} s" for name in ("step", "rollout", "training", "optimizer"))
    memory = "" if peak is None else f", peak {peak / MIB:.0f} MiB"
    return (
        f"  {row['rule']}, {row['weights']} weights: {parts}{memory}, {row['tokens_per_second']:.0f} tokens/s sampled"
    )


class Clock(TrainerCallback):
    """Seconds of the parts of every optimizer step, the device waited for at their ends."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._begun = 0.0

    def now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self._sums[name] += self.now() - start
            return result

        return call

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._sums, self._begun = defaultdict(float), self.now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        sums = self._sums
        self.steps.append(
            {
                "step": self.now() - self._begun,
                "rollout": sums["rollout"],
                "training": sums["micro_step"] - sums["rollout"],
                "optimizer": sums["optimizer"],
            }
        )


def _odd_sums(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that splits the samples of a random policy in two."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def _train(rule: str, dtype: torch.dtype, setup: Setup) -> dict[str, Any]:
    tokenizer, clock = build_byte_tokenizer(), Clock(setup.device)
    prompts, samples, micro, length = (2, 2, 4, 4) if setup.dry_run else (16, 8, 32, 128)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    with torch.device(setup.device):
        config = Qwen3Config(**(TINY if setup.dry_run else QWEN3_06B), **ends)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # keeps the rotations' frequencies in float32
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            max_steps=STEPS,
            learning_rate=1e-6,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=prompts * samples // micro,
            num_generations=samples,
            max_completion_length=length,
            bf16=setup.device == "cuda",
            use_cpu=setup.device == "cpu",
            gradient_checkpointing=False,
            beta=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = SpectralGRPOTrainer(
            model=model,
            reward_funcs=_odd_sums,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": f"What is {n} + {n + 7}?"} for n in range(prompts * STEPS)]),
            processing_class=tokenizer,
            optimizer_factory=lambda net: build_optimizer(net, rule=rule, lr=1e-6, promotion_steps="auto"),
            checkpoint_extras=lambda _: {},
            keep_last=1,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer._generate_and_score_completions = clock.timed("rollout", trainer._generate_and_score_completions)
        trainer.training_step = clock.timed("micro_step", trainer.training_step)
        optimizer = trainer.create_optimizer()
        optimizer.step = clock.timed("optimizer", optimizer.step)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    warm = clock.steps[1:]
    result: dict[str, Any] = {name: statistics.median(each[name] for each in warm) for name in warm[0]}
    sampled = prompts * samples * logs[-1].get("completions/mean_length", float(length))
    return result | {
        "steps": clock.steps,
        "parameters": sum(param.numel() for param in model.parameters()),
        "tokens_per_second": sampled / result["rollout"],
        "peak_bytes": torch.cuda.max_memory_allocated() if setup.device == "cuda" else None,
        "rewards": [entry.get("reward") for entry in logs],
        "losses": [entry["loss"] for entry in logs],
    }
