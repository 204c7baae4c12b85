"""`python -m rlspec.stats`: exact numbers, wrong ones found and repaired in one step, and nonsense refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from rlspec import stats
from rlspec.vla.data.facts import write_facts
from rlspec.vla.data.norm_stats import read_norm_stats
from rlspec.vla.data.statistics_report import find_dataset

JOINTS = [f"joint{index}" for index in range(1, 8)]
Output = pytest.CaptureFixture[str]


def write_dataset(root: Path, **changes: Any) -> Path:
    """Two episodes of very different size, as numbers alone, in two files; statistics merged as LeRobot 0.6.1 does."""
    rng = np.random.default_rng(0)
    length = (400, 30)
    centre = np.repeat([0.0, 1.0], length)[:, None]
    state, action = (rng.normal(centre, 0.2, (sum(length), 8)) for _ in range(2))
    state[:, 7], action[:, 7] = rng.uniform(0, 1, sum(length)), rng.integers(0, 2, sum(length))
    action[:, :7] = np.tanh(action[:, :7])
    columns = {"observation.state": state, "action": action, **changes}
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [values.shape[1]], "names": [*JOINTS, "gripper"][: values.shape[1]]}
        for name, values in columns.items()
    }
    marks = {"index": np.arange(sum(length)), "episode_index": np.repeat([0, 1], length)}
    marks["frame_index"] = np.concatenate([np.arange(each) for each in length])
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in marks}
    (root / "data/chunk-000").mkdir(parents=True)
    for file, rows in enumerate((slice(0, 400), slice(400, None))):
        table = {name: pa.array(list(values[rows].astype(np.float32))) for name, values in columns.items()}
        table |= {name: pa.array(values[rows]) for name, values in marks.items()}
        pq.write_table(pa.table(table), root / f"data/chunk-000/file-{file:03d}.parquet")
    info = {"codebase_version": "v3.0", "fps": 15, "features": features, "total_episodes": 2, "total_frames": 430}
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/stats.json").write_text(json.dumps({name: merged(values) for name, values in columns.items()}))
    return root


def merged(values: np.ndarray) -> dict[str, Any]:
    """Right but for the quantiles, which are a weighted mean of those of the episodes."""
    parts = values.astype(np.float32)[:400], values.astype(np.float32)[400:]
    content = {
        "mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0),
        "count": np.array([len(values)]),
    }  # fmt: skip
    for name, level in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        content[name] = sum(np.quantile(part, level, axis=0) * len(part) for part in parts) / len(values)
    return {name: np.asarray(value).tolist() for name, value in content.items()}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data set")


def numbers(root: Path, name: str) -> np.ndarray:
    files = sorted(root.glob("data/*/*.parquet"))
    return np.concatenate([np.array(pq.read_table(file).column(name).to_pylist()) for file in files])


def test_numbers_are_those_of_all_frames_and_wrong_ones_are_named(dataset: Path, capsys: Output) -> None:
    before = (dataset / "meta/stats.json").read_bytes()
    assert stats.main([f"path={dataset}"]) == 1
    shown = capsys.readouterr().out
    values = numbers(dataset, "action")
    line = next(line for line in shown.splitlines() if "action[joint2]" in line)
    cells = [cell.strip() for cell in line.strip("│ \n").split("│")]
    exact = [values[:, 1].mean(), values[:, 1].std(), values[:, 1].min(), *np.quantile(values[:, 1], [0.01, 0.99])]
    assert cells[1:6] == [f"{number:.4g}" for number in exact]
    assert "q99" in cells[7] and "mean" not in cells[7]
    assert "WARNING: observation.state[0]: q" in shown and "add --fix" in shown
    assert (dataset / "meta/stats.json").read_bytes() == before


def test_fix_repairs_and_a_second_look_finds_nothing(dataset: Path, capsys: Output) -> None:
    assert stats.main([f"path={dataset}", "--fix"]) == 0
    assert "repaired" in capsys.readouterr().out
    stored = json.loads((dataset / "meta/stats.json").read_text())["action"]
    for name, level in (("q01", 0.01), ("q10", 0.1), ("q99", 0.99)):
        np.testing.assert_allclose(stored[name], np.quantile(numbers(dataset, "action"), level, axis=0), atol=1e-9)
    assert stats.main([f"path={dataset}"]) == 0
    assert "stored statistics are those of all frames" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("more", [["--fix"], ["norm_stats=norm.json"], []])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    state = np.zeros((430, 8))
    state[402, 3], state[410, 0] = np.nan, np.inf
    root = write_dataset(tmp_path / "data", **{"observation.state": state})
    before = (root / "meta/stats.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert stats.main([f"path={root}", *more]) == 2
    shown = capsys.readouterr()
    assert "observation.state is not finite in 2 frames, first in frame 2 of episode 1" in shown.err
    assert shown.err.count("\n") == 1 and shown.out == ""
    assert (root / "meta/stats.json").read_bytes() == before and not (tmp_path / "norm.json").exists()


def test_a_kill_while_repairing_leaves_the_old_file(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    before = (dataset / "meta/stats.json").read_bytes()

    def killed(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    assert stats.main([f"path={dataset}", "--fix"]) == 130
    assert (dataset / "meta/stats.json").read_bytes() == before


def test_openpis_file_is_written_and_read_back(dataset: Path, tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "assets" / "norm_stats.json"
    stats.main([f"path={dataset}", "--fix", f"norm_stats={file}"])
    content = json.loads(file.read_text())["norm_stats"]
    assert set(content) == {"state", "actions"} and set(content["state"]) == {"mean", "std", "q01", "q99"}
    found = read_norm_stats(file, {"action": 8})
    np.testing.assert_allclose(found["action"]["q99"], np.quantile(numbers(dataset, "action"), 0.99, axis=0))
    assert stats.main([f"path={dataset}", f"against={file}"]) == 0
    assert f"the data goes together with {file}" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "code"), [(0.0, 0), (1.0, 2)])
def test_what_openpi_pads_with_is_no_number_of_the_robot(
    dataset: Path, tmp_path: Path, capsys: Output, more: float, code: int
) -> None:
    file = tmp_path / "norm_stats.json"
    stats.main([f"path={dataset}", "--fix", f"norm_stats={file}"])
    content = json.loads(file.read_text())
    for each in content["norm_stats"].values():
        for kind, values in each.items():
            each[kind] = [*values, *([0.0 if kind == "std" else more] * (32 - len(values)))]
    file.write_text(json.dumps(content))
    assert stats.main([f"path={dataset}", f"against={file}"]) == code
    assert ("32 numbers of observation.state, the data has" in capsys.readouterr().err) == bool(more)


def test_vectors_of_another_length_do_not_go_together(dataset: Path, tmp_path: Path, capsys: Output) -> None:
    other = write_dataset(tmp_path / "other", action=numbers(dataset, "action")[:, :6])
    policy = write_policy(tmp_path / "policy", other)
    assert stats.main([f"path={dataset}", "--fix", f"against={policy}"]) == 2
    assert "action: 8 numbers in the data, 6 in the checkpoint" in capsys.readouterr().err


def write_policy(folder: Path, root: Path, factor: float = 1.0, **facts: Any) -> Path:
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {}
    for name in ("observation.state", "action"):
        values = numbers(root, name) * factor
        tensors |= {f"{name}.mean": values.mean(0), f"{name}.std": values.std(0)}
        tensors |= {f"{name}.q01": np.quantile(values, 0.01, axis=0), f"{name}.q99": np.quantile(values, 0.99, axis=0)}
    save_file(tensors, folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    write_facts(folder, {"format": 1, "control_hz": 15.0, **facts}, step=3)
    return folder


def test_a_policy_of_such_data_goes_together_with_it(dataset: Path, tmp_path: Path, capsys: Output) -> None:
    policy = write_policy(tmp_path / "policy", dataset)
    assert stats.main([f"path={dataset}", "--fix", f"against={policy}"]) == 0
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factor", "facts", "line"),
    [
        (57.29578, {}, r"spreads 0.0175 times as far .*degrees and radians"),
        (1.0, {"control_hz": 10.0}, "rate: 15 Hz in the data, 10 Hz in the checkpoint; convert the data with fps=10"),
    ],
)
def test_what_does_not_go_together_is_refused(
    dataset: Path, tmp_path: Path, capsys: Output, factor: float, facts: dict[str, Any], line: str
) -> None:
    policy = write_policy(tmp_path / "policy", dataset, factor, **facts)
    assert stats.main([f"path={dataset}", f"against={policy}"]) == 2
    assert re.search(line, capsys.readouterr().err)


def test_numbers_that_explode_when_normalised_are_refused(tmp_path: Path, capsys: Output) -> None:
    action = np.zeros((430, 8))
    action[::200, 7] = 1.0  # the gripper closes in less than 1% of all frames
    root = write_dataset(tmp_path / "still", action=action)
    policy = write_policy(tmp_path / "policy", root, normalization={"ACTION": "QUANTILES"})
    assert stats.main([f"path={root}", "--fix", f"against={policy}"]) == 2
    error = capsys.readouterr().err
    assert "action[7]: q01..q99 is 0..0" in error and "normalization_mapping.ACTION=MEAN_STD" in error


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["against=x"], "path: required; add path=DIR"),
        (["path=.", "agains=x"], "agains=x: unknown key; did you mean against?"),
        (["path=.", "fix"], "'fix' is no setting: write key=value, for example path=DIR, or --fix"),
        (["path="], "path=: no value"),
        (["path=/no/such"], "path=/no/such: no such folder"),
        (["path=."], "path=.: no LeRobotDataset there (no meta/info.json); correct the folder"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stats.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(line) and error.count("\n") == 1


def test_an_older_format_and_a_policy_without_statistics_are_one_line(
    dataset: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "empty").mkdir()
    assert stats.main([f"path={dataset}", f"against={tmp_path / 'empty'}"]) == 2
    assert "has no statistics" in capsys.readouterr().err
    info = json.loads((dataset / "meta/info.json").read_text())
    (dataset / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    assert stats.main([f"path={dataset}"]) == 2
    assert "format v2.1, v3.0 is read; convert it" in capsys.readouterr().err


def test_a_hub_id_is_looked_for_in_lerobots_own_copies(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    copy = tmp_path / "home/lerobot/someone/pick"
    copy.parent.mkdir(parents=True)
    dataset.rename(copy)
    assert find_dataset("someone/pick") == copy
