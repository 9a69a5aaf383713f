"""What a run reads: the samples to train on, those to test on, and those to trust."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.data import Samples, pair_flip, read_samples, symmetric
from gradmimic.errors import DataError
from gradmimic.run.config import RunConfig

_RANGE = re.compile(r"(\d*):(\d*)")


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
        return self.train.labels != self.train.true_labels


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
    """Return ``[n]``, which rows of the data are trusted; None where ``trusted`` is a table."""
    if isinstance(trusted, str) and (span := _RANGE.fullmatch(trusted)):
        start, stop = (int(part) if part else None for part in span.groups())
        rows = np.zeros(len(samples), dtype=bool)
        rows[start:stop] = True
        where = f"trusted={trusted!r}"
    else:
        ids = _read_ids(Path(trusted)) if isinstance(trusted, str) else list(trusted)
        if ids is None:
            return None
        where = f"trusted={trusted!r}" if isinstance(trusted, str) else "the list of trusted ids"
        known = set(samples.ids.tolist())
        if samples.ids.dtype.kind == "i":
            ids = [int(i) if str(i).lstrip("-").isdigit() else i for i in ids]
        else:
            ids = [str(i) for i in ids]
        unknown = [i for i in ids if i not in known]
        if unknown:
            raise DataError(
                f"{where} names {len(unknown)} ids that {samples.source} does not hold, such as "
                f"{unknown[0]!r}; its first id is {samples.ids[0].item()!r}."
            )
        rows = np.isin(samples.ids, np.array(ids, dtype=samples.ids.dtype))
    if not rows.any() or rows.all():
        raise DataError(
            f"{where} covers {'none' if not rows.any() else 'all'} of the {len(samples)} samples of "
            f"{samples.source}; expected some to trust, and others to train on."
        )
    return rows


def _read_ids(path: Path) -> list[Any] | None:
    """Read a list of ids; None where the file is a table of samples."""
    if not path.exists():
        raise DataError(
            f"trusted={str(path)!r} is neither a range of rows such as 0:500 nor a file."
        )
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return None if array.ndim > 1 else array.tolist()
    if path.suffix == ".txt":
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    return None


def _with_noise(samples: Samples, config: RunConfig) -> Samples:
    """Corrupt labels as asked; the labels before that are the truth, unless better ones are known."""
    if config.noise == "none":
        return samples
    corrupt = {"symmetric": symmetric, "pair": pair_flip}[config.noise]
    truth = samples.labels if samples.true_labels is None else samples.true_labels
    noisy = corrupt(samples.labels, config.noise_rate, len(samples.classes), config.seed)
    return replace(samples, labels=noisy, true_labels=truth)
