"""Compiled models: exact scores of the head, and an error, never wrong scores, elsewhere."""

import copy
import shutil

import on_ranks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic, mimic_scores
from gradmimic.errors import GradMimicError

# torch warns of itself while it compiles
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Net(nn.Module):
    def __init__(self, above=False):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.above = above

    def forward(self, x):
        z = self.head(self.trunk(x))
        return z * 1.5 if self.above else z


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def case(**options):
    model, reference = Net(**options), Net(**options)
    return model, reference, (torch.randn(6, 5), torch.randint(3, (6,)))


def compiled(model, how, backend):
    """Compile a model in one of the ways there are; return what the user calls."""
    if how == "wrapped":
        return torch.compile(model, backend=backend)
    if how == "in place":
        model.compile(backend=backend)
    elif how == "trunk":
        model.trunk = torch.compile(model.trunk, backend=backend)
    elif how == "function":
        return torch.compile(lambda x: model(x), backend=backend)
    return model


WAYS = ["wrapped", "in place", "trunk", "function"]


def scored_like_a_plain_one(how, backend, called_before, given="outer", engine="auto"):
    model, reference, batch = case()
    plain = copy.deepcopy(model)
    outer = compiled(model, how, backend)
    if called_before:
        outer(batch[0])
        with torch.no_grad():
            outer(batch[0])
    wrapped = isinstance(outer, nn.Module) and given == "outer"
    mimic = GradMimic(outer if wrapped else model, reference.state_dict(), engine=engine)
    expected_of = GradMimic(plain, reference.state_dict())
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, plain)]
    for _ in range(3):
        with mimic:
            losses = losses_of(outer, batch)
        mimic.weigh(losses).backward()
        with expected_of:
            losses = losses_of(plain, batch)
        expected_of.weigh(losses).backward()
        torch.testing.assert_close(mimic.scores, expected_of.scores, rtol=1e-5, atol=1e-6)
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(outer(batch[0]), plain(batch[0]))  # outside the block, too


