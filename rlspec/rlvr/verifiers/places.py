r"""Where an answer stands in a completion, beyond the last balanced `\boxed{}`. All in time linear in the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rlspec.rlvr.grading.extract import answer_part, extract_answer

_FRACTION = r"\\[dt]?frac\s?\{\d+\}\s?\{\d+\}"
_DIGITS = re.compile(
    rf"(?<![\w.])[-+\u2212]?(?:\d*{_FRACTION}|\d+ \d+/\d+(?![\d/])|"
    r"\.?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+|\^(?:\{-?\d+\}|\d+))?(?:/\d+)*%?)",
    re.ASCII,
)
_NUMBER = re.compile(
    rf"[-+\u2212]?(?:\d*{_FRACTION}|\d+ \d+/\d+|"
    r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+|\^.+|/\d+)?%?)\Z",
    re.ASCII,
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,|,\\!)(?=\d{3}(?!\d))", re.ASCII)
_BOXED_WORD = re.compile(r"\\(?:boxed|fbox)[ \t]*([^\s{}\\$]+)")
_MOST = 100_000  # characters: of longer completions the end


def _boxed_word(text: str) -> str | None:
    r"""`\boxed 7`, as TeX reads it and models write it."""
    found = _BOXED_WORD.findall(text)
    return found[-1].rstrip(".,;:!?") or None if found else None


def answer_tag(text: str) -> str | None:
    """What stands in the last closed `<answer>`."""
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside.strip() or None if closed and opened else None


def _hashes(text: str) -> str | None:
    """GSM8K's notation: the rest of the line after the last `####`."""
    _, marked, after = text.rpartition("####")
    lines = after.strip().splitlines() if marked else []
    return lines[0].strip() or None if lines else None


def _last_number(text: str) -> str | None:
    r"""`18` of `it costs $18.`; a minus counts where no letter, digit or point stands before it.

    `1{,}200`, `\frac{1}{2}`, `3 1/2` and `10^3` are numbers too. None where the last digits are no
    number: `1,00`, `1.2.3`, `1/2/3`.
    """
    found = _DIGITS.findall(_THOUSANDS.sub(",", text[-_MOST:]))
    return found[-1].replace("\u2212", "-") if found and _NUMBER.match(found[-1]) else None


def _boxed(text: str) -> str | None:
    return extract_answer(text, thinking=False).text


_PLACES: dict[str, Callable[[str], str | None]] = {
    "boxed": _boxed,
    "boxed_word": _boxed_word,
    "answer_tag": answer_tag,
    "hashes": _hashes,
    "last_number": _last_number,
}


def find_answer(completion: str, places: Sequence[str], *, thinking: bool) -> tuple[str | None, str]:
    """The answer in the first place that has one, and otherwise the reason why there is none."""
    text = answer_part(completion, thinking=thinking)
    if text is None:
        return None, "truncated_thinking"
    for place in places:
        if (found := _PLACES[place](text)) is not None:
            # TeX around `<answer>$7$</answer>` is taken off by the grader; a box inside of another place counts.
            inner = _boxed(found) if "\\boxed" in found else None
            return inner or found, ""
    return None, "no_answer"
