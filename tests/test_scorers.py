"""Every scorer against per-sample gradients, one backward pass each, in float64."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import nn
from torch.nn import functional as F

from gradmimic.errors import MissingExtraError, ParameterError
from gradmimic.scorers import (
    SCORERS,
    Agra,
    GradMatch,
    HeadPass,
    LastLayer,
    Loss,
    Mimic,
    ReferenceLoss,
    Rho,
    Scorer,
)
from gradmimic.scorers.head_pass import cross_entropy


def squared(z, y):
    return (z - F.one_hot(y, z.shape[1]).to(z)).square().sum(1)


def smoothed(z, y):
    return F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)


SHAPES = [(1, 1, 2, 0), (5, 3, 4, 0), (7, 2, 3, 3), (12, 6, 5, 4)]  # samples, d, K, canaries
LOSSES = [cross_entropy, squared, smoothed]


class Case:
    """A head and a batch, and what each scorer may ask for, by plain loops."""

    def __init__(self, shape, bias, loss, seed=0):
        torch.manual_seed(seed)
        b, d, classes, c = shape
        self.head = nn.Linear(d, classes, bias=bias).double()
        self.reference = nn.Linear(d, classes, bias=bias).double()
        self.h = torch.randn(b, d).double()
        self.y = torch.randint(classes, (b,))
        rows = torch.randint(b, (c,))  # the samples that canaries are made from
        self.rows = torch.cat([torch.arange(b), rows])
        self.h_all = torch.cat([self.h, self.h[rows]])
        self.y_all = torch.cat([self.y, torch.randint(classes, (c,))])
        self.b, self.loss = b, loss
        self.said = 2 * torch.randn(b, classes).double()
        self.said = torch.cat([self.said, self.said[rows]])
        self.clean = torch.randn(4, d).double(), torch.randint(classes, (4,))
        self.moments = torch.rand_like(self.head.weight), torch.rand(classes).double()
        self.g = self.gradients(self.h_all, self.y_all)  # [n, P]
        self.theta = flat(self.head)
        self.v = flat(self.reference) - self.theta

    def gradients(self, h, y):
        rows = []
        for i in range(len(y)):
            self.head.zero_grad()
            self.loss(self.head(h[i : i + 1]), y[i : i + 1]).sum().backward()
            rows.append(np.concatenate([p.grad.flatten().numpy() for p in self.head.parameters()]))
        return np.stack(rows)

    def seen(self):
        w, bias = self.head.weight, self.head.bias
        of = lambda h, y, z, m: HeadPass.of(
            h, z, y, w, bias, self.loss, m, self.rows if m < len(y) else None
        )
        seen = of(self.h_all, self.y_all, self.head(self.h_all), self.b)
        v = [
            p - q for p, q in zip(self.reference.parameters(), self.head.parameters(), strict=True)
        ]
        own = lambda parts: LastLayer(
            *[p.detach() for p in parts], *([] if bias is not None else [None])
        )
        trusted = of(*self.clean, self.head(self.clean[0]), 4).mean_gradient()
        return HeadPass(
            **{
                **vars(seen),
                "direction": own(v),
                "reference_losses": self.loss(self.said, self.y_all),
                "trusted": trusted,
                "adam": own(self.moments if bias is not None else self.moments[:1]),
            }
        )

    def logits(self):
        return self.head(self.h_all).detach().numpy()


def flat(layer):
    return np.concatenate([p.detach().flatten().numpy() for p in layer.parameters()])


def cos(a, b):
    lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
    return a @ b / lengths if lengths else 0.0


def probabilities(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def each(case, score):
    """Score every row by itself: ``score(i, gradient, logits, label)``."""
    z, y = case.logits(), case.y_all.tolist()
    return np.array([score(i, case.g[i], z[i], y[i]) for i in range(len(y))])


def losses(case, z):
    return [
        float(case.loss(torch.tensor(z[i : i + 1]), case.y_all[i : i + 1])) for i in range(len(z))
    ]


def el2n(case):
    return each(case, lambda i, g, z, y: -np.linalg.norm(probabilities(z) - np.eye(len(z))[y]))


def preconditioned(case):
    moments = case.moments if case.head.bias is not None else case.moments[:1]
    u = np.concatenate([p.flatten().numpy() for p in moments]) * case.v
    return each(case, lambda i, g, z, y: -g @ u / math.sqrt(u @ u))


def grad_match(case):
    def score(i, g, z, y):
        others = [case.g[j] for j in range(case.b) if j != case.rows[i]]
        return g @ np.mean(others, axis=0) if others else 0.0

    return each(case, score)


EXPECTED = {
    "loss": lambda case: -np.array(losses(case, case.logits())),
    "reference_loss": lambda case: -np.array(losses(case, case.said.numpy())),
    "rho": lambda case: np.subtract(losses(case, case.logits()), losses(case, case.said.numpy())),
    "el2n": el2n,
    "grand": lambda case: each(case, lambda i, g, z, y: -math.sqrt(g @ g)),
    "margin": lambda case: each(case, lambda i, g, z, y: z[y] - np.delete(z, y).max()),
    "self_confidence": lambda case: each(case, lambda i, g, z, y: probabilities(z)[y]),
    "agra": lambda case: each(case, lambda i, g, z, y: cos(g, case.g[: case.b].mean(0))),
    "grad_match": grad_match,
    "gwa": lambda case: each(case, lambda i, g, z, y: cos(-g, case.theta)),
    "influence": lambda case: case.g @ case.gradients(*case.clean).mean(0),
    "mimic": lambda case: each(case, lambda i, g, z, y: -g @ case.v / math.sqrt(case.v @ case.v)),
    "mimic_cosine": lambda case: each(case, lambda i, g, z, y: cos(-g, case.v)),
    "mimic_adam": preconditioned,
}


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_score_is_what_per_sample_gradients_say(name, loss, bias):
    for seed, shape in enumerate(SHAPES):
        case = Case(shape, bias, loss, seed)
        found = SCORERS[name]()(case.seen())
        np.testing.assert_allclose(found.numpy(), EXPECTED[name](case), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_products_of_gradients_are_never_formed_from_gradients_but_are_theirs(bias):
    case = Case((6, 3, 4, 2), bias, cross_entropy)
    seen, own = case.seen(), case.g[:6]
    np.testing.assert_allclose(seen.products().numpy(), own @ own.T, atol=1e-12)
    mean = seen.mean_gradient()
    parts = [mean.weight.flatten(), *([] if mean.bias is None else [mean.bias])]
    np.testing.assert_allclose(torch.cat(parts).numpy(), own.mean(0), atol=1e-12)
    assert mean.norm == pytest.approx(np.linalg.norm(own.mean(0)))


def test_agra_compares_with_the_batch_before_under_the_present_weights():
    first, second = Case((5, 3, 4, 2), True, squared), Case((7, 3, 4, 0), True, squared, seed=1)
    agra = Agra()
    agra(first.seen())
    other = second.gradients(first.h, first.y).mean(0)  # without the first batch's canaries
    found = agra(second.seen()).numpy()
    np.testing.assert_allclose(found, [cos(g, other) for g in second.g], atol=1e-12)


def soft(scores):
    return torch.softmax(scores, 0)


def top(case, scores, share):
    kept = math.ceil(share * case.b)
    ranks = sorted(range(case.b), key=lambda i: -scores[i])
    return np.array([1 / kept if i in ranks[:kept] else 0.0 for i in range(case.b)])


def softmax(case, scores):
    e = [math.exp(s) for s in scores]
    return np.array(e) / sum(e)


def agreeing(case, scores):
    agree = np.array([float(s > 0) for s in scores])
    return agree / max(agree.sum(), 1)


WEIGHTS = {
    "grand": (None, lambda case, scores: scores / scores.sum()),
    "agra": (None, agreeing),
    "rho": (lambda: Rho(0.5), lambda case, scores: top(case, scores, 0.5)),
    "loss": (lambda: Loss(keep=0.6), lambda case, scores: top(case, scores, 0.6)),
    "influence": (None, softmax),
    "mimic": (None, softmax),
    "mimic_cosine": (None, softmax),
    "mimic_adam": (None, softmax),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_what_the_formula_says(name):
    make, formula = WEIGHTS[name]
    for seed, shape in enumerate(SHAPES):
        scorer = (make or SCORERS[name])()
        case = Case(shape, True, cross_entropy, seed)
        scores = EXPECTED[name](case)[: case.b]
        weights = scorer.weights(scorer(case.seen())[: case.b], case.seen(), soft)
        assert scorer.online
        np.testing.assert_allclose(weights.numpy(), formula(case, scores), atol=1e-12)
        assert float(weights.sum()) == pytest.approx(1.0)


def pursued(g, most, penalty):
    """Orthogonal matching pursuit on the gradients themselves, with another solver."""
    target, chosen, w = g.sum(0), [], np.zeros(len(g))
    for _ in range(most):
        residual = target - w @ g
        left = [i for i in range(len(g)) if i not in chosen]
        best = max(left, key=lambda i: g[i] @ residual)
        if g[best] @ residual <= 0:
            break
        chosen.append(best)
        a = np.concatenate([g[chosen].T, math.sqrt(penalty) * np.eye(len(chosen))])
        t = np.concatenate([target, np.zeros(len(chosen))])
        w = np.zeros(len(g))
        w[chosen] = lsq_linear(a, t, bounds=(0, np.inf), tol=1e-14, lsmr_tol="auto").x
    return w / w.sum()


@pytest.mark.parametrize("shape", [(5, 3, 4, 0), (12, 6, 5, 4), (30, 2, 2, 3)])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_gradient_matching_pursues_the_batchs_gradient(shape, share):
    case = Case(shape, True, cross_entropy)
    scorer = GradMatch(share=share)
    weights = scorer.weights(scorer(case.seen()), case.seen(), soft).numpy()
    expected = pursued(case.g[: case.b], math.ceil(share * case.b - 1e-9), 0.5)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert (weights >= 0).all()
    assert 1 <= (weights > 0).sum() <= math.ceil(share * case.b)


def test_without_scipy_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    case = Case((3, 2, 3, 0), True, cross_entropy)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradmimic\[scorers\]'"):
        GradMatch().weights(torch.zeros(3), case.seen(), soft)


def test_gradients_that_add_up_to_nothing_weigh_alike():
    h, y = torch.ones(2, 1).double(), torch.tensor([0, 1])
    seen = HeadPass.of(h, torch.zeros(2, 2).double(), y, torch.zeros(2, 1).double(), None)
    scorer = GradMatch()
    assert scorer(seen).tolist() == [-0.5, -0.5]  # each would undo the other
    assert scorer.weights(scorer(seen), seen, soft).tolist() == [0.5, 0.5]
    flat_batch = HeadPass.of(
        h, torch.zeros(2, 2).double(), y, h[:0].new_zeros(2, 1), None, lambda z, y: 0 * z.sum(1)
    )
    grand = SCORERS["grand"]()
    assert grand.weights(grand(flat_batch), flat_batch, soft).tolist() == [0.5, 0.5]


def test_agra_learns_nothing_from_a_batch_where_none_agrees():
    case = Case((3, 2, 3, 0), True, cross_entropy)
    weights = Agra().weights(torch.tensor([-0.1, -0.5, 0.0]), case.seen(), soft)
    assert weights.tolist() == [0.0, 0.0, 0.0]


def test_names_are_those_of_the_classes_and_who_weighs_is_known():
    assert all(SCORERS[name].name == name for name in SCORERS)
    online = {name for name, scorer in SCORERS.items() if scorer().online}
    assert online == {
        "grand",
        "agra",
        "grad_match",
        "rho",
        "influence",
        "mimic",
        "mimic_cosine",
        "mimic_adam",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rho(0.0), r"Rho keeps a share of a batch in \(0, 1\], got 0.0"),
        (lambda: Loss(keep=1.5), "Loss keeps a share"),
        (lambda: GradMatch(share=2), "GradMatch keeps a share"),
        (lambda: GradMatch(penalty=0.0), "needs a penalty > 0, got 0.0"),
    ],
)
def test_shares_and_penalties_are_checked(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (Mimic(), "'mimic' needs reference=, a better model's weights"),
        (ReferenceLoss(), "'reference_loss' needs outputs=, what a reference says"),
        (SCORERS["influence"](), r"'influence' needs trusted=, \(inputs, labels\)"),
    ],
)
def test_a_pass_that_lacks_something_says_what(scorer, message):
    h = torch.ones(1, 1)
    seen = HeadPass.of(h, torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 1), None)
    with pytest.raises(ParameterError, match=message):
        scorer(seen)


@pytest.mark.parametrize("scorer", [SCORERS["el2n"](), Loss()])
def test_who_does_not_weigh_says_so(scorer: Scorer):
    h = torch.ones(1, 1)
    seen = HeadPass.of(h, torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 1), None)
    with pytest.raises(ParameterError, match=f"weigh_by='{scorer.name}'"):
        scorer.weights(scorer(seen), seen, soft)
