"""Hugging Face data sets of pictures with captions, from a folder or from the hub.

What is on the hub is streamed, shard by shard.
"""

from collections.abc import Iterator
from typing import Any

from gradmimic.data.datasets_library import ON_HUB, load_hub, load_saved
from gradmimic.data.pairs.place import Place
from gradmimic.data.pairs.reasons import DAMAGED, OUTSIDE
from gradmimic.data.pairs.rows import choose_columns, record
from gradmimic.data.pairs.sample import Dropped, End, Record
from gradmimic.data.pairs.source import PairSource
from gradmimic.data.pairs.table_files import SHARD
from gradmimic.extras import import_extra

_TOGETHER = 16  # rows


class HubSource(PairSource):
    """Pairs in a data set of the ``datasets`` library; what is on the hub is streamed.

    Args:
        name: as the user wrote it.
        dataset: a ``Dataset``, or an ``IterableDataset``.
        sample_id: the column of ids; None for ``uid``, else ids are made of the row.
        image: the column of pictures; None to find it.
        text: the column of captions or lists of them; None to find it.

    Raises:
        DataError: columns cannot be found.
    """

    def __init__(
        self, name: str, dataset: Any, sample_id: str | None, image: str | None, text: str | None
    ) -> None:
        datasets = import_extra("datasets", "datasets")
        self.name = name
        self._streamed = isinstance(dataset, datasets.IterableDataset)
        if dataset.features is None:
            dataset = dataset._resolve_features()
        pictures = [n for n, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        for each in pictures:
            dataset = dataset.cast_column(each, datasets.Image(decode=False))
        schema = dataset.features.arrow_schema
        self._columns = choose_columns(schema, sample_id, image, text, name)
        others = [n for n in pictures if n != self._columns.image]
        self._dataset = dataset.remove_columns(others) if others else dataset
        self.unique = self._columns.sample_id is None
        count = dataset.num_shards if self._streamed else -(-len(dataset) // SHARD)
        self.shards = [f"{n:05d}" for n in range(count)]

    def expected(self, shard: int) -> int | None:
        """Return the number of rows, where it is known."""
        return None if self._streamed else len(self._part(shard))

    def items(self, shard: int) -> Iterator[Record | Dropped | End]:
        """Yield the rows of a shard as samples, then its end."""
        fault, detail = "", ""
        try:
            for row, cells in enumerate(self._rows(shard)):
                key = f"{shard}/{row}" if self._streamed else str(shard * SHARD + row)
                yield record(self._columns, cells, key, self._open_path)
        except Exception as error:  # whatever the network or a damaged file raises
            fault, detail = DAMAGED, str(error) or type(error).__name__
        yield End(0, fault, detail, self.expected(shard))

    def _open_path(self, path: str) -> bytes | str:
        """Return the content of a file of the data set's own repository, or why it has none."""
        on_hub = ON_HUB.fullmatch(self.name)
        if on_hub is None or not path.startswith(f"hf://datasets/{on_hub[1]}@") or "::" in path:
            return OUTSIDE
        import fsspec

        fs, inner = fsspec.core.url_to_fs(path)
        return Place(fs, ()).read(str(inner))

    def _rows(self, shard: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a shard.

        Plain iteration over a streamed data set would notice that it runs in a worker, and share
        the rows of this shard among all workers, which have shards of their own.
        """
        for several in self._part(shard).iter(_TOGETHER):
            for cells in zip(*several.values(), strict=True):
                yield dict(zip(several, cells, strict=True))

    def _part(self, shard: int) -> Any:
        """Return the rows of a shard."""
        if self._streamed:
            return self._dataset.shard(len(self.shards), shard)
        stop = min((shard + 1) * SHARD, len(self._dataset))
        return self._dataset.select(range(shard * SHARD, stop))


def open_hub(
    data: str, sample_id: str | None, image: str | None, text: str | None
) -> HubSource | None:
    """Open a data set on the hub; None where the URL names a file there, or something else.

    Raises:
        DataError: there is none of that name, or it cannot be reached.
    """
    dataset = load_hub(data, extra="datasets", streaming=True)
    return None if dataset is None else HubSource(data, dataset, sample_id, image, text)


def open_saved(data: str, sample_id: str | None, image: str | None, text: str | None) -> HubSource:
    """Open a folder that ``save_to_disk`` of the ``datasets`` library wrote.

    Raises:
        DataError: it cannot be read, or has several splits.
    """
    return HubSource(data, load_saved(data, extra="datasets"), sample_id, image, text)
