"""What may change when a run is resumed."""

from __future__ import annotations

from rlspec.config.load import load_recipe
from rlspec.config.match import as_written_today, differing_keys
from rlspec.config.rlvr_schema import Recipe


def dump(*overrides: str) -> dict:
    return load_recipe(["recipe=debug_grpo", *overrides]).model_dump(mode="json")


def test_how_long_a_run_goes_on_and_what_it_writes_may_change() -> None:
    changed = dump("trainer.max_steps=9", "report.tensorboard=false", "checkpoints.every=1", "output_dir=x", "run=y")
    assert differing_keys(dump(), changed) == []


def test_what_shapes_the_weights_is_named_with_both_values() -> None:
    assert differing_keys(dump(), dump("optim.lr=0.5")) == [("optim.lr", 0.001, 0.5)]
    keys = [key for key, *_ in differing_keys(dump(), dump("optim=muon", "seed=3", "trainer.epsilon=0.3"))]
    assert {"optim.name", "seed", "trainer.epsilon"} <= set(keys)


def test_keys_that_have_come_since_a_recipe_was_stored_have_their_defaults() -> None:
    now = dump("+model.lora.r=4", "optim.overrides=[{pattern: q_proj, rule: adamw}]")
    before = dump("+model.lora.r=4", "optim.overrides=[{pattern: q_proj, rule: adamw}]")
    del before["sharding"], before["optim"]["adamw_lr_scale"], before["model"]["lora"]["path"]
    del before["optim"]["overrides"][0]["transposed"]
    assert differing_keys(before, now)
    assert as_written_today(before, Recipe) == now
    assert as_written_today({"optim": {"gone": 1}}, Recipe) == {"optim": {"gone": 1}}
