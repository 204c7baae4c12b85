"""Presets that bear a paper's name have its numbers, whatever the policy of the recipe says."""

from __future__ import annotations

from typing import Any

import pytest

from rlspec.config.load import load_recipe, load_vla_recipe

VLA = {"rule": "muon", "promotion_steps": 0.0, "adjust_lr": "paper", "momentum": 0.95, "ns_steps": 5, "split": "whole"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "vla_pion_paper": VLA
    | {"lr": 1e-4, "weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}
    | {"nesterov": True, "paper_scale": 0.2, "roles": "vla"},
    "vla_pion_openpi": VLA | {"lr": 2.5e-5, "nesterov": False, "paper_scale": 2.0, "roles": "vla_openpi"},
    "pion_paper": {"rule": "pion", "lr": 1e-6, "weight_decay": 0.01, "momentum": 0.95, "nesterov": False}
    | {"promotion_steps": 0.0, "ns_steps": 5, "adjust_lr": "paper", "paper_scale": 5.0, "split": "heads"},
    "muon_paper": {"rule": "muon", "lr": 1e-6, "weight_decay": 0.01, "momentum": 0.95, "nesterov": False}
    | {"ns_steps": 5, "adjust_lr": "paper", "paper_scale": 5.0, "split": "whole"},
}
OURS = {"promotion_steps": "auto", "adjust_lr": "paper", "paper_scale": 0.2, "nesterov": False, "roles": "vla"}


@pytest.mark.parametrize("policy", ["adapter_tiny", "flow_tiny", "pi05", "smolvla"])
@pytest.mark.parametrize("name", ["vla_pion_paper", "vla_pion_openpi"])
def test_of_robots_policies(name: str, policy: str) -> None:
    found = load_vla_recipe(["recipe=vla_franka", f"optim={name}", f"policy={policy}"]).optim.model_dump()
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", ["pion_paper", "muon_paper"])
def test_of_language_models(name: str) -> None:
    found = load_recipe(["recipe=grpo_math", "model=qwen3_1.7b", f"optim={name}"]).optim.model_dump()
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def test_our_own_for_robots_has_the_papers_length_and_the_policys_rate() -> None:
    found = load_vla_recipe(["recipe=vla_franka", "optim=vla_pion", "policy=adapter_tiny"]).optim.model_dump()
    assert {key: found[key] for key in OURS} == OURS
    assert found["lr"] == 2e-3


def test_what_is_written_wins_over_the_preset() -> None:
    assert load_vla_recipe(["recipe=vla_franka", "optim=vla_pion_paper", "optim.lr=3e-3"]).optim.lr == 3e-3


@pytest.mark.parametrize(("suite", "steps"), [("object", 1500), ("spatial", 15_000), ("goal", 15_000), ("10", 15_000)])
def test_pions_runs_of_vla_adapter_go_by_their_names(suite: str, steps: int) -> None:
    recipe = load_vla_recipe([f"recipe=pion_libero_{suite}"])
    training, options = recipe.training, recipe.policy.options
    assert (training.steps, training.batch_size * training.gradient_accumulation, training.bf16) == (steps, 64, True)
    assert (recipe.evaluation.episodes, recipe.env and recipe.env.suite) == (50, f"libero_{suite}")
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.weight_decay) == ("vla_pion_paper", 1e-4, 0.01)
    assert (options["head"], options["num_queries"], options["chunk_size"]) == ("vla_adapter", 64, 8)
    assert options["normalization_mapping"] == {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}


