"""Whole runs on tiny pools of pairs: what is written, and that it is right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from clip_runs import POOL, TEST, TRUSTED, clip_keys, pairs, run_pairs, write_pools, write_tar

from gradmimic import ScoreLog
from gradmimic.errors import AlignmentError, ConfigError
from gradmimic.run.clip import pool, read, sets
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.job import OUTPUTS, run_clip
from gradmimic.run.clip.models import load_weights, open_pair_model
from gradmimic.run.clip.outcome import notes_on_pairs
from gradmimic.run.config import load_task

pytest.importorskip("PIL", reason="needs the extra 'images'")
sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra 'demo'")

DIRT = 2


@pytest.fixture
def folder(tmp_path):
    write_pools(tmp_path)
    return tmp_path


def weights(out):
    return torch.load(Path(out), weights_only=True)


def alike(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# What is written


def test_the_numbers_follow_from_what_is_written(folder):
    config = ClipConfig(**clip_keys(folder, retrain=True))
    steps = {}

    def progress(what, total):
        steps[what] = [0, total]

        def step(done=1):
            steps[what][0] += done

        return step

    outcome = run_clip(config, progress)
    out = Path(config.out)
    left = {"state", "report.html"}
    assert sorted(path.name for path in out.iterdir()) == sorted({*OUTPUTS} - left)
    assert load_task(out / "config.yaml", {}) == config
    per_epoch = -(-(POOL - DIRT) // 16)
    for name in ("plain", "re-weighted", "selected"):
        assert steps[name] == [2 * per_epoch] * 2
    assert steps["reference"] == [3 * 2] * 2

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    census = metrics["census"]
    assert (census["kept"], census["total"]) == (POOL - DIRT, POOL)
    assert census["kept"] + sum(census["dropped"].values()) == census["total"]
    assert [row.count for row in outcome.census] == [POOL - DIRT, 1, 1, POOL]
    assert (metrics["samples"], metrics["trusted"]) == (POOL - DIRT, TRUSTED)
    assert metrics["tests"]["test"] == {"pictures": TEST, "unusable": 0}
    assert {len(metrics[way]["measured"]) for way in ("plain", "reweighted", "selected")} == {2}

    log = ScoreLog.read(out / "log")
    rows = log.scan(filter=pc.field("scorer") == "mimic")
    real = rows.filter(pc.is_null(rows["canary"]))
    ids = {uid for uid, *_ in pairs(POOL, seed=1)}
    assert len(set(real["sample_id"].to_pylist())) == POOL - DIRT
    assert set(rows["sample_id"].to_pylist()) < ids
    assert real.num_rows == 2 * (POOL - DIRT)
    assert set(rows["canary"].to_pylist()) == {None, "planted"}
    weights_by_step = rows.group_by("step").aggregate([("weight", "sum")])["weight_sum"]
    assert np.allclose(weights_by_step.to_numpy(), 1, atol=1e-5)
    assert metrics["kept"] + metrics["removed"] == POOL - DIRT


def test_auroc_is_that_of_the_swapped_captions(folder):
    metrics, table = run_pairs(folder)
    config = ClipConfig(**clip_keys(folder))
    inputs = read.load_pairs(config, open_pair_model("small", image_size=16), lambda *_: print)
    captions = {uid: caption for uid, _, caption in pairs(POOL, seed=1)}
    changed = [
        (captions[uid],) != texts
        for uid, texts in zip(inputs.train.ids, inputs.train.captions, strict=True)
    ]
    assert sum(changed) == len(inputs.swapped) >= int(0.3 * (POOL - DIRT)) - 3
    assert metrics["swapped"] == pytest.approx(np.mean(changed))
    bad = [uid in inputs.swapped for uid in table["sample_id"].to_pylist()]
    expected = sklearn_metrics.roc_auc_score(bad, -table["score"].to_numpy())
    assert metrics["auroc"] == pytest.approx(expected)
    assert metrics["auroc"] > 0.7


def test_without_noise_and_test_sets_nothing_is_made_up(folder):
    metrics, _ = run_pairs(folder, noise_rate=..., test=..., canaries="off")
    for name in ("swapped", "auroc", "auroc_of", "detection", "gain", "quality"):
        assert metrics[name] is None
    assert metrics["reference"] == {}
    assert metrics["plain"]["measured"] == [{}, {}]
    rows = ScoreLog.read(folder / "run" / "log").scan()
    assert set(rows["canary"].to_pylist()) == {None}


def test_the_clip_score_of_the_reference_stands_beside(folder):
    metrics, table = run_pairs(folder)
    log = ScoreLog.read(folder / "run" / "log")
    rows = log.scan(filter=(pc.field("scorer") == "clip") & pc.field("canary").is_null())
    found = dict(zip(rows["sample_id"].to_pylist(), rows["score"].to_pylist(), strict=True))
    config = ClipConfig(**clip_keys(folder))
    pair = open_pair_model("small", image_size=16)
    held = read.load_pairs(config, pair, lambda *_: lambda _n=1: None).train
    load_weights(pair, str(folder / "run" / "reference.pt"))
    with torch.no_grad():
        own = pair.embed(pair.model, held.batch(torch.arange(len(held))))
    cosines = (own.image * own.text).sum(1).tolist()
    assert found == pytest.approx(dict(zip(held.ids, cosines, strict=True)), abs=1e-5)
    assert log.scan(filter=pc.field("canary") == "planted")["scorer"].unique().to_pylist() == [
        "mimic", "clip"
    ]  # fmt: skip
    inputs = read.load_pairs(config, pair, lambda *_: lambda _n=1: None)
    bad = [uid in inputs.swapped for uid in held.ids]
    assert metrics["auroc_of"]["clip"] == pytest.approx(
        sklearn_metrics.roc_auc_score(bad, [-c for c in cosines]), abs=1e-5
    )
    assert metrics["auroc_of"]["mimic"] == metrics["auroc"]
    stacked, both = run_pairs(folder, aggregate="stacked", out=str(folder / "both"))
    assert stacked["auroc_of"] == metrics["auroc_of"]
    assert "combined" in both["reason"][0].as_py()
    assert len(both) == len(table)


def test_stacked_needs_clip_scores(folder, monkeypatch):
    run_pairs(folder)
    towers = weights(folder / "run" / "reference.pt")
    projections = {name: own for name, own in towers.items() if "projection" in name}
    torch.save(projections, folder / "projections.pt")
    more = {"trusted": ..., "reference_epochs": ..., "out": str(folder / "next")}
    more["reference"] = str(folder / "projections.pt")
    with pytest.raises(ConfigError, match="takes pairs that fit in memory, and a reference with"):
        run_pairs(folder, **more, aggregate="stacked")
    metrics, _ = run_pairs(folder, **more, overwrite=True)
    assert metrics["reference"] == {}
    assert list(metrics["auroc_of"]) == ["mimic"]


# The trainings


def test_plain_training_knows_of_no_canary_and_no_reference(folder):
    run_pairs(folder)
    run_pairs(folder, canaries="off", reference_epochs=1, out=str(folder / "other"))
    assert alike(weights(folder / "run/plain.pt"), weights(folder / "other/plain.pt"))
    one, other = (weights(folder / out / "reweighted.pt") for out in ("run", "other"))
    assert not alike(one, other)


def test_an_infinite_temperature_is_plain_training(folder):
    run_pairs(folder, temperature=float("inf"), canaries="off")
    plain, reweighted = (weights(folder / f"run/{way}.pt") for way in ("plain", "reweighted"))
    for name, own in plain.items():
        assert torch.allclose(own, reweighted[name], atol=1e-5)


def test_the_reference_starts_where_it_is_asked_to(folder):
    metrics, _ = run_pairs(folder)
    assert metrics["align"] == "transport"
    same = weights(folder / "run/reference.pt")
    metrics, _ = run_pairs(folder, reference_start="other", out=str(folder / "other"))
    assert metrics["align"] == "transport"
    start = open_pair_model("small", image_size=16).model.state_dict()
    near = [
        float((own["image_projection.weight"] - start["image_projection.weight"]).norm())
        for own in (same, weights(folder / "other/reference.pt"))
    ]
    assert near[0] < near[1] / 3


def test_a_run_goes_on_from_the_weights_of_another(folder):
    run_pairs(folder)
    reference = folder / "run" / "reference.pt"
    more = {"trusted": ..., "reference_epochs": ..., "noise_rate": ...}
    metrics, _ = run_pairs(
        folder, **more, reference=str(reference), start=str(folder / "run/plain.pt"),
        out=str(folder / "next"), epochs=1,
    )  # fmt: skip
    assert metrics["trusted"] == 0
    assert metrics["reference"]["retrieval"]["R@10"] > 0
    whole = open_pair_model("small", image_size=16)
    load_weights(whole, str(folder / "next" / "reweighted.pt"))
    assert not (folder / "next" / "reference.pt").exists()


@pytest.mark.parametrize(("seed", "align"), [(0, "none"), (1, "rotation")])
def test_from_weights_that_exist_a_reference_is_turned_unless_it_is_near(folder, seed, align):
    for own in (0, seed):
        model = open_pair_model("small", image_size=16, seed=own).model
        with torch.no_grad():
            model.image_projection.weight.mul_(1 + own + 0.1 * (own == seed))
        torch.save(model.state_dict(), folder / f"{own}.pt")
    torch.save(open_pair_model("small", image_size=16).model.state_dict(), folder / "start.pt")
    more = {"trusted": ..., "reference_epochs": ..., "epochs": 1}
    weights = {"start": f"{folder}/start.pt", "reference": f"{folder}/{seed}.pt"}
    metrics, _ = run_pairs(folder, **more, **weights)
    assert metrics["align"] == align


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"params": "image"}, "it takes both last projections, and nothing else"),
        ({"params": "all"}, "it takes both last projections, and nothing else"),
        ({"reference": "projections.pt"}, "the reference has no towers of its own"),
    ],
)
def test_a_reference_that_cannot_be_transported(folder, changes, why):
    towers = open_pair_model("small", image_size=16, seed=1).model.state_dict()
    projections = {name: own for name, own in towers.items() if "projection" in name}
    torch.save(projections, folder / "projections.pt")
    if "reference" in changes:
        given = {"trusted": ..., "reference_epochs": ...}
        changes = {**given, "reference": str(folder / "projections.pt")}
    with pytest.raises(AlignmentError, match=f"transport' is not possible: {why}"):
        run_pairs(folder, **changes, align="transport")


@pytest.mark.slow
def test_transport_finds_bad_pairs_from_any_start(folder):
    keys = {"reference_start": "other", "epochs": 6, "reference_epochs": 20}
    transported, _ = run_pairs(folder, **keys)
    turned, _ = run_pairs(folder, **keys, align="rotation", out=str(folder / "turned"))
    assert transported["auroc"] > 0.8 > turned["auroc"]


def test_a_locked_tower_does_not_move(folder):
    run_pairs(folder)
    start = folder / "run" / "reference.pt"
    run_pairs(folder, lock="image", start=str(start), out=str(folder / "lit"), reference_epochs=2)
    before, after = weights(start), weights(folder / "lit" / "reweighted.pt")
    for name, own in before.items():
        moved = not torch.equal(own, after[name])
        assert moved == name.startswith(("words", "text")) or name == "log_scale", name


# Input


@pytest.mark.slow
def test_trusted_rows_and_ids_leave_the_training_set(folder):
    metrics, by_row = run_pairs(folder, trusted="0:20", reference_epochs=2)
    assert (metrics["samples"], metrics["trusted"]) == (POOL - DIRT - 20, 20)
    readable = [uid for n, (uid, *_) in enumerate(pairs(POOL, seed=1)) if n not in (5, 9)]
    assert by_row["sample_id"].to_pylist() == sorted(readable[20:])
    _, by_id = run_pairs(folder, trusted=tuple(readable[:20]), out=str(folder / "by_id"))
    assert by_id["sample_id"].to_pylist() == by_row["sample_id"].to_pylist()
    (folder / "ids.txt").write_text("\n".join(readable[:20]))
    _, by_file = run_pairs(folder, trusted=str(folder / "ids.txt"), out=str(folder / "by_file"))
    np.save(folder / "ids.npy", readable[:20])
    _, by_npy = run_pairs(folder, trusted=str(folder / "ids.npy"), out=str(folder / "by_npy"))
    assert by_file.equals(by_npy)
    assert by_file["sample_id"].to_pylist() == by_row["sample_id"].to_pylist()


@pytest.mark.slow
def test_pairs_that_do_not_fit_in_memory_are_read_anew(folder, monkeypatch):
    held, _ = run_pairs(folder, noise_rate=...)
    monkeypatch.setattr(read, "MOST_BYTES", 40 * 3 * 16 * 16 * 4)
    monkeypatch.setattr(sets, "MOST_BYTES", 1)
    monkeypatch.setattr(pool, "ROUND", 40)
    keys = {"noise_rate": ..., "out": str(folder / "streamed"), "retrain": True}
    streamed, table = run_pairs(folder, **keys, workers=1)
    assert streamed["samples"] == held["samples"] == len(table)
    for name in ("census", "trusted_census", "tests", "reference"):
        assert streamed[name] == held[name]
    rows = ScoreLog.read(folder / "streamed" / "log").scan()
    real = rows.filter(pc.is_null(rows["canary"]))
    for epoch in (0, 1):
        ids = real.filter(pc.equal(real["epoch"], epoch))["sample_id"].to_pylist()
        assert sorted(ids) == table["sample_id"].to_pylist()
    assert set(rows["canary"].to_pylist()) == {None, "swapped"}
    ids = tuple(table["sample_id"].to_pylist()[:20])
    some, _ = run_pairs(folder, **{**keys, "out": str(folder / "ids"), "trusted": ids})
    assert (some["samples"], some["trusted"]) == (POOL - DIRT - 20, 20)


def test_several_captions_of_a_picture_are_drawn_from(folder):
    rows = [*pairs(40, seed=5)]
    table = {
        "uid": [uid for uid, *_ in rows],
        "image": [image for _, image, _ in rows],
        "captions": [[text, f"{text}, once more"] for *_, text in rows],
    }
    pq.write_table(pa.table(table), folder / "several.parquet")
    metrics, selected = run_pairs(folder, data=str(folder / "several.parquet"), retrain=True)
    assert selected["sample_id"].to_pylist() == sorted(table["uid"])
    assert metrics["swapped"] == pytest.approx(0.3)
    config = ClipConfig(**clip_keys(folder, data=str(folder / "several.parquet")))
    pair = open_pair_model("small", image_size=16)
    held = read.load_pairs(config, pair, lambda *_: lambda _n=1: None).train
    own = dict(zip(table["uid"], table["captions"], strict=True))
    kept = [list(texts) == own[i] for i, texts in zip(held.ids, held.captions, strict=True)]
    assert sum(kept) == 28
    drawn = {
        text
        for epoch in range(9)
        for _, some in held.rounds(epoch)
        for b in some
        for text in b.texts
    }
    assert drawn == {text for texts in table["captions"] for text in texts}


def test_a_lone_duplicate_in_another_shard_is_counted(folder):
    write_tar(folder / "pool" / "00003.tar", [next(pairs(1, seed=1)), *pairs(3, seed=9)])
    metrics, table = run_pairs(folder)
    assert metrics["census"]["dropped"]["its id stands in an earlier shard"] == 1
    assert len(table) == POOL - DIRT + 3


def test_notes_say_when_not_to_trust(folder):
    metrics, _ = run_pairs(folder)
    metrics |= {
        "auroc": 0.55,
        "auroc_of": {"mimic": 0.55, "clip": 0.7},
        "overtaken": 7,
        "unscored": 3,
        "removed": 0,
        "tests": {"test": {"pictures": 100, "unusable": 2}, "zero_shot": None},
    }
    metrics["reference"]["retrieval"]["R@10"] = 1.0
    metrics["census"] = {**metrics["census"], "lost_unknown": ["a"]}
    notes = " ".join(notes_on_pairs(metrics))
    for words in (
        "1 shards could not be read to their end", "AUROC 0.550", "3 pairs were never scored",
        "with AUROC 0.700: give aggregate: stacked",
        "From step 7 on", "The reference alone", "2 test pairs could not be used",
        "moves R@10 by up to 5 points", "every pair is kept",
    ):  # fmt: skip
        assert words in notes


def test_the_same_seed_gives_the_same_run(folder):
    one = run_pairs(folder)
    other = run_pairs(folder, out=str(folder / "again"))
    assert one[1].equals(other[1])
    third = run_pairs(folder, seed=1, out=str(folder / "third"))
    assert not one[1].equals(third[1])
    assert replace(ClipConfig(**clip_keys(folder)), seed=1) != ClipConfig(**clip_keys(folder))
