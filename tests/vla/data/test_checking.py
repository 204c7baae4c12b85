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

from rlspec.config.vla_schema import Dataset
from rlspec.errors import DataError
from rlspec.vla.data import decoding
from rlspec.vla.data.checking import check_dataset
from rlspec.vla.data.frames import FrameStore
from rlspec.vla.data.opening import open_dataset

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


def channels_first(root: Path) -> None:
    """As openpi's converters write."""
    features = json.loads((root / "meta/info.json").read_text())["features"]
    for key in ("observation.images.side", "observation.images.front"):
        features[key] |= {"shape": [3, 24, 32], "names": ["channels", "height", "width"]}
    change_info(root, features=features)


def damaged_picture(row: int) -> Callable[[Path], None]:
    def spoil(pictures: list[Any]) -> None:
        pictures[row]["bytes"] = pictures[row]["bytes"][:60]

    return lambda root: change_column(root / DATA, "observation.images.side", spoil)


def damaged_film(root: Path) -> None:
    """From the third quarter of the packets on, noise in place of the pictures; their number is right."""
    path = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    content = bytearray(path.read_bytes())
    start, size = content.index(b"mdat") + 4, int.from_bytes(content[content.index(b"mdat") - 4 :][:4], "big") - 8
    for index in range(start + size * 3 // 4, start + size * 3 // 4 + 200):
        content[index] ^= 0x5A
    path.write_bytes(content)


CASES = {
    "nothing recorded": (
        "images",
        lambda root: change_info(root, total_episodes=0, total_frames=0),
        "meta/info.json: no episodes yet; record or collect some first",
    ),
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


def episode_of(root: Path, row: int) -> tuple[int, int]:
    table = pq.read_table(root / DATA, columns=["episode_index", "frame_index"]).slice(row, 1).to_pylist()[0]
    return table["episode_index"], table["frame_index"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_damaged_picture_in_the_middle_is_named_and_its_episode_can_be_left_out(
    images: Path, copy_of: Callable[[Path], Path], cache: Path
) -> None:
    root = copy_of(images)
    row = pq.read_table(root / DATA).num_rows // 2
    damaged_picture(row)(root)
    episode, frame = episode_of(root, row)
    check_dataset(root)  # without looking at every picture
    with pytest.raises(DataError, match=rf"frame {frame} of episode {episode}, observation.images.side: cannot be dec"):
        check_dataset(root, say=print)
    check_dataset(root, episodes=[each for each in range(6) if each != episode], say=print)


def test_a_damaged_film_in_the_middle_is_named_and_its_episode_can_be_left_out(
    films: Path, copy_of: Callable[[Path], Path], cache: Path
) -> None:
    root = copy_of(films)
    damaged_film(root)
    with pytest.raises(
        DataError, match=r"frame \d+ of episode [1-5], observation.images.front: cannot be dec"
    ) as error:
        check_dataset(root, say=print)
    assert "or leave the episode out with dataset.episodes" in str(error.value)
    check_dataset(root, episodes=[0], say=print)


def test_a_number_that_is_none_does_not_matter_in_an_episode_that_is_left_out(
    images: Path, copy_of: Callable[[Path], Path]
) -> None:
    root = copy_of(images)
    poison(np.nan)(root)
    check_dataset(root, episodes=[1, 2])
    with pytest.raises(DataError, match="first in frame 4 of episode 0; leave the episode out with dataset.episodes"):
        check_dataset(root, episodes=[0, 1])


def test_actions_may_go_by_another_name(images: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(images)
    table = pq.read_table(root / DATA)
    pq.write_table(table.rename_columns(["actions" if n == "action" else n for n in table.column_names]), root / DATA)
    for name, key in (("meta/info.json", "features"), ("meta/stats.json", None)):
        content = json.loads((root / name).read_text())
        features = content if key is None else content[key]
        features["actions"] = features.pop("action")
        (root / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no feature action, .*rename=\{FEATURE: action\}; there are .*actions"):
        check_dataset(root)
    check_dataset(root, renamed={"actions": "action"})


def test_pictures_are_decoded_once_for_the_files_as_they_are(
    images: Path, copy_of: Callable[[Path], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_of(images)
    decoded: list[int] = []
    monkeypatch.setattr(decoding, "decode_image", lambda content: decoded.append(len(content)))
    check_dataset(root, say=print)
    first = len(decoded)
    assert first == 2 * pq.read_table(root / DATA).num_rows
    check_dataset(root, say=print)
    assert len(decoded) == first
    damaged_picture(3)(root)
    check_dataset(root, say=print)
    assert len(decoded) == 2 * first


@pytest.mark.parametrize("kind", ["images", "films"])
def test_channels_may_come_first_in_what_a_data_set_says_of_its_pictures(
    kind: str, request: pytest.FixtureRequest, copy_of: Callable[[Path], Path], cache: Path
) -> None:
    root = copy_of(request.getfixturevalue(kind))
    channels_first(root)
    check_dataset(root, say=print)
    section = Dataset(name="x", root=str(root), in_memory=True)
    for source in (root, request.getfixturevalue(kind)):
        store = FrameStore(open_dataset(section, root=source))
        assert store.take(np.array([1]))["observation.images.side"].shape == (1, 3, 24, 32)


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

    for name in ("checking", "decoding", "files", "pixels"):
        imported = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse((Path(rlspec.vla.data.__path__[0]) / f"{name}.py").read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not {each for each in imported if each and each.split(".")[0] in ("lerobot", "torch", "datasets")}
