"""The loss on episodes that are not trained on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_cases import MadeUpSamples, changed, course, make_recipe, resume, train, weights_equal

from rlspec.config.load import check_recipe
from rlspec.errors import ConfigError
from rlspec.vla.training.held_out import BATCHES, HeldOutLoss, SomeSamples, hold_out

HELD = ["training.held_out=0.25", "training.held_out_every=2"]


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["held_out/loss"] for row in course(run) if "held_out/loss" in row}


def test_episodes_are_held_out_whole_and_never_trained_on(tmp_path: Path) -> None:
    trained, held = hold_out(MadeUpSamples(), 0.25)
    assert held is not None and len({*held.episodes}) == 1
    assert not {*held.episodes} & {*trained.episodes} and len(held) + len(trained) == 40
    samples = MadeUpSamples()
    run = train(tmp_path, *HELD, "training.steps=6", samples=samples)
    hidden, size = {*held.indices.tolist()}, 4
    batches = [batch for batch in samples.taken if hidden & {*batch}]
    assert all({*batch} <= hidden for batch in batches), "a batch of training has a frame that is held out"
    measured = sorted(losses(run))
    assert measured == [2, 4, 6] and len(batches) == len(measured) * -(-len(hidden) // size)
    assert len(hidden) <= BATCHES * size
    assert sum(len(batch) for batch in batches[:3]) == len(hidden)


def test_the_loss_is_the_same_whatever_was_seen_before_and_falls_where_something_is_learnt(tmp_path: Path) -> None:
    longer = ["training.steps=12", "training.scheduler.num_warmup_steps=0", *HELD]
    found = losses(train(tmp_path, *longer, "training.held_out_every=4"))
    assert found[12] < found[4]
    again = train(tmp_path / "again", *longer)
    assert losses(again)[12] == found[12], "how often it is measured changes nothing"


def test_a_run_goes_on_bit_for_bit_with_its_held_out_loss(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *HELD, "checkpoints.every=2")
    cut = train(tmp_path / "cut", *HELD, "checkpoints.every=2", stop_after=3)
    resume(cut)
    assert weights_equal(whole, cut, 4)
    assert losses(cut) == losses(whole) and sorted(losses(cut)) == [2, 4]


def test_the_mean_is_over_frames_and_every_part_has_its_own_noise_that_comes_back() -> None:
    passes: list[int] = []

    def forward(policy: Any, batch: Any, *, step: int, number: int) -> tuple[torch.Tensor, None]:
        passes.append(number)
        return torch.tensor(float(len(batch["action"]))), None

    samples = MadeUpSamples(length=50)
    held = SomeSamples(samples, np.arange(10))
    state: Any = SimpleNamespace(loaded=SimpleNamespace(policy=None), averaged=contextlib.nullcontext)
    runner: Any = SimpleNamespace(forward=forward, shape=SimpleNamespace(size=4))
    loss = HeldOutLoss(held, runner, every=1)
    assert loss.measure(state) == pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10)
    assert loss.measure(state) == loss.measure(state)
    first, second, third = passes[:3], passes[3:6], passes[6:9]
    assert first == second == third and len({*first}) == 3, "parts share their noise, or it changes"


def test_one_episode_cannot_be_split() -> None:
    samples = MadeUpSamples(length=8)
    with pytest.raises(ConfigError, match="the data has one recording"):
        hold_out(samples, 0.1)
    assert hold_out(samples, 0.0) == (samples, None)


@pytest.mark.parametrize(("share", "episodes"), [(0.01, 1), (0.3, 3), (0.5, 5)])
def test_a_share_is_rounded_to_at_least_one(share: float, episodes: int) -> None:
    _, held = hold_out(MadeUpSamples(length=100), share)
    assert held is not None and len(np.unique(held.episodes)) == episodes


@pytest.mark.parametrize("marked", [18, 17])
def test_a_recording_is_held_out_with_all_its_episodes(marked: int, tmp_path: Path) -> None:
    """Six recordings, of each an episode with each of three instructions; a record of other episodes says nothing."""
    samples = MadeUpSamples(length=180)
    samples.meta.root = tmp_path
    (tmp_path / "meta").mkdir()
    about = [{"source": f"lab/{episode // 3}"} for episode in range(marked)]
    (tmp_path / "meta/rlspec.json").write_text(json.dumps({"episodes": about}))
    trained, held = hold_out(samples, 0.34)
    assert held is not None and len(held) == 60
    shared = {*(held.episodes // 3)} & {*(trained.episodes // 3)}
    assert bool(shared) is (marked < 18)


def test_reinforcement_has_no_data_to_hold_out(tmp_path: Path) -> None:
    values: dict[str, Any] = json.loads(make_recipe(tmp_path, *HELD).model_dump_json())
    with pytest.raises(ConfigError, match="training.held_out=0.25: grpo reads no data set"):
        check_recipe(changed(values, "algorithm=grpo", "policy.path=some/run"))
