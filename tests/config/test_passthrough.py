"""TRL's knobs: known without importing TRL, of the right type, and never ignored."""

from __future__ import annotations

import dataclasses

import pytest

from rlspec.config import sources
from rlspec.config.knobs import IGNORED_BY_GMPO, IGNORED_BY_RL, IGNORED_BY_SFT, NEEDS, REPLACED
from rlspec.config.passthrough import CONFIG_CLASSES, check_knob, check_trainer
from rlspec.config.sources import read_knobs
from rlspec.errors import ConfigError


def lines(algorithm: str, engine: str = "transformers", **trainer: object) -> str:
    return "\n".join(check_trainer(algorithm, {"max_steps": 3, **trainer}, engine=engine))


@pytest.mark.parametrize("name", CONFIG_CLASSES.values())
def test_the_fields_read_from_source_are_the_fields_of_the_class(name: str) -> None:
    trl = pytest.importorskip("trl")
    if name == "GMPOConfig":
        from trl.experimental.gmpo import GMPOConfig as config_class
    else:
        config_class = getattr(trl, name)
    assert set(read_knobs(name)) == {field.name for field in dataclasses.fields(config_class) if field.init}


@pytest.mark.parametrize("name", CONFIG_CLASSES.values())
def test_every_default_of_trl_is_accepted(name: str) -> None:
    trl = pytest.importorskip("trl")
    for field in dataclasses.fields(getattr(trl, name, trl.GRPOConfig)):
        if field.default is not dataclasses.MISSING and not hasattr(field.default, "value"):
            assert read_knobs(name)[field.name].accepts(field.default), field.name


def test_every_refused_knob_exists() -> None:
    """A typo in the tables would let a knob through."""
    known = set().union(*(read_knobs(name) for name in CONFIG_CLASSES.values()))
    assert known >= set(REPLACED) | IGNORED_BY_GMPO | IGNORED_BY_RL | IGNORED_BY_SFT
    for beginnings, other, _ in NEEDS:
        assert other in known
        assert all(any(name.startswith(each) for name in known) for each in beginnings)


@pytest.mark.parametrize(
    "name", ["loss_type", "delta", "off_policy_mask_threshold", "entropy_coef", "use_liger_kernel"]
)
def test_gmpo_refuses_what_its_loss_ignores(name: str) -> None:
    assert f"trainer.{name}" in (check_knob("gmpo", name, 1.0) or "") and "GMPO" in lines("gmpo", **{name: 1.0})
    assert "ignores" not in lines("grpo", **{name: 1.0})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("num_generations", "batch.samples_per_prompt"),
        ("per_device_train_batch_size", "batch.micro_batch"),
        ("steps_per_generation", "batch.updates_per_generation"),
        ("learning_rate", "optim.lr"),
        ("adam_beta2", "optim.betas"),
        ("save_steps", "checkpoints.every"),
        ("eval_strategy", "evaluation.every"),
        ("use_vllm", "rollout.engine=vllm"),
        ("report_to", "report.tensorboard and report.wandb"),
        ("seed", "seed"),
        ("logging_strategy", "trainer.logging_steps"),
        ("fsdp", "sharding=fsdp2 launch=torchrun launch.processes=N"),
        ("fsdp_config", "sharding=fsdp2 launch=torchrun launch.processes=N"),
        ("parallelism_config", "sharding=fsdp2 launch=torchrun launch.processes=N"),
        ("accelerator_config", "nothing: processes and their batches follow from torchrun and batch.*"),
    ],
)
def test_knobs_that_rlspec_derives_name_the_key_to_use(name: str, instead: str) -> None:
    assert lines("grpo", **{name: 1}) == f"trainer.{name}=1: set by rlspec; use {instead}"


@pytest.mark.parametrize("name", sorted(IGNORED_BY_SFT))
def test_fine_tuning_says_why_it_ignores_a_knob(name: str) -> None:
    why = "sft ignores it; the examples are tokens already; remove it"
    assert lines("sft", **{name: True}).splitlines()[0] == f"trainer.{name}=true: {why}"


