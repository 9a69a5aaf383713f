import copy
import math

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradmimic import GradMimic, ScoreLog, mimic_scores
from gradmimic.errors import (
    DirectionError,
    LogError,
    LossError,
    ParameterError,
    ReferenceMismatchError,
    UsageError,
)
from gradmimic.score import batch_weights

LOSSES = zoo.losses_of("cross-entropy")


def weighed(mimic, model, batch, losses=LOSSES, ids=None, **options):
    with mimic:
        values = losses(model, batch)
    return mimic.weigh(values, ids, **options)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@given(
    scores=st.lists(st.floats(-50, 50), min_size=1, max_size=40),
    temperature=st.floats(1e-3, 1e3),
)
def test_the_weighted_mean_score_is_at_least_the_mean_score(scores, temperature):
    m = torch.tensor(scores, dtype=torch.float64)
    w = batch_weights(m, temperature)
    assert w.sum().item() == pytest.approx(1)
    assert (w * m).sum() >= m.mean() - 1e-9
    uniform = batch_weights(m, math.inf)
    assert (uniform * m).sum().item() == pytest.approx(m.mean().item(), abs=1e-9)


def test_training_at_infinite_temperature_is_plain_training():
    plain, reference = zoo.build("transformer", 3)
    model = copy.deepcopy(plain)
    mimic = GradMimic(model, reference, temperature=math.inf, params="all")
    runs = []
    for net, loss_of in (
        (plain, lambda batch: LOSSES(plain, batch).mean()),
        (model, lambda batch: weighed(mimic, model, batch)),
    ):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for step in range(20):
            optimizer.zero_grad()
            loss_of(zoo.draw("transformer", 16, seed=step)).backward()
            optimizer.step()
        runs.append(net.state_dict())
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("engine", ["forward", "oracle"])
@pytest.mark.parametrize("kind", zoo.MODELS)
def test_the_step_is_the_weighted_sum_of_the_samples_gradients(kind, engine):
    model, reference = zoo.build(kind, 3)
    batch = zoo.draw(kind, 6)
    scores = mimic_scores(model, reference, batch, LOSSES, engine="oracle")
    weights = torch.softmax(scores / 0.3, 0)
    expected = gradients(model, (weights * LOSSES(model, batch)).sum())
    mimic = GradMimic(model, reference, temperature=0.3, engine=engine)
    actual = gradients(model, weighed(mimic, model, batch))
    torch.testing.assert_close(mimic.scores, scores, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mimic.weights, weights)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("params", ["head", "all", "layer.*"])
@pytest.mark.parametrize("engine", ["forward", "oracle"])
def test_reweight_scored_leaves_the_other_parameters_the_plain_mean(params, engine):
    model, reference = zoo.build("transformer", 2)
    batch = zoo.draw("transformer", 7)
    mimic = GradMimic(
        model, reference, temperature=0.1, reweight="scored", params=params, engine=engine
    )
    loss = weighed(mimic, model, batch)
    torch.testing.assert_close(loss, LOSSES(model, batch).mean())
    actual = gradients(model, loss)
    plain = gradients(model, LOSSES(model, batch).mean())
    follow = gradients(model, (mimic.weights * LOSSES(model, batch)).sum())
    scored = mimic._subset.parameters
    for name, gradient in actual.items():
        expected = follow if name in scored else plain
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_reweight_scored_with_a_tied_head_reweights_its_use_as_head_only():
    model = zoo.TiedDecoder().double()
    reference, words = zoo.nearby(model), torch.randint(11, (5, 7))

    def losses(m, w):
        z = m(w[:, :-1])
        return F.cross_entropy(z.transpose(1, 2), w[:, 1:], reduction="none").mean(1)

    mimic = GradMimic(model, reference, temperature=0.1, reweight="scored")
    actual = gradients(model, weighed(mimic, model, words, losses))
    untied = copy.deepcopy(model)
    untied.lm_head.weight = nn.Parameter(model.wte.weight.detach().clone())
    plain = gradients(untied, losses(untied, words).mean())
    follow = gradients(untied, (mimic.weights * losses(untied, words)).sum())
    expected = plain["wte.weight"] + follow["lm_head.weight"]
    torch.testing.assert_close(actual["wte.weight"], expected)
    torch.testing.assert_close(actual["trunk.weight"], plain["trunk.weight"])


