"""Instructions in JSON: a line for each, or one list of all."""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from gradmimic.atomic import atomic_write
from gradmimic.data.instructions.reasons import LONG_LINE, MAX_LINE, NO_OBJECT
from gradmimic.data.instructions.source import InstructionSource, Masks, Row
from gradmimic.data.pairs.place import Place
from gradmimic.errors import DataError


class LineSource(InstructionSource):
    """Files of JSON lines; blank lines are no rows."""

    kept_name = "kept.jsonl"

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._place, self.parts = name, place, place.stems()

    def rows(self, part: int) -> Iterator[Row]:
        """Yield the objects of a file."""
        with self._place.open(self._place.paths[part]) as file:
            for line in _lines(file):
                yield _row(line)

    def write(self, path: Path, keep: Masks) -> None:
        """Copy lines, byte for byte."""
        with atomic_write(path) as out:
            for source, mask in zip(self._place.paths, keep, strict=True):
                with self._place.open(source) as file:
                    for line, wanted in zip_longest(_lines(file), mask.tolist()):
                        if wanted and line is not None:
                            out.write(line if line.endswith(b"\n") else line + b"\n")


class ListSource(InstructionSource):
    """Files that hold one list of objects each; one of them is in memory at a time."""

    kept_name = "kept.json"

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._place, self.parts = name, place, place.stems()

    def rows(self, part: int) -> Iterator[Row]:
        """Yield the objects of a file."""
        for each in self._items(part):
            yield each if isinstance(each, dict) else NO_OBJECT

    def write(self, path: Path, keep: Masks) -> None:
        """Write one list of all objects that are kept."""
        found = [
            each
            for part, mask in enumerate(keep)
            if mask.any()
            for each, wanted in zip(self._items(part), mask.tolist(), strict=False)
            if wanted
        ]
        try:
            content = json.dumps(found, indent=2, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a character, which JSON can spell and UTF-8 cannot
            content = json.dumps(found, indent=2).encode()
        with atomic_write(path) as out:
            out.write(content)

    def _items(self, part: int) -> list[Any]:
        path = self._place.paths[part]
        with self._place.open(path) as file:
            try:
                found = json.load(file)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} is no JSON: {error}") from error
        if not isinstance(found, list):
            raise DataError(f"{path} holds {type(found).__name__}; expected a list of objects.")
        return found


def holds_list(place: Place) -> bool:
    """Tell whether the first file is one list, by its first byte that is not blank."""
    with place.open(place.paths[0]) as file:
        begin = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return begin.startswith(b"[")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines that are not blank; of one that is too long, no more than its beginning."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        if line.strip():
            yield line


def _row(line: bytes) -> Row:
    if len(line) > MAX_LINE:
        return LONG_LINE
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return NO_OBJECT
    return row if isinstance(row, dict) else NO_OBJECT
