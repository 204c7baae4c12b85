"""What is wrong with a GGUF file is said from its head, before torch is imported."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlspec.config import gguf_header
from rlspec.config.extras import install
from rlspec.config.gguf_header import gguf_fault, read_gguf_header
from rlspec.config.load import load_recipe
from rlspec.config.resolvers import packaged
from rlspec.errors import ConfigError

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: uv sync")


def write(path: Path, architecture: str = "llama", **fields: int | str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "Ġü", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0])
    writer.add_bool("flag", True)
    for key, value in fields.items():
        name = key.replace("__", ".")
        writer.add_uint32(name, value) if isinstance(value, int) else writer.add_string(name, value)
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_head_is_read_as_ggufs_own_reader_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama__block_count=2, general__name="x")
    header, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == fields
    assert fields["tokenizer.ggml.tokens"] == ["a", "Ġü", ""]
    assert [(t.name, t.shape, t.kind, header.data + t.offset) for t in header.tensors] == [
        (t.name, tuple(map(int, t.shape)), int(t.tensor_type), t.data_offset) for t in theirs.tensors
    ]
    assert gguf_fault(str(path)) is None


def test_a_file_cut_anywhere_is_truncated_and_never_a_traceback(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (*range(24, len(whole) - 33, 37), len(whole) - 129):  # the writer pads its end
        path.write_bytes(whole[:size])
        gguf_header._read.cache_clear()  # sizes differ, but the clock may not
        fault = gguf_fault(str(path))
        assert fault and "truncated" in fault and "\n" not in fault, (size, fault)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a GGUF file: it has 0 bytes"),
        (b"PK\x03\x04" + bytes(60), "not a GGUF file: it begins with"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 98362432\n", "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 2**62), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 99, 0), "corrupt: a field of unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "corrupt: a field of unknown type 9"),
        (b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 0), "general.alignment=0"),
    ],
)
def test_what_is_no_gguf_is_said(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_recipe(["recipe=grpo_math", f"model={path}"])
    assert str(caught.value).startswith(f"model.path={path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "fields", "words"),
    [
        ("rwkv7", {}, "architecture rwkv7; it reads .*llama, .*qwen3"),
        ("llama", {"split__count": 3}, "one of 3 parts"),
        ("llama", {"llama__rope__scaling__type": "yarn"}, "positions are scaled .*yarn"),
    ],
)
def test_what_transformers_cannot_read_or_would_lose_is_refused(
    architecture: str, fields: dict[str, int | str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(["recipe=grpo_math", f"model={write(tmp_path / 'm.gguf', architecture, **fields)}"])


def test_tensors_of_scaled_positions_are_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "rope_freqs.weight" in str(gguf_fault(str(path)))


def test_absent_files_and_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    for name, words in (("absent.gguf", "there is no such file"), ("folder.gguf", "a folder; name the file in it")):
        with pytest.raises(ConfigError, match=f"{name}: {words}"):
            load_recipe(["recipe=grpo_math", f"model={tmp_path / name}"])


def test_without_the_package_gguf_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf")
    monkeypatch.setattr("rlspec.config.gguf_header.importlib.util.find_spec", lambda name: None)
    assert install("gguf") in str(gguf_fault(str(path)))


def test_the_answer_comes_before_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "rwkv7")
    code = (
        "import sys; from rlspec.train import main; code = main(sys.argv[1:])\n"
        "sys.exit(code if not {'torch', 'transformers'} & set(sys.modules) else 99)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, "recipe=grpo_math", f"model={path}"], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 2, found
    assert len(found.stderr.strip().splitlines()) == 1


def test_a_file_is_a_model_by_its_ending_and_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "My Model.Q4_1.gguf")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(["recipe=grpo_math", "model=My Model.Q4_1.gguf"])
    assert (recipe.model.path, recipe.model.name) == ("My Model.Q4_1.gguf", "my-model.q4_1")


def test_a_profile_takes_the_file_of_an_installed_package_and_else_the_hub() -> None:
    assert packaged("numpy/__init__.py", "owner/name").endswith("numpy/__init__.py")
    assert (
        packaged("numpy/absent.gguf", "owner/name") == packaged("no_such_package/m.gguf", "owner/name") == "owner/name"
    )
    recipe = load_recipe(["recipe=grpo_math", "model=smollm2_135m", "model.path=owner/other"])
    assert (recipe.model.path, recipe.model.name) == ("owner/other", "smollm2_135m")
