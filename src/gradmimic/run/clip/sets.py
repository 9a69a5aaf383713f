"""What a run is measured on: pairs to retrieve, labelled pictures to name.

Prepared pictures stay in memory where they fit, and are else read anew for every measurement.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gradmimic.data.columns import encoded_bytes, read_column
from gradmimic.data.files import open_parquet
from gradmimic.data.images import image_column, list_folder
from gradmimic.data.pairs.census import plain
from gradmimic.data.pairs.open import open_pairs
from gradmimic.data.pairs.picture import decode
from gradmimic.data.pairs.sample import End, Pair
from gradmimic.errors import ConfigError, DataError
from gradmimic.pair_model import PairModel
from gradmimic.run.clip.config import ClipConfig, check_templates
from gradmimic.run.clip.evaluate import (
    KS,
    TEMPLATES,
    class_embeddings,
    retrieval,
    zero_shot_accuracy,
)

MOST_BYTES = 2**30  # of prepared pictures in memory, for each set
_BLOCK = 256  # pictures at a time

Told = TypeVar("Told")  # what is known of a picture


@dataclass(eq=False)
class Pictures(Generic[Told]):
    """Prepared pictures, each with what is known of it.

    Args:
        read: reads and prepares them, ``[3, s, s]`` each, None where a picture is no use.
    """

    read: Callable[[], Iterator[tuple[Tensor, Told] | None]]
    count: int = 0
    unusable: int = 0
    _held: list[tuple[Tensor, list[Told]]] | None = field(default_factory=list)
    _complete: bool = False

    def blocks(self) -> Iterator[tuple[Tensor, list[Told]]]:
        """Yield ``[B, 3, s, s]`` and what is known of each."""
        if self._complete and self._held is not None:
            yield from self._held
            return
        if self._held is not None:
            self._held = []
        size, self.count, self.unusable = 0, 0, 0
        images: list[Tensor] = []
        told: list[Told] = []

        def block() -> tuple[Tensor, list[Told]]:
            nonlocal size, images, told
            done = torch.stack(images), told
            size += done[0].nbytes
            if self._held is not None and size <= MOST_BYTES:
                self._held.append(done)
            else:
                self._held = None
            images, told = [], []
            return done

        for item in self.read():
            if item is None:
                self.unusable += 1
                continue
            self.count += 1
            images.append(item[0])
            told.append(item[1])
            if len(images) == _BLOCK:
                yield block()
        if images:
            yield block()
        self._complete = True


@dataclass(frozen=True, eq=False)
class Tests:
    """The sets that a run names, prepared for one model.

    Args:
        pair: the model.
        pairs: pictures with all their captions; None where no such set is named.
        labelled: pictures with the row of their class; likewise.
        classes: the names of the classes.
        templates: sentences for them.
    """

    pair: PairModel
    pairs: Pictures[tuple[str, ...]] | None
    labelled: Pictures[int] | None
    classes: Sequence[str]
    templates: Sequence[str]

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, Any]:
        """Return ``retrieval`` and ``zero_shot`` of a model, each where there is a set for it.

        Args:
            model: a checkpoint of the pair's architecture, anywhere.
        """
        model.eval()
        device = next(model.parameters()).device
        found: dict[str, Any] = {}

        def texts(captions: Sequence[str]) -> Tensor:
            tokens = {k: own.to(device) for k, own in self.pair.tokenize(captions).items()}
            return self.pair.encode_texts(model, tokens).float()

        if self.pairs is not None:
            u: list[Tensor] = []
            v: list[Tensor] = []
            owner: list[int] = []
            for images, captions in self.pairs.blocks():
                first = sum(len(own) for own in u)
                u.append(self.pair.encode_images(model, images.to(device)).float())
                for row, own in enumerate(captions):
                    owner += [first + row] * len(own)
                v.append(texts([text for own in captions for text in own]))
            recall = retrieval(torch.cat(u), torch.cat(v), torch.tensor(owner, device=device))
            found["retrieval"] = {
                "image_to_text": {f"R@{k}": recall.image_to_text[k] for k in KS},
                "text_to_image": {f"R@{k}": recall.text_to_image[k] for k in KS},
                "R@10": recall.mean_at_10,
            }
        if self.labelled is not None:
            classes = class_embeddings(texts, self.classes, self.templates)
            u, labels = [], list[int]()
            for images, rows in self.labelled.blocks():
                u.append(self.pair.encode_images(model, images.to(device)).float())
                labels += rows
            found["zero_shot"] = zero_shot_accuracy(
                torch.cat(u), torch.tensor(labels, device=device), classes
            )
        return found

    @property
    def sizes(self) -> dict[str, dict[str, int] | None]:
        """How many pictures each set has, and how many of it are no use."""
        return {
            name: None if own is None else {"pictures": own.count, "unusable": own.unusable}
            for name, own in (("test", self.pairs), ("zero_shot", self.labelled))
        }


def open_tests(config: ClipConfig, pair: PairModel) -> Tests:
    """Open what a run is measured on, and read it once.

    Args:
        config: the run's configuration.
        pair: the model that it is prepared for.

    Raises:
        DataError: a set cannot be read, or holds nothing of use.
        ConfigError: the templates are none.
    """
    tests = Tests(
        pair,
        None if config.test is None else Pictures(_pairs(config, pair)),
        *_labelled(config, pair),
        _templates(config),
    )
    for name, own in (("test", tests.pairs), ("zero_shot", tests.labelled)):
        if own is not None and not sum(len(told) for _, told in own.blocks()):
            raise DataError(
                f"none of the {own.unusable} pictures of {name}={getattr(config, name)!r} can be "
                "used."
            )
    return tests


def _pairs(
    config: ClipConfig, pair: PairModel
) -> Callable[[], Iterator[tuple[Tensor, tuple[str, ...]] | None]]:
    source = open_pairs(str(config.test), id=config.ids, image=config.image, text=config.text)

    def read() -> Iterator[tuple[Tensor, tuple[str, ...]] | None]:
        for shard in range(len(source)):
            for item in source.read(shard):
                if isinstance(item, Pair):
                    yield pair.transform(item.image), item.texts
                elif not isinstance(item, End):
                    yield None
                elif item.fault:  # measured on less, no two runs could be compared
                    raise DataError(
                        f"the test pairs {config.test} are not whole: "
                        f"{plain(source.shards[shard])} {item.fault} ({plain(item.detail)}). "
                        "Repair it, or name what can be read."
                    )

    return read


def _labelled(config: ClipConfig, pair: PairModel) -> tuple[Pictures[int] | None, Sequence[str]]:
    if config.zero_shot is None:
        return None, ()
    contents, names = _contents(config.zero_shot)
    classes = sorted(set(names))
    row_of = {name: row for row, name in enumerate(classes)}
    if len(classes) < 2:
        raise DataError(
            f"zero_shot={config.zero_shot!r} has {len(classes)} class; expected 2 or more to tell "
            "apart."
        )

    def read() -> Iterator[tuple[Tensor, int] | None]:
        for content, name in zip(contents(), names, strict=True):
            image = decode(content) if content else ""
            yield None if isinstance(image, str) else (pair.transform(image), row_of[name])

    return Pictures(read), classes


def _contents(where: str) -> tuple[Callable[[], Iterator[bytes | None]], list[str]]:
    """Return what reads the pictures' files, and the name of each one's class."""
    path = Path(where)
    if path.is_dir():
        folder = list_folder(path)
        names = [str(name) for name in folder.class_folders]
        return lambda: (folder.read(row) for row in range(len(names))), names
    file, colon, column = where.rpartition(":")
    path = Path(file if colon and not path.exists() else where)
    column = column if colon and path == Path(file) else _name_column(path)
    values = read_column(column, path).values
    if values.dtype.kind == "i":
        raise DataError(
            f"the column {column!r} of {path} holds numbers; a zero-shot classifier needs the "
            "names of the classes. Name another column: zero_shot: FILE.parquet:COLUMN."
        )
    pictures = image_column(path)

    def read() -> Iterator[bytes | None]:
        with open_parquet(path) as parquet:
            for batch in parquet.iter_batches(batch_size=_BLOCK, columns=[pictures]):
                for cell in batch.column(0):
                    yield encoded_bytes(cell.as_py())

    return read, [str(value) for value in values]


def _name_column(path: Path) -> str:
    """Choose the column of a Parquet that holds the names of classes."""
    import pyarrow as pa

    schema = open_parquet(path).schema_arrow
    texts = [str(one.name) for one in schema if pa.types.is_string(one.type)]
    likely = [name for name in ("class_name", "label", "class") if name in texts]
    if likely or len(texts) == 1:
        return [*likely, *texts][0]
    raise DataError(
        f"{path} holds {'several' if texts else 'no'} columns of text"
        f"{' (' + ', '.join(texts) + ')' if texts else ''}; expected one with the names of the "
        "classes. Name it: zero_shot: FILE.parquet:COLUMN."
    )


def _templates(config: ClipConfig) -> tuple[str, ...]:
    given = config.templates
    if given is None:
        return TEMPLATES
    if not isinstance(given, str):
        return given
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the templates {given}: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    check_templates(found, given)
    return found
