"""Every way in which a data set can be damaged is one line with the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlspec.errors import DataError
from rlspec.vla.data.checking import check_dataset

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def change_column(path: Path, name: str, change: Callable[[list[Any]], Any]) -> None:
    """Rewrite one column of a parquet file."""
    table = pq.read_table(path)
    values = table.column(name).to_pylist()
    changed = change(values)
    index = table.column_names.index(name)
    column = pa.array(values if changed is None else changed, type=table.schema.field(name).type)
    pq.write_table(table.set_column(index, table.schema.field(name), column), path)


def change_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def poison(value: float) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        change_column(root / DATA, "action", lambda rows: rows[4].__setitem__(1, value))

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) * 2 // 3])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def wrong_size(key: str, shape: list[int]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        features = json.loads((root / "meta/info.json").read_text())["features"]
        features[key]["shape"] = shape
        change_info(root, features=features)

    return damage


def ragged(root: Path) -> None:
    table = pq.read_table(root / DATA)
    rows = table.column("action").to_pylist()
    del rows[5][0]
    index = table.column_names.index("action")
    pq.write_table(table.set_column(index, "action", pa.array(rows, type=pa.list_(pa.float32()))), root / DATA)


def empty_episode(root: Path) -> None:
    change_column(root / EPISODES, "length", lambda lengths: lengths.__setitem__(2, 0))


def lost_frames(root: Path) -> None:
    table = pq.read_table(root / DATA)
    pq.write_table(table.filter(pa.compute.not_equal(table.column("episode_index"), 2)), root / DATA)


def gap(root: Path) -> None:
    change_column(root / EPISODES, "episode_index", lambda rows: [row + (row >= 3) for row in rows])


def wrong_pixels(root: Path) -> None:
    table = pq.read_table(root / DATA)
    broken = [{"bytes": b"no picture", "path": None}] * table.num_rows
    index = table.column_names.index("observation.images.side")
    field = table.schema.field("observation.images.side")
    pq.write_table(table.set_column(index, field, pa.array(broken, type=field.type)), root / DATA)


CASES = {
    "nan": ("images", poison(np.nan), "data: action is not finite in 1 frames, first in frame 4 of episode 0; leave"),
    "infinity": ("images", poison(np.inf), "data: action is not finite in 1 frames"),
    "fewer numbers": ("images", wrong_size("action", [2]), r"data: action holds 3 numbers, meta/info.json says 2; "),
    "ragged": ("images", ragged, r"file-000.parquet: action: vectors of 2 and of 3 numbers; generate the data again"),
    "picture size": ("images", wrong_size("observation.images.side", [32, 24, 3]), "pictures of 24x32x3, .*32x24x3; "),
    "film size": ("films", wrong_size("observation.images.side", [32, 24, 3]), "pictures of 24x32x3, .*32x24x3; "),
    "no picture": ("images", wrong_pixels, "observation.images.side holds no picture .*; restore the file"),
    "empty episode": ("images", empty_episode, "episode 2 is empty; remove it with lerobot-edit-dataset"),
    "lost frames": ("images", lost_frames, "data: .* frames, the episodes have .*; restore the file"),
    "gap": ("images", gap, "meta/episodes: episode 3 is missing, 4 is in its place; renumber"),
    "truncated data": ("images", truncate(DATA), r"data/chunk-000/file-000.parquet: cannot be read .*; restore it"),
    "truncated episodes": ("images", truncate(EPISODES), "meta/episodes/.*: cannot be read .*; restore the file"),
    "no data": ("images", remove(DATA), "no parquet files in data/; download or generate"),
    "no info": ("images", remove("meta/info.json"), "meta/info.json: missing; download or generate"),
    "broken info": ("images", truncate("meta/info.json"), "meta/info.json: cannot be read .*; restore it"),
    "no episodes": ("images", remove(EPISODES), "meta/episodes: no parquet files; restore"),
    "no tasks": ("images", remove("meta/tasks.parquet"), "meta/tasks.parquet: missing; restore"),
    "no statistics": ("images", remove("meta/stats.json"), "meta/stats.json: missing; repair them"),
    "other rate": (
        "images",
        lambda root: change_info(root, fps=20),
        "frame 1 of episode 0 is at 0.100 s, not at 0.050",
    ),
    "old format": (
        "images",
        lambda root: change_info(root, codebase_version="v2.1"),
        "format v2.1, .* convert it with",
    ),
    "no film": (
        "films",
        remove("videos/observation.images.front/chunk-000/file-000.mp4"),
        r"file-000.mp4: missing, episode 0 is in it; restore",
    ),
    "no film at all": (
        "films",
        lambda root: (root / "videos/observation.images.front/chunk-000/file-000.mp4").write_bytes(b"nothing"),
        r"file-000.mp4: cannot be decoded .*; restore",
    ),
    "broken film": (
        "films",
        truncate("videos/observation.images.front/chunk-000/file-000.mp4"),
        r"file-000.mp4: .* frames, its episodes have .*; restore",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_one_line(case: str, request: pytest.FixtureRequest, copy_of: Callable[[Path], Path]) -> None:
    kind, damage, line = CASES[case]
    root = copy_of(request.getfixturevalue(kind))
    damage(root)
    with pytest.raises(DataError, match=line) as error:
        check_dataset(root)
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)


@pytest.mark.parametrize("kind", ["images", "films"])
def test_a_whole_data_set_passes(kind: str, request: pytest.FixtureRequest) -> None:
    report = check_dataset(request.getfixturevalue(kind))
    assert (report.episodes, report.fps) == (6, 10)
    assert report.cameras == ("observation.images.front", "observation.images.side")
    assert report.describe().startswith(f"6 episodes, {report.frames} frames, ")


def test_checking_needs_no_lerobot(images: Path) -> None:
    """Then the doctor can afford it."""
    import ast

    import rlspec.vla.data

    for name in ("checking", "files", "pixels"):
        imported = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse((Path(rlspec.vla.data.__path__[0]) / f"{name}.py").read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not {each for each in imported if each and each.split(".")[0] in ("lerobot", "torch", "datasets")}
