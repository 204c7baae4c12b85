"""The arm that franky-sim computes, for predictions: inertia by MuJoCo, Jacobian by franky-sim's own model."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pinocchio
from franky_sim.mujoco_simulator import MujocoSimulator
from law_prediction import Plant

from rlspec.deploy.arm.laws import Impedance
from rlspec.deploy.robots.franky_server import DAMPING, STIFFNESS

HOME = np.array([0.0, 0.0, 0.0, -1.57, 0.0, 1.57, 0.785])
SERVO = Impedance(np.array(STIFFNESS), np.array(DAMPING), max_delta_tau=1e9)


def arm_plant() -> Plant:
    simulator = MujocoSimulator()
    simulator.init()
    robot: Any = simulator.add_robot()
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(simulator.scene, encoding="unicode"))
    data = mujoco.MjData(model)
    kinematics = robot._BaseRobot__model
    frame = kinematics.getFrameId("tcp")
    scratch = kinematics.createData()

    def inertia(q: np.ndarray) -> np.ndarray:
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_makeM(model, data)
        full = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, full, data.qM)
        return full[:7, :7]

    def jacobian(q: np.ndarray) -> np.ndarray:
        world = pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED
        return np.array(pinocchio.computeFrameJacobian(kinematics, scratch, np.array(q), frame, world))

    torque = np.array([87.0] * 4 + [12.0] * 3)
    return Plant(inertia, jacobian, model.dof_damping[:7].copy(), model.dof_frictionloss[:7].copy(), torque)


def arm_gravity() -> Callable[[np.ndarray], np.ndarray]:
    """Gravity torques, (7,) Nm, that franky-sim adds to what the driver asks for."""
    simulator = MujocoSimulator()
    simulator.init()
    robot: Any = simulator.add_robot()
    kinematics = robot._BaseRobot__model
    scratch = kinematics.createData()
    return lambda q: np.array(pinocchio.computeGeneralizedGravity(kinematics, scratch, np.array(q)))
