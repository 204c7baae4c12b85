"""`python -m rlspec.symmetry`: the table without weights, in a file, and quick answers to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlspec.symmetry import main


def test_help_and_mistakes_are_answered_without_torch() -> None:
    code = (
        "import sys; from rlspec.symmetry import main; "
        "codes = [main(['--help']), main(['optim=pion']), main(['model=tiny', 'out=table.pdf']), main(['model=tin'])]; "
        "assert 'torch' not in sys.modules; assert codes == [0, 2, 2, 2], codes"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage: python -m rlspec.symmetry" in result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert "add model=NAME" in lines[0]
    assert "table.pdf" in lines[1]
    assert "did you mean tiny" in lines[2]


def test_the_tiny_model_per_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", "optim=muon"]) == 0
    lines = capsys.readouterr().out.splitlines()
    output = next(line for line in lines if line.startswith("attention.o"))
    assert "4 heads on columns  muon" in output
    assert lines[-1].startswith("coverage: 46 trainable tensors")


def test_a_local_folder_with_lora_written_as_json(
    tmp_path: Path, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.json"
    assert main([f"model={tiny_config}", "+model.lora.r=4", "optim.roles={lora: muon}", f"out={out}"]) == 0
    content = json.loads(out.read_text())
    splits = {row["role"]: row["split"] for row in content["rows"]}
    assert splits["lora.B.attention.k"] == "2 heads on rows"
    assert splits["lora.A.attention.o"] == "4 heads on columns"
    assert len(content["frozen"]) == 24
    assert "coverage:" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["hidden_act=foo", "num_attention_heads=0", "rope_parameters={rope_type: foo}"])
def test_an_impossible_architecture_is_one_line(change: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", f"model.architecture.{change}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"hidden_act": "foo"}])
def test_a_folder_with_an_impossible_config_is_one_line(
    change: dict[str, object], tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_config / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert main([f"model={tiny_config}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    from transformers import Qwen3Config

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(**sizes, head_dim=32, intermediate_size=384, vocab_size=262, tie_word_embeddings=True)
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    return folder