@pytest.mark.parametrize(
    ("trainer", "part"),
    [
        ({"max_stepss": 3}, "did you mean max_steps?"),
        ({"max_grad_norm": "big"}, "max_grad_norm=big: must be a number"),
        ({"num_iterations": 1.5}, "num_iterations=1.5: must be a whole number"),
        ({"num_iterations": True}, "num_iterations=true: must be a whole number"),
        ({"bf16": "yes"}, "true or false or null"),
        ({"lr_scheduler_type": "cosin"}, "did you mean cosine?"),
        ({"loss_type": "dapoo"}, "did you mean dapo?"),
        ({"scale_rewards": "groups"}, "did you mean group?"),
        ({"vllm_mode": "colocate"}, "add rollout.engine=vllm"),
        ({"sapo_temperature_pos": 1.0}, "without trainer.loss_type=sapo"),
        ({"entropy_target": 0.1}, "without trainer.use_adaptive_entropy=true"),
        ({"sync_ref_model": True}, "trainer.beta"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "follows evaluations of transformers, which no run makes"),
        ({"save_freq": 5}, "did you mean checkpoints.every?"),
        ({"kl_coef": 5}, "did you mean trainer.beta?"),
        ({"test_freq": 5}, "did you mean evaluation.every?"),
        ({"total_epochs": 5}, "did you mean trainer.num_train_epochs?"),
        ({"max_steps": 0}, "trainer.max_steps=0"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs=0: must be > 0"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 1}},
            "num_cycles: has no effect with trainer.lr_scheduler_type=constant",
        ),
        ({"temperature": 0.0}, "temperature=0.0: must be > 0"),
        ({"num_iterations": 0}, "num_iterations=0: must be >= 1"),
        ({"top_k": -1}, "top_k=-1: must be >= 0"),
        ({"top_p": 2.0}, "top_p=2.0: must be above 0, at most 1"),
        ({"min_p": 2.0}, "min_p=2.0: must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: must be > 0"),
        ({"beta": -1.0}, "beta=-1.0: must be >= 0"),
        ({"top_entropy_quantile": 2.0}, "top_entropy_quantile=2.0: must be from 0 to 1"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "use trainer.lr_scheduler_type=constant_with_warmup"),
        ({"label_smoothing_factor": 0.1}, "grpo ignores it"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "add trainer.lr_scheduler_kwargs.min_lr_rate=0.1"),
        (
            {"lr_scheduler_type": "cosine_warmup_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0, "min_lr_rate": 0}},
            "one of min_lr_rate, min_lr",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "add trainer.lr_scheduler_kwargs.num_decay_steps=10"),
        ({"generation_kwargs": {"temperature": 0.7}}, "use trainer.temperature"),
    ],
)
def test_a_knob_that_is_wrong_or_without_effect_is_one_line(trainer: dict[str, object], part: str) -> None:
    text = lines("grpo", **trainer)
    assert part in text and "\n" not in text, text


def test_what_is_right_passes() -> None:
    assert not lines("grpo", loss_type="dr_grpo", beta=0.001, sync_ref_model=True, lr_scheduler_kwargs={"a": 1})
    for kwargs in ({"min_lr": 0.0}, {"min_lr": 0.0, "min_lr_rate": None}, '{"min_lr": 1e-7}'):
        assert not lines("grpo", lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=kwargs)
    assert not lines("grpo", engine="vllm", vllm_mode="server", warmup_steps=0.1)
    assert not lines("gmpo", epsilon=0.4, epsilon_high=0.4, beta=0.0)
    assert not lines("grpo", top_k=0, top_p=1.0, min_p=0.0, lr_scheduler_type="constant", warmup_steps=0)
    assert not lines("sft", loss_type="dft", label_smoothing_factor=0.1)
    assert "SFTConfig has no such knob" in lines("sft", temperature=1.0)


def test_a_missing_trl_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (sources.read_knobs, sources._parse):
        function.cache_clear()
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trl is not installed: .*--extra train"):
        read_knobs("GRPOConfig")
    monkeypatch.undo()
    assert read_knobs("GRPOConfig")
