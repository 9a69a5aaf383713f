import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmimic.run.metrics import detection
from gradmimic.separation import auroc

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra 'demo'")

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=60)


@given(PAIRS)
def test_auroc_is_sklearns_with_ties(pairs):
    scores, wrong = (np.array(part) for part in zip(*pairs, strict=True))
    if wrong.all() or not wrong.any():
        assert auroc(scores, wrong) is None
    else:
        assert auroc(scores, wrong) == pytest.approx(sklearn_metrics.roc_auc_score(~wrong, scores))


def test_auroc_says_that_wrong_labels_score_lower():
    wrong = [True, True, False, False]
    assert auroc([0.1, 0.2, 0.3, 0.4], wrong) == 1
    assert auroc([0.4, 0.3, 0.2, 0.1], wrong) == 0
    assert auroc([5, 5, 5, 5], wrong) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_detection_is_sklearns(pairs):
    removed, wrong = (np.array(part) for part in zip(*pairs, strict=True))
    expected = sklearn_metrics.precision_recall_fscore_support(
        wrong, removed, average="binary", zero_division=0
    )
    assert tuple(detection(removed, wrong).values()) == pytest.approx(expected[:3])
