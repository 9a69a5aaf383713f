"""A row of a table as a sample: which columns are the picture, the caption and the id."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gradmimic.data.columns import encoded_bytes, is_encoded
from gradmimic.data.pairs.reasons import MAX_BYTES, NO_ID, NO_PICTURE, TOO_LARGE
from gradmimic.data.pairs.sample import Dropped, Record, as_id, as_texts
from gradmimic.errors import DataError

_IMAGES = ("image", "jpg", "png", "webp", "img", "image_path", "file_name", "filename", "path")
_TEXTS = ("caption", "captions", "text", "texts", "txt", "sentences")


@dataclass(frozen=True)
class Columns:
    """The columns of a table of pairs.

    Args:
        image: encoded pictures, or paths of picture files.
        text: captions, or lists of them.
        sample_id: ids; None where they are made of the row's number.
    """

    image: str
    text: str
    sample_id: str | None


def choose_columns(
    schema: pa.Schema, sample_id: str | None, image: str | None, text: str | None, where: str
) -> Columns:
    """Choose the columns: as named, else by their usual names, else by their types.

    Args:
        schema: the table's names and types.
        sample_id: the name of the id column; None for ``uid``, where there is one.
        image: of the picture column; None to find it.
        text: of the caption column; None to find it.
        where: the table, for messages.

    Raises:
        DataError: there is no such column, or there are several.

    Example:
        >>> schema = pa.schema([("photo", pa.binary()), ("caption", pa.string())])
        >>> choose_columns(schema, None, None, None, "t.parquet")
        Columns(image='photo', text='caption', sample_id=None)
    """
    held = ", ".join(f"{field.name} ({field.type})" for field in schema)
    for name in (sample_id, image, text):
        if name is not None and name not in schema.names:
            raise DataError(f"{where} has no column {name!r}; it has {held}")
    if sample_id is None and "uid" in schema.names:
        sample_id = "uid"
    if image is None:
        encoded = [field.name for field in schema if is_encoded(field.type)]
        paths = [name for name in _IMAGES if name in schema.names]
        image = _one("image", [n for n in _IMAGES if n in encoded], encoded or paths, where, held)
    if text is None:
        taken = {sample_id, image}
        texts = [f.name for f in schema if _is_text(f.type) and f.name not in taken]
        text = _one("text", [name for name in _TEXTS if name in texts], texts, where, held)
    return Columns(image, text, sample_id)


def record(
    columns: Columns, row: Mapping[str, Any], key: str, open_path: Callable[[str], bytes | str]
) -> Record | Dropped:
    """Make a record of a row, or say why not.

    Args:
        columns: what to look at.
        row: its cells.
        key: what to call it, and its id where the table has none.
        open_path: gives the content of the file that a cell names, or why it has none. The data
            chose that name, so it may lead to no other folder, machine or program.
    """
    content = _picture(row.get(columns.image), open_path)
    if isinstance(content, str):
        return Dropped(key, content)
    value = row.get(columns.text)
    texts = as_texts(value if isinstance(value, list) else [value])
    if isinstance(texts, str):
        return Dropped(key, texts)
    sample_id = as_id(key if columns.sample_id is None else row.get(columns.sample_id))
    if sample_id is None:
        return Dropped(key, NO_ID)
    meta = {name: cell for name, cell in row.items() if name not in {columns.image, columns.text}}
    return Record(key, sample_id, content, texts, meta)


def _picture(cell: object, open_path: Callable[[str], bytes | str]) -> bytes | str:
    """Return a picture's file content, or why there is none."""
    content = encoded_bytes(cell)
    if content is not None:
        return content if len(content) <= MAX_BYTES else TOO_LARGE
    path = cell.get("path") if isinstance(cell, dict) else cell
    return open_path(path) if isinstance(path, str) and path else NO_PICTURE


def _one(what: str, usual: list[str], fit: list[str], where: str, held: str) -> str:
    """Choose the column with the most usual name, else the only one that fits."""
    if usual or len(fit) == 1:
        return (usual or fit)[0]
    found = f"several: {', '.join(fit)}" if fit else f"none among {held}"
    kind = "pictures or their paths" if what == "image" else "captions"
    raise DataError(f"expected a column of {kind} in {where}; found {found}. Name it with {what}=")


def _is_text(kind: pa.DataType) -> bool:
    """Tell whether a column holds texts, or lists of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
