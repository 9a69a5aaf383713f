"""The methods of label_issues.py: cleanlab and friends, and ours.

A method prepares something, such as probabilities, from which one or more rows of the table follow.
Each returns a score for every sample (low is bad) and a mask of what it flags. All get the same
features; rivals that are not told otherwise see them centred and divided by one number.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from label_issues_data import Case
from torch.nn import functional as F

from gradmimic.data.scale import Scale
from gradmimic.label_issues import inspect_labels

Array = npt.NDArray[Any]
TOLD = "told the rate"


class Found(NamedTuple):
    """What a method says of the judged rows."""

    score: Array  # [n], low is bad
    mask: Array  # [n] bool
    estimate: tuple[float, float, float] | None = None  # ours: noise rate, low, high


class Method(NamedTuple):
    """What is computed once from a case and a seed, and the rows that follow from it."""

    prepare: Callable[[Case, int], Any]
    rows: Mapping[str, Callable[[Case, Any], Found]]


def scaled(case: Case) -> tuple[Array, Array]:
    """Return the features of judged rows and of others, with one global scale."""
    scale = Scale(case.features)
    both = (torch.from_numpy(x) for x in (case.features, case.other_features))
    x, others = (scale(rows).numpy() for rows in both)
    return x, others


def logistic(strength: float) -> Any:
    """Return scikit-learn's logistic regression, with C and otherwise as it comes."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength)


# ---- probabilities of the judged rows, [n, K]


def cross_validated(strength: float) -> Callable[[Case, int], Array]:
    """Predict each row by a logistic regression of four folds of five, without the row's."""

    def probabilities(case: Case, seed: int) -> Array:
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 100 iterations do not reach the optimum
            x, model = scaled(case)[0], logistic(strength)
            found = cross_val_predict(model, x, case.given, method="predict_proba", cv=folds)
        return np.asarray(found)

    return probabilities


