"""`python -m rlspec.symmetry`: the table without weights, in a file, and quick answers to mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlspec.symmetry import main


def test_help_and_mistakes_are_answered_without_torch() -> None:
    code = (
        "import sys; from rlspec.symmetry import main; "
        "codes = [main(['--help']), main(['optim=pion']), main(['model=tiny', 'out=table.pdf']), main(['model=tin']), "
        "main(['policy=pi'])]; "
        "assert 'torch' not in sys.modules; assert codes == [0, 2, 2, 2, 2], codes"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage: python -m rlspec.symmetry" in result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert "add model=NAME" in lines[0]
    assert "table.pdf" in lines[1]
    assert "did you mean tiny" in lines[2]
    assert "policy=pi: allowed: smolvla, pi0, pi05" in lines[3]


def test_the_tiny_model_per_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", "optim=muon"]) == 0
    lines = capsys.readouterr().out.splitlines()
    output = next(line for line in lines if line.startswith("attention.o"))
    assert "4 heads on columns  muon" in output
    assert lines[-1].startswith("coverage: 46 trainable tensors")


def test_the_state_is_that_of_the_recipes_settings(capsys: pytest.CaptureFixture[str]) -> None:
    def state(*arguments: str) -> int:
        assert main(["model=tiny", *arguments]) == 0
        return int(re.findall(r"optimizer state ([\d,]+) bytes", capsys.readouterr().out)[0].replace(",", ""))

    assert state("optim=muon", "optim.state_dtype=bfloat16") < 0.7 * state("optim=muon")
    assert state("optim=dion", "optim.options.dion_rank=0.1") < state("optim=dion", "optim.options.dion_rank=0.9")


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


def cells_of(out: str) -> dict[str, list[str]]:
    """Label of a row -> its cells, of the first such row."""
    found: dict[str, list[str]] = {}
    for line in out.splitlines()[1:-1]:
        cells = re.split(r"  +", line)
        found.setdefault(cells[0], cells)
    return found


def test_smolvla_as_lerobot_makes_it_trains_its_expert_per_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy=smolvla", "optim=pion"]) == 0
    out = capsys.readouterr().out
    cells = cells_of(out)
    assert cells["action:attention.q"][2:5] == ["15 heads on rows", "pion", "960 x 720"]
    assert cells["action:attention.k"][2] == "5 heads on rows"
    assert cells["action:output"][3] == "adamw"
    assert {label.partition(":")[0] for label in cells} == {"action"}
    assert "155 trainable tensors with 99,880,992 parameters" in out.splitlines()[-1]


def test_the_preset_routes_every_part_of_pi05(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy=pi05", "roles=vla"]) == 0
    rules = {label: (cells[2], cells[3]) for label, cells in cells_of(capsys.readouterr().out).items()}
    assert rules["vision:attention.q"] == ("16 heads on rows", "muon")
    assert rules["attention.q"] == ("8 heads on rows", "muon")
    assert rules["connector:linear"] == ("whole", "muon")
    assert rules["action:attention.q"] == ("whole", "pion")
    assert rules["action:linear.input"] == ("whole", "pion")
    for label in ("embed", "lm_head", "action:output", "action:modulation", "vision:position", "norm"):
        assert rules[label] == ("whole", "adamw")


def test_fields_of_a_policy_change_it_and_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["policy.train_expert_only=false", "policy.freeze_vision_encoder=false", "policy.num_vlm_layers=2"]
    assert main(["policy=smolvla", *changes]) == 0
    assert {"vision:attention.q", "attention.q", "connector:linear"} <= set(cells_of(capsys.readouterr().out))
    assert main(["policy=smolvla", "policy.train_expert=false"]) == 2
    assert "policy.train_expert: smolvla has no such field; did you mean train_expert_only" in capsys.readouterr().err


def test_a_missing_lerobot_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lerobot.policies.factory", None)
    assert main(["policy=pi0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "needs LeRobot: install the extra vla" in lines[0]


def test_a_model_with_images_and_a_bare_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import Qwen3VLConfig, SiglipVisionConfig

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    SiglipVisionConfig(**tower).save_pretrained(tmp_path / "tower")
    assert main([f"model={tmp_path / 'tower'}", "optim=muon"]) == 0
    assert cells_of(capsys.readouterr().out)["vision:attention.o"][2] == "4 heads on columns"
    text = tower | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "deepstack_visual_indexes": [0]}
    Qwen3VLConfig(text_config=text, vision_config=vision | {"out_hidden_size": 32}).save_pretrained(tmp_path / "both")
    assert main([f"model={tmp_path / 'both'}", "optim=muon"]) == 0
    cells = cells_of(capsys.readouterr().out)
    assert (cells["vision:attention.qkv"][2], cells["attention.k"][2]) == ("12 heads on rows", "2 heads on rows")


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
