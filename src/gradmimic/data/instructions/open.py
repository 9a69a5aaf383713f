"""The one door: instructions with responses, whatever they are kept in."""

import re
from os import PathLike, fspath
from pathlib import Path

from gradmimic.data.files import PARQUET
from gradmimic.data.instructions.datasets_library import open_hub, open_saved
from gradmimic.data.instructions.parquet_files import ParquetSource
from gradmimic.data.instructions.source import InstructionSource
from gradmimic.data.instructions.text_files import LineSource, ListSource, holds_list
from gradmimic.data.pairs.place import find, is_saved
from gradmimic.errors import DataError

LINES = (".jsonl", ".ndjson")
_HUB_ID = re.compile(r"[\w.-]+/[\w-]+")  # without a suffix
_KINDS = (PARQUET, LINES, (".json",))


def open_instructions(data: str | PathLike[str]) -> InstructionSource:
    """Open a data set of instructions; next to nothing of it is read.

    Args:
        data: a file, a pattern such as ``sft/*.parquet``, or a folder, on a disk or behind a URL
            that fsspec opens: JSON lines (``.jsonl``), one JSON list (``.json``), or Parquet. Or a
            folder that Hugging Face's ``save_to_disk`` wrote, or a data set on its hub,
            ``hf://datasets/owner/name:split``.

    Returns:
        The data set.

    Raises:
        DataError: nothing is there, or it is nothing of that kind.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp()) / "sft.jsonl"
        >>> _ = file.write_text('{"question": "2 + 2?", "answer": "4"}')
        >>> list(open_instructions(file).rows(0))
        [{'question': '2 + 2?', 'answer': '4'}]
    """
    name = fspath(data)
    on_hub = open_hub(name)
    if on_hub is not None:
        return on_hub
    if _HUB_ID.fullmatch(name) and not Path(name).exists():
        raise DataError(
            f"no file or folder {name}; check the path. For a data set on Hugging Face's hub give "
            f"hf://datasets/{name}, with :split behind it where that is not train"
        )
    if is_saved(name):
        return open_saved(name)
    place = find(name, _KINDS, what="instructions")
    suffixes = place.suffixes
    if suffixes <= set(PARQUET):
        return ParquetSource(name, place)
    if suffixes <= {*LINES, ".json"}:
        return ListSource(name, place) if holds_list(place) else LineSource(name, place)
    raise DataError(
        f"expected instructions in files of one kind, {', '.join((*PARQUET, *LINES, '.json'))}; "
        f"{name} means files {', '.join(sorted(suffixes))}"
    )
