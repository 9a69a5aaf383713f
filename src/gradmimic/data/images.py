"""Images: a folder with one sub-folder per class, or a Parquet with a column of encoded pictures.

Every picture becomes c × s × s bytes: turned upright as its EXIF data say, converted to RGB or
grey, stretched to a square. What cannot be decoded is left out and listed, with the reason.
"""

import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gradmimic.data import files
from gradmimic.data.columns import encoded_bytes, is_encoded
from gradmimic.errors import DataError
from gradmimic.extras import import_extra

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that starts a program
MAX_PIXELS = 64_000_000  # a small file can decode to any size; no camera picture is larger

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """The pictures that could be decoded, and what became of the others.

    Args:
        pixels: ``[n, c, s, s]`` uint8.
        rows: the row of the source that each picture comes from, ``[n]``.
        failed: for the other rows, why they could not be decoded.
    """

    pixels: Pixels
    rows: npt.NDArray[np.int64]
    failed: dict[int, str]


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder with one sub-folder per class, sorted by path.

    Args:
        root: the folder.
        ids: paths inside the folder, with ``/``, ``[n]`` str.
        class_folders: the sub-folder each picture lies in, ``[n]`` str.
        ignored: files that are no pictures, and why.
    """

    root: Path
    ids: npt.NDArray[Any]
    class_folders: npt.NDArray[Any]
    ignored: dict[str, str]

    def read(self, row: int) -> bytes:
        """Return the content of one picture's file, empty where it cannot be read."""
        try:
            return (self.root / str(self.ids[row])).read_bytes()
        except OSError:
            return b""


def list_folder(root: Path) -> Folder:
    """Find the pictures of a folder with one sub-folder per class; hidden files are passed over.

    Args:
        root: the folder.

    Returns:
        The pictures by path, sorted, and the other files with the reason they are left out.

    Raises:
        DataError: no sub-folder holds a picture.
    """
    found: list[tuple[str, str]] = []
    ignored: dict[str, str] = {}
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        inner = path.relative_to(root)
        if any(part.startswith(".") for part in inner.parts) or not path.is_file():
            continue
        if path.suffix.lower() not in SUFFIXES:
            ignored[inner.as_posix()] = f"not a picture file ({', '.join(SUFFIXES)})"
        elif len(inner.parts) == 1:
            ignored[inner.as_posix()] = "in no class folder"
        else:
            found.append((inner.as_posix(), inner.parts[0]))
    if not found:
        raise DataError(
            f"{root} must hold one sub-folder of pictures per class, such as cat/1.jpg and "
            f"dog/7.png; found no picture in a sub-folder ({len(ignored)} other files)"
        )
    ids, folders = zip(*found, strict=True)
    return Folder(root, np.array(ids), np.array(folders), ignored)


def read_folder(folder: Folder, size: int, channels: Literal[1, 3] = 3) -> Decoded:
    """Decode the pictures of a folder.

    Args:
        folder: the pictures, from :func:`list_folder`.
        size: width and height to stretch to, in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The pictures, and what could not be decoded.

    Raises:
        DataError: not one picture could be decoded.
    """
    encoded = (folder.read(row) for row in range(len(folder.ids)))
    return decode(encoded, len(folder.ids), size, channels, where=str(folder.root))


def read_parquet_images(path: Path, column: str, size: int, channels: Literal[1, 3] = 3) -> Decoded:
    """Decode a column of encoded pictures, a few hundred rows in memory at a time.

    Args:
        path: the Parquet file.
        column: a column of bytes, or of structs with a field ``bytes``.
        size: width and height to stretch to, in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The pictures, and what could not be decoded.

    Raises:
        DataError: not one picture could be decoded.
    """
    count = files.open_parquet(path).metadata.num_rows
    return decode(_cells(path, column), count, size, channels, where=f"{path}:{column}")


def image_column(path: Path, wanted: str | None = None) -> str:
    """Choose the column of a Parquet that holds encoded pictures.

    Args:
        path: the Parquet file.
        wanted: its name; left out, the only such column, or the one called ``image``.

    Returns:
        The column's name.

    Raises:
        DataError: no such column, or several.
    """
    schema = files.open_parquet(path).schema_arrow
    fits = [field.name for field in schema if is_encoded(field.type)]
    if wanted in fits:
        return str(wanted)
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        raise DataError(f"no column {wanted!r} of encoded pictures in {path}; it has {listed}")
    if len(fits) == 1 or "image" in fits:
        return "image" if "image" in fits else str(fits[0])
    several = f"several such columns: {', '.join(fits)}; name one" if fits else f"only {listed}"
    raise DataError(f"expected a column of encoded pictures (bytes) in {path}; found {several}")


def decode(
    encoded: Iterable[bytes | None], count: int, size: int, channels: Literal[1, 3], where: str
) -> Decoded:
    """Decode pictures one after another into one array.

    Args:
        encoded: the content of ``count`` picture files.
        count: how many there are.
        size: width and height to stretch to, in pixels.
        channels: 3 for RGB, 1 for grey.
        where: file or folder, for messages.

    Returns:
        The pictures, and what could not be decoded.

    Raises:
        DataError: not one picture could be decoded.
    """
    import_extra("PIL.Image", "images")
    if size < 1:
        raise DataError(f"pictures need a size of at least 1 pixel; got {size}")
    pixels = np.empty((count, channels, size, size), dtype=np.uint8)
    rows: list[int] = []
    failed: dict[int, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata of a picture that decodes is no news
        for row, content in enumerate(encoded):
            try:
                pixels[len(rows)] = _square(content, size, channels)
            # What a decoder raises on damaged bytes is open-ended, and none of it may end the run.
            except Exception as error:
                failed[row] = _reason(error)
            else:
                rows.append(row)
    if not rows:
        reason = f"; the first: {failed[0]}" if failed else ""
        raise DataError(f"none of the {count} pictures of {where} could be decoded{reason}")
    return Decoded(pixels[: len(rows)], np.array(rows, dtype=np.int64), failed)


def _square(content: bytes | None, size: int, channels: Literal[1, 3]) -> Pixels:
    """Decode one picture to ``[c, s, s]``."""
    from PIL import Image, ImageOps

    if not content:
        raise ValueError("no bytes")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} × {image.height} pixels, more than {MAX_PIXELS:,}")
        image.draft(None, (2 * size, 2 * size))  # JPEG only: decode at a fraction of the size
        upright = ImageOps.exif_transpose(image)
        mode = "RGB" if channels == 3 else "L"
        small = eight_bit(upright).convert(mode).resize((size, size), Image.Resampling.BILINEAR)
    pixels: Pixels = np.asarray(small).reshape(size, size, channels)  # [s, s, c]
    planes: Pixels = np.moveaxis(pixels, 2, 0)  # [c, s, s]
    return planes


def _reason(error: Exception) -> str:
    """Say why a picture could not be decoded."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its own text is the address of a buffer
        return "not a picture in any known format"
    return str(error) or type(error).__name__


def eight_bit(image: "Image") -> "Image":
    """Scale 16-bit grey to 8 bits; plain conversion would clip it to white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))


def _cells(path: Path, column: str) -> Iterator[bytes | None]:
    """Yield the bytes of every row of a Parquet column."""
    with files.open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for cell in batch.column(0):
                yield encoded_bytes(cell.as_py())
