import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic, ScoreLog, transport
from gradmimic.direction import choose
from gradmimic.errors import AlignmentError, DataError, UsageError
from gradmimic.outputs import Outputs, cache_outputs
from gradmimic.transport import FIRST, SHARPNESS, Ridge, Transport

N, IN, D, K, B = 64, 4, 5, 3, 16
X = torch.randn(N, IN, generator=torch.Generator().manual_seed(0))
Y = torch.randint(K, (N,), generator=torch.Generator().manual_seed(1))


def classifier(seed=0, bias=True, d=D):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(IN, d), nn.Tanh(), nn.Linear(d, K, bias))


def rows_of(step):
    return torch.randperm(N, generator=torch.Generator().manual_seed(step))[:B]


def step_of(mimic, model, step, ids=True, x=X):
    rows = rows_of(step)
    with mimic:
        z = model(x[rows])
        losses = F.cross_entropy(z.float(), Y[rows], reduction="none")
    return mimic.weigh(losses, rows if ids else None), losses


def trained(mimic, model, steps, lr=0.05, **options):
    optimizer, found = torch.optim.SGD(model.parameters(), lr), []
    for step in range(steps):
        optimizer.zero_grad()
        step_of(mimic, model, step, **options)[0].backward()
        optimizer.step()
        if step >= FIRST:
            found.append(mimic.scores)
    return torch.stack(found) if found else None


def mimics(model, reference, **options):
    return GradMimic(
        model, reference, align="transport", params="2.*", temperature="auto", **options
    )


def ready(model, outputs, x=X, params="2.*", rows_of=rows_of):
    """A transport that has watched some passes of a model that stands still."""
    found = Transport(model, choose(model, params), outputs)
    for step in range(FIRST):
        with found.watching():
            model(x[rows_of(step)])
        found.observe(rows_of(step))
    return found


def joined(parts):
    """The weight and the bias of a head as one matrix, without what softmax never sees."""
    w = torch.cat([part.detach().reshape(K, -1) for part in parts], dim=1)  # [K, d]
    return (w - w.mean(0)).T


