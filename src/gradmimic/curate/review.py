r"""What a person decided in the report, read back and put over a selection.

    keep_i = decision_i where sample i was reviewed, else keep_i

The file is JSON lines, as the report's gallery exports them, or written by hand:

    {"gradmimic_review": 1, "run": "digits", "log": "5f0c1d7e9a3b2c48"}
    {"sample_id": 12, "decision": "keep", "label": "seven"}
    {"sample_id": 40, "decision": "remove"}

A first line like this one names the log whose samples were looked at, and is compared; without it
the decisions are taken for any log that has these samples. ``label`` is the class that a kept
sample should have instead of the one it was given. Files of several people may be joined.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate.by_id import as_id_array
from gradmimic.curate.rows import NAMES, schema, some
from gradmimic.curate.selection import Selection
from gradmimic.errors import DataError, listed
from gradmimic.log_reader import RUN_FILE, LogReader

FORMAT = 1
_KEEP = {"keep": True, "remove": False}
_HEAD, _LINE = ("gradmimic_review", "run", "log"), ("sample_id", "decision", "label")
_EXAMPLE = '{"sample_id": 12, "decision": "keep"}'


@dataclass(frozen=True)
class Review:
    """Decisions on single samples, and the labels that go with them.

    Args:
        decisions: for each reviewed sample, by its id, ``"keep"`` or ``"remove"``.
        labels: for some of those kept, the name of the class that they should have.
        log: the key of the log whose samples were looked at; None where nobody said.
        run: the name of its run, for people.
        source: where this comes from, for messages.

    Raises:
        DataError: ids of two kinds, another decision than those two, or a label of a sample that
            is not kept.

    Example:
        >>> Review({3: "keep", 5: "remove"}, labels={3: "seven"}).decisions[5]
        'remove'
    """

    decisions: Mapping[Any, Literal["keep", "remove"]]
    labels: Mapping[Any, str] = field(default_factory=dict)
    log: str | None = None
    run: str | None = None
    source: str = "the review"

    def __post_init__(self) -> None:
        for sample_id, decision in self.decisions.items():
            if not isinstance(decision, str) or decision not in _KEEP:
                raise DataError(
                    f"{self.source} decides {decision!r} on sample {sample_id!r}; expected 'keep' "
                    "or 'remove'."
                )
        for sample_id, label in self.labels.items():
            if self.decisions.get(sample_id) != "keep" or not isinstance(label, str):
                raise DataError(
                    f"{self.source} gives sample {sample_id!r} the label {label!r}; expected the "
                    "name of a class, for a sample whose decision is 'keep'."
                )
        try:
            as_id_array(list(self.decisions))
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from error


def read_review(path: str | os.PathLike[str]) -> Review:
    """Read the decisions that the report's gallery exported.

    Args:
        path: the file of JSON lines.

    Returns:
        The decisions, in the order of the file.

    Raises:
        DataError: the file cannot be read, a line is damaged or says something else, a sample
            comes with two decisions, or its parts come from different logs.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "review.jsonl"
        >>> _ = path.write_text('{"sample_id": 12, "decision": "keep", "label": "seven"}')
        >>> read_review(path).labels
        {12: 'seven'}
    """
    decisions: dict[Any, Any] = {}
    labels: dict[Any, str] = {}
    first: dict[Any, int] = {}  # the line of each sample
    head: dict[str, Any] = {}
    for number, entry in _lines(Path(path)):
        where = f"{path}, line {number}"
        if "gradmimic_review" in entry:
            head = _merged(head, entry, where)
            continue
        _check(entry, _LINE, where)
        sample_id, said = entry["sample_id"], (entry["decision"], entry.get("label"))
        before = (decisions.get(sample_id), labels.get(sample_id))
        if sample_id in first and before != said:
            raise DataError(
                f"{where} says {_said(*said)} of sample {sample_id!r}, but line {first[sample_id]} "
                f"says {_said(*before)}. Remove one of the two lines."
            )
        first.setdefault(sample_id, number)
        decisions[sample_id] = said[0]
        if said[1] is not None:
            labels[sample_id] = said[1]
    return Review(decisions, labels, head.get("log"), head.get("run"), str(path))


def reviewed(
    selection: Selection, review: Review | Mapping[Any, Any] | str | os.PathLike[str]
) -> Selection:
    """Put a person's decisions over those of a selection; they win.

    Args:
        selection: any; one in a file is read into memory.
        review: the path of a file that the report exported, what ``read_review`` returned, or a
            mapping from id to ``"keep"`` or ``"remove"``.

    Returns:
        The same rows, with ``keep`` as decided, and reasons ``kept by review (…)`` and
        ``removed by review (…)`` that hold the earlier one.

    Raises:
        DataError: the review cannot be read, or names samples that the selection does not have.

    Example:
        >>> scores = Selection.from_scores(["a", "b"], [0.9, 0.1]).above(0.5)
        >>> decided = reviewed(scores, {"b": "keep"})
        >>> decided.kept.tolist(), decided.table["reason"][1].as_py()
        (['a', 'b'], 'kept by review (removed: the score is below 0.5)')
    """
    batches = reviewed_batches(selection, as_review(review))
    return Selection(pa.Table.from_batches(batches, schema(selection.id_type)), selection.notes)


def as_review(review: Review | Mapping[Any, Any] | str | os.PathLike[str]) -> Review:
    """Return decisions in the one form they have here."""
    if isinstance(review, Review):
        return review
    return Review(review) if isinstance(review, Mapping) else read_review(review)


def reviewed_batches(selection: Selection, review: Review) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a selection piece by piece, as decided.

    Raises:
        DataError: after the last piece, where the review names samples that never came.
    """
    ids = as_id_array(list(review.decisions)).combine_chunks()
    if len(ids) and len(selection) and ids.type != selection.id_type:
        raise DataError(
            f"{review.source} names samples by {ids.type} ids such as {some(ids[:1])}, but this "
            f"selection has {selection.id_type} ids. Write them as the log has them."
        )
    ids = ids.cast(selection.id_type)  # nothing decided is of either type
    decided = pa.array([_KEEP[said] for said in review.decisions.values()], pa.bool_())
    found = np.zeros(len(ids), np.bool_)
    for batch in selection.batches():
        place = pc.index_in(batch["sample_id"], value_set=ids)  # [n], null where not reviewed
        found[place.drop_null().to_numpy()] = True
        keep = decided.take(place)
        columns = {name: batch[name] for name in NAMES}
        columns["keep"] = pc.coalesce(keep, batch["keep"])
        columns["reason"] = _reasons(batch["reason"], keep)
        yield pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)
    if not found.all():
        unknown = ids.filter(pa.array(~found))
        raise DataError(
            f"{review.source} decides on {len(unknown)} samples that are not in this selection: "
            f"{some(unknown)}. Is it the review of another run? If not, remove these lines."
        )


