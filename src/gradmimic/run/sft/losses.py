"""What one pass says of a batch: the loss of every sample and canary, and the reference's.

    ℓ_i = mean of −log p_θ(token | all before it) over the tokens that count
    reference_loss  −ℓ_i(θ_ref)              how well the reference predicts the response
    reducible       ℓ_i(θ) − ℓ_i(θ_ref)      what there is to learn, as RHO-LOSS has it

All are scores of the same samples, so higher is better. m_i is what the second becomes for a small
step from θ toward θ_ref.

Source: Mindermann et al., arXiv 2206.07137, for the reducible loss.
"""

from torch import nn

from gradmimic.canaries import SWAPPED, CanaryLosses
from gradmimic.run.sft.batch import SftBatch
from gradmimic.token_losses import TokenLosses, token_losses
from gradmimic.visit import Losses, Said

REFERENCE, REDUCIBLE = "reference_loss", "reducible"


def losses_of(reference: nn.Module | None, *, tokens: bool) -> Losses[SftBatch]:
    """Return what scoring asks of a model and a batch.

    Args:
        reference: a whole model, in eval mode, whose losses are scores too; None for none.
        tokens: whether scores of tokens are wanted.
    """

    def losses(model: nn.Module, batch: SftBatch) -> Said:
        b, c = len(batch.ids), len(batch.canary_ids)
        found = _tokens(model, batch)
        own = found.means  # [b + c]
        others = {}
        if reference is not None:
            theirs = _tokens(reference, batch).means
            others = {REFERENCE: -theirs, REDUCIBLE: own.detach() - theirs}
        canaries = None
        if c:
            rows = [*range(b, b + c)]  # rows of their own, behind the samples
            canaries = CanaryLosses(own[b:], batch.canary_ids, [SWAPPED] * c, rows=rows)
        each = TokenLosses(found.losses[:b], found.counted[:b]) if tokens else None
        return Said(own[:b], canaries, others, each)

    return losses


def _tokens(model: nn.Module, batch: SftBatch) -> TokenLosses:
    """Return the losses of all tokens."""
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return token_losses(output.logits, batch.labels, causal=True)
