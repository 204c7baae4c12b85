"""Names that trainer, server and robot agree on are written once, in rlspec/contract; everything else imports them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlspec.contract import actions, features, messages, records

PACKAGE = Path(actions.__file__).resolve().parents[1]
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "build" not in path.parts)
OUTSIDE = [path for path in SOURCES if path.parent.name != "contract"]

# As a word of its own: paths in others' files ("observation/robot_state/joint_positions") are names of their own.
WORDS = (*actions.ACTION_SPACES, *actions.EXECUTION_LAWS, *features.CAMERAS)
PATTERN = re.compile(
    rf"(?<![\w./])(?:{'|'.join(map(re.escape, WORDS))})(?![\w./])"
    rf"|{re.escape(features.STATE)}|{re.escape(features.image_key('')[:-2])}"
)
# What only looks the same.
ALLOWED = {
    "deploy/safety/nearest_target.py": {"joint_position", "joint_velocity"},  # limits, as reasons in the log
}


KEYS = frozenset(
    [messages.JOINTS, messages.GRIPPER, messages.FLAT_STATE, messages.PREFIX, messages.DELAY, messages.REQUEST_ID]
    + [messages.DEADLINE, messages.TIMING, messages.INFER_MS, *map(messages.camera_key, features.CAMERAS)]
)
KEYS |= {records.DATA_RECORD, records.POLICY_RECORD}
PLAIN_KEYS = frozenset([messages.PROMPT, messages.ENDPOINT, messages.SECTION])  # words elsewhere
ENDS_OF_THE_WIRE = ("serving/", "deploy/policy/", "deploy/probes.py")


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """Strings of a program, parts of f-strings included; docstrings, of attributes too, are left out."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Constant) and isinstance(child.value, str) and not isinstance(node, ast.Expr):
                yield child


def strangers(source: str, allowed: frozenset[str] = frozenset()) -> list[str]:
    found = []
    for text in texts(ast.parse(source)):
        words = set(PATTERN.findall(text.value)) - allowed
        found += [f"line {text.lineno}: {word}" for word in sorted(words)]
    return found


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_of_the_contract_are_imported(path: Path) -> None:
    allowed = frozenset(ALLOWED.get(str(path.relative_to(PACKAGE)), set()))
    assert strangers(path.read_text(encoding="utf-8"), allowed) == []


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_keys_of_messages_and_names_of_records_are_imported(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    keys = KEYS | PLAIN_KEYS if name.startswith(ENDS_OF_THE_WIRE) else KEYS
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"line {text.lineno}: {text.value}" for text in texts(tree) if text.value in keys] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('space = "delta_eef"', ["line 1: delta_eef"]),
        ('key = f"observation.images.{camera}"', ["line 1: observation.image"]),
        ('raise ValueError("choose action_space=joint_position")', ["line 1: joint_position"]),
        ('state = {"observation.state": 1, "law": "ruckig"}', ["line 1: observation.state", "line 1: ruckig"]),
        ('camera = "wrist_left"', ["line 1: wrist_left"]),
        ('"""About delta_eef."""\nX = 1\n"""Of observation.state."""', []),
        ('path = "observation/robot_state/joint_positions"', []),
        ("import ruckig", []),
    ],
)
def test_the_search_finds_what_it_looks_for(source: str, found: list[str]) -> None:
    assert strangers(source) == found


def test_what_is_allowed_still_occurs() -> None:
    for name, words in ALLOWED.items():
        assert strangers((PACKAGE / name).read_text(encoding="utf-8"), frozenset(words)) == []
        assert len(strangers((PACKAGE / name).read_text(encoding="utf-8"))) == len(words)
