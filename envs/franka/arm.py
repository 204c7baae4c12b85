"""Puts a Franka arm with its hand into a MuJoCo model, drawn with primitive geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
from rlspec_envs.franka.robots import (
    FINGER_BASE,
    FINGER_STROKE,
    FLANGE_OFFSET,
    HAND_YAW,
    LINKS,
    TCP_OFFSET,
    Robot,
)

ARM_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("left_finger", "right_finger")
ARM_ACTUATORS = tuple(f"arm{i}" for i in range(1, 8))
GRIPPER_ACTUATOR = "gripper"
TCP_SITE = "tcp"

# Bits of MuJoCo's contact filter: the arm meets the world, never itself.
ARM_BIT, WORLD_BIT = 2, 1
COLLISION_GROUP = 3  # hidden by the renderer

_WHITE = (0.92, 0.93, 0.95, 1.0)
_GREY = (0.32, 0.34, 0.38, 1.0)
_DARK = (0.16, 0.17, 0.19, 1.0)
_STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)
_SETTLING = 0.1  # seconds: damping / stiffness, the time constant with which joints approach their targets
_ARMATURE = (0.2, 0.2, 0.2, 0.2, 0.08, 0.08, 0.08)


@dataclass(frozen=True)
class Capsule:
    """A round bar of a link's look, from `start` to `end` in the link's frame, metres."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    colour: tuple[float, float, float, float] = _WHITE


# One or two bars per link, from base to link 7: the silhouette at a hundredth of the meshes' triangles.
LOOK: tuple[tuple[Capsule, ...], ...] = (
    (Capsule((-0.06, 0, 0.06), (0, 0, 0.1), 0.075), Capsule((0, 0, 0.1), (0, 0, 0.2), 0.062)),
    (Capsule((0, 0, -0.14), (0, 0, 0.0), 0.06),),
    (Capsule((0, 0, -0.05), (0, 0, 0.05), 0.06, _GREY), Capsule((0, 0, 0), (0, -0.19, 0), 0.057)),
    (Capsule((0, 0, -0.12), (0, 0, -0.04), 0.055), Capsule((0, 0, -0.03), (0.0825, 0, 0), 0.052)),
    (Capsule((0, 0, -0.05), (0, 0, 0.05), 0.055, _GREY), Capsule((-0.01, 0, 0), (-0.0825, 0.11, 0), 0.052)),
    (Capsule((0, 0, -0.26), (0, 0.06, -0.13), 0.05), Capsule((0, 0.06, -0.13), (0, 0, -0.0), 0.05)),
    (Capsule((0, 0, -0.04), (0, 0, 0.04), 0.048, _GREY), Capsule((0.02, 0, 0), (0.088, 0, 0), 0.045)),
    (Capsule((0, 0, -0.03), (0, 0, 0.09), 0.042),),
)


def _unit_quaternion(axis: int, angle: float) -> list[float]:
    quaternion = [math.cos(angle / 2), 0.0, 0.0, 0.0]
    quaternion[1 + axis] = math.sin(angle / 2)
    return quaternion


def _add_look(body: mujoco.MjsBody, bars: tuple[Capsule, ...], collides: bool) -> None:
    for bar in bars:
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=[*bar.start, *bar.end],
            size=[bar.radius, 0, 0],
            rgba=list(bar.colour),
            contype=ARM_BIT if collides else 0,
            conaffinity=0,
            mass=0.0,
        )


def _add_finger(hand: mujoco.MjsBody, name: str, side: int) -> None:
    """Add one finger, `side` +1 or -1 along the hand's y axis; its pad is what grips."""
    yaw = 0.0 if side > 0 else math.pi
    finger = hand.add_body(name=name, pos=[0, 0, FINGER_BASE], quat=_unit_quaternion(2, yaw), gravcomp=1)
    finger.explicitinertial = True
    finger.mass, finger.ipos, finger.inertia = 0.05, [0, 0.015, 0.022], [2e-5, 2e-5, 5e-6]
    finger.add_joint(
        name=name,
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, 1, 0],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        range=[0, FINGER_STROKE],
        armature=0.1,
        damping=[2.0, 0, 0],
    )
    box = mujoco.mjtGeom.mjGEOM_BOX
    finger.add_geom(type=box, size=[0.010, 0.010, 0.018], pos=[0, 0.018, 0.013], rgba=list(_GREY), contype=ARM_BIT,
                    conaffinity=0, mass=0.0)  # fmt: skip
    finger.add_geom(
        name=f"{name}_pad",
        type=box,
        size=[0.00875, 0.006, 0.0125],
        pos=[0, 0.006, 0.042],
        rgba=list(_DARK),
        contype=ARM_BIT,
        conaffinity=0,
        condim=4,
        friction=[2.0, 0.05, 0.0002],
        solref=[0.01, 1.0],
        priority=1,
        mass=0.0,
    )


