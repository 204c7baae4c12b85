"""Which device a run computes on, and how much memory it has."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

from rlspec.errors import ConfigError

GIB = 2**30
WAIT = timedelta(hours=24)
"""How long processes wait for the main one, which may measure or collect data for hours: torch's ten minutes (NCCL) or
thirty (gloo) would end the run. A dead one ends it at once all the same: its launcher stops the others."""


def choose_device(name: str) -> str:
    """Resolve `auto` to cuda where there is one, else cpu.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto")
    return "cuda" if available and name != "cpu" else "cpu"


def device_memory(device: torch.device) -> int:
    """Bytes of memory on a device: the card's, or the machine's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
