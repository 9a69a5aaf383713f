"""What reading a shard gives, item by item, until its end.

Record | Dropped, …, End        every sample once, as it is or with the reason it is left out
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradmimic.data.pairs.reasons import (
    BAD_TEXT,
    EMPTY_CAPTION,
    LONG_CAPTION,
    MAX_CAPTION,
    MAX_NAME,
    NO_CAPTION,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot


@dataclass(frozen=True)
class Record:
    """A sample whose picture is still encoded.

    Args:
        key: its name inside the shard, for messages.
        sample_id: its id, unique in its shard.
        image: the picture's file content.
        texts: its captions, at least one, without outer blanks.
        meta: what else is known of it.
    """

    key: str
    sample_id: str
    image: bytes
    texts: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A picture with its caption.

    Args:
        sample_id: unique in its shard.
        image: the picture, upright, in RGB.
        text: the caption; the first where there are several.
        texts: all captions.
        meta: what else is known of it.
    """

    sample_id: str
    image: Image
    text: str
    texts: tuple[str, ...]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A sample that is left out: its name in the shard, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class End:
    """The end of a shard, always its last item.

    Args:
        ignored: files that belong to no sample.
        fault: why the shard was not read to its end; empty where it was.
        detail: what the library said of it.
        total: how many samples it should have held, where that is known.
    """

    ignored: int = 0
    fault: str = ""
    detail: str = ""
    total: int | None = None


def as_id(value: object) -> str | None:
    """Return a usable sample id as a string, None where it is none.

    Example:
        >>> [as_id(value) for value in ("a", 7, "", None, 0.5, True)]
        ['a', '7', None, None, None, None]
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if -(1 << 63) <= value < 1 << 63 else None
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME and not _SURROGATE.search(value):
        return value
    return None


def as_texts(captions: Iterable[object]) -> tuple[str, ...] | str:
    """Return the usable ones of a sample's captions, or why there are none.

    Example:
        >>> as_texts([" a dog ", ""]), as_texts(["", None])
        (('a dog',), 'the caption is empty')
    """
    usable: list[str] = []
    reasons: list[str] = []
    for caption in captions:
        if caption is None:
            continue
        text, reason = _as_text(caption)
        (reasons if reason else usable).append(reason or text)
    return tuple(usable) or (reasons[0] if reasons else NO_CAPTION)


def _as_text(caption: object) -> tuple[str, str]:
    """Return a caption, and the reason where it cannot be used."""
    if isinstance(caption, bytes):
        if len(caption) > 4 * MAX_CAPTION:  # bytes of a character
            return "", LONG_CAPTION
        try:
            caption = caption.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "", BAD_TEXT
    if not isinstance(caption, str) or _SURROGATE.search(caption):
        return "", BAD_TEXT
    if len(caption) > MAX_CAPTION:
        return "", LONG_CAPTION
    text = caption.strip()
    return text, "" if text else EMPTY_CAPTION
