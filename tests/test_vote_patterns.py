import numpy as np
import pytest

from gradmimic.curate.vote_patterns import patterns_of, tally
from gradmimic.errors import DataError


@pytest.mark.parametrize("n", [0, 1, 500])
@pytest.mark.parametrize("voters", [0, 1, 3, 13, 39, 40, 60])
def test_patterns_are_the_distinct_rows_in_order(n, voters):
    r = np.random.default_rng(voters)
    votes = r.integers(-1, 2, (7, voters), dtype=np.int8)
    votes[:2] = [[-1], [1]]
    votes = votes[r.integers(0, 7, n)]
    found = patterns_of(votes)
    assert (found.patterns.dtype, found.inverse.shape) == (np.int8, (n,))
    assert (found.patterns[found.inverse] == votes).all()
    assert found.counts.tolist() == np.bincount(found.inverse, minlength=len(found[0])).tolist()
    if n and voters:
        assert (found.patterns == np.unique(votes, axis=0)).all()


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.bool_, np.uint8])
def test_patterns_of_any_integers_in_any_layout(kind):
    votes = np.asfortranarray(np.array([[1, 0], [0, 0], [1, 0]]).astype(kind))
    assert patterns_of(votes).patterns.tolist() == [[0, 0], [1, 0]]
    assert patterns_of(votes[::2]).counts.tolist() == [2]


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([1, 0], r"as a matrix \[samples, voters\] .* got shape \(2,\) of int64"),
        ([[1.0, np.nan]], "of integers.* of float64. Write missing votes as −1"),
        ([["keep"]], "of integers"),
        ([[2, 0]], "got values from 0 to 2"),
        ([[-1, -7]], "got values from -7 to 0. Turn scores into votes"),
        ([[1, 300]], "got values from 0 to 300"),
    ],
)
def test_what_is_no_vote_is_refused(votes, message):
    for function in (patterns_of, tally):
        with pytest.raises(DataError, match=message):
            function(votes)
