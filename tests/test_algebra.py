import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selections import ODD, make, rows

from gradmimic.curate import Selection
from gradmimic.curate import rows as rows_module
from gradmimic.errors import ConfigError, DataError

KEEP = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "-": lambda a, b: a - b,
}
# NumPy's strings, in which kept ids are handed on, cannot end in a zero byte.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
decisions = st.one_of(
    st.dictionaries(TEXTS, st.booleans(), max_size=12),
    st.dictionaries(st.integers(-4, 9), st.booleans(), max_size=12),
)


def of(kept):
    """A selection of a mapping from id to keep."""
    return make(sorted(kept), [kept[key] for key in sorted(kept)])


@pytest.mark.parametrize("operation", KEEP)
@given(left=decisions, right=decisions, batch=st.integers(1, 5))
def test_operations_are_those_of_sets_of_kept_ids(operation, left, right, batch):
    if left and right and type(min(left)) is not type(min(right)):
        with pytest.raises(DataError, match=r"left has (int64|string) ids and the right (i|s)"):
            KEEP[operation](of(left), of(right))
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows_module, "_BATCH", batch)
        result = KEEP[operation](of(left), of(right))
    expected = KEEP[operation](
        {key for key, keep in left.items() if keep}, {key for key, keep in right.items() if keep}
    )
    assert set(result.kept.tolist()) == expected
    assert result.table["sample_id"].to_pylist() == sorted(left | right)
    for keep, reason in rows(result, "keep", "reason"):
        assert reason.startswith("kept" if keep else "removed")


def test_reasons_say_which_side_decided():
    a, b = of({1: True, 2: True, 3: False, 4: True}), of({1: True, 2: False, 3: True, 5: True})
    assert rows(a & b, "reason") == [
        ("kept by both (left kept: so; right kept: so)",),
        ("removed by right (left kept: so; right removed: so)",),
        ("removed by left (left removed: so; right kept: so)",),
        ("removed by right (left kept: so; right does not know it)",),
        ("removed by left (left does not know it; right kept: so)",),
    ]
    assert rows(a - b, "keep", "reason")[0] == (
        False,
        "removed by subtracting right (left kept: so; right kept: so)",
    )
    assert rows(a | b, "reason")[4] == ("kept by right (left does not know it; right kept: so)",)


def test_numbers_are_the_left_sides_where_it_has_them():
    left = Selection.from_scores(["a", "b"], [7.0, 8.0])
    right = make(["b", "c"], [True, False], [0.1, 0.2])
    assert rows(left | right, "sample_id", "score", "visits", "p_clean") == [
        ("a", 7.0, 1, None),
        ("b", 8.0, 1, 1.0),
        ("c", 0.2, 2, 0.0),
    ]


def test_selections_combine_with_selections_only():
    with pytest.raises(DataError, match="combines with a selection only, but list came. Make one"):
        _ = make([1], [True]) & [1]


def test_the_issues_example():
    clip = Selection.from_scores(np.arange(10), np.arange(10.0))
    mimic = Selection.from_scores(np.arange(20), -np.arange(20.0))
    assert clip.top(0.30).kept.tolist() == [7, 8, 9]
    assert mimic.bottom(0.55).kept.tolist() == list(range(9, 20))
    assert (clip.top(0.30) - mimic.bottom(0.55)).kept.tolist() == [7, 8]


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=20),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_one_order_ranks_by_score_then_by_id(scores, fraction, seed):
    n, k = len(scores), round(fraction * len(scores))
    shuffled = np.random.default_rng(seed).permutation(n)
    ids = [f"{row:03d}" for row in shuffled]
    selection = Selection.from_scores(ids, [scores[row] for row in shuffled])
    order = [f"{row:03d}" for row in sorted(range(n), key=lambda row: (-scores[row], row))]
    assert selection.top(fraction).kept.tolist() == sorted(order[:k])
    assert selection.bottom(fraction).kept.tolist() == sorted(order[n - k :])


