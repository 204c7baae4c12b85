"""`rlspec_adapter` and `rlspec_flow` as LeRobot policies, in their tiny size."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from grounding import ACTIONS, CHUNK, Scenes, features, make_scenes
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from torch import Tensor

from rlspec.errors import ConfigError, DataError
from rlspec.optim import build_optimizer
from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.backbone.policy import ChunkPolicy
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig

CONFIGS = {"adapter": RlspecAdapterConfig, "flow": RlspecFlowConfig}
KINDS = list(CONFIGS)
SIZE = 64


@pytest.fixture(scope="session")
def table() -> Scenes:
    return make_scenes(8, 1, seed=0, size=SIZE)


@pytest.fixture(scope="session")
def stats(table: Scenes) -> dict[str, dict[str, Tensor]]:
    actions = table.actions.flatten(0, 1)
    return {
        "observation.state": {"mean": table.states.mean(0), "std": table.states.std(0)},
        "action": {"mean": actions.mean(0), "std": actions.std(0)},
    }


def config(kind: str, **settings: Any) -> BackbonePolicyConfig:
    inputs, outputs = features(SIZE)
    given = {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}
    return CONFIGS[kind](**{**given, "image_size": SIZE, **settings})


def build(kind: str, **settings: Any) -> ChunkPolicy:
    torch.manual_seed(0)
    policy = get_policy_class(f"rlspec_{kind}")(config(kind, **settings))
    assert isinstance(policy, ChunkPolicy)
    return policy


@pytest.fixture(scope="session")
def prepare(table: Scenes, stats: dict[str, dict[str, Tensor]]) -> Callable[..., dict[str, Any]]:
    """Preprocessed rows of the table."""
    before, _ = make_pre_post_processors(config("adapter"), dataset_stats=stats)

    def rows(*indices: int) -> dict[str, Any]:
        return before(table.batch(torch.tensor(indices)))

    return rows


Prepare = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("kind", [*KINDS, "smolvla", "pi05"])
def test_a_policys_constructor_names_its_configs_class(kind: str) -> None:
    """LeRobot's own tests read it there, and a class in quotes is none."""
    policy = get_policy_class(f"rlspec_{kind}")
    assert policy.name == f"rlspec_{kind}"
    assert issubclass(policy.config_class, signature(policy.__init__).parameters["config"].annotation)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tiny_size_has_one_to_five_million_parameters(kind: str) -> None:
    assert 1e6 < sum(each.numel() for each in build(kind).parameters()) < 5e6


