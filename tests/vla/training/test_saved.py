"""The account of activations against autograd's own graph, and layers that are computed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from full_size_account import account, losses
from torch import Tensor, nn

from rlspec.config.load import load_vla_recipe
from rlspec.errors import ConfigError
from rlspec.vla import meta_policy
from rlspec.vla.policies.recompute import enable_checkpointing
from rlspec.vla.training.saved import Activations, SavedTensors, activation_bytes

TEXT = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
SETTINGS = {
    "resize_imgs_with_padding": (64, 64), "num_vlm_layers": 2, "chunk_size": 8, "n_action_steps": 4,
    "tokenizer_max_length": 16, "train_expert_only": False, "freeze_vision_encoder": False,
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLA's sizes, shrunk."""
    monkeypatch.setattr(meta_policy, "SMOLVLM2_TEXT", TEXT)
    monkeypatch.setattr(meta_policy, "SMOLVLM2_VISION", VISION)


def smolvla() -> Any:
    torch.manual_seed(0)
    return meta_policy.build_meta_policy("rlspec_smolvla", SETTINGS, "cpu").train()


def nodes(loss: Tensor) -> Iterator[Any]:
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def kept_by_the_graph(model: nn.Module, loss: Tensor) -> int:
    """Bytes of the storages that autograd's nodes hold, without those of parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {}
    for node in nodes(loss):
        for name in dir(node):
            if name.startswith("_saved_"):
                values = getattr(node, name)
                for value in values if isinstance(values, tuple) else (values,):
                    if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in parameters:
                        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.usefixtures("tiny")
def test_it_counts_what_autograds_nodes_hold() -> None:
    policy = smolvla()
    noise = torch.Generator().manual_seed(0)

    def forward(size: int) -> Tensor:
        torch.manual_seed(int(noise.initial_seed()))
        return losses(policy, size).mean()

    for size in (1, 3):
        counted = activation_bytes(policy, lambda size=size: forward(size))  # type: ignore[misc]
        assert counted == pytest.approx(kept_by_the_graph(policy, forward(size)), rel=0.01) and counted > 1e5
    measured = Activations.measure(policy, forward)
    assert measured.of(3) == pytest.approx(activation_bytes(policy, lambda: forward(3)), rel=0.01)


class Stack(nn.Module):
    """Equal layers, computed again one by one, the whole of them once more."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        made = [nn.Sequential(nn.Linear(width, 3 * width), nn.ReLU(), nn.Linear(3 * width, width))]
        self.layers = nn.ModuleList(made + [nn.Sequential(*made[0]) for _ in range(layers - 1)])

    def forward(self, x: Tensor, *, whole: bool) -> Tensor:
        def run(x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            return x

        again = torch.utils.checkpoint.checkpoint
        return (again(run, x, use_reentrant=False) if whole else run(x)).sum()


@pytest.mark.parametrize("whole", [False, True])
def test_of_layers_that_are_computed_again_inputs_count_and_the_inside_of_one(whole: bool) -> None:
    rows, width, layers = 5, 8, 4
    stack = Stack(layers, width)
    x = torch.randn(rows, width, requires_grad=True)
    number = 4 * rows * width
    inside = 3 * number  # ReLU's output, which the second layer keeps too
    assert activation_bytes(stack, lambda: stack(x, whole=whole)) == layers * number + inside
    assert activation_bytes(stack, lambda: stack.layers[0](x).sum()) == number + inside


@pytest.mark.parametrize("widths", [(5, 2), (2, 5)])
def test_of_insides_the_largest_counts_wherever_it_stands(widths: tuple[int, ...]) -> None:
    rows, width = 5, 8
    layers = nn.ModuleList(
        nn.Sequential(nn.Linear(width, each * width), nn.ReLU(), nn.Linear(each * width, width)) for each in widths
    )

    def forward() -> Tensor:
        x = torch.randn(rows, width, requires_grad=True)
        for layer in layers:
            x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        return x.sum()

    assert activation_bytes(layers, forward) == 4 * rows * width * (len(widths) + max(widths))


def test_the_inside_of_a_layer_is_let_go_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    note = SavedTensors.note

    def noted(self: SavedTensors, tensor: Tensor) -> Any:
        kept.append(note(self, tensor))
        return kept[-1]

    monkeypatch.setattr(SavedTensors, "note", noted)
    stack = Stack(2, 8)
    activation_bytes(stack, lambda: stack(torch.randn(5, 8, requires_grad=True), whole=False))
    assert kept and all(each.tensor is None for each in kept)


def test_counting_leaves_buffers_as_they_were() -> None:
    norm = nn.BatchNorm1d(4)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    assert activation_bytes(norm, lambda: norm(torch.randn(8, 4)).sum()) > 0
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


def test_copies_of_weights_in_another_precision_do_not_grow_with_the_batch() -> None:
    layer = nn.Linear(64, 64)

    def forward(size: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(torch.ones(size, 64, requires_grad=True)).float().sum()

    measured = Activations.measure(layer, forward)
    assert (measured.fixed, measured.per_sample) == (2 * 64 * 64, 2 * 64)


@pytest.mark.usefixtures("tiny")
def test_gradients_of_smolvla_stay_what_they_are_and_less_is_kept() -> None:
    plain, again = smolvla(), smolvla()
    enable_checkpointing(again)
    kept = []
    for policy in (plain, again):

        def forward(policy: Any = policy) -> Tensor:
            torch.manual_seed(1)
            return losses(policy, 2).square().mean()

        kept.append(activation_bytes(policy, forward))
        forward().backward()
    assert kept[1] < 0.6 * kept[0]
    for (name, left), right in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None), name
        assert left.grad is None or torch.equal(left.grad, right.grad), name


def test_a_policy_of_which_no_layers_are_known_is_refused() -> None:
    class Other(nn.Module):
        config = type("Config", (), {"type": "act"})

    with pytest.raises(ConfigError, match=r"gradient_checkpointing=true: not known how for policy.type=act"):
        enable_checkpointing(Other())


@pytest.mark.usefixtures("tiny")
def test_without_storage_the_account_is_that_of_a_real_policy() -> None:
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in SETTINGS.items()}
    values = [f"policy.options.{name}={value}" for name, value in given.items()]
    recipe = load_vla_recipe(
        ["recipe=vla_libero", "policy=smolvla_24gb", "training.batch_size=3", *values, "training.ema_decay=0.9"]
    )
    found = account(recipe.policy, recipe.training, recipe.optim)
    policy = smolvla()
    enable_checkpointing(policy)

    def forward(size: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses(policy, size).mean()

    assert found.activations == pytest.approx(Activations.measure(policy, forward).of(3), rel=0.01)
    assert found.weights == sum(parameter.nbytes for parameter in policy.parameters())
    assert found.averages == 4 * sum(value.numel() for value in policy.parameters() if value.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["smolvla_24gb", "pi05_24gb"])
def test_the_recipes_for_24_gb_need_less_at_full_size(policy: str) -> None:
    recipe = load_vla_recipe(["recipe=vla_libero", f"policy={policy}"])
    found = account(recipe.policy, recipe.training, recipe.optim)
    assert found.total < 0.85 * 24e9, found.table()
    assert found.activations > 0.5e9 and found.weights > 0.8e9


def test_of_a_policy_that_is_not_known_from_its_config_it_is_said() -> None:
    recipe = load_vla_recipe(["recipe=vla_franka"])
    with pytest.raises(ConfigError, match=r"policy.type=rlspec_adapter: its memory is measured when a run starts"):
        account(recipe.policy, recipe.training, recipe.optim)