@pytest.mark.filterwarnings("ignore:The reference .* names its weights otherwise")
@pytest.mark.parametrize("called_before", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("how", WAYS)
def test_a_compiled_models_head_scores_exactly(how, called_before):
    scored_like_a_plain_one(how, "aot_eager", called_before)


def test_the_inner_model_may_be_passed_and_the_oracle_used():
    scored_like_a_plain_one("wrapped", "aot_eager", True, given="inner")
    scored_like_a_plain_one("wrapped", "eager", True, engine="oracle")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_with_inductor_too(how):
    scored_like_a_plain_one(how, "inductor", called_before=True)


@pytest.mark.parametrize("called_before", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("align", ["outputs", "transport"])
def test_alignments_by_outputs_see_a_compiled_models_head(align, called_before):
    model, reference, batch = case()
    plain = GradMimic(copy.deepcopy(model), copy.deepcopy(reference), align=align)
    outer = torch.compile(model, backend="aot_eager")
    if called_before:
        outer(batch[0])
    mimic = GradMimic(outer, reference, align=align)
    for _ in range(10):
        for one, called in ((plain, plain._model), (mimic, outer)):
            with one:
                losses = losses_of(called, batch)
            one.weigh(losses)
    torch.testing.assert_close(mimic.scores, plain.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The reference .* names its weights otherwise")
@pytest.mark.parametrize("called_before", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("how", WAYS)
def test_a_head_registered_first_is_found_or_asked_for_and_never_scored_wrongly(how, called_before):
    model, reference = on_ranks.models(on_ranks.Elsewhere)
    x, y, _ = on_ranks.batch_of(0)
    expected = mimic_scores(model, reference, (x, y), losses_of, params="head.*")
    outer = compiled(model, how, "aot_eager")
    if called_before:
        outer(x)

    def scores(mimic):
        with mimic:
            losses = losses_of(outer, (x, y))
        mimic.weigh(losses)
        return mimic.scores

    given = outer if isinstance(outer, nn.Module) else model
    guessing = GradMimic(given, reference)
    if how == "trunk":  # what runs last is not compiled, and seen
        with pytest.warns(UserWarning, match="'head'"):
            scores(guessing)
        torch.testing.assert_close(scores(guessing), expected)
    else:
        with pytest.raises(GradMimicError, match="compile"):
            scores(guessing)
    for _ in range(2):
        named = GradMimic(given, reference, params="head.*")
        torch.testing.assert_close(scores(named), expected)


@pytest.mark.parametrize("called_before", [False, True], ids=["new", "called before"])
def test_a_compiled_model_is_scored_without_training(called_before):
    model, reference, batch = case()
    expected = mimic_scores(model, reference, batch, losses_of)
    outer = torch.compile(model, backend="aot_eager")
    if called_before:
        outer(batch[0])
    counts = []
    for _ in range(4):
        scores = mimic_scores(outer, torch.compile(reference), batch, losses_of)
        torch.testing.assert_close(scores, expected)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[1:] == counts[1:2] * 3


def test_no_graph_is_compiled_again_at_each_step():
    model, reference, batch = case()
    outer = torch.compile(model, backend="aot_eager")
    mimic = GradMimic(outer, reference)
    counts = []
    for _ in range(5):
        with mimic:
            losses = losses_of(outer, batch)
        mimic.weigh(losses).backward()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[1:] == counts[1:2] * 4


def test_a_graph_that_must_not_break_says_why_it_does():
    model, reference, batch = case()
    outer = torch.compile(model, backend="eager", fullgraph=True)
    mimic = GradMimic(outer, reference)
    with pytest.raises(RuntimeError, match="GradMimic scores this layer by its hooks"), mimic:
        outer(batch[0])


@pytest.mark.parametrize("params", ["all", "trunk.*"])
@pytest.mark.parametrize("called_before", [False, True])
def test_scores_through_compiled_code_are_refused(params, called_before):
    model, reference, batch = case()
    outer = torch.compile(model, backend="aot_eager")
    if called_before:
        outer(batch[0])
    mimic = GradMimic(outer, reference, params=params, engine="forward")
    with pytest.raises(GradMimicError, match="compiled"):
        with mimic:
            losses = losses_of(outer, batch)
        mimic.weigh(losses)


@pytest.mark.parametrize("params", ["all", "trunk.*"])
@pytest.mark.parametrize("called_before", [False, True])
def test_ghost_scores_and_trains_compiled_code_exactly(params, called_before):
    model, reference, batch = case()
    expected, plain = [], copy.deepcopy(model)
    slow = GradMimic(plain, reference, params=params, engine="oracle")
    with slow:
        losses = losses_of(plain, batch)
    slow.weigh(losses).backward()
    expected = [slow.scores, *(p.grad for p in plain.parameters())]
    outer = torch.compile(model, backend="aot_eager")
    if called_before:
        outer(batch[0])
    mimic = GradMimic(outer, reference, params=params)
    for _ in range(2):  # the first pass looks where the samples are
        model.zero_grad()
        with mimic:
            losses = losses_of(outer, batch)
        mimic.weigh(losses).backward()
    found = [mimic.scores, *(p.grad for p in model.parameters())]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_compiled_operation_above_the_head_is_refused(called_before):
    model, reference, batch = case(above=True)
    outer = torch.compile(model, backend="aot_eager")
    if called_before:
        outer(batch[0])
    mimic = GradMimic(outer, reference)
    with pytest.raises(GradMimicError, match="compiled"):
        with mimic:
            losses = losses_of(outer, batch)
        mimic.weigh(losses)


def test_a_model_compiled_after_gradmimic_was_built_never_scores_wrongly():
    model, reference, batch = case()
    expected = mimic_scores(model, reference, batch, losses_of)
    mimic = GradMimic(model, reference)
    outer = torch.compile(model, backend="aot_eager")
    try:
        for _ in range(2):
            with mimic:
                losses = losses_of(outer, batch)
            mimic.weigh(losses)
    except GradMimicError:
        return
    torch.testing.assert_close(mimic.scores, expected)


def test_copies_and_checkpoints_of_a_model_notice_nothing():
    model, reference, batch = case()
    names = list(model.state_dict())
    GradMimic(torch.compile(model, backend="eager"), reference)
    assert list(model.state_dict()) == names
    copied = copy.deepcopy(model)
    assert copied.head._compiled_call_impl is None
    torch.testing.assert_close(copied(batch[0]), model(batch[0]))
