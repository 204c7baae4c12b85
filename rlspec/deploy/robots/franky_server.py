"""The server side of robot=franka_sim: franky-sim's robot in a process of its own.

    python -m rlspec.deploy.robots.franky_server [--joints q1,...,q7]

franky-sim speaks libfranka's protocol and computes the arm with MuJoCo. The process answers on stdout with its
address, reads orders from stdin, and ends when stdin closes, so that it never outlives who started it. To franky-sim
it adds what a robot does and franky-sim does not:
- a client in control whose commands stop coming runs into a reflex (communication_constraints_violation);
- a reflex ends the motion, is shown in the state, and stays until automatic error recovery is called;
- what the arm did is kept at 1 kHz, for tests that ask the simulator and not the driver.

Orders, each a line and answered by one: `reflex` (a collision), `forgive` (ends one), `gripper block`, `gripper free`,
`place q1,...,q7` (puts the arm there, at rest), `dump PATH` (writes the record as .npy with the columns `COLUMNS`).
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

COLUMNS = ("wall", "time", *(f"q{i}" for i in range(7)), *(f"dq{i}" for i in range(7)), *(f"tau{i}" for i in range(7)))
"""Monotonic seconds of the machine, simulated seconds, then (7,) rad, rad/s and applied Nm (gravity included)."""

# Of the position and velocity servos. Franky-sim's own (2000 and 200 for the wrist) are beyond what a step of 1 ms can
# integrate at the wrist's inertia of 0.08 kg m^2: once pushed, the joints 5 to 7 rattle at their limits for ever.
STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 500.0, 500.0, 400.0)  # Nm/rad
DAMPING = (450.0, 450.0, 350.0, 350.0, 50.0, 50.0, 40.0)  # Nm s/rad

_PERIOD = 0.001  # seconds of the robot's loop
_KEEP = 20_000  # rows of the record: 20 seconds
_BEHIND = 0.02  # seconds that the loop may hurry to catch up with; beyond, simulated time falls behind
# Cycles without a command until the reflex. A robot allows about 20; this is a simulator on a busy computer.
_SILENCE = 100
_JOINT_REFLEX, _COMMUNICATION = 6, 31  # places in libfranka's list of errors


class _Reflexes:
    """What is put before franky-sim's robot server, so that it stops like a robot."""

    def __init__(self, robot: Any, hostnames: Iterable[str]) -> None:
        self.reflex: int | None = None
        self.gripper_blocked = False
        self._silent = 0
        super().__init__(robot, hostnames)  # type: ignore[call-arg]

    def _handle_udp_command(self: Any, command_data: bytes) -> None:
        self._silent = 0
        super()._handle_udp_command(command_data)  # type: ignore[misc]

    def start_motion(self: Any, *arguments: Any) -> None:
        if self.reflex is not None:
            raise ValueError("the robot is in a reflex")  # franky-sim answers kAborted
        self._silent = 0
        super().start_motion(*arguments)  # type: ignore[misc]

    def _post_process_commands(self: Any) -> None:
        self._silent += 1
        if self.current_motion_id and self._silent > _SILENCE:
            self.abort(_COMMUNICATION)
        super()._post_process_commands()  # type: ignore[misc]

    def abort(self: Any, error: int) -> None:
        """Stop with an error, as on a collision."""
        from franky_sim.franka_robot_protocol import BaseCommand, MoveStatus, RobotCommand

        self.reflex = error
        motion = self.current_motion_id
        self.stop_motion(send_preemption_signal=False)
        self.reset_current_motion_id()
        if motion and self._tcp_socket is not None:
            self.send_state()
            BaseCommand.send_response(self._tcp_socket, RobotCommand.kMove, motion, MoveStatus.kReflexAborted)

    def process_commands(self: Any) -> None:
        from franky_sim import FrankaRobotServer, FrankaServer

        kind = FrankaServer if self.gripper_blocked else FrankaRobotServer
        kind.process_commands(self)

    @property
    def robot_state(self: Any) -> Any:
        from franky_sim.franka_robot_protocol import RobotMode

        state = super().robot_state  # type: ignore[misc]
        if self.reflex is None:
            return state
        errors = tuple(place == self.reflex for place in range(len(state.errors)))
        return state.replace(robot_mode=RobotMode.kReflex, errors=errors, reflex_reason=errors)


def _recover(command: Any, server: _Reflexes) -> None:
    """What automatic error recovery does; franky-sim only answers it."""
    from franky_sim.franka_robot_protocol import AutomaticErrorRecoveryStatus

    server.reflex = None
    command.reply(AutomaticErrorRecoveryStatus.kSuccess)


