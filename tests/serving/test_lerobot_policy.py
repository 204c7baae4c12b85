"""LeRobot policies behind the server: what they want, what they get, and batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving_cases import SPEC, state_message

from rlspec.contract.messages import DELAY, PREFIX
from rlspec.errors import ConfigError
from rlspec.serving.lerobot_policy import LeRobotPolicy, Meaning, read_spec
from rlspec.serving.observation import RequestError, read_observation
from rlspec.serving.policy import Observation, openpi_metadata

MEANING = Meaning("tiny", "joint_velocity", 15.0, "droid_hybrid", {})


def feature(*shape: int) -> SimpleNamespace:
    return SimpleNamespace(shape=shape)


def config(**changes: Any) -> SimpleNamespace:
    inputs = {
        "observation.images.exterior_1_left": feature(3, 180, 320),
        "observation.images.wrist_left": feature(3, 90, 160),
        "observation.images.empty_camera_0": feature(3, 90, 160),
        "observation.state": feature(8),
    }
    fields = {
        "type": "smolvla",
        "input_features": inputs,
        "output_features": {"action": feature(8)},
        "chunk_size": 50,
        "n_action_steps": 20,
        "n_obs_steps": 1,
    }
    return SimpleNamespace(**{**fields, **changes})


def test_a_spec_is_read_from_the_policys_config() -> None:
    spec = read_spec(config(), MEANING)
    assert spec.cameras == {"exterior_1_left": (180, 320), "wrist_left": (90, 160)}
    assert (spec.state, spec.horizon, spec.n_action_steps, spec.prompt_required) == (8, 50, 20, True)
    assert read_spec(config(), replace(MEANING, n_action_steps=5)).n_action_steps == 5
    assert read_spec(config(), replace(MEANING, sizes={"wrist_left": (180, 320)})).cameras["wrist_left"] == (180, 320)
    shorter = read_spec(config(), replace(MEANING, horizon=10))  # as openpi's DROID client wants it
    assert (shorter.horizon, shorter.n_action_steps) == (10, 10)
    with pytest.raises(ConfigError, match="horizon=51: tiny predicts 50 actions; choose 1 to 50"):
        read_spec(config(), replace(MEANING, horizon=51))
    assert not read_spec(config(type="act"), MEANING).prompt_required
    assert read_spec(config(input_features={}), MEANING).state == 0


@pytest.mark.parametrize(
    ("changes", "meaning", "words"),
    [
        ({"n_obs_steps": 2}, {}, "past observations"),
        ({"state_delta_indices": [-1, 0]}, {}, "past observations"),
        ({"input_features": {"observation.environment_state": feature(4)}}, {}, "wants observation.environment_state"),
        ({"output_features": {"action": feature(7)}}, {}, "joint_velocity: has 8 numbers, and tiny gives 7"),
        ({"output_features": {}}, {}, "gives None"),
        ({}, {"n_action_steps": 51}, "choose 1 to 50"),
        ({}, {"wire_keys": {"front": "observation/image"}}, "no such camera; its cameras: exterior_1_left, wrist_left"),
    ],
)
def test_policies_that_cannot_be_served_are_refused(changes: Any, meaning: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_spec(config(**changes), replace(MEANING, **meaning))


def tiny() -> tuple[LeRobotPolicy, list[Any]]:
    """Actions that depend on every input: mean of each picture, state, length of the instruction."""
    import torch

    seen: list[Any] = []

    class Policy:
        def predict_action_chunk(self, batch: dict[str, Any], **guidance: Any) -> Any:
            seen.append(batch | guidance)
            pictures = sum(batch[f"observation.images.{name}"].mean((1, 2, 3)) for name in spec.cameras)
            words = torch.tensor([float(len(task)) for task in batch["task"]])
            chunk = batch["observation.state"][:, None] + (pictures + words)[:, None, None]
            return chunk + torch.arange(10.0)[None, :, None]

    def postprocessor(actions: Any) -> Any:
        assert actions.ndim == 2
        return actions * 2

    spec = replace(SPEC, cameras={"exterior_1_left": (18, 32), "wrist_left": (18, 32)})

    def preprocessor(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | ({"action": batch["action"] / 2} if "action" in batch else {})

    return LeRobotPolicy(Policy(), preprocessor, postprocessor, spec), seen


def observation(seed: int, height: int = 18, width: int = 32) -> Observation:
    generator = np.random.default_rng(seed)
    images = {
        name: generator.integers(0, 256, (height, width, 3), np.uint8) for name in ("exterior_1_left", "wrist_left")
    }
    return Observation(images, generator.normal(size=8), "x" * seed, seed)


def test_a_batch_gives_what_each_gives_alone() -> None:
    policy, _ = tiny()
    asked = [observation(1), observation(2, 40, 30), observation(3)]
    together = policy.infer(asked)
    for one, actions in zip(asked, together, strict=True):
        assert actions.dtype == np.float32
        assert actions.shape == (10, 8)
        np.testing.assert_array_equal(policy.infer([one])[0], actions)


def test_observations_come_in_lerobots_form() -> None:
    policy, seen = tiny()
    one = observation(4)
    (actions,) = policy.infer([one])
    batch = seen[0]
    pixels = batch["observation.images.wrist_left"]
    assert str(pixels.dtype) == str(batch["observation.state"].dtype) == "torch.float32"
    np.testing.assert_allclose(pixels[0].numpy(), one.images["wrist_left"].transpose(2, 0, 1) / 255, rtol=1e-6)
    assert batch["task"] == ["xxxx"]
    means = sum(image.mean() / 255 for image in one.images.values())
    np.testing.assert_allclose(actions, 2 * (one.state + means + 4 + np.arange(10)[:, None]), rtol=1e-4)


def test_who_is_committed_is_answered_alone_with_normalised_actions() -> None:
    policy, seen = tiny()
    plain = [observation(seed) for seed in (1, 2, 3)]
    prefix = np.arange(24.0).reshape(3, 8)
    mixed = policy.infer([plain[0], replace(plain[1], prefix=prefix, delay=2), plain[2]])
    for expected, actions in zip(policy.infer(plain), mixed, strict=True):
        np.testing.assert_array_equal(actions, expected)
    assert [len(batch["task"]) for batch in seen] == [2, 1, 3]
    assert "action" not in seen[1] and "prev_chunk_left_over" not in seen[0]
    np.testing.assert_array_equal(seen[1]["prev_chunk_left_over"][0].numpy(), prefix / 2)
    assert (seen[1]["inference_delay"], seen[1]["execution_horizon"]) == (2, 3)


def test_warming_up_asks_once_for_each_kind_of_request() -> None:
    policy, seen = tiny()
    policy.warm_up()
    assert [batch["observation.images.wrist_left"].shape for batch in seen] == [(1, 3, 18, 32)]
    policy.spec = replace(policy.spec, takes_prefix=True)
    policy.warm_up()
    assert ["prev_chunk_left_over" in batch for batch in seen] == [False, False, True]


COMMITTED = {PREFIX: np.zeros((3, 8)), DELAY: 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({PREFIX: np.zeros((3, 7))}, r"rlspec/prefix: got \(3, 7\); wanted numbers \(n, 8\), n from 1 to 10"),
        ({PREFIX: np.zeros((11, 8))}, r"got \(11, 8\)"),
        ({PREFIX: np.zeros((0, 8))}, r"got \(0, 8\)"),
        ({PREFIX: np.zeros(8)}, r"got ndarray \(8,\)"),
        ({PREFIX: np.array([["a"] * 8])}, "got ndarray"),
        ({PREFIX: [[0.0] * 8]}, "got list"),
        ({PREFIX: np.full((1, 8), np.nan)}, "rlspec/prefix: got NaN"),
        ({PREFIX: np.full((1, 8), 1e39)}, "more than float32 holds"),
        ({DELAY: -1}, "rlspec/delay: got -1; wanted a number of actions from 0"),
        ({DELAY: 1.0}, "got 1.0"),
        ({DELAY: True}, "got True"),
    ],
)
def test_a_malformed_prefix_is_refused_and_read_only_by_who_takes_it(changes: Any, words: str) -> None:
    spec = replace(SPEC, takes_prefix=True)
    message = {**state_message(), **COMMITTED}
    with pytest.raises(RequestError, match=words):
        read_observation({**message, **changes}, spec, 0)
    assert read_observation({**message, **changes}, SPEC, 0).prefix is None
    read = read_observation(message, spec, 0)
    assert read.prefix is not None and (read.prefix.shape, read.delay) == ((3, 8), 2)
    # Inference was slower than what is left: all of it will be carried out.
    assert read_observation({**message, DELAY: 2**40}, spec, 0).delay == 3


@pytest.mark.slow
def test_a_served_flow_continues_what_the_robot_is_committed_to(tmp_path: Path) -> None:
    from tiny_checkpoint import write_policy

    from rlspec.serving.settings import ServedPolicy
    from rlspec.vla.served import trained_policy

    write_policy(tmp_path, kind="rlspec_flow")
    meaning: dict[str, Any] = {"action_space": "joint_velocity", "control_hz": 15.0, "execution_law": "droid_hybrid"}
    policy = trained_policy(ServedPolicy(checkpoint=str(tmp_path), device="cpu", threads=1, **meaning))
    assert openpi_metadata(policy.spec)["rlspec"]["takes_prefix"]
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (64, 64, 3), np.uint8) for name in policy.spec.cameras}
    asked = Observation(images, np.zeros(8), "go", 0)
    prefix = 0.5 * generator.uniform(-1, 1, (6, 8))
    guided, free = policy.infer([replace(asked, prefix=prefix, delay=3), asked])
    near, far = (np.abs(actions[:3] - prefix[:3]).mean() for actions in (guided, free))
    assert near < 0.3 * far


@pytest.mark.slow
def test_a_trained_policy_is_served_alone_and_in_batches(tmp_path: Path) -> None:
    """A real LeRobot policy with real processors, through the command's own path."""
    from tiny_checkpoint import write_policy

    from rlspec.serving.settings import ServedPolicy
    from rlspec.vla.served import trained_policy

    write_policy(tmp_path)
    meaning: dict[str, Any] = {"action_space": "joint_velocity", "control_hz": 15.0, "execution_law": "droid_hybrid"}
    policy = trained_policy(ServedPolicy(checkpoint=str(tmp_path), device="cpu", threads=1, **meaning))
    assert policy.spec.norm_stats_sha256 is not None
    generator = np.random.default_rng(0)
    asked = [
        Observation(
            {name: generator.integers(0, 256, (*size, 3), np.uint8) for name, size in policy.spec.cameras.items()},
            generator.normal(size=8),
            prompt,
            number,
        )
        for number, prompt in enumerate(("pick", "put the cube in the bowl", "push"))
    ]
    together = policy.infer(asked)
    for one, actions in zip(asked, together, strict=True):
        np.testing.assert_allclose(policy.infer([one])[0], actions, atol=1e-5)
        assert actions.shape == (policy.spec.horizon, 8)
    assert not np.allclose(together[0], together[1])
