"""The folder of ``gradmimic score``: what may be continued, what is refused, and what is done.

log/              the scores; log/run.json says of what data, weights and settings they are
labels.parquet    every sample's given class, of data with labels
shards/           what became of the samples of each shard, of pairs; census.json is their sum
log/.done-1-of-2  process 1 of 2 has nothing left to do; gone once all have not
log/.at-work-1    when process 1 last showed that it is alive
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.data import Samples
from gradmimic.errors import ConfigError, LogError
from gradmimic.log_reader import RUN_FILE, LogReader, part_numbers, read_part
from gradmimic.run.job import OUTPUTS
from gradmimic.run.place import Place, wait_for
from gradmimic.separation import Area, separation
from gradmimic.units import EVENT

_FILES = ("labels.parquet", "census.json", "duplicates.npy", "absent.json")
_FOLDERS = ("log", "shards")
_DIGESTS = ("data", "checkpoints", "reference", "reference towers")
_JUDGED = 1_000_000  # rows of a log, at least
_SAMPLED = 4096  # rows of the inputs


def check_free(out: Path, place: Place, *, overwrite: bool) -> None:
    """Refuse a folder that holds something else, before any work.

    Raises:
        ConfigError: it does, or several processes are to overwrite it.
    """
    foreign = [
        name for name in OUTPUTS if name not in (*_FOLDERS, *_FILES) and (out / name).exists()
    ]
    if foreign:
        raise ConfigError(f"{out} holds a training run ({foreign[0]}). Give another --out.")
    if overwrite and place.processes > 1:
        raise ConfigError(
            f"overwrite is given to {place.processes} processes: one would remove what another has "
            f"just written. Remove {out} first, and leave overwrite out."
        )
    if not overwrite and _has_log(out):
        _said(out)


def open_folder(out: Path, told: Mapping[str, Any], place: Place, *, overwrite: bool) -> None:
    """Make the folder, or see that what it holds is of the same work.

    Args:
        out: the folder.
        told: everything that decides the scores.
        place: which process this is; all but the first wait for its log.
        overwrite: remove what is there.

    Raises:
        ConfigError: the folder holds scores of other data, weights or settings, or cannot be made.
        UsageError: the first process did not begin.
    """
    log = out / "log"
    try:
        if overwrite:
            for name in _FOLDERS:
                shutil.rmtree(out / name, ignore_errors=True)
            for name in _FILES:
                (out / name).unlink(missing_ok=True)
        log.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Cannot write to the output folder {out}: {error}") from error
    if place.rank > 0:
        wait_for(
            lambda: _has_begun(log),
            lambda: None,
            f"process {place.rank} of {place.processes} waits for process 0, which has not opened "
            f"{log}. Start all processes, with torchrun for example.",
        )
    if not _has_log(out):
        return
    said = _said(out)
    changed = [key for key, value in told.items() if said.get(key) != value]
    if changed:
        what = ", ".join(
            f"other {key}" if key in _DIGESTS else f"{key} {said.get(key)} instead of {told[key]}"
            for key in changed
        )
        raise ConfigError(
            f"{out} holds scores of another run: {what}. Give another --out, or --overwrite."
        )
    if place.rank == 0:
        _tidy(log, place)


def finish(out: Path, place: Place) -> bool:
    """Tell the other processes that this one is done; in the first, wait until all are.

    Returns:
        Whether this is the first process, which has the last word.

    Raises:
        UsageError: another process stopped before it was done.
    """
    if place.rank > 0:
        _mark(out, place.rank, place).touch()
        return False
    others = [_mark(out, rank, place) for rank in range(1, place.processes)]

    def missing() -> list[str]:
        return [str(rank) for rank, mark in enumerate(others, 1) if not mark.exists()]

    wait_for(
        lambda: not missing(),
        lambda: signs_of_life(out),
        f"process 0 is done, but of {place.processes} processes some are not, and write nothing "
        "any more. Start the same command again: what is done is kept.",
    )
    for pattern in (".done-*", ".at-work-*"):  # those of a killed run too
        for mark in (out / "log").glob(pattern):
            mark.unlink(missing_ok=True)
    return True


def beat(out: Path, place: Place) -> None:
    """Show the other processes that this one is at work, where it may write nothing for long."""
    (out / "log" / f".at-work-{place.rank}").touch()


def signs_of_life(out: Path) -> object:
    """Return a value that is another one as long as a process is at work."""
    entries = list((out / "log").iterdir())
    beats = [entry for entry in entries if entry.name.startswith(".at-work-")]
    return len(entries), [file.stat().st_mtime_ns for file in beats]


def said_before(out: Path) -> dict[str, Any]:
    """Return what the folder's log says that it is of; nothing where there is none."""
    return _said(out) if _has_log(out) else {}


