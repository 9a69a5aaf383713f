"""The cases of label_issues.py: rows to judge, others that can be trusted, and labels made wrong.

symmetric    ⌊ρN⌋ labels become any other class, all equally likely
confusable   ⌊ρN⌋ labels become the wrong class that a probe of the trusted rows' clean labels finds
             most likely, whatever a method may see
human        what people said (CIFAR-10N)

The seed deals rows into judged and trusted, and draws the noise.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from gradmimic.data.noise import symmetric

Floats = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


class Source(NamedTuple):
    """How a data set is dealt: rows to judge, and how many of the others a method may trust."""

    judged: int
    trusted: tuple[int, ...]
    noise: tuple[tuple[str, float], ...]


SOURCES = {
    "CIFAR-10": Source(
        20_000,
        (500, 5_000, 10_000),
        (("symmetric", 0.2), ("symmetric", 0.4), ("symmetric", 0.6), ("human", 0), ("clean", 0)),
    ),
    "banking77": Source(
        6_000,
        (500, 4_000),
        (("confusable", 0.1), ("confusable", 0.2), ("confusable", 0.4), ("symmetric", 0.2),
         ("clean", 0)),
    ),
    "digits": Source(
        1_200,
        (100, 500),
        (("symmetric", 0.2), ("symmetric", 0.4), ("confusable", 0.2), ("clean", 0)),
    ),
}  # fmt: skip


class Case(NamedTuple):
    """Rows to judge, and others whose labels are right: the first m hold all classes."""

    features: Floats  # [n, d]
    true: Ints  # [n]
    given: Ints  # [n]
    other_features: Floats  # [m, d]
    other_labels: Ints  # [m]
    classes: int


class Rows(NamedTuple):
    """A data set as its files have it."""

    features: Floats  # [N, d]
    true: Ints  # [N]
    human: Ints | None  # [N]


def cifar10(data: Path, features: Path | None) -> Rows:
    """CIFAR-10's 30,000 training rows; 384 numbers a row unless a folder holds 1,280."""
    folder = data / "cifar10n"
    wide = None if features is None else features / "cifar10_lite0.npy"
    x = np.load(wide or folder / "features_train.npy")
    true, human = (np.load(folder / f"{kind}_labels_train.npy") for kind in ("clean", "human"))
    return Rows(x, true.astype(np.int64), human.astype(np.int64))


def banking77(data: Path, features: Path | None) -> Rows:
    """banking77's 10,003 questions, 384 numbers each."""
    folder = data / "banking77"
    true = pq.read_table(folder / "train.parquet")["label"].to_numpy()
    return Rows(np.load(folder / "features_train.npy"), true.astype(np.int64), None)


def digits(data: Path, features: Path | None) -> Rows:
    """1,797 pictures of 8 × 8 pixels, which scikit-learn brings."""
    from sklearn.datasets import load_digits

    x, true = load_digits(return_X_y=True)
    return Rows(x.astype(np.float32), true.astype(np.int64), None)


READ = {"CIFAR-10": cifar10, "banking77": banking77, "digits": digits}


def case(name: str, noise: str, rate: float, seed: int, data: Path, features: Path | None) -> Case:
    """Deal a data set and make labels wrong."""
    return dealt(READ[name](data, features), SOURCES[name], noise, rate, seed)


def dealt(rows: Rows, source: Source, noise: str, rate: float, seed: int) -> Case:
    """Deal rows into judged and others, and make the judged ones' labels wrong."""
    order = np.random.default_rng([seed, 0]).permutation(len(rows.true))
    judged = np.sort(order[: source.judged])
    others = _all_classes_first(order[source.judged :][: max(source.trusted)], rows.true)
    x, true = rows.features[judged], rows.true[judged]
    classes = int(rows.true.max()) + 1
    own = Case(x, true, true, rows.features[others], rows.true[others], classes)
    if noise == "human":
        assert rows.human is not None  # noqa: S101  a mistake in SOURCES
        return own._replace(given=rows.human[judged])
    if noise == "confusable":
        return own._replace(given=confusable(own, rate, seed))
    return own._replace(given=symmetric(true, rate, classes, seed))


def confusable(own: Case, rate: float, seed: int) -> Ints:
    """Move ⌊ρN⌋ labels to the class that a probe of the others finds likeliest but the true one."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    # Unit variance and C = 0.01: some 90 % accurate on each set that has this noise.
    scale = StandardScaler().fit(own.other_features.astype(np.float32))
    probe = LogisticRegression(C=0.01, max_iter=200).fit(
        scale.transform(own.other_features.astype(np.float32)), own.other_labels
    )
    likely = probe.predict_proba(scale.transform(own.features.astype(np.float32)))  # [n, K]
    likely[np.arange(len(own.true)), own.true] = 0
    moved = symmetric(own.true, rate, own.classes, seed) != own.true
    return np.where(moved, probe.classes_[likely.argmax(1)], own.true)


def _all_classes_first(rows: Ints, labels: Ints) -> Ints:
    """Bring two rows of each class to the front, so that few trusted rows hold all classes."""
    order = np.argsort(labels[rows], kind="stable")
    ordered = labels[rows][order]
    first = np.r_[0, np.flatnonzero(np.diff(ordered)) + 1]
    rank = np.arange(len(rows)) - np.repeat(first, np.diff(np.r_[first, len(rows)]))
    front = np.zeros(len(rows), dtype=bool)
    front[order[rank < 2]] = True
    return np.concatenate([rows[front], rows[~front]])


def clouds(n: int, d: int, rate: float) -> Case:
    """Make clouds of float16 features, and labels of which some are wrong, for measures of size."""
    chance = np.random.default_rng(0)
    true = chance.integers(0, 10, n)
    centers = 0.08 * chance.normal(size=(10, d)).astype(np.float32)
    x = np.empty((n, d), dtype=np.float16)
    for rows in np.array_split(np.arange(n), 50):
        x[rows] = chance.normal(size=(len(rows), d)) + centers[true[rows]]
    given = symmetric(true, rate, 10, seed=0)
    return Case(x, true, given, x[:0], true[:0], 10)
