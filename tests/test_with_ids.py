import pickle

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, random_split

from gradmimic.data import WithIds
from gradmimic.errors import DataError

DATA = TensorDataset(torch.arange(6.0)[:, None], torch.tensor([0, 1, 0, 1, 0, 1]))


def test_rows_are_numbered_where_no_ids_are_given():
    data = WithIds(DATA)
    assert len(data) == 6
    x, y, sample_id = data[3]
    assert (x.item(), y.item(), sample_id) == (3.0, 1, 3)
    assert data[-1][2] == 5
    assert [item[2] for item in data] == list(range(6))


def test_dictionaries_get_an_entry_and_bare_items_a_partner():
    assert WithIds([{"x": 1.5}], ids=["a"])[0] == {"x": 1.5, "sample_id": "a"}
    assert WithIds([7.5], ids=[40])[0] == (7.5, 40)
    assert WithIds([[1, 2, 3]])[0] == ([1, 2, 3], 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_ids_beside_what_they_name(workers):
    loader = DataLoader(WithIds(DATA, torch.arange(6) * 10), 4, shuffle=True, num_workers=workers)
    seen = []
    for x, _, ids in loader:
        assert ids.dtype == torch.int64
        assert torch.equal(ids, (x[:, 0] * 10).long())
        seen += ids.tolist()
    assert sorted(seen) == [0, 10, 20, 30, 40, 50]


def test_names_come_as_a_list():
    _, _, ids = next(iter(DataLoader(WithIds(DATA, np.array([*"abcdef"])), 3)))
    assert list(ids) == ["a", "b", "c"]


def test_parts_of_it_keep_the_ids():
    data = WithIds(DATA, ids=[*"abcdef"])
    assert [item[2] for item in Subset(data, [4, 1])] == ["e", "b"]
    first, second = random_split(data, [4, 2])
    assert sorted(item[2] for part in (first, second) for item in part) == [*"abcdef"]


def test_it_asks_for_several_items_at_once_where_the_data_set_can():
    table = datasets.Dataset.from_dict({"x": [1, 2, 3]})
    data = WithIds(table, ids=["a", "b", "c"])
    assert data.__getitems__([2, 0]) == [{"x": 3, "sample_id": "c"}, {"x": 1, "sample_id": "a"}]
    batch = next(iter(DataLoader(data, 2)))
    assert (batch["x"].tolist(), batch["sample_id"]) == ([1, 2], ["a", "b"])


def test_it_can_be_pickled_for_workers():
    copy = pickle.loads(pickle.dumps(WithIds(DATA, ids=[*"abcdef"])))  # noqa: S301
    assert copy[5][2] == "f"


class Endless(IterableDataset):
    def __iter__(self):
        yield 1


def test_a_stream_has_no_numbers():
    with pytest.raises(DataError, match="got Endless, whose samples have no lasting numbers. Let"):
        WithIds(Endless())
    with pytest.raises(
        DataError, match="expected a data set with __len__ and __getitem__, got map"
    ):
        WithIds(map(str, [1]))


def test_ids_that_name_no_sample_or_two_are_refused():
    with pytest.raises(DataError, match="one id per sample, got 2 ids for 6 samples"):
        WithIds(DATA, ids=[1, 2])
    with pytest.raises(DataError, match="two samples share an id: 'b', 'c'. Leave ids= out"):
        WithIds(DATA, ids=[*"abbccd"])
    with pytest.raises(DataError, match="sample ids must be ints or strings"):
        WithIds(DATA, ids=[0.5] * 6)
    with pytest.raises(DataError, match="the items have 'sample_id' already, 9 here"):
        _ = WithIds([{"sample_id": 9}])[0]
