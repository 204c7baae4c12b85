"""A robot's policy as something to diagnose: its parts against the training's own gradient, its stored moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import FakeEvaluator, MadeUpSamples, make_recipe, run

from rlspec.diagnostics.studies import spectra
from rlspec.diagnostics.subject import Subject
from rlspec.display import Display
from rlspec.errors import DataError
from rlspec.vla.diagnosis import robot_subject


def look(settings: Any, folder: Path | None = None, samples: Any = None, **sizes: int) -> Subject:
    data = MadeUpSamples() if samples is None else samples
    return robot_subject(
        settings, str(folder) if folder else None, display=Display("plain", quiet=True),
        samples=lambda *_: data, **({"parts": 4, "size": 2} | sizes),
    )  # fmt: skip


def test_parts_give_the_gradient_of_their_mean_loss_and_the_same_whenever_asked(tmp_path: Path) -> None:
    subject = look(make_recipe(tmp_path))
    assert [subject.unit, subject.step_parts] == ["micro-batches of 2 frames", 2]
    loss = sum(subject.loss(part.batch) for part in subject.parts) / 4
    params = subject.parameters()
    wanted = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    found = subject.mean_gradient("test")
    assert found.keys() == {name for name, value in zip(params, wanted, strict=True) if value is not None}
    for name, value in zip(params, wanted, strict=True):
        if value is not None:
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)


def test_states_are_what_the_output_layer_reads(tmp_path: Path) -> None:
    subject = look(make_recipe(tmp_path))
    states, labels = subject.represent(subject.parts[0].batch)
    assert states.shape == (2 * 4, 32)  # frames times steps of a chunk, width of the head
    assert len(labels) == 8
    assert len(set(labels[:4].tolist())) == 1


def test_a_checkpoint_brings_the_momenta_of_its_optimizer(tmp_path: Path) -> None:
    settings = make_recipe(tmp_path)
    assert run(settings, MadeUpSamples(), FakeEvaluator({})) == 0
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    subject = look(settings, folder)
    stored = torch.load(folder / "training_state.pt", weights_only=True)["optimizer"]
    kept = [state["momentum_buffer"] for state in stored["state"].values() if "momentum_buffer" in state]
    spectral = [spec.name for spec in subject.mapping if spec.rule == "muon"]
    assert {name for name in spectral if name in subject.momenta} and len(kept) == len(spectral)
    norms = sorted(float(value.norm()) for value in kept)
    assert sorted(float(subject.momenta[name].norm()) for name in spectral) == pytest.approx(norms)
    assert {"gradient", "momentum"} <= spectra.study(subject).numbers.keys()


def test_no_frames_are_no_subject(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has no frames; choose another data set"):
        look(make_recipe(tmp_path), samples=())
