"""Files where they lie, on a disk or behind any URL that fsspec opens."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from gradmimic.data.pairs.reasons import MAX_BYTES, NO_FILE, TOO_LARGE
from gradmimic.errors import DataError
from gradmimic.extras import import_extra

_PATTERN = frozenset("*?[{")


@dataclass(frozen=True)
class Place:
    """Files of one file system, in the order they were named, or by name.

    Args:
        fs: fsspec's file system.
        paths: of the files there.
    """

    fs: Any
    paths: tuple[str, ...]

    @property
    def suffixes(self) -> set[str]:
        """Return the files' suffixes, in lower case; a URL may have a query behind its file."""
        names = (urlsplit(path).path if "://" in path else path for path in self.paths)
        return {posixpath.splitext(name)[1].lower() for name in names}

    def open(self, path: str) -> BinaryIO:
        """Open a file; what that raises is the file system's own."""
        file: BinaryIO = self.fs.open(path, "rb")
        return file

    def read(self, path: str, most: int = MAX_BYTES) -> bytes | str:
        """Return the content of a plain file of at most so many bytes, or why there is none."""
        try:
            about = self.fs.info(path)
            if about["type"] != "file":
                return NO_FILE
            if (about["size"] or 0) > most:
                return TOO_LARGE
            with self.open(path) as file:
                return file.read()
        except Exception:  # whatever the file system raises
            return NO_FILE

    def names(self) -> list[str]:
        """Name the files, without the folder that they share.

        Example:
            >>> Place(None, ("http://h/a/b/0.tar", "http://h/a/c/0.tar")).names()
            ['b/0.tar', 'c/0.tar']
        """
        parts = [path.split("/") for path in self.paths]
        folders = [own[:-1] for own in parts]
        together = zip(min(folders), max(folders), strict=False)
        shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], together))
        return ["/".join(own[shared:]) for own in parts]

    def stems(self) -> list[str]:
        """Name the files, without their suffixes where that tells them apart."""
        names = self.names()
        stems = [posixpath.splitext(name)[0] for name in names]
        return stems if len(set(stems)) == len(names) else names


def find(data: str, kinds: Sequence[Sequence[str]], what: str = "pairs") -> Place:
    """Find the files that a path, a pattern, a folder or a URL means.

    Args:
        data: a file; a pattern with ``{0000..0099}`` or ``*``; or a folder, with all its folders.
        kinds: the suffixes of each kind of file wanted in a folder; the first kind of which there
            is any there decides.
        what: the data are, for messages.

    Returns:
        The files. Those that are named one by one, or in braces, need not exist.

    Raises:
        DataError: nothing is there, or no library opens such URLs.
    """
    fs, path = _file_system(data)
    expanded = _expand(path)
    paths: list[str] = []
    for each in expanded:
        # Every question to a remote disk costs, and there may be thousands of shards.
        sole = len(expanded) == 1
        if _PATTERN & set(each) and not (sole and fs.exists(each)):
            found = sorted(fs.glob(each))
            if not found:
                raise DataError(f"no file matches {each} in {data}; check the pattern")
            paths += found
        elif (sole or not posixpath.splitext(each)[1]) and fs.isdir(each):
            paths += _folder(fs, each, kinds, f"the folder {data} holds no {what}")
        else:
            paths.append(each)
    if len(paths) == 1 and not fs.exists(paths[0]):
        raise DataError(f"no file or folder {data}; check the path")
    return Place(fs, tuple(dict.fromkeys(paths)))


def is_saved(data: str) -> bool:
    """Tell whether this is a folder that Hugging Face's ``save_to_disk`` wrote."""
    fs, path = _file_system(data)
    marks = ("state.json", "dataset_dict.json")
    return not _PATTERN & set(path) and any(fs.exists(f"{path}/{mark}") for mark in marks)


def _file_system(data: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(data)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"cannot open {data}: {error}. Give a path, or a URL of a kind that fsspec knows and "
            "has the library for."
        ) from error
    return fs, str(path)


def _expand(path: str) -> list[str]:
    """Expand braces, as webdataset does."""
    if "{" not in path:
        return [path]
    return list(import_extra("braceexpand", "webdataset").braceexpand(path))


def _folder(fs: Any, folder: str, kinds: Sequence[Sequence[str]], problem: str) -> list[str]:
    """List the files of a folder that are of the first kind of which there are any."""
    files = sorted(path for path in fs.find(folder) if not _hidden(path[len(folder) :]))
    for suffixes in kinds:
        found = [path for path in files if path.lower().endswith(tuple(suffixes))]
        if found:
            return found
    wanted = ", ".join(suffix for suffixes in kinds for suffix in suffixes)
    raise DataError(f"{problem}: no file among {len(files)} ends in {wanted}")


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