@pytest.mark.parametrize("kind", KINDS)
def test_the_symmetry_map_claims_every_parameter(kind: str) -> None:
    optimizer = build_optimizer(build(kind), rule="muon", roles="vla", lr=1e-3)
    assert optimizer.symmetry is not None
    rules = {(spec.modality, spec.role.partition(".")[0]): spec.rule for spec in optimizer.symmetry}
    assert rules["vision", "conv"] == rules["connector", "attention"] == rules["language", "mlp"] == "muon"
    assert rules["action", "attention"] == rules["action", "mlp"] == "pion" and rules["action", "output"] == "adamw"


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_single_actions_have_the_expected_shapes(kind: str, prepare: Prepare) -> None:
    policy = build(kind, n_action_steps=3)
    batch = prepare(0, 1, 2)
    assert policy.predict_action_chunk(batch).shape == (3, CHUNK, ACTIONS)
    policy.reset()
    assert policy.select_action(batch).shape == (3, ACTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_one_observation_serves_n_action_steps(kind: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build(kind, n_action_steps=3)
    chunks = [torch.arange(8.0).repeat(2, 1)[..., None].repeat(1, 1, 4) + 10 * index for index in range(3)]
    monkeypatch.setattr(policy, "predict_action_chunk", lambda batch, **_: chunks.pop(0))
    batch = prepare(0, 1)
    seen = [policy.select_action(batch)[0, 0].item() for _ in range(4)]
    policy.reset()
    seen.append(policy.select_action(batch)[0, 0].item())
    assert seen == [0, 1, 2, 10, 20]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_alone_gives_what_it_gives_in_a_batch(kind: str, prepare: Prepare) -> None:
    policy = build(kind)
    noise = {"noise": torch.randn(3, CHUNK, ACTIONS)} if kind == "flow" else {}
    together = policy.predict_action_chunk(prepare(3, 4, 5), **noise)
    first = {key: value[:1] for key, value in noise.items()}
    torch.testing.assert_close(policy.predict_action_chunk(prepare(3), **first)[0], together[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str, prepare: Prepare) -> None:
    policy = build(kind, gate_init=0.1)
    if kind == "flow":  # modulation starts at zero, which holds back the time's layers
        for name, param in policy.named_parameters():
            if "ada_ln" in name:
                torch.nn.init.normal_(param, std=0.1)
    policy(prepare(0, 1, 2, 3))[0].backward()
    silent = [name for name, param in policy.named_parameters() if param.grad is None or not param.grad.any()]
    assert not silent


@pytest.mark.parametrize("kind", KINDS)
def test_padded_steps_do_not_enter_the_loss(kind: str, prepare: Prepare) -> None:
    policy = build(kind)
    batch = prepare(0, 1)
    batch["action_is_pad"][:, 5:] = True
    fixed = {"noise": torch.randn(2, CHUNK, ACTIONS), "time": torch.tensor([0.3, 0.6])} if kind == "flow" else {}
    before = policy(batch, **fixed)[0].item()
    if kind == "adapter":
        batch["action"][:, 5:] = 1e3
        assert policy(batch)[0].item() == before
        error = (policy.predict_action_chunk(batch) - batch["action"])[:, :5].abs().mean().item()
        assert before == pytest.approx(error, rel=1e-5)
    batch["action_is_pad"][:, 5:] = False
    assert policy(batch, **fixed)[0].item() != before


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_statistics_come_back_bit_by_bit(
    kind: str, table: Scenes, stats: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    policy = build(kind, n_action_steps=4)
    before, after = make_pre_post_processors(policy.config, dataset_stats=stats)
    for part in (policy, before, after):
        part.save_pretrained(tmp_path)
    restored = type(policy).from_pretrained(tmp_path)
    assert restored.config.n_action_steps == 4
    again = make_pre_post_processors(restored.config, pretrained_path=str(tmp_path))
    noise = {"noise": torch.randn(2, CHUNK, ACTIONS)} if kind == "flow" else {}
    rows = torch.tensor([0, 1])
    first = after(policy.predict_action_chunk(before(table.batch(rows)), **noise))
    second = again[1](restored.predict_action_chunk(again[0](table.batch(rows)), **noise))
    assert torch.equal(first, second)


def test_a_missing_camera_is_named(prepare: Prepare) -> None:
    batch = prepare(0)
    batch["observation.images.side"] = batch.pop("observation.images.wrist")
    with pytest.raises(DataError, match=r"images\.wrist is missing; .*expects .*external, .*got .*external, .*side"):
        build("adapter").predict_action_chunk(batch)


@pytest.mark.parametrize(("key", "words"), [("action", "4 numbers"), ("observation.state", "3 numbers")])
def test_a_wrong_number_of_joints_is_named(key: str, words: str, prepare: Prepare) -> None:
    batch = prepare(0)
    batch[key] = batch[key][..., :-1]
    with pytest.raises(DataError, match=rf"{key} has shape .* expects {words}"):
        build("adapter")(batch)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_action_steps": 9}, "n_action_steps=9 must be between 1 and chunk_size=8"),
        ({"n_obs_steps": 2}, "n_obs_steps=2 must be 1"),
        ({"size": "small"}, "size='small'; allowed: tiny, pretrained"),
        ({"image_size": 100}, "image_size=100 must be a multiple of 32"),
        ({"vlm_name": "x"}, "backbone parts given: vlm; size tiny has its own"),
        ({"size": "pretrained"}, "backbone parts given: none; give vlm_name"),
        ({"head_heads": 5}, "head_width=128 must be a multiple of head_heads=5"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config("adapter", **settings)


def test_features_that_are_missing_are_named() -> None:
    inputs, outputs = features(SIZE)
    state = {"observation.state": inputs["observation.state"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input_features": state}, "needs a camera.*given: observation.state"),
        ({"output_features": {}}, "needs the output feature action; given: none"),
        ({"input_features": {key: inputs[key] for key in inputs if key not in state}}, "use_proprio=false"),
    ]
    for settings, words in cases:
        with pytest.raises(ConfigError, match=words):
            build("adapter", **settings)


@pytest.mark.parametrize(("kind", "steps"), [("adapter", 40), ("flow", 70)])
def test_eight_samples_are_learnt_by_heart(kind: str, steps: int, prepare: Prepare) -> None:
    policy = build(kind, **({"time_samples": 4} if kind == "flow" else {}))
    policy.train()
    batch = prepare(*range(8))
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        optimizer.zero_grad()
        policy(batch)[0].backward()
        optimizer.step()
    error = (policy.predict_action_chunk(batch) - batch["action"]).abs().mean().item()
    assert error < 0.5 * batch["action"].abs().mean().item()


def test_places_are_made_on_the_meta_device_though_linspace_was_replaced_when_torch_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As transformers does while it loads: torch remembers its constructors from the first time that it needs them."""
    from torch.utils._device import _device_constructors

    from rlspec.vla.policies.backbone.vision import grid_positions

    _device_constructors.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "linspace", lambda *given, **named: None)
            with torch.device("meta"):
                torch.empty(1)
        with torch.device("meta"):
            assert torch.linspace(0, 1, 2).device.type == "cpu", "the real one is forgotten"
            assert grid_positions(4, 48).device.type == "meta"
    finally:
        _device_constructors.cache_clear()
