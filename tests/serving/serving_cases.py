"""A server in a thread, and policies that do as the test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from rlspec.serving.policy import Observation, PolicySpec
from rlspec.serving.server import PolicyServer
from rlspec.serving.settings import ServerSettings

SPEC = PolicySpec(
    model="test",
    action_space="joint_velocity",
    control_hz=15.0,
    execution_law="droid_hybrid",
    horizon=10,
    n_action_steps=8,
    prompt_required=True,
)
CAMERAS = {"exterior_1_left": (180, 320), "wrist_left": (180, 320)}
WITH_CAMERAS = replace(SPEC, cameras=CAMERAS)
PATIENCE = 60.0  # seconds; how long a test waits for what must come


def state_message(seed: float = 0.0) -> dict[str, Any]:
    return {
        "observation/joint_position": np.linspace(-0.5, 0.5, 7) + seed,
        "observation/gripper_position": np.array([0.5]),
        "prompt": "go",
    }


class Echo:
    """Actions are the state; remembers the batches that it saw, and waits for `gate` where there is one."""

    def __init__(self, spec: PolicySpec = SPEC, max_batch: int = 64) -> None:
        self.spec = spec
        self.max_batch = max_batch
        self.batches: list[int] = []
        self.seen: list[Observation] = []
        self.forgotten: list[int] = []
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.script: Callable[[Sequence[Observation]], Any] | None = None

    def infer(self, observations: Sequence[Observation]) -> list[Any]:
        self.batches.append(len(observations))
        self.seen.extend(observations)
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.script is not None:
            return list(self.script(observations))
        return [self.answer(each.state) for each in observations]

    def answer(self, state: Any) -> Any:
        return np.tile(state.astype(np.float32), (self.spec.horizon, 1))

    def forget(self, session: int) -> None:
        self.forgotten.append(session)


class Running:
    """A server that runs in a thread."""

    def __init__(self, server: PolicyServer, loop: asyncio.AbstractEventLoop, lines: list[str]) -> None:
        self.server = server
        self.loop = loop
        self.lines = lines

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return self.server.port

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(PATIENCE)


@contextmanager
def serving(policy: Any, **settings: Any) -> Iterator[Running]:
    lines: list[str] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = PolicyServer(policy, ServerSettings(port=0, **settings), lines.append)
        running = Running(server, loop, lines)
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(PATIENCE)
        try:
            yield running
        finally:
            running.stop()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")
