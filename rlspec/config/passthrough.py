"""TRL's and transformers' own knobs in a recipe: known by name and type, and none that would be ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlspec.config.knobs import IGNORED_BY_GMPO, IGNORED_BY_RL, IGNORED_BY_SFT, NEEDS, REMOVED, REPLACED
from rlspec.config.messages import holds
from rlspec.config.paths import show
from rlspec.config.rlvr_schema import Recipe
from rlspec.config.sources import read_knobs
from rlspec.config.synonyms import same_meaning
from rlspec.errors import nearest

FROM_TOKENIZER = frozenset({"vocab_size", "pad_token_id", "eos_token_id", "bos_token_id"})
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
CONFIG_CLASSES = {"grpo": "GRPOConfig", "gmpo": "GMPOConfig", "sft": "SFTConfig"}


def check_trainer(algorithm: str, trainer: Mapping[str, Any], *, engine: str) -> list[str]:
    """One line per mistake in the section `trainer`.

    Args:
        algorithm: grpo, gmpo or sft.
        trainer: the section.
        engine: `rollout.engine`.

    Raises:
        ConfigError: TRL is not installed.
    """
    lines = []
    for name, value in trainer.items():
        line = check_knob(algorithm, name, value) or _without_effect(name, trainer, engine)
        if line:
            lines.append(line)
    return lines + list(_contradictions(algorithm, trainer))


def elsewhere(key: str, value: Any) -> str | None:
    """The line for a knob, with its section or bare, whose work another key does or that TRL has no more; else None."""
    name = key.rpartition(".")[2]  # verl has `data.max_prompt_length`
    if name in REMOVED:
        return f"{key}={show(value)}: TRL has it no more; {REMOVED[name]}"
    return f"{key}={show(value)}: set by rlspec; use {REPLACED[name]}" if name in REPLACED else None


def check_knob(algorithm: str, name: str, value: Any) -> str | None:
    """The line for one knob that is unknown, has the wrong type, or belongs to another key; None where it is fine."""
    key = f"trainer.{name}"
    if line := elsewhere(key, value):
        return line
    knobs = read_knobs(CONFIG_CLASSES[algorithm])
    if algorithm == "gmpo" and name in IGNORED_BY_GMPO:
        return f"{key}={show(value)}: GMPO's loss ignores it; remove it, or use algorithm: grpo"
    if algorithm == "sft" and name in IGNORED_BY_SFT:
        return f"{key}={show(value)}: sft ignores it; the examples are tokens already; remove it"
    if algorithm != "sft" and name in IGNORED_BY_RL:
        return f"{key}={show(value)}: {algorithm} ignores it; remove it"
    if name not in knobs:
        ours = knobs.keys() - REPLACED.keys()
        meant = same_meaning(
            name, lambda other: other.removeprefix("trainer.") in ours if "trainer." in other else holds(other, Recipe)
        )
        known = " or ".join(meant)
        known = f"did you mean {known}?" if meant else nearest(name, ours, most=8)
        return f"{key}={show(value)}: {CONFIG_CLASSES[algorithm]} has no such knob; {known}"
    knob = knobs[name]
    if knob.accepts(value) or (name == "scale_rewards" and isinstance(value, bool)):  # TRL maps these words
        return None
    choices = isinstance(value, str) and knob.choices
    return f"{key}={show(value)}: " + (nearest(value, knob.choices) if choices else f"must be {knob.allowed}")


def check_architecture(architecture: Mapping[str, Any]) -> list[str]:
    """One line per mistake in `model.architecture`."""
    lines = []
    for name, value in architecture.items():
        reason = _wrong_field(str(name), value)
        if reason is not None:
            lines.append(f"model.architecture.{name}={show(value)}: {reason}")
    return lines


def _wrong_field(name: str, value: Any) -> str | None:
    knobs = read_knobs("Qwen3Config")
    if name in FROM_TOKENIZER:
        return "the tokenizer decides it; remove it"
    if name == "rope_theta":  # inside rope_parameters since transformers 5, but at the top of published files
        return None if _positive(value) else "must be a number > 0"
    if name not in knobs:
        known = {*knobs, "rope_theta"} - FROM_TOKENIZER
        return f"Qwen3Config has no such field; {nearest(name, known, most=8)}"
    if not knobs[name].accepts(value):
        return f"must be {knobs[name].allowed}"
    if name in _SIZES and isinstance(value, int) and value < 1:
        return "must be > 0"
    if name == "head_dim" and value % 2:
        return "must be even: rotary positions turn pairs"
    return None


def _without_effect(name: str, trainer: Mapping[str, Any], engine: str) -> str | None:
    if name.startswith("vllm_") and engine != "vllm":
        return (
            f"trainer.{name}={show(trainer[name])}: has no effect with rollout.engine={engine}; add rollout.engine=vllm"
        )
    for beginnings, other, values in NEEDS:
        if name.startswith(beginnings) and trainer.get(other) not in values:
            return f"trainer.{name}={show(trainer[name])}: has no effect without trainer.{other}={show(values[0])}"
    return None


def _contradictions(algorithm: str, trainer: Mapping[str, Any]) -> Iterator[str]:
    yield from _length(trainer.get("max_steps", -1), trainer.get("num_train_epochs"))
    if trainer.get("bf16") and trainer.get("fp16"):
        yield "trainer.fp16=true: not together with trainer.bf16=true"
    beta = trainer.get("beta", 0.0)
    for name in ("sync_ref_model", "use_bias_correction_kl"):
        if algorithm != "sft" and trainer.get(name) and not beta:
            yield f"trainer.{name}=true: has no effect without a KL penalty; add trainer.beta=0.001 or the like"
    yield from _schedule(str(trainer.get("lr_scheduler_type")), trainer.get("lr_scheduler_kwargs") or {})
    if "temperature" in (trainer.get("generation_kwargs") or {}):
        yield "trainer.generation_kwargs.temperature: the loss would have another one; use trainer.temperature"
    for name, (fits, words) in _RANGES.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not fits(value):
            yield f"trainer.{name}={show(value)}: must be {words}"
    if trainer.get("lr_scheduler_type") == "constant":
        for name in ("warmup_steps", "warmup_ratio"):
            if _positive(trainer.get(name)):
                remedy = "use trainer.lr_scheduler_type=constant_with_warmup"
                yield f"trainer.{name}={trainer[name]}: has no effect with trainer.lr_scheduler_type=constant; {remedy}"


def _length(steps: Any, epochs: Any) -> Iterator[str]:
    """Of the run: in optimizer steps, which decide where they are given, as in transformers, or in epochs."""
    if _positive(steps):
        return
    if epochs is not None and not _positive(epochs):
        yield f"trainer.num_train_epochs={show(epochs)}: must be > 0"
    elif epochs is None:
        yield f"trainer.max_steps={steps}: give a number of optimizer steps > 0, or trainer.num_train_epochs"


# What a number has to be, which TRL and transformers ask for late or not at all.
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        ("max_completion_length", "temperature", "epsilon", "epsilon_high", "repetition_penalty"),
        (lambda value: value > 0, "> 0"),
    ),
    **dict.fromkeys(("top_k", "beta", "warmup_steps"), (lambda value: value >= 0, ">= 0")),
    "num_iterations": (lambda value: value >= 1, ">= 1"),
    "top_p": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    **dict.fromkeys(("min_p", "top_entropy_quantile"), (lambda value: 0 <= value <= 1, "from 0 to 1")),
}


_SCHEDULE_NEEDS = {
    "cosine_with_min_lr": ("min_lr_rate", "min_lr"),
    "cosine_warmup_with_min_lr": ("min_lr_rate", "min_lr"),
    "warmup_stable_decay": ("num_decay_steps",),
}


def _schedule(kind: str, given: Mapping[str, Any] | str) -> Iterator[str]:
    """What transformers would ask for only once the model is loaded: exactly one of these."""
    if kind == "reduce_lr_on_plateau":
        yield f"trainer.lr_scheduler_type={kind}: follows evaluations of transformers, which no run makes; use another"
    needs = _SCHEDULE_NEEDS.get(kind, ())
    if isinstance(given, str):  # transformers takes JSON too
        return
    if kind in ("constant", "constant_with_warmup") and given:
        yield f"trainer.lr_scheduler_kwargs.{next(iter(given))}: has no effect with trainer.lr_scheduler_type={kind}"
    if needs and sum(given.get(name) is not None for name in needs) != 1:
        example = f"trainer.lr_scheduler_kwargs.{needs[0]}={10 if needs[0] == 'num_decay_steps' else 0.1}"
        yield f"trainer.lr_scheduler_type={kind}: needs one of {', '.join(needs)}; add {example}, and no other"


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