def _answering_stop(stop: Any) -> Any:
    """The hand's stop, which answers the order that it ends: its client waits for that, and franky-sim forgets it."""

    def stop_and_answer(hand: Any, command_id: int, tcp_socket: Any) -> None:
        from franky_sim.franka_gripper_protocol import GripperCommandStatus
        from franky_sim.franka_server import BaseCommand

        if hand._pending_command_id is not None:
            BaseCommand.send_response(
                hand._pending_tcp_socket,
                hand._pending_command_type,
                hand._pending_command_id,
                GripperCommandStatus.kAborted,
                command_type_struct="H",
                status_type_struct="H",
            )
        stop(hand, command_id, tcp_socket)

    return stop_and_answer


class Simulation:
    """The robot, its server, the record, and the orders.

    Args:
        joints: (7,) rad at the start.
    """

    def __init__(self, joints: Sequence[float]) -> None:
        from franky_sim import FrankaRobotServer
        from franky_sim.franka_gripper_server import FrankaGripperServer
        from franky_sim.franka_robot_protocol import AutomaticErrorRecoveryCommand
        from franky_sim.mujoco_simulator import MujocoSimulator
        from franky_sim.simulation_server import LocalHostnames

        AutomaticErrorRecoveryCommand.handle = _recover
        FrankaGripperServer.stop = _answering_stop(FrankaGripperServer.stop)
        self.simulator = MujocoSimulator()
        self.simulator.init()
        self.robot = self.simulator.add_robot(initial_q=tuple(joints), kp=STIFFNESS, kv=DAMPING)
        self.server: Any = type("Server", (_Reflexes, FrankaRobotServer), {})(self.robot, LocalHostnames())
        self.server.init()
        self.simulator.start()
        self.record = np.zeros((_KEEP, len(COLUMNS)))
        self.steps = 0
        self.orders: queue.SimpleQueue[str] = queue.SimpleQueue()

    def step(self) -> None:
        """One millisecond."""
        self.server.process_commands()
        self.simulator.step()
        self.server.send_state()
        row = self.record[self.steps % _KEEP]
        state = self.robot.inner_state
        row[0], row[1] = time.monotonic(), self.steps * _PERIOD
        row[2:9], row[9:16] = state.q, state.dq
        row[16:23] = state.tau_j
        self.steps += 1
        while not self.orders.empty():
            sys.stdout.write(self._obey(self.orders.get().split(maxsplit=1)) + "\n")
            sys.stdout.flush()

    def run(self) -> None:
        """Step in real time until stdin closes."""
        due = time.monotonic()
        while True:
            self.step()
            due = max(due + _PERIOD, time.monotonic() - _BEHIND)
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)

    def _place(self, joints: Sequence[float]) -> None:
        for address, joint in zip(self.robot._qpos_addrs, joints, strict=True):
            self.robot.data.qpos[address] = joint
        self.robot.data.qvel[:] = 0.0
        for component in self.robot._tracked_state_components.values():
            for tracker in component.observers.values():  # of derivatives, which must not see the leap
                for name in ("_last_t", "_last_value", "_last_pose"):
                    if hasattr(tracker, name):
                        setattr(tracker, name, None)
                for name in ("_last_derivative", "_last_twist"):
                    if getattr(tracker, name, None) is not None:
                        setattr(tracker, name, np.zeros_like(getattr(tracker, name)))
        self.server._reset_state()  # hold the arm where it is now

    def _obey(self, words: Sequence[str]) -> str:
        if words == ["reflex"]:
            self.server.abort(_JOINT_REFLEX)
        elif words == ["forgive"]:
            self.server.reflex = None
        elif words in (["gripper", "block"], ["gripper", "free"]):
            self.server.gripper_blocked = words[1] == "block"
        elif len(words) == 2 and words[0] == "place":
            self._place([float(word) for word in words[1].split(",")])
        elif len(words) == 2 and words[0] == "dump":
            kept = min(self.steps, _KEEP)
            order = (np.arange(kept) + self.steps - kept) % _KEEP
            np.save(words[1], self.record[order])
        else:
            return f"unknown order: {' '.join(words)}"
        return "done"


def _listen(orders: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        if line.strip():
            orders.put(line.strip())
    os._exit(0)  # whoever started us is gone


def main(argv: Sequence[str]) -> int:
    """Entry point of the process."""
    from franky_sim.constants import DEFAULT_INITIAL_JOINT_POS

    joints = [float(word) for word in argv[1].split(",")] if argv[:1] == ["--joints"] else DEFAULT_INITIAL_JOINT_POS
    simulation = Simulation(joints)
    threading.Thread(target=_listen, args=(simulation.orders,), daemon=True).start()
    sys.stdout.write(f"address {simulation.robot.hostname}\n")
    sys.stdout.flush()
    simulation.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
