"""A tar archive as web shards use it: files that stand together under one key are a sample.

    000/7.jpg, 000/7.txt, 000/7.json  →  key 000/7, suffixes jpg, txt and json

Keys and suffixes are webdataset's. The archive is walked here, since webdataset takes a damaged
header for the end, passes over links, and stops at a name that comes twice, all without a word;
then what was read could not add up to what there is. Nothing is ever written to disk.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from gradmimic.data.pairs.reasons import (
    CUT,
    DAMAGED,
    MAX_NAME,
    NO_ARCHIVE,
    NOT_A_FILE,
    TOO_LARGE,
    UNSAFE_NAME,
)
from gradmimic.data.pairs.sample import End
from gradmimic.extras import import_extra

_LONG_HEADER = 1 << 16  # bytes; a header of a header is read whole, whatever size it claims
_LONG = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_LONG)


@dataclass
class Group:
    """The files of one key, those that were asked for by their content.

    Args:
        key: the name they share.
        files: content by suffix.
        suffixes: of all files, read or not.
        fault: why they can be no sample.
        cut: whether reading failed behind them, so that others may be missing.
    """

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    fault: str = ""
    cut: bool = False


def read_groups(file: BinaryIO, wanted: Mapping[str, int]) -> Iterator[Group | End]:
    """Yield the groups of an archive in order, then its end.

    Args:
        file: the archive; it is never searched backwards.
        wanted: suffixes that make a sample, and the bytes that their files may have; files of
            those with 0 are noticed and not read.

    Yields:
        One group per run of files of one key; a suffix that comes again begins another one.
    """
    split = import_extra("webdataset.tariterators", "webdataset").base_plus_ext
    group, ignored, ended = Group(""), 0, False
    detail, started = "", False
    try:
        # A file that can be searched is walked from header to header, another is read through.
        with _Archive.open(fileobj=file, mode="r:" if file.seekable() else "r|") as archive:
            for member in archive:
                archive.members = []  # it would remember every header
                started = True
                if member.isdir():
                    continue
                name = member.name.removeprefix("./")
                key, suffix = (None, "") if _hidden(name) else split(name)
                if key is None:
                    ignored += 1
                    continue
                suffix = suffix.lower()
                if key != group.key or suffix in group.suffixes:
                    if group.suffixes & wanted.keys():
                        yield group
                    else:
                        ignored += len(group.suffixes)
                    group = Group(key)
                group.suffixes.add(suffix)
                if suffix in wanted:
                    group.fault = group.fault or _fault(member, name, wanted[suffix])
                    if wanted[suffix] and not group.fault:
                        group.fault = CUT  # until it has been read
                        content = archive.extractfile(member)
                        group.files[suffix] = content.read() if content else b""
                        group.fault = ""
            ended = archive.ended
    # What a file system or a damaged archive raises is open-ended, and may end this shard only.
    except Exception as error:
        detail = str(error) or type(error).__name__
    group.cut = not ended
    if group.suffixes & wanted.keys():
        yield group
    else:
        ignored += len(group.suffixes)
    fault = "" if ended else DAMAGED if started else NO_ARCHIVE
    yield End(ignored, fault, "" if ended else detail or "no end mark")


def _hidden(name: str) -> bool:
    """Tell whether a file is hidden, as those that macOS adds are."""
    parts = name.split("/")
    return "__MACOSX" in parts or any(p.startswith(".") and p not in {".", ".."} for p in parts)


def _fault(member: tarfile.TarInfo, name: str, most: int) -> str:
    """Say why a file cannot belong to a sample."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or len(name) > MAX_NAME or not name.isprintable():
        return UNSAFE_NAME  # bytes that are no UTF-8 come as surrogates, which are not printable
    if not member.isreg() or member.issparse():
        return NOT_A_FILE
    return TOO_LARGE if 0 < most < member.size else ""


class _Header(tarfile.TarInfo):
    """A header that is not trusted with its own length, and tells the archive of the end mark."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> "_Header":
        try:
            return super().fromtarfile(tarfile)
        except _END:
            tarfile.ended = True
            raise

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type in _HEADERS and header.size > _LONG_HEADER:
            raise tarfile.HeaderError(f"a name of {header.size} bytes")
        return header


class _Archive(tarfile.TarFile):
    """An archive that knows whether it was read up to its end mark."""

    tarinfo = _Header
    members: list[tarfile.TarInfo]
    ended = False


_END: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
