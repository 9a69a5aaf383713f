"""Engine ``ghost`` against one backward pass per sample, for every kind of layer and use."""

import math

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from layers import (
    LAYERS,
    WIDTH,
    Decoder,
    First,
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
from torch.utils._python_dispatch import TorchDispatchMode

from gradmimic import GradMimic, mimic_scores
from gradmimic.canaries import Canaries, CanaryLosses
from gradmimic.engines.ghost import GhostEngine


@pytest.mark.parametrize("kind", LAYERS)
@given(
    b=st.sampled_from([1, 2, 5, 10]),
    params=st.sampled_from(["all", "layer.*", "*weight", ["*bias*"], "head"]),
    seed=st.integers(0, 99),
)
def test_every_layer_gives_the_scores_of_the_definition(kind, b, params, seed):
    model, reference, batch = around(kind, b, seed)
    if params == ["*bias*"] and not any("bias" in n for n, _ in model.named_parameters()):
        return
    assert_scores(model, reference, batch, params=params)


@given(
    kind=st.sampled_from(zoo.MODELS),
    loss=st.sampled_from(zoo.LOSSES),
    b=st.sampled_from([0, 1, 2, 5, 17]),
    width=st.integers(1, 5),
    params=st.sampled_from(["head", "all", "*weight", ["*bias", "*norm*"]]),
    seed=st.integers(0, 1000),
)
def test_models_and_losses_give_the_scores_of_the_definition(kind, loss, b, width, params, seed):
    if kind == "cnn-batchnorm-train" or (loss == "contrastive" and b > 1):
        return  # refused, below
    model, reference = zoo.build(kind, width, seed=seed)
    batch, losses = zoo.draw(kind, b, seed=seed + 1), zoo.losses_of(loss)
    expected = mimic_scores(model, reference, batch, losses, params=params, engine="oracle")
    actual = mimic_scores(model, reference, batch, losses, params=params, engine="ghost")
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(2, c), nn.BatchNorm2d])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_residual_networks_whose_operations_work_in_place(norm, layout):
    if norm is not nn.BatchNorm2d and layout is torch.channels_last:
        return  # torch 2.13's backward pass of group_norm on channels_last crashes the process
    model = resnet(norm).double().eval().to(memory_format=layout)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64).to(memory_format=layout)
    batch = x, torch.randint(WIDTH, (6,))
    assert_scores(model, zoo.nearby(model), batch, params="all")


@pytest.mark.parametrize("b", [1, 3, 5, 10])
@pytest.mark.parametrize("params", ["all", "token", "position", ["scale", "patch.bias"]])
def test_parameters_that_the_model_itself_uses(b, params):
    model = Vision().double()
    batch = torch.randn(b, 3, 4, 4, dtype=torch.float64), torch.randint(WIDTH, (b,))
    assert_scores(model, zoo.nearby(model), batch, params=params)


@pytest.mark.parametrize("b", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("params", ["all", "wpe.*", "lm_head.*", "wte.*"])
def test_decoders_whose_head_is_the_embedding(b, params):
    model = Decoder().double()  # 6 positions: a multiple of b or not
    assert_scores(model, zoo.nearby(model), torch.randint(7, (b, 7)), next_word, params=params)


@pytest.mark.parametrize("params", ["all", "head", ["*wpe*", "*ln_f*", "*c_attn*"]])
def test_gpt2(params):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).double()
    assert_scores(model, zoo.nearby(model), torch.randint(11, (4, 7)), next_word, params=params)


def test_dropout_draws_the_same_numbers_for_the_derivative():
    model = nn.Sequential(
        First(nn.LSTM(3, 4, 2, batch_first=True, dropout=0.5)), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(20, WIDTH),
    ).double()  # fmt: skip
    reference, batch = zoo.nearby(model), (numbers(5, 3)(6), torch.randint(WIDTH, (6,)))
    found = []
    for engine in ("oracle", "ghost"):
        torch.manual_seed(7)
        found.append(mimic_scores(model, reference, batch, losses_of, params="all", engine=engine))
        found.append(torch.rand(1))  # and leaves the state as the pass left it
    torch.testing.assert_close(found[2], found[0], rtol=1e-9, atol=1e-9)
    assert found[1] == found[3]


