"""Text that others wrote, made harmless to look at: a page's template escapes it, this shows what cannot be seen."""

from __future__ import annotations

import re

from markupsafe import Markup

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def clean(text: str) -> str:
    r"""Text whose control characters, marks that turn its direction and halves of characters are written out.

    Newlines and tabs stay; `\x1b` becomes the four characters `\x1b`. Markup stays markup.
    """
    made = _UNSEEN.sub(lambda match: _written_out(match[0]), text)
    return Markup(made) if isinstance(text, Markup) else made


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def shorten(text: str, most: int) -> str:
    """At most `most` characters, and how many are left out."""
    return text if len(text) <= most else f"{text[:most]} … {len(text) - most:,} more characters"
