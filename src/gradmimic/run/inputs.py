"""What a run reads: the samples to train on, those to test on, and those to trust."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.data import Samples, pair_flip, read_samples, symmetric
from gradmimic.data.columns import read_column
from gradmimic.data.files import load_npy
from gradmimic.errors import DataError, listed
from gradmimic.run.config import RunConfig

_RANGE = re.compile(r"(\d*):(\d*)")
_WHOLE = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Inputs:
    """The tables of one run; they share their classes and no sample.

    Args:
        train: labels as they are trained on, noise included.
        test: with the right labels, or None.
        trusted: known to be clean, not part of ``train``; or None.
    """

    train: Samples
    test: Samples | None
    trusted: Samples | None

    @property
    def wrong(self) -> npt.NDArray[np.bool_] | None:
        """``[n]``, which training labels are known to be wrong; None where the truth is unknown."""
        if self.train.true_labels is None:
            return None
        wrong: npt.NDArray[np.bool_] = self.train.labels != self.train.true_labels
        return wrong


def load_inputs(config: RunConfig) -> Inputs:
    """Read all tables of a run, and corrupt labels where it asks for that.

    Trusted samples that are rows of the data leave the training set; noise is injected into what
    stays.

    Args:
        config: the run's configuration.

    Returns:
        The tables, checked against each other.

    Raises:
        DataError: something cannot be read, or does not fit the rest.
    """
    samples = _read(config, config.data, config.labels, true_labels=config.true_labels)
    if len(samples.classes) < 2:
        raise DataError(
            f"all {len(samples)} labels of {samples.source} are {listed(samples.classes)}, so none "
            "can be wrong. Expected two classes or more."
        )
    trusted = None
    if config.trusted is not None:
        rows = _trusted_rows(config.trusted, samples)
        if rows is None:
            trusted = _read(config, str(config.trusted), config.trusted_labels, samples.classes)
        else:
            trusted = samples.take(rows)
            if config.trusted_labels is not None:
                checked = _read(config, config.data, config.trusted_labels, samples.classes)
                trusted = replace(trusted, labels=checked.labels[rows])
            samples = samples.take(~rows)
    samples = _with_noise(samples, config)
    test = None
    if config.test is not None:
        test = _read(config, config.test, config.test_labels, samples.classes, ids=False)
    for other in (test, trusted):
        if other is not None and other.inputs.shape[1:] != samples.inputs.shape[1:]:
            raise DataError(
                f"{other.source} holds inputs of shape {list(other.inputs.shape[1:])}, expected "
                f"{list(samples.inputs.shape[1:])} as in {samples.source}."
            )
    return Inputs(samples, test, trusted)


def _read(
    config: RunConfig,
    path: str,
    labels: str | None,
    classes: Sequence[str] | None = None,
    *,
    true_labels: str | None = None,
    ids: bool = True,
) -> Samples:
    own = path == config.data
    return read_samples(
        path,
        labels=labels,
        ids=config.ids if own and ids else None,
        true_labels=true_labels,
        show=config.show if own else None,
        kind=config.kind,
        classes=classes,
        image_size=config.image_size,
    )


def _trusted_rows(
    trusted: str | Sequence[int | str], samples: Samples
) -> npt.NDArray[np.bool_] | None:
    """Return ``[n]``, which samples of the data are trusted; None where ``trusted`` is a table."""
    if isinstance(trusted, str) and (span := _RANGE.fullmatch(trusted)):
        start, stop = (int(part) if part else None for part in span.groups())
        rows = _source_rows(samples)
        chosen = (rows >= (start or 0)) & (rows < (np.inf if stop is None else stop))
        where = f"trusted={trusted!r}"
    else:
        ids = _read_ids(trusted) if isinstance(trusted, str) else list(trusted)
        if ids is None:
            return None
        where = f"trusted={trusted!r}" if isinstance(trusted, str) else "the list of trusted ids"
        if samples.ids.dtype.kind == "i":
            ids = [int(i) if _WHOLE.fullmatch(str(i)) else i for i in ids]
        else:
            ids = [str(i) for i in ids]
        known = {*samples.ids.tolist(), *(skipped.sample_id for skipped in samples.skipped)}
        unknown = [i for i in ids if i not in known]
        if unknown:
            raise DataError(
                f"{where} names {len(unknown)} ids that {samples.source} does not hold, such as "
                f"{unknown[0]!r}; its first id is {samples.ids[0].item()!r}."
            )
        chosen = np.isin(samples.ids, np.array(ids))
    if not chosen.any() or chosen.all():
        raise DataError(
            f"{where} covers {'all' if chosen.any() else 'none'} of the {len(samples)} samples of "
            f"{samples.source}; expected some to trust, and others to train on."
        )
    return chosen


def _source_rows(samples: Samples) -> npt.NDArray[np.int64]:
    """Return ``[n]``, the row of each sample in its source; pictures may have been skipped."""
    return np.arange(len(samples)) if samples.shown is None else samples.shown.rows


def _read_ids(trusted: str) -> list[Any] | None:
    """Read a list of ids; None where the file is a table of samples."""
    path = Path(trusted)
    if not path.exists():
        raise DataError(f"trusted={trusted!r} is neither a range of rows such as 0:500 nor a file.")
    if path.suffix != ".txt" and (path.suffix != ".npy" or load_npy(path).ndim > 1):
        return None
    ids: list[Any] = read_column(path.name, path).values.tolist()
    return ids


def _with_noise(samples: Samples, config: RunConfig) -> Samples:
    """Corrupt labels as asked; those before are the truth, unless better ones are known."""
    if config.noise == "none":
        return samples
    corrupt = {"symmetric": symmetric, "pair": pair_flip}[config.noise]
    truth = samples.labels if samples.true_labels is None else samples.true_labels
    noisy = corrupt(samples.labels, config.noise_rate, len(samples.classes), config.seed)
    return replace(samples, labels=noisy, true_labels=truth)
