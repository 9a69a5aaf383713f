"""The verdict's sentences, and the interval of a gain against a calculation of its own."""

import math

import numpy as np
import pytest

from gradmimic.run.verdict import (
    gain,
    gain_sentence,
    noise_sentence,
    removal_sentence,
    told_apart,
    trust_sentence,
)


def quality(value, low, high, rate=(0.4, 0.3, 0.5)):
    names = ("value", "low", "high")
    areas = {
        "uniform/10": dict(zip(names, (value, low, high), strict=True)),
        "confusable/10": dict(zip(names, (0.1, 0.0, 0.2), strict=True)),
    }
    return {"auroc": areas, "noise_rate": dict(zip(names, rate, strict=True))}


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def wilson(p, n):
    """The two roots of n (p − x)² = z² x (1 − x)."""
    z = 1.96
    a, b, c = n + z * z, -(2 * n * p + z * z), n * p * p
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize("seed", range(30))
def test_the_interval_of_a_gain(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 5000))
    p, q = rng.integers(0, n + 1, 2) / n
    (l1, u1), (l2, u2) = wilson(p, n), wilson(q, n)
    found = gain(p, q, n)
    assert found.value == q - p
    assert found.low == pytest.approx(q - p - math.sqrt((q - l2) ** 2 + (u1 - p) ** 2), abs=1e-9)
    assert found.high == pytest.approx(q - p + math.sqrt((u2 - q) ** 2 + (p - l1) ** 2), abs=1e-9)
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, p, q, n = np.random.default_rng(0), 0.85, 0.9, 400
    drawn = rng.binomial(n, [p, q], (2000, 2)) / n
    inside = [found.low <= q - p <= found.high for found in (gain(*pair, n) for pair in drawn)]
    assert 0.94 < np.mean(inside) < 0.965


def test_a_gain_that_chance_could_bring_is_said_so():
    said = plain(gain_sentence("R@10", 0.7, 0.75, 2000))
    assert said == (
        "Re-weighting took R@10 from 70.0 % to 75.0 % (+5.0 points; 95 % interval +2.2 to +7.8)."
    )
    less = plain(gain_sentence("test accuracy", 0.75, 0.7, 100))
    assert "(−5.0 points; 95 % interval −17.1 to +7.3; chance alone could do that)" in less


@pytest.mark.parametrize(
    ("area", "said", "apart"),
    [
        ((0.77, 0.75, 0.79), "The scores can be trusted: they tell canaries from samples", True),
        ((0.58, 0.55, 0.61), "The scores know little: they tell canaries from samples", True),
        ((0.52, 0.49, 0.56), "The scores cannot be trusted: they tell canaries", False),
        ((0.2, 0.1, 0.3), "The scores cannot be trusted: they tell canaries", False),
    ],
)
def test_whether_scores_can_be_trusted_is_what_the_plainest_canaries_say(area, said, apart):
    found = trust_sentence(quality(*area))
    assert found.startswith(said)
    assert f"AUROC {area[0]:.3f} ({area[1]:.3f} to {area[2]:.3f}), where 0.5 is chance" in found
    assert ("about 0.80 is perfect" in found) == apart
    assert told_apart(quality(*area)) == apart
    assert (noise_sentence(quality(*area), "are wrong") != "") == apart


def test_without_canaries_nothing_is_claimed():
    for nothing in (None, {"auroc": {}, "noise_rate": {"value": 0.3, "low": 0.0, "high": 1.0}}):
        assert trust_sentence(nothing).startswith("There are no canaries, so nothing tells")
        assert noise_sentence(nothing, "are wrong") == ""
    unknown = quality(0.8, 0.7, 0.9, rate=(0.1, 0.0, 1.0))
    assert noise_sentence(unknown, "are wrong") == ""


def test_the_noise_rate_and_the_removal_in_words():
    said = plain(noise_sentence(quality(0.8, 0.7, 0.9), "of the labels are likely wrong"))
    assert said == (
        "By what canaries score, 40.0 % of the labels are likely wrong (30.0 % to 50.0 %)."
    )
    assert plain(removal_sentence(1234, 5000, "pairs")) == (
        "The selection removes 1,234 of 5,000 pairs (24.7 %)."
    )
    assert "0 of 0 pairs (none)" in removal_sentence(0, 0, "pairs")
