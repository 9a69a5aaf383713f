import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selections import check_full_disk, make

from gradmimic.curate import Selection
from gradmimic.curate import rows as rows_module
from gradmimic.curate.datacomp import UID, read_datacomp, write_datacomp
from gradmimic.errors import DataError

uids = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
A, B, C = "0" * 31 + "a", "00" + "b" * 30, "f" * 32


def documented(kept):
    """The array as DataComp's README makes it."""
    pairs = [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in kept]
    array = np.array(pairs, np.dtype("u8,u8"))
    array.sort()
    return array


@given(
    kept=st.dictionaries(uids, st.booleans(), max_size=9),
    batch=st.integers(1, 4),
    case=st.sampled_from([str.lower, str.upper, str.title]),  # str.title mixes the cases
)
def test_the_file_is_the_one_that_the_readme_makes(tmp_path_factory, kept, batch, case):
    path = tmp_path_factory.mktemp("datacomp") / "subset.npy"
    kept = {case(uid): keep for uid, keep in kept.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows_module, "_BATCH", batch)
        written = make(sorted(kept), [kept[uid] for uid in sorted(kept)]).to_datacomp(path)
    expected = documented(uid for uid, keep in kept.items() if keep)
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    assert loaded.dtype == UID == np.dtype("u8,u8")
    assert loaded.tolist() == expected.tolist()
    assert written == len(expected)
    np.save(path.with_name("documented.npy"), expected)
    assert path.read_bytes() == path.with_name("documented.npy").read_bytes()
    assert read_datacomp(path).tolist() == sorted(uid.lower() for uid, keep in kept.items() if keep)


def test_the_resharder_finds_and_repeats_samples(tmp_path):
    path = tmp_path / "subset.npy"
    selection = make([A, B, C], [True, False, True])
    assert write_datacomp(selection, path, multiplicity={C: 3}) == 4
    subset = np.load(path, mmap_mode="r")
    for uid, times in [(A, 1), (B, 0), (C, 3)]:  # as resharder.py looks a sample up
        key = np.array([divmod(int(uid, 16), 2**64)], UID)[0]
        left, right = (np.searchsorted(subset, key, side) for side in ("left", "right"))
        assert right - left == times


@given(
    kept=st.dictionaries(uids, st.tuples(st.booleans(), st.integers(0, 3)), max_size=9),
    batch=st.integers(1, 4),
    mixed=st.booleans(),
)
def test_multiplicities_repeat_uids(tmp_path_factory, kept, batch, mixed):
    path = tmp_path_factory.mktemp("datacomp") / "subset.npy"
    kept = {uid.title() if mixed else uid: value for uid, value in kept.items()}
    times = {uid: k for uid, (keep, k) in kept.items() if keep and k}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows_module, "_BATCH", batch)
        selection = make(sorted(kept), [kept[uid][0] for uid in sorted(kept)])
        selection.to_datacomp(path, multiplicity=(list(times), list(times.values())))
    expected = [uid for uid, (keep, k) in kept.items() if keep for _ in range(k or 1)]
    assert np.load(path).tolist() == documented(expected).tolist()


def test_multiplicities_that_do_not_fit(tmp_path):
    selection = make([A, B, C], [True, False, True])
    for strange in (B, "0" * 32, "z"):
        with pytest.raises(DataError, match=rf"samples that are not kept: '{strange}'\. Pass"):
            selection.to_datacomp(tmp_path / "s.npy", multiplicity={strange: 2, A: 1})
    with pytest.raises(DataError, match=f"a multiplicity is at least 1, but '{A}' has 0. To leave"):
        selection.to_datacomp(tmp_path / "s.npy", multiplicity={A: 0})
    with pytest.raises(DataError, match="are whole numbers by uid, but came as double by string"):
        selection.to_datacomp(tmp_path / "s.npy", multiplicity={A: 1.5})
    with pytest.raises(DataError, match="came as int64 by int64 id"):
        selection.to_datacomp(tmp_path / "s.npy", multiplicity={7: 2})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("odd", ["a" * 31, "g" * 32, "+" + "1" * 31, " " + "1" * 31, "ä" * 16])
def test_ids_that_are_no_uids_are_refused(tmp_path, odd):
    selection = make(sorted([A, odd]), [True, True])
    with pytest.raises(
        DataError, match=r"32 hexadecimal digits, but .* is none\. Train with the "
    ) as e:
        selection.to_datacomp(tmp_path / "s.npy")
    assert repr(odd) in str(e.value)
    assert list(tmp_path.iterdir()) == []
    make(sorted([A, odd]), [name == A for name in sorted([A, odd])]).to_datacomp(tmp_path / "s")


def test_integer_ids_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"32 hexadecimal digits, but this selection has int64 ids"):
        make([1], [True]).to_datacomp(tmp_path / "s.npy")
    assert make([], []).to_datacomp(tmp_path / "none.npy") == 0
    assert np.load(tmp_path / "none.npy").dtype == UID


def test_uids_that_collide_as_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match=rf"1 uids collide: .* case only, .* of {B}\. Give every"):
        make([B.upper(), B, C], [True] * 3).to_datacomp(tmp_path / "s.npy")
    assert list(tmp_path.iterdir()) == []
    make([B.upper(), B, C], [False, True, True]).to_datacomp(tmp_path / "s.npy")


@pytest.mark.parametrize("multiplicity", [None, {B: 2}])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, multiplicity):
    selection = make([A, B.upper(), C], [True] * 3) if multiplicity is None else make([B], [True])
    check_full_disk(
        lambda path: selection.to_datacomp(path, multiplicity=multiplicity),
        tmp_path / "s.npy",
        monkeypatch,
    )


def test_a_file_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_BATCH", 1)
    make([A, B, C], [True, False, True]).to_parquet(tmp_path / "s.parquet")
    Selection.from_parquet(tmp_path / "s.parquet").to_datacomp(tmp_path / "s.npy")
    assert read_datacomp(tmp_path / "s.npy").tolist() == [A, C]


def test_what_is_no_subset_file_is_refused(tmp_path):
    path = tmp_path / "s.npy"
    np.save(path, np.arange(3))
    with pytest.raises(DataError, match=r'expected a one-dim.*"u8,u8"\), got int64 \(3,\)'):
        read_datacomp(path)
    make([A], [True]).to_datacomp(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cannot read .*s\.npy.*damaged or cut short since"):
        read_datacomp(path)
    np.savez(tmp_path / "s.npz", np.zeros(1, UID))
    with pytest.raises(DataError, match="got an archive"):
        read_datacomp(tmp_path / "s.npz")
