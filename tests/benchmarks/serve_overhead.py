"""What the policy server adds to bare inference: `python tests/benchmarks/serve_overhead.py [requests] [inference_ms]`.

The server runs as a process of its own; its policy sleeps for `inference_ms` as one on a GPU would make the CPU wait. A
client asks with two pictures of 180 x 320. Overhead is what a request takes less what the policy took by itself: in the
server from having the request to having sent the answer, at the robot from sending to having the actions; of that, much
is what websockets takes to carry as many bytes, which an echo shows.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import serve as websocket_server
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from openpi_messages import droid_observation  # noqa: E402

from rlspec.contract.wire import pack, unpack  # noqa: E402
from rlspec.deploy.policy.client import PolicyClient  # noqa: E402

TARGET_MS = 2.0
SERVER, ECHO = "--serve", "--echo"


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


def echo() -> None:
    """Answer each message with 700 bytes, by bare websockets."""

    async def answer(connection: Any) -> None:
        async for _ in connection:
            await connection.send(bytes(700))

    async def run() -> None:
        async with websocket_server(answer, "127.0.0.1", 0, compression=None) as server:
            print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
            await server.serve_forever()

    asyncio.run(run())


def measure_transport(url: str, requests: int) -> np.ndarray:
    """Round trips of as many bytes as an observation has, as far apart as those of a policy."""
    message, rows = pack(droid_observation(180, 320)), []
    with connect(url, compression=None, proxy=None) as connection:
        for _ in range(requests):
            time.sleep(0.02)
            start = time.perf_counter()
            connection.send(message)
            connection.recv()
            rows.append(1000 * (time.perf_counter() - start))
    return np.array(rows[20:])


def measure_server(url: str, requests: int) -> np.ndarray:
    """Milliseconds from having a request to having sent its answer, less inference, by the server's own clock."""
    message, rows, inference = pack(droid_observation(180, 320)), [], 0.0
    with connect(url, compression=None, proxy=None) as connection:
        connection.recv()
        for _ in range(requests):
            time.sleep(0.02)
            connection.send(message)
            timing = unpack(connection.recv())["server_timing"]
            if "prev_total_ms" in timing:
                rows.append(timing["prev_total_ms"] - inference)
            inference = timing["infer_ms"]
    return np.array(rows[20:])


@contextmanager
def child(*arguments: str) -> Iterator[str]:
    """A server of this file; yields its address."""
    with subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield next(found[0] for line in running.stdout if (found := re.search(r"ws://\S+", line)))
        running.terminate()


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
    numbers = [argument for argument in sys.argv[1:] if argument not in (SERVER, ECHO)]
    requests = int(numbers[0]) if numbers else 400
    inference_ms = float(numbers[1]) if len(numbers) > 1 else 20.0
    if SERVER in sys.argv:
        return serve(inference_ms)
    if ECHO in sys.argv:
        echo()
    print(f"{'milliseconds':38} {'median':>8} {'95 %':>8} {'99 %':>8}")
    with child(ECHO) as url:
        transport = measure_transport(url, requests)
    with child(SERVER, str(requests), str(inference_ms)) as url:
        server = measure_server(url, requests)
        rows = measure(url, 1, requests)
        crowd = measure(url, 4, requests)
    overhead = rows[:, 0] - rows[:, 1]
    show("round trip, one robot", rows[:, 0])
    show("inference, one robot", rows[:, 1])
    show("overhead in the server", server)
    show("overhead seen by the robot", overhead)
    show("bare websockets, as many bytes", transport)
    show("overhead, four robots (with queue)", crowd[:, 0] - crowd[:, 1])
    met = float(np.median(server)) < TARGET_MS
    print(f"the server adds {np.median(server):.2f} ms, target below {TARGET_MS:.0f} ms: {'met' if met else 'MISSED'}")
    print(f"server and client add {np.median(overhead) - np.median(transport):.2f} ms to inference and transport")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
