"""What a study of spectra left in a run, by layer and head; other studies by their picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlspec import diagnose, report
from rlspec.checkpoint import staged_folder
from rlspec.diagnose import DiagnoseCommand
from rlspec.reporting import studies
from rlspec.reporting.reading import read_run
from rlspec.reporting.series import Values


def block(role: str, layer: int, head: int, passes: float) -> dict[str, Any]:
    values = [0.9, 0.3, 0.1 * passes]
    return {
        "role": role,
        "layer": layer,
        "block": head,
        "stable": 1.5,
        "passes": {"k_p=1": passes},
        "singular_values": values,
    }


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    folder = make_run()
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: pion", "name: pion\n  promotion_steps: 1.0"))
    (folder / "diagnostics").mkdir()
    return folder


def test_directions_that_pass_stand_by_layer_and_head(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Values] = {}
    monkeypatch.setattr(studies, "draw_heat_map", lambda title, table, *_, **__: drawn.update({title: table}))
    heads = [block("attention.q", layer, head, 10 * layer + head) for layer in (0, 1) for head in (0, 1, 2)]
    whole = [block("mlp.up", 1, 0, 0.5)]
    content = {"gradient": [block("no", 0, 0, 0)], "momentum": heads + whole, "notes": ["a note"]}
    (run / "diagnostics" / "spectra.json").write_text(json.dumps(content))
    (study,) = studies.read_studies(read_run(run))
    assert drawn["attention.q: directions that k_p=1 passes"].tolist() == [[0, 1, 2], [10, 11, 12]]
    matrices = drawn["whole matrices: directions that k_p=1 passes"]
    assert np.isnan(matrices).sum() == 0 and matrices.tolist() == [[0.5]]
    assert drawn["stable rank, mean over heads"].shape == (2, 2)
    assert study.legend == [("attention.q", 0), ("mlp.up", 1)]
    assert study.notes == ["a note"]
    (spectrum,) = study.charts
    # of attention.q the third direction is missing in one head
    assert [row[4] for row in spectrum.table[1:]] == ["0.3", "0.05"]


@pytest.mark.parametrize(
    ("optim", "chosen", "words"),
    [
        ({"name": "muon", "rule": "muon", "promotion_steps": 0.0}, "auto", "would pass; the run has no gate"),
        (
            {"name": "vla", "rule": "muon", "roles": {"a": {"rule": "pion"}}, "promotion_steps": 0.0},
            "k_p=0",
            "0 passes",
        ),
        ({"name": "pion", "promotion_steps": 5.0}, "k_p=3", "k_p=3 passes; the run's k_p 5 passes more"),
        ({"name": "pion", "promotion_steps": "auto"}, "auto", "auto passes"),
        ({}, "auto", "no gate"),
    ],
)
def test_the_filter_that_is_drawn_is_the_runs_or_says_that_it_is_not(
    optim: dict[str, Any], chosen: str, words: str
) -> None:
    name, said = studies._filter({"optim": optim})
    assert name == chosen and said.endswith(words)


def test_the_newest_of_what_diagnose_wrote_is_shown(run: Path) -> None:
    for step in (2, 10):
        with staged_folder(run / "checkpoints" / f"checkpoint-{step}", metadata={"step": step}) as files:
            (files / "config.json").write_text("{}")
        line = DiagnoseCommand(what="spectra", run=str(run))
        folder = diagnose._output(line, None, diagnose._weights(line))
        folder.mkdir(parents=True)
        (folder / "noise.json").write_text(json.dumps({"title": f"noise of {step}", "notes": ["a note"]}))
    (folder.with_name("checkpoint-2") / "spectra.json").write_text('{"title": "spectra: checkpoint-2", "notes": ["b"]}')
    titles = [study.title for study in studies.read_studies(read_run(run))]
    assert titles == ["noise of 10 (checkpoint-10)", "spectra: checkpoint-2"]


def test_the_picture_of_another_study_is_in_the_page(run: Path) -> None:
    (run / "diagnostics" / "noise.json").write_text('{"title": "noise <b>: tiny", "notes": ["<i>half</i> is signal"]}')
    (run / "diagnostics" / "noise.png").write_bytes(b"picture")
    assert report.main([str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "data:image/png;base64,cGljdHVyZQ==" in text
    assert "noise &lt;b&gt;: tiny" in text and "&lt;i&gt;half" in text


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"momentum": 3}',
        '{"momentum": [{"role": "q", "layer": 0, "block": 0}]}',
        '{"notes": "x", "title": 3}',
    ],
)
def test_a_study_of_whatever_content_harms_no_page(content: str, run: Path) -> None:
    (run / "diagnostics" / "spectra.json").write_text(content)
    assert report.main([str(run)]) == 0


def test_without_a_study_the_page_says_what_is_not_recorded(run: Path) -> None:
    assert report.main([str(run)]) == 0
    assert "python -m rlspec.diagnose what=spectra run=run" in (run / "report.html").read_text()
