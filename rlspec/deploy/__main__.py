"""Run a policy on a robot, safely: `python -m rlspec.deploy robot=NAME (server=URL | checkpoint=DIR)`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlspec.contract.actions import EXECUTION_LAWS
from rlspec.entry import run_command

USAGE = f"""\
usage: python -m rlspec.deploy robot=NAME (server=ws://HOST:PORT | checkpoint=DIR | policy=expert|hold)
                               [mode=dry_run|shadow|sim|real] [seconds=30] [prompt="..."] [host=IP] [key=value ...]
       python -m rlspec.deploy summary=RUN [out=DIR] | replay=RUN [law=NAME] | export=RUN[,RUN] out=DIR [video=true]

  Observe, ask the policy, schedule its chunks, filter, send, log: at the rate that the policy was trained at.
  Stop it with space, q or Ctrl-C, by `touch OUT/ESTOP`, or with SIGUSR1. Exit code: 0 as planned, 1 a fault stopped it,
  2 a mistake in the arguments, 130 you stopped it.

  robot=NAME          franka_fr3, franka_panda (host=IP), franka_sim, mujoco (task=NAME seed=N), dry_run
  server=URL          a running `python -m rlspec.serve`, or openpi's or RoboArena's server (add action_space=NAME)
  token=TEXT          what that server wants (or in the variable RLSPEC_TOKEN)
  checkpoint=DIR      starts a server of our own for it on this machine
  policy=NAME         hold; expert: the scripted one of mujoco, slow waves in dry_run
  mode=NAME           dry_run: no connection. shadow: connected to read only, shows what it would send.
                      sim: simulated robots' own. real: shows the limits, asks, starts slowly
  seconds=S           of the run (default 30)
  rate=HZ law=NAME action_space=NAME
                      where the policy does not say; law (default: the robot's):
                      {", ".join(EXECUTION_LAWS)}
  scheduler=NAME      open_loop (default), ensemble, rtc; schedule.n_action_steps, overlap, stale, margin, decay, blend
  prompt=TEXT         the instruction
  out=DIR             where ticks.jsonl goes (default checkpoints/deploy/<robot>-<time>)
  yes=true            real robots: do not ask
  estop_file=FILE     default OUT/ESTOP
  realtime=false      no SCHED_FIFO for the loop (default: where the system permits it; true: say so where it does not)
  frames=true         keep the policy's pictures beside the log
  safety.KEY          joint_margin, workspace_low, workspace_high, velocity_share, acceleration_share, max_step, ...
  watchdog.KEY        stop_after, give_up, camera, heartbeat, late, recoveries, window
  gripper.KEY         binary, close_above, open_below, dwell, interval, deadband, timeout
  slow_start.KEY      share, seconds
  inference.KEY       deadline, latency, warmup
  robot.KEY           model, law, cameras.NAME=KIND:SERIAL, camera_keys.KEY=NAME, and the driver's own

afterwards, with the folder of a run:
  summary=RUN         a picture and a page of its log (a run writes them by itself where matplotlib is installed)
  replay=RUN          sends what was sent to the simulated arm, and shows by how much the motion differs
  export=RUN          a LeRobotDataset v3 whose action is what was sent
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 stopped by a fault, 2 for a mistake, 130 stopped by the user."""
    return run_command(argv, lambda: USAGE, _deploy)


def _deploy(arguments: list[str]) -> int:
    from rlspec.deploy.log.review import is_review, review
    from rlspec.display import Display

    if is_review(arguments):
        return review(arguments, Display())
    from rlspec.deploy.run import deploy
    from rlspec.deploy.settings import parse

    return deploy(parse(arguments), Display()).exit_code


if __name__ == "__main__":
    sys.exit(main())