def test_rankings_say_why():
    ranked = Selection.from_scores([1, 2, 3, 4], [0.5, 0.25, 0.125, 1.0]).top(0.5)
    assert rows(ranked, "keep", "reason")[:2] == [
        (True, "kept: among the 2 of 4 samples with the highest scores, 0.5 and up"),
        (False, "removed: not among the 2 of 4 samples with the highest scores, 0.5 and up"),
    ]
    below = rows(ranked.bottom(0.25), "reason")[2]
    assert below == ("kept: among the 1 of 4 samples with the lowest scores, 0.125 and down",)
    above = ranked.above(0.5)
    assert above.kept.tolist() == [1, 4]
    assert rows(above, "reason")[1] == ("removed: the score is below 0.5",)
    assert above.table["score"].to_pylist() == [0.5, 0.25, 0.125, 1.0]


@pytest.mark.parametrize("fraction", [30, -0.1, float("nan"), "0.3", True, None])
def test_a_fraction_lies_between_0_and_1(fraction):
    with pytest.raises(ConfigError, match="a fraction is a number from 0 to 1, got"):
        make([1], [True]).top(fraction)


def test_a_threshold_is_a_number():
    with pytest.raises(ConfigError, match="the threshold must be a number, got nan"):
        make([1], [True]).above(float("nan"))


def test_what_cannot_be_ranked_is_named():
    selection = make(["a", "b", "c"], [True] * 3, [0.5, float("nan"), float("-inf")])
    with pytest.raises(DataError, match=r"2 samples cannot be ranked.*finite: 'b', 'c'\. Leave"):
        selection.top(0.5)


def test_quotas_per_class():
    scores = Selection.from_scores([5, 6, 7, 8, 9], [0.1, 0.9, 0.5, 0.5, 0.2])
    labels = {5: "cat", 6: "cat", 7: "dog", 8: "dog", 9: "dog", 10: "cow"}
    assert scores.per_class(labels, quota=1).kept.tolist() == [6, 7]
    assert scores.per_class(labels, quota={"cat": 7, "dog": 0}).kept.tolist() == [5, 6]
    assert scores.per_class(labels, fraction=0.5).kept.tolist() == [6, 7, 8]
    by_number = scores.per_class((np.arange(5, 10), np.array([0, 0, 1, 1, 1])), quota=2)
    assert by_number.kept.tolist() == [5, 6, 7, 8]
    assert rows(scores.per_class(labels, quota=1), "reason")[4] == (
        "removed: not among the 1 of 3 samples of class 'dog' with the highest scores",
    )


def test_labels_and_quotas_that_do_not_fit():
    scores = Selection.from_scores([1, 2], [0.1, 0.2])
    with pytest.raises(DataError, match=r"1 samples have no label: 2\. Pass a label for every"):
        scores.per_class({1: "cat"}, quota=1)
    with pytest.raises(DataError, match="has int64 sample ids, but the labels came with string"):
        scores.per_class({"1": "cat", "2": "cat"}, quota=1)
    with pytest.raises(DataError, match=r"two different labels: 1; 1 has 'cat' and 'dog'"):
        scores.per_class(([1, 1, 2], ["cat", "dog", "cat"]), quota=1)
    with pytest.raises(DataError, match=r"2 sample ids came with 1 labels\. Pass one for each"):
        scores.per_class(([1, 2], ["cat"]), quota=1)
    with pytest.raises(DataError, match="labels are null for 1 samples: 2"):
        scores.per_class({1: "cat", 2: None}, quota=1)
    with pytest.raises(DataError, match="must be one list or array of one kind of values"):
        scores.per_class({1: "cat", 2: 3}, quota=1)
    with pytest.raises(DataError, match=r"expected labels as a mapping from id, or as a pair"):
        scores.per_class(["cat", "dog"], quota=1)
    with pytest.raises(DataError, match=r"1 classes have no quota, e\.g\. \['dog'\]\. Give each"):
        scores.per_class({1: "cat", 2: "dog"}, quota={"cat": 1})
    with pytest.raises(ConfigError, match="a quota is a whole number of samples, got -1"):
        scores.per_class({1: 0, 2: 0}, quota=-1)
    for both in ({}, {"quota": 1, "fraction": 0.5}):
        with pytest.raises(ConfigError, match="pass one of them"):
            scores.per_class({1: 0, 2: 0}, **both)


