"""Every engine against one backward pass per sample, over random models, losses and batches."""

import subprocess
import sys

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradmimic import GradMimic, mimic_scores
from gradmimic.direction import choose, direction
from gradmimic.engines import pick_engine
from gradmimic.engines.forward import ForwardEngine
from gradmimic.engines.oracle import OracleEngine
from gradmimic.errors import LossError, ParameterError, UnsupportedOperationError, UsageError
from gradmimic.reference import load_reference

PARAMS = ("head", "all", "*weight", ["*bias", "*norm*"])
cases = {
    "kind": st.sampled_from(zoo.MODELS),
    "loss": st.sampled_from(zoo.LOSSES),
    "b": st.sampled_from([0, 1, 2, 17]),
    "width": st.integers(1, 5),
    "params": st.sampled_from(PARAMS),
    "seed": st.integers(0, 1000),
}


def by_hand(model, reference, batch, losses, params, cosine=False):
    """The definition, with no code of the package but the choice of parameters."""
    chosen = dict(choose(model, params).parameters)
    better = dict(reference.named_parameters(remove_duplicate=False))
    v = {name: better[name].detach() - p.detach() for name, p in chosen.items()}
    norm = torch.cat([d.flatten() for d in v.values()]).norm()
    values = losses(model, batch)
    scores = []
    for i in range(len(values)):
        gradients = torch.autograd.grad(
            values[i], list(chosen.values()), retain_graph=True, materialize_grads=True,
            allow_unused=True,
        )  # fmt: skip
        score = -sum((g * v[name]).sum() for g, name in zip(gradients, v, strict=True)) / norm
        if cosine:
            score = score / torch.cat([g.flatten() for g in gradients]).norm()
        scores.append(score)
    return torch.stack(scores) if scores else torch.zeros(0, dtype=norm.dtype)


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert not actual.requires_grad
    scale = expected.abs().max() if len(expected) else 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=float(tolerance * (scale + 1e-9)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("engine", ["forward", "oracle"])
@given(**cases)
def test_scores_are_those_of_the_definition(
    engine, dtype, tolerance, kind, loss, b, width, params, seed
):
    if kind == "cnn-batchnorm-train" and b == 0:
        return  # batch statistics of no sample
    model, reference = zoo.build(kind, width, dtype, seed)
    batch, losses = zoo.draw(kind, b, dtype, seed + 1), zoo.losses_of(loss)
    expected = by_hand(*zoo.build(kind, width, torch.float64, seed), _double(batch), losses, params)
    actual = mimic_scores(model, reference, batch, losses, params=params, engine=engine)
    if dtype == torch.float32:  # the same numbers, rounded
        model64, reference64 = model.double(), reference.double()
        expected = by_hand(model64, reference64, _double(batch), losses, params).float()
    assert_close(actual, expected, tolerance)


def _double(batch):
    x = batch.x.double() if batch.x.is_floating_point() else batch.x
    return zoo.Batch(x, batch.y, batch.other.double())


@given(**cases)
def test_cosine_is_the_projection_over_the_gradients_length(kind, loss, b, width, params, seed):
    if b == 0 or loss == "ignore-index":
        return  # without a gradient the angle is 0 by convention, tested below
    model, reference = zoo.build(kind, width, seed=seed)
    batch, losses = zoo.draw(kind, b, seed=seed + 1), zoo.losses_of(loss)
    expected = by_hand(model, reference, batch, losses, params, cosine=True)
    actual = mimic_scores(model, reference, batch, losses, params=params, variant="cosine")
    if loss == "contrastive" and b == 1:
        return  # one pair has no other to be told from: the loss is constant
    assert_close(actual, expected, 1e-8)
    assert actual.abs().max() <= 1 + 1e-9


def test_cosine_of_a_sample_without_gradient_is_zero():
    model, reference = zoo.build("mlp", 3)
    batch = zoo.draw("mlp", 5)
    batch.y[:] = torch.tensor([1, 0, 1, 2, 3])
    cosines = mimic_scores(model, reference, batch, zoo.losses_of("ignore-index"), variant="cosine")
    assert (cosines == 0).tolist() == [True, False, True, False, False]


@given(**{**cases, "b": st.just(17), "rows": st.lists(st.integers(0, 16), min_size=1, unique=True)})
def test_scores_do_not_depend_on_the_rest_of_the_batch(kind, loss, b, width, params, seed, rows):
    if loss == "contrastive" or kind == "cnn-batchnorm-train":
        return  # there they do, by definition
    model, reference = zoo.build(kind, width, seed=seed)
    batch, losses = zoo.draw(kind, b, seed=seed + 1), zoo.losses_of(loss)
    whole = mimic_scores(model, reference, batch, losses, params=params)
    part = mimic_scores(model, reference, batch.take(rows), losses, params=params)
    assert_close(part, whole[rows], 1e-9)


@pytest.mark.parametrize("engine", ["forward", "oracle"])
def test_frozen_parameters_are_scored_and_stay_frozen(engine):
    model, reference = zoo.build("mlp", 4)
    batch, losses = zoo.draw("mlp", 9), zoo.losses_of("cross-entropy")
    expected = by_hand(model, reference, batch, losses, "all")
    model.requires_grad_(False)
    assert_close(
        mimic_scores(model, reference, batch, losses, params="all", engine=engine), expected, 1e-9
    )
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("params", ["head", "all"])
def test_scoring_leaves_the_model_as_it_was(params):
    model, reference = zoo.build("cnn-batchnorm-train", 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    mimic_scores(
        model, reference, zoo.draw("cnn", 8), zoo.losses_of("cross-entropy"), params=params
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class TestTiedHead:
    def setup_method(self):
        torch.manual_seed(0)
        self.model = zoo.TiedDecoder().double()
        self.reference = zoo.TiedDecoder().double()
        self.words = torch.randint(11, (5, 7))

    def losses(self, model, words):
        z = model(words[:, :-1])
        return F.cross_entropy(z.transpose(1, 2), words[:, 1:], reduction="none").mean(1)

    def test_head_is_scored_in_its_use_as_head_only(self):
        untied = zoo.TiedDecoder().double()
        untied.load_state_dict(self.model.state_dict())
        untied.lm_head.weight = nn.Parameter(self.model.wte.weight.detach().clone())
        better = {"lm_head.weight": self.reference.wte.weight.detach()}
        expected = mimic_scores(untied, better, self.words, self.losses, engine="oracle")
        for engine in ("forward", "oracle"):
            scores = mimic_scores(
                self.model, self.reference, self.words, self.losses, engine=engine
            )
            assert_close(scores, expected, 1e-9)

    def test_all_counts_the_weight_once_and_through_both_uses(self):
        subset = choose(self.model, "all")
        assert list(subset.parameters) == ["wte.weight", "trunk.weight", "trunk.bias"]
        expected = by_hand(self.model, self.reference, self.words, self.losses, "all")
        scores = mimic_scores(self.model, self.reference, self.words, self.losses, params="all")
        assert_close(scores, expected, 1e-9)


class Attending(nn.Module):
    """Attention between two linear layers, in the way Hugging Face calls it."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(8, 24), nn.Linear(8, 3)
        self.seen = []

    def forward(self, x):
        q, k, v = self.below(x).unflatten(-1, (3, 2, 4)).transpose(1, 3).unbind(2)
        out = F.scaled_dot_product_attention(q, k, v)
        self.seen.append(out.grad_fn.name() if out.grad_fn else None)
        return self.above(out.transpose(1, 2).flatten(2).mean(1))


def test_attention_inside_the_scored_part_switches_to_math_and_below_it_stays_fused():
    torch.manual_seed(0)
    model = Attending()
    reference = zoo.nearby(model)
    x, y = torch.randn(6, 5, 8), torch.randint(3, (6,))
    for params, fused in (("all", False), ("below.*", False), ("above.*", True), ("head", True)):
        mimic = GradMimic(model, reference, params=params, engine="forward")
        with mimic:
            losses = F.cross_entropy(model(x), y, reduction="none")
        mimic.weigh(losses)
        assert ("Flash" in model.seen.pop()) == fused, params
        expected = by_hand(
            model, reference, zoo.Batch(x, y, x), zoo.losses_of("cross-entropy"), params
        )
        torch.testing.assert_close(mimic.scores, expected, rtol=1e-4, atol=1e-5)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch, of its own mkldnn.flags
@pytest.mark.parametrize(
    ("layer", "operation", "remedy"),
    [
        (nn.EmbeddingBag(9, 4), "_embedding_bag", "engine='oracle'"),
        (nn.LSTM(4, 4, batch_first=True), "mkldnn_rnn_layer", "mkldnn.flags"),
        (nn.Linear(4, 4), "custom autograd.Function", "jvp"),
    ],
)
def test_an_operation_without_forward_mode_is_named_with_the_way_out(layer, operation, remedy):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(4, 3)

        def forward(self, x):
            h = self.layer(x)
            h = h[0][:, -1] if isinstance(h, tuple) else h
            return self.head(Doubled.apply(h) if isinstance(layer, nn.Linear) else h)

    model = Model()
    reference = zoo.nearby(model)
    x = {nn.EmbeddingBag: torch.randint(9, (2, 3)), nn.LSTM: torch.randn(2, 3, 4)}.get(
        type(layer), torch.randn(2, 4)
    )
    batch = (x, torch.tensor([0, 1]))

    def losses(m, b):
        return F.cross_entropy(m(b[0]), b[1], reduction="none")

    with pytest.raises(UnsupportedOperationError, match=operation) as error:
        mimic_scores(model, reference, batch, losses, params="all", engine="forward")
    assert remedy in str(error.value)
    assert len(mimic_scores(model, reference, batch, losses)) == 2  # the head needs no remedy
    expected = mimic_scores(model, reference, batch, losses, params="all", engine="oracle")
    if isinstance(layer, nn.LSTM):
        with torch.backends.mkldnn.flags(enabled=False):
            scores = mimic_scores(model, reference, batch, losses, params="all", engine="forward")
        torch.testing.assert_close(scores, expected)


def test_a_scored_module_under_reentrant_checkpointing_is_an_error_not_a_wrong_score():
    body, head = nn.Linear(4, 4), nn.Linear(4, 3)
    model = nn.Sequential(body, head)
    reference, x = zoo.nearby(model), torch.randn(2, 4, requires_grad=True)
    mimic = GradMimic(model, reference, params="all", engine="forward")
    with pytest.raises(UnsupportedOperationError, match="use_reentrant=False"), mimic:
        head(checkpoint(body, x, use_reentrant=True))


def test_detached_losses_are_an_error():
    model, reference = zoo.build("mlp", 3)
    batch = zoo.draw("mlp", 3)
    for engine in ("forward", "oracle"):
        with pytest.raises(LossError, match="do not depend on the scored parameters"):
            mimic_scores(
                model, reference, batch, lambda m, b: m(b.x).detach().sum(1), engine=engine
            )


def test_dual_levels_do_not_nest_and_do_not_leak():
    model, reference = zoo.build("mlp", 3)
    subset = choose(model)
    v = direction(subset, load_reference(reference).match(model, subset))
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(UsageError, match="does not nest"):
            ForwardEngine(subset, v).__enter__()
        with OracleEngine(subset, v):
            pass
    with ForwardEngine(subset, v) as forgotten:
        model(zoo.draw("mlp", 3).x)
    with ForwardEngine(subset, v) as engine:
        losses = model(zoo.draw("mlp", 3).x).sum(1)
    with pytest.raises(UsageError, match="another one began"):
        forgotten.derivative(losses)
    assert len(engine.derivative(losses)) == 3
    with torch.autograd.forward_ad.dual_level():
        pass  # free again


def test_unknown_names_are_refused():
    with pytest.raises(ParameterError, match="engine='fast' is unknown; expected one of auto"):
        pick_engine("fast")
    with pytest.raises(LossError, match="variant='angle' is unknown"):
        mimic_scores(nn.Linear(1, 1), nn.Linear(1, 1), None, lambda m, b: b, variant="angle")


def test_group_norm_on_channels_last_input_names_the_remedy():
    model, reference = zoo.build("cnn-groupnorm", 2)
    model, reference = nn.Sequential(model[1], *model[3:]), nn.Sequential(reference[1], *model[3:])
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    y = torch.tensor([0, 1, 2])

    def losses(m, images):
        return F.cross_entropy(m(images), y, reduction="none")

    with pytest.raises(UnsupportedOperationError, match=r"make the input \.contiguous\(\)"):
        mimic_scores(model, reference, x, losses, params="0.*", engine="forward")
    scores = mimic_scores(model, reference, x.contiguous(), losses, params="0.*", engine="forward")
    # not x itself: torch 2.13's backward pass of group_norm on channels_last crashes the process
    expected = mimic_scores(model, reference, x.contiguous(), losses, params="0.*", engine="oracle")
    torch.testing.assert_close(scores, expected)


def test_a_scored_module_under_checkpointing_never_trains_on_wrong_gradients():
    body, head = nn.Linear(4, 4), nn.Linear(4, 3)
    model = nn.Sequential(body, head)
    mimic = GradMimic(model, zoo.nearby(model), params="all", engine="forward")
    x = torch.randn(2, 4, requires_grad=True)
    with mimic:
        z = head(checkpoint(body, x, use_reentrant=False))
        losses = F.cross_entropy(z, torch.tensor([0, 1]), reduction="none")
    loss = mimic.weigh(losses)
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        loss.backward()


def test_a_head_used_twice_in_one_pass_even_on_its_own_output():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x):
            once = self.head(torch.tanh(self.body(x)))
            return once + self.head(input=torch.tanh(once))

    model = Recurrent().double()
    reference, batch = zoo.nearby(model), zoo.draw("mlp", 6)
    losses = zoo.losses_of("cross-entropy")
    expected = by_hand(model, reference, batch, losses, "head")
    assert_close(mimic_scores(model, reference, batch, losses), expected, 1e-9)


def test_losses_in_half_precision_give_scores_and_weights_in_single():
    model, reference = zoo.build("mlp", 4, torch.bfloat16)
    batch = zoo.draw("mlp", 8, torch.bfloat16)
    mimic = GradMimic(model, reference)
    with mimic:
        losses = zoo.losses_of("cross-entropy")(model, batch)
    loss = mimic.weigh(losses)
    loss.backward()
    assert losses.dtype == torch.bfloat16
    assert mimic.weights.dtype == torch.float32
    assert mimic.weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_scoring_raises_no_warning_of_torchs_own():
    code = (
        "from torch import nn, ones; from gradmimic import mimic_scores; "
        "mimic_scores(nn.Linear(2, 1), nn.Linear(2, 1), ones(3, 2), lambda m, x: m(x).sum(1))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