def check_log(review: Review, log: LogReader) -> None:
    """Refuse decisions on the samples of another log.

    Args:
        review: the decisions.
        log: what they are to be used with.

    Raises:
        DataError: the keys of the two differ.
    """
    key = log_key(log)
    if review.log is not None and key is not None and review.log != key:
        raise DataError(
            f"{review.source} was exported from the report of run {review.run!r} (log "
            f"{review.log}), but the log at {log.path} is {key}. Pass the file that was exported "
            "from this run's report. To use these decisions all the same, remove the first line."
        )


def log_key(log: LogReader) -> str | None:
    """Return what tells a log from others: of when it was begun, its seed and its configuration.

    Args:
        log: a score log.

    Returns:
        16 hexadecimal digits of a SHA-256; None where the log has no ``run.json``.

    Example:
        >>> import tempfile
        >>> from gradmimic.log import ScoreLog
        >>> with ScoreLog(tempfile.mkdtemp()) as log:
        ...     len(log_key(log))
        16
    """
    if not (log.path / RUN_FILE).exists():
        return None
    run = log.run
    told = json.dumps([run.get(name) for name in ("created", "seed", "config")], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file, and on which line each stands."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read a review from {path}: {error}. Pass the file that the report exported."
        ) from error


def _object(line: str, where: str) -> dict[str, Any]:
    """Parse one line."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is no JSON ({error}). It may be cut short: export the review again, or "
            "remove the line."
        ) from error
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {line.strip()[:80]}; expected an object such as {_EXAMPLE}.")
    return entry


def _check(entry: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    """Refuse a decision with other keys, or with values of other types."""
    missing = [name for name in names[:2] if name not in entry]
    unknown = [name for name in entry if name not in names]
    if missing or unknown:
        what = f"lacks {listed(missing)}" if missing else f"has the unknown key {unknown[0]!r}"
        raise DataError(f"{where} {what}; expected an object such as {_EXAMPLE}.")
    sample_id, decision, label = (entry.get(name) for name in names)
    if type(sample_id) not in (int, str):
        raise DataError(
            f"{where}: sample_id is {sample_id!r}; expected an integer or a string, as in the log."
        )
    if not isinstance(decision, str) or decision not in _KEEP:
        raise DataError(f"{where}: decision is {decision!r}; expected 'keep' or 'remove'.")
    if label is not None and (not isinstance(label, str) or decision != "keep"):
        raise DataError(
            f"{where}: label is {label!r} and decision {decision!r}; expected the name of a class, "
            "with the decision 'keep'."
        )


def _merged(head: dict[str, Any], entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a line that names the log, against those before it too."""
    if entry["gradmimic_review"] != FORMAT:
        raise DataError(
            f"{where} says that this is a review of version {entry['gradmimic_review']!r}, but "
            f"this gradmimic reads version {FORMAT}. Read it with the one that made the report."
        )
    for name in _HEAD[1:]:
        if not isinstance(entry.get(name), str):
            raise DataError(f"{where}: {name} is {entry.get(name)!r}; expected a string.")
    if head and head["log"] != entry["log"]:
        raise DataError(
            f"{where} begins decisions on run {entry['run']!r} (log {entry['log']}), but those "
            f"before it are on run {head['run']!r} (log {head['log']}). Keep them in two files."
        )
    return entry


def _said(decision: str | None, label: str | None) -> str:
    """Print a decision."""
    return repr(decision) + ("" if label is None else f" with label {label!r}")


def _reasons(before: pa.DictionaryArray, keep: pa.BooleanArray) -> pa.DictionaryArray:
    """Say what a person decided, and what had been said before."""
    texts = [*before.dictionary.to_pylist(), "for no reason that was given"]
    who = np.array(pc.fill_null(keep.cast(pa.int8()), 2))  # [n]: removed, kept, not reviewed
    at = pc.fill_null(before.indices, len(texts) - 1).to_numpy()  # [n]
    code = at.astype(np.int64) * 3 + who
    found, index = np.unique(code, return_inverse=True)
    verdict = ("removed by review ({})", "kept by review ({})", "{}")
    told = [verdict[number % 3].format(texts[number // 3]) for number in found.tolist()]
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(told, pa.string()))
