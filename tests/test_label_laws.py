"""The formulas of label_issues, each against a literal calculation in float64."""

from itertools import product

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from gradmimic.cross_fit import deal
from gradmimic.label_issues.components import components
from gradmimic.label_issues.confusions import _LEAST, _RANDOM, confusions
from gradmimic.label_issues.expected import flagged
from gradmimic.label_issues.folds import Folds
from gradmimic.label_issues.law import at_mean, fit_law, p_clean, sharpness_of, terms
from gradmimic.label_issues.mixture import wrong_share
from gradmimic.label_issues.probe import Data

SHAPES = [(7, 2), (12, 3), (5, 9)]


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def drawn(n, classes, seed):
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(n, classes)), rng.integers(0, classes, n)


@pytest.mark.parametrize(("n", "classes"), SHAPES)
def test_terms_are_what_canaries_are_drawn_by(n, classes):
    z, labels = drawn(n, classes, seed=n)
    found = terms(torch.tensor(z), torch.tensor(labels), 1.7)
    for i, y in enumerate(labels):
        p, a = softmax(1.7 * z[i]), softmax(z[i])
        others = [k for k in range(classes) if k != y]
        assert float(found.right[i]) == pytest.approx(p[y])
        assert float(found.uniform[i]) == pytest.approx(sum(p[k] / (classes - 1) for k in others))
        confusable = sum(p[k] * a[y] / sum(a[j] for j in range(classes) if j != k) for k in others)
        assert float(found.confusable[i]) == pytest.approx(confusable)


def test_terms_of_a_probe_that_is_sure_are_numbers():
    z = torch.tensor([[900.0, 0.0, 1.0], [0.0, 40.0, 39.0]])
    found = terms(z, torch.tensor([1, 0]), 1.0)
    assert all(torch.isfinite(term).all() and (term >= 0).all() for term in found)
    assert float(terms(z[1:], torch.tensor([2]), 1.0).confusable) == pytest.approx(
        softmax([40, 39])[0]
    )


@pytest.mark.parametrize(("rate", "confusable"), [(0.3, 0.0), (0.2, 1.0), (0.0, 0.5)])
def test_the_law_that_made_the_labels_is_found(rate, confusable):
    rng, n, classes = np.random.default_rng(0), 6000, 5
    z = 2 * rng.normal(size=(n, classes))
    labels = np.empty(n, dtype=np.int64)
    for i in range(n):
        labels[i] = true = rng.choice(classes, p=softmax(2.0 * z[i]))
        if rng.random() < rate:
            law = softmax(z[i]) if rng.random() < confusable else np.ones(classes)
            law[true] = 0
            labels[i] = rng.choice(classes, p=law / law.sum())
    found = fit_law(torch.tensor(z), torch.tensor(labels))
    assert found.rate == pytest.approx(rate, abs=0.04)
    if rate:
        assert found.sharpness == pytest.approx(2.0, abs=0.4)
        assert found.confusable == pytest.approx(confusable, abs=0.2)


def test_trusted_labels_tell_how_sure_a_probe_may_be():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(4000, 3))
    labels = np.array([rng.choice(3, p=softmax(1.5 * row)) for row in z])
    found = sharpness_of(torch.tensor(z), torch.tensor(labels))
    losses = {
        t: -np.mean([np.log(softmax(t * row)[y]) for row, y in zip(z, labels, strict=True)])
        for t in (0.9 * found, found, 1.1 * found)
    }
    assert min(losses, key=losses.get) == found


def test_p_clean_is_bayes_rule_and_reaches_the_mean_that_is_asked_for():
    rng = np.random.default_rng(2)
    right, wrong = rng.random(200), rng.random(200)
    expected = [0.8 * r / (0.8 * r + 0.2 * w) for r, w in zip(right, wrong, strict=True)]
    assert np.allclose(p_clean(0.2, right, wrong), expected)
    for mean in (0.05, 0.5, 0.9):
        assert 1 - p_clean(at_mean(mean, right, wrong), right, wrong).mean() == pytest.approx(mean)
    assert np.array_equal(p_clean(0.0, np.zeros(1), np.zeros(1)), [0.0])


