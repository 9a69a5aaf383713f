"""Canaries of pairs: captions of other pictures, scored beside the pairs of every batch.

    swapped   image i with the caption of another pair of its batch, outside the training
    planted   image i with the caption of pair j, the same at every visit, trained on like any pair

A model that passes over its pairs many times learns them by heart, the bad ones as well, but never
a swapped canary, which then scores worse than any bad pair. A planted one is learned like these,
and tells what they score at every visit; its weight is as low as theirs. So pairs that are held in
memory get planted canaries, which plain training never sees; those that stream by, swapped ones.
"""

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor, nn

from gradmimic.canaries import Canaries, CanaryLosses
from gradmimic.data.pairs.batch import PairBatch
from gradmimic.pair_model import PairModel
from gradmimic.run.clip.pool import Held, seed_of

PLANTED = "planted"
_LEAST, _MOST, _ENOUGH = 0.1, 0.25, 200


@dataclass(frozen=True)
class Swapped:
    """Draws canaries from the batch itself; see :meth:`PairModel.canaries`."""

    canaries: Canaries

    def __call__(
        self, pair: PairModel, model: nn.Module, batch: PairBatch, _epoch: int
    ) -> tuple[Tensor, CanaryLosses | None]:
        """Return the losses ``[b]`` of a batch, and those of its canaries."""
        pairs = pair.embed(model, batch)
        return pair.losses(pairs), pair.canaries(pairs, batch.ids, self.canaries)


@dataclass(eq=False)
class Planted:
    """Puts some planted canaries beside every batch; each comes once an epoch.

    Args:
        pairs: the canaries.
        steps: batches of an epoch.
        step: batches so far.
    """

    pairs: Held
    steps: int
    step: int = 0

    def __call__(
        self, pair: PairModel, model: nn.Module, batch: PairBatch, epoch: int
    ) -> tuple[Tensor, CanaryLosses | None]:
        """Return the losses ``[b]`` of a batch, and those of canaries in the same batch."""
        own = self._next(epoch)
        b = len(batch)
        both = replace(
            batch,
            images=torch.cat([batch.images, own.images.to(batch.images)]),
            tokens={k: torch.cat([t, own.tokens[k].to(t)]) for k, t in batch.tokens.items()},
        )
        losses = pair.losses(pair.embed(model, both))  # [b + c]
        kinds = [PLANTED] * len(own)
        return losses[:b], CanaryLosses(losses[b:], [str(i) for i in own.ids], kinds, trained=True)

    def _next(self, epoch: int) -> PairBatch:
        generator = torch.Generator().manual_seed(seed_of(self.pairs.seed, epoch, 1))
        order = torch.randperm(len(self.pairs), generator=generator)
        rows = order.tensor_split(self.steps)[self.step % self.steps]
        self.step += 1
        return self.pairs.batch(rows, self.pairs.drawn(epoch))


def plant(pairs: Held, rate: float | None, seed: int) -> Held:
    """Make planted canaries: ⌈ρn⌉ pictures, each with the captions of another pair.

    Args:
        pairs: those to train on.
        rate: ρ in (0, 1]; by default 0.1, and up to 0.25 where there would be fewer than 200.
        seed: decides which.

    Returns:
        The canaries, with the ids of the pictures.

    Example:
        >>> captions = [("a",), ("b",), ("c",)]
        >>> some = Held(torch.zeros(3, 1), captions, ["0", "1", "2"], lambda t: {}, 2, 0)
        >>> planted = plant(some, 1.0, seed=0)
        >>> any(text == "abc"[int(own)] for own, (text,) in zip(planted.ids, planted.captions))
        False
    """
    n = len(pairs)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(seed, 2)))
    share = max(_LEAST, min(_MOST, _ENOUGH / n)) if rate is None else rate
    count = max(2, ceil(share * n))
    rows, partners = order[:count].tolist(), order.roll(-1)[:count].tolist()
    planted = pairs.take(rows)
    return replace(planted, captions=[pairs.captions[row] for row in partners])
