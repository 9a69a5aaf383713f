"""The gallery of a run on labelled samples: the given class, the suggested and the true one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradmimic.curate import Selection
from gradmimic.curate.review import log_key
from gradmimic.log_reader import LogReader
from gradmimic.report.gallery import Gallery
from gradmimic.report.numbers import shortened
from gradmimic.run.config import RunConfig
from gradmimic.run.inputs import Inputs
from gradmimic.run.shown import arranged


def labels_gallery(
    config: RunConfig,
    inputs: Inputs,
    selection: Selection,
    suggested: npt.NDArray[np.int64],
    log: LogReader,
) -> Gallery:
    """Return what the page shows of the samples.

    Args:
        config: the run's configuration.
        inputs: the tables.
        selection: what stage 2 decided.
        suggested: ``[n]``, the reference's class for each training sample.
        log: every score; decisions that a person exports name it.
    """
    samples = inputs.train
    shown_rows = arranged(selection)
    order = np.argsort(samples.ids)
    ids = np.array(shown_rows.table["sample_id"].to_pylist(), samples.ids.dtype)
    rows = order[np.searchsorted(samples.ids[order], ids)]  # [m]
    shown = None if samples.shown is None else samples.shown.take(rows)

    def text(row: int) -> str | None:
        own = None if shown is None else shown.text(row)
        return own and shortened(own)

    return Gallery(
        run=Path(config.out).resolve().name,
        log=log_key(log) or "",
        arranged=shown_rows,
        classes=samples.classes,
        given=samples.labels[rows],
        suggested=suggested[rows],
        true=None if samples.true_labels is None else samples.true_labels[rows],
        text=text,
        image=shown.image if shown else lambda _: None,
    )
