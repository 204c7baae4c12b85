"""DROID's instructions in a file apart: uuid -> language_instruction1, 2, 3 (aggregated-annotations-*.json)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rlspec.errors import DataError
from rlspec.vla.data.files import read_json
from rlspec.vla.droid.settings import ConvertSettings

_KEYS = (  # of annotations, and of metadata that holds them itself
    ("language_instruction1", "language_instruction_1", "language_instruction"),
    ("language_instruction2", "language_instruction_2"),
    ("language_instruction3", "language_instruction_3"),
)
# LAB/success/2023-07-07/Fri_Jul__7_09:42:23_2023/trajectory.h5, and LAB+USER+2023-07-07-09h-42m-23s
_PLACE = re.compile(r"([^/]+)/(?:success|failure)/[^/]+/(\w{3}_\w{3}_+\d+_\d\d:\d\d:\d\d_\d{4})(?:/|$)")
_UUID = re.compile(r"([^+]+)\+[^+]+\+(\d{4}-\d\d-\d\d-\d\dh-\d\dm-\d\ds)$")

Moment = tuple[str, datetime]  # of a recording: laboratory and start, to the second


class Annotations:
    """The file that was given, or DROID's own in the recordings' folder; without one it knows nothing.

    Raises:
        DataError: It holds something else.
    """

    def __init__(self, settings: ConvertSettings) -> None:
        path = annotations_file(settings)
        self._texts: dict[str, Any] = {} if path is None else read_json(path)
        if not all(isinstance(each, dict) for each in self._texts.values()):
            raise DataError(f"annotations={path}: uuid -> language_instruction1, ... is wanted; correct the file")
        self._uuids: dict[Moment, list[str]] = {}
        for uuid in self._texts:
            if (moment := moment_of_uuid(uuid)) is not None:
                self._uuids.setdefault(moment, []).append(uuid)

    def of_uuid(self, uuid: str) -> tuple[str, ...]:
        """The three instructions of a recording; empty: there are none."""
        return instructions_in(self._texts.get(uuid, {}))

    def of_place(self, place: str) -> tuple[str, ...]:
        """The same by where the recording lay, as RLDS says; of two that began in one second, neither."""
        moment = moment_of_place(place)
        uuids = [] if moment is None else self._uuids.get(moment, [])
        return self.of_uuid(uuids[0]) if len(uuids) == 1 else ()


def annotations_file(settings: ConvertSettings) -> Path | None:
    """The one that was given, or DROID's own in the recordings' folder; None: there is none, or none is read."""
    if settings.source == "lerobot":
        return None
    return settings.annotations or next(iter(sorted(settings.path.glob("aggregated-annotations-*.json"))), None)


def instructions_in(texts: Mapping[str, Any]) -> tuple[str, ...]:
    """By any of their names, "" for each that is missing; empty: none is there."""
    found = [next((str(texts[key]) for key in keys if texts.get(key)), "") for keys in _KEYS]
    return tuple(found) if any(found) else ()


def moment_of_place(place: str) -> Moment | None:
    """Of `.../LAB/success/DATE/Fri_Jul__7_09:42:23_2023/...`; None: it is no such path."""
    found = _PLACE.search(place)
    return None if found is None else _moment(found[1], re.sub("_+", "_", found[2]), "%a_%b_%d_%H:%M:%S_%Y")


def moment_of_uuid(uuid: str) -> Moment | None:
    """Of `LAB+USER+2023-07-07-09h-42m-23s`; None: it is none."""
    found = _UUID.fullmatch(uuid)
    return None if found is None else _moment(found[1], found[2], "%Y-%m-%d-%Hh-%Mm-%Ss")


def _moment(lab: str, text: str, form: str) -> Moment | None:
    try:
        return lab, datetime.strptime(text, form)
    except ValueError:
        return None
