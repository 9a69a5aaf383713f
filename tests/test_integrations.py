import gc
import json
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selections import ODD, make

from gradmimic.curate import Selection
from gradmimic.curate.lookup import KeptIds
from gradmimic.errors import DataError, LogError, MissingExtraError
from gradmimic.integrations import hf_datasets
from gradmimic.integrations.webdataset import keep
from gradmimic.log import ScoreLog

# webdataset leaves closing its shards to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
UIDS = [f"{number:032x}" for number in (3, 2**64, 2**64 + 1, 2**127, 2**128 - 1)]


def test_extras_are_named_when_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradmimic\[datasets\]'"):
        hf_datasets.select(None, make([1], [True]))


@given(
    kept=st.one_of(
        st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.booleans(), max_size=9),
        st.dictionaries(st.text(max_size=3), st.booleans(), max_size=9),
        st.dictionaries(st.sampled_from(UIDS + [uid.upper() for uid in UIDS]), st.booleans()),
    ),
    strangers=st.lists(st.one_of(st.integers(), st.text(max_size=3), st.sampled_from(UIDS))),
)
def test_a_lookup_finds_kept_ids_only(kept, strangers):
    selection = make(sorted(kept), [kept[key] for key in sorted(kept)])
    lookup = pickle.loads(pickle.dumps(KeptIds(selection)))  # noqa: S301
    assert len(lookup) == sum(kept.values())
    kind = int if selection.id_type == "int64" else str
    for key in [*kept, *(key for key in strangers if isinstance(key, kind))]:
        same = {key, str(key).upper(), str(key).lower()} if str(key).lower() in UIDS else {key}
        assert (key in lookup) == any(kept.get(spelling) for spelling in same)


def test_a_lookup_refuses_ids_of_another_kind():
    with pytest.raises(DataError, match=r"has integer sample ids, but was asked for '7' \(str\)"):
        _ = "7" in KeptIds(make([7], [True]))
    with pytest.raises(DataError, match=r"has string sample ids, but was asked for 7 \(int\)"):
        _ = 7 in KeptIds(make(["7"], [True]))


@pytest.fixture
def wds():
    yield pytest.importorskip("webdataset", reason="needs the extra 'webdataset'")
    gc.collect()


def write_shard(wds, path, samples):
    with wds.TarWriter(str(path)) as shard:
        for key, uid in samples:
            shard.write({"__key__": key, "txt": f"text of {key}", "json": {"uid": uid}})


def test_shards_are_filtered_inside_a_pipeline(tmp_path, wds):
    write_shard(wds, tmp_path / "0.tar", [(f"{i:03d}", uid) for i, uid in enumerate(UIDS)])

    def keys(predicate, decode=False):
        shards = wds.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
        shards = shards.decode() if decode else shards
        return [sample["__key__"] for sample in shards.select(predicate)]

    by_key = make([f"{i:03d}" for i in range(5)], [True, False, True, False, True])
    assert keys(keep(by_key)) == ["000", "002", "004"]
    by_uid = make(UIDS, [False, True, True, False, False])
    assert keys(keep(by_uid, "json:uid")) == ["001", "002"]
    assert keys(keep(by_uid, "json:uid"), decode=True) == ["001", "002"]
    by_text = make(["text of 001", "text of 009"], [True, True])
    assert keys(keep(by_text, "txt")) == ["001"]
    by_number = make([0, 1, 3], [True, False, True])
    assert keys(keep(by_number, lambda sample: int(sample["__key__"]))) == ["000", "003"]


def test_workers_filter_too(tmp_path, wds):
    for shard in range(2):
        keys = [f"{10 * shard + i:03d}" for i in range(5)]
        write_shard(wds, tmp_path / f"{shard}.tar", [(key, "") for key in keys])
    selection = make(["001", "002", "011"], [True, False, True])
    shards = [str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]
    pipeline = wds.WebDataset(shards, shardshuffle=False).select(keep(selection))
    loader = wds.WebLoader(pipeline, num_workers=2, batch_size=None)
    assert sorted(sample["__key__"] for sample in loader) == ["001", "011"]


