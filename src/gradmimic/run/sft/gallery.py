"""The gallery of scored instructions: prompts with their responses."""

from collections.abc import Mapping
from pathlib import Path

from gradmimic.curate.review import log_key
from gradmimic.data.instructions import Instruction
from gradmimic.log_reader import LogReader
from gradmimic.report.gallery import Arranged, Gallery
from gradmimic.report.numbers import shortened
from gradmimic.run.sft.config import SftConfig

END = 100  # samples at each end, whose texts are read again


def instructions_gallery(
    config: SftConfig, arranged: Arranged, log: LogReader, found: Mapping[str, Instruction]
) -> Gallery:
    """Return what the page shows of the samples, to decide on.

    Args:
        config: the run's configuration.
        arranged: the rows.
        log: every score; decisions that a person exports name it.
        found: samples as they stand in the data, by their ids.
    """
    ids = arranged.table["sample_id"].to_pylist()

    def text(row: int) -> str | None:
        sample = found.get(ids[row])
        if sample is None:
            return None
        return f"{shortened(sample.prompt)}\n\n{shortened(sample.response)}"

    return Gallery(Path(config.out).resolve().name, log_key(log) or "", arranged, text=text)
