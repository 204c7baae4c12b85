"""A policy in LeRobot's format from a folder: loaded, checked against the environment, and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_sim
import pytest
import torch

from rlspec.config.vla_schema import Env, SimEvaluation
from rlspec.errors import CheckpointError, ConfigError
from rlspec.vla.evaluation.checks import Expected, TrainingConditions, contradictions, remarks
from rlspec.vla.evaluation.episodes import EpisodePlan
from rlspec.vla.evaluation.jobs import ActorSpec, Done, EvaluationJob, FilmSpec, WorkerSettings
from rlspec.vla.evaluation.policy_actor import PolicyActor, PolicySource, load_policy
from rlspec.vla.evaluation.protocol import build_protocol, find_policy, fingerprint
from rlspec.vla.evaluation.rollout import rollout
from rlspec.vla.evaluation.runner import Runner
from rlspec.vla.evaluation.simulator import Simulator

PLAN = EpisodePlan("far", 0, 3)
FRONT, SIDE, STATE = "observation.images.front", "observation.images.side", "observation.state"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained flow policy, which draws noise for every chunk of 8 actions."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    import rlspec.vla.policies  # noqa: F401

    path = tmp_path_factory.mktemp("policy")
    config: Any = make_policy_config(
        "rlspec_flow", device="cpu", push_to_hub=False, size="tiny", chunk_size=8, n_action_steps=8, num_steps=1
    )
    image = PolicyFeature(FeatureType.VISUAL, (3, fake_sim.SIZE, fake_sim.SIZE))
    config.input_features = {FRONT: image, SIDE: image, STATE: PolicyFeature(FeatureType.STATE, (2,))}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    bounds = {"mean": 0.0, "std": 0.5, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    stats = {name: {key: torch.full((2,), value) for key, value in bounds.items()} for name in (STATE, "action")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy: Any = get_policy_class(config.type)(config)
    policy.save_pretrained(path)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(path)
    return path


def run(folder: Path, env: dict[str, Any] | None = None, **spec: Any) -> Done:
    settings = WorkerSettings(Simulator("fake", {"max_episode_steps": 20, **(env or {})}, "fake_sim"))
    actor = ActorSpec("policy", str(folder), device="cpu", **spec)
    return Runner(settings).run(EvaluationJob(actor, PLAN))


def test_a_policy_runs_from_its_folder_and_says_how(folder: Path) -> None:
    done = run(folder)
    assert (done.episode.steps, done.episode.failure) == (20, "timeout")
    assert done.policy is not None
    described = {name: done.policy[name] for name in ("type", "n_action_steps", "chunk_size", "device")}
    assert described == {"type": "rlspec_flow", "n_action_steps": 8, "chunk_size": 8, "device": "cpu"}
    assert 0 < done.policy["parameters"] < 5_000_000
    # Chunks begin at steps 0, 8 and 16.
    assert done.episode.images == 3


def test_fewer_action_steps_mean_more_pictures(folder: Path) -> None:
    assert run(folder, n_action_steps=5).episode.images == 5  # steps 0, 5, 10, 15, and 20, after which it ends
    assert run(folder, replan_steps=10).episode.images == 3  # a protocol's 10 are no more than the chunk's 8


def test_an_episode_repeats_whatever_was_run_or_filmed_before(folder: Path, tmp_path: Path) -> None:
    actor = load_policy(PolicySource(str(folder), device="cpu"))

    def path(plan: EpisodePlan) -> torch.Tensor:
        seen = []
        post = actor.postprocessor

        class Keep:
            def __call__(self, action: torch.Tensor) -> torch.Tensor:
                seen.append(action)
                return post(action)

            def reset(self) -> None:
                post.reset()

        keeping = PolicyActor(actor.policy, actor.preprocessor, Keep(), actor.config)
        rollout(fake_sim.PointEnv("far", max_episode_steps=17), keeping, plan)
        return torch.cat(seen)

    first = path(PLAN)
    other = path(replace(PLAN, seed=4))
    assert torch.equal(path(PLAN), first)
    assert not torch.equal(first, other)
    runner = Runner(WorkerSettings(Simulator("fake", {"max_episode_steps": 17}, "fake_sim")))
    job = EvaluationJob(ActorSpec("policy", str(folder), device="cpu"), PLAN)
    plain, filmed = (
        runner.run(replace(job, film=film)).episode for film in (None, FilmSpec(tmp_path / "a-{outcome}.gif", "gif"))
    )
    assert (plain.steps, plain.failure) == (filmed.steps, filmed.failure)
    assert filmed.images == 18 and (tmp_path / "a-timeout.gif").is_file()


@pytest.mark.parametrize(
    ("env", "spec", "line"),
    [
        ({"cameras": ("front",)}, {}, "the policy needs the camera observation.images.side; the environment has"),
        (
            {},
            {"training": TrainingConditions(control_hz=20.0)},
            "control rate: the data has 20 Hz, the environment 10 Hz",
        ),
        (
            {},
            {"training": TrainingConditions(action_space="joint_velocity")},
            "action space: the data has joint_velocity",
        ),
        ({}, {"n_action_steps": 9}, "evaluation.n_action_steps=9: the policy predicts 8 actions; choose 1 to 8"),
    ],
)
def test_a_contradiction_is_one_line_before_the_first_episode(
    folder: Path, env: dict[str, Any], spec: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(folder, env, **spec)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_that_differ_are_contradictions_for_numbers_and_remarks_for_pictures() -> None:
    env = fake_sim.PointEnv("far")
    expected = Expected({FRONT: (3, 64, 64), STATE: (8,)}, (7,), training=TrainingConditions(fps=5.0))
    assert contradictions(expected, env) == [
        "observation.state: the policy reads (8,) numbers, the environment gives (2,)",
        "action: the policy answers (7,) numbers, the environment takes (2,)",
    ]
    assert remarks(expected, env) == [
        "control rate: the data is labelled 5 frames/s, the environment runs at 10 Hz",
        "observation.images.front: the policy was made for 64x64 pixels, the environment renders 32x32",
    ]
    renamed = Expected({"observation.images.top": (3, 32, 32)}, (2,), rename={FRONT: "observation.images.top"})
    assert contradictions(renamed, env) == [] == remarks(renamed, env)


def test_a_folder_that_cannot_be_loaded_is_one_line(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="this policy cannot be loaded") as caught:
        run(broken)
    assert "\n" not in str(caught.value)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "type": "unheard_of"}))
    with pytest.raises(CheckpointError, match="unheard_of"):
        run(broken)


def test_weights_that_are_missing_are_not_passed_over(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    lost = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=lost):
        run(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name: f"so100.buffer.{name}", r"but under so100\.buffer\.observation\.state: those of other robots"),
        (lambda name: f"so100.buffer.{name}" if name.startswith("action") else name, r"no mean and std of action, but"),
        (lambda name: None if name.startswith("action.std") else name, "no std of action; it would act on numbers"),
    ],
)
def test_a_policy_without_statistics_of_its_numbers_does_not_act(
    folder: Path, tmp_path: Path, change: Callable[[str], str | None], said: str
) -> None:
    """LeRobot passes such numbers as they are, in evaluation and in the server."""
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = [file for file in tmp_path.glob("policy_*.safetensors") if "normalizer" in file.name]
    assert len(found) == 2
    for file in found:
        tensors = {change(name): tensor for name, tensor in load_file(file).items()}
        save_file({name: tensor for name, tensor in tensors.items() if name is not None}, file)
    with pytest.raises(CheckpointError, match=said):
        run(tmp_path)


def test_a_policys_fingerprint_follows_its_weights(folder: Path, tmp_path: Path) -> None:
    inside = tmp_path / "pretrained_model"
    inside.mkdir()
    for file in folder.iterdir():
        (inside / file.name).write_bytes(file.read_bytes())
    assert find_policy(tmp_path) == str(inside)  # as LeRobot lays out its checkpoints
    assert fingerprint(str(inside)) == fingerprint(str(folder))
    weights = inside / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert fingerprint(str(inside)) != fingerprint(str(folder))
    assert find_policy("lerobot/smolvla_base") == fingerprint("lerobot/smolvla_base") == "lerobot/smolvla_base"
    with pytest.raises(CheckpointError, match="no policy there"):
        find_policy(tmp_path.parent)


def test_a_profile_sets_what_is_null() -> None:
    env = Env(name="x", suite="libero_object", tasks=["0"], options={})
    protocol = build_protocol(env, SimEvaluation(profile="openpi"))
    assert (protocol.replan_steps, protocol.simulator.options) == (5, {"profile": "openpi"})
    assert protocol.stored_states
    longer = build_protocol(env, SimEvaluation(profile="lerobot", max_steps=9))
    assert longer.simulator.options == {"profile": "lerobot"} and longer.replan_steps == 10
    env.options["profile"] = "lerobot"
    with pytest.raises(ConfigError, match="evaluation.profile=openpi: env.options.profile is lerobot"):
        build_protocol(env, SimEvaluation(profile="openpi"))
