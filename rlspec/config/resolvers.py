"""What a profile may ask of the machine, in OmegaConf's `${name:argument}`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

CPU = Path("/proc/cpuinfo")  # as Linux describes the processor


def packaged(place: str, otherwise: str) -> str:
    """For `${packaged:PACKAGE/FILE,OTHERWISE}` in a profile: the file, where the package is installed and has it."""
    package, _, file = place.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec is not None and spec.origin else None
    return str(path) if path is not None and path.is_file() else otherwise


def bf16_where_fast() -> bool | None:
    """For `${bf16_where_fast:}`: true on a CPU with AMX, else null, which is true on CUDA alone.

    Without AMX bfloat16 is slower than float32: 72 against 108 GFLOP/s on a Xeon core that has AVX512-BF16 alone.
    """
    return True if CPU.is_file() and "amx_tile" in CPU.read_text(encoding="utf-8") else None
