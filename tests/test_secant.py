"""The engine ``secant``: how near it comes to the oracle, and that it leaves nothing behind."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradmimic import GradMimic, mimic_scores
from gradmimic.direction import choose, direction
from gradmimic.engines.elsewhere import is_compiled, moved
from gradmimic.engines.secant import SecantEngine, _tf32, coarsest
from gradmimic.errors import LossError, ParameterError, UnsupportedOperationError
from gradmimic.wrapped import unwrapped

LOSSES = zoo.losses_of("cross-entropy")
PARAMS = ("head", "all", "*weight", ["*bias", "*norm*"])


def assert_near(actual, expected, tolerance):
    """The scores' error is a part of their norm."""
    assert actual.shape == expected.shape
    assert not actual.requires_grad
    error = torch.linalg.vector_norm(actual.double() - expected.double())
    # what vanishes is judged against a score of 1e-3
    assert error <= tolerance * (torch.linalg.vector_norm(expected.double()) + 1e-3)


def trained_scores(model, reference, batch, losses=LOSSES, **options):
    """The scores of a training pass, and the gradients of its loss."""
    options = {"params": "all", "engine": "secant", **options}
    mimic = GradMimic(model, reference, **options)
    with mimic:
        values = losses(model, batch)
    model.zero_grad()
    mimic.weigh(values).backward()
    return mimic.scores, {name: p.grad.clone() for name, p in model.named_parameters()}


def exact(model, reference, batch, losses=LOSSES, **options):
    model, reference = copy.deepcopy(model).double(), copy.deepcopy(reference).double()
    x = batch.x.double() if batch.x.is_floating_point() else batch.x
    batch = zoo.Batch(x, batch.y, batch.other.double())
    options = {"params": "all", "engine": "oracle", **options}
    return mimic_scores(model, reference, batch, losses, **options)


# In float64 η is 2e-16, so rounding leaves some η/c = √(32η) = 1e-7; float32 by the same, 2e-3.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 2e-2)])
@settings(max_examples=60)
@given(
    kind=st.sampled_from(zoo.MODELS),
    loss=st.sampled_from(zoo.LOSSES),
    b=st.sampled_from([0, 1, 2, 17]),
    width=st.integers(1, 5),
    params=st.sampled_from(PARAMS),
    seed=st.integers(0, 1000),
)
def test_scores_come_near_those_of_the_oracle(dtype, tolerance, kind, loss, b, width, params, seed):
    if kind == "cnn-batchnorm-train" and b == 0:
        return  # batch statistics of no sample
    model, reference = zoo.build(kind, width, dtype, seed)
    batch, losses = zoo.draw(kind, b, dtype, seed + 1), zoo.losses_of(loss)
    expected = exact(model, reference, batch, losses, params=params)
    alone = mimic_scores(model, reference, batch, losses, params=params, engine="secant")
    assert_near(alone, expected, tolerance)
    if b:
        beside, _ = trained_scores(model, reference, batch, losses, params=params)
        assert_near(beside, expected, tolerance)


@pytest.mark.parametrize("distance", [1e-3, 0.3, 3])
@pytest.mark.parametrize("kind", ["transformer", "cnn-groupnorm"])
def test_bf16_autocast_and_bf16_weights(kind, distance):
    model, _ = zoo.build(kind, 8, torch.float32)
    reference, batch = zoo.nearby(model, distance), zoo.draw(kind, 32, torch.float32)
    expected = exact(model, reference, batch)
    with torch.autocast("cpu", torch.bfloat16):
        beside, _ = trained_scores(model, reference, batch)
        alone = mimic_scores(model, reference, batch, LOSSES, params="all", engine="secant")
    # 2^-7 is the rounding error of one number, and √(32 · 2^-7) = 0.5 the bound that c sets
    assert_near(beside, expected, 0.5)
    assert_near(alone, expected, 0.3)


