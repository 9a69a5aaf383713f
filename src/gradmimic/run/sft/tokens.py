"""Scores of tokens: which words of a response pull toward the reference, and which away.

    m_{i,t} = −dℓ_{i,t}/dε / ‖v‖          along v, of every token that counts
    m_i     = Σ_t m_{i,t} / n_i           exactly: a derivative is linear

They come from the pass that scores the samples. While that goes on they are appended to a journal,
batch by batch, so memory holds one batch at a time, and a run that was killed goes on where it was;
at the end the journal becomes one Parquet file.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from gradmimic.atomic import atomic_write
from gradmimic.run.sft.batch import SftBatch
from gradmimic.token_losses import IGNORED
from gradmimic.visit import Scores

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
    ]
)
_JOURNAL = SCHEMA.insert(0, pa.field("unit", pa.int64()))
_ROWS = 4096  # of a row group, at most


class Pieces:
    """Turn tokens into the text that each adds; remembers every one it has met.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Example:
        >>> from types import SimpleNamespace
        >>> words = {4: "a", 5: " b"}
        >>> decode = lambda ids, **_: "".join(words[own] for own in ids)
        >>> Pieces(SimpleNamespace(decode=decode, all_special_ids=[]))([4, 5, 5])
        ['a', ' b', ' b']
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each; a part of a character is shown as �."""
        return [self._known[own] if own in self._known else self._learn(own) for own in ids]

    def _learn(self, own: int) -> str:
        # Alone, or as the first one, a token may lose the blank it begins with: so it comes second.
        alone, both = self._decode([own]), self._decode([own, own])
        piece = both[len(alone) :] if both.startswith(alone) else alone
        self._known[own] = piece if piece else alone
        return self._known[own]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


class TokenJournal:
    """Appends the scores of tokens to a file of its own, one record a batch.

    A part that a kill cut off is left out when the journal is read; the unit it was of was not
    logged either, and is scored again.

    Args:
        folder: where the files of all sessions are.
        pieces: turns tokens into text.
        rank: this process's.

    Raises:
        OSError: the folder or the disk does not take the file.
    """

    def __init__(self, folder: Path, pieces: Pieces, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        session = 1 + max((_session(own) for own in folder.glob("*.arrows")), default=0)
        self._pieces = pieces
        self._file = pa.OSFile(str(folder / f"{session:06}-{rank:05}.arrows"), "wb")
        self._stream = pa.ipc.new_stream(self._file, _JOURNAL)

    def add(self, unit: int, batch: SftBatch, scores: list[Scores]) -> None:
        """Append a batch's; what ``score_units`` calls as ``on_scored``.

        Args:
            unit: the number of its unit.
            batch: b samples first.
            scores: with those of tokens ``[b, t − 1]`` among them.
        """
        (each,) = (own.tokens.float().cpu() for own in scores if own.tokens is not None)
        labels = batch.labels[: len(batch.ids), 1:].cpu()  # the logits at t are of the token t + 1
        counted = labels != IGNORED  # [b, t − 1]
        pieces = [
            self._pieces(own[here].tolist()) for own, here in zip(labels, counted, strict=True)
        ]
        found = [own[here].tolist() for own, here in zip(each, counted, strict=True)]
        columns = [[unit] * len(batch.ids), list(batch.ids), pieces, found]
        arrays = [pa.array(own, kind.type) for own, kind in zip(columns, _JOURNAL, strict=True)]
        self._stream.write_batch(pa.record_batch(arrays, schema=_JOURNAL))

    def close(self) -> None:
        """End the file."""
        try:
            self._stream.close()
        finally:
            self._file.close()


def merge(folder: Path, path: Path) -> int:
    """Write all that was journaled as one Parquet file, whole or not at all; each unit once.

    Args:
        folder: of :class:`TokenJournal`, closed or cut off.
        path: the file: ``sample_id``, ``tokens`` and ``scores``, a list of each per sample.

    Returns:
        How many samples are in it.

    Raises:
        OSError: the disk does not take the file.
    """
    rows = 0
    with atomic_write(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in _batches(folder):
            waiting.append(batch)
            rows += batch.num_rows
            if sum(own.num_rows for own in waiting) >= _ROWS:
                writer.write_table(pa.Table.from_batches(waiting, SCHEMA))
                waiting = []
        writer.write_table(pa.Table.from_batches(waiting, SCHEMA))
    return rows


def token_scores(path: Path, wanted: Iterable[str]) -> dict[str, list[tuple[str, float]]]:
    """Look up the tokens of some samples with their scores.

    Args:
        path: of :func:`merge`.
        wanted: ids.

    Returns:
        For each id that is there its tokens in order, with their scores; higher is better.
    """
    ids = pa.array(list(wanted), pa.string())
    table = ds.dataset(path).to_table(filter=pc.field("sample_id").isin(ids))
    return {
        row["sample_id"]: list(zip(row["tokens"], row["scores"], strict=True))
        for row in table.to_pylist()
    }


def _batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield every unit as the last session left it: earlier ones may hold a part of one."""
    later: set[int] = set()
    sessions: dict[int, list[Path]] = {}
    for path in folder.glob("*.arrows"):
        sessions.setdefault(_session(path), []).append(path)
    for _, paths in sorted(sessions.items(), reverse=True):
        own: set[int] = set()
        for path in sorted(paths):
            for batch in _read(path):
                units = set(batch["unit"].to_pylist())
                if not units & later:
                    own |= units
                    yield batch.select(SCHEMA.names)
        later |= own


def _read(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the records of one file up to where it was cut off."""
    with pa.OSFile(str(path)) as file:
        try:
            yield from pa.ipc.open_stream(file)
        except pa.ArrowInvalid:  # the rest is not there
            return
        except OSError as error:
            if error.errno is not None:  # the disk's, not Arrow's own of a message cut off
                raise


def _session(path: Path) -> int:
    return int(path.stem.split("-")[0])