@contextmanager
def telling_of_disk(out: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Say what to do where the disk is full or gone.

    Args:
        out: the folder.
        kinds: errors, beside the log's and the system's own, that writing to it may end in.

    Raises:
        LogError: the folder cannot be written to.
    """
    caught: tuple[type[Exception], ...] = (LogError, OSError, *kinds)
    try:
        yield
    except caught as error:
        disk = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(disk, OSError):
            raise
        raise LogError(
            f"cannot write to {out}: {disk}. What was scored before is kept: make room, and start "
            "the same command again."
        ) from error


def count_rows(log: Path) -> tuple[int, int]:
    """Return the number of visits of samples, and of canaries, by the mimic score."""
    rows = canaries = 0
    for part in LogReader(log).parts:
        table = read_part(part, ["scorer", "canary"])
        column = table.filter(pc.field("scorer") == "mimic")["canary"]
        canaries += len(column) - column.null_count
        rows += column.null_count
    return rows, canaries


def tell_apart(log: Path) -> dict[str, Area]:
    """Return how well each scorer tells samples from canaries, by the first visits in the log.

    Returns:
        By scorer, the AUROC: 1 is perfect, 0.5 is chance. Scorers without canaries are left out.
    """
    tables, rows = [], 0
    for part in LogReader(log).parts:
        tables.append(read_part(part, ["scorer", "canary", "score"]))
        if (rows := rows + len(tables[-1])) >= _JUDGED:
            break
    if not tables:
        return {}
    table, found = pa.concat_tables(tables), {}
    for scorer in table["scorer"].unique().to_pylist():
        own = table.filter(pc.field("scorer") == scorer)
        good = own.filter(pc.field("canary").is_null())["score"].to_numpy()
        bad = own.filter(pc.field("canary").is_valid())["score"].to_numpy()
        if len(good) and len(bad):
            found[scorer] = separation(good, bad)
    return found


def digest_samples(samples: Samples) -> str:
    """Return a name for a data set: all labels and ids, and rows of the inputs, evenly spread.

    Of more than 4,096 samples not all inputs are looked at: they may be larger than memory.
    """
    told = hashlib.blake2b(digest_size=16)
    told.update(f"{samples.classes} {samples.inputs.shape} {samples.inputs.dtype}".encode())
    told.update(samples.labels.tobytes())
    told.update("\n".join(map(str, samples.ids.tolist())).encode())
    n = len(samples)
    for row in np.unique(np.linspace(0, n - 1, min(n, _SAMPLED)).astype(np.int64)):
        told.update(np.ascontiguousarray(samples.inputs[row]).tobytes())
    return told.hexdigest()


def digest_file(path: str) -> str:
    """Return a name for the content of a file."""
    told = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            told.update(block)
    return told.hexdigest()


def _has_log(out: Path) -> bool:
    return (out / "log" / RUN_FILE).exists() or any((out / "log").glob("part-*.parquet"))


def _has_begun(log: Path) -> bool:
    """Tell whether the first process has said what the log is of, before anybody adds to it."""
    there = (log / RUN_FILE).exists()
    return there and any(event["event"] == EVENT for event in LogReader(log).events)


def _said(out: Path) -> dict[str, Any]:
    """Return what the log says that it is of."""
    try:
        said = (LogReader(out / "log").run["config"] or {}).get("score")
    except LogError as error:
        raise ConfigError(f"{error} Give another --out, or --overwrite.") from error
    if not isinstance(said, dict):
        raise ConfigError(
            f"{out / 'log'} is a score log, but not of gradmimic score. Give another --out, or "
            "--overwrite."
        )
    return said


def _tidy(log: Path, place: Place) -> None:
    """Remove what killed processes left half-written whose ranks nobody has any more."""
    for leftover in log.glob(".part-*.parquet.tmp"):
        numbers = part_numbers(leftover.with_name(leftover.name[1:].removesuffix(".tmp")))
        if numbers and numbers[0] >= place.processes:
            leftover.unlink(missing_ok=True)


def _mark(out: Path, rank: int, place: Place) -> Path:
    return out / "log" / f".done-{rank}-of-{place.processes}"
