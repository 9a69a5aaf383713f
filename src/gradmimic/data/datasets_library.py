"""Data sets of Hugging Face's ``datasets`` library: on the hub, or in a folder it saved.

    hf://datasets/<owner>/<name>[@<revision>][:<split>]

Version 4 of the library and later ones run no code that comes with a data set.
"""

import re
from typing import Any

from gradmimic.errors import DataError
from gradmimic.extras import import_extra

ON_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w.-]+))?/?")


def load_hub(data: str, *, extra: str, streaming: bool) -> Any:
    """Open a data set on the hub; None where the URL names a file there, or something else.

    Args:
        data: the URL; without a split, ``train``.
        extra: what to install where the library is missing.
        streaming: whether rows are read as they come, or the whole is downloaded.

    Raises:
        DataError: there is none of that name, or it cannot be reached.
    """
    on_hub = ON_HUB.fullmatch(data)
    if on_hub is None:
        return None
    datasets = import_extra("datasets", extra)
    name, revision, split = on_hub.groups()
    try:
        return datasets.load_dataset(
            name, revision=revision, split=split or "train", streaming=streaming
        )
    except Exception as error:  # whatever the hub and the network raise
        raise DataError(
            f"cannot open {data}: {error}. Expected hf://datasets/owner/name:split"
        ) from error


def load_saved(data: str, *, extra: str) -> Any:
    """Open a folder that ``save_to_disk`` wrote; of several splits, ``train``.

    Args:
        data: the folder.
        extra: what to install where the library is missing.

    Raises:
        DataError: it cannot be read, or has several splits and none of them is ``train``.
    """
    datasets = import_extra("datasets", extra)
    try:
        dataset = datasets.load_from_disk(data)
    except Exception as error:
        raise DataError(f"cannot open {data} as a Hugging Face data set: {error}") from error
    if isinstance(dataset, dict):
        if len(dataset) > 1 and "train" not in dataset:
            raise DataError(f"{data} has the splits {', '.join(dataset)}. Name one: {data}/<split>")
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    return dataset
