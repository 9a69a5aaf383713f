"""The filtered data set: what is kept, as it came, and what is removed, with the reasons.

kept.jsonl | kept.json | kept.parquet | kept/       the format of the input, rows unchanged
removed.jsonl       a line for every other row: sample_id, part, row, reason, score, sample
"""

import json
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from gradmimic.atomic import atomic_write
from gradmimic.curate import Selection
from gradmimic.data.instructions import Instruction, InstructionSource, as_instruction
from gradmimic.run.sft.samples import Place, Read, id_of


def write_filtered(
    source: InstructionSource, read: Read, ids: str | None, selection: Selection, out: Path
) -> dict[str, Path]:
    """Write both.

    Args:
        source: the data set.
        read: what became of its rows.
        ids: the column of ids.
        selection: of all samples that were scored.
        out: the folder.

    Returns:
        What lies where.

    Raises:
        OSError: the disk does not take it.
    """
    files = {"kept": out / source.kept_name, "removed": out / "removed.jsonl"}
    found = selection.rows(read.sequences.ids, ["keep", "score", "reason"])
    keep = iter(found["keep"].to_pylist())
    masks = [
        np.array(
            [Place(part, row) not in read.left_out and next(keep) for row in range(rows)],
            dtype=np.bool_,
        )
        for part, rows in enumerate(read.rows)
    ]
    source.write(files["kept"], masks)
    told = iter(zip(found["score"].to_pylist(), found["reason"].to_pylist(), strict=True))
    with atomic_write(files["removed"]) as file:
        for part, mask in enumerate(masks):
            for row, cells in enumerate(islice(source.rows(part), len(mask))):
                reason = read.left_out.get(Place(part, row))
                score = None
                if reason is None:
                    score, reason = next(told)
                if mask[row]:
                    continue
                line = {
                    "sample_id": id_of(source, part, row, cells, ids),
                    "part": source.parts[part],
                    "row": row,
                    "reason": reason,
                    "score": score,
                    "sample": cells if isinstance(cells, dict) else None,
                }
                text = json.dumps(line, default=str)  # dates and bytes as Python shows them
                file.write(f"{text}\n".encode())
    return files


def look_up(
    source: InstructionSource, read: Read, ids: str | None, wanted: Collection[str]
) -> Mapping[str, Instruction]:
    """Read some samples again, to show them.

    Args:
        source: the data set.
        read: what became of its rows.
        ids: the column of ids.
        wanted: which samples.

    Returns:
        Them by id.
    """
    found: dict[str, Instruction] = {}
    for part, rows in enumerate(read.rows):
        for row, cells in enumerate(islice(source.rows(part), rows)):
            if isinstance(cells, str) or Place(part, row) in read.left_out:
                continue
            sample_id = id_of(source, part, row, cells, ids)
            if sample_id is None or sample_id not in wanted:
                continue
            sample = as_instruction(cells, sample_id)
            if isinstance(sample, Instruction):
                found[sample_id] = sample
            if len(found) == len(wanted):
                return found
    return found
