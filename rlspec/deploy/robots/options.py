"""How a robot is described, and what the drivers of this package can be told besides."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlspec.config.schema import Section
from rlspec.contract.actions import DROID_HYBRID, DROID_HZ, ExecutionLaw
from rlspec.contract.droid import HAND_LENGTH
from rlspec.contract.pictures import DROID_SIZE
from rlspec.deploy.robots.robotiq import DROID_FORCE, DROID_SPEED, DROID_STROKE
from rlspec.deploy.safety.tick_bounds import ROBOTIQ_LENGTH

FIRST_SCENE = 200_000
"""Seed of the first scene of deployments in simulation: demonstrations, evaluations and GRPO have others."""

_Byte = Annotated[int, Field(ge=0, le=255)]


class WorkspaceBox(Section):
    """Metres in the base frame: what elbow, wrist, hand and its tip stay in.

    Attributes:
        low: x, y, z of the corner where all three are least.
        high: Of the one where all are greatest.
    """

    low: list[float] = Field(min_length=3, max_length=3)
    high: list[float] = Field(min_length=3, max_length=3)


class RobotDescription(Section):
    """A robot: an option of recipes/robot.

    Attributes:
        name: As it is shown, and typed to confirm.
        driver: What speaks to it: a key of `drivers.DRIVERS`, or module:Class of your own.
        model: Of the arm: decides the table of limits, and must be what the arm says that it is.
        host: Address of the arm's controller.
        law: How targets become motion.
        cameras: DROID's name (exterior_1_left, exterior_2_left, wrist_left) -> KIND:SERIAL, optionally with
            @WIDTHxHEIGHTxFPS; kinds: opencv, realsense, zed, synthetic.
        camera_keys: The policy's key -> camera, where the names do not tell.
        box: Of the room that it stands in, by `python -m rlspec.deploy calibrate=workspace`.
        extrinsics: Camera -> x, y, z, roll, pitch, yaw in the base frame (at the hand: in the flange's), as DROID has
            them, by `python -m rlspec.deploy calibrate=camera`.
        options: Of the driver.
    """

    name: str
    driver: str
    model: Literal["fr3", "fr3_pre_5_9", "fer"] = "fr3"
    host: str | None = None
    law: ExecutionLaw = DROID_HYBRID
    cameras: dict[str, str] = {}
    camera_keys: dict[str, str] = {}
    box: WorkspaceBox | None = None
    extrinsics: dict[str, Annotated[list[float], Field(min_length=6, max_length=6)]] = {}
    options: dict[str, bool | int | float | str | list[int] | list[float] | list[str] | None] = {}

    @property
    def hand_length(self) -> float:
        """Metres from the flange to the tip of the hand."""
        return ROBOTIQ_LENGTH if self.options.get("gripper") == "robotiq" else HAND_LENGTH


class DryRunOptions(Section):
    """There is nothing to choose."""


class FrankyOptions(Section):
    """See `rlspec.deploy.robots.franky.FrankySettings`."""

    torque_threshold: float = Field(40.0, gt=0)
    force_threshold: float = Field(40.0, gt=0)
    gripper: Literal["franka", "robotiq", "none"] = "franka"
    gripper_port: str = "/dev/ttyUSB0"
    gripper_stroke: tuple[_Byte, _Byte] | None = DROID_STROKE
    gripper_speed: float = Field(DROID_SPEED, ge=0, le=1)
    gripper_force: float = Field(DROID_FORCE, ge=0, le=1)
    payload_mass: float | None = Field(None, ge=0, le=10)
    payload_centre: list[float] = Field([0.0] * 3, min_length=3, max_length=3)
    payload_inertia: list[float] = Field([0.0] * 9, min_length=9, max_length=9)
    tool: float | None = Field(None, ge=-0.5, le=0.5)
    realtime: bool = True
    recovery: float = Field(1.0, gt=0)
    patience: float = Field(0.25, gt=0)

    @model_validator(mode="after")
    def _stroke_in_order(self) -> FrankyOptions:
        if self.gripper_stroke is not None and self.gripper_stroke[0] >= self.gripper_stroke[1]:
            raise ValueError("gripper_stroke: the position when open comes first, and is the lower one")
        return self


class FrankySimOptions(Section):
    """See `rlspec.deploy.robots.franky_sim.FrankySimRobot`."""

    images: Literal["render", "synthetic", "none"] = "synthetic"
    image_size: tuple[int, int] = DROID_SIZE
    camera_hz: float = Field(DROID_HZ, gt=0)
    joints: list[float] | None = Field(None, min_length=7, max_length=7)


class MujocoOptions(Section):
    """See `rlspec.deploy.robots.mujoco.MujocoRobot` and, for what is None here, the environment's own defaults."""

    task: str = "pick_place"
    seed: int = Field(FIRST_SCENE, ge=0)
    image_size: tuple[int, int] = DROID_SIZE
    camera_hz: float = Field(30.0, gt=0)
    images: bool = True
    real_time: bool = False
    arm: str | None = None
    randomise: str | None = None
    distractors: int | None = Field(None, ge=0)
    plates: int | None = Field(None, ge=1)
    plate_radius: float | None = Field(None, gt=0)
    colours: list[str] | None = None
    workspace: list[float] | None = Field(None, min_length=4, max_length=4)
    goal: str | None = None