def test_scores_from_elsewhere_are_sorted_and_taken_once():
    selection = Selection.from_scores(["b", "a", "b", "c"], [0.5, 1, 0.5, 2])
    assert rows(selection, "sample_id", "keep", "score", "visits", "p_clean") == [
        ("a", True, 1.0, 1, None),
        ("b", True, 0.5, 1, None),
        ("c", True, 2.0, 1, None),
    ]
    assert len(Selection.from_scores([], [])) == 0
    assert (
        Selection.from_scores(np.array([2, 1], np.uint8), np.array([1, 2], np.float32)).kept[0] == 1
    )
    assert Selection.from_scores(pa.array(["b", "a"]).dictionary_encode(), [1, 2]).kept[0] == "a"


def test_scores_that_do_not_fit():
    with pytest.raises(
        DataError, match=r"two different scores: 'a'; 'a' has 0\.5 and 0\.7.*e\.g\. "
    ):
        Selection.from_scores(["a", "b", "a"], [0.5, 0.1, 0.7])
    with pytest.raises(DataError, match=r"3 scores are missing or not finite.*'b', 'c', 'd'\. L"):
        Selection.from_scores(list("abcd"), [0.5, float("nan"), float("inf"), None])
    with pytest.raises(DataError, match=r"2 sample ids came with 1 scores\. Pass one for each"):
        Selection.from_scores([1, 2], [0.5])
    with pytest.raises(DataError, match="scores must be numbers, but came as string"):
        Selection.from_scores([1], ["high"])
    with pytest.raises(DataError, match="sample ids must be ints or strings, but came as double"):
        Selection.from_scores(pa.array([1.0]), [0.5])
    with pytest.raises(DataError, match="1 sample ids are null"):
        Selection.from_scores(pa.array([1, None]), [0.5, 0.5])
    with pytest.raises(DataError, match=r"do not fit int64 .*Use strings"):
        Selection.from_scores(pa.array([2**63], pa.uint64()), [0.5])


NAMES = ['i"d; DROP', "sc.ore; --"]


def test_columns_are_found_by_any_name(tmp_path):
    table = pa.table({NAMES[0]: ODD, "sc": [{"ore; --": 7}] * 5, NAMES[1]: [5.0, 4, 3, 2, 1]})
    expected = sorted(zip(ODD, [5.0, 4, 3, 2, 1], strict=True))
    pq.write_table(table, tmp_path / "clip.parquet")
    pa_csv.write_csv(table.drop_columns("sc"), tmp_path / "clip.csv")
    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(table.slice(0, 2), folder / "0.parquet")
    pq.write_table(table.slice(2), folder / "1.parquet")
    for source in (table, tmp_path / "clip.parquet", str(tmp_path / "clip.csv"), folder):
        selection = Selection.from_table(source, id=NAMES[0], score=NAMES[1])
        assert rows(selection, "sample_id", "score") == expected


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        (["10", "9", "-3"], [-3, 9, 10]),
        (["007", "7"], ["007", "7"]),
        (["NA", "1e5"], ["1e5", "NA"]),
    ],
)
def test_ids_of_a_csv_stay_what_they_are(tmp_path, written, ids):
    path = tmp_path / "scores.csv"
    path.write_text("id,score\n" + "".join(f"{name},0.5\n" for name in written))
    assert Selection.from_table(path, id="id", score="score").kept.tolist() == ids


def test_tables_that_do_not_fit(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("id,score\na,0.5\n")
    with pytest.raises(
        DataError, match=r"scores\.csv has no column 'ids'. There are 'id', 'score'"
    ):
        Selection.from_table(path, id="ids", score="score")
    path.write_text("id,score\na,high\n")
    with pytest.raises(DataError, match=r"cannot read .*scores\.csv.*'high'.* column of numbers"):
        Selection.from_table(path, id="id", score="score")
    with pytest.raises(DataError, match=r"cannot read .*none\.parquet"):
        Selection.from_table(tmp_path / "none.parquet", id="id", score="score")
    with pytest.raises(DataError, match=r"expected a \.parquet or a \.csv file, .* got .*s\.txt"):
        Selection.from_table(tmp_path / "s.txt", id="id", score="score")
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    with pytest.raises(DataError, match="the table has 2 columns 'id'"):
        Selection.from_table(twice, id="id", score="id")