def test_real_shards(shared_data, wds):
    tar = str(shared_data / "cc12m" / "cc12m-train-0000.tar")
    with tarfile.open(tar) as shard:
        ids = sorted({name.split(".")[0] for name in shard.getnames()})
    selection = Selection.from_scores(ids, np.arange(len(ids))).top(0.25)
    for key in ("__key__", "json:key"):
        samples = wds.WebDataset(tar, shardshuffle=False).select(keep(selection, key))
        assert sorted(sample["__key__"] for sample in samples) == selection.kept.tolist()
    assert len(selection.kept) == 8


def test_samples_without_an_id_are_named():
    selection = make(["a"], [True])
    with pytest.raises(DataError, match=r"no 'json'; it has \['__key__', 'jpg'\]\. Pass where its"):
        keep(selection, "json:uid")({"__key__": "a", "jpg": b""})
    with pytest.raises(DataError, match=r"'json' of sample 'a' holds no field 'uid' \(KeyError"):
        keep(selection, "json:uid")({"__key__": "a", "json": json.dumps({"url": 1}).encode()})
    with pytest.raises(DataError, match=r"holds no field 'uid' \(JSONDecodeError"):
        keep(selection, "json:uid")({"__key__": "a", "json": b"{"})
    with pytest.raises(DataError, match=r"has string sample ids, but was asked for 7"):
        keep(selection, "json:uid")({"__key__": "a", "json": {"uid": 7}})


def test_a_wrong_key_is_warned_of_once():
    kept = keep(make(["a", "b"], [True, False]))
    for _ in range(59):
        assert not kept({"__key__": "x"})
    with pytest.warns(UserWarning, match=r"keeps 50\.0% .* the last with the id 'x'\. .*'__key__'"):
        assert not kept({"__key__": "x"})
    assert not kept({"__key__": "x"})
    kept = keep(make(["a", "b"], [True, False]))
    assert kept({"__key__": "a"})
    for _ in range(100):
        assert not kept({"__key__": "x"})


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="needs the extra 'datasets'")


def test_a_data_set_keeps_its_order_and_other_columns(datasets):
    names = ODD[::-1]
    data = datasets.Dataset.from_dict({"i'd\"; --": names, "n": list(range(5))})
    selection = make(sorted(ODD), [name in names[:2] for name in sorted(ODD)])
    assert hf_datasets.select(data, selection, "i'd\"; --")["n"][:] == [0, 1]
    shuffled = data.select([4, 1, 0])  # rows by way of an index
    assert hf_datasets.select(shuffled, selection, "i'd\"; --")["n"][:] == [1, 0]
    by_row = make(list(range(5)), [True, False, False, True, True])
    assert hf_datasets.select(data, by_row)["n"][:] == [0, 3, 4]


def test_columns_are_added_in_the_data_sets_order(datasets):
    data = datasets.Dataset.from_dict({"name": ["c", "a", "b"]}).select([2, 0])
    selection = make(["a", "b", "c"], [True, False, True], [1.0, 2.0, 3.0])
    added = hf_datasets.add_columns(data, selection, "name")
    assert added.to_dict() == {
        "name": ["b", "c"],
        "keep": [False, True],
        "p_clean": [0.0, 1.0],
        "score": [2.0, 3.0],
    }
    scores = Selection.from_scores([0, 1], [5.0, 6.0])
    assert hf_datasets.add_columns(data, scores)["p_clean"][:] == [None, None]
    with pytest.raises(DataError, match=r"has columns \['keep', 'p_clean', 'score'\] already"):
        hf_datasets.add_columns(added, selection, "name")


