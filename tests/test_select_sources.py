"""Where metadata come from, what is refused, and the command that says it all in one line."""

import sys

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage2_logs import logged, names

from gradmimic.cli import main
from gradmimic.curate import Selection, select
from gradmimic.curate.datacomp import read_datacomp
from gradmimic.errors import ConfigError, DataError, LogError
from gradmimic.log import ScoreLog

IDS = names("hex", 60)
TABLE = pa.table({"uid": IDS, "text": ["abc"] * 60, "w": np.arange(60), "clip": np.arange(60) % 7})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metadata" / "more").mkdir(parents=True)
    pq.write_table(TABLE.slice(0, 20), tmp_path / "metadata" / "00000000.parquet")
    pq.write_table(TABLE.slice(20), tmp_path / "metadata" / "more" / "it's [1]*.parquet")
    (tmp_path / "metadata" / "notes.txt").write_text("no Parquet")
    return tmp_path / "metadata"


@pytest.mark.parametrize(
    "source",
    ["{}", "{}/**/*.parquet", "file://{}", "file://{}/**/*.parquet",
     ["{}/00000000.parquet", "{}/more"], ["file://{}/more", "file://{}/00000000.parquet"]],
)  # fmt: skip
def test_files_folders_patterns_and_urls(folder, source):
    sources = (
        source.format(folder) if isinstance(source, str) else [s.format(folder) for s in source]
    )
    assert Selection.from_metadata(sources, score="w").above(30).kept.tolist() == IDS[30:].tolist()


def test_a_column_of_empty_lists_alone_is_one_of_lists(tmp_path):
    table = TABLE.append_column("face_bboxes", pa.array([[]] * 59 + [None]))
    pq.write_table(table, tmp_path / "metadata.parquet")
    found = Selection.from_metadata(tmp_path, where="length(face_bboxes) = 0")
    assert found.removed.tolist() == [IDS[59]]
    assert (
        found.reasons()["removed: a value is missing to tell whether length(face_bboxes) = 0"] == 1
    )


