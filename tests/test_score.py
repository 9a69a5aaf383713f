"""``gradmimic.scoring``: a data set through many checkpoints, against one batch at a time."""

import copy
import errno
import os
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zoo
from test_toward_outputs import by_hand
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import gradmimic.units
from gradmimic import Canaries, Outputs, ScoreLog, mimic_scores
from gradmimic.ahead import DEPTH, ahead
from gradmimic.direction import choose
from gradmimic.errors import (
    AlignmentError,
    DirectionError,
    LogError,
    LossError,
    ParameterError,
    UsageError,
)
from gradmimic.reference import load_reference
from gradmimic.rotation import Rotation
from gradmimic.scoring import Scored, score

ORDER = [("epoch", "ascending"), ("canary", "ascending"), ("sample_id", "ascending")]


def trained(kind="mlp", checkpoints=3, width=4, dtype=torch.float64):
    """Checkpoints on a way to a reference."""
    model, reference = zoo.build(kind, width, dtype)
    return [model, *(zoo.nearby(model, 0.1) for _ in range(checkpoints - 1))], reference


def pieces(kind, n, b, dtype=torch.float64):
    """A data set's batches, as pairs of row numbers and a batch."""
    whole = zoo.draw(kind, n, dtype)
    return [(rows, whole.take(rows)) for rows in torch.arange(n).split(b)]


def run(folder, models, reference, batches, *, loss="cross-entropy", rank=0, canaries=None, **more):
    """Score; return how much was."""
    values = zoo.losses_of(loss)

    def losses(model, pair):
        if canaries is None:
            return values(model, pair[1])
        z = model(pair[1].x)
        drawn = canaries.labels(z, pair[1].y, pair[0])
        return F.cross_entropy(z, pair[1].y, reduction="none"), drawn

    with ScoreLog(folder, rank=rank, rows_per_part=more.pop("rows_per_part", 65_536)) as log:
        return score(models, reference, batches, losses, log, ids=lambda pair: pair[0], **more)


def rows_of(folder):
    """All rows but for the process, in an order of their own."""
    return ScoreLog.read(folder).scan().drop(["rank"]).sort_by(ORDER)


def column(folder, name):
    return np.array(rows_of(folder)[name].to_pylist())


@pytest.mark.parametrize("engine", ["auto", "forward", "oracle"])
@pytest.mark.parametrize("params", ["head", "all"])
@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("mlp", "contrastive"),
        ("cnn-batchnorm-train", "cross-entropy"),
        ("transformer", "mse"),
        ("embedding", "bce"),
    ],
)
def test_scores_are_those_of_one_batch_at_a_time(tmp_path, kind, loss, params, engine):
    models, reference = trained(kind)
    batches = pieces(kind, 23, 5)
    modes = [module.training for model in models for module in model.modules()]
    before = copy.deepcopy([model.state_dict() for model in models])
    done = run(tmp_path, models, reference, batches, loss=loss, params=params, engine=engine)
    assert done == Scored(batches=5, samples=23, found=0)
    assert [module.training for model in models for module in model.modules()] == modes
    expected = [
        mimic_scores(model.eval(), reference, batch, zoo.losses_of(loss), params=params)
        for model in models
        for _, batch in batches
    ]
    np.testing.assert_allclose(column(tmp_path, "score"), torch.cat(expected), rtol=1e-5, atol=1e-6)
    weights = [(own / 1.0).softmax(0) for own in expected]
    np.testing.assert_allclose(column(tmp_path, "weight"), torch.cat(weights), rtol=1e-5)
    losses = [
        zoo.losses_of(loss)(model, batch).detach() for model in models for _, batch in batches
    ]
    np.testing.assert_allclose(column(tmp_path, "loss"), torch.cat(losses), rtol=1e-5, atol=1e-6)
    for model, state in zip(models, before, strict=True):
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("engine", "tolerance"), [("ghost", 1e-6), ("secant", 1e-3)])
def test_other_engines_score_too(tmp_path, engine, tolerance):
    models, reference = trained("transformer")
    batches = pieces("transformer", 12, 5)
    run(tmp_path, models, reference, batches, loss="mse", params="all", engine=engine)
    expected = [
        mimic_scores(model.eval(), reference, batch, zoo.losses_of("mse"), params="all")
        for model in models
        for _, batch in batches
    ]
    np.testing.assert_allclose(column(tmp_path, "score"), torch.cat(expected), atol=tolerance)


