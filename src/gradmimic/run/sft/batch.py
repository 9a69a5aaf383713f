"""Token sequences of one forward pass: b samples, then c canaries, each a row of its own.

labels = input_ids where the model is to learn what it says, else −100; they are not shifted.
"""

from typing import NamedTuple

from torch import Tensor


class SftBatch(NamedTuple):
    """Token sequences padded on the right to one length t."""

    input_ids: Tensor  # [b + c, t] int64
    attention_mask: Tensor  # [b + c, t] int64, 1 for tokens and 0 for padding
    labels: Tensor  # [b + c, t] int64, the token itself where it counts, else -100
    ids: list[str]  # [b]
    canary_ids: list[str]  # [c], the id of the sample whose prompt a canary has
