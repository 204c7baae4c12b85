"""What the policy server adds to bare inference: `python tests/benchmarks/serve_overhead.py [requests] [inference_ms]`.

The server runs as a process of its own; its policy sleeps for `inference_ms` as one on a GPU would make the CPU wait. A
client asks with two pictures of 180 x 320. Overhead is what a request takes from sending to having the actions, less
what the policy took by itself; "server" is the server's own part of it, without the network and the client.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from openpi_messages import droid_observation  # noqa: E402

from rlspec.deploy.client import PolicyClient  # noqa: E402

TARGET_MS = 2.0
SERVER = "--serve"


def serve(inference_ms: float) -> int:
    from rlspec.serving.builtin import ZerosPolicy
    from rlspec.serving.policy import Observation, PolicySpec
    from rlspec.serving.run import serve_policy
    from rlspec.serving.settings import ServerSettings

    class Sleeper(ZerosPolicy):
        def infer(self, observations: Sequence[Observation]) -> list[Any]:
            time.sleep(inference_ms / 1000)
            return super().infer(observations)

    spec = PolicySpec("sleeper", "joint_velocity", 15.0, "droid_hybrid", 16, 8)
    cameras = {"exterior_1_left": (180, 320), "wrist_left": (180, 320)}
    return serve_policy(Sleeper(replace(spec, cameras=cameras)), ServerSettings(port=0))


def ask(url: str, requests: int, rows: list[tuple[float, float]]) -> None:
    observation = droid_observation(180, 320)
    with PolicyClient(url, timeout_s=30) as client:
        for number in range(requests + 20):
            reply = client.infer(observation)
            if number >= 20 and reply.server_ms is not None:  # the first ones warm up
                rows.append((reply.round_trip_ms, reply.server_ms))


def measure(url: str, robots: int, requests: int) -> np.ndarray:
    rows: list[tuple[float, float]] = []
    threads = [threading.Thread(target=ask, args=(url, requests // robots, rows)) for _ in range(robots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(rows)


def show(name: str, values: np.ndarray) -> None:
    median, high, highest = np.percentile(values, [50, 95, 99])
    print(f"{name:34} {median:8.2f} {high:8.2f} {highest:8.2f}")


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != SERVER]
    requests = int(arguments[0]) if arguments else 400
    inference_ms = float(arguments[1]) if len(arguments) > 1 else 20.0
    if SERVER in sys.argv:
        return serve(inference_ms)
    command = [sys.executable, __file__, SERVER, str(requests), str(inference_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        url = next(found[0] for line in running.stdout if (found := re.search(r"ws://\S+", line)))
        print(f"{'milliseconds':34} {'median':>8} {'95 %':>8} {'99 %':>8}")
        rows = measure(url, 1, requests)
        show("round trip, one robot", rows[:, 0])
        show("inference, one robot", rows[:, 1])
        overhead = rows[:, 0] - rows[:, 1]
        show("overhead, one robot", overhead)
        crowd = measure(url, 4, requests)
        show("overhead, four robots (with queue)", crowd[:, 0] - crowd[:, 1])
        running.terminate()
    median = float(np.median(overhead))
    print(
        f"median overhead {median:.2f} ms, target below {TARGET_MS:.0f} ms: {'met' if median < TARGET_MS else 'MISSED'}"
    )
    return 0 if median < TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
