import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selections import ODD, check_full_disk, make, rows

from gradmimic.curate import Selection
from gradmimic.curate import rows as rows_module
from gradmimic.errors import ConfigError, DataError

EXPORTS = {
    "to_parquet": lambda selection, path: selection.to_parquet(path),
    "to_jsonl": lambda selection, path: selection.to_jsonl(path),
    "to_npy": lambda selection, path: selection.to_npy(path),
    "mask": lambda selection, path: selection.to_npy(path, mask=True),
}


@pytest.fixture(params=["memory", "file"])
def stored(request, tmp_path, monkeypatch):
    """Hold a selection in memory, or in a file that is read two rows at a time."""
    monkeypatch.setattr(rows_module, "_BATCH", 2)

    def store(selection):
        if request.param == "memory":
            return selection
        selection.to_parquet(tmp_path / "stored.parquet")
        return Selection.from_parquet(tmp_path / "stored.parquet")

    return store


def test_ids_and_masks_of_row_numbers(stored):
    selection = stored(make([0, 1, 2, 3], [True, False, True, True]))
    assert len(selection) == 4
    assert selection.kept.tolist() == selection.index().tolist() == [0, 2, 3]
    assert selection.removed.tolist() == [1]
    assert selection.mask().tolist() == [True, False, True, True]
    assert selection.mask([3, 1, 1]).tolist() == [True, False, False]
    assert selection.mask(pa.array([3, 1])).tolist() == [True, False]
    assert selection.mask(np.array([], dtype=np.int64)).tolist() == []
    assert selection.summary() == "3 of 4 samples (75.0%) are kept, judged by 8 visits."
    assert repr(selection) == "<Selection of 4 samples>"


def test_a_selection_of_nothing(stored):
    selection = stored(make([], []))
    assert selection.summary() == "0 of 0 samples are kept, judged by 0 visits."
    assert selection.kept.tolist() == selection.mask().tolist() == selection.mask([]).tolist() == []
    assert selection.table.num_rows == 0


def test_masks_of_other_ids_follow_the_given_order(stored):
    selection = stored(make(sorted(ODD), [True, False, True, False, False]))
    order = ODD[::-1]
    expected = [sorted(ODD).index(name) in (0, 2) for name in order]
    assert selection.mask(order).tolist() == expected
    assert selection.rows(order)["sample_id"].to_pylist() == order
    assert selection.rows(["日本"], ["reason", "visits"]).to_pylist() == [
        {"reason": "removed: so", "visits": 2}
    ]
    assert selection.rows(["日本"], ["sample_id"]).to_pylist() == [{"sample_id": "日本"}]
    with pytest.raises(DataError, match=r"this needs the sample ids to be the row numbers 0 to 4,"):
        selection.mask()
    with pytest.raises(DataError, match=r"2 ids are not in this selection: 'x', 'y'\. These"):
        selection.mask(["日本", "x", "y"])
    with pytest.raises(DataError, match="has string sample ids, but int64 ids came"):
        selection.mask([1])
    with pytest.raises(DataError, match=r"row numbers 0 to 1, but they are 1, 2\. Pass"):
        make([1, 2], [True, True]).mask()


def test_exports_come_back(tmp_path, stored):
    selection = stored(make(sorted(ODD), [True, False, True, False, True]))
    expected = selection.table.to_pylist()
    selection = stored(selection)
    selection.to_parquet(tmp_path / "s.parquet")
    back = Selection.from_parquet(tmp_path / "s.parquet")
    assert back.table.to_pylist() == expected
    assert back.table.schema == selection.table.schema
    selection.to_jsonl(tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    selection.to_npy(tmp_path / "s.npy")
    loaded = np.load(tmp_path / "s.npy", allow_pickle=False)
    assert loaded.tolist() == selection.kept.tolist() == sorted(ODD)[::2]
    stored(make([0, 1, 2], [False, True, True])).to_npy(tmp_path / "mask", mask=True)
    assert np.load(tmp_path / "mask").tolist() == [False, True, True]
    stored(make([], [])).to_npy(tmp_path / "none")
    assert np.load(tmp_path / "none").shape == (0,)


def test_kept_and_removed_rows_are_exported_apart(tmp_path, stored):
    selection = stored(make([1, 2, 3, 4, 5], [True, False, True, False, False]))
    selection.to_parquet(tmp_path / "kept.parquet", only="kept")
    selection.to_jsonl(tmp_path / "removed.jsonl", only="removed")
    assert Selection.from_parquet(tmp_path / "kept.parquet").kept.tolist() == [1, 3]
    lines = (tmp_path / "removed.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample_id"] for line in lines] == [2, 4, 5]
    with pytest.raises(ConfigError, match="only must be 'kept', 'removed' or None, got 'all'"):
        selection.to_jsonl(tmp_path / "all", only="all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("name", EXPORTS)
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, stored, name):
    selection = stored(make(list(range(50)), [True] * 50))
    folder = tmp_path / "full"
    folder.mkdir()
    check_full_disk(lambda path: EXPORTS[name](selection, path), folder / "out", monkeypatch)


