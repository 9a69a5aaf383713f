"""The gallery of a run on pairs: pictures with the captions that they were trained with."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from gradmimic.curate import Selection
from gradmimic.curate.review import log_key
from gradmimic.data.pairs.picture import decode
from gradmimic.data.pairs.sample import Record
from gradmimic.log_reader import LogReader
from gradmimic.pair_model import PairModel
from gradmimic.report.gallery import Gallery
from gradmimic.report.numbers import shortened
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.pool import Held
from gradmimic.run.clip.read import Inputs
from gradmimic.run.shown import arranged

END = 36  # pairs at each end: every one is looked for in its shard, and scored by the reference


def pairs_gallery(
    config: ClipConfig,
    inputs: Inputs,
    selection: Selection,
    reference: PairModel | None,
    log: LogReader,
) -> Gallery:
    """Return what the page shows of the pairs.

    Args:
        config: the run's configuration.
        inputs: the pairs.
        selection: what stage 2 decided.
        reference: the whole model, for its CLIP score of the pairs that are shown.
        log: every score; decisions that a person exports name it.
    """
    rows = arranged(selection, END)
    ids = rows.table["sample_id"].to_pylist()
    wanted = {ids[row]: row for row in rows.wanted}
    found = _find(inputs, wanted)
    captions = {sample_id: record.texts[0] for sample_id, record in found.items()}
    if isinstance(inputs.train, Held):  # as they were trained on
        held = zip(inputs.train.ids, inputs.train.captions, strict=True)
        captions |= {sample_id: own[0] for sample_id, own in held}
    similarities = {}
    if reference is not None:
        for sample_id, record in found.items():
            said = _similarity(reference, record.image, captions[sample_id])
            if said is not None:
                similarities[wanted[sample_id]] = said
    pictures = {wanted[sample_id]: record.image for sample_id, record in found.items()}
    swapped = inputs.swapped
    return Gallery(
        run=Path(config.out).resolve().name,
        log=log_key(log) or "",
        arranged=rows,
        bad=None if swapped is None else np.array([sample_id in swapped for sample_id in ids]),
        text=lambda row: shortened(captions[ids[row]]) if ids[row] in captions else None,
        image=pictures.get,
        facts={"CLIP score": similarities} if similarities else {},
        noun="pairs",
    )


def _find(inputs: Inputs, wanted: Collection[str]) -> dict[str, Record]:
    """Find pairs in the data again."""
    found: dict[str, Record] = {}
    for shard in inputs.shards_of(set(wanted)):
        for item in inputs.source.records(shard):
            if isinstance(item, Record) and item.sample_id in wanted:
                found.setdefault(item.sample_id, item)
        if len(found) == len(wanted):
            break
    return found


@torch.no_grad()
def _similarity(reference: PairModel, content: bytes | None, caption: str) -> float | None:
    """Return the reference's cosine of a picture and a caption: its CLIP score."""
    picture = None if content is None else decode(content)
    if picture is None or isinstance(picture, str):
        return None
    model = reference.model.eval()
    device = next(model.parameters()).device
    tokens = {name: own.to(device) for name, own in reference.tokenize([caption]).items()}
    u = reference.encode_images(model, reference.transform(picture)[None].to(device))
    return float((u * reference.encode_texts(model, tokens)).sum())
