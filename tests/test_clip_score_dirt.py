"""What ``gradmimic score --task clip`` makes of dirty pools: counted, told, never fatal."""

import errno
import io
import json
import os
import shutil
import tarfile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
pytest.importorskip("webdataset", reason="needs the extra 'webdataset'")

from test_cli_score import command  # noqa: F401  a fixture
from test_clip_score import EACH, SHARDS, config, flags, folder, made, rows_of  # noqa: F401
from web import picture, sample, shard
from web_pools import write_pool

import gradmimic.units
from gradmimic import ScoreLog
from gradmimic.data.pairs import Census, PairBatch
from gradmimic.run.clip.models import open_pair_model
from gradmimic.run.clip.score import score_pairs
from gradmimic.run.clip.shard_units import ALONE, ShardUnits, even_tails


def batch(shard_number, ids, last):
    count = torch.tensor(ids, dtype=torch.float32)
    return PairBatch(
        count.view(-1, 1, 1, 1), words(map(str, ids)), list(map(str, ids)), list(map(str, ids)),
        shard_number, last,
    )  # fmt: skip


def words(texts):
    """As long as the longest caption, so that tokens of two batches may not fit."""
    texts = list(texts)
    width = max(map(len, texts), default=0)
    return {"words": torch.tensor([[len(text)] * width for text in texts]).view(len(texts), width)}


@pytest.mark.parametrize("sizes", [[4, 4, 1], [4, 4, 4], [4, 2], [4, 5], [3], [1], [0], [4, 0]])
def test_the_last_two_batches_of_a_shard_share_evenly(sizes):
    rows = iter(range(8, 100))
    given = [
        batch(7, [next(rows) for _ in range(size)], place == len(sizes) - 1)
        for place, size in enumerate(sizes)
    ]
    found = list(even_tails(given, 4, words))
    assert [name for own in found for name in own.ids] == [n for own in given for n in own.ids]
    assert [own.last for own in found] == [False] * (len(found) - 1) + [True]
    assert all(len(own) >= 2 for own in found) or sum(sizes) < 2
    assert all(len(own) <= 5 for own in found)
    lengths = [len(own) for own in found]
    assert max(lengths[-2:]) - min(lengths[-2:]) <= 1 or sum(sizes) <= 5
    for own in found:
        assert own.images.flatten().tolist() == list(map(float, own.ids))
        assert own.texts == own.ids
        assert own.tokens["words"][:, :1].flatten().tolist() == [len(name) for name in own.ids]


def test_shards_in_turns_keep_to_themselves():
    turns = [batch(0, [1, 2], False), batch(1, [3, 4], False), batch(1, [5], True),
             batch(0, [6], True)]  # fmt: skip
    found = [(own.shard, own.ids) for own in even_tails(turns, 2, words)]
    assert found == [(1, ["3", "4"]), (1, ["5"]), (0, ["1", "2"]), (0, ["6"])]


