"""The plan of picking a cube up and putting it somewhere, as a function of the state; pick_place and stack share it."""

from __future__ import annotations

import math

import numpy as np
from rlspec_envs.franka.rotations import Array, hand_down, nearest_equivalent
from rlspec_envs.franka.tasks.base import BLOCK_HALF, Motion
from rlspec_envs.franka.world import World

OPEN_GAP = 0.07
"""Metres between the pads from which the hand counts as open."""

_FREE_GAP = 2 * BLOCK_HALF + 0.012  # the pads have left the cube: the hand may go up
_HELD_GAP = 2 * BLOCK_HALF + 0.004
_HOVER = 0.10  # height of the hand above a cube before it goes down
_CARRY = 0.13  # height of a carried cube's centre above the place it goes to
_ALIGNED = 0.008  # horizontal error up to which the hand goes on down without waiting


def released(world: World, block: str) -> bool:
    """True when the hand is open, has left a block, and the block is at rest."""
    away = float(np.linalg.norm(world.tcp - world.position(block)))
    return world.gap > OPEN_GAP and away > 0.06 and world.speed(block) < 0.05


def held(world: World, block: str) -> bool:
    """True when the pads are on a cube between them."""
    offset = np.abs(world.tcp - world.position(block))
    return world.gap < _HELD_GAP and bool(np.linalg.norm(offset[:2]) < 0.02 and offset[2] < 0.022)


def _funnel(error: float, height: float) -> float:
    """Height to keep at a horizontal error: 0 when aligned, `height` from a few centimetres on."""
    return height * min(1.0, max(0.0, (error - _ALIGNED) / 0.03))


def grasp_rotation(world: World, block: str) -> Array:
    """Hand down, its fingers parallel to two sides of a cube, with the smallest turn from here."""
    return hand_down(nearest_equivalent(world.yaw(block), world.hand_yaw, math.pi / 2))


def carry(world: World, block: str, goal: Array, tolerance: float, drop: float = 0.012) -> Motion:
    """Plan the next motion that brings a cube to a goal.

    Args:
        world: The state.
        block: Name of the cube.
        goal: Where its centre shall lie, (3,) metres.
        tolerance: How far from the goal, horizontally, a cube may lie that has been put down, metres.
        drop: Height above the goal from which a cube may be let go, metres.
    """
    cube, tcp, rotation = world.position(block), world.tcp, grasp_rotation(world, block)
    offset = goal - cube
    aside = float(np.linalg.norm(offset[:2]))
    holding = held(world, block)
    if aside < tolerance and cube[2] - goal[2] < (drop if holding else 0.03):
        return _leave(world, cube, rotation)
    if holding:
        lift = _CARRY * min(1.0, aside / 0.04) if aside > 0.012 else drop - 0.008
        # Rise before going sideways: the higher, the further.
        low = max(0.0, goal[2] + lift - 0.03 - cube[2])
        reach = max(0.0, 1.0 - low / 0.06)
        wanted = np.array([*(cube[:2] + reach * offset[:2]), goal[2] + lift])
        return Motion(tcp + wanted - cube, rotation, close=True)
    error = float(np.linalg.norm(cube[:2] - tcp[:2]))
    height = _funnel(error, _HOVER)
    between = error < 0.015 and abs(tcp[2] - cube[2]) < 0.012
    return Motion(cube + [0.0, 0.0, height], rotation, close=between)


def _leave(world: World, cube: Array, rotation: Array) -> Motion:
    """Open where the hand is, then go up."""
    if world.gap < _FREE_GAP and np.linalg.norm(world.tcp - cube) < 0.05:
        return Motion(world.tcp, rotation, close=False)
    return Motion(world.tcp + [0.0, 0.0, 0.05], rotation, close=False)