def test_pure_bf16_weights_give_scores_that_rank_samples():
    model, reference = zoo.build("mlp", 32, torch.bfloat16)
    batch = zoo.draw("mlp", 64, torch.bfloat16)
    expected = exact(model, reference, batch)
    scores, _ = trained_scores(model, reference, batch)
    assert scores.dtype == torch.float32
    assert torch.corrcoef(torch.stack([scores.double(), expected]))[0, 1] > 0.9


def test_the_step_follows_dtype_autocast_and_lengths():
    layer = nn.Linear(3, 2, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    subset = choose(layer)
    steps = {}
    for far in (1.0, 100.0):
        v = direction(subset, {"weight": layer.weight.detach() + far})
        steps[far] = SecantEngine(subset, v)._step()
        share = (2**-23 / 32) ** 0.5
        assert steps[far] == pytest.approx(share * (1 + 2 / far), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert coarsest(layer) == 2**-7
    assert coarsest(layer.double()) == 2**-52
    # tensors that v leaves alone say nothing of how far v may go
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 2))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    subset = choose(model, "all")
    here = {name: p.detach() for name, p in subset.parameters.items()}
    v = direction(subset, {**here, "1.bias": torch.ones(2)})
    assert SecantEngine(subset, v)._lengths == pytest.approx(1)


def test_tf32_may_be_set_in_either_way():
    backend = torch.backends.cudnn
    before = backend.allow_tf32
    try:
        for allowed in (False, True):
            backend.allow_tf32 = allowed
            assert _tf32() == allowed
        if hasattr(backend, "conv"):  # torch 2.9 and later: operation by operation
            backend.conv.fp32_precision = "ieee"
            with pytest.raises(RuntimeError, match="allow_tf32"):
                _ = backend.allow_tf32
            assert _tf32()
    finally:
        if hasattr(backend, "conv"):
            backend.conv.fp32_precision = "tf32"
        backend.allow_tf32 = before


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.norm, self.head = nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(F.dropout(torch.tanh(self.norm(self.below(x))), 0.5, self.training))


@pytest.mark.parametrize("engine", ["secant", "forward"])
def test_dropout_masks_are_shared_and_random_numbers_go_on_as_without_scoring(engine):
    model = Dropping().double()
    reference, batch = zoo.nearby(model), zoo.draw("mlp", 16)
    torch.manual_seed(5)
    losses = LOSSES(model, batch)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    expected = mimic_scores(model, reference, batch, LOSSES, params="all", engine="oracle")
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(5)
    alone = mimic_scores(model, reference, batch, LOSSES, params="all", engine=engine)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(5)
    mimic = GradMimic(model, reference, params="all", engine=engine)
    with mimic:
        values = LOSSES(model, batch)
    assert torch.equal(torch.get_rng_state(), after)
    mimic.weigh(values)
    assert torch.equal(values, losses)
    for scores in (alone, mimic.scores):
        assert_near(scores, expected, 1e-5)


