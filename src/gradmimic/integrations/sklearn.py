"""scikit-learn: a classifier that does not believe every label.

    fit        p_i, how likely label i is right, by probes that never saw sample i (label_issues)
               θ_ref = the probe fitted on Σ p_i ℓ_i
               θ: steps on Σ_i w_i ∇ℓ_i,  w = softmax(m / τ)
    predict    argmax_k  softmax(f_θ((x − mean) / spread))_k

Needs the extra ``sklearn``.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic.canaries import Canaries, enough
from gradmimic.data.scale import Scale
from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra
from gradmimic.label_issues.find import LEAST, issues_of
from gradmimic.label_issues.inputs import as_features, as_mask, check_trusted, repeated
from gradmimic.label_issues.judge import cross_fitted, judged_by
from gradmimic.label_issues.probe import Data, Probe, fit, given_probe, threads
from gradmimic.reference import load_reference
from gradmimic.reweight import GradMimic

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
else:
    _base = import_extra("sklearn.base", "sklearn")
    BaseEstimator, ClassifierMixin = _base.BaseEstimator, _base.ClassifierMixin
    check_random_state = import_extra("sklearn.utils", "sklearn").check_random_state
    _of_labels = import_extra("sklearn.utils.multiclass", "sklearn")
    check_classification_targets = _of_labels.check_classification_targets
    _validation = import_extra("sklearn.utils.validation", "sklearn")
    check_is_fitted, validate_data = _validation.check_is_fitted, _validation.validate_data

_ESTIMATORS = ("linear", "mlp")
# A reference of noisy labels is as unsure as they are, and a model is soon surer: see
# gradmimic.run.self_reference.
_SHARPER = 10.0


class MimicClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear classifier or MLP on features, trained on labels of which some are wrong.

    Args:
        estimator: ``"linear"``, or ``"mlp"`` with one hidden layer.
        reference: a linear probe that was trained on better labels of the same features: a state
            dict, file or module, see :func:`gradmimic.load_reference`. None makes one of the
            labels themselves, by cross-fitting.
        temperature: as of :class:`gradmimic.GradMimic`; ``inf`` trains plainly.
        epochs: passes over the data.
        lr: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        batch_size: ``"auto"`` is a hundredth of the samples, from 16 to 256.
        hidden: width of the MLP's layer.
        random_state: of the folds, the canaries, the order of training and initial weights.

    Attributes:
        sample_quality_: ``[n]`` in [0, 1], higher is better: how likely the label is right. 1 for
            trusted samples, NaN for those that cannot be judged, as all are where there are fewer
            than 20.
        label_issues_: ``[n]`` bool, True where the label looks wrong.
        classes_: ``[K]``, the labels.
        n_features_in_: d.
        feature_names_in_: the columns' names, where ``X`` has some.
        model_: the trained module, of scaled inputs.

    Example:
        >>> X = np.tile(np.eye(2), (50, 1))
        >>> y = ["dog", "cat"] * 5 + ["cat", "dog"] * 45
        >>> model = MimicClassifier(random_state=0).fit(X, y)
        >>> model.predict(X[:2]).tolist(), np.flatnonzero(model.label_issues_).tolist()
        (['cat', 'dog'], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(
        self,
        estimator: str = "linear",
        *,
        reference: Any = None,
        temperature: Any = "auto",
        epochs: int = 10,
        lr: float = 3e-3,
        weight_decay: float = 1e-5,
        batch_size: Any = "auto",
        hidden: int = 256,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.reference = reference
        self.temperature = temperature
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.hidden = hidden
        self.random_state = random_state

    def fit(self, X: Any, y: Any, trusted: Any = None) -> "MimicClassifier":  # noqa: N803
        """Judge the labels, then train.

        Args:
            X: ``[n, d]`` features.
            y: ``[n]`` class numbers or names.
            trusted: ``[n]`` mask of the rows whose labels are known to be right; row numbers do,
                too, but cross-validation can only cut masks. Every class needs some.

        Returns:
            This classifier.

        Raises:
            ValueError: scikit-learn's checks of ``X`` and ``y`` fail, or there is one class only.
            ConfigError, DataError: an argument is unknown; or the trusted rows lack a class, or
                are all rows.
            ReferenceMismatchError: the reference is no linear probe of these features and classes.

        Warns:
            UserWarning: the labels cannot be told from labels made wrong on purpose.
        """
        if self.estimator not in _ESTIMATORS:
            raise ConfigError(
                f"estimator={self.estimator!r} is unknown; expected 'linear' or 'mlp'."
            )
        X, y = validate_data(self, X, y)  # noqa: N806
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"expected 2 classes or more, got 1 class only: {self.classes_[0].item()!r}."
            )
        rows, n, trusting = as_features(X), len(y), trusted is not None
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        known, probe, order = as_mask(trusted, n), None, self.classes_
        if self.reference is not None:
            probe, order = given_probe(load_reference(self.reference), X.shape[1], self.classes_)
            numbers = np.searchsorted(order, y)
        if trusting:
            check_trusted(numbers, known, self.classes_)
        self.classes_ = order
        data = Data(rows, torch.from_numpy(numbers.astype(np.int64)), len(order), seed)
        self.sample_quality_ = np.where(known, 1.0, np.nan)  # [n]
        self.label_issues_ = np.zeros(n, dtype=np.bool_)
        weights = np.ones(n, dtype=np.float32)  # p, 1 where nothing is known
        judged = ~known if trusting or probe is not None else repeated(numbers, order)
        if judged.sum() >= LEAST:
            where = np.flatnonzero(judged)
            told = judged_by(data, probe, where) if probe else cross_fitted(data, known, where)
            found = issues_of(y, order, known, told)
            self.sample_quality_, self.label_issues_ = found.p_clean, found.mask
            if found.can_be_trusted:
                weights[where] = found.p_clean[where]
        if probe is None:
            probe = fit(data, Scale(rows), np.arange(n), weights)
            probe = probe._replace(weight=_SHARPER * probe.weight, bias=_SHARPER * probe.bias)
        self._mean, self._spread = probe.mean.double(), probe.spread.double()
        self.model_ = self._trained(data, probe)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:  # noqa: N803
        """Return ``[n, K]``, how likely each class is, in the order of ``classes_``."""
        check_is_fitted(self)
        inputs = torch.from_numpy(np.array(validate_data(self, X, reset=False), dtype=np.float64))
        with torch.no_grad():
            chances: npt.NDArray[np.float64] = (
                self.model_((inputs - self._mean) / self._spread).softmax(1).numpy()
            )
        return chances

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """Return ``[n]``, the likeliest class of each sample."""
        chances = self.predict_proba(X)
        predicted: npt.NDArray[Any] = self.classes_[chances.argmax(1)]
        return predicted

    def _trained(self, data: Data, probe: Probe) -> nn.Sequential:
        """Train toward the probe; return the model in float64, so that batches change nothing."""
        n, d = data.features.shape
        size = min(max(n // 100, 16), 256) if self.batch_size == "auto" else self.batch_size
        model, tau = self._start(d, data.classes, data.seed), self.temperature
        if self.estimator == "linear":
            weights = {"0.weight": probe.weight, "0.bias": probe.bias}
            mimic = GradMimic(model, weights, temperature=tau)
        else:  # toward what the probe says, whatever the features under the head
            mimic = GradMimic(model, _module(probe), temperature=tau, align="outputs")
        canaries = Canaries(enough(n), seed=data.seed)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True
        )
        order = torch.Generator().manual_seed(data.seed)
        with torch.enable_grad(), threads(sum(p.numel() for p in model.parameters())):
            for epoch in range(self.epochs):
                for rows in torch.randperm(n, generator=order).split(size):
                    inputs = (data.inputs(rows.numpy()) - probe.mean) / probe.spread
                    with mimic:
                        logits = model(inputs)  # [b, K]
                        losses = F.cross_entropy(logits, data.labels[rows], reduction="none")
                        drawn = canaries.labels(logits, data.labels[rows], rows)
                    loss = mimic.weigh(losses, rows, epoch=epoch, canaries=drawn)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        return model.double().requires_grad_(False)

    def _start(self, d: int, classes: int, seed: int) -> nn.Sequential:
        """Return the model to train: the linear one starts from zero, as its reference did."""
        if self.estimator == "linear":
            head = nn.Linear(d, classes)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            return nn.Sequential(head)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Linear(d, self.hidden), nn.ReLU(), nn.Linear(self.hidden, classes)
            )


def _module(probe: Probe) -> nn.Linear:
    """Return a probe as a module of scaled inputs."""
    module = nn.Linear(probe.weight.shape[1], probe.weight.shape[0])
    module.load_state_dict({"weight": probe.weight, "bias": probe.bias})
    return module
