r"""From a completion to the text of its final answer: the last balanced `\boxed{}` after the last thought."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

BoxFault = Literal["truncated_thinking", "no_box", "empty_box", "unterminated_box"]

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_MARK = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
_BLANK = re.compile(r"(?:\s|~|\{\}|\\[,;:! ]|\\text\{\s*\}|\\mbox\{\s*\}|\\(?:quad|qquad)(?![A-Za-z])|\$)*+\Z")


@dataclass(frozen=True, slots=True)
class Extraction:
    """The boxed text, or the reason why there is none; `boxes` counts every box mark in the answer part."""

    text: str | None
    fault: BoxFault | None
    boxes: int


def extract_answer(completion: str, *, thinking: bool) -> Extraction:
    r"""Find the final answer of a completion.

    Only the last box counts: if it is empty or never closes, the completion has no answer, whatever stood in an
    earlier one. A box inside another belongs to the outer one.

    Args:
        completion: what the model wrote.
        thinking: the template asks for a thought, so a completion without `</think>` was cut off. An opened and
            never closed `<think>` counts as cut off either way.
    """
    answer = answer_part(completion, thinking=thinking)
    if answer is None:
        return Extraction(None, "truncated_thinking", 0)
    boxes, span = _last_box(answer)
    if boxes == 0:
        return Extraction(None, "no_box", 0)
    if span is None:
        return Extraction(None, "unterminated_box", boxes)
    text = answer[span[0] : span[1]]
    if _BLANK.match(text):
        return Extraction(None, "empty_box", boxes)
    return Extraction(text, None, boxes)


def answer_part(completion: str, *, thinking: bool) -> str | None:
    """The text after the last `</think>`; None where the thought was cut off."""
    _, closed, answer = completion.rpartition(THINK_CLOSE)
    if (thinking and not closed) or THINK_OPEN in answer:
        return None
    return answer


def _last_box(text: str) -> tuple[int, tuple[int, int] | None]:
    """Number of box marks, and the content span of the outermost box around the last one (None: never closed)."""
    boxes = 0
    last = -1  # where the content of the last box begins, -1: not opened by a brace
    span: tuple[int, int] | None = None
    stack: list[tuple[int, bool]] = []  # (start of the content, is a box)
    opened = -1  # the end of a box mark that waits for its brace
    for match in _MARK.finditer(text):
        mark = match.group()
        if mark == "{":
            is_box = opened >= 0 and not text[opened : match.start()].strip()
            stack.append((match.end(), is_box))
            if is_box:
                last = match.end()
            opened = -1
        elif mark == "}":
            if stack:
                start, is_box = stack.pop()
                if is_box and start <= last:
                    span = (start, match.start())
        elif mark in ("\\boxed", "\\fbox"):
            boxes, last, opened = boxes + 1, -1, match.end()
    closes_last = span is not None and last >= 0 and span[0] <= last <= span[1]
    return boxes, span if closes_last else None
