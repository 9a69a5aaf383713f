"""A log cut back to a step, from which a resumed run logs again.

    kept: rows with step < s       removed: rows, ‖v‖ and events with step ≥ s

A part that lies on both sides is written again, under its own name.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.atomic import atomic_write
from gradmimic.log_reader import NORMS_KEY, part_norms


def cut_parts(parts: Iterable[Path], step: int) -> list[Path]:
    """Remove from parts all rows of a step and of later ones.

    Args:
        parts: each is written again, or removed where no row is left.
        step: the first one to go.

    Returns:
        The parts that are left.

    Raises:
        OSError: a part cannot be changed.
    """
    left = []
    for part in parts:
        first, last = _steps(part)
        if last < step:
            left.append(part)
        elif first >= step:
            part.unlink()
        else:
            table = pq.read_table(part, page_checksum_verification=True)
            norms = _before(part_norms(part), step)
            about = {**table.schema.metadata, NORMS_KEY: json.dumps(norms)}
            early = pa.array(table["step"].to_numpy() < step)
            kept = table.filter(early).replace_schema_metadata(about)
            with atomic_write(part) as file:
                pq.write_table(kept, file, write_page_checksum=True)
            left.append(part)
    return left


def cut_run(run: dict[str, Any], step: int, events: int | None = None) -> dict[str, Any]:
    """Return what ``run.json`` says, without the norms and events of a step and of later ones.

    Args:
        run: what it says.
        step: the first one to go.
        events: how many to keep instead, since one between two steps bears the later one's number.

    Example:
        >>> norms = {"1": 0.5, "2": 0.4}
        >>> cut_run({"direction_norm": norms, "events": [{"event": "a", "step": 2}]}, 2)
        {'direction_norm': {'1': 0.5}, 'events': []}
    """
    noted = run["events"]
    kept = [event for event in noted if event["step"] < step] if events is None else noted[:events]
    return {**run, "direction_norm": _before(run["direction_norm"], step), "events": kept}


def _before(norms: Mapping[Any, float], step: int) -> dict[Any, float]:
    return {at: norm for at, norm in norms.items() if int(at) < step}


def _steps(part: Path) -> tuple[int, int]:
    """Return the first and the last step of a part, by what its file says of each row group."""
    with pq.ParquetFile(part) as file:
        at = file.schema_arrow.get_field_index("step")
        about = [file.metadata.row_group(i).column(at) for i in range(file.num_row_groups)]
        if all(column.is_stats_set for column in about):
            return (
                min(column.statistics.min for column in about),
                max(column.statistics.max for column in about),
            )
        steps = file.read(["step"])["step"].to_numpy()
    return int(steps.min()), int(steps.max())
