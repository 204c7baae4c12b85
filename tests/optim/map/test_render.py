"""The printed and stored symmetry table."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import nn

from rlspec.optim.map.render import coverage, render_json, render_markdown, render_text, table_rows
from rlspec.optim.map.spec import SymmetryMap
from rlspec.optim.map.symmetry import symmetry_map


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


def test_a_rate_of_its_own_is_said_beside_the_rule() -> None:
    mapping = symmetry_map(
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), rule="muon", roles={"norm": {"lr_scale": 5}}
    )
    assert [row.cells()["rule"] for row in table_rows(mapping)] == ["muon", "adamw", "adamw at 5 x lr"]
    assert {entry["role"]: entry["lr_scale"] for entry in json.loads(render_json(mapping))["parameters"]}["norm"] == 5


def test_text_is_aligned_and_ends_with_the_coverage() -> None:
    lines = render_text(small_map()).splitlines()
    assert lines[0].split()[:5] == ["role", "group", "split", "rule", "contained"]
    assert lines[1].index("6 heads on rows") == lines[0].index("split")
    assert lines[-1] == coverage(small_map())


def test_text_leaves_out_columns_beyond_100_and_files_have_all() -> None:
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8))
    lines = render_text(symmetry_map(model, rule="adamw")).splitlines()
    assert max(map(len, lines[:-1])) <= 100
    assert lines[0].split()[-1] == "bytes"  # of state: it all fits
    long = [*symmetry_map(model, rule="adamw", overrides=[{"pattern": "1.weight", "rule": "column_then_polar"}])]
    long = [replace(spec, role=spec.role + "." * 30) for spec in long]
    short = render_text(SymmetryMap(tuple(long))).splitlines()
    assert max(map(len, short[:-1])) <= 100 and short[0].split()[-1] != "bytes"
    assert "state bytes" in render_markdown(SymmetryMap(tuple(long)))


def test_broken_groups_are_warnings_in_text_and_files() -> None:
    mapping = symmetry_map(nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8)), rule="adamw")
    expected = [
        "warning: rule adamw (S x S) breaks O(d) of embed",
        "warning: rule adamw (S x S) breaks O(out) of linear",
        "warning: rule adamw (S x S) breaks O(in) of linear",
        "warning: rule adamw (S) breaks O(out) of bias",
    ]
    assert render_text(mapping).splitlines()[-5:-1] == expected
    assert [f"- {line}" in render_markdown(mapping) for line in expected] == [True] * 4
    said = "contained no: these steps depend on the basis"
    assert said in render_text(mapping) and said in render_markdown(mapping)
    whole = symmetry_map(nn.Sequential(nn.Linear(8, 8, bias=False)), rule="muon")
    assert said not in render_text(whole) and said not in render_markdown(whole)
    content = json.loads(render_json(mapping))
    assert content["warnings"] == expected
    assert [row["broken"] for row in content["rows"]] == [["O(d)"], ["O(out)", "O(in)"], ["O(out)"]]
    assert content["parameters"][0]["rule_group"] == "S x S"


def test_what_looks_like_a_matrix_and_is_none_gets_adamw_with_a_note() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.class_token, self.scale = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.ones(8, 1, 1))
            self.depthwise, self.layer_scale = nn.Conv2d(8, 8, 3, groups=8), nn.Parameter(torch.ones(8))

    mapping = symmetry_map(Mixed(), rule="muon")
    assert {spec.rule for spec in mapping} == {"adamw"}
    assert {spec.name: spec.decays for spec in mapping if spec.decays} == {"depthwise.weight": True}
    expected = [
        "note: token (1 tensors) has rule adamw: a single token has no structure",
        "note: vector (1 tensors) has rule adamw: a vector in a tensor of more axes has no structure",
        "note: depthwise (1 tensors) has rule adamw: a kernel for each channel is no matrix",
    ]
    assert [line for line in render_text(mapping).splitlines() if line.startswith("note")] == expected
    assert [f"- {line}" in render_markdown(mapping) for line in expected] == [True] * 3
    assert json.loads(render_json(mapping))["notes"] == [line.removeprefix("note: ") for line in expected]


def test_markdown_has_one_width_and_names_the_frozen() -> None:
    text = render_markdown(small_map())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {11}
    assert "Frozen: `0.weight`" in text


def test_json_lists_every_parameter() -> None:
    content = json.loads(render_json(small_map()))
    assert len(content["parameters"]) == 10
    assert content["frozen"] == [{"name": "0.weight", "parameters": 56}]
    assert content["rows"][0]["split"] == "6 heads on rows"
