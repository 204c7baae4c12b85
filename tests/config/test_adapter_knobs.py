"""peft's own knobs in a recipe's section lora: passed through, and refused by name where they would not work."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlspec.config.load import dump_recipe, load_recipe
from rlspec.errors import ConfigError

BASE = ["recipe=grpo_math", "+model.lora.r=4"]


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["+model.lora.options={init_lora_weights: pissa}"], {"init_lora_weights": "pissa"}),
        (["+model.lora.options={use_dora: true}"], {"use_dora": True}),
        (["+model.lora.options={init_lora_weights: false, rank_pattern: {q_proj: 8}}"], None),
    ],
)
def test_knobs_of_lora_pass(overrides: list[str], options: dict[str, object] | None) -> None:
    lora = load_recipe([*BASE, *overrides]).model.lora
    assert lora is not None and (options is None or lora.options == options)


def test_fourierft_passes_with_its_own_knobs() -> None:
    recipe = load_recipe(
        ["recipe=grpo_math", "+model.lora={method: fourierft, target_modules: [q_proj], options: {n_frequency: 64}}"]
    )
    assert recipe.model.lora is not None and recipe.model.lora.method == "fourierft"


def test_a_stored_recipe_of_fourierft_is_read_again(tmp_path: Path) -> None:
    recipe = load_recipe(["recipe=grpo_math", "+model.lora={method: fourierft, target_modules: [q_proj]}"])
    (tmp_path / "stored.yaml").write_text(dump_recipe(recipe))
    assert load_recipe([f"recipe={tmp_path / 'stored.yaml'}"]) == recipe


WRONG = {
    "+model.lora.options={use_dorra: true}": ["options.use_dorra=true", "did you mean use_dora"],
    "+model.lora.options={use_dora: 3}": ["options.use_dora=3", "true or false"],
    "+model.lora.options={rank_pattern: [8]}": ["options.rank_pattern=[8]", "a mapping"],
    "+model.lora.options={lora_alpha: 3}": ["options.lora_alpha=3", "use model.lora.alpha"],
    "+model.lora.options={init_lora_weights: eva}": ["init_lora_weights=eva", "pissa"],
    "+model.lora.options={modules_to_save: [lm_head]}": ["modules_to_save", "LoraConfig"],
    "+model.lora.options={eva_config: {}}": ["eva_config"],
    "+model.lora.method=fourierft": ["model.lora.r=4", "fourierft ignores it"],
    "+model.lora.method=svft": ["model.lora.method", "fourierft"],
}


@pytest.mark.parametrize("override", WRONG)
def test_what_would_not_work_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe([*BASE, override])
    assert all(word in str(caught.value) for word in WRONG[override])


def test_a_reference_model_needs_a_start_that_leaves_the_base_as_it_was() -> None:
    pissa = "+model.lora.options={init_lora_weights: pissa}"
    with pytest.raises(ConfigError, match=r"trainer.beta=0.01: not with model.lora.options.init_lora_weights=pissa"):
        load_recipe([*BASE, pissa, "trainer.beta=0.01"])
    load_recipe([*BASE, pissa, "trainer.beta=0"])
    load_recipe([*BASE, "+model.lora.options={use_dora: true}", "trainer.beta=0.01"])


def test_a_robots_policy_has_the_same_knobs() -> None:
    given = ["recipe=vla_libero", "+policy.lora.r=4", "policy.path=org/name"]
    with pytest.raises(ConfigError, match=r"policy.lora.options.use_dorra=true"):
        load_recipe([*given, "+policy.lora.options={use_dorra: true}"])
