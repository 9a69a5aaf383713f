"""Once the model has overtaken its reference: stage 1 fades, and stage 2 leaves the visits out."""

import copy
import logging

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from noisy import World, fitted, mlp
from stage2_logs import logged
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, ScoreLog, estimate_quality, select
from gradmimic.errors import LossError, UsageError, UselessReferenceError
from gradmimic.outputs import Outputs
from gradmimic.overtaken import BLOCK, FADE, Overtaken

# Stage 1


@pytest.fixture(scope="module")
def world():
    return World()


def train(world, mimic, model, steps, canaries=None, lr=3e-3, start=0):
    """Train re-weighted; return each step's weights."""
    canaries = canaries or Canaries(rate=0.5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    weights = []
    for step in range(start, start + steps):
        rows = torch.arange(50) + 50 * (step % 30)
        with mimic:
            logits = model(world.x[rows])
            losses = F.cross_entropy(logits, world.y[rows], reduction="none")
            drawn = canaries.labels(logits, world.y[rows], rows)
        loss = mimic.weigh(losses, rows, epoch=step // 30, canaries=drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.append(mimic.weights)
    return weights


def useless(world):
    """A probe, and a head that knows nothing, in the same feature space."""
    reference = copy.deepcopy(world.probe)
    nn.init.normal_(reference[2].weight, std=0.1)
    return copy.deepcopy(world.probe), reference


def test_weights_fade_where_canaries_are_at_chance(world, tmp_path, caplog):
    model, reference = useless(world)
    equal = torch.full((50,), 0.02)
    with ScoreLog(tmp_path, rows_per_part=100) as log, caplog.at_level(logging.WARNING):
        mimic = GradMimic(model, reference, temperature=0.1, log=log)
        while mimic.overtaken is None:
            assert mimic.step < 30  # two blocks of canaries, about 25 in each batch
            train(world, mimic, model, 1, lr=0.0)
        assert (mimic.weights - equal).abs().max() > 1e-3
        weights = train(world, mimic, model, FADE, lr=0.0)
        assert mimic.overtaken == 0
        assert log.events == [
            {"event": "overtaken", "step": 0, "why": "canaries score no lower than samples"}
        ]
    torch.testing.assert_close(weights[-1], equal)
    assert all(w.sum().item() == pytest.approx(1, abs=1e-5) for w in weights)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "from step 0 on the scores know nothing" in told


def test_the_fade_is_straight(world):
    model, reference = useless(world)
    plain, fading = (GradMimic(model, reference, temperature=0.1) for _ in range(2))
    fading.compare(torch.tensor([0.1, 0.2]), torch.tensor([1.1, 1.3]))
    assert (fading.overtaken, plain.overtaken) == (0, None)
    few = Canaries(rate=0.001)  # too few to tell anything here
    both = [train(world, mimic, model, FADE + 2, few, lr=0.0) for mimic in (plain, fading)]
    assert plain.overtaken is None
    for step, (w, faded) in enumerate(zip(*both, strict=True)):
        f = min(step / FADE, 1.0)
        torch.testing.assert_close(faded, (1 - f) * w + f / 50)


def test_a_good_reference_keeps_its_say(world, tmp_path):
    model = copy.deepcopy(world.probe)
    with ScoreLog(tmp_path) as log:
        mimic = GradMimic(model, world.same, log=log)
        for p in model[0].parameters():
            p.requires_grad_(False)
        weights = train(world, mimic, model, 120, Canaries(rate=1.0), lr=1e-4)
        assert mimic.overtaken is None
        assert log.events == []
    assert 10 * BLOCK < 120 * 50  # blocks enough
    assert (weights[-1] - 0.02).abs().max() > 1e-3


@pytest.mark.slow
def test_a_model_that_overtakes_its_reference_is_noticed_and_its_late_visits_left_out(
    world, tmp_path
):
    x, y = world.clean
    weak = fitted(copy.deepcopy(world.probe), x[:40], y[:40], 15, only="2.")
    model = copy.deepcopy(world.probe)
    model[2].load_state_dict(mlp(3)[2].state_dict())
    for p in model[0].parameters():
        p.requires_grad_(False)
    with ScoreLog(tmp_path) as log:
        mimic = GradMimic(model, weak, log=log, temperature="auto")
        train(world, mimic, model, 1500, Canaries(rate=1.0))
        assert mimic.overtaken is not None
        assert mimic.overtaken >= 30  # not in the first epoch
        told = select(log).table["reason"][0].as_py()
    assert "the model had overtaken its reference" in told


def test_compare_tells_by_losses_on_trusted_samples(world, tmp_path, caplog):
    model, reference = copy.deepcopy(world.probe), world.same
    with ScoreLog(tmp_path) as log, caplog.at_level(logging.WARNING):
        mimic = GradMimic(model, reference, log=log)
        train(world, mimic, model, 3, lr=0.0)
        x, y = world.clean
        losses = [F.cross_entropy(net(x), y, reduction="none") for net in (model, reference)]
        assert mimic.compare(*losses) is False
        assert log.events == []
        assert mimic.compare(*losses[::-1]) is True
        assert mimic.compare(*losses) is True  # it had been, before
        assert mimic.overtaken == 3
        why = "its loss on trusted samples is the lower one"
        assert log.events == [{"event": "overtaken", "step": 3, "why": why}]
    assert len(caplog.records) == 1
    with pytest.raises(LossError, match="the same samples, got 3 and 2"):
        mimic.compare(torch.ones(3), torch.ones(2))
    with pytest.raises(LossError, match="one loss per sample"):
        mimic.compare(torch.ones(3, 1), torch.ones(3, 1))


def test_equal_losses_are_no_lead(world):
    mimic = GradMimic(world.model, world.same)
    losses = torch.rand(200, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(200, generator=torch.Generator().manual_seed(1)) - 0.5
    assert mimic.compare(losses, losses) is False
    assert mimic.compare(losses, losses + noise) is False
    assert mimic.compare(losses, losses + noise + 0.5) is True


def test_two_blocks_in_a_row_it_takes():
    chance = np.random.default_rng(0)
    half = BLOCK // 2

    def block(watch, step, good):
        for part in range(2):
            real = chance.normal(size=400).astype(np.float32)
            low = chance.normal(-1.0 if good else 0.0, size=half).astype(np.float32)
            told = watch.see(step + part, real, low)
        return told

    watch = Overtaken()
    for step, good in enumerate([True, False, True, False, True]):
        assert block(watch, 10 * step, good) is False
    assert watch.since is None
    assert block(watch, 70, False) is False
    assert watch.see(75, np.zeros(9, np.float32), np.zeros(0, np.float32)) is False  # no canaries
    assert block(watch, 80, False) is True
    assert watch.since == 70  # where the first of the two began
    assert block(watch, 90, False) is False
    assert watch.tell(95) is False
    assert watch.since == 70


# align="auto"


def automatic(world, model, reference, steps=40, **options):
    mimic = GradMimic(model, reference, align="auto", temperature="auto", **options)
    weights = train(world, mimic, model, steps, lr=1e-3)
    return mimic, weights


def test_auto_keeps_the_plain_difference_where_nothing_else_fits(world, tmp_path, caplog):
    model = copy.deepcopy(world.probe)
    model[0].requires_grad_(False)
    with ScoreLog(tmp_path) as log, caplog.at_level(logging.WARNING):
        mimic, _ = automatic(world, model, world.same.state_dict(), log=log)
        assert mimic.aligned == "none"
        (event,) = log.events
        rows = log.scan()
    assert (event["event"], event["alignment"]) == ("aligned", "none")
    assert set(event["auroc"]) == {"none"}
    assert event["auroc"]["none"]["value"] > 0.6
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("gradmimic: align='auto' uses 'none'. AUROC over canaries: none 0.")
    assert min(rows["step"].to_pylist()) == event["step"] + 1  # nothing is logged before


def test_auto_goes_by_the_outputs_of_a_reference_from_elsewhere(world):
    model = copy.deepcopy(world.model)
    mimic, weights = automatic(world, model, world.other)
    assert mimic.aligned == "outputs"
    assert (weights[-1] - 0.02).abs().max() > 1e-3
    table, _ = automatic(world, copy.deepcopy(world.model), world.outputs(world.other))
    assert table.aligned == "outputs"


def test_while_auto_decides_the_training_is_plain(world):
    plain, model = copy.deepcopy(world.model), copy.deepcopy(world.model)
    mimic = GradMimic(model, world.other, align="auto")
    train(world, mimic, model, 5, Canaries(rate=0.2), lr=1e-3)
    assert mimic.aligned == "auto"
    never = GradMimic(plain, world.same, temperature=float("inf"))
    train(world, never, plain, 5, lr=1e-3)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("what", ["shuffled", "random"])
def test_auto_refuses_a_useless_reference(world, what):
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(4))
    reference = world.outputs(world.other, order) if what == "shuffled" else mlp(77)
    with pytest.raises(UselessReferenceError, match=r"outputs 0\.\d.*says nothing about good"):
        automatic(world, copy.deepcopy(world.model), reference)


def test_auto_needs_canaries(world):
    mimic = GradMimic(world.model, world.same, align="auto")
    with mimic:
        losses = F.cross_entropy(world.model(world.x[:9]), world.y[:9], reduction="none")
    with pytest.raises(UsageError, match="align='auto' lets canaries tell"):
        mimic.weigh(losses)


def test_a_table_without_some_samples_trains_them_with_an_equal_share(world, tmp_path, caplog):
    half = Outputs(range(0, 1500, 2), world.outputs(world.other).of(range(0, 1500, 2))[0])
    model = copy.deepcopy(world.model)
    with ScoreLog(tmp_path) as log, caplog.at_level(logging.WARNING):
        mimic = GradMimic(model, half, align="transport", temperature="auto", log=log)
        weights = train(world, mimic, model, 20, lr=1e-3)
        logged_ids = log.scan()["sample_id"].to_numpy()
    assert mimic.missing == 20 * 25
    assert (logged_ids % 2 == 0).all()
    torch.testing.assert_close(weights[-1][1::2], torch.full((25,), 0.02))
    assert (weights[-1][::2] - 0.02).abs().max() > 1e-3
    assert weights[-1].sum().item() == pytest.approx(1)
    assert len([r for r in caplog.records if "lack samples" in r.getMessage()]) == 1


# Stage 2

AGGREGATES = ["mean", "majority", "one_coin", "dawid_skene"]


def written(folder, table, *events, close=True):
    """A log of these rows, epoch by epoch, with these events."""
    log = ScoreLog(folder)
    for scorer in sorted(set(table["scorer"].to_pylist())):
        for step in sorted(set(table["step"].to_pylist())):
            own = (pc.field("scorer") == scorer) & (pc.field("step") == step)
            for canary in (False, True):
                rows = table.filter(own & (pc.field("canary").is_valid() == canary))
                log.append(
                    rows["sample_id"].to_pylist(),
                    *(rows[name].to_numpy() for name in ("score", "weight", "loss")),
                    epoch=step,
                    step=step,
                    scorer=scorer,
                    canary=rows["canary"].to_pylist() if canary else None,
                )
    for event, step in events:
        log.mark(event, step)
    if close:
        log.close()
    return log


def same_but_for_reasons(found, expected, note):
    for name in ("sample_id", "keep", "p_clean", "score", "visits"):
        assert found.table[name].equals(expected.table[name]), name
    reasons = [reason + note for reason in expected.table["reason"].to_pylist()]
    assert found.table["reason"].to_pylist() == reasons


def note(epochs):
    return f"; the model had overtaken its reference, so visits of epoch {epochs} were left out"


def complete(table, epochs):
    """Only the samples that some of these epochs have seen."""
    real = table.filter(pc.field("canary").is_null() & (pc.field("scorer") == "mimic"))
    seen = real.filter(pc.field("epoch").isin(epochs))["sample_id"]
    return table.filter(pc.is_in(table["sample_id"], seen))


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("canaries", [False, True])
def test_marked_visits_count_for_nothing(tmp_path, aggregate, canaries):
    table = complete(logged(epochs=5, ids="int", canaries=canaries), [0, 1, 2])
    log = written(tmp_path / "log", table, ("overtaken", 3))
    early = table.filter(pc.field("epoch") < 3)
    for given in (tmp_path / "log", log, ScoreLog.read(tmp_path / "log")):
        same_but_for_reasons(
            select(given, aggregate=aggregate), select(early, aggregate=aggregate), note("3, 4")
        )
    plain = select(table, aggregate=aggregate)  # a table knows of no events
    assert plain.table["visits"].to_numpy().sum() > select(log).table["visits"].to_numpy().sum()


@pytest.mark.slow
def test_marked_visits_count_for_nothing_on_spark(tmp_path):
    pytest.importorskip("pyspark")
    table = logged(epochs=5, ids="odd", canaries=True)
    written(tmp_path / "log", table, ("overtaken", 3))
    here = select(tmp_path / "log", aggregate="majority")
    there = select(tmp_path / "log", aggregate="majority", backend="local[1]")
    assert "were left out" in here.table["reason"][0].as_py()
    assert there.table.equals(here.table)


def test_the_rules_that_judge_weights_too(tmp_path):
    table = complete(logged(epochs=4, ids="hex"), [0, 1])
    written(tmp_path / "log", table, ("overtaken", 2))
    early = table.filter(pc.field("epoch") < 2)
    for rule in ("one_over_b", "two_means", "mixture"):
        same_but_for_reasons(select(tmp_path / "log", rule), select(early, rule), note("2, 3"))


def test_the_quality_is_that_of_the_other_visits(tmp_path):
    table = complete(logged(epochs=4, ids="int", canaries=True), [0, 1])
    written(tmp_path / "log", table, ("overtaken", 2))
    early = estimate_quality(table.filter(pc.field("epoch") < 2))
    assert estimate_quality(tmp_path / "log") == early


def test_an_epoch_that_began_before_is_kept_whole(tmp_path):
    log = ScoreLog(tmp_path)
    scores = np.float32([1.0, -1.0, 1.1, -1.1])
    for step in range(6):  # two steps an epoch
        ids = [2 * (step % 2), 2 * (step % 2) + 1]
        part = scores[ids] if step < 3 else -scores[ids]
        log.append(ids, part, [0.5, 0.5], [1.0, 1.0], epoch=step // 2, step=step)
    log.mark("overtaken", 3)
    found = select(log, "two_means")
    assert found.table["visits"].to_pylist() == [2, 2, 2, 2]
    assert found.table["reason"][0].as_py().endswith(note("2"))
    log.close()


def test_no_sample_is_lost(tmp_path):
    table = complete(logged(epochs=5, ids="int"), [0, 1, 2])
    of_both = (set(table.filter(pc.field("epoch") == e)["sample_id"].to_pylist()) for e in (3, 4))
    late = min(set.intersection(*of_both))
    table = table.filter((pc.field("epoch") >= 3) | (pc.field("sample_id") != late))
    written(tmp_path / "log", table, ("overtaken", 3))
    found = select(tmp_path / "log")
    assert late in found.table["sample_id"].to_pylist()
    # That one was first seen in epoch 3, which therefore stays as a whole.
    same_but_for_reasons(found, select(table.filter(pc.field("epoch") < 4)), note("4"))


@pytest.mark.parametrize("since", [0, 5, 99])
def test_where_all_or_none_are_marked_nothing_is_left_out(tmp_path, since):
    table = logged(epochs=3, ids="int")
    written(tmp_path / "log", table, ("overtaken", since))
    assert select(tmp_path / "log").table.equals(select(table).table)


def test_other_events_and_other_scorers_are_left_alone(tmp_path):
    table = complete(logged(epochs=4, ids="int", scorers=("loss", "mimic")), [0, 1])
    events = ("aligned", 1), ("overtaken", 3), ("overtaken", 2)
    written(tmp_path / "log", table, *events)
    assert select(tmp_path / "log", scorer="loss").table.equals(select(table, scorer="loss").table)
    early = (pc.field("epoch") < 2) | (pc.field("scorer") == "loss")
    for scorers in (["mimic", "loss"], ["loss", "mimic"]):
        same_but_for_reasons(
            select(tmp_path / "log", aggregate="one_coin", scorer=scorers),
            select(table.filter(early), aggregate="one_coin", scorer=scorers),
            note("2, 3"),
        )


def test_visits_of_unknown_epochs_are_told_apart_by_their_steps(tmp_path):
    table = complete(logged(n=80, epochs=1, ids="int"), [0])
    with ScoreLog(tmp_path) as log:
        for step in range(3):
            columns = (table[name].to_numpy() for name in ("score", "weight", "loss"))
            log.append(table["sample_id"].to_pylist(), *columns, epoch=None, step=step)
        log.mark("overtaken", 1)
        found = select(log)
    assert set(found.table["visits"].to_pylist()) == {1}
    assert "were left out" in found.table["reason"][0].as_py()


def test_a_log_without_run_json_is_still_read(tmp_path):
    table = logged(epochs=2, ids="int")
    written(tmp_path / "log", table)
    (tmp_path / "log" / "run.json").unlink()
    assert select(tmp_path / "log").table.equals(select(table).table)


def test_a_log_that_is_still_being_written_tells_its_events_too(tmp_path):
    table = complete(logged(epochs=3, ids="int"), [0, 1])
    log = written(tmp_path / "log", table, ("overtaken", 2), close=False)
    assert log.events == [{"event": "overtaken", "step": 2}]
    assert "were left out" in select(log).table["reason"][0].as_py()
    log.close()


def test_a_run_that_resumes_goes_on_as_it_left_off(world, tmp_path):
    with ScoreLog(tmp_path) as log:
        log.mark("aligned", 10, alignment="outputs", auroc={})
        log.mark("overtaken", 700, why="a test")
    with ScoreLog(tmp_path) as log:
        mimic = GradMimic(world.model, world.other, align="auto", log=log)
        assert (mimic.aligned, mimic.overtaken) == ("outputs", 700)
