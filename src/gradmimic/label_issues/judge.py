"""Every label is judged by a probe that never saw it, by the laws of labels, and by canaries.

    z_i        logits of the probe that was fitted without the fold of sample i           (folds)
    p_clean    by the law of wrong labels under which they are likeliest         (law, confusions)
    ρ̂          max(mean p_bad, ρ_tail, ρ_trusted), to which p_clean is brought
    ρ_tail     (1 − ω) ρ_uniform + ω ρ_confusable,  ω = λ² / (λ² + (1 − λ)²)

ρ_uniform and ρ_confusable are the largest shares of canaries of either kind that the lowest scores
allow, and ω leans to the kind that prevails. ρ_trusted, of ``mixture``, is known where some samples
are trusted. The likelihood alone sees too few errors where people err on what is hard to tell:
there, errors look like classes that overlap.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.canaries import Canaries
from gradmimic.cross_fit import deal
from gradmimic.curate.canaries import Distribution, Estimate, Seen, auroc, noise_rate
from gradmimic.label_issues.components import components
from gradmimic.label_issues.confusions import confusions
from gradmimic.label_issues.expected import flagged
from gradmimic.label_issues.folds import Folds
from gradmimic.label_issues.inputs import BLOCK, BoolArray, FloatArray, IntArray
from gradmimic.label_issues.law import at_mean, fit_law, p_clean, sharpness_of, terms
from gradmimic.label_issues.mixture import wrong_share
from gradmimic.label_issues.probe import Data, Probe

_FOLDS = 5
_ROUNDS, _STEPS = 2, 6
# With trusted samples more of both pays, by up to 0.01 of average precision; without, it does not.
_ROUNDS_TRUSTING, _STEPS_TRUSTING = 3, 10
_HELD_OUT = 2000  # trusted samples, at most: the others teach the probes of all folds
_LOGITS = 2**22  # in memory at a time
_CANARIES = 50_000  # samples that serve as canaries, at most; below, all of them do
_SAMPLES = 20_000  # that the law by class is fitted to
_FEW = 5000  # that the other one is fitted to: it has three numbers
_MARGIN = 0.004  # of log likelihood for each sample
_BINS = 1000  # of scores, as many in each: the bootstrap draws from bins


class Judgement(NamedTuple):
    """What is known of the judged samples, ``[m]`` each, and of all of them together."""

    rows: IntArray
    score: FloatArray
    p_clean: FloatArray
    flagged: BoolArray
    suggested: IntArray  # the likeliest class but the given one
    noise_rate: Estimate
    auroc: Estimate


class Judged(NamedTuple):
    """Logits of probes that saw none of these labels."""

    rows: IntArray  # [m]
    logits: Tensor  # [m, K]
    labels: Tensor  # [m]

    @property
    def scores(self) -> FloatArray:
        """Return ln K + ln p_ref(y | x) ``[m]``."""
        losses = F.cross_entropy(self.logits, self.labels, reduction="none")
        scores: FloatArray = np.log(self.logits.shape[1]) - losses.double().numpy()
        return scores


class Told(NamedTuple):
    """What the labels themselves tell: how likely each is if right, if wrong, and wrong at all."""

    rate: float
    right: FloatArray  # [m]
    wrong: FloatArray  # [m]
    confusable: float  # λ

    def p_clean(self, mean: float | None = None) -> FloatArray:
        """Return ``[m]``, brought to p_bad = ``mean`` on average where that is more."""
        clean = p_clean(self.rate, self.right, self.wrong)
        if mean is None or mean <= 1.0 - clean.mean():
            return clean
        return p_clean(at_mean(mean, self.right, self.wrong), self.right, self.wrong)


def cross_fitted(data: Data, known: BoolArray, judged: IntArray) -> Judgement:
    """Judge by probes of the labels as they are, then again by probes of what seems right."""
    fold = deal(len(data.labels), _FOLDS, seed=data.seed, labels=data.labels)
    trusted = np.random.default_rng(data.seed).permutation(np.flatnonzero(known))
    fold[trusted[_HELD_OUT:]] = -1
    trusted = np.sort(trusted[:_HELD_OUT])
    probes = Folds(components(data), data.labels, data.classes, fold)
    weights = known.astype(np.float32)
    weights[judged] = 1.0
    rounds, steps = (_ROUNDS_TRUSTING, _STEPS_TRUSTING) if len(trusted) else (_ROUNDS, _STEPS)
    for turn in range(rounds):
        probes.fit(weights, steps)
        logits = probes.logits()
        sure = Judged(trusted, logits[trusted], data.labels[trusted]) if len(trusted) else None
        own = Judged(judged, logits[judged], data.labels[judged])
        told = _told(own, sure, data.seed)
        if turn == 0 and not _can_be_trusted(own, data.seed):
            break  # nothing was learned that could help
        weights[judged] = told.p_clean()
    return _judgement(own, sure, told, data.seed)


def judged_by(data: Data, probe: Probe, judged: IntArray) -> Judgement:
    """Judge by a probe that was given."""
    block = max(1, min(BLOCK, _LOGITS // data.classes))
    blocks = (judged[start : start + block] for start in range(0, len(judged), block))
    logits = torch.cat([probe(data.inputs(rows)) for rows in blocks])
    own = Judged(judged, logits, data.labels[judged])
    return _judgement(own, None, _told(own, None, data.seed), data.seed)


def _told(own: Judged, sure: Judged | None, seed: int) -> Told:
    """Fit both laws of wrong labels; take the one by class unless the other is much likelier."""
    some = torch.from_numpy(np.random.default_rng(seed).permutation(len(own.rows))[:_SAMPLES])
    few = some[:_FEW]
    sharpness = sharpness_of(sure.logits, sure.labels) if sure else None
    law = fit_law(own.logits[few], own.labels[few], sharpness)
    found = terms(own.logits, own.labels, law.sharpness)
    p = (own.logits.double() * law.sharpness).softmax(1)  # [m, K]
    by_class = confusions(p[some], own.labels[some], max(law.rate, 0.01))
    of_law, of_class = found.wrong(law.confusable), by_class.wrong(p, own.labels)
    gain = (1.0 - law.rate) * found.right + law.rate * of_law
    gain /= (1.0 - by_class.rate) * found.right + by_class.rate * of_class
    if float(gain.log().mean()) > _MARGIN:
        return Told(law.rate, found.right.numpy(), of_law.numpy(), law.confusable)
    return Told(by_class.rate, found.right.numpy(), of_class.numpy(), law.confusable)


def _judgement(own: Judged, sure: Judged | None, told: Told, seed: int) -> Judgement:
    """Let canaries say how far to trust the scores, and decide."""
    best = own.logits.topk(2).indices  # [m, 2]
    suggested = torch.where(best[:, 0] == own.labels, best[:, 1], best[:, 0]).numpy()
    scores, chance = own.scores, np.random.default_rng(seed)
    uniform, confusable = (_distribution(canaries) for canaries in _canaries(own, seed))
    real, kind = _distribution(scores), f"uniform/{own.logits.shape[1]}"
    area = auroc(real, uniform, chance)
    if area.low <= 0.5:  # the scores tell nothing
        clean, none = np.ones(len(scores)), np.zeros(len(scores), dtype=np.bool_)
        return Judgement(own.rows, scores, clean, none, suggested, Estimate(0, 0, 1), area)
    seen = Seen(real, {kind: uniform, kind.replace("uniform", "confusable"): confusable})
    low, high = (noise_rate(seen, share, chance) for share in (0.0, 1.0))
    odds = told.confusable**2, (1.0 - told.confusable) ** 2
    rate = (odds[0] * high.value + odds[1] * low.value) / sum(odds)
    if sure:
        rate = max(rate, wrong_share(scores, sure.scores, _canaries(sure, seed)))
    clean = told.p_clean(rate)
    rate = 1.0 - float(clean.mean())
    noise = Estimate(rate, min(rate, low.low), max(rate, high.high))
    return Judgement(own.rows, scores, clean, flagged(1.0 - clean), suggested, noise, area)


def _can_be_trusted(own: Judged, seed: int) -> bool:
    """Say whether scores tell canaries from samples at all."""
    uniform, _ = _canaries(own, seed)
    area = auroc(_distribution(own.scores), _distribution(uniform), np.random.default_rng(seed))
    return area.low > 0.5


def _canaries(own: Judged, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return what samples score under wrong labels: uniform ones, and confusable ones."""
    n, classes = own.logits.shape
    canaries = Canaries(min(1.0, _CANARIES / n), seed=seed)
    block = max(1, min(BLOCK, _LOGITS // classes))
    drawn: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, n, block):
        part = slice(start, start + block)
        losses = canaries.labels(own.logits[part], own.labels[part], own.rows[part]).losses
        drawn[0].append(losses[: len(losses) // 2])
        drawn[1].append(losses[len(losses) // 2 :])
    first, second = (np.log(classes) - torch.cat(kind).double().numpy() for kind in drawn)
    return first, second


def _distribution(scores: FloatArray) -> Distribution:
    """Return scores in bins of as many samples each."""
    ordered = np.sort(scores)
    starts = np.unique(np.linspace(0, len(ordered), _BINS + 1).astype(np.int64))
    counts = np.diff(starts).astype(np.float64)
    means = np.add.reduceat(ordered, starts[:-1]) / counts
    return Distribution(means, counts, -means)
