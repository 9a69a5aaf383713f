"""Metadata of a pool: Parquet files with a row per sample, as DataComp publishes them.

uid, url, text, original_width, original_height, clip_b32_similarity_score,
clip_l14_similarity_score, face_bboxes, sha256                  one file per shard, or per many

Only the columns that are used are read, and the engine reads them, so that any number of files and
rows do: from a disk, or from wherever fsspec reaches.
"""

import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gradmimic.errors import ConfigError, DataError, listed

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from gradmimic.curate.backends import Engine

Source: TypeAlias = str | os.PathLike[str]
Sources: TypeAlias = Source | Sequence[Source]


def open_metadata(engine: "Engine", sources: Sources) -> "ir.Table":
    """Return the rows of metadata, unread.

    Args:
        engine: where the plan runs.
        sources: Parquet files, folders of them, patterns with ``*``, or URLs of any of these.

    Raises:
        DataError: there is no such file, or it is no Parquet file.
    """
    listing = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    named = [os.fspath(source) for source in listing]
    local = [path for name in named if "://" not in name for path in _local(name)]
    remote = [name for name in named if "://" in name]
    if local and remote:
        raise ConfigError(
            "metadata come from paths or from URLs, not from both at once: "
            f"{listed(named)}. Write the paths as file:// URLs."
        )
    if not named:
        raise ConfigError("expected files of metadata, got none.")
    return engine.urls(remote) if remote else engine.parts(local)


def urls_of(pattern: str) -> tuple[Any, list[str]]:
    """Find the files behind a URL, with the fsspec file system that has them.

    Args:
        pattern: the URL of a file, a folder, or of files by a pattern.

    Raises:
        DataError: there are none, or the place cannot be reached.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(pattern)
        if any(letter in path for letter in "*?["):
            found = sorted(system.glob(path))
        elif system.isdir(path):
            found = sorted(name for name in system.find(path) if name.endswith(".parquet"))
        else:
            found = [path] if system.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot reach the metadata at {pattern}: {error}.") from error
    if not found:
        raise DataError(_none(pattern))
    return system, [system.unstrip_protocol(name) for name in found]


def _local(name: str) -> list[Path]:
    """Find the files of a path or a pattern."""
    path = Path(name)
    if path.is_dir():
        found = sorted(path.rglob("*.parquet"))
    elif path.exists():
        found = [path]
    else:
        found = [Path(one) for one in sorted(glob(name, recursive=True))]  # noqa: PTH207 - any depth
    if not found:
        raise DataError(_none(name))
    return found


def _none(name: str) -> str:
    """Say that there is no file."""
    return (
        f"there are no metadata at {name}. Pass Parquet files, a folder of them, or a pattern in "
        "quotes such as 'metadata/*.parquet'."
    )
