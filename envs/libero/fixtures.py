"""Moves what is fixed in a LIBERO scene, on privileged state: pulls a drawer open, pushes it shut, turns a knob."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
from rlspec_envs.libero.robot_scene import DOWN, RobotScene, pose
from rlspec_envs.libero.scene import drawer_way
from rlspec_envs.libero.simulation import LiberoSimulation

OPEN, CLOSE = -1.0, 1.0
HOVER = 0.07
"""Height (m) above a knob from which the gripper descends."""
BEFORE = 0.10
"""Distance (m) before a handle at which the hand is level with it."""
SAFE = 0.06
"""Air (m) between the gripper and what it passes over."""
LEVER = 0.65
"""Part of the half ridge at whose end it is pushed: further out the fist slips off."""
DEPTH, BESIDE = 0.012, 0.045
"""How far (m) below its top a knob's ridge is pushed, and how far beside it the fist comes down."""
TURN = 0.6
"""Angle (rad) by which a knob is turned; LIBERO counts 0.5 as on."""
Target = tuple[np.ndarray, np.ndarray, float]  # position (3,) in m, rotation (3, 3), gripper command


class FixtureScene(RobotScene):
    """Measurements of one joint of a fixture, which a condition of the goal names by a region or by its owner."""

    def __init__(self, simulation: LiberoSimulation, condition: tuple[str, ...]) -> None:
        super().__init__(simulation)
        self._condition = condition
        name = condition[1]
        states = simulation.env.object_states_dict[name]
        is_site = states.object_state_type == "site"
        owner = simulation.env.object_sites_dict[name] if is_site else simulation.env.get_object(name)
        self._joint = int(self._model.joint(owner.joints[0]).id)
        self._body = int(self._model.jnt_bodyid[self._joint])
        self.geoms = self._geometry.geoms_below(self._body)
        self.refresh()

    def refresh(self) -> None:
        """Measure what most decisions need."""
        super().refresh()
        self.value = float(self._data.qpos[self._model.jnt_qposadr[self._joint]])
        self.axis = np.array(self._data.xaxis[self._joint])
        self.anchor = np.array(self._data.xanchor[self._joint])
        touched = self._fingers_at(self.geoms)
        self.holding, self.touching = all(touched), any(touched)

    @property
    def success(self) -> bool:
        """LIBERO's predicate of the condition."""
        return self._simulation.holds(self._condition)

    def outward(self) -> np.ndarray:
        """Direction (3,) in which a drawer opens."""
        return drawer_way(self._model, self._data, self._body)

    def handle(self) -> np.ndarray:
        """Middle (3,) of the geom that stands out furthest of a drawer."""
        reach = [float((self._geometry.vertices(np.array([geom])) @ self.outward()).max()) for geom in self.geoms]
        return np.array(self._data.geom_xpos[self.geoms[int(np.argmax(reach))]])

    def lever(self) -> np.ndarray:
        """Where (3,) a knob's ridge is pushed: on the side away from the robot, short of the end."""
        points = self._geometry.vertices(self.geoms)
        ridge = points[points[:, 2] > points[:, 2].max() - 0.02]
        ends = (ridge - self.anchor)[:, :2]
        long = ends[int(np.argmax(np.linalg.norm(ends, axis=1)))]
        long = long / np.linalg.norm(long)
        away = np.sign((self.anchor - self._shoulder)[:2] @ long)
        reach = LEVER * away * float((ends @ (away * long)).max())
        return np.array([*(self.anchor[:2] + reach * long), ridge[:, 2].max()])


class FixtureSkill:
    """Goes through phases, each of which has a rule that names the next one, and a target."""

    phase = "over"

    def __init__(self, simulation: LiberoSimulation, condition: tuple[str, ...]) -> None:
        self._scene = FixtureScene(simulation, condition)
        self.done = False

    def act(self) -> np.ndarray:
        """Return the next action (7,) float32 in [-1, 1]."""
        self._scene.refresh()
        leave, _ = self._phases()[self.phase]
        self.phase = leave()
        _, target = self._phases()[self.phase]
        return self._scene.action_towards(*target())

    def _phases(self) -> dict[str, tuple[Callable[[], str], Callable[[], Target]]]:
        raise NotImplementedError

    def _above(self, point: np.ndarray) -> np.ndarray:
        """Where to wait above a point, clear of what is on the way to it."""
        scene = self._scene
        height = max(point[2], scene.highest_between(point) + SAFE) if scene.distance_xy(point) > 0.04 else point[2]
        return np.array([*(scene.eef if scene.eef[2] < height - 0.03 else point)[:2], height])

    def _is_at(self, point: np.ndarray) -> bool:
        """Whether the gripper is there, or next to it and goes no further."""
        distance = float(np.linalg.norm(point - self._scene.eef))
        return distance < 0.008 or (distance < 0.03 and self._scene.speed < 0.004)


