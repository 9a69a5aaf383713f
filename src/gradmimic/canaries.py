"""Canaries: rows whose label we corrupt on purpose, scored beside the real ones.

    uniform      ỹ_i ~ any class but y_i, each alike
    confusable   ỹ_i ~ the model's own prediction p(· | x_i) over the classes but y_i
    swapped      image i with the caption of another sample of its batch

What a canary scores, a bad sample of its kind would score on this data with this reference: that
calibrates stage 2 without a single validation label. Canaries stand outside the loss and the batch
weights. The forward pass is not run again: a canary is the same output under another label.

Which samples serve is decided by a hash of their ids, so that the same ones do at every visit, with
the same uniform label, and neither a random number of the training nor the batch order changes it.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.errors import DataError, ParameterError

U64 = npt.NDArray[np.uint64]

SWAPPED = "swapped"  # the kind of all canaries of pairs


class CanaryLosses(NamedTuple):
    """What ``GradMimic.weigh`` takes: one loss per canary, with its graph.

    Attributes:
        losses: ``[c]``, unreduced, computed in the same ``with`` block as the batch's.
        ids: ``[c]``, the id of the sample that each was made from.
        kinds: ``[c]``, such as ``"uniform/10"``: the kind, and the number of classes.
        trained: whether they enter the softmax and the loss like real samples.
        rows: ``[c]``, the position in the batch of the sample that each was made from, which engine
            ``"ghost"`` asks for; or b … b + c − 1 where canaries went through the model themselves,
            behind the b samples.
        labels: ``[c]``, the wrong labels, where that is what makes them canaries.
    """

    losses: Tensor
    ids: list[int] | list[str]
    kinds: list[str]
    trained: bool = False
    rows: list[int] | None = None
    labels: Tensor | None = None


class Canaries:
    """Draw canaries from the outputs of a model.

    Args:
        rate: the share of samples that serve as canaries, in (0, 1]; each gives one of every kind.
        seed: decides which samples, and their labels.
        trained: let the canaries take part in the training, as real bad samples do. A model that
            memorises its training set scores untrained canaries lower than the bad samples it has
            learned by heart; trained ones are alike, and cost accuracy.

    Raises:
        ParameterError: the rate is not in (0, 1].

    Example:
        >>> canaries = Canaries(rate=1.0)
        >>> logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
        >>> drawn = canaries.labels(logits, labels, [7, 8])
        >>> drawn.kinds
        ['uniform/3', 'uniform/3', 'confusable/3', 'confusable/3']
        >>> drawn.losses.shape
        torch.Size([4])
    """

    def __init__(self, rate: float = 0.05, *, seed: int = 0, trained: bool = False) -> None:
        if not 0 < rate <= 1:
            raise ParameterError(f"expected a rate of canaries in (0, 1], got {rate!r}.")
        self.rate, self.seed, self.trained = rate, seed, trained

    def labels(self, logits: Tensor, labels: Tensor, ids: Any) -> CanaryLosses:
        """Make canaries of a classifier's batch by giving some samples another label.

        Args:
            logits: ``[b, K]``, the model's output inside the ``with`` block.
            labels: ``[b]`` int64 in 0 … K−1, as given.
            ids: ``[b]`` sample ids, integers or strings.

        Returns:
            The cross-entropy of one uniform and one confusable canary for each sample that serves;
            often none in a small batch.

        Raises:
            DataError: shapes do not match, a label is no class, or there is one class only.

        Example:
            >>> Canaries(rate=0.05).labels(torch.zeros(1, 2), torch.tensor([1]), ["a"]).ids
            []
        """
        b, classes = logits.shape if logits.ndim == 2 else (len(logits), 0)
        if classes < 2 or labels.shape != (b,):
            raise DataError(
                f"canaries need logits [b, K] with K ≥ 2 and labels [b], got "
                f"{list(logits.shape)} and {list(labels.shape)}. Where there is one class, no "
                "label can be wrong: train without canaries."
            )
        plain, rows, noise = self._serving(ids, b)
        at = torch.from_numpy(rows).to(logits.device)
        given = labels[at].cpu().numpy()  # [c]
        if not ((given >= 0) & (given < classes)).all():
            raise DataError(
                f"expected labels from 0 to {classes - 1}, got {given.min()} to {given.max()}."
            )
        uniform = (given + 1 + _mix(noise) % np.uint64(classes - 1)).astype(np.int64) % classes
        # Gumbel noise that belongs to the sample: while p changes little, so does the label.
        streams = np.arange(1, classes + 1, dtype=np.uint64)
        fixed = _mix(np.add(noise[:, None], streams, dtype=np.uint64))  # [c, K]
        gumbel = -np.log(-np.log((fixed >> np.uint64(11)).astype(np.float64) / 2**53 + 2.0**-54))
        chosen = logits[at]  # [c, K]
        with torch.no_grad():
            tilted = chosen.detach().double().log_softmax(1).cpu().numpy() + gumbel
        tilted[np.arange(len(rows)), given] = -np.inf
        wrong = torch.from_numpy(np.concatenate([uniform, tilted.argmax(1)])).to(logits.device)
        losses = F.cross_entropy(torch.cat([chosen, chosen]), wrong, reduction="none")
        kinds = [f"uniform/{classes}"] * len(rows) + [f"confusable/{classes}"] * len(rows)
        served = [plain[row] for row in rows]
        return CanaryLosses(losses, served + served, kinds, self.trained, rows.tolist() * 2, wrong)

    def pairs(
        self, similarity: Tensor, ids: Any, losses: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> CanaryLosses:
        """Make canaries of a contrastive batch by giving some samples another one's caption.

        ℓ_ij = −½ (log softmax_row(S)_ij + log softmax_column(S)_ij)

        That is the loss of sample i in the same batch after i and j have exchanged their captions:
        what stands in the sums of the softmaxes, the bad luck of the batch, is the same for a
        canary and for the sample it was made from.

        Args:
            similarity: S ``[b, b]``, scaled similarities of image i and caption j; with ``losses``
                anything of b rows.
            ids: ``[b]`` sample ids.
            losses: ``(i, j) -> [c]``, the loss of image i with caption j for ``[c]`` of each;
                symmetric InfoNCE by default. :meth:`gradmimic.pair_model.PairModel.canaries`
                passes the loss that its model is trained with, over the batch of all ranks.

        Returns:
            The loss of image i with a caption j ≠ i of this rank, for each sample i that serves.

        Raises:
            DataError: the matrix is not square, or there are more or fewer ids than rows.

        Example:
            >>> Canaries(rate=1.0).pairs(torch.eye(2), ["a", "b"]).kinds
            ['swapped', 'swapped']
        """
        b = len(similarity)
        if losses is None and similarity.shape != (b, b):
            raise DataError(f"expected similarities [b, b], got {list(similarity.shape)}.")
        plain, rows, noise = self._serving(ids, b)
        if b < 2:
            rows, noise = rows[:0], noise[:0]
        other = (rows + 1 + (_mix(noise) % np.uint64(max(b - 1, 1))).astype(np.int64)) % max(b, 1)
        i, j = (torch.from_numpy(index).to(similarity.device) for index in (rows, other))
        if losses is None:
            of = -(similarity.log_softmax(1)[i, j] + similarity.log_softmax(0)[i, j]) / 2
        else:
            of = losses(i, j)
        served = [plain[row] for row in rows]
        return CanaryLosses(of, served, [SWAPPED] * len(rows), self.trained, rows.tolist())

    def _serving(self, ids: Any, b: int) -> tuple[list[Any], npt.NDArray[np.int64], U64]:
        """Return all ids, the rows ``[c]`` of those that serve, and their noise ``[c]``."""
        plain = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
        if len(plain) != b:
            raise DataError(f"expected as many ids as rows, got {len(plain)} and {b}.")
        noise = _mix(_mix(_numbers(plain)) + np.uint64(self.seed % 2**64))
        rows = np.flatnonzero(noise < np.uint64(min(int(self.rate * 2.0**64), 2**64 - 1)))
        return plain, rows, noise[rows]


def enough(n: int) -> float:
    """Return a rate of canaries for n samples: 5 %, more where that would be fewer than 500.

    Example:
        >>> enough(50_000), enough(1_000)
        (0.05, 0.5)
    """
    return max(0.05, min(1.0, 500 / max(n, 1)))


def _numbers(ids: list[Any]) -> U64:
    """Return a number for each id that is the same in every process."""
    if ids and isinstance(ids[0], str):
        digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    return np.array(ids, dtype=np.int64).astype(np.uint64)


def _mix(x: U64) -> U64:
    """Scatter numbers over all of 64 bits: the finaliser of splitmix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: U64 = x ^ (x >> np.uint64(31))
    return mixed
