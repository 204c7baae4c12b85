"""The benchmark of optimizer steps runs, and counts what it should."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parent.parent / "benchmarks" / "optimizer_step.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("optimizer_step", PATH)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


def test_the_smallest_run_prints_one_line_per_optimizer_and_ratios_of_one_run(script, tmp_path, capsys) -> None:
    ours = [row.name for row in script.contenders("cpu") if "Muon" not in row.name or row.name.startswith("torch")]
    arguments = ["--device", "cpu", "--layers", "1", "--size", "tiny", "--repeats", "1", "--only", *ours]
    script.main([*arguments, "--output", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    results = {each["name"]: each for each in json.loads((tmp_path / "run.json").read_text())["results"]}
    for name in ("torch Muon, float32", "torch Muon, as it is", "muon per head", "pion per head, auto", "adamw"):
        assert f"| {name} |" in printed
    muon = results["muon"]
    assert muon["ratio"] == pytest.approx(muon["seconds"] / results[muon["baseline"]]["seconds"])
    assert 0 <= muon["state_bytes"] - 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 192) < 100  # one float32 per weight
    assert results["torch AdamW, fused"]["state_bytes"] > 1.9 * results["torch Muon, as it is"]["state_bytes"]


def test_a_row_that_would_take_too_long_is_left_out_with_a_prediction(script, capsys) -> None:
    script.main(["--device", "cpu", "--layers", "1", "--size", "tiny", "--repeats", "1", "--limit", "0"])
    assert "left out, about" in capsys.readouterr().out


def test_scaling_writes_numbers_and_a_plot(script, tmp_path) -> None:
    arguments = ["--device", "cpu", "--scaling", "--largest", "256", "--repeats", "1", "--budget", "0"]
    script.main([*arguments, "--output", str(tmp_path / "scaling")])
    points = json.loads((tmp_path / "scaling.json").read_text())["results"]
    assert {point["series"] for point in points} == {"width", "depth"}
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_the_float32_baseline_is_torch_muon_but_for_the_arithmetic(script) -> None:
    results = []
    for step in (script.step_in_float32, lambda optimizer: optimizer.step()):
        torch.manual_seed(0)
        matrices = script.model(script.SIZES["tiny"], 1, "cpu", torch.float32)
        start = [matrix.param.detach().clone() for matrix in matrices]
        gradients = [matrix.param.grad.clone() for matrix in matrices]
        step(torch.optim.Muon([matrix.param for matrix in matrices], lr=1.0, weight_decay=0.0))
        results.append([matrix.param.detach() - old for matrix, old in zip(matrices, start, strict=True)])
        assert all(torch.equal(m.param.grad, g) for m, g in zip(matrices, gradients, strict=True))
    for float32, bfloat16 in zip(*results, strict=True):
        assert not torch.equal(float32, bfloat16)
        assert torch.linalg.vector_norm(float32 - bfloat16) < 0.05 * torch.linalg.vector_norm(bfloat16)


def test_operations_of_muon_on_one_matrix_are_counted_by_hand(script) -> None:
    """Five steps of 2 m^2 n + m^3 multiply-adds, m = 64, n = 192, for torch; heads are cut along their axis."""
    matrix = script.Matrix(torch.nn.Parameter(torch.zeros(192, 64)), num_heads=3)
    assert script.operations(False, None, torch.float32)([matrix]) == 2 * 5 * (2 * 64**2 * 192 + 64**3)
    assert script.operations(True, None, torch.float32)([matrix]) == 3 * 2 * 5 * 3 * 64**3
    columns = script.Matrix(torch.nn.Parameter(torch.zeros(64, 192)), num_heads=3, head_axis=1)
    assert script.operations(True, None, torch.float32)([columns]) == 3 * 2 * 5 * 3 * 64**3
