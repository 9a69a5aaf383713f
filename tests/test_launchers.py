"""What else happens on several ranks: FSDP2, Accelerate, refusals, and ranks that end."""

import os
import signal
import sys
import time

import on_ranks
import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gradmimic import GradMimic, ScoreLog
from gradmimic.errors import (
    LogError,
    LossError,
    ParameterError,
    RankError,
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


def silent(rank, _folder):
    """A rank that does not come in time."""
    model, reference = on_ranks.models()
    mimic = GradMimic(model, reference)
    if rank:
        return time.sleep(3)
    began = time.monotonic()
    text = message(RankError, weighed, mimic, model, *here(rank)[:2])
    assert time.monotonic() - began < 20
    return text


def killed(rank, _folder):
    model, reference = on_ranks.models()
    mimic = GradMimic(model, reference)
    weighed(mimic, model, *here(rank)[:2])
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return message(RankError, weighed, mimic, model, *here(rank)[:2])


ENDING = {"silent": silent, "killed": killed}
CASES = ENDING | {
    "local": local,
    "broken": broken,
    "refusals": refusals,
    "fsdp": fsdp,
    "fsdp whole": lambda rank, folder: fsdp(rank, folder, whole=True),
    "fsdp outputs": lambda rank, folder: fsdp(rank, folder, options={"align": "outputs"}),
    "fsdp transport": lambda rank, folder: fsdp(
        rank, folder, whole=True, options={"align": "transport"}, steps=11
    ),
    "fsdp refused": fsdp_refused,
    "fsdp bf16": fsdp_bf16,
    "fsdp head outside": fsdp_head_outside,
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers")
    names = [name for name in CASES if name not in ENDING]
    found, _, output = on_ranks.run_on_two(folder, "test_launchers", names)
    for rank in range(2):
        for name in names:
            assert name in found[rank], output[rank]
            assert not isinstance(found[rank][name], str), found[rank][name]
    return found


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


def test_a_log_takes_the_ranks_parts_and_never_two_of_one(ran):
    told = [told["refusals"] for told in ran]
    assert [one["rank of the log"] for one in told] == [0, 1]
    said = sorted(one["same rank"] for one in told)
    assert said[1] == "wrote"
    assert "its own rank=" in said[0]


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


def test_fsdp2_in_bf16_and_with_the_head_outside(ran):
    one = on_ranks.train(0, 1, steps=1)["steps"][0]["scores"]
    outside = torch.cat([told["fsdp head outside"] for told in ran])
    torch.testing.assert_close(outside, one, rtol=1e-6, atol=1e-6)
    rounded = torch.cat([told["fsdp bf16"] for told in ran])
    torch.testing.assert_close(rounded.double(), one, rtol=0.05, atol=0.02)


def test_what_fsdp2_cannot_do_is_refused(ran):
    for told in (told["fsdp refused"] for told in ran):
        assert "FSDP2 shards the scored parameters" in told["all"]
        assert "reweight='scored' needs the scored parameters in one piece" in told["scored"]
        assert "Build GradMimic after" in told["late"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_rank_that_is_gone_is_an_error_and_no_hang(tmp_path):
    found, codes, output = on_ranks.run_on_two(tmp_path, "test_launchers", list(ENDING), patience=2)
    for name in ENDING:
        assert "another rank ended" in found[0][name], (name, found[0][name], output)
    assert codes[1] == -signal.SIGKILL
