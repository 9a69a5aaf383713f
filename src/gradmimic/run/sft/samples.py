"""All samples of a data set as tokens, in memory: about five bytes a token.

They are read once before anything is scored, so that what cannot be used is known, batches can be
put together by length, and a canary can be given the response of any other sample.
"""

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradmimic.data.instructions import Instruction, InstructionSource, as_instruction
from gradmimic.data.instructions.reasons import DAMAGED, NO_ID, REPEATED
from gradmimic.data.instructions.shapes import SHAPES
from gradmimic.data.pairs import Census, ShardCensus
from gradmimic.data.pairs.census import plain
from gradmimic.data.pairs.sample import End, as_id
from gradmimic.errors import DataError, GradMimicError
from gradmimic.run.sft.encode import Encoder, Tokens


@dataclass(frozen=True, eq=False)
class Sequences:
    """Token sequences of different lengths, one behind the other.

    Args:
        ids: ``[n]`` sample ids.
        starts: ``[n + 1]`` int64, where each begins, and the end.
        tokens: ``[Σ t]`` int32.
        counted: ``[Σ t]`` bool, the tokens whose prediction is judged.
    """

    ids: list[str]
    starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    counted: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each, ``[n]``."""
        return np.diff(self.starts)

    def of(self, place: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return the tokens of one, and which count."""
        where = slice(self.starts[place], self.starts[place + 1])
        return self.tokens[where], self.counted[where]

    def digest(self) -> str:
        """Return a name for all of it."""
        told = hashlib.blake2b("\n".join(self.ids).encode(), digest_size=16)
        for part in (self.starts, self.tokens, self.counted):
            told.update(part.tobytes())
        return told.hexdigest()


class Collected:
    """Sequences that are still being put together."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._starts, self._tokens, self._counted = array("q", [0]), array("i"), array("b")

    def add(self, sample_id: str, tokens: Tokens) -> None:
        """Add one."""
        self.ids.append(sample_id)
        self._tokens.extend(tokens.ids)
        self._counted.extend(tokens.counted)
        self._starts.append(len(self._tokens))

    def done(self) -> Sequences:
        """Return all of them."""
        return Sequences(
            self.ids,
            np.frombuffer(self._starts, dtype=np.int64),
            np.frombuffer(self._tokens, dtype=np.int32),
            np.frombuffer(self._counted, dtype=np.bool_),
        )


class Place(NamedTuple):
    """Where a sample lies in its data set."""

    part: int
    row: int


@dataclass(eq=False)
class Read:
    """What became of a data set.

    Args:
        sequences: the samples that can be used.
        census: all rows, counted.
        left_out: why a row is left out, by its place.
        cut: how many samples were cut at ``max_length``.
        rows: how many rows were read of each part.
    """

    sequences: Sequences
    census: Census
    left_out: dict[Place, str] = field(default_factory=dict)
    cut: int = 0
    rows: list[int] = field(default_factory=list)


def id_of(
    source: InstructionSource, part: int, row: int, cells: object, column: str | None
) -> str | None:
    """Return a row's id: that of its column, else its number, in its file where there are some."""
    if column is None:
        return str(row) if len(source.parts) == 1 else f"{source.parts[part]}/{row}"
    return as_id(cells.get(column)) if isinstance(cells, dict) else None


def read_samples(
    source: InstructionSource,
    encode: Encoder,
    ids: str | None,
    on_row: Callable[[int], object] = lambda _rows: None,
) -> Read:
    """Read a data set.

    Args:
        source: where it lies.
        encode: makes tokens of a sample.
        ids: the column of ids; None for row numbers.
        on_row: told of every row.

    Returns:
        Every usable sample, and what became of the others.

    Raises:
        DataError: nothing of it can be used.
    """
    found, seen, read = Collected(), set[str](), Read(Collected().done(), Census())
    for part, name in enumerate(source.parts):
        own = read.census.shards[part] = ShardCensus(name or source.name)
        fault = detail = ""
        row = -1
        try:
            for row, cells in enumerate(source.rows(part)):
                own.seen += 1
                on_row(1)
                sample_id = id_of(source, part, row, cells, ids)
                made = cells if isinstance(cells, str) else _made(cells, sample_id, seen, encode)
                if isinstance(made, str):
                    own.drop(str(row), made)
                    read.left_out[Place(part, row)] = made
                    continue
                assert sample_id is not None  # noqa: S101  _made has seen to it
                own.kept += 1
                read.cut += made.cut
                seen.add(sample_id)
                found.add(sample_id, made)
        except GradMimicError:
            raise
        except Exception as error:  # whatever the network or a damaged file raises
            fault, detail = DAMAGED, str(error) or type(error).__name__
        read.rows.append(row + 1)
        own.end(End(0, fault, detail, source.expected(part)))
    read.sequences = found.done()
    if not found.ids:
        raise DataError(_nothing(source, read.census))
    return read


def _made(
    cells: dict[str, object], sample_id: str | None, seen: set[str], encode: Encoder
) -> Tokens | str:
    """Make tokens of a row, or say why not."""
    if sample_id is None:
        return NO_ID
    if sample_id in seen:
        return REPEATED
    sample = as_instruction(cells, sample_id)
    return encode(sample) if isinstance(sample, Instruction) else sample


def _nothing(source: InstructionSource, census: Census) -> str:
    """Say that no row can be used, and why."""
    said = "it holds none"
    if census.dropped:
        reason, count = next(iter(census.dropped.items()))
        said = (
            f"{count:,} of {census.seen:,} because {reason} (the first: {census.example(reason)})"
        )
    elif census.faults:
        said = f"it {DAMAGED} ({plain(census.faults[0].detail)})"
    return f"no row of {source.name} can be used: {said}. Expected rows with the columns {SHAPES}"
