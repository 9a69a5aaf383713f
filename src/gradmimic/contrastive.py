"""Losses of pairs, one for each sample, though every one depends on the whole batch.

    S = s U Vᵀ + β                                    similarities [b, b] of image i and caption j
    CLIP     ℓ_ij = −½ (log softmax_row(S)_ij + log softmax_column(S)_ij)
    SigLIP   ℓ_ij = −log σ(S_ij) − ½ (Σ_{k≠j} log σ(−S_ik) + Σ_{k≠i} log σ(−S_kj))

ℓ_i = ℓ_ii is the loss of sample i, and its mean over the batch the published loss. ℓ_ij with j ≠ i
is what sample i would lose in the same batch if i and j had exchanged their captions: a canary's.
Since the scores of a batch are the derivative of the vector of its losses, that samples share a
batch makes them no harder, and no less exact. Where ``torch.distributed`` joins several ranks, the
batch is that of all of them.

Sources: Radford et al., arXiv 2103.00020; Zhai et al., arXiv 2303.15343.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.nn import functional as F

from gradmimic.errors import LossError
from gradmimic.gathered import gather, rank_count

Batch = Literal["global", "local"]


@dataclass(frozen=True, eq=False)
class Embedded:
    """What a contrastive model says of a batch of pairs.

    Args:
        image: U ``[b, e]``, of unit length.
        text: V ``[b, e]``, of unit length.
        scale: s > 0, one number.
        bias: β, one number; SigLIP's.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None = None
    _tables: dict[tuple[bool, bool], "Table"] = field(
        default_factory=dict, init=False, repr=False
    )  # losses and canaries ask for the same one, and to gather it takes time

    @property
    def similarity(self) -> Tensor:
        """S ``[b, b]``, of image i and caption j of this rank."""
        return self._scaled(self.image @ self.text.T)

    def table(self, batch: Batch = "global", *, gather_with_grad: bool = True) -> "Table":
        """Compare every sample with the whole batch.

        Args:
            batch: ``"global"``, with the samples of all ranks; ``"local"``, with this rank's.
            gather_with_grad: as of :func:`clip_losses`.

        Raises:
            LossError: there is no such batch, or as many captions as images are not there.
            RankError: another rank is gone.
        """
        if batch not in ("global", "local"):
            raise LossError(f"batch={batch!r} is unknown; expected 'global' or 'local'.")
        if self.image.ndim != 2 or self.image.shape != self.text.shape:
            raise LossError(
                "expected embeddings [b, e] of as many images as captions, in one space; got "
                f"{list(self.image.shape)} and {list(self.text.shape)}."
            )
        shared = batch == "global" and rank_count() > 1
        key = shared, gather_with_grad
        if key not in self._tables:
            self._tables[key] = self._shared(gather_with_grad) if shared else self._alone()
        return self._tables[key]

    def _alone(self) -> "Table":
        s = self.similarity
        return Table(s, s.T, torch.arange(len(s), device=s.device))

    def _shared(self, with_grad: bool) -> "Table":
        e = self.image.shape[1]
        every, first = gather(torch.cat([self.image, self.text], 1), with_grad=with_grad)
        own = torch.arange(first, first + len(self.image), device=every.device)
        rows = self._scaled(self.image @ every[:, e:].T)
        return Table(rows, self._scaled(self.text @ every[:, :e].T), own)

    def _scaled(self, products: Tensor) -> Tensor:
        s = _beside(self.scale, products) * products
        return s if self.bias is None else s + _beside(self.bias, products)


def _mean(one: Tensor, other: Tensor) -> Tensor:
    """½ (one + other), without a number that has no tangent: see ``_beside``."""
    return torch.stack((one, other)).mean(0)


