"""The re-weighted step with weight gradients formed once against the one of two passes."""

from contextlib import nullcontext

import pytest
import torch
import zoo
from layers import (
    LAYERS,
    WIDTH,
    Decoder,
    Vision,
    around,
    assert_scores,
    losses_of,
    next_word,
    numbers,
    resnet,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradmimic import GradMimic, mimic_scores
from gradmimic.errors import UnsupportedOperationError, UsageError


def steps(kind, backward, engine="ghost", accumulate=2, params="all", dtype=None, optimizer=None):
    model, reference, _ = around(kind, 5)
    mimic = GradMimic(model, reference, params=params, engine=engine, backward=backward)
    descent = (optimizer or torch.optim.AdamW)(model.parameters(), lr=1e-2)
    for _ in range(3):
        descent.zero_grad()
        for _ in range(accumulate):
            batch = LAYERS[kind][1](6), torch.randint(WIDTH, (6,))
            with mimic, torch.autocast("cpu", dtype) if dtype else nullcontext():
                losses = losses_of(model, batch)
            loss = mimic.weigh(losses)
            assert ("OneBackward" in loss.grad_fn.name()) == (backward == "once")
            (loss / accumulate).backward()
        descent.step()
    return [p.detach() for p in model.parameters()], loss.detach()


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "in-place" not in kind])
@pytest.mark.parametrize("params", ["all", "*weight*"])
def test_one_backward_pass_gives_the_steps_of_two(kind, params):
    once, loss = steps(kind, "once", params=params)
    torch.manual_seed(0)
    twice, expected = steps(kind, "twice", engine="oracle", params=params)
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-9)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("model", [Vision, lambda: resnet(nn.BatchNorm2d).eval()])
def test_one_backward_pass_of_whole_models(model):
    model = model().double()
    reference, x = zoo.nearby(model), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    x, y = x if not isinstance(model, Vision) else x[..., :4, :4], torch.randint(WIDTH, (5,))
    found = {}
    for backward in ("once", "twice"):
        mimic = GradMimic(model, reference, params="all", engine="ghost", backward=backward)
        model.zero_grad()
        with mimic:
            z = model(x)
            losses = F.cross_entropy(z, y, reduction="none")
        # a term of the user's own upon the same graph, and a scaler's factor
        ((mimic.weigh(losses) + z.square().mean()) * 1024).backward()
        found[backward] = [p.grad for p in model.parameters()]
    torch.testing.assert_close(found["once"], found["twice"], rtol=1e-9, atol=1e-9)