@pytest.mark.parametrize("kind", ["conv2d", "layer-norm", "sine", "twisted", "attention"])
def test_frozen_parameters_are_scored_and_stay_frozen(kind):
    model, reference, batch = around(kind, 5)
    expected = mimic_scores(model, reference, batch, losses_of, params="all", engine="oracle")
    model.requires_grad_(False)
    actual = mimic_scores(model, reference, batch, losses_of, params="all", engine="ghost")
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation made, and the operations' names."""

    def __init__(self):
        super().__init__()
        self.largest, self.names = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.__name__)
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("params", ["all", "*weight"])
def test_no_gradient_of_a_sample_nor_of_a_weight_is_formed_for_scores(params):
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.GroupNorm(2, 64), nn.ReLU(), nn.Flatten(), nn.Linear(256, 300),
        nn.Linear(300, WIDTH),
    )  # fmt: skip
    x, y = torch.randn(8, 3, 4, 4), torch.randint(WIDTH, (8,))
    mimic = GradMimic(model, zoo.nearby(model), params=params, engine="ghost", backward="twice")
    for _ in range(2):  # the first pass looks where the samples are
        with mimic:
            losses = F.cross_entropy(model(x), y, reduction="none")
        with Sizes() as seen:
            mimic.weigh(losses)
    assert seen.largest <= 300 * 256  # of the largest weight: a batch of any is 8 times that
    formed = [name for name in seen.names if name.startswith("convolution_backward")]
    assert not formed  # the lowest layer's backward pass would be for its weight alone
    products = [name for name in seen.names if name.startswith(("mm", "addmm"))]
    assert len(products) == 4  # two layers: one for the input gradient, one with v, none for W


@pytest.mark.parametrize("trained", [False, True])
def test_canaries_are_scored_apart_from_their_samples(trained):
    model, reference = zoo.build("mlp", 4)
    batch, canaries = zoo.draw("mlp", 9), Canaries(rate=0.6, trained=trained)
    found = {}
    for engine in ("oracle", "ghost"):
        mimic = GradMimic(model, reference, params="all", engine=engine, weighting="softmax")
        drawn = []
        take = mimic._learning.learn
        mimic._learning.learn = lambda whole, scores, *more, take=take, drawn=drawn: (
            drawn.append(scores), take(whole, scores, *more))[1]  # fmt: skip
        model.zero_grad()
        with mimic:
            z = model(batch.x)
            losses = F.cross_entropy(z, batch.y, reduction="none")
            made = canaries.labels(z, batch.y, list(range(9)))
        assert len(set(made.rows)) < len(made.rows)
        mimic.weigh(losses, canaries=made).backward()
        found[engine] = [torch.from_numpy(drawn[0]), *(p.grad for p in model.parameters())]
    torch.testing.assert_close(found["ghost"], found["oracle"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("backward", ["once", "twice"])
def test_canaries_may_be_rows_of_their_own(backward, trained):
    model, reference = zoo.build("mlp", 4)
    batch = zoo.draw("mlp", 9)
    found = {}
    for engine in ("oracle", "ghost"):
        how = {"backward": backward} if engine == "ghost" else {}
        mimic = GradMimic(model, reference, params="all", engine=engine, **how)
        model.zero_grad()
        with mimic:
            losses = F.cross_entropy(model(batch.x), batch.y, reduction="none")
        made = CanaryLosses(losses[6:], [0, 1, 2], ["own"] * 3, trained, rows=[6, 7, 8])
        mimic.weigh(losses[:6], canaries=made).backward()
        found[engine] = [mimic.scores, *(p.grad for p in model.parameters())]
    torch.testing.assert_close(found["ghost"], found["oracle"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("together", ["one view after the other", "sample after sample"])
def test_two_views_of_each_sample_in_one_batch(together):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, WIDTH)).double()
    apart = together == "one view after the other"
    batch = numbers(3)(12), torch.randint(WIDTH, (6,))

    def losses(m, rows):
        z = m(rows[0])
        z = z.unflatten(0, (2, 6)).mean(0) if apart else z.unflatten(0, (6, 2)).mean(1)
        return F.cross_entropy(z, rows[1], reduction="none")

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


def test_one_look_is_enough_for_all_passes_of_a_kind(monkeypatch):
    looks = []
    model, reference, _ = around("attention", 4)
    look = GhostEngine._look
    monkeypatch.setattr(GhostEngine, "_look", lambda *args: (looks.append(1), look(*args))[1])
    for b in (5, 4, 7, 5):  # with five, samples and positions are equally many
        batch = LAYERS["attention"][1](b), torch.randint(WIDTH, (b,))
        assert_scores(model, reference, batch, params="all")
    assert len(looks) == 1


def test_outputs_without_an_axis_of_samples_are_followed_in_forward_mode():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, WIDTH)

        def forward(self, x):  # as many rows as fit no batch
            h = torch.tanh(self.layer(torch.cat([x, x[:1]])))
            return self.head(h)[: len(x)]

    model, batch = Mixed().double(), (numbers(3)(5), torch.randint(WIDTH, (5,)))
    assert_scores(model, zoo.nearby(model), batch, params="all")


def test_half_precision_gradients_do_not_vanish():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, WIDTH)).half()
    reference = zoo.nearby(model, 0.01)
    batch = torch.randn(6, 8).half(), torch.randint(WIDTH, (6,))

    def losses(m, rows):
        return losses_of(m, rows).float() * 1e-6

    scores = mimic_scores(model, reference, batch, losses, params="all", engine="ghost")
    model, reference = model.double(), reference.double()
    batch = batch[0].double(), batch[1]
    expected = mimic_scores(
        model, reference, batch, lambda m, r: losses_of(m, r) * 1e-6, params="all", engine="oracle"
    )
    assert math.isclose(float(scores.double() @ expected / (expected @ expected)), 1, rel_tol=0.05)
