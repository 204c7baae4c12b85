"""The optimizer under LeRobot's own commands: parsing, training, saving, resuming."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import torch
from lerobot.common.train_utils import load_training_state, save_training_state
from lerobot.optim.optimizers import OptimizerConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
from torch import Tensor, nn

from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer
from rlspec.optim.settings import OptimizerSettings, Running, defaults
from rlspec.vla import SpectralOptimizerConfig


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(1), nn.Linear(4 * 36, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.action_head = nn.Linear(16, 3)
        self.unused = nn.Linear(16, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.vision(images)[None]
        return self.action_head(self.norm(tokens + self.attention(tokens, tokens, tokens)[0]))


def gradients(policy: nn.Module, step: int) -> None:
    policy.zero_grad()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(step))
    policy(images.to(next(policy.parameters()).dtype)).pow(2).sum().backward()


def config(**settings: Any) -> SpectralOptimizerConfig:
    return SpectralOptimizerConfig(**{"rule": "muon", "lr": 1e-2, **settings})


@dataclass
class Command:
    optimizer: OptimizerConfig | None = None


def parse(*arguments: str) -> SpectralOptimizerConfig:
    command = draccus.parse(
        Command, args=["--optimizer.type=spectral", *(f"--optimizer.{entry}" for entry in arguments)]
    )
    assert isinstance(command.optimizer, SpectralOptimizerConfig)
    return command.optimizer


def test_it_has_every_setting_of_the_builder_with_the_same_default() -> None:
    parameters = defaults(OptimizerSettings, Running) | {
        name: entry.default
        for name, entry in inspect.signature(build_optimizer).parameters.items()
        if entry.kind is entry.KEYWORD_ONLY
    }
    fields = asdict(SpectralOptimizerConfig())
    assert fields.keys() == parameters.keys() | {"grad_clip_norm", "options"}
    same = parameters.keys() - {"lr", "overrides", "penalties"}  # 1e-6 is for reinforcement learning
    assert {name: fields[name] for name in same} == {name: parameters[name] for name in same}
    assert not any((fields[name] or parameters[name]) for name in ("overrides", "penalties"))


def test_the_command_line_reaches_every_kind_of_setting() -> None:
    parsed = parse(
        "rule=pion", "lr=1e-5", "promotion_steps=auto", "betas=[0.8, 0.9]", "nesterov=true", "grad_clip_norm=1",
        "roles={action: {rule: muon, lr_scale: 1e-1}, attention: adamw}", "options={shift_tolerance: 2e-3}",
        "overrides=[{pattern: head, rule: adamw}]",
    )  # fmt: skip
    assert (parsed.rule, parsed.lr, parsed.promotion_steps, parsed.betas) == ("pion", 1e-5, "auto", (0.8, 0.9))
    assert parsed.nesterov and parsed.grad_clip_norm == 1.0
    assert parsed.roles == {"action": {"rule": "muon", "lr_scale": 0.1}, "attention": "adamw"}
    assert parsed.options == {"shift_tolerance": 2e-3}
    assert parsed.overrides == [{"pattern": "head", "rule": "adamw"}]
    assert parse("lr_from={rule: adamw, lr: 1e-4, batch: 32}", "batch=8").lr_from == {
        "rule": "adamw",
        "lr": 1e-4,
        "batch": 32,
    }
    assert parse("roles=vla").roles == "vla" and parse().roles is None
    assert parse("promotion_steps=2").promotion_steps == 2.0


def test_a_stored_config_is_the_config() -> None:
    first = config(promotion_steps=2, roles={"attention": "pion"}, overrides=[{"pattern": "1e5", "rule": "adamw"}])
    stored = json.loads(json.dumps(draccus.encode(Command(first))))
    assert draccus.decode(Command, stored).optimizer == first
    assert type(first.promotion_steps) is float


def test_options_that_are_settings_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer.options: momentum is a setting of its own"):
        config(options={"momentum": 0.9})


def groups_of(optimizer: SpectralOptimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


@pytest.mark.parametrize("source", [nn.Module.parameters, nn.Module.named_parameters, lambda policy: policy])
def test_the_model_is_found_behind_its_parameters(source: Callable[[nn.Module], Any]) -> None:
    policy = Policy()
    settings: dict[str, Any] = {"roles": {"attention": "pion"}, "promotion_steps": "auto", "weight_decay": 0.1}
    built = config(**settings).build(source(policy))
    direct = build_optimizer(policy, rule="muon", lr=1e-2, **settings)
    assert groups_of(built) == groups_of(direct)
    assert {group["num_heads"] for group in built.param_groups if group["role"] == "attention.o"} == {4}


def test_adapters_are_found_behind_peft() -> None:
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(Policy(), LoraConfig(r=2, target_modules=["action_head", "vision.2"]))
    optimizer = config(rule="lora_muon").build(policy.parameters())
    assert [group["rule"] for group in optimizer.param_groups] == ["lora_muon"] * len(optimizer.param_groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


@pytest.mark.filterwarnings("ignore:rule muon updates nothing")
@pytest.mark.parametrize("wrap", [dict, list])
def test_names_alone_need_a_rule_for_matrices(wrap: type) -> None:
    policy = Policy()
    named = wrap(policy.named_parameters())
    with pytest.raises(ConfigError, match=r"no role is known.* vision.N.weight .*name their rules"):
        config().build(named)
    overrides = [{"pattern": r"head\.weight$", "rule": "pion"}, {"pattern": "weight$", "rule": "adamw"}]
    optimizer = config(overrides=overrides).build(named)
    rules = {name: group["rule"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rules.keys() == {name for name, param in policy.named_parameters() if param.requires_grad}
    assert [name for name, rule in rules.items() if rule == "pion"] == ["action_head.weight"]
    assert {id(param) for group in optimizer.param_groups for param in group["params"]} <= set(
        map(id, policy.parameters())
    )


def exhausted(policy: nn.Module) -> Iterator[nn.Parameter]:
    params = policy.parameters()
    list(params)
    return params


@pytest.mark.parametrize(
    "anonymous",
    [
        lambda policy: list(policy.parameters()),
        lambda policy: (param for param in policy.parameters() if param.requires_grad),
        lambda policy: [{"params": list(policy.parameters()), "lr": 1.0}],
        lambda policy: {"actor": policy.parameters()},
        lambda policy: [],
        exhausted,
        lambda policy: 3,
    ],
)
def test_parameters_without_names_are_refused_with_the_remedy(anonymous: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(ConfigError, match=r"goes by modules and names.*policy\.parameters\(\).*preset=false"):
        config().build(anonymous(Policy()))


CONTINUED: dict[str, dict[str, Any]] = {
    "muon": {"nesterov": True, "weight_decay": 0.1},
    "pion": {"promotion_steps": 2, "roles": {"attention": {"rule": "pion", "promotion_steps": "auto"}}},
    "conda": {},
    "aro": {"state_dtype": "bfloat16"},
    "adamw": {},
}


def run(policy: nn.Module, settings: dict[str, Any], steps: range, folder: Path, start: Path | None = None) -> Any:
    """Train as LeRobot does; saves the training state after step 3."""
    optimizer = SpectralOptimizerConfig(**settings).build(policy.parameters())
    scheduler = CosineDecayWithWarmupSchedulerConfig(2, 6, settings["lr"], 0.1 * settings["lr"]).build(optimizer, 6)
    if start is not None:
        assert load_training_state(start, optimizer, scheduler)[0] == steps.start
    for step in steps:
        gradients(policy, step)
        optimizer.step()
        scheduler.step()
        if step == 2:
            save_training_state(folder, 3, optimizer, scheduler)
            torch.save(policy.state_dict(), folder / "weights.pt")
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", CONTINUED)
def test_lerobots_training_state_continues_bit_for_bit(rule: str, dtype: torch.dtype, tmp_path: Path) -> None:
    settings = {"rule": rule, "lr": 1e-2, **CONTINUED[rule]}
    whole, resumed = Policy().to(dtype), Policy().to(dtype)
    first = run(whole, settings, range(6), tmp_path)
    resumed.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    stored = json.loads(json.dumps(draccus.encode(SpectralOptimizerConfig(**settings))))
    stored.pop("type", None)
    second = run(resumed, asdict(draccus.decode(SpectralOptimizerConfig, stored)), range(3, 6), tmp_path, tmp_path)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())
    assert groups_of(first) == groups_of(second)
    states = first.state_dict()["state"], second.state_dict()["state"]
    assert states[0].keys() == states[1].keys() and 0 < len(states[0]) < len(list(whole.parameters()))
    for index, state in states[0].items():
        assert state.keys() == states[1][index].keys()
        for key, value in state.items():
            assert value.dtype == states[1][index][key].dtype and torch.equal(value, states[1][index][key])


def test_a_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    """LeRobot fills the current state's lists with the stored ones; names must be compared all the same."""
    policy, other = Policy(), Policy()
    other._modules = {"idle" if name == "unused" else name: module for name, module in other._modules.items()}
    run(policy, {"rule": "muon", "lr": 1e-2}, range(3), tmp_path)
    with pytest.raises(CheckpointError, match="idle.weight is not in the checkpoint"):
        run(other, {"rule": "muon", "lr": 1e-2}, range(3, 6), tmp_path, tmp_path)


