from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmimic.data import pair_flip, symmetric
from gradmimic.errors import ConfigError, DataError

both = pytest.mark.parametrize("noise", [symmetric, pair_flip])


@both
@given(hundredths=st.integers(0, 100), n=st.integers(0, 300), k=st.integers(2, 12))
def test_exactly_the_floor_of_the_rate_is_wrong(noise, hundredths, n, k):
    clean = np.arange(n) % k
    noisy = noise(clean, hundredths / 100, k, seed=n)
    assert (noisy != clean).sum() == hundredths * n // 100
    assert noisy.dtype == np.int64
    assert ((noisy >= 0) & (noisy < k)).all()


@both
@pytest.mark.parametrize(("rate", "n", "wrong"), [(0.29, 100, 29), (1 / 3, 3, 1), (0.7, 10, 7)])
def test_binary_rounding_loses_no_sample(noise, rate, n, wrong):
    assert (noise(np.zeros(n, np.int64), rate, 3, seed=0) != 0).sum() == wrong


def test_symmetric_is_uniform_over_the_other_classes():
    noisy = symmetric(np.full(40_000, 2), 1.0, classes=5, seed=3)
    counts = np.bincount(noisy, minlength=5)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3, 4]] - 10_000).max() < 500  # 5.8 standard deviations


def test_pair_flip_goes_to_the_next_class_and_wraps():
    clean = np.arange(100) % 4
    noisy = pair_flip(clean, 0.5, classes=4, seed=1)
    moved = noisy != clean
    assert (noisy[moved] == (clean[moved] + 1) % 4).all()
    assert noisy[moved & (clean == 3)].tolist() == [0] * int((moved & (clean == 3)).sum())


@both
def test_the_seed_decides_and_the_input_stays(noise):
    clean = np.zeros(1000, np.int64)
    run = partial(noise, clean, 0.3, 10)
    assert np.array_equal(run(seed=5), run(seed=5))
    assert not np.array_equal(run(seed=5) != 0, run(seed=6) != 0)
    assert not clean.any()


@both
@pytest.mark.parametrize("rate", [-0.1, 1.01, float("nan")])
def test_a_rate_that_is_no_share_is_refused(noise, rate):
    with pytest.raises(ConfigError, match=r"share of the labels, in \[0, 1\]; got"):
        noise(np.array([0, 1]), rate, 2, seed=0)


@both
def test_labels_must_be_class_numbers(noise):
    with pytest.raises(DataError, match="at least 2 classes to move between; got 1"):
        noise(np.array([0, 0]), 0.5, 1, seed=0)
    with pytest.raises(DataError, match="0 … 2 for 3 classes; row 1 holds 3"):
        noise(np.array([0, 3]), 0.5, 3, seed=0)
    with pytest.raises(DataError, match="row 0 holds -1"):
        noise(np.array([-1, 0]), 0.5, 3, seed=0)
    with pytest.raises(DataError, match="one integer per sample; got shape"):
        noise(np.array([0.0, 1.0]), 0.5, 3, seed=0)