@pytest.mark.parametrize(("n", "classes"), SHAPES)
def test_confusions_are_a_fixed_point_of_expected_counts(n, classes):
    z, labels = drawn(40 * n, classes, seed=n)
    p = np.apply_along_axis(softmax, 1, z)
    found = confusions(torch.tensor(p), torch.tensor(labels), 0.2)
    counts = np.zeros((classes, classes))
    for i, y in enumerate(labels):
        parts = [found.rate * p[i, k] * float(found.matrix[k, y]) for k in range(classes)]
        for k in range(classes):
            counts[k, y] += parts[k] / ((1 - found.rate) * p[i, y] + sum(parts))
    random = _RANDOM * len(p) / (classes * (classes - 1)) + _LEAST
    expected = counts + random * (1 - np.eye(classes))
    assert np.allclose(found.matrix, expected / expected.sum(1, keepdims=True), atol=0.03)
    assert found.rate == pytest.approx(counts.sum() / len(p), abs=0.03)
    literal = [p[i] @ found.matrix[:, y].numpy() for i, y in enumerate(labels)]
    assert np.allclose(found.wrong(torch.tensor(p), torch.tensor(labels)), literal)


def test_no_other_choice_has_a_higher_expected_f1():
    rng = np.random.default_rng(3)
    for _ in range(10):
        p_bad = rng.random(9) ** 2
        if p_bad.sum() < 1:
            continue

        def f1(mask, p_bad=p_bad):
            return 2 * p_bad[mask].sum() / (mask.sum() + p_bad.sum())

        choices = [np.array(mask) for mask in product([False, True], repeat=9)]
        assert f1(flagged(p_bad)) == pytest.approx(max(f1(mask) for mask in choices))
    assert not flagged(np.full(50, 0.01)).any()


def test_components_keep_what_tells_samples_apart():
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 5).astype(np.float32)
    found = components(Data(x, torch.zeros(50, dtype=torch.long), 2, 0))
    length = np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
    expected = np.linalg.norm(x[:, None] - x[None], axis=2) / length
    assert np.allclose(torch.cdist(found.z, found.z), expected, atol=1e-3)
    assert float(found.z.square().sum(1).mean()) == pytest.approx(1, abs=1e-5)
    assert np.allclose(found.squares, found.z.square().mean(0), atol=1e-6)


def test_each_fold_is_the_ridge_regression_that_scikit_learn_finds_without_it():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 240)
    x = (rng.normal(size=(240, 5)) + 2 * np.eye(3, 5)[labels]).astype(np.float32)
    inputs = components(Data(x, torch.tensor(labels), 3, 0))
    fold = deal(240, 4, labels=labels)
    fold[:20] = -1  # all learn from these
    weights = rng.random(240).astype(np.float32)
    probes = Folds(inputs, torch.tensor(labels), 3, fold)
    probes.fit(weights, 100)
    logits = probes.logits()
    assert logits[:20].isnan().all()
    for k in range(4):
        rest, own = fold != k, fold == k
        rival = LogisticRegression(C=1 / 0.5, tol=1e-8, max_iter=1000)
        rival.fit(inputs.z[rest], labels[rest], sample_weight=weights[rest])
        chances = logits[own].softmax(1).numpy()
        assert np.allclose(chances, rival.predict_proba(inputs.z[own]), atol=2e-3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_the_share_of_what_scores_as_canaries_do(share):
    rng, n = np.random.default_rng(6), 20_000
    trusted, uniform, confusable = (rng.normal(mean, 1, n) for mean in (3, -3, 0))
    wrong = rng.random(n) < share
    judged = np.where(wrong, rng.choice([-3, 0], n), 3) + rng.normal(size=n)
    found = wrong_share(judged, trusted, [uniform, confusable])
    assert found == pytest.approx(share, abs=0.02)
