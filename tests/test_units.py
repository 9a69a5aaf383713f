"""Units of several batches: each logged whole or not at all, by every scorer."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from test_score import ORDER, pieces, rows_of, run, trained
from torch.nn import functional as F

import gradmimic.units
from gradmimic import Canaries, ScoreLog
from gradmimic.errors import LossError
from gradmimic.scoring import score
from gradmimic.units import Piece, finished, score_units
from gradmimic.visit import Said, Weighing

SIZES = [3, 1, 0, 2, 1]  # batches of each unit


class Shards:
    """Batches that come unit by unit, or from two units in turns."""

    def __init__(self, batches, turns=False, log=None):
        rest = iter(batches)
        self.units = [[next(rest) for _ in range(size)] for size in SIZES]
        self.turns, self.log, self.heard = turns, log, []

    def __len__(self):
        return len(self.units)

    def read(self, wanted):
        open_ = {number: list(self.units[number]) for number in wanted}
        while open_:
            for number in list(open_)[: 2 if self.turns else 1]:
                batch = open_[number].pop(0) if open_[number] else None
                yield Piece(number, batch, not open_[number])
                if not open_[number]:
                    del open_[number]

    def shown(self):
        return self.units[0][:1]

    def ended(self, number):
        self.heard.append((number, number in finished(self.log, len(self))))

    def called(self, number):
        return f"shard {number}"


def losses(model, pair):
    return F.cross_entropy(model(pair[1].x), pair[1].y, reduction="none")


def go(folder, models, reference, batches, *, turns=False, wanted=None, of=losses, **more):
    named = {f"model {place}": model for place, model in enumerate(models)}
    with ScoreLog(folder, rows_per_part=more.pop("rows_per_part", 65_536)) as log:
        units = Shards(batches, turns, log)
        wanted = range(len(units)) if wanted is None else wanted
        done = score_units(
            named, reference, units, wanted, of, log, ids=lambda pair: pair[0], params="head",
            align="none", temperature=1.0, engine="auto", on_batch=lambda _samples: None,
        )  # fmt: skip
    return done, units


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("rows_per_part", [1, 30, 65_536])
def test_a_unit_of_several_batches_is_in_one_part(tmp_path, turns, rows_per_part):
    models, reference = trained(checkpoints=2)
    batches = pieces("mlp", 35, 5)
    done, units = go(
        tmp_path / "units", models, reference, batches, turns=turns, rows_per_part=rows_per_part
    )
    run(tmp_path / "batches", models, reference, batches)
    assert done == 35
    found, expected = rows_of(tmp_path / "units"), rows_of(tmp_path / "batches")
    for name in ("sample_id", "epoch", "score", "weight", "loss", "batch_size"):
        assert found[name].equals(expected[name]), name
    parts = ScoreLog.read(tmp_path / "units").parts
    held = [{step % 5 for step in pq.read_table(part)["step"].to_pylist()} for part in parts]
    assert sorted(number for numbers in held for number in numbers) == [0, 1, 3, 4]
    assert (len(parts) > 1) == (rows_per_part < 70)
    steps = {row["sample_id"]: row["step"] for row in found.to_pylist() if row["epoch"] == 1}
    unit_of = np.repeat(range(5), np.array(SIZES) * 5)
    assert steps == {row: 5 + int(unit) for row, unit in enumerate(unit_of)}
    assert sorted(number for number, _ in units.heard) == [*range(5)]
    assert not any(before for _, before in units.heard)  # it hears first, then rows are written
    with ScoreLog(tmp_path / "units") as log:
        assert finished(log, 5) == {0, 1, 3, 4}


@pytest.mark.parametrize("turns", [False, True])
def test_half_a_unit_is_never_written(tmp_path, monkeypatch, turns):
    models, reference = trained(checkpoints=2)
    batches = pieces("mlp", 35, 5)
    monkeypatch.setattr(gradmimic.units, "SECONDS", 0.0)
    calls = [0]

    def interrupted(model, pair):
        calls[0] += 1
        if calls[0] == 10:  # the second checkpoint of the fifth batch, which is of unit 3
            raise KeyboardInterrupt
        return losses(model, pair)

    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        go(log, models, reference, batches, turns=turns, of=interrupted)
    with ScoreLog(log) as opened:
        there = finished(opened, 5)
    assert there <= {0, 1}
    go(log, models, reference, batches, wanted=sorted({*range(5)} - there))
    go(tmp_path / "whole", models, reference, batches)
    assert rows_of(log).equals(rows_of(tmp_path / "whole"))


def test_a_loss_that_is_no_number_names_the_unit_and_drops_it(tmp_path):
    models, reference = trained(checkpoints=2)
    batches = pieces("mlp", 35, 5)
    batches[2][1].x[4] = torch.nan
    with pytest.raises(LossError, match="The loss of sample 14 is nan at model 0, in shard 0"):
        go(tmp_path / "first", models, reference, batches)
    assert rows_of(tmp_path / "first").num_rows == 0
    batches = pieces("mlp", 35, 5)
    batches[5][1].x[1] = torch.nan
    with pytest.raises(LossError, match="sample 26 is nan at model 0, in shard 3"):
        go(tmp_path / "later", models, reference, batches)
    with ScoreLog(tmp_path / "later") as log:
        assert finished(log, 5) == {0, 1}


def test_other_scorers_are_logged_beside(tmp_path):
    models, reference = trained(checkpoints=2)
    batches, canaries = pieces("mlp", 20, 6), Canaries(0.5)

    def several(model, pair):
        z = model(pair[1].x)
        own = F.cross_entropy(z, pair[1].y, reduction="none")
        drawn = canaries.labels(z, pair[1].y, pair[0])
        both = torch.cat([own, drawn.losses])
        others = {"loss": -both} | ({"twice": -2 * both} if model is models[0] else {})
        return Said(own, drawn, others)

    with ScoreLog(tmp_path / "log") as log:
        score(models, reference, batches, several, log, ids=lambda pair: pair[0])
    run(tmp_path / "alone", models, reference, batches, canaries=canaries)
    rows = ScoreLog.read(tmp_path / "log").scan().drop(["rank"]).sort_by(ORDER)
    mimic = rows.filter(pc.field("scorer") == "mimic")
    assert mimic.equals(rows_of(tmp_path / "alone"))
    loss = rows.filter(pc.field("scorer") == "loss")
    np.testing.assert_allclose(loss["score"].to_numpy(), -loss["loss"].to_numpy(), rtol=1e-6)
    assert loss["loss"].equals(mimic["loss"])
    twice = rows.filter(pc.field("scorer") == "twice")
    assert set(twice["epoch"].to_pylist()) == {0}
    real = twice.filter(pc.field("canary").is_null())
    for step in set(real["step"].to_pylist()):  # weights of a scale of their own
        own = real.filter(pc.field("step") == step)
        scores = torch.tensor(own["score"].to_numpy())
        expected = torch.softmax(scores / (0.7 * scores.std(correction=0)), 0)
        np.testing.assert_allclose(own["weight"].to_numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("scores", [[-5.0], [5.0], [7.0, 7.0, 7.0], []])
def test_scores_without_a_spread_weigh_alike(scores):
    weights = Weighing("auto")(torch.tensor(scores), None)
    torch.testing.assert_close(weights, torch.full((len(scores),), 1 / max(len(scores), 1)))
