"""Whether numbers are what they are said to be: against a checkpoint's statistics, an action space, a normalisation.

Each function yields findings; those that stop a run are nonsense whichever robot it is: other units, an action space
that the checkpoint does not have, numbers that explode when they are normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES, DROID_HZ, MAX_JOINT_STEP
from rlspec.contract.features import ACTION, STATE
from rlspec.vla.data.facts import Stats

Finding = tuple[bool, str]  # whether it stops the run, and the line
Columns = Callable[[str], NDArray[Any]]  # feature -> (N, d), all frames

FACTOR = 10.0  # ratio of spreads that means other units
CONSTANT = 1e-5  # standard deviation below which a number says nothing
OUTSIDE = 0.2  # share of a number's values outside of a checkpoint's q01..q99 that is worth a line
MOSTLY_OUTSIDE = 0.5  # of a whole vector: another robot, or another quantity
EXPLODES, LARGE = 50.0, 10.0  # size of a normalised number; 1 is the edge of q01..q99
_RATE_TOLERANCE = 0.05  # Hz
_QUANTILES = {"QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_FACTORS = {math.degrees(1.0): "degrees and radians", 1000.0: "millimetres and metres", 100.0: "centimetres and metres"}


def near_constant(stats: Stats, normalised_by: Stats, modes: Mapping[str, str]) -> Iterator[Finding]:
    """Numbers whose quantiles lie so close together that what lies outside explodes.

    Args:
        stats: of the data.
        normalised_by: the same, or a checkpoint's.
        modes: {"STATE": ..., "ACTION": ...} by LeRobot's names.
    """
    for name, kind in ((STATE, "STATE"), (ACTION, "ACTION")):
        levels = _QUANTILES.get(modes.get(kind, ""))
        if levels is None or not _has(stats, name, "min", "max") or not _has(normalised_by, name, *levels):
            continue
        low, high = (_vector(normalised_by[name][level]) for level in levels)
        least, most = _vector(stats[name]["min"]), _vector(stats[name]["max"])
        if low.shape != least.shape:
            continue
        span = np.where(high == low, 1e-8, high - low)  # LeRobot's
        worst = np.maximum(np.abs(2 * (most - low) / span - 1), np.abs(2 * (least - low) / span - 1))
        for index in np.flatnonzero((worst > LARGE) & (most - least > 1e-9)):
            place = f"{name}[{index}]: {levels[0]}..{levels[1]} is {low[index]:.3g}..{high[index]:.3g}"
            reach = f"{least[index]:.3g}..{most[index]:.3g} becomes {worst[index]:.2g} when normalised"
            remedy = f"set policy.options.normalization_mapping.{kind}=MEAN_STD, or leave odd episodes out"
            yield bool(worst[index] > EXPLODES), f"{place}, and {reach}; {remedy}"


def units(stats: Stats, space: str | None, state_names: list[str] | None) -> Iterator[Finding]:
    """Numbers that cannot have the units of their action space, or of joints and gripper in the state."""
    found = ACTION_SPACES.get(space or "")
    if found is not None and _size(stats, ACTION) == found.size:
        for index, unit in enumerate(found.units):
            low, high = min(found.gripper), max(found.gripper)
            yield from _unit(f"{ACTION}[{index}] ({found.names[index]})", stats[ACTION], index, unit, (low, high))
    if state_names and len(state_names) == _size(stats, STATE) and all("joint" in name for name in state_names[:7]):
        for index, name in enumerate(state_names):
            unit = "rad" if "joint" in name else "closure" if name in ("gripper", "closure") else ""
            yield from _unit(f"{STATE}[{index}] ({name})", stats[STATE], index, unit, (0.0, 1.0))


def _unit(
    place: str, stats: Mapping[str, Any], index: int, unit: str, closure: tuple[float, float]
) -> Iterator[Finding]:
    low, high = (float(_vector(stats[kind])[index]) for kind in _levels(stats))
    reach, seen = max(abs(low), abs(high)), f"{place}: {low:.3g}..{high:.3g}"
    if unit == "rad" and reach > 2 * math.pi:
        yield True, f"{seen} are no radians; convert them from degrees"
    elif unit == "m" and reach > 3.0:
        yield True, f"{seen} are no metres within a robot's reach; convert them from millimetres"
    elif unit == "unitless" and reach > 1.5:
        yield (
            True,
            (
                f"{seen}, where one unit is the largest step; if they are rad/s, divide them by the rate times "
                f"{MAX_JOINT_STEP:g} ({DROID_HZ * MAX_JOINT_STEP:g} at {DROID_HZ:g} Hz)"
            ),
        )
    elif unit == "closure" and (low < closure[0] - 0.1 or high > closure[1] + 0.1):
        yield True, f"{seen}, where the gripper goes from {closure[0]:g} (open) to {closure[1]:g} (closed); convert it"


def _levels(stats: Mapping[str, Any]) -> tuple[str, str]:
    return ("q01", "q99") if {"q01", "q99"} <= set(stats) else ("min", "max")


def compare_statistics(stats: Stats, checkpoint: Stats, columns: Columns) -> Iterator[Finding]:
    """Whether the numbers of the data look like those that a pretrained policy normalises by.

    Args:
        stats: of the data.
        checkpoint: of the policy.
        columns: reads the data.
    """
    for name in (STATE, ACTION):
        if not _has(checkpoint, name, "mean", "std") or not _has(stats, name, "mean", "std"):
            continue
        ours, theirs = _vector(stats[name]["std"]), _vector(checkpoint[name]["std"])
        if ours.shape != theirs.shape:
            sizes = f"{name}: {len(ours)} numbers, the checkpoint normalises {len(theirs)}"
            yield False, f"{sizes}; they are not compared"
            continue
        yield from _spreads(name, ours, theirs)
        yield from _outside(name, checkpoint[name], columns)


def misfit(key: str, given: Stats, stats: Stats, columns: Columns) -> Iterator[Finding]:
    """Whether statistics that a recipe chose can be those of its data: they are at fault where not, one line a vector.

    Args:
        key: that chose them, with its value.
        given: they.
        stats: of the data.
        columns: reads the data.
    """
    remedy = "they do not belong to this data: take those of its robot, or set policy.norm_stats=null"
    for name in (STATE, ACTION):
        if not _has(given, name, "mean", "std") or not _has(stats, name, "mean", "std"):
            continue
        ours, theirs = (_vector(each[name]["std"]) for each in (stats, given))
        if ours.shape != theirs.shape:
            yield True, f"{key}: {len(theirs)} numbers of {name}, the data has {len(ours)}; {remedy}"
            continue
        ratios = np.divide(ours, theirs, out=np.full_like(ours, np.inf), where=theirs >= CONSTANT)
        wrong = np.flatnonzero((ours >= CONSTANT) & ((ratios > FACTOR) | (ratios < 1 / FACTOR)))
        if wrong.size:
            index = int(wrong[0])
            times = f"{ratios[index]:.3g} times as far" if theirs[index] >= CONSTANT else "there and not"
            yield True, f"{key}: {name}[{index}] spreads {times} in the data as in these; {remedy}"
        elif any(stops for stops, _ in _outside(name, given[name], columns)):
            yield True, f"{key}: most of {name} lies outside of their q01..q99; {remedy}"


def _spreads(name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Iterator[Finding]:
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        place = f"{name}[{index}]"
        if mine < CONSTANT <= other:
            yield False, f"{place}: constant in the data, not in the checkpoint's"
        elif other < CONSTANT <= mine:
            yield (
                True,
                (
                    f"{place}: constant in the checkpoint's data, so any other value explodes when normalised; "
                    "set policy.path=null, or take data of the same robot"
                ),
            )
        elif mine >= CONSTANT and not 1 / FACTOR < mine / other < FACTOR:
            yield (
                True,
                (
                    f"{place}: spreads {mine / other:.3g} times as far as in the checkpoint's data; convert the units "
                    f"({_guess(mine / other)}), or train from policy.path=null"
                ),
            )
    yield from _rad_per_second(name, ours, theirs)


def _guess(ratio: float) -> str:
    """Which units differ by about that factor."""
    for factor, words in _FACTORS.items():
        if 0.6 < ratio / factor < 1.6 or 0.6 < 1 / ratio / factor < 1.6:
            return words
    return "degrees or radians, millimetres or metres"


def _rad_per_second(name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Iterator[Finding]:
    """All joints three times as fast: a line only, as a task may be so."""
    moving = (ours > CONSTANT) & (theirs > CONSTANT)
    moving[7:] = False
    if name != ACTION or moving.sum() < 6:
        return
    logs = np.log(ours[moving] / theirs[moving])
    for factor, hint in ((3.0, "is the data in rad/s?"), (1 / 3.0, "is the checkpoint's in rad/s?")):
        if abs(logs.mean() - math.log(factor)) < 0.2 and logs.std() < 0.2:
            yield (
                False,
                f"{name}: all joints spread about {factor:.2g} times as far as in the checkpoint's data; {hint}",
            )


def _outside(name: str, stats: Mapping[str, Any], columns: Columns) -> Iterator[Finding]:
    """Share of the numbers outside of the checkpoint's q01..q99; 2% would be as expected."""
    if "q01" not in stats or "q99" not in stats:
        return
    ends = _vector(stats["q01"]), _vector(stats["q99"])
    low, high = np.minimum(*ends), np.maximum(*ends)  # an adopted policy's gripper may run the other way
    slack = 1e-3 * np.maximum(high - low, 1e-6)
    values = columns(name)
    shares = ((values < low - slack) | (values > high + slack)).mean(axis=0)
    if shares.mean() > MOSTLY_OUTSIDE:
        said = f"{name}: {shares.mean():.0%} of the numbers lie outside of the checkpoint's q01..q99"
        yield True, f"{said}; is it another robot or another quantity? train from policy.path=null"
        return
    for index in np.flatnonzero(shares > OUTSIDE):
        yield False, f"{name}[{index}]: {shares[index]:.0%} of the data lie outside of the checkpoint's q01..q99"


