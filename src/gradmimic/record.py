"""What of a weighed batch goes into the log: samples and canaries, each as a batch of their own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gradmimic.canaries import CanaryLosses
from gradmimic.errors import LossError, UsageError
from gradmimic.log import ScoreLog

Ids = Sequence[int] | Sequence[str] | Tensor | npt.NDArray[Any]


def record(
    log: ScoreLog | None,
    ids: Ids | None,
    rows: npt.NDArray[np.float32],
    known: Tensor | None,
    canaries: CanaryLosses | None,
    counted: tuple[int, int] | None = None,
    **facts: Any,
) -> None:
    """Log one batch.

    Args:
        log: where to; None only checks that there are as many ids as samples.
        ids: ``[b]`` sample ids, needed where there is a log.
        rows: ``[3, b + c]``, score, weight and loss of the samples and then of the canaries.
        known: ``[b]`` bool, which samples the reference knows; the others, and canaries made of
            them, are left out. None stands for all.
        canaries: c of them, or none.
        counted: samples and canaries of all ranks that the reference knows; None: of this one.
        facts: more keywords of ``ScoreLog.append``.

    Raises:
        LogError: the log refuses these rows.
        LossError: more or fewer ids than samples.
        UsageError: there is a log, but there are no ids.
    """
    b = rows.shape[1] - (0 if canaries is None else len(canaries.ids))
    if ids is not None and len(ids) != b:
        raise LossError(f"Expected as many ids as losses, got {len(ids)} and {b}.")
    if log is None:
        return
    if ids is None:
        raise UsageError(
            "The scores are logged, so weigh needs each sample's id: weigh(losses, ids)."
        )
    if isinstance(ids, Tensor):
        ids = ids.cpu().numpy()
    if known is not None:
        ids, rows, canaries = _only(known, ids, rows, canaries)
    b = len(ids)
    samples, others = (b, rows.shape[1] - b) if counted is None else counted
    batches: list[tuple[Any, npt.NDArray[np.float32], list[str | None] | None, int]]
    if canaries is None:
        batches = [(ids, rows, None, samples)]
    elif canaries.trained:  # one softmax, so one batch
        kinds = [None] * b + [*canaries.kinds]
        batches = [([*ids, *canaries.ids], rows, kinds, samples + others)]
    else:
        batches = [
            (ids, rows[:, :b], None, samples),
            (canaries.ids, rows[:, b:], [*canaries.kinds], others),
        ]
    for batch_ids, columns, names, size in batches:
        log.append(batch_ids, *columns, canary=names, batch_size=size, **facts)


def _only(
    known: Tensor, ids: Any, rows: npt.NDArray[np.float32], canaries: CanaryLosses | None
) -> tuple[list[Any], npt.NDArray[np.float32], CanaryLosses | None]:
    """Leave out the samples that the reference does not know, and the canaries made of them."""
    mask = known.numpy()  # [b]
    kept = [sample_id for sample_id, here in zip(ids, mask.tolist(), strict=True) if here]
    if canaries is None:
        return kept, rows[:, mask], None
    own = made_of(ids, known, canaries)
    names: list[Any] = [name for name, here in zip(canaries.ids, own, strict=True) if here]
    kinds = [kind for kind, here in zip(canaries.kinds, own, strict=True) if here]
    inside = np.concatenate([mask, np.array(own, dtype=np.bool_)])
    return kept, rows[:, inside], canaries._replace(ids=names, kinds=kinds)


def made_of(ids: Ids, known: Tensor, canaries: CanaryLosses) -> list[bool]:
    """Tell of each canary whether it is made of a sample ``[b]`` that the reference knows."""
    plain = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
    there = {name for name, here in zip(plain, known.tolist(), strict=True) if here}
    return [name in there for name in canaries.ids]