def test_data_sets_that_are_streamed_are_filtered(datasets):
    data = datasets.Dataset.from_dict({"name": ["a", "b", "x"]}).to_iterable_dataset()
    selection = make(["a", "b"], [False, True])
    assert list(hf_datasets.select(data, selection, "name")) == [{"name": "b"}]
    with pytest.raises(DataError, match=r"have no lasting numbers\. Pass the column"):
        hf_datasets.select(data, selection)


def test_data_sets_that_do_not_fit(datasets):
    data = datasets.Dataset.from_dict({"name": ["a", "b"]})
    selection = make(["a"], [True])
    with pytest.raises(DataError, match=r"1 ids are not in this selection: 'b'"):
        hf_datasets.select(data, selection, "name")
    with pytest.raises(DataError, match=r"no column 'id'; it has \['name'\]"):
        hf_datasets.select(data, selection, "id")
    with pytest.raises(DataError, match=r"knows 1 samples by string ids, .* numbers of 2 rows"):
        hf_datasets.select(data, selection)
    with pytest.raises(DataError, match=r"knows 3 samples by int64 ids, .* numbers of 2 rows"):
        hf_datasets.select(data, make([0, 1, 2], [True] * 3))
    with pytest.raises(DataError, match=r"1 ids are not in this selection: 1\."):
        hf_datasets.add_columns(data, make([0], [True]))
    splits = datasets.DatasetDict({"train": data})
    with pytest.raises(
        DataError, match=r"got DatasetDict\. Pass one split, e\.g\. dataset\['train"
    ):
        hf_datasets.select(splits, selection, "name")
    with pytest.raises(DataError, match=r"expected a datasets\.Dataset, got list\. Pass one split"):
        hf_datasets.add_columns([1], selection)


def visited(path, ids):
    """Three samples at once, and then the first two of them again."""
    log = ScoreLog(path)
    log.append(ids, [1.0, -1.0, 0.5], [0.5, 0.1, 0.4], [0.1] * 3, epoch=0, step=0)
    log.append(ids[:2], [2.0, 0.0], [0.4, 0.6], [0.1] * 2, epoch=1, step=1)
    return log


@pytest.mark.parametrize("ids", [[3, 0, 2], ["d", "a", "c"]])
def test_scores_of_a_log_come_beside_the_rows(datasets, tmp_path, ids):
    data = datasets.Dataset.from_dict({"n": [0, 1, 2, 3]})
    if ids[0] == "d":
        data = data.add_column("sample_id", ["a", "b", "c", "d"])
    scored = hf_datasets.add_scores(data.select([3, 2, 1, 0]) if ids[0] == "d" else data,
                                    visited(tmp_path, ids))  # fmt: skip
    expected = {0: (-0.5, 0.5, 2), 1: (None, None, 0), 2: (0.5, 1.0, 1), 3: (1.5, 0.5, 2)}
    names = ("mimic_score", "mimic_kept", "mimic_visits")
    assert {row["n"]: tuple(row[name] for name in names) for row in scored} == expected


def test_scores_that_are_not_of_these_rows(datasets, tmp_path):
    data = datasets.Dataset.from_dict({"n": [0, 1, 2, 3], "name": ["a", "b", "c", "d"]})
    log = visited(tmp_path, [3, 0, 7])
    with pytest.raises(DataError, match=r"has sample 7, and the data set 4 rows.*trained on"):
        hf_datasets.add_scores(data, log)
    with pytest.raises(DataError, match=r"has int64 sample ids, and the data set string ones"):
        hf_datasets.add_scores(data, log, "name")
    with pytest.raises(LogError, match="has no scorer 'other'"):
        hf_datasets.add_scores(data, log, "n", scorer="other")
    added = hf_datasets.add_scores(data, log, "n")
    assert added["mimic_visits"][:] == [2, 0, 0, 2]
    with pytest.raises(DataError, match=r"has columns \['mimic_score', 'mimic_kept', 'mimic_vis"):
        hf_datasets.add_scores(added, log, "n")
