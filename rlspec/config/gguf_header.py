"""The head of a GGUF file, read without its weights: what is wrong with one is said before torch is imported.

Layout: ggml's docs/gguf.md. The reader of the package gguf needs seconds for a vocabulary of 49,152 tokens.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlspec.config.extras import not_installed
from rlspec.errors import CheckpointError

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TABLE = "integrations/ggml.py"  # of transformers: which architectures it reads, and which of their fields
_LOST = ("rope_freqs.", "rope_factors_")  # tensors that transformers passes over, so that positions would be wrong


@dataclass(frozen=True)
class GgufTensor:
    """Name, shape (the fastest axis first), ggml's number of the type, and place behind the header in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and directory of tensors; `data` is where the first tensor begins."""

    metadata: dict[str, Any]
    tensors: list[GgufTensor]
    data: int

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.metadata.get("general.architecture", "none"))

    def of_model(self, key: str) -> Any:
        """A field of the architecture's own, such as ``rope.scaling.type``."""
        return self.metadata.get(f"{self.architecture}.{key}")


class _Cursor:
    """A place in a file that moves on with what is read.

    Raises:
        struct.error: the file ends before.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.place = 0

    def take(self, layout: str, count: int = 1) -> tuple[Any, ...]:
        form = f"<{count}{layout}"
        size = struct.calcsize(form)
        if size > len(self.content) - self.place:
            raise struct.error("truncated")
        values = struct.unpack_from(form, self.content, self.place)
        self.place += size
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        (raw,) = self.take("s", length) if length else (b"",)
        return bytes(raw).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            (inner,), (count,) = self.take("I"), self.take("Q")
            return [self.text() for _ in range(count)] if inner == _STRING else list(self.take(_layout(inner), count))
        return self.take(_layout(kind))[0]


def _layout(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a field of unknown type {kind}")
    return _SCALARS[kind]


def is_gguf(path: str) -> bool:
    """Whether a model's path means a GGUF file."""
    return path.lower().endswith(".gguf")


def read_gguf_header(path: Path) -> GgufHeader:
    """The head of a GGUF file of version 2 or 3.

    Raises:
        CheckpointError: It cannot be read as one; a phrase for behind the path.
    """
    stat = path.stat() if path.is_file() else None
    if stat is None:
        raise CheckpointError("there is no such file" if not path.is_dir() else "a folder; name the file in it")
    return _read(path, stat.st_size, stat.st_mtime_ns)


@cache
def _read(path: Path, size: int, modified: int) -> GgufHeader:
    if size < 24:
        raise CheckpointError(f"not a GGUF file: it has {size} bytes")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _parse(_Cursor(content))
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}") from error
    except struct.error as error:
        raise CheckpointError(
            f"truncated: its header goes on behind the end at {size:,} bytes; fetch it again"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"corrupt: {error}; fetch it again") from error


def _parse(cursor: _Cursor) -> GgufHeader:
    (magic,) = cursor.take("s", 4)
    if magic != _MAGIC:
        raise CheckpointError(f"not a GGUF file: it begins with {magic!r}")
    (version,) = cursor.take("I")
    if version not in (2, 3):
        raise CheckpointError(f"GGUF of version {version}; 2 and 3 are read (little-endian)")
    tensors, fields = cursor.take("Q", 2)
    metadata = {}
    for _ in range(fields):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.take("I")[0])
    directory = []
    for _ in range(tensors):
        name = cursor.text()
        shape = cursor.take("Q", cursor.take("I")[0])
        directory.append(GgufTensor(name, shape, *cursor.take("I"), *cursor.take("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment={alignment}")
    return GgufHeader(metadata, directory, -(-cursor.place // alignment) * alignment)


def gguf_fault(path: str) -> str | None:
    """Why a file cannot be trained from, with the remedy, or None; read from its head alone."""
    try:
        header = read_gguf_header(Path(path).expanduser())
    except CheckpointError as error:
        return str(error)
    return next(_faults(header, Path(path).expanduser()), None)


def _faults(header: GgufHeader, path: Path) -> Iterator[str]:
    if importlib.util.find_spec("gguf") is None:
        yield not_installed("gguf", "gguf")
        return
    if (parts := header.metadata.get("split.count", 1)) > 1:
        yield f"one of {parts} parts; merge them first: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf"
    known = _architectures()
    if _plain(header.architecture) not in known:
        yield f"transformers reads no GGUF of architecture {header.architecture}; it reads {', '.join(known)}"
    scaling = header.of_model("rope.scaling.type")
    lost = next((each.name for each in header.tensors if each.name.startswith(_LOST)), None)
    if lost or scaling not in (None, "none"):
        what = lost or f"rope.scaling.type={scaling}"
        yield f"its positions are scaled ({what}), which transformers does not read from GGUF; take the hub's model"
    yield from _ends_early(header, path.stat().st_size)


def _ends_early(header: GgufHeader, size: int) -> Iterator[str]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    sizes = {int(kind): GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType}
    for each in header.tensors:
        if each.kind not in sizes:
            yield f"tensor {each.name} has the type {each.kind}, which the installed gguf does not know; update it"
            return
        block, width = sizes[each.kind]
        end = header.data + each.offset + each.numbers // block * width
        if end > size:
            yield f"truncated: {size:,} bytes, and tensor {each.name} ends at {end:,}; fetch it again"
            return


@cache
def _architectures() -> tuple[str, ...]:
    """Read from transformers' source, whose import takes 20 seconds."""
    from rlspec.config.sources import package_folder

    tree = ast.parse((package_folder("transformers") / _TABLE).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GGUF_CONFIG_MAPPING":
            assert isinstance(node.value, ast.Dict)
            names = [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
            return tuple(sorted(_plain(name) for name in names if name not in ("general", "tokenizer")))
    return ()


def _plain(name: str) -> str:
    """``qwen3_moe`` and ``qwen3moe`` are one."""
    return name.replace("_", "").replace("-", "")