def test_any_url_that_fsspec_opens():
    with fsspec.open("memory://pool/a.parquet", "wb") as file:
        pq.write_table(TABLE, file)
    found = select(logged(ids="hex", n=60), where="w >= 30", metadata="memory://pool/*.parquet")
    assert set(found.kept) <= set(IDS[30:])
    assert found.reasons()["removed: w >= 30 does not hold"] > 10
    assert len(Selection.from_metadata("memory://pool/a.parquet")) == 60


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("{}/nothing", DataError, "there are no metadata at .*nothing. Pass Parquet files"),
        ("{}/*.pq", DataError, "there are no metadata at "),
        ("memory://nothing", DataError, "there are no metadata at memory://nothing"),
        ("nowhere://a", DataError, "cannot reach the metadata at nowhere://a: .*nowhere"),
        ("{}/notes.txt", DataError, "DuckDB gave up: .*notes.txt"),
        (["{}", "file://{}"], ConfigError, "from paths or from URLs, not from both at once"),
        ([], ConfigError, "expected files of metadata, got none"),
    ],
)
def test_where_nothing_is_that_is_said(folder, source, error, message):
    sources = (
        source.format(folder) if isinstance(source, str) else [s.format(folder) for s in source]
    )
    with pytest.raises(error, match=message):
        Selection.from_metadata(sources)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "widht > 3"}, "the condition widht > 3 needs a column 'widht'"),
        ({"where": "mimc > 3"}, "Did you mean mimic"),
        ({"top": {"text": 0.5}}, "a ranking needs numbers, but text is string"),
        ({"top": {"w": 1.5}}, "the share of w is a number from 0 to 1, got 1.5"),
        ({"top": {"w": True}}, "the share of w is a number from 0 to 1, got True"),
        ({"drop_bottom": {"nothing": 0.5}}, "the ranking needs a column 'nothing'"),
        ({}, "metadata were named, but nothing uses them"),
        ({"where": "w > 3", "metadata_id": "id"}, "the join with the metadata needs a column 'id'"),
        ({"where": "w > 3", "metadata_id": "w"}, "has string sample ids, but .* 'w' is int64"),
        ({"where": "w > 3; drop table x"}, "cannot read the condition"),
        (
            {"where": "w > 3", "metadata_id": "text"},
            "know none of the 60 samples, such as '[0-9a-f]{32}'",
        ),
    ],
)
def test_what_cannot_be_asked_of_metadata(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        select(logged(ids="hex", n=60), metadata=folder, **options)


def test_without_metadata_their_columns_are_not_there():
    log = logged(ids="int", n=60)
    with pytest.raises(
        ConfigError, match="There are mimic, score, p_clean, visits. Others come wi"
    ):
        select(log, where="original_width > 3")
    with pytest.raises(ConfigError, match="There are score, p_clean, visits"):
        select(log).where("mimic > 3")
    with pytest.raises(LogError, match="has no scorer 'el2n'"):
        select(log, scorer="el2n", where="mimic > 3")


def test_ids_of_another_kind_are_refused(folder):
    with pytest.raises(ConfigError, match="the log has int64 sample ids, but .* 'uid' is string"):
        select(logged(ids="int", n=60), where="w > 3", metadata=folder)


@pytest.fixture
def written(tmp_path):
    """A log on disk, with canaries and two scorers."""
    table = logged(ids="hex", n=60, scorers=("mimic", "clip"), canaries=True, epochs=2)
    with ScoreLog(tmp_path / "log") as log:
        for scorer in ("mimic", "clip"):
            for epoch in range(2):
                for real in (True, False):
                    rows = [
                        row
                        for row in table.to_pylist()
                        if (row["scorer"], row["epoch"], row["canary"] is None)
                        == (scorer, epoch, real)
                    ]
                    columns = (
                        [row[name] for row in rows]
                        for name in ("sample_id", "score", "weight", "loss")
                    )
                    kinds = [row["canary"] for row in rows]
                    log.append(*columns, epoch=epoch, step=epoch, scorer=scorer, canary=kinds)
    return tmp_path / "log"


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls the command; returns its exit status, and what it said with single blanks."""

    def caller(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradmimic", "select", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return caught.value.code or 0, " ".join((said.out + said.err).split())

    return caller


def test_the_command_reads_like_the_published_filters(call, written, folder, tmp_path):
    code, said = call(
        written, "--metadata", folder, "--where", "length(text) > 2 and w >= 10",
        "--top", "metadata.clip:0.5", "--drop-bottom", "mimic:0.15", "--memory-limit", "500MB",
        "--out", tmp_path / "out.parquet", "--datacomp", tmp_path / "subset.npy",
    )  # fmt: skip
    assert code == 0, said
    expected = select(
        written, where="length(text) > 2 and w >= 10", top={"metadata.clip": 0.5},
        drop_bottom={"mimic": 0.15}, metadata=folder,
    )  # fmt: skip
    assert read_datacomp(tmp_path / "subset.npy").tolist() == expected.kept.tolist()
    assert 0 < len(expected.kept) < 30
    for reason, count in expected.reasons().items():
        assert f"{count} {reason}" in said
    assert f"Note: {expected.notes[0]}" in said


def test_the_command_combines_scorers_and_says_so(call, written, tmp_path):
    out = tmp_path / "out.parquet"
    both = ["--scorer", "mimic", "--scorer", "clip", "--aggregate", "stacked"]
    code, said = call(written, *both, "--out", out)
    assert code == 0, said
    found = select(written, scorer=["mimic", "clip"], aggregate="stacked")
    assert Selection.from_parquet(out).table.equals(found.table)
    assert f"Note: {found.notes[0]}" in said


@pytest.mark.parametrize("text", ["mimic", "mimic:", "mimic:2", "mimic:-0.1", "mimic:nan", ":0.5"])
def test_a_share_that_cannot_be_read_is_shown(call, tmp_path, text):
    code, said = call(tmp_path, "--drop-bottom", text)
    assert code != 0
    assert f"takes a column and a share from 0 to 1, such as mimic:0.15, got '{text}'" in said


def test_a_column_is_ranked_once(call, tmp_path):
    code, said = call(tmp_path, "--top", "mimic:0.5", "--top", "mimic:0.6")
    assert code != 0
    assert "a share from 0 to 1 once for each, such as mimic:0.15, got 'mimic:0.6'" in said
