"""A batch of pairs, ready for a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pictures and captions, ready for a model.

    Args:
        images: ``[b, 3, s, s]`` float32, as the model's transform made them.
        tokens: what the model's tokenizer made of the captions, ``[b, t]`` each.
        ids: ``[b]`` sample ids, all integers or all strings.
        texts: ``[b]`` captions.
        shard: the number of the shard that they all come from; −1 where they are mixed.
        last: whether this is the last batch of its shard.
        captions: ``[b]``, all captions of each sample; None where none has several.
    """

    images: Tensor
    tokens: Mapping[str, Tensor]
    ids: Sequence[str] | Sequence[int]
    texts: Sequence[str]
    shard: int = -1
    last: bool = False
    captions: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.ids)