def test_warmup_steps_score_and_train_on_the_plain_mean():
    model, reference = zoo.build("mlp", 3)
    mimic = GradMimic(model, reference, temperature=0.1, warmup=2)
    batch = zoo.draw("mlp", 8)
    for step in range(3):
        loss = weighed(mimic, model, batch)
        assert mimic.scores.std() > 0
        plain = LOSSES(model, batch).mean()
        assert torch.isclose(loss, plain) == (step < 2)


def test_the_temperature_may_follow_the_step():
    model, reference = zoo.build("mlp", 3)
    batch = zoo.draw("mlp", 8)
    mimic = GradMimic(model, reference, temperature=lambda step: 1.0 / (1 + step))
    for step in range(3):
        weighed(mimic, model, batch)
        expected = torch.softmax(mimic.scores * (1 + step), 0)
        torch.testing.assert_close(mimic.weights, expected)
    mimic = GradMimic(model, reference, temperature=lambda step: 0.0)
    with pytest.raises(ParameterError, match="positive number or inf, got 0.0"):
        weighed(mimic, model, batch)
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ParameterError, match="temperature must be"):
            GradMimic(model, reference, temperature=wrong)


def test_accumulated_gradients_are_the_sum_of_each_micro_batchs():
    model, reference = zoo.build("mlp", 3)
    mimic = GradMimic(model, reference)
    batches = [zoo.draw("mlp", 4, seed=s) for s in range(3)]
    expected = [gradients(model, weighed(mimic, model, batch) / 3) for batch in batches]
    model.zero_grad()
    for batch in batches:
        (weighed(mimic, model, batch) / 3).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, sum(g[name] for g in expected))


@pytest.mark.parametrize("params", ["head", "all"])
def test_autocast_in_bfloat16(params):
    model, reference = zoo.build("transformer", 8, torch.float32)
    batch = zoo.draw("transformer", 16, torch.float32)
    exact = mimic_scores(model, reference, batch, LOSSES, params=params)
    mimic = GradMimic(model, reference, params=params)
    with torch.autocast("cpu", torch.bfloat16):
        loss = weighed(mimic, model, batch)
    loss.backward()
    assert torch.corrcoef(torch.stack([exact, mimic.scores.float()]))[0, 1] > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_gradient_checkpointing_below_the_head():
    class Checkpointed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.trunk, self.head = model[:2], model[2]

        def forward(self, x):
            return self.head(checkpoint(self.trunk, x, use_reentrant=False))

    plain, reference = zoo.build("mlp", 4)
    model, batch = Checkpointed(copy.deepcopy(plain)), zoo.draw("mlp", 6)
    expected = gradients(plain, weighed(GradMimic(plain, reference), plain, batch))
    actual = gradients(model, weighed(GradMimic(model, Checkpointed(reference)), model, batch))
    for (_, a), (_, b) in zip(sorted(actual.items()), sorted(_renamed(expected)), strict=True):
        torch.testing.assert_close(a, b)


def _renamed(gradients):
    return [
        (name.replace("2.", "head.") if name[0] == "2" else f"trunk.{name}", g)
        for name, g in gradients.items()
    ]


def test_the_losses_may_be_computed_after_the_block_and_weighed_inside_it():
    model, reference = zoo.build("mlp", 3)
    batch = zoo.draw("mlp", 5)
    expected = mimic_scores(model, reference, batch, LOSSES)
    mimic = GradMimic(model, reference)
    with mimic:
        z = model(batch.x)
    mimic.weigh(F.cross_entropy(z, batch.y, reduction="none"))
    torch.testing.assert_close(mimic.scores, expected)
    with mimic:
        mimic.weigh(LOSSES(model, batch)).backward()
    torch.testing.assert_close(mimic.scores, expected)