FEATURES = {"observation.environment_state": 6, "observation.state": 4, "action": 4}
# No dropout and no sampling: making the iterator of a resumed run draws from the generator that LeRobot has restored.
TINY_ACT = {
    "chunk_size": 4, "n_action_steps": 4, "dim_model": 32, "n_heads": 4, "dim_feedforward": 48, "n_encoder_layers": 1,
    "use_vae": "false", "dropout": 0.0, "device": "cpu", "push_to_hub": "false",
}  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    from lerobot.datasets import LeRobotDataset

    features = {name: {"dtype": "float32", "shape": (size,), "names": None} for name, size in FEATURES.items()}
    folder, generator = tmp_path / "data", np.random.default_rng(0)
    written = LeRobotDataset.create("local/tiny", fps=10, features=features, root=folder, use_videos=False)
    for _ in range(2):
        for _ in range(12):
            frame = {name: generator.normal(size=size).astype(np.float32) for name, size in FEATURES.items()}
            written.add_frame(frame | {"task": "reach"})
        written.save_episode()
    written.finalize()
    return folder


def weights(checkpoint: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = ["pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"]
    return {f"{name}:{key}": value for name in files for key, value in load_file(checkpoint / name).items()}


def test_lerobot_trains_a_stock_policy_and_resumes_it_bit_for_bit(
    dataset: Path, lerobot: Callable[..., None], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    lerobot(
        "train", "--policy.type=act", *(f"--policy.{name}={value}" for name, value in TINY_ACT.items()),
        "--dataset.repo_id=local/tiny", f"--dataset.root={dataset}", f"--output_dir={output}", "--steps=4",
        "--save_freq=2", "--env_eval_freq=0", "--batch_size=4", "--num_workers=0", "--use_policy_training_preset=false",
        "--optimizer.type=spectral", "--optimizer.rule=muon", "--optimizer.lr=1e-3", "--optimizer.promotion_steps=auto",
        "--optimizer.roles={attention: pion, linear: {rule: adamw, lr_scale: 1e-1}}",
        "--scheduler.type=cosine_decay_with_warmup", "--scheduler.num_warmup_steps=1", "--scheduler.num_decay_steps=4",
        "--scheduler.peak_lr=1e-3", "--scheduler.decay_lr=1e-4",
    )  # fmt: skip
    started, first = (weights(output / "checkpoints" / step) for step in ("000002", "000004"))
    groups = json.loads((output / "checkpoints/000004/training_state/optimizer_param_groups.json").read_text())
    assert {group["rule"] for group in groups} == {"muon", "pion", "adamw"}
    assert {group["num_heads"] for group in groups if group["role"] == "attention.qkv"} == {12}
    (output / "checkpoints/000004").rename(tmp_path / "first")
    stored = output / "checkpoints/000002/pretrained_model/train_config.json"
    lerobot("train", f"--config_path={stored}", "--resume=true")
    second = weights(output / "checkpoints/000004")
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    moved = [key for key in first if not torch.equal(first[key], started[key])]
    assert len(moved) > 0.9 * len(first)
