"""scikit-learn: a classifier for labels of which some are wrong, in a pipeline and in a search.

python examples/sklearn_classifier.py

Digits of which 40 % are mislabelled; nothing is known of which.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from gradmimic.data import symmetric
from gradmimic.integrations.sklearn import MimicClassifier


def main() -> None:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:1000], order[1000:]
    given = symmetric(y[train], 0.4, 10, seed=0)

    plain = make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=500)).fit(x[train], given)
    print(f"logistic regression      {plain.score(x[test], y[test]):.1%}")

    model = MimicClassifier(random_state=0).fit(x[train], given)
    print(f"MimicClassifier          {model.score(x[test], y[test]):.1%}")
    wrong = given != y[train]
    print(f"wrong labels found       F1 {f1_score(wrong, model.label_issues_):.3f}")
    worst = np.argsort(model.sample_quality_)[:3]
    for row in worst:
        print(f"  row {train[row]}: given {given[row]}, quality {model.sample_quality_[row]:.3f}")

    pipe = make_pipeline(MinMaxScaler(), MimicClassifier("mlp", lr=1e-3, random_state=0))
    search = GridSearchCV(pipe, {"mimicclassifier__hidden": [64, 256]}, cv=2)
    search.fit(x[train], given)
    print(f"MLP, by a grid search    {search.score(x[test], y[test]):.1%}  {search.best_params_}")


if __name__ == "__main__":
    main()
