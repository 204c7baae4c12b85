"""What a launched command does in the tests: says who it is, or comes to grief as one rank."""

from __future__ import annotations

import os
import signal
import sys
import time


def main(argv: list[str]) -> int:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    print(f"rank {rank} of {world} says {argv}", flush=True)
    fate = argv[0]
    if fate == "fine":
        return 0
    if rank == 1:
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the disk of rank 1 burns")
    time.sleep(600)  # as one that waits for a peer
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
