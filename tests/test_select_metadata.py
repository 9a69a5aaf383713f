"""Conditions and rankings over metadata: the published filters, and a reason for every sample."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage2_logs import logged, names

from gradmimic.curate import Selection, select
from gradmimic.errors import ConfigError, DataError

CLIP = "clip_l14_similarity_score"


def pool(ids, *, seed=0, **changed):
    """Metadata as DataComp's, with ties among the scores."""
    chance = np.random.default_rng(seed)
    n = len(ids)
    return pa.table(
        {
            "uid": pa.array(ids),
            "text": ["x" * length for length in chance.integers(0, 20, n)],
            "original_width": chance.integers(100, 400, n),
            CLIP: chance.integers(0, 20, n) / 20,
            "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]] * k for k in chance.integers(0, 3, n)],
        }
        | changed
    )


@pytest.fixture
def write(tmp_path):
    """Writes metadata as several files, and returns their folder."""

    def writer(table, parts=3):
        folder = tmp_path / "metadata [1]*"
        folder.mkdir()
        for number in range(parts):
            rows = table.slice(number * len(table) // parts, -(-len(table) // parts))
            end = (number + 1) * len(table) // parts - number * len(table) // parts
            pq.write_table(rows.slice(0, end), folder / f"{number:08d}.parquet")
        return folder

    return writer


def kept(selection):
    return set(selection.kept.tolist())


def test_the_published_recipe_is_set_algebra(write):
    log, ids = logged(ids="hex"), names("hex", 300)
    table = pool(ids)
    found = select(log, top={CLIP: 0.3}, drop_bottom={"mimic": 0.15}, metadata=write(table))
    clip = Selection.from_table(table, id="uid", score=CLIP)
    mimic = select(log)
    assert kept(found) == kept(clip.top(0.3) - mimic.bottom(0.15))
    assert len(found) == 300
    assert found.notes == ()
    reasons = found.reasons()
    assert sum(reasons.values()) == 300
    verdicts = {reason.partition(", ")[0] for reason in reasons}
    assert verdicts == {
        "kept: no rule was asked for; no ranking removes it",
        f"removed: not among the 90 of 300 samples with the highest {CLIP}",
        "removed: among the 45 of 300 samples with the lowest mimic",
    }


@pytest.mark.parametrize("share", [0.0, 0.1, 0.505, 1.0])
def test_rankings_break_ties_by_id_as_selections_do(write, share):
    log, ids = logged(ids="odd", n=101), names("odd", 101)
    table = pool(ids)
    folder = write(table.take(np.random.default_rng(1).permutation(101)))
    clip = Selection.from_table(table, id="uid", score=CLIP)
    assert kept(select(log, top={CLIP: share}, metadata=folder)) == kept(clip.top(share))
    low = select(log, drop_bottom={CLIP: share}, metadata=folder)
    assert set(low.removed.tolist()) == kept(clip.bottom(share))
    scores = select(log)
    assert set(select(log, drop_bottom={"mimic": share}).removed.tolist()) == kept(
        scores.bottom(share)
    )
    assert kept(select(log, top={"mimic": share})) == kept(scores.top(share))


@pytest.mark.parametrize("ids", ["hex", "int", "odd"])
def test_conditions_hold_beside_the_rule(write, ids):
    log, known = logged(ids=ids, canaries=True), names(ids, 300)
    table = pool(known)
    condition = "length(text) > 5 and original_width >= 200 and length(face_bboxes) < 2"
    found = select(log, where=condition, metadata=write(table))
    plain = select(log)
    length = [len(text) for text in table["text"].to_pylist()]
    faces = [len(boxes) for boxes in table["face_bboxes"].to_pylist()]
    width = table["original_width"].to_pylist()
    fulfils = {
        uid: (letters > 5, wide >= 200, some < 2)
        for uid, letters, wide, some in zip(known.tolist(), length, width, faces, strict=True)
    }
    texts = ["length(text) > 5", "original_width >= 200", "length(face_bboxes) < 2"]
    for row, before in zip(found.table.to_pylist(), plain.table.to_pylist(), strict=True):
        holds = fulfils[row["sample_id"]]
        assert row["keep"] == (before["keep"] and all(holds))
        if not before["keep"]:
            assert row["reason"] == before["reason"]
        elif not all(holds):
            assert row["reason"] == f"removed: {texts[holds.index(False)]} does not hold"
        else:
            assert row["reason"] == f"{before['reason']}; no condition removes it"
        assert row | {"keep": 0, "reason": 0} == before | {"keep": 0, "reason": 0}


def test_what_log_and_metadata_do_not_share_is_counted(write):
    log, ids = logged(ids="hex"), names("hex", 300)
    table = pool([*ids[5:], ids[7], ids[7], None, "no uid", "f" * 32], seed=2)
    again = np.flatnonzero(np.array(table["uid"].to_pylist()) == ids[7])
    values = table[CLIP].to_numpy().copy()
    values[again] = [0.9, 0.1, 0.9]
    table = table.set_column(table.column_names.index(CLIP), CLIP, pa.array(values))
    width = np.full(len(table), 300)
    width[again[-1]] = 50
    table = table.set_column(2, "original_width", pa.array(width))
    folder = write(table)
    found = select(log, where="original_width > 100", top={CLIP: 0.5}, metadata=folder)
    reasons = dict(zip(*(found.table[c].to_pylist() for c in ("sample_id", "reason")), strict=True))
    assert {reasons[uid] for uid in ids[:5]} == {"removed: the metadata do not know this sample"}
    assert reasons[ids[7]] == "removed: original_width > 100 does not hold"  # in one of its rows
    assert found.notes == (
        "5 of 300 samples are not in the metadata, and were removed.",
        "1 of 296 samples of the metadata were never scored, and are not in this selection.",
        "2 rows of the metadata repeat an id: a condition must hold in all, and the lowest ranks.",
        "2 of 300 rows of the metadata have no id that the log could have.",
    )
    low = select(log, drop_bottom={CLIP: 0.2}, metadata=folder)
    assert ids[7] in low.removed  # by its lowest value


def test_missing_values_hold_nothing_and_have_no_rank(write):
    log, ids = logged(ids="hex"), names("hex", 300)
    scores = np.linspace(0, 1, 300)
    scores[[3, 4]] = np.nan, np.inf
    table = pool(ids, text=[None] * 2 + ["long enough"] * 298,
                 **{CLIP: pa.array([None, *scores[1:]])})  # fmt: skip
    folder = write(table)
    found = select(log, where="length(text) > 5", top={CLIP: 0.5}, metadata=folder)
    reasons = dict(zip(*(found.table[c].to_pylist() for c in ("sample_id", "reason")), strict=True))
    assert reasons[ids[0]] == "removed: a value is missing to tell whether length(text) > 5"
    assert (
        reasons[ids[3]] == reasons[ids[4]] == f"removed: {CLIP} is missing, so that it has no rank"
    )
    assert reasons[ids[10]].startswith("removed: not among the 148 of 297 samples")
    dropped = select(log, drop_bottom={CLIP: 0.5}, metadata=folder)
    assert {ids[0], ids[3], ids[4]} <= kept(dropped)  # nothing speaks against them


def test_scorers_and_what_was_decided_are_columns_too(write):
    log = logged(ids="hex", scorers=("mimic", "clip"), canaries=True)
    folder = write(pool(names("hex", 300)))
    clip, mimic = select(log, scorer="clip"), select(log)
    found = select(log, top={"clip": 0.4}, drop_bottom={"mimic": 0.2})
    assert kept(found) == kept(clip.top(0.4) - mimic.bottom(0.2))
    found = select(log, "none", where="clip > 0.5 or p_clean > 2 or visits < 3")
    visits = dict(zip(*(mimic.table[c].to_pylist() for c in ("sample_id", "visits")), strict=True))
    wanted = {uid for uid, own in visits.items() if own < 3} | kept(clip.above(0.5000001))
    assert kept(found) == wanted
    mixed = select(log, "none", where=f"mimic > {CLIP}", metadata=folder)
    other = Selection.from_metadata(folder, score=CLIP)
    scores = [dict(zip(*(s.table[c].to_pylist() for c in ("sample_id", "score")), strict=True))
              for s in (mimic, other)]  # fmt: skip
    assert kept(mixed) == {uid for uid, score in scores[0].items() if score > scores[1][uid]}


def test_a_sample_that_a_scorer_has_not_seen_has_no_rank_by_it():
    log = logged(ids="hex", scorers=("mimic", "clip"))
    unseen = names("hex", 300)[:30]
    hidden = np.isin(log["sample_id"].to_pylist(), unseen) & (
        np.array(log["scorer"].to_pylist()) == "clip"
    )
    found = select(log.filter(pa.array(~hidden)), top={"clip": 0.5})
    assert found.reasons()["removed: clip is missing, so that it has no rank"] == 30
    assert len(found.kept) == 135


def test_a_name_that_both_have_must_say_whose(write):
    log, ids = logged(ids="hex", scorers=("mimic", "clip")), names("hex", 300)
    folder = write(pool(ids, clip=np.arange(300)))
    both = "the ranking names clip, which the metadata and the log both have. Write metadata.clip"
    with pytest.raises(ConfigError, match=both):
        select(log, top={"clip": 0.5}, metadata=folder)
    assert kept(select(log, top={"metadata.clip": 0.5}, metadata=folder)) == set(ids[150:].tolist())
    own = select(log, where="log.clip > 0 and metadata.clip >= 100 and original_width > 0",
                 metadata=folder)  # fmt: skip
    assert kept(own) <= set(ids[100:].tolist())
    assert kept(own) == kept(select(log)) & kept(select(log, where="clip > 0")) & set(
        ids[100:].tolist()
    )


def test_votes_are_counted_before_conditions_apply(write):
    log = logged(ids="hex", scorers=("mimic", "clip"))
    both = ["mimic", "clip"]
    found = select(log, aggregate="dawid_skene", scorer=both, drop_bottom={"clip": 0.3})
    voted = select(log, aggregate="dawid_skene", scorer=both)
    assert kept(found) == kept(voted - select(log, scorer="clip").bottom(0.3))
    with pytest.raises(ConfigError, match="counts votes, which a rule casts"):
        select(log, "none", aggregate="majority")


def test_a_file_holds_what_memory_would(write, tmp_path):
    log = logged(ids="hex", canaries=True)
    options = {"where": "length(text) > 5", "top": {CLIP: 0.5}, "drop_bottom": {"mimic": 0.1}}
    options["metadata"] = write(pool(names("hex", 300)[3:]))
    here = select(log, "calibrated", **options)
    there = select(log, "calibrated", **options, out=tmp_path / "selection.parquet")
    assert there.table.equals(here.table)
    assert there.notes == here.notes != ()


def test_selections_take_up_metadata_and_conditions(write):
    log, ids = logged(ids="hex", canaries=True), names("hex", 300)
    folder = write(pool(ids))
    clip = Selection.from_metadata(folder, score=CLIP, where="length(text) > 5")
    long_enough = kept(clip)
    assert 0 < len(long_enough) < 300
    assert len(clip) == 300
    by_hand = kept(clip.top(0.3) - select(log).bottom(0.15)) & long_enough
    found = select(log, where="length(text) > 5", top={CLIP: 0.3}, drop_bottom={"mimic": 0.15},
                   metadata=folder)  # fmt: skip
    assert kept(found) == by_hand
    chained = clip.top(0.3).where(["length(text) > 5", "score >= 0"], folder)
    assert kept(chained) == kept(clip.top(0.3)) & long_enough
    assert all(r.startswith(("kept: among", "removed: ")) for r in chained.reasons())
    everything = Selection.from_metadata([folder / "00000000.parquet"])
    assert kept(everything) == set(ids[:100].tolist())
    with pytest.raises(DataError, match="cannot be ranked, as their score is missing"):
        everything.top(0.5)


def test_selections_of_row_numbers_take_conditions_too(write):
    folder = write(pool(np.arange(50), original_width=np.arange(50)))
    scores = Selection.from_scores(np.arange(60), np.linspace(0, 1, 60))
    found = scores.where("original_width >= 20", folder)
    assert found.kept.tolist() == list(range(20, 50))
    assert found.notes == ("10 of 60 samples are not in the metadata, and were removed.",)
    assert scores.where("score > 0.5").kept.tolist() == list(range(30, 60))
    wide = Selection.from_metadata(folder, score="original_width")
    assert wide.above(40).where("visits = 1").kept.tolist() == list(range(40, 50))