def test_the_model_is_the_same_object_with_the_same_parts_whatever_happens():
    model, reference = zoo.build("cnn-batchnorm-train", 2)
    parameters, state = list(model.parameters()), set(vars(model))
    batch = zoo.draw("cnn", 4)
    mimic = GradMimic(model, reference, params="all")
    weighed(mimic, model, batch).backward()
    with pytest.raises(ZeroDivisionError), mimic:
        model(batch.x)
        raise ZeroDivisionError
    with pytest.raises(RuntimeError), mimic:
        model(batch.x[:, :, 0])
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert set(vars(model)) == state
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.autograd.forward_ad.dual_level():
        pass  # no level was left open
    before = model.eval()(batch.x)
    assert torch.autograd.forward_ad.unpack_dual(before).tangent is None
    weighed(mimic, model.train(), batch).backward()  # and it goes on


def test_a_head_registered_first_is_settled_by_the_first_batch():
    from test_direction import HeadFirst

    model = HeadFirst().double()
    reference, batch = zoo.nearby(model), zoo.draw("mlp", 6)
    mimic = GradMimic(model, reference)
    with pytest.warns(UserWarning, match=r"used last is 'fc', not 'spare'.*params='fc\.\*'"):
        loss = weighed(mimic, model, batch)
    torch.testing.assert_close(loss, LOSSES(model, batch).mean())
    weighed(mimic, model, batch)
    expected = mimic_scores(model, reference, batch, LOSSES, params="fc.*")
    torch.testing.assert_close(mimic.scores, expected)


class TestLogging:
    def test_what_is_logged(self, tmp_path):
        model, reference = zoo.build("mlp", 3)
        with ScoreLog(tmp_path) as log:
            mimic = GradMimic(model, reference, log=log, temperature=0.2)
            seen = []
            for step in range(3):
                ids = torch.arange(4) + 4 * step
                weighed(mimic, model, zoo.draw("mlp", 4, seed=step), ids=ids, epoch=1)
                seen.append((mimic.scores, mimic.weights))
            table = log.scan().to_pydict()
            norms = log.run["direction_norm"]
        assert table["sample_id"] == list(range(12))
        assert table["epoch"] == [1] * 12
        assert table["step"] == [0] * 4 + [1] * 4 + [2] * 4
        assert table["batch_size"] == [4] * 12
        scores, weights = (torch.cat(t).float().tolist() for t in zip(*seen, strict=True))
        assert table["score"] == scores
        assert table["weight"] == weights
        better, now = reference[2].state_dict(), model[2].state_dict()
        v = torch.cat([(better[k] - now[k]).flatten() for k in better])
        assert norms[0] == pytest.approx(v.norm().item())
        assert sorted(norms) == [0, 1, 2]

    def test_ids_are_needed_and_checked(self, tmp_path):
        model, reference = zoo.build("mlp", 3)
        batch = zoo.draw("mlp", 3)
        with ScoreLog(tmp_path) as log:
            mimic = GradMimic(model, reference, log=log)
            with pytest.raises(UsageError, match=r"weigh\(losses, ids\)"):
                weighed(mimic, model, batch)
            with pytest.raises(LossError, match="as many ids as losses, got 2 and 3"):
                weighed(mimic, model, batch, ids=["a", "b"])
            with pytest.raises(LogError, match="more than once in one batch"):
                weighed(mimic, model, batch, ids=["a", "b", "a"])
            weighed(mimic, model, batch, ids=["a", "b", "c"]).backward()
            assert log.scan().num_rows == 3
            assert mimic.step == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values: values.mean(), "got shape \\[\\].*reduction='none'"),
        (lambda values: values[:, None].expand(-1, 2), "got shape \\[4, 2\\].*flatten"),
        (lambda values: values * torch.tensor([1, math.nan, 1, 1]), "1 of 4.*position 1"),
        (lambda values: values / torch.tensor([1, 1, 1, 0.0]), "1 of 4.*inf at position 3"),
        (lambda values: values.detach(), "do not depend on the scored parameters"),
        (lambda values: values.long(), "floating point tensor of losses"),
    ],
)
def test_losses_that_cannot_be_weighed(spoil, message):
    model, reference = zoo.build("mlp", 3)
    batch, mimic = zoo.draw("mlp", 4), GradMimic(model, reference)
    with pytest.raises(LossError, match=message):
        weighed(mimic, model, batch, lambda m, b: spoil(LOSSES(m, b)))
    weighed(mimic, model, batch).backward()  # the next batch is not harmed


