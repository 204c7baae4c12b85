"""Says loudly when spectral groups do nothing: a gate that lets nothing pass is otherwise silent."""

from __future__ import annotations

from collections.abc import Callable, Collection

from rlspec.display import Display
from rlspec.optim import SpectralOptimizer

EVERY = 10  # steps between two looks: a look waits for the device


class IdleRoles:
    """Warns once per role."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self._said: set[str] = set()

    def look(
        self, step: int, optimizer: SpectralOptimizer, *, frozen: Callable[[], Collection[str]] = frozenset
    ) -> None:
        """Warn after every few steps of roles that no update reached; `frozen` ones are meant to stand still."""
        if step % EVERY:
            return
        idle = [role for role in optimizer.inactive_spectral_groups() if role not in self._said | set(frozen())]
        if idle:
            self._said.update(idle)
            self.display.warn(
                f"no update reached {', '.join(idle)} in the last steps: the spectral gate lets nothing pass; "
                "raise optim.promotion_steps (or auto), or use optim=muon for these roles"
            )