def test_one_backward_pass_of_a_decoder_that_shares_a_weight():
    model = Decoder().double()
    reference, ids = zoo.nearby(model), torch.randint(7, (4, 7))
    found = {}
    for backward in ("once", "twice"):
        mimic = GradMimic(model, reference, params="all", engine="ghost", backward=backward)
        model.zero_grad()
        with mimic:
            losses = next_word(model, ids)
        loss = mimic.weigh(losses)
        assert ("OneBackward" in loss.grad_fn.name()) == (backward == "once")
        loss.backward()
        found[backward] = [p.grad for p in model.parameters()]
    torch.testing.assert_close(found["once"], found["twice"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear-no-bias", "conv2d", "layer-norm", "attention", "scale"])
def test_autocast_gives_nearly_the_same(kind):
    model, reference, batch = around(kind, 6)
    expected = mimic_scores(model, reference, batch, losses_of, params="all", engine="oracle")
    model, reference = model.float(), reference.float()
    batch = batch[0].float(), batch[1]
    found = {}
    for backward in ("once", "twice"):
        model.zero_grad()
        mimic = GradMimic(model, reference, params="all", engine="ghost", backward=backward)
        with mimic, torch.autocast("cpu", torch.bfloat16):
            losses = losses_of(model, batch)
        mimic.weigh(losses.float()).backward()
        assert mimic.scores.dtype == torch.float32
        scale = float(expected.abs().max())
        torch.testing.assert_close(mimic.scores.double(), expected, rtol=0, atol=0.1 * scale)
        found[backward] = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert found["once"].dtype == torch.float32
    assert (found["once"] - found["twice"]).norm() < 0.02 * found["twice"].norm()


@pytest.mark.parametrize("make", [Vision, Decoder])
def test_autocast_of_whole_models(make):
    model = make().double()
    reference = zoo.nearby(model, 0.1)
    batch = torch.randint(7, (6, 7)) if make is Decoder else None
    batch = (torch.randn(6, 3, 4, 4), torch.randint(WIDTH, (6,))) if batch is None else batch
    losses = next_word if make is Decoder else losses_of
    wide = batch if make is Decoder else (batch[0].double(), batch[1])
    expected = mimic_scores(model, reference, wide, losses, params="all", engine="oracle")
    model, reference, found = model.float(), reference.float(), {}
    for backward in ("once", "twice"):
        model.zero_grad()
        mimic = GradMimic(model, reference, params="all", engine="ghost", backward=backward)
        with mimic, torch.autocast("cpu", torch.bfloat16):
            values = losses(model, batch)
        loss = mimic.weigh(values.float())
        assert ("OneBackward" in loss.grad_fn.name()) == (backward == "once")
        loss.backward()
        scale = float(expected.abs().max())
        torch.testing.assert_close(mimic.scores.double(), expected, rtol=0, atol=0.1 * scale)
        found[backward] = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (found["once"] - found["twice"]).norm() < 0.02 * found["twice"].norm()


def test_sparse_gradients_stay_sparse():
    model = nn.Sequential(nn.EmbeddingBag(7, 3, sparse=True, mode="sum"), nn.Linear(3, WIDTH))
    batch = torch.randint(7, (5, 4)), torch.randint(WIDTH, (5,))
    mimic = GradMimic(model, zoo.nearby(model), params="all", engine="ghost", backward="once")
    with mimic:
        losses = losses_of(model, batch)
    mimic.weigh(losses).backward()
    assert model[0].weight.grad.is_sparse


def test_the_graph_is_let_go_by_the_one_backward_pass():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, WIDTH))
    mimic = GradMimic(model, zoo.nearby(model), params="all", engine="ghost", backward="once")
    with mimic:
        losses = losses_of(model, (torch.randn(4, 3), torch.randint(WIDTH, (4,))))
    loss = mimic.weigh(losses)
    loss.backward()
    with pytest.raises(RuntimeError, match="already been freed"):
        losses.sum().backward()
    with pytest.raises((UsageError, RuntimeError), match="backward='twice'|already been freed"):
        loss.backward()


def test_two_passes_where_something_else_trains_or_memory_is_short(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, WIDTH))
    batch = torch.randn(4, 3), torch.randint(WIDTH, (4,))

    def name_of(backward="auto", params="all", x=batch[0], **given):
        mimic = GradMimic(
            model, zoo.nearby(model), params=params, engine="ghost", backward=backward, **given
        )
        with mimic:
            losses = losses_of(model, (x, batch[1]))
        return mimic.weigh(losses).grad_fn.name()

    assert "OneBackward" in name_of()
    assert "OneBackward" not in name_of("twice")
    assert "OneBackward" not in name_of(params="0.bias")  # most of what trains is not scored
    assert "OneBackward" in name_of("once", params="0.bias")
    assert "OneBackward" not in name_of(x=batch[0].clone().requires_grad_())
    assert "OneBackward" not in name_of("once", reweight="scored")
    monkeypatch.setattr("gradmimic.engines.one_backward._free", lambda device: 100.0)
    assert "OneBackward" not in name_of()
    assert "OneBackward" in name_of("once")


def test_checkpointing_without_reentry_works():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, WIDTH)).double()
    batch = numbers(3)(5), torch.randint(WIDTH, (5,))

    def losses(m, rows):
        h = checkpoint(m[:2], rows[0], use_reentrant=False)
        return F.cross_entropy(m[2](h), rows[1], reduction="none")

    reference = zoo.nearby(model)
    assert_scores(model, reference, batch, losses, params="all")
    found = {}
    for backward in ("once", "twice"):
        model.zero_grad()
        mimic = GradMimic(model, reference, params="all", engine="ghost", backward=backward)
        with mimic:
            values = losses(model, batch)
        mimic.weigh(values).backward()
        found[backward] = [p.grad for p in model.parameters()]
    torch.testing.assert_close(found["once"], found["twice"], rtol=1e-9, atol=1e-9)
    model.requires_grad_(False)
    with pytest.raises(UnsupportedOperationError, match="frozen scored parameter"):
        mimic_scores(model, reference, batch, losses, params="all", engine="ghost")
