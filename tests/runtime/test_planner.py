"""The planner: its bytes are those that were counted, and what does not fit is said with what to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlspec.errors import ConfigError
from rlspec.plan import main
from rlspec.runtime.planner import DEVICES, GIB, SHAPES, Shape, Workload, optimizer_bytes, plan, shape_of

COUNTED = Path(__file__).parents[1] / "benchmarks" / "results" / "distributed.json"


def test_the_weights_of_the_models_are_those_of_their_names() -> None:
    billions = {name: shape.weights / 1e9 for name, shape in SHAPES.items()}
    expected = {"qwen3_0.6b": 0.596, "qwen3_1.7b": 1.72, "qwen3_4b": 4.02, "qwen3_8b": 8.19, "qwen3_32b": 32.76}
    for name, size in expected.items():
        assert billions[name] == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize(("method", "per_head"), [("muon per head", True), ("muon whole", False)])
def test_the_bytes_of_the_optimizer_are_those_that_were_counted(gpus: int, method: str, per_head: bool) -> None:
    stored = json.loads(COUNTED.read_text(encoding="utf-8"))
    counted = stored["ranks"][str(gpus)][method]["bytes_per_rank"]
    qwen = SHAPES["qwen3_" + stored["size"]]
    shape = Shape(qwen.hidden, qwen.heads, qwen.kv_heads, qwen.head, qwen.wide, stored["layers"])
    planned = optimizer_bytes(shape, Workload(gpus=gpus, per_head=per_head))
    assert planned == pytest.approx(counted, rel=1e-3)  # what is counted has the agreements of a few bytes besides


def test_aligned_heads_send_nothing_and_others_do() -> None:
    shape = SHAPES["qwen3_0.6b"]
    assert optimizer_bytes(shape, Workload(gpus=8)) < optimizer_bytes(shape, Workload(gpus=8, per_head=False))
    assert optimizer_bytes(shape, Workload(gpus=8, elementwise=True)) == 0
    assert optimizer_bytes(shape, Workload(gpus=1)) == 0


def test_what_does_not_fit_is_said_with_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=qwen3_32b", "gpus=8", "sharding=ddp"]) == 1
    assert "does not fit: " in (said := capsys.readouterr().out)
    assert "use sharding=fsdp2" in said
    assert main(["model=qwen3_8b", "gpus=8", "engine=transformers"]) == 1
    assert "use engine=vllm" in capsys.readouterr().out
    assert main(["model=qwen3_32b", "gpus=64", "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["weights"] == pytest.approx(4 * 32.76e9 / 64, rel=0.01)


def test_more_devices_take_less_memory_and_less_time() -> None:
    shape, device = SHAPES["qwen3_8b"], DEVICES["h100_80gb"]
    few, many = (plan(shape, Workload(gpus=gpus), device) for gpus in (16, 32))
    assert many.memory["optimizer"] == few.memory["optimizer"] / 2
    assert many.seconds["training"] < few.seconds["training"]
    assert few.peak < device.memory * GIB


def test_other_models_come_from_a_folder(tmp_path: Path) -> None:
    config = {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 50, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    matrices = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 96)
    assert shape_of(str(tmp_path)).weights == matrices + 50 * 64
    with pytest.raises(ConfigError, match=r"model=qwen3_7b: no shapes are known; did you mean qwen3_"):
        shape_of("qwen3_7b")


def test_an_unknown_device_is_answered_by_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=qwen3_8b", "hardware=h100"]) == 2
    assert "h100_80gb" in capsys.readouterr().err
