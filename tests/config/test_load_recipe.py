"""Recipes resolve, combine, survive a round trip, and answer every mistake in one line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlspec.checkpoint import staged_folder
from rlspec.config.kinds import is_robotic
from rlspec.config.load import dump_recipe, load_any_recipe, load_group, load_recipe, load_vla_recipe
from rlspec.config.paths import headline, list_group, list_recipes, recipes_folder, resolve_path
from rlspec.config.rlvr_schema import Recipe
from rlspec.config.rules import built_in_rules, list_optimizers
from rlspec.errors import CheckpointError, ConfigError

PAPER = [name for name in list_recipes() if name.startswith("pion_g")]  # of Qwen3, whose thinking is on
LANGUAGE = [name for name in list_recipes() if not is_robotic(name) and name not in PAPER]
MODELS = [name for name in list_group("model") if name != "hub"] + ["someone/Some-Model"]


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(arguments)
    return str(caught.value)


def line(*arguments: str) -> str:
    text = refusal(*arguments)
    assert "\n" not in text, text
    return text


def pairs() -> Iterator[Any]:
    """All of them; by default each recipe and each model twice."""
    for i, recipe in enumerate(LANGUAGE):
        for j, model in enumerate(MODELS):
            often = recipe == "grpo_math" or model == "tiny" or i % len(MODELS) == j or j % len(LANGUAGE) == i
            yield pytest.param(recipe, model, marks=[] if often else [pytest.mark.slow])


@pytest.mark.parametrize(("recipe", "model"), list(pairs()))
def test_every_recipe_takes_every_model(recipe: str, model: str) -> None:
    loaded = load_recipe([f"recipe={recipe}", f"model={model}", *(["data=arithmetic"] if "sft" in recipe else [])])
    assert loaded.recipe == recipe
    assert loaded.model.name == model.rpartition("/")[2].lower()
    assert (loaded.model.path is None) == (model in ("tiny", "debug"))


@pytest.mark.parametrize(("recipe", "optim"), list(zip(LANGUAGE, cycle(["adamw", "muon", "pion"]), strict=False)))
def test_every_recipe_takes_optimizers(recipe: str, optim: str) -> None:
    assert load_recipe([f"recipe={recipe}", f"optim={optim}"]).optim.name == optim


@pytest.mark.parametrize("data", [name for name in list_group("data") if name != "local"])
def test_every_data_set_can_be_trained_on(data: str) -> None:
    assert load_recipe(["recipe=grpo_math", f"data={data}"]).data.name == data


@pytest.mark.parametrize("recipe", list_recipes())
def test_a_recipe_fits_on_a_screen_and_says_what_it_is_for(recipe: str) -> None:
    text = (recipes_folder() / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50
    comment = text[: text.index("defaults:")]
    assert f"recipe={recipe}" in comment and "hardware" in comment and "reached" in comment
    assert len(headline(recipe)) > 20


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe=grpo_math", "model=qwen3_8b", "data=gsm8k", "model.lora.r=4", "optim.betas=[0.8,0.95]"],
        ["recipe=gmpo_math", "optim=muon", "optim.overrides=[{pattern: 'q_proj', rule: adamw}]"],
        ["recipe=sft_arithmetic", "seed=3"],
        ["recipe=grpo_math", r"model.instruction=Box it: \boxed{x}, then stop\\"],
    ],
    ids=["lora", "overrides", "sft", "latex"],
)
def test_a_resolved_recipe_is_itself_a_recipe(arguments: list[str], tmp_path: Path) -> None:
    first = load_recipe(arguments)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(first), encoding="utf-8")
    assert load_recipe([f"recipe={tmp_path / 'recipe.yaml'}"]) == first


def test_text_on_the_command_line_is_taken_as_it_stands() -> None:
    awkward = [r"Give \boxed{a=b}, it's [1,2] \ ", "ends with a backslash \\", "x' y", "123", "1e5", "true"]
    for text in awkward:
        assert load_recipe(["recipe=grpo_math", f"model.instruction={text}"]).model.instruction == text
    assert load_recipe(["recipe=grpo_math", "model.instruction='quoted, too'"]).model.instruction == "quoted, too"
    assert load_recipe(["recipe=grpo_math", "model=qwen3_4b", "model.instruction=null"]).model.instruction is None


def test_overrides_win_over_profile_and_recipe() -> None:
    recipe = load_recipe(["recipe=gmpo_math", "model=qwen3_1.7b", "optim.lr=2e-6", "trainer.max_steps=7", "data=gsm8k"])
    assert (recipe.optim.lr, recipe.trainer["max_steps"], recipe.data.path) == (2e-6, 7, "openai/gsm8k")
    assert recipe.batch.updates_per_generation == 4
    assert (recipe.batch.prompts_per_step, recipe.trainer["max_completion_length"]) == (128, 3000)


def test_one_word_switches_to_the_real_profile() -> None:
    tiny, real = load_recipe(["recipe=grpo_math"]), load_recipe(["recipe=grpo_math", "model=qwen3_0.6b"])
    assert (tiny.data.name, real.data.name, real.data.levels) == ("arithmetic", "math", [3, 4, 5])
    assert real.model.architecture is None and real.model.enable_thinking is False
    assert real.evaluation.data == ["math500", "gsm8k"] and real.optim.lr == 1e-6 and real.trainer["bf16"] is True


def test_evaluations_are_on_what_is_trained_on_unless_the_profiles_data_sets_belong_to_it() -> None:
    def measured(*arguments: str) -> list[str]:
        return load_recipe(["recipe=grpo_math", "model=qwen3_0.6b", *arguments]).evaluation.data

    assert measured() == measured("data=math") == measured("data=gsm8k") == ["math500", "gsm8k"]
    assert measured("data=mine.jsonl") == measured("data=arithmetic") == []
    assert measured("data=mine.jsonl", "evaluation.data=[gsm8k]") == ["gsm8k"]


def test_zero_is_never() -> None:
    recipe = load_recipe(["recipe=grpo_math", "evaluation.every=0", "checkpoints.every=0"])
    assert not recipe.evaluation.every and not recipe.checkpoints.every


def test_a_local_folder_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "My Model=1"
    folder.mkdir()
    model = load_recipe(["recipe=grpo_math", f"model={folder}"]).model
    assert (model.path, model.name) == (str(folder), "my-model-1")


@pytest.mark.parametrize("key", ["data", "data.path"])
def test_a_local_file_is_a_data_set(key: str, tmp_path: Path) -> None:
    file = tmp_path / "My problems (1).jsonl"
    data = load_recipe(["recipe=grpo_math", f"{key}={file}"]).data
    assert (data.path, data.name, data.levels) == (str(file), "my-problems-1", None)


def test_a_local_copy_keeps_the_columns_of_its_data_set() -> None:
    data = load_recipe(["recipe=grpo_math", "data=gsm8k", "data.path=train.jsonl"]).data
    assert (data.name, data.path, data.columns.problem) == ("gsm8k", "train.jsonl", "question")


def test_group_options_replace_sections_of_a_resolved_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    first = load_recipe(["recipe=grpo_math", "optim.lr=3e-4", "model.architecture.attention_bias=true"])
    file.write_text(dump_recipe(first), encoding="utf-8")
    other = load_recipe([f"recipe={file}", "optim=muon"])
    assert (other.optim.name, other.optim.nesterov, other.optim.lr) == ("muon", True, 3e-4)
    assert load_recipe([f"recipe={file}", "model=debug"]).model == load_recipe(["recipe=debug_grpo"]).model
    real = load_recipe([f"recipe={file}", "model=qwen3_0.6b"])
    assert (real.model.architecture, real.data.name, real.optim.lr) == (None, "math", 1e-6)


def test_passes_over_the_data_replace_a_number_of_steps() -> None:
    trainer = load_recipe(["recipe=grpo_math", "trainer.num_train_epochs=2"]).trainer
    assert (trainer["num_train_epochs"], trainer["max_steps"]) == (2, -1)


def test_imitation_drops_the_knobs_of_rollouts() -> None:
    recipe = load_recipe(["recipe=sft_arithmetic"])
    assert "max_completion_length" not in recipe.trainer and recipe.evaluation.max_new_tokens == 40


def test_a_run_that_is_resumed_brings_its_recipe(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-4"
    checkpoint.mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe(["recipe=debug_gmpo", "seed=3"])), encoding="utf-8")
    for folder in (tmp_path, checkpoint):
        recipe = load_recipe([f"resume={folder}"])
        assert (recipe.recipe, recipe.seed, recipe.resume) == ("debug_gmpo", 3, str(folder))
    assert "no run's recipe.yaml there" in line(f"resume={tmp_path / 'nowhere' / 'at' / 'all' / 'x'}")


def test_groups_can_be_read_alone() -> None:
    assert load_group("data", "gsm8k")["columns"]["problem"] == "question"
    assert load_group("optim", "pion")["name"] == "pion"
    assert load_group("model", "qwen3_4b")["model"]["path"] == "Qwen/Qwen3-4B"
    with pytest.raises(ConfigError, match="did you mean gsm8k"):
        load_group("data", "gsm8")
    with pytest.raises(ConfigError, match="unknown group"):
        list_group("models")


def test_shipped_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("recipes/grpo_math.yaml") == recipes_folder() / "grpo_math.yaml"
    assert resolve_path("checkpoints/tiny-arithmetic") == recipes_folder().parent / "checkpoints" / "tiny-arithmetic"
    assert resolve_path("checkpoints/mine") == Path("checkpoints/mine")
    assert resolve_path("rlspec/optim") == Path("rlspec/optim")  # may be the name of a model on the hub
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "grpo_math.yaml").touch()
    assert resolve_path("recipes/grpo_math.yaml") == Path("recipes/grpo_math.yaml")


@pytest.mark.parametrize("reward", [name for name in list_group("reward") if name != "function"])
def test_every_reward_is_chosen_by_its_name_and_survives_the_round_trip(reward: str, tmp_path: Path) -> None:
    needed = {
        "regex": [r"reward.options.pattern=\\d+=(?P<answer>x), {2}"],  # as it stands, without quotes
        "length": ["reward.options.limit=100"],
        "judge": ["reward.options.url=http://localhost:1/v1", "reward.options.model=m"],
        "environment": [f"environment={Path(__file__)}:Path"],
    }
    recipe = load_recipe(["recipe=grpo_math", f"reward={reward}", *needed.get(reward, [])])
    assert [each.name for each in recipe.rewards] == [reward]
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe([f"recipe={tmp_path / 'recipe.yaml'}"]) == recipe


def test_several_rewards_stand_in_a_list_and_replace_each_other(tmp_path: Path) -> None:
    several = "reward=[{name: math, weight: 1}, {name: 'json:loads', weight: 0.1}]"
    aggregation = "trainer.multi_objective_aggregation=normalize_then_sum"
    recipe = load_recipe(["recipe=grpo_math", several, aggregation])
    assert [(each.name, each.weight) for each in recipe.rewards] == [("math", 1.0), ("json:loads", 0.1)]
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe([f"recipe={file}"]) == recipe
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    del values["trainer"]["multi_objective_aggregation"]
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_recipe([f"recipe={file}", "reward=choice"]).reward.name == "choice"
    del values["reward"]  # as recipes were stored before there was a choice
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_recipe([f"recipe={file}"]).reward == load_recipe(["recipe=grpo_math"]).reward


MISTAKES = {
    # arguments: what the line says
    ("recipe=grpo_mat",): ["recipe=grpo_mat", "did you mean grpo_math?", "sft_arithmetic"],
    ("recipe=gone.yaml",): ["recipe=gone.yaml", "no such file"],
    (): ["no recipe given", "grpo_math"],
    ("recipe=grpo_math", "optim=pionn"): ["optim=pionn", "did you mean pion?", "adamw"],
    ("recipe=grpo_math", "model=qwen3_17b"): ["model=qwen3_17b", "did you mean qwen3_1.7b?", "hub id"],
    ("recipe=grpo_math", "data=gsmk8"): ["data=gsmk8", "did you mean gsm8k?", ".jsonl"],
    ("recipe=grpo_math", "optim.lrr=1"): ["optim.lrr", "unknown key", "did you mean lr?"],
    ("recipe=grpo_math", "lr=1e-5"): ["lr: unknown key", "did you mean optim.lr?"],
    ("recipe=grpo_math", "optim.roles.attention.lr=1e-3"): [
        "optim.roles.attention.lr=0.001: unknown key; did you mean optim.roles.attention.lr_scale?"
    ],
    ("recipe=grpo_math", "optim.overrides=[{pattern: x, lr: 1}]"): ["did you mean optim.overrides.0.lr_scale?"],
    ("recipe=grpo_math", "optim.roles.attention.num_heads=x"): [
        "optim.roles.attention.num_heads=x: must be a whole number >= 1 or null"
    ],
    ("recipe=grpo_math", "optim.roles={a: {b: 1}}"): ["optim.roles.a.b=1: unknown key; allowed: adjust_lr"],
    ("recipe=grpo_math", "optim.roles=[1]"): ["optim.roles=[1]: must be a mapping or symmetric, vla"],
    ("recipe=grpo_math", "environment={a: 1}"): ["environment.a=1: must be text"],
    ("recipe=grpo_math", "optim.options.schedule=[1]"): ["optim.options.schedule=[1]: must be true or false or"],
    ("recipe=grpo_math", "optim.options.schedul=1"): ["optim.options.schedul: no rule has this option", "schedule?"],
    ("recipe=vla_franka", "optim.options.soap_perod=1"): ["did you mean soap_period?"],
    ("recipe=grpo_math", "optim.roles.attention.options.soap_perod=1"): ["optim.roles.attention.options.soap_perod"],
    ("recipe=grpo_math", "num_heads=4"): ["num_heads: unknown key; did you mean optim.roles.ROLE.num_heads?"],
    ("recipe=vla_franka", "dataset.rename.x=5"): ["dataset.rename.x=5: must be text"],
    ("recipe=vla_franka", "dataset.episodes=800"): [
        "dataset.episodes=800: must be a list, each a whole number or null; "
        "did you mean dataset.demonstrations.episodes or dataset.recordings.episodes?"
    ],
    ("recipe=grpo_math", "sed=1"): ["sed: unknown key", "did you mean seed?"],
    ("recipe=grpo_math", "model.lora.rr=3"): ["model.lora.rr", "did you mean r?"],
    ("recipe=grpo_math", "seed.x=3"): ["seed.x", "seed is no mapping"],
    ("recipe=grpo_math", "optim.overrides=[{pattern: q, rul: adamw}]"): ["optim.overrides.0.rul", "did you mean rule?"],
    ("recipe=grpo_math", "optim={lrr: 3}"): ["optim.lrr", "did you mean lr?"],
    ("recipe=grpo_math", "optim.lr=abc"): ["optim.lr=abc", "a number > 0"],
    ("recipe=grpo_math", "optim.lr=0"): ["optim.lr=0", "a number > 0"],
    ("recipe=grpo_math", "optim.lr=.inf"): ["optim.lr=.inf", "a number"],
    ("recipe=grpo_math", "optim.lr=inf"): ["optim.lr=inf", "a number"],
    ("recipe=grpo_math", "seed=1.5"): ["seed=1.5", "a whole number >= 0"],
    ("recipe=grpo_math", "report.wandb=1"): ["report.wandb=1", "true or false"],
    ("recipe=grpo_math", "optim.adjust_lr=rms"): ["optim.adjust_lr=rms", "match_rms_adamw", "paper"],
    ("recipe=grpo_math", "optim.promotion_steps=few"): ["optim.promotion_steps=few", "a number or auto"],
    ("recipe=grpo_math", "optim.betas=[1]"): ["optim.betas", "a list of 2"],
    ("recipe=grpo_math", "optim.betas=[1,a]"): ["optim.betas.1=a", "a list of 2"],
    ("recipe=grpo_math", "evaluation.k=8"): ["evaluation.k=8", "a list, each a whole number"],
    ("recipe=grpo_math", "batch=3"): ["batch=3", "a mapping"],
    ("recipe=grpo_math", "optim.lr"): ["'optim.lr' is no override", "key=value"],
    ("recipe=grpo_math", "--verbose"): ["'--verbose' is no override"],
    ("recipe=grpo_math", "optim.ns_steps=1,2"): ["optim.ns_steps=1,2", "one value only"],
    ("recipe=grpo_math", "seed=0,1"): ["seed=0,1: one value only", "python -m rlspec.compare recipe=NAME seed=0,1;"],
    ("recipe=grpo_math", "optim.lr=1e-5,1e-4"): ["python -m rlspec.compare recipe=NAME optim.lr=1e-5,1e-4;"],
    ("recipe=grpo_math", "optim=pion,muon"): ["python -m rlspec.compare recipe=NAME optim=pion,muon"],
    ("recipe=grpo_math,gmpo_math",): ["python -m rlspec.compare recipe=grpo_math,gmpo_math"],
    ("recipe=grpo_math", "run=grpo-${seed}"): ["${seed}: no such key, or one at its default; add seed=VALUE"],
    ("recipe=grpo_math", "~seed"): ["~seed: no such key, or one at its default already; leave it out"],
    ("recipe=grpo_math", "loss_type=dr_grpo"): ["loss_type: unknown key; did you mean trainer.loss_type?"],
    ("recipe=grpo_math", "scale_rewards=false"): ["did you mean trainer.scale_rewards?"],
    ("recipe=grpo_math", "bf16=true"): ["did you mean trainer.bf16?"],
    ("recipe=grpo_math", "use_vllm=true"): ["use_vllm=true", "use rollout.engine=vllm"],
    ("recipe=grpo_math", "warmup_ratio=0.1"): ["use trainer.warmup_steps"],
    ("recipe=grpo_math", "max_prompt_length=512"): ["TRL has it no more", "leave it out"],
    ("recipe=grpo_math", "optim.ns_steps=[1"): ["optim.ns_steps=[1", "not understood"],
    ("recipe=grpo_math", "optim.lr=${optim.lrr}"): ["optim.lrr"],
    ("recipe=grpo_math", "model=hub"): ["model.path: required"],
    ("recipe=grpo_math", "data=local"): ["data.path: required"],
    ("recipe=grpo_math", "output_dir="): ["output_dir=: no value; leave it out"],
    ("recipe=grpo_math", "model.path="): ["model.path=: no value"],
    ("recipe=grpo_math", "model.lora.path= "): ["model.lora.path=: no value"],
    ("recipe=vla_franka", "policy.path="): ["policy.path=: no value"],
    # impossible combinations
    ("recipe=grpo_math", "model.path=a/b"): ["model.path=a/b", "model.architecture", "model=a/b"],
    ("recipe=grpo_math", "model=gone.gguf"): ["model.path=gone.gguf: there is no such file"],
    ("recipe=grpo_math", "box_answers=true"): ["box_answers=true", "algorithm: sft"],
    ("recipe=sft_arithmetic", "data=words"): ["corruption", "data=arithmetic"],
    ("recipe=grpo_math", "model.architecture=null", "model.init=null"): ["model.path: required"],
    ("recipe=grpo_math", "model.architecture.hiden_size=8"): ["hiden_size=8", "did you mean hidden_size?"],
    ("recipe=grpo_math", "model.architecture.hidden_size=big"): ["hidden_size=big", "a whole number"],
    ("recipe=grpo_math", "model.architecture.num_key_value_heads=3"): ["num_key_value_heads=3", "divide"],
    ("recipe=grpo_math", "model.enable_thinking=true"): ["model.enable_thinking", "must be null"],
    ("recipe=grpo_math", "model.weights_dtype=bfloat16"): ["model.weights_dtype=bfloat16", "model.lora"],
    ("recipe=grpo_math", "model.lora.target_modules=[]"): ["model.lora.target_modules", "at least one"],
    ("recipe=grpo_math", "model.freeze=['(']"): ["model.freeze=(", "no regular expression"],
    ("recipe=grpo_math", "model.freeze=[norm]", "model.lora.r=8"): ["model.freeze", "no effect beside model.lora"],
    ("recipe=grpo_math", "data.name=sums"): ["data.path: required"],
    ("recipe=grpo_math", "data.test_path=x.jsonl"): ["data.test_path=x.jsonl", "no effect"],
    ("recipe=grpo_math", "data.levels=[]"): ["data.levels", "at least one"],
    ("recipe=grpo_math", "data=gsm8k", "data.levels=[3]"): ["data.levels=[3]", "data.columns.level"],
    ("recipe=grpo_math", "batch.micro_batch=7"): ["batch.micro_batch=7", "128", "nearest: 8"],
    ("recipe=sft_arithmetic", "batch.micro_batch=128"): ["batch.micro_batch=128", "64"],
    ("recipe=sft_arithmetic", "batch.updates_per_generation=2"): ["batch.updates_per_generation=2", "sft"],
    ("recipe=sft_arithmetic", "rollout.engine=vllm"): ["rollout.engine=vllm", "sft"],
    ("recipe=sft_arithmetic", "data=gsm8k"): ["corruption", "corruption=null"],
    ("recipe=sft_arithmetic", "data=x.csv", "corruption=null"): ["data.columns.solution: required"],
    ("recipe=grpo_math", "corruption.drop_box=0.5"): ["corruption", "sft"],
    ("recipe=grpo_math", "evaluation.k=[1,16]"): ["evaluation.k=[1, 16]", "evaluation.samples=8"],
    ("recipe=grpo_math", "evaluation.k=[]"): ["evaluation.k=[]"],
    ("recipe=grpo_math", "evaluation.data=[gsm8]"): ["evaluation.data=gsm8", "did you mean gsm8k?"],
    ("recipe=grpo_math", "optim.betas=[0.9,1.0]"): ["optim.betas=[0.9, 1.0]", "< 1"],
    ("recipe=grpo_math", "optim.promotion_steps=6"): ["optim.promotion_steps=6", "optim.ns_steps=5"],
    ("recipe=grpo_math", "optim.overrides=[{pattern: '('}]"): ["optim.overrides.0.pattern", "regular expression"],
    ("recipe=grpo_math", "rollout.engine=vllm", "device=cpu"): ["rollout.engine=vllm", "device=cpu"],
    ("recipe=grpo_math", "run=../x"): ["run=../x", "letters"],
    # what would be ignored, or is not there
    ("recipe=grpo_math", "optim=lora_muon"): ["optim=lora_muon: updates LoRA factors", "model.lora.r=16"],
    ("recipe=grpo_math", "trainer.use_liger_kernel=true"): ["liger-kernel is not installed"],
    ("recipe=grpo_math", "resume=checkpoints/x", "output_dir=y"): ["output_dir=y: no effect with resume=checkpoints/x"],
    ("recipe=grpo_math", "resume=checkpoints/x", "run=z"): ["run=z: no effect"],
    ("recipe=grpo_math", "trainer.max_prompt_length=512"): ["TRL has it no more", "dropped before training, by name"],
    # rewards
    ("recipe=grpo_math", "reward=foo"): ["reward=foo: unknown", "math", "module:function"],
    ("recipe=grpo_math", "reward=regex"): ["reward.options.pattern: required"],
    ("recipe=grpo_math", "reward=regex", "reward.options.pattern=(a"): ["no regular expression", "missing )"],
    ("recipe=grpo_math", "reward.options.extrct=[boxed]"): ["reward.options.extrct", "did you mean extract?"],
    ("recipe=grpo_math", "reward.options.extract=[box]"): ["reward.options.extract.0=box", "last_number"],
    ("recipe=grpo_math", "reward=[{nme: math, name: math}]"): ["reward.0.nme=math", "did you mean name?"],
    ("recipe=grpo_math", "reward=[{name: math}, {name: mth}]"): ["reward.1.name=mth", "did you mean math?"],
    ("recipe=grpo_math", "reward=[{name: math}, {name: math}]"): ["math stands there twice"],
    ("recipe=grpo_math", "reward=[{name: math, weight: 0}]"): ["every weight is 0"],
    ("recipe=grpo_math", "reward=[]"): ["at least one"],
    ("recipe=grpo_math", "reward=no_such_module:f"): ["no module no_such_module"],
    ("recipe=grpo_math", "reward=tests/gone.py:f"): ["no file tests/gone.py"],
    ("recipe=grpo_math", "reward.name=json:lods"): ["reward.name=json:lods", "json", "did you mean loads?"],
    ("recipe=grpo_math", "reward=json:3"): ["must be module:function"],
    ("recipe=grpo_math", "reward=length", "reward.options.limit=0"): ["reward.options.limit=0", ">= 1"],
    ("recipe=grpo_math", "reward=judge", "reward.options.model=m"): ["reward.options.url: required; add"],
    ("recipe=grpo_math", "trainer.multi_objective_aggregation=normalize_then_sum"): ["no effect with one reward"],
    ("recipe=grpo_math", "trainer.reward_weights=[1]"): ["trainer.reward_weights", "reward=[{name: ..., weight: ...}"],
    ("recipe=grpo_math", "data=x.jsonl", "data.columns.answer=null"): ["data.columns.answer: required for reward=math"],
    # ranges of a seed: numpy takes 32 bits
    ("recipe=grpo_math", "seed=4294967296"): ["seed=4294967296", "< 4294967296"],
    ("recipe=grpo_math", "evaluation.seed=4294967296"): ["evaluation.seed=4294967296", "< 4294967296"],
    ("recipe=grpo_math", "evaluation.seed=-1"): ["evaluation.seed=-1", ">= 0"],
    # names of rules
    ("recipe=grpo_math", "optim.rule=foo"): ["optim.rule=foo", "adamw", "pion"],
    ("recipe=grpo_math", "optim.rule=pionn"): ["optim.rule=pionn", "did you mean pion?"],
    ("recipe=grpo_math", "optim.rule=pion_paper"): ["optim.rule=pion_paper", "a preset", "optim=pion_paper"],
    ("recipe=grpo_math", "optim.name=pionn"): ["optim.name=pionn", "did you mean pion?"],
    ("recipe=grpo_math", "optim.name=adamw"): ["optim.name=adamw", "the rule is muon", "optim.rule=adamw"],
    ("recipe=grpo_math", "optim.roles={mlp: pion_paper}"): [
        "optim.roles.mlp.rule=pion_paper: a preset",
        "optim.roles.mlp={rule: pion, weight_decay: 0.01, promotion_steps: 0, adjust_lr: paper}",
    ],
    ("recipe=grpo_math", "optim.roles={mlp: muon_whole}"): ["a preset", "optim.roles.mlp={rule: muon, split: whole}"],
    ("recipe=grpo_math", "optim.normalise=spectrall"): ["optim.normalise=spectrall", "spectral"],
    ("recipe=grpo_math", "optim.plugins=[no_such_rules]"): ["optim.plugins=no_such_rules", "no such module"],
    ("recipe=grpo_math", "optim.roles={attention: nosuch}"): ["optim.roles.attention.rule=nosuch", "adamw", "pion"],
    ("recipe=grpo_math", "optim.overrides=[{pattern: x, rule: mun}]"): ["optim.overrides.0.rule=mun", "mean muon?"],
    ("recipe=grpo_math", "optim.overrides=[{pattern: x, adjust_lr: foo}]"): ["overrides.0.adjust_lr=foo", "paper"],
    # what Hydra would answer in words of its own
    ("recipe=grpo_math", "optim.overrides.0.pattern=x"): ["overrides.0.pattern=x", "optim.overrides=[{pattern: ...}]"],
    ("recipe=grpo_math", "optim.betas.0=0.8"): ["optim.betas.0=0.8", "optim.betas=[...]"],
    ("recipe=grpo_math", "model="): ["model=", "no value", "qwen3_0.6b"],
    ("recipe=grpo_math", "optim="): ["optim=", "no value", "pion"],
    ("recipe=grpo_math", "seed.0=3"): ["seed.0", "seed is no mapping"],
    # architectures
    ("recipe=grpo_math", "model.architecture.num_attention_heads=0"): ["num_attention_heads=0", "> 0"],
    ("recipe=grpo_math", "model.architecture.hidden_size=-4"): ["hidden_size=-4", "> 0"],
    ("recipe=grpo_math", "model.architecture.head_dim=15"): ["head_dim=15", "even"],
    ("recipe=grpo_math", "model.architecture.vocab_size=99"): ["vocab_size=99", "the tokenizer decides"],
    ("recipe=grpo_math", "model.architecture.eos_token_id=2"): ["eos_token_id=2", "the tokenizer decides"],
}


def test_fewer_samples_leave_out_what_a_profile_measures_with_more() -> None:
    for model, given, expected in (
        ("tiny", ["evaluation.samples=4"], [1]),
        ("smollm2_135m", ["evaluation.samples=4"], [1, 4]),
        ("tiny", ["evaluation.samples=4", "evaluation.k=[2]"], [2]),
    ):
        assert load_recipe(["recipe=grpo_math", f"model={model}", *given]).evaluation.k == expected


def test_rewards_of_a_list_may_be_names() -> None:
    recipe = load_recipe(["recipe=grpo_math", "reward=[math, {name: length, weight: 0.1, options: {limit: 9}}]"])
    assert [(reward.name, reward.weight) for reward in recipe.rewards] == [("math", 1.0), ("length", 0.1)]


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_a_mistake_is_one_line(arguments: tuple[str, ...]) -> None:
    text = line(*arguments)
    for part in MISTAKES[arguments]:
        assert part in text, text


def test_several_mistakes_are_a_line_each_and_five_at_most() -> None:
    text = refusal("recipe=grpo_math", "optim.lr=x", "seed=y", "trainer.max_stepss=3")
    assert [each.partition("=")[0] for each in text.splitlines()] == ["optim.lr", "seed", "trainer.max_stepss"]
    many = refusal("recipe=grpo_math", *(f"batch.key{index}=1" for index in range(9))).splitlines()
    assert len(many) == 6 and many[-1] == "... and 4 more"


@pytest.mark.parametrize("content", ["a: [", "- 1", "defaults: [x]", "\x00", ""])
def test_a_file_that_is_no_recipe_is_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(content, encoding="utf-8")
    assert refusal(f"recipe={file}")


def test_a_hand_written_recipe_is_checked_like_a_shipped_one(tmp_path: Path) -> None:
    values = yaml.safe_load(dump_recipe(load_recipe(["recipe=grpo_math"])))
    del values["optim"]["lr"]
    values["optim"]["lrr"] = 5e-5
    values["trainer"]["epsilonn"] = 0.1
    del values["algorithm"]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    text = refusal(f"recipe={file}")
    assert "optim.lrr=5e-05: unknown key; did you mean lr?" in text and "algorithm: required" in text


def test_a_key_that_is_a_number_is_unknown_where_there_is_no_list(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    text = dump_recipe(load_recipe(["recipe=grpo_math"]))
    file.write_text(text + "1: 2\n", encoding="utf-8")
    assert line(f"recipe={file}").startswith("1=2: unknown key")
    file.write_text(text.replace("optim:\n", "optim:\n  7: 2\n"), encoding="utf-8")
    assert line(f"recipe={file}").startswith("optim.7=2: unknown key")


def test_the_suffix_of_a_data_file_may_be_written_large(tmp_path: Path) -> None:
    for key in ("data", "data.path"):
        for name in ("A.JSONL", "B.Csv"):
            assert load_recipe(["recipe=grpo_math", f"{key}={name}"]).data.path == name


def test_seeds_below_32_bits_and_the_base_of_the_rotation_pass() -> None:
    recipe = load_recipe(["recipe=grpo_math", "seed=4294967295", "model.architecture.rope_theta=10000.0"])
    assert recipe.seed == 2**32 - 1 and recipe.model.architecture["rope_theta"] == 10000.0


def test_every_rule_is_an_optimizer_by_its_name() -> None:
    """That each gives its rule and can be built: tests/rlvr/training/test_every_optimizer.py."""
    from rlspec.optim import RULES

    assert set(RULES) == set(built_in_rules()) <= set(list_optimizers())


def test_another_rule_has_not_the_second_rate_of_the_one_that_the_recipe_begins_with() -> None:
    assert load_recipe(["recipe=grpo_math"]).optim.adamw_lr_scale == 5.0
    assert load_recipe(["recipe=grpo_math", "optim.rule=normuon"]).optim.adamw_lr_scale == 1.0
    assert load_recipe(["recipe=grpo_math", "optim.rule=normuon", "optim.adamw_lr_scale=3"]).optim.adamw_lr_scale == 3.0
    chosen = load_recipe(["recipe=grpo_math", "optim=muon_two_rates", "optim.rule=normuon"])
    assert chosen.optim.adamw_lr_scale == 5.0


def test_a_stored_recipe_is_read_when_the_checkpoint_that_it_began_with_was_rotated_away(tmp_path: Path) -> None:
    from rlspec.checkpoint import remove_folder, staged_folder

    for step in (10, 20):
        with staged_folder(tmp_path / "checkpoints" / f"checkpoint-{step}", metadata={"step": step}) as folder:
            (folder / "config.json").write_text("{}")
    ten = tmp_path / "checkpoints" / "checkpoint-10"
    recipe = load_recipe(["recipe=grpo_math", "data=arithmetic", f"model={ten}"])
    (tmp_path / "stored.yaml").write_text(dump_recipe(recipe))
    remove_folder(ten)
    assert load_recipe([f"recipe={tmp_path / 'stored.yaml'}"]).model.path == str(ten)
    with pytest.raises(CheckpointError, match=r"no such checkpoint; here are checkpoint-20"):
        load_recipe(["recipe=grpo_math", "data=arithmetic", f"model={ten}"])


@pytest.mark.parametrize("section", ["tiny", "[tiny]", "3"])
def test_a_section_that_is_no_mapping_is_said(section: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"recipe: mine\nalgorithm: grpo\nmodel: {section}\n")
    with pytest.raises(ConfigError, match=r"model=.*: must be a mapping"):
        load_recipe([f"recipe={tmp_path / 'mine.yaml'}"])


def test_the_run_is_named_after_what_it_does() -> None:
    whole = load_recipe(["recipe=grpo_math", "optim=muon_whole"])
    assert (whole.optim.rule, whole.optim.split, whole.run_name) == ("muon", "whole", "grpo_math-tiny-muon_whole-seed0")
    assert load_recipe(["recipe=grpo_math", "optim.rule=adago"]).run_name == "grpo_math-tiny-adago-seed0"
    recipe = load_recipe(["recipe=grpo_math", "optim=muon", "seed=2"])
    assert isinstance(recipe, Recipe) and recipe.run_name == "grpo_math-tiny-muon-seed2"


def test_recipes_are_loaded_in_threads_and_within_anothers_hydra(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        callers = GlobalHydra.instance().hydra
        assert callers is not None
        with ThreadPoolExecutor(4) as pool:
            rates = list(
                pool.map(lambda lr: load_recipe(["recipe=debug_grpo", f"optim.lr={lr}"]).optim.lr, range(1, 9))
            )
        assert GlobalHydra.instance().hydra is callers
    assert rates == list(range(1, 9))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.top_p=0.9", "trainer.top_p=0.9: with rollout.engine=vllm .* biases the ratio; set 1"),
        ("trainer.top_k=20", "trainer.top_k=20: .* set 0"),
        ("trainer.min_p=0.1", "trainer.min_p=0.1: .* set 0"),
        ("trainer.repetition_penalty=1.1", "trainer.repetition_penalty=1.1: .* set 1"),
        ("trainer.vllm_importance_sampling_correction=false", "nothing would correct for it"),
        ("trainer.generation_kwargs={presence_penalty: 0.5}", "trainer.generation_kwargs.presence_penalty: .* biases"),
        ("trainer.vllm_structured_outputs_regex=a+", "trainer.vllm_structured_outputs_regex: .* biases the ratio"),
    ],
)
def test_what_would_bias_the_ratio_of_vllms_completions_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(["recipe=grpo_math", "rollout.engine=vllm", "trainer.vllm_mode=server", override])
    if "vllm" not in override:
        assert load_recipe(["recipe=grpo_math", override])


@pytest.mark.parametrize("override", ["batch.norm_test=true", "optim.penalties=[{name: orthogonal, roles: [mlp]}]"])
def test_what_needs_whole_matrices_is_refused_with_cut_ones(override: str) -> None:
    assert load_recipe(["recipe=grpo_math", "batch.micro_batch=8", override])
    with pytest.raises(ConfigError, match=r"needs? whole .* on every process; set sharding=ddp"):
        load_recipe(["recipe=grpo_math", "batch.micro_batch=8", "sharding=fsdp2", override])


def test_weights_of_robots_policies_are_cut_but_not_under_penalties_or_in_grpo() -> None:
    assert load_vla_recipe(["recipe=vla_franka", "sharding=fsdp2"]).sharding == "fsdp2"
    for key in ("sharding=fsdp2", "launch.processes=2"):
        with pytest.raises(ConfigError, match=rf"{key.split('=')[0]}: grpo trains in one process"):
            load_vla_recipe(["recipe=vla_grpo_franka", key])
    with pytest.raises(ConfigError, match=r"needs? whole .* on every process; set sharding=ddp"):
        load_vla_recipe(["recipe=vla_franka", "sharding=fsdp2", "optim.penalties=[{name: orthogonal, roles: [mlp]}]"])


@pytest.mark.parametrize("key", ["model.path", "model.init", "policy.path"])
def test_a_recipe_that_starts_from_a_run_names_its_newest_whole_checkpoint(tmp_path: Path, key: str) -> None:
    """The other run may go on. A checkpoint or a hub id stays what it is."""
    start = {
        "model.path": ["recipe=debug_grpo", "data=arithmetic", "model=hub"],
        "model.init": ["recipe=debug_grpo"],
        "policy.path": ["recipe=vla_franka"],
    }
    part, field = key.split(".")

    def named(path: str) -> str:
        found: str = getattr(getattr(load_any_recipe([*start[key], f"{key}={path}"]), part), field)
        return found

    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=rf"{key}=.*: the run has no checkpoint yet"):
        named(str(tmp_path))
    for step in (1, 2):
        with staged_folder(tmp_path / "checkpoints" / f"checkpoint-{step}", metadata={"step": step}) as folder:
            (folder / "config.json").write_text("{}")
    first, second = (str(tmp_path / "checkpoints" / f"checkpoint-{step}") for step in (1, 2))
    assert (named(str(tmp_path)), named(first), named("org/name")) == (second, first, "org/name")
    (tmp_path / "checkpoints" / "checkpoint-2" / "config.json").write_text("")
    assert named(str(tmp_path)) == first
