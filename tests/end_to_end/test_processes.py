"""A recipe on two processes: FSDP2 gives the weights of DDP, and one process goes on from what two have written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlspec.train import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
RUN = ["recipe=debug_grpo", "optim=muon", "device=cpu", "evaluation.before=false", "evaluation.after=false"]
TWO = ["launch=torchrun", "launch.processes=2"]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")


def test_two_processes_shard_and_one_goes_on(tmp_path: Path) -> None:
    common = [*RUN, f"output_dir={tmp_path}", "trainer.max_steps=2"]
    for sharding in ("ddp", "fsdp2"):
        assert main([*common, *TWO, f"sharding={sharding}", f"run={sharding}"]) == 0
    copies, parts = weights(tmp_path / "ddp", 2), weights(tmp_path / "fsdp2", 2)
    assert copies.keys() == parts.keys()
    for name, value in copies.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert main([f"resume={tmp_path / 'fsdp2'}", "launch=here", "trainer.max_steps=3"]) == 0
    moved = weights(tmp_path / "fsdp2", 3)
    assert any(not torch.equal(moved[name], value) for name, value in parts.items())
    state = torch.load(tmp_path / "fsdp2" / "checkpoints" / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert {int(each["step"]) for each in state["state"].values()} == {3}