def compare_facts(data: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Iterator[Finding]:
    """Action space, rate and execution law of the data against a checkpoint's rlspec.json, as far as both say.

    Args:
        data: its record, with `control_hz`.
        checkpoint: what `facts.read_facts` gives.
    """

    def both(key: str) -> tuple[Any, Any] | None:
        pair = data.get(key), checkpoint.get(key)
        return None if None in pair else pair

    if (pair := both("action_space")) and pair[0] != pair[1]:
        remedy = f"convert the data with action_space={pair[1]}, or train from policy.path=null"
        yield True, f"action space: {pair[0]} in the data, {pair[1]} in the checkpoint; {remedy}"
    if (pair := both("control_hz")) and abs(float(pair[0]) - float(pair[1])) > _RATE_TOLERANCE:
        remedy = f"convert the data with fps={float(pair[1]):g}, or train from policy.path=null"
        yield True, f"rate: {float(pair[0]):g} Hz in the data, {float(pair[1]):g} Hz in the checkpoint; {remedy}"
    if (pair := both("execution_law")) and pair[0] != pair[1]:
        meaning = "equal actions moved the robot at another speed"
        yield False, f"execution law: {pair[0]} in the data, {pair[1]} in the checkpoint; {meaning}"


def _has(stats: Stats, name: str, *kinds: str) -> bool:
    return name in stats and set(kinds) <= set(stats[name])


def _size(stats: Stats, name: str) -> int:
    return len(_vector(stats[name]["min"])) if _has(stats, name, "min", "max") else 0


def _vector(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(-1)
