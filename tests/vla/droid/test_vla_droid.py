"""recipe=vla_droid: recordings are generated, converted and learnt from, and policies say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_smolvla import tiny_settings, write_tiny_vlm

from rlspec import evaluate, stats, train
from rlspec.serving.policy import Observation
from rlspec.serving.settings import ServedPolicy
from rlspec.vla.data.checking import check_dataset
from rlspec.vla.data.exact_statistics import numeric_statistics
from rlspec.vla.data.facts import read_facts, statistics_hash
from rlspec.vla.served import trained_policy

Output = pytest.CaptureFixture[str]
SMALL = [
    "recipe=vla_droid",
    "dataset.recordings.episodes=2",
    "dataset.recordings.workers=1",
    "env.options.image_size=[36,64]",
    "training.steps=2",
    "training.batch_size=4",
    "training.log_every=1",
    "evaluation.before=false",
    "evaluation.after=false",
    "report.tensorboard=false",
    "device=cpu",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the converted recordings are kept; the first test generates them."""
    return tmp_path_factory.mktemp("droid") / "data"


def run(folder: Path, data: Path, *overrides: str) -> Path:
    arguments = [*SMALL, f"dataset.root={data}", f"output_dir={folder}", "run=run", *overrides]
    assert train.main(arguments) == 0
    return folder / "run"


def newest(path: Path) -> Path:
    return path / "checkpoints" / "checkpoint-2"


def test_the_default_recipe_generates_converts_trains_and_says_what_it_learnt(
    data: Path, tmp_path: Path, capsys: Output
) -> None:
    path = run(tmp_path, data)
    shown = capsys.readouterr().out
    assert "WARNING" not in shown
    report = check_dataset(data)
    assert report.cameras == ("observation.images.exterior_1_left", "observation.images.wrist_left")
    assert (report.episodes, report.fps) == (2, 15)
    facts = read_facts(newest(path))
    expected: dict[str, Any] = {
        "model": "rlspec_adapter",
        "action_space": "joint_velocity",
        "control_hz": 15.0,
        "execution_law": "stiff_position",
        "horizon": 8,
        "n_action_steps": 8,
        "robot": "fr3",
        "step": 2,
        "cameras": {name: [36, 64] for name in report.cameras},
    }
    assert {key: facts[key] for key in expected} == expected
    assert len(facts["state_names"]) == len(facts["action_names"]) == 8
    # The statistics are those of all frames, and those that the preprocessor holds.
    exact = numeric_statistics(data)
    (file,) = newest(path).glob("policy_preprocessor*normalizer*.safetensors")
    held = load_file(file)
    for name in ("observation.state", "action"):
        np.testing.assert_allclose(facts["norm_stats"][name]["q99"], exact[name]["q99"], atol=1e-6)
        np.testing.assert_array_equal(facts["norm_stats"][name]["mean"], held[f"{name}.mean"].astype(np.float64))
    assert facts["norm_stats_sha256"] == statistics_hash(facts["norm_stats"])


def test_it_resumes_and_the_data_goes_together_with_it(data: Path, tmp_path: Path, capsys: Output) -> None:
    path = run(tmp_path, data)
    before = read_facts(newest(path))
    assert train.main([f"resume={path}", "training.steps=3"]) == 0
    assert read_facts(path / "checkpoints" / "checkpoint-3") == {**before, "step": 3}
    assert stats.main([f"path={data}", f"against={path}"]) == 0
    capsys.readouterr()
    # Data in other units is refused where a run starts from that policy.
    facts = newest(path) / "rlspec.json"
    facts.write_text(json.dumps({**before, "action_space": "joint_position", "control_hz": 10.0}))
    arguments = [*SMALL, f"dataset.root={data}", f"output_dir={tmp_path}", "run=next", "policy.type=rlspec_adapter"]
    assert train.main([*arguments, f"policy.path={newest(path)}"]) == 2
    error = capsys.readouterr().err
    assert "action space: joint_velocity in the data, joint_position in the checkpoint" in error
    assert "rate: 15 Hz in the data, 10 Hz in the checkpoint" in error


