"""What else happens on several ranks: FSDP2, Accelerate, refusals, and ranks that end."""

import os
from functools import partial
from importlib.util import find_spec

import on_ranks
import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from gradmimic import GradMimic, ScoreLog, mimic_scores
from gradmimic.errors import (
    LogError,
    LossError,
    ParameterError,
    UnsupportedOperationError,
    UsageError,
)


def message(error, call, *args, **options):
    with pytest.raises(error) as caught:
        call(*args, **options)
    return str(caught.value)


def here(rank, step=0):
    x, y, ids = on_ranks.batch_of(step)
    rows = slice(0, 7) if rank == 0 else slice(7, None)
    return x[rows], y[rows], ids[rows]


def losses_of(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def weighed(mimic, model, x, y):
    with mimic:
        losses = losses_of(model, x, y)
    return mimic.weigh(losses)


def local(rank, _folder):
    told = on_ranks.train(rank, 2, options={"batch": "local", "temperature": 0.3})
    for step in told["steps"]:
        if len(step["scores"]):
            expected = torch.softmax(step["scores"] / 0.3, 0)
            torch.testing.assert_close(step["weights"], expected)
    return told


def broken(rank, _folder):
    """NaN on one rank is an error on both, and both go on."""
    model, reference = on_ranks.models()
    ddp = DistributedDataParallel(model)
    mimic = GradMimic(ddp, reference)
    x, y, _ = here(rank)
    text = message(LossError, weighed, mimic, ddp, x * (float("nan") if rank else 1), y)
    weighed(mimic, ddp, x, y).backward()
    return text, mimic.weights


def refusals(rank, folder):
    model, reference = on_ranks.models()
    ddp = DistributedDataParallel(model)
    told = {}
    transport = GradMimic(ddp, reference, align="transport")
    unseen, other = on_ranks.models(unused=True)
    hidden = DistributedDataParallel(unseen, find_unused_parameters=True)
    inner = GradMimic(unseen, other)
    seen = [
        mimic_scores(called, other, here(rank)[:2], lambda model, b: losses_of(model, *b))
        for called in (hidden, unseen)
    ]
    told["scored"] = torch.stack(seen)
    told["inner"] = message(UnsupportedOperationError, weighed, inner, hidden, *here(rank)[:2])
    told["transport"] = message(UsageError, Join, [transport, ddp])
    mimic = GradMimic(ddp, reference)
    options = {"divide_by_initial_world_size": False}
    told["divide"] = message(UsageError, Join, [mimic, ddp], **options)
    Join([ddp, mimic])
    told["order"] = message(UsageError, mimic.__enter__)
    for turn in range(2):
        if turn == rank:
            mine = ScoreLog(folder / "shared", rank=0)
        dist.barrier()
    mine.append([rank], [0.0], [1.0], [1.0], epoch=0, step=0)
    try:
        mine.flush()
        told["same rank"] = "wrote"
    except LogError as error:
        told["same rank"] = str(error)
        mine._batches.clear()
        mine._rows = 0
    mine.close()
    told["rank of the log"] = ScoreLog(folder / "own").rank
    return told


def sharded(whole, policy=None):
    model, reference = on_ranks.models()
    if policy is not None:
        model, reference = model.float(), reference.float()
    mesh = init_device_mesh("cpu", (2,))
    options = {"mesh": mesh} | ({} if policy is None else {"mp_policy": policy})
    for part in (model.trunk[0], *([] if whole else [model.head])):
        fully_shard(part, **options)
    return fully_shard(model, **options), reference


def fsdp(rank, _folder, whole=False, options=None, steps=3):
    """Train under FSDP2, with the head in the root's group or in one of its own."""
    model, reference = sharded(whole)
    mimic = GradMimic(model, reference, **(options or {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    told = []
    for step in range(steps):
        x, y, ids = here(rank, step)
        with torch.no_grad():
            model(x)  # an evaluation leaves the root's parameters gathered
        with mimic:
            losses = losses_of(model, x, y)
        mimic.weigh(losses, ids).backward()
        told.append({"scores": mimic.scores, "weights": mimic.weights})
        told[-1]["gradients"] = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return {"steps": told}


def fsdp_refused(rank, _folder):
    model, reference = sharded(whole=False)
    x, y, _ = here(rank)
    told = {}
    told["all"] = message(
        UnsupportedOperationError, weighed, GradMimic(model, reference, params="all"), model, x, y
    )
    told["ghost"] = message(
        UnsupportedOperationError,
        weighed, GradMimic(model, reference, params="all", engine="ghost"), model, x, y,
    )  # fmt: skip
    told["scored"] = message(ParameterError, GradMimic, model, reference, reweight="scored")
    late, _ = on_ranks.models()
    mimic = GradMimic(late, reference)
    fully_shard(late, mesh=init_device_mesh("cpu", (2,)))
    told["late"] = message(UsageError, mimic.__enter__)
    return told


def fsdp_bf16(rank, _folder):
    model, reference = sharded(False, MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    mimic = GradMimic(model, reference)
    x, y, _ = here(rank)
    weighed(mimic, model, x.float(), y).backward()
    return mimic.scores


def fsdp_head_outside(rank, _folder):
    """The trunk alone is sharded: then anything may be asked of the head."""
    model, reference = on_ranks.models()
    fully_shard(model.trunk, mesh=init_device_mesh("cpu", (2,)))
    mimic = GradMimic(model, reference, reweight="scored")
    x, y, _ = here(rank)
    weighed(mimic, model, x, y).backward()
    return mimic.scores


def accelerated(rank, _folder):
    """accelerator.prepare makes DDP of the model, and shares the batches out."""
    if find_spec("accelerate") is None:
        return None
    from accelerate import Accelerator

    os.environ.update(  # as torchrun sets them
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29500",
    )  # fmt: skip
    helper = Accelerator(cpu=True)
    model, reference = on_ranks.models()
    rows = TensorDataset(*on_ranks.batch_of(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ddp, optimizer, loader = helper.prepare(model, optimizer, DataLoader(rows, batch_size=6))
    mimic = GradMimic(ddp, reference)
    ((x, y, ids),) = loader
    with mimic:
        losses = losses_of(ddp, x, y)
    helper.backward(mimic.weigh(losses, ids))
    told = {"scores": mimic.scores, "weights": mimic.weights, "ids": ids}
    told["kind"] = type(ddp).__name__
    told["gradients"] = {name: p.grad.clone() for name, p in model.named_parameters()}
    return told


def compiled(rank, _folder, inside):
    """torch.compile of DDP, and DDP of torch.compile."""
    model, reference = on_ranks.models()
    if inside:
        called = DistributedDataParallel(torch.compile(model, backend="aot_eager"))
    else:
        called = torch.compile(DistributedDataParallel(model), backend="aot_eager")
    mimic = GradMimic(called, reference)
    for _ in range(2):
        weighed(mimic, called, *here(rank)[:2]).backward()
    gradients = {name: p.grad / 2 for name, p in model.named_parameters()}
    return {"scores": mimic.scores, "weights": mimic.weights, "gradients": gradients}


def compared(rank, _folder):
    """Ranks judge by the samples of all: here the ones of rank 0 alone would say no."""
    model, reference = on_ranks.models()
    mimic = GradMimic(model, reference)
    far = torch.linspace(4.0, 5.0, 50)
    own = far if rank == 0 else far[:40]
    return mimic.compare(own, own + (2.0 if rank else -0.1)), mimic.overtaken


def logged(rank, folder, parts=25):
    """One rank reads the log while the other writes its own parts of it."""
    log = ScoreLog(folder / "read", rows_per_part=4)
    dist.barrier()
    if rank:
        for step in range(parts):
            ids = range(4 * step, 4 * step + 4)
            log.append(ids, ids, [0.5] * 4, [1.0] * 4, epoch=0, step=step, batch_size=8)
            log.flush()
        log.close()
        return parts
    seen = [0]
    while seen[-1] < 4 * parts:
        table = ScoreLog.read(folder / "read").scan()
        assert table["sample_id"].to_pylist() == list(range(len(table)))
        assert set(table["rank"].to_pylist()) <= {1}
        assert set(table["batch_size"].to_pylist()) <= {8}
        seen.append(len(table))
    assert seen == sorted(seen)
    return parts


CASES = {
    "local": local,
    "broken": broken,
    "refusals": refusals,
    "compiled inside": partial(compiled, inside=True),
    "compiled outside": partial(compiled, inside=False),
    "fsdp": fsdp,
    "fsdp whole": lambda rank, folder: fsdp(rank, folder, whole=True),
    "fsdp outputs": lambda rank, folder: fsdp(rank, folder, options={"align": "outputs"}),
    "fsdp transport": lambda rank, folder: fsdp(
        rank, folder, whole=True, options={"align": "transport"}, steps=11
    ),
    "fsdp refused": fsdp_refused,
    "fsdp bf16": fsdp_bf16,
    "fsdp head outside": fsdp_head_outside,
    "compared": compared,
    "logged": logged,
    "accelerated": accelerated,
}


@pytest.fixture
def ran(two_ranks):
    """What each rank returned, by case."""
    own = "test_launchers."
    return [
        {name.removeprefix(own): value for name, value in told.items() if name.startswith(own)}
        for told in two_ranks[0]
    ]


def test_a_batch_may_be_each_ranks_own(ran):
    a, b = (told["local"]["steps"] for told in ran)
    for here_, there in zip(a, b, strict=True):
        for weights in (here_["weights"], there["weights"]):
            assert weights.sum().item() == pytest.approx(float(len(weights) > 0))


def test_nan_on_one_rank_is_an_error_on_all_and_all_go_on(ran):
    (first, a), (second, b) = (told["broken"] for told in ran)
    assert "some rank" in first
    assert "5 of 5 losses are NaN" in second
    assert torch.cat([a, b]).sum().item() == pytest.approx(1)


def test_what_join_cannot_do_is_refused(ran):
    for told in (told["refusals"] for told in ran):
        assert "align='transport' learns from every rank" in told["transport"]
        assert "drop_last=True" in told["transport"]
        assert "divided by the number of all ranks" in told["divide"]
        assert "Join([mimic, ddp_model])" in told["order"]


def test_ddp_that_looks_for_unused_parameters_must_be_passed_itself(ran):
    for told in (told["refusals"] for told in ran):
        assert "where GradMimic is built from the DDP module" in told["inner"]
        torch.testing.assert_close(*told["scored"])


def test_a_log_takes_the_ranks_parts_and_never_two_of_one(ran):
    told = [told["refusals"] for told in ran]
    assert [one["rank of the log"] for one in told] == [0, 1]
    said = sorted(one["same rank"] for one in told)
    assert said[1] == "wrote"
    assert "its own rank=" in said[0]


def test_a_log_is_read_while_another_rank_writes_it(ran):
    assert [told["logged"] for told in ran] == [25, 25]


def test_ranks_compare_model_and_reference_by_the_samples_of_all(ran):
    assert [told["compared"] for told in ran] == [(True, 0), (True, 0)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fsdp", {}),
        ("fsdp whole", {}),
        ("fsdp outputs", {"align": "outputs"}),
        ("fsdp transport", {"align": "transport"}),
    ],
)
def test_fsdp2_gives_what_one_process_gives(ran, name, options):
    a, b = (told[name]["steps"] for told in ran)
    one = on_ranks.train(0, 1, steps=len(a), options=options)["steps"]
    digits = 1e-5 if "transport" in name else 1e-6
    for mine, first, second in zip(one, a, b, strict=True):
        for key in ("scores", "weights"):
            if mine[key] is not None:
                both = torch.cat([first[key], second[key]])
                torch.testing.assert_close(both, mine[key], rtol=digits, atol=digits)
        for key, gradient in mine["gradients"].items():
            torch.testing.assert_close(first["gradients"][key], gradient, rtol=digits, atol=digits)


@pytest.mark.parametrize("name", ["accelerated", "compiled inside", "compiled outside"])
def test_accelerate_and_compilers_on_two_ranks_give_what_one_process_gives(ran, name):
    first, second = (told[name] for told in ran)
    if first is None:
        pytest.skip("accelerate is not installed")
    one = on_ranks.train(0, 1, steps=1)["steps"][0]
    for key in ("scores", "weights"):
        both = torch.cat([first[key], second[key]])
        torch.testing.assert_close(both, one[key], rtol=1e-6, atol=1e-6)
    for key, gradient in one["gradients"].items():
        for told in (first, second):
            torch.testing.assert_close(told["gradients"][key], gradient, rtol=1e-6, atol=1e-6)
    assert first.get("kind", "DistributedDataParallel") == "DistributedDataParallel"


def test_fsdp2_in_bf16_and_with_the_head_outside(ran):
    one = on_ranks.train(0, 1, steps=1)["steps"][0]["scores"]
    outside = torch.cat([told["fsdp head outside"] for told in ran])
    torch.testing.assert_close(outside, one, rtol=1e-6, atol=1e-6)
    rounded = torch.cat([told["fsdp bf16"] for told in ran])
    torch.testing.assert_close(rounded.double(), one, rtol=0.05, atol=0.02)


def test_what_fsdp2_cannot_do_is_refused(ran):
    for told in (told["fsdp refused"] for told in ran):
        assert "FSDP2 shards the scored parameters" in told["all"]
        assert "use engine='secant'" in told["ghost"]
        assert "reweight='scored' needs the scored parameters in one piece" in told["scored"]
        assert "Build GradMimic after" in told["late"]
