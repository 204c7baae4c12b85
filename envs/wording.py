"""An instruction in other words, the further from the original the stronger."""

from __future__ import annotations

import re

import numpy as np

_FRAMES = (
    "please {}",
    "could you {}?",
    "{}, please",
    "now {}",
)
_LONG_FRAMES = (
    "here is what i need from you: {}, and nothing else on this table",
    "the table has just been wiped. your job for the next minute is to {}",
    "once you are ready, i would like you to {} without any hurry",
    "a guest asked whether the robot can {}; show it",
)
# Longer phrases first; each stands for whole words.
_SYNONYMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pick up", ("grab", "take", "lift")),
    ("put away", ("stow",)),
    ("turn on", ("switch on", "start")),
    ("turn off", ("switch off",)),
    ("on top of", ("upon", "onto")),
    ("next to", ("beside", "close to")),
    ("place", ("set", "lay", "deposit")),
    ("put", ("set", "lay", "deposit")),
    ("move", ("bring", "carry", "transfer")),
    ("push", ("shove", "slide")),
    ("stack", ("pile", "set")),
    ("open", ("pull open",)),
    ("close", ("shut", "push shut")),
    ("onto", ("on", "upon")),
    ("cube", ("block", "box")),
    ("plate", ("dish", "disc")),
    ("circle", ("disc", "round mark")),
    ("basket", ("bin", "crate")),
    ("cabinet", ("cupboard",)),
    ("stove", ("cooker",)),
)


def reworded(instruction: str, strength: int, rng: np.random.Generator) -> str:
    """1: the same words, asked politely; 2: other verbs and nouns; 3: both, within a longer sentence.

    Colours, and what things are for, stay: the meaning is the same.
    """
    frame, long_frame = rng.integers(len(_FRAMES)), rng.integers(len(_LONG_FRAMES))
    other = _with_synonyms(instruction, rng)
    if strength == 1:
        return _FRAMES[frame].format(instruction)
    return other if strength == 2 else _LONG_FRAMES[long_frame].format(other)


def _with_synonyms(text: str, rng: np.random.Generator) -> str:
    """Every phrase that is in the table by another of its meaning; what has been put in is not looked at again."""
    chosen = {phrase: str(rng.choice(others)) for phrase, others in _SYNONYMS}
    pattern = "|".join(re.escape(phrase) for phrase, _ in _SYNONYMS)
    return re.sub(rf"\b({pattern})\b", lambda found: chosen[found[0]], text)
