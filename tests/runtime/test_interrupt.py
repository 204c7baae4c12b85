"""What one signal, and what a second one, does to a run."""

from __future__ import annotations

import signal

import pytest

from rlspec.runtime import interrupt
from rlspec.runtime.interrupt import Interrupt


def test_signals_of_one_moment_are_one_and_a_later_one_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(interrupt, "monotonic", lambda: now)
    asked = Interrupt()
    with asked.installed():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # before training
        asked.training = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert asked.agreed()
        now += 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