def test_a_file_is_read_only_when_needed_and_a_piece_at_a_time(tmp_path, stored):
    selection = stored(make([1, 2, 3, 4, 5], [True] * 5))
    selection.to_parquet(tmp_path / "s.parquet")
    lazy = Selection.from_parquet(tmp_path / "s.parquet")
    pieces = [batch["visits"].to_pylist() for batch in lazy.batches(["visits"])]
    assert pieces == [[2, 2], [2, 2], [2]]
    with pytest.raises(DataError, match=r"a selection has no columns \['scores'\]; it has \['sam"):
        lazy.batches(["scores"])
    lazy.to_parquet(tmp_path / "s.parquet", only="removed")  # onto itself, while it is read
    assert len(Selection.from_parquet(tmp_path / "s.parquet")) == 0


def test_reading_holds_a_piece_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_BATCH", 10_000)
    source = random.Random(0)  # noqa: S311
    ids = sorted(source.randbytes(16).hex() for _ in range(200_000))
    make(ids, [True] * len(ids)).to_parquet(tmp_path / "s.parquet")
    del ids
    lazy = Selection.from_parquet(tmp_path / "s.parquet")
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in lazy.batches(["sample_id", "keep"])]
    assert len(held) == 20
    assert max(held) < 0.3 * 32 * 200_000


def test_other_programs_files_are_read(tmp_path):
    table = make(["a", "b"], [True, False]).table
    plain = table.set_column(5, "reason", table["reason"].cast(pa.large_string()))
    plain = plain.set_column(0, "sample_id", plain["sample_id"].cast(pa.large_string()))
    pq.write_table(plain.select(plain.column_names[::-1]), tmp_path / "other.parquet")
    lazy = Selection.from_parquet(tmp_path / "other.parquet")
    assert lazy.table.schema == table.schema == Selection(plain).table.schema
    assert lazy.table.to_pylist() == table.to_pylist()


def test_what_is_no_selection_is_refused(tmp_path):
    good = make([0, 1], [True, False]).table
    with pytest.raises(DataError, match=r"expected the columns sample_id int64, keep bool, .* got"):
        Selection(good.drop_columns("reason"))
    with pytest.raises(DataError, match="expected the columns"):
        Selection(good.append_column("more", good["keep"]))
    with pytest.raises(DataError, match=r"each sample once, but 0 comes after 1\. Remove"):
        Selection(good.take([1, 0]))
    with pytest.raises(DataError, match="each sample once, but 0 comes after 0"):
        Selection(good.take([0, 0]))
    with pytest.raises(DataError, match="each sample once, but 0 comes after 1"):
        Selection(pa.concat_tables([good, good]))
    with pytest.raises(DataError, match="keep must not be null"):
        Selection(good.set_column(1, "keep", pa.array([True, None])))
    with pytest.raises(DataError, match=r"cannot read a selection from .*none"):
        Selection.from_parquet(tmp_path / "none")
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(DataError, match=r"Pass a file that Selection.to_parquet wrote"):
        Selection.from_parquet(tmp_path / "text")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(DataError, match="other: expected .* got a int64"):
        Selection.from_parquet(tmp_path / "other")


@pytest.mark.parametrize("repeat", [False, True])
def test_an_unsorted_file_is_refused_when_it_is_read(tmp_path, monkeypatch, repeat):
    monkeypatch.setattr(rows_module, "_BATCH", 2)
    good = make([1, 2, 3, 4], [True] * 4).table
    pq.write_table(good.take([0, 1, 1, 2] if repeat else [0, 2, 1, 3]), tmp_path / "s.parquet")
    lazy = Selection.from_parquet(tmp_path / "s.parquet")
    folder = tmp_path / "out"
    folder.mkdir()
    message = r"s\.parquet: .* sorted by sample_id, each sample once, but 2 comes after " + (
        "2" if repeat else "3"
    )
    for name in EXPORTS:
        with pytest.raises(DataError, match=message):
            EXPORTS[name](lazy, folder / "out")
    with pytest.raises(DataError, match=message):
        _ = lazy.table
    assert list(folder.iterdir()) == []


def test_a_cut_or_damaged_file_is_refused(tmp_path):
    path = tmp_path / "s.parquet"
    make(list(range(1000)), [True] * 1000).to_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="damaged or cut short since: write or copy it again"):
        Selection.from_parquet(path)
    path.write_bytes(whole[:200] + b"\xff" * 200 + whole[400:])
    lazy = Selection.from_parquet(path)
    with pytest.raises(DataError, match=r"cannot read .*s\.parquet.*damaged or cut short since"):
        lazy.to_jsonl(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_selection_cannot_be_changed():
    selection = make([0], [True])
    with pytest.raises(AttributeError):
        selection.table = None
    mask = selection.mask()
    mask[0] = False  # a copy: the caller's to change
    assert selection.mask().tolist() == [True]
    kept = selection.kept
    kept[0] = 7
    assert selection.kept.tolist() == [0]


def test_columns_for_cleanlab_and_fiftyone():
    selection = make(["a", "b"], [True, False])
    columns = selection.to_cleanlab()
    assert columns.to_pylist() == [
        {"sample_id": "a", "is_label_issue": False, "label_score": 1.0},
        {"sample_id": "b", "is_label_issue": True, "label_score": 0.0},
    ]
    assert selection.to_fiftyone() == {
        "mistakenness": {"a": 0.0, "b": 1.0},
        "is_label_issue": {"a": False, "b": True},
    }


def test_reasons_are_kept_once_each():
    selection = make(list(range(100)), [i % 2 == 0 for i in range(100)])
    assert len(selection.table["reason"].combine_chunks().dictionary) == 2
    assert rows(selection, "reason")[:2] == [("kept: so",), ("removed: so",)]
