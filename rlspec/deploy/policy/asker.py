"""Asks the policy in the background and hands its chunks to the scheduler."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlspec.contract.messages import DELAY, PREFIX
from rlspec.deploy.arm.interfaces import Frame, Reply, RobotState
from rlspec.deploy.policy.observe import observation
from rlspec.deploy.policy.schedule import Chunk, Request, Scheduler
from rlspec.deploy.policy.sources import Contract, RobotPolicy
from rlspec.deploy.workers import Job, Worker
from rlspec.errors import ServerError

_RETRY = 0.25  # seconds between attempts while the policy does not answer


class Asker:
    """One question at a time.

    Attributes:
        inference_ms: Of the last answer, as the robot sees it: from the observation on its way to the actions.
        error: Why the last question has no answer that can be carried out; empty after one.
    """

    def __init__(
        self,
        policy: RobotPolicy,
        contract: Contract,
        scheduler: Scheduler,
        worker: Worker,
        cameras: dict[str, str],
        prompt: str,
    ) -> None:
        """Prepare.

        Args:
            policy: To ask.
            contract: What it wants.
            scheduler: Decides when, and takes the answers.
            worker: In which it is asked.
            cameras: Key of the policy -> camera of the robot.
            prompt: The instruction.
        """
        self.policy, self._contract, self._scheduler = policy, contract, scheduler
        self._worker, self._cameras, self.prompt = worker, cameras, prompt
        self._job: Job | None = None
        self._request: Request | None = None
        self._not_before = -float("inf")
        self.inference_ms: float | None = None
        self.all_inference_ms: list[float] = []
        self.error = ""

    @property
    def waiting(self) -> bool:
        """Whether an answer is on its way."""
        return self._job is not None

    def exchange(self, state: RobotState, frames: Mapping[str, Frame] | None, now: float) -> list[str]:
        """Collect an answer, ask again where the scheduler wants to; returns what there is to tell.

        Args:
            state: Measured now.
            frames: Newest pictures; None: they are not fit to ask with.
            now: Seconds.
        """
        events = self._collect(now)
        if frames is not None and self._job is None and now >= self._not_before and self._scheduler.wants():
            self._ask(state, frames, now)
            events += self._collect(now)  # in lockstep with a simulation the answer may be there at once
        return events

    def _ask(self, state: RobotState, frames: Mapping[str, Frame], now: float) -> None:
        self._request = request = self._scheduler.request(state.time)
        prefix: dict[str, Any] = {}
        if self._contract.takes_prefix and len(request.prefix):
            prefix = {PREFIX: np.ascontiguousarray(request.prefix), DELAY: min(request.delay, len(request.prefix))}
        frames = dict(frames)

        def infer() -> tuple[Reply, float]:
            start = time.monotonic()
            asked = observation(state, frames, self._cameras, self._contract.cameras, self.prompt)
            reply = self.policy.infer({**asked, **prefix})
            return reply, 1000 * (time.monotonic() - start)

        self._job = self._worker.submit(infer)

    def _collect(self, now: float) -> list[str]:
        if self._job is None or not self._job.done():
            return []
        job, self._job = self._job, None
        assert self._request is not None
        try:
            reply, milliseconds = job.result()
        except ServerError as error:
            self._scheduler.failed()
            self._not_before = now + _RETRY
            news = "" if self.error == str(error) else str(error)
            self.error = str(error)
            return [news] if news else []
        self.inference_ms = milliseconds
        self.all_inference_ms.append(milliseconds)
        self.error = self._scheduler.receive(Chunk(self._request, reply.actions), now)
        return [self.error] if self.error else []
