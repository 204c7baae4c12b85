"""The curves show what was logged, and nothing where nothing was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from rlspec.diagnostics.curves import plot_curves

ROWS: list[dict[str, Any]] = [
    {"step": 0, "eval/arithmetic/sampled_pass_at_1": 0.4},
    {
        "step": 1,
        "reward": 0.5,
        "loss": 0.1,
        "optim/mlp.up/update_rms": 0.2,
        "optim/mlp.up/pass_energy": 1.5,
        "optim/mlp.up/update_spectral": 3.25,
    },
    {"step": 2, "reward": None, "loss": 0.1, "optim/mlp.up/update_rms": 0.0, "optim/embed/update_rms": 0.9},
    {"step": 3, "reward": 0.7, "loss": 0.1},
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures stay open for inspection."""
    kept: list[Figure] = []
    monkeypatch.setattr(plt, "close", kept.append)
    return kept


def test_each_panel_holds_the_logged_values(figures: list[Figure], tmp_path: Path) -> None:
    plot_curves(ROWS, tmp_path / "curves.png", title="a run")
    panels = {axis.get_title(): axis for axis in figures[0].axes if axis.get_visible()}
    assert set(panels) == {
        "reward",
        "held-out accuracy",
        "update RMS per role, over the learning rate",
        "largest singular value of the update, over the learning rate",
        "pass energy per role (directions per block)",
    }
    (reward,) = panels["reward"].lines
    assert np.asarray(reward.get_xydata()).tolist() == [[1, 0.5], [3, 0.7]]
    update = {line.get_label(): line for line in panels["update RMS per role, over the learning rate"].lines}
    energy = {line.get_label(): line for line in panels["pass energy per role (directions per block)"].lines}
    (spectral,) = panels["largest singular value of the update, over the learning rate"].lines
    assert np.asarray(spectral.get_xydata()).tolist() == [[1, 3.25]]
    assert set(update) == {"embed", "mlp.up"}
    assert update["mlp.up"].get_color() == energy["mlp.up"].get_color() != update["embed"].get_color()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_rewards_shows_its_loss(figures: list[Figure], tmp_path: Path) -> None:
    plot_curves([{"step": 1, "loss": 2.0}], tmp_path / "curves.png", title="sft")
    assert [axis.get_title() for axis in figures[0].axes] == ["loss"]


def test_success_is_drawn_in_the_order_of_steps(figures: list[Figure], tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 1.0},
        {"step": 20, "eval/success": 0.5, "eval/push/success": 0.25},
        {"step": 10, "eval/success": 0.25, "eval/push/success": 0.0},  # came in later
    ]
    plot_curves(rows, tmp_path / "curves.png", title="a policy")
    panels = {axis.get_title(): axis for axis in figures[0].axes if axis.get_visible()}
    assert set(panels) == {"loss", "success in the simulator"}
    lines = {
        line.get_label(): np.asarray(line.get_xydata()).tolist() for line in panels["success in the simulator"].lines
    }
    assert lines == {"all tasks": [[10, 0.25], [20, 0.5]], "push": [[10, 0.0], [20, 0.25]]}


def test_many_roles_are_drawn_by_kind(figures: list[Figure], tmp_path: Path) -> None:
    letters = [f"optim/action:attention.{letter}/update_rms" for letter in "abcdefghijklmnop"]
    rows = [{"step": 1, **{key: 0.1 for key in letters}, letters[0]: 1.7, "optim/action:norm/update_rms": 9.0}]
    plot_curves(rows, tmp_path / "curves.png", title="many")
    (axis,) = (each for each in figures[0].axes if each.get_title().startswith("update RMS"))
    (line,) = axis.get_lines()
    assert line.get_label() == "action:attention"
    assert list(line.get_ydata()) == pytest.approx([0.2])  # (1.7 + 15 x 0.1) / 16


def test_nothing_logged_is_no_picture(tmp_path: Path) -> None:
    plot_curves([], tmp_path / "curves.png", title="empty")
    assert not (tmp_path / "curves.png").exists()
