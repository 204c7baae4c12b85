"""The optimizer under accelerate: one process and two, accumulation, mixed precision, saved states, and sharding."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer

if TYPE_CHECKING:  # the processes of the test with two import this file, and need no accelerate
    from accelerate import Accelerator

SETTINGS: dict[str, Any] = {"rule": "muon", "roles": {"attention": "pion"}, "promotion_steps": 1, "lr": 1e-2}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate's state is global."""
    reset()
    yield
    reset()


def reset() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, bias=False)  # a bias of keys has no gradient
        self.linear = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.linear(inputs + self.attention(inputs, inputs, inputs)[0]))
        return (hidden * torch.linspace(0.1, 2.0, 16)).square().mean((1, 2))  # unweighted, the norm makes it constant


def batch(step: int, rows: slice = slice(None)) -> Tensor:
    """Eight rows of unequal size, so that the mean over a part of them differs."""
    generator = torch.Generator().manual_seed(step)
    rows_of = torch.randn(8, 5, 16, generator=generator)
    return (rows_of * torch.arange(1, 9)[:, None, None])[rows]


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, 16)
    return (model(inputs) * inputs.abs().mean((1, 2))).mean() + (weights * model(inputs).mean()).mean()


def prepared(**arguments: Any) -> tuple[Accelerator, nn.Module, Any]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, **arguments)
    model = Regressor()
    return accelerator, *accelerator.prepare(model, build_optimizer(model, **SETTINGS))


def advance(accelerator: Accelerator, model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        loss = loss_of(model, batch(step))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def plain(steps: int) -> nn.Module:
    model = Regressor()
    optimizer = build_optimizer(model, **SETTINGS)
    for step in range(steps):
        loss_of(model, batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def assert_near(model: nn.Module, other: nn.Module) -> None:
    """Up to rounding in the gradients, which a polar factor amplifies where singular values are small."""
    start, expected = Regressor().state_dict(), other.state_dict()
    for name, value in model.state_dict().items():
        moved = (expected[name] - start[name]).norm()
        assert moved > 0
        assert (value - expected[name]).norm() < 2e-2 * moved


def test_a_prepared_optimizer_takes_the_steps_of_a_plain_one() -> None:
    accelerator, model, optimizer = prepared()
    assert isinstance(optimizer.optimizer, SpectralOptimizer)
    advance(accelerator, model, optimizer, range(3))
    assert_equal(model, plain(3))


def test_accumulated_gradients_are_one_step() -> None:
    accelerator, model, optimizer = prepared(gradient_accumulation_steps=4)
    for part in range(4):
        with accelerator.accumulate(model):
            before = model.linear.weight.detach().clone()
            accelerator.backward(loss_of(model, batch(0, slice(2 * part, 2 * part + 2))))
            optimizer.step()
            optimizer.zero_grad()
            assert torch.equal(before, model.linear.weight) == (part < 3)
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}
    assert_near(model, plain(1))


def test_mixed_precision_keeps_weights_and_state_in_float32() -> None:
    accelerator, model, optimizer = prepared(mixed_precision="bf16")
    before = loss_of(model, batch(0)).item()
    for _ in range(3):
        advance(accelerator, model, optimizer, range(1))
    with accelerator.autocast():
        assert model.linear(batch(0)).dtype == torch.bfloat16
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}
    assert loss_of(model, batch(0)).item() < before


def test_a_saved_state_continues_bit_for_bit(tmp_path: Path) -> None:
    accelerator, model, optimizer = prepared()
    advance(accelerator, model, optimizer, range(3))
    accelerator.save_state(str(tmp_path / "state"))
    advance(accelerator, model, optimizer, range(3, 6))
    reset()
    second, resumed, loaded = prepared()
    second.load_state(str(tmp_path / "state"))
    advance(second, resumed, loaded, range(3, 6))
    assert_equal(resumed, model)
    assert_equal(resumed, plain(6))


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def work(rank: int, port: int, folder: str) -> None:
    """Two processes with four rows each; every process writes its weights."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(Regressor())
    optimizer = build_optimizer(model, **SETTINGS)
    for step in range(3):
        loss_of(model, batch(step, slice(4 * rank, 4 * rank + 4))).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.module.state_dict(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_with_the_joint_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = plain(3).state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def first_of_two() -> Iterator[None]:
    """Rank 0 of two processes, of which the other does not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def fsdp1(model: nn.Module, *, use_orig_params: bool) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def zero3(model: nn.Module) -> nn.Module:
    """As DeepSpeed leaves them: emptied, with the shape kept aside."""
    for number, param in enumerate(model.parameters()):
        param.ds_id, param.ds_shape, param.data = number, param.shape, torch.empty(0)  # type: ignore[attr-defined]
    return model


SHARDED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "FSDP1, flat": lambda model: fsdp1(model, use_orig_params=False),
    "FSDP1, original": lambda model: fsdp1(model, use_orig_params=True),
    "ZeRO-3": zero3,
}
REASON = r"sharded by (FSDP1|DeepSpeed ZeRO-3) are not supported; use FSDP2 .*or DDP"


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.usefixtures("first_of_two")
def test_sharded_parameters_are_refused_as_such(kind: str) -> None:
    model = SHARDED[kind](Regressor())
    with pytest.raises(ConfigError, match=REASON):
        SpectralOptimizer(model.named_parameters(), rule="adamw")


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.usefixtures("first_of_two")
def test_sharded_models_are_refused_as_such(kind: str) -> None:
    model = SHARDED[kind](Regressor())
    with pytest.raises(ConfigError, match=REASON):
        build_optimizer(model, **SETTINGS)


@pytest.mark.usefixtures("first_of_two")
def test_parameters_that_are_sharded_after_the_optimizer_was_built_are_refused_in_the_first_step() -> None:
    """Frameworks shard in place: accelerate prepares FSDP1 after the optimizer exists."""
    model = Regressor()
    optimizer = build_optimizer(model, **SETTINGS)
    wrapped = fsdp1(model, use_orig_params=True)
    wrapped(batch(0)).sum().backward()
    with pytest.raises(ConfigError, match=REASON):
        optimizer.step()
