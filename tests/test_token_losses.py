import pytest
import torch
from torch.nn import functional as F

from gradmimic.errors import LossError
from gradmimic.token_losses import IGNORED, token_losses


def drawn(b=5, t=7, v=11, seed=0):
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, t, v, generator=chance, dtype=torch.float64)
    labels = torch.randint(v, (b, t), generator=chance)
    labels[torch.rand(b, t, generator=chance) < 0.3] = IGNORED
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("causal", [True, False])
def test_each_sequences_loss_is_the_mean_over_its_own_unmasked_tokens(causal, smoothing):
    logits, labels = drawn()
    found = token_losses(logits, labels, causal=causal, label_smoothing=smoothing)
    for i in range(len(labels)):
        own, wanted = (logits[i, :-1], labels[i, 1:]) if causal else (logits[i], labels[i])
        expected = F.cross_entropy(own, wanted, label_smoothing=smoothing)
        torch.testing.assert_close(found.means[i], expected)
        assert found.counts[i] == (wanted != IGNORED).sum()
    assert (found.losses[~found.counted] == 0).all()


def test_a_sequence_without_unmasked_tokens_has_no_loss_and_spoils_no_other():
    logits, labels = drawn()
    labels[2] = IGNORED
    found = token_losses(logits.requires_grad_(), labels, causal=True)
    assert found.means[2] == 0
    assert found.counts[2] == 0
    found.means.sum().backward()
    assert logits.grad.isfinite().all()


def test_half_precision_logits_give_losses_in_single_precision():
    logits, labels = drawn()
    assert token_losses(logits.bfloat16(), labels, causal=False).losses.dtype == torch.float32


def test_shapes_that_do_not_fit():
    logits, labels = drawn()
    with pytest.raises(LossError, match=r"got \[5, 7, 11\] and \[5, 6\]"):
        token_losses(logits, labels[:, :-1], causal=True)
    with pytest.raises(LossError, match=r"got \[7, 11\]"):
        token_losses(logits[0], labels[0], causal=True)
