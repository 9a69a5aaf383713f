"""The batch of all ranks: everything that is decided is decided from it, on every rank alike.

    w = softmax(m / τ) over the samples of all ranks;  rank r's loss is R Σ_{i on r} w_i ℓ_i

so that the mean over R ranks, which DDP and FSDP take of the gradients, is Σ_i w_i ∇ℓ_i over all
samples: what one process gets from the ranks' batches put together. The plain mean likewise:
R Σ_{i on r} ℓ_i / b with b samples on all ranks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.canaries import SWAPPED, CanaryLosses
from gradmimic.errors import LossError
from gradmimic.measure import check_losses
from gradmimic.ranks import Ranks
from gradmimic.record import Ids, made_of

_CANARY, _ASSUMING, _TRAINED, _UNKNOWN, _SCORED, _BROKEN, _SWAPPED = (2**bit for bit in range(7))


@dataclass(frozen=True, eq=False)
class WholeBatch:
    """The samples of all ranks, rank by rank, and then their canaries.

    Args:
        scores: ``[B + C]``, on the CPU where there are several ranks.
        samples: B.
        weighed: how many of these rows share the softmax: B, and C more where they are trained on.
        known: ``[B]``, which samples the reference knows; None stands for all.
        assuming: ``[C]``, which canaries lean on the model's own predictions.
        own: ``[b + c]``, where this rank's rows are.
        counted: samples and canaries that the reference knows.
        scored: whether every rank has scores.
        ranks: R.
        swapped: whether its canaries are pairs with another caption.
    """

    scores: Tensor
    samples: int
    weighed: int
    known: Tensor | None
    assuming: npt.NDArray[np.bool_]
    own: Tensor | slice
    counted: tuple[int, int] | None
    scored: bool
    ranks: int
    swapped: bool = False

    def weights_here(self, weights: Tensor) -> Tensor:
        """Turn weights of the rows that share the softmax into this rank's ``[b + c]``."""
        outside = len(self.scores) - len(weights)  # canaries weigh nothing
        return (F.pad(weights, (0, outside)) if outside else weights)[self.own]

    def mean(self, losses: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return this rank's part of the plain mean, or Σ_i s_i ℓ_i; 0 for an empty batch."""
        if shares is not None:
            return (shares * losses).sum()
        return losses.sum() * (self.ranks / max(self.weighed, 1))

    def factors(self, weights: Tensor, shares: Tensor | None) -> Tensor:
        """Return what to multiply this rank's losses with: R w_i, or B w_i s_i."""
        return weights * (self.ranks if shares is None else self.weighed * shares)

    def plainest(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the scores of the canaries that make the fewest assumptions, of ``[B + C]``."""
        canaries = scores[self.samples :]
        return canaries if self.assuming.all() else canaries[~self.assuming]


def whole_batch(
    ranks: Ranks,
    scores: Tensor | None,
    losses: Tensor,
    b: int,
    known: Tensor | None = None,
    canaries: CanaryLosses | None = None,
    ids: Ids | None = None,
) -> WholeBatch:
    """Put the batches of all ranks together; a collective where there are several.

    Args:
        ranks: whose.
        scores: ``[b + c]``; None where this pass was not scored, and then no rank's is.
        losses: ``[b + c]``.
        b: the samples among them.
        known: ``[b]``, which of them the reference knows; None stands for all.
        canaries: the rest.
        ids: ``[b]``, to tell which canaries are made of samples that the reference knows.

    Raises:
        LossError: losses or scores on some rank are not finite; every rank raises then.
        RankError: another rank is gone.
    """
    kinds = [] if canaries is None else canaries.kinds
    trained = canaries is not None and canaries.trained
    swapped = any(kind == SWAPPED for kind in kinds)
    assuming = np.array([kind.startswith("confusable/") for kind in kinds], dtype=np.bool_)
    if ranks.size == 1:
        values = check_losses(losses) if scores is None else scores
        weighed = len(losses) if trained else b
        return WholeBatch(
            values, b, weighed, known, assuming, slice(None), None, scores is not None, 1, swapped
        )
    values = torch.zeros_like(losses) if scores is None else scores
    wide = torch.stack([values.detach(), losses.detach()]).double().cpu()  # the one transfer
    flags = np.full(len(losses), 0 if scores is None else _SCORED)
    flags[b:] |= _CANARY + trained * _TRAINED + swapped * _SWAPPED
    flags[b:][assuming] |= _ASSUMING
    flags[~wide.isfinite().all(0).numpy()] |= _BROKEN
    if known is not None:
        flags[:b][~known.numpy()] |= _UNKNOWN
        if canaries is not None and ids is not None:
            flags[b:][~np.array(made_of(ids, known, canaries), dtype=np.bool_)] |= _UNKNOWN
    mine = torch.stack([wide[0], torch.from_numpy(flags).double()])
    parts = ranks.gather(mine)  # [2, n_r] each
    rows = torch.cat(parts, 1)
    told = rows[1].numpy().astype(np.int64)
    order = np.argsort(told & _CANARY, kind="stable")  # samples first
    before = sum(part.shape[1] for part in parts[: ranks.rank])
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    told = told[order]
    if (told & _BROKEN).any():
        check_losses(losses)
        raise LossError(
            f"Losses or scores on some rank are NaN or infinite; on rank {ranks.rank}, "
            f"{int((flags & _BROKEN > 0).sum())} of {len(flags)} are. Look at the samples of that "
            "rank, or lower the learning rate."
        )
    canary, unknown = told & _CANARY > 0, told & _UNKNOWN > 0
    samples = int((~canary).sum())
    return WholeBatch(
        rows[0][torch.from_numpy(order)].to(values.dtype),
        samples,
        samples + int((told & _TRAINED > 0).sum()),
        torch.from_numpy(~unknown[:samples]) if unknown[:samples].any() else None,
        told[samples:] & _ASSUMING > 0,
        torch.from_numpy(places[before : before + len(losses)]),
        (int((~canary & ~unknown).sum()), int((canary & ~unknown).sum())),
        bool((told & _SCORED > 0).all()),
        ranks.size,
        bool((told & _SWAPPED > 0).any()),
    )