def make_dirty(pool):
    """Spoil the pool: every shard in a way of its own; return how many samples there are in all."""
    whole = (pool / "00001.tar").read_bytes()
    (pool / "00001.tar").write_bytes(whole[: len(whole) // 2])
    (pool / "00001_stats.json").write_text(json.dumps({"successes": EACH}))
    (pool / "00002.tar").unlink()
    uids = [f"0-002-{place:03}" for place in range(EACH)]
    table = pa.table({"uid": uids, "key": [f"{place:05}" for place in range(EACH)]})
    pq.write_table(table, pool / "00002.parquet")
    shard(pool / "00005.tar", sample("00000", "alone", "one of a kind", picture()))
    shard(
        pool / "00006.tar",
        sample("00000", "x0", "\x1b[31m<b>bold</b> [red]", picture((1, 2, 3))),
        sample("00001", "x1", "   ", picture((1, 2, 4))),
        sample("00002", "x2", b"\xff\xfe\xfa", picture((1, 2, 5))),
        sample("00003\x1b[2J", "x3", "cut short", picture((1, 2, 6))[:60]),
        sample("00004", None, "no id", picture((1, 2, 7))),
        sample("00005", "0-000-003", "stands in the first shard too", picture((1, 2, 8))),
        sample("00006", "x0", "stands here already", picture((1, 2, 9))),
        sample("00007", "x7", "usable", picture((1, 2, 10))),
    )
    shard(pool / "00007.tar")
    (pool / "00008.tar").write_bytes(b"")
    return 4 * EACH + EACH + 1 + 8


def test_every_sample_is_scored_or_told_of(folder, command):  # noqa: F811
    total = make_dirty(folder / "pool")
    status, printed = command(*flags("steps/step-4.pt", data="pool/{00000..00008}.tar"))
    assert status == 0, printed.err
    census = json.loads((folder / "scores/census.json").read_text())
    assert (
        census["total"]
        == total
        == census["kept"] + sum(census["dropped"].values()) + census["lost"]
    )
    assert census["dropped"][ALONE] == 1
    assert census["lost"] > EACH
    logged = ScoreLog.read("scores/log").scan()
    ids = logged.filter(pc.field("scorer") == "own").filter(pc.field("canary").is_null())
    assert ids.num_rows == census["kept"] == len(set(ids["sample_id"].to_pylist()))
    assert {"x0", "x7", "0-000-003"} <= set(ids["sample_id"].to_pylist())
    lines = printed.out.splitlines()
    for reason, count in census["dropped"].items():
        assert any(reason[:20] in line and line.split()[0] == str(count) for line in lines), reason
    assert any(line.split()[:2] == [str(total), "total"] for line in lines)
    assert "\x1b[2J" not in printed.out
    text = " ".join(printed.out.split())
    assert "of 9 shards could not be read to their end" in text
    assert "cannot be opened" in text


@pytest.mark.parametrize("workers", [1, 2])
def test_how_it_is_read_changes_nothing(folder, workers):  # noqa: F811
    make_dirty(folder / "pool")
    data = "pool/{00000..00008}.tar"
    score_pairs(config(data=data, out="one"))
    done = score_pairs(config(data=data, out="several", workers=workers))
    assert rows_of("one").equals(rows_of("several"))
    texts = [(folder / out / "census.json").read_text() for out in ("one", "several")]
    assert texts[0] == texts[1]
    assert done.census == Census.from_dict(json.loads(texts[0])).rows()


def test_a_pool_without_a_single_usable_pair(folder, command):  # noqa: F811
    shard(folder / "none/0.tar", sample("0", "a", "", picture()))
    shard(folder / "none/1.tar", sample("0", "b", "alone", picture()))
    status, printed = command(*flags("steps/step-4.pt", data="none/{0..2}.tar"))
    assert status == 1
    text = " ".join(printed.out.split())
    assert text.startswith("samples 0 checkpoints 1 visits 0 canaries 0 ")
    assert "0 kept" in text
    assert "2 total" in text
    assert "1 of 3 shards could not be read" in text
    shutil.copy(folder / "pool/00000.tar", folder / "none/2.tar")
    status, printed = command(*flags("steps/step-4.pt", data="none/{0..2}.tar"))
    assert (status, f"samples {EACH} " in " ".join(printed.out.split())) == (0, True)


@pytest.mark.parametrize("ids", ["shared", "own"])
def test_a_shard_that_was_not_there_is_tried_again(folder, ids):  # noqa: F811
    """It drops what others have scored meanwhile, so that no sample is scored twice."""
    hidden = folder / "pool/00001.tar"
    whole = hidden.read_bytes()
    data = "pool/{00000..00005}.tar"
    first = [("0-000-002", 1), ("0-004-005", 2), ("0-000-002", 3)] if ids == "shared" else []
    extra = [sample(f"9{n}", uid, f"again {n}", picture((n, 0, 0))) for uid, n in first]
    mixed = [sample(f"8{n}", f"new{n}", f"new {n}", picture((n, 9, 0))) for n in range(4)]
    shard(hidden, *extra, *mixed)
    back = hidden.read_bytes()
    hidden.unlink()
    before = score_pairs(config(data=data))
    assert before.samples == 4 * EACH
    rows = rows_of("runs/scores")
    hidden.write_bytes(back)
    after = score_pairs(config(data=data))
    assert after.samples == 4 * EACH + 4
    assert after.scored == 4
    assert after.census[-1].count == 4 * EACH + 4 + len(extra)
    logged = rows_of("runs/scores")
    old = pa.array([f"new{n}" for n in range(4)])
    assert logged.filter(pc.invert(pc.is_in(logged["sample_id"], old))).equals(rows)
    real = logged.filter((pc.field("scorer") == "mimic") & pc.field("canary").is_null())
    visits = real.group_by(["epoch", "sample_id"]).aggregate([])
    assert real.num_rows == 2 * (4 * EACH + 4) == visits.num_rows
    assert score_pairs(config(data=data)).scored == 0
    hidden.write_bytes(whole)  # what is done is done, and not read again
    assert score_pairs(config(data=data)).samples == 4 * EACH + 4


def test_a_shard_that_disappears_while_others_are_scored(folder, monkeypatch):  # noqa: F811
    ended = ShardUnits.ended

    def vanishing(self, number):
        ended(self, number)
        (folder / "pool/00003.tar").unlink(missing_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr(ShardUnits, "ended", vanishing)
        done = score_pairs(config())
    assert done.samples == (SHARDS - 1) * EACH
    assert "1 of 5 shards could not be read" in done.notes[-1]
    write_pool(folder / "again", SHARDS, EACH, swapped=0.3)
    shutil.copy(folder / "again/00003.tar", folder / "pool")
    assert score_pairs(config()).samples == SHARDS * EACH
    score_pairs(config(out="whole"))
    assert rows_of("runs/scores").equals(rows_of("whole"))


def test_what_stands_in_two_shards_is_scored_in_the_first(folder, monkeypatch):  # noqa: F811
    again = [sample(f"9{n}", f"0-002-{n:03}", "once more", picture((n, 0, 0))) for n in range(6)]
    fresh = [sample(f"8{n}", f"new{n}", "new", picture((0, n, 0))) for n in range(6)]
    for number in (1, 4, 5):
        others = fresh if number == 5 else []
        with tarfile.open(folder / f"pool/{number:05}.tar", "a" if number < 5 else "w") as archive:
            for name, content in (file for files in again + others for file in files):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    done = score_pairs(config(align="none"))
    counts = {row.what: row.count for row in done.census}
    assert counts["its id stands in an earlier shard"] == 18
    real = rows_of("runs/scores").filter(
        (pc.field("scorer") == "own") & pc.field("canary").is_null() & (pc.field("epoch") == 0)
    )
    steps = dict(zip(real["sample_id"].to_pylist(), real["step"].to_pylist(), strict=True))
    assert len(steps) == real.num_rows == SHARDS * EACH + 6
    assert {steps[f"0-002-{n:03}"] for n in range(6)} == {1}


def test_a_loss_that_is_no_number_names_the_sample_and_its_shard(folder, command):  # noqa: F811
    """Not the first of its batch, though the losses of all its rivals are NaN too."""
    state = torch.load("steps/step-4.pt", weights_only=True)
    pair = open_pair_model("small")
    (row,) = set(pair.tokenize(["zebra"])["words"].flatten().tolist()) - {0}
    state["words.weight"][row] = torch.nan
    torch.save(state, "steps/step-4.pt")
    with tarfile.open(folder / "pool/00003.tar", "a") as archive:
        for name, content in sample("77777", "the one", "a zebra", picture()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    command.refused(
        r"The own score of sample 'the one' is nan at steps/step-4\.pt, in shard 00003\. .*kept",
        *flags("steps"),
    )
    ids = set(ScoreLog.read("scores/log").scan()["sample_id"].to_pylist())
    assert {name.split("-")[1] for name in ids} == {"000", "001", "002"}
    assert len(ids) == 3 * EACH


def test_a_full_disk_is_told_and_the_rest_done_later(folder, command, monkeypatch):  # noqa: F811
    score_pairs(config(out="whole"))
    monkeypatch.setattr(gradmimic.units, "SECONDS", 0.0)
    sync, calls = os.fsync, [0]

    def full(file):
        calls[0] += 1
        if calls[0] > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        command.refused(
            r"cannot write to scores: .*No space left on device.*kept: make room, and start the "
            "same command again",
            *flags("steps"),
        )
    assert 0 < rows_of("scores").num_rows < rows_of("whole").num_rows
    assert command(*flags("steps"))[0] == 0
    assert rows_of("scores").equals(rows_of("whole"))
    assert (folder / "scores/census.json").read_text() == (folder / "whole/census.json").read_text()


@pytest.mark.parametrize("spoilt", ["gone", "half"])
def test_counts_that_are_gone_are_told(folder, command, spoilt):  # noqa: F811
    score_pairs(config(out="scores"))
    file = folder / "scores/shards/00000002.json"
    if spoilt == "gone":
        file.unlink()
        match = r"holds scores of shard 2, but shards/00000002\.json.*is gone\. Restore it"
    else:
        file.write_text(file.read_text()[:40])
        match = r"00000002\.json is damaged and does not say what became of its shard.*--overwrite"
    command.refused(match, *flags("steps"))
    assert command(*flags("steps"), "--overwrite")[0] == 0
