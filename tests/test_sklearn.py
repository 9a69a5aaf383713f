import pickle
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from conftest import ROOT
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gradmimic.data import symmetric
from gradmimic.errors import ConfigError, DataError, ReferenceMismatchError
from gradmimic.integrations.sklearn import MimicClassifier
from gradmimic.label_issues import inspect_labels
from gradmimic.run.metrics import detection

UNTRUSTED = "ignore:these scores cannot be trusted"  # some checks draw labels by chance


@pytest.mark.slow
@pytest.mark.filterwarnings(UNTRUSTED)
@parametrize_with_checks([MimicClassifier(random_state=0)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings(UNTRUSTED)
@parametrize_with_checks([MimicClassifier("mlp", random_state=0)])
def test_scikit_learns_own_checks_of_an_mlp(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """400 digits to learn from, 40 % of them mislabelled, and others to test."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:400], order[400:]
    given = symmetric(y[train], 0.4, 10, seed=0)
    return x[train], given, y[train], x[test], y[test]


@pytest.fixture(scope="module")
def fitted(digits):
    return MimicClassifier(random_state=0).fit(*digits[:2])


def test_it_beats_logistic_regression_on_wrong_labels_and_finds_them(digits, fitted):
    x, given, true, x_test, y_test = digits
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, given)
    assert fitted.score(x_test, y_test) > plain.score(x_test, y_test) + 0.03
    assert detection(fitted.label_issues_, given != true)["f1"] > 0.8
    quality = fitted.sample_quality_
    assert ((quality >= 0) & (quality <= 1)).all()
    assert quality[given == true].mean() > quality[given != true].mean() + 0.7
    assert (fitted.predict_proba(x_test).argmax(1) == fitted.predict(x_test)).all()


def test_labels_are_judged_as_inspect_labels_judges_them(digits, fitted):
    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    found = inspect_labels(*digits[:2], seed=seed)
    np.testing.assert_array_equal(fitted.sample_quality_, found.p_clean)
    np.testing.assert_array_equal(fitted.label_issues_, found.mask)


def test_the_state_decides_everything(digits, fitted):
    again = clone(fitted).fit(*digits[:2])
    np.testing.assert_array_equal(again.predict_proba(digits[3]), fitted.predict_proba(digits[3]))
    other = clone(fitted).set_params(random_state=1).fit(*digits[:2])
    assert not np.array_equal(other.predict_proba(digits[3]), fitted.predict_proba(digits[3]))


def test_it_can_be_pickled(digits, fitted):
    copy = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_array_equal(copy.predict_proba(digits[3]), fitted.predict_proba(digits[3]))


@pytest.mark.slow
def test_an_mlp_follows_the_same_judgement(digits, fitted):
    x, given, _, x_test, y_test = digits
    mlp = MimicClassifier("mlp", random_state=0, hidden=64).fit(x, given)
    plain = clone(mlp).set_params(temperature=float("inf")).fit(x, given)
    np.testing.assert_array_equal(mlp.label_issues_, fitted.label_issues_)
    assert mlp.score(x_test, y_test) > plain.score(x_test, y_test) + 0.02


def test_names_and_data_frames_come_back_as_names(digits):
    x, given, _, x_test, _ = digits
    frame = pd.DataFrame(x[:200], columns=[f"pixel {n}" for n in range(64)])
    names = pd.Series([f"digit {label}" for label in given[:200]])
    model = MimicClassifier(random_state=0, epochs=2).fit(frame, names)
    assert model.feature_names_in_[63] == "pixel 63"
    assert model.n_features_in_ == 64
    assert model.classes_.tolist() == [f"digit {label}" for label in range(10)]
    assert set(model.predict(pd.DataFrame(x_test[:20], columns=frame.columns))) < set(names)


def test_trusted_rows_are_believed(digits):
    x, given, true, _, _ = digits
    trusted = np.arange(400) % 4 == 0
    labels = np.where(trusted, true, given)
    model = MimicClassifier(random_state=0).fit(x, labels, trusted=trusted)
    assert (model.sample_quality_[trusted] == 1).all()
    assert not model.label_issues_[trusted].any()
    assert detection(model.label_issues_, labels != true)["f1"] > 0.85
    with pytest.raises(DataError, match=r"no trusted row is of class .*\d"):
        model.fit(x, labels, trusted=np.arange(400) < 3)


@pytest.mark.slow
def test_searches_and_pipelines_cut_the_trusted_mask_too(digits):
    x, given, true, _, _ = digits
    trusted = np.arange(400) % 2 == 0
    labels = np.where(trusted, true, given)
    pipe = make_pipeline(StandardScaler(), MimicClassifier(epochs=2, random_state=0))
    search = GridSearchCV(pipe, {"mimicclassifier__temperature": ["auto", 1.0]}, cv=2)
    search.fit(x, labels, mimicclassifier__trusted=trusted)
    best = search.best_estimator_[-1]
    assert (best.sample_quality_[trusted] == 1).all()
    with sklearn.config_context(enable_metadata_routing=True):
        model = MimicClassifier(epochs=2, random_state=0).set_fit_request(trusted=True)
        scores = cross_val_score(model, x, labels, cv=2, params={"trusted": trusted})
    assert (scores > 0.3).all()


@pytest.mark.slow
def test_a_reference_of_ones_own_is_used_as_it_is(digits):
    x, given, true, x_test, y_test = digits
    good = LogisticRegression(max_iter=3000).fit(x_test, y_test)
    weights = {"weight": torch.tensor(good.coef_), "bias": torch.tensor(good.intercept_)}
    model = MimicClassifier(reference=weights, random_state=0).fit(x, given)
    assert detection(model.label_issues_, given != true)["f1"] > 0.95
    assert model.score(x, true) > MimicClassifier(random_state=0).fit(x, given).score(x, true)
    with pytest.raises(ReferenceMismatchError, match=r"is no linear probe of features \[n, 63\]"):
        model.fit(x[:, 1:], given)


def test_few_samples_are_learned_from_but_not_judged():
    x, y = np.tile(np.eye(2), (5, 1)), [0, 1] * 5
    model = MimicClassifier(random_state=0).fit(x, y)
    assert np.isnan(model.sample_quality_).all()
    assert not model.label_issues_.any()
    assert model.predict(x).tolist() == y


def test_labels_that_mean_nothing_are_told():
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(200, 3)), chance.integers(0, 2, 200)
    with pytest.warns(UserWarning, match="these scores cannot be trusted"):
        model = MimicClassifier(random_state=0).fit(x, y)
    assert not model.label_issues_.any()


def test_what_cannot_be_fitted_is_refused():
    x, y = np.eye(4), [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="estimator='tree' is unknown; expected 'linear' or 'm"):
        MimicClassifier("tree").fit(x, y)
    with pytest.raises(ValueError, match="expected 2 classes or more, got 1 class only: 'a'"):
        MimicClassifier().fit(x, ["a"] * 4)
    with pytest.raises(DataError, match="all 4 rows are trusted"):
        MimicClassifier().fit(x, y, trusted=[True] * 4)


@pytest.mark.slow
def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "sklearn_classifier.py"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = [float(share) for share in re.findall(r"([0-9.]+)%", done.stdout)]
    assert min(found[1:3]) > found[0] + 1
