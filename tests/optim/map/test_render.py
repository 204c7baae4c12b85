"""The printed and stored symmetry table."""

from __future__ import annotations

import json

from torch import nn

from rlspec.optim.map.render import coverage, render_json, render_markdown, render_text, table_rows
from rlspec.optim.map.symmetry import SymmetryMap, symmetry_map


def small_map() -> SymmetryMap:
    model = nn.Sequential(
        nn.Embedding(7, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
    )
    model[0].weight.requires_grad_(False)
    return symmetry_map(model, rule="muon")


def test_rows_count_tensors_matrices_values_and_state() -> None:
    rows = {row.role: row for row in table_rows(small_map()) if row.role in ("attention.qkv", "linear", "norm")}
    counts = {role: (row.tensors, row.matrices, row.parameters, row.state_bytes) for role, row in rows.items()}
    assert counts == {"attention.qkv": (1, 6, 192, 768), "linear": (2, 2, 128, 512), "norm": (2, 0, 16, 128)}


def test_the_coverage_line_adds_up() -> None:
    line = coverage(small_map())
    assert "10 trainable tensors with 448 parameters" in line
    assert "384 (85.7%) in 10 matrices" in line
    assert "frozen: 1 tensors with 56 parameters" in line


def test_text_is_aligned_and_ends_with_the_coverage() -> None:
    lines = render_text(small_map()).splitlines()
    assert lines[0].split()[:5] == ["role", "group", "split", "rule", "shape"]
    assert lines[1].index("6 heads on rows") == lines[0].index("split")
    assert lines[-1] == coverage(small_map())


def test_markdown_has_one_width_and_names_the_frozen() -> None:
    text = render_markdown(small_map())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {10}
    assert "Frozen: `0.weight`" in text


def test_json_lists_every_parameter() -> None:
    content = json.loads(render_json(small_map()))
    assert len(content["parameters"]) == 10
    assert content["frozen"] == [{"name": "0.weight", "parameters": 56}]
    assert content["rows"][0]["split"] == "6 heads on rows"