def _add_hand(link7: mujoco.MjsBody) -> mujoco.MjsBody:
    hand = link7.add_body(name="hand", pos=[0, 0, FLANGE_OFFSET], quat=_unit_quaternion(2, HAND_YAW), gravcomp=1)
    hand.explicitinertial = True
    hand.mass, hand.ipos, hand.inertia = 0.6544, [0, 0, 0.0207], [0.00186, 0.0003, 0.00174]
    hand.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.02, 0.1, 0.033],
        pos=[0, 0, 0.033],
        rgba=list(_WHITE),
        contype=ARM_BIT,
        conaffinity=0,
        mass=0.0,
    )
    hand.add_site(name=TCP_SITE, pos=[0, 0, TCP_OFFSET])
    for name, side in zip(FINGER_JOINTS, (1, -1), strict=True):
        _add_finger(hand, name, side)
    return hand


def _add_actuators(spec: mujoco.MjSpec, robot: Robot) -> None:
    for i, joint in enumerate(ARM_JOINTS):
        arm = spec.add_actuator(name=ARM_ACTUATORS[i], target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        arm.set_to_position(kp=_STIFFNESS[i], kv=_SETTLING * _STIFFNESS[i])
        arm.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
        arm.forcerange = [-robot.max_torque[i], robot.max_torque[i]]
    tendon = spec.add_tendon(name="fingers")
    for finger in FINGER_JOINTS:
        tendon.wrap_joint(finger, 0.5)
    # Without the coupling a gripped object would slide sideways between two equal forces.
    spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        name1=FINGER_JOINTS[0],
        name2=FINGER_JOINTS[1],
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        data=[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        solref=[0.005, 1],
        solimp=[0.95, 0.99, 0.001, 0.5, 2],
    )
    grip = spec.add_actuator(name=GRIPPER_ACTUATOR, target="fingers", trntype=mujoco.mjtTrn.mjTRN_TENDON)
    grip.set_to_position(kp=1500.0, kv=300.0)
    grip.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
    grip.forcerange = [-35.0, 35.0]


def add_arm(spec: mujoco.MjSpec, robot: Robot, primitive_look: bool = True) -> dict[str, mujoco.MjsBody]:
    """Add base, seven links, hand and fingers at the world's origin, with position actuators.

    Args:
        spec: The model under construction.
        robot: Joint and torque limits.
        primitive_look: Draw the links as capsules; otherwise the capsules only collide and are not drawn.

    Returns:
        Bodies by name: "link0" to "link7", "hand", "left_finger", "right_finger".
    """
    parent = spec.worldbody.add_body(name="link0")
    _add_look(parent, LOOK[0], collides=False)
    bodies = {"link0": parent}
    for i, link in enumerate(LINKS):
        body = parent.add_body(name=f"link{i + 1}", pos=list(link.xyz), quat=_unit_quaternion(0, link.roll), gravcomp=1)
        body.explicitinertial = True
        body.mass, body.ipos, body.fullinertia = link.mass, list(link.com), list(link.inertia)
        body.add_joint(
            name=ARM_JOINTS[i],
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0, 0, 1],
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            range=[robot.low[i], robot.high[i]],
            armature=_ARMATURE[i],
            damping=[0.5, 0, 0],
        )
        _add_look(body, LOOK[i + 1], collides=i >= 4)
        bodies[body.name] = parent = body
    bodies["hand"] = _add_hand(parent)
    for finger in FINGER_JOINTS:
        bodies[finger] = spec.body(finger)
    if not primitive_look:
        for body in bodies.values():
            for geom in body.geoms:
                geom.group = COLLISION_GROUP
    _add_actuators(spec, robot)
    return bodies
