"""What may change when a run is resumed."""

from __future__ import annotations

from rlspec.config.load import load_recipe
from rlspec.config.match import differing_keys


def dump(*overrides: str) -> dict:
    return load_recipe(["recipe=debug_grpo", *overrides]).model_dump(mode="json")


def test_how_long_a_run_goes_on_and_what_it_writes_may_change() -> None:
    changed = dump("trainer.max_steps=9", "report.tensorboard=false", "checkpoints.every=1", "output_dir=x", "run=y")
    assert differing_keys(dump(), changed) == []


def test_what_shapes_the_weights_is_named_with_both_values() -> None:
    assert differing_keys(dump(), dump("optim.lr=0.5")) == [("optim.lr", 0.001, 0.5)]
    keys = [key for key, *_ in differing_keys(dump(), dump("optim=muon", "seed=3", "trainer.epsilon=0.3"))]
    assert {"optim.name", "seed", "trainer.epsilon"} <= set(keys)
