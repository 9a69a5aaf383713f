"""Train on a selection straight from WebDataset shards, without writing them again.

    wds.WebDataset(shards).select(keep(selection))

A selection is a predicate on samples, and that is all WebDataset asks for.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from gradmimic.curate import Selection
from gradmimic.curate.lookup import KeptIds
from gradmimic.errors import DataError

Key = str | Callable[[Mapping[str, Any]], int | str]


def keep(selection: Selection, key: Key = "__key__") -> "Keep":
    """Return a function that tells whether a WebDataset sample is kept.

    Samples that the selection does not know are not kept. Put it before ``decode``, so that no
    image is decoded only to be dropped.

    Args:
        selection: its ids are what ``key`` finds.
        key: where a sample's id is: ``"__key__"``; another entry of text; ``"json:uid"`` for the
            field ``uid`` of the sample's ``.json``, as in DataComp's shards; or a function of the
            sample, e.g. one that returns ``int(sample["__key__"])``.

    Returns:
        A function from sample to bool, for ``.select``; it can be pickled for workers, and holds
        the kept ids in 8 to 16 bytes each, see ``gradmimic.curate.lookup``.

    Raises:
        DataError: the selection cannot be read; or, when called, a sample has no such entry.

    Example:
        >>> kept = keep(Selection.from_scores(["000", "001"], [0.5, -0.5]).above(0.0))
        >>> [kept({"__key__": "000"}), kept({"__key__": "001"})]
        [True, False]
    """
    return Keep(KeptIds(selection), key)


class Keep:
    """What ``keep`` returns."""

    def __init__(self, kept: KeptIds, key: Key) -> None:
        self._kept = kept
        self._key = key
        # With samples in any order, the chance of none among so many is e^−30.
        self._patience = math.ceil(30 / kept.share) if kept.share else 0

    def __call__(self, sample: Mapping[str, Any]) -> bool:
        """Tell whether a sample is kept."""
        found = self._id(sample) in self._kept
        if self._patience:
            self._patience = 0 if found else self._patience - 1
            if not found and self._patience == 0:
                warnings.warn(
                    f"the selection keeps {self._kept.share:.1%} of its samples, but none so far, "
                    f"the last with the id {self._id(sample)!r}. Unless these shards are others "
                    f"or the worst, key={self._key!r} is not where the logged ids are.",
                    stacklevel=2,
                )
        return found

    def _id(self, sample: Mapping[str, Any]) -> int | str:
        """Return the id of a sample."""
        if callable(self._key):
            return self._key(sample)
        name, _, field = self._key.partition(":")
        if name not in sample:
            raise DataError(
                f"a sample has no {name!r}; it has {sorted(sample)}. Pass where its id is, e.g. "
                'key="json:uid".'
            )
        value = sample[name]
        if not field:
            return value.decode() if isinstance(value, bytes) else value
        try:
            content = value if isinstance(value, Mapping) else json.loads(value)
            return content[field]  # type: ignore[no-any-return]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the {name!r} of sample {sample.get('__key__')!r} holds no field {field!r} "
                f"({type(error).__name__}: {error}). Pass where the id is."
            ) from error
