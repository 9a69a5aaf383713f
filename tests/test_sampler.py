import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT
from torch.utils.data import DataLoader, Subset, TensorDataset

from gradmimic.curate import Selection
from gradmimic.data import WithIds
from gradmimic.errors import ConfigError, DataError

SCORES = Selection.from_scores([0, 1, 2, 3], [0.9, -0.8, 1.1, -1.0])
KEPT = SCORES.above(0.0)
# p_clean of the samples 0 to 3
LIKELY = Selection(
    KEPT.table.set_column(
        KEPT.table.column_names.index("p_clean"), "p_clean", pa.array([0.9, 0.1, 1.0, 0.0])
    )
)


def counts(sampler):
    return Counter(sampler)


def test_a_filter_gives_every_kept_row_once_in_an_order_that_the_generator_decides():
    selection = Selection.from_scores(range(50), np.arange(50.0)).top(0.5)
    orders = [
        list(selection.sampler(generator=torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)
    ]
    assert sorted(orders[0]) == list(range(25, 50)) != orders[0]
    assert orders[0] == orders[1] != orders[2]


def test_every_epoch_has_another_order():
    sampler = Selection.from_scores(range(50), np.arange(50.0)).sampler()
    assert len(sampler) == 50
    assert list(sampler) != list(sampler)


def test_rows_are_found_by_the_ids_of_the_data_set():
    selection = Selection.from_scores(["a", "b", "c"], [1.0, -1.0, 1.0]).above(0.0)
    data = WithIds(TensorDataset(torch.arange(4.0)), ids=["b", "c", "b2", "a"])
    with pytest.raises(DataError, match=r"1 ids are not in this selection: 'b2'. These samples"):
        selection.sampler(data.ids)
    data = WithIds(TensorDataset(torch.arange(3.0)), ids=["b", "c", "a"])
    loader = DataLoader(data, batch_size=1, sampler=selection.sampler(data.ids))
    assert sorted((x.item(), ids[0]) for x, ids in loader) == [(1.0, "c"), (2.0, "a")]
    part = Subset(data, np.flatnonzero(selection.mask(data.ids)).tolist())
    assert [ids for _, ids in part] == ["c", "a"]


def test_draws_follow_the_probabilities():
    chance = torch.Generator().manual_seed(0)
    sampler = LIKELY.sampler(weights="p_clean", num_samples=20_000, generator=chance)
    drawn = counts(sampler)
    assert sum(drawn.values()) == 20_000
    assert set(drawn) == {0, 1, 2}
    for row, p in ((0, 0.45), (1, 0.05), (2, 0.5)):
        assert drawn[row] / 20_000 == pytest.approx(p, abs=0.01)


def test_draws_follow_the_softmax_of_the_scores():
    chance = torch.Generator().manual_seed(0)
    order = [3, 2, 1, 0]
    sampler = SCORES.sampler(
        order, weights="score", temperature=0.5, num_samples=20_000, generator=chance
    )
    expected = torch.tensor([-1.0, 1.1, -0.8, 0.9], dtype=torch.float64).div(0.5).exp()
    drawn = counts(sampler)
    for row, p in enumerate((expected / expected.sum()).tolist()):
        assert drawn[row] / 20_000 == pytest.approx(p, abs=0.01)
    assert len(SCORES.sampler(weights="score")) == 4


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ConfigError, match="weights='loss' is unknown; expected 'keep', 'p_clean'"):
        SCORES.sampler(weights="loss")
    with pytest.raises(ConfigError, match="every kept row once, not num_samples=3"):
        KEPT.sampler(num_samples=3)
    with pytest.raises(DataError, match="none of 4 samples is kept"):
        SCORES.above(2.0).sampler()
    with pytest.raises(DataError, match="p_clean is not known of 4 of 4 samples: scores alone are"):
        KEPT.sampler(weights="p_clean")
    for tau in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="expected a finite temperature above 0"):
            KEPT.sampler(weights="score", temperature=tau)
    with pytest.raises(DataError, match="from 1 to 16,777,216 rows, got 0"):
        SCORES.sampler([], weights="score")
    with pytest.raises(DataError, match="all 1 samples have p_clean 0"):
        LIKELY.sampler([3], weights="p_clean")


@pytest.mark.slow
def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "pytorch.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(re.findall(r"^(.+?)  +([0-9.]+)%", done.stdout, re.MULTILINE))
    assert float(found["re-weighted"]) > float(found["plain"]) + 1
    assert float(found["plain again, by 'keep'"]) > float(found["plain"])
