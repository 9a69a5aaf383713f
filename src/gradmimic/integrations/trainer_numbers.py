"""What a Trainer's own log says of the weights since its last entry; see ``weighed``.

Sums of ranks are brought together when an entry is due, and no sooner. Needs the extra ``trainer``.
"""

from torch import Tensor

from gradmimic.extras import import_extra
from gradmimic.integrations.weighed import named, sums


class Numbers:
    """The sums since the last entry of the log, kept on the scores' device.

    Example:
        >>> import torch
        >>> numbers = Numbers()
        >>> numbers.see(torch.tensor([0.5, -0.5]), torch.tensor([0.75, 0.25]), 2)
        >>> numbers.read()
        {'mimic/score': 0.0, 'mimic/kept': 0.5, 'mimic/effective_batch_size': 1.6}
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # [5]
        self._seen: Tensor | None = None

    def see(self, scores: Tensor | None, weights: Tensor | None, batch_size: int | None) -> None:
        """Add what was weighed last; nothing where that was seen before, or there is none.

        Args:
            scores: ``[b]`` of this rank.
            weights: ``[b]``, their softmax over all ranks.
            batch_size: of all ranks, the b of 1/b.
        """
        if scores is None or weights is None or batch_size is None or scores is self._seen:
            return
        self._seen = scores
        own = sums(scores, weights, batch_size)
        self._sums = own if self._sums is None else self._sums + own

    def read(self) -> dict[str, float]:
        """Return the numbers by name, and begin anew; every rank must call it where one does.

        Returns:
            As of :func:`gradmimic.integrations.weighed.named`; empty where nothing was weighed
            since the last time.
        """
        if self._sums is None:
            return {}
        accelerate = import_extra("accelerate", "trainer")
        total = accelerate.utils.reduce(self._sums, reduction="sum").double().cpu()
        self._sums = None
        return {name: value.item() for name, value in named(total).items()}