def test_each_checkpoint_is_an_epoch_and_each_batch_has_its_step(tmp_path):
    models, reference = trained()
    run(tmp_path, models, reference, pieces("mlp", 11, 4))
    assert column(tmp_path, "epoch").tolist() == [0] * 11 + [1] * 11 + [2] * 11
    assert column(tmp_path, "sample_id").tolist() == [*range(11)] * 3
    steps = [3 * epoch + row // 4 for epoch in range(3) for row in range(11)]
    assert column(tmp_path, "step").tolist() == steps
    assert column(tmp_path, "batch_size").tolist() == ([4] * 8 + [3] * 3) * 3
    norms = ScoreLog.read(tmp_path).run["direction_norm"]
    lengths = [
        torch.cat([(r - p).flatten() for p, r in zip(*pair, strict=True)]).norm().item()
        for pair in ((m[-1].parameters(), reference[-1].parameters()) for m in models)
    ]
    assert norms == pytest.approx(dict(zip([0, 3, 6], lengths, strict=True)))


@pytest.mark.parametrize("loss", ["cross-entropy", "contrastive"])
@pytest.mark.parametrize("table", [True, False])
def test_toward_outputs(tmp_path, loss, table):
    models, _ = trained(dtype=torch.float32)
    other, _ = zoo.build("mlp", 7, torch.float32, seed=5)
    batches = pieces("mlp", 20, 6, torch.float32)
    said = [other(batch.x).detach() for _, batch in batches]
    reference = Outputs(range(20), torch.cat(said)) if table else other
    run(tmp_path, models, reference, batches, loss=loss, align="outputs", temperature="auto")
    expected = [
        by_hand(model, batch, zoo.losses_of(loss), z)
        for model in models
        for (_, batch), z in zip(batches, said, strict=True)
    ]
    found = column(tmp_path, "score")
    tolerance = 5e-3 if table else 1e-4  # a table keeps float16
    np.testing.assert_allclose(found, torch.cat(expected), rtol=tolerance, atol=tolerance)
    weights = [torch.softmax(m / (0.7 * m.std(correction=0)), 0) for m in expected]
    np.testing.assert_allclose(column(tmp_path, "weight"), torch.cat(weights), rtol=2e-2)


def test_samples_without_outputs_are_not_logged_nor_waited_for(tmp_path):
    models, _ = trained(dtype=torch.float32)
    reference = Outputs(range(6, 20), torch.randn(14, zoo.CLASSES))
    batches = pieces("mlp", 20, 5, torch.float32)  # of the first batch nothing is known
    more = {"align": "outputs", "canaries": Canaries(1.0)}
    run(tmp_path, models, reference, batches, **more)
    assert set(column(tmp_path, "sample_id")) == {*range(6, 20)}
    first = rows_of(tmp_path)
    assert run(tmp_path, models, reference, batches, **more).batches == 1
    assert rows_of(tmp_path).equals(first)


def test_canaries_are_scored_beside_and_weigh_nothing(tmp_path):
    models, reference = trained()
    batches = pieces("mlp", 40, 16)
    run(tmp_path / "with", models, reference, batches, canaries=Canaries(0.5))
    run(tmp_path / "without", models, reference, batches)
    rows = rows_of(tmp_path / "with")
    real = rows.filter(rows["canary"].is_null())
    for name in ("sample_id", "epoch", "step", "score", "weight", "loss"):
        assert real[name].equals(rows_of(tmp_path / "without")[name]), name
    canaries = rows.filter(rows["canary"].is_valid())
    drawn = Canaries(0.5).labels(torch.zeros(40, zoo.CLASSES), torch.zeros(40).long(), range(40))
    assert canaries.num_rows == 3 * len(drawn.ids) > 0
    assert set(canaries["weight"].to_pylist()) == {0.0}


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_same_rows(tmp_path, processes):
    models, reference = trained()
    batches = pieces("mlp", 50, 7)
    more = {"canaries": Canaries(0.5)}
    run(tmp_path / "one", models, reference, batches, **more)
    done = [
        run(tmp_path / "all", models, reference, batches, rank=r, processes=processes, **more)
        for r in range(processes)
    ]
    assert sum(own.samples for own in done) == 50
    assert rows_of(tmp_path / "all").equals(rows_of(tmp_path / "one"))
    ranks = ScoreLog.read(tmp_path / "all").scan(["rank", "step"]).to_pylist()
    assert all(row["rank"] == row["step"] % 8 % processes for row in ranks)


class StoppedError(Exception):
    pass


def stopping(after):
    left = [after]

    def on_batch(_samples):
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    return on_batch


@pytest.mark.parametrize("rows_per_part", [1, 40, 65_536])
def test_what_was_interrupted_goes_on_with_any_number_of_processes(tmp_path, rows_per_part):
    models, reference = trained()
    batches, more = pieces("mlp", 60, 7), {"canaries": Canaries(0.5)}
    run(tmp_path / "whole", models, reference, batches, **more)
    more |= {"rows_per_part": rows_per_part}
    stopped = tmp_path / "stopped"
    for rank in range(3):
        with pytest.raises(StoppedError):
            run(
                stopped, models, reference, batches, rank=rank, processes=3,
                on_batch=stopping(rank), **more,
            )  # fmt: skip
    there = {step % 9 for step in column(stopped, "step").tolist()}
    assert there == {1, 2, 5}  # what had been read ahead or not yet written is lost
    read = []

    class Counted(list):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

    done = run(stopped, models, reference, Counted(batches), **more)
    assert {*read} == {*range(9)} - there
    assert done.found == len(there)
    assert rows_of(stopped).equals(rows_of(tmp_path / "whole"))


def test_half_a_batch_is_never_written(tmp_path, monkeypatch):
    models, reference = trained()
    batches = pieces("mlp", 30, 5)
    run(tmp_path / "whole", models, reference, batches)
    calls, append = [0], ScoreLog.append

    def interrupted(self, *given, **named):
        calls[0] += 1
        if calls[0] == 8:  # the second checkpoint of the third batch
            raise KeyboardInterrupt
        return append(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(ScoreLog, "append", interrupted)
        patched.setattr(gradmimic.units, "SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "log", models, reference, batches)
    assert {step % 6 for step in column(tmp_path / "log", "step").tolist()} == {0, 1}
    run(tmp_path / "log", models, reference, batches)
    assert rows_of(tmp_path / "log").equals(rows_of(tmp_path / "whole"))


@pytest.mark.parametrize("rows_per_part", [4, 40, 65_536])
def test_all_rows_of_a_batch_are_in_one_part(tmp_path, rows_per_part):
    models, reference = trained()
    canaries = Canaries(0.5)
    run(
        tmp_path, models, reference, pieces("mlp", 100, 10),
        rows_per_part=rows_per_part, canaries=canaries,
    )  # fmt: skip
    parts = ScoreLog.read(tmp_path).parts
    held = [{s % 10 for s in pq.read_table(part)["step"].to_pylist()} for part in parts]
    assert sorted(number for numbers in held for number in numbers) == [*range(10)]
    assert (len(parts) > 1) == (rows_per_part < 100)


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, monkeypatch):
    models, reference = trained()
    batches = pieces("mlp", 30, 5)
    monkeypatch.setattr(gradmimic.units, "SECONDS", 0.0)
    sync, calls = os.fsync, [0]

    def full(file):
        calls[0] += 1
        if calls[0] > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        log = ScoreLog(tmp_path / "log")
        losses = zoo.losses_of("cross-entropy")
        with pytest.raises(LogError, match=r"cannot write .*No space left on device"):
            score(
                models, reference, batches, lambda model, own: losses(model, own[1]), log,
                ids=lambda own: own[0],
            )  # fmt: skip
        log.close()  # nothing is left that would have to be written
    there = ScoreLog.read(tmp_path / "log").scan().num_rows
    assert 0 < there < 90
    run(tmp_path / "log", models, reference, batches)
    run(tmp_path / "whole", models, reference, batches)
    assert rows_of(tmp_path / "log").equals(rows_of(tmp_path / "whole"))


def test_a_loader_is_read_in_order_and_only_where_it_is_wanted(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(22, 3), torch.randint(2, (22,))
    read = []

    class Data(TensorDataset):
        def __getitem__(self, row):
            read.append(row)
            return super().__getitem__(row)

    model, better = nn.Linear(3, 2), nn.Linear(3, 2)

    def losses(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    data = Data(x, y, torch.arange(22))

    def call(name, loader, **more):
        with ScoreLog(tmp_path / name) as log:
            return score(model, better, loader, losses, log, ids=lambda own: own[2], **more)

    call("list", [*DataLoader(data, 4)])
    read.clear()
    call("loader", DataLoader(data, 4), processes=2)
    assert read == [*range(4), *range(8, 12), *range(16, 20)]
    with ScoreLog(tmp_path / "loader", rank=1) as log:
        loader = DataLoader(data, 4, num_workers=1)
        score(model, better, loader, losses, log, ids=lambda own: own[2], processes=2)
    assert rows_of(tmp_path / "loader").equals(rows_of(tmp_path / "list"))
    call("dropped", DataLoader(data, 4, drop_last=True))
    assert column(tmp_path / "dropped", "sample_id").tolist() == [*range(20)]
    with pytest.raises(UsageError, match=r"the DataLoader shuffles.*Expected shuffle=False"):
        call("shuffled", DataLoader(data, 4, shuffle=True))
    with pytest.raises(UsageError, match="the DataLoader shuffles"):
        call("shuffled", DataLoader(data, batch_sampler=BatchSampler(RandomSampler(x), 4, False)))
    with pytest.raises(UsageError, match="the batches are a generator, which has no length"):
        call("generator", (batch for batch in DataLoader(data, 4)))


class HeadFirst(nn.Module):
    """Registers last what it uses first."""

    def __init__(self, last=nn.Linear):
        super().__init__()
        self.head, self.trunk = nn.Linear(4, zoo.CLASSES).double(), last(3, 4).double()

    def forward(self, x):
        return self.head(self.trunk(x))


@pytest.mark.parametrize("align", ["none", "outputs"])
def test_the_head_is_what_runs_last(tmp_path, align):
    models, better = [HeadFirst(), HeadFirst()], HeadFirst()
    batches = pieces("mlp", 12, 5)
    run(tmp_path / "guessed", models, better, batches, align=align)
    given = {"params": ["head.*"], "align": align}
    run(tmp_path / "named", models, better, batches, **given)
    assert rows_of(tmp_path / "guessed").equals(rows_of(tmp_path / "named"))


def test_reading_ahead():
    threads, read = set(), []

    def fetch(number):
        threads.add(threading.current_thread().name)
        read.append(number)
        if number == 7:
            raise OSError("gone")
        return -number

    found = ahead(fetch, range(100))
    assert [next(found) for _ in range(3)] == [0, -1, -2]
    assert len(read) <= 3 + DEPTH
    assert threading.current_thread().name not in threads
    with pytest.raises(OSError, match="gone"):
        list(found)
    assert len(read) < 100
    assert list(ahead(fetch, [])) == []


def refused(tmp_path, error, match, models=None, reference=None, batches=None, **more):
    own, better = trained()
    models, reference = models or own, reference or better
    with pytest.raises(error, match=match):
        run(tmp_path, models, reference, batches or pieces("mlp", 12, 5), **more)


def test_a_loss_that_is_no_number_names_the_sample(tmp_path, monkeypatch):
    models, reference = trained()
    batches = pieces("mlp", 30, 5)
    batches[3][1].x[2] = torch.nan
    named = dict(zip(["a.pt", "b.pt", "c.pt"], models, strict=True))
    match = r"The loss of sample 17 is nan at a\.pt, in batch 3\..*scored before is kept"
    refused(tmp_path, LossError, match, named, reference, batches)
    assert {*column(tmp_path, "sample_id").tolist()} == {*range(15)}
    with torch.no_grad():
        models[1][0].weight.fill_(torch.nan)
    refused(tmp_path / "b", LossError, "sample 0 is nan at b.pt, in batch 0", named, reference)
    canaries = Canaries(1.0)
    draw = canaries.labels

    def broken(z, y, ids):
        drawn = draw(z, y, ids)
        return drawn._replace(losses=torch.where(torch.arange(10) == 6, torch.inf, drawn.losses))

    monkeypatch.setattr(canaries, "labels", broken)
    match = "loss of sample 1 as a canary is inf at model 0"
    refused(tmp_path / "c", LossError, match, trained()[0], canaries=canaries)


def test_a_reference_that_is_a_checkpoint_is_named(tmp_path):
    models, _ = trained()
    match = r"model 1, epoch 1 of the log: The direction is zero: .*copy of the model"
    refused(tmp_path, DirectionError, match, models, copy.deepcopy(models[1]))


def test_a_log_of_other_work_is_refused(tmp_path):
    models, reference = trained()
    run(tmp_path / "log", models, reference, pieces("mlp", 12, 5))
    match = "is of other work: batches was 3, now it is 4"
    refused(tmp_path / "log", LogError, match, batches=pieces("mlp", 12, 3))
    match = "checkpoints was 3, now it is 2"
    refused(tmp_path / "log", LogError, match, models=models[:2], rank=1)
    refused(tmp_path / "log", LogError, "params was 'head', now it is 'all'", params="all")
    named = {"params": iter(["2.*"])}
    run(tmp_path / "named", models, reference, pieces("mlp", 12, 5), **named)
    assert run(tmp_path / "named", models, reference, pieces("mlp", 12, 5), params=["2.*"]).found
    given = {"params": lambda name, _: name.startswith("2.")}
    run(tmp_path / "function", models, reference, pieces("mlp", 12, 5), **given)
    assert rows_of(tmp_path / "function").equals(rows_of(tmp_path / "named"))
    with ScoreLog(tmp_path / "training") as log:
        log.append([1], [0.0], [1.0], [0.0], epoch=0, step=0)
    refused(tmp_path / "training", LogError, "holds scores that gradmimic.scoring did not write")


def test_what_cannot_be_scored_is_refused(tmp_path):
    match = r"align='transport' cannot score a data set in pieces; expected none, shift, rotation"
    refused(tmp_path, ParameterError, match, align="transport")
    refused(tmp_path, ParameterError, "temperature must be a positive number", temperature=0.0)
    refused(tmp_path, ParameterError, "engine='fast' is unknown", engine="fast")
    with pytest.raises(UsageError, match="there is no model"):
        run(tmp_path, [], None, [])
    few = [(rows[1:], batch) for rows, batch in pieces("mlp", 12, 5)]
    refused(tmp_path, LossError, "Expected as many ids as losses, got 4 and 5", batches=few)
    refused(
        tmp_path, AlignmentError, "compares weights, but the reference is a table",
        reference=Outputs(range(12), torch.zeros(12, zoo.CLASSES)),
    )  # fmt: skip


def test_rotation_learns_from_the_first_batch_whoever_scores_the_rest(tmp_path):
    """Two processes and one log the same rows, and better ones than by the weights alone."""

    class Pairs(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.image, self.text = nn.Linear(9, 4, False), nn.Linear(7, 4, False)

        def forward(self, images, texts):
            return self.image(images) @ self.text(texts).T

    model, reference = Pairs(0), Pairs(1)
    x = torch.randn(24, 9), torch.randn(24, 7)
    batches = list(torch.arange(24).split(6))

    def losses(model, rows):
        z = model(x[0][rows], x[1][rows])
        return -(z.log_softmax(1).diagonal() + z.log_softmax(0).diagonal()) / 2

    def go(folder, rank, processes):
        with ScoreLog(folder, rank=rank) as log:
            score(
                model, reference, batches, losses, log, ids=list, params="all", align="rotation",
                processes=processes,
            )  # fmt: skip

    go(tmp_path / "one", 0, 1)
    for rank in (0, 1):
        go(tmp_path / "two", rank, 2)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    alignment = Rotation(model, choose(model, "all"), load_reference(reference))
    by_weights = alignment.direction().norm
    with alignment.watching():
        losses(model, batches[0])
    alignment.observe(None)
    expected = alignment.direction().norm
    assert abs(expected - by_weights) > 1e-4
    norms = ScoreLog.read(tmp_path / "one").run["direction_norm"]
    assert norms == pytest.approx({0: expected})
