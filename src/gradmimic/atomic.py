"""A file appears whole or not at all: temporary name in the same folder, fsync, rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_name(path: Path) -> Path:
    """Return the hidden name that ``path`` has while it is being written."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, alone: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only once it is complete and on disk.

    Readers see the old file or the new one, never a part of either. When the block raises, or the
    disk is full, the temporary file is removed and whatever stood under ``path`` stays.

    Args:
        path: the file's final name; its folder must exist.
        alone: raise where another process writes this file too, rather than let the last one win.

    Yields:
        The file, open in binary mode.

    Raises:
        OSError: the folder or the disk does not take the file.
        FileExistsError: ``alone``, and somebody else wrote it, or is writing it.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(target) as file:
        ...     _ = file.write(b"whole")
        ...     target.exists()
        False
        >>> target.read_bytes()
        b'whole'
    """
    target = Path(path)
    temporary = temporary_name(target)
    file = temporary.open("xb" if alone else "wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if alone and _claimed(temporary, target):
            temporary.unlink()
        else:
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _claimed(temporary: Path, target: Path) -> bool:
    """Link a file to a name that nobody has yet; return False where the disk knows no links."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError) as error:
        if target.exists():
            raise FileExistsError(target) from error
        return False
    return True
