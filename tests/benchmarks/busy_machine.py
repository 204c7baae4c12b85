"""Time of a small training step on all cores, alone and beside one busy process, by how long idle threads wait awake.

    python tests/benchmarks/busy_machine.py

torch's threads meet after every operation. Who comes first waits awake at first, as sleeping and waking takes longer
than most operations; where another process has one of the cores, it is awake for nothing, and the other thread comes
late. GOMP_SPINCOUNT is the number of looks before it sleeps (libgomp's own default: 300,000).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STEP = """
import time, torch
from torch import nn
model = nn.Sequential(*[nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.LayerNorm(128)) for _ in range(8)])
x, steps, begun = torch.randn(2048, 128), 0, None
while begun is None or time.perf_counter() < begun + 5:
    model(x).square().mean().backward()
    steps += 1
    if steps == 5 and begun is None:
        steps, begun = 0, time.perf_counter()
print(1e3 * (time.perf_counter() - begun) / steps)
"""
BUSY = "import torch\nx = torch.randn(300, 300)\nwhile True: x = (x @ x).tanh()"
SETTINGS = {
    "libgomp's default": {},
    "looks 10,000 times": {"GOMP_SPINCOUNT": "10000"},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def milliseconds(settings: dict[str, str]) -> float:
    """Of a step."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", STEP], env=kept | settings, capture_output=True, text=True, check=True)
    return float(done.stdout)


@contextmanager
def busy() -> Iterator[None]:
    """One process that computes on one core."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Print the table."""
    print("| threads that wait | alone | beside a busy process |\n|---|---:|---:|")
    for name, settings in SETTINGS.items():
        alone = milliseconds(settings)
        with busy():
            print(f"| {name} | {alone:.1f} ms | {milliseconds(settings):.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