def test_a_converted_folder_trains_without_a_simulator(data: Path, tmp_path: Path, capsys: Output) -> None:
    plain = [each for each in SMALL if not each.startswith(("dataset.", "env."))]
    arguments = [
        *plain,
        "dataset=droid_folder",
        f"dataset.root={data}",
        "env=null",
        f"output_dir={tmp_path}",
        "run=run",
    ]
    assert train.main(arguments) == 0
    assert f"checked {data}: 2 episodes" in capsys.readouterr().out
    assert read_facts(newest(tmp_path / "run"))["execution_law"] == "stiff_position"


@pytest.mark.slow
def test_a_tiny_smolvla_learns_with_openpis_normalisation(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(write_tiny_vlm(tmp_path / "vlm"))
    kept = ("vlm_model_name", "load_vlm_weights", "num_vlm_layers", "resize_imgs_with_padding", "tokenizer_max_length")
    tiny = [f"policy.options.{name}={json.dumps(settings[name])}" for name in (*kept, "num_steps")]
    chosen = ["policy=smolvla_droid", "policy.path=null", "training.bf16=false", "training.num_workers=0"]
    path = run(tmp_path, data, *chosen, *tiny)
    facts = read_facts(newest(path))
    assert facts["normalization"] == {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
    assert (facts["horizon"], facts["n_action_steps"], len(facts["action_names"])) == (16, 8, 8)


@pytest.mark.slow
def test_a_tiny_pi05_learns_with_openpis_normalisation_and_serves_eight_dimensions(
    data: Path, tmp_path: Path, tiny_pi05: dict[str, Any]
) -> None:
    kept = ("image_resolution", "tokenizer_max_length", "num_inference_steps")
    tiny = [f"policy.options.{name}={json.dumps(tiny_pi05[name])}" for name in kept]
    chosen = ["policy=pi05_droid", "policy.path=null", "policy.norm_stats=null", "optim=vla_pion"]
    path = run(tmp_path, data, *chosen, *tiny, "training.bf16=false", "training.num_workers=0")
    facts = read_facts(newest(path))
    assert facts["normalization"] == {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
    assert (facts["horizon"], facts["n_action_steps"], len(facts["action_names"])) == (16, 8, 8)
    served = trained_policy(ServedPolicy(checkpoint=str(path), device="cpu"))
    assert served.spec.action_space == "joint_velocity"
    pictures = {name: np.zeros((*size, 3), dtype=np.uint8) for name, size in served.spec.cameras.items()}
    (actions,) = served.infer([Observation(pictures, np.zeros(8), "pick up the cube", session=0)])
    assert actions.shape == (16, 8)
    # Trained on two steps only: but normalised, so within what the data shows, more or less.
    assert np.isfinite(actions).all() and np.abs(actions).max() < 10.0
    # Real-time chunking, by LeRobot's own guidance: what the robot is committed to is continued.
    asked = Observation(pictures, np.zeros(8), "pick up the cube", 0, actions[4:].astype(np.float64), 4)
    (guided,) = served.infer([asked])
    near, far = (np.abs(chunk[:4] - actions[4:8]).mean() for chunk in (guided, actions))
    assert near < 0.5 * far


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_policy_is_measured_in_the_environment_of_its_recordings(data: Path, tmp_path: Path, capsys: Output) -> None:
    path = run(tmp_path, data)
    capsys.readouterr()
    assert evaluate.main([f"checkpoint={path}", "episodes=1", "workers=1", "evaluation.max_steps=5"]) == 0
    shown = capsys.readouterr().out
    assert "pick_place" in shown and "replay:" not in shown
    assert evaluate.main(["policy=replay", "env=franka_droid", f"dataset={data}", f"out={tmp_path / 'out'}"]) == 2
    assert "does not say how its episodes began" in capsys.readouterr().err
