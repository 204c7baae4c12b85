"""Recipes of behaviour cloning resolve, combine, survive a round trip, and answer every mistake in one line."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from rlspec.config.kinds import is_robotic
from rlspec.config.lerobot_sources import policy_fields, policy_types, scheduler_fields, scheduler_types
from rlspec.config.load import check_recipe, dump_recipe, load_any_recipe, load_recipe, load_vla_recipe
from rlspec.config.optim import builder_settings
from rlspec.config.paths import list_group, list_recipes
from rlspec.errors import ConfigError

RECIPES = [name for name in list_recipes() if is_robotic(name)]
NAMED = [name for name in list_group("policy") if name not in ("pretrained", "scratch")]


def line(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_vla_recipe(arguments)
    text = str(caught.value)
    assert "\n" not in text, text
    return text


def pairs() -> Iterator[Any]:
    """All of them; by default each recipe and each policy once at least."""
    for i, recipe in enumerate(RECIPES):
        for j, policy in enumerate(NAMED):
            often = i % len(NAMED) == j or j % len(RECIPES) == i
            yield pytest.param(recipe, policy, marks=[] if often else [pytest.mark.slow])


@pytest.mark.parametrize(("recipe", "policy"), list(pairs()))
def test_every_recipe_takes_every_policy(recipe: str, policy: str) -> None:
    start = ["policy.path=someone/run"] if recipe == "vla_grpo_libero" else []  # it starts from what the user names
    loaded = load_vla_recipe([f"recipe={recipe}", f"policy={policy}", *start])
    assert (loaded.recipe, loaded.policy.name) == (recipe, policy)
    assert policy in loaded.run_name


@pytest.mark.parametrize("policy", ["smolvla", "pi05"])
def test_grpo_on_libero_reinforces_what_its_evaluation_measures(policy: str) -> None:
    from rlspec_envs.libero.profiles import PROFILES

    loaded = load_vla_recipe(["recipe=vla_grpo_libero", f"policy={policy}", "policy.path=someone/run"])
    assert loaded.evaluation.profile is not None
    assert loaded.policy.options["n_action_steps"] == PROFILES[loaded.evaluation.profile].replan_steps


@pytest.mark.parametrize(
    ("env", "optim"), list(zip(list_group("env"), cycle(["adamw", "muon", "vla_pion"]), strict=False))
)
def test_every_simulator_takes_every_optimizer(env: str, optim: str) -> None:
    loaded = load_vla_recipe(["recipe=vla_franka", f"env={env}", f"optim={optim}"])
    assert loaded.env is not None and loaded.env.name == env
    assert builder_settings(loaded.optim, 1)["roles"] == ("vla" if optim == "vla_pion" else {})


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe=vla_franka", "policy.freeze=[{part: vision, until: 100}]", "seed=3"],
        ["recipe=vla_libero", "optim=muon", "evaluation.profile=lerobot", "policy.lora.r=4"],
        ["recipe=vla_franka", "dataset=someone/pick", "policy=someone/Policy", "policy.type=act"],
    ],
    ids=["freeze", "lora", "hub"],
)
def test_a_resolved_recipe_is_itself_a_recipe(arguments: list[str], tmp_path: Path) -> None:
    first = load_vla_recipe(arguments)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(first), encoding="utf-8")
    assert load_vla_recipe([f"recipe={path}"]) == first
    assert load_vla_recipe([f"recipe={path}", "optim=adamw"]).optim.name == "adamw"


def test_a_folder_is_a_data_set_and_a_hub_id_too(tmp_path: Path) -> None:
    local = load_vla_recipe(["recipe=vla_franka", f"dataset={tmp_path}"]).dataset
    assert (local.root, local.demonstrations) == (str(tmp_path), None)
    named = load_vla_recipe(["recipe=vla_franka", "dataset=lerobot", f"dataset.root={tmp_path}"]).dataset
    assert (named.root, named.repo_id) == (str(tmp_path), None), "or messages would be of ???"
    remote = load_vla_recipe(["recipe=vla_franka", "dataset=someone/Pick-Cubes"]).dataset
    assert (remote.repo_id, remote.name) == ("someone/Pick-Cubes", "pick-cubes")


def test_each_kind_of_recipe_has_a_command_of_its_own() -> None:
    assert "language model" in line("recipe=grpo_math")
    with pytest.raises(ConfigError, match="robot's policy"):
        load_recipe(["recipe=vla_franka"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["policy.type=rlspec_adaptor"], ["policy.type=rlspec_adaptor", "rlspec_adapter"]),
        (["policy=scratch"], ["policy.type: required; add policy.type=..."]),
        (["policy.options.chunk_sise=4"], ["policy.options.chunk_sise=4", "did you mean chunk_size"]),
        (["policy.options.n_action_steps=many"], ["policy.options.n_action_steps=many", "a whole number"]),
        (["policy.options.use_amp=true"], ["policy.options.use_amp", "training.bf16"]),
        (["policy.options.optimizer_lr=1"], ["policy.options.optimizer_lr", "optim.*"]),
        (["policy.lora.r=4"], ["policy.lora", "policy.path"]),
        (["policy.freeze=[{until: 3}]"], ["policy.freeze.0", "part or pattern"]),
        (["policy.freeze=[{pattern: '('}]"], ["policy.freeze.0.pattern=(", "no regular expression"]),
        (["training.scheduler.type=cosine"], ["training.scheduler.type=cosine", "cosine_decay_with_warmup"]),
        (["training.scheduler.warmup=3"], ["training.scheduler.warmup=3", "num_warmup_steps"]),
        (["training.augmentation.enabled=true"], ["training.augmentation.enabled", "enable"]),
        (["env.suite=libero_objects"], ["env.suite=libero_objects", "did you mean libero_object"]),
        (["env.suite=libero_long"], ["env.suite=libero_long", "did you mean libero_10"]),
        (["env=libero_long"], ["env=libero_long", "did you mean libero_10"]),
        (["env.tasks=[pik_place]"], ["env.tasks=pik_place", "pick_place"]),
        (["evaluation.profile=openpi"], ["evaluation.profile=openpi", "LIBERO"]),
        (["evaluation.perturb=[camrea]"], ["evaluation.perturb=camrea", "did you mean camera", "wrong_instruction"]),
        (["evaluation.perturb=[light]", "evaluation.strength=[4]"], ["evaluation.strength=4", "some of 1, 2, 3"]),
        (["evaluation.perturb=[light]", "evaluation.strength=[]"], ["evaluation.strength=[]", "at least one"]),
        (["dataset.tasks=[env]", "dataset=a/b", "env=null"], ["dataset.tasks=env", "there is no env"]),
        (["training.held_out=0.6"], ["training.held_out=0.6", "<= 0.5"]),
        (["dataset.repo_id=a/b"], ["dataset.repo_id=a/b", "dataset.demonstrations"]),
        (["dataset.demonstrations=null"], ["dataset.repo_id", "required"]),
        (["optim.roles=vlm"], ["optim.roles=vlm"]),
        (["training.steps=0"], ["training.steps=0", ">= 1"]),
        (["env=franca"], ["env=franca", "did you mean franka"]),
        (["model=tiny"], ["model=tiny", "env, dataset, optim, policy"]),
        (["evaluation.episods=3"], ["evaluation.episods", "did you mean episodes"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_its_remedy(arguments: list[str], words: list[str]) -> None:
    text = line("recipe=vla_franka", *arguments)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], 0.5), (["policy=adapter_tiny"], 0.1), (["policy=adapter_tiny", "grpo.noise_level=0.3"], 0.3)],
)
def test_a_regression_head_is_given_less_noise_than_a_flow(given: list[str], expected: float) -> None:
    assert load_vla_recipe(["recipe=vla_grpo_franka", *given]).noise_level == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["policy.type=act", "policy.options={}"], ["policy.type=act", "no likelihood", "rlspec_flow"]),
        (["env=null"], ["env: required"]),
        (["evaluation.stop_at_success=0.6"], ["evaluation.stop_at_success: needs", "evaluation.every=STEPS"]),
        (["evaluation.stop_at_success=60", "evaluation.every=5"], ["evaluation.stop_at_success=60: must be", "<= 1"]),
        (["grpo.start=null"], ["policy.path: required", "grpo.start"]),
        (["policy.path=a/b", "policy.fresh=[action]"], ["policy.fresh", "nothing to reinforce"]),
        (["grpo.success=[0.9,0.1]"], ["grpo.success=[0.9,0.1]", "lower one first"]),
        (["grpo.mini_batches=3"], ["grpo.mini_batches=3", "grpo.groups_per_step=8"]),
        (["training.random_shift=2"], ["training.random_shift=2", "no data set"]),
        (["grpo.group_size=1"], ["grpo.group_size=1", ">= 2"]),
        (["grpo.noise_level=2"], ["grpo.noise_level=2", "<= 1.41"]),
        (["grpo.clip_hi=0.3"], ["grpo.clip_hi", "did you mean clip_high"]),
        (["model=tiny"], ["model=tiny", "env, dataset, optim, policy"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_of_reinforcement_is_one_line_with_its_remedy(arguments: list[str], words: list[str]) -> None:
    text = line("recipe=vla_grpo_franka", *arguments)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("door", "arguments", "words"),
    [
        ("collect", ["env=libero_90"], "no task of libero_90 has a scripted expert, those of franka, libero_spatial"),
        (
            "collect",
            ["env=libero_goal"],
            "libero_goal has no scripted expert of task 3; choose from",
        ),
        ("collect", ["env=libero_10", "task=1,9"], "libero_10 has no scripted expert of task 9; choose"),
        (
            "evaluate",
            ["env=libero_10", "policy=expert", "task=9"],
            "libero_10 has no scripted expert of task 9; choose",
        ),
    ],
)
def test_tasks_without_a_scripted_expert_are_named_before_anything_is_rendered(
    door: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    import rlspec_envs

    monkeypatch.setattr(rlspec_envs, "make_env", None)
    assert importlib.import_module(f"rlspec.{door}").main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "called", ["pick_up_the_milk_and_place_it_in_the_basket", "Pick up the milk and place it in the basket."]
)
def test_a_task_of_libero_that_is_called_by_its_words_is_told_its_number(
    called: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("libero") is None:
        pytest.skip("hf-libero is not installed")
    from rlspec.collect import main

    assert main(["env=libero_object", f"task={called}"]) == 2
    assert "libero_object numbers its tasks, that is 7" in capsys.readouterr().err
    assert "libero_object numbers its tasks, that is 7" in line("recipe=vla_libero", f"env.tasks=['{called}']")


def test_keys_of_reinforcement_belong_to_it_alone() -> None:
    assert "only for algorithm: grpo" in line("recipe=vla_franka", "grpo.group_size=4")
    assert "policy.path: required" in line("recipe=vla_grpo_libero")


def test_both_kinds_of_recipe_have_an_algorithm_called_grpo(tmp_path: Path) -> None:
    robots, language = load_any_recipe(["recipe=vla_grpo_franka"]), load_any_recipe(["recipe=grpo_math"])
    assert robots.algorithm == language.algorithm == "grpo" and type(robots) is not type(language)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(robots), encoding="utf-8")
    assert load_any_recipe([f"recipe={path}"]) == robots


def test_fields_are_those_of_the_installed_lerobot() -> None:
    assert {"act", "smolvla", "pi05", "rlspec_adapter", "rlspec_flow", "rlspec_smolvla"} <= set(policy_types())
    own, inherited = "resize_imgs_with_padding", "n_obs_steps"
    assert {own, inherited} <= policy_fields("rlspec_smolvla").keys()
    assert policy_fields("act")["chunk_size"].accepts(8) and not policy_fields("act")["chunk_size"].accepts("x")
    assert "diffuser" in scheduler_types()
    assert {"num_warmup_steps", "peak_lr"} <= scheduler_fields("cosine_decay_with_warmup").keys()


def test_what_the_schema_cannot_take_is_refused_in_one_line_each() -> None:
    with pytest.raises(ConfigError) as caught:
        check_recipe({"recipe": "x", "algorithm": "bc", "optim": {"name": "muon", "rule": "muon"}})
    assert {text.partition(":")[0] for text in str(caught.value).splitlines()} == {"dataset", "policy"}


def test_a_type_of_lerobots_own_leaves_the_fields_of_another_profile_behind() -> None:
    policy = load_vla_recipe(["recipe=vla_franka", "policy.type=act", "policy.options.chunk_size=16"]).policy
    assert (policy.name, policy.type, policy.options) == ("act", "act", {"chunk_size": 16})
    ours = load_vla_recipe(["recipe=vla_franka", "policy.type=rlspec_adapter"]).policy
    assert (ours.name, ours.options["size"]) == ("adapter_tiny", "tiny")
    with pytest.raises(ConfigError, match="policy.type=actt: unknown; did you mean act"):
        load_vla_recipe(["recipe=vla_franka", "policy.type=actt"])
