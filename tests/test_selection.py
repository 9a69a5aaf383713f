import errno
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradmimic.curate import Selection
from gradmimic.errors import DataError

ODD = ["a\nb", 'say "hi"', "ä\u2028ö", "日本"]


def make(ids, keep):
    """A selection of sorted ids."""
    n = len(ids)
    return Selection(
        pa.table(
            {
                "sample_id": pa.array(
                    ids, pa.string() if ids and type(ids[0]) is str else pa.int64()
                ),
                "keep": pa.array(keep, pa.bool_()),
                "p_clean": pa.array([float(k) for k in keep], pa.float64()),
                "score": pa.array(np.linspace(0, 1, n)),
                "visits": pa.array([2] * n, pa.int64()),
                "reason": pa.array(["kept: so"] * n, pa.string()),
            }
        )
    )


def test_ids_and_masks_of_row_numbers():
    selection = make([0, 1, 2, 3], [True, False, True, True])
    assert len(selection) == 4
    assert selection.kept.tolist() == selection.index().tolist() == [0, 2, 3]
    assert selection.removed.tolist() == [1]
    assert selection.mask().tolist() == [True, False, True, True]
    assert selection.mask([3, 1, 1]).tolist() == [True, False, False]
    assert selection.mask(np.array([], dtype=np.int64)).tolist() == []
    assert selection.summary() == "3 of 4 samples (75.0%) are kept, judged by 8 visits."
    assert make([], []).summary() == "0 of 0 samples are kept, judged by 0 visits."


def test_masks_of_other_ids_follow_the_given_order():
    selection = make(sorted(ODD), [True, False, True, False])
    order = ODD[::-1]
    expected = [sorted(ODD).index(name) in (0, 2) for name in order]
    assert selection.mask(order).tolist() == expected
    with pytest.raises(DataError, match=r"needs the sample ids to be the row numbers 0 to 3, but"):
        selection.mask()
    with pytest.raises(DataError, match=r"2 ids are not in this selection: 'x', 'y'\. These"):
        selection.mask(["日本", "x", "y"])
    with pytest.raises(DataError, match="has string sample ids, but mask"):
        selection.mask([1])
    with pytest.raises(DataError, match=r"row numbers 0 to 1, but they are 1, 2\. Pass"):
        make([1, 2], [True, True]).mask()


def test_exports_come_back(tmp_path):
    selection = make(sorted(ODD), [True, False, True, False])
    selection.to_parquet(tmp_path / "s.parquet")
    assert Selection.from_parquet(tmp_path / "s.parquet").table.equals(selection.table)
    selection.to_jsonl(tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == selection.table.to_pylist()
    selection.to_npy(tmp_path / "s.npy")
    loaded = np.load(tmp_path / "s.npy", allow_pickle=False)
    assert loaded.tolist() == selection.kept.tolist() == [sorted(ODD)[0], sorted(ODD)[2]]
    make([0, 1], [False, True]).to_npy(tmp_path / "mask", mask=True)
    assert np.load(tmp_path / "mask").tolist() == [False, True]


@pytest.mark.parametrize("export", ["to_parquet", "to_jsonl", "to_npy"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, export):
    path = tmp_path / "out"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*out: .*No space.* then export again"):
        getattr(make([0, 1], [True, False]), export)(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert path.read_text() == "old"


def test_what_is_no_selection_is_refused(tmp_path):
    good = make([0, 1], [True, False]).table
    with pytest.raises(DataError, match=r"expected the columns sample_id int64, keep bool, .* got"):
        Selection(good.drop_columns("reason"))
    with pytest.raises(DataError, match="sorted by sample_id, each sample once"):
        Selection(good.take([1, 0]))
    with pytest.raises(DataError, match="sorted by sample_id, each sample once"):
        Selection(good.take([0, 0]))
    with pytest.raises(DataError, match=r"cannot read a selection from .*none"):
        Selection.from_parquet(tmp_path / "none")
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(DataError, match=r"Pass a file that Selection.to_parquet wrote"):
        Selection.from_parquet(tmp_path / "text")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(DataError, match="got a int64"):
        Selection.from_parquet(tmp_path / "other")


def test_a_selection_cannot_be_changed():
    selection = make([0], [True])
    with pytest.raises(AttributeError):
        selection.table = None
    mask = selection.mask()
    mask[0] = False  # a copy: the caller's to change
    assert selection.mask().tolist() == [True]