class PullDrawer(FixtureSkill):
    """Opens a drawer: a level hand takes the handle from the front and draws it out."""

    tilt, gripper = 0.0, OPEN

    def _phases(self) -> dict[str, tuple[Callable[[], str], Callable[[], Target]]]:
        return {
            "over": (self._leave_over, lambda: self._target(self._above(self._front()))),
            "front": (self._leave_front, lambda: self._target(self._front())),
            "reach": (self._leave_reach, lambda: self._target(self._scene.handle())),
            "close": (self._leave_close, lambda: self._target(self._scene.handle(), CLOSE)),
            "pull": (
                self._leave_pull,
                lambda: self._target(self._scene.handle() + 0.05 * self._scene.outward(), CLOSE),
            ),
            "release": (self._leave_release, lambda: self._target(self._scene.eef, OPEN)),
            "retreat": (
                self._leave_retreat,
                lambda: self._target(self._scene.eef + self._outward(), OPEN),
            ),
        }

    def _target(self, position: np.ndarray, gripper: float | None = None) -> Target:
        return position, self._pose(), self.gripper if gripper is None else gripper

    def _pose(self) -> np.ndarray:
        """The hand across the drawer's front, of two equal ways the one that turns it less."""
        inward = -self._scene.outward()
        ahead = np.cos(self.tilt) * inward + np.sin(self.tilt) * DOWN
        fingers = self._finger_line(np.cross(inward, DOWN), ahead)
        return min((pose(ahead, sign * fingers) for sign in (1.0, -1.0)), key=self._turn)

    def _finger_line(self, level: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        return np.cross(ahead, level)

    def _turn(self, rotation: np.ndarray) -> float:
        return float(np.linalg.norm(self._scene.turn_to(rotation)))

    def _outward(self, way: float = 0.05) -> np.ndarray:
        return way * self._scene.outward()

    def _front(self) -> np.ndarray:
        return self._scene.handle() + self._outward(BEFORE)

    def _leave_over(self) -> str:
        front = self._front()
        ready = self._scene.distance_xy(front) < 0.02 and self._turn(self._pose()) < 0.15
        return "front" if ready else "over"

    def _leave_front(self) -> str:
        return "reach" if self._is_at(self._front()) else "front"

    def _leave_reach(self) -> str:
        return "close" if self._is_at(self._scene.handle()) else "reach"

    def _leave_close(self) -> str:
        scene = self._scene
        if scene.opening < 0.004:
            return "over"
        return "pull" if scene.holding and scene.fingers_still else "close"

    def _leave_pull(self) -> str:
        scene = self._scene
        if scene.success:
            return "release"
        return "pull" if scene.touching else "over"

    def _leave_release(self) -> str:
        return "retreat" if self._scene.opening > 0.06 else "release"

    def _leave_retreat(self) -> str:
        scene = self._scene
        away = float((scene.eef - scene.handle()) @ scene.outward()) > BEFORE
        self.done = away and scene.success
        return "over" if away and not scene.success else "retreat"


class PushDrawer(PullDrawer):
    """Closes a drawer with the fist, tilted so that the hand passes below the handles above."""

    tilt, gripper = np.pi / 3, CLOSE

    def _phases(self) -> dict[str, tuple[Callable[[], str], Callable[[], Target]]]:
        return {
            "over": (self._leave_over, lambda: self._target(self._above(self._front()))),
            "front": (self._leave_front, lambda: self._target(self._front())),
            "reach": (self._leave_push, lambda: self._target(self._scene.handle() - self._outward())),
            "retreat": (self._leave_retreat, lambda: self._target(self._scene.eef + self._outward())),
        }

    def _finger_line(self, level: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        return level

    def _leave_push(self) -> str:
        return "retreat" if self._scene.success else "reach"


class TurnKnob(FixtureSkill):
    """Switches a stove on: the fist pushes the far end of the knob's ridge around."""

    def __init__(self, simulation: LiberoSimulation, condition: tuple[str, ...]) -> None:
        super().__init__(simulation, condition)
        scene = self._scene
        self._start, self._arm = scene.value, scene.lever() - scene.anchor
        self._yaw = scene.yaw

    def _phases(self) -> dict[str, tuple[Callable[[], str], Callable[[], Target]]]:
        return {
            "over": (self._leave_over, lambda: self._target(self._above(self._beside(HOVER)))),
            "descend": (self._leave_descend, lambda: self._target(self._beside())),
            "turn": (self._leave_turn, lambda: self._target(self._end() + 0.04 * self._tangent(), 0.5)),
            "retreat": (self._leave_retreat, lambda: self._target(self._scene.eef + np.array([0.0, 0.0, 0.05]))),
        }

    def _target(self, position: np.ndarray, ahead: float = 0.0) -> Target:
        """The fist turns with the knob: a fist that does not is held by its friction."""
        yaw = self._yaw + self._scene.value - self._start + ahead
        return position, self._scene.pointing_down(yaw), CLOSE

    def _end(self) -> np.ndarray:
        """Where the end of the ridge now is, at the height at which it is pushed."""
        scene = self._scene
        turned, angle = np.zeros(3), scene.value - self._start
        quaternion = np.array([np.cos(angle / 2), *(np.sin(angle / 2) * scene.axis)])
        mujoco.mju_rotVecQuat(turned, self._arm, quaternion)
        return scene.anchor + turned - np.array([0.0, 0.0, DEPTH])

    def _tangent(self) -> np.ndarray:
        """Direction (3,) in which the end moves when the knob turns on."""
        way = np.cross(self._scene.axis, self._end() - self._scene.anchor)
        return np.asarray(way / np.linalg.norm(way))

    def _beside(self, above: float = 0.0) -> np.ndarray:
        return self._end() - BESIDE * self._tangent() + np.array([0.0, 0.0, above])

    def _leave_over(self) -> str:
        scene = self._scene
        return "descend" if scene.distance_xy(self._beside()) < 0.01 and scene.opening < 0.02 else "over"

    def _leave_descend(self) -> str:
        return "turn" if self._is_at(self._beside()) else "descend"

    def _leave_turn(self) -> str:
        scene = self._scene
        lost = scene.distance_xy(self._end()) > 2 * BESIDE or (scene.speed < 0.002 and not scene.touching)
        return "retreat" if (scene.success and scene.value > TURN) or lost else "turn"

    def _leave_retreat(self) -> str:
        scene = self._scene
        clear = scene.eef[2] > self._end()[2] + HOVER
        self.done = clear and scene.success
        return "over" if clear and not scene.success else "retreat"