class Says(nn.Module):
    """A reference whose outputs are those of another, changed."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x):
        return self.change(self.inner(x))


@settings(max_examples=30, deadline=None)
@given(
    d=st.integers(1, 6), k=st.integers(1, 4), seed=st.integers(0, 99),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)  # fmt: skip
def test_ridge_is_least_squares_with_forgetting(d, k, seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    fit, decay = Ridge(d, k, torch.device("cpu")), 1 - 1 / transport.MEMORY
    blocks = [
        (torch.randn(n, d, generator=generator), torch.randn(n, k, generator=generator))
        for n in sizes
    ]
    for h, z in blocks:
        fit.add(h, z)
    # √weight on each row, and √λ' rows that ask for W = 0
    forgotten = [decay ** ((len(sizes) - 1 - j) / 2) for j in range(len(sizes))]
    h = torch.cat([h * f for (h, _), f in zip(blocks, forgotten, strict=True)]).double()
    z = torch.cat([z * f for (_, z), f in zip(blocks, forgotten, strict=True)]).double()
    n = sum(size * f**2 for size, f in zip(sizes, forgotten, strict=True))
    ridge = (transport.RIDGE * h.square().sum() / n).sqrt()
    expected = torch.linalg.lstsq(
        torch.cat([h, ridge * torch.eye(d, dtype=torch.float64)]),
        torch.cat([z, torch.zeros(d, k, dtype=torch.float64)]),
    ).solution
    torch.testing.assert_close(fit.solve().double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_on_equal_features_the_head_is_the_references_own(monkeypatch, bias):
    monkeypatch.setattr(transport, "RIDGE", 1e-9)
    model = classifier(bias=bias)
    reference = copy.deepcopy(model)
    nn.init.normal_(reference[2].weight)
    found = ready(model, reference)
    own, theirs = (joined(m[2].parameters()) for m in (model, reference))
    target = own + joined(found.direction().tensors.values())
    # its logits are SHARPNESS times as large as the model's, over what was seen
    length = found._fits["2"].length
    kappa = SHARPNESS * length(own) / length(theirs)
    torch.testing.assert_close(target, kappa * theirs, rtol=1e-2, atol=1e-2)


def test_neither_scale_nor_a_shift_of_the_references_logits_changes_a_score():
    scores = []
    for change in (
        lambda z: z,
        lambda z: 0.25 * z,
        lambda z: 4 * z + 7,
        lambda z: z + z.square().sum(1, keepdim=True),
    ):
        model = classifier()
        scores.append(trained(mimics(model, Says(classifier(9), change)), model, 30))
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-3, atol=1e-4)


def test_more_features_than_samples_stay_finite_and_are_fitted():
    model, reference = classifier(d=300), classifier(9)
    v = ready(model, cache_outputs(reference, [(range(N), X)])).direction()
    assert all(part.isfinite().all() for part in v.tensors.values())
    head = {name.removeprefix("2."): v.tensors[name] for name in v.tensors}
    with torch.no_grad():
        h, z = model[:2](X), reference(X)
        target = F.linear(h, head["weight"] + model[2].weight, head["bias"] + model[2].bias)
    z, target = z - z.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    assert F.cosine_similarity(target.flatten(), z.flatten(), dim=0) > 0.95


def test_a_head_that_starts_at_zero_takes_the_references_own_size():
    model, reference = classifier(), classifier(9)
    nn.init.zeros_(model[2].weight), nn.init.zeros_(model[2].bias)
    v = ready(model, reference).direction().tensors
    z = reference(X) - reference(X).mean(1, keepdim=True)
    size = F.linear(model[:2](X), v["2.weight"], v["2.bias"]).norm() / z.norm()
    assert 0.5 < size < 1.05


def test_the_first_steps_train_on_the_plain_mean():
    model = classifier()
    mimic = mimics(model, classifier(9))
    for step in range(FIRST + 2):
        loss, losses = step_of(mimic, model, step)
        assert torch.isclose(loss, losses.mean()) == (step < FIRST)
        assert (mimic.scores is None) == (step < FIRST)


@pytest.mark.parametrize("engine", ["forward", "oracle"])
def test_scores_are_those_along_the_direction(engine):
    model = classifier()
    mimic = mimics(model, classifier(9), engine=engine)
    trained(mimic, model, FIRST + 3)
    v = mimic._alignment.direction()
    step_of(mimic, model, 50)
    for i in range(B):
        row = rows_of(50)[i : i + 1]
        gradients = torch.autograd.grad(
            F.cross_entropy(model(X[row]), Y[row]), list(model[2].parameters())
        )
        expected = -sum(
            (g * part).sum() for g, part in zip(gradients, v.tensors.values(), strict=True)
        )
        assert mimic.scores[i].item() == pytest.approx(expected.item() / v.norm, abs=1e-5)


def test_a_module_run_beside_and_its_cache_give_the_same_scores():
    reference = Says(classifier(9), lambda z: z.half().float())  # as a cache keeps them
    scores = []
    for given_as in (reference, cache_outputs(reference, [(range(N), X)])):
        model = classifier()
        scores.append(trained(mimics(model, given_as), model, 40))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_a_sample_is_scored_before_its_own_outputs_are_learned():
    said, rows = classifier(9)(X).detach(), rows_of(FIRST)
    scores = []
    for change in (0.0, 100.0):
        model, own = classifier(), said.clone()
        mimic = mimics(model, Outputs(range(N), own))
        trained(mimic, model, FIRST)
        own[rows] += change * torch.eye(K)[0]
        mimic._alignment._outputs = Outputs(range(N), own)
        step_of(mimic, model, FIRST)
        scores.append(mimic.scores)
    torch.testing.assert_close(scores[0], scores[1])


def test_samples_that_the_table_lacks_get_one_over_b_and_are_not_logged(tmp_path):
    model, known = classifier(), [i for i in range(N) if i % 4]
    table = Outputs(known, classifier(9)(X[known]).detach())
    with ScoreLog(tmp_path / "log") as log:
        mimic = mimics(model, table, log=log)
        lacking, logged = 0, 0
        for step in range(FIRST + 5):
            lacks = rows_of(step) % 4 == 0
            step_of(mimic, model, step)
            lacking += int(lacks.sum())
            assert mimic.missing == lacking
            if step < FIRST:
                continue
            logged += int((~lacks).sum())
            torch.testing.assert_close(mimic.weights[lacks], torch.full((lacks.sum(),), 1 / B))
            assert mimic.weights.sum().item() == pytest.approx(1)
            here, m = mimic.weights[~lacks], mimic.scores[~lacks]
            slopes = (here.log() - here.log()[0])[1:] / (m - m[0])[1:]
            torch.testing.assert_close(slopes, slopes.mean().expand_as(slopes), rtol=1e-2, atol=0)
    rows = ScoreLog.read(tmp_path / "log").scan()
    assert len(rows) == logged
    assert not [i for i in rows["sample_id"].to_pylist() if i % 4 == 0]


def test_samples_that_the_table_lacks_teach_nothing():
    model, known = classifier(), [i for i in range(N) if i % 4]
    table = Outputs(known, classifier(9)(X[known]).detach())
    all_rows = ready(model, table).direction()
    fewer = ready(model, table, rows_of=lambda s: rows_of(s)[rows_of(s) % 4 > 0]).direction()
    for name, part in fewer.tensors.items():
        torch.testing.assert_close(all_rows.tensors[name], part)


def test_the_reference_is_left_as_it_was():
    reference = nn.Sequential(nn.BatchNorm1d(IN), nn.Dropout(), nn.Linear(IN, K))
    before = copy.deepcopy(reference.state_dict())
    model = classifier()
    scores = trained(mimics(model, reference), model, FIRST + 2)
    assert scores.isfinite().all()
    assert all(module.training for module in reference.modules())
    assert all(p.grad is None and p.requires_grad for p in reference.parameters())
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_each_part_of_the_reference_is_left_in_its_own_mode():
    reference = nn.Sequential(nn.BatchNorm1d(IN), nn.Dropout(), nn.Linear(IN, K))
    reference[0].eval()
    ready(classifier(), reference)
    assert [part.training for part in reference] == [False, True, True]


def test_nothing_is_scored_while_the_table_knew_no_sample():
    model = classifier()
    assert ready(model, Outputs([N + 1], [[1.0, 2.0, 3.0]])).direction() is None


def test_under_autocast_the_head_is_that_of_full_precision():
    model, reference = classifier(), classifier(9)
    outputs = cache_outputs(reference, [(range(N), X)])
    exact = ready(model, outputs).direction()
    with torch.autocast("cpu", torch.bfloat16):
        rough = ready(model, outputs).direction()
    for name, part in exact.tensors.items():
        assert rough.tensors[name].dtype == torch.float32
        torch.testing.assert_close(rough.tensors[name], part, rtol=0.1, atol=0.1)
    mimic = mimics(model, reference)
    for step in range(FIRST + 2):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = step_of(mimic, model, step)
        loss.backward()
    assert mimic.scores.isfinite().all()
    assert mimic.scores.std() > 0


def test_a_model_in_half_precision_has_a_direction_in_half_precision():
    model = classifier().bfloat16()
    v = ready(model, cache_outputs(classifier(9), [(range(N), X)]), x=X.bfloat16()).direction()
    assert {part.dtype for part in v.tensors.values()} == {torch.bfloat16}
    assert all(part.isfinite().all() for part in v.tensors.values())


def test_the_head_of_a_sequence_learns_from_every_position():
    class Tokens(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = classifier(seed)

        def forward(self, x):  # [b, IN] -> [b, 2, K]
            return self.inner(torch.stack([x, -x], 1))

    model, reference = Tokens(0), Tokens(9)
    found = ready(model, reference, params="inner.2.*").direction().tensors
    # both positions as samples of their own
    flat = Transport(model.inner, choose(model.inner, "2.*"), reference.inner)
    for step in range(FIRST):
        x = X[rows_of(step)]
        with flat.watching():
            model.inner(torch.cat([x, -x]))
        flat.observe(None)
    for name, part in flat.direction().tensors.items():
        torch.testing.assert_close(found[f"inner.{name}"], part, rtol=1e-4, atol=1e-4)


class Towers(nn.Module):
    def __init__(self, seed, width):
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(IN, width), nn.Linear(IN, width, bias=False)

    def forward(self, x):
        return {"image": self.image(x), "text": self.text(x.flip(1))}


@pytest.mark.parametrize("width", [4, 7])
def test_a_turned_copy_of_two_projections_is_no_direction_at_all(width, monkeypatch):
    monkeypatch.setattr(transport, "RIDGE", 1e-9)
    model, reference = Towers(0, 4), Towers(1, width)
    turn = torch.linalg.qr(torch.randn(width, 4)).Q  # [width, 4]
    with torch.no_grad():
        reference.image.weight.copy_(turn @ model.image.weight)
        reference.image.bias.copy_(turn @ model.image.bias)
        reference.text.weight.copy_(turn @ model.text.weight)
    v = ready(model, reference, params="all").direction()
    size = math.sqrt(sum(p.square().sum().item() for p in model.parameters()))
    assert v.norm < 0.02 * size


@pytest.mark.parametrize("width", [2, 4, 7])
def test_projections_from_elsewhere_are_scored(width):
    model, reference = Towers(0, 4), Towers(1, width)
    mimic = GradMimic(model, reference, align="transport", params="all", temperature="auto")
    for step in range(FIRST + 1):
        with mimic:
            both = model(X[rows_of(step)])
        image, text = (F.normalize(both[name], dim=1) for name in ("image", "text"))
        losses = F.cross_entropy(image @ text.T / 0.1, torch.arange(B), reduction="none")
        mimic.weigh(losses).backward()
    assert mimic.scores.isfinite().all()
    assert mimic.scores.std() > 0


def test_outputs_that_do_not_fit_are_refused():
    four = Outputs(range(N), torch.randn(N, 4))
    with pytest.raises(DataError, match="gives 4 outputs, the scored layer '2' has 3"):
        ready(classifier(), four)
    for change, message in (
        (lambda z: z[1:], r"saw features \[16, 5\], the reference gave outputs \[15, 3\]"),
        (lambda z: (z, z), "returned tuple; expected a tensor of outputs, or a mapping"),
        (lambda z: {"other": z}, r"names of the scored layers \(2\)"),
        (lambda z: z * torch.nan, "NaN or infinite, so no head can be fitted"),
    ):
        with pytest.raises(DataError, match=message):
            ready(classifier(), Says(classifier(9), change)).direction()
    model = classifier()
    nn.init.constant_(model[0].weight, torch.nan)
    with pytest.raises(DataError, match="NaN or infinite"):
        ready(model, classifier(9)).direction()


def test_a_pass_that_cannot_be_followed_is_refused():
    model = classifier()
    table = cache_outputs(classifier(9), [(range(N), X)])
    with pytest.raises(UsageError, match="so weigh needs each sample's id"):
        step_of(mimics(model, table), model, 0, ids=False)
    with pytest.raises(UsageError, match="Sequential itself was not called in the `with` block"):
        step_of(mimics(model, classifier(9)), lambda x: model[2](model[:2](x)), 0)
    with pytest.raises(UsageError, match="the scored layer '2' did not run"):
        step_of(mimics(model, table), classifier(5), 0)


def test_layers_without_such_a_head_are_refused():
    table = Outputs(range(N), torch.randn(N, 4))
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    with pytest.raises(AlignmentError, match="belongs to Conv2d"):
        GradMimic(conv, table, align="transport")
    with pytest.raises(AlignmentError, match="expects the whole layer '2' to be scored"):
        GradMimic(classifier(), table, align="transport", params="2.weight")
    with pytest.raises(AlignmentError, match="a table holds the outputs of one"):
        GradMimic(Towers(0, 4), table, align="transport", params="all")
    with pytest.raises(AlignmentError, match="weights alone do not tell"):
        mimics(classifier(), classifier().state_dict())


def test_what_transformers_return_is_read():
    plain = ready(classifier(), classifier(9)).direction()
    answer = Says(classifier(9), lambda z: SimpleNamespace(logits=z))
    wrapped = ready(classifier(), answer).direction()
    for name, part in plain.tensors.items():
        torch.testing.assert_close(wrapped.tensors[name], part)
