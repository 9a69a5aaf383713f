"""What a person decided in the report comes back exactly, or says what is wrong with it."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selections import ODD, make, rows

from gradmimic.curate import Selection, select
from gradmimic.curate import rows as rows_module
from gradmimic.curate.review import Review, log_key, read_review, reviewed
from gradmimic.errors import DataError
from gradmimic.log import ScoreLog

HEAD = {"gradmimic_review": 1, "run": "digits", "log": "0123456789abcdef"}


def write(path, *entries):
    """Write objects as JSON lines, and texts as they are."""
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def call(monkeypatch, *arguments):
    """Call main() as the installed command does; return its exit status."""
    from gradmimic.cli import main

    monkeypatch.setattr(sys, "argv", ["gradmimic", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0


def line(sample_id, decision, label=None):
    own = {} if label is None else {"label": label}
    return {"sample_id": sample_id, "decision": decision, **own}


def write_log(folder, ids=(0, 1, 2, 3), seed=0):
    """A log in which two samples are far below the others."""
    with ScoreLog(folder, config={"lr": 0.1}, seed=seed) as log:
        log.append(
            list(ids), [1.0, -0.9, 1.2, -1.1], [0.4, 0.1, 0.4, 0.1], [0.0] * 4, epoch=0, step=0
        )
    return folder


@given(st.data())
def test_decisions_win_and_nothing_else_changes(data):
    ids = data.draw(st.lists(st.integers(-5, 40), unique=True, max_size=12).map(sorted))
    if data.draw(st.booleans()):
        ids = sorted(map(str, ids))
    keep = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    said = (
        data.draw(st.dictionaries(st.sampled_from(ids), st.sampled_from(["keep", "remove"])))
        if ids
        else {}
    )
    before = make(ids, keep)
    after = reviewed(before, said)
    expected = [
        (sample_id, said.get(sample_id, "keep" if kept else "remove") == "keep")
        for sample_id, kept in zip(ids, keep, strict=True)
    ]
    assert rows(after, "sample_id", "keep") == expected
    for name in ("p_clean", "score", "visits"):
        assert after.table[name].equals(before.table[name])
    for sample_id, earlier, reason in zip(
        ids, before.table["reason"].to_pylist(), after.table["reason"].to_pylist(), strict=True
    ):
        verdict = {"keep": "kept", "remove": "removed", None: None}[said.get(sample_id)]
        assert reason == (f"{verdict} by review ({earlier})" if verdict else earlier)


def test_a_selection_in_a_file_is_reviewed_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_BATCH", 2)
    make(sorted(ODD), [True, False, True, False, False]).to_parquet(tmp_path / "s.parquet")
    decided = reviewed(
        Selection.from_parquet(tmp_path / "s.parquet", ["a note"]),
        {ODD[0]: "remove", ODD[4]: "keep"},
    )
    keep = dict(zip(sorted(ODD), [True, False, True, False, False], strict=True))
    assert dict(rows(decided, "sample_id", "keep")) == {**keep, ODD[0]: False, ODD[4]: True}
    assert decided.notes == ("a note",)


def test_reasons_that_another_program_left_out_are_no_obstacle():
    table = make([1, 2], [True, True]).table
    bare = table.set_column(5, "reason", pa.array([None, "kept: so"], pa.string()))
    decided = reviewed(Selection(bare), {1: "remove", 2: "remove"})
    assert decided.table["reason"].to_pylist() == [
        "removed by review (for no reason that was given)", "removed by review (kept: so)",
    ]  # fmt: skip


def test_the_file_is_read_as_it_was_written(tmp_path):
    entries = [
        HEAD,
        line(7, "keep", "</script>"),
        "",
        line(2**53 + 1, "remove"),
        line(7, "keep", "</script>"),
        HEAD,
    ]
    review = read_review(write(tmp_path / "review.jsonl", *entries))
    assert review.decisions == {7: "keep", 2**53 + 1: "remove"}
    assert review.labels == {7: "</script>"}
    assert (review.run, review.log) == ("digits", HEAD["log"])
    by_hand = read_review(
        write(tmp_path / "by hand.jsonl", "\ufeff" + json.dumps(line("a", "keep")))
    )
    assert (by_hand.decisions, by_hand.log) == ({"a": "keep"}, None)
    nothing = read_review(write(tmp_path / "empty.jsonl"))
    assert reviewed(make(["a"], [True]), nothing).kept.tolist() == ["a"]


BAD_LINES = {
    "cut short": (
        '{"sample_id": 1, "decis',
        "line 2 is no JSON .* cut short: export the review again",
    ),
    "too deep": ("[" * 100_000, "line 2 is no JSON"),
    "no object": ("[1, 2]", r"line 2 is \[1, 2\]; expected an object such as"),
    "no decision": ('{"sample_id": 1}', "line 2 lacks decision; expected an object such as"),
    "no id": ('{"decision": "keep"}', "line 2 lacks sample_id"),
    "unknown key": (
        '{"sample_id": 1, "decision": "keep", "lable": "x"}',
        "line 2 has the unknown key 'lable'",
    ),
    "id": (
        '{"sample_id": 1.5, "decision": "keep"}',
        "line 2: sample_id is 1.5; expected an integer or a str",
    ),
    "truth": ('{"sample_id": true, "decision": "keep"}', "sample_id is True; expected an integer"),
    "decision": (
        '{"sample_id": 1, "decision": "delete"}',
        "decision is 'delete'; expected 'keep' or 'remove'",
    ),
    "list": ('{"sample_id": 1, "decision": ["keep"]}', "expected 'keep' or 'remove'"),
    "label": (
        '{"sample_id": 1, "decision": "keep", "label": 3}',
        "label is 3 and decision 'keep'; expected the name",
    ),
    "removed label": (
        '{"sample_id": 1, "decision": "remove", "label": "x"}',
        "with the decision 'keep'",
    ),
    "version": (
        '{"gradmimic_review": 2, "run": "a", "log": "b"}',
        "review of version 2, but this gradmimic reads version 1",
    ),
    "no log": ('{"gradmimic_review": 1, "run": "a"}', "line 2: log is None; expected a string"),
    "two runs": (
        json.dumps({**HEAD, "log": "f" * 16}),
        "line 2 begins decisions on run 'digits' .* in two files",
    ),
    "twice": (
        json.dumps(line(0, "remove")),
        "line 3 says 'keep' of sample 0, but line 2 says 'remove'. Remove one",
    ),
    "mixed": (
        '{"sample_id": "a", "decision": "keep"}',
        "review.jsonl: sample ids mix integers and strings",
    ),
    "large": ('{"sample_id": 9223372036854775808, "decision": "keep"}', "does not fit int64"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_damaged_line_is_named(case, tmp_path):
    text, message = BAD_LINES[case]
    path = write(tmp_path / "review.jsonl", HEAD, text, line(0, "keep"))
    with pytest.raises(DataError, match=message) as caught:
        read_review(path)
    assert "review.jsonl" in str(caught.value)


def test_another_label_for_the_same_sample_is_refused(tmp_path):
    path = write(tmp_path / "review.jsonl", line(0, "keep"), line(0, "keep", "cat"))
    with pytest.raises(
        DataError, match="says 'keep' with label 'cat' of sample 0, but line 1 says 'keep'. Rem"
    ):
        read_review(path)


def test_files_that_are_no_text_or_not_there(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("picture.png", "nowhere.jsonl", "."):
        with pytest.raises(
            DataError, match="cannot read a review from .*Pass the file that the report"
        ):
            read_review(tmp_path / name)


def test_samples_that_are_not_there_are_refused():
    selection = make([1, 2, 3], [True] * 3)
    with pytest.raises(
        DataError, match="decides on 2 samples that are not in this selection: 7, 9"
    ):
        reviewed(selection, {2: "keep", 7: "keep", 9: "remove"})
    with pytest.raises(
        DataError, match="names samples by string ids such as '2', but this selection has int64"
    ):
        reviewed(selection, {"2": "keep"})
    with pytest.raises(DataError, match="decides 1 on sample 2; expected 'keep' or 'remove'"):
        reviewed(selection, {2: 1})
    with pytest.raises(
        DataError, match="gives sample 2 the label 'cat'; expected the name of a class"
    ):
        Review({2: "remove"}, {2: "cat"})


@pytest.mark.parametrize("streamed", [False, True])
def test_select_takes_a_review(streamed, tmp_path):
    log = write_log(tmp_path / "log")
    head = {**HEAD, "log": log_key(ScoreLog.read(log))}
    review = write(tmp_path / "review.jsonl", head, line(0, "remove"), line(1, "keep", "cat"))
    out = tmp_path / "out.parquet" if streamed else None
    decided = select(log, "two_means", review=review, out=out)
    assert decided.kept.tolist() == [1, 2]
    plain = select(log, "two_means")
    was = plain.table["reason"].to_pylist()
    assert decided.table["reason"].to_pylist() == [
        f"removed by review ({was[0]})", f"kept by review ({was[1]})", *was[2:],
    ]  # fmt: skip
    assert decided.table.drop(["keep", "reason"]).equals(plain.table.drop(["keep", "reason"]))
    if streamed:
        assert Selection.from_parquet(out).kept.tolist() == [1, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "log",
            "out.parquet",
            "review.jsonl",
        ]


def test_a_review_that_does_not_fit_leaves_what_was_there(tmp_path):
    log = write_log(tmp_path / "log")
    out = tmp_path / "out.parquet"
    out.write_text("old")
    with pytest.raises(DataError, match="1 samples that are not in this selection: 9"):
        select(log, "two_means", review={9: "keep"}, out=out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out.parquet"]


def test_another_runs_review_is_refused(tmp_path):
    one, other = write_log(tmp_path / "one"), write_log(tmp_path / "other", seed=1)
    keys = [log_key(ScoreLog.read(log)) for log in (one, other)]
    assert keys[0] != keys[1]
    review = write(tmp_path / "review.jsonl", {**HEAD, "log": keys[0]}, line(0, "remove"))
    assert select(one, "two_means", review=review).kept.tolist() == [2]
    with pytest.raises(
        DataError, match=rf"run 'digits' \(log {keys[0]}\), but the log at .*other is {keys[1]}"
    ):
        select(other, "two_means", review=review)
    # A table, and a log that lost its run.json, cannot tell.
    assert select(ScoreLog.read(other).scan(), "two_means", review=review).kept.tolist() == [2]
    (other / "run.json").unlink()
    assert select(other, "two_means", review=review).kept.tolist() == [2]


def test_the_key_of_a_log_outlives_its_continuation(tmp_path):
    log = write_log(tmp_path / "log")
    key = log_key(ScoreLog.read(log))
    with ScoreLog(log) as again:
        again.append([0, 1], [1.0, -0.9], [0.5, 0.5], [0.0, 0.0], epoch=1, step=1)
    assert log_key(ScoreLog.read(log)) == key


def test_the_command_takes_a_review(tmp_path, monkeypatch, capsys):
    log = write_log(tmp_path / "log", ids=("a", "b", "c", "d"))
    review = write(tmp_path / "review.jsonl", line("d", "keep"), line("a", "remove"))
    arguments = (
        "select",
        log,
        "--rule",
        "two_means",
        "--out",
        tmp_path / "out.parquet",
        "--review",
    )
    assert call(monkeypatch, *arguments, review) == 0
    assert (
        "kept by review (removed: the mean score is below the two-means" in capsys.readouterr().out
    )
    assert Selection.from_parquet(tmp_path / "out.parquet").kept.tolist() == ["c", "d"]
    assert call(monkeypatch, *arguments, write(review, line("x", "keep"))) == 1
    assert "1 samples that are not in this selection: 'x'" in " ".join(
        capsys.readouterr().err.split()
    )


def test_reviews_of_many_pieces_are_exact(monkeypatch):
    monkeypatch.setattr(rows_module, "_BATCH", 100)
    chance = np.random.default_rng(0)
    keep = chance.random(1000) < 0.5
    said = {
        int(row): ("keep", "remove")[int(chance.integers(2))]
        for row in chance.permutation(1000)[:300]
    }
    after = reviewed(make(list(range(1000)), keep.tolist()), Review(said))
    for row, decision in said.items():
        keep[row] = decision == "keep"
    assert np.array_equal(after.mask(), keep)
    assert isinstance(after.table["reason"].type, pa.DictionaryType)
