"""A Franka arm (FR3, or FER alias Panda) through franky's driver: robot=franka_fr3, franka_panda, franka_sim.

Franky's real-time thread talks to the arm at 1 kHz; here are its targets, a few times a second. Where time passes, it
passes elsewhere: the state is polled, the hand and the cameras are served, and errors are recovered in threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlspec.deploy.arm.interfaces import Command, Frame, Mode, Robot, RobotState
from rlspec.deploy.arm.jerk_limited import Profile
from rlspec.deploy.arm.robot_limits import LIMITS, RobotLimits, from_urdf, match
from rlspec.deploy.clocks import Clock, MonotonicClock
from rlspec.deploy.robots.cameras import CameraSource, CameraThreads, opener
from rlspec.deploy.robots.fci import check_model, import_franky, server_version
from rlspec.deploy.robots.franky_gripper import FrankyGripperLane
from rlspec.deploy.robots.franky_motions import LAWS_HERE, builder, stopper
from rlspec.deploy.robots.franky_treatment import FrankySettings, described, treat
from rlspec.deploy.robots.options import RobotDescription
from rlspec.deploy.robots.robotiq import RobotiqBus, RobotiqGripperLane
from rlspec.errors import RobotError
from rlspec.native_threads import leave

_POLL = 0.004  # seconds between two looks at the state
_REST = 5e-3  # rad/s
_HAND = 10.0  # seconds for the hand to answer
_SETTLE = 0.3  # seconds that errors may still be shown after a recovery


class FrankyRobot(Robot):
    """A Franka arm behind franky.

    Args:
        host: Address of the arm's control unit.
        model: "fr3" (of any system version) or "fer"; refused where another arm answers.
        name: Of the robot; None: by its model.
        cameras: Camera name -> description (`rlspec.deploy.robots.cameras.opener`) or function that opens it.
        settings: How to treat the arm.
        clock: Of the deployment; None: real time.
    """

    simulated = False
    laws = LAWS_HERE

    def __init__(
        self,
        host: str,
        model: str = "fr3",
        *,
        name: str | None = None,
        cameras: Mapping[str, str | Callable[[], CameraSource]] | None = None,
        settings: FrankySettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.host, self.model = host, model
        self.name = name or ("franka_panda" if model == "fer" else "franka_fr3")
        self.settings = settings or FrankySettings()
        self.clock: Clock = clock or MonotonicClock()
        described = cameras or {}
        self._openers = {key: opener(value) if isinstance(value, str) else value for key, value in described.items()}
        self._lock = threading.Lock()  # around what the driver must not be asked twice at a time
        self._robot: Any = None
        self._state: RobotState | None = None
        self.robot_time = 0.0  # seconds on the robot's own clock at the newest state
        self._fault = self._lost = ""
        self._stopped = self._stop_sent = self._read_only = False
        self._gripper: FrankyGripperLane | RobotiqGripperLane | None = None
        self._cameras: CameraThreads | None = None
        self._recovery: threading.Thread | None = None
        self._poller: threading.Thread | None = None
        self._closing = False

    # Connection

    def connect(self, law: str, control_hz: float, *, read_only: bool = False) -> RobotLimits:
        """Connect; see `Robot`."""
        if law not in self.laws:
            raise RobotError(f"law={law}: {self.name} runs {', '.join(self.laws)}")
        self._disconnect()
        self._franky = import_franky()
        check_model(self.model, server_version(self.host), self.host)
        self._fault = self._lost = ""
        self._stopped, self._read_only, self._closing = False, read_only, False
        try:
            self._robot = self._open()
            self.limits = self._obeyed_limits()
            self._law, self._build = law, builder(self._franky, law, self.limits)
            if not read_only:
                self._prepare()
            self._start_threads()
        except RobotError:
            self.close()
            raise
        return self.limits

    def _open(self) -> Any:
        franky = self._franky
        kind = franky.RealtimeConfig.Enforce if self.settings.realtime else franky.RealtimeConfig.Ignore
        try:
            # Laws carry shares of the full limits themselves; stops may use more than they.
            return franky.Robot(self.host, relative_dynamics_factor=1.0, realtime_config=kind)
        except franky.IncompatibleVersionException as error:
            raise RobotError(
                f"{self.host}: {_line(error)} Install the franky-control wheel of the robot's server version from "
                "franky's release page, or update the robot"
            ) from None
        except franky.RealtimeException as error:
            raise RobotError(
                f"{_line(error)}: boot a PREEMPT_RT kernel and allow rtprio (`python -m rlspec.doctor "
                f"robot={self.name}`), or set robot.realtime=false"
            ) from None
        except Exception as error:  # franky's exceptions have no common base
            raise RobotError(
                f"{self.host}: {_line(error)}; check Desk: brakes open, FCI active, no other client"
            ) from None

    def _obeyed_limits(self) -> RobotLimits:
        if self.model == "fer":
            return LIMITS["fer"]  # this generation describes itself by a compiled library, without limits
        try:
            description = self._robot.model_urdf
        except Exception as error:  # franky's exceptions have no common base
            raise RobotError(f"{self.host} does not describe itself ({_line(error)}); update the robot") from None
        reported = from_urdf(description)
        if not reported.model.startswith(self.model):
            raise RobotError(f"{self.host} is a {reported.model}, not a {self.model}; use robot=franka_panda")
        return match(LIMITS[reported.model], reported)

    def _prepare(self) -> None:
        settings, robot = self.settings, self._robot
        try:
            treat(robot, settings)
            # Ruckig's own limits are the FER's, some of which exceed the FR3's.
            for name in ("velocity", "acceleration", "jerk"):
                limit = getattr(robot, f"joint_{name}_limit")
                limit.set(np.minimum(limit.max, getattr(self.limits, name)))
        except Exception as error:  # franky's exceptions have no common base
            raise RobotError(f"{self.host} refuses its settings: {_line(error)}; unlock it in Desk") from None

    def _start_threads(self) -> None:
        if self.settings.gripper != "none":
            self._gripper = self._open_gripper()
        self._cameras = CameraThreads(self._openers, self.clock)
        self._poll_once()
        self._poller = threading.Thread(target=self._poll, name="state", daemon=True)
        self._poller.start()

    def _open_gripper(self) -> FrankyGripperLane | RobotiqGripperLane:
        settings = self.settings
        if settings.gripper == "robotiq":
            stroke, how = settings.gripper_stroke, {"speed": settings.gripper_speed, "force": settings.gripper_force}
            return RobotiqGripperLane(RobotiqBus(settings.gripper_port), stroke, **how, read_only=self._read_only)
        found: list[Any] = []

        def reach() -> None:  # the driver waits for ever for a hand whose last client never left
            try:
                found.append(FrankyGripperLane(self._franky.Gripper(self.host)))
            except Exception as error:  # franky's exceptions have no common base
                found.append(error)

        thread = threading.Thread(target=reach, name="gripper connection", daemon=True)
        thread.start()
        leave(thread, _HAND)
        if found and isinstance(found[0], FrankyGripperLane):
            return found[0]
        reason = _line(found[0]) if found else f"no answer within {_HAND:g} s"
        raise RobotError(f"no Franka hand at {self.host} ({reason}); attach it in Desk, or set robot.gripper=none")

    def close(self) -> None:
        """Stop, disconnect and free everything."""
        self._disconnect()

    def _disconnect(self) -> None:
        self._closing = True
        if self._robot is not None:
            self.stop()
            self._wait_for_rest()
            if self._poller is not None:
                leave(self._poller, 2.0)
        if self._gripper is not None:
            self._gripper.close()
        if self._cameras is not None:
            self._cameras.close()
        self._robot = self._gripper = self._cameras = self._state = self._poller = None

    def _wait_for_rest(self, patience: float = 1.0) -> None:
        """Let the stop of `close` end: a connection that is cut in motion is a reflex."""
        end = time.monotonic() + patience
        while time.monotonic() < end and not self._lost and self._in_control():
            time.sleep(_POLL)

    def _in_control(self) -> bool:
        try:
            return bool(self._robot.is_in_control)
        except Exception:  # a lost connection controls nothing
            return False

    @property
    def profile(self) -> Profile:
        """Limits of which jerk-limited laws use their share."""
        values = [getattr(self._robot, f"joint_{name}_limit").get() for name in ("velocity", "acceleration", "jerk")]
        return Profile(*(np.array(value, dtype=np.float64) for value in values))

    # Measured

    def read(self) -> RobotState:
        """Return the newest state; RobotError where the connection is lost."""
        state = self._state
        if state is None or self._lost:
            raise RobotError(self._lost or f"{self.name} is not connected; call connect first")
        if self.clock.now() - state.time > self.settings.patience:
            raise RobotError(
                f"{self.host} has sent no state for {self.settings.patience:g} s; check the network and Desk"
            )
        return state

    def frames(self) -> dict[str, Frame]:
        """Return the newest picture of each camera."""
        return {} if self._cameras is None else self._cameras.newest()

    def _poll(self) -> None:
        while not self._closing and not self._lost:
            self._poll_once()
            time.sleep(_POLL)

    def _poll_once(self) -> None:
        franky = self._franky
        try:
            state = self._robot.state
            if not self._fault:
                self._robot.poll_motion()  # raises what ended the motion
        except franky.NetworkException as error:
            self._lost = f"the connection to {self.host} is lost ({_line(error)}); check the network and Desk"
            return
        except franky.InvalidOperationException:
            return  # the driver is between two kinds of control; the next look succeeds
        except Exception as error:  # what ended the motion: franky's exceptions have no common base
            self._fault = _line(error)
            return
        now, stamp = self.clock.now(), state.time.to_sec()
        if self._state is not None and stamp == self.robot_time:
            now = self._state.time  # the driver repeats what came last: that is as old as it was
        self._state = self._measured(state, now)
        self.robot_time = stamp

    def _measured(self, state: Any, now: float) -> RobotState:
        error = self._fault or str(state.current_errors).strip("[]").replace('"', "")
        return RobotState(
            time=now,
            joints=np.array(state.q, dtype=np.float64),
            velocities=np.array(state.dq, dtype=np.float64),
            closure=self._gripper.closure if self._gripper is not None else 0.0,
            mode=self._mode(state, error),
            error=error,
        )

    def _mode(self, state: Any, error: str) -> Mode:
        modes = self._franky.RobotMode
        if state.robot_mode in (modes.UserStopped, modes.Guiding):
            return "user_stopped"  # before all errors: it must not be recovered from
        if error or state.robot_mode == modes.Reflex:
            return "reflex"
        if self._robot.is_in_control and not (self._stopped and np.abs(state.dq).max() < _REST):
            return "moving"
        return "stopped" if self._stopped else "idle"

    # Commanded

    def command(self, command: Command) -> None:
        """Move towards a target until `command.expires`."""
        if self._read_only:
            raise RobotError(f"{self.name} was connected to be read only")
        if self._robot is None or self._lost:
            raise RobotError(self._lost or f"{self.name} is not connected; call connect first")
        if trouble := self._fault or (self._state.error if self._state is not None else ""):
            raise RobotError(f"{self.name} stopped by itself ({trouble}); it wants `recover`")
        if not (np.all(np.isfinite(command.joints)) and np.all(np.isfinite(command.velocities))):
            raise RobotError("a command is not finite; it was not sent")
        self._move(self._build(command), stops=False)

    def _move(self, motion: Any, *, stops: bool) -> None:
        with self._lock:  # these say what was handed over last
            self._stop_sent = stops
            self._stopped = self._stopped and stops
            try:
                self._robot.move(motion, asynchronous=True)
            except Exception as error:  # franky's exceptions have no common base
                if isinstance(error, self._franky.NetworkException):
                    self._lost = f"the connection to {self.host} is lost ({_line(error)})"
                else:
                    self._fault = _line(error)
                raise RobotError(f"{self.name} refuses to move: {_line(error)}") from None

    def grip(self, closure: float) -> None:
        """Open (0) to close (1) the hand, without waiting."""
        if self._read_only:
            raise RobotError(f"{self.name} was connected to be read only")
        if self._gripper is not None:
            if self._gripper.error:
                raise RobotError(self._gripper.error)
            self._gripper.grip(closure)

    @property
    def grip_problem(self) -> str:
        """What is wrong with the hand, whether it is asked for anything or not; empty: nothing."""
        return "" if self._gripper is None else self._gripper.error

    @property
    def treatment(self) -> tuple[str, ...]:
        """What the arm says of its load, its tool and its thresholds."""
        return () if self._robot is None else described(self._robot.state, self.settings)

    def stop(self) -> None:
        """Come to rest by the law's own stop."""
        if self._robot is None or self._read_only:
            return
        self._stopped = True
        if self._stop_sent or self._lost or not self._in_control():
            return
        try:
            self._move(stopper(self._franky, self._law), stops=True)
        except RobotError:
            return  # it is a fault now, which `read` shows; commands expire by themselves

    def drop_grip(self) -> None:
        """Forget an order that the hand has not begun, and do not repeat one that failed; what it holds it keeps."""
        if self._gripper is not None:
            self._gripper.drop()

    def recover(self) -> bool:
        """Call automatic error recovery; False while it has not succeeded."""
        if self._robot is None or self._lost or self._read_only:
            return False
        if self._recovery is None or not self._recovery.is_alive():
            self._recovery = threading.Thread(target=self._recover, name="recovery", daemon=True)
            self._recovery.start()
        leave(self._recovery, self.settings.recovery)
        return not self._recovery.is_alive() and not self._fault

    def _recover(self) -> None:
        try:
            self._robot.recover_from_errors()
            # What it returns was measured at once; the robot needs some milliseconds to show that it has recovered.
            end = time.monotonic() + _SETTLE
            while (failed := bool(self._robot.has_errors)) and time.monotonic() < end:
                time.sleep(_POLL)
        except Exception as error:  # franky's exceptions have no common base
            self._fault = _line(error)
            return
        self._fault = "automatic error recovery failed; look into Desk" if failed else ""
        self._poll_once()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def make(settings: RobotDescription, **options: Any) -> FrankyRobot:
    """The arm at the settings' address."""
    assert settings.host is not None, "the settings have looked"
    model = "fer" if settings.model == "fer" else "fr3"  # the driver finds out the FR3's system version itself
    treatment = FrankySettings(**options)
    return FrankyRobot(settings.host, model, name=settings.name, cameras=settings.cameras, settings=treatment)