def _beside(number: Tensor, products: Tensor) -> Tensor:
    """Give a number that is not scored a tangent of zero, where scores are taken.

    torch would take it for zero itself, but works out the shape of what it then leaves out in
    Python, a millisecond each time.
    """
    pairs = fwAD.unpack_dual(products).tangent, fwAD.unpack_dual(number).tangent
    if pairs[0] is None or pairs[1] is not None:
        return number
    dual: Tensor = fwAD.make_dual(number, torch.zeros_like(number))
    return dual


class Table(NamedTuple):
    """Similarities of this rank's b samples with all B of the batch, seen from either side.

    Args:
        rows: ``[b, B]``, of image i and every caption.
        columns: ``[b, B]``, of caption i and every image.
        own: ``[b]`` int64, where this rank's samples stand among the B.
    """

    rows: Tensor
    columns: Tensor
    own: Tensor

    def clip(self, i: Tensor, j: Tensor) -> Tensor:
        """Return ℓ_ij ``[c]`` of symmetric InfoNCE for images i and captions j, ``[c]`` each."""
        row = self.rows.log_softmax(1)[i, self.own[j]]
        return -_mean(row, self.columns.log_softmax(1)[j, self.own[i]])

    def siglip(self, i: Tensor, j: Tensor) -> Tensor:
        """Return ℓ_ij ``[c]`` of the pairwise sigmoid for images i and captions j."""
        s = self.rows[i, self.own[j]]
        others = _mean(F.softplus(self.rows).sum(1)[i], F.softplus(self.columns).sum(1)[j])
        return F.softplus(-s) + others - F.softplus(s)


def clip_losses(
    pairs: Embedded, *, batch: Batch = "global", gather_with_grad: bool = True
) -> Tensor:
    """Take the symmetric InfoNCE loss of every sample.

    ℓ_i = −½ (log softmax_row(S)_ii + log softmax_column(S)_ii)

    Args:
        pairs: what a model says of b pairs.
        batch: ``"global"``, the softmaxes are over the samples of all ranks, where
            ``torch.distributed`` joins several: a collective, which every rank has to come to.
            ``"local"``, over this rank's.
        gather_with_grad: let what this rank's losses say of the others' embeddings come to them.
            Scores are the same without, but gradients then lack a part.

    Returns:
        ``[b]`` losses of this rank's samples, ≥ 0; lower is better.

    Raises:
        LossError: embeddings do not fit each other.
        RankError: another rank is gone.

    Source: Radford et al., arXiv 2103.00020.

    Example:
        >>> same = torch.eye(2)
        >>> clip_losses(Embedded(same, same, torch.tensor(100.0)))
        tensor([-0., -0.])
    """
    return _of_samples(pairs, batch, gather_with_grad, "clip")


def siglip_losses(
    pairs: Embedded, *, batch: Batch = "global", gather_with_grad: bool = True
) -> Tensor:
    """Take the pairwise sigmoid loss of every sample.

    ℓ_i = −½ (Σ_j log σ(y_ij S_ij) + Σ_j log σ(y_ji S_ji)),  y_ij = 1 where i = j, else −1

    Args:
        pairs: what a model says of b pairs.
        batch: as of :func:`clip_losses`.
        gather_with_grad: likewise.

    Returns:
        ``[b]`` losses of this rank's samples, ≥ 0; lower is better.

    Raises:
        LossError: embeddings do not fit each other.
        RankError: another rank is gone.

    Source: Zhai et al., arXiv 2303.15343.

    Example:
        >>> same = torch.eye(2)
        >>> pairs = Embedded(same, same, torch.tensor(9.0), torch.tensor(-4.0))
        >>> siglip_losses(pairs).round(decimals=2)
        tensor([0.0200, 0.0200])
    """
    return _of_samples(pairs, batch, gather_with_grad, "siglip")


def _of_samples(
    pairs: Embedded, batch: Batch, gather_with_grad: bool, kind: Literal["clip", "siglip"]
) -> Tensor:
    table = pairs.table(batch, gather_with_grad=gather_with_grad)
    i = torch.arange(len(table.own), device=table.own.device)
    return table.clip(i, i) if kind == "clip" else table.siglip(i, i)
