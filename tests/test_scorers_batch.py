"""Many scores from one pass of a training: what is shared, what is logged, what is refused."""

import copy

import pyarrow.compute as pc
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, Outputs, ScoreLog, select
from gradmimic.scorers import SCORERS, BatchScorer, HeadPass, Loss, Margin, Rho, Scorer

N, D, K = 60, 5, 4
ALL = list(SCORERS)


class Calls(nn.Module):
    """A classifier that counts its passes, and registers its head first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, K)
        self.trunk = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Dropout(0.1))
        self.passes = []

    def forward(self, x):
        self.passes.append(len(x))
        return self.head(self.trunk(x))


@pytest.fixture
def data():
    x, y = torch.randn(N, D), torch.randint(K, (N,))
    return x, y


def everything(model, data, **more):
    """All that scorers may ask for."""
    x, y = data
    torch.manual_seed(7)
    said = Outputs(range(N), torch.randn(N, K))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return {
        "reference": copy.deepcopy(model).requires_grad_(False).apply(moved),
        "outputs": said, "trusted": (x[:3], y[:3]), "optimizer": optimizer, **more,
    }  # fmt: skip


def moved(module):
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)


def one(scores, model, x, y, ids=None, **more):
    with scores:
        z = model(x)
    return scores.weigh(z, y, ids, **more)


def mean_loss(z, y):
    return F.cross_entropy(z, y, reduction="none").mean()


def steps(model, data, take, optimizer=None, size=8, epochs=2):
    """Train on batches by ``take(x, y, ids, epoch) -> loss``."""
    x, y = data
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    for epoch in range(epochs):
        for rows in torch.randperm(N).split(size):
            loss = take(x[rows], y[rows], rows, epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def scored(scores, model, canaries=None):
    def take(x, y, ids, epoch):
        with scores:
            z = model(x)
        return scores.weigh(z, y, ids, epoch=epoch, canaries=canaries)

    return take


def test_without_weights_training_is_the_plain_one_to_the_bit(data):
    model = Calls()
    given, twin = everything(model, data), copy.deepcopy(model)
    given["optimizer"] = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scores = BatchScorer(model, [name for name in ALL if name != "influence"], **given)
    found = steps(model, data, scored(scores, model, Canaries(0.5)), given["optimizer"])
    plain = steps(twin, data, lambda x, y, *_: mean_loss(twin(x), y))
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert torch.equal(scores.weights, torch.full((4,), 0.25))


def test_mimic_is_what_grad_mimic_gives(data):
    model = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, K)).double()
    data = data[0].double(), data[1]
    better, twin = copy.deepcopy(model).apply(moved), copy.deepcopy(model)
    found, expected = [], []
    scores = BatchScorer(model, ["mimic"], weigh_by="mimic", reference=better, temperature=0.3)
    mimic = GradMimic(twin, better, temperature=0.3)

    def by_mimic(x, y, ids, epoch):
        with mimic:
            values = F.cross_entropy(twin(x), y, reduction="none")
        loss = mimic.weigh(values)
        expected.append(mimic.scores)
        return loss

    def by_scores(x, y, ids, epoch):
        loss = scored(scores, model)(x, y, ids, epoch)
        found.append(scores.scores["mimic"])
        return loss

    weights = steps(model, data, by_scores), steps(twin, data, by_mimic)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-9, atol=1e-12)
    for own, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-12)


def test_all_of_them_cost_one_pass_and_trusted_samples_a_small_one(data):
    model = Calls()
    (x, y), given = data, everything(model, data)
    for names, passes in ((ALL, [8, 3]), ([n for n in ALL if n != "influence"], [8])):
        scores = BatchScorer(model, names, weigh_by="agra", **given)
        model.passes.clear()
        for _ in range(2):
            with scores:
                z = model(x[:8])
            scores.weigh(z, y[:8], range(8))
        assert model.passes == passes * 2
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())


def test_canaries_are_scored_like_samples_and_move_nothing(data, tmp_path):
    model = Calls().eval()
    (x, y), given = data, everything(model, data)
    with ScoreLog(tmp_path) as log:
        for canaries in (None, Canaries(0.4)):
            own = log if canaries else None
            scores = BatchScorer(model, ALL, weigh_by="grad_match", log=own, **given)
            with scores:
                z = model(x)
            loss = scores.weigh(z, y, range(N), epoch=0, canaries=canaries)
            if canaries is None:
                without = loss, scores.scores, scores.weights
        drawn = canaries.labels(z, y, range(N))
        assert 10 < len(drawn.ids) < N
        torch.testing.assert_close(loss, without[0])
        torch.testing.assert_close(scores.scores, without[1])
        torch.testing.assert_close(scores.weights, without[2])
        log.flush()
        rows = log.scan().to_pandas()
    assert set(rows.scorer) == set(ALL)
    weights = rows[rows.canary.notna()].weight
    assert (weights == 0).all()
    # a canary's margin is that of its sample's logits under the other label
    margins = rows[(rows.scorer == "margin") & rows.canary.notna()]
    seen = HeadPass.of(z.detach(), z[drawn.rows], drawn.labels, torch.eye(K), None)
    assert margins.score.tolist() == pytest.approx(Margin()(seen).tolist(), abs=1e-6)
    assert margins.sample_id.tolist() == drawn.ids
    assert margins.loss.tolist() == pytest.approx(drawn.losses.tolist(), abs=1e-5)


def test_logged_scores_are_combined_by_the_selection(data, tmp_path):
    model = Calls()
    given = everything(model, data)
    with ScoreLog(tmp_path) as log:
        scores = BatchScorer(model, ["loss", "mimic", "margin"], weigh_by="mimic", log=log, **given)
        steps(model, data, scored(scores, model, Canaries(0.5)), given["optimizer"])
        selection = select(log, scorer=["loss", "mimic", "margin"], aggregate="stacked")
        assert len(selection) == N
        assert len(log.run["direction_norm"]) == 16
        own = log.scan(["epoch"], (pc.field("scorer") == "margin") & pc.field("canary").is_null())
    assert own.num_rows == 2 * N  # the mean of a sample's two margins is its AUM


def test_trained_canaries_take_part(data):
    model = Calls().eval()
    x, y = data
    scores = BatchScorer(model, ["loss"], weigh_by=Loss(keep=1.0))
    canaries = Canaries(0.4, trained=True)
    with scores:
        z = model(x)
    loss = scores.weigh(z, y, range(N), canaries=canaries)
    drawn = canaries.labels(z, y, range(N))
    both = torch.cat([F.cross_entropy(z, y, reduction="none"), drawn.losses])
    torch.testing.assert_close(loss, both.mean())
    assert len(scores.weights) == N


def test_samples_that_the_outputs_do_not_know_train_with_an_equal_share(data, tmp_path):
    model, (x, y) = Calls().eval(), data
    said = Outputs(range(4, N), torch.randn(N - 4, K))
    with ScoreLog(tmp_path) as log:
        scores = BatchScorer(model, ["margin"], weigh_by=Rho(0.5), outputs=said, log=log)
        with scores:
            z = model(x[:8])
        scores.weigh(z, y[:8], range(8), canaries=Canaries(1.0))
        log.flush()
        rows = log.scan().to_pandas()
    expected = F.cross_entropy(z, y[:8], reduction="none")[4:] - F.cross_entropy(
        said.of(range(4, 8))[0], y[4:8], reduction="none"
    )
    best = torch.zeros(4).scatter(0, expected.topk(2).indices, 0.25)
    torch.testing.assert_close(scores.weights, torch.cat([torch.full((4,), 1 / 8), best]))
    assert set(rows[rows.scorer == "rho"].sample_id) == {4, 5, 6, 7}
    assert set(rows[rows.scorer == "margin"].sample_id) == set(range(8))


def test_adam_moments_are_the_optimizers(data):
    model, better = nn.Linear(D, K).double(), nn.Linear(D, K).double()
    x, y = data[0].double(), data[1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-5)
    scores = BatchScorer(
        model, ["mimic", "mimic_adam"], weigh_by="mimic_adam", reference=better, optimizer=optimizer
    )
    second = [torch.zeros_like(p) for p in model.parameters()]
    for t in range(4):
        scale = [1 / ((s / (1 - 0.95 ** max(t, 1))).sqrt() + 1e-5) for s in second]
        with scores:
            z = model(x)
        loss = scores.weigh(z, y)
        if t == 0:
            torch.testing.assert_close(scores.scores["mimic_adam"], scores.scores["mimic"])
        else:
            v = [q - p for p, q in zip(model.parameters(), better.parameters(), strict=True)]
            u = torch.cat([(a * b).flatten() for a, b in zip(v, scale, strict=True)]).detach()
            for i in range(5):
                one = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
                g = torch.cat(
                    [p.flatten() for p in torch.autograd.grad(one, [*model.parameters()])]
                )
                assert float(scores.scores["mimic_adam"][i]) == pytest.approx(
                    float(-g @ u / u.norm())
                )
        optimizer.zero_grad()
        loss.backward()
        second = [
            0.95 * s + 0.05 * p.grad**2 for s, p in zip(second, model.parameters(), strict=True)
        ]
        optimizer.step()


@pytest.mark.parametrize("engine", ["auto", "ghost", "oracle"])
def test_others_are_logged_beside_grad_mimic(data, engine):
    model = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, K))
    (x, y), better = data, copy.deepcopy(model).apply(moved)
    alone = BatchScorer(model, ["margin", "grand", "mimic"], reference=better)
    beside = BatchScorer(model, ["margin", "grand", "mimic"], reference=better)
    mimic = GradMimic(model, better, engine=engine)
    for _ in range(2):
        with alone:
            z = model(x)
        alone.weigh(z, y)
        with mimic, beside:
            z = model(x)
            losses = F.cross_entropy(z, y, reduction="none")
        beside.weigh(z, y)
        mimic.weigh(losses).backward()
        torch.testing.assert_close(beside.scores, alone.scores)
        torch.testing.assert_close(mimic.scores, alone.scores["mimic"], rtol=1e-4, atol=1e-5)


def test_a_scorer_of_ones_own_scores_and_weighs(data):
    class Entropy(Scorer):
        name = "entropy"

        def __call__(self, seen):
            p = seen.logits.softmax(1)
            return (p * p.log()).sum(1)

        def weights(self, scores, seen, softmax):
            return softmax(scores)

    model, (x, y) = nn.Linear(D, K), data
    scores = BatchScorer(model, [Loss()], weigh_by=Entropy(), temperature=lambda step: 2.0)
    with scores:
        z = model(x)
    loss = scores.weigh(z, y)
    p = z.softmax(1)
    w = ((p * p.log()).sum(1) / 2).softmax(0)
    torch.testing.assert_close(loss, (w * F.cross_entropy(z, y, reduction="none")).sum())


def test_no_scorers_are_plain_training(data):
    model, (x, y) = nn.Linear(D, K), data
    loss = one(BatchScorer(model, []), model, x, y)
    assert torch.equal(loss, mean_loss(model(x), y))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")
def test_compiled_models_are_scored_as_they_are(data):
    model, (x, y) = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, K)), data
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)  # compiled before anything watches
    plain, scores = BatchScorer(model, ["grand"]), BatchScorer(compiled, ["grand"])
    for _ in range(2):
        one(plain, model, x, y)
        one(scores, compiled, x, y, None).backward()
        torch.testing.assert_close(scores.scores, plain.scores)


def test_without_gradients_batches_are_scored_and_logged(data, tmp_path):
    model, (x, y) = nn.Linear(D, K), data
    with ScoreLog(tmp_path) as log, torch.no_grad():
        one(BatchScorer(model, ["margin", "grand"], log=log), model, x, y, range(N), epoch=0)
        assert len(select(log, "two_means", scorer="margin")) == N


def test_half_precision_is_scored_in_single(data):
    model, (x, y) = nn.Linear(D, K), data
    scores = BatchScorer(model, ["margin", "grand"], weigh_by="agra")
    with torch.autocast("cpu", dtype=torch.bfloat16), scores:
        z = model(x)
    loss = scores.weigh(z, y)
    assert z.dtype == torch.bfloat16
    assert loss.dtype == scores.scores["grand"].dtype == torch.float32
    loss.backward()
    assert model.weight.grad.isfinite().all()