def test_calls_in_the_wrong_order_and_unfit_references():
    model, reference = zoo.build("mlp", 3)
    batch, mimic = zoo.draw("mlp", 4), GradMimic(model, reference)
    with pytest.raises(UsageError, match="no forward pass to weigh"):
        mimic.weigh(LOSSES(model, batch))
    loss = weighed(mimic, model, batch)
    with pytest.raises(UsageError, match="no forward pass to weigh"):
        mimic.weigh(loss[None])
    with pytest.raises(ParameterError, match="reweight='half' is unknown"):
        GradMimic(model, reference, reweight="half")
    with pytest.raises(ReferenceMismatchError, match="missing from the reference: 2.weight"):
        GradMimic(model, {"0.weight": torch.ones(3, 3)})
    with pytest.raises(DirectionError, match="direction is zero"):
        weighed(GradMimic(model, model), model, batch)


def test_an_empty_batch_weighs_nothing():
    model, reference = zoo.build("mlp", 3)
    for options in ({}, {"reweight": "scored"}, {"warmup": 1}):
        mimic = GradMimic(model, reference, **options)
        loss = weighed(mimic, model, zoo.draw("mlp", 0))
        assert loss.item() == 0
        assert len(mimic.scores) == 0


def test_a_block_that_cannot_begin_leaves_nothing_behind():
    model, reference = zoo.build("mlp", 3)
    batch, mimic = zoo.draw("mlp", 4), GradMimic(model, reference)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(UsageError, match="not nest"):
        mimic.__enter__()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(UsageError, match="no forward pass to weigh"):
        mimic.weigh(LOSSES(model, batch))
    weighed(mimic, model, batch).backward()


@pytest.mark.parametrize("reweight", ["all", "scored"])
@pytest.mark.parametrize("engine", ["forward", "ghost", "oracle"])
def test_shares_say_what_each_sample_counts_in_the_plain_loss(engine, reweight):
    model, reference = zoo.build("transformer", 3)
    batch = zoo.draw("transformer", 6)
    tokens = torch.tensor([3.0, 1, 4, 1, 5, 9], dtype=torch.float64)
    shares = tokens / (2 * tokens.sum())  # as in a step of two such batches
    options = {"params": "all", "engine": engine, "reweight": reweight}
    for temperature in (0.3, math.inf):
        mimic = GradMimic(model, reference, temperature=temperature, **options)
        actual = gradients(model, weighed(mimic, model, batch, shares=shares))
        weights = mimic.weights if temperature < math.inf else torch.full_like(shares, 1 / 6)
        expected = gradients(model, (6 * weights * shares * LOSSES(model, batch)).sum())
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-12)
    warm = GradMimic(model, reference, warmup=1, **options)
    loss = weighed(warm, model, batch, shares=shares)
    torch.testing.assert_close(loss, (shares * LOSSES(model, batch)).sum())


def test_shares_that_do_not_fit():
    model, reference = zoo.build("mlp", 3)
    batch, mimic = zoo.draw("mlp", 4), GradMimic(model, reference)
    for shares, message in (
        (torch.ones(3), r"shape \[4\], got torch.float32 of shape \[3\]"),
        (torch.ones(4, dtype=torch.long), "got torch.int64"),
    ):
        with pytest.raises(LossError, match=message):
            weighed(mimic, model, batch, shares=shares)
