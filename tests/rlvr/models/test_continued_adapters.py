"""Stored adapters go on: of a folder or a run, on the base that they name, as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlspec import train
from rlspec.config.load import load_recipe
from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim import build_optimizer
from rlspec.rlvr.drift import _policies
from rlspec.rlvr.models.adapters import apply_lora
from rlspec.rlvr.models.loading import build_model
from rlspec.rlvr.models.meta_model import build_meta_model
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.session import describe_profile, load_policy

TOKENIZER = build_byte_tokenizer()
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"head_dim": 16, "intermediate_size": 64}
GRPO = ["recipe=grpo_math", "data=arithmetic"]
TOKENS = torch.arange(4, 20)[None]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build_model(architecture=SHAPE, tokenizer=TOKENIZER, seed=1).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapters(base: Path, tmp_path: Path) -> Path:
    """Of rank 4, that change what the base says."""
    model = apply_lora(
        build_model(path=str(base), tokenizer=TOKENIZER),
        r=4,
        alpha=8,
        target_modules=["v_proj", "up_proj"],
        dropout=0.1,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def test_adapters_as_the_model_bring_their_base_and_what_they_are(base: Path, adapters: Path) -> None:
    recipe = load_recipe([*GRPO, f"model={adapters}"])
    lora = recipe.model.lora
    assert recipe.model.path == str(base) and lora is not None and lora.path == str(adapters)
    assert (lora.r, lora.alpha, lora.target_modules, lora.dropout) == (4, 8, ["up_proj", "v_proj"], 0.0)
    assert f"LoRA of rank 4, continuing {adapters}" in describe_profile(recipe, "cpu")
    policy = load_policy(recipe.model, TOKENIZER, seed=0)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert (logits(policy) - logits(plain)).abs().max() > 0.01
    torch.testing.assert_close(logits(policy), logits(PeftModel.from_pretrained(plain, adapters)))


def test_a_config_beside_adapters_makes_no_model_of_them(base: Path, adapters: Path) -> None:
    (adapters / "config.json").write_bytes((base / "config.json").read_bytes())
    lora = load_recipe([*GRPO, f"model={adapters}"]).model.lora
    assert lora is not None and lora.path == str(adapters)
    (adapters / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert load_recipe([*GRPO, f"model={adapters}"]).model.lora is None


def test_only_the_adapters_are_trained_on_and_the_base_stays(base: Path, adapters: Path) -> None:
    policy = load_policy(load_recipe([*GRPO, f"model={base}", f"model.lora.path={adapters}"]).model, TOKENIZER, seed=0)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in policy.named_parameters() if "lora_" in name} and len(trained) == 8
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    optimizer = build_optimizer(policy, rule="adamw", lr=1e-2)
    policy.train()(TOKENS).logits.square().mean().backward()
    optimizer.step()
    assert {name for name, parameter in policy.named_parameters() if not parameter.equal(before[name])} == trained


def test_how_far_a_policy_went_is_told_from_the_adapters_that_it_began_with(adapters: Path) -> None:
    model = load_recipe([*GRPO, f"model={adapters}"]).model
    now, start, _ = _policies(model, 0, adapters)  # it has not moved
    torch.testing.assert_close(logits(now), logits(start))


def test_of_a_run_its_newest_checkpoint_and_its_recipes_base(base: Path, adapters: Path, tmp_path: Path) -> None:
    from rlspec.checkpoint import staged_folder

    for step in (2, 10):
        with staged_folder(tmp_path / "run" / "checkpoints" / f"checkpoint-{step}", metadata={"step": step}) as folder:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                (folder / name).write_bytes((adapters / name).read_bytes())
            (folder / "recipe.yaml").write_text(f"model: {{path: {base}, revision: v{step}, name: mine}}\n")
    recipe = load_recipe([*GRPO, f"model={tmp_path / 'run'}"])
    assert (recipe.model.path, recipe.model.revision, recipe.model.name) == (str(base), "v10", "run")
    change(adapters, revision="abc")
    assert load_recipe([*GRPO, f"model={adapters}"]).model.revision == "abc"
    file = adapters / "adapter_model.safetensors"
    assert (
        load_recipe([*GRPO, f"model={base}", f"model.lora.path={file}"]).model.lora
        == load_recipe([*GRPO, f"model={base}", f"model.lora.path={adapters}"]).model.lora
    )
    assert recipe.model.lora is not None and recipe.model.lora.path is not None
    assert recipe.model.lora.path.endswith("checkpoint-10")


def test_a_stored_recipe_is_read_whatever_became_of_the_start(base: Path, adapters: Path, tmp_path: Path) -> None:
    from rlspec.config.load import dump_recipe

    recipe = load_recipe([*GRPO, f"model={adapters}"])
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_recipe(recipe))
    assert load_recipe([f"recipe={stored}"]) == recipe
    change(adapters, r=16)
    assert load_recipe([f"recipe={stored}"]) == recipe
    (adapters / "adapter_model.safetensors").unlink()
    assert load_recipe([f"recipe={stored}"]) == recipe
    adapters.rename(tmp_path / "elsewhere")
    assert load_recipe([f"recipe={stored}"]) == recipe
    with pytest.raises(CheckpointError, match=r"model.lora.path=.*/adapters: these adapters do not go onto"):
        load_policy(recipe.model, TOKENIZER, seed=0)


def test_a_run_goes_on_where_the_adapters_that_it_continued_are_gone(
    base: Path, adapters: Path, tmp_path: Path
) -> None:
    small = ["trainer.max_steps=1", "batch.prompts_per_step=1", "batch.samples_per_prompt=2", "evaluation.after=false"]
    small += ["trainer.max_completion_length=8", "evaluation.before=false", "batch.micro_batch=null", "data.limit=8"]
    small += ["model.instruction=null", "trainer.bf16=false", "guard.enabled=false"]
    arguments = [*GRPO, f"model={adapters}", f"output_dir={tmp_path}", "run=mine", *small]
    assert train.main(arguments) == 0
    adapters.rename(tmp_path / "elsewhere")
    assert train.main([f"resume={tmp_path / 'mine'}", "trainer.max_steps=2"]) == 0
    assert (tmp_path / "mine" / "checkpoints" / "checkpoint-2").is_dir()
    assert train.main([f"resume={tmp_path / 'mine'}", "trainer.max_steps=3"]) == 0


def test_the_table_of_continued_adapters_is_theirs(base: Path, adapters: Path, tmp_path: Path) -> None:
    plain = build_model(path=str(base), tokenizer=TOKENIZER)
    options = {"use_dora": True, "rank_pattern": {"v_proj": 8}, "layers_to_transform": [1]}
    unusual = apply_lora(plain, r=4, alpha=8, target_modules=["v_proj"], options=options)
    unusual.save_pretrained(tmp_path / "unusual")
    recipe = load_recipe([*GRPO, f"model={tmp_path / 'unusual'}"])

    def trained(model: torch.nn.Module) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert trained(build_meta_model(recipe.model)) == trained(load_policy(recipe.model, TOKENIZER, seed=0))
    assert trained(build_meta_model(recipe.model)) == trained(unusual) and len(trained(unusual)) == 3


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("stored", "given", "words"),
    [
        ({}, "model.lora.r=16", r"model.lora.r=16: the adapters in .* have 4; leave it out"),
        ({}, "model.lora.alpha=1", r"model.lora.alpha=1: the adapters in .* have 8"),
        ({}, "model.lora.target_modules=[v_proj]", r"target_modules=.* have \['up_proj', 'v_proj'\]"),
        ({}, "model.lora.target_modules=[1,q]", r"target_modules=.* have \['up_proj', 'v_proj'\]"),
        ({}, "model.lora.options={use_dora: true}", r"model.lora.options: those of the adapters"),
        ({"modules_to_save": ["lm_head"]}, "", r"modules_to_save=\['lm_head'\] do not go on; merge them"),
        ({"bias": "all"}, "", r"bias=all do not go on"),
        ({"target_modules": ".*_proj"}, "", r"target_modules=\.\*_proj do not go on"),
        ({"peft_type": "IA3"}, "", r"peft_type=IA3 do not go on"),
    ],
)
def test_what_adapters_are_is_not_said_otherwise(
    adapters: Path, base: Path, stored: dict[str, Any], given: str, words: str
) -> None:
    change(adapters, **stored)
    with pytest.raises(ConfigError, match=words):
        load_recipe([*GRPO, f"model={base}", f"model.lora.path={adapters}", *filter(None, [given])])


def test_adapters_without_a_base_and_folders_without_adapters_are_named(adapters: Path, tmp_path: Path) -> None:
    change(adapters, base_model_name_or_path=None)
    with pytest.raises(ConfigError, match=r"names no base model; give it: model=BASE model.lora.path="):
        load_recipe([*GRPO, f"model={adapters}"])
    (adapters / "recipe.yaml").write_text("steps: [")  # of somebody else
    with pytest.raises(ConfigError, match=r"names no base model"):
        load_recipe([*GRPO, f"model={adapters}"])
    with pytest.raises(ConfigError, match=r"holds adapters, and model.lora.path names others"):
        load_recipe([*GRPO, f"model={adapters}", f"model.lora.path={tmp_path}"])
    wrong = {str(tmp_path): "no adapters there", "org/adapters": "hf download org/adapters --local-dir FOLDER"}
    for path, words in wrong.items():
        with pytest.raises(CheckpointError, match=words):
            load_recipe(["recipe=grpo_math", f"model.lora.path={path}"])
    (adapters / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is missing"):
        load_recipe(["recipe=grpo_math", f"model.lora.path={adapters}"])
    (adapters / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json cannot be read"):
        load_recipe(["recipe=grpo_math", f"model.lora.path={adapters}"])


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 1), ("num_hidden_layers", 3), ("hidden_size", 64)])
def test_adapters_of_another_model_do_not_go_on(adapters: Path, tmp_path: Path, key: str, value: int) -> None:
    build_model(architecture=SHAPE | {key: value}, tokenizer=TOKENIZER).save_pretrained(tmp_path / "other")
    TOKENIZER.save_pretrained(tmp_path / "other")
    recipe = load_recipe([*GRPO, f"model={tmp_path / 'other'}", f"model.lora.path={adapters}"])
    with pytest.raises(CheckpointError, match=r"model.lora.path=.*: these adapters do not go onto .*/other"):
        load_policy(recipe.model, TOKENIZER, seed=0)
