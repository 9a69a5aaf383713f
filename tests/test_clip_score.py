"""``gradmimic score --task clip``: a pool of pairs, shard by shard, into one log."""

import json
import re
import shutil

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
pytest.importorskip("webdataset", reason="needs the extra 'webdataset'")

from test_cli_score import command  # noqa: F401  a fixture
from web_pools import SIZE, train_small, write_pool

from gradmimic import ScoreLog, mimic_scores
from gradmimic.data.pairs import PairReader, open_pairs
from gradmimic.run.clip.models import load_weights, open_pair_model
from gradmimic.run.clip.score import score_pairs
from gradmimic.run.clip.shard_units import even_tails
from gradmimic.run.score_config import PairScoreConfig

SHARDS, EACH = 5, 34
GIVEN = {"data": "pool", "model": "small", "image_size": SIZE, "reference": "better.pt"}
ORDER = [(n, "ascending") for n in ("scorer", "epoch", "canary", "sample_id")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pool, two checkpoints of a training on it, and a reference; and which pairs are swapped."""
    folder = tmp_path_factory.mktemp("made")
    write_pool(folder / "clean", 4, 64, seed=1)
    wrong = write_pool(folder / "pool", SHARDS, EACH, swapped=0.3)
    train_small(folder / "better.pt", folder / "clean", 40)
    for name, steps in (("step-4", 4), ("step-12", 12)):
        train_small(folder / f"steps/{name}.pt", folder / "pool", steps, 1e-3)
    return folder, wrong


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    for name in ("pool", "steps", "better.pt"):
        entry = made[0] / name
        (shutil.copytree if entry.is_dir() else shutil.copy)(entry, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def config(checkpoints=("steps",), **changes):
    return PairScoreConfig(checkpoints=checkpoints, **{**GIVEN, "batch_size": 16, **changes})


def flags(*checkpoints, **changes):
    keys = {"task": "clip", **GIVEN, "batch_size": 16, "out": "scores", **changes}
    pairs = [("--" + name.replace("_", "-"), str(value)) for name, value in keys.items() if value]
    return ["score", *checkpoints, *(part for pair in pairs for part in pair)]


def rows_of(out):
    """All rows but for the process, in an order of their own."""
    return ScoreLog.read(f"{out}/log").scan().drop(["rank"]).sort_by(ORDER)


def opened(file):
    pair = open_pair_model("small", weights=False, image_size=SIZE)
    load_weights(pair, str(file))
    pair.model.eval()
    return pair


def batches_of(size, seed=0, done=()):
    pair = open_pair_model("small", image_size=SIZE)
    reader = PairReader(
        open_pairs("pool"), pair.transform, pair.tokenize, batch_size=size, shuffle=True,
        seed=seed, workers=0, mixed=False, done=done,
    )  # fmt: skip
    return list(even_tails(reader, size, pair.tokenize))


@pytest.mark.parametrize("params", ["both", "text", "image_projection.*", "all"])
def test_scores_are_those_of_one_batch_at_a_time(folder, params):
    done = score_pairs(config(params=params, align="none", canaries="off"))
    assert (done.samples, done.visits, done.canaries) == (170, 340, 0)
    rows = rows_of("runs/scores")
    better = opened("better.pt")
    names = {"both": better.scored(), "text": better.scored("text")}.get(params, params)
    for epoch, step in enumerate(("step-4", "step-12")):
        pair = opened(f"steps/{step}.pt")

        def losses(model, batch, pair=pair):
            return pair.losses(pair.embed(model, batch))

        expected, cosines, clip = {}, {}, {}
        for batch in batches_of(16):
            scores = mimic_scores(pair.model, better.model, batch, losses, params=names)
            expected |= dict(zip(batch.ids, scores.tolist(), strict=True))
            for found, own in ((cosines, pair), (clip, better)):
                said = own.embed(own.model, batch)
                found |= dict(
                    zip(batch.ids, F.cosine_similarity(said.image, said.text).tolist(), strict=True)
                )
        for scorer, values in {"mimic": expected, "own": cosines, "clip": clip}.items():
            own = rows.filter((pc.field("scorer") == scorer) & (pc.field("epoch") == epoch))
            if scorer == "clip" and epoch:  # the reference is the same at every checkpoint
                assert own.num_rows == 0
                continue
            told = dict(zip(own["sample_id"].to_pylist(), own["score"].to_pylist(), strict=True))
            assert told == pytest.approx(values, abs=2e-5), scorer


def test_the_log_tells_shard_and_checkpoint(folder):
    score_pairs(config())
    rows = rows_of("runs/scores").filter(pc.field("scorer") == "mimic").to_pylist()
    for row in rows:
        shard_number = int(row["sample_id"].split("-")[1])
        assert row["step"] == row["epoch"] * SHARDS + shard_number
        if row["canary"] is None:
            assert row["batch_size"] in (16, 9)  # 34 = 16 + 9 + 9
    weights = {}
    for row in rows:
        key = row["step"], row["batch_size"]
        weights[key] = weights.get(key, 0) + row["weight"]
    assert all(total == pytest.approx(round(total), abs=1e-4) for total in weights.values())
    norms = ScoreLog.read("runs/scores/log").run["direction_norm"]
    assert set(norms) == {0, SHARDS}


def test_canaries_of_every_scorer_are_the_same_swapped_pairs(folder):
    score_pairs(config(canary_rate=0.5, align="none"))
    rows = rows_of("runs/scores")
    canaries = rows.filter(pc.field("canary").is_valid())
    assert set(canaries["canary"].to_pylist()) == {"swapped"}
    assert set(canaries["weight"].to_pylist()) == {0.0}
    served = {}
    for row in canaries.to_pylist():
        served.setdefault((row["scorer"], row["epoch"]), set()).add(row["sample_id"])
    assert len(served) == 5  # mimic and own at two checkpoints, clip once
    assert len({frozenset(ids) for ids in served.values()}) == 1
    better = opened("better.pt")
    by_id = {}
    for batch in batches_of(16):
        said = better.embed(better.model, batch)
        cosines = said.image @ said.text.T
        by_id |= {name: cosines[row].tolist() for row, name in enumerate(batch.ids)}
    for row in canaries.filter(pc.field("scorer") == "clip").to_pylist():
        assert any(abs(row["score"] - one) < 1e-5 for one in by_id[row["sample_id"]])
        own = next(
            real["score"]
            for real in rows.to_pylist()
            if real["scorer"] == "clip"
            and real["canary"] is None
            and real["sample_id"] == row["sample_id"]
        )
        assert row["score"] != own


def test_a_pool_is_scored_selected_and_judged(folder, made, command):  # noqa: F811
    status, printed = command(*flags("steps/step-*.pt"))
    assert status == 0, printed.err
    text = " ".join(printed.out.split())
    assert re.search(
        r"^samples 170 checkpoints 2 visits 340 canaries 340 canary AUROC 0\.\d+ ", text
    )
    assert "170 kept 170 total" in text
    assert "near already" in text
    assert text.endswith("log: scores/log")
    aurocs = {}
    for scorer in ("mimic", "clip"):
        out = f"{scorer}.parquet"
        assert command("select", "scores", "--scorer", scorer, "--out", out)[0] == 0
        import pyarrow.parquet as pq

        kept = pq.read_table(out)
        bad = np.isin(kept["sample_id"].to_pylist(), list(made[1]))
        scores = kept["score"].to_numpy()
        aurocs[scorer] = (scores[~bad][:, None] > scores[bad]).mean()
        assert "canaries" in kept["reason"][0].as_py()
    three = [part for name in ("mimic", "own", "clip") for part in ("--scorer", name)]
    status, printed = command(
        "select", "scores", *three, "--aggregate", "stacked", "--out", "s.parquet"
    )
    assert status == 0, printed.err
    assert "canary AUROC" in printed.out
    assert aurocs["clip"] > 0.95
    assert aurocs["mimic"] > 0.8
    assert command("quality", "scores", "--scorer", "clip", "--out", "quality.json")[0] == 0
    (quality,) = json.loads((folder / "quality.json").read_text()).values()
    assert abs(quality["quality"]["value"] - 0.7) < 0.2


def test_real_pairs_are_scored(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        torch.save(open_pair_model("small", seed=seed).model.state_dict(), f"{seed}.pt")
    done = score_pairs(
        PairScoreConfig(
            data=str(shared_data / "cc12m/cc12m-train-0000.tar"), checkpoints=["0.pt"],
            model="small", reference="1.pt", batch_size=16,
        )
    )  # fmt: skip
    assert (done.samples, done.census[-1].count, done.visits) == (32, 32, 32)
    ids = ScoreLog.read("runs/scores/log").scan(["sample_id"])["sample_id"].to_pylist()
    assert len(set(ids)) == 32  # made of the shard's name and the keys, as there are no uids