def test_batchnorm_buffers_are_those_of_one_plain_pass_bit_for_bit():
    model = Dropping()
    plain, reference, batch = copy.deepcopy(model), zoo.nearby(model), zoo.draw("mlp", 16)
    batch.x = batch.x.float()
    before = copy.deepcopy(model.state_dict())
    mimic_scores(model, reference, batch, LOSSES, params="all", engine="secant")
    mimic_scores(model, reference, batch, LOSSES, params="all", engine="segment")
    with torch.no_grad(), GradMimic(model, reference, params="all", engine="secant"):
        model(batch.x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    torch.manual_seed(0)
    plain(batch.x)
    torch.manual_seed(0)
    with GradMimic(model, reference, params="all", engine="secant"):
        model(batch.x)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert int(model.norm.num_batches_tracked) == 1


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("params", ["5.*", "all", "1.*"])
@pytest.mark.parametrize("how", ["eager", "compiled"])  # autocast's cache knows only storages
def test_training_gradients_are_those_of_the_plain_pass(how, params, amp):
    model, reference = zoo.build("cnn-groupnorm", 4, torch.float32)
    plain, batch = copy.deepcopy(model), zoo.draw("cnn", 9, torch.float32)
    if how == "compiled":
        model.compile(backend="eager")
    mimic = GradMimic(model, reference, params=params, engine="secant")
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        with mimic:
            values = LOSSES(model, batch)
        loss = mimic.weigh(values)
        expected = (mimic.weights * LOSSES(plain, batch)).sum()
    loss.backward()
    expected.backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_without_gradients_the_losses_are_the_plain_ones_to_second_order():
    model, reference = zoo.build("transformer", 4)
    batch = zoo.draw("transformer", 9)
    expected = LOSSES(model, batch).detach()
    with torch.no_grad(), GradMimic(model, reference, params="all", engine="secant"):
        losses = LOSSES(model, batch)
    torch.testing.assert_close(losses, expected, rtol=1e-13, atol=1e-13)


def test_nothing_of_the_engine_stays_on_the_model_even_after_an_error():
    model, reference = zoo.build("mlp", 3)
    before, own = list(model.parameters()), dict(vars(model))
    mimic = GradMimic(model, reference, params="all", engine="secant")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), mimic:
        model(torch.zeros(2, 5, dtype=torch.float64))
    assert vars(model) == own
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    values = [p.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    subset = choose(model, "all")
    better = dict(reference.named_parameters())
    v = direction(subset, better)
    for in_place in (False, True):
        with pytest.raises(ZeroDivisionError), moved(subset, v, 1.0, in_place=in_place):
            assert torch.allclose(model[0].weight, reference[0].weight)
            raise ZeroDivisionError
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), values, strict=True))
    assert [p._version for p in model.parameters()] == versions


def compiled(model, how):
    if how == "wrapped":
        return torch.compile(model, backend="aot_eager")
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_models(how):
    plain = Dropping().double()
    reference, batch = zoo.nearby(plain), zoo.draw("mlp", 16)
    model = compiled(copy.deepcopy(plain), how)
    assert is_compiled(model)
    assert not is_compiled(plain)
    kept = [p.clone() for p in model.parameters()]
    better = named_alike(reference)
    for _ in range(2):  # the second time nothing is compiled any more
        torch.manual_seed(5)
        expected = mimic_scores(plain, reference, batch, LOSSES, params="all", engine="oracle")
        torch.manual_seed(5)
        scores, gradients = trained_scores(model, better, batch)
        assert_near(scores, expected, 1e-5)
        torch.manual_seed(5)
        alone = mimic_scores(model, better, batch, LOSSES, params="all", engine="secant")
        assert_near(alone, expected, 1e-5)
    torch.manual_seed(5)
    weights = torch.softmax(scores, 0)
    (weights * LOSSES(plain, batch)).sum().backward()
    for p, gradient in zip(plain.parameters(), gradients.values(), strict=True):
        torch.testing.assert_close(gradient, p.grad)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))


