"""What the numbers were measured on: versions, the card, its measured ceilings."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch
from gpu_sections.part import Part, Setup
from gpu_sections.timing import intervals, rates

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "trl",
    "accelerate",
    "datasets",
    "peft",
    "numpy",
    "pydantic",
)


def run(part: Part, setup: Setup) -> None:
    part.put("versions", {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES})
    part.put("machine", {"processor": platform.machine(), "threads": torch.get_num_threads(), "device": setup.device})
    if setup.device == "cuda":
        part.put("card", _card())
        part.say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    measured = rates(setup.device)
    part.put("matrix_rates", measured)
    part.say("matrix products: " + ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in measured.items()))
    copied = _copy_rate(setup)
    part.put("copy_bytes_per_second", copied)
    part.say(f"copy within the device: {copied / 1e9:.0f} GB/s read and written")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _card() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    return {
        "name": card.name,
        "memory": card.total_memory,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "fp32_precision": torch.backends.cuda.matmul.fp32_precision,
    }


def _copy_rate(setup: Setup) -> float:
    source = torch.randn(2**20 if setup.dry_run else 2**30, device=setup.device)
    target = torch.empty_like(source)
    times, _ = intervals(lambda: target.copy_(source), 10, setup.device)
    return 2.0 * source.numel() * source.element_size() / min(times)
