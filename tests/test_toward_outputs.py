import copy
import math

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, Outputs, ScoreLog
from gradmimic.errors import AlignmentError, DataError, LossError, UsageError
from gradmimic.transport import SHARPNESS


def centred(z):
    return z - z.mean(-1, keepdim=True)


def directions(z, there):
    here, there = centred(z), centred(there)
    t = there * (SHARPNESS * here.norm() / there.norm()) - here
    return t, t.norm() / len(t) ** 0.5


def by_hand(model, batch, losses, there):
    """One backward pass a loss: ⟨−∂ℓ_i/∂z, t⟩ over all outputs of the batch."""
    seen = []
    hook = next(reversed(list(model.modules()))).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output)
    )
    values = losses(model, batch)
    hook.remove()
    (z,) = seen
    t, norm = directions(z.detach(), there)
    found = [
        -(torch.autograd.grad(value, z, retain_graph=True)[0] * t).sum() / norm for value in values
    ]
    return torch.stack(found)


@pytest.mark.parametrize("loss", ["cross-entropy", "label-smoothing", "bce", "mse", "contrastive"])
@pytest.mark.parametrize("b", [1, 2, 17])
def test_scores_are_the_derivative_along_the_way_to_the_outputs(loss, b):
    model, _ = zoo.build("mlp", 3)
    batch, losses = zoo.draw("mlp", b), zoo.losses_of(loss)
    table = Outputs(range(b), torch.randn(b, zoo.CLASSES))
    mimic = GradMimic(model, table, align="outputs")
    with mimic:
        values = losses(model, batch)
    mimic.weigh(values, range(b)).backward()
    expected = by_hand(model, batch, losses, table.of(range(b))[0].double())
    torch.testing.assert_close(mimic.scores, expected, rtol=1e-5, atol=1e-6)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_canaries_of_one_sample_are_told_apart():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4), torch.randn(20, 3), torch.randint(4, (20,))
    said = F.one_hot(y, 4).float()
    mimic = GradMimic(model, Outputs(range(20), said), align="outputs")
    seen = []
    mimic._learning.learn = lambda whole, scores, *_: seen.append((scores, whole.samples))
    with mimic:
        logits = model(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        drawn = Canaries(rate=1.0).labels(logits, y, range(20))
    mimic.weigh(losses, range(20), canaries=drawn)
    ((scores, b),) = seen
    z, alone = logits.detach(), []
    t, norm = directions(z, said)
    for place, single in enumerate(drawn.losses.detach()):
        i = place % 20  # each sample made a canary of either kind, with one wrong label each
        label = int((-z.log_softmax(1)[i] - single).abs().argmin())
        alone.append(float((t[i, label] - z.softmax(1)[i] @ t[i]) / norm))
    assert scores[b:] == pytest.approx(alone, abs=1e-4)
    assert scores[:b].mean() > scores[b:].mean()


def test_a_module_beside_and_its_table_agree_and_nothing_else_changes():
    model, reference = zoo.build("cnn-batchnorm-train", 3, torch.float32)
    batch, losses = zoo.draw("cnn", 8, torch.float32), zoo.losses_of("cross-entropy")
    reference.eval()
    said = reference(batch.x).detach()
    reference.train()
    before = copy.deepcopy(reference.state_dict())
    seen = []
    for given in (reference, Outputs(range(8), said)):
        twin = copy.deepcopy(model)
        mimic = GradMimic(twin, given, align="outputs")
        with mimic:
            values = losses(twin, batch)
        mimic.weigh(values, range(8))
        seen.append(mimic.scores)
    torch.testing.assert_close(*seen, rtol=5e-3, atol=5e-3)
    assert reference.training
    for name, value in reference.state_dict().items():
        assert torch.equal(value, before[name])


def test_samples_that_the_table_lacks_weigh_an_equal_share(tmp_path):
    model, x, y = nn.Linear(3, 4), torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    with ScoreLog(tmp_path) as log:
        table = Outputs([0, 1, 2, 3], torch.randn(4, 4))
        mimic = GradMimic(model, table, align="outputs", temperature=0.1, log=log)
        with mimic:
            losses = F.cross_entropy(model(x), y, reduction="none")
        mimic.weigh(losses, range(6))
        assert mimic.weights[4:].tolist() == pytest.approx([1 / 6, 1 / 6])
        assert mimic.weights.sum().item() == pytest.approx(1)
        assert mimic.missing == 2
        assert log.scan()["sample_id"].to_pylist() == [0, 1, 2, 3]


def test_every_token_of_a_sequence_has_its_direction():
    torch.manual_seed(0)
    model = zoo.TiedDecoder()
    words = torch.randint(11, (3, 5))

    class Says(nn.Module):
        def forward(self, words):
            return 4 * F.one_hot(words, 11).float()

    mimic = GradMimic(model, Says(), align="outputs")
    with mimic:
        z = model(words)
        losses = F.cross_entropy(z.flatten(0, 1), words.flatten(), reduction="none")
        losses = losses.view(3, 5).mean(1)
    mimic.weigh(losses).backward()
    t, norm = directions(z.detach(), 4 * F.one_hot(words, 11).float())
    p = z.detach().softmax(2)
    expected = ((F.one_hot(words, 11) - p) * t).sum(2).mean(1) / norm
    torch.testing.assert_close(mimic.scores, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be():
    model, x, y = nn.Linear(3, 4), torch.randn(6, 3), torch.zeros(6).long()
    table = Outputs(range(6), torch.randn(6, 4))
    mimic = GradMimic(model, table, align="outputs")
    with mimic:
        losses = F.cross_entropy(model(x), y, reduction="none")
    with pytest.raises(UsageError, match="so weigh needs each sample's id"):
        mimic.weigh(losses)
    with mimic:
        pass
    with pytest.raises(UsageError, match="did not run in the `with` block"):
        mimic.weigh(losses, range(6))
    with mimic:
        model(x)
    with pytest.raises(LossError, match="cannot be differentiated by the output of the scored"):
        mimic.weigh(losses, range(6))
    wide = GradMimic(model, Outputs(range(6), torch.randn(6, 5)), align="outputs")
    with wide:
        losses = F.cross_entropy(model(x), y, reduction="none")
    with pytest.raises(DataError, match=r"gives outputs \[6, 4\], the reference \[6, 5\]"):
        wide.weigh(losses, range(6))
    with pytest.raises(AlignmentError, match="expects one linear layer, params= names 2"):
        GradMimic(nn.Sequential(model, nn.Linear(4, 4)), table, params="all", align="outputs")
    with pytest.raises(AlignmentError, match="align='outputs' needs what the reference says"):
        GradMimic(model, model.state_dict(), align="outputs")


def test_where_the_reference_says_what_the_model_says_confidence_is_all_there_is():
    model, x, y = nn.Linear(3, 4), torch.randn(6, 3), torch.zeros(6).long()
    mimic = GradMimic(model, model, align="outputs", temperature=math.inf)
    with mimic:
        losses = F.cross_entropy(model(x), y, reduction="none")
    loss = mimic.weigh(losses)
    assert loss.item() == pytest.approx(losses.mean().item())
    assert mimic.scores.isfinite().all()
