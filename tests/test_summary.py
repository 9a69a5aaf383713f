import pytest
import torch
from on_ranks import batch_of, models
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic
from gradmimic.errors import DataError
from gradmimic.integrations.torchmetrics import MimicSummary


def numbers(summary):
    return {name: value.item() for name, value in summary.compute().items()}


def batch(*, b, seed):
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randn(b, generator=chance)
    return scores, scores.softmax(0)


def test_one_batch_gives_what_its_formulas_say():
    scores, weights = batch(b=9, seed=0)
    summary = MimicSummary()
    summary.update(scores, weights)
    assert numbers(summary) == pytest.approx(
        {
            "mimic/score": scores.mean().item(),
            "mimic/kept": sum(w > 1 / 9 for w in weights.tolist()) / 9,
            "mimic/effective_batch_size": 1 / (weights**2).sum().item(),
        }
    )


def test_equal_weights_keep_all_and_use_the_whole_batch():
    summary = MimicSummary()
    summary.update(torch.ones(8), torch.full([8], 1 / 8))
    summary.update(torch.zeros(8), torch.full([8], 1 / 8))
    expected = {"mimic/score": 0.5, "mimic/kept": 1.0, "mimic/effective_batch_size": 8.0}
    assert numbers(summary) == pytest.approx(expected)


def test_parts_of_a_batch_on_two_ranks_come_to_the_same_as_the_batch():
    whole, ranks = MimicSummary(), [MimicSummary(), MimicSummary()]
    for seed in range(3):
        scores, weights = batch(b=10, seed=seed)
        whole.update(scores, weights)
        ranks[0].update(scores[:3], weights[:3], 10)
        ranks[1].update(scores[3:], weights[3:], 10)
    together = MimicSummary()
    together.sums = sum(rank.sums for rank in ranks)
    together.update(torch.zeros(0), torch.zeros(0), 10)
    assert numbers(together) == pytest.approx(numbers(whole))


def test_the_mimic_tells_how_many_share_its_weights():
    model, reference = models()
    mimic = GradMimic(model, reference)
    x, y, ids = batch_of(0)
    for canaries, expected in ((None, 12), (Canaries(1.0), 12), (Canaries(1.0, trained=True), 36)):
        with mimic:
            logits = model(x)
            losses = F.cross_entropy(logits, y, reduction="none")
            drawn = None if canaries is None else canaries.labels(logits, y, ids)
        mimic.weigh(losses, ids, canaries=drawn)
        assert mimic.batch_size == expected


def test_scores_and_weights_must_belong_together():
    with pytest.raises(DataError, match=r"scores \[b\] and weights \[b\], got \[2\] and \[3\]"):
        MimicSummary().update(torch.zeros(2), torch.zeros(3))