def named_alike(reference):
    return {name: value.detach() for name, value in reference.named_parameters()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch warns of its own tools
@pytest.mark.parametrize("training", [True, False])
def test_compiled_by_inductor(training):
    """Its kernels draw dropout masks of their own: the same ones with and without gradients."""
    plain = Dropping().train(training)
    reference, batch = zoo.nearby(plain), zoo.draw("mlp", 64, torch.float32)
    model = torch.compile(copy.deepcopy(plain))
    better = named_alike(reference)
    for _ in range(2):
        torch.manual_seed(5)
        scores, _ = trained_scores(model, better, batch)
    if training:  # no other engine draws these masks; the loss a little further along v tells
        subset = choose(unwrapped(model), "all", called=model)
        v = direction(subset, better)
        ends = []
        for step in (1e-2, -1e-2):
            torch.manual_seed(5)
            with moved(subset, v, step, in_place=True), torch.no_grad():
                ends.append(LOSSES(model, batch))
        expected = (ends[1] - ends[0]) / 2e-2 / v.norm
    else:
        expected = exact(plain, reference, batch)
    assert_near(scores, expected, 2e-2)


@pytest.mark.slow
def test_sharded_over_two_processes():
    """FSDP2, all parameters scored: what was gathered for one pass is not used in the next."""
    script = Path(__file__).with_name("sharded_secant.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class Towers(nn.Module):
    """Both kinds of input go through one call, and the loss reads the model's own temperature."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(3, 8), nn.Linear(5, 8)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x=None, words=None):
        tower, given = (self.image, x) if words is None else (self.text, words)
        return {"features": F.normalize(torch.tanh(tower(given)), dim=1)}


def test_several_calls_a_contrastive_loss_and_a_parameter_that_the_loss_reads():
    model = Towers().double()
    reference = zoo.nearby(model)
    x, words = torch.randn(7, 3).double(), torch.randn(7, 5).double()

    def losses(m, _batch):
        a, b = m(x)["features"], m(words=words)["features"]
        logits = m.scale.exp() * a @ b.T
        return F.cross_entropy(logits, torch.arange(7), reduction="none")

    for params in ("all", "scale", "*.weight"):
        expected = mimic_scores(model, reference, None, losses, params=params, engine="oracle")
        scores = mimic_scores(model, reference, None, losses, params=params, engine="secant")
        assert_near(scores, expected, 1e-5)
        beside, _ = trained_scores(model, reference, None, losses, params=params)
        assert_near(beside, expected, 1e-5)


def test_a_model_fed_its_own_output():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    reference, x = zoo.nearby(model), torch.randn(6, 4).double()
    losses = lambda m, b: m(input=2 * m(b) + b).square().sum(1)
    expected = mimic_scores(model, reference, x, losses, params="all", engine="oracle")
    scores = mimic_scores(model, reference, x, losses, params="all", engine="secant")
    assert_near(scores, expected, 1e-5)
    beside, gradients = trained_scores(model, reference, x, losses)
    assert_near(beside, expected, 1e-5)
    model.zero_grad()
    (torch.softmax(beside, 0) * losses(model, x)).sum().backward()
    for p, gradient in zip(model.parameters(), gradients.values(), strict=True):
        torch.testing.assert_close(gradient, p.grad)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch, of no_grad
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_forward_mode_cannot_pass(reentrant):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(9, 4)
            self.rnn = nn.LSTM(4, 4, batch_first=True)
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.checkpointed = False

        def forward(self, x):
            h = self.rnn(self.bag(x)[:, None])[0][:, -1]
            if self.checkpointed:
                h = checkpoint(self.body, h, use_reentrant=reentrant)
            else:
                h = self.body(h)
            return self.head(torch.tanh(h))

    model = Model()
    reference, batch = zoo.nearby(model), zoo.draw("embedding", 8)
    batch.x, batch.y = batch.x % 9, batch.y % 3
    expected = mimic_scores(model, reference, batch, LOSSES, params="all", engine="oracle")
    model.checkpointed = True
    scores, gradients = trained_scores(model, reference, batch)
    assert_near(scores, expected, 2e-2)
    model.zero_grad()
    (torch.softmax(scores, 0) * LOSSES(model, batch)).sum().backward()
    for p, gradient in zip(model.parameters(), gradients.values(), strict=True):
        torch.testing.assert_close(gradient, p.grad)


def tied_losses(m, w):
    z = m(w[:, :-1])
    return F.cross_entropy(z.transpose(1, 2), w[:, 1:], reduction="none").mean(1)


def test_a_tied_head_is_scored_and_reweighted_in_its_use_as_head_only():
    model = zoo.TiedDecoder().double()
    reference, words = zoo.nearby(model), torch.randint(11, (5, 7))
    for params in ("head", "all"):
        options = {"params": params, "reweight": "scored"}
        expected, plain = trained_scores(
            model, reference, words, tied_losses, engine="oracle", **options
        )
        scores, gradients = trained_scores(model, reference, words, tied_losses, **options)
        assert_near(scores, expected, 1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)
    model.compile(backend="eager")
    with pytest.raises(UnsupportedOperationError, match="'lm_head.weight' is scored in one of"):
        mimic_scores(model, reference, words, tied_losses, engine="secant")
    scores = mimic_scores(model, reference, words, tied_losses, params="all", engine="secant")
    assert_near(scores, expected, 1e-5)


def test_masked_outputs_have_no_slope():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            return self.head(x).masked_fill(torch.arange(4) == 2, -torch.inf)

    model = Masked().double()
    reference, batch = zoo.nearby(model), zoo.draw("mlp", 9)
    batch.y[:] = batch.y % 2
    expected = mimic_scores(model, reference, batch, LOSSES, engine="oracle")
    assert_near(mimic_scores(model, reference, batch, LOSSES, engine="secant"), expected, 1e-5)


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_a_parameter_among_the_outputs(how):
    class Model(Towers):
        def forward(self, x):
            return super().forward(x)["features"], self.scale, "text", x.argmax(1)

    model = Model().double()
    reference, x = zoo.nearby(model), torch.randn(6, 3).double()

    def losses(m, b):
        z, scale, _, _ = m(b)
        return (scale * z).exp().sum(1)

    expected = mimic_scores(model, reference, x, losses, params="all", engine="oracle")
    if how == "compiled":
        model.compile(backend="eager")
    scores = mimic_scores(model, reference, x, losses, params="all", engine="secant")
    assert_near(scores, expected, 1e-5)


def test_frozen_parameters_are_scored_and_stay_frozen():
    model, reference = zoo.build("mlp", 4)
    batch = zoo.draw("mlp", 9)
    expected = exact(model, reference, batch)
    model.requires_grad_(False)
    scores = mimic_scores(model, reference, batch, LOSSES, params="all", engine="secant")
    assert_near(scores, expected, 1e-5)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_segment_is_the_loss_less_the_references_own():
    model, reference = Dropping().double(), Dropping().double()
    batch = zoo.draw("mlp", 9)
    v = torch.cat(
        [(q - p).flatten() for p, q in zip(model.parameters(), reference.parameters(), strict=True)]
    )
    losses = []
    for net in (model, reference):
        torch.manual_seed(3)
        losses.append(LOSSES(copy.deepcopy(net), batch))
    torch.manual_seed(3)
    scores = mimic_scores(model, reference, batch, LOSSES, params="all", engine="segment")
    torch.testing.assert_close(scores, ((losses[0] - losses[1]) / v.norm()).detach())
    with pytest.raises(ParameterError, match="engine='segment' is unknown"):
        GradMimic(model, reference, engine="segment")


def test_errors_say_what_to_do():
    class Strange(nn.Linear):
        def forward(self, x):
            return (
                {1: "nothing"} if x is None else super().forward(x)[: 3 + (self.weight > 5).sum()]
            )

    model = Strange(3, 4)
    reference = zoo.nearby(model)
    with pytest.raises(UnsupportedOperationError, match="returned dict.*floating point tensors"):
        mimic_scores(model, reference, None, lambda m, b: m(b), engine="secant")
    with torch.no_grad():
        reference.weight.add_(1e7)
    with pytest.raises(UnsupportedOperationError, match="other shapes at other weights"):
        mimic_scores(model, reference, torch.randn(9, 3), lambda m, b: m(b).sum(1), engine="secant")
    model, reference = zoo.build("mlp", 3)
    with pytest.raises(LossError, match="do not depend on the scored parameters"):
        mimic_scores(
            model, reference, zoo.draw("mlp", 3), lambda m, b: m(b.x).detach().sum(1),
            engine="secant",
        )  # fmt: skip
