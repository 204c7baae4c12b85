"""`python -m rlspec.symmetry`: the table without weights, in a file, and quick answers to mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    assert "policy=pi: must be rlspec_adapter, rlspec_flow, rlspec_smolvla, rlspec_pi05, smolvla, pi0" in lines[3]


def test_the_tiny_model_per_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", "optim=muon"]) == 0
    lines = capsys.readouterr().out.splitlines()
    output = next(line for line in lines if line.startswith("attention.o"))
    assert "4 heads on columns  muon" in output
    assert lines[-2].startswith("coverage: 46 trainable tensors")


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
    for line in out.splitlines()[1:]:
        if line.startswith(("coverage", "unused", "state", "warning", " ")):
            continue
        cells = re.split(r"  +", line)
        found.setdefault(cells[0], cells)
    return found


def test_smolvla_as_lerobot_makes_it_trains_its_expert_per_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy=smolvla", "optim=pion"]) == 0
    out = capsys.readouterr().out
    cells = cells_of(out)
    assert cells["action:attention.q"][2:5] == ["15 heads on rows", "pion", "yes, O x O"]
    assert cells["action:attention.k"][2] == "5 heads on rows"
    assert cells["action:output"][3] == "adamw"
    assert {label.partition(":")[0] for label in cells} == {"action"}
    assert "155 trainable tensors with 99,880,992 parameters" in out.splitlines()[-2]


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


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def states_of(out: str) -> dict[str, int]:
    """Bytes of state by rule, in all with AdamW alone, as the last line says."""
    line = out.splitlines()[-1]
    inside, alone = re.findall(r"\(([^)]*) bytes\)", line)
    found = {part.rsplit(" ", 1)[0]: numbers(part.rsplit(" ", 1)[1])[0] for part in inside.split(", ")}
    return found | {"alone": numbers(alone)[0]}


def counted(name: str, **settings: bool) -> dict[str, int]:
    """The same by a plain walk: momentum for matrices, two moments for embeddings, outputs, modulations and vectors."""
    import torch

    from rlspec.vla.meta_policy import build_meta_policy

    states = {"muon": 0, "pion": 0, "adamw": 0, "alone": 0}
    for path, param in build_meta_policy(name, settings).named_parameters():
        assert param.device.type == "meta" and param.dtype == torch.float32
        if not param.requires_grad:
            continue
        states["alone"] += 8 * param.numel()
        by_adam = param.ndim < 2 or re.search(r"embed_tokens|position_embedding|action_out_proj|norm\.dense", path)
        rule = (
            "adamw"
            if by_adam
            else "pion"
            if re.search(r"(?:lm|gemma)_expert\.|action_|time_mlp|state_proj", path)
            else "muon"
        )
        states[rule] += (8 if by_adam else 4) * param.numel()
    return {rule: size for rule, size in states.items() if size}


@pytest.mark.parametrize(
    ("name", "settings", "trained", "frozen"),
    [
        ("rlspec_smolvla", {}, 99_880_992, 350_165_184),
        ("rlspec_smolvla", {"train_expert_only": False, "freeze_vision_encoder": False}, 392_904_096, 57_142_080),
        ("rlspec_pi05", {}, 3_244_377_872, 899_026_944),
    ],
)
def test_real_sizes_are_routed_whole_and_their_state_is_what_a_plain_count_gives(
    name: str, settings: dict[str, bool], trained: int, frozen: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = [f"policy.{key}={str(value).lower()}" for key, value in settings.items()]
    assert main([f"policy={name}", "optim=vla_pion", *fields]) == 0
    out = capsys.readouterr().out
    coverage = next(line for line in out.splitlines() if line.startswith("coverage"))
    assert f"with {trained:,} parameters, each claimed once" in coverage
    assert coverage.endswith(f"with {frozen:,} parameters")
    assert states_of(out) == counted(name, **settings)


def test_pi05_has_the_size_of_its_published_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """SigLIP So400m, Gemma 2B, the 300M expert with adaptive norms, and the heads that no loss reaches."""

    def decoder(width: int, hidden: int, norm: int) -> int:
        return 2 * width * 2048 + 2 * width * 256 + 3 * width * hidden + 2 * norm

    adaptive, wide, small = 3 * 1024 * 1025, 2048, 1024
    tower = 27 * (4 * 1152 * 1153 + 1152 * 4305 + 4304 * 1153 + 4 * 1152) + 1152 * (3 * 14 * 14 + 1 + 256 + 2)
    language = 18 * decoder(wide, 16_384, wide) + wide + 257_152 * wide
    expert = 18 * decoder(small, 4096, adaptive) + adaptive
    projections = 33 * small + 32 * (small + 1) + 2 * small * (small + 1)
    heads = 257_152 * (wide + small)
    last = 2 * wide * 2048 + 3 * wide * 16_384 + 2 * wide  # of its last layer only keys and values are used
    assert main(["policy=rlspec_pi05", "roles=vla"]) == 0
    lines = capsys.readouterr().out.splitlines()
    unused = next(line for line in lines if line.startswith("unused"))
    assert numbers(unused)[0] == heads + last
    assert "paligemma.lm_head.weight" in unused and "gemma_expert.lm_head.weight" in unused
    total = tower + 1153 * wide + language + expert + projections + heads
    assert f"with {total - heads - last:,} parameters, each claimed once" in lines[-3]


@pytest.mark.parametrize("name", ["rlspec_adapter", "rlspec_flow"])
def test_our_heads_are_actions_part_by_part(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rlspec.optim import symmetry_map
    from rlspec.vla.meta_policy import build_meta_policy

    specs = list(symmetry_map(build_meta_policy(name, {}), rule="muon", roles="vla"))
    found = {spec.name.removeprefix("model."): (spec.label, spec.rule, spec.split) for spec in specs}
    head = {path: entry for path, entry in found.items() if path.startswith(("action_head.", "proprio_projector."))}
    assert all(label.startswith("action:") for label, _, _ in head.values())
    assert found["action_queries.weight"][:2] == found["action_head.action_tokens"][:2] == ("action:token", "adamw")
    matrices = {path for path in head if path.endswith("weight") and "norm" not in path}
    block = "action_head.blocks.0."
    names = ("q_proj", "k_self", "v_self", "k_adapter", "v_adapter", "k_task", "v_task", "o_proj", "mlp.fc1", "mlp.fc2")
    assert {f"{block}{part}.weight" for part in names} <= matrices
    last = {"rlspec_adapter": "action_head.fc2.weight", "rlspec_flow": "action_head.action_out_proj.weight"}[name]
    assert found[last][:2] == ("action:output", "adamw")
    modulations = {path for path in matrices if "ada_ln" in path}
    assert bool(modulations) == (name == "rlspec_flow")
    assert {found[path][:2] for path in modulations} <= {("action:modulation", "adamw")}
    assert {found[path][1:] for path in matrices - modulations - {last}} == {("pion", "whole")}
    assert found[f"{block}gating_factor"][:2] == ("action:vector", "adamw")
    parts = {path.split(".")[1]: rule for path, (label, rule, _) in found.items() if rule == "muon"}
    assert {"vision_tower", "language_model"} <= parts.keys()
    assert not [path for path, (_, rule, _) in found.items() if rule == "pion" and path not in head]


def test_per_head_where_no_preset_says_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy=rlspec_adapter", "optim=muon", "policy.head_width=96", "policy.head_heads=3"]) == 0
    cells = cells_of(capsys.readouterr().out)
    assert cells["action:attention.q"][2:4] == ["3 heads on rows", "muon"]
    assert cells["action:attention.o"][2] == "3 heads on columns"


def test_the_preset_is_a_recipes_group_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", "optim=vla_pion"]) == 0
    rules = {label: cells[3] for label, cells in cells_of(capsys.readouterr().out).items()}
    assert rules["attention.q"] == rules["mlp.gate"] == "muon" and rules["embed"] == "adamw"


def test_it_says_where_a_rule_breaks_the_group_of_a_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", "optim=adamw"]) == 0
    out = capsys.readouterr().out
    contained = {label: cells[4] for label, cells in cells_of(out).items()}
    assert (contained["embed"], contained["norm"]) == ("no, S x S", "yes, S")
    assert "warning: rule adamw (S x S) breaks O(head) of attention.v, attention.o\n" in out
    for preset, rule in (("symmetric", "muon"), ("symmetric_pion", "pion")):
        assert main(["model=tiny", f"optim={preset}", f"out={tmp_path / 'map.json'}"]) == 0
        out = capsys.readouterr().out
        cells = cells_of(out)
        assert (cells["attention.v"][2:5]) == ["2 heads on rows", rule, "yes, O x O"]
        assert (cells["mlp.down"][3:5]) == ["column_then_polar", "yes, O x S"]
        assert "warning" not in out and "no, " not in out
        assert all(row["broken"] == [] for row in json.loads((tmp_path / "map.json").read_text())["rows"])


@pytest.mark.parametrize("arguments", [["policy=pi05", "optim=symmetric"], ["policy=rlspec_flow"], ["model=tiny"]])
def test_the_table_fits_into_a_terminal_of_100_columns(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("cover", "unused", "state"))]
    assert max(map(len, table)) <= 100
    assert table[0].split()[:5] == ["role", "group", "split", "rule", "contained"]


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
    import transformers

    library: Any = transformers
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    library.SiglipVisionConfig(**tower).save_pretrained(tmp_path / "tower")
    assert main([f"model={tmp_path / 'tower'}", "optim=muon"]) == 0
    assert cells_of(capsys.readouterr().out)["vision:attention.o"][2] == "4 heads on columns"
    text = tower | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "deepstack_visual_indexes": [0]}
    library.Qwen3VLConfig(text_config=text, vision_config=vision | {"out_hidden_size": 32}).save_pretrained(
        tmp_path / "both"
    )
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
    import transformers

    library: Any = transformers
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = library.Qwen3Config(**sizes, head_dim=32, intermediate_size=384, vocab_size=262, tie_word_embeddings=True)
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    return folder
