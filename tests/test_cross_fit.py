import numpy as np
import pytest
import torch

from gradmimic.cross_fit import cross_fit, deal
from gradmimic.errors import DataError, ParameterError


def seen_by(n):
    """A fit that writes down who learned from whom, and predicts the fold's number."""
    calls = []

    def fit(rows):
        calls.append(rows)
        return lambda own: np.full((len(own), 3), float(len(calls)))

    return fit, calls


def test_no_sample_is_judged_by_a_model_that_saw_it():
    asked = []

    def fit(rows):
        def predict(own):
            assert not set(own) & set(rows)
            assert len(own) + len(rows) == 23
            asked.extend(own)
            return torch.from_numpy(np.stack([own, own], 1))

        return predict

    outputs = cross_fit(fit, 23, folds=4)
    assert sorted(asked) == list(range(23))
    assert outputs.dtype == torch.float32
    assert outputs.tolist() == [[row, row] for row in range(23)]  # in the order of the rows


def test_a_label_learned_by_heart_does_not_reach_its_own_sample():
    x = torch.randn(60, 2)
    labels = torch.randint(0, 2, (60,))

    def fit(rows):  # the nearest neighbour finds every label right that it has seen
        def predict(own):
            return torch.eye(2)[labels[rows[torch.cdist(x[own], x[rows]).argmin(1)]]]

        return predict

    everyone = np.arange(60)
    assert (fit(everyone)(everyone).argmax(1) == labels).all()
    assert (cross_fit(fit, 60).argmax(1) == labels).float().mean() < 0.75


@pytest.mark.parametrize("as_labels", [np.asarray, list, torch.as_tensor])
def test_each_label_is_spread_evenly(as_labels):
    labels = np.repeat([0, 1, 2], [50, 11, 4])
    fold = deal(65, 5, labels=as_labels(labels))
    counts = np.array([np.bincount(fold[labels == label], minlength=5) for label in range(3)])
    assert (counts.max(1) - counts.min(1) <= 1).all()
    assert np.ptp(np.bincount(fold)) <= 1


def test_names_serve_as_labels():
    labels = ["cat", "dog"] * 10
    fold = deal(20, 2, labels=labels)
    assert np.bincount(fold[::2]).tolist() == [5, 5]


def test_the_seed_alone_decides():
    fit, calls = seen_by(20)
    first = cross_fit(fit, 20, seed=3)
    torch.manual_seed(99)
    again, other = seen_by(20), seen_by(20)
    assert torch.equal(first, cross_fit(again[0], 20, seed=3))
    assert all((a == b).all() for a, b in zip(calls, again[1], strict=True))
    assert not torch.equal(first, cross_fit(other[0], 20, seed=4))


def test_it_draws_no_number_of_the_callers():
    before = torch.random.get_rng_state()
    cross_fit(seen_by(9)[0], 9, folds=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_as_many_folds_as_samples_leave_one_out():
    fit, calls = seen_by(4)
    cross_fit(fit, 4, folds=4)
    assert [len(rows) for rows in calls] == [3, 3, 3, 3]


def test_outputs_come_without_a_graph():
    weight = torch.ones(1, 2, requires_grad=True)
    outputs = cross_fit(lambda _rows: lambda own: torch.ones(len(own), 1) @ weight, 6, folds=2)
    assert not outputs.requires_grad


@pytest.mark.parametrize(
    ("n", "folds", "match"),
    [
        (10, 1, "expected from 2 folds .* got folds=1"),
        (10, 11, r"as many as there are samples \(10\), got folds=11"),
        (1, 2, "More samples are needed"),
        (0, 5, "More samples are needed"),
    ],
)
def test_too_few_or_too_many_folds(n, folds, match):
    with pytest.raises(ParameterError, match=match):
        cross_fit(seen_by(n)[0], n, folds=folds)


@pytest.mark.parametrize("labels", [[0] * 9, np.zeros((10, 1))])
def test_one_label_per_sample(labels):
    with pytest.raises(DataError, match=r"expected one label per sample, \[10\], got \["):
        cross_fit(seen_by(10)[0], 10, labels=labels)


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (lambda own: torch.zeros(len(own) + 1, 3), r"fold 0: .* asked for 5 rows .*\[6, 3\]"),
        (lambda own: torch.zeros(len(own)), r"returned shape \[5\]; expected \[5, K\]"),
        (lambda own: torch.full((len(own), 2), torch.nan), "fold 0: .*NaN .* 5 of 5 rows.*diverge"),
        (lambda own: torch.full((len(own), 2), torch.inf), "NaN or infinite"),
    ],
)  # fmt: skip
def test_what_predict_must_return(returned, match):
    with pytest.raises(DataError, match=match):
        cross_fit(lambda _rows: returned, 10, folds=2)


def test_all_folds_are_equally_wide():
    def fit(rows):
        return lambda own: torch.zeros(len(own), 3 if 0 in rows else 2)

    with pytest.raises(DataError, match=r"expected \[2, \d\].*give every fold's model all of them"):
        cross_fit(fit, 6, folds=3)


def test_the_first_bad_row_is_named():
    def fit(_rows):
        return lambda own: np.where(own[:, None] == 7, np.nan, 0.0)

    with pytest.raises(DataError, match="1 of .* rows, the first of them row 7"):
        cross_fit(fit, 10)
