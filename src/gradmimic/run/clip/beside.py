"""The reference's CLIP score of every pair, logged beside the mimic scores: the strongest rival.

    c_i = ⟨u_ref,i , v_ref,i⟩      the cosine of picture and caption, in [−1, 1]

Canaries get one too, so that they can tell which of the two knows more, and how to combine them.
"""

from itertools import count

import torch

from gradmimic.log import ScoreLog
from gradmimic.pair_model import PairModel
from gradmimic.run.clip.planted import PLANTED
from gradmimic.run.clip.pool import Held
from gradmimic.run.clip.train import on_device
from gradmimic.weighting import Weighting

SCORER = "clip"
_BATCH = 256


@torch.no_grad()
def log_clip_scores(
    log: ScoreLog, reference: PairModel, data: Held, canaries: Held | None, step: int
) -> None:
    """Score all pairs, and all canaries, once.

    Args:
        log: where the scores go, as epoch 0 of the scorer ``"clip"``.
        reference: a whole model that takes the inputs of these pairs.
        data: the pairs.
        canaries: planted ones; None where there are none.
        step: the first one that the log does not know.
    """
    model = reference.model.eval()
    device = next(model.parameters()).device
    steps = count(step)
    for held, kind in ((data, None), (canaries, PLANTED)):
        if held is None:
            continue
        for rows in torch.arange(len(held)).split(_BATCH):
            batch = on_device(held.batch(rows), device)
            pairs = reference.embed(model, batch)
            cosines = (pairs.image * pairs.text).sum(1).cpu()  # [b]
            weights = Weighting("softmax", "auto")(cosines, 0)
            log.append(
                batch.ids,
                cosines,
                weights if kind is None else torch.zeros_like(cosines),
                reference.losses(pairs).cpu(),
                epoch=0,
                step=next(steps),
                scorer=SCORER,
                canary=None if kind is None else [kind] * len(rows),
            )
