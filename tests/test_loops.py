"""What training loops do around the model: autocast, scalers, memory formats, checkpoints, graphs.

Several processes are in test_distributed and test_launchers, compilers in test_compile.
"""

import copy

import on_ranks
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradmimic import GradMimic, mimic_scores
from gradmimic.errors import GradMimicError, ParameterError, UnsupportedOperationError, UsageError


class Images(nn.Module):
    def __init__(self, recompute=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)
        self.recompute = recompute

    def forward(self, x):
        h = self.stem(x)
        if self.recompute is None:
            h = self.body(h)
        else:
            h = checkpoint(self.body, h, use_reentrant=self.recompute)
        return self.head(h.mean((2, 3)))


def losses_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def case():
    model, reference = Images(), Images()
    return model, reference, (torch.randn(6, 3, 8, 8), torch.randint(4, (6,)))


def step(mimic, model, batch):
    model.zero_grad()
    with mimic:
        losses = losses_of(model, batch)
    loss = mimic.weigh(losses)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def same(actual, expected, **tolerance):
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, **tolerance)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_trunk_gives_the_same_step(case, reentrant):
    model, reference, batch = case
    expected = GradMimic(model, reference)
    gradients = step(expected, model, batch)
    again = Images(recompute=reentrant)
    again.load_state_dict(model.state_dict())
    mimic = GradMimic(again, reference)
    same(step(mimic, again, batch), gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mimic.scores, expected.scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", ["head", "all"])
def test_autocast_and_a_gradient_scaler(case, dtype, params):
    model, reference, batch = case
    exact = mimic_scores(model, reference, batch, losses_of, params=params)
    mimic = GradMimic(model, reference, params=params)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with torch.autocast("cpu", dtype), mimic:
        losses = losses_of(model, batch)
    scaler.scale(mimic.weigh(losses)).backward()
    scaler.unscale_(optimizer)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    scaler.step(optimizer)
    scaler.update()
    digits = 0.05 if dtype is torch.bfloat16 else 0.01
    torch.testing.assert_close(mimic.scores, exact, rtol=digits, atol=digits)
    model.load_state_dict(before)
    plain = GradMimic(model, reference, params=params)
    full = step(plain, model, batch)
    flat = [torch.cat([g.flatten() for g in found.values()]) for found in (gradients, full)]
    assert F.cosine_similarity(*flat, dim=0) > 0.99


def test_an_overflow_in_half_precision_leaves_the_step_to_the_scaler(case):
    model, reference, batch = case
    mimic = GradMimic(model, reference)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with torch.autocast("cpu", torch.float16), mimic:
        losses = losses_of(model, batch)
    scaler.scale(mimic.weigh(losses)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**40
    torch.testing.assert_close(model.head.weight, before["head.weight"])


@pytest.mark.parametrize("params", ["head", "all"])
def test_channels_last_gives_the_same_step(case, params):
    model, reference, batch = case
    mimic = GradMimic(model, reference, params=params)
    gradients = step(mimic, model, batch)
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    turned.load_state_dict(model.state_dict())
    x = batch[0].to(memory_format=torch.channels_last)
    again = GradMimic(turned, reference, params=params)
    same(step(again, turned, (x, batch[1])), gradients, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.scores, mimic.scores, rtol=1e-4, atol=1e-5)


def test_group_norm_in_channels_last_is_refused_by_forward_alone(case):
    _, _, batch = case
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 4))
    model = model.to(memory_format=torch.channels_last)
    reference = copy.deepcopy(model)
    nn.init.normal_(reference[3].weight)
    x = batch[0].to(memory_format=torch.channels_last)
    step(GradMimic(model, reference), model, (x, batch[1]))
    with pytest.raises(UnsupportedOperationError, match="contiguous"):
        step(GradMimic(model, reference, params="all", engine="forward"), model, (x, batch[1]))
    mimic = GradMimic(model, reference, params="all")  # ghost needs no such formula
    step(mimic, model, (x, batch[1]))
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    again = GradMimic(plain, reference, params="all", engine="oracle")
    step(again, plain, batch)
    torch.testing.assert_close(mimic.scores, again.scores, rtol=1e-4, atol=1e-5)


def test_a_cuda_graph_under_capture_is_refused(case, monkeypatch):
    model, reference, _ = case
    mimic = GradMimic(model, reference)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UsageError, match="CUDA graph is being captured"), mimic:
        pass


class FullyShardedDataParallel(nn.Module):
    """Named like torch's, which takes a process group to make."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


@pytest.mark.parametrize(
    ("wrap", "instead"),
    [(nn.DataParallel, "DistributedDataParallel"), (FullyShardedDataParallel, "fully_shard")],
)
def test_wrappers_that_hide_the_head_are_refused(case, wrap, instead):
    model, reference, _ = case
    with pytest.raises(ParameterError, match=instead):
        GradMimic(wrap(model), reference)


def test_parameters_that_were_replaced_are_noticed(case):
    model, reference, _ = case
    mimic = GradMimic(model, reference)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(UsageError, match=r"holds another head.weight .* Build GradMimic after"):
        mimic.__enter__()
    with pytest.raises(GradMimicError, match="batch='everything' is unknown"):
        GradMimic(model, reference, batch="everything")


def test_ranks_that_come_after_gradmimic_are_noticed(case, monkeypatch):
    model, reference, batch = case
    mimic, alone = GradMimic(model, reference), GradMimic(model, reference, batch="local")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UsageError, match="the batches of 2 ranks would not be weighed together"):
        step(mimic, model, batch)
    step(alone, model, batch)


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    from accelerate.state import AcceleratorState

    yield lambda **options: accelerate.Accelerator(cpu=True, **options)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("params", ["head", "all"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepares_the_model_and_takes_the_gradient(accelerator, precision, params):
    model, reference = (net.float() for net in on_ranks.models())
    plain, batches = copy.deepcopy(model), [on_ranks.batch_of(number) for number in range(4)]
    expected = GradMimic(plain, reference, temperature=0.5, params=params)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    helper = accelerator(mixed_precision=precision, gradient_accumulation_steps=2)
    prepared, optimizer = helper.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05))
    mimic = GradMimic(prepared, reference, temperature=0.5, params=params)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if precision == "no" else {"rtol": 0.1, "atol": 0.02}
    for number, (x, y, _) in enumerate(batches):
        with helper.accumulate(prepared):
            with mimic:
                losses = F.cross_entropy(prepared(x.float()), y, reduction="none")
            helper.backward(mimic.weigh(losses))
            optimizer.step()
            optimizer.zero_grad()
        with expected:
            losses = F.cross_entropy(plain(x.float()), y, reduction="none")
        (expected.weigh(losses) / 2).backward()
        if number % 2:
            plain_optimizer.step()
            plain_optimizer.zero_grad()
        torch.testing.assert_close(mimic.scores, expected.scores, **tolerance)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)