def by_trusted(m: int) -> Callable[[Case, int], Array]:
    """Predict by a logistic regression of m trusted rows."""

    def probabilities(case: Case, seed: int) -> Array:
        x, others = scaled(case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = logistic(0.001).fit(others[:m], case.other_labels[:m])
        return np.asarray(model.predict_proba(x))

    return probabilities


def by_few_trusted(m: int) -> Callable[[Case, int], Array]:
    """Predict by a logistic regression of m trusted rows, which pick its C too, by halves."""

    def probabilities(case: Case, seed: int) -> Array:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold

        x, others = scaled(case)
        halves = StratifiedKFold(2, shuffle=True, random_state=seed)
        search = GridSearchCV(LogisticRegression(), {"C": [0.001, 0.01, 0.1, 1.0]}, cv=halves)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.fit(others[:m], case.other_labels[:m])
        return np.asarray(search.predict_proba(x))

    return probabilities


# ---- rows that follow from probabilities


def own(probabilities: Array, labels: Array) -> Array:
    """Return the probability of each row's label, its self-confidence."""
    return np.asarray(probabilities[np.arange(len(labels)), labels])


def cleanlab(filter_by: str) -> Callable[[Case, Array], Found]:
    """Flag by one of the filters of cleanlab's ``find_label_issues``."""

    def row(case: Case, probabilities: Array) -> Found:
        from cleanlab.filter import find_label_issues

        mask = find_label_issues(case.given, probabilities, filter_by=filter_by, n_jobs=1)
        return Found(own(probabilities, case.given), mask)

    return row


def datalab(case: Case, **inputs: Array) -> Found:
    """Flag by cleanlab's Datalab."""
    from cleanlab import Datalab

    lab = Datalab(data={"label": case.given}, label_name="label", verbosity=0)
    alone = {"clean_learning_kwargs": {"find_label_issues_kwargs": {"n_jobs": 1}}}
    lab.find_issues(**inputs, issue_types={"label": alone})
    issues = lab.get_issues("label")
    return Found(issues["label_score"].to_numpy(), issues["is_label_issue"].to_numpy())


def unsure(case: Case, probabilities: Array) -> Found:
    """Flag labels whose self-confidence is below one half."""
    score = own(probabilities, case.given)
    return Found(score, score < 0.5)


def told(case: Case, probabilities: Array) -> Found:
    """Flag the lowest, as many as are wrong: an upper bound, since no one knows how many."""
    score = own(probabilities, case.given)
    mask = np.zeros(len(score), dtype=bool)
    mask[np.argsort(score, kind="stable")[: int((case.given != case.true).sum())]] = True
    return Found(score, mask)


FILTERS = {
    "default": cleanlab("prune_by_noise_rate"),
    "confident learning": cleanlab("confident_learning"),
    "both": cleanlab("both"),
    "low self-confidence": cleanlab("low_self_confidence"),
}

# ---- neighbours


def neighbours(case: Case, seed: int) -> Array:
    """Return the labels of the nearest rows by angle, ``[n, 50]``."""
    from sklearn.neighbors import NearestNeighbors

    x = scaled(case)[0]
    near = NearestNeighbors(n_neighbors=50, metric="cosine").fit(x)
    return np.asarray(case.given[near.kneighbors(return_distance=False)])


def disagreeing(k: int) -> Callable[[Case, Array], Found]:
    """Flag labels that are not the most frequent among the k nearest rows; ties are forgiven."""

    def row(case: Case, labels: Array) -> Found:
        votes = np.stack([(labels[:, :k] == c).sum(1) for c in range(case.classes)], axis=1)
        score = own(votes, case.given)
        return Found(score / k, score < votes.max(1))

    return row


def datalab_of_features(case: Case, seed: int) -> Found:
    """Give Datalab features instead of probabilities: it asks ten neighbours."""
    return datalab(case, features=scaled(case)[0])


# ---- training dynamics


def epochs(x: Array, labels: Array, classes: int, seed: int) -> Any:
    """Train a linear probe for ten epochs, and yield its logits ``[n, K]`` after each."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    # Of 1e-3, 3e-4 and 1e-4 the rate that gives these rivals the best F1 (CIFAR-10, 20 %).
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-4)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(10):
        for rows in torch.randperm(len(x), generator=generator).split(256):
            loss = F.cross_entropy(F.linear(inputs[rows], weight, bias), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            yield F.linear(inputs, weight, bias)


def average_loss(case: Case, seed: int) -> Found:
    """Flag the worse of two Gaussians that are fitted to the losses, averaged over ten epochs.

    Source: Arazo et al. 2019, arXiv 1904.11238; Li et al. 2020, arXiv 2002.07394 (Gaussians).
    """
    from sklearn.mixture import GaussianMixture

    labels = torch.from_numpy(case.given)
    each = [
        F.cross_entropy(logits, labels, reduction="none")
        for logits in epochs(scaled(case)[0], case.given, case.classes, seed)
    ]
    loss = torch.stack(each).mean(0).numpy().astype(np.float64)  # [n]
    mixture = GaussianMixture(2, random_state=seed).fit(loss[:, None])
    worse = mixture.predict_proba(loss[:, None])[:, mixture.means_[:, 0].argmax()]
    return Found(-loss, worse > 0.5)


def margins(case: Case, seed: int) -> Found:
    """Flag by the area under the margin, at the threshold of a class that does not exist.

    AUM_i = mean over epochs of z_y − max_{k ≠ y} z_k. N / (K + 1) rows get an extra class; below
    the 99th percentile of their AUM is what is flagged. Once more with other rows for the rest.

    Source: Pleiss et al. 2020, arXiv 2001.10528.
    """
    n, k = len(case.given), case.classes
    x, order = scaled(case)[0], np.random.default_rng([seed, 1]).permutation(n)
    first, second = np.split(order[: 2 * (n // (k + 1))], 2)
    score, mask = np.empty(n), np.empty(n, dtype=bool)
    for extra, judged in ((first, np.setdiff1d(order, first)), (second, first)):
        labels = case.given.copy()
        labels[extra] = k
        target = torch.from_numpy(labels)[:, None]
        total = torch.zeros(n)
        for logits in epochs(x, labels, k + 1, seed):
            other = logits.scatter(1, target, -torch.inf).amax(1)
            total += (logits.gather(1, target)[:, 0] - other) / 10
        area = total.numpy()
        score[judged] = area[judged]
        mask[judged] = area[judged] < np.percentile(area[extra], 99)
    return Found(score, mask)


# ---- ours


def ours(m: int = 0) -> Callable[[Case, int], Found]:
    """Return ``inspect_labels``, given m trusted rows; its ranking is that of ``p_clean``."""

    def find(case: Case, seed: int) -> Found:
        n = len(case.given)
        if m:
            x = np.concatenate([case.features, case.other_features[:m]])
            labels = np.concatenate([case.given, case.other_labels[:m]])
            found = inspect_labels(x, labels, trusted=np.arange(len(x)) >= n, seed=seed)
        else:
            found = inspect_labels(case.features, case.given, seed=seed)
        rate = found.noise_rate
        score = np.nan_to_num(found.p_clean[:n], nan=np.inf)  # a class's only row is not judged
        return Found(score, found.mask[:n], (rate.value, rate.low, rate.high))

    return find


def alone(find: Callable[[Case, int], Found]) -> Method:
    """Make a method of one row."""
    return Method(find, {"": lambda _, found: found})


BY_CROSS_VALIDATION = {
    **FILTERS,
    "Datalab": lambda case, probabilities: datalab(case, pred_probs=probabilities),
    "self-confidence below ½": unsure,
    TOLD: told,
}

FEW = 1_000  # trusted rows, below which C = 0.001 is far from the best
NEIGHBOURS = {f"k = {k}": disagreeing(k) for k in (10, 25, 50)}


def methods(trusted: tuple[int, ...]) -> dict[str, Method]:
    """Name the methods, those with trusted rows for each number of these."""
    return {
        "ours": alone(ours()),
        "cleanlab, cross-validated": Method(cross_validated(0.001), BY_CROSS_VALIDATION),
        "k-nearest neighbours": Method(neighbours, NEIGHBOURS),
        "Datalab, features": alone(datalab_of_features),
        "AUM": alone(margins),
        "average loss, mixture": alone(average_loss),
        **{f"ours, {m:,} trusted": alone(ours(m)) for m in trusted},
        **{
            f"cleanlab, {m:,} trusted": Method(by_trusted(m), {**FILTERS, TOLD: told})
            for m in trusted
        },
        **{
            f"cleanlab, C picked, {m:,} trusted": Method(by_few_trusted(m), {**FILTERS, TOLD: told})
            for m in trusted
            if m < FEW
        },
        "cleanlab, cross-validated, C = 1": Method(cross_validated(1.0), FILTERS),
    }