@pytest.mark.parametrize("head", ["vla_adapter", "vla_adapter_pro"])
def test_vla_adapters_profiles_have_its_numbers(head: str) -> None:
    recipe = load_vla_recipe(["recipe=vla_libero", f"policy={head}", "optim=adamw"])
    assert (recipe.policy.options["head"], recipe.optim.lr, recipe.training.batch_size) == (head, 2e-4, 16)
    assert recipe.training.steps == 150_000
    given = recipe.policy.options
    assert [given[f"{part}_name"].rpartition("/")[2] for part in ("vision", "fused_vision", "text")] == [
        "dinov2-with-registers-large", "siglip-so400m-patch14-224", "Qwen2.5-0.5B",
    ]  # fmt: skip
    said = given["prompt"].split("<|im_start|>")
    assert said[2:] == ["user\nWhat action should the robot take to {task}?<|im_end|>\n", "assistant\n"]
    assert (said[0], given["image_size"], given["image_mean"][0]) == ("", 224, 0.484375)


def test_vlanexts_run_has_its_numbers() -> None:
    recipe = load_vla_recipe(["recipe=vlanext_libero"])
    training, options = recipe.training, recipe.policy.options
    assert (training.steps, training.batch_size, training.grad_clip_norm) == (10_000, 128, 1.0)
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.weight_decay) == ("adamw", 1e-4, 0.1)
    assert training.scheduler["num_warmup_steps"] == 1000
    assert (options["vlm_name"], options["head"]) == ("Qwen/Qwen3-VL-2B-Instruct", "vlanext")
    assert (options["num_queries"], len(options["bridge_layers"]), options["head_width"]) == (16, 29, 1024)
    assert (options["state_history"], options["frequency_weight"], options["chunk_size"]) == (8, 0.1, 8)
    assert training.augmentation["tfs"]["crop"]["kwargs"]["scale"] == [0.8, 1.0]


# Settings of the RLVR runs in OPTML-Group/Pion, RL/verl/examples (2026-08), by TRL's names.
SHARED = {"temperature": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "max_steps": -1, "bf16": True}
GRPO = {"beta": 0.001, "epsilon": 0.2, "epsilon_high": 0.2, "use_bias_correction_kl": False}
GMPO = {"beta": 0.0, "epsilon": 0.4, "epsilon_high": 0.4}
MATH = {"num_train_epochs": 20, "max_completion_length": 3000}
GSM8K = {"num_train_epochs": 15, "max_completion_length": 1024}
RUNS = {  # recipe: trainer, (prompts of an update, samples, updates of a generation), measured on
    "pion_grpo_math": (GRPO | MATH, (128, 8, 1), "math500"),
    "pion_gmpo_math": (GMPO | MATH, (128, 8, 1), "math500"),
    "pion_grpo_gsm8k": (GRPO | GSM8K, (256, 5, 4), "gsm8k"),
    "pion_gmpo_gsm8k": (GMPO | GSM8K, (256, 5, 4), "gsm8k"),
}
ARMS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "pion": ([], PUBLISHED["pion_paper"]),
    "muon": (["optim=muon_paper"], PUBLISHED["muon_paper"]),
    "adamw": (["optim=adamw", "optim.weight_decay=0.01"], {"rule": "adamw", "lr": 1e-6, "weight_decay": 0.01}),
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("model", ["qwen3_1.7b", "qwen3_4b"])
@pytest.mark.parametrize("name", RUNS)
def test_of_the_papers_runs_of_reinforcement_learning(name: str, model: str, arm: str) -> None:
    trainer, sizes, measured = RUNS[name]
    choice, optim = ARMS[arm]
    recipe = load_recipe([f"recipe={name}", f"model={model}", *choice])
    assert {key: recipe.trainer[key] for key in SHARED | trainer} == SHARED | trainer
    batch = recipe.batch
    assert (batch.prompts_per_step, batch.samples_per_prompt, batch.updates_per_generation) == sizes
    found = recipe.optim.model_dump()
    assert {key: found[key] for key in optim} == optim
    assert recipe.model.path == f"Qwen/Qwen3-{model.partition('_')[2].upper()}" and recipe.model.enable_thinking is True
    assert (recipe.evaluation.data, recipe.evaluation.every, recipe.evaluation.problems) == ([measured], 5, None)
    assert (recipe.data.name, recipe.data.levels) == (("math", [3, 4, 5]) if "math" in name else ("gsm8k", None))
