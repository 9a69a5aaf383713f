"""Selections to test with."""

import errno
import os

import numpy as np
import pyarrow as pa
import pytest

from gradmimic.curate import Selection
from gradmimic.errors import DataError

ODD = ["'; DROP TABLE x; --", "a\nb", 'say "hi"', "ä\u2028ö", "日本"]


def make(ids, keep, scores=None):
    """A selection of sorted ids."""
    n = len(ids)
    kind = pa.string() if n and type(ids[0]) is str else pa.int64()
    return Selection(
        pa.table(
            {
                "sample_id": pa.array(ids, kind),
                "keep": pa.array(keep, pa.bool_()),
                "p_clean": pa.array([float(k) for k in keep], pa.float64()),
                "score": pa.array(np.linspace(0, 1, n) if scores is None else scores, pa.float64()),
                "visits": pa.array([2] * n, pa.int64()),
                "reason": pa.array(["kept: so" if k else "removed: so" for k in keep], pa.string()),
            }
        )
    )


def rows(selection, *columns):
    """Rows as tuples."""
    lists = [selection.table[name].to_pylist() for name in columns]
    return list(zip(*lists, strict=True))


def check_full_disk(export, path, monkeypatch):
    """An export on a full disk raises, and leaves what was there and nothing else.

    Once the disk is full at the end, and once after the first bytes, where the platform can say so.
    """
    path.write_text("old")
    before = sorted(path.parent.iterdir())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"cannot write .*: .*No space.* then export again"):
            export(path)
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*: .*too large.* then export again"):
            export(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.parent.iterdir()) == before
    assert path.read_text() == "old"
