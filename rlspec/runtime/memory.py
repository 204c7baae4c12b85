"""A rough account of the memory that a run needs: its table, and whether it fits. Each kind of run fills in its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from rlspec.display import Display
from rlspec.errors import ConfigError
from rlspec.runtime.devices import GIB, device_memory

Row = tuple[str, int, str]  # item, bytes, and the knobs that change it


@dataclass(frozen=True)
class MemoryAccount(ABC):
    """Bytes on one device."""

    weights: int
    gradients: int  # of trained parameters
    optimizer: int  # its state

    lighter: ClassVar[str]  # what to do where the weights alone do not fit

    @property
    @abstractmethod
    def total(self) -> int:
        """The peak."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """All items; those of 0 bytes are not shown."""

    @abstractmethod
    def remedy(self, available: int) -> str:
        """What makes a run fit that does not."""

    def table(self) -> str:
        """One line per item in GiB; of a small run, whose table would be all zeros, the peak alone."""
        if self.total < GIB:
            return f"memory: about {self.total / 2**20:.0f} MiB at the peak"
        rows = [*self.rows(), ("peak", self.total, "")]
        return "\n".join(f"{name:<12} {size / GIB:8.2f} GiB  {note}".rstrip() for name, size, note in rows if size)


def check_memory(account: MemoryAccount, available: int) -> str | None:
    """A warning if the peak exceeds the memory of the device, else None.

    Raises:
        ConfigError: the weights alone do not fit.
    """
    size = f"{available / GIB:.1f} GiB"
    if account.weights > available:
        needed = f"{account.weights / GIB:.1f} GiB"
        raise ConfigError(f"the weights take {needed} and the device has {size}: {account.lighter}")
    if account.total <= available:
        return None
    return f"about {account.total / GIB:.1f} GiB are needed and the device has {size}: {account.remedy(available)}"


def show_memory(account: MemoryAccount, device: str | torch.device, display: Display) -> None:
    """Show the account, and warn where the device has less.

    Raises:
        ConfigError: the weights alone do not fit.
    """
    warning = check_memory(account, device_memory(torch.device(device)))
    display.line(account.table())
    if warning:
        display.warn(warning)
